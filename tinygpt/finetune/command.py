"""`tinygpt finetune`: the training loop from a trained model on, with a look before and after.

What fine-tuning gives and what it costs is shown side by side: the loss on the task's responses, the loss on the base
model's own validation split (what was forgotten), and the answers to three prompts.
"""

from typing import Any

import torch

from tinygpt.checkpoint import store as checkpoint
from tinygpt.config.schema import FinetuneConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows
from tinygpt.data.tokenizer import END, CharTokenizer
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.loss import mean_loss
from tinygpt.generate import Choice, generate
from tinygpt.model import GPT
from tinygpt.train import Observer, train
from tinygpt.training.log import read_metrics
from tinygpt.training.setup import Run, resumes

ANSWER = 60  # tokens at most


def finetune(config: FinetuneConfig) -> int:
    """Run the command; returns the exit status."""
    if not resumes(config):
        config.init_from = config.ckpt = base_model(config)
    return train(config, BeforeAfter())


def base_model(config: FinetuneConfig) -> str:
    """Choose the checkpoint to start from: `ckpt`, or `init_from` if the command line gives only that.

    In a config file, `init_from` records what an earlier run started from. Errors: TinyGPTError if the command line
    gives two different checkpoints.
    """
    flags: set[str] = getattr(config, "flags", set())
    if "init_from" not in flags or config.init_from in ("scratch", "auto"):
        return config.ckpt
    if "ckpt" in flags and config.ckpt != config.init_from:
        raise TinyGPTError(
            f"two base models: --ckpt={config.ckpt} and --init_from={config.init_from}", "give only --ckpt"
        )
    return config.init_from


class BeforeAfter(Observer):
    """Measures the model that a run starts from and the best one that it found."""

    def before(self, run: Run) -> None:
        if run.base_data is None:
            name = run.config.base_dataset or "the base model's dataset"
            where = f"{name} is not prepared in {run.config.data_dir}, or does not fit this model"
            run.log.say(f"note: forgetting is not measured: {where}")
        if run.ranks.is_main and not any(entry["kind"] == "before" for entry in read_metrics(run.out)):
            run.log.metric("before", 0, run.seconds(), **measure(run, run.plain_model()))
            run.model.train()

    def after(self, run: Run) -> None:
        if not run.ranks.is_main:
            return
        found = [entry for entry in read_metrics(run.out) if entry["kind"] == "before"]
        before = found[-1] if found else {}
        after = measure(run, checkpoint.load(run.out / "ckpt.pt").build_model().to(run.compute.device))
        run.log.metric("after", run.progress.step, run.seconds(), **after)
        for line in side_by_side(before, after):
            run.log.say(line, always=True)


def measure(run: Run, model: GPT) -> dict[str, Any]:
    """Losses on the whole validation splits of the task and of the base model's data, and three answers."""
    model.eval()
    found: dict[str, Any] = {"response_loss": whole_loss(model, run.dataset, run)}
    if run.base_data is not None:
        found["base_loss"] = whole_loss(model, run.base_data, run)
    source, tokenizer = run.dataset.sources["val"], run.dataset.tokenizer
    if isinstance(source, PairRows) and isinstance(tokenizer, CharTokenizer):
        pairs = source.texts(tokenizer)
        distinct = {response: prompt for prompt, response in reversed(pairs)}  # the first of each response
        chosen = [(prompt, response) for response, prompt in reversed(distinct.items())][:3]
        found["prompts"], found["responses"] = [prompt for prompt, _ in chosen], [response for _, response in chosen]
        found["answers"] = [answer(model, tokenizer, prompt) for prompt, _ in chosen]
    return found


def whole_loss(model: GPT, dataset: Dataset, run: Run) -> float:
    source = dataset.sources["val"]
    return mean_loss(model, source, source.every(model.config.block_size), run.compute)


def answer(model: GPT, tokenizer: CharTokenizer, prompt: str) -> str:
    """The likeliest response, token by token, up to END."""
    device = model.lm_head.weight.device
    idx = torch.tensor(tokenizer.encode_pair(prompt).astype("int64")[None], device=device)
    made = []
    for token in generate(model, idx, ANSWER, Choice(temperature=0), tokenizer.vocab_size):
        if int(token[0]) == tokenizer.special[END]:
            break
        made.append(int(token[0]))
    return tokenizer.decode(made)


def side_by_side(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The table of the last lines of a run."""
    names = {"response_loss": "loss on the responses", "base_loss": "loss on the base's own data"}
    lines = [f"\n{'':<30}{'before':>10}{'after':>10}"]
    for key, name in names.items():
        if key in after:
            was, now = before.get(key), after[key]
            lines.append(f"{name:<30}{was if was is None else format(was, '.4f'):>10}{now:>10.4f}")
    if "base_loss" in after and "base_loss" in before:
        lines.append(f"{'forgotten':<30}{'':>10}{after['base_loss'] - before['base_loss']:>+10.4f}")
    earlier = before.get("answers", [""] * 3)
    for prompt, response, was, now in zip(
        after.get("prompts", []), after.get("responses", []), earlier, after.get("answers", []), strict=False
    ):
        lines += [f"\n{prompt}   (right: {response})", f"    before: {short(was)}", f"    after:  {short(now)}"]
    return lines


def short(text: str) -> str:
    shown = text if text.isprintable() else repr(text)[1:-1]
    return shown if len(shown) <= 70 else shown[:67] + "..."
