"""`tinygpt lab arithmetic`: does a model that adds numbers calculate, and does it know when it cannot?

Models learn sums such as `47+385` -> `432`, of numbers with one to three digits, and are asked for others, of two to
five digits. A second format writes the answer in reverse, the units first (Lee et al. 2023, "Teaching Arithmetic to
Small Transformers", section 3): each digit then depends on two digits and a carry, not on all digits.

    examples, seed N          {"guess": the most frequent answer, "nearest": the answers of the nearest examples}
    train MODEL, seed N       {"seconds", "weights"}
    answer MODEL, seed N      {"said": the answers, with the units last, "probabilities"}
"""

import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import duration
from tinygpt.data.memory import write_dataset
from tinygpt.examine.experiment.models import Model, train
from tinygpt.examine.experiment.stages import Results, Stage, every_seed
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, percent
from tinygpt.learn.lab.definition import Lab, seeds

LEARNED = 3  # most digits of a number in training
WEIGHTS = (1, 2, 4)  # of numbers with 1, 2 and 3 digits in training: there are more long numbers than short ones
KINDS = {"2 + 2": (2, 2), "3 + 1": (3, 1), "3 + 3": (3, 3), "4 + 4": (4, 4), "5 + 5": (5, 5)}  # digits, of the test
BEYOND = ("4 + 4", "5 + 5")
CLOSE = 0.05  # accuracies that differ by less count as equal
GUESS, NEAREST, CALCULATOR = "most frequent answer", "nearest training example", "calculator"


class Variant(NamedTuple):
    form: str  # of the answers, a key of STEPS
    seconds: float  # of 500 iterations
    settings: dict[str, int]  # of the training


STEPS = {"plain": 1, "reversed": -1}  # from digit to digit of an answer
PLAIN, LARGE, REVERSED = "plain", "plain, larger model", "reversed"
VARIANTS = {
    PLAIN: Variant("plain", 12, {}),
    LARGE: Variant("plain", 25, {"n_layer": 3, "n_embd": 96}),
    REVERSED: Variant("reversed", 12, {}),
}


class Size(NamedTuple):
    examples: int
    test: int  # sums of each kind
    iterations: int
    variants: tuple[str, ...]


FULL, QUICK = Size(10_000, 300, 500, tuple(VARIANTS)), Size(10_000, 100, 350, (PLAIN, REVERSED))


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    size = QUICK if config.quick else FULL
    for seed in seeds(config):
        seed_folder = folder / f"seed-{seed}"
        yield Stage(f"examples, seed {seed}", 3, partial(examples, seed_folder, size, seed))
        for name in size.variants:
            seconds = 4 + VARIANTS[name].seconds * size.iterations / FULL.iterations
            yield Stage(f"train {name}, seed {seed}", seconds, partial(fit, seed_folder, size, seed, name))
            yield Stage(f"answer {name}, seed {seed}", 2, partial(answers, seed_folder, size, seed, name))


def right(prompt: str) -> str:
    """Return the correct answer to a prompt."""
    return str(sum(map(int, prompt.split("+"))))


def sums(size: Size, seed: int) -> tuple[list[str], dict[str, list[str]]]:
    """Draw different sums for training and, by kind, for the test; none is in both."""
    rng, seen = random.Random(f"sums {seed}"), set[str]()

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

    test = {kind: new(size.test, sizes) for kind, sizes in KINDS.items()}
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


def examples(folder: Path, size: Size, seed: int) -> dict[str, Any]:
    """Write the datasets, and answer the test with the controls."""
    (known, test), val_size = sums(size, seed), size.examples // 20
    test_prompts = [prompt for prompts in test.values() for prompt in prompts]
    prompts_of = {"train": known[val_size:], "val": known[:val_size], "test": test_prompts}
    for form, step in STEPS.items():
        splits = {name: [(p, right(p)[::step]) for p in prompts] for name, prompts in prompts_of.items()}
        write_dataset(folder / "data" / form, splits)
    guess = Counter(map(right, known)).most_common(1)[0][0]
    return {"guess": guess, "nearest": [right(prompt) for prompt in nearest(known, test_prompts)]}


def fit(folder: Path, size: Size, seed: int, name: str) -> dict[str, float]:
    settings = {"max_iters": size.iterations, "seed": seed, **VARIANTS[name].settings}
    out, dataset = folder / name.replace(", ", "-"), folder / "data" / VARIANTS[name].form
    cost = train("train", "lab_arithmetic", out, dataset, **settings)
    return {"seconds": cost.seconds, "weights": cost.weights}


def answers(folder: Path, size: Size, seed: int, name: str) -> dict[str, Any]:
    model, (_, test) = Model(folder / name.replace(", ", "-")), sums(size, seed)
    prompts = [prompt for kind_prompts in test.values() for prompt in kind_prompts]
    responses, probabilities = model.responses(prompts, max(len(right(prompt)) for prompt in prompts) + 2)
    step = STEPS[VARIANTS[name].form]
    return {"said": [text[::step] for text in responses], "probabilities": probabilities.tolist()}


class SumAnswer(NamedTuple):
    prompt: str
    kind: str  # of the sum, a key of KINDS
    text: str
    probability: float

    def exact(self) -> bool:
        return self.text == right(self.prompt)

    def digits(self) -> float:
        """Return the share of correct digits, by position from the units."""
        truth = right(self.prompt)
        return statistics.mean(a == b for a, b in zip(self.text[::-1].ljust(len(truth)), truth[::-1], strict=False))

    def failure(self) -> str:
        truth = right(self.prompt)
        if len(self.text) != len(truth):
            return "too few digits" if len(self.text) < len(truth) else "too many digits"
        wrong = sum(a != b for a, b in zip(self.text, truth, strict=True))
        return "one digit wrong" if wrong == 1 else "several digits wrong"


Runs = list[list[SumAnswer]]  # the answers of a system, a list for each seed


def answered(results: Results, config: LabConfig) -> dict[str, Runs]:
    """Collect the answers of each system."""
    size = QUICK if config.quick else FULL
    by_system = defaultdict(list)
    for seed in seeds(config):
        questions = [(prompt, kind) for kind, prompts in sums(size, seed)[1].items() for prompt in prompts]
        controls, ones = results[f"examples, seed {seed}"], [1.0] * len(questions)
        columns_of = {GUESS: ([controls["guess"]] * len(questions), ones), NEAREST: (controls["nearest"], ones)}
        columns_of[CALCULATOR] = [right(prompt) for prompt, _ in questions], ones
        for name in size.variants:
            result = results[f"answer {name}, seed {seed}"]
            columns_of[name] = result["said"], result["probabilities"]
        for system, columns in columns_of.items():
            answers = zip(questions, *columns, strict=True)
            by_system[system].append([SumAnswer(*question, *answer) for question, *answer in answers])
    return by_system


def of(answers: Sequence[SumAnswer], *kinds: str) -> list[SumAnswer]:
    return [answer for answer in answers if answer.kind in kinds]


def means(runs: Runs, value: Callable[[SumAnswer], float], *kinds: str) -> list[float]:
    """Average a value over the answers to sums of these kinds, for each seed."""
    return [statistics.mean(map(value, of(answers, *kinds))) for answers in runs]


def accuracy(runs: Runs, *kinds: str) -> float:
    return statistics.median(means(runs, SumAnswer.exact, *kinds))


def summarise(results: Results, config: LabConfig) -> Summary:
    by_system, size = answered(results, config), QUICK if config.quick else FULL
    models = {name: by_system[name] for name in size.variants}
    trained = {name: every_seed(results, f"train {name}") for name in models}

    def exact(name: str, kind: str) -> str:
        """Format an accuracy, for a model with its range over the seeds."""
        shares = means(by_system[name], SumAnswer.exact, kind)
        return percent(shares if name in models else [statistics.median(shares)], ".0f")

    def partly(name: str, kind: str) -> str:
        """Format the share of correct digits and the confidence."""
        value_lists = (means(by_system[name], value, kind) for value in (SumAnswer.digits, attrgetter("probability")))
        return ", ".join(percent([statistics.median(values)], ".0f") for values in value_lists)

    tables = [
        Table(
            "Correct answers, by the digits of the two numbers",
            [{"system": name, **{kind: exact(name, kind) for kind in KINDS}} for name in by_system],
            f"Exact match: median over the seeds (models: minimum to maximum), on {size.test} sums of a kind and seed "
            f"that are not among the {size.examples:,} sums of training, whose numbers have at most {LEARNED} digits. "
            "A tenth of those of 2 + 2 and of 3 + 1 digits is among them with its two numbers swapped. Reversed: the "
            "answers are written with the units first, in training and in the test.",
        ),
        Table(
            "The models: size and training; correct digits and confidence",
            [
                {
                    "system": name,
                    "parameters": f"{trained[name][0]['weights']:,}",
                    "training": duration(statistics.median(cost["seconds"] for cost in trained[name])),
                    **{kind: partly(name, kind) for kind in KINDS},
                }
                for name in models
            ],
            "Correct digits: share that is correct at its place, counted from the units; a tenth by chance. "
            "Confidence: mean probability of the answers, correct or wrong. Medians over the seeds.",
        ),
        Table(
            "Wrong answers",
            [row for name, runs in models.items() for row in failures(name, runs)],
            "Over all kinds of sums and seeds.",
        ),
    ]

    def draw(axes: Any) -> None:
        kinds = {kind: sizes[0] for kind, sizes in KINDS.items() if sizes[0] == sizes[1]}
        for name, runs in by_system.items():
            color = f"C{list(models).index(name)}" if name in models else "gray"
            style = "-o" if name in models else {GUESS: ":", NEAREST: "--", CALCULATOR: "-."}[name]
            medians = [100 * accuracy(runs, kind) for kind in kinds]
            axes.plot(list(kinds.values()), medians, style, color=color, label=name)
        axes.axvspan(min(kinds.values()) - 0.2, LEARNED + 0.5, color="C2", alpha=0.1, label="lengths of training")
        axes.set(xlabel="digits of both numbers", ylabel="correct answers (%)", xticks=list(kinds.values()))
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))

    return Summary(
        "Does a model calculate?",
        f"Sums of two numbers, learned from examples with at most {LEARNED} digits, and asked with up to five.",
        tables,
        [learned(by_system, models), form(models), beyond(models), confident(models)],
        "Correct answers against the number of digits",
        draw,
    )


def failures(name: str, runs: Runs) -> list[dict[str, str]]:
    """Make a row for each kind of failure, the most frequent first."""
    wrong = [answer for answers in runs for answer in answers if not answer.exact()]
    rows = []
    for failure, count in Counter(answer.failure() for answer in wrong).most_common():
        worst = max((answer for answer in wrong if answer.failure() == failure), key=lambda answer: answer.probability)
        example = f"{worst.prompt} = {worst.text}, correct is {right(worst.prompt)} ({100 * worst.probability:.0f}%)"
        share = f"{100 * count / len(wrong):.0f}%"
        rows.append({"system": name, "failure": failure, "of wrong answers": share, "the most confident one": example})
    return rows


def learned(by_system: dict[str, Runs], models: dict[str, Runs]) -> Verdict:
    """Judge whether the best model does more than look up the nearest example."""
    best = max(models, key=lambda name: accuracy(models[name], "3 + 3"))
    value, lookup = accuracy(models[best], "3 + 3"), accuracy(by_system[NEAREST], "3 + 3")
    more = value > 2 * lookup and value > lookup + CLOSE
    return Verdict(
        f"On new sums of the lengths of training, {best} {'generalises' if more else 'does not generalise'}: "
        f"{100 * value:.1f}% of 3 + 3 digits are correct; the nearest training example gives {100 * lookup:.1f}%.",
        "generalises: more than twice the accuracy of the nearest training example, and at least "
        f"{100 * CLOSE:.0f} percentage points more",
    )


def form(models: dict[str, Runs]) -> Verdict:
    """Compare the gain from the format of the answers with that from a larger model."""
    value = {name: accuracy(runs, "3 + 3") for name, runs in models.items()}
    gain = value[REVERSED] - value[PLAIN]
    statement = f"Reversed answers change the accuracy on 3 + 3 digits by {100 * gain:+.1f} points"
    rule = f"more than {100 * CLOSE:.0f} percentage points"
    if LARGE not in models:
        return Verdict(f"{statement}: the format {'matters' if gain > CLOSE else 'does not matter'}.", rule)
    larger = value[LARGE] - value[PLAIN]
    more = "matters more than" if gain > larger + CLOSE else "does not matter more than"
    return Verdict(
        f"{statement}, a larger model by {100 * larger:+.1f}: the format of the data {more} the size of the model.",
        f"the gains differ by {rule}",
    )


def beyond(models: dict[str, Runs]) -> Verdict:
    """Judge whether a model can add longer numbers than those in training."""
    best = max(models, key=lambda name: (accuracy(models[name], *BEYOND), accuracy(models[name], "3 + 3")))
    value, within = accuracy(models[best], *BEYOND), accuracy(models[best], "3 + 3")
    return Verdict(
        f"Beyond the lengths of training, {'a model still adds' if value > within / 2 else 'no model adds'}: the best "
        f"one, {best}, has {100 * value:.1f}% correct with 4 and 5 digits, and {100 * within:.1f}% with 3 + 3.",
        "a model adds if it has more than half of its accuracy with 3 + 3 digits; this tests length generalisation, "
        "and no large model is compared",
    )


def confident(models: dict[str, Runs]) -> Verdict:
    """Judge whether wrong answers to sums longer than those in training have a low probability."""
    confidence = {}
    for name, runs in models.items():
        longer = [answer for answers in runs for answer in of(answers, *BEYOND)]
        confidence[name] = statistics.mean([answer.probability for answer in longer if not answer.exact()] or [0.0])
    name = max(confidence, key=lambda name: confidence[name])
    means = "confident, so a high probability does not mean that a sum is correct"
    return Verdict(
        f"The wrong answers of {name} to longer sums have a mean probability of {100 * confidence[name]:.0f}%: they "
        f"are {means if confidence[name] > 0.5 else 'not confident'}.",
        "confident: a mean probability above 50%, in the model where it is highest",
    )


LAB = Lab("does a model calculate, or recall examples? Sums longer than in training", stages, summarise, quick=True)
