"""Mistakes on the real command line: a message that names the cause, a hint, exit status 2, and nothing written."""

import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import TINY_TRAIN, Result, cli, cli_here, listing

from tinygpt.checkpoint import store as checkpoint
from tinygpt.files import folder_lock


@dataclass
class Mistake:
    """A command line with a mistake, the preparation `set_up` of the folder, and the expected message."""

    args: list[str]
    says: str  # a pattern for the message
    hint: str  # a pattern for the hint
    set_up: Callable[[Path], object] = lambda work: None


Run = Callable[..., Result]


def mine(*more: str) -> list[str]:
    return ["prepare", "mine", "--input=input.txt", *more]


def text(content: bytes) -> Callable[[Path], object]:
    return lambda work: (work / "input.txt").write_bytes(content)


def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change the content of a file."""
    return lambda work: (work / name).write_bytes(how((work / name).read_bytes()))


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def config(name: str, content: str) -> Callable[[Path], object]:
    return lambda work: (work / name).write_text(content)


def state(change: Callable[[dict], object], name: str = "ckpt.pt") -> Callable[[Path], object]:
    """Write a checkpoint of out/ again, complete and sealed, with other content."""

    def set_up(work: Path) -> None:
        content = torch.load(work / "out" / name, weights_only=True)
        change(content)
        with open(work / "out" / name, "w+b") as file:
            torch.save(content, file)
            checkpoint._seal(file)

    return set_up


def without_line_ends(work: Path) -> None:
    """a.txt and b.txt, and a model in words/ that knows a and b."""
    for name in "ab":
        (work / f"{name}.txt").write_text("ab" * 99)
    assert cli_here("prepare", "ab", "--input=a.txt", cwd=work).status == 0
    assert cli_here(*TINY_TRAIN, "--dataset=ab", "--out_dir=words", "--max_iters=0", cwd=work).status == 0


class Canary:
    """Unpickling this writes the file `executed`."""

    def __reduce__(self) -> tuple:
        return (os.system, ("touch executed",))


def only_pickle(work: Path) -> None:
    (work / "data/old").mkdir()
    (work / "data/old/meta.pkl").write_bytes(pickle.dumps(Canary()))


def other_vocabulary(work: Path) -> None:
    (work / "input.txt").write_text("0123456789\n" * 200)
    shutil.rmtree(work / "data/tiny")
    assert cli_here("prepare", "tiny", "--input=input.txt", cwd=work).status == 0


def other_text(work: Path) -> None:
    (work / "input.txt").write_text((work / "text.txt").read_text().upper() + (work / "text.txt").read_text())
    symbols = set((work / "text.txt").read_text())
    (work / "input.txt").write_text("".join(c for c in (work / "input.txt").read_text() if c in symbols))
    assert cli_here("prepare", "tiny", "--input=input.txt", cwd=work).status == 0


SAMPLE = ["sample", "--max_new_tokens=5"]
RESUME = [*TINY_TRAIN, "--init_from=resume", "--max_iters=25"]
SHORT = [*TINY_TRAIN, "--dataset=short"]


def short(work: Path) -> None:
    (work / "input.txt").write_text("abcdefghij" * 10)
    assert cli_here("prepare", "short", "--input=input.txt", cwd=work).status == 0


MISTAKES = {
    # ---- the text -----------------------------------------------------------------------------------------------
    "no such text": Mistake(mine(), r"input\.txt: no such file", r"--input"),
    "empty text": Mistake(mine(), r"input\.txt: empty", r"--input", text(b"")),
    "only a byte-order mark": Mistake(mine(), r"input\.txt: empty", r"--input", text(b"\xef\xbb\xbf")),
    "folder without text": Mistake(
        ["prepare", "mine", "--input=folder"],
        r"folder: a folder without any \*\.txt file",
        r"'\*\.md'",
        lambda work: (work / "folder").mkdir(),
    ),
    "binary": Mistake(
        mine(), r"input\.txt: is binary, not text \(a NUL at offset 5\)", r"plain text", text(b"hello\0you")
    ),
    "not UTF-8": Mistake(
        mine(),
        r"input\.txt: byte 0x92 at offset 7047 is not UTF-8",
        r"--encoding cp1252",
        text(b"don't " * 1174 + b"don\x92t"),
    ),
    "cut inside a character": Mistake(
        mine(), r"byte 0xc3 at offset 4 is not UTF-8", r"--encoding cp1252", text("fiancé".encode()[:4] + b"\xc3")
    ),
    "UTF-16": Mistake(mine(), r"input\.txt: is UTF-16 text", r"--encoding utf-16", text("hello".encode("utf-16"))),
    "UTF-16 without a mark": Mistake(mine(), r"binary", r"--encoding utf-16", text("hello".encode("utf-16-le"))),
    "no such encoding": Mistake(mine("--encoding=klingon"), r"klingon: no such encoding", r"cp1252", text(b"abc")),
    "an encoding that is none": Mistake(
        mine("--encoding=base64"), r"base64: no such encoding", r"cp1252", text(b"abc")
    ),
    "one distinct character": Mistake(
        mine(), r"input\.txt: one distinct character \('a'\), so there is nothing to learn", r"text", text(b"aaaaaaaa")
    ),
    "one character": Mistake(mine(), r"one distinct character", r"text", text(b"a")),
    "more symbols than uint16": Mistake(
        mine(),
        r"70,000 different characters exceed the 65,536 ids of uint16",
        r"--tokenizer gpt2",
        text("".join(map(chr, range(0x10000, 0x10000 + 70_000))).encode()),
    ),
    "no training text": Mistake(
        mine("--val_fraction=0.9"),
        r"2 characters are too few for a training and a validation split with val_fraction 0\.9",
        r"text",
        text(b"ab"),
    ),
    "no input": Mistake(
        ["prepare", "mine"], r"'mine' is not a built-in corpus or task .*--input", r"tinygpt prepare mine --input"
    ),
    "input for a built-in corpus": Mistake(
        ["prepare", "shakespeare_char", "--input=text.txt"], r"shakespeare_char is a built-in corpus", r"another name"
    ),
    "source for own text": Mistake(["prepare", "mine", "--source=text.txt"], r"--source", r"--input text\.txt"),
    "val_fraction out of range": Mistake(mine("--val_fraction=1.5"), r"val_fraction is 1\.5", r"--help", text(b"abc")),
    "data_dir is a file": Mistake(
        mine("--data_dir=text.txt"),
        r"text\.txt/mine: cannot be written: not a directory",
        r"another folder",
        text(b"abc"),
    ),
    # ---- the dataset --------------------------------------------------------------------------------------------
    "dataset not prepared": Mistake(
        [*TINY_TRAIN, "--dataset=shakespeare_char"],
        r"dataset 'shakespeare_char' is not prepared",
        r"tinygpt prepare shakespeare_char$",
    ),
    "own dataset not prepared": Mistake(
        [*TINY_TRAIN, "--dataset=mine"], r"dataset 'mine' is not prepared", r"tinygpt prepare mine --input YOUR_TEXT$"
    ),
    "only a meta.pkl": Mistake(
        [*TINY_TRAIN, "--dataset=old"],
        r"meta\.pkl.*refused: a pickle can run code",
        r"tinygpt prepare old",
        only_pickle,
    ),
    "odd-sized": Mistake(
        TINY_TRAIN,
        r"train\.bin: has [\d,]+ bytes, which is not a whole number",
        r"re-run tinygpt prepare tiny",
        change("data/tiny/train.bin", lambda data: data[:-1]),
    ),
    "empty split": Mistake(
        TINY_TRAIN, r"val\.bin: empty", r"re-run tinygpt prepare tiny", change("data/tiny/val.bin", lambda data: b"")
    ),
    "missing split": Mistake(
        TINY_TRAIN,
        r"val\.bin: no such file",
        r"re-run tinygpt prepare tiny",
        lambda work: (work / "data/tiny/val.bin").unlink(),
    ),
    "changed split": Mistake(
        TINY_TRAIN,
        r"train\.bin: .*changed since",
        r"re-run tinygpt prepare tiny",
        change("data/tiny/train.bin", lambda data: data[2:] + data[:2]),
    ),
    "token outside the vocabulary": Mistake(
        TINY_TRAIN,
        r"train\.bin: token 999 at position 1,000 is outside the vocabulary of \d+ tokens",
        r"re-run tinygpt prepare tiny",
        change("data/tiny/train.bin", lambda data: data[:2000] + b"\xe7\x03" + data[2002:]),
    ),
    "damaged meta.json": Mistake(
        TINY_TRAIN,
        r"meta\.json: damaged",
        r"re-run tinygpt prepare tiny",
        change("data/tiny/meta.json", lambda data: data[:100]),
    ),
    "newer meta.json": Mistake(
        TINY_TRAIN,
        r"meta\.json: format 99 is newer",
        r"upgrade",
        change("data/tiny/meta.json", lambda data: data.replace(b'"format": 1', b'"format": 99')),
    ),
    "foreign tokenizer": Mistake(
        TINY_TRAIN,
        r"meta\.json: contains a tokenizer that tinygpt",
        r"re-run tinygpt prepare",
        change("data/tiny/meta.json", lambda data: data.replace(b'"char"', b'"runes"')),
    ),
    "shorter than a block": Mistake(
        [*SHORT, "--block_size=64"],
        r"val has 10 tokens; block_size 64 needs 65",
        r"--block_size=9 or less, or prepare more text",
        short,
    ),
    "dataset name leaves data/": Mistake(
        [*TINY_TRAIN, "--dataset=../tiny"], r"dataset name '\.\./tiny' must be letters", r"--help"
    ),
    "dataset name is a path": Mistake([*TINY_TRAIN, "--dataset=/etc"], r"dataset name '/etc'", r"--help"),
    "prepare outside data/": Mistake(
        ["prepare", "../mine", "--input=text.txt"], r"dataset name '\.\./mine'", r"--help"
    ),
    "prepare an absolute path": Mistake(
        ["prepare", "/tmp/mine", "--input=text.txt"], r"dataset name '/tmp/mine'", r"--help"
    ),
    "evaluate outside data/": Mistake(["eval", "--dataset=.."], r"dataset name '\.\.'", r"--help"),
    # ---- the checkpoint -----------------------------------------------------------------------------------------
    "no checkpoint": Mistake([*SAMPLE, "--ckpt=nothing/ckpt.pt"], r"nothing/ckpt\.pt: no such file", r"tinygpt train"),
    "no checkpoint, a neighbour": Mistake(
        SAMPLE, r"out/ckpt\.pt: no such file", r"out/last\.pt is intact", lambda work: (work / "out/ckpt.pt").unlink()
    ),
    "truncated": Mistake(
        SAMPLE,
        r"out/ckpt\.pt: damaged \(.*truncated",
        r"out/last\.pt is intact",
        change("out/ckpt.pt", lambda data: data[: len(data) // 2]),
    ),
    "empty checkpoint": Mistake(
        SAMPLE,
        r"out/ckpt\.pt: damaged \(it is empty",
        r"out/last\.pt is intact",
        change("out/ckpt.pt", lambda data: b""),
    ),
    "bit-flipped": Mistake(
        SAMPLE,
        r"out/ckpt\.pt: damaged \(its checksum does not match",
        r"out/last\.pt is intact",
        change("out/ckpt.pt", flip(9000)),
    ),
    "a name that is not a checkpoint's": Mistake(
        [*SAMPLE, "--ckpt=out/nothing"], r"nothing: no such file", r"tinygpt train"
    ),
    "an imported model would be overwritten": Mistake(
        TINY_TRAIN,
        r"out/ckpt\.pt would be overwritten, and no config\.yaml",
        r"--out_dir=out-new",
        lambda work: [(work / "out" / name).unlink() for name in ("config.yaml", "last.pt")],
    ),
    "no progress": Mistake(
        RESUME,
        r"does not say how far",
        r"--init_from=out/last\.pt --out_dir=out-new",
        state(lambda content: content["training"].pop("progress"), "last.pt"),
    ),
    "progress that is text": Mistake(
        RESUME,
        r"does not say how far",
        r"--init_from=out/last\.pt --out_dir=out-new",
        state(lambda content: content["training"]["progress"].update(step="9"), "last.pt"),
    ),
    "foreign file": Mistake([*SAMPLE, "--ckpt=text.txt"], r"text\.txt: not a checkpoint", r"train"),
    "foreign archive": Mistake(
        [*SAMPLE, "--ckpt=other.zip"],
        r"other\.zip: (damaged|not a checkpoint)",
        r"train",
        lambda work: zipfile.ZipFile(work / "other.zip", "w").writestr("a", "b"),
    ),
    "foreign state": Mistake(
        SAMPLE,
        r"ckpt\.pt: not a checkpoint of tinygpt or nanoGPT",
        r"out/last\.pt is intact",
        state(lambda content: content.pop("model")),
    ),
    "newer checkpoint": Mistake(
        SAMPLE, r"ckpt\.pt: format 99 is newer", r"upgrade", state(lambda content: content.update(tinygpt_format=99))
    ),
    "pickled code": Mistake(
        SAMPLE,
        r"ckpt\.pt: holds more than tensors and plain values; refused",
        r"weights only",
        state(lambda content: content.update(config=Canary())),
    ),
    "unknown character": Mistake(
        [*SAMPLE, "--start=the é"],
        r"'é' \(U\+00E9, position 4\) is not in this model's \d+-character vocabulary",
        r"--skip_unknown",
    ),
    "nothing but unknown characters": Mistake([*SAMPLE, "--start=é", "--skip_unknown"], r"prompt is empty", r"--start"),
    "no prompt file": Mistake([*SAMPLE, "--start=FILE:prompt.txt"], r"prompt\.txt: no such file", r"FILE:"),
    "another vocabulary on resuming": Mistake(
        RESUME,
        r"dataset 'tiny' and out/last\.pt have different vocabularies \([0-9a-f]{12} and [0-9a-f]{12}\)",
        r"--init_from=scratch",
        other_vocabulary,
    ),
    "another vocabulary in eval": Mistake(
        ["eval"],
        r"different vocabularies \([0-9a-f]{12} and [0-9a-f]{12}\): only the dataset has '",
        r"dataset",
        other_vocabulary,
    ),
    "another text on resuming": Mistake(
        RESUME, r"dataset 'tiny' has been prepared from different text", r"--init_from", other_text
    ),
    "another width on resuming": Mistake(
        [*RESUME, "--n_embd=32"], r"n_embd is 32 here and 16 in the checkpoint", r"drop n_embd"
    ),
    "nothing to resume": Mistake(
        [*RESUME, "--out_dir=new"], r"new has no run to resume \(no last\.pt\)", r"--out_dir=FOLDER of the run"
    ),
    "an imported model is not a run": Mistake(
        RESUME,
        r"out has no run to resume",
        r"--init_from=out/ckpt\.pt --out_dir=out-new",
        lambda work: (work / "out/last.pt").unlink(),
    ),
    "fewer iterations than the run has done": Mistake(
        [*RESUME[:-1], "--max_iters=7"],
        r"the run has done 20 iterations, so max_iters=7 leaves nothing",
        r"--max_iters=40",
    ),
    "settings that no run has": Mistake(
        ["train", "--init_from=resume"],
        r"out/last\.pt has settings that cannot be used: batch_size is 0, but must be at least 1",
        r"--init_from=out/last\.pt --out_dir=out-new",
        state(lambda content: content["config"].update(batch_size=0), "last.pt"),
    ),
    "a negative step": Mistake(
        RESUME,
        r"out/last\.pt does not say how far its run was",
        r"--init_from=out/last\.pt",
        state(lambda content: content["training"]["progress"].update(step=-5), "last.pt"),
    ),
    "a config as a flag": Mistake(
        ["train", "--config", "a.yaml"], r"--config: is an argument without a flag", r"tinygpt train CONFIG"
    ),
    "a checkpoint for a command that takes folders": Mistake(
        ["report", "--ckpt=out"], r"takes the folder without a flag", r"tinygpt report out"
    ),
    "an ASCII character that a model's tokenizer does not know": Mistake(
        mine("--tokenizer=out"),
        r"the text has 'Q' \(U\+0051\) and 1 other character, not in the vocabulary of out$",
        r"drop --tokenizer",
        text(b"The king of Q and Z. " * 9),
    ),
    "a line end that a model's tokenizer does not know": Mistake(
        ["prepare", "mine", "--input", "a.txt", "b.txt", "--tokenizer=words"],
        r"'\\n' \(U\+000A\), not in the vocabulary of words \(each file begins on a new line\)",
        r"drop --tokenizer",
        without_line_ends,
    ),
    # ---- configuration ------------------------------------------------------------------------------------------
    "unknown key in a flag": Mistake(
        ["train", "--lerning_rate=1e-3"], r"--lerning_rate: no such key", r"^--learning_rate=VALUE$"
    ),
    "unknown key in a file": Mistake(
        ["train", "mine.yaml"],
        r"mine\.yaml: lerning_rate: no such key",
        r"^learning_rate: VALUE$",
        config("mine.yaml", "lerning_rate: 1e-3\n"),
    ),
    "a key like no other": Mistake(["train", "--xyzzy=1"], r"--xyzzy: no such key", r"^tinygpt train --help$"),
    "a key like no other in a file": Mistake(
        ["finetune", "mine.yaml"],
        r"mine\.yaml: xyzzy: no such key",
        r"^tinygpt finetune --help$",
        config("mine.yaml", "xyzzy: 1\n"),
    ),
    "not a number in a file": Mistake(
        ["train", "mine.yaml"], r"learning_rate.*1e-x", r"--help", config("mine.yaml", "learning_rate: 1e-x\n")
    ),
    "not a number in a flag": Mistake(["train", "--max_iters=many"], r"max_iters.*many", r"--help"),
    "not one of the choices": Mistake(
        ["train", "--norm=batchnorm"], r"--norm: 'batchnorm' is not one of layernorm, rmsnorm", r"--help"
    ),
    "a list for a value": Mistake(
        ["train", "mine.yaml"],
        r"mine\.yaml: n_layer: needs one plain value, not list",
        r"n_layer: 1",
        config("mine.yaml", "n_layer: [1, 2]\n"),
    ),
    "YAML that builds objects": Mistake(
        ["train", "mine.yaml"],
        r"mine\.yaml, line 2: .*python/object",
        r"plain values",
        config("mine.yaml", "n_layer: 2\nout_dir: !!python/object/apply:os.system ['touch executed']\n"),
    ),
    "YAML cut short": Mistake(
        ["train", "mine.yaml"], r"mine\.yaml, line 2", r"key: value", config("mine.yaml", "a: [1,\n")
    ),
    "YAML that is a list": Mistake(
        ["train", "mine.yaml"], r"mine\.yaml: not a mapping", r"key: value", config("mine.yaml", "- 1\n")
    ),
    "a key twice": Mistake(
        ["train", "mine.yaml"],
        r"mine\.yaml: seed is set twice",
        r"one of the two",
        config("mine.yaml", "seed: 1\nseed: 2\n"),
    ),
    "Python to execute": Mistake(
        ["train", "mine.py"],
        r"mine\.py, line 3: `os\.system\('touch executed'\)`: would need to be executed",
        r"`key: value`",
        config("mine.py", "seed = 1\n\nos.system('touch executed')\n"),
    ),
    "Python that is none": Mistake(
        ["train", "mine.py"], r"mine\.py, line 1: not Python", r"YAML", config("mine.py", "seed: = 1\n")
    ),
    "no such config": Mistake(
        ["train", "configs/shakespear_char.yaml"], r"no such config file", r"^configs/shakespeare_char\.yaml$"
    ),
    "config is binary": Mistake(
        ["train", "mine.yaml"],
        r"mine\.yaml: not UTF-8 text",
        r"YAML",
        lambda work: (work / "mine.yaml").write_bytes(b"\xff\x00\xfe"),
    ),
    "config is a folder": Mistake(["train", "data"], r"data: no such config file", r"^choose one of .*\.yaml"),
    "neither a config nor a dataset": Mistake(
        ["train", "--device=cpu"],
        r"no config was given, and the default dataset 'openwebtext' is not prepared",
        r"^tinygpt train configs/shakespeare_char\.yaml --device=cpu$",
    ),
    "neither a config nor a dataset to plan": Mistake(
        ["plan", "--data_dir=my data"],
        r"no config was given",
        r"^tinygpt plan configs/shakespeare_char\.yaml '--data_dir=my data'$",
    ),
    "the default dataset is asked for": Mistake(
        ["train", "--dataset=openwebtext"],
        r"dataset 'openwebtext' is not prepared",
        r"^tinygpt prepare openwebtext --input YOUR_TEXT$",
    ),
    "a config without a dataset": Mistake(
        ["train", "mine.yaml"],
        r"dataset 'openwebtext' is not prepared",
        r"^tinygpt prepare openwebtext",
        config("mine.yaml", "n_layer: 2\n"),
    ),
    "heads do not divide the width": Mistake(
        ["train", "--n_head=5", "--n_embd=128"], r"n_head 5 does not divide n_embd 128", r"--help"
    ),
    "negative sizes": Mistake(["train", "--n_layer=-1"], r"n_layer is -1, but must be at least 1", r"--help"),
    "rates out of range": Mistake(
        ["train", "--learning_rate=-1", "--dropout=1.0", "--beta2=2"],
        r"dropout is 1\.0, .* below 1; learning_rate is -1\.0, .* at least 0; beta2 is 2\.0, .* below 1$",
        r"--help",
    ),
    "all problems at once": Mistake(
        ["train", "mine.yaml", "--batch_size=0"],
        r"batch_size is 0, .*; n_layer is 0, .*; n_head 3 does not divide n_embd 10",
        r"--help",
        config("mine.yaml", "n_layer: 0\nn_head: 3\nn_embd: 10\n"),
    ),
    "beyond 64 bits": Mistake(
        [*TINY_TRAIN, "--eval_iters=4000000000000000000"], r"eval_iters is 4000000000000000000, .* below", r"--help"
    ),
    "more tokens than 64 bits count": Mistake(
        [*TINY_TRAIN, "--eval_iters=1000000000000000"], r"eval_iters x batch_size x block_size is 64,000,0", r"--help"
    ),
    "not a number": Mistake(["train", "--learning_rate=nan"], r"learning_rate is nan", r"--help"),
    "a picture of predicted labels": Mistake(
        ["eval", "--predict=text.txt", "--plot=x.png"], r"plot \(the confusion matrix\) cannot", r"--help"
    ),
    "labels without a file to label": Mistake(
        ["eval", "--output=x.png"], r"output \(the file of labels\) needs predict", r"--help"
    ),
    "a split of labels to predict": Mistake(
        ["eval", "--predict=text.txt", "--split=val"], r"split, positive and miss_cost are for an evaluation", r"--help"
    ),
    "a split of plain text": Mistake(
        ["eval", "--split=val"],
        r"--split is for a task, but the loss of 'tiny' is measured on the complete validation split",
        r"^drop --split$",
    ),
    "two datasets": Mistake(
        ["eval", "--dataset=tiny", "--task=transactions"],
        r"--task=transactions and --dataset=tiny are two datasets",
        r"^give one of them$",
    ),
    "two schedules": Mistake(
        ["train", "--lr_schedule=linear", "--decay_lr=False"],
        r"decay_lr=False means lr_schedule=constant, and cannot be used with lr_schedule=linear",
        r"--help",
    ),
    "a schedule for a file without decay": Mistake(
        ["train", "mine.py", "--lr_schedule=cosine"],
        r"decay_lr=False means lr_schedule=constant, and cannot be used with lr_schedule=cosine",
        r"--help",
        config("mine.py", "decay_lr = False\n"),
    ),
    "top_p out of range": Mistake(["sample", "--top_p=0"], r"top_p is 0\.0", r"--help"),
    # ---- the command line ---------------------------------------------------------------------------------------
    "no such command": Mistake(["trian"], r"trian: no such command", r"tinygpt train"),
    "no such shell": Mistake(["--tyro-print-completion", "foo"], r"foo: no such shell", r"print-completion bash"),
    "no shell": Mistake(["--tyro-print-completion"], r"needs a shell", r"print-completion bash"),
    "an option with one hyphen": Mistake(["train", "-x"], r"-x: no such option", r"--help"),
    "missing value": Mistake(["train", "--max_iters"], r"--max_iters needs a value", r"--max_iters=VALUE"),
    "a model without --ckpt": Mistake(["sample", "my out"], r"my out: unexpected argument", r"^--ckpt 'my out'$"),
    "a model without --ckpt to eval": Mistake(["eval", "out"], r"out: unexpected argument", r"^--ckpt out$"),
    "a model without --ckpt to serve": Mistake(["serve", "out"], r"out: unexpected argument", r"^--ckpt out$"),
    "an argument after --ckpt": Mistake(
        ["sample", "--ckpt=out", "ROMEO:"], r"ROMEO:: unexpected argument", r"^tinygpt sample --help$"
    ),
    "help for no such command": Mistake(["help", "trian"], r"trian: no such command", r"tinygpt train"),
    "missing name": Mistake(["prepare"], r"needs NAME", r"--help"),
    "one name too many": Mistake(["prepare", "mine", "yours", "--input=text.txt"], r"yours", r"--help"),
    # ---- the machine --------------------------------------------------------------------------------------------
    "no such device": Mistake([*TINY_TRAIN, "--device=tpu"], r"--device=tpu: no such device", r"cuda"),
    "out_dir is a file": Mistake(
        [*TINY_TRAIN, "--out_dir=text.txt"], r"text\.txt: cannot be written: file exists", r"another folder"
    ),
    "no metrics to plot": Mistake(["plot", "data"], r"data/metrics\.jsonl: no such file", r"folder of a run"),
}


def complaint(result: Result) -> tuple[str, str]:
    """Message and hint of an error. Fails for anything but exactly these two lines."""
    print(result)
    assert result.status == 2
    found = re.fullmatch(r"error: ([^\n]+)\n(?:  try: ([^\n]+)\n)?", result.err)
    assert found, result.err
    assert result.out == ""
    return found[1], found[2] or ""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence_and_the_way_out(name: str, run_copy: Path, cli_forked: Run) -> None:
    mistake = MISTAKES[name]
    mistake.set_up(run_copy)
    before = listing(run_copy)
    sentence, hint = complaint(cli_forked(*mistake.args, cwd=run_copy))
    assert re.search(mistake.says, sentence)
    assert re.search(mistake.hint, hint)
    assert listing(run_copy) == before


@pytest.mark.parametrize("name", ["not UTF-8", "changed split", "bit-flipped", "unknown key in a flag"])
def test_a_process_of_its_own_says_the_same(name: str, run_copy: Path, cli_forked: Run) -> None:
    """The commands of the table above run in forked processes; this one starts a new interpreter."""
    MISTAKES[name].set_up(run_copy)
    assert cli(*MISTAKES[name].args, cwd=run_copy) == cli_forked(*MISTAKES[name].args, cwd=run_copy)


def test_a_checkpoint_that_is_a_link(run_copy: Path, cli_forked: Run) -> None:
    (run_copy / "out/ckpt.pt").rename(run_copy / "elsewhere.pt")
    (run_copy / "out/ckpt.pt").symlink_to("../elsewhere.pt")
    before = listing(run_copy)
    sentence, hint = complaint(cli_forked(*TINY_TRAIN, cwd=run_copy))
    assert "out/ckpt.pt is a link to ../elsewhere.pt" in sentence and "another folder" in hint
    assert listing(run_copy) == before


def test_a_folder_in_use_names_the_process_that_has_it(run_copy: Path) -> None:
    with folder_lock(run_copy / "out", "run"), folder_lock(run_copy / "data/tiny", "dataset"):
        before = listing(run_copy)
        for folder, args in (("out", TINY_TRAIN), ("data/tiny", ["prepare", "tiny", "--input=text.txt"])):
            sentence, hint = complaint(cli(*args, cwd=run_copy))
            assert re.search(rf"{folder} is in use by process {os.getpid()}", sentence)
            assert "another folder" in hint
        assert listing(run_copy) == before


def test_a_folder_that_cannot_be_written(run_copy: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (run_copy / "out").chmod(0o500)
    sentence, hint = complaint(cli(*TINY_TRAIN, cwd=run_copy))
    assert "out: cannot be written: permission denied" in sentence and "another folder" in hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run_copy: Path) -> None:
    before = listing(run_copy)
    sentence, hint = complaint(cli(*TINY_TRAIN, "--device=cuda", cwd=run_copy))
    assert "--device=cuda: PyTorch sees no GPU here" in sentence and hint == "--device=cpu"
    assert listing(run_copy) == before


def test_a_loss_that_is_not_finite(run_copy: Path, cli_forked: Run) -> None:
    """A failure while running, not a mistake: status 1; what was saved before is intact."""
    result = cli_forked(*TINY_TRAIN, "--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0", cwd=run_copy)
    assert result.status == 1
    assert re.match(
        r"error: iteration \d+: the loss is NaN or infinite; training has stopped\n  try: out/last.pt was", result.err
    )
    assert "lower learning_rate" in result.err and "Traceback" not in result.err
    weights = checkpoint.load(run_copy / "out/last.pt").model
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("size", ["--batch_size=100000000000000", "--n_embd=20000000000"])
def test_more_memory_than_any_machine_has(size: str, run_copy: Path, cli_forked: Run) -> None:
    result = cli_forked(*TINY_TRAIN, size, cwd=run_copy)
    assert result.status == 1
    assert re.fullmatch(r"error: out of memory on cpu with [^\n]*\n  try: [^\n]*--batch_size=[^\n]*\n", result.err)


def test_what_looks_like_a_mistake_and_is_none(run_copy: Path, cli_forked: Run) -> None:
    """1e-4 is text to PyYAML; a prompt may be freed of unknown characters; a hyphen is as good as an underscore."""
    (run_copy / "mine.yaml").write_text("learning_rate: 1e-4\nout_dir: new\n")
    result = cli_forked(*TINY_TRAIN[:-4], "mine.yaml", "--max-iters=1", "--eval-iters", "1", cwd=run_copy)
    assert (result.status, result.err) == (0, "")
    assert (run_copy / "new/ckpt.pt").exists()
    result = cli_forked(*SAMPLE, "--start=thé ", "--skip_unknown", cwd=run_copy)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("th ")


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's error has no file name, like an error of standard output."""
    (tmp_path / "my_gpt.py").write_text("class CharTokenizer:\n    pass\n")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    for command in (["exercise", "check", "1"], ["check", "--resume", "configs/shakespeare_char.yaml"]):
        result = cli_here(*command, cwd=tmp_path)
        assert result.status == 1 and len(result.err.splitlines()) == 1, result.err
        assert result.err.startswith("error: No usable temporary directory found")


def test_a_lab_looks_for_its_packages_before_the_first_stage(tmp_path: Path) -> None:
    """matplotlib raises OSError where it finds no folder for its cache."""
    (tmp_path / "packages/matplotlib").mkdir(parents=True)
    (tmp_path / "packages/matplotlib/__init__.py").write_text("raise OSError('Matplotlib needs a cache')\n")
    (tmp_path / "work").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'packages')!r}); from tinygpt.cli import main; "
    code += "sys.exit(main(['lab', 'canary', '--quick']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "work", capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: Matplotlib needs a cache\n", done.stderr
    assert not list((tmp_path / "work").iterdir())
