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
from typing import Any

import numpy as np
import torch

from tinygpt.base import terminal
from tinygpt.base.configs.examine import WhyConfig
from tinygpt.base.errors import TinyGPTError
from tinygpt.base.files import folder_lock, strict_json
from tinygpt.base.process import ended_by_sigterm
from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.data.prompts import prompt_text
from tinygpt.examine.experiment.stages import Identity, Results, Stage, run
from tinygpt.examine.why.effects import derivative, estimate, random_set, tested
from tinygpt.examine.why.explained import Explained, Output, load_run, output, places_of, texts_of
from tinygpt.examine.why.proof import prove, seconds_of, show_proof
from tinygpt.examine.why.step import Training
from tinygpt.generate import refuse_diverged, require_finite
from tinygpt.training.losses import row_losses

WIDTH = 90  # characters of an example
SAME = 0.05  # nats: a smaller difference is rounding


def why(config: WhyConfig) -> None:
    """Run the command. Errors: TinyGPTError for a run or an output that cannot be explained."""
    explained = load_run(config)
    start = prompt_text(config.start)
    x, y = output(explained, (start, config.text))
    rows = len(explained.rows)
    if config.prove and 2 * config.leave_out > rows:
        problem = f"--leave_out={config.leave_out} needs as many other training rows, but there are {rows} in all"
        raise TinyGPTError(problem, f"--leave_out={max(1, rows // 4)}")
    model = explained.checkpoint.for_inference(dataclasses.replace(explained.compute, dtype=torch.float32))
    refuse_diverged(model, str(explained.out / "ckpt.pt"))
    with torch.inference_mode():
        loss = row_losses(model, *(part.to(explained.compute.device) for part in (x, y)))
    require_finite(loss, "the loss is")
    before = -float(loss)
    fingerprint = weights_fingerprint(explained.checkpoint.model)
    query = strict_json([start, config.text, fingerprint, explained.config.device, config.sweeps])
    folder = explained.out / "why" / hashlib.sha256(query.encode()).hexdigest()[:12]
    identity = Identity("why", "proof", {"start": start, "text": config.text}, {"ckpt.pt": fingerprint})
    printing = contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext()
    with printing, folder_lock(folder, "proof"), ended_by_sigterm():
        finish = partial(run, folder, identity)
        texts = texts_of(explained)
        measured = measured_effects(explained, config, (x, y), finish)
        effects = np.array(measured.pop("effects"))
        order = np.argsort(effects, kind="stable")
        answer = {
            "start": start,
            "text": config.text,
            "probability": math.exp(before),
            "log_probability": before,
            "tokens": int((y >= 0).sum()),
            "step": explained.checkpoint.step,
            "rows": rows,
            "sweeps": config.sweeps,
            **measured,
            **examples(explained, effects, order, texts, config.count),
        }
        influential = order[: min(config.leave_out, int((effects < 0).sum()))]
        if not config.json:
            show(answer, config)
        if config.prove:
            if not len(influential):
                raise TinyGPTError("no row raised the probability, so no proof can leave one out", "another --text", 1)
            answer["proof"] = prove(explained, config, effects, influential, (x, y), finish)
            if not config.json:
                show_proof(answer["proof"])
    if config.json:
        print(strict_json(answer))


def measured_effects(
    explained: Explained, config: WhyConfig, encoded: Output, finish: Callable[[Sequence[Stage]], Results]
) -> dict[str, Any]:
    """Return the effects of the rows, and the output's log-probability after the repeated training: by derivatives,
    with their test, or as an estimate."""

    def stage(name: str, times: float, number: int, method: Callable[..., Any], *args: Any) -> Stage:
        def compute() -> dict[str, Any]:
            training = Training(explained, explained.config.seed, random_set(len(explained.rows), number))
            effects, weights = method(training, explained, encoded, *args)
            repeated = float(training.log_probability(weights, *encoded))
            return {"effects": effects.tolist(), "repeated": repeated}

        return Stage(name, times * seconds_of(explained), compute)

    if not config.sweeps:
        by_estimate = stage("estimate the effects", 3, 0, estimate)
        return finish([by_estimate])[by_estimate.name]
    sweeps = [
        stage(f"differentiate training {n}", 5, n - 1, derivative, 1e6 * config.memory, f"training {n}")
        for n in range(1, config.sweeps + 1)
    ]
    found = list(finish(sweeps).values())
    test = tested([np.array(each["effects"]) for each in found], [each["repeated"] for each in found])
    shown = {"predicted": test.predicted, "proved": test.proved, "error": test.error}
    return found[0] | {"effects": test.effects, "test": shown}


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


def show_test(answer: dict[str, Any]) -> None:
    """Print how well the derivatives predict what leaving random rows out does."""
    test = answer["test"]
    columns = {"without": "<7", "predicted": ">12", "measured": ">12"}
    rows = [
        (f"set {number}", f"{predicted:+.3g}", f"{proved:+.3g}")
        for number, (predicted, proved) in enumerate(zip(test["predicted"], test["proved"], strict=True), start=1)
    ]
    count = terminal.counted(len(random_set(answer["rows"], 1)), "random row")
    print(f"\ntest: change of the log-probability (nats) without {count}")
    print(*terminal.table(columns, rows), sep="\n")
    print(f"relative error: {test['error']:.3g} (0: exact; 1: no better than to predict no change; above 1: worse)")
    if test["error"] > 0.995:
        print("so the sizes of the effects below are no guide; whether their ranking is, so few sets cannot tell")


def show(answer: dict[str, Any], config: WhyConfig) -> None:
    """Print the output's probability and the examples."""
    tokens = terminal.counted(answer["tokens"], "token")
    nats = f"log-probability {answer['log_probability']:.3f} nats, {tokens}"
    print(f"output:      {terminal.cut(terminal.escaped(config.text), WIDTH)}")
    print(f"probability: {answer['probability']:.3g} ({nats}) after {terminal.counted(answer['step'], 'iteration')}")
    difference = answer["repeated"] - answer["log_probability"]
    if abs(difference) > SAME:
        again = f"trained again, in float32, it has {math.exp(answer['repeated']):.3g}"
        print(f"note: {again}, so these are effects in a similar run")
        print("      (the run has bfloat16, another device, version, base or number of processes, or was resumed)")
    if "test" in answer:
        show_test(answer)
    for title in ("raised", "lowered"):
        entries = answer[title]
        print(f"\n{len(entries)} of {answer['rows']:,} training rows {title} the probability most:")
        lines = [
            (f"{entry['effect']:+.3g}", entry["place"], terminal.cut(terminal.escaped(entry["text"]), WIDTH))
            for entry in entries
        ]
        width = max([len(line[1]) for line in lines], default=5) + 2
        print(*terminal.table({"effect": "<10", "place": f"<{width}", "text": "<4"}, lines), sep="\n")
    method = f" by the median derivative of {config.sweeps} trainings" if config.sweeps else ""
    print(f"\neffect: change of the log-probability (nats) if the row is left out, estimated{method}")
    if not config.prove:
        print("\nnext: the same command with --prove trains again without these rows, and shows what changes")
