"""`tinygpt lab reports`: a small adapter learns a style from few examples, but the text may still be wrong.

A base model learns to write two sentences about a company's figures in a plain style. LoRA adapters of two firms learn
their styles from 25 to 400 examples. Each response is judged twice: by the rules of each firm's style, and by whether
it states the figures of the prompt (fidelity). At the end, the adapters are swapped on a base model that stays loaded.
"""

import statistics
import timeit
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch

from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import duration
from tinygpt.checkpoint.adapter import Adapters
from tinygpt.data.memory import write_dataset
from tinygpt.data.tasks import TASKS
from tinygpt.data.tasks.reports import check_facts, check_style
from tinygpt.examine.experiment.models import Model, train
from tinygpt.examine.experiment.stages import Results, Stage, every_seed
from tinygpt.examine.experiment.summary import Summary, Table, Verdict, percent
from tinygpt.learn.lab.definition import Lab, seeds
from tinygpt.training.child import Cost

FIRMS = {"a": "firm A", "b": "firm B"}
DATASETS = {"plain": "reports", "a": "reports_a", "b": "reports_b"}
EXAMPLES = (25, 100, 400)
ITERATIONS = {"base": 400, "adapter": 200}
PROMPTS = 500  # of the test split
QUICK = {"base": 300, "adapter": 100, "prompts": 200}
ENOUGH = 0.9  # share of the test prompts from which on a style, or fidelity, counts as learned
MARGIN = 10  # a share of 500 prompts has a 95% confidence interval of at most +- 4.4 percentage points
SWAPS = 20  # timed


def examples(config: LabConfig) -> tuple[int, ...]:
    """Return the numbers of training examples of an adapter; a quick lab has the smallest and the largest."""
    return tuple(sorted({EXAMPLES[0], EXAMPLES[-1]})) if config.quick else EXAMPLES


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    """List the stages: the datasets; for each seed a base model, and an adapter per firm and size; the swaps."""
    yield Stage("datasets", 1, partial(write_datasets, folder))
    for seed in seeds(config):
        out = folder / f"seed-{seed}"
        yield Stage(f"base model, seed {seed}", 10, partial(base_model, out, seed, config.quick))
        for firm, size in product(FIRMS, examples(config)):
            name = f"{stage_of(firm, size)}, seed {seed}"
            yield Stage(name, 6 if config.quick else 10, partial(adapter, out, seed, config.quick, firm, size))
    yield Stage("swaps", 3, partial(swaps, folder / "seed-1"))


def stage_of(firm: str, size: int) -> str:
    return f"{FIRMS[firm]}, {size} examples"


def write_datasets(folder: Path) -> None:
    for name in DATASETS.values():
        write_dataset(folder / "data" / name, TASKS[name].make(1337))


def base_model(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Train the base model of a seed; return its cost, and how its responses are judged."""
    settings = {"seed": seed, "max_iters": (QUICK if quick else ITERATIONS)["base"]}
    cost = train("train", "reports", folder / "base", folder.parent / "data" / DATASETS["plain"], **settings)
    return costs(cost) | judged(Model(folder / "base"), quick)


def adapter(folder: Path, seed: int, quick: bool, firm: str, size: int) -> dict[str, Any]:
    """Train an adapter; return its cost, and how its responses are judged."""
    out, data = folder / f"{firm}-{size}", folder.parent / "data" / DATASETS[firm]
    settings: dict[str, Any] = {"seed": seed, "max_iters": (QUICK if quick else ITERATIONS)["adapter"]}
    cost = train("finetune", "finetune_reports", out, data, ckpt=folder / "base", examples=size, **settings)
    judgement = judged(Model(folder / "base", out), quick)
    return {"firm": firm, "examples": size, "seed": seed, **costs(cost), **judgement}


def costs(trained: Cost) -> dict[str, float]:
    return {"seconds": trained.seconds, "trained": trained.weights, "bytes": trained.bytes}


def swaps(folder: Path) -> dict[str, Any]:
    """Time swaps of the two adapters against loading from files, and compare what is computed, bit for bit."""
    base, files = str(folder / "base"), {firm: str(folder / f"{firm}-{EXAMPLES[-1]}") for firm in FIRMS}
    adapters, prompt = Adapters(base, files), prompts_of_test()[0]

    def logits(model: Model) -> torch.Tensor:
        with torch.inference_mode():
            ids = torch.from_numpy(model.tokenizer.encode_prompt(prompt).astype("int64"))[None]
            return model.model(ids)[0]

    sequence = ["a", "b", "a", ""]  # the last one takes the adapter off
    swapped = [logits(Model(adapters.checkpoint(name))) for name in sequence]
    loaded = [logits(Model(base, files.get(name, ""))) for name in sequence]
    names = cycle(FIRMS)
    return {
        "swap": milliseconds(lambda: Model(adapters.checkpoint(next(names)))),
        "load": milliseconds(lambda: Model(base, files[next(names)])),
        "exact": all(map(torch.equal, swapped, loaded)),
        "differ": not torch.equal(swapped[0], swapped[3]),
    }


def prompts_of_test() -> list[str]:
    return [prompt for prompt, _ in TASKS["reports"].make(1337)["test"]]


def judged(model: Model, quick: bool) -> dict[str, Any]:
    """Judge the responses to test prompts by the style of each firm and by their facts."""
    prompts = prompts_of_test()[: QUICK["prompts"] if quick else PROMPTS]
    texts, _ = model.responses(prompts, 120)
    correct = [all(check_facts(prompt, text).values()) for prompt, text in zip(prompts, texts, strict=True)]
    judgement: dict[str, Any] = {"n": len(prompts), "fidelity": statistics.mean(correct), "responses": texts[:50]}
    for firm in DATASETS:
        in_style = [i for i, text in enumerate(texts) if all(check_style(firm, text).values())]
        wrong = sum(not correct[i] for i in in_style)
        judgement[firm] = {"style": len(in_style) / len(prompts), "in style": len(in_style), "wrong": wrong}
    return judgement


def milliseconds(work: Callable[[], Any]) -> float:
    """Time a function SWAPS times; return the median."""
    return 1000 * statistics.median(timeit.repeat(work, number=1, repeat=SWAPS))


def summarise(results: Results, config: LabConfig) -> Summary:
    bases, swap, sizes = every_seed(results, "base model"), results["swaps"], examples(config)
    runs = {(firm, size): every_seed(results, stage_of(firm, size)) for firm, size in product(FIRMS, sizes)}

    def draw(axes: Any) -> None:
        for index, (firm, name) in enumerate(FIRMS.items()):
            for what, line, marker in (("style", "-", "o"), ("fidelity", "--", "s")):
                color, values = f"C{index}", {size: shares(runs[firm, size], firm, what) for size in sizes}
                axes.plot(sizes, [100 * statistics.median(values[size]) for size in sizes], line, color=color)
                points = [(size, 100 * share) for size in sizes for share in values[size]]
                axes.plot(*zip(*points, strict=True), marker, color=color, markersize=5)
                axes.plot([], [], marker, linestyle=line, color=color, label=f"{name}, {what}")
        fidelity = 100 * statistics.median(shares(bases, "", "fidelity"))
        axes.axhline(fidelity, color="gray", linestyle=":", label="base model, fidelity")
        axes.set(xlabel="training examples of the adapter", ylabel="test prompts (%)", xscale="log", ylim=(-3, 103))
        axes.set_xticks(sizes, list(map(str, sizes)))
        axes.minorticks_off()
        axes.figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=3)

    return Summary(
        "A style from a small adapter, and whether the text is correct",
        "Two sentences about a company's figures, in the styles of two firms: how many examples does a style need, and "
        "does a text in perfect style state the figures?",
        [models(bases, runs, swap), by_examples(runs, bases[0]["n"]), one_prompt(bases[0], runs)],
        [needed(runs), in_style_and_wrong(runs), apart(bases, runs), swapping(bases[0], runs, swap)],
        "Style and fidelity against the number of training examples",
        draw,
    )


Runs = dict[tuple[str, int], list[dict[str, Any]]]  # by firm and number of examples: one for each seed


def shares(runs: Sequence[dict[str, Any]], firm: str, what: str) -> list[float]:
    """Return for each run the share of responses in a firm's style, with fidelity, or wrong among those in style."""
    if what == "fidelity":
        return [run["fidelity"] for run in runs]
    if what == "style":
        return [run[firm]["style"] for run in runs]
    return [run[firm]["wrong"] / max(run[firm]["in style"], 1) for run in runs]


def models(bases: list[dict[str, Any]], runs: Runs, swap: dict[str, Any]) -> Table:
    """Compare the base model and each firm's adapter from all examples, judged by all styles."""
    rows = {"base model": bases} | {f"base + {firm.upper()}": runs[firm, EXAMPLES[-1]] for firm in FIRMS}
    return Table(
        f"One base model, two adapters from {EXAMPLES[-1]} examples each",
        [
            {
                "model": name,
                "style plain": percent(shares(model_runs, "plain", "style"), ".0f"),
                "style A": percent(shares(model_runs, "a", "style"), ".0f"),
                "style B": percent(shares(model_runs, "b", "style"), ".0f"),
                "fidelity": percent(shares(model_runs, "", "fidelity"), ".0f"),
                "trained": f"{model_runs[0]['trained']:,}",
                "file": f"{model_runs[0]['bytes'] / 1e6:.2f} MB",
                "training": duration(statistics.median(run["seconds"] for run in model_runs)),
                "swap": f"{swap['swap']:.0f} ms" if name != "base model" else "",
            }
            for name, model_runs in rows.items()
        ],
        f"On {bases[0]['n']} test prompts of companies that occur in no training set; median over the seeds (minimum "
        "to maximum), each with a base model of its own. Style: the response follows all rules of a style, whatever it "
        "states. Fidelity: it states company, quarter, figures and directions of the prompt, and nothing else, in "
        "whatever style. Trained: parameters. File: the checkpoint, or the adapter. Training: evaluations included. "
        "Swap: from one adapter to the other, the base model staying loaded.",
    )


def by_examples(runs: Runs, n: int) -> Table:
    rows = []
    for size in sorted({size for _, size in runs}):
        row = {"examples": str(size)}
        for firm, what in product(FIRMS, ("style", "fidelity", "in style but wrong")):
            row[f"{firm.upper()}: {what}"] = percent(shares(runs[firm, size], firm, what), ".0f")
        rows.append(row)
    note = (
        f"Each firm's adapter, judged by its rules on {n} test prompts: median over the seeds (minimum to maximum). "
        "In style but wrong: share of the responses in perfect style that fail fidelity."
    )
    return Table("Style and fidelity by number of training examples", rows, note)


def one_prompt(base: dict[str, Any], runs: Runs) -> Table:
    """Show the responses to one prompt: the first with a wrong text in perfect style, if any, else the first of all."""
    prompts = prompts_of_test()
    shown = {"base": base} | {f"{firm.upper()}, {size}": adapter_runs[0] for (firm, size), adapter_runs in runs.items()}
    few = runs["a", EXAMPLES[0]][0]["responses"]
    good = (i for i, text in enumerate(few) if all(check_style("a", text).values()) and wrong_facts(prompts[i], text))
    index = next(good, 0)
    rows = []
    for name, run in shown.items():
        text = run["responses"][index]
        rows.append({"model": name, "response": text, "wrong": wrong_facts(prompts[index], text) or "nothing"})
    note = (
        f"A, {EXAMPLES[0]}: the base model with firm A's adapter from {EXAMPLES[0]} examples, seed 1. The prompt is "
        f"the first one where that response is in perfect style and wrong, if there is one among the first {len(few)}."
    )
    return Table(f"Prompt: {prompts[index]}", rows, note)


def wrong_facts(prompt: str, text: str) -> str:
    return ", ".join(name for name, right in check_facts(prompt, text).items() if not right)


def needed(runs: Runs) -> Verdict:
    """State from how many examples on style and fidelity are learned."""

    def smallest(firm: str, what: str) -> str:
        sizes = [size for key, size in runs if key == firm]
        good = (size for size in sizes if statistics.median(shares(runs[firm, size], firm, what)) >= ENOUGH)
        return f"{what} {next(good, f'more than {max(sizes)}')}"

    statements = [f"{name}: {smallest(firm, 'style')}, {smallest(firm, 'fidelity')}" for firm, name in FIRMS.items()]
    return Verdict(
        f"Training examples needed: {'; '.join(statements)}.",
        f"the smallest number with which at least {100 * ENOUGH:.0f}% of the responses pass (median over the seeds)",
    )


def in_style_and_wrong(runs: Runs) -> Verdict:
    """State how many texts in perfect style are wrong."""
    wrong = {key: 100 * statistics.median(shares(adapter_runs, key[0], "wrong")) for key, adapter_runs in runs.items()}
    sizes = [size for firm, size in runs if firm == "a"]
    head = "can be wrong" if max(wrong.values()) > MARGIN else "is correct in this run"
    statements = [f"{name} {', '.join(f'{wrong[firm, size]:.0f}' for size in sizes)}%" for firm, name in FIRMS.items()]
    return Verdict(
        f"A text in perfect style {head}. With {', '.join(map(str, sizes))} examples, this share of such texts states "
        f"something wrong: {'; '.join(statements)}.",
        f"can be wrong: the largest of these shares (median over the seeds) is above {MARGIN}%",
    )


def apart(bases: list[dict[str, Any]], runs: Runs) -> Verdict:
    """Check the negative control: each adapter judged by the other firm's rules, and the base model by both."""
    other = [(runs["a", EXAMPLES[-1]], "b"), (runs["b", EXAMPLES[-1]], "a"), (bases, "a"), (bases, "b")]
    most = max(share for model_runs, firm in other for share in shares(model_runs, firm, "style"))
    verb = "separates the styles" if most == 0 else "does not separate the styles"
    return Verdict(
        f"The style score {verb}: of any model's responses, at most {100 * most:.1f}% follow all rules of "
        "another firm.",
        f"the base model, and both adapters from {EXAMPLES[-1]} examples, judged by the rules of the other firm: "
        "all 0%",
    )


def swapping(base: dict[str, Any], runs: Runs, swap: dict[str, Any]) -> Verdict:
    sizes = [adapter_runs[0]["bytes"] for (_, size), adapter_runs in runs.items() if size == EXAMPLES[-1]]
    exact = "bit-identical to" if swap["exact"] and swap["differ"] else "NOT the same as"
    return Verdict(
        f"An adapter takes {max(sizes) / 1000:.0f} kB, the base model {base['bytes'] / 1000:.0f} kB. A swap takes "
        f"{swap['swap']:.1f} ms, loading both from files {swap['load']:.1f} ms. After the swaps to A, B, A and back to "
        f"the base, the logits are {exact} those of models loaded from files.",
        f"median of {SWAPS} swaps and {SWAPS} loads; all logits of one prompt compared",
    )


LAB = Lab("a style from a small adapter, and whether the text is right", stages, summarise, quick=True)
