"""Compare the model before and after fine-tuning.

The loss on the task's responses shows the gain, the loss on the base model's validation split the forgetting, and the
answers to three prompts show what the model does.
"""

from typing import Any

from tinygpt.base.device import choose_for_inference
from tinygpt.base.terminal import cut, escaped
from tinygpt.checkpoint import store
from tinygpt.generate import answer
from tinygpt.training.log import read_metrics
from tinygpt.training.losses import sampled_loss
from tinygpt.training.run import Run
from tinygpt.training.tuning import Tuning


def before(run: Run, tuning: Tuning) -> None:
    """Measure the base model, and log the metrics as `before`, unless the run has been resumed after that."""
    if tuning.base_data is None:
        name = tuning.config.base_dataset or "the base model's dataset"
        where = f"{name} is not prepared in {run.config.data_dir}, or does not fit this model"
        run.log.print_line(f"note: forgetting is not measured: {where}")
    state = run.checkpoint()
    if run.ranks.is_main and not measured_before(run):
        run.log.metric("before", 0, run.seconds(), **measure(run, tuning, state, {}))


def after(run: Run, tuning: Tuning) -> None:
    """Measure the best model, log the metrics as `after`, and print them next to those from before."""
    if not run.ranks.is_main:
        return
    earlier = measured_before(run)
    later = measure(run, tuning, store.load(run.out / "ckpt.pt"), earlier)
    run.metric("after", **later)
    for line in side_by_side(earlier, later):
        run.log.print_line(line, always=True)


def measured_before(run: Run) -> dict[str, Any]:
    """Return the line `before` of metrics.jsonl; empty if there is none."""
    return next((entry for entry in reversed(read_metrics(run.out)) if entry["kind"] == "before"), {})


def measure(run: Run, tuning: Tuning, state: store.Checkpoint, before: dict[str, Any]) -> dict[str, Any]:
    """Compute the losses on the validation splits of the task and of the base model's data, and three answers.

    A split that would take minutes is sampled. `before`: the measurement before training, whose rows and prompts are
    used again; empty for the first measurement."""
    answers = ", and the answers to three prompts" if run.dataset.pairs else ""
    run.log.print_line(f"measuring:   the validation split{answers}")
    compute = choose_for_inference(str(run.compute.device), "auto", run.model.num_params())
    model = state.for_inference(compute, run.config.fast)
    metrics: dict[str, Any] = {}
    for name, dataset in (("response", run.dataset), ("base", tuning.base_data)):
        if dataset is not None:
            rows = before.get(f"{name}_rows", 0)
            measured = sampled_loss(model, dataset.sources["val"], compute, rows, f"loss on {dataset.name}")
            metrics |= {f"{name}_{key}": value for key, value in measured._asdict().items()}
    tokenizer = run.dataset.tokenizer
    prompts = dict(zip(before.get("responses", ()), before.get("prompts", ()), strict=False))
    if not prompts:  # three different responses, and the first prompt of each
        for prompt, response in run.dataset.sources["val"].examples(tokenizer):
            prompts.setdefault(response, prompt)
            if len(prompts) == 3:
                break
    if prompts:
        metrics["prompts"] = list(prompts.values())
        metrics["responses"] = list(prompts)
        metrics["answers"] = [answer(model, tokenizer, prompt) for prompt in metrics["prompts"]]
    return metrics


def side_by_side(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Format the losses and answers before and after as a table, the last lines of a run."""
    lines = [f"\n{'':<30}{'before':>10}{'after':>10}"]
    new_data = "loss on the responses" if after.get("prompts") else "loss on the new text"
    for key, name in (("response", new_data), ("base", "loss on the base model's data")):
        if (new := after.get(f"{key}_loss")) is not None:
            old = before.get(f"{key}_loss")
            error, rows, total = (after.get(f"{key}_{part}") for part in ("error", "rows", "of"))
            sampled = "" if rows == total else f"  ± {error:.3f}: a sample of {rows:,} of {total:,} rows"
            earlier = "None" if old is None else f"{old:.4f}"
            lines.append(f"{name:<30}{earlier:>10}{new:>10.4f}{sampled}")
    if "base_loss" in after and "base_loss" in before:
        lines.append(f"{'forgetting (increase)':<30}{'':>10}{after['base_loss'] - before['base_loss']:>+10.4f}")
    answers = zip(before.get("answers", [""] * 3), after.get("answers", []), strict=False)
    for prompt, response, both in zip(after.get("prompts", []), after.get("responses", []), answers, strict=False):
        old, new = (cut(escaped(text) or "(empty)", 70) for text in both)
        lines.append(f"\n{escaped(prompt)}   (expected: {escaped(response)})")
        lines += [f"    before: {old}", f"    after:  {new}"]
    return lines
