"""`tinygpt lab domain`: does pretraining on text of one's own field help?

BloombergGPT (Wu et al. 2023) was pretrained on financial text and compared with models of general text; this lab does
so in miniature. Three equal base models, without pretraining, pretrained on Shakespeare, and on as many characters of
descriptions of industries, are fine-tuned on a task of that field (`sectors`) and on one of another (`transactions`),
with few and with all examples. A longer fine-tuning on few shows whether pretraining only saves iterations. The text
about industries does not contain those of val and test of `sectors`; all datasets have the same vocabulary.
"""

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tinygpt.base.configs.learn import LabConfig
from tinygpt.data.corpora import tiny_shakespeare
from tinygpt.data.dataset import Dataset
from tinygpt.data.memory import write_dataset
from tinygpt.data.pairs import tokenizer_of_pairs
from tinygpt.data.tasks import TASKS, Pair, sectors
from tinygpt.examine.eval.classifiers import Majority
from tinygpt.examine.eval.classify import Classifier, confusion_matrix, label_indices, ngrams, quality
from tinygpt.examine.experiment.models import classifier, train
from tinygpt.examine.experiment.stages import Results, Stage, every_seed
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, percent, spread
from tinygpt.learn.lab.definition import Lab, seeds
from tinygpt.training.losses import bits_per_character, validation_loss

TEXTS = ("Shakespeare", "industries")
BASES = ("none", *TEXTS)
MARGIN = 0.03  # of accuracy: about the standard error of the difference of two models on the test prompts
SEED = 1337  # of the tasks


class Case(NamedTuple):
    """A fine-tuning: its task, its number of training examples, and its iterations."""

    task: str
    examples: int  # 0: all
    iterations: int

    def data(self) -> str:
        return f"{self.task}, {self.examples or 'all'} examples"

    def name(self) -> str:
        return f"{self.data()}, {self.iterations} iterations"

    def splits(self) -> dict[str, list[Pair]]:
        pairs = TASKS[self.task].make(SEED)
        return pairs | {"train": pairs["train"][: self.examples or None]}


class Size(NamedTuple):
    pretraining: int  # iterations of a base
    cases: tuple[Case, ...]

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(case.task for case in self.cases))


FULL = Size(300, (
    Case("sectors", 200, 40), Case("sectors", 200, 120), Case("sectors", 0, 150),
    Case("transactions", 200, 40), Case("transactions", 0, 150),
))  # fmt: skip
QUICK = Size(60, (Case("sectors", 200, 40),))
Figures = dict[str, dict[Case, list[dict[str, float]]]]  # by base or baseline and case: the figures of each seed


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    size = QUICK if config.quick else FULL
    yield Stage("datasets", 2, partial(prepare, folder, size))
    for data, case in {case.data(): case for case in size.cases}.items():
        yield Stage(f"baselines: {data}", 6 - 5 * bool(case.examples), partial(baselines, case))
    for seed in seeds(config):
        for base in BASES:
            iterations = size.pretraining if base in TEXTS else 0
            compute = partial(pretrain, folder, base, iterations, seed)
            yield Stage(f"base: {base}, seed {seed}", 3 + iterations / 35, compute)
        for case in size.cases:
            for base in BASES:
                compute = partial(finetune, folder, base, case, seed)
                yield Stage(f"{base}: {case.name()}, seed {seed}", 3 + case.iterations / 30, compute)


def prepare(folder: Path, size: Size) -> dict[str, int]:
    """Write the texts, of equal length, and the tasks, all with one vocabulary; return the number of characters."""
    industries = sectors.corpus()
    texts = dict(zip(TEXTS, (tiny_shakespeare()[: len(industries)], industries), strict=True))
    tasks = {task: TASKS[task].make(SEED) for task in size.tasks()}
    tokenizer = tokenizer_of_pairs([tasks, texts])
    for name, text in texts.items():
        write_dataset(folder / "texts" / name, text, tokenizer=tokenizer)
    for task, splits in tasks.items():
        write_dataset(folder / "tasks" / task, splits, TASKS[task].labels, tokenizer)
    return {"characters": len(industries)}


def pretrain(folder: Path, base: str, iterations: int, seed: int) -> dict[str, float]:
    """Train a base; return its loss on each text, in bits per character."""
    text = base if base in TEXTS else TEXTS[0]  # without an iteration, only the vocabulary matters
    settings = {"seed": seed, "dropout": 0, "max_iters": iterations, "eval_interval": max(iterations, 1)}
    out = folder / f"seed-{seed}" / base
    train("train", "lab_classifier", out, folder / "texts" / text, **settings)
    datasets = {text: Dataset(str(folder / "texts"), text) for text in TEXTS}
    return {text: bits_per_character(validation_loss(out, data), data) for text, data in datasets.items()}


def finetune(folder: Path, base: str, case: Case, seed: int) -> dict[str, float]:
    seed_folder = folder / f"seed-{seed}"
    out = seed_folder / f"{base}-{case.task}-{case.examples or 'all'}-{case.iterations}"
    settings: dict[str, Any] = {
        "ckpt": seed_folder / base,
        "seed": seed,
        "examples": case.examples,
        "max_iters": case.iterations,
    }
    train("finetune", "finetune_sectors", out, folder / "tasks" / case.task, **settings)
    return measured(case, classifier(out, TASKS[case.task].labels))


def baselines(case: Case) -> dict[str, dict[str, float]]:
    """Measure the n-gram baseline and the majority baseline on the same training examples."""
    examples, labels = case.splits()["train"], TASKS[case.task].labels
    majority = Majority.fit([], label_indices(examples, labels), len(labels))
    classifiers: dict[str, Classifier] = {"n-gram baseline": ngrams(examples, labels), "majority baseline": majority}
    return {name: measured(case, classify) for name, classify in classifiers.items()}


def measured(case: Case, classify: Classifier) -> dict[str, float]:
    """Measure accuracy and macro F1 on the test prompts."""
    labels, test = TASKS[case.task].labels, case.splits()["test"]
    predicted = classify([prompt for prompt, _ in test]).argmax(axis=1)
    return quality(confusion_matrix(label_indices(test, labels), predicted, len(labels)))


def summarise(results: Results, config: LabConfig) -> Summary:
    every, size = seeds(config), QUICK if config.quick else FULL
    bits = {base: every_seed(results, f"base: {base}") for base in BASES}
    figures = {base: {case: every_seed(results, f"{base}: {case.name()}") for case in size.cases} for base in BASES}
    for name in ("n-gram baseline", "majority baseline"):
        figures[name] = {case: [results[f"baselines: {case.data()}"][name]] for case in size.cases}
    shared = f"Median over {len(every)} seeds (minimum to maximum). " if len(every) > 1 else "One seed. "
    knows = [
        {"base": base, **{text: spread([losses[text] for losses in runs], ".2f") for text in TEXTS}}
        for base, runs in bits.items()
    ]
    note = "Before fine-tuning, on the last tenth of each text. Less is better."
    tables = [Table("Loss of each base model, in bits per character of held-out text", knows, shared + note)]
    for task in size.tasks():
        n = len(TASKS[task].make(SEED)["test"])
        error = f"the standard error of an accuracy is about {100 * (0.25 / n) ** 0.5:.0f} points"
        note = f"On {n:,} test prompts; {error}."
        tables.append(Table(f"Accuracy on {task}", rows(figures, task, "accuracy"), shared + note))
    note = "The mean F1 of the labels: a rare sector counts as much as a frequent one."
    tables.append(Table("Macro F1 on sectors", rows(figures, "sectors", "macro_f1"), shared + note))
    return Summary(
        "Does pretraining on text of one's own field help?",
        f"A tiny model reads {results['datasets']['characters']:,} characters of Shakespeare, or of descriptions of "
        "industries, or nothing; then it learns to name the sector of a business activity, or another task.",
        tables,
        [own_text(bits), *(compared(figures, base, other) for base, other in combinations(BASES[::-1], 2))],
        "Accuracy after fine-tuning; each point is a seed",
        partial(draw, figures),
    )


def rows(figures: Figures, task: str, figure: str) -> list[dict[str, str]]:
    """Make a row for each base and baseline, with a column for each case of the task."""
    cases = [case for case in figures["none"] if case.task == task]
    form = percent if figure == "accuracy" else partial(spread, form=".2f")
    titles = {case: case.name().removeprefix(f"{task}, ") for case in cases}
    return [
        {"base": name, **{title: form([run[figure] for run in row[case]]) for case, title in titles.items()}}
        for name, row in figures.items()
    ]


def own_text(bits: dict[str, list[dict[str, float]]]) -> Verdict:
    """Judge whether each base predicts its own text best."""
    statements, best = [], True
    for text, other in zip(TEXTS, reversed(TEXTS), strict=True):
        own, foreign = ([losses[text] for losses in bits[base]] for base in (text, other))
        best = best and max(own) < min(foreign)
        statements.append(
            f"{median(own):.2f} bits per character of {text}, the base of {other} needs {median(foreign):.2f}"
        )
    return Verdict(
        f"Each base predicts {'its own text best' if best else 'not always its own text best'}: the base of "
        f"{TEXTS[0]} needs {statements[0]}; the base of {TEXTS[1]} needs {statements[1]}.",
        "on held-out text, a base's largest loss on its own kind is below the other base's smallest",
    )


def compared(figures: Figures, base: str, other_base: str) -> Verdict:
    """Compare two bases in each case."""
    outcomes: dict[str, list[str]] = {"better than": [], "worse than": [], "no different from": []}
    for case in figures[base]:
        accuracies, other_accuracies = ([run["accuracy"] for run in figures[key][case]] for key in (base, other_base))
        gain = median(accuracies) - median(other_accuracies)
        overlap = min(accuracies) <= max(other_accuracies) and max(accuracies) >= min(other_accuracies)
        outcome = "better than" if gain > MARGIN else "worse than" if -gain > MARGIN else "no different from"
        outcomes["no different from" if overlap else outcome].append(f"{case.name()} ({100 * gain:+.1f})")
    names = {"none": "no pretraining", **{text: f"pretraining on {text}" for text in TEXTS}}
    subject = names[base][0].upper() + names[base][1:]
    parts = [f"{name} {names[other_base]}: {'; '.join(cases)}" for name, cases in outcomes.items() if cases]
    return Verdict(
        f"{subject} is {'. It is '.join(parts)}.",
        f"a difference counts if the ranges of accuracy over the seeds do not overlap, and the medians differ by more "
        f"than {100 * MARGIN:.0f} percentage points",
    )


def draw(figures: Figures, axes: Any) -> None:
    for index, (name, row) in enumerate(figures.items()):
        for position, runs in enumerate(row.values()):
            values, label = [100 * run["accuracy"] for run in runs], name if position == 0 else None
            if name in BASES:
                x, label = position + 0.18 * (index - 1), label and f"pretraining: {name}"
                axes.plot([x] * len(values), values, "o", color=f"C{index}", alpha=0.8, label=label)
            else:
                style = "--" if name.startswith("n-gram") else ":"
                axes.hlines(values, position - 0.35, position + 0.35, color="gray", linestyle=style, label=label)
    titles = [case.name().replace(", ", "\n") for case in figures["none"]]
    axes.set(ylabel="accuracy (%)", ylim=(0, 90))
    axes.set_xticks(range(len(titles)), titles, fontsize=9)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center")


ABOUT = "does pretraining on text of the task's own field help?"
LAB = Lab(ABOUT, stages, summarise, others=("data_dir",), quick=True, ngrams=True)
