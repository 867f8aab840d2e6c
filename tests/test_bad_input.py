"""Mistakes on the real command line: a message that names the cause, a hint, exit status 2, and nothing written."""

import json
import os
import pickle
import re
import shlex
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_TRAIN, Result, cli, cli_here, foreign_options, listing, ok

from tinygpt.base.configs import suggest
from tinygpt.base.errors import TinyGPTError, fitting
from tinygpt.base.files import folder_lock
from tinygpt.checkpoint import store as checkpoint


def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change the content of the only file of this name."""
    return lambda work: [path.write_bytes(how(path.read_bytes())) for path in work.rglob(name)]


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


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
    ok(work, "prepare", "ab", "--input=a.txt")
    ok(work, *TINY_TRAIN, "--dataset=ab", "--out_dir=words", "--max_iters=0")


def answers(work: Path) -> None:
    """A model of pairs in colours/, and an adapter of it in lora/."""
    pairs = [{"prompt": f"{n:03}", "response": "red" if n % 2 else "blue"} for n in range(60)]
    (work / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    ok(work, "prepare", "colours", "--input=pairs.jsonl", "--format=pairs")
    ok(work, *TINY_TRAIN, "--dataset=colours", "--out_dir=colours", "--max_iters=2")
    flags = ["--dataset=colours", "--device=cpu", "--compile=False", "--max_iters=2", "--lora_rank=2"]
    ok(work, "finetune", "--ckpt=colours", *flags, "--out_dir=lora")


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
    ok(work, "prepare", "tiny", "--input=input.txt")


def other_text(work: Path) -> None:
    text = (work / "text.txt").read_text()
    symbols = set(text)
    (work / "input.txt").write_text("".join(c for c in text.upper() if c in symbols) + text)
    ok(work, "prepare", "tiny", "--input=input.txt")


def short(work: Path) -> None:
    (work / "input.txt").write_text("abcdefghij" * 10)
    ok(work, "prepare", "short", "--input=input.txt")


def linked(work: Path) -> None:
    (work / "out/ckpt.pt").rename(work / "elsewhere.pt")
    (work / "out/ckpt.pt").symlink_to("../elsewhere.pt")


AGAIN, INTACT = "re-run tinygpt prepare tiny", "out/last.pt is intact"
BRANCH = "--init_from=out/last.pt --out_dir=out-new"
WORDS = {
    "MINE": ["prepare", "mine", "--input=input.txt"],
    "TRAIN": TINY_TRAIN,
    "RESUME": [*TINY_TRAIN, "--init_from=resume", "--max_iters=25"],
    "SAMPLE": ["sample", "--max_new_tokens=5"],
}
# A command (a word of WORDS stands for its beginning), patterns for the message and for the way out, and what to do
# before: a function of the working folder, or the content of the file that the command names.
MISTAKES: list[tuple[Any, ...]] = [
    # ---- the text -----------------------------------------------------------------------------------------------
    ("MINE", "input.txt: no such file", "--input"),
    ("MINE", "input.txt: empty", "--input", b""),
    ("MINE", "input.txt: empty", "--input", b"\xef\xbb\xbf"),
    (
        "prepare mine --input=folder",
        r"folder: a folder without any \*.txt or \*.jsonl or .* file",
        r"'\*.md'",
        lambda work: (work / "folder").mkdir(),
    ),
    ("MINE", r"input.txt: is binary, not text \(a NUL at offset 5\)", "plain text", b"hello\0you"),
    ("MINE --encoding=mac-roman", "is binary", "--encoding=utf-16", "hello".encode("utf-16-le")),
    ("MINE", "input.txt: byte 0x92 at offset 7047 is not UTF-8", "--encoding=cp1252", b"don't " * 1174 + b"don\x92t"),
    ("MINE", "byte 0xc3 at offset 4 is not UTF-8", "--encoding=cp1252", "fiancé".encode()[:4] + b"\xc3"),
    ("MINE", "input.txt: is UTF-16 text", "--encoding=utf-16", "hello".encode("utf-16")),
    ("MINE --encoding=klingon", "klingon: no such encoding", "cp1252", b"abc"),
    ("MINE", r"input.txt: one distinct character \('a'\), so there is nothing to learn", "text", b"aaaaaaaa"),
    (
        "MINE",
        "70,000 different characters exceed the 65,536 ids of uint16",
        "--tokenizer=gpt2",
        "".join(map(chr, range(0x10000, 0x10000 + 70_000))).encode(),
    ),
    (
        "MINE --skip_bad",
        "--skip_bad applies only to your own pairs",
        "^drop --skip_bad, or add --format pairs$",
        b"abc",
    ),
    ("prepare transactions --skip_bad", "--skip_bad applies only to your own pairs", "^drop --skip_bad$"),
    ("MINE --test_fraction=0.2", "--test_fraction applies only to your own pairs", "^drop --test_fraction", b"abc"),
    ("prepare mine", "'mine' is not a built-in corpus or task .*--input", "tinygpt prepare mine --input"),
    ("prepare shakespeare_char --input=text.txt", "shakespeare_char is a built-in corpus", "another name"),
    ("MINE --data_dir=text.txt", "text.txt/mine: cannot be written: not a directory", "another folder", b"abc"),
    # ---- the dataset --------------------------------------------------------------------------------------------
    (
        "TRAIN --dataset=shakespeare_char",
        "dataset 'shakespeare_char' is not prepared",
        "tinygpt prepare shakespeare_char$",
    ),
    ("TRAIN --dataset=old", "meta.pkl.*refused: a pickle can run code", "tinygpt prepare old", only_pickle),
    (
        "TRAIN",
        r"train.bin: has an odd number of bytes \([\d,]+\)",
        AGAIN,
        change("train.bin", lambda d: d[:-1]),
    ),
    ("TRAIN", "val.bin: empty", AGAIN, change("val.bin", lambda d: b"")),
    ("TRAIN", "val.bin: no such file", AGAIN, lambda work: (work / "data/tiny/val.bin").unlink()),
    ("TRAIN", "train.bin: .*changed since", AGAIN, change("train.bin", lambda d: d[2:] + d[:2])),
    (
        "TRAIN",
        r"train.bin: token 999 at position 1,000 is outside the vocabulary of \d+ tokens",
        AGAIN,
        change("train.bin", lambda d: d[:2000] + b"\xe7\x03" + d[2002:]),
    ),
    ("TRAIN", "meta.json: damaged", AGAIN, change("meta.json", lambda d: d[:100])),
    (
        "TRAIN",
        "meta.json: format 99 is newer",
        "upgrade",
        change("meta.json", lambda d: d.replace(b'"format": 1', b'"format": 99')),
    ),
    (
        "TRAIN",
        "meta.json: contains a tokenizer that tinygpt",
        "re-run tinygpt prepare",
        change("meta.json", lambda d: d.replace(b'"char"', b'"runes"')),
    ),
    (
        "TRAIN --dataset=short --block_size=64",
        "val has 10 tokens; block_size 64 needs 65",
        "--block_size=9 or less, or prepare more text",
        short,
    ),
    # ---- the checkpoint -----------------------------------------------------------------------------------------
    ("SAMPLE --ckpt=nothing/ckpt.pt", "nothing/ckpt.pt: no such file", "tinygpt train"),
    ("sample ROMEO:", "ROMEO:: no such file", ", or give a prompt as --start$"),
    ("eval nothing", "nothing: no such file", r"\(tinygpt import smollm2\)$"),
    ("SAMPLE", "out/ckpt.pt: no such file", INTACT, lambda work: (work / "out/ckpt.pt").unlink()),
    ("SAMPLE", r"out/ckpt.pt: damaged \(.*truncated", INTACT, change("ckpt.pt", lambda d: d[: len(d) // 2])),
    ("SAMPLE", r"out/ckpt.pt: damaged \(it is empty", INTACT, change("ckpt.pt", lambda d: b"")),
    ("SAMPLE", r"out/ckpt.pt: damaged \(its checksum does not match", INTACT, change("ckpt.pt", flip(9000))),
    (
        "TRAIN",
        "out/ckpt.pt would be overwritten, and no config.yaml",
        "--out_dir=out-new",
        lambda work: [(work / "out" / name).unlink() for name in ("config.yaml", "last.pt")],
    ),
    ("RESUME", "does not say how far", BRANCH, state(lambda s: s["training"].pop("progress"), "last.pt")),
    ("SAMPLE --ckpt=text.txt", r"text.txt: not a checkpoint \(not a file that torch.save writes\)", "train"),
    (
        "SAMPLE",
        r"ckpt.pt: not a checkpoint \(it holds a list\)",
        INTACT,
        lambda work: torch.save([1], work / "out/ckpt.pt"),
    ),
    (
        "SAMPLE --ckpt=other.zip",
        "other.zip: (damaged|not a checkpoint)",
        "train",
        lambda work: zipfile.ZipFile(work / "other.zip", "w").writestr("a", "b"),
    ),
    ("SAMPLE", "ckpt.pt: not a checkpoint of tinygpt or nanoGPT", INTACT, state(lambda s: s.pop("model"))),
    ("SAMPLE", "ckpt.pt: format 99 is newer", "upgrade", state(lambda s: s.update(tinygpt_format=99))),
    (
        "SAMPLE",
        "ckpt.pt: holds more than tensors and plain values; refused",
        "weights only",
        state(lambda s: s.update(config=Canary())),
    ),
    (
        "SAMPLE '--start=the é'",
        r"'é' \(U\+00E9, position 4\) is not in this model's \d+-character vocabulary",
        "--skip_unknown",
    ),
    ("SAMPLE '--start=é' --skip_unknown", "prompt is empty", "--start"),
    ("why out --start=é --text=a", "'é' .* is not in this model's", "^leave it out$"),
    ("why colours --text=red", "answers prompts, but the prompt is empty", '^--start="a prompt"$', answers),
    (
        "train colours",
        "is the folder of a run",
        "^colours/config.yaml to .*, or tinygpt finetune --ckpt colours$",
        answers,
    ),
    (
        "finetune --ckpt=lora/adapter.pt --dataset=tiny",
        "an adapter, which needs",
        "^tinygpt export --format=checkpoint --ckpt",
        answers,
    ),
    (
        "finetune --ckpt=scratch --dataset=tiny",
        "--ckpt=scratch: a fine-tuning starts from a trained model",
        "--ckpt=out",
    ),
    ("SAMPLE --ckpt=lora/adapter.pt", "an adapter, which needs", "^--ckpt=BASE/ckpt.pt --adapter=lora", answers),
    ("SAMPLE --start=FILE:prompt.txt", "prompt.txt: no such file", "FILE:"),
    (
        "RESUME",
        r"dataset 'tiny' and out/last.pt have different vocabularies \([0-9a-f]{12} and [0-9a-f]{12}\)",
        "--init_from=scratch",
        other_vocabulary,
    ),
    (
        "eval",
        r"different vocabularies \([0-9a-f]{12} and [0-9a-f]{12}\): only the dataset has '",
        "dataset",
        other_vocabulary,
    ),
    ("RESUME", "dataset 'tiny' has been prepared from different text", "--init_from", other_text),
    ("RESUME --n_embd=32", "n_embd is 32 here and 16 in the checkpoint", "drop n_embd"),
    ("RESUME --out_dir=new", r"new has no run to resume \(no last.pt\)", "--out_dir=FOLDER of the run"),
    (
        "RESUME",
        "out has no run to resume",
        "--init_from=out/ckpt.pt --out_dir=out-new",
        lambda work: (work / "out/last.pt").unlink(),
    ),
    ("RESUME --max_iters=7", "the run is at iteration 20, so max_iters=7 leaves nothing", "--max_iters=40"),
    (
        "train --init_from=resume",
        "out/last.pt has settings that cannot be used: batch_size is 0, but must be at least 1",
        BRANCH,
        state(lambda s: s["config"].update(batch_size=0), "last.pt"),
    ),
    ("train --config a.yaml", "--config: is an argument without a flag", "tinygpt train CONFIG"),
    ("report --ckpt=out", "takes the folder without a flag", "tinygpt report out"),
    (
        "MINE --tokenizer=out",
        r"the text has 'Q' \(U\+0051\) and 1 other character, not in the vocabulary of out$",
        "drop --tokenizer",
        b"The king of Q and Z. " * 9,
    ),
    (
        "prepare mine --input a.txt b.txt --tokenizer=words",
        r"'\\n' \(U\+000A\), not in the vocabulary of words \(each file begins on a new line\)",
        "drop --tokenizer",
        without_line_ends,
    ),
    ("TRAIN", "out/ckpt.pt is a link to ../elsewhere.pt", "another folder", linked),
    # ---- configuration ------------------------------------------------------------------------------------------
    ("train --lerning_rate=1e-3", "--lerning_rate: no such key", "^--learning_rate=VALUE$"),
    ("train mine.yaml", "mine.yaml: lerning_rate: no such key", "^learning_rate: VALUE$", "lerning_rate: 1e-3\n"),
    ("train --xyzzy=1", "--xyzzy: no such key", "^tinygpt train --help$"),
    ("train --norm=batchnorm", "--norm: 'batchnorm' is not one of layernorm, rmsnorm", "--help"),
    ("train mine.yaml", "mine.yaml: n_layer: needs one plain value, not list", "n_layer: 1", "n_layer: [1, 2]\n"),
    (
        "train mine.yaml",
        "mine.yaml, line 2: .*python/object",
        "plain values",
        "n_layer: 2\nout_dir: !!python/object/apply:os.system ['touch executed']\n",
    ),
    ("train mine.yaml", "mine.yaml: not a mapping", "key: value", "- 1\n"),
    ("train mine.yaml", "mine.yaml: seed is set twice", "one of the two", "seed: 1\nseed: 2\n"),
    (
        "train mine.py",
        r"mine.py, line 3: `os.system\('touch executed'\)`: would need to be executed",
        "`key: value`",
        "seed = 1\n\nos.system('touch executed')\n",
    ),
    ("train notes.txt", "notes.txt is a text", "^tinygpt prepare notes --input notes.txt$", "To be: or not to be\n"),
    ("train mine.yaml", "mine.yaml: not UTF-8 text", "YAML", b"\xff\x00\xfe"),
    ("train data", "data: no such config file", "^choose a preset"),
    (
        "train --device=cpu",
        "no config was given, and the default dataset 'openwebtext' is not prepared",
        "^tinygpt train configs/shakespeare_char.yaml --device=cpu$",
    ),
    (
        "plan '--data_dir=my data'",
        "no config was given",
        "^tinygpt plan configs/shakespeare_char.yaml '--data_dir=my data'$",
    ),
    ("train mine.yaml", "dataset 'openwebtext' is not prepared", "^tinygpt prepare openwebtext", "n_layer: 2\n"),
    (
        "train mine.yaml --batch_size=0",
        "batch_size is 0, .*; n_layer is 0, .*; n_head 3 does not divide n_embd 10",
        "--help",
        "n_layer: 0\nn_head: 3\nn_embd: 10\n",
    ),
    (
        "eval --split=val",
        "--split is for a task, but the loss of 'tiny' is measured on the complete validation split",
        "^drop --split$",
    ),
    (
        "eval --dataset=tiny --task=transactions",
        "--task=transactions and --dataset=tiny are two datasets",
        "^give one of them$",
    ),
    (
        "train --lr_schedule=linear --decay_lr=False",
        "decay_lr=False means lr_schedule=constant, and cannot be used with lr_schedule=linear",
        "--help",
    ),
    ("train mine.yaml", "mine.yaml: out_dir: a path .* NUL", "--help", 'out_dir: "a\\0b"\n'),
    # ---- the command line ---------------------------------------------------------------------------------------
    ("trian", "trian: no such command", "tinygpt train"),
    ("--print-completion foo", "foo: no such shell", "--print-completion bash, or zsh"),
    ("--print-completion", "needs a shell", "--print-completion bash"),
    ("--tyro-print-completion=bash", "no longer", "^tinygpt --print-completion bash$"),
    (
        "merge --ckpt=out",
        "merge: is no longer a command",
        "^tinygpt export BASE --adapter ADAPTER --format checkpoint$",
    ),
    ("eval out --predict=x.txt", "predict: is no longer a key", "^tinygpt label FILE --model RUN$"),
    ("plan nanogpt --target=1.5", "target: is no longer a key", "^tinygpt lab scale$"),
    ("plan nanogpt --watch", "plan trains none", "--help"),
    ("eval out --output=out/ckpt.pt", "out/ckpt.pt: is a checkpoint", "^--output confusion.png$"),
    ("report out -o out/last.pt", "out/last.pt: is a checkpoint", "^-o report.html$"),
    ("report --out_dir=out", "takes the folder without a flag", "^tinygpt report out$"),
    ("ask How long is it", "long: no such file", "^tinygpt ask 'How long is it' DOCUMENTS$"),
    ("train -x", "-x: no such option", "--help"),
    ("train --max_iters", "--max_iters needs a value", "--max_iters=VALUE"),
    ("sample --ckpt=out 'my text'", "my text: unexpected argument, since the model is out$", "^--start 'my text'$"),
    ("eval out tiny", "tiny: unexpected argument, since the model is out$", "^tinygpt eval --help$"),
    ("help trian", "trian: no such command", "tinygpt train"),
    ("prepare", "needs NAME", "^tinygpt prepare --help$"),
    ("prepare mine yours --input=text.txt", "yours", "--help"),
    # ---- the machine --------------------------------------------------------------------------------------------
    ("TRAIN --device=tpu", "--device=tpu: no such device", "cuda"),
    ("TRAIN --out_dir=text.txt", "text.txt: cannot be written: file exists", "another folder"),
]


def complaint(result: Result) -> tuple[str, str]:
    """Message and hint of an error. Fails for anything but exactly these two lines, and a list of choices between."""
    print(result)
    assert result.status == 2
    found = re.fullmatch(r"error: ([^\n]+)\n(?: {4}\w+ +[^\n]+\n)*(?:  try: ([^\n]+)\n)?", result.err)
    assert found, result.err
    assert result.out == ""
    return found[1], found[2] or ""


def arguments(command: str) -> list[str]:
    first, *more = shlex.split(command)
    return [*WORDS.get(first, [first]), *more]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake[0]}: {mistake[1]}")
def test_a_mistake_gets_one_sentence_and_the_way_out(mistake: tuple[Any, ...], run_copy: Path) -> None:
    command, says, way_out, *setups = mistake
    args = arguments(command)
    for setup in setups:
        if callable(setup):
            setup(run_copy)
        else:
            name = next(arg for arg in args if arg.endswith((".txt", ".yaml", ".py"))).removeprefix("--input=")
            (run_copy / name).write_bytes(setup if isinstance(setup, bytes) else setup.encode())
    before = listing(run_copy)
    result = cli_here(*args, cwd=run_copy)
    sentence, hint = complaint(result)
    assert not foreign_options(result.err, args[0])
    assert re.search(says, sentence)
    assert re.search(way_out, hint)
    assert listing(run_copy) == before


@pytest.mark.parametrize(
    "command", ["TRAIN --dataset=../tiny", pytest.param("SAMPLE --ckpt=text.txt", marks=pytest.mark.slow)]
)
def test_a_process_of_its_own_says_the_same(command: str, run_copy: Path) -> None:
    """The commands of the table above run in this process; this one starts a new interpreter."""
    args = arguments(command)
    assert cli(*args, cwd=run_copy) == cli_here(*args, cwd=run_copy)


def test_a_quoted_word_of_a_hint_is_not_cut() -> None:
    """A folder may be called "l, or 1"; an apostrophe is no quotation mark."""
    command = suggest.command("finetune", "l, or 1/config.yaml", "--out_dir=l, or 1-new")
    assert fitting(f"{command}, or drop --seed, or the model's file as --ckpt", {"ckpt"}) == (
        f"{command}, or the model's file as --ckpt"
    )


def test_a_hint_on_a_file_names_no_option_of_another_command(run_copy: Path) -> None:
    answers(run_copy)
    shutil.copy(run_copy / "lora/adapter.pt", run_copy / "out/copy.pt")
    said = cli_here("doctor", "out", cwd=run_copy).out
    hint = re.search(r"FAIL +out/copy.pt: an adapter.*\n +try: (.*)", said)
    assert hint and hint[1].startswith("tinygpt export --format=checkpoint --ckpt BASE/ckpt.pt"), said


def test_a_traceback_ends_with_the_hint_of_the_command(run_copy: Path) -> None:
    with pytest.raises(TinyGPTError) as caught:
        cli_here("why", "out", "--start=é", "--text=a", "--debug", cwd=run_copy)
    assert caught.value.__notes__ == ["  try: leave it out"]


def test_a_folder_in_use_names_the_process_that_has_it(run_copy: Path) -> None:
    with folder_lock(run_copy / "out", "run"), folder_lock(run_copy / "data/tiny", "dataset"):
        before = listing(run_copy)
        for folder, args in (("out", TINY_TRAIN), ("data/tiny", ["prepare", "tiny", "--input=text.txt"])):
            sentence, hint = complaint(cli_here(*args, cwd=run_copy))
            assert re.search(rf"{folder} is in use by process {os.getpid()}", sentence)
            assert "another folder" in hint
        assert listing(run_copy) == before


def test_a_folder_that_cannot_be_written(run_copy: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (run_copy / "out").chmod(0o500)
    sentence, hint = complaint(cli_here(*TINY_TRAIN, cwd=run_copy))
    assert "out: cannot be written: permission denied" in sentence and "another folder" in hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run_copy: Path) -> None:
    before = listing(run_copy)
    sentence, hint = complaint(cli_here(*TINY_TRAIN, "--device=cuda", cwd=run_copy))
    assert "--device=cuda: PyTorch sees no GPU here" in sentence and hint == "--device=cpu"
    assert listing(run_copy) == before


def test_a_loss_that_is_not_finite(run_copy: Path) -> None:
    """A failure while running, not a mistake: status 1; what was saved before is intact."""
    result = cli_here(*TINY_TRAIN, "--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0", cwd=run_copy)
    assert result.status == 1
    assert re.match(
        r"error: iteration \d+: the loss is NaN or infinite; training has stopped\n  try: out/last.pt was", result.err
    )
    assert "lower learning_rate" in result.err and "Traceback" not in result.err
    weights = checkpoint.load(run_copy / "out/last.pt").model
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("size", ["--batch_size=100000000000000", "--n_embd=20000000000"])
def test_more_memory_than_any_machine_has(size: str, run_copy: Path) -> None:
    result = cli_here(*TINY_TRAIN, size, cwd=run_copy)
    assert result.status == 1
    assert re.fullmatch(r"error: out of memory on cpu with [^\n]*\n  try: [^\n]*--batch_size=[^\n]*\n", result.err)


def test_a_prompt_may_be_freed_of_unknown_characters(run_copy: Path) -> None:
    assert ok(run_copy, *WORDS["SAMPLE"], "--start=thé ", "--skip_unknown").out.startswith("th ")


def test_one_thing_is_named_in_the_singular(run_copy: Path) -> None:
    """What the commands print about one line, iteration, layer, document and so on."""
    (run_copy / "pair.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (run_copy / "six.jsonl").write_text("{}\n" * 6)
    (run_copy / "crlf.txt").write_bytes(b"\xef\xbb\xbf" + (run_copy / "text.txt").read_bytes() + b"\r\n")
    (run_copy / "one.md").write_text("# One\nThe only sentence.\n")
    (run_copy / "damaged").mkdir()
    (run_copy / "damaged/a.docx").write_text("none")
    one = ["--max_iters=31", "--n_head=1", "--batch_size=1", "--gradient_accumulation_steps=1", "--warmup_iters=1"]
    said = ""
    for command in (
        "prepare pair --input=pair.jsonl --format=pairs",
        "prepare six --input=six.jsonl --format=pairs",
        "prepare crlf --input=crlf.txt",
        shlex.join([*TINY_TRAIN, *one, "--log_interval=31", "--out_dir=one"]),
        shlex.join([*TINY_TRAIN, "--max_iters=1", "--eval_interval=1", "--out_dir=new"]),
        "train --init_from=resume --out_dir=new --max_iters=1",
        "doctor new data/crlf",
        "why new --start=The --text=k --leave_out=1 --prove --seeds=1",
        "ask sentence one.md",
        "ask sentence damaged",
    ):
        result = cli_here(*shlex.split(command), cwd=run_copy)
        assert "Traceback" not in result.err
        said += f"{result.out}{result.err}"
    assert "1 head, " in said and "1 more line" in said and "after 1 iteration" in said, said
    assert not re.findall(
        r".*(?<![\d.,:])1 (?:\w+ )?(?:line|mark|iteration|layer|head|token|example|evaluation|pair|seed|"
        r"second|document|file|step|prompt|label|ending|sequence)s\b.*",
        said,
    )


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's error has no file name, like an error of standard output."""
    (tmp_path / "my_gpt.py").write_text("class CharTokenizer:\n    pass\n")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    result = cli_here("exercise", "check", "1", cwd=tmp_path)
    assert result.status == 1 and len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("error: No usable temporary directory found")


def test_a_lab_looks_for_its_packages_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib raises OSError where it finds no folder for its cache."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/matplotlib.py").write_text("raise OSError('Matplotlib needs a cache')\n")
    (tmp_path / "work").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    result = cli_here("lab", "canary", "--quick", cwd=tmp_path / "work")
    assert result.status == 1 and result.err == "error: Matplotlib needs a cache\n", result
    assert not list((tmp_path / "work").iterdir())
