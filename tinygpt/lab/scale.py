"""`tinygpt lab scale`: how does the loss depend on the size of the model and on the length of its training?

Models of several sizes are trained for several lengths on one text, each with a complete schedule, and a scaling law is
fitted (evaluate/law.py). It says how to divide compute between size and length: C = 6 N D FLOP for N parameters and D
training tokens (Kaplan et al. 2020). The last run needs more compute than all others, and is held out from the fit: it
tests whether the law predicts it.

    width W, P passes, seed S         {"parameters", "tokens", "loss", "seconds"}

    tinygpt lab scale --dataset=mine --quick
"""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.config.schema import LabConfig
from tinygpt.data.dataset import Dataset
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.law import SHAPES, Law, fit
from tinygpt.evaluate.loss import validation_loss
from tinygpt.lab.lab import Lab, seeds
from tinygpt.lab.processes import prepared, train
from tinygpt.lab.stages import Results, Stage
from tinygpt.lab.summary import Summary, Table, Verdict, spread
from tinygpt.terminal import duration

TOKENS = 2048  # of a batch
MOST_TOKENS = 1_000_000  # of the training split that count as one pass, so that a large text does not take hours
LEAST_TOKENS = 150_000
TARGETS = {"10 M": 10e6, "124 M (GPT-2)": 124e6}  # parameters
UNKNOWN = 10  # a figure whose interval is wider than this factor is not determined
SPEED = 1.5e11  # FLOP per second of two cores, for the expected times


class Size(NamedTuple):
    """How large the lab is."""

    widths: tuple[int, ...]
    passes: tuple[float, ...]
    last: tuple[int, float]  # width and passes of the held-out run


FULL = Size((32, 48, 64, 96, 128), (0.25, 0.5, 1, 2), (160, 4))
QUICK = Size((32, 48, 64, 96), (0.25, 0.5, 1), (128, 1))


# ---- stages -----------------------------------------------------------------------------------------------------


def size_of(config: LabConfig) -> Size:
    return QUICK if config.quick else FULL


def stages(config: LabConfig, folder: Path) -> list[Stage]:
    """All stages. Errors: TinyGPTError for a dataset of the user that is missing, or too small."""
    size, found = size_of(config), []
    if config.dataset == "shakespeare_char":
        found.append(prepared(config, folder, config.dataset))
        tokens = 1_003_854
    else:
        tokens = len(Dataset(config.data_dir, config.dataset).splits["train"])
        if Dataset(config.data_dir, config.dataset).pairs:
            raise TinyGPTError(f"lab scale needs plain text, but {config.dataset} has pairs", "another --dataset")
        if tokens < LEAST_TOKENS:
            raise TinyGPTError(
                f"{config.dataset} has {tokens:,} training tokens, but lab scale needs {LEAST_TOKENS:,}",
                "prepare more text",
            )
    one_pass = min(tokens, MOST_TOKENS)
    runs = [(seed, *cell) for seed in seeds(config) for cell in product(size.widths, size.passes)]
    for seed, width, passes in [*runs, (1, *size.last)]:
        iterations = round(passes * one_pass / TOKENS)
        parameters = 12 * SHAPES[width][0] * width**2
        seconds = 4 + 6 * parameters * iterations * TOKENS / SPEED + iterations * 0.004
        compute = partial(fit_one, config, folder, seed, width, iterations)
        found.append(Stage(name(width, passes, seed), seconds, compute))
    return found


def name(width: int, passes: float, seed: int) -> str:
    return f"width {width}, {passes:g} passes, seed {seed}"


def fit_one(config: LabConfig, folder: Path, seed: int, width: int, iterations: int) -> dict[str, float]:
    """Train a model; return its size, its length and its loss on the complete validation split."""
    layers, heads = SHAPES[width]
    shape = [f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={width}"]
    length = [f"--max_iters={iterations}", f"--eval_interval={iterations}", f"--seed={seed}"]
    data = [f"--dataset={config.dataset}", f"--data_dir={config.data_dir}", "--eval_iters=1"]
    data.append(f"--warmup_iters={max(1, min(20, iterations // 5))}")
    out = folder / f"{width}-{iterations}-{seed}"
    cost = train(folder / "train.log", "train", "lab_scale", out, *shape, *length, *data)
    loss = validation_loss(out / "last.pt", Dataset(config.data_dir, config.dataset))
    for path in ("last.pt", "ckpt.pt"):  # in this order: without last.pt, an interrupted stage trains again
        (out / path).unlink()
    return {"parameters": cost.weights, "tokens": iterations * TOKENS, "loss": loss, "seconds": cost.seconds}


# ---- what the lab says ----------------------------------------------------------------------------------------------


def columns_of(results: Results, config: LabConfig) -> list[np.ndarray]:
    """The arguments of `fit`: parameters, tokens and losses of all runs but the last."""
    cells = product(size_of(config).widths, size_of(config).passes, seeds(config))
    every = [results[name(*cell)] for cell in cells]
    return [np.array([float(run[key]) for run in every]) for key in ("parameters", "tokens", "loss")]


def resampled(law: Law, columns: Sequence[np.ndarray], count: int = 200) -> list[Law]:
    """Fit laws to losses with resampled residuals: the residual bootstrap (Efron 1979), for the intervals."""
    rng, (parameters, tokens, losses) = np.random.default_rng(1), columns
    fitted = law.loss(parameters, tokens)
    residuals = (losses / fitted - 1) * np.sqrt(len(losses) / max(1, len(losses) - len(law)))
    return [fit(parameters, tokens, fitted * (1 + rng.choice(residuals, len(losses)))) for _ in range(count)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 10 % and the 90 % quantile: an interval of 80 %."""
    low, high = np.quantile(values, [0.1, 0.9])
    return float(low), float(high)


def computes(columns: Sequence[np.ndarray]) -> list[float]:
    """Powers of ten within the compute of the runs."""
    flop = 6 * columns[0] * columns[1]
    return [10.0**n for n in range(math.ceil(math.log10(flop.min())), math.floor(math.log10(flop.max())) + 1)]


def power(value: float) -> str:
    return f"10^{round(math.log10(value))}"


def best_loss(law: Law, compute: float) -> float:
    """The loss of the best size for a compute in FLOP."""
    best = law.best_parameters(compute)
    return float(law.loss(best, compute / 6 / best))


def summarise(results: Results, config: LabConfig) -> Summary:
    size = size_of(config)
    last = results[name(*size.last, 1)]
    cells = list(product(size.widths, size.passes))
    runs = {cell: [results[name(*cell, seed)] for seed in seeds(config)] for cell in cells}
    columns = columns_of(results, config)
    law = fit(*columns)
    others = resampled(law, columns)

    def ranged(value: Any, form: str) -> str:
        """A figure of the law, with its interval, if these runs determine it."""
        low, high = interval([value(each) for each in others])
        if not 0 < high < UNKNOWN * low:
            return "not determined"
        return f"{value(law):{form}} ({low:{form}} to {high:{form}})"

    speed = statistics.median(6 * run["parameters"] * run["tokens"] / run["seconds"] for run in runs[cells[-1]])
    grid = [
        [f"{width} x {SHAPES[width][0]}", f"{runs[width, size.passes[0]][0]['parameters']:,}"]
        + [spread([run["loss"] for run in runs[width, passes]], ".3f") for passes in size.passes]
        for width in size.widths
    ]
    said = [
        [
            title,
            per_parameter := ranged(lambda each, n=n: each.best_tokens(n) / n, ",.0f"),
            ranged(lambda each, n=n: each.loss(n, each.best_tokens(n)), ".2f"),
            duration(6 * n * law.best_tokens(n) / speed) if "(" in per_parameter else "not determined",
        ]
        for title, n in TARGETS.items()
    ]
    best_sizes = []
    for compute in computes(columns):
        best = law.best_parameters(compute)
        loss = ranged(lambda each, c=compute: best_loss(each, c), ".2f")
        best_sizes.append([power(compute), f"{best:,.0f}", f"{compute / 6 / best:,.0f}", loss])
    tables = [
        Table(
            "Loss by size and length",
            ["width x layers", "parameters", *(f"passes: {passes:g}" for passes in size.passes)],
            grid,
            "Validation loss in nats per token, on the complete split"
            + (": median (minimum to maximum) of the seeds." if len(seeds(config)) > 1 else "."),
        ),
        Table(
            "The law: loss = E + A / N^alpha + B / D^beta",
            ["E", "alpha", "beta", "growth of the best size"],
            [[ranged(lambda each: each.E, ".2f"), ranged(lambda each: each.alpha, ".2f"),
              ranged(lambda each: each.beta, ".2f"),
              ranged(lambda each: 10 ** (each.beta / (each.alpha + each.beta)), ".1f")]],
            f"N: parameters; D: training tokens; E: the irreducible loss. Fitted to {len(columns[0])} runs; in "
            f"parentheses, intervals of 80 % from {len(others)} bootstrap samples. Not determined: the interval "
            f"reaches down to 0, or its ends differ by more than a factor of {UNKNOWN}. Growth: by which factor the "
            "best size N grows with ten times the compute.",
        ),
        Table(
            "The best size for a compute, by the law",
            ["compute C in FLOP", "parameters N", "training tokens D", "loss"],
            best_sizes,
            "C = 6 N D: a training token costs about 6 operations (FLOP) for each parameter.",
        ),
        Table(
            "What the law says about larger models",
            ["parameters", "best tokens per parameter", "loss", "time on this machine"],
            said,
            f"An extrapolation: these models are {min(TARGETS.values()) / max(columns[0]):,.0f} and "
            f"{max(TARGETS.values()) / max(columns[0]):,.0f} times as large as the largest one in the fit. The "
            "intervals contain the error of the fit only. The law may not hold so far out, and it assumes new tokens "
            "of the same kind of text, of which this dataset has too few.",
        ),
    ]  # fmt: skip

    def draw(axes: Any) -> None:
        for index, width in enumerate(size.widths):
            n = runs[width, size.passes[0]][0]["parameters"]
            d = np.geomspace(min(columns[1]), max(columns[1]), 50)
            axes.plot(6 * n * d, law.loss(n, d), color=f"C{index}", alpha=0.6)
            some = [run for passes in size.passes for run in runs[width, passes]]
            axes.plot(
                [6 * run["parameters"] * run["tokens"] for run in some], [run["loss"] for run in some], "o",
                color=f"C{index}", markersize=4, label=f"{n / 1e3:,.0f} k parameters",
            )  # fmt: skip
        n, d = last["parameters"], np.geomspace(max(columns[1]) / 4, last["tokens"], 50)
        axes.plot(6 * n * d, law.loss(n, d), ":", color="black", label=f"{n / 1e3:,.0f} k, predicted")
        compute = np.geomspace(6 * min(columns[0] * columns[1]), 6 * last["parameters"] * last["tokens"], 50)
        axes.plot(
            compute, [best_loss(law, each) for each in compute], "--", color="gray", label="best size, by the law"
        )
        axes.plot(
            [6 * last["parameters"] * last["tokens"]], [last["loss"]], "*", color="black", markersize=10,
            label="held-out run",
        )  # fmt: skip
        axes.set(xlabel="compute (6 N D, FLOP)", ylabel="validation loss (nats per token)", xscale="log")
        axes.legend(frameon=False, fontsize=8, ncols=2)

    return Summary(
        "How does the loss depend on size and length?",
        f"Models of {columns[0].min():,.0f} to {columns[0].max():,.0f} parameters, trained on {config.dataset} with "
        f"{columns[1].min():,.0f} to {columns[1].max():,.0f} tokens.",
        tables,
        [predicted(law, last), divided(law, others), spent(law, others, columns)],
        "Validation loss against compute; points: runs, lines: the fitted law",
        draw,
    )


def predicted(law: Law, last: dict[str, float]) -> Verdict:
    """Whether the law predicts the largest run, which it was not fitted to."""
    said, was = float(law.loss(last["parameters"], last["tokens"])), last["loss"]
    error = abs(said / was - 1)
    return Verdict(
        f"The law {'predicts' if error < 0.02 else 'does not predict'} the largest run, of {last['parameters']:,} "
        f"parameters, which is held out: predicted {said:.3f}, measured {was:.3f} ({100 * error:.1f} %).",
        "the error is below 2 %",
    )


def divided(law: Law, others: Sequence[Law]) -> Verdict:
    """How to divide more compute."""
    low, high = interval([each.beta / (each.alpha + each.beta) for each in others])
    size = "it is not clear whether the best size or the best length grows faster"
    if low > 0.5:
        size = "the best size grows faster than the best length"
    elif high < 0.5:
        size = "the best length grows faster than the best size"
    return Verdict(
        f"With more compute C, {size}: the best size grows as C^{law.beta / (law.alpha + law.beta):.2f} "
        f"({low:.2f} to {high:.2f}).",
        "the 80 % interval of the exponent is above or below 0.5; Hoffmann et al. (2022) found 0.5 for large models",
    )


def spent(law: Law, others: Sequence[Law], columns: Sequence[np.ndarray]) -> Verdict:
    """What limits the largest model at the longest training: its size or its data."""
    n, d = columns[0].max(), columns[1].max()
    size, length = law.A * n**-law.alpha, law.B * d**-law.beta
    low, high = interval([each.E for each in others])
    gain = "from more data" if length > size else "from more parameters"
    return Verdict(
        f"The largest model in the fit, trained longest, could gain most {gain}: of the law's loss of "
        f"{law.loss(n, d):.2f}, {size:.2f} is due to its size and {length:.2f} to its data. The rest, {law.E:.2f} "
        f"({low:.2f} to {high:.2f}), is irreducible.",
        "the larger of the two terms A / N^alpha and B / D^beta",
    )


def law_file(results: Results, config: LabConfig, folder: Path) -> Path:
    """Write law.json, for `tinygpt plan --law`."""
    return fit(*columns_of(results, config)).write(folder, dataset=config.dataset)


LAB = Lab(
    "how the loss depends on size and length: a scaling law",
    stages,
    summarise,
    ("dataset",),
    others=("data_dir",),
    quick=True,
    more=law_file,
)
