"""Exact match: how often a model's greedy response to a prompt equals the expected one, token by token.

Greedy decoding gives the expected response if and only if, after each of its prefixes, its next token (or its end) is
the most probable one. So one forward pass per batch measures exact match, without decoding. The metric is that of
extractive question answering (Rajpurkar et al. 2016, section 6.1), without its normalisation of case, articles and
punctuation.

    report = make_report(model, dataset, "test", compute)
    print(report.text())
"""

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows
from tinygpt.data.tasks import TASKS, Scores
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.device import Compute
from tinygpt.errors import diverged
from tinygpt.evaluate.respond import responses
from tinygpt.evaluate.share import INTERVALS, intervals, percent, wilson
from tinygpt.model import GPT
from tinygpt.terminal import escaped, progress

BATCH_TOKENS = 1 << 14  # of a forward pass, padding included


@dataclasses.dataclass
class ExactReport:
    """Results on a split whose responses are free text.

    `abstention` is empty unless the task has prompts without an answer. Then it holds their number, that of the
    abstentions, the recall and the precision of abstaining, and the exact match of the other prompts.
    """

    task: str
    split: str
    n: int
    loss: float  # nats per token of the expected responses
    exact: float
    abstention: dict[str, Any]
    scores: dict[str, float]  # shares of the responses that pass each check of the task; empty if it has none
    groups: dict[str, dict[str, float]]  # of each group of prompts: n, exact match and scores; empty if it has none
    mistakes: list[dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        values = dataclasses.asdict(self) | intervals({"exact": self.exact}, {"exact": self.n})
        values["scores_interval"] = {name: [*wilson(share, self.n)] for name, share in self.scores.items()}
        if n := self.abstention.get("n"):
            cases = {"recall": n, "precision": self.abstention["abstentions"], "exact_of_others": self.n - n}
            values["abstention"] |= intervals(self.abstention, cases)
        return values

    def text(self) -> str:
        """Format for the terminal."""
        width = max(21, *(len(name) + 2 for name in self.scores), 0)
        lines = [
            f"{self.task}, split {self.split}: {self.n:,} prompts; loss {self.loss:.4f} nats per token of the response",
            INTERVALS,
            "",
            f"{'exact match':<{width}}{percent(self.exact, self.n)}",
            *(f"{name:<{width}}{percent(share, self.n)}" for name, share in self.scores.items()),
        ]
        if abstention := self.abstention:
            n, made = abstention["n"], abstention["abstentions"]
            lines += [
                f"  with an answer     {percent(abstention['exact_of_others'], self.n - n)} of {self.n - n:,}",
                f"  without an answer  {percent(abstention['recall'], n)} of {n:,}: recall of abstention",
                f"                     {percent(abstention['precision'], made)} of {made:,}: precision of abstention",
            ]
        for group, rates in self.groups.items():
            n = int(rates["n"])
            lines += ["", f"{group}: {n:,} prompts"]
            lines += [f"  {name:<19}{percent(rate, n)}" for name, rate in rates.items() if name != "n"]
        for item in self.mistakes:
            lines += ["", f"prompt:    {escaped(item['prompt'])}", f"expected:  {escaped(item['wanted'])}"]
            if "said" in item:
                lines.append(f"response:  {escaped(item['said'])} (fails: {item['fails']})")
        return "\n".join(lines)


@torch.inference_mode()
def matches(model: GPT, rows: PairRows, compute: Compute) -> tuple[np.ndarray, np.ndarray]:
    """Return whether greedy decoding gives the response of each row, bool (n,), and the loss of each in nats, (n,)."""
    was_training, block_size = model.training, model.config.block_size
    model.eval()
    exact, losses = np.zeros(len(rows.lengths), dtype=bool), np.zeros(len(rows.lengths))
    order = np.argsort(rows.lengths, kind="stable")  # so that little is padded
    many = max(1, BATCH_TOKENS // int(rows.lengths.max()))
    with progress(total=len(order), unit="prompt", desc="measuring exact match") as bar:
        for index in range(0, len(order), many):
            at = order[index : index + many]
            x, y = (torch.from_numpy(part).to(compute.device) for part in rows.rows(at, rows.width(block_size, at)))
            wanted = y >= 0
            logits = model(x, y, targets_only=True)[0]
            row = wanted.nonzero()[:, 0].cpu().numpy()  # of each target
            wrong = (logits.argmax(-1) != y[wanted]).cpu().numpy()
            exact[at] = np.bincount(row, wrong, len(at)) == 0
            losses[at] = np.bincount(row, F.cross_entropy(logits, y[wanted], reduction="none").cpu().numpy(), len(at))
            bar.update(len(at))
    model.train(was_training)
    if not np.isfinite(losses).all():
        raise diverged("the loss is", losses[~np.isfinite(losses)][0])
    return exact, losses


def make_report(model: GPT, dataset: Dataset, split: str, compute: Compute, n_mistakes: int = 3) -> ExactReport:
    """Measure exact match on a split. Errors: TinyGPTError if an example is longer than the context.

    An abstention counts only if it is exact, too: it repeats what is asked without a mistake.
    """
    rows, tokenizer = dataset.sources[split], dataset.tokenizer
    assert isinstance(rows, PairRows)
    rows.require(model.config.block_size, f"{dataset.folder}/{split}.bin")
    pairs, (exact, losses) = rows.texts(tokenizer), matches(model, rows, compute)
    task = TASKS.get(dataset.name)
    n, abstention = len(pairs), {}
    if task and task.abstention:
        abstaining = [task.abstention(prompt, wanted) for prompt, wanted in pairs]
        others = np.array([wanted != instead for (_, wanted), instead in zip(pairs, abstaining, strict=True)])
        instead = [tokenizer.encode_pair(pairs[i][0], abstaining[i]) for i in np.flatnonzero(others)]
        wrong = PairRows(np.concatenate(instead), tokenizer) if instead else None
        false = int(matches(model, wrong, compute)[0].sum()) if wrong else 0
        true = int(exact[~others].sum())
        abstention = {
            "n": int((~others).sum()),
            "abstentions": true + false,
            "recall": true / max(int((~others).sum()), 1),
            "precision": true / max(true + false, 1),
            "exact_of_others": float(exact[others].sum()) / max(int(others.sum()), 1),
        }
    mistakes = [{"prompt": pairs[i][0], "wanted": pairs[i][1]} for i in np.flatnonzero(~exact)]
    passed: dict[str, np.ndarray] = {}
    if task and task.scores:
        passed, mistakes = judged(model, tokenizer, task.scores, pairs)
    groups: dict[str, dict[str, float]] = {}
    if task and task.group:
        names = np.array([task.group(prompt) for prompt, _ in pairs])
        for name in sorted(set(names)):
            checks = {"exact match": exact, **passed}
            groups[name] = {"n": int((names == name).sum()), **shares(checks, names == name)}
    loss = float(losses.sum() / rows.targets(rows.every(0), int(rows.lengths.max())).sum())
    overall = shares(passed, np.full(n, True))
    return ExactReport(
        dataset.name, split, n, loss, float(exact.mean()), abstention, overall, groups, mistakes[:n_mistakes]
    )


def shares(passed: dict[str, np.ndarray], among: np.ndarray) -> dict[str, float]:
    """The share that passes each check, bool (n,), among the examples of a mask, bool (n,)."""
    return {name: float(checks[among].mean()) for name, checks in passed.items()}


def judged(
    model: GPT, tokenizer: Tokenizer, scores: Scores, pairs: list[tuple[str, str]]
) -> tuple[dict[str, np.ndarray], list[dict[str, str]]]:
    """Decode the response to each prompt. Return for each check which responses pass it, bool (n,), and the responses
    that fail one."""
    longest = 2 * max(len(tokenizer.encode(wanted)) for _, wanted in pairs)
    said, _ = responses(model, tokenizer, [prompt for prompt, _ in pairs], longest)
    judgements = [scores(prompt, wanted, text) for (prompt, wanted), text in zip(pairs, said, strict=True)]
    passed = {name: np.array([checks[name] for checks in judgements]) for name in judgements[0]}
    mistakes = [
        {"prompt": prompt, "wanted": wanted, "said": text, "fails": ", ".join(k for k, ok in checks.items() if not ok)}
        for (prompt, wanted), text, checks in zip(pairs, said, judgements, strict=True)
        if not all(checks.values())
    ]
    return passed, mistakes
