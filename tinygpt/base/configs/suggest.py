"""Commands that tinygpt suggests, quoted for the shell of this system, so that they can be copied and pasted.

suggest.command("sample", "my run")     # tinygpt sample 'my run'
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

CONTROL = r"[\x00-\x1f\x7f-\x9f]"  # characters that could control the terminal
PRESET_BLOCK_SIZE = 64  # block_size of the presets shakespeare_char, shakespeare_char_fast and nanogpt


def command(name: str, *arguments: str | Path) -> str:
    """Return the command `tinygpt NAME ARGUMENTS`, quoted for the shell. A Path is never taken for a flag."""
    words = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in arguments]
    return " ".join(["tinygpt", name, *map(quoted, words)])


def quoted(word: str, system: str = os.name) -> str:
    """Quote a word for a POSIX shell, or on Windows (`system` is "nt") for PowerShell, with control characters escaped:
    they could control the terminal."""
    word = re.sub(CONTROL, lambda match: repr(match[0])[1:-1], word)
    if system != "nt":
        return shlex.quote(word)
    if re.fullmatch(r"[\w+=:./\\-]+", word):
        return word
    doubled = word.replace("'", "''")
    return f"'{doubled}'"


def flag(name: str, value: object) -> str:
    """Return the flag for a key's value: --quiet for a switch that is on, else --key=value."""
    return f"--{name}" if value is True else f"--{name}={value}"


def training_command(config: dict[str, Any]) -> str:
    """Return the name of the command that runs this configuration: finetune or train."""
    return "finetune" if "ckpt" in config else "train"


def resume(config: dict[str, Any], out: str | Path, *more: str, processes: int = 1) -> str:
    """Return the command that resumes the run in the folder `out` with `processes` processes, if sharded two."""
    processes = max(processes, 2 if config.get("shard") else 1)
    resume_command = command(training_command(config), "--init_from=resume", f"--out_dir={out}", *more)
    if processes > 1:
        return f"torchrun --standalone --nproc_per_node={processes} -m {resume_command}"
    return resume_command


def next_command(
    config: dict[str, Any], out: str | Path, answers_prompts: bool, labelled: bool = False, prompt: str | None = None
) -> str:
    """Return the command to try with the best model of the run in the folder `out`: eval for a labelled task, or for a
    prompt that a shell may not take (of several lines); else sample.

    A model that answers prompts gets `prompt`; if none is known, it continues text like any other (--plain).
    """
    if labelled or not (prompt or "").isprintable():
        return evaluate(config, out)
    if prompt is not None:
        return command("sample", Path(out), "--start", prompt)
    return command("sample", Path(out), *(["--plain"] if answers_prompts else []))


def tensorboard(folder: str | Path) -> str:
    """Return the command that shows the event files of the runs in a folder."""
    return f"tensorboard --logdir {quoted(str(folder))}"


def evaluate(config: dict[str, Any], out: str | Path) -> str:
    """Return the command that evaluates the best model of the run in the folder `out`."""
    return command("eval", Path(out), *data_dir_flag(str(config.get("data_dir") or "data")))


def prepare(name: str, options: Any, folder: str | Path, fallback: str = "") -> str:
    """Return the command that prepares a dataset again. `options`: those in its meta.json (see prepare_options), which
    may come from a stranger; if there are none, `fallback` is appended."""
    flags: list[str] = []
    for key, value in options.items() if isinstance(options, dict) else ():
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif isinstance(value, (str, int, float)):
            flags.append(f"--{key}={value}")
    return command("prepare", name, *flags, *data_dir_flag(folder)) + ("" if flags else fallback)


def data_dir_flag(folder: str | Path) -> list[str]:
    """Return the flag for a data_dir other than the default."""
    return [] if str(folder) == "data" else [f"--data_dir={folder}"]
