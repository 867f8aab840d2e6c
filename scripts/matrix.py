"""Test feature combinations: data, start, dtype, dropout, resuming, processes and accumulation.

python scripts/matrix.py                # all combinations, about ten minutes on two cores
python scripts/matrix.py --pairwise     # a few that together contain every pair of choices, as in the test suite

Each cell (combination) trains a model of 4,000 parameters for eight iterations through the command line, and requires:

- A run that was killed and resumed equals the undisturbed one bit for bit.
- In float32 without dropout, several processes and accumulated micro-steps give the result of one process with the
  full batch, within 1e-3.
- check, doctor, eval, sample, report, export and merge work on every result.

Each command runs in a process of its own, forked from one that has already imported PyTorch (0.1 s instead of 3 s).
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tinygpt import train
from tinygpt.checkpoint.store import load
from tinygpt.cli import main as tinygpt_main
from tinygpt.config import suggest
from tinygpt.training.log import read_metrics

ROWS = 12  # sequences per iteration, however they are split
KILLED_AT = 5  # the iteration in which an interrupted run is killed; its last.pt is from before iteration 4


class Cell(NamedTuple):
    """One combination of choices."""

    data: str
    start: str
    dtype: str
    dropout: float
    resumed: bool
    processes: int
    micro_steps: int

    @property
    def exact(self) -> bool:
        """Whether the result must not depend on the number of processes and micro-steps."""
        return self.dtype == "float32" and not self.dropout

    def __str__(self) -> str:
        resumed = "resumed" if self.resumed else "undisturbed"
        split = f"{self.processes} processes, {self.micro_steps} micro-steps"
        return f"{self.data}, {self.start}, {self.dtype}, dropout {self.dropout}, {resumed}, {split}"


CHOICES = {
    "data": ("text", "pairs"),
    "start": ("scratch", "fine-tuned", "LoRA"),
    "dtype": ("float32", "bfloat16"),
    "dropout": (0.0, 0.1),
    "resumed": (False, True),
    "processes": (1, 2),
    "micro_steps": (1, 4),
}


def all_cells() -> list[Cell]:
    return [Cell(*values) for values in itertools.product(*CHOICES.values())]


def pairwise(cells: list[Cell]) -> list[Cell]:
    """Choose a few cells that together contain every pair of choices, greedily by the number of new pairs."""
    pairs = {cell: set(itertools.combinations(enumerate(cell), 2)) for cell in cells}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(cells, key=lambda cell: len(pairs[cell] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def pairwise_cells() -> list[Cell]:
    """Pairwise cells of all cells, and of those whose losses do not depend on how the batch is split."""
    cells = all_cells()
    return list(dict.fromkeys([*pairwise(cells), *pairwise([cell for cell in cells if cell.exact])]))


# ---- commands ---------------------------------------------------------------------------------------------------


def fork(work: Callable[[], int], folder: Path, log: Path, **environment: str) -> int:
    """Start `work` in a child process that writes its output to `log`; returns the process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(folder)
        os.environ.update(environment)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        status = work()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)


def exit_status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(folder: Path, *args: str, processes: int = 1, killed: bool = False) -> str:
    """Run `tinygpt ARGS` in `processes` processes; returns the output. Errors: AssertionError for an exit status other
    than 0, or other than that of SIGKILL if `killed`."""
    log = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])

    def work() -> int:
        if killed:
            die_in_iteration(KILLED_AT)
        return tinygpt_main(list(args))

    port = str(free_port())
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(processes)} for i in range(processes)]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
    children = [fork(work, folder, log, **((rank | place) if processes > 1 else {})) for rank in ranks]
    statuses = [exit_status(child) for child in children]
    wanted = -signal.SIGKILL if killed else 0
    output = log.read_text(errors="replace")
    if any(status != wanted for status in statuses):
        raise AssertionError(f"tinygpt {' '.join(args)}: exit statuses {statuses}, expected {wanted}\n{output[-2000:]}")
    return output


def die_in_iteration(step: int) -> None:
    original = train.training_step

    def training_step(run: Any) -> tuple[float, float]:
        if run.progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(run)

    train.training_step = training_step


def free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# ---- one cell ---------------------------------------------------------------------------------------------------


def prepare_inputs(folder: Path) -> None:
    """Prepare two texts, one with additional characters, and pairs with responses of very different lengths.

    A base model is trained in out/.
    """
    draw = random.Random(1)
    words = ["the", "king", "of", "my", "heart", "doth", "sing", "and", "thou", "art", "gone", "from", "me"]
    lines = [f"{' '.join(draw.choices(words, k=9)).capitalize()}.\n" for _ in range(300)]
    (folder / "base.txt").write_text("".join(lines))
    (folder / "text.txt").write_text("".join(f"{n}: {line}" for n, line in enumerate(lines)))
    labels = ["no", "perhaps", "yes, my lord, it is"]
    pairs = [{"prompt": f"{n:03} {draw.choice(words)}", "response": labels[n % 3]} for n in range(150)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    command(folder, "prepare", "base", "--input=base.txt")
    command(folder, "prepare", "text", "--input=text.txt")
    command(folder, "prepare", "pairs", "--input=pairs.jsonl", "--format=pairs")
    size = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32", "--position=rope"]
    command(folder, "train", "--dataset=base", *size, *flags(ROWS, 1), "--device=cpu", "--dtype=float32")


def flags(rows: int, micro_steps: int) -> list[str]:
    length = ["--max_iters=8", "--lr_decay_iters=8", "--warmup_iters=2", "--eval_interval=4", "--checkpoint_interval=2"]
    batch = [f"--batch_size={rows // micro_steps}", f"--gradient_accumulation_steps={micro_steps}"]
    return [*length, *batch, "--learning_rate=3e-3", "--min_lr=1e-3", "--eval_iters=0", "--patience=0", "--quiet"]


def train_cell(folder: Path, cell: Cell, out: str) -> Path:
    """Train the cell into the folder `out`; a resumed cell is first killed, then resumed with `--init_from=resume`."""
    name = "train" if cell.start == "scratch" else "finetune"
    args = [name, f"--dataset={cell.data}", f"--out_dir={out}", *flags(ROWS, cell.micro_steps), "--device=cpu"]
    args += [f"--dtype={cell.dtype}", f"--dropout={cell.dropout}"]
    if cell.start == "scratch":
        args += ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32"]
    if cell.start == "LoRA":
        args += ["--lora_rank=2", f"--lora_dropout={cell.dropout}"]
    if cell.start != "scratch" and cell.data == "pairs":
        args += ["--replay=0.25"]
    command(folder, *args, processes=cell.processes, killed=cell.resumed)
    if cell.resumed:
        again = suggest.resume({"ckpt": ""} if name == "finetune" else {}, out)
        command(folder, *shlex.split(again)[1:], processes=cell.processes)
    return folder / out


def history(out: Path) -> list[Any]:
    """Entries of metrics.jsonl without times and speeds."""
    timed = ("seconds", "tokens_per_second")
    return [{key: value for key, value in entry.items() if key not in timed} for entry in read_metrics(out)]


def tensors(out: Path, name: str) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint."""
    state = load(out / name)
    moments = state.training["optimizer"]["moments"]
    return state.model | {f"{kind} {i}": t for kind, ts in moments.items() for i, t in enumerate(ts)}


def check_cell(folder: Path, cell: Cell) -> None:
    """Train one cell and check its result. Errors: AssertionError for a requirement that is not met."""
    out = train_cell(folder, cell, "run")
    if cell.resumed:
        undisturbed = train_cell(folder, cell._replace(resumed=False), "undisturbed")
        assert history(out) == history(undisturbed), "the resumed run's losses differ from the undisturbed run's"
        for name in ("last.pt", "ckpt.pt"):
            mine, theirs = tensors(out, name), tensors(undisturbed, name)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine), f"{name} differs after resuming"
    if cell.exact and (cell.processes, cell.micro_steps) != (1, 1):
        one = train_cell(folder, cell._replace(resumed=False, processes=1, micro_steps=1), "one")
        compare(history(out), history(one))
        for key, weight in load(one / "last.pt").model.items():
            difference = (load(out / "last.pt").model[key] - weight).abs().max().item()
            assert difference < 1e-3, f"{key} differs by {difference:.1e} from one process with the full batch"
    check_tools(folder, cell)


def compare(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Require that losses and gradient norms agree within 1e-3."""
    names = ("loss", "grad_norm", "train_loss", "val_loss", "response_loss", "base_loss")
    assert [(e["kind"], e["step"]) for e in mine] == [(e["kind"], e["step"]) for e in theirs]
    for one, other in zip(mine, theirs, strict=True):
        for name in names:
            if name in one:
                difference = abs(one[name] - other[name])
                found = f"{one[name]:.4f}, with one process {other[name]:.4f}"
                assert difference < 1e-3, f"step {one['step']}: {name} {found}"


def check_tools(folder: Path, cell: Cell) -> None:
    """Run every command that reads a run on this one."""
    ckpt = "run/ckpt.pt"
    prompt = ["--start=017 king"] if cell.data == "pairs" else []
    assert "FAIL" not in command(folder, "check", "run")
    assert "verdict:" in command(folder, "doctor", "run")
    command(folder, "sample", "--ckpt", ckpt, "--max_new_tokens=40", *prompt)
    command(folder, "report", "run", "-o", "run.html")
    command(folder, "export", "--ckpt", ckpt, "-o", "model.html")
    evaluated = ["--json", "--dtype=float32"]
    result = strict(command(folder, "eval", "--ckpt", ckpt, *evaluated))
    loss = result["loss"]
    if cell.start == "LoRA":
        base_and_adapter = ["--ckpt=out/ckpt.pt", "--adapter=run/adapter.pt"]
        command(folder, "merge", *base_and_adapter, "--out_dir=merged")
        command(folder, "sample", "--ckpt=merged", "--max_new_tokens=10", *prompt)
        for model in (base_and_adapter, ["--ckpt=merged"]):
            other = strict(command(folder, "eval", *model, *evaluated))["loss"]
            assert abs(other - loss) < 1e-5, f"{model}: loss {other}, but {loss} from the run's checkpoint"


def strict(text: str) -> dict[str, Any]:
    """Parse the last line of a command's output as strict JSON. Errors: AssertionError for NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    return dict(json.loads(text.splitlines()[-1], parse_constant=refuse))


# ---- all cells --------------------------------------------------------------------------------------------------


def failures(cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, str]]:
    """Run the cells, `jobs` at a time; yield each as it ends, with the error output, which is empty on success."""
    waiting, running = list(cells), {}
    with tempfile.TemporaryDirectory(prefix="tinygpt-matrix-") as name:
        base = Path(name) / "base"
        base.mkdir()
        prepare_inputs(base)
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                folder = Path(shutil.copytree(base, Path(name) / f"cell{len(waiting)}"))

                def work(folder: Path = folder, cell: Cell = cell) -> int:
                    check_cell(folder, cell)
                    return 0

                running[fork(work, folder, folder / "cell.log")] = cell, folder
            child, status = os.wait()
            cell, folder = running.pop(child)
            yield cell, (folder / "cell.log").read_text(errors="replace") or "died" if status else ""
            shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--pairwise", action="store_true", help="only a few cells that together contain every pair of choices"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells to run at a time")
    options = parser.parse_args()
    cells = pairwise_cells() if options.pairwise else all_cells()
    started, failed = time.monotonic(), 0
    for cell, problem in failures(cells, options.jobs):
        failed += bool(problem)
        print(f"{'FAIL' if problem else 'OK  '}  {cell}" + (f"\n{problem}" if problem else ""), flush=True)
    print(f"{len(cells) - failed} of {len(cells)} cells passed in {time.monotonic() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
