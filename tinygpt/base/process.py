"""Run a command of tinygpt as a process of its own, and measure what it costs.

Its memory is free again when it ends. Its progress bar and its errors appear on the terminal; what it prints goes into
a log.

    done = run(Path("out-lab/train.log"), "train", "configs/shakespeare_char.yaml", "--quiet")
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import writing

MEASURED = """
import os, signal, sys, threading, time
from pathlib import Path

sys.path.insert(0, sys.argv.pop(1))  # the folder of tinygpt, perhaps a checkout
import tinygpt
del sys.path[0]  # other modules are found as usual

from tinygpt.cli import main
from tinygpt.base.process import peak_memory

def end_with(parent):  # one that was killed could not end this process; Windows does not tell
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
status = main(sys.argv[2:])
if status in (0, 143):  # a refused command leaves the figure of the run in the folder
    Path(sys.argv[1]).write_text(str(peak_memory()))
sys.exit(status)
"""

PACKAGES = str(Path(__file__).parents[2])  # the folder of tinygpt, perhaps a checkout


def run(log: Path, *args: str) -> str:
    """Run `tinygpt ARGS`.

    Errors: TinyGPTError with the status of the command, which has printed its own error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    memory = log.with_suffix(".memory")
    with writing(log), open(log, "w+", encoding="utf-8") as file:
        group = None if sys.platform == "win32" else 0  # its own, so that Ctrl-C reaches this process alone
        # -P: modules in the current folder are not those of Python
        command = [sys.executable, "-P", "-X", "utf8", "-c", MEASURED, PACKAGES, str(memory), *args]
        child = subprocess.Popen(command, stdout=file, process_group=group)
        try:
            status = child.wait()
        except BaseException:  # Ctrl-C or SIGTERM: send the command one signal, and wait while it saves a checkpoint
            if sys.platform != "win32":  # there it has received Ctrl-C already, and could not save when terminated
                child.terminate()
            child.wait()
            raise
        file.seek(0)
        output = file.read()
    if status:
        status = status if status > 0 else 128 - status  # a signal, as shells count it
        problem = f"tinygpt {args[0]} failed with status {status}; its output is in {log}"
        hint = "fix the cause, and run the same command again: it continues where it stopped"
        raise TinyGPTError(problem, hint, status)
    return output


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit in the body, so that `run` ends its command, as with Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def peak_memory() -> int:
    """Return the largest amount of memory that this process has used so far, in bytes; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss also counts the memory of the process that started this one on Linux
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (10 if sys.platform == "linux" else 0)
