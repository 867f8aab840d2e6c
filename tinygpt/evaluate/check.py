"""Check the integrity of run folders and datasets (`tinygpt check`; machine.py has its other half).

tinygpt check out/ data/shakespeare_char
"""

import contextlib
from pathlib import Path

from tinygpt.checkpoint.snapshots import snapshots
from tinygpt.checkpoint.store import Checkpoint, load, read
from tinygpt.config import suggest
from tinygpt.config.fields import keys
from tinygpt.config.schema import CheckConfig
from tinygpt.data.dataset import Dataset, data_dir
from tinygpt.data.tokenizer import PROMPT, tokenizer_from_dict
from tinygpt.errors import TinyGPTError, fitting
from tinygpt.generate import refuse_diverged
from tinygpt.terminal import counted
from tinygpt.training.log import read_metrics


def check_folders(config: CheckConfig) -> int:
    """Print the findings. Returns 0 if every check passes, else 1."""
    ok = True
    for name in config.folders:
        folder = Path(name)
        if (folder / "meta.json").exists():
            ok &= check_dataset(folder)
        elif any(folder.glob("*.pt")):
            ok &= check_run(folder, config)
        else:
            what = "neither a run (ckpt.pt, last.pt) nor a dataset (meta.json)"
            raise TinyGPTError(f"{folder}: {what}", "tinygpt check out")
    return 0 if ok else 1


def print_result(ok: bool, text: str, hint: str = "") -> bool:
    """Print one finding, at once since the next check may crash, and return `ok`."""
    hint = fitting(hint, keys(CheckConfig))
    print(f"{'OK  ' if ok else 'FAIL'}  {text}" + (f"\n      try: {hint}" if hint else ""), flush=True)
    return ok


def check_run(folder: Path, config: CheckConfig) -> bool:
    """Check a run's folder: each checkpoint, the dataset, the metrics. Print the commands that can use it."""
    results = {
        path.name: check_checkpoint(path) for path in [*sorted(folder.glob("*.pt")), *snapshots(folder).values()]
    }
    ok = all(intact for intact, _ in results.values())
    best, last = (results.get(name, (True, None))[1] for name in ("ckpt.pt", "last.pt"))
    if best and last and last.step < best.step:
        print(f"note  last.pt (iteration {last.step:,}) is older than ckpt.pt ({best.step:,}): the run was stopped")
        print("      between writing the two; resuming repeats those iterations, with the same result")
    newest, same_data = last or best, True
    data_folder = data_dir(config, newest.config if newest else {}, folder)
    if newest and newest.tokenizer is not None:
        ok &= (same_data := check_vocabulary(newest, folder, data_folder))
    if (folder / "metrics.jsonl").exists():
        entries = read_metrics(folder)
        lines = len((folder / "metrics.jsonl").read_bytes().splitlines())
        intact = f"{len(entries):,} of {counted(lines, 'line')} intact"
        ok &= print_result(lines == len(entries), f"{folder}/metrics.jsonl: {intact}")
    usable = [next_command(best, folder, data_folder)] if best else []
    usable += [suggest.resume(last.config, folder)] if last and last.training and same_data else []
    print("can be used: " + ("; ".join(usable) if usable else "nothing here; train again"))
    return ok


def check_checkpoint(path: Path) -> tuple[bool, Checkpoint | None]:
    """Check the checksums, the format and the weights of a file. Returns whether it is intact, and the checkpoint."""
    try:
        if path.name == "adapter.pt":
            read(path)
            return print_result(True, f"{path}: intact"), None
        state = load(path)
        refuse_diverged(state.build_model(), str(path))
    except TinyGPTError as error:
        return print_result(False, error.message, error.hint), None
    loss = f"best validation loss {state.best_val_loss:.4f}"
    return print_result(True, f"{path}: intact, after {counted(state.step, 'iteration')}, {loss}"), state


def check_vocabulary(state: Checkpoint, folder: Path, data_folder: str) -> bool:
    """Check that the dataset is the one that the run was trained on; a fine-tuned model's vocabulary may be larger."""
    name = str(state.config.get("dataset", ""))
    try:
        dataset = Dataset(data_folder, name)
    except TinyGPTError as error:
        print(f"note  the run's dataset was not checked: {error.message}")
        return True
    hint = "sampling works (the checkpoint has its own vocabulary); to resume, prepare the old text again"
    try:
        dataset.require_tokenizer(tokenizer_from_dict(state.tokenizer, str(folder)), str(folder), hint)
    except TinyGPTError as error:
        return print_result(False, error.message, error.hint)
    if state.data and not dataset.has_checksums(state.data):
        problem = f"dataset {name!r}: the same vocabulary, but different text"
        return print_result(False, problem, "to resume, prepare the old text again")
    return print_result(True, f"dataset {name!r}: the one it was trained on")


def check_dataset(folder: Path) -> bool:
    """Check the format and the checksums of a prepared dataset, of any size."""
    try:
        dataset = Dataset(str(folder.parent), folder.name)
        for split, tokens in dataset.splits.items():
            dataset.verify(split, tokens)  # opening it verifies small files only
            print_result(True, f"{folder}/{split}.bin: intact, {counted(len(tokens), 'token')}")
        return True
    except TinyGPTError as error:
        return print_result(False, error.message, error.hint)


def next_command(model: Checkpoint, out: str | Path, folder: str) -> str:
    """Return the next command for a model with its best checkpoint in `out`, and its dataset in the folder `folder`."""
    tokenizer = model.tokenizer or {}
    answers_prompts = bool(tokenizer.get("pair")) or PROMPT in tokenizer.get("symbols", [])
    labelled, prompt = False, None
    if answers_prompts:
        with contextlib.suppress(TinyGPTError):
            dataset = Dataset(folder, str(model.config.get("dataset", "")))
            labelled = bool(dataset.labels)
            prompt = next((prompt for prompt, _ in dataset.sources["val"].examples(dataset.tokenizer)), None)
    return suggest.next_command(model.config | {"data_dir": folder}, out, answers_prompts, labelled, prompt)
