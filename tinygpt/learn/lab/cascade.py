"""`tinygpt lab cascade`: the n-gram baseline, then a tiny model, then a pretrained one, then a person.

Each stage answers the lines of which it is confident enough; the others go to the next one, as in the detector of Viola
and Jones (2001) and in FrugalGPT (Chen et al. 2023); Belcak et al. (2025) argue for small models first. A stage's
threshold is the lowest one at which, of the validation lines that reach it, the answered ones have the target accuracy.
"""

import hashlib
import statistics
import timeit
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Share, Summary, Table, Verdict, percent, pooled, spread
from tinygpt.learn.lab.confidence import FEWEST, SPLITS, TASK, answers, classifier, threshold
from tinygpt.learn.lab.definition import HOUR, TEST_LINES, Lab, learn, seeds, stage

PERSON = "person"
PERSON_SECONDS = 10.0  # an assumption, as that a person is always right
PERSON_PRICE = 50.0  # of 1,000 answers of a person: 18 per hour
TIMED = 30  # lines
TARGETS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)  # of the picture
ALONE = 0.0  # the target of a system that answers every line
GAIN = 0.05  # a stage that cuts the cost by a smaller share is not worth its complexity
# iterations of the tiny model, and of the pretrained one
FULL = (500, 100)
QUICK = (200, 20)
SYSTEMS = {"ngram": "n-gram baseline", "tiny": "tiny model", "pretrained": "pretrained model"}  # the cheapest first
MARKS = {**dict(zip(SYSTEMS.values(), ("s", "^", "D"), strict=True)), PERSON: "*"}  # in the picture

Names = tuple[str, ...]  # of the systems of a cascade, in order


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    base = config.pretrained
    tiny_steps, large_steps = QUICK if config.quick else FULL
    for seed in seeds(config):
        yield stage(f"train: tiny, seed {seed}", 3 + tiny_steps / 25, fit, folder, "", tiny_steps, seed=seed)
        for system in ("ngram", "tiny"):
            yield stage(f"ask: {system}, seed {seed}", 4, ask, folder, "", seed=seed, system=system)
        if base and seed == 1:
            yield stage(f"train: pretrained {base}, seed 1", 10 + large_steps, fit, folder, base, large_steps, seed=1)
            yield stage(f"ask: pretrained {base}, seed 1", 200, ask, folder, base, seed=1, system="pretrained")


def model_of(folder: Path, base: str, seed: int) -> Path:
    """Return the folder of the model of a seed: a tiny one, or a fine-tuned base."""
    name = f"pretrained-{hashlib.sha256(base.encode()).hexdigest()[:8]}" if base else "tiny"
    return folder / f"seed-{seed}" / name


def fit(folder: Path, base: str, iterations: int, seed: int) -> None:
    """Train a tiny model, or fine-tune a base."""
    task = api.task(TASK, seed)
    out = model_of(folder, base, seed)
    dataset = api.write_dataset(folder / f"data/{TASK}-{seed}", task.splits, task.labels)
    settings = {"seed": seed, "max_iters": iterations, "eval_iters": 10}
    if base:
        learn("finetune_transactions_pretrained", out, dataset, ckpt=base, **settings)
    else:
        learn("lab_classifier", out, dataset, **settings)


def ask(folder: Path, base: str, seed: int, system: str) -> dict[str, Any]:
    """Measure the answers of a system; latency: of one line, in seconds."""
    classify = classifier(seed, None if system == "ngram" else model_of(folder, base, seed))
    measured = answers(classify, seed, {})
    lines = api.task(TASK, seed).splits["test"][:TIMED]
    seconds = [timeit.timeit(partial(classify, [line]), number=1) for line, _ in lines]
    return measured | {"latency": statistics.median(seconds)}


def cascade(systems: Mapping[str, Mapping[str, Any]], target: float) -> dict[str, Any]:
    """Pass the lines through systems, given by their names; a person answers the rest. ALONE as the target: the first
    system answers all.

    Returns the accuracy, the cost of 1,000 lines and the mean seconds of a line; and the steps: the threshold of the
    system NAME ("threshold: NAME"), the share of the lines that reach it ("reaches: NAME"), the share that it answers
    ("by NAME"), and by split the correct ones among these ("test: NAME").
    """
    steps: dict[str, Any] = {}
    accuracy = 0.0
    seconds = 0.0
    rest = 1.0
    remaining: dict[str, np.ndarray] = {}
    for name, system in systems.items():
        levels, right = ({split: np.array(system[key][split]) for split in SPLITS} for key in ("confidence", "right"))
        remaining = remaining or {split: np.ones_like(right[split]) for split in SPLITS}
        reached = remaining["val"]
        limit = threshold(levels["val"][reached], right["val"][reached], target) if target else 0.0
        for split in SPLITS:
            answered = remaining[split] & (levels[split] >= limit)
            steps[f"{split}: {name}"] = Share(int(right[split][answered].sum()), int(answered.sum()))
            remaining[split] = remaining[split] & ~answered
        share = steps[f"test: {name}"]
        steps |= {f"threshold: {name}": limit, f"reaches: {name}": rest, f"by {name}": share.total / len(answered)}
        accuracy += share.hits / len(answered)
        seconds += rest * system["latency"]
        rest = float(remaining["test"].mean())
    return steps | {
        f"by {PERSON}": rest,
        "accuracy": accuracy + rest,
        "cost": 1000 * seconds / 3600 * HOUR + rest * PERSON_PRICE,
        "seconds": seconds + rest * PERSON_SECONDS,
    }


def cascades(asked: Records, targets: Sequence[float]) -> Records:
    """Run each system alone, and at each target: each system with a person, the first ones together with a person, and
    a person alone. A seed takes part in the runs of which it has all systems."""
    runs = Records()
    for seed, own in asked.by("seed").items():
        by_name = {SYSTEMS[record["system"]]: record for record in own}
        names = tuple(by_name)
        singles = [(name,) for name in names]
        together = [names[:length] for length in range(2, len(names) + 1)]
        for target, group in [*product([ALONE], singles), *product(targets, [*singles, *together, ()])]:
            figures = cascade({name: by_name[name] for name in group}, target)
            runs.append({"seed": seed, "systems": group, "target": target, **figures})
    return runs


def summarise(records: Records, config: LabConfig) -> Summary:
    runs = cascades(records.having("latency"), sorted({*TARGETS, config.target}))
    alone, chosen = (runs.where(target=target) for target in (ALONE, config.target))
    longest = max(chosen.values("systems"), key=len)
    own = chosen.where(systems=longest)
    common = Records(run for run in [*alone, *chosen] if run["seed"] in own.values("seed"))  # the same lines for each
    rows = []
    for (names, target), group in Records([*alone, *chosen]).by("systems", "target").items():
        members = names if target == ALONE else (*names, PERSON)
        shares = {who: [group.median(f"by {who}")] if f"by {who}" in group[0] else [] for who in (*longest, PERSON)}
        rows.append(
            {
                "system": ", ".join(members) + (" alone" if len(members) == 1 else ""),
                "accuracy": percent(group.values("accuracy")),
                "cost of 1,000": money(group.values("cost")),
                "time per line": time_of(group.median("seconds")),
                **{f"by {who}": percent(share, ".0f") for who, share in shares.items()},
            }
        )
    rows_note = (
        f"On {TEST_LINES}; median over the seeds (minimum to maximum), a pretrained model has one seed. Cost of 1,000 "
        f"lines: the latency of single lines on this machine, at {HOUR:g} per hour; a person {PERSON_PRICE:g}. By: "
        "share of the lines answered by this system. A person is assumed to be always correct and to take "
        f"{PERSON_SECONDS:g} seconds for a line."
    )
    if config.pretrained:
        rows_note += f" The pretrained model is {config.pretrained}."
    stages_note = (
        f"The cascade of {', '.join(longest)} and person. Threshold: the lowest confidence at which "
        f"{100 * config.target:g}% of the answered validation lines at this stage are correct (--target), if there are "
        f"at least {FEWEST}; none: no confidence reaches it. Accuracy: on the lines answered by the stage, in percent "
        "(95% interval, pooled over the seeds)."
    )
    steps = [
        {
            "stage": name,
            "threshold": spread(own.values(f"threshold: {name}"), ".2f"),
            "reaches it": percent(own.values(f"reaches: {name}")),
            "answers": percent(own.values(f"by {name}")),
            "accuracy, validation": str(pooled(own.values(f"val: {name}"))),
            "accuracy, test": str(pooled(own.values(f"test: {name}"))),
            "latency": time_of(alone.where(systems=(name,)).median("seconds")),
        }
        for name in longest
    ]
    return Summary(
        "Start simple, and add a system only where it is needed",
        "Card-statement lines: each stage answers those of which it is confident enough; the rest go to the next one.",
        [
            Table("Systems alone, and cascades", rows, rows_note),
            Table("The stages of the longest cascade", steps, stages_note),
        ],
        [simplest(common, longest), promise(own, longest, config.target)],
        "Accuracy against cost; a line is a cascade at several targets, a circle the chosen one",
        picture(runs, config.target),
    )


def money(values: Sequence[float]) -> str:
    """Format prices, with two decimals, or five if they are low."""
    return spread(values, ".2f" if statistics.median(values) >= 0.1 else ".5f")


def time_of(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def simplest(runs: Records, longest: Names) -> Verdict:
    """Choose the cascade with the fewest stages, or none, whose cost is close to that of the cheapest. runs: at the
    chosen target, of seeds with all systems."""
    together = Records(run for run in runs if run["target"] != ALONE).by("systems")
    costs = {(): PERSON_PRICE} | {names: own.median("cost") for names, own in together.items()}  # the simplest first
    low = min(costs.values())
    start = next(names for names, cost in costs.items() if cost <= (1 + GAIN) * low)
    first = [longest[: number + 1] for number in range(len(longest))]
    steps = "; ".join(f"{', '.join(names)} and person: {costs[names]:.2f}" for names in first)
    advice = f"the {' and the '.join(start)}; a person answers the rest" if start else "a person alone"
    return Verdict(
        f"Start with {advice}. 1,000 lines cost {costs[start]:.2f}; in the cheapest way {low:.2f}; by a person alone "
        f"{PERSON_PRICE:.2f}.",
        "a person alone, or the cascade with the fewest and simplest stages, among those at most "
        f"{100 * GAIN:.0f}% above the cheapest; on common seeds. Stage by stage: {steps}",
    )


def promise(own: Records, names: Names, target: float) -> Verdict:
    """Judge whether the answered test lines reach the accuracy for which the thresholds were chosen."""
    statements = []
    for name in names:
        share = pooled(own.values(f"test: {name}"))
        low, high = share.interval()
        kept = share.compared(target, "missed", "kept", "exceeded")
        figures = f"{100 * share.value():.1f}%, 95% interval {100 * low:.1f} to {100 * high:.1f}%"
        statements.append(f"{name}: {kept} ({figures})" if share.total else f"{name}: no answers")
    return Verdict(
        f"The target of each stage is {100 * target:g}% correct answers. On the test lines: {'; '.join(statements)}.",
        "a stage keeps the target if the 95% interval contains it: correct ones among its test lines, all seeds",
    )


def picture(runs: Records, target: float) -> Plane:
    """Draw accuracy against cost: a line for each cascade, a point for each system alone."""
    lines = []
    points = {case: (own.median("cost"), own.percent("accuracy")) for case, own in runs.by("systems", "target").items()}
    together = [names for names in runs.where(target=target).by("systems") if names]
    for index, names in enumerate(together):
        # lines that coincide remain visible
        color = f"C{index}"
        width = 2 + len(together) - index
        x, y = zip(*(points[names, each] for each in TARGETS), strict=True)
        look = {"linewidth": width, "markersize": width + 2}
        lines.append(Line(f"{', '.join(names)}, {PERSON}", x, y, "o-", color, look))
        cost, accuracy = points[names, target]
        lines.append(Line("", [cost], [accuracy], "o", color, {"markersize": 12, "markerfacecolor": "none"}))
    for names, each in [*(((name,), ALONE) for name in max(together, key=len)), ((), target)]:
        name = (*names, PERSON)[0]
        cost, accuracy = points[names, each]
        lines.append(Line(f"{name} alone", [cost], [accuracy], MARKS[name], "black", {"markersize": 7}))
    return Plane("cost of 1,000 lines", "accuracy (%)", lines)


LAB = Lab(
    "which lines need a person or a larger model?",
    stages,
    summarise,
    models=("pretrained",),
    others=("target",),
    quick=True,
    ngrams=True,
)
