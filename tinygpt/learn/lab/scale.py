"""`tinygpt lab scale`: how does the loss depend on the size of the model and on the length of its training?

Models of several sizes are trained for several lengths on one text, each with a complete schedule, and a scaling law is
fitted (scaling_law.py). It divides compute, C = 6 N D FLOP for N parameters and D training tokens (Kaplan et al. 2020),
between size and length. The last run needs the most compute and is held out: it tests the law.
"""

import math
import statistics
from collections.abc import Iterator
from functools import partial
from itertools import product
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import duration
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, spread
from tinygpt.learn.lab.definition import Lab, learn, prepared, seeds, stage
from tinygpt.learn.lab.scaling_law import UNKNOWN, Fitted, Law, fit_with_samples

# the model sizes: width (n_embd), and its layers and heads
SHAPES = {32: (2, 2), 48: (2, 3), 64: (3, 4), 96: (3, 6), 128: (4, 8), 160: (4, 10)}
TOKENS = 2048  # of a batch
MOST_TOKENS = 1_000_000  # of the training split that count as one pass, so that a large text does not take hours
LEAST_TOKENS = 150_000
TARGETS = {"10 M": 10e6, "124 M (GPT-2)": 124e6}  # parameters
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
        dataset = api.Dataset(config.data_dir, config.dataset)
        tokens = len(dataset.splits["train"])
        if dataset.pairs:
            raise TinyGPTError(f"lab scale needs plain text, but {config.dataset} has pairs", "another --dataset")
        if tokens < LEAST_TOKENS:
            problem = f"{config.dataset} has {tokens:,} training tokens, but lab scale needs {LEAST_TOKENS:,}"
            raise TinyGPTError(problem, "prepare more text")
    for seed, width, passes in [*product(seeds(config), size.widths, size.passes), (1, *size.last)]:
        iterations = round(passes * min(tokens, MOST_TOKENS) / TOKENS)
        parameters = 12 * SHAPES[width][0] * width**2
        seconds = 4 + 6 * parameters * iterations * TOKENS / SPEED + iterations * 0.004
        name = f"width {width}, {passes:g} passes, seed {seed}"
        case = {"seed": seed, "width": width, "passes": passes}
        yield stage(name, seconds, measure, config, folder, iterations, **case)


def measure(config: LabConfig, folder: Path, iterations: int, seed: int, width: int, passes: float) -> dict[str, float]:
    """Train a model; return its size, its length and its loss on the complete validation split."""
    layers, heads = SHAPES[width]
    settings = {"n_layer": layers, "n_head": heads, "n_embd": width, "seed": seed, "max_iters": iterations}
    settings |= {"warmup_iters": max(1, min(20, iterations // 5)), "eval_iters": 1}
    out = folder / f"{width}-{iterations}-{seed}"
    dataset = api.Dataset(config.data_dir, config.dataset)
    cost = learn("lab_scale", out, dataset, **settings).cost
    loss = api.load(out / "last.pt", device="cpu", dtype="bfloat16").loss(dataset)
    for path in ("last.pt", "ckpt.pt"):  # in this order: without last.pt, an interrupted stage trains again
        (out / path).unlink()
    return {"parameters": cost.weights, "tokens": iterations * TOKENS, "loss": loss, "seconds": cost.seconds}


def flop(run: dict[str, Any]) -> float:
    return 6.0 * run["parameters"] * run["tokens"]


def summarise(records: Records, config: LabConfig) -> Summary:
    last = records[-1]
    runs = Records(sorted(records[:-1], key=itemgetter("width", "passes", "seed")))
    sizes, lengths, measured = (np.array(runs.values(key), float) for key in ("parameters", "tokens", "loss"))
    fitted = fit_with_samples(sizes, lengths, measured)
    return Summary(
        "How does the loss depend on size and length?",
        f"Models of {sizes.min():,.0f} to {sizes.max():,.0f} parameters, trained on {config.dataset} with "
        f"{lengths.min():,.0f} to {lengths.max():,.0f} tokens.",
        [losses(runs), figures(fitted, len(runs)), best_sizes(fitted, runs), larger(fitted, runs)],
        [predicted(fitted.law, last), divided(fitted), spent(fitted, sizes.max(), lengths.max())],
        "Validation loss against compute; points: runs, lines: the fitted law",
        picture(fitted.law, runs, last),
    )


def losses(runs: Records) -> Table:
    rows = []
    for width, own in runs.by("width").items():
        row = {"width x layers": f"{width} x {SHAPES[width][0]}", "parameters": f"{own[0]['parameters']:,}"}
        row |= {f"passes: {passes:g}": spread(each.values("loss"), ".3f") for passes, each in own.by("passes").items()}
        rows.append(row)
    note = (
        "Validation loss in nats per token, on the complete split: median over the seeds (minimum to maximum). A pass "
        f"is the training split or, if it is longer, {MOST_TOKENS:,} tokens."
    )
    return Table("Loss by size and length", rows, note)


def figures(fitted: Fitted, runs: int) -> Table:
    law = fitted.law
    row = {key: fitted.as_text(attrgetter(key), ".2f") for key in ("E", "alpha", "beta")}
    row["growth of the best size"] = fitted.as_text(lambda law: 10**law.growth, ".1f")
    note = (
        f"Here: loss = {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}, with N: "
        f"parameters; D: training tokens; E: the irreducible loss. Fitted to {runs} runs; in parentheses, intervals of "
        f"80% from {len(fitted.samples)} bootstrap samples. Not determined: the interval reaches down to 0, or its "
        f"ends differ by more than a factor of {UNKNOWN}. Growth: by which factor the best size N grows with ten "
        "times the compute."
    )
    return Table("The law: loss = E + A / N^alpha + B / D^beta", [row], note)


def best_sizes(fitted: Fitted, runs: Records) -> Table:
    rows = []
    for compute, title in powers(runs).items():
        size = fitted.law.best_parameters(compute)
        known = 0 < size < math.inf
        row = {"compute C in FLOP": title, "parameters N": f"{size:,.0f}" if known else "not determined"}
        row["training tokens D"] = f"{compute / 6 / size:,.0f}" if known else "not determined"
        row["loss"] = fitted.as_text(partial(Law.best_loss, compute=compute), ".2f")
        rows.append(row)
    note = "C = 6 N D: a training token costs about 6 operations (FLOP) for each parameter."
    return Table("The best size for a compute, by the law", rows, note)


def powers(runs: Records) -> dict[float, str]:
    """Name the powers of ten within the compute of the runs."""
    exponents = [math.log10(flop(run)) for run in runs]
    return {10.0**n: f"10^{n}" for n in range(math.ceil(min(exponents)), math.floor(max(exponents)) + 1)}


def larger(fitted: Fitted, runs: Records) -> Table:
    """Extrapolate to TARGETS, with the time at the speed of the largest model in the fit, trained longest."""
    largest = runs.where(width=runs[-1]["width"], passes=runs[-1]["passes"])
    speed = statistics.median(flop(run) / run["seconds"] for run in largest)

    def row(title: str, n: float) -> dict[str, str]:
        best = fitted.as_text(lambda law: law.best_tokens(n) / n, ",.0f")
        return {
            "parameters": title,
            "best tokens per parameter": best,
            "loss": fitted.as_text(lambda law: law.loss(n, law.best_tokens(n)), ".2f"),
            "time on this machine": duration(6 * n * fitted.law.best_tokens(n) / speed) if "(" in best else best,
        }

    times = " and ".join(f"{target / largest[0]['parameters']:,.0f}" for target in TARGETS.values())
    note = (
        f"An extrapolation: these models are {times} times as large as the largest one in the fit. The intervals "
        "contain the error of the fit only. The law may not hold so far out, and it assumes more new tokens of the "
        "same kind than this dataset has."
    )
    return Table("What the law says about larger models", [row(*target) for target in TARGETS.items()], note)


def predicted(law: Law, last: dict[str, Any]) -> Verdict:
    """Judge whether the law predicts the largest run, which it was not fitted to."""
    expected = float(law.loss(last["parameters"], last["tokens"]))
    measured = last["loss"]
    error = round(abs(expected / measured - 1), 4)
    does = "predicts" if error < 0.02 else "does not predict"
    return Verdict(
        f"The law {does} the loss of the largest model, held out of "
        f"the fit: predicted {expected:.3f}, measured {measured:.3f}, an error of {100 * error:.2f}%.",
        "the error is below 2%",
    )


def divided(fitted: Fitted) -> Verdict:
    """State how to divide more compute between size and length."""
    low, high = fitted.interval(attrgetter("growth"))
    size = "it is not clear whether the best size or the best length grows faster"
    if low > 0.5:
        size = "the best size grows faster than the best length"
    elif high < 0.5:
        size = "the best length grows faster than the best size"
    return Verdict(
        f"With more compute C, {size}: the best size grows as C^{fitted.law.growth:.2f} ({low:.2f} to {high:.2f}).",
        "the 80% interval of the exponent is above or below 0.5; Hoffmann et al. (2022) found 0.5 for large models",
    )


def spent(fitted: Fitted, n: float, d: float) -> Verdict:
    """State what limits the largest model at the longest training: its size or its data."""
    law = fitted.law
    size = law.A * n**-law.alpha
    length = law.B * d**-law.beta
    low, high = fitted.interval(attrgetter("E"))
    gain = "from more data" if length > size else "from more parameters"
    return Verdict(
        f"The largest model in the fit, trained longest, could gain most {gain}: of the law's loss of "
        f"{law.loss(n, d):.2f}, {size:.2f} is due to its size and {length:.2f} to its data. The rest, {law.E:.2f} "
        f"({low:.2f} to {high:.2f}), is irreducible.",
        "the larger of the two terms A / N^alpha and B / D^beta",
    )


def picture(law: Law, runs: Records, last: dict[str, Any]) -> Plane:
    lines = []
    shortest = min(runs.values("tokens"))
    longest = max(runs.values("tokens"))
    for index, (n, own) in enumerate(runs.by("parameters").items()):
        d = np.geomspace(shortest, longest, 50)
        lines.append(Line("", 6 * n * d, law.loss(n, d), "-", f"C{index}", {"alpha": 0.6}))
        points = list(map(flop, own)), own.values("loss")
        lines.append(Line(f"{n / 1e3:,.0f} k parameters", *points, "o", f"C{index}"))
    n = last["parameters"]
    d = np.geomspace(longest / 4, last["tokens"], 50)
    lines.append(Line(f"{n / 1e3:,.0f} k, predicted", 6 * n * d, law.loss(n, d), ":", "black"))
    compute = np.geomspace(min(map(flop, runs)), flop(last), 50)
    lines.append(Line("best size, by the law", compute, list(map(law.best_loss, compute)), "--"))
    lines.append(Line("held-out run", [flop(last)], [last["loss"]], "*", "black", {"markersize": 10}))
    return Plane(
        "compute (6 N D, FLOP)", "validation loss (nats per token)", lines, powers(Records([*runs, last])), log=True
    )


LAB = Lab(
    "how does the loss depend on size and length of training?",
    stages,
    summarise,
    settings=("dataset",),
    others=("data_dir",),
    quick=True,
)
