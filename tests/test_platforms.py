"""Platform differences. One function encapsulates each difference; both of its answers are tested here."""

import ast
import dataclasses
import errno
import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, TINY_TRAIN, Shared, cli_here, listing, ok
from inputs import json_lines
from models import OPTIMIZERS, small
from runs import FLAGS
from torch.utils._python_dispatch import TorchDispatchMode

import tinygpt
from tinygpt import cli, train
from tinygpt.base import device, terminal
from tinygpt.base.configs.core import TrainConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import load
from tinygpt.data.rows import TextRows
from tinygpt.training import processes as distributed
from tinygpt.training.distillation import Teacher
from tinygpt.training.log import read_metrics
from tinygpt.training.optimizer import TorchOptimizer, build
from tinygpt.training.start import choose_compute, faster_on_a_mac

# ---- GPUs ----------------------------------------------------------------------------------------------------------


class ReadsNothing(TorchDispatchMode):
    """Count how often a value is read from a tensor: on a GPU each read waits for all work to finish."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("optimizer", "taught"), [*((name, False) for name in OPTIMIZERS), ("adamw", True)])
def test_a_step_that_logs_nothing_does_not_synchronise(optimizer: str, taught: bool, dtype: torch.dtype) -> None:
    """The plain path, which a GPU takes, with two micro-steps, dropout and clipping; also with a teacher."""
    config = TrainConfig(optimizer=optimizer, batch_size=2, gradient_accumulation_steps=2, block_size=16)  # type: ignore[arg-type]
    compute = device.Compute(torch.device("cpu"), dtype, "")
    computing, made = build(small(dropout=0.1).train(), config, compute)
    run: Any = SimpleNamespace(config=config, compute=compute, ddp_model=computing, optimizer=made, has_dropout=True)
    run.teacher = Teacher(small(seed=1), 0.5, 65, "") if taught else None
    run.progress, run.ranks = SimpleNamespace(step=0), distributed.Processes()
    run.source, run.row_length = TextRows(np.arange(60, dtype=np.uint16)), lambda at: 16
    run.rows_per_iter, run.micro_steps = 4, 2
    with ReadsNothing() as counter:
        for step in range(3):
            run.progress.step = step
            made.set_learning_rate(1e-3)
            loss, norm = train.forward_backward(run, *train.batch(run, step))
            made.update()
        assert counter.reads == 0
        train.require_finite_loss(run, loss, norm)  # negative control: this is what a step that logs does
        assert counter.reads == 2


# ---- MPS -----------------------------------------------------------------------------------------------------------


def test_gradient_clipping_works_where_fused_adamw_ignores_grad_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """On MPS before torch 2.13. The plain path, which a Mac's GPU takes, clips the gradients themselves.

    Compared with torch's own AdamW on a clipped gradient. The kernel that ignores `grad_scale` is simulated.
    """
    config = TrainConfig(learning_rate=0.1, grad_clip=1.0)
    model, theirs = small(), small()
    optimizer = TorchOptimizer(model, config, device.Compute(torch.device("cpu"), torch.float32, ""))
    kernel = torch._fused_adamw_

    def mps_kernel(*args: object, grad_scale: torch.Tensor | None = None, **options: object) -> None:
        kernel(*args, grad_scale=None, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "_fused_adamw_", mps_kernel)
    groups = [{"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.1}]
    groups += [{"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), fused=False, foreach=False)
    # The moments show only in the second step: Adam's first step does not depend on the scale.
    for scale in (70.0, 7.0):
        for seed, (ours, other) in enumerate(zip(model.parameters(), theirs.parameters(), strict=True)):
            other.grad = scale * torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
            ours.grad = other.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
        assert optimizer.clip() > 1
        optimizer.update()
    for ours, other in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_several_processes_on_a_macs_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(TinyGPTError, match="several processes"),
        distributed.join_processes("auto", torch.device("mps")),
    ):
        pass


# ---- CPU or MPS ----------------------------------------------------------------------------------------------------

CPU = device.Compute(torch.device("cpu"), torch.float32, "no bfloat16")
MPS = device.Compute(torch.device("mps"), torch.float32, "the safe choice")


def test_the_faster_of_two_devices_is_chosen_with_the_comparison() -> None:
    for cpu, mps, chosen, text in (
        (0.012, 0.031, CPU, "no bfloat16; faster here than MPS: 12.0 ms against 31.0 ms per batch"),
        (0.9, 0.0456, MPS, "the safe choice; faster here than CPU: 45.6 ms against 900.0 ms per batch"),
    ):
        found = device.choose_faster(CPU, MPS, {CPU: cpu, MPS: mps}.__getitem__)
        assert found == dataclasses.replace(chosen, reason=text)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotImplementedError("The operator 'aten::x' is not\n implemented"), "(The operator 'aten::x' is not)"),
        (TypeError("no float64"), "(no float64)"),
        (MemoryError(), "(MemoryError)"),
    ],
)
def test_a_device_that_cannot_compute_a_step_leaves_the_cpu(error: Exception, text: str) -> None:
    def seconds(candidate: device.Compute) -> float:
        if candidate is MPS:
            raise error
        return 1.0

    assert device.choose_faster(CPU, MPS, seconds).describe().endswith(f"no bfloat16; MPS fails here {text}")
    with pytest.raises(type(error)):  # an error of the CPU itself is not hidden
        device.choose_faster(MPS, CPU, seconds)


def test_a_slow_step_is_timed_twice_and_the_first_time_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 6.0, 7.0])  # the beginning and the end of two calls
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    assert device.shortest(lambda: None, seconds=0.0) == 1.0


def pretend_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be a Mac with MPS, which cannot compute here; two steps are timed, instead of a second of them."""
    monkeypatch.setattr(device.shortest, "__defaults__", (0.0,))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_mac_whose_gpu_fails_trains_on_the_cpu(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_mps(monkeypatch)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="mps")
    found = r"^device: .*cpu .*float32; MPS fails here \("
    for flag, timed in (("--max_iters=1", True), ("--eval_only=True", False), ("--init_from=resume", False)):
        result = cli_here(*TINY_TRAIN, "--device=auto", "--out_dir=new", flag, cwd=work)
        assert result.status == 0 and bool(re.search(found, result.out, re.MULTILINE)) == timed


@pytest.mark.parametrize(
    "optimizer", [pytest.param(name, marks=[pytest.mark.slow] * (name != "adamw")) for name in OPTIMIZERS]
)
def test_timing_changes_nothing_that_the_run_computes(
    optimizer: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands in for MPS. The weights are those of a run without timing, even with `shard` in a file."""
    (work / "shard.yaml").write_text("shard: true\n")
    flags = [*TINY_TRAIN, "shard.yaml", f"--optimizer={optimizer}"]
    assert cli_here(*flags, "--out_dir=plain", cwd=work).status == 0
    pretend_mps(monkeypatch)
    monkeypatch.setattr(device, "choose", lambda name, *_: CPU if name == "auto" else STAND_IN)
    result = cli_here(*flags, "--out_dir=timed", "--device=auto", cwd=work)
    assert result.status == 0 and "; faster here than CPU: " in result.out, result
    plain, timed = (load(work / out / "last.pt").model for out in ("plain", "timed"))
    assert all(torch.equal(weight, timed[name]) for name, weight in plain.items())


STAND_IN = dataclasses.replace(CPU, reason="instead of MPS")


def test_who_does_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run keeps its device; a named device is used; processes agree; inference uses the CPU."""
    pretend_mps(monkeypatch)
    monkeypatch.setattr(device, "choose_faster", None)
    for saved, kept in (("cpu", "cpu"), ("mps", "mps"), ("cuda", "cpu"), (None, "cpu")):
        assert choose_compute(TrainConfig(), {"device": saved, "path": "plain"}).device.type == kept
    dataset: Any = None
    for name in ("cpu", "mps"):
        compute = choose_compute(TrainConfig(device=name), {})
        assert faster_on_a_mac(TrainConfig(device=name), dataset, compute).device.type == name
    assert device.choose_for_inference("auto", "auto").device.type == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert faster_on_a_mac(TrainConfig(), dataset, choose_compute(TrainConfig(), {})).device.type == "cpu"
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(TypeError):  # negative control: a new run on one process measures
        faster_on_a_mac(TrainConfig(), dataset, choose_compute(TrainConfig(), {}))


# ---- GPUs without bfloat16 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "hip", "dtype"),
    [((7, 5), None, torch.float16), ((7, 0), None, torch.float16), ((8, 0), None, torch.bfloat16),
     ((9, 0), None, torch.bfloat16), ((9, 0), "6.2", torch.bfloat16)],
    ids=["T4", "V100", "A100", "H100", "AMD"],
)  # fmt: skip
def test_bfloat16_is_chosen_only_if_the_given_gpu_multiplies_it_in_hardware(
    capability: tuple[int, int], hip: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def of(gpu: torch.device) -> tuple[int, int]:
        asked.append(gpu)
        return capability

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # counts emulation
    monkeypatch.setattr(torch.cuda, "get_device_capability", of)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert device.choose("cuda:1", "auto").dtype is dtype
    assert hip or asked == [torch.device("cuda:1")]


# ---- glibc ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(1 << 40, {-3: 1 << 30, -1: 1 << 30}), (32 << 20, {-3: 32 << 20, -1: 1 << 30}), (0, {})],
    ids=["new", "thresholds up to 32 MB", "refuses every threshold"],
)
def test_the_trim_threshold_is_set_only_with_the_mmap_threshold(
    largest: int, expected: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it would fix the mmap threshold at 128 KB, and each step would be slower than with neither of them set."""
    taken: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter == -3 and value > largest:
            return 0
        taken[parameter] = value
        return 1

    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(sys, "platform", "linux")
    device.keep_freed_memory()
    assert taken == expected and list(taken) == list(expected)


# ---- Windows -------------------------------------------------------------------------------------------------------


def deny_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Deny the replacement of the file `name`, as Windows does while another process maps it."""
    replace = os.replace

    def denied(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", denied)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_a_dataset_that_a_run_reads_is_not_replaced(
    name: str,
    run_copy: Path,
    windows: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever file is open: the old dataset stays complete."""
    (run_copy / "other.txt").write_text("to be or not to be\n" * 99)
    before = listing(run_copy)
    deny_one(monkeypatch, name)
    result = cli_here("prepare", "tiny", "--input=other.txt", cwd=run_copy)
    assert result.status == 1
    assert f"{name}: another program has this file open; what was saved before is unchanged" in result.err
    assert "a training run that reads this dataset" in result.err
    assert listing(run_copy) == before
    monkeypatch.undo()
    assert cli_here("prepare", "tiny", "--input=other.txt", cwd=run_copy).status == 0  # negative control
    assert listing(run_copy) != before


def test_a_checkpoint_that_a_scanner_keeps_open_is_named_and_kept(
    run_copy: Path,
    windows: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = (run_copy / "out/last.pt").read_bytes()
    deny_one(monkeypatch, "last.pt")
    result = cli_here(*TINY_TRAIN, "--init_from=resume", "--max_iters=25", cwd=run_copy)
    assert result.status == 1 and "last.pt: another program has this file open" in result.err
    assert "then run the command again" in result.err
    assert (run_copy / "out/last.pt").read_bytes() == last


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_that_has_nothing_to_do_with_standard_output_is_not_blamed_on_it(
    debug: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, or with --debug the traceback."""

    def fail(args: list[str]) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(cli, "run", fail)
    if debug:
        with pytest.raises(ConnectionResetError):
            cli.main(["train", *debug])
    else:
        assert cli.main(["train"]) == 1
        assert capsys.readouterr().err == "error: Connection reset by peer\n"


def test_a_closed_pipe_is_einval_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

    for error, system, left in (
        (BrokenPipeError(errno.EPIPE, ""), "posix", True),
        (BrokenPipeError(errno.EPIPE, ""), "nt", True),
        (OSError(errno.EINVAL, ""), "nt", True),
        (OSError(errno.EINVAL, ""), "posix", False),
        (OSError(errno.ENOSPC, ""), "nt", False),
    ):
        assert terminal.reader_has_left(error, system) is left
    for system, status in (("nt", 141), ("posix", 1)):
        monkeypatch.setattr(sys, "stdout", Closed())
        monkeypatch.setattr(terminal, "reader_has_left", functools.partial(terminal.reader_has_left, system=system))
        assert cli.main(["--version"]) == status


def test_one_module_renames_files() -> None:
    """files.py, which tries again on Windows; the state of a live page, written each second, is not tried again."""
    package = Path(device.__file__).parents[1]
    calls = re.compile(r"os\.(replace|rename)\(|\.(rename|replace)\((path|target|temporary)|shutil\.move")
    assert [path.name for path in sorted(package.rglob("*.py")) if calls.search(path.read_text("utf-8"))] == [
        "files.py",
        "live.py",
    ]


def test_training_uses_no_signal_that_windows_lacks() -> None:
    available = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
    for path in (Path(device.__file__).parents[1] / "training").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("SIG")}
        assert used <= available, path


# ---- code pages ----------------------------------------------------------------------------------------------------

SESSION = """
import json, sys
from tinygpt.cli import main
for args in json.loads(sys.argv[1]):
    try:
        status = main(args)
    except SystemExit as stop:
        status = stop.code or 0
    print("status", status, "of", *args)
"""
GREEK = "μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος\n"


@pytest.mark.slow
def test_every_command_prints_in_any_code_page(tmp_path: Path) -> None:
    """No traceback, and readable figures, although text and labels have characters that the encoding lacks."""
    (tmp_path / "greek.txt").write_text(GREEK * 90, encoding="utf-8")
    labels = ["rot", "grün", "€"]
    json_lines(tmp_path, [{"prompt": f"{n:03} {labels[n % 3]}", "response": labels[n % 3]} for n in range(120)])
    commands = [
        ["prepare", "tiny", "--input=greek.txt"],
        [*TINY_TRAIN, "--sample_interval=10"],
        ["sample", "--start=μ", "--max_new_tokens=20"],
        ["eval"],
        ["doctor", "out", "data/tiny"],
        ["report", "--png=out/loss.png"],
        ["report", "-o", "page.html"],
        ["export", "-o", "model.html"],
        ["prepare", "colours", "--input=pairs.jsonl", "--format=pairs", "--show=3"],
        ["finetune", *FLAGS[:-1], "--lora_rank=2", "--out_dir=tuned", "--quiet=False"],
        ["eval", "--ckpt=out", "--adapter=tuned", "--task=colours"],
        ["export", "--format=checkpoint", "--ckpt=out", "--adapter=tuned", "--output=merged"],
        ["exercise", "list"],
        ["train", "--help"],
    ]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["PYTHONWARNDEFAULTENCODING"] = "1"  # warns of a text file that is opened without an encoding
    arguments = [sys.executable, "-c", SESSION, json.dumps(commands)]
    done = subprocess.run(arguments, cwd=tmp_path, env=os.environ | environment, capture_output=True, timeout=PATIENCE)
    out = done.stdout.decode("ascii")
    statuses = re.findall(r"^status (\d+) of", out, re.MULTILINE)
    assert statuses == ["0"] * len(commands), done
    assert b"Traceback" not in done.stderr
    package = f"{Path(tinygpt.__file__).parent}{os.sep}".encode("ascii", "backslashreplace")  # others warn, too
    assert not [line for line in done.stderr.splitlines() if package in line and b"EncodingWarning" in line]
    assert re.search(r"step 20: train loss \d\.\d{4}, val loss \d\.\d{4}", out)
    assert re.search(r"\d+\.\d% \(\d+ to \d+\)", out)  # an accuracy and its interval
    assert "gr?n" in out


# ---- output that cannot be written -----------------------------------------------------------------------------------


def shell(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    tinygpt = f'"{sys.executable}" -m tinygpt'
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | environment
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        ["bash", "-c", command.replace("tinygpt", tinygpt, 1)], cwd=folder, env=environment, capture_output=True
    )


@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", "ü"), ("ascii", r"\xfc")])
def test_a_character_that_the_code_page_has_is_shown(tmp_path: Path, encoding: str, shown: str) -> None:
    done = shell(tmp_path, "tinygpt sample grün", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert f"gr{shown}n" in done.stderr.decode(encoding)


OUTPUTS: dict[str, tuple[str, dict[str, str]]] = {
    "ascii": ("", {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}),
    "all closed": (">&- 2>&- <&-", {}),
    "a reader that stops early, unbuffered": ("| head -n 1", {"PYTHONUNBUFFERED": "1"}),
    "full, unbuffered": ("> /dev/full", {"PYTHONUNBUFFERED": "1"}),
}


SLOW = ("all closed", "a reader that stops early, unbuffered")
needs_a_shell = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and a shell")


@pytest.fixture(scope="module")
def greek(shared: Shared) -> Path:
    """A working folder with data/tiny, Greek text."""

    def make(folder: Path) -> None:
        (folder / "greek.txt").write_text(GREEK * 30, encoding="utf-8")
        ok(folder, "prepare", "tiny", "--input=greek.txt")

    return shared("greek", make)


@needs_a_shell
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OUTPUTS])
def test_output_that_cannot_be_written_does_not_end_a_run(greek: Path, tmp_path: Path, name: str) -> None:
    """The run completes normally; its samples contain characters that few encodings have."""
    redirect, environment = OUTPUTS[name]
    flags = " ".join([*TINY_TRAIN, "--sample_interval=10", f"--out_dir={tmp_path}"])
    done = shell(greek, f"set -o pipefail; tinygpt {flags} {redirect}", **environment)
    assert done.returncode == 0, done
    assert load(tmp_path / "last.pt").step == 20
    assert [e["step"] for e in read_metrics(tmp_path) if e["kind"] == "sample"] == [0, 10, 20]
    assert b"Traceback" not in done.stdout + done.stderr and b"Exception ignored" not in done.stderr


FULL = b"error: cannot write to standard output: No space left on device\n"


@needs_a_shell
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_a_command_that_only_prints_reports_why_it_cannot_print(tmp_path: Path, environment: dict[str, str]) -> None:
    """These commands do not import PyTorch."""
    done = shell(tmp_path, "tinygpt exercise list > /dev/full", **environment)
    assert done.returncode == 1 and done.stderr == FULL, done
    assert shell(tmp_path, "tinygpt exercise list >&-", **environment).returncode == 0
    done = shell(tmp_path, "set -o pipefail; tinygpt train --help | true", **environment)
    assert done.returncode == 141 and not done.stderr, done


@needs_a_shell
def test_a_full_standard_error_costs_no_dataset(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "{n}", "response": "{n % 2}"}}\n' for n in range(90)]
    (tmp_path / "p.jsonl").write_text("".join([*lines, "not JSON\n"]))
    done = shell(tmp_path, "tinygpt prepare p --input p.jsonl --format pairs --skip_bad 2> /dev/full")
    assert done.returncode == 0 and (tmp_path / "data/p/meta.json").exists(), done
