"""Hugging Face folders: the files beside the weights, and bad folders. test_architectures.py has the round trip."""

import json
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from conftest import cli_here
from models import MODERN
from published import STRANGE, characters, checkpoint_of, model, rebuilt, refuses_mutants, theirs_of

from tinygpt.adapt.formats.huggingface import read_folder, write_folder
from tinygpt.adapt.formats.tokenizers import chat_template, tokenizer_files
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.foreign import hub_folder
from tinygpt.checkpoint.store import load, tokenizer_of
from tinygpt.data.tokenizer import (
    END,
    PROMPT,
    RESPONSE,
    GPT2Tokenizer,
    from_json,
    tokenizer_from_dict,
)
from tinygpt.model import GPT


def exported(out: Path, gpt: GPT, tokenizer: Any = None) -> Path:
    tokenizer = tokenizer or characters()
    write_folder(out, checkpoint_of(gpt, tokenizer), tokenizer)
    return out


@pytest.mark.slow
def test_the_model_card_has_an_example_that_runs(tmp_path: Path) -> None:
    exported(tmp_path / "my model", model(**MODERN), characters(pairs=True))
    card = (tmp_path / "my model/README.md").read_text(encoding="utf-8")
    assert "2.5000 nats per token" in card and "`tiny`" in card and "tinygpt train config.yaml" in card
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 10
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 3


def test_the_model_card_repeats_the_run(run_copy: Path) -> None:
    """The command and the configuration on the card give the same weights."""
    run = load(run_copy / "out")
    write_folder(run_copy / "hf", run, tokenizer_of(run, "out", "data"), "A note.")
    card = (run_copy / "hf/README.md").read_text(encoding="utf-8")
    assert "- A note." in card and "run `tinygpt train config.yaml`" in card
    (run_copy / "config.yaml").write_text(card.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    result = cli_here("train", "config.yaml", "--out_dir=again", cwd=run_copy)
    assert result.status == 0, result.err
    again = load(run_copy / "again").model
    assert all(torch.equal(weight, again[name]) for name, weight in run.model.items())


def test_the_byte_pairs_of_gpt2_have_the_same_ids() -> None:
    mine = GPT2Tokenizer()
    files = tokenizer_files(mine)
    theirs = from_json(files["tokenizer.json"])
    assert theirs.get_vocab_size() == mine.vocab_size and "chat_template.jinja" not in files
    draw = random.Random(0)
    texts = [STRANGE] + [
        "".join(chr(draw.choice([32, 10, 39, draw.randrange(32, 0x2FF), draw.randrange(0xD800)])) for _ in range(50))
        for _ in range(60)
    ]
    texts.append(Path(__file__).read_text(encoding="utf-8"))
    for text in texts:
        ids = mine.encode(text).tolist()
        assert theirs.encode(text).ids == ids and theirs.decode(ids) == text


def test_an_imported_tokenizer_is_passed_through() -> None:
    text = tokenizer_files(characters(pairs=True))["tokenizer.json"]
    for pair, template, eos in (
        (None, "{{ 1 }}", "<|prompt|>"),
        ({"prefix": PROMPT, "middle": RESPONSE, "end": END}, "", END),
        (None, "", ""),
    ):
        spec = {"kind": "huggingface", "json": text, "eos": "<|prompt|>" if eos else "", "chat_template": template}
        files = tokenizer_files(tokenizer_from_dict({**spec, "pair": pair}, "here"))
        assert files["tokenizer.json"] == text
        assert json.loads(files["tokenizer_config.json"]).get("eos_token", "") == eos
        assert files.get("chat_template.jinja", "") == (chat_template(**pair) if pair else template)


def test_eos_and_chat_template_are_found_where_others_write_them(tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", model(**MODERN), characters(pairs=True))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = (folder / "chat_template.jinja").read_text()
    found = read_folder(folder)
    assert found.eos == END and found.chat_template == template

    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    for value, expected in ((template, template), (named, "yes"), (None, ""), ("\ud800", "")):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": value}))
        assert read_folder(folder).chat_template == expected

    for value in (RESPONSE, {"content": RESPONSE, "lstrip": False}):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": value}))
        assert read_folder(folder).eos == RESPONSE
    (folder / "tokenizer_config.json").unlink()
    token = characters(pairs=True).special[RESPONSE]
    for id, expected in ((token, RESPONSE), ([token, 1], RESPONSE), (-1, END), (10**6, END), ("", END), ([], END)):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": id}))
        assert read_folder(folder).eos == expected
    (folder / "generation_config.json").unlink()
    assert read_folder(folder).eos == END  # of config.json


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
    whole = json.dumps({"weight_map": {"a": "gone.safetensors"}}).encode()
    packed = weights[: 8 + header].replace(b'"F32"', b'"I32"', 1) + weights[8 + header :]
    cases: list[tuple[dict[str, bytes | None], str]] = [
        ({"config.json": None}, "config.json: no such file"),
        ({"config.json": b"{"}, "config.json: not valid JSON"),
        ({"config.json": b"[" * 100_000}, "config.json: not valid JSON"),
        ({"config.json": b"[]"}, "config.json: not a JSON object"),
        ({"config.json": b"\xff"}, "config.json: not UTF-8"),
        ({"tokenizer.json": None}, "tokenizer.json: no such file"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json: damaged"),
        ({"tokenizer_config.json": b"nonsense"}, "tokenizer_config.json: not valid JSON"),
        ({"model.safetensors": None}, "no model.safetensors"),
        ({"model.safetensors": weights[:-1]}, "model.safetensors: cannot be read"),
        ({"model.safetensors": b""}, "model.safetensors: cannot be read"),
        ({"model.safetensors": packed}, "is int32"),
        ({"model.safetensors": None, "model.safetensors.index.json": index}, "bad/model.safetensors: no such file"),
        ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": [1]}'}, "damaged, or of"),
        ({"model.safetensors": None, "model.safetensors.index.json": whole}, "gone.safetensors: no such file"),
        ({"model.safetensors": None, "pytorch_model.bin": b"abc"}, "pytorch_model.bin: cannot be read"),
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
    with open(folder / "pytorch_model.bin", "wb") as file:
        torch.save({"a": hostile.Reducer(open, str(canary), "w")}, file)
    assert "pytorch_model.bin" in refused(folder) and not canary.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_mutants_never_give_a_traceback(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    folder = exported(tmp_path / "out", model(**MODERN), characters(pairs=True))
    count = int(2000 * (request.config.getoption("--full") or 0.1))
    refuses_mutants(folder / name, lambda: rebuilt(read_folder(folder).stock), count)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    gpt = model(**MODERN)
    folder = exported(tmp_path / "out", gpt, characters(pairs=True))
    exported(folder, gpt)  # its own export may be replaced
    assert not (folder / "chat_template.jinja").exists()
    (folder / "ckpt.pt").write_bytes(b"a run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TinyGPTError, match=re.escape("ckpt.pt")):
        exported(folder, gpt)
    (folder / "ckpt.pt").unlink()
    theirs_of("LlamaForCausalLM").config.save_pretrained(folder)
    with pytest.raises(TinyGPTError, match="did not export"):
        exported(folder, gpt)
    assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_a_name_that_the_hub_cannot_have() -> None:
    for name in ("../secret", "a/b/c", "", "a b", "https://x.org/a", "-x/..", "."):
        with pytest.raises(TinyGPTError, match="cannot be downloaded from"):
            hub_folder(name)
