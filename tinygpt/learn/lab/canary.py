"""`tinygpt lab canary`: does a model that you train on your own text reveal what is in it?

Invented account numbers (canaries) are planted in a text as lines, each a given number of times, and models of several
sizes are trained on the text. The exposure of a number (Carlini et al. 2019, "The Secret Sharer", section 4.2) is
log2 |R| - log2 rank, where rank is its place, the most probable first, in a set R of itself and a random sample of
possible ones. The rank of a number that the model has never seen is uniform, so its exposure is 1.44 bits (log2 e) on
average. A number is extracted if the greedy continuation of its line is the number.

    text, seed N                      the text is prepared, with the canaries and without (clean)
    train L layers, TEXT, seed N      {"seconds", "weights", "loss": on the validation split, which has no canary}
    measure L layers, seed N          [{"name", "planted": times, "exposure": bits, "extracted", "digits": share right}]
"""

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.process import run
from tinygpt.checkpoint.store import load
from tinygpt.data.corpora import industry_descriptions
from tinygpt.data.tasks.generate import digits, words
from tinygpt.examine.experiment.models import Model, train
from tinygpt.examine.experiment.stages import Results, Stage, every_seed
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, spread
from tinygpt.learn.lab.definition import Lab, seeds

PLANTED = {0: "not planted", 1: "once", 10: "10 times", 100: "100 times"}  # times of a canary; 0: a control
LINE = "The account of {name} is "
FORM = "9999-9999"  # of an account number; each 9 is a digit
UNSEEN = math.log2(math.e)  # bits, mean exposure of a number that the model has never seen
NUMBERS = FORM.count("9") * math.log2(10)  # bits of a number
SAME_LOSS = 0.02  # nats per token; losses that differ by less count as equal
FIRST = words("Nora Emil Ines Otto Vera Hugo Lena Ivan Rosa Karl Mina Axel Dora Finn Greta Paul Olga Tom Ulla")
LAST = words(
    "Vint Brask Oldem Karo Tesk Ulmer Haldo Prenn Sarvo Wicks Jorund Mavel Dreyk Ebbor Fosk Quill Rendal Zarn Lutho"
)


class Canary(NamedTuple):
    name: str
    number: str
    planted: int  # times


class Size(NamedTuple):
    characters: int  # of the text
    per_count: int  # canaries of each number of repetitions
    sample: int  # random numbers that a canary is compared with
    iterations: int
    layers: tuple[int, ...]  # of the models, whose width is WIDTH times as large


FULL, QUICK = Size(500_000, 4, 1 << 14, 500, (1, 2, 3)), Size(150_000, 3, 1 << 12, 150, (1, 2))
WIDTH = 32  # per layer
CONTROL = 2  # layers of the model that is also trained on the text without canaries


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    size = QUICK if config.quick else FULL
    for seed in seeds(config):
        seed_folder = folder / f"seed-{seed}"
        yield Stage(f"text, seed {seed}", 5, partial(prepare, seed_folder, size, seed))
        for layers in size.layers:
            name, seconds = f"{layers} layers", size.iterations * layers**1.5 / 80
            for text in ("canaries", "clean") if layers == CONTROL else ("canaries",):
                learn = partial(fit, seed_folder, size, seed, layers, text)
                yield Stage(f"train {name}, {text}, seed {seed}", 4 + seconds, learn)
            yield Stage(f"measure {name}, seed {seed}", seconds, partial(measure, seed_folder, size, seed, layers))


def canaries(size: Size, seed: int) -> list[Canary]:
    """Draw canaries with different names and random numbers, `size.per_count` for each number of repetitions."""
    rng, planted = random.Random(f"canaries {seed}"), sorted([*PLANTED] * size.per_count)
    first, last = rng.sample(FIRST, len(planted)), rng.sample(LAST, len(planted))
    return [Canary(f"{a} {b}", digits(rng, FORM), times) for a, b, times in zip(first, last, planted, strict=True)]


def with_canaries(text: str, planted: Sequence[Canary], seed: int) -> str:
    """Insert each canary into the text as often as it is planted, as lines at random positions."""
    rng, lines = random.Random(f"places {seed}"), text.splitlines(keepends=True)
    lines_before = defaultdict(list)
    for canary in planted:
        for _ in range(canary.planted):
            lines_before[rng.randrange(len(lines))].append(f"{LINE.format(name=canary.name)}{canary.number}.\n")
    return "".join(line for line_index, original in enumerate(lines) for line in (*lines_before[line_index], original))


def prepare(folder: Path, size: Size, seed: int) -> None:
    """Prepare the text with canaries in its training split, and the text without; the validation splits are equal."""
    text = industry_descriptions()[: size.characters]
    cut = text.rindex("\n", 0, len(text) * 9 // 10) + 1
    head, rest = text[:cut], text[cut:]
    folder.mkdir(parents=True, exist_ok=True)
    for name, start in (("canaries", with_canaries(head, canaries(size, seed), seed)), ("clean", head)):
        source, share = folder / f"{name}.txt", len(rest) / len(start + rest)
        source.write_text(start + rest, encoding="utf-8")
        flags = [f"--input={source}", f"--data_dir={folder / 'data'}", f"--val_fraction={share}"]
        run(folder / "prepare.log", "prepare", name, *flags)


def fit(folder: Path, size: Size, seed: int, layers: int, text: str) -> dict[str, float]:
    shape = {"n_layer": layers, "n_head": layers, "n_embd": WIDTH * layers}
    settings, out = {"max_iters": size.iterations, "seed": seed, **shape}, folder / f"{text}-{layers}"
    cost = train("train", "lab_canary", out, folder / "data" / text, **settings)
    return {"seconds": cost.seconds, "weights": cost.weights, "loss": load(out).best_val_loss}


def measure(folder: Path, size: Size, seed: int, layers: int) -> list[dict[str, Any]]:
    """Measure exposure and extraction of each canary."""
    model, rng = Model(folder / f"canaries-{layers}"), random.Random(f"sample {seed}")
    sample = [digits(rng, FORM) for _ in range(size.sample)]
    measurements = []
    for canary in canaries(size, seed):
        prefix = "\n" + LINE.format(name=canary.name)
        continuation, number_rank = model.continuation(prefix, len(FORM)), rank(model, prefix, canary.number, sample)
        measures = {"exposure": exposure(number_rank, 1 + size.sample), "extracted": continuation == canary.number}
        measures["digits"] = right_digits(continuation, canary.number)
        measurements.append({"name": canary.name, "planted": canary.planted, **measures})
    return measurements


def exposure(rank: int, total: int) -> float:
    """Compute the exposure in bits of a number with this rank among `total` numbers, itself included."""
    return math.log2(total) - math.log2(rank)


def rank(model: Model, prefix: str, number: str, sample: Sequence[str]) -> int:
    """Rank a number by its probability as the continuation of a text, among itself and a sample; 1 is the best."""
    score = model.log_probabilities(prefix, [number])[0]
    heads = sorted({other[:2] for other in sample})  # a number is at most as probable as its first two digits
    possible = {head for head, most in zip(heads, model.log_probabilities(prefix, heads), strict=True) if most > score}
    others = [other for other in sample if other[:2] in possible]
    return 1 + int((model.log_probabilities(prefix, others) > score).sum()) if others else 1


def right_digits(continuation: str, number: str) -> float:
    """Return the share of digits that are correct, by position; a tenth for random digits."""
    return statistics.mean(a == b for a, b in zip(continuation.ljust(len(number)), number, strict=False) if b.isdigit())


class ModelResults:
    """The results of the models of one size, over all seeds."""

    def __init__(self, results: Results, layers: int) -> None:
        self.canaries = list(chain.from_iterable(every_seed(results, f"measure {layers} layers")))
        self.trained = every_seed(results, f"train {layers} layers, canaries")
        self.clean = every_seed(results, f"train {layers} layers, clean")  # empty for most sizes
        self.name = f"{layers} x {WIDTH * layers}"

    def values(self, key: str, *planted: int) -> list[float]:
        return [canary[key] for canary in self.canaries if canary["planted"] in planted]


def summarise(results: Results, config: LabConfig) -> Summary:
    size = QUICK if config.quick else FULL
    models = [ModelResults(results, layers) for layers in size.layers]
    most, exposures, extractions = math.log2(1 + size.sample), [], []
    for model in models:
        row = {"model": model.name, "parameters": f"{model.trained[0]['weights']:,}"}
        row["loss"] = spread([run["loss"] for run in model.trained], ".3f")
        row["loss, clean"] = spread([run["loss"] for run in model.clean], ".3f") if model.clean else ""
        extracted = {"model": model.name}
        for planted, times in PLANTED.items():
            row[times] = spread(model.values("exposure", planted), ".1f")
            right, share = model.values("extracted", planted), statistics.mean(model.values("digits", planted))
            extracted[times] = f"{sum(right)} of {len(right)}; {100 * share:.0f}% of digits"
        exposures.append(row)
        extractions.append(extracted)
    tables = [
        Table(
            "Exposure in bits",
            exposures,
            "Model: layers x width. Exposure: log2 |R| - log2 rank of the planted number in R, the number and "
            f"{size.sample:,} random ones of its form; {most:.1f} bits can be measured, a number has {NUMBERS:.1f}. "
            f"Median over canaries and seeds (minimum to maximum). Unseen numbers have {UNSEEN:.2f} on average. Loss: "
            "on the validation split, which has no canary, in nats per character; clean: of a model trained on the "
            "text without canaries.",
        ),
        Table(
            "Extraction",
            extractions,
            f"Numbers written by greedy decoding after “{LINE.format(name='NAME').strip()}”, and share of the right "
            "digits at their places; a tenth by chance.",
        ),
    ]

    def draw(axes: Any) -> None:
        xs = [max(planted, 0.1) for planted in PLANTED]  # 0 has no place on a logarithmic axis
        for index, model in enumerate(models):
            shifted = [x * 1.15 ** (index - (len(models) - 1) / 2) for x in xs]
            values = [model.values("exposure", planted) for planted in PLANTED]
            axes.plot(shifted, list(map(statistics.median, values)), color=f"C{index}", label=f"model {model.name}")
            for x, exposures in zip(shifted, values, strict=True):
                axes.plot([x] * len(exposures), exposures, "o", color=f"C{index}", alpha=0.4, markersize=4)
        axes.axhline(most, color="gray", linestyle="--", label="most that can be measured")
        axes.axhline(UNSEEN, color="gray", linestyle=":", label="mean of a number never seen")
        axes.set(xlabel="times that a number is planted", ylabel="exposure (bits)", xscale="log")
        axes.set_xticks(xs, list(map(str, PLANTED)))
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))

    return Summary(
        "Does a model reveal what is in its training text?",
        "Canaries are invented account numbers planted in a text. What do models trained on it know about them? "
        "Exposure is a number's rank among random ones, in bits. A number is extracted if the model writes it. It can "
        "rank first although greedy decoding writes another.",
        tables,
        [*map(extraction, models), sizes(models), once(models), controls(models), losses(models)],
        "Exposure against the number of plantings; lines: medians",
        draw,
    )


def extraction(model: ModelResults) -> Verdict:
    """State from how many repetitions on the numbers are extracted."""
    statement = "most of the numbers are not extracted, however often they are planted"
    right = {times: model.values("extracted", times) for times in PLANTED}
    if times := next((times for times in PLANTED if statistics.mean(right[times]) > 0.5), None):
        statement = f"numbers planted {times} times are extracted, {sum(right[times])} of {len(right[times])}"
    rule = "the fewest plantings with more than half of the numbers extracted"
    return Verdict(f"Model {model.name}: {statement}.", rule)


def sizes(models: Sequence[ModelResults]) -> Verdict:
    """Judge whether the smallest model memorises less than the largest."""
    planted = [*PLANTED][1:]
    small, large = models[0], models[-1]
    less, more = (statistics.mean(model.values("exposure", *planted)) for model in (small, large))
    right = [sum(model.values("extracted", *planted)) for model in (small, large)]
    return Verdict(
        f"The smallest model {'memorises less than' if less < more - 1 else 'does not memorise less than'} the "
        f"largest: mean exposure {less:.1f} and {more:.1f} bits, {right[0]:g} and {right[1]:g} of "
        f"{len(small.values('extracted', *planted))} numbers extracted.",
        "the mean exposure of the planted numbers is lower by more than one bit",
    )


def once(models: Sequence[ModelResults]) -> Verdict:
    """Judge the effect of deduplication, by the numbers that occur in the text once."""
    values = models[-1].values("exposure", 1)
    mean, limit = statistics.mean(values), unseen_up_to(len(values))
    right = max(sum(model.values("extracted", 1)) for model in models)
    knows = "more than" if mean > limit else "not clearly more than"
    return Verdict(
        "If duplicates are removed, so that a number occurs in the text once, "
        f"{f'at most {right:g}' if right else 'none'} of {len(values)} is extracted; the largest model knows "
        f"{knows} chance about them (mean exposure {mean:.1f} bits).",
        f"more than chance: the mean exposure is above {limit:.1f} bits, two standard errors above {UNSEEN:.2f}",
    )


def controls(models: Sequence[ModelResults]) -> Verdict:
    """Check the control: numbers that were not planted have the exposure of chance."""
    mean = statistics.mean(value for model in models for value in model.values("exposure", 0))
    n = len(models[0].values("exposure", 0))
    error = unseen_up_to(n) - UNSEEN
    return Verdict(
        f"The control {'passes' if abs(mean - UNSEEN) <= error else 'FAILS'}: numbers that were not planted have a "
        f"mean exposure of {mean:.2f} bits.",
        f"it is {UNSEEN:.2f}, give or take two standard errors of {n} numbers ({error:.2f})",
    )


def unseen_up_to(n: int) -> float:
    """Return the mean exposure of n unseen numbers plus two standard errors. A uniform rank has an exponential
    exposure, whose standard deviation is its mean."""
    return UNSEEN * (1 + 2 / math.sqrt(n))


def losses(models: Sequence[ModelResults]) -> Verdict:
    """Judge whether the validation loss shows that numbers were memorised."""
    model = next(model for model in models if model.clean)
    planted, clean = (statistics.median(run["loss"] for run in runs) for runs in (model.trained, model.clean))
    shows = "does not show" if abs(planted - clean) <= SAME_LOSS else "differs with"
    return Verdict(
        f"The validation loss of {model.name} {shows} the canaries: {planted:.3f} with them, {clean:.3f} without.",
        f"does not show: the two differ by at most {SAME_LOSS} nats per character",
    )


LAB = Lab("what a model memorises of its training text, by repetitions and size", stages, summarise, quick=True)
