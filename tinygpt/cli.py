"""The command tree, and the only place that prints an error or decides the exit status.

Nothing heavy is imported at module level, so `tinygpt --help` answers at once; each command imports what it needs.
Exit status: 0 done; 1 a failure of the machine (a full disk, memory) or a run that diverged; 2 a mistake in what was
asked, nothing written; 130 and 143 stopped by SIGINT and SIGTERM, with the state saved.
"""

import importlib
import sys

from tinygpt import __version__, terminal
from tinygpt.errors import TinyGPTError

# command: (module with a function of that name, its config, one line of help)
COMMANDS = {
    "prepare": ("tinygpt.prepare", "PrepareConfig", "turn text into token files"),
    "train": ("tinygpt.train", "TrainConfig", "train a GPT on a prepared dataset"),
    "sample": ("tinygpt.sample", "SampleConfig", "write text with a trained model"),
    "eval": ("tinygpt.evaluate.command", "EvalConfig", "measure a model, beside what counting would reach"),
    "finetune": (
        "tinygpt.finetune.command",
        "FinetuneConfig",
        "teach a trained model a task, with all weights or LoRA",
    ),
    "merge": ("tinygpt.finetune.merge", "MergeConfig", "make one checkpoint out of a base and a LoRA adapter"),
    "doctor": ("tinygpt.evaluate.doctor", "DoctorConfig", "say how a run went, and what to try next"),
    "report": ("tinygpt.report", "ReportConfig", "make one HTML file of a run, in which its model answers"),
    "export": ("tinygpt.report", "ExportConfig", "make one HTML file of a model, to hand to someone"),
    "check": (
        "tinygpt.evaluate.check",
        "CheckConfig",
        "verify a run's or a dataset's files; prove that resuming is exact",
    ),
    "exercise": ("tinygpt.exercise.command", "ExerciseConfig", "write a GPT yourself, in ten steps that are checked"),
    "plot": ("tinygpt.evaluate.plot", "PlotConfig", "draw the loss curves of runs into a PNG"),
}

HELP = f"""usage: tinygpt COMMAND [OPTIONS]

Train tiny GPTs on your own machine, and see what they do.

commands:
{chr(10).join(f"  {name:<9} {entry[2]}" for name, entry in COMMANDS.items())}

options:
  -h, --help   this text; tinygpt COMMAND --help explains a command and each of its options
  --version    the version
  --debug      with any command: show the traceback of an error

the three commands to begin with:
  tinygpt prepare shakespeare_char
  tinygpt train configs/shakespeare_char.yaml --device=cpu
  tinygpt sample --ckpt out/ckpt.pt
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    terminal.prepare()
    try:
        status = guarded(args, debug)
        sys.stdout.flush()
        return status
    except OSError as error:  # of standard output: those of files have a name
        if error.filename is not None:
            raise
        terminal.silence("stdout")
        if isinstance(error, BrokenPipeError):  # the reader, `head` for example, has left
            return 141
        terminal.print_error(f"error: cannot write to standard output: {error.strerror}")
        return 1


def guarded(args: list[str], debug: bool) -> int:
    """Run the command; an error that a user can fix is one sentence on standard error."""
    try:
        return run(args)
    except TinyGPTError as error:
        if debug:
            raise
        hint = f"\n  try: {error.hint}" if error.hint else ""
        terminal.print_error(f"error: {error.message}{hint}")
        return error.status
    except OSError as error:
        if debug or error.filename is None:
            raise
        terminal.print_error(f"error: {error.filename}: {(error.strerror or 'unusable').lower()}")
        return 2
    except KeyboardInterrupt:
        return 130


def run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        print(f"tinygpt {__version__}")
        return 0
    if args[0].startswith("--tyro-print-completion"):
        print_completion(args)
    name = args[0]
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, n=1)
        raise TinyGPTError(f"{name}: no such command", f"tinygpt {close[0] if close else '--help'}")
    from tinygpt.config import schema
    from tinygpt.config.parse import parse

    module, config_name, _ = COMMANDS[name]
    parsed = parse(getattr(schema, config_name), args[1:], prog=f"tinygpt {name}")
    status = getattr(importlib.import_module(module), name.replace("eval", "evaluate"))(parsed)
    return status or 0


def print_completion(args: list[str]) -> None:
    """The shell completion script of the whole command tree, as tyro makes it; then exits."""
    import tyro

    from tinygpt.config import schema

    tree = {name: getattr(schema, entry[1]) for name, entry in COMMANDS.items()}
    tyro.extras.subcommand_cli_from_dict(tree, args=args, prog="tinygpt", use_underscores=True)
