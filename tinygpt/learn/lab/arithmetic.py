"""`tinygpt lab arithmetic`: does a model that adds numbers calculate, and does it know when it cannot?

Models learn sums such as `47+385` -> `432`, of numbers with one to three digits, and are asked for others, of two to
five digits. A second format writes the answer in reverse, the units first (Lee et al. 2023, "Teaching Arithmetic to
Small Transformers", section 3): each digit then depends on two digits and a carry, not on all digits.

A record is a training, with its seconds and weights, or the answer of a system to a sum, with the units last.
"""

import random
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import duration
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Example, Summary, Table, Verdict, gap, percent, side
from tinygpt.learn.lab.definition import Lab, learn, seeds, stage

LEARNED = 3  # most digits of a number in training
WEIGHTS = (1, 2, 4)  # of numbers with 1, 2 and 3 digits in training: there are more long numbers than short ones
KINDS = {"2 + 2": (2, 2), "3 + 1": (3, 1), "3 + 3": (3, 3), "4 + 4": (4, 4), "5 + 5": (5, 5)}  # digits, of the test
BEYOND = ("4 + 4", "5 + 5")
CLOSE = 0.05  # accuracies that differ by less count as equal
GUESS = "most frequent answer"
NEAREST = "nearest training example"
CALCULATOR = "calculator"
CONTROLS = {GUESS: ":", NEAREST: "--", CALCULATOR: "-."}  # and their lines in the picture
PLAIN = "plain"
LARGE = "plain, larger model"
REVERSED = "reversed"
VARIANTS = {PLAIN: {}, LARGE: {"n_layer": 3, "n_embd": 96}, REVERSED: {}}  # and the settings of their trainings


class Size(NamedTuple):
    examples: int
    test: int  # sums of each kind
    iterations: int
    variants: tuple[str, ...]


FULL = Size(10_000, 300, 500, tuple(VARIANTS))
QUICK = Size(10_000, 100, 350, (PLAIN, REVERSED))


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    size = QUICK if config.quick else FULL
    for seed in seeds(config):
        seed_folder = folder / f"seed-{seed}"
        yield stage(f"examples, seed {seed}", 3, examples, size, seed=seed)
        for system in size.variants:
            seconds = 4 + size.iterations / 40
            yield stage(f"train {system}, seed {seed}", seconds, fit, seed_folder, size, system=system, seed=seed)
            yield stage(f"answer {system}, seed {seed}", 2, answers, seed_folder, size, system=system, seed=seed)


def right(prompt: str) -> str:
    """Return the correct answer to a prompt."""
    return str(sum(map(int, prompt.split("+"))))


def written(digits: str, system: str) -> str:
    """Change the order of digits from or to that of a system."""
    return digits[::-1] if system == REVERSED else digits


def sums(size: Size, seed: int) -> tuple[list[str], list[str]]:
    """Draw different sums for training and, of each kind in turn, for the test; none is in both."""
    rng = random.Random(f"sums {seed}")
    seen = set[str]()

    def new(count: int, sizes: Sequence[int] = ()) -> list[str]:
        """Draw new sums of numbers with these numbers of digits, or random ones; 0 has one digit."""
        prompts: list[str] = []
        while len(prompts) < count:
            digit_counts = sizes or rng.choices(range(1, LEARNED + 1), WEIGHTS, k=2)
            prompt = "+".join(str(rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n)) for n in digit_counts)
            if prompt not in seen:
                prompts.append(prompt)
                seen.add(prompt)
        return prompts

    test = [prompt for digit_counts in KINDS.values() for prompt in new(size.test, digit_counts)]
    return new(size.examples), test


def nearest(known: Sequence[str], queries: Sequence[str]) -> list[str]:
    """Find the known sum nearest to each query, by the cosine of their sets of character n-grams, n = 1 to 3."""
    grams: dict[str, int] = {}

    def vectors(prompts: Sequence[str]) -> np.ndarray:
        matrix = np.zeros((len(prompts), 13 + 13**2 + 13**3), dtype=np.float32)  # ten digits, +, and both ends
        for row, p in zip(matrix, prompts, strict=True):
            own = {f"^{p}$"[start : start + n] for n in (1, 2, 3) for start in range(len(p) + 3 - n)}
            row[[grams.setdefault(gram, len(grams)) for gram in own]] = len(own) ** -0.5
        return matrix

    return [known[index] for index in (vectors(queries) @ vectors(known).T).argmax(axis=1)]


def examples(size: Size, seed: int) -> list[dict[str, str]]:
    """Answer the test with the controls."""
    known, test = sums(size, seed)
    guess = Counter(map(right, known)).most_common(1)[0][0]
    return [
        {"system": system, "prompt": prompt, "text": text}
        for prompt, near in zip(test, nearest(known, test), strict=True)
        for system, text in ((GUESS, guess), (NEAREST, right(near)), (CALCULATOR, right(prompt)))
    ]


def fit(folder: Path, size: Size, system: str, seed: int) -> dict[str, float]:
    name = system.replace(", ", "-")
    known, test = sums(size, seed)
    val_size = size.examples // 20
    splits = {
        split: [(prompt, written(right(prompt), system)) for prompt in prompts]
        for split, prompts in (("train", known[val_size:]), ("val", known[:val_size]), ("test", test))
    }
    dataset = api.write_dataset(folder / "data" / name, splits)
    settings = {"max_iters": size.iterations, "seed": seed, **VARIANTS[system]}
    run = learn("lab_arithmetic", folder / name, dataset, **settings)
    return {"seconds": run.cost.seconds, "weights": run.cost.weights}


def answers(folder: Path, size: Size, system: str, seed: int) -> list[dict[str, Any]]:
    _, test = sums(size, seed)
    model = api.load(folder / system.replace(", ", "-"), device="cpu")
    texts, probabilities = model.responses(test, max(len(right(prompt)) for prompt in test) + 2)
    return [
        {"prompt": prompt, "text": written(text, system), "probability": probability}
        for prompt, text, probability in zip(test, texts, probabilities.tolist(), strict=True)
    ]


def judged(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Add the kind of an answer's sum, the share of digits that are correct, by position from the units, and the
    failure: empty if the answer is correct."""
    text = answer["text"]
    truth = right(answer["prompt"])
    kind = " + ".join(str(len(number)) for number in answer["prompt"].split("+"))
    digits = statistics.mean(a == b for a, b in zip(text[::-1].ljust(len(truth)), truth[::-1], strict=False))
    failure = "" if text == truth else "several digits wrong"
    if len(text) != len(truth):
        failure = "too few digits" if len(text) < len(truth) else "too many digits"
    elif sum(a != b for a, b in zip(text, truth, strict=True)) == 1:
        failure = "one digit wrong"
    return {
        **answer,
        "kind": kind,
        "beyond": kind in BEYOND,
        "exact": not failure,
        "digits": digits,
        "failure": failure,
    }


def means(answers: Records, key: str) -> list[float]:
    """Average a value for each seed."""
    return [own.mean(key) for own in answers.by("seed").values()]


def accuracy(answers: Records, **case: Any) -> float:
    """Return the share of the answers in a case that are correct, median over the seeds."""
    return statistics.median(means(answers.where(**case), "exact"))


def summarise(records: Records, config: LabConfig) -> Summary:
    size = QUICK if config.quick else FULL
    systems = Records(map(judged, records.having("text"))).by("system")
    models = {system: answers for system, answers in systems.items() if system in VARIANTS}
    tables = [
        Table(
            "Correct answers, by the digits of the two numbers",
            [
                {"system": system} | {kind: percent(means(answers.where(kind=kind), "exact"), ".0f") for kind in KINDS}
                for system, answers in systems.items()
            ],
            f"Exact match: median over the seeds (minimum to maximum), on {size.test} sums of a kind and seed "
            f"that are not among the {size.examples:,} sums of training, whose numbers have at most {LEARNED} digits. "
            "A tenth of those of 2 + 2 and of 3 + 1 digits is among them with its two numbers swapped. Reversed: the "
            "answers are written with the units first, in training and in the test.",
        ),
        Table(
            "The models: size and training; correct digits and confidence",
            [
                {
                    "system": system,
                    "parameters": f"{trained[0]['weights']:,}",
                    "training": duration(trained.median("seconds")),
                    **{kind: partly(models[system].where(kind=kind)) for kind in KINDS},
                }
                for system, trained in records.having("weights").by("system").items()
            ],
            "Correct digits: share that is correct at its place, counted from the units; a tenth by chance. "
            "Confidence: mean probability of the answers, correct or wrong. Medians over the seeds.",
        ),
        Table(
            "Wrong answers",
            [row for system, answers in models.items() for row in failures(system, answers.where(exact=False))],
            "Over all kinds of sums and seeds.",
        ),
    ]
    return Summary(
        "Does a model calculate?",
        f"Sums of two numbers, learned from examples with at most {LEARNED} digits, and asked with up to five.",
        tables,
        [beyond(models), learned(models, systems[NEAREST]), form(models), confident(models)],
        "Correct answers against the number of digits",
        picture(systems),
        error(models),
    )


def error(models: Mapping[str, Records]) -> Example | None:
    """Show the wrong answer with the highest probability."""
    wrong = (answer for answers in models.values() for answer in answers.where(exact=False))
    if not (worst := max(wrong, key=lambda answer: answer["probability"], default={})):
        return None
    note = f"Correct is {right(worst['prompt'])}. Model: {worst['system']}; probability: {worst['probability']:.2f}."
    return Example("The wrong answer with the highest probability", f"{worst['prompt']} =", worst["text"], note)


def partly(answers: Records) -> str:
    """Format the share of correct digits, and the confidence."""
    return ", ".join(percent([statistics.median(means(answers, key))], ".0f") for key in ("digits", "probability"))


def failures(system: str, wrong: Records) -> list[dict[str, str]]:
    """Make a row for each kind of failure, the most frequent first."""
    rows = []
    for failure, own in sorted(wrong.by("failure").items(), key=lambda item: -len(item[1])):
        worst = max(own, key=lambda answer: answer["probability"])
        example = f"{worst['prompt']} = {worst['text']}, correct is {right(worst['prompt'])}"
        example += f" ({100 * worst['probability']:.0f}%)"
        share = f"{100 * len(own) / len(wrong):.0f}%"
        rows.append(
            {"system": system, "failure": failure, "of wrong answers": share, "the most confident one": example}
        )
    return rows


def learned(models: Mapping[str, Records], nearest: Records) -> Verdict:
    """Judge whether the best model does more than look up the nearest example."""
    best = max(models, key=lambda system: accuracy(models[system], kind="3 + 3"))
    value = accuracy(models[best], kind="3 + 3")
    lookup = accuracy(nearest, kind="3 + 3")
    more = value > 2 * lookup and gap(value, lookup) >= CLOSE
    does = "generalises" if more else "does not generalise"
    return Verdict(
        f"On new sums of the lengths of training, {best} {does}: "
        f"{100 * value:.1f}% of 3 + 3 digits are correct; the nearest training example gives {100 * lookup:.1f}%.",
        "generalises: more than twice the accuracy of the nearest training example, and at least "
        f"{100 * CLOSE:.0f} percentage points more",
    )


def form(models: Mapping[str, Records]) -> Verdict:
    """Compare the gain from the format of the answers with that from a larger model."""
    value = {system: accuracy(answers, kind="3 + 3") for system, answers in models.items()}
    gain = gap(value[REVERSED], value[PLAIN])
    statement = f"Reversed answers change the accuracy on 3 + 3 digits by {100 * gain:+.1f} points"
    effect = side(gain, CLOSE, ("harms", "does not matter", "helps"))
    rule = f"helps or harms: by more than {100 * CLOSE:.0f} percentage points"
    if LARGE not in models:
        return Verdict(f"{statement}: the format {effect}.", rule)
    larger = gap(value[LARGE], value[PLAIN])
    better = "better" if gap(gain, larger) > CLOSE else "not better"
    return Verdict(
        f"{statement}, a larger model by {100 * larger:+.1f}: the format {effect}, {better} than the larger model.",
        f"{rule}; better: by as much",
    )


def beyond(models: Mapping[str, Records]) -> Verdict:
    """Judge whether a model can add longer numbers than those in training."""
    values = {
        system: (accuracy(answers, beyond=True), accuracy(answers, kind="3 + 3")) for system, answers in models.items()
    }
    adds = {system: value > within / 2 for system, (value, within) in values.items()}
    best = max(values, key=lambda system: (adds[system], values[system]))
    value, within = values[best]
    subject = "A model also adds" if adds[best] else "No model adds"
    return Verdict(
        f"{subject} numbers longer than those in training: the best, "
        f"{best}, gets {100 * value:.1f}% right with 4 and 5 digits, and {100 * within:.1f}% with 3 + 3 digits.",
        "a model adds if it has more than half of its accuracy with 3 + 3 digits; this tests length generalisation, "
        "and no large model is compared",
    )


def confident(models: Mapping[str, Records]) -> Verdict:
    """Judge whether wrong answers to sums longer than those in training have a low probability."""
    wrong = {system: answers.where(beyond=True, exact=False) for system, answers in models.items()}
    confidence = {system: round(own.mean("probability"), 3) for system, own in wrong.items() if own}
    rule = "confident: a mean probability above 50%, in the model where it is highest"
    if not confidence:
        return Verdict("No model gives a wrong answer to a longer sum.", rule)
    system = max(confidence, key=lambda system: confidence[system])
    outcome = "not confident"
    if confidence[system] > 0.5:
        outcome = "confident, so a high probability does not mean that a sum is correct"
    return Verdict(
        f"The wrong answers of {system} to longer sums have a mean probability of {100 * confidence[system]:.1f}%: "
        f"they are {outcome}.",
        rule,
    )


def picture(systems: Mapping[str, Records]) -> Plane:
    kinds = {kind: first for kind, (first, second) in KINDS.items() if first == second}
    lines = []
    for index, (system, answers) in enumerate(systems.items()):
        heights = [100 * accuracy(answers, kind=kind) for kind in kinds]
        color = "gray" if system in CONTROLS else f"C{index - len(CONTROLS)}"
        lines.append(Line(system, list(kinds.values()), heights, CONTROLS.get(system, "o-"), color))
    lines.append(Line("end of the lengths of training", [LEARNED + 0.5] * 2, [0, 100], "-", "C2", {"alpha": 0.4}))
    ticks = {digits: str(digits) for digits in kinds.values()}
    return Plane("digits of both numbers", "correct answers (%)", lines, ticks)


LAB = Lab("does a model calculate, or recall examples?", stages, summarise, quick=True)
