"""Hugging Face folders: the files beside the weights, and bad folders. test_architectures.py has the round trip."""

import contextlib
import json
import pickle
import random
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from conftest import ok
from models import MODERN
from published import STRANGE, characters, checkpoint_of, model, rebuilt

from tinygpt.adapt.formats.huggingface import read_folder, write_folder
from tinygpt.adapt.formats.tokenizers import tokenizer_files
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.foreign import hub_folder
from tinygpt.checkpoint.store import load, tokenizer_of
from tinygpt.data.tokenizer import END, RESPONSE, GPT2Tokenizer, from_json
from tinygpt.model import GPT


def exported(out: Path, gpt: GPT, tokenizer: Any = None) -> Path:
    tokenizer = tokenizer or characters()
    write_folder(out, checkpoint_of(gpt, tokenizer), tokenizer)
    return out


def test_the_model_card_repeats_the_run_and_its_example_runs(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command and the configuration on the card give the same weights."""
    run = load(run_copy / "out")
    write_folder(run_copy / "my model", run, tokenizer_of(run, "out", str(run_copy / "data")), "A note.")
    card = (run_copy / "my model/README.md").read_text(encoding="utf-8")
    loss = f"{run.best_val_loss:.4f} nats per token"
    assert loss in card and "`tiny`" in card and "- A note." in card and "run `tinygpt train config.yaml`" in card
    (run_copy / "config.yaml").write_text(card.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    ok(run_copy, "train", "config.yaml", "--out_dir=again")
    again = load(run_copy / "again").model
    assert all(torch.equal(weight, again[name]) for name, weight in run.model.items())
    for name, pairs in (("text", False), ("pairs", True)):
        exported(run_copy / name, model(**MODERN), characters(pairs))
        card = (run_copy / name / "README.md").read_text(encoding="utf-8")
        with contextlib.chdir(run_copy):
            exec(card.split("```python\n")[1].split("```")[0], {})
        assert len(capsys.readouterr().out.strip()) > 3


def test_the_byte_pairs_of_gpt2_have_the_same_ids() -> None:
    mine = GPT2Tokenizer()
    files = tokenizer_files(mine)
    theirs = from_json(files["tokenizer.json"])
    assert theirs.get_vocab_size() == mine.vocab_size and "chat_template.jinja" not in files
    draw = random.Random(0)
    choices = [32, 10, 39, *range(32, 0x2FF), *range(0, 0xD800, 50)]
    texts = [STRANGE, *("".join(map(chr, draw.choices(choices, k=50))) for _ in range(20))]
    for text in texts:
        ids = mine.encode(text).tolist()
        assert theirs.encode(text).ids == ids and theirs.decode(ids) == text


def test_eos_and_chat_template_are_found_where_others_write_them(tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", model(**MODERN), characters(pairs=True))
    template = (folder / "chat_template.jinja").read_text()
    found = read_folder(folder)
    assert found.eos == END and found.chat_template == template

    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    for value, expected in ((template, template), (named, "yes"), ("\ud800", "")):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        assert read_folder(folder).chat_template == expected

    token = characters(pairs=True).special[RESPONSE]
    for name, key, value, expected in (
        ("tokenizer_config.json", "eos_token", RESPONSE, RESPONSE),
        ("tokenizer_config.json", "eos_token", {"content": RESPONSE, "lstrip": False}, RESPONSE),
        ("generation_config.json", "eos_token_id", token, RESPONSE),
        ("generation_config.json", "eos_token_id", [token, 1], RESPONSE),
        *(("generation_config.json", "eos_token_id", id, END) for id in (-1, 10**6, "", [])),  # that of config.json
    ):
        (folder / "tokenizer_config.json").unlink(missing_ok=True)
        (folder / name).write_text(json.dumps({key: value}))
        assert read_folder(folder).eos == expected


def refused(folder: Path) -> str:
    with pytest.raises(TinyGPTError) as caught:
        rebuilt(read_folder(folder).stock)
    error = caught.value
    assert error.status == 2 and error.hint and "\n" not in error.message and len(error.message) < 400
    return error.message


def test_a_bad_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    good = {path.name: path.read_bytes() for path in exported(tmp_path / "out", model(**MODERN)).iterdir()}
    weights, header = good["model.safetensors"], int.from_bytes(good["model.safetensors"][:8], "little")
    index = json.dumps({"weight_map": {"a": "../model.safetensors"}}).encode()
    packed = weights[: 8 + header].replace(b'"F32"', b'"I32"', 1) + weights[8 + header :]
    cases: list[tuple[dict[str, bytes | None], str]] = [
        ({"config.json": None}, "config.json: no such file"),
        ({"config.json": b"{"}, "config.json: not valid JSON"),
        ({"config.json": b"[" * 100_000}, "config.json: not valid JSON"),
        ({"tokenizer.json": None}, "tokenizer.json: no such file"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json: damaged"),
        ({"model.safetensors": None}, "no model.safetensors"),
        ({"model.safetensors": weights[:-1]}, "model.safetensors: cannot be read"),
        ({"model.safetensors": packed}, "is int32"),
        ({"model.safetensors": None, "model.safetensors.index.json": index}, "bad/model.safetensors: no such file"),
        ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": [1]}'}, "damaged, or of"),
        ({"model.safetensors": None, "pytorch_model.bin": pickle.dumps({"a": 1}, 2)}, "pytorch_model.bin: "),
    ]
    folder = tmp_path / "bad"
    folder.mkdir()
    for changed, message in cases:
        for path in folder.iterdir():
            path.unlink()
        for name, content in (good | changed).items():
            if content is not None:
                (folder / name).write_bytes(content)
        assert message in refused(folder), changed.keys()


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    folder, canary = exported(tmp_path / "out", model(**MODERN)), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    for name, content in hostile.pickles(str(canary)).items():
        (folder / "pytorch_model.bin").write_bytes(content)
        assert "pytorch_model.bin" in refused(folder), name
        assert not canary.exists(), name


def test_its_own_export_is_replaced(tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", model(**MODERN), characters(pairs=True))
    exported(folder, model(**MODERN))
    assert not (folder / "chat_template.jinja").exists()


def test_a_name_that_the_hub_cannot_have() -> None:
    for name in ("../secret", "a/b/c", "", "a b", "https://x.org/a"):
        with pytest.raises(TinyGPTError, match="cannot be downloaded from"):
            hub_folder(name)
