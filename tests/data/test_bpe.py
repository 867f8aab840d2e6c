"""BPE trained on one's own text, through every command, compared with the packages tokenizers and transformers."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TRAIN, Lazy, Shared, cli, ok, tiny_text
from hypothesis import example, given
from hypothesis import strategies as st
from inputs import json_lines, pairs
from models import largest, small
from pages import node

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import load
from tinygpt.data import bpe, text_files
from tinygpt.data.bpe import train_bpe
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import END, SPECIAL, HuggingFaceTokenizer, tokenizer_from_dict
from tinygpt.examine.report.weights import pack
from tinygpt.generate import TextStream

hf = pytest.importorskip("tokenizers")
transformers: Any = Lazy("transformers")

STRANGE = (
    "naïve  日本語漢字 🙂👩‍🚀 e\u0301 \ufffd\ufffd x \ufeff\u2028\x85\x1c\t1½² don't I'LL\n\n \n<|end|>  <|prompt|>"
)
ANY = st.text(
    st.sampled_from("ab1'. \n\t\r\0\x1c\x85\xa0éß\u0301\ufeff\ufffd\u2028\u3000日🙂") | st.sampled_from(STRANGE)
)


@pytest.fixture(scope="session")
def made(shared: Shared) -> Path:
    """A working folder with text.txt, pairs.jsonl, data/{mine,answers}, and a run of each: out/, out-answers/."""

    def make(folder: Path) -> None:
        text = tiny_text(300).replace("heart", "cœur 漢字").replace("gone", "don't")
        (folder / "text.txt").write_text(text + " zyzzyvas" * 40, encoding="utf-8")
        json_lines(folder, pairs())
        ok(folder, "prepare", "mine", "--input=text.txt", "--tokenizer=bpe", "--vocab_size=300")
        ok(folder, "prepare", "answers", "--input=pairs.jsonl", "--format=pairs", "--tokenizer=bpe", "--vocab_size=280")
        flags = [*TINY_TRAIN, "--block_size=32", "--n_embd=32", "--dropout=0"]
        for dataset, out in (("mine", "out"), ("answers", "out-answers")):
            ok(folder, *flags, f"--dataset={dataset}", f"--out_dir={out}")

    return shared("bpe", make)


def tokenizer_of(run: Path) -> HuggingFaceTokenizer:
    tokenizer = tokenizer_from_dict(load(run).tokenizer, str(run))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer(made: Path) -> HuggingFaceTokenizer:
    return tokenizer_of(made / "out")


def by_the_package(texts: Iterable[str], size: int) -> Any:
    """The package's tokenizer, trained on complete texts."""
    encoding = hf.Tokenizer(hf.models.BPE())
    encoding.pre_tokenizer, encoding.decoder = hf.pre_tokenizers.ByteLevel(False), hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    encoding.train_from_iterator(texts, trainer)
    return encoding


@given(text=ANY)
@example(text=STRANGE)
def test_any_text_returns(tokenizer: HuggingFaceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    stream = TextStream(tokenizer)
    parts = [stream.feed(token) for token in ids]
    assert "".join(parts) == text and stream.end() == ""  # complete characters only
    assert "".join(parts).count("\ufffd") == text.count("\ufffd")


def test_merges_by_hand() -> None:
    """`lo` occurs nine times; then `low` eight times; then ` low` six times, since two begin a text."""
    tokenizer = train_bpe(["low low low low lower lower lower lo", "low"], 259)
    assert [tokenizer.decode([token]) for token in (256, 257, 258)] == ["lo", "low", " low"]


def test_the_tokens_are_those_of_the_package_on_the_training_split(made: Path) -> None:
    text = (made / "text.txt").read_text(encoding="utf-8")
    spec = json.loads((made / "data/mine/meta.json").read_text(encoding="utf-8"))["tokenizer"]
    assert json.loads(spec["json"]) == json.loads(by_the_package([text[: int(len(text) * 0.9)]], 300).to_str())
    assert json.loads(spec["json"]) != json.loads(by_the_package([text], 300).to_str())  # negative control


def test_pairs_learn_from_the_training_split_and_have_special_tokens(made: Path) -> None:
    dataset = Dataset(str(made / "data"), "answers")
    learned = by_the_package(itertools.chain(*dataset.sources["train"].examples(dataset.tokenizer)), 277)
    assert dataset.tokenizer.special == {name: 277 + place for place, name in enumerate(SPECIAL)}  # type: ignore[union-attr]
    assert dataset.tokenizer.vocab_size == 280
    text = "item 7 is green <|end|>"
    assert dataset.tokenizer.encode(text).tolist() == learned.encode(text).ids  # never as a special token


def test_the_same_text_gives_the_same_bytes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process, with another number of threads, and with blocks of another size."""
    args = ["prepare", "mine", f"--input={made / 'text.txt'}", "--tokenizer=bpe", "--vocab_size=300"]
    (tmp_path / "two").mkdir()
    assert cli(*args, cwd=tmp_path, RAYON_NUM_THREADS="3", TOKENIZERS_PARALLELISM="true").status == 0
    monkeypatch.setattr(text_files, "BLOCK", 1000)
    monkeypatch.setattr(bpe, "PIECE", 77)
    result = ok(tmp_path / "two", *args)
    for name in ("train.bin", "val.bin", "meta.json"):
        one, two = ((folder / "data/mine" / name).read_bytes() for folder in (tmp_path, tmp_path / "two"))
        assert one == two
        assert name == "meta.json" or one == (made / "data/mine" / name).read_bytes()
    dataset = Dataset(str(tmp_path / "data"), "mine")
    characters, tokens = (sum(dataset.meta[key].values()) for key in ("characters", "tokens"))
    assert f"BPE trained on the training split, {characters / tokens:.2f} characters" in result.out
    assert " --tokenizer=bpe --vocab_size=300 " in dataset.prepare_command


def test_the_preview_shows_parts_of_characters_and_control_characters(tmp_path: Path) -> None:
    bpe_of_bytes = ["--tokenizer=bpe", "--vocab_size=256"]
    (tmp_path / "a.txt").write_text("ü a\t\x1b!\n漢b")
    for tokenizer, shown in ((bpe_of_bytes, "<c3>|<bc>| |a|\\t|\\x1b|!"), (["--tokenizer=char"], "ü a\\t\\x1b!")):
        assert f"    -> {shown}\n" in ok(tmp_path, "prepare", "mine", "--input=a.txt", *tokenizer).out


def test_a_text_too_short_for_so_many_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcabc xyz")
    result = ok(tmp_path, "prepare", "mine", "--input=a.txt", "--tokenizer=bpe")
    assert "note: 258 tokens, not 1,024: no other pair of tokens occurs twice" in result.out  # ab, abc


def test_fine_tuning_keeps_the_vocabulary(made: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("the queen of Ünland, zyzzyvas 🙂\n" * 60, encoding="utf-8")
    json_lines(tmp_path, pairs())
    model = str(made / "out")
    prepared = ok(tmp_path, "prepare", "text", "--input=new.txt", f"--tokenizer={model}")
    assert f"finetune --ckpt={model} --dataset=text" in prepared.out
    ok(tmp_path, "prepare", "char", "--input=new.txt")
    ok(tmp_path, "prepare", "pairs", "--input=pairs.jsonl", "--format=pairs")
    short = ["--max_iters=2", "--eval_interval=2", "--eval_iters=1", "--quiet", "--device=cpu", "--lora_rank=2"]
    for name in ("text", "char", "pairs"):
        ok(tmp_path, "finetune", f"--ckpt={model}", f"--dataset={name}", f"--out_dir={name}", *short)
    assert load(tmp_path / "text").tokenizer == load(tmp_path / "char").tokenizer == load(model).tokenizer
    grown = tokenizer_of(tmp_path / "pairs")
    assert grown.vocab_size == 303 and grown.stop == END
    assert grown.encode(STRANGE).tolist() == tokenizer_of(made / "out").encode(STRANGE).tolist()


@pytest.mark.parametrize("run", ["out", "out-answers"])
@torch.inference_mode()
def test_exports_have_the_same_ids_and_logits(made: Path, tmp_path: Path, run: str) -> None:
    mine, model = tokenizer_of(made / run), load(made / run).build_model().eval()
    ids = mine.encode(STRANGE).tolist()
    for format in ("hf", "gguf"):
        ok(made, "export", f"--ckpt={run}", f"--format={format}", "-o", str(tmp_path / format))
        ok(tmp_path, "import", str(tmp_path / format), f"--out_dir={format}-again")
        again = tokenizer_of(tmp_path / f"{format}-again")
        assert again.encode(STRANGE).tolist() == ids and again.decode(ids) == STRANGE
        assert again.stop == mine.stop and (again.pair is None) == (mine.pair is None)
        assert len(pack(model, again)["vocabulary"]) == mine.vocab_size  # a page can hold it
    theirs = hf.Tokenizer.from_file(str(tmp_path / "hf/tokenizer.json"))
    theirs.encode_special_tokens = True
    assert theirs.encode(STRANGE).ids == ids
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert written.encode(STRANGE, split_special_tokens=True, add_special_tokens=False) == ids
    idx = torch.tensor([ids[:32]])
    logits = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(idx).logits
    assert largest(logits - model(idx)[0]) < 1e-4


def test_the_page_has_the_same_ids_and_complete_characters(made: Path) -> None:
    draw = np.random.default_rng(0)
    letters = [*STRANGE, *"thekingofmy  '\r\0\xa0\u3000ß"]
    texts = [
        STRANGE + "🙂",
        "",
        "the item 7 is green",
        "漢" * 300,
        *("".join(draw.choice(letters, 30)) for _ in range(100)),
    ]
    code = """const model = TinyGPT.load(input.packed);
              return input.texts.map((text) => {
                const { ids, unknown } = model.encode(text), write = model.tokens.writer();
                return [ids, unknown, model.decode(ids), ids.map(write).join(""), model.decode(ids.slice(0, -1))];
              });"""
    for run in ("out", "out-answers"):
        mine, packed = tokenizer_of(made / run), pack(load(made / run).build_model(), tokenizer_of(made / run))
        found = node(code, packed=packed, texts=texts)
        for text, (ids, unknown, decoded, streamed, _) in zip(texts, found, strict=True):
            assert (ids, unknown) == (mine.encode(text).tolist(), [])
            assert decoded == streamed == text
        assert found[0][-1] == STRANGE  # without the first bytes of the last character
        assert packed["special"] == mine.special and packed["end"] == mine.special.get(END)
        packed["merges"] = packed["merges"][1:]  # negative control
        assert node(code, packed=packed, texts=texts) != found


def test_of_equal_pairs_the_page_joins_the_first() -> None:
    tokenizer = train_bpe(["aaaaaaa aaab baaa"] * 3, 260)
    texts = ["a" * length + "b" for length in range(1, 30)]
    code = "return input.texts.map((text) => TinyGPT.load(input.packed).encode(text).ids)"
    found = node(code, packed=pack(small(vocab_size=260), tokenizer), texts=texts)
    assert found == [tokenizer.encode(text).tolist() for text in texts]
    assert tokenizer.decode([256]) == "aa"


def test_other_subword_tokenizers_are_refused() -> None:
    spec = json.loads(by_the_package(["the king of the king"], 270).to_str())
    size = len(spec["model"]["vocab"])
    pack(small(vocab_size=size), HuggingFaceTokenizer(json.dumps(spec)))
    flags = dict.fromkeys(("special", "normalized", "single_word", "lstrip", "rstrip"), False)
    changes: list[dict[str, Any]] = [
        {"pre_tokenizer": spec["pre_tokenizer"] | {"add_prefix_space": True}},
        {"pre_tokenizer": spec["pre_tokenizer"] | {"use_regex": False}},
        {"normalizer": {"type": "NFC"}},
        {"added_tokens": [{"id": size, "content": "a king", **flags}]},
        {"model": spec["model"] | {"vocab": {"t": 0, "h": 1, "th": 2}, "merges": [["t", "h"]]}},  # a missing byte
    ]
    for change in changes:
        with pytest.raises(TinyGPTError, match="a page can hold only byte-level BPE"):
            pack(small(vocab_size=size), HuggingFaceTokenizer(json.dumps(spec | change)))
