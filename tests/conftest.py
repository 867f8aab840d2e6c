"""Shared by the tests: the command line (in a new process, or inside this one), a small dataset, a short run.

What takes long to make is made once by `shared`, for all processes of pytest-xdist, and only read; `run_copy` is a copy
to write in. CONTRIBUTING.md says which tests are marked `slow`.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a second thread does not speed up tiny products
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where a test has more, those that wait leave the core to others

from tinygpt.adapt.formats import chat
from tinygpt.base import process
from tinygpt.base.configs.fields import keys
from tinygpt.base.process import peak_memory
from tinygpt.cli import COMMANDS, config_class, main

pytest.register_assert_rewrite(*(path.stem for path in (Path(__file__).parent / "support").glob("*.py")))
pytest_plugins = ["answers", "faults", "labs", "pages", "runs", "tasks_made"]  # fixtures that several files use

# A shell's background job ignores Ctrl-C, and so would the children of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples in every run, however slow the machine; `pytest --hypothesis-profile=default` draws new ones.
slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("everyday", derandomize=True, deadline=None, suppress_health_check=slow)
hypothesis.settings.load_profile("everyday")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which Windows lacks")
collect_ignore = (
    [] if hasattr(os, "fork") else ["test_reliability.py", "training/test_matrix.py", "training/test_watch.py"]
)

# The files that take longest begin first, so that no process of pytest-xdist waits long for another at the end.
LONGEST = ["notebook", "watch", "lab", "bench", "exercise", "smollm2", "quickstart", "api", "why"]
LONGEST += ["advise"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", type=float, help="this share of the proofs' full counts, see scripts/torture.py")
    parser.addoption("--rewrite", action="store_true", help="write what is printed now into tests/transcripts/")
    help_text = "fail if more tests are skipped: a missing package must not hide a defect (.ci/run)"
    parser.addoption("--most-skipped", type=float, default=math.inf, help=help_text)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Say how many tests were skipped, and for what is missing here."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped:
        reporter.ensure_newline()
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped).most_common():
        reporter.write_line(f"skipped {count}: {reason}")
    if len(skipped) > (most := session.config.getoption("--most-skipped")):
        reporter.write_line(f"{len(skipped)} tests were skipped, and at most {most:.0f} may be")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


TINY_MODEL = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"]
TINY_TRAIN = [
    *("train", "--dataset=tiny", "--device=cpu", "--dtype=float32", "--compile=False", "--seed=7", *TINY_MODEL),
    *("--gradient_accumulation_steps=2", "--dropout=0.1", "--learning_rate=1e-2", "--min_lr=1e-3"),
    *("--warmup_iters=2", "--max_iters=20", "--lr_decay_iters=20", "--eval_interval=10", "--eval_iters=2"),
]
PATIENCE = 600.0  # seconds to wait for what takes a few, on a machine that is busy: only what hangs takes so long
chat.SECONDS = PATIENCE
PORTS = itertools.count()


@dataclass
class Result:
    status: int
    out: str
    err: str


def cli(*args: str | Path, cwd: Path, timeout: float = PATIENCE, **env: str) -> Result:
    """Run `tinygpt ARGS` as a user does: in a new process, in the folder `cwd`."""
    done = subprocess.run(
        [sys.executable, "-m", "tinygpt", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONUTF8": "1", **env},
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def cli_here(*args: str | Path, cwd: Path) -> Result:
    """Run `tinygpt ARGS` inside this process, in the folder `cwd`: no start-up time, no isolation."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*map(str, args)])
    if status == 128 + signal.SIGTERM:  # sent to pytest; the command has taken it for its own
        pytest.exit("stopped by SIGTERM", status)
    return Result(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def commands_here() -> Iterator[None]:
    """Run the commands of a lab, which are processes of their own (base/process.py), inside this process."""

    class Here:  # instead of subprocess.Popen
        def __init__(self, command: list[str], stdout: Any, **_: Any) -> None:
            _packages, memory, *args = command[6:]
            with contextlib.redirect_stdout(stdout):
                self.status = main(args)
            Path(memory).write_text(str(peak_memory()))

        def wait(self, timeout: float | None = None) -> int:
            return self.status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "subprocess", SimpleNamespace(Popen=Here, TimeoutExpired=subprocess.TimeoutExpired))
        yield


def trained(folder: Path, *args: str) -> Result:
    """Train in this folder, with the settings of TINY_TRAIN."""
    return ok(folder, *TINY_TRAIN, *args)


class Lazy:
    """A module that is imported when it is first used; a test that uses it is skipped if the package is missing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(pytest.importorskip(self._name), name)


def until(condition: Any, seconds: float = PATIENCE) -> Any:
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def free_port() -> int:
    """A free port below the ephemeral ports, which no other process of the tests takes; it is opened later."""
    for number in PORTS:
        port = 20000 + (os.getpid() * 50 + number) % 12000
        with contextlib.suppress(OSError), contextlib.closing(socket.create_server(("127.0.0.1", port))):
            return port
    raise AssertionError


def script(name: str, folder: str = "scripts") -> ModuleType:
    """Import a file of a folder that is not a package."""
    path = Path(__file__).parent.parent / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listing(folder: Path) -> dict[str, bytes | str]:
    """Every file below `folder` with its content: unchanged if nothing was written."""
    return {
        str(path.relative_to(folder)): f"link to {os.readlink(path)}" if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() or path.is_symlink()
    } | {f"{path.relative_to(folder)}/": "" for path in folder.rglob("*/")}


def foreign_options(said: str, name: str) -> list[str]:
    """The options in an error's hint that neither the command `name` has, which printed it, nor the command that the
    hint names before them."""
    found = []
    for alternative in said.partition("  try: ")[2].split(", or "):
        known = {*keys(config_class(name)), "help"} if name in COMMANDS else set()
        for command, option in re.findall(r"\b(tinygpt [\w-]+|torchrun|pip install)|(?<![\w-])--(\w+)", alternative):
            if command and command.split()[-1] not in COMMANDS:
                break  # followed by options of its own
            if command:
                known = {*keys(config_class(command.split()[1])), "help"}
            elif option not in known:
                found.append(f"{alternative}: --{option}")
    return found


def refused(folder: Path, *args: str) -> str:
    """Run a command that must be refused without changing any file; returns its message."""
    before = listing(folder)
    result = cli_here(*args, cwd=folder)
    assert result.status == 2 and len(result.err.splitlines()) <= 2, (args, result.out, result.err)
    assert listing(folder) == before and not foreign_options(result.err, args[0])
    return result.err


def tiny_text(lines: int = 600, seed: int = 1) -> str:
    """Lines of a few words, about 22,000 characters: quick to prepare, with a little to learn."""
    words = ["the", "king", "of", "my", "heart", "doth", "sing", "and", "thou", "art", "gone", "from", "me"]
    draw = random.Random(seed)
    return "".join(f"{' '.join(draw.choices(words, k=9)).capitalize()}.\n" for _ in range(lines))


def lab_results(folder: Path) -> dict[str, Any]:
    """The results of a lab in its folder, by stage."""
    stages = json.loads((folder / "lab.json").read_text(encoding="utf-8"))["stages"]
    return {name: entry["result"] for name, entry in stages.items()}


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """`shared(name, make)`: the folder `name`, which `make(folder)` fills once for all processes of the tests.

    It is only read afterwards. Another process that needs it waits.
    """
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        place, done = root / name, root / f"{name}.done"
        root.mkdir(exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)  # of an attempt that failed
                place.mkdir()
                make(place)
                done.touch()
        return place

    return folder


def ok(folder: Path, *args: str | Path) -> Result:
    """Run `tinygpt ARGS` inside this process, in this folder; it must succeed."""
    result = cli_here(*args, cwd=folder)
    assert result.status == 0, (args, result.out, result.err)
    return result


@pytest.fixture(scope="session")
def tiny_data(shared: Shared) -> Path:
    """A working folder with text.txt and data/tiny, a prepared character dataset."""

    def make(folder: Path) -> None:
        (folder / "text.txt").write_text(tiny_text())
        ok(folder, "prepare", "tiny", "--input=text.txt")

    return shared("tiny_data", make)


@pytest.fixture
def work(tiny_data: Path, tmp_path: Path) -> Path:
    """An empty working folder that sees data/tiny."""
    (tmp_path / "data").symlink_to(tiny_data / "data")
    return tmp_path


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, shared: Shared) -> Path:
    """A working folder with data/tiny and out/, the run of TINY_TRAIN: 20 iterations, dropout on, 2 evaluations."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_data, folder, dirs_exist_ok=True)
        ok(folder, *TINY_TRAIN)

    return shared("tiny_run", make)


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run`, to change and to write in."""
    return Path(shutil.copytree(tiny_run, tmp_path / "work"))


GERMAN = {"red": "rot", "green": "gruen", "blue": "blau"}


@pytest.fixture(scope="session")
def models(shared: Shared) -> Path:
    """A working folder with models that have learned something, for `tinygpt serve`, and an adapter of each:

    out (text, learned positions, a context of 16), out-lora (repeats the colour of a prompt), out-colours (the same as
    a complete model, relative positions, a context of 20), out-german (its adapter; answers in German).
    """
    size = ["--n_layer=1", "--n_head=2", "--n_embd=48"]
    short = ["--device=cpu", "--dtype=float32", "--compile=False", "--quiet", "--seed=1", "--batch_size=16"]
    short += ["--gradient_accumulation_steps=1", "--learning_rate=1e-2", "--eval_iters=1", "--eval_interval=200"]
    short += ["--max_iters=200", "--lr_decay_iters=200"]
    lora = ["--lora_rank=8", "--patience=0", *short]

    def make(folder: Path) -> None:
        (folder / "text.txt").write_text(tiny_text())
        ok(folder, "prepare", "tiny", "--input=text.txt")
        for name, words in (("colours", {word: word for word in GERMAN}), ("german", GERMAN)):
            pairs = [{"prompt": f"{n:03} {word}", "response": words[word]} for n in range(60) for word in GERMAN]
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
            ok(folder, "prepare", name, f"--input={name}.jsonl", "--format=pairs")
        ok(folder, "train", "--dataset=tiny", "--block_size=16", "--out_dir=out", *size, *short)
        relative = ["--block_size=20", "--position=rope", "--out_dir=out-colours"]
        ok(folder, "train", "--dataset=colours", *relative, *size, *short)
        ok(folder, "finetune", "--dataset=colours", "--ckpt=out", "--out_dir=out-lora", *lora)
        ok(folder, "finetune", "--dataset=german", "--ckpt=out-colours", "--out_dir=out-german", *lora)

    return shared("models", make)


@pytest.fixture
def harness(
    request: pytest.FixtureRequest, tmp_path: Path, record_property: Callable[[str, object], None]
) -> Iterator[Any]:
    """A folder in which child processes run, see children.py; its figures become a property of the test's report."""
    from children import Harness

    made = Harness(tmp_path, share=request.config.getoption("--full"))
    yield made
    record_property("figures", dict(made.figures))  # a plain dict, which pytest-xdist can pass to the main process
