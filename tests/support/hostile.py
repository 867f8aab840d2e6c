"""Hostile files: payloads that would run code, and mutants of checkpoints, token files, meta.json and configs."""

import functools
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PRESET = Path(__file__).resolve().parents[2] / "configs/shakespeare_char.yaml"
SEAL = b"tinygpt sha256 "


def sealed(archive: bytes) -> bytes:
    """A zip archive with tinygpt's seal: the SHA-256 of all preceding bytes, in the archive's comment."""
    archive = archive[:-2] + struct.pack("<H", len(SEAL) + 64)
    return archive + SEAL + hashlib.sha256(archive).hexdigest().encode()


# ---- files that would run code -----------------------------------------------------------------------------------


class Reducer:
    """An object that pickle stores as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def pickles(canary: str) -> dict[str, bytes]:
    """Pickles that create the file `canary` when they are loaded without protection."""
    touch = f"open({canary!r}, 'w')"
    return {
        "os.system": pickle.dumps(Reducer(os.system, f"touch {canary}"), 2),
        "exec": pickle.dumps(Reducer(exec, touch), 2),
        "nested in a state": pickle.dumps({"model": {}, "model_args": {}, "config": Reducer(exec, touch)}, 2),
        "INST opcode": b"(S'" + touch.encode() + b"'\nibuiltins\neval\n.",
        "getattr chain": (
            b"\x80\x04cbuiltins\ngetattr\n(cbuiltins\n__import__\n(V" + b"os\ntRV" + b"system\ntR(V"
            + f"touch {canary}".encode() + b"\ntR."
        ),
        "BUILD opcode": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb"
        + b"X" + struct.pack("<I", len(f"touch {canary}")) + f"touch {canary}".encode() + b"b.",
    }  # fmt: skip


def zipped(pickled: bytes) -> bytes:
    """A torch.save archive around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def legacy(pickled: bytes) -> bytes:
    """A file of torch.save before version 1.6: a sequence of pickles."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + pickled + pickle.dumps([], 2)


def payloads(canary: str) -> list[tuple[str, str, bytes]]:
    """(name, file name, content) of files that create the file `canary` if their code runs."""
    touch, command = f"open({canary!r}, 'w')", f"touch {canary}"
    made: list[tuple[str, str, bytes]] = []
    for name, pickled in pickles(canary).items():
        made += [(f"{name}, zip", "x.pt", zipped(pickled)), (f"{name}, sealed zip", "x.pt", sealed(zipped(pickled)))]
    system = pickles(canary)["os.system"]
    made += [("bare", "x.pt", system), ("legacy", "x.pt", legacy(system)), ("meta.pkl", "meta.pkl", system)]
    for tag in (
        f"x: !!python/object/apply:os.system ['{command}']",
        f"x: !!python/object/new:subprocess.Popen [['touch', '{canary}']]",
        f'x: &a !!python/object/apply:builtins.eval ["{touch}"]\ny: *a',
    ):
        made.append((f"YAML {tag[:40]!r}", "x.yaml", tag.encode()))
    for line in (
        f"import os\nos.system({command!r})",
        f"from os import system as str\nseed = str({command!r})",
        f"seed = __import__('os').system({command!r})",
        f"seed = str({touch})",
        f"seed = f'{{{touch}}}'",
        f"seed = (lambda: {touch})()",
        f"class seed: x = {touch}",
        f"@{touch}.write\ndef f(): pass",
        f"seed = time.time.__self__.__loader__.load_module('os').system({command!r})",
        f"seed = (x := {touch})",
        f"str = exec\nseed = str({touch!r})",
    ):
        made.append((f"Python {line[:40]!r}", "x.py", line.encode()))
    return made


# ---- mutants ---------------------------------------------------------------------------------------------------------


# fmt: off
ODD_VALUES: list[Any] = [
    None, -1, 0, 1, 2, 7, 10**9, 2**40, 2**70, 1e308, float("nan"), float("inf"), True, False, "", "x", "rope",
    "\ud800", [], {}, [1], {"kind": "gpt2"}, {"kind": "char", "symbols": []}, {"kind": "char", "symbols": ["a", "b"]},
    ["a"] * 300, (1, 2), torch.zeros(2), torch.zeros(3, 3, dtype=torch.int64), torch.zeros(0),
]
# fmt: on
JSON_VALUES = [value for value in ODD_VALUES if not isinstance(value, (torch.Tensor, tuple))]


def mutate(draw: random.Random, content: bytes, tokens: list[bytes]) -> bytes:
    """Change bytes by one to four flips, deletions, duplications, moves, truncations, or insertions of a token."""
    mutant = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, end = sorted(draw.randrange(len(mutant) + 1) for _ in range(2))
        end = min(end, at + draw.choice([1, 4, 64, 10**6]))
        match draw.randrange(6):
            case 0 if mutant:
                mutant[min(at, len(mutant) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                del mutant[at:end]
            case 2:
                mutant[end:end] = mutant[at:end] * draw.choice([1, 1, 3])
            case 3:
                to = draw.randrange(len(mutant) + 1)
                mutant[to:to] = mutant[at:end]
                del mutant[at:end]
            case 4 if draw.random() < 0.3:
                del mutant[at:]
            case _:
                mutant[at:at] = draw.choice(tokens)
        del mutant[4 * len(content) + 1000 :]
    return bytes(mutant)


def mutate_value(draw: random.Random, value: Any, odd: list[Any]) -> Any:
    """Replace, remove or add one or two entries of a nested dictionary, in place."""
    for _ in range(draw.randint(1, 2)):
        place = value
        while isinstance(place, dict) and place:
            key = draw.choice(list(place))
            if not isinstance(place[key], dict) or not place[key] or draw.random() < 0.3:
                change = draw.randrange(5)
                if change == 0:
                    del place[key]
                elif change == 1:
                    place[draw.choice(["x", "", 1, None])] = draw.choice(odd)
                else:
                    place[key] = draw.choice(odd)
                break
            place = place[key]
    return value


class Mutants:
    """Mutants of the good files `checkpoint` and `dataset`, written to `folder`.

    Each method writes mutant number `index` and returns the command line that reads it.
    """

    def __init__(self, checkpoint: Path, dataset: Path, folder: Path) -> None:
        self.good, self.dataset, self.folder = checkpoint, dataset, folder
        self.checkpoint = checkpoint.read_bytes()
        self.meta, self.tokens = ((dataset / name).read_bytes() for name in ("meta.json", "train.bin"))

    def write(self, kind: str, index: int, draw: random.Random) -> list[str]:
        return getattr(self, f"mutate_{kind}")(index, draw)  # type: ignore[no-any-return]

    def mutate_checkpoint(self, index: int, draw: random.Random) -> list[str]:
        path = self.folder / f"{os.getpid()}.pt"
        if index % 4 == 0:
            content = mutate(draw, self.checkpoint, CHECKPOINT_TOKENS)
        else:
            state = torch.load(io.BytesIO(self.checkpoint), weights_only=True)
            if index % 2:  # nanoGPT's, without a seal
                keep = state.keys() & {"model", "model_args", "config", "training", "best_val_loss"}
                state = {key: state[key] for key in state if key in keep} | {"iter_num": 5}
            if index % 4 == 2 or draw.random() < 0.4:
                state = mutate_value(draw, state, ODD_VALUES)
            file = io.BytesIO()
            torch.save(state, file)
            content = file.getvalue()
            if index % 4 == 3:
                content = rezipped(content, functools.partial(mutate, draw, tokens=CHECKPOINT_TOKENS))
            if index % 2 == 0:
                content = sealed(content)
        path.write_bytes(content)
        return ["sample", f"--ckpt={path}", "--max_new_tokens=2", "--device=cpu"]

    def use_dataset(self, meta: bytes, tokens: bytes) -> list[str]:
        folder = self.folder / f"mutant{os.getpid()}"
        folder.mkdir(exist_ok=True)
        (folder / "meta.json").write_bytes(meta)
        (folder / "train.bin").write_bytes(tokens)
        shutil.copy(self.dataset / "val.bin", folder)
        place = [f"--dataset={folder.name}", f"--data_dir={self.folder}"]
        return ["eval", f"--ckpt={self.good}", *place, "--device=cpu", "--json"]

    def mutate_tokens(self, index: int, draw: random.Random) -> list[str]:
        mutant = mutate(draw, self.tokens[:2000], [b"\xff\xff", b"\0", b"\0\0" * 50, b"\n\0", b"PK\x03\x04"])
        meta = json.loads(self.meta)
        if index % 2:  # an attacker can adapt the checksum
            meta["sha256"]["train.bin"] = hashlib.sha256(mutant).hexdigest()
        return self.use_dataset(json.dumps(meta).encode(), mutant)

    def mutate_meta(self, index: int, draw: random.Random) -> list[str]:
        if index % 2:
            return self.use_dataset(mutate(draw, self.meta, META_TOKENS), self.tokens)
        meta = mutate_value(draw, json.loads(self.meta), JSON_VALUES)
        return self.use_dataset(json.dumps(meta).encode(), self.tokens)

    def mutate_config(self, index: int, draw: random.Random) -> list[str]:
        """A config whose dataset is not prepared, so that a valid mutant does not train."""
        python = index % 2
        path = self.folder / f"{os.getpid()}.{'py' if python else 'yaml'}"
        hostile = HOSTILE_PYTHON if python else HOSTILE_YAML
        if index // 2 < len(hostile):
            content = hostile[index // 2]
        elif python:
            content = mutate(draw, PYTHON_CONFIG, PYTHON_TOKENS)
        else:
            content = mutate(draw, PRESET.read_bytes(), YAML_TOKENS)
        path.write_bytes(content)
        return ["train", str(path)]


def rezipped(archive: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with a changed data.pkl and correct checksums: damage that only the unpickler can detect."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return made.getvalue()


PYTHON_CONFIG = b"""# nanoGPT's train_shakespeare_char.py, in short
import time
out_dir = 'out-shakespeare-char'
eval_interval = 250 # keep frequent because we'll overfit
wandb_run_name = 'mini-gpt' + str(time.time())
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1 * 2
batch_size = 64
block_size = 256
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = max_iters
min_lr = learning_rate / 10
compile = False
"""
# fmt: off
CHECKPOINT_TOKENS = [
    b"PK\x03\x04", b"PK\x05\x06", SEAL, b"\x80\x02}", b"ctorch\n", b"q\x00", b"\xff" * 8, b"0.",
]
META_TOKENS = [
    b"null", b"-1", b"1e999", b"NaN", b"[" * 5000, b'{"a":' * 3000, b'""', b"true", b"\\ud800", b"\xff", b"9" * 5000,
    b"\xef\xbb\xbf", b"//", b",", b'"kind":"gpt2",',
]
PYTHON_TOKENS = [
    b"(", b")", b"[", b"1e999", b"0x" + b"f" * 5000, b"9" * 5000, b"\0", b"'", b'"""', b"**", b"//0", b"/0", b"str(",
    b"time.time(", b"\n\t", b"\\", b"\xff", b"# coding: utf-16\n", b"lambda:", b"None", b"-", b"=", b"True",
]
YAML_TOKENS = [
    b"!!int ", b"!!float x", b"!!bool x", b"!!timestamp x", b"!!binary x", b"!!set ", b"&a ", b"*a", b"<<: ", b"? ",
    b"[" * 3000, b"{", b"- ", b"|", b">", b"%YAML 9.9\n", b"---\n", b"\0", b"\xff", b"\xfe\xff", b"1e999", b".nan",
    b"0x" + b"f" * 5000, b"9" * 5000, b"!!python/name:exec ", b"1:1:1", b"2001-99-99", b"\t", b"\xe2\x80\xa8", b"~",
]
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"  # each line ten times the one before
LAUGHS += b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 10)) for c in b"abcdefghi")
NESTED_LAUGHS = b"seed: [" + LAUGHS[3:].strip().replace(b"\n", b",") + b"]"
HOSTILE_YAML = [
    b"seed: !!int", b"seed: !!int ''", b"seed: !!float ''", b"quiet: !!bool x", b"seed: !!timestamp x", b"seed: 0b",
    b"seed: 0x", b"seed: 0x" + b"f" * 5000, b"seed: " + b"9" * 5000, b"? [1, 2]\n: 3", b"? {a: b}\n: 3", b"[" * 20000,
    b"seed: " + b"[" * 900, LAUGHS, NESTED_LAUGHS,
    b"seed: &a\n  b: *a", b"seed: &a [*a]", b"<<: &a {<<: *a}", b"&a seed: *a",
    b"seed: 2001-02-30", b"seed: !!binary 'x'", b"seed: .nan", b"learning_rate: 1e-x", b"dataset: '\\ud800'",
    b'dataset: "\\uD800"', b'out_dir: "\\0"', b"out_dir: " + b"x" * 5000, b"--- 1\n--- 2",
]
HOSTILE_PYTHON = [
    b"seed = " + b"+".join([b"1"] * 5000), b"seed = " + b"-" * 5000 + b"1", b"seed = " + b"(" * 5000,
    b"x = " + b"a." * 5000 + b"b", b"x = 9\n" + b"x = x * x\n" * 60, b"x = 'a'\n" + b"x = x + x\n" * 60,
    b"seed = 0x" + b"f" * 5000, b"seed = " + b"9" * 5000, b"seed = 1e999", b"seed = 1e999 - 1e999", b"seed = 1 // 0",
    b"seed = 1.0 / 0", b"seed = 'a' * 10", b"seed = -'a'", b"seed = 1j", b"seed = b'x'", b"seed = ...", b"seed = None",
    b"seed = str()", b"seed = str(1, 2)", b"seed = time.time(1)", b"seed, x = 1, 2", b"seed = x = 1",
    b"dataset = '\\ud800'", b"out_dir = '\\0'", b"seed = " + b"str(" * 150 + b"1" + b")" * 150, b"\0", b"# coding: x\n",
    b"x = 10 ** 10 ** 10", b"x = 1 << 10 ** 10", b"x = 1e308 * 10", b"x = 9" + b"9" * 300 + b" * 1.5",
    b"seed = " + b"[" * 150 + b"]" * 150, b"seed = " + b"-" * 900 + b"1", b"seed = " + b"+".join([b"1"] * 900),
    b"seed = " + b"+".join([b"1"] * 2500), b"f(" + b"+".join([b"1"] * 2500) + b")",
]
# fmt: on
