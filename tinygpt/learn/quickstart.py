"""`tinygpt quickstart`: run prepare, train and sample on Tiny Shakespeare or on one's own text, and explain each.

tinygpt quickstart
tinygpt quickstart notes.txt --budget=10m
tinygpt quickstart --out_dir=out-first --max_iters=500      # another folder; a shorter training
"""

import math
import re
from pathlib import Path
from typing import Any

from tinygpt import api
from tinygpt.base.configs import suggest
from tinygpt.base.configs.learn import QuickstartConfig
from tinygpt.base.errors import TinyGPTError

CONFIG = "configs/shakespeare_char.yaml"

START = """\
This runs the three commands of tinygpt for you, one after the other. Each prints the next command, which you would type
yourself."""

PREPARE = """\
A model computes with numbers, so the text is turned into numbers first. Here each character is one token, and the
vocabulary is the list of characters that occur. The last tenth of the text is the validation split: the model is
measured on it and never trained on it."""

TRAIN = """\
A GPT{size} learns to predict the next character. In each iteration it sees some 2,000 characters, compares its
predictions with the characters that follow, and changes its parameters a little. The loss measures how wrong the
predictions are: {uniform:.2f} if all {characters} characters are equally probable. Before training it is slightly
higher. This takes {time}. Ctrl-C stops and saves; the same quickstart command then continues."""

SAMPLE = """\
The model gives each character a probability of being the next one. One character is drawn at random according to these
probabilities and appended to the text. This is repeated 500 times."""

LOSS = """
How to read the result: the validation loss is {loss} nats per character. e^{loss} = {perplexity}, so the model is on
average as uncertain as if it chose between {perplexity} equally probable characters. Before training it was about
{characters}."""

END = """
That was your own model. {learned}

  {data}/   the text as token ids, and the vocabulary (meta.json)
  {out}/ckpt.pt   the model; metrics.jsonl: its losses; config.yaml: its settings

try: {prompt}
try: {doctor}
try: {evaluate}
try: {report}
try: {own}"""


LEARNED = (
    "From one megabyte of text it has learned names and the form of a play. Most words that it writes exist, but it "
    "does not know what they mean."
)
OWN = "It has learned how your text looks. It does not know what the words mean."
NOT_YET = (
    "It has hardly learned anything yet: train it longer, for example with another --out_dir and "
    f"--max_iters={QuickstartConfig.max_iters}."
)


def quickstart(config: QuickstartConfig) -> int:
    """Run prepare, train and sample; return the exit status.

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
    print(START)
    data = {"data_dir": config.data_dir} if data_flag else {}
    sources = {"input": list(config.input)} if own else {}
    files = ["--input", *config.input] if own else []
    announce("1 of 3: prepare, from text to tokens", PREPARE, "prepare", name, *files, **data)
    dataset = api.prepare(name, **sources, **data)

    characters = dataset.tokenizer.vocab_size
    budget = config.budget or ("5m" if own and "max_iters" not in config.given else "")
    settings: dict[str, Any] = {"dataset": name} if own or budget else {}
    settings |= {"budget": budget} if budget else {"device": "cpu"}
    settings |= data | ({} if str(out) == "out" else {"out_dir": out})
    if not budget and config.max_iters != QuickstartConfig.max_iters:
        settings["max_iters"] = config.max_iters
    settings |= {"init_from": "auto"} if resumed else {}
    time = f"{budget}, or less if the text is short" if budget else "about a minute"
    size = "" if budget else " with about 0.6 million parameters"
    about = TRAIN.format(uniform=math.log(characters), characters=characters, time=time, size=size)
    files = [] if budget else [CONFIG]
    announce("2 of 3: train, from tokens to a model", about, "train", *files, **settings)
    loss = round(api.train(*files, **settings).val_loss, 2)  # as printed below
    print(LOSS.format(loss=f"{loss:.2f}", perplexity=f"{math.exp(loss):.1f}", characters=characters))

    ckpt = ("--ckpt", f"{out}/ckpt.pt")
    announce("3 of 3: sample, from the model to text", SAMPLE, "sample", *ckpt)
    text = api.load(out / "ckpt.pt").generate(stream=True)
    print()  # the prompt
    try:
        for piece in text:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)
    print(
        END.format(
            data=Path(config.data_dir) / name,
            out=out,
            learned=OWN if own else LEARNED if loss < 2.2 else NOT_YET,
            prompt=suggest.command("sample", *ckpt, *([] if own else ["--start", "ROMEO:"]), "--num_samples=3"),
            doctor=suggest.command("doctor", out, *data_flag),
            evaluate=suggest.command("eval", *ckpt, *data_flag),
            report=suggest.command("report", out, *data_flag),
            own=suggest.command("prepare", "mine", "--input", "YOUR_TEXT.txt", *data_flag),
        )
    )
    return 0


def name_of(path: str) -> str:
    """Return the name of the dataset of one's own text: `notes.txt` becomes my-notes, so that two texts have two."""
    stem = re.sub(r"[^\w.-]+", "-", Path(path).stem).strip("-.").removeprefix("my-")[:50]
    return f"my-{stem}" if stem else "mine"


def announce(title: str, text: str, command: str, *arguments: str, **flags: object) -> None:
    line = suggest.command(command, *arguments, *(suggest.flag(key, value) for key, value in flags.items()))
    print(f"\n== {title} ==\n\n{text}\n\n$ {line}", flush=True)
