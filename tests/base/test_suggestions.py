"""Every command that tinygpt suggests works in the situation in which it was suggested.

The tests run real commands, collect the suggested commands from the output, and run those in turn, in folders with
blanks in their names and with a data_dir other than the default.
"""

import ast
import html
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from children import Child, wait_for_lines
from conftest import TINY_TRAIN, Shared, cli_here, needs_fork, ok
from inputs import json_lines
from runs import FLAGS, suggested

from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.configs.fields import keys
from tinygpt.checkpoint.store import load
from tinygpt.cli import COMMANDS, config_class
from tinygpt.data.tasks import reader
from tinygpt.training import budget
from tinygpt.training.verdict import judge

QUOTES = "f\"'"
SMALL = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--batch_size=4"]
SHORTEN = {  # appended to a suggested command to end it soon; does not affect whether the command works
    "train": ["--max_iters=2", "--eval_interval=2", "--eval_iters=1", "--device=cpu"],
    "finetune": ["--max_iters=2", "--eval_interval=2", "--device=cpu"],
    "sample": ["--max_new_tokens=5"],
}


class Workplace:
    """A folder in which commands run as a user would run them; its names have blanks."""

    place = ("--data_dir=my data",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def hint(self, *args: str) -> str:
        """The last line of what a command that fails prints."""
        result = cli_here(*args, cwd=self.folder)
        assert result.status, result.out
        return result.err.splitlines()[-1]

    def ok(self, *args: str) -> str:
        return ok(self.folder, *args).out

    def trained(self, *args: str, out: str) -> str:
        return self.ok(*args, f"--out_dir=my {out}", *self.place)

    def follow(self, said: str, at_least: int = 1) -> list[list[str]]:
        """Run the commands suggested in the output `said`, in their order; returns them."""
        found = suggested(said)
        assert len(found) >= at_least, said
        for command in found:
            if command[0] in ("prepare", "train", "finetune", "eval") and "--init_from=resume" not in command:
                assert set(self.place) <= {*command} or any("config.yaml" in word for word in command), command
            self.ok(*command, *shortened(command))
        return found


def shortened(command: list[str]) -> list[str]:
    """Flags that end a suggested command soon. They do not affect whether it works."""
    if "--init_from=resume" in command:  # a run that has done more than two iterations
        return ["--max_iters=50"]
    if any(word.startswith("--budget=") for word in command):
        return ["--budget=25s", "--device=cpu", "--eval_iters=1", "--sample_interval=0", *SMALL, "--batch_size=1"]
    preset = any(word.startswith(("configs/", "reader")) and "finetune" not in word for word in command)
    return SHORTEN.get(command[0], []) + SMALL * preset


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterations count as slow, so that a budget is for a few of them (test_budget.py has one that takes its time)."""
    monkeypatch.setattr(budget, "seconds_per_iteration", lambda *_: 1.0)


@pytest.fixture
def place(tiny_data: Path, shared: Shared, tmp_path: Path) -> Workplace:
    """A workplace with prepared text, pairs with three labels, and pairs with free responses."""

    def make(folder: Path) -> None:
        made = Workplace(folder)
        shutil.copy(tiny_data / "text.txt", folder / "text.txt")
        labels = ["red", "green", "blue"]
        json_lines(folder, [{"prompt": f"{n:03} {labels[n % 3]}", "response": labels[n % 3]} for n in range(120)])
        json_lines(folder, [{"prompt": f"ask {n}", "response": f"it's {n}"} for n in range(90)], "free.jsonl")
        made.ok("prepare", "tiny", "--input=text.txt", *made.place)
        made.ok("prepare", "colours", "--input=pairs.jsonl", "--format=pairs", *made.place)
        made.ok("prepare", "free", "--input=free.jsonl", "--format=pairs", *made.place)

    return Workplace(Path(shutil.copytree(shared("workplace", make), tmp_path / "work")))


@pytest.fixture
def based(place: Workplace, shared: Shared, tmp_path: Path) -> Workplace:
    """`place` with a base model, and the same continued, fine-tuned on colours, and with LoRA; all but LoRA resumed."""

    def make(folder: Path) -> None:
        made = Workplace(Path(shutil.copytree(place.folder, folder, dirs_exist_ok=True)))
        made.trained(*TINY_TRAIN, "--quiet", out="out")
        made.trained(*TINY_TRAIN, "--init_from=my out/ckpt.pt", out="continued")
        for run in ("out", "continued"):
            made.trained("train", "--init_from=resume", "--max_iters=22", out=run)
        tuned(made, "tuned", "--dataset=colours")
        tuned(made, "lora", "--dataset=colours", "--lora_rank=2", "--optimizer=muon")

    return Workplace(Path(shutil.copytree(shared("based", make), tmp_path / "based")))


def tuned(place: Workplace, out: str, *flags: str) -> str:
    short = ["--max_iters=40", "--eval_interval=10", "--block_size=16"]
    return place.trained("finetune", *FLAGS[1:], "--ckpt=my out/ckpt.pt", *short, *flags, out=out)


# ---- after each command ------------------------------------------------------------------------------------------


def test_after_preparing_text(place: Workplace) -> None:
    (place.folder / "short.txt").write_text("a few words, and no more than that\n" * 4)
    for file, *more in (["text.txt"], ["text.txt", "--tokenizer=gpt2"], ["short.txt"]):
        place.follow(place.ok("prepare", "mine", f"--input={file}", *more, *place.place))


def test_after_preparing_pairs(place: Workplace) -> None:
    """The commands lead to a fine-tuned model, including its base; long pairs need a base with a longer context."""
    pairs = [{"prompt": f"{n:03} {'ab' * 30}", "response": "yes" if n % 2 else "no"} for n in range(90)]
    json_lines(place.folder, pairs, "mine.jsonl")
    prepare = ("prepare", "mine", "--input=mine.jsonl", "--format=pairs", *place.place)
    commands = place.follow(place.ok(*prepare), at_least=3)
    assert [command[0] for command in commands] == ["prepare", "train", "finetune"]
    assert len(place.follow(place.ok(*prepare))) == 1  # the base model exists now


def test_from_preparing_a_reader_to_an_answer(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """prepare suggests to train; train, to evaluate."""
    monkeypatch.setitem(reader.SIZES, "reader", {"train": 200, "val": 20, "test": 20})
    (trained,) = place.follow(place.ok("prepare", "reader", *place.place))
    assert trained[:2] == ["train", "reader"]
    followed = place.follow(place.ok(*trained, *shortened(trained)))
    assert [command[0] for command in followed] == ["eval"]  # no prompt of several lines for a shell


def test_after_training(place: Workplace) -> None:
    for dataset, out in (("tiny", "out"), ("colours", "pairs"), ("free", "free")):
        place.follow(place.trained(*TINY_TRAIN, f"--dataset={dataset}", "--max_iters=40", out=out))
        place.follow(place.ok("doctor", f"my {out}", *place.place))  # the verdict's `try:`


def test_after_fine_tuning_and_merging(based: Workplace) -> None:
    for dataset, more in (("colours", []), ("free", []), ("tiny", []), ("colours", ["--lora_rank=2"])):
        based.follow(tuned(based, f"tuned-{dataset}{len(more)}", f"--dataset={dataset}", *more))
    based.trained("finetune", *TINY_TRAIN[1:], "--ckpt=my out/ckpt.pt", "--lora_rank=2", out="lora-text")
    for name in ("tuned-colours1", "lora-text"):
        merge = ["--format=checkpoint", "--ckpt=my out", f"--adapter=my {name}", f"--output=my merged-{name}"]
        based.follow(based.ok("export", *merge))


@needs_fork
def test_after_a_signal(based: Workplace) -> None:
    for name, flags in (("train", TINY_TRAIN[1:]), ("finetune", [*FLAGS[1:], "--ckpt=my out"])):
        out = f"my stopped-{name}"
        run = [name, *flags, "--max_iters=100000", "--quiet", f"--out_dir={out}", *based.place]
        child = Child(run, based.folder / f"{name}.log", based.folder)
        wait_for_lines(child, based.folder / out, 2)
        child.send(signal.SIGINT)
        assert child.wait() == 130 and "stopped by a signal after" in child.output, child.output
        (command,) = suggested(child.output)
        assert command[0] == name
        step = load(based.folder / out / "last.pt").step
        based.ok(*command, f"--max_iters={step + 2}", "--eval_interval=100000")
        assert load(based.folder / out / "last.pt").step == step + 2


def test_what_can_be_used_of_a_damaged_run(based: Workplace) -> None:
    for run in ("out", "tuned", "lora"):
        with open(based.folder / f"my {run}/metrics.jsonl", "a") as file:
            file.write("damaged\n")
        result = cli_here("doctor", f"my {run}", *based.place, cwd=based.folder)
        assert result.status == 1
        assert len(based.follow(result.out)) == 2


VERDICTS: dict[str, list[tuple[float, float]]] = {  # training and validation losses of evaluations
    "too early": [(3.0, 3.0)],
    "trend unknown": [(3.0, 3.0)] * 2,
    "still improving": [(3.0 - 0.2 * n, 3.0 - 0.2 * n) for n in range(8)],
    "finished": [(2.0, 2.0)] * 8,
    "overfitting": [(3.0 - 0.3 * n, 2.0 + abs(n - 2) * 0.3) for n in range(8)],
    "diverged": [(3.0, 3.0), (2.0, 2.0), (2.9, 2.9), (2.9, 2.9)],
}


@pytest.mark.parametrize("verdict", [*VERDICTS, "too little data"])
def test_suggestions_of_doctor(based: Workplace, verdict: str) -> None:
    """Each verdict's advice for each kind of run."""
    for run in ("out", "continued", "tuned", "lora"):
        name, losses = f"my {run}", VERDICTS.get(verdict, VERDICTS["overfitting"])
        entries = [
            {"kind": "eval", "step": 50 * n, "seconds": n, "train_loss": a, "val_loss": b, "val_loss_se": 0.01}
            for n, (a, b) in enumerate(losses)
        ]
        json_lines(based.folder / name, entries, "metrics.jsonl")
        said = based.ok("doctor", name, *based.place)
        if verdict == "too little data":  # the tiny model is not too large for its text
            settings = yaml.safe_load((based.folder / name / "config.yaml").read_text())
            said = "\n".join(judge(entries, settings, name, 10**6, 10).lines())
        assert f"verdict:     {verdict}" in said
        for words in suggested(said):
            assert "--init_from=scratch" not in words  # `continued` started from a checkpoint and records that
            based.ok(*words, *shortened(words))


def test_commands_in_the_report(based: Workplace) -> None:
    """The page's commands and its config.yaml reproduce the run elsewhere."""
    pytest.importorskip("jinja2")
    folder = based.folder / "my tuned"
    based.ok("report", folder.name, "-o", "page.html", *based.place)
    page = html.unescape((based.folder / "page.html").read_text(encoding="utf-8"))
    commands = re.findall(r"^.*?(tinygpt (?:prepare|train|finetune|report) [^<\n]*)$", page, re.MULTILINE)
    assert [shlex.split(command)[1] for command in commands][::2] == ["prepare", "report"], commands
    shutil.copy(folder / "config.yaml", based.folder)
    weights = load(folder / "last.pt").model
    for command in commands:
        based.ok(*shlex.split(command)[1:])
    again = load(folder / "last.pt").model
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())


# ---- errors --------------------------------------------------------------------------------------------------------


def test_suggestions_in_errors(based: Workplace) -> None:
    """Hints that are complete commands work in the situation in which they are given."""
    based.follow(based.hint("train", "--init_from=resume", "--out_dir=my tuned"))
    based.follow(based.hint("finetune", "--init_from=resume", "--out_dir=my out"))
    based.follow(based.hint(*TINY_TRAIN, "--dataset=gone", "--out_dir=new", *based.place))
    based.follow(based.hint("prepare", "gone", *based.place))
    for name in ("tiny", "colours"):
        path = based.folder / "my data" / name / "train.bin"
        tokens = np.fromfile(path, dtype="<u2")
        for damaged in (b"", (tokens * 0 + 60_000).tobytes(), tokens[::-1].tobytes()):
            path.write_bytes(damaged)
            flags = [*TINY_TRAIN, f"--dataset={name}", "--out_dir=my new", *based.place, "--max_iters=1"]
            based.follow(based.hint(*flags))  # prepares it again
            based.ok(*flags)
    (based.folder / "my data/tiny/meta.json").unlink()
    based.follow(based.hint(*TINY_TRAIN, "--out_dir=new", *based.place))


def test_every_command_in_the_source_has_the_options_that_follow_it() -> None:
    """In all texts of the package, also those that no test prints: `tinygpt NAME ... --key`, and suggest.command."""
    found = 0
    for path in sorted(Path(suggest.__file__).parents[2].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            said = ""
            if isinstance(node, ast.Constant | ast.JoinedStr):
                said = ast.unparse(node)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "suggest.command":
                said = f"tinygpt {' '.join(ast.unparse(argument).strip(QUOTES) for argument in node.args)}"
            for name, rest in re.findall(r"tinygpt (\w+)\b((?:(?!tinygpt |, or |`|\\n).)*)", said):
                options = re.findall(r"(?<![\w-])--(\w+)", rest) if name in COMMANDS else []
                known = {*keys(config_class(name)), "help"} if options else {}
                assert {*options} <= {*known}, (path, said)
                found += len(options)
    assert found > 100


def test_control_characters_are_shown_escaped() -> None:
    line = "a\tb\xa0c\u200d\u3000é"
    assert terminal.without_control(line + "\x1b[2J\x0e\x9b") == line + r"\x1b[2J\x0e\x9b"
    shown = suggest.command("sample", "--start", "a\x1b[1m'b' \x9b é")
    assert shown.isprintable() and shlex.split(shown)[-1] == r"a\x1b[1m'b' \x9b é"


def test_words_for_powershell() -> None:
    shown = {
        r"C:\Users\me\out-1\ckpt.pt": r"C:\Users\me\out-1\ckpt.pt",
        r"--out_dir=my runs\out": r"'--out_dir=my runs\out'",
        "it's": "'it''s'",
        "--lora_targets=c_attn,c_proj": "'--lora_targets=c_attn,c_proj'",  # unquoted, a list in PowerShell
        "a\x1b[1m": r"'a\x1b[1m'",
    }
    assert {word: suggest.quoted(word, "nt") for word in shown} == shown


def test_a_folder_with_a_leading_dash_is_no_flag() -> None:
    assert suggest.next_command({}, "-dd", answers_prompts=False) == "tinygpt sample ./-dd"
    assert suggest.evaluate({}, Path("-dd")) == "tinygpt eval ./-dd"
