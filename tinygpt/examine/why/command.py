"""`tinygpt why`: the training examples that raised or lowered the probability of an output, and the proof.

tinygpt why out --start "SQ *BLUE HERON ESPRESSO" --text coffee --prove
"""

import contextlib
import dataclasses
import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import torch

from tinygpt.base import terminal
from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.errors import TinyGPTError, diverged
from tinygpt.base.files import folder_lock, strict_json
from tinygpt.base.process import ended_by_sigterm
from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.data.prompts import prompt_text
from tinygpt.examine.experiment.stages import Identity, Results, Stage, run
from tinygpt.examine.why.explained import Explained, load_run, log_probability, output, places_of, texts_of
from tinygpt.examine.why.influence import exposures_of
from tinygpt.examine.why.retrain import effects, retrain
from tinygpt.generate import refuse_diverged
from tinygpt.model import GPT

Groups = dict[str, np.ndarray]  # the numbers of the training rows that a retraining leaves out
SEEDS = 5  # enough to exclude chance; advised as one number, since adding seeds until a test succeeds is no test
INFLUENTIAL, RANDOM = "the most influential", "random ones"
WIDTH = 90  # characters of an example
# Student's t of which 95% are below, by the number of seeds; about 1.8 for more
T_95 = (math.inf, 6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)


def why(config: WhyConfig) -> None:
    """Run the command. Errors: TinyGPTError for a run or an output that cannot be explained."""
    explained = load_run(config)
    start = prompt_text(config.start)
    x, y = output(explained, start, config.text)
    rows = len(explained.rows)
    if config.prove and 2 * config.leave_out > rows:
        problem = f"--leave_out={config.leave_out} needs as many other training rows, but there are {rows} in all"
        raise TinyGPTError(problem, f"--leave_out={max(1, rows // 4)}")
    model = explained.checkpoint.for_inference(dataclasses.replace(explained.compute, dtype=torch.float32))
    refuse_diverged(model, str(explained.out / "ckpt.pt"))
    before = log_probability(model, x, y)
    if not math.isfinite(before):
        raise diverged("the loss is", before)
    fingerprint = weights_fingerprint(explained.checkpoint.model)
    query = strict_json([start, config.text, fingerprint, explained.config.device])
    folder = explained.out / "why" / hashlib.sha256(query.encode()).hexdigest()[:12]
    identity = Identity("why", "proof", {"start": start, "text": config.text}, {"ckpt.pt": fingerprint})
    printing = contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext()
    with printing, folder_lock(folder, "proof"), ended_by_sigterm():
        finish, texts = partial(run, folder, identity), texts_of(explained)
        measure = Stage("measure the effects", 2 * seconds_of(explained), partial(traced, explained, (x, y)))
        traced_run = finish([measure])[measure.name]
        estimate = np.array(traced_run["effects"])
        order = np.argsort(estimate, kind="stable")
        answer = {
            "start": start,
            "text": config.text,
            "probability": math.exp(before),
            "log_probability": before,
            "tokens": int((y >= 0).sum()),
            "step": explained.checkpoint.step,
            "exact": traced_run["exact"],
            "rows": rows,
            **examples(explained, estimate, order, texts, config.count),
        }
        influential = order[: min(config.leave_out, int((estimate < 0).sum()))]
        if not config.json:
            show(answer, config)
        if config.prove:
            if not len(influential):
                raise TinyGPTError("no row raised the probability, so no proof can leave one out", "another --text", 1)
            answer["proof"] = prove(explained, config, estimate, influential, (x, y), finish)
            if not config.json:
                show_proof(answer["proof"], before)
    if config.json:
        print(strict_json(answer))


def examples(
    explained: Explained, estimate: np.ndarray, order: np.ndarray, texts: list[str], count: int
) -> dict[str, Any]:
    """Return the rows that raised and lowered the probability most, with effect, place and text, for JSON."""
    raised = [int(number) for number in order[:count] if estimate[number] < 0]
    lowered = [int(number) for number in order[::-1][:count] if estimate[number] > 0]
    places = places_of(explained, raised + lowered)
    rows = {
        number: {"row": number + 1, "effect": float(estimate[number]), "place": places[number], "text": texts[number]}
        for number in raised + lowered
    }
    return {"raised": [rows[number] for number in raised], "lowered": [rows[number] for number in lowered]}


def show(answer: dict[str, Any], config: WhyConfig) -> None:
    """Print the output's probability and the examples."""
    tokens = terminal.counted(answer["tokens"], "token")
    nats = f"log-probability {answer['log_probability']:.3f} nats, {tokens}"
    print(f"output:      {terminal.cut(terminal.escaped(config.text), WIDTH)}")
    print(f"probability: {answer['probability']:.3g} ({nats}) after {terminal.counted(answer['step'], 'iteration')}")
    if not answer["exact"]:
        print("note: trained again, the model has other weights than ckpt.pt, so these are effects in a similar run")
        print("      (another machine, version, number of threads or processes, or a run resumed with other settings)")
    for title in ("raised", "lowered"):
        entries = answer[title]
        print(f"\n{len(entries)} of {answer['rows']:,} training rows {title} the probability most:")
        lines = [
            (f"{entry['effect']:+.3g}", entry["place"], terminal.cut(terminal.escaped(entry["text"]), WIDTH))
            for entry in entries
        ]
        width = max([len(line[1]) for line in lines], default=5) + 2
        print(*terminal.table({"effect": "<10", "place": f"<{width}", "text": "<4"}, lines), sep="\n")
    print("\neffect: estimated change of the log-probability (nats) if the row is left out of the training")
    if not config.prove:
        print("\nnext: the same command with --prove trains again without these rows, and shows what changes")


# ---- the proof --------------------------------------------------------------------------------------------------


def prove(
    explained: Explained,
    config: WhyConfig,
    estimate: np.ndarray,
    influential: np.ndarray,
    encoded: tuple[torch.Tensor, torch.Tensor],
    finish: Callable[[Sequence[Stage]], Results],
) -> dict[str, Any]:
    """Retrain with every row, without the influential ones, and without as many others, for each seed."""
    seeds = [explained.config.seed + number for number in range(config.seeds)]
    groups: dict[int, Groups] = {}
    stages = []
    for seed in seeds:
        others = random_rows(explained, influential, seed)
        groups[seed] = {"nothing": influential[:0], INFLUENTIAL: influential, RANDOM: others}
        for name, left_out in groups[seed].items():
            measure = partial(measured, explained, left_out, seed, encoded)
            stages.append(Stage(stage_name(name, left_out, seed), seconds_of(explained), measure))
    print()
    return proof(finish(stages), groups, seeds, float(estimate[influential].sum()))


def stage_name(name: str, left_out: np.ndarray, seed: int) -> str:
    return f"train without {name}{f' ({len(left_out)})' if len(left_out) else ''}, seed {seed}"


def seconds_of(explained: Explained) -> float:
    """Return how long the run was trained."""
    return float(explained.checkpoint.training.get("progress", {}).get("seconds", 60.0))


def traced(explained: Explained, encoded: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """Train again, and return the effects of the rows; and whether the weights are those of ckpt.pt, bit for bit."""
    estimate, model = effects(explained, *encoded)
    if not np.isfinite(estimate).all():
        raise diverged("an effect is", float(estimate[~np.isfinite(estimate)][0]))
    return {"effects": estimate.tolist(), "exact": is_the_model(explained, model)}


def measured(
    explained: Explained, left_out: np.ndarray, seed: int, encoded: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, Any]:
    """Retrain; return the output's log-probability, and whether the weights are those of ckpt.pt, bit for bit."""
    model = retrain(explained, left_out, seed)
    return {"log_probability": log_probability(model, *encoded), "exact": is_the_model(explained, model)}


def is_the_model(explained: Explained, model: GPT) -> bool:
    """Return whether a model has exactly the weights of ckpt.pt."""
    return weights_fingerprint(model.state_dict()) == weights_fingerprint(explained.checkpoint.model)


def random_rows(explained: Explained, influential: np.ndarray, seed: int) -> np.ndarray:
    """Draw as many other rows, each with about as many targets in the iterations of this seed's run as an influential
    one, since a row that was hardly drawn cannot matter. With labels it has the same label, as long as there is one."""
    generator, exposures = np.random.default_rng(seed), exposures_of(explained, seed)
    free = generator.permutation(np.setdiff1d(np.arange(len(explained.rows)), influential)).tolist()
    if len(influential) > len(free):
        raise TinyGPTError(f"{len(influential)} rows, but only {len(free)} other training rows", "fewer rows")
    examples = explained.source.examples(explained.dataset.tokenizer) if explained.dataset.labels else []
    labels = [response for _, response in examples] or [""] * len(explained.rows)
    drawn = []
    for number in influential.tolist():
        same = [other for other in free if labels[other] == labels[number]]
        drawn.append(min(same or free, key=lambda other: abs(exposures[other] - exposures[number])))
        free.remove(drawn[-1])
    return np.array(drawn, dtype=np.int64)


def proof(results: Results, groups: dict[int, Groups], seeds: list[int], predicted: float) -> dict[str, Any]:
    """Summarise the retrainings: log-probabilities by what was left out and seed, changes, and the verdict."""
    names = list(groups[seeds[0]])
    stage = {(name, seed): results[stage_name(name, groups[seed][name], seed)] for name in names for seed in seeds}
    values = {name: [stage[name, seed]["log_probability"] for seed in seeds] for name in names}
    changes = {
        name: [after - before for after, before in zip(values[name], values["nothing"], strict=True)]
        for name in names[1:]
    }
    ours, others = np.array(changes[INFLUENTIAL]), np.array(changes[RANDOM])
    further = others - ours
    return {
        "seeds": seeds,
        "left_out": {name: len(rows) for name, rows in groups[seeds[0]].items()},
        "log_probability": values,
        "change": changes,
        "predicted_change": predicted,
        "exact": stage["nothing", seeds[0]]["exact"],
        "agrees": bool((ours < 0).all() and (further > 0).all()),
        "right": is_positive(-ours) and is_positive(further),
    }


def is_positive(values: np.ndarray) -> bool:
    """Return whether the mean of several values is above 0 by more than chance: one-sided t-test, p < 0.05."""
    count = len(values)
    return count > 1 and bool(values.mean() > T_95[min(count, len(T_95)) - 1] * values.std(ddof=1) / count**0.5)


def show_proof(proved: dict[str, Any], before: float) -> None:
    """Print the probabilities of the output in the retrained models, and the verdict."""
    seeds, count = proved["seeds"], proved["left_out"][INFLUENTIAL]
    exact = "has exactly the weights of the run"
    if not proved["exact"]:
        exact = "has other weights than the run, so the changes below are measured from this model"
    print(f"\ncheck: retrained with every row, the model {exact}\n")
    longest = max(map(len, proved["log_probability"])) + len(f" ({count})  ")
    shown = {"trained without": f"<{longest}"} | {f"seed {seed}": ">12.3g" for seed in seeds} | {"change (nats)": ">15"}
    rows: list[list[Any]] = []
    for name, values in proved["log_probability"].items():
        change = proved["change"].get(name)
        label = name if name == "nothing" else f"{name} ({proved['left_out'][name]})"
        rows.append([label, *map(math.exp, values), f"{mean(change):+.3f}" if change else ""])
    print("probability of the output:")
    print(*terminal.table(shown, rows), sep="\n")
    ours, other = (mean(proved["change"][name]) for name in (INFLUENTIAL, RANDOM))
    result = f"the log-probability changed by {ours:+.3f} without {INFLUENTIAL} and by {other:+.3f} without {RANDOM}"
    print(f"predicted:   {proved['predicted_change']:+.3f} nats; a rough size, meant as a ranking")
    verdict = "not confirmed that these rows matter more"
    if proved["agrees"]:
        verdict = "one retraining agrees" if len(seeds) == 1 else "every seed agrees"
        verdict += ", which can be chance"
    print(f"verdict:     {'these rows matter more than random ones' if proved['right'] else verdict}: {result}")
    print(f"rule:        it falls without {INFLUENTIAL}, and further than without random ones: two one-sided t-tests,")
    print("             p < 0.05 each, for a number of seeds that was chosen before")
    if proved["agrees"] and not proved["right"] and len(seeds) < SEEDS:
        print(f"next:        the same command with --seeds={SEEDS}")
