"""A GPT as one of the classes that transformers ships, and back."""

import dataclasses
from typing import Any

from torch import Tensor

from tinygpt.options import GPTConfig


@dataclasses.dataclass
class Stock:
    """A model in the form of a class that transformers ships."""

    config: dict[str, Any]  # content of config.json: architectures, model_type, sizes, ...
    weights: dict[str, Tensor]  # float32, under the names and in the layout of that class


def to_stock(config: GPTConfig, weights: dict[str, Tensor]) -> Stock:
    """Convert a model to the stock class that computes the same function."""
    raise NotImplementedError


def from_stock(stock: Stock) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Convert a model of a stock class to a GPT."""
    raise NotImplementedError


@dataclasses.dataclass
class Pretrained:
    """What is read from another tool's files."""

    stock: Stock
    tokenizer_json: str  # the text of tokenizer.json
    eos: str  # the token that ends a text, for example "<|endoftext|>"; empty if there is none
    chat_template: str  # Jinja; empty if there is none
