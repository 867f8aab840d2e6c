"""Commands and keys of earlier versions that were withdrawn, and what replaces each.

A withdrawn command or flag is refused with one sentence; a withdrawn key in a config file, which an earlier version may
have written, is ignored with a note. `docs/developers/withdrawn.md` says why each went.
"""

from tinygpt.base import terminal
from tinygpt.base.errors import TinyGPTError

COMMANDS = {  # and options without a command
    "plan": "tinygpt train --dataset=NAME --budget=10m, which measures and plans",
    "check": "tinygpt doctor RUN, or tinygpt doctor data/NAME",
    "watch": "tinygpt train --watch",
    "plot": "tinygpt report RUN --png FILE",
    "index": 'tinygpt ask "your question" DOCUMENTS',
    "merge": "tinygpt export BASE --adapter ADAPTER --format checkpoint",
    "race": "tinygpt lab race",
    "--tyro-print-completion": "tinygpt --print-completion bash",
}
TASKS = {"sectors": "tinygpt lab domain, which makes it"}
KEYS = {  # by command and key
    ("advise", "budget"): "drop it: advise trains only linear models now",
    ("advise", "pretrained"): "tinygpt prepare and finetune, then tinygpt label FILE --model RUN",
    ("doctor", "machine"): "tinygpt quickstart",
    ("eval", "positive"): "tinygpt eval RUN --task=NAME --json, and docs/how-to/fine-tune.md: a rare label",
    ("eval", "miss_cost"): "tinygpt eval RUN --task=NAME --json, and docs/how-to/fine-tune.md: a rare label",
    ("eval", "predict"): "tinygpt label FILE --model RUN",
    ("eval", "plot"): "--output=VALUE",
    ("lab", "own_rank"): "drop it: race.csv has the rank of each entry",
    ("lab", "times"): "--budget=60s",
    ("report", "live"): "tinygpt train --watch",
    ("report", "tensorboard"): "tinygpt train --report_to=tensorboard",
    ("train", "watch_port"): "--watch",
}


def refuse_command(name: str) -> None:
    """Errors: TinyGPTError for a command that was withdrawn, with what replaces it."""
    if name in COMMANDS:
        raise TinyGPTError(f"{name} was withdrawn", COMMANDS[name])


def refuse_task(name: str) -> None:
    """Errors: TinyGPTError for a built-in task that was withdrawn, with what replaces it."""
    if name in TASKS:
        raise TinyGPTError(f"the built-in task {name} was withdrawn", TASKS[name])


def refuse_key(prog: str, key: str) -> None:
    """Errors: TinyGPTError for a withdrawn flag of the command `prog` (tinygpt NAME), with what replaces it."""
    if replacement := KEYS.get((prog.removeprefix("tinygpt "), key)):
        raise TinyGPTError(f"--{key} was withdrawn", replacement)


def ignore_key(prog: str, key: str, prefix: str) -> bool:
    """Return whether a key in a config file was withdrawn; print a note if so. `prefix`: the file's name and `: `."""
    withdrawn = (prog.removeprefix("tinygpt "), key) in KEYS
    if withdrawn:
        terminal.print_error(f"note: {prefix}{key} was withdrawn, and is ignored")
    return withdrawn
