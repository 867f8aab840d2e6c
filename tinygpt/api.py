"""The commands as functions, and a trained model as an object: tinygpt from Python.

    from tinygpt import api

    api.prepare("mine", input="notes.txt")
    run = api.train("configs/shakespeare_char.yaml", dataset="mine", max_iters=500, out_dir="out-mine")
    run.losses                              # a table: iteration, training loss, validation loss
    print(run.load().generate("Dear", 200))

The options of a function are the keys of its command: `tinygpt train --help` lists those of `api.train`. `dataset` is a
name or a Dataset, whose folder is then `data_dir`; where an option is a path, a Run is one, too. A mistake raises
TinyGPTError, whose message says what is wrong and whose hint says what to do: with arguments of the function, or with a
complete command line.
"""

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch

from tinygpt import prepare as prepare_command
from tinygpt import sample as sample_command
from tinygpt import train as train_command
from tinygpt.base import threads
from tinygpt.base.configs.core import FinetuneConfig, PrepareConfig, SampleConfig, TrainConfig
from tinygpt.base.configs.examine import DoctorConfig, EvalConfig, ReportConfig
from tinygpt.base.configs.fields import keys
from tinygpt.base.configs.parse import ConfigType, from_values
from tinygpt.base.errors import OPTION, TinyGPTError, fitting
from tinygpt.base.terminal import counted
from tinygpt.checkpoint.adapter import Adapters
from tinygpt.checkpoint.loaded import AdaptedModels
from tinygpt.data import memory, tasks
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.prompts import require_room
from tinygpt.data.rows import PairRows, Rows, TextRows
from tinygpt.examine.doctor.command import verdict_on
from tinygpt.examine.eval import classify, respond
from tinygpt.examine.eval.command import measure
from tinygpt.examine.report.notebook import entries_of, run_html
from tinygpt.examine.report.plot import draw
from tinygpt.train import Callback
from tinygpt.training.child import Cost, cost_of, run_in_child
from tinygpt.training.log import read_metrics, read_run
from tinygpt.training.losses import mean_loss

__all__ = ["Cost", "Dataset", "LoadedModel", "Run", "TinyGPTError", "evaluate", "finetune", "load", "load_adapters"]
__all__ += ["ngrams", "plot", "prepare", "task", "train", "write_dataset"]
LOAD = ("adapter", "device", "dtype", "threads")
GENERATE = ("temperature", "top_k", "top_p", "seed", "stop", "plain", "skip_unknown")
ConfigFile = str | Path | Mapping[str, object]  # a config file, or its content


@contextlib.contextmanager
def _arguments(*same: str, **renamed: str) -> Iterator[None]:
    """Reword the hints of errors for Python: `seed=1` for `--seed=1`.

    same: arguments with the option's name; renamed: option=argument. Alternatives that name another option are dropped.
    """
    names = {name: name for name in same} | renamed
    try:
        yield
    except TinyGPTError as error:
        error.set_hint(fitting(error.hint, names, lambda words: OPTION.sub(lambda option: names[option[1]], words)))
        raise


class LoadedModel(sample_command.LoadedModel):
    """A trained model with its tokenizer; `load` makes one.

    tokenizer: `encode(text)` returns ids, uint16 (n,); `decode(ids)` returns text. config: the run's configuration.
    model: the torch module, whose call with ids, int64 (B, T), returns logits (B, T, V) and None.
    """

    def __repr__(self) -> str:
        size, shape = f"{self.model.num_params():,} parameters", self.model.config
        return f"<{self.name}: {size}, {counted(shape.n_layer, 'layer')}, context {shape.block_size}>"

    @overload
    def generate(self, prompt: str = ..., n: int = ..., *, stream: Literal[False] = ..., **options: Any) -> str: ...
    @overload
    def generate(self, prompt: str = ..., n: int = ..., *, stream: Literal[True], **options: Any) -> Iterator[str]: ...
    @overload
    def generate(self, prompt: str = ..., n: int = ..., *, stream: bool, **options: Any) -> str | Iterator[str]: ...
    @_arguments(*GENERATE, start="prompt", max_new_tokens="n")
    def generate(
        self, prompt: str = "\n", n: int = 500, *, stream: bool = False, **options: Any
    ) -> str | Iterator[str]:
        """Continue a prompt by up to `n` tokens, and return the new text; with `stream`, yield it in pieces.

        A model that answers prompts answers this one. options: temperature, top_k, top_p, seed, stop, plain and
        skip_unknown of `tinygpt sample`, with its defaults. Errors: TinyGPTError for a character that the model does
        not know, and for a prompt that does not fit its context.
        """
        _require_known("generate", options, GENERATE)
        settings = _config(SampleConfig, start=prompt, max_new_tokens=n, **options)
        ids = self.encode(settings.start, settings.skip_unknown, settings.plain)
        text = (piece for (piece,) in self.samples(ids, settings))
        return text if stream else "".join(text)

    @_arguments(start="text")
    @torch.inference_mode()
    def logits(self, text: str) -> torch.Tensor:
        """Compute the logits of the token after each token of a text, float32 (T, V) on the CPU.

        A model that answers prompts reads the text as a prompt; the last row is of the first token of its response.
        Errors: as in `generate`.
        """
        ids = self.encode(text)
        require_room(ids, self.model.config.block_size)
        idx = torch.tensor([ids], device=self.compute.device)
        return self.model(idx)[0][0, :, : self.tokenizer.vocab_size].float().cpu()

    @_arguments()
    def loss(self, text: str, response: str | None = None) -> float:
        """Compute the mean cross-entropy in nats per token: of a text, each token predicted once, or of the response to
        a prompt and its end. A text that is longer than the context is read in pieces of its length.

        Errors: TinyGPTError for unknown characters, and for a text without a token to predict.
        """
        rows: Rows
        if response is None:
            ids = self.tokenizer.encode(text)
            rows = TextRows(np.concatenate((self.tokenizer.start, ids)))
        else:
            self._require_pairs()
            rows = PairRows(self.tokenizer.encode_pair(text, response), self.tokenizer)
            rows.require(self.model.config.block_size, "the prompt and its response")
        if len(rows.tokens) < 2:
            raise TinyGPTError("the text has no second token to predict", "give a longer text")
        return mean_loss(self.model, rows, rows.all_rows(self.model.config.block_size), self.compute)

    @_arguments(start="prompt")
    def classify(self, prompt: str, labels: list[str] | None = None) -> dict[str, float]:
        """Compute the probability of each label as the response to a prompt, the most probable first.

        labels: by default those of the dataset that the model was trained on. Errors: TinyGPTError if it has none, and
        for a model that does not answer prompts.
        """
        labels = self._labels(labels)
        scores, _ = classify.label_scores(self.model, self.tokenizer, [prompt], labels)
        probabilities = dict(zip(labels, classify.probabilities(scores)[0].tolist(), strict=True))
        return dict(sorted(probabilities.items(), key=lambda item: -item[1]))

    @_arguments()
    def probabilities(self, prompts: Sequence[str], labels: Sequence[str] | None = None) -> np.ndarray:
        """Compute the probabilities of labels as responses to many prompts, float64 (n, L).

        Characters that the model does not know are left out. labels and errors: as in `classify`.
        """
        scores, _ = classify.label_scores(self.model, self.tokenizer, prompts, self._labels(labels), skip_unknown=True)
        return classify.probabilities(scores)

    @_arguments()
    def responses(self, prompts: Sequence[str], n: int) -> tuple[list[str], np.ndarray]:
        """Answer many prompts by greedy decoding with at most `n` tokens: the responses, and their probabilities,
        float64 (n,). Characters that the model does not know are left out. Errors: TinyGPTError as in `classify`."""
        self._require_pairs()
        return respond.responses(self.model, self.tokenizer, prompts, n, skip_unknown=True)

    @_arguments()
    def log_probabilities(self, prefix: str, continuations: Sequence[str]) -> np.ndarray:
        """Compute the log-probabilities of continuations of a text, in nats, float64 (n,).

        A model that answers prompts reads the text as a prompt, and the continuations as responses with their end.
        Errors: as in `generate`.
        """
        return classify.continuation_scores(self.model, self.tokenizer, prefix, continuations)

    def _labels(self, labels: Sequence[str] | None) -> list[str]:
        self._require_pairs()
        if labels is None:
            name = str(self.config.get("dataset", ""))
            folder = data_dir(_config(EvalConfig, data_dir=self.data_dir), self.config, self.path)
            labels = Dataset(folder, name).labels
        if not labels:
            raise TinyGPTError("this model was not trained on labels", 'classify(prompt, labels=["one", "other"])')
        return list(labels)

    def _require_pairs(self) -> None:
        if self.tokenizer.pair is None:
            raise TinyGPTError("this model continues text: it was not trained on prompts", "generate or loss(text)")


class Run:
    """A run's folder: its losses, samples and verdict, also while it trains. Jupyter shows them as a page."""

    @_arguments("data_dir")
    def __init__(self, folder: str | Path = "out", *, data_dir: str | Path = "data") -> None:
        self.folder, self._data_dir = _absolute(folder), _absolute(data_dir)
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
    def sample(self) -> str:
        """Return the newest sample that the run wrote, or an empty string."""
        return "".join(entry["text"] for entry in entries_of(self.folder, "sample")[-1:])

    @property
    def verdict(self) -> str:
        """Return the verdict of `tinygpt doctor` with its reason: finished, still improving, overfitting and others."""
        config = _config(DoctorConfig, data_dir=self._data_dir)
        verdict = verdict_on(self.folder, config, *read_run(self.folder))
        return f"{verdict.title} ({verdict.why})"

    @property
    def cost(self) -> Cost:
        """Return what the training has cost: seconds, memory (its peak, if it had a process of its own), bytes of its
        file, trained weights, and the losses on the base model's own data before and after a fine-tuning."""
        return cost_of(self.folder)

    def load(self, **options: Any) -> LoadedModel:
        """Load the best model of the run, with the options of `tinygpt.load`."""
        loaded = load(self.folder, data_dir=self._data_dir, **options)
        if "adapter" not in options:
            loaded.name = self._name
        return loaded

    def _repr_html_(self) -> str:
        """Show the loss curves (without the extra `report`, the table of losses), the newest sample and the verdict."""
        return run_html(self.folder, self._name, self.verdict)


class Picture(NamedTuple):
    """A PNG file, which Jupyter shows."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


@_arguments(*LOAD, "data_dir", ckpt="path")
def load(path: str | Path | Run = "out", *, data_dir: str | Path = "data", **options: Any) -> LoadedModel:
    """Load a checkpoint, or the best model of a run's folder. options: adapter, device, dtype and threads of
    `tinygpt sample`. Errors: TinyGPTError."""
    _require_known("load", options, LOAD)
    settings = _config(SampleConfig, ckpt=path, **options)
    loaded = LoadedModel.load(settings.ckpt, settings.adapter, settings, str(data_dir))
    loaded.data_dir = str(_absolute(data_dir))
    return loaded


@_arguments(*LOAD, ckpt="path")
def load_adapters(
    path: str | Path | Run, adapters: Mapping[str, str | Path | Run], **options: Any
) -> Mapping[str, LoadedModel]:
    """Load a base model and several adapters once. `load_adapters("out", {"a": "out-a"})["a"]` builds the model with
    the adapter a, as often as it is asked for; that of "" is the base model.

    options: device, dtype and threads of `tinygpt sample`. Errors: TinyGPTError, also for another model's adapter.
    """
    _require_known("load_adapters", options, LOAD[1:])
    settings = _config(SampleConfig, ckpt=path, **options)
    paths = {name: str(_config(SampleConfig, adapter=adapter).adapter) for name, adapter in adapters.items()}
    return AdaptedModels(LoadedModel, Adapters(settings.ckpt, paths), settings)


@_arguments(*keys(PrepareConfig))
def prepare(name: str, **options: Any) -> Dataset:
    """Turn text into token files, as `tinygpt prepare NAME`: `prepare("mine", input=["notes.txt", "letters/"])`.

    Returns the dataset: `splits["train"]` are its ids, uint16 (n,); `tokenizer` is its tokenizer. Errors: TinyGPTError.
    """
    config = _config(PrepareConfig, name, **options)
    prepare_command.prepare(config)
    return Dataset(config.data_dir, config.name)


write_dataset = _arguments()(memory.write_dataset)
ngrams = _arguments()(classify.ngrams)


def task(name: str, seed: int = 1337, **options: Any) -> tasks.Examples:
    """Make the examples of a built-in task from a seed: `task("transactions", seed=1).splits["train"]`.

    Returns its splits (train, val and test: prompts with their responses), its labels, and `scores`, which judges a
    response: `scores(prompt, expected, response)` returns named checks. options: those of its module in
    tinygpt.data.tasks. Errors: TinyGPTError for an unknown task or option.
    """
    return tasks.examples(name, seed, **options)


@_arguments(*keys(TrainConfig))
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


@_arguments(*keys(FinetuneConfig))
def finetune(
    config: ConfigFile | None = None, /, *, callback: Callback | None = None, child: bool = False, **options: Any
) -> Run:
    """Fine-tune a model, as `tinygpt finetune CONFIG`: `finetune(ckpt="out", dataset="reports_a", lora_rank=8)`.

    Arguments, interrupting and errors: as in `train`.
    """
    return _train(FinetuneConfig, config, callback, child, options)


@_arguments(*keys(EvalConfig))
def evaluate(ckpt: str | Path | Run = "out/ckpt.pt", **options: Any) -> dict[str, Any]:
    """Measure a model, as `tinygpt eval`, and return what --json prints: `evaluate("out", task="transactions")`.

    Errors: TinyGPTError.
    """
    return measure(_config(EvalConfig, ckpt=ckpt, **options))


@_arguments("output")
def plot(*runs: str | Path | Run, output: str | Path = "") -> Picture:
    """Draw the loss curves of runs, as `tinygpt report --png`: into `output`, or loss.png of the first run.

    Errors: TinyGPTError without an evaluation, and without matplotlib (the extra `plot`).
    """
    return Picture(_absolute(draw(_config(ReportConfig, *runs, png=output or None))))


def _train(
    config_class: type[TrainConfig], config: ConfigFile | None, callback: Callback | None, child: bool, options: Any
) -> Run:
    files = [] if config is None or isinstance(config, Mapping) else [config]
    values = {**config, **options} if isinstance(config, Mapping) else options
    settings = _config(config_class, *files, **values)
    if child and callback:
        raise TinyGPTError("a process of its own cannot call the callback", "child=False")
    if child:
        run_in_child(settings)
        return Run(settings.out_dir, data_dir=settings.data_dir)
    status = train_command.train(settings, callback or (lambda entry: None))
    if status >= 128:  # a signal, also one during the last evaluation
        raise KeyboardInterrupt if status == 128 + signal.SIGINT else SystemExit(status)
    return Run(settings.out_dir, data_dir=settings.data_dir)


def _absolute(path: str | Path) -> Path:
    """Make a path absolute, so that an object still finds it after os.chdir. Errors: TinyGPTError for a NUL in it."""
    if "\0" in str(path):
        raise TinyGPTError("a path cannot contain a NUL character", "name another file or folder")
    return Path(path).expanduser().absolute()


def _require_known(function: str, options: Mapping[str, object], known: tuple[str, ...]) -> None:
    for name in options.keys() - known:
        hint = ", ".join(get_close_matches(name, known, n=1) or known)
        raise TinyGPTError(f"{function}: {name}: no such option", hint)


def _config(config_class: type[ConfigType], /, *positionals: object, **options: Any) -> ConfigType:
    """Make a command's configuration from Python values, with the checks and messages of the command line."""
    threads.measure()
    if isinstance(dataset := options.get("dataset"), Dataset):
        options |= {"dataset": dataset.name, "data_dir": dataset.folder.parent}
    command = config_class.__name__.removesuffix("Config").lower()
    return from_values(config_class, positionals, options, f"tinygpt {command}")
