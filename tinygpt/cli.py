"""The command line: the table of commands, error messages and the exit status.

No other module prints the error that ends a command. Each command imports what it needs, so `tinygpt --help` is fast.
Exit status: 0 success; 1 a failure of the machine (full disk, out of memory), a failed check or a run that diverged;
2 a mistake in the command, nothing written; 130 and 143 stopped by SIGINT and SIGTERM (`train` saves its state first);
141 the reader of standard output has closed it.
"""

import difflib
import os
import pkgutil
import sys
from typing import Any

from tinygpt.base import __version__, terminal, threads
from tinygpt.base.configs import withdrawn
from tinygpt.base.errors import TinyGPTError

# command: (module:function, its configuration in tinygpt.base.configs, one line of help); below the first group, the
# module of the command NAME of GROUP is tinygpt/GROUP/NAME.py, or in tinygpt/GROUP/NAME/
GROUPS = {
    "start with these three": {
        "prepare": ("prepare:prepare", "core:PrepareConfig", "turn text into token files"),
        "train": ("train:train", "core:TrainConfig", "train a GPT on a prepared dataset"),
        "sample": ("sample:sample", "core:SampleConfig", "generate text with a trained model"),
    },
    "examine": {
        "eval": (
            "examine.eval.command:evaluate",
            "examine:EvalConfig",
            "measure a model and compare it with baselines",
        ),
        "doctor": (
            "examine.doctor.command:doctor",
            "examine:DoctorConfig",
            "diagnose a run and check its files",
        ),
        "report": (
            "examine.report.command:report",
            "examine:ReportConfig",
            "write one HTML file about a run, with its model inside",
        ),
        "why": ("examine.why.command:why", "examine:WhyConfig", "show which training examples influenced an output"),
    },
    "adapt": {
        "finetune": (
            "adapt.finetune:finetune",
            "core:FinetuneConfig",
            "fine-tune a model, all weights or LoRA adapters",
        ),
        "import": ("adapt.import_:import_model", "adapt:ImportConfig", "make a checkpoint of a pretrained model"),
        "export": (
            "adapt.export:export",
            "adapt:ExportConfig",
            "write a model for a browser, transformers, llama.cpp, peft",
        ),
    },
    "use": {
        "ask": ("use.ask.command:ask", "use:AskConfig", "answer a question by quoting your documents"),
        "advise": ("use.advise.command:advise", "use:AdviseConfig", "find the model that suits your labelled examples"),
        "label": ("use.label:label", "use:LabelConfig", "label new texts with the model of advise or of a run"),
        "serve": (
            "use.serve.command:serve",
            "use:ServeConfig",
            "serve a model on this machine: a chat page, and OpenAI's API",
        ),
    },
    "learn": {
        "quickstart": (
            "learn.quickstart:quickstart",
            "learn:QuickstartConfig",
            "train your first model, and see what it writes",
        ),
        "lab": ("learn.lab.command:lab", "learn:LabConfig", "run an experiment: what a method gains and costs here"),
        "exercise": (
            "learn.exercise.command:exercise",
            "learn:ExerciseConfig",
            "write a GPT yourself, in ten checked steps",
        ),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
LISTED = "\n".join(
    f"{title}:\n" + "".join(f"  {name:<10} {text}\n" for name, (_, _, text) in commands.items())
    for title, commands in GROUPS.items()
)
HELP = f"""usage: tinygpt COMMAND [OPTIONS]

Train tiny GPTs on your own machine, and see what they do.

{LISTED}
options:
  -h, --help                 this text; tinygpt COMMAND --help explains a command and each of its options
  --version                  the version
  --debug                    with any command: show the traceback of an error
  --print-completion SHELL   a script that completes commands, options and paths in bash, zsh, tcsh, fish or powershell

example:
  tinygpt prepare shakespeare_char
  tinygpt train configs/shakespeare_char.yaml --device=cpu
  tinygpt sample --ckpt out/ckpt.pt
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    prepare_streams()
    try:
        status = guarded(args, debug)
        sys.stdout.flush()
        return status
    except OSError as error:  # an error of standard output has no file name
        if error.filename is not None or not terminal.stdout_is_broken():  # no folder for temporary files, for example
            if debug:
                raise
            terminal.print_error(f"error: {error.strerror or error}")
            return 1
        terminal.silence("stdout")
        if terminal.reader_has_left(error):  # `head` for example
            return 141
        terminal.print_error(f"error: cannot write to standard output: {error.strerror}")
        return 1


def prepare_streams() -> None:
    """Replace characters that a stream's encoding lacks, and open the null device in place of a closed stream.

    `print` ignores a closed stream, but the next file opened would get its file descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        unsafe = ("strict", "surrogateescape")  # the second, of the C locale, raises for other lone surrogates
        if getattr(stream, "errors", "") in unsafe and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def guarded(args: list[str], debug: bool) -> int:
    """Run the command, and print an error that a user can fix as one sentence on standard error.

    A mistake without a hint gets the command's help as a hint.
    """
    try:
        return run(args)
    except KeyboardInterrupt:
        return 130
    except (TinyGPTError, OSError) as error:
        if isinstance(error, OSError) and (debug or error.filename is None):
            raise
        from tinygpt.base.files import file_error

        problem = error if isinstance(error, TinyGPTError) else file_error(error.filename, error)
        if problem.status == 2 and not problem.hint:
            problem.hint = f"tinygpt {args[0]} --help"
        if debug:
            raise
        terminal.print_error(problem.text())
        return problem.status


def run(args: list[str]) -> int:
    if args[:1] == ["help"] and args[1:]:
        args = [args[1], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        print(f"tinygpt {__version__}")
        return 0
    if args[0].startswith("--print-completion"):
        print(completion(args))
        return 0
    name = args[0].partition("=")[0]
    withdrawn.refuse_command(name)
    if name not in COMMANDS:
        [likely] = difflib.get_close_matches(name, COMMANDS, n=1) or ["--help"]
        raise TinyGPTError(f"{name}: no such command", f"tinygpt {likely}")
    from tinygpt.base.configs.parse import parse

    config = parse(config_class(name), args[1:], prog=f"tinygpt {name}")
    threads.measure()  # importing the command takes most of a second
    status = pkgutil.resolve_name(f"tinygpt.{COMMANDS[name][0]}")(config) or 0
    if getattr(config, "watch", False) and status == 0 and os.environ.get("RANK", "0") == "0":
        pkgutil.resolve_name("tinygpt.examine.report.command:replace_watched")(config.out_dir)
    return status


def config_class(command: str) -> Any:
    """Return the class of a command's configuration."""
    return pkgutil.resolve_name(f"tinygpt.base.configs.{COMMANDS[command][1]}")


def completion(args: list[str]) -> str:
    """Return the script that completes commands, options and paths in a shell. `args`: --print-completion SHELL."""
    import argparse

    import shtab

    from tinygpt.base.configs.help import described

    shells = shtab.SUPPORTED_SHELLS
    shell = " ".join(args).partition("--print-completion")[2].strip(" =")
    if shell not in shells:
        problem = f"{shell}: no such shell" if shell else "--print-completion needs a shell"
        raise TinyGPTError(problem, f"tinygpt --print-completion {shells[0]}, or {', '.join(shells[1:])}")
    parser = argparse.ArgumentParser("tinygpt")
    commands = parser.add_subparsers()
    for name, (_, _, text) in COMMANDS.items():
        described(config_class(name), commands.add_parser(name, help=text, add_help=False))
    return shtab.complete(parser, shell)
