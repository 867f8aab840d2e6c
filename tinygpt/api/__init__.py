"""The commands as functions, and a trained model as an object: tinygpt from Python.

    from tinygpt import api

    api.prepare("mine", input="notes.txt")
    run = api.train("configs/shakespeare_char.yaml", dataset="mine", max_iters=500, out_dir="out-mine")
    run.losses                              # a table: iteration, training loss, validation loss
    print(run.load().generate("Dear", 200))

The options of a function are the keys of its command: `tinygpt train --help` lists those of `api.train`. `dataset` is a
name or a Dataset, whose folder is then `data_dir`; where an option is a path, a Run is one, too. A mistake raises
TinyGPTError, whose message says what is wrong and whose hint says what to do on the command line: there, the argument
seed=1 is --seed=1.
"""

import contextlib
import math
import signal
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from tinygpt import prepare as prepare_command
from tinygpt import train as train_command
from tinygpt.api.arguments import ConfigFile, absolute, config_of, require_known, settings_of
from tinygpt.api.model import LoadedModel
from tinygpt.base.configs.core import FinetuneConfig, PrepareConfig, SampleConfig, TrainConfig
from tinygpt.base.configs.examine import DoctorConfig, EvalConfig, ReportConfig, WhyConfig
from tinygpt.base.configs.use import AskConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.adapter import Adapters
from tinygpt.checkpoint.loaded import AdaptedModels
from tinygpt.data import memory, tasks
from tinygpt.data.corpora import CORPORA
from tinygpt.data.dataset import Dataset
from tinygpt.data.dataset import data_dir as recorded_data_dir
from tinygpt.data.tasks import reader
from tinygpt.examine.doctor.command import verdict_on
from tinygpt.examine.eval import classify
from tinygpt.examine.eval.command import measure
from tinygpt.examine.report import command as report_command
from tinygpt.examine.report.notebook import entries_of, run_html
from tinygpt.examine.report.plot import draw
from tinygpt.examine.why.effects import Tested, derivative, estimate, random_set, tested
from tinygpt.examine.why.explained import Explained, load_run, output, row_numbers
from tinygpt.examine.why.proof import random_rows
from tinygpt.examine.why.step import Training
from tinygpt.train import Callback
from tinygpt.training.child import Cost, cost_of, run_in_child
from tinygpt.training.log import read_metrics, read_run
from tinygpt.use.ask.answer import file_of
from tinygpt.use.ask.command import Outcome, Responder, checked_question, load_reader
from tinygpt.use.ask.index import index_of
from tinygpt.use.ask.search import memory_index, search, with_relevance
from tinygpt.use.ask.store import Passage, open_index

__all__ = ["Dataset", "Documents", "LoadedModel", "Run", "TinyGPTError", "ask", "corpus", "evaluate"]
__all__ += [
    "finetune",
    "load",
    "load_adapters",
    "ngrams",
    "plot",
    "prepare",
    "reader",
    "task",
    "train",
    "write_dataset",
]
LOAD = ("adapter", "device", "dtype", "threads")


class Influence(NamedTuple):
    """What training rows do to outputs; see `Run.influence`."""

    effects: np.ndarray
    model: LoadedModel
    similar: Callable[[np.ndarray | Sequence[int]], np.ndarray]
    test: Tested | None  # predicted, proved, error


class Run:
    """A run's folder: its losses, samples and verdict, also while it trains. Jupyter shows them as a page."""

    def __init__(self, folder: str | Path = "out", *, data_dir: str | Path | None = None) -> None:
        """Open a run. data_dir: the folder of its dataset, by default the one that the run has recorded."""
        self.folder = absolute(folder)
        self._data_dir = {} if data_dir is None else {"data_dir": absolute(data_dir)}
        self._name = str(folder)  # for display: the folder's path may contain the user's name
        read_metrics(Path(folder).expanduser())  # raises TinyGPTError if it is not a run's

    def __repr__(self) -> str:
        return f"<{self._name}: {self.verdict}>"

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def losses(self) -> Any:
        """Return the evaluations as a table with the columns step, seconds, train_loss and val_loss (nats per token): a
        pandas.DataFrame if pandas is installed, else a list of dictionaries."""
        columns = ("step", "seconds", "train_loss", "val_loss")
        rows = [{name: entry.get(name) for name in columns} for entry in entries_of(self.folder, "eval")]
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows, columns=list(columns))

    @property
    def val_loss(self) -> float:
        """Return the lowest validation loss, in nats per token; infinity before the first evaluation."""
        return min((float(entry["val_loss"]) for entry in entries_of(self.folder, "eval")), default=math.inf)

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl of a kind: "train", "eval", "sample" and others (training/log.py)."""
        return entries_of(self.folder, kind)

    @property
    def verdict(self) -> str:
        """Return the verdict of `tinygpt doctor` with its reason: finished, still improving, overfitting and others."""
        config = config_of(DoctorConfig, **self._data_dir)
        verdict = verdict_on(self.folder, config, *read_run(self.folder))
        return f"{verdict.title} ({verdict.why})"

    @property
    def cost(self) -> Cost:
        """Return what the training has cost: seconds, memory (its peak, if it had a process of its own), bytes of its
        file, trained weights, and the losses on the base model's own data before and after a fine-tuning."""
        return cost_of(self.folder)

    def report(self, output: str = "") -> Path:
        """Write the page of the run, as `tinygpt report`, by default into its folder. Errors: TinyGPTError."""
        config = config_of(ReportConfig, self.folder, output=output, **self._data_dir)
        report_command.report(config)
        return report_command.page_path(config)

    def load(self, **options: Any) -> LoadedModel:
        """Load the best model of the run, with the options of `tinygpt.load`."""
        loaded = load(self.folder, **self._data_dir, **options)
        if "adapter" not in options:
            loaded.name = self._name
        return loaded

    def influence(self, outputs: Sequence[tuple[str, str]], sweeps: int = 0, memory: int = 2000) -> Influence:
        """Train the run again, and measure what each training row does to the probability of outputs: prompts with
        responses, `influence([("SQ *BLUE HERON", "coffee")])`, or of plain text one start with its text.

        Returns effects, float64 (rows,): the change of their log-probability in nats without the row; model: of this
        training; similar: from rows to as many others, of the same labels and drawn as often. sweeps and memory: as in
        `tinygpt why`; test: of the derivatives, None without sweeps. Errors: TinyGPTError.
        """
        explained = self._explained(sweeps=sweeps, **({"memory": memory} if sweeps else {}))
        training = Training(explained, explained.config.seed)
        encoded = output(explained, *outputs)
        test = None
        if sweeps:
            sets = [random_set(len(explained.rows), number) for number in range(sweeps)]
            trainings = (Training(explained, explained.config.seed, rows) for rows in sets)  # one at a time
            found = [derivative(each, explained, encoded, 1e6 * memory) for each in trainings]
            values = [float(training.log_probability(trained, *encoded)) for _, trained in found]
            test = tested([of_training for of_training, _ in found], values)
            weights = found[0][1]
            effects = test.effects
        else:
            effects, weights = estimate(training, explained, encoded)
        model = training.trained(weights)

        def similar(rows: np.ndarray | Sequence[int]) -> np.ndarray:
            return random_rows(explained, row_numbers(explained, rows), explained.config.seed)

        return Influence(effects, self._loaded(explained, model), similar, test)

    def retrain(self, left_out: np.ndarray | Sequence[int], seed: int | None = None) -> LoadedModel:
        """Train the run again without some training rows, by their numbers, with everything else equal.

        Returns the model; nothing is written. seed: another one than the run's. Errors: TinyGPTError, also for a row
        that the run does not have.
        """
        explained = self._explained()
        rows = row_numbers(explained, left_out)
        training = Training(explained, explained.config.seed if seed is None else seed, rows)
        return self._loaded(explained, training.trained(training.run()))

    def _explained(self, **options: Any) -> Explained:
        return load_run(config_of(WhyConfig, self.folder, **self._data_dir, **options))

    def _loaded(self, explained: Explained, model: Any) -> LoadedModel:
        settings = SampleConfig(device=str(explained.compute.device), dtype="float32", threads="")
        data_dir = str(absolute(explained.config.data_dir))
        return LoadedModel(explained.checkpoint, str(self.folder), settings, data_dir, model.eval())

    def _repr_html_(self) -> str:
        """Show the loss curves (without the extra `report`, the table of losses), the newest sample and the verdict."""
        return run_html(self.folder, self._name, self.verdict)


class Documents:
    """Documents, or texts in memory, that are indexed once and searched many times. `close`, or the end of a `with`
    statement, closes the index."""

    def __init__(self, *documents: str | Path, texts: Sequence[str] | None = None, **options: Any) -> None:
        """Index documents, or those that have changed, as `tinygpt ask`: `Documents("notes/")`. options: index,
        embeddings and passage_size of `tinygpt ask`; `Documents(index="index.db")` opens an index as it is. Errors:
        TinyGPTError."""
        require_known("Documents", options, ("index", "embeddings", "passage_size"))
        if texts is not None and (documents or options):
            raise TinyGPTError("Documents: texts in memory have no files, and no options", "Documents(texts=texts)")
        config = config_of(AskConfig, "-", *documents, **options)
        self._open = contextlib.ExitStack()
        index = open_index(index_of(config)) if texts is None else memory_index(texts)
        self._index = self._open.enter_context(index)

    def search(self, question: str, n: int = 10) -> list[Passage]:
        """Find the `n` passages that fit a question best: their text, source, title and relevance (0 to 1). Errors:
        TinyGPTError for a question that is empty or too long."""
        question = checked_question(question)
        try:
            return with_relevance(self._index, question, search(self._index, question, n))
        except sqlite3.ProgrammingError:
            raise TinyGPTError("Documents: the index is closed", "Documents(...) opens it again") from None

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Picture(NamedTuple):
    """A PNG file, which Jupyter shows."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


def load(path: str | Path | Run = "out", *, data_dir: str | Path | None = None, **options: Any) -> LoadedModel:
    """Load a checkpoint, or the best model of a run's folder; "reader": the tiny reader of `tinygpt ask`. options:
    adapter, device, dtype and threads of `tinygpt sample`. data_dir: the folder of its dataset, by default the one that
    the run has recorded. Errors: TinyGPTError."""
    require_known("load", options, LOAD)
    settings = config_of(SampleConfig, ckpt=path, **options)
    given = {} if data_dir is None else {"data_dir": Path(data_dir).expanduser()}
    folder = str(given.get("data_dir", "data"))
    return _with_data_dir(LoadedModel.load(file_of(settings.ckpt), settings.adapter, settings, folder), **given)


def load_adapters(
    path: str | Path | Run, adapters: Mapping[str, str | Path | Run], **options: Any
) -> Mapping[str, LoadedModel]:
    """Load a base model and several adapters once. `load_adapters("out", {"a": "out-a"})["a"]` builds the model with
    the adapter a, as often as it is asked for; that of "" is the base model.

    options: device, dtype and threads of `tinygpt sample`. Errors: TinyGPTError, also for another model's adapter.
    """
    require_known("load_adapters", options, LOAD[1:])
    settings = config_of(SampleConfig, ckpt=path, **options)
    paths = {name: str(config_of(SampleConfig, adapter=adapter).adapter) for name, adapter in adapters.items()}
    adapted = Adapters(settings.ckpt, paths)

    def build(name: str) -> LoadedModel:
        return _with_data_dir(LoadedModel(adapted.checkpoint(name), paths.get(name, settings.ckpt), settings))

    return AdaptedModels(build, adapted.names)


def _with_data_dir(loaded: LoadedModel, **given: str | Path) -> LoadedModel:
    """Set the folder of a model's dataset: the given one, by default the one that the run has recorded."""
    folder = recorded_data_dir(config_of(EvalConfig, **given), loaded.config, loaded.path)
    loaded.data_dir = str(absolute(folder))
    return loaded


def prepare(name: str, **options: Any) -> Dataset:
    """Turn text into token files, as `tinygpt prepare NAME`: `prepare("mine", input=["notes.txt", "letters/"])`.

    Returns the dataset: `splits["train"]` are its ids, uint16 (n,); `tokenizer` is its tokenizer. Errors: TinyGPTError.
    """
    config = config_of(PrepareConfig, name, **options)
    prepare_command.prepare(config)
    return Dataset(config.data_dir, config.name)


write_dataset = memory.write_dataset
ngrams = classify.ngrams


def corpus(name: str) -> str:
    """Return a text that ships with tinygpt (`tinygpt prepare NAME`). Errors: TinyGPTError for an unknown text."""
    if name not in CORPORA:
        raise TinyGPTError(f"{name}: no such text", f"one of {', '.join(CORPORA)}")
    return CORPORA[name].text()


def task(name: str, seed: int = 1337, **options: Any) -> tasks.Examples:
    """Make the examples of a built-in task from a seed: `task("transactions", seed=1).splits["train"]`.

    Returns its splits (train, val and test: prompts with their responses), its labels, and `scores`, which judges a
    response: `scores(prompt, expected, response)` returns named checks. options: those of its module in
    tinygpt.data.tasks. Errors: TinyGPTError for an unknown task or option.
    """
    return tasks.examples(name, seed, **options)


def train(
    config: ConfigFile | None = None, /, *, callback: Callback | None = None, child: bool = False, **options: Any
) -> Run:
    """Train a model, as `tinygpt train CONFIG`: `train("configs/shakespeare_char.yaml", max_iters=500)`.

    config: a config file, or a dictionary of its keys. callback: called with each line of metrics.jsonl as a
    dictionary (`kind`, `step`, `loss`, `val_loss`, ...); if it returns True, the run stops and saves its state.
    Interrupting also saves it, and raises KeyboardInterrupt; `train(init_from="resume", out_dir=...)` and the command
    line continue the run. child: train in a process of its own, whose peak memory is measured; it is quiet, and
    continues the run in `out_dir` if it was stopped. Errors: TinyGPTError.
    """
    return _train(TrainConfig, config, callback, child, options)


def finetune(
    config: ConfigFile | None = None, /, *, callback: Callback | None = None, child: bool = False, **options: Any
) -> Run:
    """Fine-tune a model, as `tinygpt finetune CONFIG`: `finetune(ckpt="out", dataset="reports_a", lora_rank=8)`.

    Arguments, interrupting and errors: as in `train`.
    """
    return _train(FinetuneConfig, config, callback, child, options)


def evaluate(ckpt: str | Path | Run = "out/ckpt.pt", **options: Any) -> dict[str, Any]:
    """Measure a model, as `tinygpt eval`, and return what --json prints: `evaluate("out", task="transactions")`.

    Errors: TinyGPTError.
    """
    return measure(config_of(EvalConfig, ckpt=ckpt, **options))


def plot(*runs: str | Path | Run, output: str | Path = "") -> Picture:
    """Draw the loss curves of runs, as `tinygpt report --png`: into `output`, or loss.png of the first run.

    Errors: TinyGPTError without an evaluation, and without matplotlib (the extra `plot`).
    """
    return Picture(absolute(draw(config_of(ReportConfig, *runs, png=output or None))))


def ask(question: str, documents: str | Path | Sequence[str | Path], **options: Any) -> Outcome:
    """Answer a question with a sentence from documents, as `tinygpt ask`, and return what --json prints.

    Its fields: `answer` (empty: probably not in the documents), `probability`, `sentences` (the best, with their
    sources), and with a `ckpt` also `model`, a quotation that the model has found. Errors: TinyGPTError.
    """
    paths = [documents] if isinstance(documents, (str, Path)) else documents
    config = config_of(AskConfig, checked_question(question), *paths, **options)
    with open_index(index_of(config)) as index:
        return Responder(config, index, load_reader(config))(config.question)


def _train(
    config_class: type[TrainConfig], config: ConfigFile | None, callback: Callback | None, child: bool, options: Any
) -> Run:
    settings = settings_of(config_class, config, options)
    given = {"data_dir": settings.data_dir} if "data_dir" in settings.given else {}  # else the one that the run records
    if child and callback:
        raise TinyGPTError("a process of its own cannot call the callback", "child=False")
    if child:
        run_in_child(settings)
        return Run(settings.out_dir, **given)
    status = train_command.train(settings, callback or (lambda entry: None))
    if status >= 128:  # a signal, also one during the last evaluation
        raise KeyboardInterrupt if status == 128 + signal.SIGINT else SystemExit(status)
    if settings.watch:
        report_command.replace_watched(settings.out_dir)
    return Run(settings.out_dir, **given)
