"""Additions of fine-tuning to the training loop: LoRA, replay, and a comparison of the model before and after.

The comparison shows gain and cost: the loss on the task's responses, the loss on the base model's validation split (its
increase is the forgetting), and the answers to three prompts.
"""

from typing import Any

import torch

from tinygpt.checkpoint import store
from tinygpt.checkpoint.adapter import save_adapter, weights_fingerprint
from tinygpt.config.schema import FinetuneConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import Batches, MixedRows
from tinygpt.device import choose_for_inference
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.loss import sampled_loss
from tinygpt.generate import answer
from tinygpt.lora import LoRA, attach
from tinygpt.model import GPT
from tinygpt.terminal import escaped
from tinygpt.training.log import read_metrics
from tinygpt.training.run import Method, Run
from tinygpt.training.start import Start


class FineTuning(Method):
    """LoRA adapters next to frozen weights, and replayed rows of the base model's data, if the config asks for them."""

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config
        self.base_data: Dataset | None = None  # what the base model was trained on
        self.base_fingerprint = ""  # of the base model's weights, to which this run's adapter belongs

    def adapt(self, model: GPT, new_tokens: int, start: Start) -> None:
        config = self.config
        self.base_fingerprint = str(start.saved.get("base", ""))
        if config.lora_rank and not start.resuming:
            assert start.state is not None
            self.base_fingerprint = weights_fingerprint(start.state.model)
            torch.manual_seed(config.seed)
            attach(
                model, LoRA(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets), new_tokens
            )

    def rows(self, dataset: Dataset, start: Start) -> Batches:
        self.base_data = base_dataset(self.config, dataset, start)
        if self.config.examples:
            dataset.sources["train"] = dataset.sources["train"].first(self.config.examples)
            dataset.require(self.config.block_size)
        new = dataset.sources["train"]
        if not self.base_data or not self.config.replay:
            return new
        return MixedRows(new, self.base_data.sources["train"], self.config.replay)

    def state(self) -> dict[str, Any]:
        replayed = self.base_data.meta["sha256"] if self.base_data and self.config.replay else {}
        return {"base": self.base_fingerprint, "replayed": replayed}

    def improved(self, run: Run, best: store.Checkpoint) -> None:
        if self.config.lora_rank:
            save_adapter(run.out / "adapter.pt", best, self.base_fingerprint, run.log.next_step)

    def before(self, run: Run) -> None:
        if self.base_data is None:
            name = self.config.base_dataset or "the base model's dataset"
            where = f"{name} is not prepared in {run.config.data_dir}, or does not fit this model"
            run.log.say(f"note: forgetting is not measured: {where}")
        if run.ranks.is_main and not any(entry["kind"] == "before" for entry in read_metrics(run.out)):
            run.log.metric("before", 0, run.seconds(), **self.measure(run, run.checkpoint(), {}))

    def after(self, run: Run) -> None:
        if not run.ranks.is_main:
            return
        found = [entry for entry in read_metrics(run.out) if entry["kind"] == "before"]
        before = found[-1] if found else {}
        after = self.measure(run, store.load(run.out / "ckpt.pt"), before)
        run.log.metric("after", run.progress.step, run.seconds(), **after)
        for line in side_by_side(before, after):
            run.log.say(line, always=True)

    def measure(self, run: Run, state: store.Checkpoint, before: dict[str, Any]) -> dict[str, Any]:
        """Losses on the validation splits of the task and of the base model's data, and three answers.

        A split that would take minutes is sampled: after training, the same rows as `before`.
        """
        run.log.say("measuring:   the validation split, and the answers to three prompts")
        compute = choose_for_inference(str(run.compute.device), "auto", run.model.num_params())
        model = state.for_inference(compute, run.config.fast)
        found: dict[str, Any] = {}
        for name, dataset in (("response", run.dataset), ("base", self.base_data)):
            if dataset is not None:
                rows = before.get(f"{name}_rows", 0)
                measured = sampled_loss(model, dataset.sources["val"], compute, rows, f"loss on {dataset.name}")
                found |= {f"{name}_{key}": value for key, value in measured._asdict().items()}
        source, tokenizer = run.dataset.sources["val"], run.dataset.tokenizer
        pairs = source.texts(tokenizer)
        if pairs:
            distinct = {response: prompt for prompt, response in reversed(pairs)}  # the first of each response
            chosen = [(prompt, response) for response, prompt in reversed(distinct.items())][:3]
            found["prompts"], found["responses"] = [prompt for prompt, _ in chosen], [right for _, right in chosen]
            found["answers"] = [answer(model, tokenizer, prompt) for prompt, _ in chosen]
        return found


def base_dataset(config: FinetuneConfig, dataset: Dataset, start: Start) -> Dataset | None:
    """The dataset of the base model, or None if it is not prepared here. Errors: TinyGPTError if replay needs it."""
    if start.state is not None and not config.base_dataset and not start.resuming:
        config.base_dataset = str(start.state.config.get("dataset", ""))
    if not config.base_dataset:
        if config.replay:
            raise TinyGPTError("replay needs the base model's dataset", "--base_dataset=NAME")
        return None
    try:
        found = Dataset(start.data_dir or config.data_dir, config.base_dataset)
        adopted = found.adopt_tokenizer(dataset.tokenizer)
        found.require(config.block_size)
    except TinyGPTError:
        if config.replay:
            raise
        return None
    earlier = start.saved.get("replayed")
    if config.replay and earlier and not found.is_of(earlier):
        raise TinyGPTError(
            f"replay: dataset {found.name!r} has been prepared from different text since {start.where} was written",
            "prepare the old text again",
        )
    if adopted:
        return found
    if config.replay:
        raise TinyGPTError(
            f"replay: dataset {found.name!r} has tokens outside the base model's vocabulary",
            "--base_dataset=NAME of the text that the base model was trained on",
        )
    return None


def side_by_side(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Table of the losses and answers before and after, the last lines of a run."""
    names = {"response_loss": "loss on the responses", "base_loss": "loss on the base model's data"}
    lines = [f"\n{'':<30}{'before':>10}{'after':>10}"]
    for key, name in names.items():
        if key in after:
            was, now = before.get(key), after[key]
            lines.append(
                f"{name:<30}{was if was is None else format(was, '.4f'):>10}{now:>10.4f}{sample_note(key, after)}"
            )
    if "base_loss" in after and "base_loss" in before:
        lines.append(f"{'forgetting (increase)':<30}{'':>10}{after['base_loss'] - before['base_loss']:>+10.4f}")
    earlier = before.get("answers", [""] * 3)
    for prompt, response, was, now in zip(
        after.get("prompts", []), after.get("responses", []), earlier, after.get("answers", []), strict=False
    ):
        question = f"\n{escaped(prompt)}   (expected: {escaped(response)})"
        lines += [question, f"    before: {short(was)}", f"    after:  {short(now)}"]
    return lines


def sample_note(key: str, after: dict[str, Any]) -> str:
    """Say how a loss was sampled; empty if it was measured on the complete split."""
    error, rows, of = (after.get(key.replace("loss", part)) for part in ("error", "rows", "of"))
    return "" if rows == of else f"  ± {error:.3f}: a sample of {rows:,} of {of:,} rows"


def short(text: str) -> str:
    shown = escaped(text) or "(empty)"
    return shown if len(shown) <= 70 else shown[:67] + "..."
