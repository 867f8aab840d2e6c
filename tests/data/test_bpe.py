"""BPE trained on one's own text, through every command, compared with the packages tokenizers and transformers."""

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lazy, Shared, cli, ok, refused, tiny_text
from hypothesis import example, given
from hypothesis import strategies as st
from inputs import json_lines, pairs
from models import largest, small
from pages import node

from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.store import load
from tinygpt.data import bpe, text_files
from tinygpt.data.bpe import train_bpe, training_pieces
from tinygpt.data.dataset import Dataset
from tinygpt.data.tokenizer import END, SPECIAL, CharTokenizer, HuggingFaceTokenizer, tokenizer_from_dict
from tinygpt.examine.report.weights import MOST_TOKENS, pack
from tinygpt.generate import TextStream

hf = pytest.importorskip("tokenizers")
transformers: Any = Lazy("transformers")

STRANGE = (
    "naïve  日本語漢字 🙂👩‍🚀 e\u0301 \ufffd\ufffd x \ufeff\u2028\x85\x1c\t1½² don't I'LL\n\n \n<|end|>  <|prompt|>"
)
ANY = st.text(
    st.sampled_from("ab1'. \n\t\r\0\x1c\x85\xa0éß\u0301\ufeff\ufffd\u2028\u3000日🙂") | st.sampled_from(STRANGE)
)
WORD = " zyzzyvas"  # only in the validation split
MODEL = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=32", "--device=cpu", "--dtype=float32", "--quiet"]
LENGTH = ["--max_iters=20", "--lr_decay_iters=20", "--eval_interval=10", "--eval_iters=2", "--warmup_iters=2"]
TRAIN = ["train", *MODEL, *LENGTH, "--batch_size=4", "--gradient_accumulation_steps=1", "--learning_rate=1e-2"]


@pytest.fixture(scope="session")
def made(shared: Shared) -> Path:
    """A working folder with text.txt, pairs.jsonl, data/{mine,answers}, and a run of each: out/, out-answers/."""

    def make(folder: Path) -> None:
        text = tiny_text(300).replace("heart", "cœur 漢字").replace("gone", "don't")
        (folder / "text.txt").write_text(text + WORD * 40, encoding="utf-8")
        json_lines(folder, pairs())
        ok(folder, "prepare", "mine", "--input=text.txt", "--tokenizer=bpe", "--vocab_size=300")
        ok(folder, "prepare", "answers", "--input=pairs.jsonl", "--format=pairs", "--tokenizer=bpe", "--vocab_size=280")
        ok(folder, *TRAIN, "--dataset=mine", "--snapshots=3", "--sample_interval=10")
        ok(folder, *TRAIN, "--dataset=answers", "--out_dir=out-answers")

    return shared("bpe", make)


def tokenizer_of(run: Path) -> HuggingFaceTokenizer:
    tokenizer = tokenizer_from_dict(load(run).tokenizer, str(run))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer(made: Path) -> HuggingFaceTokenizer:
    return tokenizer_of(made / "out")


def by_the_package(texts: list[str], size: int) -> Any:
    """The package's tokenizer, trained on complete texts."""
    encoding = hf.Tokenizer(hf.models.BPE())
    encoding.pre_tokenizer, encoding.decoder = hf.pre_tokenizers.ByteLevel(False), hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    encoding.train_from_iterator(texts, trainer)
    return encoding


# ---- text and tokens -----------------------------------------------------------------------------------------------


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
    word = Dataset(str(made / "data"), "mine").tokenizer.encode(WORD)
    assert len(word) == len(WORD)  # a word of the validation split alone has no merge
    assert len(by_the_package([text], 300).encode(WORD).ids) < len(WORD)


def test_pairs_learn_from_the_training_split_and_have_special_tokens(made: Path) -> None:
    dataset = Dataset(str(made / "data"), "answers")
    splits = {split: dataset.sources[split].examples(dataset.tokenizer) for split in dataset.splits}
    learned = by_the_package([part for pair in splits["train"] for part in pair], 277)
    assert dataset.tokenizer.special == {name: 277 + place for place, name in enumerate(SPECIAL)}  # type: ignore[union-attr]
    assert dataset.tokenizer.vocab_size == 280 and dataset.labels == ["blue", "green", "red"]
    text = "item 7 is green <|end|>"
    assert dataset.tokenizer.encode(text).tolist() == learned.encode(text).ids  # never as a special token
    assert sum(map(len, splits.values())) == 120


def test_the_same_text_gives_the_same_bytes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process, with another number of threads, and with blocks of another size."""
    args = ["prepare", "mine", f"--input={made / 'text.txt'}", "--tokenizer=bpe", "--vocab_size=300"]
    (tmp_path / "two").mkdir()
    assert cli(*args, cwd=tmp_path, RAYON_NUM_THREADS="3", TOKENIZERS_PARALLELISM="true").status == 0
    monkeypatch.setattr(text_files, "BLOCK", 1000)
    monkeypatch.setattr(bpe, "PIECE", 77)
    ok(tmp_path / "two", *args)
    names = ("train.bin", "val.bin", "meta.json")
    one, two = (
        [(folder / "data/mine" / name).read_bytes() for name in names] for folder in (tmp_path, tmp_path / "two")
    )
    assert one == two and one[:2] == [(made / "data/mine" / name).read_bytes() for name in names[:2]]


@pytest.mark.parametrize("text", [tiny_text(200), "日本語" * 5000], ids=["words", "no spaces"])
def test_training_text_is_cut_into_small_pieces_and_sampled_evenly(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "PIECE", 100)
    blocks = [text[at : at + 1000] for at in range(0, len(text), 1000)]
    pieces = list(training_pieces(blocks, len(text)))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 200
    monkeypatch.setattr(bpe, "MOST_READ", len(text) // 4 + 1)
    assert list(training_pieces(blocks, len(text))) == pieces[::4]


def test_a_text_without_spaces_is_cut_into_short_words() -> None:
    """The time of training grows with the square of a word's length."""
    assert max(map(len, training_pieces(["字" * 100_000], 100_000))) <= 4096


# ---- the command line ----------------------------------------------------------------------------------------------


def test_prepare_shows_the_tokens(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ok(tmp_path, "prepare", "mine", f"--input={made / 'text.txt'}", "--tokenizer=bpe", "--vocab_size=300")
    dataset = Dataset(str(tmp_path / "data"), "mine")
    characters, tokens = (sum(dataset.meta[key].values()) for key in ("characters", "tokens"))
    assert f"BPE trained on the training split, {characters / tokens:.2f} characters" in result.out
    line = (made / "text.txt").read_text(encoding="utf-8").splitlines()[0]
    (shown,) = [text for text in result.out.splitlines() if text.replace("|", "") == f"    -> {line}"]
    assert shown.count("|") == len(dataset.tokenizer.encode(line)) - 1 > 10
    monkeypatch.setattr("tinygpt.data.preview.MOST_READ", 1000)
    again = ok(tmp_path, "prepare", "mine", f"--input={made / 'text.txt'}", "--tokenizer=bpe", "--vocab_size=300")
    assert "BPE trained on a part of the training split" in again.out
    assert " --tokenizer=bpe --vocab_size=300 " in dataset.prepare_command


def test_the_preview_shows_parts_of_characters_and_control_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ü a\t\x1b!\n漢b")
    for tokenizer, shown in (("bpe", "<c3>|<bc>| |a|\\t|\\x1b|!"), ("char", "ü a\\t\\x1b!")):
        size = ["--vocab_size=256"] * (tokenizer == "bpe")
        result = ok(tmp_path, "prepare", "mine", "--input=a.txt", f"--tokenizer={tokenizer}", *size)
        assert f"    -> {shown}\n" in result.out
    (tmp_path / "a.txt").write_text("a" + "漢" * 60)  # 60 bytes end within a character
    result = ok(tmp_path, "prepare", "mine", "--input=a.txt", "--tokenizer=bpe", "--vocab_size=256")
    assert result.out.count("<e6>|<bc>|<a2>") == 19 and "<ef>" not in result.out


def test_a_text_too_short_for_so_many_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcabc xyz")
    result = ok(tmp_path, "prepare", "mine", "--input=a.txt", "--tokenizer=bpe")
    assert "note: 258 tokens, not 1,024: no other pair of tokens occurs twice" in result.out  # ab, abc
    json_lines(tmp_path, pairs())
    result = ok(tmp_path, "prepare", "mine", "--input=pairs.jsonl", "--format=pairs", "--tokenizer=bpe", "--show=2")
    for part in ("tokens, not 1,024: ", "<|prompt|>|item| ", "|<|response|>[", "|<|end|>]\n"):
        assert part in result.out
    result = ok(tmp_path, "prepare", "mine", "--input=a.txt", "--tokenizer=bpe", "--vocab_size=257")
    assert "note" not in result.out and "vocabulary: 257 (" in result.out


def test_without_the_package_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    message = refused(tmp_path, "prepare", "naics", "--tokenizer=bpe")
    assert "--tokenizer=bpe needs the package tokenizers" in message and "pip install tokenizers" in message


def test_bits_per_character_compare_tokenizers(made: Path) -> None:
    measured = json.loads(ok(made, "eval", "--ckpt=out", "--json", "--dtype=float32").out)
    dataset = Dataset(str(made / "data"), "mine")
    val = dataset.tokenizer.decode(dataset.splits["val"].tolist())
    per_character = measured["loss"] / math.log(2) * len(dataset.splits["val"]) / len(val)
    assert measured["bits_per_character"] == pytest.approx(per_character)
    assert len(dataset.splits["val"]) < len(val) and measured["tokens"] == len(dataset.splits["val"]) - 1


def test_fine_tuning_keeps_the_vocabulary(made: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("the queen of Ünland, zyzzyvas 🙂\n" * 60, encoding="utf-8")
    json_lines(tmp_path, pairs())
    model = str(made / "out")
    for name, flags in (("char", []), ("bpe", ["--tokenizer=bpe"]), ("same", [f"--tokenizer={model}"])):
        prepared = ok(tmp_path, "prepare", name, "--input=new.txt", *flags)
    assert f"finetune --ckpt={model} --dataset=same" in prepared.out
    ok(tmp_path, "prepare", "answers", "--input=pairs.jsonl", "--format=pairs")
    short = ["--max_iters=2", "--eval_interval=2", "--eval_iters=1", "--quiet", "--device=cpu", "--dtype=float32"]
    base = load(model)
    losses = set()
    for name in ("char", "bpe", "same"):
        tuned = ok(tmp_path, "finetune", f"--ckpt={model}", f"--dataset={name}", f"--out_dir={name}", *short)
        assert "loss on the new text" in tuned.out and "responses" not in tuned.out
        assert load(tmp_path / name).tokenizer == base.tokenizer
        losses.add(json.loads(ok(tmp_path, "eval", f"--ckpt={name}", "--json", "--dtype=float32").out)["loss"])
    assert len(losses) == 1  # the same tokens
    ok(tmp_path, "finetune", f"--ckpt={model}", "--dataset=answers", "--out_dir=pairs", "--lora_rank=2", *short)
    grown = tokenizer_of(tmp_path / "pairs")
    assert grown.vocab_size == 303 and grown.stop == END
    assert grown.encode(STRANGE).tolist() == tokenizer_of(made / "out").encode(STRANGE).tolist()


# ---- other tools -----------------------------------------------------------------------------------------------------


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


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_the_same_ids_and_complete_characters(made: Path, tokenizer: HuggingFaceTokenizer) -> None:
    draw = np.random.default_rng(0)
    letters = [*STRANGE, *"thekingofmy  '\r\0\xa0\u3000ß"]
    texts = [STRANGE, "", "the king", "漢" * 300, *("".join(draw.choice(letters, 30)) for _ in range(300))]
    code = """const model = TinyGPT.load(input.packed);
              return input.texts.map((text) => {
                const { ids, unknown } = model.encode(text), write = model.tokens.writer();
                const parts = ids.map((id) => write(id)), cut = model.decode(ids.slice(0, -1));
                return [ids, unknown, model.decode(ids), parts.join(""), parts.includes(""), cut];
              });"""
    for run in ("out", "out-answers"):
        mine, packed = tokenizer_of(made / run), pack(load(made / run).build_model(), tokenizer_of(made / run))
        found = node(code, packed=packed, texts=texts)
        for text, (ids, unknown, decoded, streamed, _, _) in zip(texts, found, strict=True):
            assert (ids, unknown) == (mine.encode(text).tolist(), [])
            assert decoded == streamed == text
        assert any(incomplete for *_, incomplete, _ in found)
        whole = STRANGE + "🙂"
        ((*_, cut),) = node(code, packed=packed, texts=[whole])
        assert cut == STRANGE  # without the first bytes of the last character
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


def test_the_page_names_each_token_once(made: Path, tokenizer: HuggingFaceTokenizer, tmp_path: Path) -> None:
    said = ok(made, "report", "out", "out-answers", "-o", str(tmp_path / "report.html")).out
    assert "the vocabulary (300 tokens, words of the training data among them)" in said
    packed = pack(load(made / "out").build_model(), tokenizer)
    names = node("return TinyGPT.load(input.packed).vocabulary", packed=packed)
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    assert len(set(names)) == len(names) == 300
    for token, text in enumerate(texts):
        parts = "".join(f"<{byte:02x}>" for byte in tokenizer.token_bytes(token))
        assert names[token] == (parts if "\ufffd" in text else text)
    assert "<e6>" in names and " the" in names


def changed(change: str) -> HuggingFaceTokenizer:
    """A tokenizer that a page cannot hold."""
    spec = json.loads(by_the_package(["the king of the king"], 270).to_str())
    token = {"id": 262, "content": "king", "special": False, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    start = {"id": len(spec["model"]["vocab"]), "content": "<s>", "special": True}
    around = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    start_step = {"type": "TemplateProcessing", "single": around, "pair": around}
    start_step |= {"special_tokens": {"<s>": {"id": "<s>", "ids": [start["id"]], "tokens": ["<s>"]}}}
    changes: dict[str, Any] = {
        "a start token": {"added_tokens": [token | start], "post_processor": start_step},
        "a space before": {"pre_tokenizer": spec["pre_tokenizer"] | {"add_prefix_space": True}},
        "no pattern": {"pre_tokenizer": spec["pre_tokenizer"] | {"use_regex": False}},
        "a normalizer": {"normalizer": {"type": "NFC"}},
        "an added token": {"added_tokens": [token | {"id": len(spec["model"]["vocab"]), "content": "a king"}]},
        "a missing byte": {"model": spec["model"] | {"vocab": {"t": 0, "h": 1, "th": 2}, "merges": [["t", "h"]]}},
    }
    return HuggingFaceTokenizer(json.dumps(spec | changes.get(change, {})))


OTHERS = "a space before, no pattern, a normalizer, an added token, a missing byte, a start token"


@pytest.mark.parametrize("change", OTHERS.split(", "))
def test_other_subword_tokenizers_are_refused(change: str) -> None:
    assert pack(small(vocab_size=270), changed("nothing"))["merges"]
    with pytest.raises(TinyGPTError, match="a page can hold only byte-level BPE"):
        pack(small(vocab_size=270), changed(change))


def test_a_page_holds_8192_tokens_and_not_one_more() -> None:
    words = map("".join, itertools.islice(itertools.product("abcdefghijklmnopqrst", repeat=4), 0, None, 17))
    tokenizer = train_bpe([" ".join(words)] * 2, MOST_TOKENS)
    assert tokenizer.vocab_size == MOST_TOKENS == 8192
    assert len(pack(small(vocab_size=MOST_TOKENS), tokenizer)["vocabulary"]) == MOST_TOKENS
    with pytest.raises(TinyGPTError, match="at most 8,192 tokens"):
        pack(small(vocab_size=MOST_TOKENS + 3), tokenizer.joined(CharTokenizer(SPECIAL)))  # type: ignore[arg-type]
