"""Hostile files: pickles that would run code, mutants of checkpoints and datasets, and configs."""

import hashlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Reducer:
    """An object that pickle stores as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def pickles(canary: str) -> dict[str, bytes]:
    """Pickles that create the file `canary` when they are loaded without protection."""
    touch, command = f"open({canary!r}, 'w')", f"touch {canary}"
    build = b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsbX"
    return {
        "os.system": pickle.dumps(Reducer(os.system, command), 2),
        "nested in a state": pickle.dumps({"model": {}, "model_args": {}, "config": Reducer(exec, touch)}, 2),
        "INST opcode": b"(S'" + touch.encode() + b"'\nibuiltins\neval\n.",
        "BUILD opcode": build + struct.pack("<I", len(command)) + command.encode() + b"b.",
    }


# ---- mutants ---------------------------------------------------------------------------------------------------------


SEAL = b"tinygpt sha256 "
# fmt: off
ODD_VALUES: list[Any] = [
    None, -1, 0, 1, 2, 7, 10**9, 2**40, 2**70, 1e308, float("nan"), float("inf"), True, False, "", "x", "rope",
    "\ud800", [], {}, [1], {"kind": "gpt2"}, {"kind": "char", "symbols": []}, {"kind": "char", "symbols": ["a", "b"]},
    ["a"] * 300, (1, 2), torch.zeros(2), torch.zeros(3, 3, dtype=torch.int64), torch.zeros(0),
]
JSON_VALUES = [value for value in ODD_VALUES if not isinstance(value, (torch.Tensor, tuple))]
BINARY_TOKENS = [b"PK\x03\x04", b"PK\x05\x06", SEAL, b"\x80\x02}", b"ctorch\n", b"q\x00", b"\xff" * 8, b"\0\0" * 50]
META_TOKENS = [
    b"null", b"-1", b"1e999", b"NaN", b"[" * 5000, b'{"a":' * 3000, b'""', b"true", b"\\ud800", b"\xff", b"9" * 5000,
    b"\xef\xbb\xbf", b"//", b",", b'"kind":"gpt2",',
]
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"  # each line ten times the one before
LAUGHS += b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 10)) for c in b"abcdefghi")
HOSTILE_CONFIGS = {
    "x.yaml": [LAUGHS, b"<<: &a {<<: *a}", b"seed: !!int", b"seed: !!timestamp x", b'out_dir: "\\0"'],
    "x.py": [
        b"seed = " + b"+".join([b"1"] * 5000), b"seed = " + b"(" * 5000, b"x = 9\n" + b"x = x * x\n" * 60,
        b"x = 'a'\n" + b"x = x + x\n" * 60, b"x = 1 << 10 ** 10", b"\0",
    ],
}
# fmt: on
def mutate(draw: random.Random, content: bytes, tokens: list[bytes]) -> bytes:
    """Change bytes by one to four flips, deletions, duplications, or insertions of a token."""
    mutant = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, end = sorted(draw.randrange(len(mutant) + 1) for _ in range(2))
        match draw.randrange(4):
            case 0 if at < len(mutant):
                mutant[at] ^= 1 << draw.randrange(8)
            case 1:
                del mutant[at : min(end, at + draw.choice([1, 4, 64, 10**6]))]
            case 2:
                mutant[end:end] = mutant[at:end]
            case _:
                mutant[at:at] = draw.choice(tokens)
    return bytes(mutant)


def mutate_value(draw: random.Random, value: Any, odd: list[Any]) -> Any:
    """Replace, remove or add an entry of a nested dictionary, in place."""
    key = draw.choice(list(value))
    if isinstance(value[key], dict) and value[key] and draw.random() < 0.5:
        mutate_value(draw, value[key], odd)
    elif draw.random() < 0.2:
        del value[key]
    else:
        value[draw.choice([key, key, key, "x", "", None])] = draw.choice(odd)
    return value


def sealed(archive: bytes) -> bytes:
    """A zip archive with tinygpt's seal: the SHA-256 of all preceding bytes, in the archive's comment."""
    archive = archive[:-2] + struct.pack("<H", len(SEAL) + 64)
    return archive + SEAL + hashlib.sha256(archive).hexdigest().encode()


def mutate_checkpoint(draw: random.Random, good: bytes) -> bytes:
    """A mutant of a sealed checkpoint: of its bytes, its state or its pickle; of another program, it has no seal."""
    kind = draw.choice(["bytes", "state", "pickle"])
    if kind == "bytes":
        return mutate(draw, good, BINARY_TOKENS)
    file, foreign = io.BytesIO(), draw.random() < 0.5
    state = torch.load(io.BytesIO(good), weights_only=True)
    if foreign:
        keep = state.keys() & {"model", "model_args", "config", "training", "best_val_loss"}
        state = {key: state[key] for key in state if key in keep} | {"iter_num": 5}
    torch.save(mutate_value(draw, state, ODD_VALUES) if kind == "state" else state, file)
    content = mutate_pickle(draw, file) if kind == "pickle" else file.getvalue()
    return content if foreign else sealed(content)


def mutate_pickle(draw: random.Random, archive: io.BytesIO) -> bytes:
    """Change data.pkl of an archive, with correct checksums: damage that only the unpickler can detect."""
    made = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutate(draw, content, BINARY_TOKENS) if name.endswith("data.pkl") else content)
    return made.getvalue()


def mutate_dataset(draw: random.Random, folder: Path) -> None:
    """Change meta.json or train.bin of a dataset; an attacker adapts the checksum."""
    meta, tokens = folder / "meta.json", folder / "train.bin"
    content = json.loads(meta.read_bytes())
    if draw.random() < 0.3:
        meta.write_bytes(mutate(draw, meta.read_bytes(), META_TOKENS))
        return
    if draw.random() < 0.5:
        content = mutate_value(draw, content, JSON_VALUES)
    else:
        tokens.write_bytes(mutate(draw, tokens.read_bytes()[:2000], BINARY_TOKENS))
        content["sha256"]["train.bin"] = hashlib.sha256(tokens.read_bytes()).hexdigest()
    meta.write_text(json.dumps(content))
