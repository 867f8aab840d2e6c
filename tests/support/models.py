"""Small models with every option of the model, on both paths, for the tests of the model and of its exporters."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from tinygpt.base.configs.core import TrainConfig
from tinygpt.checkpoint import store
from tinygpt.checkpoint.store import Checkpoint
from tinygpt.fast.model import FastGPT
from tinygpt.model import ACTIVATIONS, GPT, NORMS, GPTConfig
from tinygpt.options import POSITIONS

SMALL = GPTConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32)
CHOICES: dict[str, list[Any]] = {"norm": [*NORMS], "position": [*POSITIONS], "activation": [*ACTIVATIONS]}
CHOICES |= {field.name: [False, True] for field in dataclasses.fields(GPTConfig) if isinstance(field.default, bool)}
CHOICES |= {"n_kv_head": [0, 1], "mlp_width": [0, 40], "norm_eps": [1e-5, 0.1], "rope_base": [10000.0, 50.0]}
CHOICES |= {"window": [0, 10]}
OPTIMIZERS = get_args(get_type_hints(TrainConfig)["optimizer"])
SIZES = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd"}
NEEDS: dict[str, dict[str, Any]] = {"qk_norm_weights": {"qk_norm": True}, "rope_base": {"position": "rope"}}
ALONE = [
    {name: value, **NEEDS.get(name, {})}
    for name, values in CHOICES.items()
    for value in values
    if value != getattr(SMALL, name)
]
MODERN = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "qk_norm": True}
TOGETHER: list[dict[str, Any]] = [
    MODERN,
    MODERN | {"qk_norm_weights": True, "n_kv_head": 1, "mlp_width": 48, "rope_base": 50.0},
    {"zero_init": True, "bias": True},
    {"norm": "rmsnorm", "position": "rope", "activation": "relu2", "qk_norm": True, "tie_weights": False, "bias": True},
    *({"position": position, "qk_norm": True, "token_shift": True, "bigram_table": True} for position in POSITIONS),
]
OPTIONS: list[dict[str, Any]] = [{}, *ALONE, *TOGETHER]


def pairwise(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Extend the cases until every pair of values of two options is in one of them (pairwise testing)."""
    usual = {name: getattr(SMALL, name) for name in CHOICES}
    missing = {
        ((one, x), (other, y))
        for (one, xs), (other, ys) in itertools.combinations(CHOICES.items(), 2)
        for x, y in itertools.product(xs, ys)
    }
    for case in cases:
        missing -= {*itertools.combinations((usual | case).items(), 2)}
    while missing:
        case = dict(min(missing, key=str))
        for name, values in CHOICES.items():
            if name not in case:
                met = [sum({(name, value), one} in map(set, missing) for one in case.items()) for value in values]
                case[name] = values[met.index(max(met))]
        missing -= {*itertools.combinations({name: case[name] for name in CHOICES}.items(), 2)}
        cases = [*cases, {name: value for name, value in case.items() if value != usual[name]}]
    return cases


def parametrized(cases: list[dict[str, Any]], everyday: int) -> Any:
    """A mark for the argument `options`; the cases after the first ones are slow."""
    slow = [pytest.param(options, marks=pytest.mark.slow) for options in cases[everyday:]]
    return pytest.mark.parametrize(
        "options", [*cases[:everyday], *slow], ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "gpt2"
    )


every_option = parametrized(OPTIONS, len(OPTIONS))  # one option at a time
EVERYDAY: list[dict[str, Any]] = [  # contain every value
    {},
    MODERN | {"qk_norm_weights": True, "n_kv_head": 1, "tie_weights": False, "norm_eps": 0.1, "rope_base": 50.0},
    {
        **{"position": "alibi", "activation": "relu2", "bias": True, "token_shift": True, "bigram_table": True},
        **{"window": 10},
    },
    {
        **{"activation": "gelu_tanh", "bias": True, "zero_init": True, "qk_norm": True, "n_kv_head": 1},
        **{"mlp_width": 40},
    },
]
every_pair = parametrized(pairwise(EVERYDAY), len(EVERYDAY))  # every pair of values is in one of the cases
every_path = pytest.mark.parametrize("kind", [GPT, FastGPT], ids=["plain", "fast"])


def small(seed: int = 0, kind: type[GPT] = GPT, **options: Any) -> GPT:
    torch.manual_seed(seed)
    return kind(dataclasses.replace(SMALL, **options)).eval()


def shaken(model: GPT, std: float = 0.3) -> GPT:
    """Add noise so large that every part affects the logits (initial weights hardly change the residual stream)."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += std * torch.randn(parameter.shape, generator=generator)
    return model


def ids(*shape: int, seed: int = 0, vocab_size: int = 65) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def nanogpts_file(ours: Checkpoint, **changes: Any) -> dict[str, Any]:
    """What nanoGPT's train.py saves of a compiled model: its names, the best loss as a tensor, and no tokenizer."""
    shape = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    return {
        "model": {f"_orig_mod.{name}": weight for name, weight in ours.model.items()},
        "optimizer": ours.training["optimizer"],
        "model_args": {name: ours.model_args[name] for name in shape},
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.8857),
        "config": {"dataset": "tiny", "out_dir": "out", "batch_size": 12},
    } | changes


def same_weights(one: Path, other: Path) -> bool:
    """Bit for bit, with the optimizers' state."""
    flat_one, flat_other = (
        {f"{name}": weight for name, weight in state.model.items()}
        | {
            f"{part} {name}": moment
            for name, parts in state.training["optimizer"]["moments"].items()
            for part, moment in parts.items()
        }
        for state in (store.load(one), store.load(other))
    )
    assert flat_one.keys() == flat_other.keys()
    return all(torch.equal(value, flat_other[name]) for name, value in flat_one.items())
