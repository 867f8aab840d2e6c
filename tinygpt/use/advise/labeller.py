"""OUT_DIR/model.pt: the classifier that `tinygpt advise` leaves, whichever kind it is, and its use.

The file is a checkpoint's: tensors and plain values, sealed, read without running code from it. That of a GPT, which
earlier versions left, only names its checkpoint, relative to the folder.

    save(Path("out-advise"), Linear.fit(prompts, truth, 2), ["no", "yes"], threshold=0.83)
    labeller = load(Path("out-advise"))
    labeller(["is 2 even?"])                        # probabilities, float64 (1, 2)
    labeller.label(["is 2 even?", ""])              # [Answer("yes", 0.97, True), Answer("", 0.0, False)]
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.configs import suggest
from tinygpt.base.configs.use import LabelConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import load_model
from tinygpt.checkpoint.loaded import ON_CPU, Loaded
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.examine.eval import classify
from tinygpt.examine.eval.classifiers import Linear, restored
from tinygpt.use.ask.embeddings import SentenceEncoder, WordLlama

FORMAT = 2
NAME = "model.pt"
ENCODER = "encoder-"  # begins the name of the folder of a sentence encoder
GPT = "gpt"  # the kind that is not in classifiers.py


class Answer(NamedTuple):
    """The label of a prompt; empty with probability 0 for an empty prompt."""

    label: str
    probability: float
    sure: bool  # the probability reaches the threshold


class Labeller:
    """A classifier, its labels, and the threshold from which it is sure (None: never)."""

    def __init__(self, state: Mapping[str, Any], predict: classify.Classifier) -> None:
        """state: the content of model.pt, see `save`."""
        self.predict = predict
        self.kind = str(state["kind"])
        self.about = dict(state["about"])
        self.labels: list[str] = list(state["labels"])
        self.threshold: float | None = state["threshold"]
        self.prompt_field = str(state["prompt_field"])
        self.longest: int | None = state.get("longest")

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Compute the probabilities of the labels, float64 (n, L)."""
        return self.predict([prompt.strip()[: self.longest] for prompt in prompts])

    def label(self, prompts: Sequence[str]) -> list[Answer]:
        """Return the most probable label of each prompt."""
        texts = list(filter(str.strip, prompts))
        rows = iter(self(texts) if texts else ())
        return [self.answer(next(rows)) if prompt.strip() else Answer("", 0.0, False) for prompt in prompts]

    def answer(self, probs: np.ndarray) -> Answer:
        """Return the most probable label, given the probabilities of the labels (L,)."""
        best = int(probs.argmax())
        probability = float(probs[best])
        return Answer(self.labels[best], probability, self.threshold is not None and probability >= self.threshold)


def save(
    folder: Path,
    classifier: Linear,
    labels: Sequence[str],
    threshold: float | None,
    prompt_field: str = "prompt",
    about: Mapping[str, Any] | None = None,
    encoder: SentenceEncoder | None = None,
    longest: int | None = None,
) -> Path:
    """Write folder/model.pt, and return its path.

    about: plain values, such as how good it is. encoder: whose vectors it uses; its files are copied into the folder,
    which can so be used elsewhere. longest: characters of a prompt that it reads, as in training; None: all."""
    name = f"{ENCODER}{encoder.fingerprint()[:8]}" if encoder else ""
    if encoder:
        encoder.copy(folder / name)
    state = {
        "tinygpt_labeller": FORMAT,
        "kind": classifier.kind,
        "labels": list(labels),
        "threshold": None if threshold is None else float(threshold),
        "prompt_field": prompt_field,
        "about": dict(about or {}),
        "encoder": name,
        "longest": longest,
        "state": classifier.state(),
    }
    store.write(folder / NAME, state)
    remove_encoders(folder, name)
    return folder / NAME


def remove(folder: Path) -> None:
    """Remove the model of a folder, and its encoder, if there are any."""
    (folder / NAME).unlink(missing_ok=True)
    remove_encoders(folder)


def remove_encoders(folder: Path, but: str = "") -> None:
    for path in folder.glob(f"{ENCODER}*"):
        if path.name != but:
            shutil.rmtree(path, ignore_errors=True)  # Windows keeps files that a server has open


def load(folder: Path) -> Labeller:
    """Read the classifier of a folder, or its file.

    Errors: TinyGPTError if it is missing, damaged, of a newer tinygpt or something else, and if it needs word vectors
    or a checkpoint that are not there.
    """
    path = folder if folder.is_file() else folder / NAME
    state = checked(path)
    try:
        return Labeller(state, predictor(state, path.parent))
    except TinyGPTError as error:
        raise TinyGPTError(f"{path}: {error.message}", error.hint) from None


def is_run(path: Path) -> bool:
    """Return whether a path is a checkpoint or its folder, rather than a model of `tinygpt advise`."""
    return path.name != NAME if path.is_file() else (path / "ckpt.pt").is_file() and not (path / NAME).exists()


def of_run(config: LabelConfig) -> Labeller:
    """Load a run on a labelled task; its labels are those of its dataset. Errors: TinyGPTError."""
    checkpoint = load_model(config.model, config.adapter)
    name = str(checkpoint.config.get("dataset") or "")
    folder = data_dir(config, checkpoint.config, config.adapter or config.model)
    labels = Dataset(folder, name).labels if name else []
    if not labels:
        problem = f"{config.model} was not trained on a labelled task"
        raise TinyGPTError(problem, "tinygpt advise pairs.csv, which leaves a model for labels")
    state = {"kind": GPT, "labels": labels, "threshold": None, "prompt_field": "prompt", "about": {"run": True}}
    return Labeller(state, gpt(Loaded(checkpoint, "the model", ON_CPU, ""), labels))


def checked(path: Path) -> dict[str, Any]:
    """Read model.pt, and check all but the classifier's own state. Errors: TinyGPTError."""
    again = suggest.command("advise", "pairs.csv", "--out_dir", path.parent)
    if not path.exists():
        raise TinyGPTError(f"{path}: no such file", f"{again}, which leaves a model")
    try:
        state = store.read(path)
    except TinyGPTError as error:
        raise TinyGPTError(error.message, f"copy the folder again, or {again}") from None
    version = state.get("tinygpt_labeller") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise TinyGPTError(f"{path}: not a model of tinygpt advise", again)
    if version > FORMAT:
        raise TinyGPTError(f"{path}: written by a newer tinygpt", "pip install --upgrade tinygpt")
    labels = state.get("labels")
    threshold = state.get("threshold")
    types = {"kind": str, "prompt_field": str, "about": dict, "state": dict}
    possible = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    possible = possible and len(set(labels)) == len(labels) > 0
    possible &= threshold is None or (isinstance(threshold, float) and 0 <= threshold <= 1)
    possible &= all(isinstance(state.get(name), expected) for name, expected in types.items())
    if possible:
        longest = state.setdefault("longest", state["state"].get("longest"))  # of a GPT of an earlier version
        possible = longest is None or (type(longest) is int and longest > 0)
    if not possible:
        raise TinyGPTError(f"{path}: not a model of tinygpt advise (its content is impossible)", again)
    return state


def predictor(state: Mapping[str, Any], folder: Path) -> classify.Classifier:
    """Make the function that classifies, from the checked content of model.pt. Errors: TinyGPTError."""
    if state["kind"] == GPT:
        return stored_gpt(state["state"], folder, state["labels"])
    embed = None
    if state["state"].get("embedding") is not None:
        embed = (SentenceEncoder(folder / str(state["encoder"])) if state.get("encoder") else WordLlama()).vectors
    return restored(state["kind"], state["state"], len(state["labels"]), embed)


def stored_gpt(state: Mapping[str, Any], folder: Path, labels: Sequence[str]) -> classify.Classifier:
    """Load a GPT that classifies. Errors: TinyGPTError."""
    ckpt = state.get("ckpt")
    if not isinstance(ckpt, str):
        raise TinyGPTError("the stored classifier is impossible", "train it again")
    loaded = Loaded.load(str(folder / ckpt), "", ON_CPU, "")
    if loaded.tokenizer.pair is None:
        raise TinyGPTError(f"{folder / ckpt}: a model that only continues text cannot label", "train it again")
    return gpt(loaded, labels)


def gpt(loaded: Loaded, labels: Sequence[str]) -> classify.Classifier:
    """Make the function that classifies with a GPT. It cuts a prompt where the context ends."""
    tokenizer = loaded.tokenizer
    classifier = classify.gpt_classifier(loaded.model, tokenizer, labels)
    room = loaded.model.config.block_size + 1 - max(len(tokenizer.encode_response(label)) for label in labels)

    def fitting(prompt: str) -> str:
        while prompt and len(tokenizer.encode_prompt(prompt, True)) > room:
            prompt = prompt[: len(prompt) * 9 // 10]
        return prompt

    return lambda prompts: classifier([fitting(prompt) for prompt in prompts])
