"""GGUF files: their tokenizers return, and what is damaged or of another kind is refused in a sentence.

test_architectures.py has the round trip of the weights; test_llama.py opens the same files in llama.cpp.
"""

import dataclasses
import json
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import published
import pytest
import tokenizers
from published import ROWS, TEXT, apart, characters, model, rebuilt

from tinygpt.adapt.formats import gguf_file
from tinygpt.adapt.formats.architectures import STOCK, Stock
from tinygpt.adapt.formats.conversion import from_stock, to_stock
from tinygpt.adapt.formats.gguf_file import read_file, write_file
from tinygpt.adapt.formats.gguf_tokenizer import PRE
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer, GPT2Tokenizer, HuggingFaceTokenizer
from tinygpt.options import GPTConfig


def stock_of(name: str, **options: Any) -> Stock:
    return published.stock_of(model(**{**ROWS[name], **options}))


# ---- out and in again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama-grouped", "qwen3", "arcee"])
def test_an_mlp_of_any_width_is_quantised(tmp_path: Path, name: str) -> None:
    """Channels of zeros fill the last block; they change no logit, and a file in 16 bits has none."""
    stock = stock_of(name, mlp_width=85)
    for quantisation, width, lost in (("f16", 85, 0.02), ("q8_0", 96, 0.2)):
        write_file(tmp_path / "model.gguf", stock, characters(), quantisation)
        found = rebuilt(read_file(tmp_path / "model.gguf").stock)
        assert found.config.mlp_width == width and apart(found, rebuilt(stock)) < lost
    assert apart(rebuilt(gguf_file._padded(stock)), rebuilt(stock)) < 1e-5


def test_the_exact_gelu_becomes_the_tanh_gelu(tmp_path: Path) -> None:
    stock = stock_of("gpt2", activation="gelu")
    write_file(tmp_path / "model.gguf", stock, characters(), "f16")
    assert from_stock(stock)[0].activation == "gelu"
    assert from_stock(read_file(tmp_path / "model.gguf").stock)[0].activation == "gelu_tanh"


# ---- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_character_tokenizer_returns(tmp_path: Path, ascii_only: bool) -> None:
    symbols = sorted({c for c in TEXT if not ascii_only or c < "\x7f"})
    for special in ([], SPECIAL):
        mine = CharTokenizer([*symbols, *special])
        stock = stock_of("llama", vocab_size=mine.vocab_size + 5)
        write_file(tmp_path / "model.gguf", stock, mine, "q8_0")
        found = read_file(tmp_path / "model.gguf")
        encoding = tokenizers.Tokenizer.from_str(found.tokenizer_json)
        assert encoding.encode(TEXT).ids == mine.encode(TEXT, skip_unknown=True).tolist()
        assert encoding.get_vocab() == {symbol: id for id, symbol in enumerate(mine.symbols)}
        assert found.eos == ("<|end|>" if special else "")
        assert bool(found.chat_template) == bool(special)
        header = gguf.GGUFReader(tmp_path / "model.gguf").fields
        assert header["tokenizer.ggml.token_type"].contents()[-5:] == [gguf.TokenType.UNUSED] * 5
        end = header["tokenizer.ggml.eos_token_id"].contents()
        assert end == mine.special.get("<|end|>", mine.vocab_size)  # an unused row, or else the last
        imported = HuggingFaceTokenizer(found.tokenizer_json, found.eos, found.chat_template)
        before = (tmp_path / "model.gguf").read_bytes()
        write_file(tmp_path / "model.gguf", stock, imported, "q8_0")
        assert (tmp_path / "model.gguf").read_bytes() == before


@pytest.mark.slow
def test_gpt2_tokenizer_returns(tmp_path: Path) -> None:
    gpt2 = GPT2Tokenizer()
    stock = stock_of("gpt2", vocab_size=50304)  # padded, as nanoGPT does
    write_file(tmp_path / "model.gguf", stock, gpt2, "q8_0")
    found = read_file(tmp_path / "model.gguf")
    encoding = tokenizers.Tokenizer.from_str(found.tokenizer_json)
    assert encoding.encode(TEXT).ids == gpt2.encode(TEXT).tolist()
    assert found.eos == "<|endoftext|>" and encoding.token_to_id(found.eos) == 50256


def byte_level(pre: str, **changes: Any) -> str:
    """The text of a tokenizer.json that is trained on a few words, with <s> and </s> around each text."""
    encoding = tokenizers.Tokenizer(tokenizers.models.BPE())
    encoding.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    encoding.train_from_iterator([TEXT * 3, "the cat and the hat that sat 1999 1998 it's"], trainer)
    encoding.add_tokens(["[user]"])
    encoding.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    spec = json.loads(encoding.to_str())
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": PRE[pre]}
    spec["model"]["ignore_merges"] = pre == "llama-bpe"
    return json.dumps(spec | changes)


@pytest.mark.parametrize("pre", PRE)
def test_a_byte_level_tokenizer_returns(tmp_path: Path, pre: str) -> None:
    text = byte_level(pre)
    before = tokenizers.Tokenizer.from_str(text)
    stock = stock_of("llama", vocab_size=320)
    write_file(tmp_path / "model.gguf", stock, HuggingFaceTokenizer(text, "</s>", "{{ messages }}"), "q8_0")
    found = read_file(tmp_path / "model.gguf")
    after = tokenizers.Tokenizer.from_str(found.tokenizer_json)
    assert (found.eos, found.chat_template) == ("</s>", "{{ messages }}")
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.pre"].contents() == pre
    for sample in (TEXT, "the cat 19991998 [user] it's </s>\n\n\n that", "", " "):
        assert after.encode(sample).ids == before.encode(sample).ids
    assert after.encode("a").tokens == ["<s>", "a", "</s>"]
    assert len(before.encode("the").ids) < 5  # merges are used


def test_tokenizers_that_llama_cpp_lacks_are_refused(tmp_path: Path) -> None:
    stock = stock_of("llama", vocab_size=320)
    model = json.loads(byte_level("gpt-2"))["model"]
    for changes, message in (
        ({"pre_tokenizer": None}, "a pre-tokenizer (none)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "a pre-tokenizer (Whitespace)"),
        ({"normalizer": {"type": "Lowercase"}}, "a normalizer (Lowercase)"),
        ({"model": model | {"byte_fallback": True}}, "a BPE model that is not byte-level"),
        ({"model": model | {"ignore_merges": True}}, "ignore_merges"),
    ):
        with pytest.raises(TinyGPTError, match=r"llama\.cpp does not support") as error:
            write_file(tmp_path / "model.gguf", stock, HuggingFaceTokenizer(byte_level("gpt-2", **changes)), "f16")
        assert message in str(error.value)
    assert not list(tmp_path.iterdir())


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_models_that_llama_cpp_lacks_are_refused(tmp_path: Path) -> None:
    apertus = {"qk_norm": True, "activation": "relu2"}
    for name, options, quantisation, message in (
        ("gpt2", {"mlp_width": 85}, "q8_0", "mlp_width=85 is not a multiple of 32"),
        ("gpt2", {"n_embd": 48}, "q4_0", "n_embd=48 is not a multiple of 32"),
        ("llama", apertus, "f16", "(?m)no architecture for ApertusForCausalLM, the class of this model$"),
        ("llama", {"window": 4}, "f16", "(?m)MistralForCausalLM, the class of this model with window=4$"),
        ("arcee", {"activation": "gelu"}, "f16", "architecture arcee has the activation relu2"),
        ("gpt2", {"activation": "relu2"}, "f16", "architecture gpt2 has the activation gelu_new"),
    ):
        with pytest.raises(TinyGPTError, match=message) as error:
            write_file(tmp_path / "model.gguf", stock_of(name, **options), characters(), quantisation)
        assert error.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "arcee"])
def test_an_option_that_only_transformers_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Somebody adds a field to GPTConfig and to the classes of transformers, but not to GGUF."""
    gpt = model(**ROWS[kind])
    stock = published.stock_of(gpt)
    for name, row in STOCK.items():
        monkeypatch.setitem(STOCK, name, dataclasses.replace(row, keys={**row.keys, "sinks": "attention_sinks"}))
    new = dataclasses.make_dataclass("New", [("sinks", int, 0)], bases=(GPTConfig,))
    monkeypatch.setattr(gguf_file, "GPTConfig", new)
    config = new(**dataclasses.asdict(gpt.config))
    write_file(tmp_path / "model.gguf", to_stock(config, gpt.state_dict()), characters(), "f16")
    newer = to_stock(dataclasses.replace(config, sinks=4), gpt.state_dict())
    for other, named in (
        (newer, "sinks=4"),
        (Stock(stock.config | {"rope_parameters": {"rope_type": "yarn"}}, stock.weights), "rope_type=yarn"),
    ):
        with pytest.raises(TinyGPTError, match=f"llama.cpp's architecture {kind} lacks {named}") as error:
            write_file(tmp_path / "other.gguf", other, characters(), "f16")
        assert "--format hf" in error.value.hint
    assert not (tmp_path / "other.gguf").exists()


def changed(source: Path, target: Path, **changes: Any) -> Path:
    """Copy a GGUF file with other values in its header (None removes one), and tensors under other names."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, changes.get("general.architecture") or "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in changes:
            subtype = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], subtype)
    types = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING}
    for key, value in changes.items():
        if "." in key and key != "general.architecture" and "weight" not in key and value is not None:
            writer.add_key_value(key, value, types.get(type(value), gguf.GGUFValueType.ARRAY))
    for tensor in reader.tensors:
        for name in changes.get(tensor.name, [tensor.name]):
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "intact.gguf"
    write_file(path, stock_of("llama"), characters(), "q8_0")
    return path


REFUSED = [
    ({"general.architecture": "gemma"}, "has the architecture 'gemma'; tinygpt reads only gpt2, llama"),
    ({"llama.rope.scaling.type": "yarn"}, "has llama.rope.scaling.type = yarn"),
    ({"llama.attention.sliding_window": 128}, "has llama.attention.sliding_window = 128"),
    ({"llama.attention.causal": False}, "has llama.attention.causal = False"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8, but a head has 16 channels"),
    ({"llama.block_count": 4_000_000_000}, "num_hidden_layers is 4000000000, not a whole number"),
    ({"llama.attention.head_count": 0}, "(ZeroDivisionError"),
    ({"llama.attention.head_count": "two"}, "(TypeError"),
    ({"llama.embedding_length": None}, "damaged, or of an unknown form (KeyError: \"'embedding_length'\""),
    ({"split.count": 3}, "is one of 3 files of a model"),
    ({"tokenizer.ggml.model": "llama"}, "a tokenizer of the kind 'llama'"),
    ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": None}, "but config.json requires (2, 32)"),
    ({"tokenizer.ggml.tokens": ["x"] * 65537}, "its vocabulary has 65,537 tokens, more than the 65,536 that tinygpt"),
    ({"blk.0.ffn_up.weight": ["blk.0.ffn_up.weight", "rope_freqs.weight"]}, "rope_freqs.weight, a form of RoPE"),
    ({"blk.0.ffn_up.weight": ["blk.7.ffn_up.weight"]}, "blk.7.ffn_up.weight, not a part of this architecture"),
    ({"token_embd.weight": []}, "the weights lack the tensor model.embed_tokens.weight"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(next(iter(change))) for change, _ in REFUSED])
def test_files_that_cannot_be_used(intact: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = changed(intact, tmp_path / "changed.gguf", **changes)
    with pytest.raises(TinyGPTError) as error:
        from_stock(read_file(path).stock)
    assert message in error.value.message and error.value.hint and "\n" not in error.value.message


def test_a_copy_without_changes_is_read(intact: Path, tmp_path: Path) -> None:
    changes = {"llama.expert_count": 0, "llama.vocab_size": None, "llama.attention.causal": True}
    path = changed(intact, tmp_path / "same.gguf", **changes)
    assert read_file(path).stock.config == read_file(intact).stock.config


def test_byte_level_tokenizers_that_cannot_be_used(tmp_path: Path) -> None:
    encoding = HuggingFaceTokenizer(byte_level("gpt-2"))
    write_file(tmp_path / "bpe.gguf", stock_of("llama", vocab_size=320), encoding, "q8_0")
    path = changed(tmp_path / "bpe.gguf", tmp_path / "changed.gguf", **{"tokenizer.ggml.pre": "poro-chat"})
    with pytest.raises(TinyGPTError, match="pre-tokenizer 'poro-chat', and tinygpt knows only gpt-2"):
        read_file(path)


def test_files_that_are_not_gguf(intact: Path, tmp_path: Path) -> None:
    data = intact.read_bytes()
    key = struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + struct.pack("<Q1sI", 1, b"k", gguf.GGUFValueType.ARRAY)
    huge = key + struct.pack("<IQ", gguf.GGUFValueType.UINT8, 1 << 40) + bytes(64)
    nested = key + 5000 * struct.pack("<IQ", gguf.GGUFValueType.ARRAY, 1)
    for content, message in (
        (b"", "is not a GGUF file"),
        (b"GGUF", "is truncated"),
        (data[:-100], "is truncated"),
        (data[:4] + struct.pack(">I", 3) + data[8:], "is truncated"),
        (data[:4] + struct.pack("<I", 99) + data[8:], "(ValueError: 'Sorry, file appears to be version 99"),
        (huge, "is truncated, or its header is damaged"),
        (nested, "damaged, or of an unknown form (RecursionError"),
    ):
        (tmp_path / "file.gguf").write_bytes(content)
        with pytest.raises(TinyGPTError) as error:
            read_file(tmp_path / "file.gguf")
        assert message in error.value.message, content[:40]


def test_a_quantisation_that_gguf_cannot_read(intact: Path, tmp_path: Path) -> None:
    data, name = bytearray(intact.read_bytes()), b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 16
    assert struct.unpack_from("<I", data, at) == (gguf.GGMLQuantizationType.Q8_0,)
    struct.pack_into("<I", data, at, gguf.GGMLQuantizationType.Q8_1)
    (tmp_path / "odd.gguf").write_bytes(data)
    with pytest.raises(TinyGPTError, match="is quantised as Q8_1, which the package gguf cannot read"):
        read_file(tmp_path / "odd.gguf")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("kind", "count"), [("characters", 200), pytest.param("bytes", 500, marks=pytest.mark.slow)])
def test_mutants_of_a_header(tmp_path: Path, kind: str, count: int) -> None:
    """Files with a few bytes of the header flipped, a number replaced, or the end cut: an error or a model."""
    path = tmp_path / "mutant.gguf"
    encoding = CharTokenizer("abé") if kind == "characters" else HuggingFaceTokenizer(byte_level("gpt-2"))
    write_file(path, stock_of("llama", vocab_size=encoding.vocab_size, n_layer=1), encoding, "q8_0")
    data, start = path.read_bytes(), gguf.GGUFReader(path).data_offset
    generator, refused = random.Random(1), 0
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(generator.choice([1, 1, 2, 8])):
            at = generator.randrange(4, start - 8)
            match generator.randrange(3):
                case 0:
                    mutant[at] ^= 1 << generator.randrange(8)
                case 1:
                    mutant[at] = generator.randrange(256)
                case 2:
                    number = generator.choice([0, 1, 9, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 62, (1 << 64) - 1])
                    struct.pack_into("<Q", mutant, at, number)
        path.write_bytes(mutant[: generator.randrange(start)] if generator.random() < 0.1 else mutant)
        try:
            pretrained = read_file(path)
            from_stock(pretrained.stock)
            tokenizers.Tokenizer.from_str(pretrained.tokenizer_json)
        except TinyGPTError as error:
            refused += 1
            assert "\n" not in error.message
    assert count / 20 < refused < count  # some mutants change the text of a token or a merge only
