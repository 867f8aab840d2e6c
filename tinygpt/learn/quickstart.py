"""`tinygpt quickstart`: prepare, train and report on Tiny Shakespeare or on one's own text, and what each has brought.

tinygpt quickstart
tinygpt quickstart notes.txt --budget=10m
tinygpt quickstart --out_dir=out-first --max_iters=500      # another folder; a shorter training
"""

import contextlib
import io
import math
import os
import re
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tinygpt import api
from tinygpt.base import terminal
from tinygpt.base.configs import suggest
from tinygpt.base.configs.learn import QuickstartConfig
from tinygpt.base.configs.parse import read_config
from tinygpt.base.errors import TinyGPTError

CONFIG = "configs/shakespeare_char.yaml"
BAR = "{desc}{percentage:3.0f}% |{bar:20}| {remaining} left{postfix}"
SHOWN = 300  # characters of the text after the training


def quickstart(config: QuickstartConfig) -> int:
    """Run prepare, train and report; return the exit status.

    Finished steps are not repeated. Errors: those of the three commands, and KeyboardInterrupt if it is interrupted.
    """
    own = bool(config.input)
    name = name_of(config.input[0]) if own else "shakespeare_char"
    out = Path(f"out-{name}" if own and "out_dir" not in config.given else config.out_dir)
    data_flag = suggest.data_dir_flag(config.data_dir)
    resumed = (out / "last.pt").exists()  # a run is continued, never replaced
    if not resumed and any((out / file).exists() for file in ("ckpt.pt", "adapter.pt")):
        hint = suggest.command("quickstart", *config.input, "--out_dir=out-first", *data_flag)
        raise TinyGPTError(f"{out} contains a model, but no last.pt to continue from", hint)
    budget = config.budget or ("5m" if own and "max_iters" not in config.given else "")
    minutes = terminal.counted(math.ceil(config.max_iters / QuickstartConfig.max_iters), "minute")
    time = f"{budget}, or less if the text is short" if budget else f"about {minutes}"
    example = "your text" if own else "Shakespeare"
    print(f"A small language model learns to write like {example}, one character after another. It takes {time}.")

    data = {"data_dir": config.data_dir} if data_flag else {}
    sources = {"input": list(config.input)} if own else {}
    show("prepare", name, *(["--input", *config.input] if own else []), **data)
    with quiet():
        dataset = api.prepare(name, **sources, **data)
    characters = dataset.tokenizer.vocab_size
    total = sum(map(len, dataset.splits.values()))
    print(f"{total:,} characters, {characters} different ones; the last tenth is kept to measure the model")

    settings: dict[str, Any] = {"dataset": name} if own or budget else {}
    settings |= {"budget": budget} if budget else {"device": "cpu"}
    settings |= data | ({} if str(out) == "out" else {"out_dir": out})
    if not budget and config.max_iters != QuickstartConfig.max_iters:
        settings["max_iters"] = config.max_iters
    settings |= {"init_from": "auto"} if resumed else {}
    files = [] if budget else [CONFIG]
    show("train", *files, **settings)
    run = train(out, files, settings)

    untrained = next(iter(run.entries("sample")), {"prompt": "\n", "text": ""})
    show_text("before", untrained["text"])
    show_text("after, with the same random numbers", run.load().generate(untrained["prompt"], SHOWN))
    with quiet():
        measured = api.evaluate(run)
    loss = measured["loss"]
    baselines = measured["baselines"]
    first = next((entry["val_loss"] for entry in run.entries("eval")), math.log(characters))
    trigram = math.exp(baselines["trigram"])
    table = f"; a table of letter triples, between {trigram:.0f}" if trigram < characters else ""
    print(f"""
The loss on text that the model has not seen was {first:.2f} at first, and is {loss:.2f}: on average the model hesitates
between {math.exp(loss):.0f} characters. A blind guess hesitates between {characters}{table}.""")
    if loss > min(baselines[name] for name in ("uniform", "unigram", "bigram")):
        print("So it predicts no better than simple counting: it needs a longer training, in another --out_dir.")

    show("report", out, *data_flag)
    show_page(run, out / "report.html", config.open)
    start = [] if own else ["--start", "ROMEO:"]
    print(f"\nnext: {suggest.command('sample', out, *start)}")
    return 0


def name_of(path: str) -> str:
    """Return the name of the dataset of one's own text: `notes.txt` becomes my-notes, so that two texts have two."""
    stem = re.sub(r"[^\w.-]+", "-", Path(path).stem).strip("-.").removeprefix("my-")[:50]
    return f"my-{stem}" if stem else "mine"


def show(command: str, *arguments: str | Path, **flags: object) -> None:
    """Print a command that is run, as one would type it."""
    line = suggest.command(command, *arguments, *(suggest.flag(key, value) for key, value in flags.items()))
    print(f"\n$ {line}", flush=True)


def show_text(title: str, text: str, file: TextIO | None = None) -> None:
    lines = [f"  | {terminal.without_control(line)}" for line in text.splitlines()]
    print(f"\n{title}:", *lines, sep="\n", file=file, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what a command prints for those who know it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def train(out: Path, files: list[str], settings: dict[str, Any]) -> api.Run:
    """Train, with the untrained model's text first, and then a bar with the validation loss and the newest text."""
    stdout = sys.stdout
    bar = terminal.progress(total=None, bar_format=BAR, dynamic_ncols=True)

    def follow(entry: dict[str, Any]) -> None:
        if bar.total is None:
            bar.total = read_config(out / "config.yaml").get("max_iters")
        bar.update(entry["step"] - bar.n)
        if entry["kind"] == "eval":
            bar.set_description(f"validation loss {entry['val_loss']:.2f}")
        if entry["kind"] == "sample":
            bar.set_postfix_str(terminal.escaped(terminal.one_line(entry["text"])))
            if entry["step"] == 0:
                show_text("untrained, it writes", entry["text"], stdout)

    try:
        with bar, quiet():
            return api.train(*files, callback=follow, **settings)
    except (KeyboardInterrupt, SystemExit):
        if (out / "last.pt").exists():
            print(f"stopped; the state is saved in {out}/last.pt, and the same command continues")
        raise


def show_page(run: api.Run, page: Path, may_open: bool) -> None:
    """Write the page of the run, say where it is, and open it where there is a screen."""
    try:
        with quiet():
            run.report()
    except TinyGPTError as error:
        print(f"no page: {error.message}; {error.hint}")
        return
    print(f"{page}: the model to try, and to look into, in any browser")
    window = os.name == "nt" or sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if may_open and sys.stdout.isatty() and window and "SSH_CONNECTION" not in os.environ:
        webbrowser.open(page.absolute().as_uri())
