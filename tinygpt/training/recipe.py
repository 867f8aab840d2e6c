"""The recipe of `tinygpt train --budget`: the standard model of configs/shakespeare_char.yaml, scaled.

    for config in sizes(config, dataset): ...       # the smallest model first
    config = for_length(config, 1500, dataset)      # with what depends on the number of iterations

Three numbers scale it: the width, the iterations, and the passes over the text. The figures behind the constants are in
docs/EXPERIMENTS.md.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from tinygpt.base.configs.core import FinetuneConfig, TrainConfig
from tinygpt.base.configs.parse import parse
from tinygpt.data.dataset import Dataset

DEFAULT = "2m"  # the budget of a new run without a config, and without one of these keys:
SIZE = {"n_layer", "n_head", "n_embd", "block_size", "batch_size", "gradient_accumulation_steps", "max_iters"}
PRESET = "configs/shakespeare_char.yaml"
HEAD = 64  # channels of an attention head; widths are multiples of it
WIDEST = 12 * HEAD
TOKENS = 2048  # of an iteration
NEEDED = 8  # iterations for each channel of the width
SEVERAL = 8  # passes over the text, from which on a larger weight decay lowers the loss
LARGE = 12  # weights per token of the text; a larger model would only memorise it
DROPOUTS = {25: 0.1, 250: 0.2}  # by the passes over the text times the weights per token
MOST = 60  # passes over the text; more would only memorise it
EVALUATIONS = 8


def budget_of(config: TrainConfig) -> str:
    """Return the budget of a new run: the one that is given, or the default one; empty: none."""
    unsized = not config.config and not config.eval_only and config.given.isdisjoint(SIZE)
    default = unsized and not isinstance(config, FinetuneConfig) and config.init_from == "scratch"
    return config.budget or DEFAULT * default


def sizes(config: TrainConfig, dataset: Dataset) -> Iterator[TrainConfig]:
    """Yield the standard model in its sizes, the smallest first. Values that the command gives are kept."""
    standard = parse(TrainConfig, [PRESET])
    preset = {key: getattr(standard, key) for key in standard.given - {"dataset", "out_dir"}}
    room = min(source.spare_tokens(0) for source in dataset.sources.values())  # the longest pair is -room tokens longer
    for width in [config.n_embd] if "n_embd" in config.given else range(2 * HEAD, WIDEST + 1, HEAD):
        heads = max(1, width // HEAD)
        context = 128 if heads <= 2 else 256
        shape = {"n_embd": width, "n_head": heads if width % heads == 0 else 1, "n_layer": heads + 1}
        length = 8 * math.ceil(-room / 8) if dataset.pairs else max(1, min(context, room))
        batch = {"block_size": length, "batch_size": TOKENS // context}
        # as in for_length: evaluations take a twentieth of the time
        others = {"sampling": "epochs", "compile": "False", "eval_iters": 5, "eval_interval": 100}
        yield with_values(config, preset | shape | batch | others)


def for_length(config: TrainConfig, iterations: int, dataset: Dataset) -> TrainConfig:
    """Add what depends on the number of iterations for which there is time: the schedule, the evaluations, and what
    prevents that a text is memorised which is read many times."""
    iterations = min(iterations, math.ceil(MOST / passes(config, dataset)))
    read = passes(config, dataset) * iterations
    values: dict[str, Any] = {
        "max_iters": iterations,
        "warmup_iters": min(20, iterations // 10),
        "eval_interval": math.ceil(iterations / EVALUATIONS),
        "eval_iters": max(2, iterations // 160),
        "sample_interval": 2 * math.ceil(iterations / EVALUATIONS),
    }
    if read > SEVERAL:
        values["weight_decay"] = 0.3
    reads = read * weights_per_token(config, dataset)
    values["dropout"] = max((dropout for limit, dropout in DROPOUTS.items() if reads > limit), default=0.0)
    return with_values(config, values)


def reason(config: TrainConfig, dataset: Dataset, fitting: int) -> str:
    """Say why the model has its width, and the run its length. fitting: the iterations for which there is time."""
    reading = f"{config.max_iters * passes(config, dataset):.1f} passes over the text"
    if config.max_iters < fitting:
        reading += ", after which it would only be memorised: the time is not used up"
    elif config.dropout or config.max_iters * passes(config, dataset) > SEVERAL:
        reading += f", so weight decay {config.weight_decay:g} and dropout {config.dropout:g}"
    width = f"width {config.n_embd}"
    if "n_embd" not in config.given:
        width += " is the largest that this time and this text are enough for"
    return f"{width}; {reading}"


def passes(config: TrainConfig, dataset: Dataset) -> float:
    """Return the passes over the data per iteration."""
    rows = config.batch_size * config.gradient_accumulation_steps
    return dataset.sources["train"].passes(rows, config.block_size)


def with_values(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """Return the configuration with these values, unless the command gives others."""
    return dataclasses.replace(config, **{key: values[key] for key in values.keys() - config.given})


def needed(config: TrainConfig) -> float:
    """Return how many iterations a model of this width needs: with fewer, a narrower one ends at a lower loss."""
    return NEEDED * config.n_embd


def suits(config: TrainConfig, iterations: int, dataset: Dataset) -> bool:
    """Return whether a model is better than a narrower one: with enough iterations, and not too large for the text."""
    return iterations >= needed(config) and weights_per_token(config, dataset) <= LARGE


def weights_per_token(config: TrainConfig, dataset: Dataset) -> float:
    """Return the weights of the blocks' matrices per token of the training split."""
    return 12 * config.n_layer * config.n_embd**2 / len(dataset.splits["train"])
