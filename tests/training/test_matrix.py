"""Feature combinations: data, start, dtype, dropout, resuming, processes, sharding and accumulation.

pytest tests/training/test_matrix.py -m "not slow"  # three cells that together contain every choice
pytest tests/training/test_matrix.py                # a few cells that together contain every pair of choices
python scripts/torture.py -k combine       # all 432 cells, about 25 minutes on two cores

Each cell (combination) trains a model of 4,000 parameters for eight iterations through the command line, and requires:

- A run that was killed and resumed equals the undisturbed one bit for bit.
- In float32 without dropout, several processes and accumulated micro-steps give the result of one process with the
  full batch, within 1e-3.
- doctor, eval, sample, report and export work on every result.
"""

import functools
import itertools
import json
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
from children import Child, Harness, assert_same_run, history, loaded, nothing, parallel, ranks
from conftest import PATIENCE, ok, tiny_text
from inputs import json_lines

ROWS = 12  # sequences per iteration, however they are split
KILLED_AT = 5  # the iteration in which an interrupted run is killed; its last.pt is from before iteration 4
MODEL = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32"]


class Cell(NamedTuple):
    """One combination of choices."""

    data: str
    start: str
    dtype: str
    dropout: float
    resumed: bool
    processes: int
    shard: bool
    micro_steps: int

    @property
    def exact(self) -> bool:
        """Whether the result must not depend on the number of processes and micro-steps."""
        return self.dtype == "float32" and not self.dropout

    @property
    def base(self) -> str:
        """The folder of the base model: one with a vocabulary like that of the data."""
        return "out-bpe" if self.data == "BPE" else "out"

    @property
    def command(self) -> str:
        return "train" if self.start == "scratch" else "finetune"


CHOICES = {
    "data": ("text", "pairs", "BPE"),  # BPE: text with a tokenizer trained on it
    "start": ("scratch", "fine-tuned", "LoRA"),
    "dtype": ("float32", "bfloat16"),
    "dropout": (0.0, 0.1),
    "resumed": (False, True),
    "processes": (1, 2),
    "shard": (False, True),  # with two processes only
    "micro_steps": (1, 4),
}


def all_cells() -> list[Cell]:
    cells = (Cell(*values) for values in itertools.product(*CHOICES.values()))
    return [cell for cell in cells if cell.processes > 1 or not cell.shard]


EVERYDAY = [  # together they contain every choice
    Cell("text", "scratch", "bfloat16", 0.1, True, 1, False, 1),
    Cell("BPE", "fine-tuned", "float32", 0.0, False, 1, False, 4),
    Cell("pairs", "LoRA", "float32", 0.0, True, 2, True, 4),
]


def pairwise(cells: list[Cell]) -> list[Cell]:
    """Choose a few cells that together contain every pair of choices, greedily by the number of new pairs."""
    pairs = {cell: set(itertools.combinations(enumerate(cell), 2)) for cell in cells}
    chosen = [cell for cell in EVERYDAY if cell in pairs]
    missing = set().union(*pairs.values()).difference(*(pairs[cell] for cell in chosen))
    while missing:
        best = max(cells, key=lambda cell: len(pairs[cell] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def pairwise_cells() -> list[Cell]:
    """Pairwise cells of all cells, and of those whose losses do not depend on how the batch is split."""
    cells = all_cells()
    return list(dict.fromkeys([*pairwise(cells), *pairwise([cell for cell in cells if cell.exact])]))


def test_features_combine(harness: Harness) -> None:
    """Proof 15: resuming, processes and micro-steps do not change a result, and every command works on every result."""
    check_cells(harness, EVERYDAY)


@pytest.mark.slow
def test_every_pair_of_features_combines(harness: Harness) -> None:
    """Proof 15 in further combinations."""
    chosen = list(dict.fromkeys([*pairwise_cells(), *all_cells()]))
    check_cells(harness, chosen[len(EVERYDAY) : harness.rounds(len(pairwise_cells()), len(chosen))])


def check_cells(harness: Harness, cells: list[Cell]) -> None:
    """Check each cell in a process of its own."""
    base = harness.folder / "base"
    base.mkdir()
    prepare_inputs(base)

    def start(cell: Cell) -> Child:
        folder = Path(shutil.copytree(base, harness.new("cell")))
        return Child(functools.partial(check_cell, folder, cell), harness.new("log"), folder)

    failures = [f"{cell}\n{child.output[-2000:]}" for cell, child in parallel(cells, start) if child.status]
    harness.figures |= {"cells": len(cells), "failed cells": len(failures)}
    assert not failures, "\n".join(failures)


def train(folder: Path, *args: str, processes: int = 1, killed: bool = False) -> None:
    """Run `tinygpt ARGS` in `processes` new processes.

    Errors: AssertionError for an exit status other than 0, or other than that of SIGKILL if `killed`.
    """
    before = functools.partial(faults.on_iteration, KILLED_AT, faults.die) if killed else nothing
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    children = [Child(list(args), log, folder, before, **rank) for rank in ranks(processes)]
    wanted = -signal.SIGKILL if killed else 0
    statuses = [child.wait(PATIENCE, otherwise=signal.SIGTERM) for child in children]
    output = log.read_text(errors="replace")
    assert set(statuses) == {wanted}, f"tinygpt {shlex.join(args)}: {statuses}, expected {wanted}\n{output[-2000:]}"


def prepare_inputs(folder: Path) -> None:
    """Prepare two texts, one with additional characters, and pairs with responses of very different lengths.

    The text is also prepared with BPE. Base models are trained in out/ and, with BPE, in out-bpe/.
    """
    text = tiny_text(300)
    (folder / "base.txt").write_text(text)
    (folder / "text.txt").write_text("".join(f"{n}: {line}\n" for n, line in enumerate(text.splitlines())))
    labels, words = ["no", "perhaps", "yes, my lord, it is"], text.split()
    json_lines(folder, [{"prompt": f"{n:03} {words[n]}", "response": labels[n % 3]} for n in range(150)])
    ok(folder, "prepare", "base", "--input=base.txt")
    ok(folder, "prepare", "text", "--input=text.txt")
    ok(folder, "prepare", "pairs", "--input=pairs.jsonl", "--format=pairs")
    ok(folder, "prepare", "BPE", "--input=text.txt", "--tokenizer=bpe", "--vocab_size=300")
    ok(folder, "prepare", "base-bpe", "--input=base.txt", "--tokenizer=bpe", "--vocab_size=280")
    for name, out in (("base", "out"), ("base-bpe", "out-bpe")):
        args = [f"--dataset={name}", f"--out_dir={out}", *MODEL, "--position=rope", *flags(1), "--dtype=float32"]
        train(folder, "train", *args)


def flags(micro_steps: int) -> list[str]:
    length = ["--max_iters=8", "--lr_decay_iters=8", "--warmup_iters=2", "--eval_interval=4", "--checkpoint_interval=2"]
    batch = [f"--batch_size={ROWS // micro_steps}", f"--gradient_accumulation_steps={micro_steps}", "--device=cpu"]
    return [*length, *batch, "--learning_rate=3e-3", "--min_lr=1e-3", "--eval_iters=0", "--patience=0"]


def train_cell(folder: Path, cell: Cell, out: str) -> Path:
    """Train the cell into the folder `out`; a resumed cell is first killed, then resumed with `--init_from=resume`."""
    args = [cell.command, f"--dataset={cell.data}", f"--out_dir={out}", *flags(cell.micro_steps), "--quiet"]
    args += ["--context_warmup=6"] * (cell.data != "pairs")  # ends in the middle of the run, after it was killed
    args += [f"--dtype={cell.dtype}", f"--dropout={cell.dropout}", f"--shard={cell.shard}"]
    if cell.dtype == "bfloat16" and cell.processes == 1:
        args += ["--threads=2"]  # a resumed run keeps the number
    if cell.start == "scratch":
        args += MODEL
    else:
        args += [f"--ckpt={cell.base}/ckpt.pt"]
    if cell.start == "LoRA":
        args += ["--lora_rank=2", f"--lora_dropout={cell.dropout}"]
    if cell.start != "scratch" and cell.data == "pairs":
        args += ["--replay=0.25"]
    train(folder, *args, processes=cell.processes, killed=cell.resumed)
    if cell.resumed:
        train(folder, cell.command, "--init_from=resume", f"--out_dir={out}", processes=cell.processes)
    return folder / out


def check_cell(folder: Path, cell: Cell) -> None:
    """Train one cell and check its result. Errors: AssertionError for a requirement that is not met."""
    out = train_cell(folder, cell, "run")
    if cell.resumed:
        assert_same_run(out, train_cell(folder, cell._replace(resumed=False), "undisturbed"))
    if cell.exact and (cell.processes, cell.micro_steps) != (1, 1):
        one = train_cell(folder, cell._replace(resumed=False, processes=1, shard=False, micro_steps=1), "one")
        compare(history(out), history(one))
        weights = loaded(out / "last.pt").model
        for key, weight in loaded(one / "last.pt").model.items():
            difference = (weights[key] - weight).abs().max().item()
            assert difference < 1e-3, f"{key} differs by {difference:.1e} from one process with the full batch"
    check_tools(folder, cell)


def compare(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Require that losses and gradient norms agree within 1e-3."""
    names = ("loss", "grad_norm", "train_loss", "val_loss", "response_loss", "base_loss")
    assert [(e["kind"], e["step"]) for e in mine] == [(e["kind"], e["step"]) for e in theirs]
    for one, other in zip(mine, theirs, strict=True):
        for name in one.keys() & set(names):
            difference = abs(one[name] - other[name])
            assert difference < 1e-3, f"step {one['step']}: {name} {one[name]}, with one process {other[name]}"


def check_tools(folder: Path, cell: Cell) -> None:
    """Run every command that reads a run on this one."""
    ckpt = "run/ckpt.pt"
    prompt = ["--start=017 king"] if cell.data == "pairs" else []
    said = ok(folder, "doctor", "run").out
    assert "verdict:" in said and "files:       intact" in said
    ok(folder, "sample", "--ckpt", ckpt, "--max_new_tokens=40", *prompt)
    ok(folder, "report", "run", "-o", "run.html")
    ok(folder, "export", "--ckpt", ckpt, "-o", "model.html")
    loss = loss_of(folder, "--ckpt", ckpt)
    if cell.start == "LoRA":
        base_and_adapter = [f"--ckpt={cell.base}/ckpt.pt", "--adapter=run/adapter.pt"]
        ok(folder, "export", "--format=checkpoint", *base_and_adapter, "--output=merged")
        ok(folder, "sample", "--ckpt=merged", "--max_new_tokens=10", *prompt)
        for model in (base_and_adapter, ["--ckpt=merged"]):
            other = loss_of(folder, *model)
            assert abs(other - loss) < 1e-5, f"{model}: loss {other}, but {loss} from the run's checkpoint"


def loss_of(folder: Path, *model: str) -> float:
    """The loss that `eval` prints as strict JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    text = ok(folder, "eval", *model, "--json", "--dtype=float32").out
    return float(json.loads(text.splitlines()[-1], parse_constant=refuse)["loss"])
