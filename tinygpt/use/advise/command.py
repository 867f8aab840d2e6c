"""`tinygpt advise`: read the examples, test the contenders, and keep the one that is advised.

tinygpt advise pairs.csv
"""

import contextlib
import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.base.configs import suggest
from tinygpt.base.configs.use import AdviseConfig
from tinygpt.base.errors import TinyGPTError, require_installed
from tinygpt.base.files import folder_lock, strict_json
from tinygpt.base.process import ended_by_sigterm
from tinygpt.base.terminal import print_error
from tinygpt.data.pairs import labels_of
from tinygpt.data.sheets import Row, Sheet, unit
from tinygpt.examine.eval.classifiers import Linear
from tinygpt.examine.experiment.stages import Identity, Results, Stage, run
from tinygpt.examine.experiment.summary import write
from tinygpt.use.advise import contenders, labeller, summary
from tinygpt.use.advise.contenders import MAJORITY, SENTENCES, Data
from tinygpt.use.advise.look import FEW, SPELLINGS, Finding, Line, across, as_text, look, merged, too_long, unseen
from tinygpt.use.advise.split import Split, parsed_times, split
from tinygpt.use.ask.embeddings import SentenceEncoder

MOST = 20_000  # lines; of more, a random sample is used
FEWEST = 20
# that the stored results depend on
SETTINGS = ("by", "time", "prompt_field", "response_field", "merge_labels", "encoding", "skip_bad")
CURVE = (0.25, 0.5)  # shares of the training lines in the learning curve


def advise(config: AdviseConfig) -> None:
    """Advise, print the answer and write the page. Errors: TinyGPTError."""
    require_installed("tinygpt advise", "sklearn", "jinja2", "matplotlib")
    path = Path(config.pairs)
    folder = Path(config.out_dir)
    data, by, times = read_data(config, path)
    models = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    encoder = SentenceEncoder.tried(config.vectors) if config.vectors else None
    if encoder:
        models["--vectors"] = encoder.fingerprint()
    settings = {key: getattr(config, key) for key in SETTINGS}
    divided = split(data.prompts, data.truth, by, times)
    screen = contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext()
    with folder_lock(folder, "advice"), ended_by_sigterm(), screen:
        print(f"{path}: {data}\n")
        identity = Identity("advise", path.name, settings, models)
        results = Examiner(config, data, divided, folder, identity, encoder).results()
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
            given = {key: getattr(config, key) for key in sorted(config.given - {"pairs"})}
            changed = given | {"merge_labels": True, "out_dir": f"{folder}-merged"}
            following = suggest.command("advise", path, *(suggest.flag(*item) for item in changed.items()))
        print(f"\nnext: {following}")
    if config.json:
        print(strict_json(report.values))


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
    truth = np.searchsorted(np.array(labels, dtype=object), np.array(responses, dtype=object))
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
    """Runs the stages, one after the other, since the best contender decides about the last ones."""

    def __init__(
        self,
        config: AdviseConfig,
        data: Data,
        divided: Split,
        folder: Path,
        identity: Identity,
        encoder: SentenceEncoder | None,
    ) -> None:
        self.longest = contenders.longest_for(data.prompts)  # characters; of a longer text, the beginning
        self.whole = data
        self.data = data.cut(self.longest)
        self.config = config
        self.split = divided
        self.folder = folder
        self.identity = identity
        self.encoder = encoder
        self.stages = list[Stage]()
        self.contenders = contenders.available(encoder)

    def results(self) -> Results:
        """Return the results of all stages."""
        findings = self._run(summary.LOOK, 2, self._look)[summary.LOOK]
        print("\n".join(as_text([Finding(*one) for one in findings])))
        print(f"\nsplit {self.split.how}\n")
        for name, contender in self.contenders.items():
            measure = partial(contenders.measure, contender, self.data, self.split)
            results = self._run(name, 5, measure, contender=name, share=1)
        report = summary.Report(self.data, self.split, results)
        name = report.advice.name
        models = [name for name in self.contenders if name != MAJORITY]
        best = name if name in models else max(models, key=lambda name: report.right[name].sum())
        measure = partial(contenders.measure, self.contenders[best], self.data, self.split)
        for share in CURVE:
            stage = f"learning curve, {best}: {share:g} of the lines"
            results = self._run(stage, 5, partial(measure, share), contender=best, share=share)
        if name == MAJORITY:
            labeller.remove(self.folder)
            return results
        self._keep(report)
        return results

    def _run(self, name: str, seconds: float, compute: Any, **case: Any) -> Results:
        """Add a stage, and return the results of all. case: the contender, and the share of the training lines."""
        self.stages.append(Stage(name, seconds, compute, case))
        return run(self.folder, self.identity, self.stages, more=True)

    def _look(self) -> list[Any]:
        labels = [self.data.labels[index] for index in self.data.truth]
        places = [f"{self.data.unit} {number}" for number in self.data.numbers]
        lines = list(map(Line, self.whole.prompts, labels, places))
        findings = look(lines, self.data.labels) + across(lines, self.split.folds)
        findings += unseen(self.data.truth, self.data.labels, self.split.folds)
        return findings + too_long(self.whole.prompts, self.longest)

    def _keep(self, report: summary.Report) -> None:
        """Train the advised contender on all lines, and store it with its threshold."""
        name = report.advice.name
        row = next(row for row in report.contenders if row["name"] == name)
        about = {"contender": name, "accuracy": row["accuracy"], "examples": len(self.data.prompts)}
        model = self.contenders[name].fit(self.data.prompts, self.data.truth, len(self.data.labels))
        assert isinstance(model, Linear)  # there are two labels
        encoder = self.encoder if name == SENTENCES else None
        threshold = report.sure.threshold
        field = self.config.prompt_field
        labeller.save(self.folder, model, self.data.labels, threshold, field, about, encoder, self.longest)
