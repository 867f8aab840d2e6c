"""Checks of the files of a run, a model or a dataset: checksums, contents, and what belongs together."""

import contextlib
import dataclasses
from pathlib import Path

from tinygpt.base.configs import suggest
from tinygpt.base.configs.examine import DoctorConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import counted
from tinygpt.checkpoint.snapshots import snapshots
from tinygpt.checkpoint.store import Checkpoint, load, read
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.tokenizer import PROMPT, tokenizer_from_dict
from tinygpt.generate import refuse_diverged
from tinygpt.training.log import intact_entry


@dataclasses.dataclass
class Findings:
    """What a check of the files of a folder found."""

    intact: bool = True
    lines: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, passed: bool, text: str, hint: str = "") -> bool:
        """Add the result of one check, and return `passed`."""
        self.intact &= passed
        mark = "OK  " if passed else "FAIL"
        self.lines.append(f"{mark}  {text}")
        if hint:
            self.lines.append(f"      try: {hint}")
        return passed


def check_files(folder: Path, config: DoctorConfig) -> bool:
    """Check the files of a run or a dataset. Print one line if all are intact, else every finding."""
    findings = Findings()
    if (folder / "meta.json").exists():
        check_dataset(folder, findings)
    else:
        check_run(folder, config, findings)
    if findings.intact:
        print("files:       intact")
    else:
        print("files:       damaged", *findings.lines, sep="\n")
    for note in findings.notes:
        print(f"note:        {note}")
    return findings.intact


def check_run(folder: Path, config: DoctorConfig, findings: Findings) -> None:
    """Check a run's folder: each checkpoint, the dataset, the metrics. Add the commands that can use it."""
    paths = [*sorted(folder.glob("*.pt")), *snapshots(folder).values()]
    if not paths:
        findings.notes.append("there is no checkpoint")
    states = {path.name: check_checkpoint(path, findings) for path in paths}
    best = states.get("ckpt.pt")
    last = states.get("last.pt")
    newest = last or best
    same_data = True
    data_folder = data_dir(config, newest.config if newest else {}, folder)
    if newest and newest.tokenizer is not None:
        same_data = check_vocabulary(newest, folder, data_folder, findings)
    if (folder / "metrics.jsonl").exists():
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
        intact = sum(intact_entry(line) is not None for line in lines)
        text = f"{folder}/metrics.jsonl: {intact:,} of {counted(len(lines), 'line')} intact"
        findings.add(intact == len(lines), text)
    usable = [next_for_checkpoint(best, folder, data_folder)] if best else []
    usable += [suggest.resume(last.config, folder)] if last and last.training and same_data else []
    findings.lines.append("can be used: " + ("; ".join(usable) if usable else "nothing here; train again"))


def check_checkpoint(path: Path, findings: Findings) -> Checkpoint | None:
    """Check the checksums, the format and the weights of a file. Returns the checkpoint if it is intact."""
    try:
        if path.name == "adapter.pt":
            read(path)
            findings.add(True, f"{path}: intact")
            return None
        state = load(path)
        refuse_diverged(state.build_model(), str(path))
    except TinyGPTError as error:
        findings.add(False, error.message, error.hint)
        return None
    loss = f"best validation loss {state.best_val_loss:.4f}"
    findings.add(True, f"{path}: intact, after {counted(state.step, 'iteration')}, {loss}")
    return state


def check_vocabulary(state: Checkpoint, folder: Path, data_folder: str, findings: Findings) -> bool:
    """Check that the dataset is the one that the run was trained on; a fine-tuned model's vocabulary may be larger."""
    name = str(state.config.get("dataset", ""))
    try:
        dataset = Dataset(data_folder, name)
    except TinyGPTError as error:
        findings.notes.append(f"the run's dataset was not checked: {error.message}")
        return True
    hint = "sampling works (the checkpoint has its own vocabulary); to resume, prepare the old text again"
    try:
        dataset.require_tokenizer(tokenizer_from_dict(state.tokenizer, str(folder)), str(folder), hint)
    except TinyGPTError as error:
        return findings.add(False, error.message, error.hint)
    if state.data and not dataset.has_checksums(state.data):
        problem = f"dataset {name!r}: the same vocabulary, but different text"
        return findings.add(False, problem, "to resume, prepare the old text again")
    return findings.add(True, f"dataset {name!r}: the one it was trained on")


def check_dataset(folder: Path, findings: Findings) -> None:
    """Check the format and the checksums of a prepared dataset, of any size."""
    try:
        dataset = Dataset(str(folder.parent), folder.name)
        for split, tokens in dataset.splits.items():
            dataset.verify(split, tokens)  # opening it verifies small files only
            findings.add(True, f"{folder}/{split}.bin: intact, {counted(len(tokens), 'token')}")
    except TinyGPTError as error:
        findings.add(False, error.message, error.hint)


def next_for_checkpoint(model: Checkpoint, out: str | Path, folder: str) -> str:
    """Return the next command for a model with its best checkpoint in `out`, and its dataset in the folder `folder`."""
    tokenizer = model.tokenizer or {}
    answers_prompts = bool(tokenizer.get("pair")) or PROMPT in tokenizer.get("symbols", [])
    labelled = False
    prompt = None
    if answers_prompts:
        with contextlib.suppress(TinyGPTError):
            dataset = Dataset(folder, str(model.config.get("dataset", "")))
            labelled = bool(dataset.labels)
            prompt = next((prompt for prompt, _ in dataset.sources["val"].examples(dataset.tokenizer)), None)
    return suggest.next_command(model.config | {"data_dir": folder}, out, answers_prompts, labelled, prompt)
