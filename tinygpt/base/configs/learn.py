"""The configurations of the commands for learning: quickstart, lab, exercise."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

from tinygpt.base.configs.fields import POSITIONAL, Config, Group, Limit
from tinygpt.base.configs.shared import Count, DataConfig, DatasetName, File, Files, Time, TimeOrNone


@dataclasses.dataclass
class QuickstartConfig(DataConfig):
    """Train your first model, on Tiny Shakespeare or on your own text, and see what it writes before and after.

    tinygpt quickstart
    tinygpt quickstart notes.txt letters/ --budget=10m
    """

    input: Annotated[Files, POSITIONAL] = ()
    """your own text, files or folders, as in prepare; none: Tiny Shakespeare"""
    budget: TimeOrNone = ""
    """time for the training, such as 90s, 5m or 1h; of your own text by default 5m"""
    out_dir: File = "out"
    """folder for the model; a run in it is continued, not replaced; of your own text by default out-my-NAME"""
    max_iters: Count = 800
    """training iterations, instead of a budget"""
    open: bool = True
    """open the page of the model in a browser, where there is a screen"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.budget and "max_iters" in self.given:
            yield "budget fixes max_iters: give one of them"


@dataclasses.dataclass
class LabConfig(DataConfig):
    """Run an experiment on this machine, and get a table, a picture, a page and a verdict.

    tinygpt lab facts --quick
    tinygpt lab methods --seeds=1 --pretrained=out-smollm2

    Labs: facts, methods, labels, reports, domain, drift, adapt, confidence, canary, arithmetic, cascade, why, scale,
    race. `tinygpt lab` alone says what each one shows. The same command continues a stopped lab: finished stages are
    kept.

    lab race ranks the configs of a class by their loss on an unseen text. Its last tenth is the test; the rest becomes
    OUT_DIR/train.txt, for the students:

    tinygpt lab race --text text.txt              # teacher: write train.txt
    tinygpt lab race mine.yaml                    # student, next to train.txt: a provisional loss
    tinygpt lab race submissions --text text.txt  # teacher: the final losses

    An entry has the keys of tinygpt train; those left out are as in configs/nanogpt.yaml. Each character is a token.
    The budget fixes the number of iterations at the start. Of the best and the last weights, those with the lower loss
    on the entry's own validation split count. Later entries are added to the table.
    """

    name: Annotated[str, POSITIONAL] = ""
    """the lab; empty: list them"""
    entries: Annotated[Files, POSITIONAL] = ()
    """lab race: config files, named after the students, or folders of them; empty: write OUT_DIR/train.txt"""
    quick: bool = False
    """a short form for a lesson, with less data, shorter trainings and one seed; lab methods has none"""
    seeds: Annotated[int, Limit(">=", 1), Limit("<=", 100)] = 3
    """repetitions of each training, with seeds 1, 2, ...; a higher number only adds stages"""
    pretrained: File = ""
    """an imported model, to compare with (tinygpt import smollm2 --out_dir out-smollm2); empty: leave it out"""
    out_dir: File = ""
    """folder for results and trained models; empty: out-lab-NAME, with --quick out-lab-NAME-quick"""

    dataset: Annotated[DatasetName, Group("single labs")] = "shakespeare_char"
    """scale: the dataset to train on, which must be plain text"""
    ckpt: File = "out-fast/ckpt.pt"
    """methods: the small base model, a checkpoint or its folder"""
    target: Annotated[float, Limit(">", 0), Limit("<", 1)] = 0.95
    """confidence, cascade: accuracy on the answered validation lines, for which the thresholds are chosen"""

    text: Annotated[File, Group("lab race")] = "train.txt"
    """the text, in UTF-8: the teacher's, with at least 200,000 characters, or its training part; lab adapt: a text of
    your own with at least 1,000 letters, if given"""
    budget: Time = "60s"
    """time of each entry, on one core, such as 90s or 5m: it decides the number of iterations"""


@dataclasses.dataclass
class ExerciseConfig(Config):
    """Write a GPT yourself in ten steps; checks report what is wrong and where to look.

    tinygpt exercise list
    tinygpt exercise start 4
    tinygpt exercise check 4 my_gpt.py
    tinygpt exercise check submissions --csv grades.csv

    Checks run the files with your permissions, not in a sandbox. Exit status of check: 0 if all checks passed, else 1.
    """

    action: Annotated[Literal["list", "start", "check"], POSITIONAL] = "list"
    """list: show the ten steps; start: append a step's template to the file; check: test the file"""
    step: Annotated[File, POSITIONAL] = ""
    """number of the step; check without a number tests every step in the file"""
    file: Annotated[File, POSITIONAL] = "my_gpt.py"
    """the file you write in; check also takes a folder: every *.py in it and in its subfolders"""
    csv: File = ""
    """when checking a folder: also write the results to this CSV file, one row per file"""
