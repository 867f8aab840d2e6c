"""`tinygpt advise`: read the examples, run the contenders within the budget, and keep the one that is advised.

    tinygpt advise pairs.csv --budget=10m

The budget counts the time of all finished stages, also of those before an interruption. The cheap contenders always
run; the language models get what is left, if it is enough for a training that is worth a try.
"""

import contextlib
import hashlib
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.configs import suggest
from tinygpt.base.configs.shared import seconds_of
from tinygpt.base.configs.use import AdviseConfig
from tinygpt.base.errors import TinyGPTError, require_installed
from tinygpt.base.files import folder_lock, strict_json
from tinygpt.base.process import ended_by_sigterm
from tinygpt.base.terminal import duration, print_error
from tinygpt.data.pairs import labels_of
from tinygpt.data.sheets import Row, Sheet, unit
from tinygpt.examine.eval.classifiers import Classifier
from tinygpt.examine.experiment.stages import Identity, Results, Stage, fingerprint, forget, run, stored
from tinygpt.examine.experiment.summary import write
from tinygpt.prepare import tokenizer_for_pairs
from tinygpt.use.advise import contenders, labeller, summary
from tinygpt.use.advise.contenders import FOLDERS, GPT, MAJORITY, PRETRAINED, SENTENCES, Data, Training
from tinygpt.use.advise.look import FEW, SPELLINGS, Finding, Line, across, as_text, look, merged, too_long, unseen
from tinygpt.use.advise.split import Split, parsed_times, split
from tinygpt.use.ask.embeddings import Cached, SentenceEncoder

MOST = 20_000  # lines; of more, a random sample is used
FEWEST = 20
SHORTEST = 20  # seconds of the budget
FINAL = 1.5  # the final training has all lines, where that of a fold has four fifths of them
LAST = 0.95  # share of the time that is left for the last language model
SHARES = {GPT: 0.35, PRETRAINED: LAST}
# that the stored results depend on
SETTINGS = ("budget", "by", "time", "prompt_field", "response_field", "merge_labels", "encoding", "skip_bad")
CURVE = (0.25, 0.5)  # shares of the training lines in the learning curve
ENOUGH = 500  # tested lines; a language model is trained longer rather than on more folds
VECTORS = 0.3  # share of the time that is left, which the vectors of a sentence encoder may take
LEFT_OUT = {"left_out": "it needs a larger --budget"}
AFTER = 2.5  # what follows the language models takes about so many times as long as the slowest simple contender


def advise(config: AdviseConfig) -> None:
    """Advise, print the answer and write the page. Errors: TinyGPTError."""
    require_installed("tinygpt advise", "sklearn", "jinja2", "matplotlib")
    budget = seconds_of(config.budget)
    path = Path(config.pairs)
    folder = Path(config.out_dir)
    if budget < SHORTEST:
        problem = f"a budget of {config.budget} is too short: reading the examples takes most of it"
        raise TinyGPTError(problem, "--budget=2m")
    data, by, times = read_data(config, path)
    models = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    if config.pretrained:
        models["--pretrained"] = fingerprint(config.pretrained)
        tokenizer_for_pairs(config.pretrained)  # refuses one that cannot be fine-tuned on pairs
    encoder = SentenceEncoder.tried(config.vectors) if config.vectors else None
    if encoder:
        models["--vectors"] = encoder.fingerprint()
    settings = {key: getattr(config, key) for key in SETTINGS}
    divided = split(data.prompts, data.truth, by, times)
    screen = contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext()
    with folder_lock(folder, "advice"), ended_by_sigterm(), screen:
        print(f"{path}: {data}; budget {duration(budget)}\n")
        identity = Identity("advise", path.name, settings, models)
        results = Examiner(config, data, divided, folder, identity, budget, encoder).results()
        report = summary.Report(data, divided, results)
        text = report.summary._replace(tables=report.summary.tables[:-1])  # the last, of the data, was printed first
        print(f"\n{text.as_text()}\n")
        for written in write(report.summary, folder, "advise", command="advise"):
            print(f"written: {written}")
        encoding = [suggest.flag("encoding", config.encoding)] * ("encoding" in config.given)
        following = suggest.command("label", "new.csv", f"--model={folder}", *encoding, "-o", "labelled.csv")
        if report.advice.name == MAJORITY:
            following = "add examples, and run the same command with another --out_dir"
        else:
            print(f"the model, {report.advice.name}: {folder / labeller.NAME}")
        if SPELLINGS in {finding.name for finding in report.findings}:
            following = repeated(config, merge_labels=True, out_dir=f"{folder}-merged")
        print(f"\nnext: {following}")
    if config.json:
        print(strict_json(report.values))


def repeated(config: AdviseConfig, **changes: Any) -> str:
    """Return the same command with other values of some keys."""
    given = {key: getattr(config, key) for key in sorted(config.given - {"pairs"})}
    return suggest.command(
        "advise", Path(config.pairs), *(suggest.flag(*item) for item in {**given, **changes}.items())
    )


# ---- the examples -----------------------------------------------------------------------------------------------


def read_data(config: AdviseConfig, path: Path) -> tuple[Data, list[str] | None, np.ndarray | None]:
    """Read the examples; return them, and their groups or times, if these are asked for. Errors: TinyGPTError."""
    keys = ("prompt_field", "response_field", "by", "time")
    columns = {f"--{key}": getattr(config, key) for key in keys if getattr(config, key)}
    sheet = Sheet([path], columns, config.encoding, config.skip_bad)
    examples = list(sheet.rows(lambda row: example(row, config)))
    if len(examples) < FEWEST:
        raise TinyGPTError(f"{path}: too few examples ({len(examples)}) to test anything", f"label at least {FEWEST}")
    if len(examples) > MOST:
        chosen = np.sort(np.random.default_rng(1).choice(len(examples), MOST, replace=False))
        print_error(f"note: {path} has {len(examples):,} examples; a random sample of {MOST:,} is used")
        examples = [examples[index] for index in chosen]
    rows = [row for row, _ in examples]
    prompts, responses, further = map(list, zip(*(values for _, values in examples), strict=True))
    if config.merge_labels:
        spelled = responses
        responses = merged(responses)
        kept = sorted({(best, label) for best, label in zip(responses, spelled, strict=True) if best != label})
        print_error("merged labels: " + (", ".join(f"{label} -> {best}" for best, label in kept) or "none"))
    labels = sorted(set(responses))
    if len(labels) == 1:
        raise TinyGPTError(f"{path}: all examples have the label {labels[0][:40]!r}", "add examples of another label")
    if not labels_of(responses) and len(labels) * FEW > len(rows):  # here there may be more labels than in other tasks
        problem = f"{path}: {len(labels):,} different responses in {len(rows):,} examples are free text, not labels"
        command = suggest.command("prepare", "mine", f"--input={path}", "--format=pairs")
        raise TinyGPTError(problem, f"{command}, then tinygpt finetune --dataset=mine and tinygpt eval --task=mine")
    index_of = {label: index for index, label in enumerate(labels)}
    truth = np.array([index_of[label] for label in responses])
    data = Data(prompts, truth, labels, [row.number for row in rows], unit(path))
    times = parsed_times(further, config.time, [row.location for row in rows]) if config.time else None
    return data, further if config.by else None, times


def example(row: Row, config: AdviseConfig) -> tuple[str, str, str]:
    """Return the prompt, the label, and the group or time. Errors: ValueError."""
    column = config.by or config.time
    further = row.text(column) if column else ""
    return row.text(config.prompt_field), row.text(config.response_field), further


# ---- the stages -------------------------------------------------------------------------------------------------


class Examiner:
    """Runs the stages, one phase after the other, since the time that is left decides about the next phase."""

    def __init__(
        self,
        config: AdviseConfig,
        data: Data,
        divided: Split,
        folder: Path,
        identity: Identity,
        budget: float,
        encoder: SentenceEncoder | None,
    ) -> None:
        self.longest = contenders.longest_for(data.prompts, budget)  # characters; of a longer text, the beginning
        self.whole = data
        self.data = data.cut(self.longest)
        self.config = config
        self.split = divided
        self.folder = folder
        self.identity = identity
        self.budget = budget
        self.encoder = encoder
        self.stages = list[Stage]()
        self.cheap = contenders.cheap(encoder)

    def results(self) -> Results:
        """Return the results of all stages."""
        findings = self._run(summary.LOOK, 2, self._look)
        print("\n".join(as_text([Finding(*one) for one in findings])))
        print(f"\nsplit {self.split.how}\n")
        for name, contender in list(self.cheap.items()):
            if name == SENTENCES and contender.embeddings:
                plan = partial(self._plan_vectors, contender.embeddings)
                if "left_out" in self._run(f"{name}: time pilot", 2, plan, contender=name):
                    del self.cheap[name]
                    continue
            measure = partial(contenders.measure_cheap, contender, self.data, self.split)
            self._run(name, 5, measure, contender=name, share=1)
        for name, share in (SHARES if self.config.pretrained else {GPT: LAST}).items():
            self._language_model(name, share)
        report = summary.Report(self.data, self.split, self._run_all())
        cheap = [name for name in self.cheap if name != MAJORITY]
        name = report.advice.name
        best = name if name in cheap else max(cheap, key=lambda name: report.right(name).sum())
        for share in CURVE:
            measure = partial(contenders.measure_cheap, self.cheap[best], self.data, self.split, share)
            self._run(f"learning curve, {best}: {share:g} of the lines", 5, measure, contender=best, share=share)
        if name == MAJORITY:
            labeller.remove(self.folder)
            return self._run_all()
        if not self._kept(name):
            forget(self.folder, self.identity, f"keep: {name}")
        self._run(f"keep: {name}", 5, partial(self._keep, name))
        return self._run_all()

    def _run(self, name: str, seconds: float, compute: Any, **case: Any) -> Any:
        """Add a stage, and return its result. case: the contender, and the share of the training lines that it has."""
        self.stages.append(Stage(name, seconds, compute, case))
        return self._run_all()[name]

    def _run_all(self) -> Results:
        return run(self.folder, self.identity, self.stages, more=True)

    def _look(self) -> list[Any]:
        labels = [self.data.labels[index] for index in self.data.truth]
        places = [f"{self.data.unit} {number}" for number in self.data.numbers]
        lines = list(map(Line, self.whole.prompts, labels, places))
        findings = look(lines, self.data.labels) + across(lines, self.split.folds)
        findings += unseen(self.data.truth, self.data.labels, self.split.folds)
        return findings + too_long(self.whole.prompts, self.longest)

    def _plan_vectors(self, embeddings: Cached) -> dict[str, Any]:
        """Estimate the seconds of all vectors, which are left out if they take too much of the time that is left."""
        seconds = embeddings.seconds(self.data.prompts)
        return {"seconds": seconds} if seconds <= VECTORS * self._left() else LEFT_OUT

    def _language_model(self, name: str, share: float) -> None:
        """Try a language model for a share of the time that is left, on as many folds as fit."""
        training = contenders.planned(name, self.data, self.config.pretrained)
        plan = self._run(f"{name}: time pilot", 20, partial(self._plan, training, share), contender=name)
        training = training._replace(iterations=plan["iterations"])
        for fold in range(plan["folds"]):
            folder = self.folder / f"{FOLDERS[name]}-{fold + 1}"
            arguments = training, self.data, self.split, fold, folder, plan["seconds"]
            measure = partial(contenders.measure_language_model, *arguments)
            stage = f"{name}, fold {fold + 1} of {plan['folds']}"
            self._run(stage, plan["seconds"], measure, contender=name, share=1)

    def _plan(self, training: Training, share: float) -> dict[str, Any]:
        """Plan the trainings of a language model: iterations and folds (0, if it is left out), and seconds of each."""
        stages = stored(self.folder, self.identity)["stages"]
        began = time.monotonic()
        slowest = max(stages[name]["seconds"] for name in self.cheap)
        seconds = share * (self._left() - AFTER * slowest)
        folder = self.folder / f"{FOLDERS[training.name]}-pilot"
        each, testing = contenders.pilot(training, self.data, self.split, folder, seconds)
        seconds -= time.monotonic() - began
        lines, tested = (len(part) for part in self.split.folds[0])
        for folds in range(min(len(self.split.folds), math.ceil(ENOUGH / tested)), 0, -1):
            own = seconds / (folds + FINAL) - testing
            if iterations := contenders.iterations_for(training, lines, own, each):
                return {"iterations": iterations, "folds": folds, "seconds": own}
        return {"iterations": 0, "folds": 0, "seconds": 0.0, **LEFT_OUT}

    def _left(self) -> float:
        """Return the seconds of the budget that the finished stages have left."""
        return self.budget - sum(stage["seconds"] for stage in stored(self.folder, self.identity)["stages"].values())

    def _kept(self, name: str) -> bool:
        """Return whether the folder has the advised model, and can load it."""
        with contextlib.suppress(TinyGPTError):
            return labeller.load(self.folder).about.get("contender") == name
        return False

    def _keep(self, name: str) -> dict[str, Any]:
        """Train the advised contender on all lines, and store it with its threshold."""
        results = run(self.folder, self.identity, self.stages[:-1])
        config = self.config
        report = summary.Report(self.data, self.split, results)
        row = next(row for row in report.contenders if row["name"] == name)
        about = {"contender": name, "accuracy": row["accuracy"], "examples": len(self.data.prompts)}
        model: Classifier | str
        if name in self.cheap:
            longest = self.longest
            model = self.cheap[name].fit(self.data.prompts, self.data.truth, len(self.data.labels))
        else:
            first = report.measured[name][0]
            training = contenders.planned(name, self.data, config.pretrained)._replace(iterations=first["iterations"])
            limit = max(self._left(), first["seconds"])
            model = contenders.language_model_of_all(training, self.data, self.split, self.folder, limit)
            longest = training.longest
        encoder = self.encoder if name == SENTENCES else None
        threshold = report.sure.threshold
        field = config.prompt_field
        labeller.save(self.folder, model, self.data.labels, threshold, field, about, encoder, longest)
        return about
