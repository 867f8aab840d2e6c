"""`tinygpt lab scale`: how does the loss depend on the size of the model and on the length of its training?

Models of several sizes are trained for several lengths on one text, each with a complete schedule, and a scaling law is
fitted (eval/scaling_law.py). It divides compute, C = 6 N D FLOP for N parameters and D training tokens (Kaplan et al.
2020), between size and length. The last run needs the most compute and is held out: it tests the law.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import duration
from tinygpt.data.dataset import Dataset
from tinygpt.examine.eval.scaling_law import Law, fit
from tinygpt.examine.experiment.models import prepared, train
from tinygpt.examine.experiment.stages import Results, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, spread
from tinygpt.learn.lab.definition import Lab, seeds
from tinygpt.training.losses import validation_loss

# the model sizes: width (n_embd), and its layers and heads
SHAPES = {32: (2, 2), 48: (2, 3), 64: (3, 4), 96: (3, 6), 128: (4, 8), 160: (4, 10)}
TOKENS = 2048  # of a batch
MOST_TOKENS = 1_000_000  # of the training split that count as one pass, so that a large text does not take hours
LEAST_TOKENS = 150_000
TARGETS = {"10 M": 10e6, "124 M (GPT-2)": 124e6}  # parameters
UNKNOWN = 10  # a figure whose interval is wider than this factor is not determined
SPEED = 1.5e11  # FLOP per second of two cores, for the expected times


class Size(NamedTuple):
    widths: tuple[int, ...]
    passes: tuple[float, ...]
    last: tuple[int, float]  # width and passes of the held-out run


FULL = Size((32, 48, 64, 96, 128), (0.25, 0.5, 1, 2), (160, 4))
QUICK = Size((32, 48, 64, 96), (0.25, 0.5, 1), (128, 1))


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    """List the stages. Errors: TinyGPTError for a dataset of the user that is missing, or too small."""
    size = QUICK if config.quick else FULL
    if config.dataset == "shakespeare_char":
        yield prepared(config.data_dir, folder, config.dataset)
        tokens = 1_003_854
    else:
        dataset = Dataset(config.data_dir, config.dataset)
        tokens = len(dataset.splits["train"])
        if dataset.pairs:
            raise TinyGPTError(f"lab scale needs plain text, but {config.dataset} has pairs", "another --dataset")
        if tokens < LEAST_TOKENS:
            problem = f"{config.dataset} has {tokens:,} training tokens, but lab scale needs {LEAST_TOKENS:,}"
            raise TinyGPTError(problem, "prepare more text")
    one_pass = min(tokens, MOST_TOKENS)
    for seed, width, passes in [*product(seeds(config), size.widths, size.passes), (1, *size.last)]:
        iterations = round(passes * one_pass / TOKENS)
        parameters = 12 * SHAPES[width][0] * width**2
        seconds = 4 + 6 * parameters * iterations * TOKENS / SPEED + iterations * 0.004
        yield Stage(name(width, passes, seed), seconds, partial(fit_one, config, folder, seed, width, iterations))


def name(width: int, passes: float, seed: int) -> str:
    return f"width {width}, {passes:g} passes, seed {seed}"


def fit_one(config: LabConfig, folder: Path, seed: int, width: int, iterations: int) -> dict[str, float]:
    """Train a model; return its size, its length and its loss on the complete validation split."""
    layers, heads = SHAPES[width]
    settings = {"n_layer": layers, "n_head": heads, "n_embd": width, "seed": seed, "max_iters": iterations}
    settings |= {"warmup_iters": max(1, min(20, iterations // 5)), "eval_iters": 1}
    out = folder / f"{width}-{iterations}-{seed}"
    cost = train("train", "lab_scale", out, Path(config.data_dir, config.dataset), **settings)
    loss = validation_loss(out / "last.pt", Dataset(config.data_dir, config.dataset))
    for path in ("last.pt", "ckpt.pt"):  # in this order: without last.pt, an interrupted stage trains again
        (out / path).unlink()
    return {"parameters": cost.weights, "tokens": iterations * TOKENS, "loss": loss, "seconds": cost.seconds}


def columns_of(results: Results, config: LabConfig) -> list[np.ndarray]:
    """Return the arguments of `fit`: parameters, tokens and losses of all runs but the held-out one."""
    size = QUICK if config.quick else FULL
    runs = [results[name(*cell)] for cell in product(size.widths, size.passes, seeds(config))]
    return [np.array([float(run[key]) for run in runs]) for key in ("parameters", "tokens", "loss")]


def resampled(law: Law, columns: Sequence[np.ndarray], count: int = 200) -> list[Law]:
    """Fit laws to losses with resampled residuals: the residual bootstrap (Efron 1979), for the intervals."""
    rng, (parameters, tokens, losses) = np.random.default_rng(1), columns
    fitted = law.loss(parameters, tokens)
    residuals = (losses / fitted - 1) * np.sqrt(len(losses) / max(1, len(losses) - len(law)))
    return [fit(parameters, tokens, fitted * (1 + rng.choice(residuals, len(losses)))) for _ in range(count)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 10% and the 90% quantile: an 80% interval."""
    low, high = np.quantile(values, [0.1, 0.9])
    return float(low), float(high)


def growth(law: Law) -> float:
    """Return the exponent g of the best size, which grows with the compute C as C ** g."""
    return law.beta / (law.alpha + law.beta)


def best_loss(law: Law, compute: float) -> float:
    """Compute the loss of the best size for a compute in FLOP."""
    if not (law.A and law.B):  # size, or length, costs nothing: the best size is 0, or infinite
        return law.E
    best = law.best_parameters(compute)
    return float(law.loss(best, compute / 6 / best))


def summarise(results: Results, config: LabConfig) -> Summary:
    size = QUICK if config.quick else FULL
    last, cells = results[name(*size.last, 1)], list(product(size.widths, size.passes))
    runs = {cell: [results[name(*cell, seed)] for seed in seeds(config)] for cell in cells}
    parameters = {width: runs[width, size.passes[0]][0]["parameters"] for width in size.widths}
    columns = columns_of(results, config)
    law = fit(*columns)
    samples = resampled(law, columns)

    def ranged(value: Any, form: str) -> str:
        """Format a value of the law and its interval, if these runs determine it."""
        low, high = interval([value(fitted) for fitted in samples])
        if not 0 < high < UNKNOWN * low:
            return "not determined"
        return f"{value(law):{form}} ({low:{form}} to {high:{form}})"

    def flop(run: dict[str, float]) -> float:
        return 6 * run["parameters"] * run["tokens"]

    speed = statistics.median(flop(run) / run["seconds"] for run in runs[cells[-1]])
    grid = []
    for width in size.widths:
        row = {"width x layers": f"{width} x {SHAPES[width][0]}", "parameters": f"{parameters[width]:,}"}
        for passes in size.passes:
            row[f"passes: {passes:g}"] = spread([run["loss"] for run in runs[width, passes]], ".3f")
        grid.append(row)
    figures = {key: ranged(attrgetter(key), ".2f") for key in ("E", "alpha", "beta")}
    figures["growth of the best size"] = ranged(lambda fitted: 10 ** growth(fitted), ".1f")
    extrapolations = [
        {
            "parameters": title,
            "best tokens per parameter": (best := ranged(lambda fitted, n=n: fitted.best_tokens(n) / n, ",.0f")),
            "loss": ranged(lambda fitted, n=n: fitted.loss(n, fitted.best_tokens(n)), ".2f"),
            "time on this machine": duration(6 * n * law.best_tokens(n) / speed) if "(" in best else best,
        }
        for title, n in TARGETS.items()
    ]
    exponents = np.log10(6 * columns[0] * columns[1])
    best_sizes = [
        {
            "compute C in FLOP": f"10^{math.log10(compute):.0f}",
            "parameters N": f"{law.best_parameters(compute):,.0f}",
            "training tokens D": f"{compute / 6 / law.best_parameters(compute) if law.A else math.inf:,.0f}",
            "loss": ranged(lambda fitted, compute=compute: best_loss(fitted, compute), ".2f"),
        }
        for compute in [10.0**n for n in range(math.ceil(exponents.min()), math.floor(exponents.max()) + 1)]
    ]
    spreads = ": median (minimum to maximum) of the seeds" if len(seeds(config)) > 1 else ""
    flops = "C = 6 N D: a training token costs about 6 operations (FLOP) for each parameter."
    tables = [
        Table(
            "Loss by size and length",
            grid,
            f"Validation loss in nats per token, on the complete split{spreads}. A pass is the training split or, if "
            f"it is longer, {MOST_TOKENS:,} tokens.",
        ),
        Table(
            "The law: loss = E + A / N^alpha + B / D^beta",
            [figures],
            f"Here: loss = {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}, with N: "
            f"parameters; D: training tokens; E: the irreducible loss. Fitted to {len(columns[0])} runs; in "
            f"parentheses, intervals of 80% from {len(samples)} bootstrap samples. Not determined: the interval "
            f"reaches down to 0, or its ends differ by more than a factor of {UNKNOWN}. Growth: by which factor the "
            "best size N grows with ten times the compute.",
        ),
        Table("The best size for a compute, by the law", best_sizes, flops),
        Table(
            "What the law says about larger models",
            extrapolations,
            f"An extrapolation: these models are {min(TARGETS.values()) / max(columns[0]):,.0f} and "
            f"{max(TARGETS.values()) / max(columns[0]):,.0f} times as large as the largest one in the fit. The "
            "intervals contain the error of the fit only. The law may not hold so far out, and it assumes more "
            "new tokens of the same kind than this dataset has.",
        ),
    ]

    def draw(axes: Any) -> None:
        for index, (width, n) in enumerate(parameters.items()):
            d, color = np.geomspace(min(columns[1]), max(columns[1]), 50), f"C{index}"
            axes.plot(6 * n * d, law.loss(n, d), color=color, alpha=0.6)
            width_runs = [run for passes in size.passes for run in runs[width, passes]]
            points = list(map(flop, width_runs)), [run["loss"] for run in width_runs]
            axes.plot(*points, "o", color=color, markersize=4, label=f"{n / 1e3:,.0f} k parameters")
        n, d = last["parameters"], np.geomspace(max(columns[1]) / 4, last["tokens"], 50)
        axes.plot(6 * n * d, law.loss(n, d), ":", color="black", label=f"{n / 1e3:,.0f} k, predicted")
        compute = np.geomspace(6 * min(columns[0] * columns[1]), flop(last), 50)
        losses = [best_loss(law, budget) for budget in compute]
        axes.plot(compute, losses, "--", color="gray", label="best size, by the law")
        axes.plot([flop(last)], [last["loss"]], "*", color="black", markersize=10, label="held-out run")
        axes.set(xlabel="compute (6 N D, FLOP)", ylabel="validation loss (nats per token)", xscale="log")
        axes.legend(frameon=False, fontsize=8, ncols=2)

    return Summary(
        "How does the loss depend on size and length?",
        f"Models of {columns[0].min():,.0f} to {columns[0].max():,.0f} parameters, trained on {config.dataset} with "
        f"{columns[1].min():,.0f} to {columns[1].max():,.0f} tokens.",
        tables,
        [predicted(law, last), divided(law, samples), spent(law, samples, columns)],
        "Validation loss against compute; points: runs, lines: the fitted law",
        draw,
    )


def predicted(law: Law, last: dict[str, float]) -> Verdict:
    """Judge whether the law predicts the largest run, which it was not fitted to."""
    expected, measured = float(law.loss(last["parameters"], last["tokens"])), last["loss"]
    error = abs(expected / measured - 1)
    return Verdict(
        f"The law {'predicts' if error < 0.02 else 'does not predict'} the largest run, held out, with "
        f"{last['parameters']:,} parameters: predicted {expected:.3f}, measured {measured:.3f} ({100 * error:.1f}%).",
        "the error is below 2%",
    )


def divided(law: Law, samples: Sequence[Law]) -> Verdict:
    """State how to divide more compute between size and length."""
    low, high = interval(list(map(growth, samples)))
    size = "it is not clear whether the best size or the best length grows faster"
    if low > 0.5:
        size = "the best size grows faster than the best length"
    elif high < 0.5:
        size = "the best length grows faster than the best size"
    return Verdict(
        f"With more compute C, {size}: the best size grows as C^{growth(law):.2f} ({low:.2f} to {high:.2f}).",
        "the 80% interval of the exponent is above or below 0.5; Hoffmann et al. (2022) found 0.5 for large models",
    )


def spent(law: Law, samples: Sequence[Law], columns: Sequence[np.ndarray]) -> Verdict:
    """State what limits the largest model at the longest training: its size or its data."""
    n, d = columns[0].max(), columns[1].max()
    size, length = law.A * n**-law.alpha, law.B * d**-law.beta
    low, high = interval([fitted.E for fitted in samples])
    gain = "from more data" if length > size else "from more parameters"
    return Verdict(
        f"The largest model in the fit, trained longest, could gain most {gain}: of the law's loss of "
        f"{law.loss(n, d):.2f}, {size:.2f} is due to its size and {length:.2f} to its data. The rest, {law.E:.2f} "
        f"({low:.2f} to {high:.2f}), is irreducible.",
        "the larger of the two terms A / N^alpha and B / D^beta",
    )


ABOUT = "how the loss depends on size and length: a scaling law"
LAB = Lab(ABOUT, stages, summarise, settings=("dataset",), others=("data_dir",), quick=True)
