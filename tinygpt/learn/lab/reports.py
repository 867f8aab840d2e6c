"""`tinygpt lab reports`: a small adapter learns a style from few examples, but the text may still be wrong.

A base model learns to write two sentences about a company's figures in a plain style. LoRA adapters of two firms learn
their styles from 25 to 400 examples. Each response is judged twice: by the rules of each firm's style, and by whether
it states the figures of the prompt (fidelity). At the end, the adapters are swapped on a base model that stays loaded.
"""

import statistics
import timeit
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.terminal import duration
from tinygpt.examine.experiment.picture import Line, Plane
from tinygpt.examine.experiment.stages import Records, Stage
from tinygpt.examine.experiment.summary import Example, Summary, Table, Verdict, percent
from tinygpt.learn.lab.definition import Lab, learn, seeds, stage

FIRMS = {"a": "firm A", "b": "firm B"}
STYLES = {"plain": "reports", "a": "reports_a", "b": "reports_b"}  # and their tasks
FACTS = ("company", "quarter", "figures", "directions")  # that a response with fidelity states
ENOUGH = 0.9  # share of the test prompts from which on a style, or fidelity, counts as learned
MARGIN = 10  # a share of 500 prompts has a 95% confidence interval of at most +- 4.4 percentage points
SWAPS = 20  # timed


class Size(NamedTuple):
    base: int  # iterations
    adapter: int
    prompts: int  # of the test split
    examples: tuple[int, ...]  # of an adapter


FULL = Size(400, 200, 500, (25, 100, 400))
QUICK = Size(300, 100, 200, (25, 400))
task = cache(api.task)
Curves = dict[str, dict[int, Records]]  # firm -> number of examples -> a record for each seed


def stages(config: LabConfig, folder: Path) -> Iterator[Stage]:
    size = QUICK if config.quick else FULL
    for seed in seeds(config):
        yield stage(f"base model, seed {seed}", 10, measure, folder, size, seed=seed, firm="", examples=0)
        for firm, examples in product(FIRMS, size.examples):
            case = {"seed": seed, "firm": firm, "examples": examples}
            name = f"{FIRMS[firm]}, {examples} examples, seed {seed}"
            yield stage(name, 1 + size.adapter / 20, measure, folder, size, **case)
    adapters = {firm: folder / f"seed-1/{firm}-{size.examples[-1]}" for firm in FIRMS}
    yield stage("swaps", 3, swaps, folder / "seed-1/base", adapters)


def prompts_of_test() -> list[str]:
    return [prompt for prompt, _ in task("reports").splits["test"]]


def measure(folder: Path, size: Size, seed: int, firm: str, examples: int) -> dict[str, Any]:
    """Train the base model of a seed, or an adapter on it, and judge its responses by all styles and by their facts."""
    name = STYLES[firm or "plain"]
    dataset = api.write_dataset(folder / "data" / name, task(name).splits)
    base = folder / f"seed-{seed}/base"
    if firm:
        settings = {"max_iters": size.adapter, "ckpt": base, "examples": examples}
        run = learn("finetune_reports", folder / f"seed-{seed}/{firm}-{examples}", dataset, seed=seed, **settings)
    else:
        run = learn("reports", base, dataset, seed=seed, max_iters=size.base)
    prompts = prompts_of_test()[: size.prompts]
    texts, _ = run.load(device="cpu").responses(prompts, 120)
    figures = {"seconds": run.cost.seconds, "trained": run.cost.weights, "bytes": run.cost.bytes}
    for style, name in STYLES.items():
        judgements = [task(name).scores(prompt, "", text) for prompt, text in zip(prompts, texts, strict=True)]
        wrong = [not judgement["fidelity"] for judgement in judgements if judgement["style"]]
        figures[f"style {style}"] = len(wrong) / len(prompts)
        figures[f"wrong {style}"] = sum(wrong) / max(len(wrong), 1)
    fidelity = statistics.mean(judgement["fidelity"] for judgement in judgements)  # the same in each style
    return {**figures, "prompts": len(prompts), "fidelity": fidelity, "responses": texts[:50]}


def swaps(base: Path, files: dict[str, Path]) -> dict[str, Any]:
    """Time swaps of the two adapters against loading from files, and compare what is computed, bit for bit."""
    adapters = api.load_adapters(base, files, device="cpu")
    prompt = prompts_of_test()[0]
    sequence = ["a", "b", "a", ""]  # the last one takes the adapter off
    swapped = [adapters[name].logits(prompt) for name in sequence]
    loaded = [api.load(base, adapter=files.get(name, ""), device="cpu").logits(prompt) for name in sequence]
    names = cycle(FIRMS)
    return {
        "swap": milliseconds(lambda: adapters[next(names)]),
        "load": milliseconds(lambda: api.load(base, adapter=files[next(names)], device="cpu")),
        "exact": all(map(torch.equal, swapped, loaded)) and not torch.equal(swapped[0], swapped[3]),
    }


def milliseconds(work: Callable[[], Any]) -> float:
    """Time a function SWAPS times; return the median."""
    return 1000 * statistics.median(timeit.repeat(work, number=1, repeat=SWAPS))


def summarise(records: Records, _: LabConfig) -> Summary:
    base = records.where(firm="")
    (swap,) = records.having("swap")
    curves = {firm: records.where(firm=firm).by("examples") for firm in FIRMS}
    responses = one_prompt(base, curves)
    return Summary(
        "A style from a small adapter, and whether the text is correct",
        "Two sentences about a company's figures, in the styles of two firms: how many examples does a style need, and "
        "does a text in perfect style state the figures?",
        [models(base, curves, swap), by_examples(curves), responses],
        [in_style_and_wrong(curves), needed(curves), apart(base, curves), swapping(base, curves, swap)],
        "Style and fidelity against the number of training examples",
        picture(base, curves),
        error(responses),
    )


def error(responses: Table) -> Example | None:
    """Show the response of firm A's adapter from the fewest examples, which `one_prompt` lists second."""
    own = responses.rows[1]
    if own["wrong"] == "nothing":
        return None
    note = f"Wrong: {own['wrong']}. Trained examples: {own['model']}."
    return Example("A text that is wrong", f"{responses.caption} →", own["response"], note)


def models(base: Records, curves: Curves, swap: dict[str, Any]) -> Table:
    """Compare the base model and each firm's adapter from all examples, judged by all styles."""
    most = max(curves["a"])
    rows = {"base model": base} | {f"base + {firm.upper()}": curve[most] for firm, curve in curves.items()}
    return Table(
        f"One base model, two adapters from {most} examples each",
        [
            {
                "model": name,
                "style plain": percent(own.values("style plain"), ".0f"),
                "style A": percent(own.values("style a"), ".0f"),
                "style B": percent(own.values("style b"), ".0f"),
                "fidelity": percent(own.values("fidelity"), ".0f"),
                "trained": f"{own[0]['trained']:,}",
                "file": f"{own[0]['bytes'] / 1e6:.2f} MB",
                "training": duration(own.median("seconds")),
                "swap": f"{swap['swap']:.0f} ms" if own != base else "",
            }
            for name, own in rows.items()
        ],
        f"On {base[0]['prompts']} test prompts of companies that occur in no training set; median over the seeds "
        "(minimum to maximum), each with a base model of its own. Style: the response follows all rules of a style, "
        "whatever it states. Fidelity: it states company, quarter, figures and directions of the prompt, and nothing "
        "else, in whatever style. Trained: parameters. File: the checkpoint, or the adapter. Training: evaluations "
        "included. Swap: from one adapter to the other, the base model staying loaded.",
    )


def by_examples(curves: Curves) -> Table:
    columns = {"style": "style {}", "fidelity": "fidelity", "in style but wrong": "wrong {}"}
    rows = []
    for size in curves["a"]:
        row = {"examples": str(size)}
        for firm, (column, key) in product(FIRMS, columns.items()):
            row[f"{firm.upper()}: {column}"] = percent(curves[firm][size].values(key.format(firm)), ".0f")
        rows.append(row)
    note = (
        "Each firm's adapter, judged by its rules on the same prompts. In style but wrong: share of the responses in "
        "perfect style that fail fidelity."
    )
    return Table("Style and fidelity by number of training examples", rows, note)


def one_prompt(base: Records, curves: Curves) -> Table:
    """Show the responses to one prompt: the first with a wrong text in perfect style, if any, else the first of all."""
    prompts = prompts_of_test()
    few = min(curves["a"])
    texts = curves["a"][few][0]["responses"]
    judgements = [task("reports_a").scores(prompt, "", text) for prompt, text in zip(prompts, texts, strict=False)]
    wrong = (i for i, judgement in enumerate(judgements) if judgement["style"] and not judgement["fidelity"])
    index = next(wrong, 0)
    rows = []
    for run in [base[0], *(own[0] for curve in curves.values() for own in curve.values())]:
        text = run["responses"][index]
        judgement = task("reports").scores(prompts[index], "", text)
        mistakes = ", ".join(fact for fact in FACTS if not judgement[fact])
        name = f"{run['firm'].upper()}, {run['examples']}" if run["firm"] else "base"
        rows.append({"model": name, "response": text, "wrong": mistakes or "nothing"})
    note = (
        f"A, {few}: the base model with firm A's adapter from {few} examples, seed 1. The prompt is the first one "
        f"where that response is in perfect style and wrong, if there is one among the first {len(texts)}."
    )
    return Table(f"Prompt: {prompts[index]}", rows, note)


def needed(curves: Curves) -> Verdict:
    """State from how many examples on style and fidelity are learned."""

    def smallest(curve: dict[int, Records], key: str) -> str:
        good = (str(size) for size, own in curve.items() if own.median(key) >= ENOUGH)
        return next(good, f"more than {max(curve)}")

    statements = [
        f"{FIRMS[firm]}: style {smallest(curve, f'style {firm}')}, fidelity {smallest(curve, 'fidelity')}"
        for firm, curve in curves.items()
    ]
    return Verdict(
        f"Training examples needed: {'; '.join(statements)}.",
        f"the smallest number with which at least {100 * ENOUGH:.0f}% of the responses pass (median over the seeds)",
    )


def in_style_and_wrong(curves: Curves) -> Verdict:
    """State how many texts in perfect style are wrong."""
    wrong = {firm: [own.percent(f"wrong {firm}") for own in curve.values()] for firm, curve in curves.items()}
    head = "can be wrong" if max(map(max, wrong.values())) > MARGIN else "is rarely wrong in this run"
    statements = [f"{FIRMS[firm]} {' and '.join(f'{share:.0f}%' for share in wrong[firm])}" for firm in FIRMS]
    return Verdict(
        f"A text in perfect style {head}. So many of these texts state something wrong, with "
        f"{' and '.join(map(str, curves['a']))} training examples: {'; '.join(statements)}.",
        f"can be wrong: the largest of these shares (median over the seeds) is above {MARGIN}%; a share is 0% if no "
        "text is in style",
    )


def apart(base: Records, curves: Curves) -> Verdict:
    """Check the negative control: each adapter judged by the other firm's rules, and the base model by both."""
    most = max(curves["a"])
    a_or_base, b_or_base = (Records(curves[firm][most] + base) for firm in FIRMS)
    share = max(a_or_base.values("style b") + b_or_base.values("style a"))
    does = "does not separate" if share else "separates"
    return Verdict(
        f"The style score {does} the styles: of any model's responses, at "
        f"most {100 * share:.1f}% follow all rules of another firm.",
        f"the base model, and both adapters from {most} examples, judged by the rules of the other firm: all 0%",
    )


def swapping(base: Records, curves: Curves, swap: dict[str, Any]) -> Verdict:
    adapter = max(own[0]["bytes"] for own in (curve[max(curve)] for curve in curves.values()))
    equal = "bit-identical to" if swap["exact"] else "NOT the same as"
    return Verdict(
        f"An adapter takes {adapter / 1000:.0f} kB, the base model {base[0]['bytes'] / 1000:.0f} kB. A swap takes "
        f"{swap['swap']:.1f} ms, loading both from files {swap['load']:.1f} ms. After the swaps to A, B, A and back to "
        f"the base, the logits are {equal} those of models loaded "
        "from files.",
        f"median of {SWAPS} swaps and {SWAPS} loads; all logits of one prompt compared",
    )


def picture(base: Records, curves: Curves) -> Plane:
    """Draw a line through the medians, and a point for each seed."""
    lines = []
    for color, (firm, curve) in zip(("C0", "C1"), curves.items(), strict=True):
        for name, key, style in (("style", f"style {firm}", "o-"), ("fidelity", "fidelity", "s--")):
            medians = [own.percent(key) for own in curve.values()]
            lines.append(Line(f"{FIRMS[firm]}, {name}", list(curve), medians, style, color))
            for size, own in curve.items():
                lines.append(Line("", [size] * len(own), [100 * share for share in own.values(key)], style[0], color))
    level = {"base model, fidelity": (base.percent("fidelity"), ":")}
    ticks = {size: str(size) for size in curves["a"]}
    axes = "training examples of the adapter", "test prompts (%)"
    return Plane(*axes, lines, ticks, log=True, levels=level, ylim=(-3, 103))


LAB = Lab("how many examples does a style need, and are the figures correct?", stages, summarise, quick=True)
