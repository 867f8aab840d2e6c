"""Feature combinations: data, start, dtype, dropout, resuming, processes, sharding and accumulation.

pytest tests/training/test_matrix.py -m "not slow"  # three cells that together contain every choice
pytest tests/training/test_matrix.py                # a few further cells; scripts/torture.py checks all
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
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import faults
import pytest
from children import Child, Harness, assert_same_run, nothing, parallel, ranks
from conftest import PATIENCE, ok, tiny_text
from inputs import json_lines
from runs import assert_equal_runs

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
    def base(self) -> str:
        """The folder of the base model: one with a vocabulary like that of the data."""
        return "out-bpe" if self.data == "BPE" else "out"


CHOICES = (
    ("text", "pairs", "BPE"),  # BPE: text with a tokenizer trained on it
    ("scratch", "fine-tuned", "LoRA"),
    ("float32", "bfloat16"),
    (0.0, 0.1),
    (False, True),
    (1, 2),
    (False, True),  # with two processes only
    (1, 4),
)
EVERYDAY = [  # together they contain every choice
    Cell("text", "scratch", "bfloat16", 0.1, True, 1, False, 1),
    Cell("BPE", "fine-tuned", "float32", 0.0, False, 1, False, 4),
    Cell("pairs", "LoRA", "float32", 0.0, True, 2, True, 4),
]


def test_features_combine(harness: Harness) -> None:
    """Proof 15: resuming, processes and micro-steps do not change a result, and every command works on every result."""
    check_cells(harness, EVERYDAY)


@pytest.mark.slow
def test_further_features_combine(harness: Harness) -> None:
    """Proof 15 in further combinations."""
    cells = [Cell(*values) for values in itertools.product(*CHOICES)]
    cells = [cell for cell in cells if (cell.processes > 1 or not cell.shard) and cell not in EVERYDAY]
    check_cells(harness, harness.random.sample(cells, harness.rounds(3, len(cells))))


def check_cells(harness: Harness, cells: list[Cell]) -> None:
    """Check each cell in a process of its own."""
    base = harness.folder / "base"
    base.mkdir()
    prepare_inputs(base)

    def start(cell: Cell) -> Child:
        folder = Path(shutil.copytree(base, harness.new("cell")))
        return Child(functools.partial(check_cell, folder, cell), harness.new("log"), folder)

    failures = [f"{cell}\n{child.output[-2000:]}" for cell, child in parallel(cells, start) if child.status]
    harness.figures["cells"] = len(cells)
    assert not failures, "\n".join(failures)


def train(folder: Path, *args: str, processes: int = 1, killed: bool = False) -> None:
    """Run `tinygpt ARGS` in `processes` new processes, which succeed, or are killed."""
    before = functools.partial(faults.on_iteration, KILLED_AT, faults.die) if killed else nothing
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    children = [Child(list(args), log, folder, before, **rank) for rank in ranks(processes)]
    statuses = {child.wait(PATIENCE, otherwise=signal.SIGTERM) for child in children}
    assert statuses == {-signal.SIGKILL if killed else 0}, f"{args}: {statuses}\n{log.read_text()[-2000:]}"


def prepare_inputs(folder: Path) -> None:
    """Prepare two texts, one with additional characters, and pairs with responses of very different lengths.

    The text is also prepared with BPE. Base models are trained in out/ and, with BPE, in out-bpe/.
    """
    text = tiny_text(300)
    (folder / "base.txt").write_text(text)
    (folder / "text.txt").write_text("".join(f"{n}: {line}\n" for n, line in enumerate(text.splitlines())))
    labels, words = ["no", "perhaps", "yes, my lord, it is"], text.split()
    json_lines(folder, [{"prompt": f"{n:03} {words[n]}", "response": labels[n % 3]} for n in range(150)])
    ok(folder, "prepare", "text", "--input=text.txt")
    ok(folder, "prepare", "pairs", "--input=pairs.jsonl", "--format=pairs")
    ok(folder, "prepare", "BPE", "--input=text.txt", "--tokenizer=bpe", "--vocab_size=300")
    for out, tokenizer in (("out", []), ("out-bpe", ["--tokenizer=bpe", "--vocab_size=280"])):
        ok(folder, "prepare", out, "--input=base.txt", *tokenizer)
        position = ["--position=rope", "--dtype=float32"]
        train(folder, "train", f"--dataset={out}", f"--out_dir={out}", *MODEL, *flags(1), *position)


def flags(micro_steps: int) -> list[str]:
    length = ["--max_iters=8", "--lr_decay_iters=8", "--warmup_iters=2", "--eval_interval=4", "--checkpoint_interval=2"]
    batch = [f"--batch_size={ROWS // micro_steps}", f"--gradient_accumulation_steps={micro_steps}", "--device=cpu"]
    return [*length, *batch, "--learning_rate=3e-3", "--min_lr=1e-3", "--eval_iters=0", "--patience=0"]


def train_cell(folder: Path, cell: Cell, out: str) -> Path:
    """Train the cell into the folder `out`; a resumed cell is killed before."""
    command = "train" if cell.start == "scratch" else "finetune"
    args = [command, f"--dataset={cell.data}", f"--out_dir={out}", *flags(cell.micro_steps), "--quiet"]
    args += [f"--dtype={cell.dtype}", f"--dropout={cell.dropout}", f"--shard={cell.shard}"]
    args += ["--context_warmup=6"] * (cell.data != "pairs")  # ends in the middle of the run, after it was killed
    args += ["--threads=2"] * (cell.dtype == "bfloat16" and cell.processes == 1)  # a resumed run keeps the number
    args += MODEL if cell.start == "scratch" else [f"--ckpt={cell.base}/ckpt.pt"]
    args += ["--lora_rank=2", f"--lora_dropout={cell.dropout}"] * (cell.start == "LoRA")
    args += ["--replay=0.25"] * (cell.start != "scratch" and cell.data == "pairs")
    train(folder, *args, processes=cell.processes, killed=cell.resumed)
    if cell.resumed:
        train(folder, command, "--init_from=resume", f"--out_dir={out}", processes=cell.processes)
    return folder / out


def check_cell(folder: Path, cell: Cell) -> None:
    out = train_cell(folder, cell, "run")
    if cell.resumed:
        assert_same_run(out, train_cell(folder, cell._replace(resumed=False), "undisturbed"))
    exact = cell.dtype == "float32" and not cell.dropout
    if exact and (cell.processes, cell.micro_steps) != (1, 1):
        one = train_cell(folder, cell._replace(resumed=False, processes=1, shard=False, micro_steps=1), "one")
        assert_equal_runs(out, one)
    check_tools(folder, cell)


def check_tools(folder: Path, cell: Cell) -> None:
    """Run every command that reads a run on this one; a LoRA run's model is its base with the adapter, and merged."""
    prompt = ["--start=017 king"] if cell.data == "pairs" else []
    said = ok(folder, "doctor", "run").out
    assert "verdict:" in said and "files:       intact" in said
    ok(folder, "report", "run", "-o", "run.html")
    ok(folder, "export", "--ckpt=run", "-o", "model.html")
    models = [["--ckpt=run"]]
    if cell.start == "LoRA":
        models += [[f"--ckpt={cell.base}", "--adapter=run"], ["--ckpt=merged"]]
        ok(folder, "export", "--format=checkpoint", *models[1], "--output=merged")
    losses = []
    for model in models:
        ok(folder, "sample", *model, "--max_new_tokens=10", *prompt)
        losses.append(json.loads(ok(folder, "eval", *model, "--json", "--dtype=float32").out.splitlines()[-1])["loss"])
    assert losses == pytest.approx([losses[0]] * len(models), abs=1e-5)
