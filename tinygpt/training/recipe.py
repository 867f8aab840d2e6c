"""The recipe of `tinygpt train --budget`: the standard model of configs/shakespeare_char.yaml, scaled.

    config = sizes(config, dataset)[0]              # the smallest model
    config = for_length(config, 1500, dataset)      # with what depends on the number of iterations

Three numbers scale it: the width, the iterations, and the passes over the text. The figures behind the constants are in
experiments.md.
"""

import dataclasses
import math
from typing import Any

from tinygpt.base.configs.core import FinetuneConfig, TrainConfig
from tinygpt.base.configs.parse import PRESETS, parse
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.dataset import Dataset

DEFAULT = "2m"  # the budget of a new run without a config, and without one of these keys:
SIZE = {"n_layer", "n_head", "n_embd", "block_size", "batch_size", "gradient_accumulation_steps", "max_iters", "budget"}
STANDARD = next(path for folder in PRESETS if (path := folder / "shakespeare_char.yaml").exists())
HEAD = 64  # channels of an attention head; widths are multiples of it
WIDEST = 12 * HEAD
CONTEXT = 256
SHORTER = 800  # iterations with shorter contexts, which are learned sooner; two thirds of a short run
TOKENS = 2048  # of an iteration
NEEDED = 1.8  # tokens read for each weight; with fewer, a narrower model ends at a lower loss
LARGE = 12  # weights per token of the text; a larger model would only memorise it
SEVERAL = 8  # passes over the text, from which on a larger weight decay lowers the loss
DROPOUT = 80  # passes over the text times the weights per token, from which on a dropout of 0.1 does (53 none, 128 yes)
MOST = 20  # passes over the text; 30 of a short one were worse
EVALUATIONS = 8


def budget_of(config: TrainConfig) -> str:
    """Return the budget of a new run: the one that is given, or the default one; empty: none."""
    unsized = not config.config and not config.eval_only and config.given.isdisjoint(SIZE)
    default = unsized and not isinstance(config, FinetuneConfig) and config.init_from == "scratch"
    return config.budget or (DEFAULT if default else "")


def refuse_budget(request: TrainConfig, budget: str) -> None:
    """Refuse the budget of several processes, which may be the default one. Errors: TinyGPTError."""
    if budget:
        default = "" if request.budget else f"without a config and a size, a run has a budget of {budget}; "
        problem = f"{default}a budget is for one process, whose speed it measures, and this run has several"
        raise TinyGPTError(problem, "a config, and --max_iters=N")


def sizes(config: TrainConfig, dataset: Dataset) -> list[TrainConfig]:
    """Return the standard model in its sizes, the smallest first. Values that the command gives are kept. Errors:
    TinyGPTError if they fit no size."""
    standard = parse(TrainConfig, [str(STANDARD)])
    preset = {key: getattr(standard, key) for key in standard.given - {"dataset", "out_dir"}}
    room = min(source.spare_tokens(0) for source in dataset.sources.values())  # the longest pair is -room tokens longer
    context = 8 * math.ceil(-room / 8) if dataset.pairs else max(4, min(CONTEXT, room // 4 * 4))  # for context_warmup
    widths = range(2 * HEAD, 2 * HEAD + 1) if dataset.pairs else range(HEAD, WIDEST + 1, HEAD)
    candidates = []
    for width in [config.n_embd] if "n_embd" in config.given else widths:
        heads = max(1, width // HEAD)
        shape = {"n_embd": width, "n_head": heads if width % heads == 0 else 1, "n_layer": heads + 1}
        candidate = with_values(config, preset | shape | {"block_size": context, "sampling": "epochs"})
        tokens = min(TOKENS, len(dataset.splits["train"]) // 10)  # of a short text a tenth, for enough iterations
        candidates.append(with_values(candidate, {"batch_size": max(1, tokens // candidate.block_size)}))
    problems = [next(candidate.problems_of_heads(), "") for candidate in candidates]
    if all(problems):
        raise TinyGPTError(problems[0])
    return [candidate for candidate, problem in zip(candidates, problems, strict=True) if not problem]


def for_length(config: TrainConfig, iterations: int, dataset: Dataset) -> TrainConfig:
    """Add what depends on the number of iterations for which there is time: the schedule, the evaluations, and what
    prevents that a text is memorised which is read many times."""
    iterations = max(1, min(iterations, math.ceil(MOST / passes(config, dataset))))
    read = passes(config, dataset) * iterations
    values: dict[str, Any] = {
        "max_iters": iterations,
        "warmup_iters": min(20, iterations // 10),
        "context_warmup": 0 if dataset.pairs or config.block_size % 4 else min(SHORTER, 2 * iterations // 3),
        "eval_interval": math.ceil(iterations / EVALUATIONS),
        "weight_decay": 0.3 if read > SEVERAL else 0.1,
        "dropout": 0.1 if read * weights_per_token(config, dataset) > DROPOUT else 0.0,
    }
    config = with_values(config, values)
    batches = max(2, config.eval_interval // 20)  # so that evaluations take a twentieth of the time
    all_rows = dataset.sources["val"].all_rows(config.block_size)
    complete = len(all_rows) <= batches * config.batch_size
    evaluation = {"eval_iters": 0 if complete else batches, "sample_interval": 2 * config.eval_interval}
    return with_values(config, evaluation)


def reason(config: TrainConfig, dataset: Dataset, fitting: int, limit: str) -> str:
    """Say why the model has its width, and the run its length. fitting: the iterations for which there is time. limit:
    what limits the width, as budget.largest returns it."""
    read = config.max_iters * passes(config, dataset)
    regular = {"weight_decay": read > SEVERAL, "dropout": config.dropout > 0}
    changed = [key for key, is_changed in regular.items() if is_changed and key not in config.given]
    named = " and ".join(f"{key.replace('_', ' ')} {getattr(config, key):g}" for key in changed)
    reading = f"{read:.1f} passes over the data"
    if named:
        reading += f", so {named}"
    if config.max_iters < fitting:
        reading += f"; more than {MOST} passes are not planned, so the rest of the time is not used"
    return f"width {config.n_embd}{limit}; {reading}"


def passes(config: TrainConfig, dataset: Dataset) -> float:
    """Return the passes over the data per iteration."""
    rows = config.batch_size * config.gradient_accumulation_steps
    return dataset.sources["train"].passes(rows, config.block_size)


def needed(config: TrainConfig) -> float:
    """Return the iterations that a model of this size needs: in proportion to its weights (Hoffmann et al. 2022,
    "Chinchilla")."""
    tokens = config.batch_size * config.gradient_accumulation_steps * config.block_size
    return NEEDED * weights(config) / tokens


def weights(config: TrainConfig) -> int:
    """Return the number of weights of the blocks' matrices."""
    return 12 * config.n_layer * config.n_embd**2


def weights_per_token(config: TrainConfig, dataset: Dataset) -> float:
    """Return the weights of the blocks' matrices per token of the training split."""
    return weights(config) / len(dataset.splits["train"])


def with_values(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """Return the configuration with these values, unless the command gives others."""
    return dataclasses.replace(config, **{key: values[key] for key in values.keys() - config.given})
