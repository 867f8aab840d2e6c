"""GGUF files: their tokenizers return, and what is damaged or of another kind is refused in a sentence.

test_architectures.py has the round trip of the weights; test_llama.py opens the same files in llama.cpp.
"""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import published
import pytest
import tokenizers
from published import ROWS, TEXT, apart, characters, model, rebuilt, refuses_mutants
from runs import tokenizer_json

from tinygpt.adapt.formats import gguf_file
from tinygpt.adapt.formats.architectures import Stock
from tinygpt.adapt.formats.conversion import from_stock
from tinygpt.adapt.formats.gguf_file import read_file, write_file
from tinygpt.adapt.formats.gguf_tokenizer import PRE
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer, HuggingFaceTokenizer


def stock_of(name: str, **options: Any) -> Stock:
    return published.stock_of(model(**{**ROWS[name], **options}))


# ---- out and in again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-grouped", "arcee"])
def test_an_mlp_of_any_width_is_quantised(tmp_path: Path, name: str) -> None:
    """Channels of zeros fill the last block; they change no logit, and a file in 16 bits has none."""
    stock = stock_of(name, mlp_width=85)
    for quantisation, width, lost in (("f16", 85, 0.02), ("q8_0", 96, 0.2)):
        write_file(tmp_path / "model.gguf", stock, characters(), quantisation)
        found = rebuilt(read_file(tmp_path / "model.gguf").stock)
        assert found.config.mlp_width == width and apart(found, rebuilt(stock)) < lost
    assert apart(rebuilt(gguf_file._padded(stock)), rebuilt(stock)) < 1e-5


# ---- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [[], SPECIAL], ids=["text", "pairs"])
def test_a_character_tokenizer_returns(tmp_path: Path, special: list[str]) -> None:
    mine, path = CharTokenizer([*sorted({*TEXT}), *special]), tmp_path / "model.gguf"
    stock = stock_of("llama", vocab_size=mine.vocab_size + 5)
    write_file(path, stock, mine, "q8_0")
    found = read_file(path)
    encoding = tokenizers.Tokenizer.from_str(found.tokenizer_json)
    assert encoding.encode(TEXT).ids == mine.encode(TEXT).tolist()
    assert encoding.get_vocab() == {symbol: id for id, symbol in enumerate(mine.symbols)}
    assert found.eos == ("<|end|>" if special else "") and bool(found.chat_template) == bool(special)
    header = gguf.GGUFReader(path).fields
    assert header["tokenizer.ggml.token_type"].contents()[-5:] == [gguf.TokenType.UNUSED] * 5
    end = header["tokenizer.ggml.eos_token_id"].contents()
    assert end == mine.special.get("<|end|>", mine.vocab_size)  # an unused row
    before = path.read_bytes()
    write_file(path, stock, HuggingFaceTokenizer(found.tokenizer_json, found.eos, found.chat_template), "q8_0")
    assert path.read_bytes() == before


@pytest.mark.parametrize(("symbols", "end"), [("abc~@", 3), ("abc", 2)])
def test_a_rare_character_stands_for_a_missing_end(tmp_path: Path, symbols: str, end: int) -> None:
    """llama.cpp stops at token 11 unless the file names another one."""
    write_file(tmp_path / "model.gguf", stock_of("llama", vocab_size=len(symbols)), CharTokenizer(symbols), "f16")
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.eos_token_id"].contents() == end


def byte_level(pre: str, **changes: Any) -> str:
    """The text of a tokenizer.json, with two special tokens around each text."""
    encoding = tokenizers.Tokenizer.from_str(tokenizer_json())
    encoding.add_tokens(["[user]"])
    around = {"single": "<|im_start|> $A <|im_end|>", "special_tokens": [("<|im_start|>", 1), ("<|im_end|>", 2)]}
    encoding.post_processor = tokenizers.processors.TemplateProcessing(**around)
    spec = json.loads(encoding.to_str())
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": PRE[pre]}
    spec["model"]["ignore_merges"] = pre == "llama-bpe"
    return json.dumps(spec | changes)


@pytest.mark.parametrize("pre", PRE)
def test_a_byte_level_tokenizer_returns(tmp_path: Path, pre: str) -> None:
    text = byte_level(pre)
    before = tokenizers.Tokenizer.from_str(text)
    stock = stock_of("llama", vocab_size=320)
    write_file(tmp_path / "model.gguf", stock, HuggingFaceTokenizer(text, "<|im_end|>", "{{ messages }}"), "q8_0")
    found = read_file(tmp_path / "model.gguf")
    after = tokenizers.Tokenizer.from_str(found.tokenizer_json)
    assert (found.eos, found.chat_template) == ("<|im_end|>", "{{ messages }}")
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.pre"].contents() == pre
    for sample in (TEXT, "the sky 19991998 [user] it's <|im_end|>\n\n\n that", "", " "):
        assert after.encode(sample).ids == before.encode(sample).ids
    assert after.encode("a").tokens == ["<|im_start|>", "a", "<|im_end|>"]
    assert len(before.encode("the").ids) < 5  # merges are used


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    apertus, yarn = {"qk_norm": True, "activation": "relu2"}, stock_of("llama")
    yarn.config["rope_parameters"] = {"rope_type": "yarn"}
    cases = [
        ("q8_0", "mlp_width=85 is not a multiple of 32", stock_of("gpt2", mlp_width=85), characters()),
        ("q4_0", "n_embd=48 is not a multiple of 32", stock_of("gpt2", n_embd=48), characters()),
        ("f16", "ApertusForCausalLM, the class of this model", stock_of("llama", **apertus), characters()),
        ("f16", "MistralForCausalLM, the class of this model with window=4", stock_of("llama", window=4), characters()),
        ("f16", "architecture arcee has the activation relu2", stock_of("arcee", activation="gelu"), characters()),
        ("f16", "architecture gpt2 has the activation gelu_new", stock_of("gpt2", activation="relu2"), characters()),
        ("f16", "architecture llama lacks rope_type=yarn", yarn, characters()),
    ]
    merges = json.loads(byte_level("gpt-2"))["model"]
    for message, changes in {
        "a pre-tokenizer (Whitespace)": {"pre_tokenizer": {"type": "Whitespace"}},
        "a normalizer (Lowercase)": {"normalizer": {"type": "Lowercase"}},
        "a BPE model that is not byte-level": {"model": merges | {"byte_fallback": True}},
    }.items():
        tokenizer = HuggingFaceTokenizer(byte_level("gpt-2", **changes))
        cases.append(("f16", f"{message}, which llama.cpp does not support", stock_of("llama"), tokenizer))
    for quantisation, message, stock, tokenizer in cases:
        with pytest.raises(TinyGPTError) as error:
            write_file(tmp_path / "model.gguf", stock, tokenizer, quantisation)
        assert message in error.value.message and error.value.hint
    assert not list(tmp_path.iterdir())


def changed(source: Path, target: Path, **changes: Any) -> Path:
    """Copy a GGUF file with other values in its header (None removes one), and tensors under other names."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, changes.get("general.architecture") or "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in changes:
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    types = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING}
    for key, value in changes.items():
        if not key.endswith((".weight", ".architecture")) and value is not None:
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
    ({"llama.attention.causal": False}, "has llama.attention.causal = False"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8, but a head has 16 channels"),
    ({"llama.block_count": 4_000_000_000}, "num_hidden_layers is 4000000000, not a whole number"),
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


def test_keys_that_change_nothing_are_accepted(intact: Path, tmp_path: Path) -> None:
    changes = {"llama.expert_count": 0, "llama.vocab_size": None, "llama.attention.causal": True}
    path = changed(intact, tmp_path / "same.gguf", **changes)
    assert read_file(path).stock.config == read_file(intact).stock.config


def test_a_pre_tokenizer_that_is_unknown_is_named(tmp_path: Path) -> None:
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
        (huge, "is truncated, or its header is damaged"),
        (nested, "damaged, or of an unknown form (RecursionError"),
    ):
        (tmp_path / "file.gguf").write_bytes(content)
        with pytest.raises(TinyGPTError) as error:
            read_file(tmp_path / "file.gguf")
        assert message in error.value.message, content[:40]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_mutants_of_a_header(tmp_path: Path) -> None:
    path = tmp_path / "mutant.gguf"
    encoding = CharTokenizer("abé")
    write_file(path, stock_of("llama", vocab_size=encoding.vocab_size, n_layer=1), encoding, "q8_0")
    refuses_mutants(path, lambda: from_stock(read_file(path).stock), 150, reach=gguf.GGUFReader(path).data_offset)
