"""The proof of `tinygpt why`: train again without the most influential rows, and without as many random ones."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean
from typing import Any

import numpy as np

from tinygpt.base import terminal
from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.examine.experiment.stages import Results, Stage
from tinygpt.examine.why.explained import Explained, Output
from tinygpt.examine.why.rows import exposures_of
from tinygpt.examine.why.step import Training

SEEDS = 5  # enough to exclude chance; advised as one number, since adding seeds until a test succeeds is no test
NOTHING = "nothing"
INFLUENTIAL = "the most influential"
RANDOM = "random ones"
# Student's t of which 95% are below, by the number of seeds; about 1.8 for more
T_95 = (math.inf, 6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)


def prove(
    explained: Explained,
    config: WhyConfig,
    estimate: np.ndarray,
    influential: np.ndarray,
    encoded: Output,
    finish: Callable[[Sequence[Stage]], Results],
) -> dict[str, Any]:
    """Retrain with every row, without the influential ones, and without as many others, for each seed."""
    seeds = [explained.config.seed + number for number in range(config.seeds)]
    stages = []
    for seed in seeds:
        others = random_rows(explained, influential, seed)
        for name, left_out in {NOTHING: influential[:0], INFLUENTIAL: influential, RANDOM: others}.items():
            measure = partial(measured, explained, left_out, seed, encoded)
            stages.append(Stage(stage_name(name, len(influential), seed), seconds_of(explained), measure))
    print()
    return proof(finish(stages), len(influential), seeds, float(estimate[influential].sum()))


def stage_name(name: str, count: int, seed: int) -> str:
    return f"train without {shown(name, count)}, seed {seed}"


def shown(name: str, count: int) -> str:
    return name if name == NOTHING else f"{name} ({count})"


def seconds_of(explained: Explained) -> float:
    """Return how long the run was trained."""
    return float(explained.checkpoint.training.get("progress", {}).get("seconds", 60.0))


def measured(explained: Explained, left_out: np.ndarray, seed: int, encoded: Output) -> float:
    """Train again without some rows, and return the output's log-probability."""
    training = Training(explained, seed, left_out)
    return float(training.log_probability(training.run(), *encoded))


def random_rows(explained: Explained, influential: np.ndarray, seed: int) -> np.ndarray:
    """Draw as many other rows, each with about as many targets in the iterations of this seed's run as an influential
    one, since a row that was hardly drawn cannot matter. With labels it has the same label, as long as there is one."""
    generator = np.random.default_rng(seed)
    exposures = exposures_of(explained, seed)
    free = generator.permutation(np.setdiff1d(np.arange(len(explained.rows)), influential)).tolist()
    if len(influential) > len(free):
        raise TinyGPTError(f"{len(influential)} rows, but only {len(free)} other training rows", "fewer rows")
    examples = explained.source.examples(explained.dataset.tokenizer) if explained.dataset.labels else []
    labels = [response for _, response in examples] or [""] * len(explained.rows)
    drawn = []
    for number in influential.tolist():
        same = [other for other in free if labels[other] == labels[number]]
        drawn.append(min(same or free, key=lambda other: abs(exposures[other] - exposures[number])))
        free.remove(drawn[-1])
    return np.array(drawn, dtype=np.int64)


def proof(results: Results, count: int, seeds: list[int], predicted: float) -> dict[str, Any]:
    """Summarise the retrainings without `count` rows: log-probabilities by what was left out and seed, changes, and the
    verdict."""
    names = (NOTHING, INFLUENTIAL, RANDOM)
    values = {name: [results[stage_name(name, count, seed)] for seed in seeds] for name in names}
    _, ours, others = np.subtract([values[name] for name in names], values[NOTHING])
    further = others - ours
    return {
        "seeds": seeds,
        "left_out": {NOTHING: 0, INFLUENTIAL: count, RANDOM: count},
        "log_probability": values,
        "change": {INFLUENTIAL: ours.tolist(), RANDOM: others.tolist()},
        "predicted_change": predicted,
        "agrees": bool((ours < 0).all() and (further > 0).all()),
        "right": is_positive(-ours) and is_positive(further),
    }


def is_positive(values: np.ndarray) -> bool:
    """Return whether the mean of several values is above 0 by more than chance: one-sided t-test, p < 0.05."""
    count = len(values)
    return count > 1 and bool(values.mean() > T_95[min(count, len(T_95)) - 1] * values.std(ddof=1) / count**0.5)


def show_proof(proved: dict[str, Any]) -> None:
    """Print the probabilities of the output in the retrained models, and the verdict."""
    seeds = proved["seeds"]
    count = proved["left_out"][INFLUENTIAL]
    print()
    width = len(shown(INFLUENTIAL, count)) + 2
    columns = {"trained without": f"<{width}"} | {f"seed {seed}": ">12.3g" for seed in seeds}
    rows: list[list[Any]] = []
    for name, values in proved["log_probability"].items():
        change = proved["change"].get(name)
        rows.append([shown(name, count), *map(math.exp, values), f"{mean(change):+.3f}" if change else ""])
    print("probability of the output:")
    print(*terminal.table(columns | {"change (nats)": ">15"}, rows), sep="\n")
    ours, other = (mean(proved["change"][name]) for name in (INFLUENTIAL, RANDOM))
    result = f"the log-probability changed by {ours:+.3f} without {INFLUENTIAL} and by {other:+.3f} without {RANDOM}"
    print(f"predicted:   {proved['predicted_change']:+.3f} nats")
    verdict = "not confirmed that these rows matter more"
    if proved["agrees"]:
        verdict = "one retraining agrees" if len(seeds) == 1 else "every seed agrees"
        verdict += ", which can be chance"
    if proved["right"]:
        verdict = "these rows matter more than random ones"
    print(f"verdict:     {verdict}: {result}")
    print(f"rule:        it falls without {INFLUENTIAL}, and further than without random ones: two one-sided t-tests,")
    print("             p < 0.05 each, for a number of seeds that was chosen before")
    if proved["agrees"] and not proved["right"] and len(seeds) < SEEDS:
        print(f"next:        the same command with --seeds={SEEDS}")
