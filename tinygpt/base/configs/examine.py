"""The configurations of the commands that examine a run: plan, eval, doctor, report, why."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Literal

from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.configs.fields import HIDDEN, POSITIONAL, RUN, Group, Limit
from tinygpt.base.configs.shared import Count, CountOrZero, DataConfig, DatasetName, File, Files, InferenceConfig


@dataclasses.dataclass
class PlanConfig(TrainConfig):
    """Predict time and memory of a training run from a pilot run of seconds on this machine.

    tinygpt plan configs/shakespeare_char.yaml --device=cpu
    tinygpt plan configs/shakespeare_char.yaml --processes=4 --shard

    It runs 25 iterations and two evaluations, and writes nothing. It accepts all keys of tinygpt train.
    """

    hidden_groups = ("model", "text", "optimizer", "evaluation", "files", "machine")

    processes: CountOrZero = 0
    """compute the memory of each of so many processes of torchrun, sharded or not, without a pilot; 0: plan a run of
    one process"""
    json: bool = False
    """print the predictions as JSON, and everything else on standard error"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.teacher and self.processes:
            yield "teacher cannot be used with processes"
        if self.watch:
            yield "watch shows a run while it trains, and plan trains none"
        if self.shard and not self.processes:
            yield "shard needs processes: plan computes the memory of a sharded run"


@dataclasses.dataclass
class EvalConfig(InferenceConfig, DataConfig):
    """Evaluate a model on the complete validation split and compare it with baselines.

    tinygpt eval out
    tinygpt eval out-finetune --task transactions
    """

    ckpt: Annotated[File, RUN] = "out/ckpt.pt"
    """a run's folder, or a checkpoint"""
    adapter: File = ""
    """a LoRA adapter of that checkpoint: adapter.pt, or its folder"""
    dataset: DatasetName = ""
    """a prepared dataset; empty: the one the model was trained on"""
    task: DatasetName = ""
    """a prepared task; with labels: accuracy, F1, confusion matrix and calibration, compared with n-gram, word and
    majority baselines; with free text as responses: exact match"""
    json: bool = False
    """print one JSON object, for programs"""

    split: Annotated[Literal["test", "val"], Group("with --task")] = "test"
    """the split to evaluate on"""
    positive: str = ""
    """of two labels, the rare one: adds precision, recall, false alarms, misses and their cost, at a threshold chosen
    on the validation split; empty: as the built-in task says"""
    miss_cost: Annotated[float, Limit(">", 0), Limit("<", math.inf)] = 20.0
    """with a positive label: a miss costs as much as this many false alarms"""
    output: File = ""
    """PNG file of the confusion matrix, or with a positive label for the precision-recall curve; empty: confusion.png
    or precision_recall.png in the checkpoint's folder"""


@dataclasses.dataclass
class DoctorConfig(DataConfig):
    """Diagnose a run (still improving, finished, overfitting, diverged, too little data), and check its files.

    tinygpt doctor out
    tinygpt doctor out data/shakespeare_char  # checks the files of a dataset, too
    tinygpt doctor --machine                  # tests this machine, in less than a minute

    If files are damaged, it lists what can still be used, and the exit status is 1.
    """

    run: Annotated[Files, POSITIONAL] = ()
    """folders of runs, or of datasets (data/NAME); empty: out"""
    machine: bool = False
    """test this machine instead: its devices, the three commands, a resumed run, exact results, speed"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.machine and self.run:
            yield "machine tests this machine, and cannot be used with RUN"


@dataclasses.dataclass
class WhyConfig(DataConfig):
    """Find the training examples that raised or lowered an output's probability, and verify them by retraining.

    tinygpt why out --start "SQ *BLUE HERON ESPRESSO" --text coffee
    tinygpt why out --start "SQ *BLUE HERON ESPRESSO" --text coffee --prove --seeds=5

    For pairs, --start is the prompt and --text the response; for plain text, a beginning and its continuation. It
    repeats the training, and estimates the effects in each iteration: three times the training time. --sweeps=4
    differentiates the output by the weight of every row through four whole trainings, three of them without some random
    rows, takes the median, and compares what it predicts for these rows with what was measured: 20 times the training
    time. (`tinygpt lab why` tests the estimate.)
    """

    run: Annotated[File, POSITIONAL] = "out"
    """the run's folder"""
    start: str = ""
    """the prompt, or the text before the output; FILE:prompt.txt reads it from a file"""
    text: str = ""
    """the output to explain: a response or a continuation, generated by the model or not"""
    count: Count = 5
    """show this many rows that raised the probability most, and this many that lowered it most"""
    json: bool = False
    """print one JSON object, for programs"""
    device: str = ""
    """device for retraining, if this is not the run's machine: auto, cpu, cuda or cuda:N; empty: as in the run"""
    sweeps: Annotated[int, Limit("<=", 100)] = 0
    """trainings that are differentiated, at least 2: the run's, and others without random rows; 0: an estimate"""
    memory: Count = 2000
    """MB for the states of a training in a sweep: with less, more of the training is computed twice"""

    prove: Annotated[bool, Group("proof")] = False
    """train the run again with every row, without the most influential rows, and without random ones of the same label,
    and compare the probabilities: three trainings for each seed"""
    seeds: Annotated[int, Limit(">=", 1), Limit("<=", 100)] = 1
    """repetitions with the run's seed and the next ones. 5 can confirm a ranking, 1 cannot; choose the number
    before you see a result. Finished trainings are kept"""
    leave_out: Count = 10
    """number of rows to leave out"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.sweeps < 0 or self.sweeps == 1:
            yield f"sweeps is {self.sweeps}, but derivatives are tested by others: 0, or at least 2"
        if "memory" in self.given and not self.sweeps:
            yield "memory is for the states of a sweep, and needs sweeps"
        if "seeds" in self.given and not self.prove:
            yield "seeds is the number of repetitions of a proof, and needs prove"


@dataclasses.dataclass
class ReportConfig(DataConfig):
    """Write one HTML file about a run, with the running model inside: no server, no network.

    tinygpt report out -o report.html
    tinygpt report out --live                     # updated while the run trains
    tinygpt report out out-mine                   # curves in one figure, models side by side
    tinygpt report out out-mine --png losses.png  # only the loss curves
    tinygpt report out out-mine --tensorboard     # event files for TensorBoard
    tinygpt report --list                         # the runs of this folder
    """

    runs: Annotated[Files, POSITIONAL] = ("out",)
    """run folders: the report describes the first; the curves show all, and their best models can be compared"""
    output: File = ""
    """the HTML file; empty: report.html in the first folder"""
    title: str = ""
    """the heading of the page; empty: the dataset's name"""
    no_text: bool = False
    """leave out samples and all text of the dataset; the weights remain, and can reproduce memorised text"""
    png: File = ""
    """draw the loss curves of the runs into this PNG file instead"""
    tensorboard: bool = False
    """write event files in each RUN/tensorboard instead, as train --report_to=tensorboard does; it replaces
    earlier event files"""
    live: bool = False
    """keep the page up to date while the run trains, until Ctrl-C; the run may start later, and be resumed"""
    list: bool = False
    """list the runs of this folder, or of RUNS and the folders in them, with date, size and loss instead"""
    until_eof: Annotated[bool, HIDDEN] = False
    """for train --watch, which starts report --live: stop with the last page when standard input ends"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        instead = [name for name in ("png", "tensorboard", "list") if getattr(self, name)]
        other = [*instead[1:], *(name for name in ("live", "output", "title", "no_text") if getattr(self, name))]
        if instead and other:
            yield f"{instead[0]} cannot be used with {other[0]}"
        if self.until_eof and not self.live:
            yield "until_eof needs live"
