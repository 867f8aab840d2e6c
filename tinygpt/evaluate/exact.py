"""Exact match: how often a model's greedy response to a prompt is the wanted one, token by token.

Greedy decoding gives a response exactly if, after every correct beginning, the next token of the response (or its end)
is the most probable one. So one forward pass per batch measures it, without decoding. The metric is that of extractive
question answering (Rajpurkar et al. 2016, section 6.1), without its normalisation of case, articles and punctuation.

    report = make_report(model, dataset, "test", compute)
    print(report.text())
"""

import collections
import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows
from tinygpt.errors import diverged
from tinygpt.model import GPT
from tinygpt.terminal import escaped
from tinygpt.training.device import Compute

BATCH_TOKENS = 1 << 14  # of a forward pass, padding included
OFTEN = 0.05  # share of the split from which the most frequent response is reported on its own


@dataclasses.dataclass
class ExactReport:
    """Results on a split of prompts with free responses.

    `often` is about the most frequent response, if it is frequent enough to be a class, such as "not in the documents":
    its number, recall, precision, and the exact match of the other prompts. Otherwise it is empty.
    """

    task: str
    split: str
    n: int
    loss: float  # nats per token of the wanted responses
    exact: float
    often: dict[str, Any]
    mistakes: list[dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Format for the terminal."""
        lines = [
            f"{self.task}, split {self.split}: {self.n:,} prompts; loss {self.loss:.4f} nats per token of the response",
            "",
            f"exact match          {percent(self.exact, self.n)}",
        ]
        if often := self.often:
            name, count = often["response"], often["n"]
            lines += [
                f"  with an answer     {percent(often['exact_of_others'], self.n - count)} of {self.n - count:,}",
                f"  {name!r}: recall {percent(often['recall'], count)} of {count:,}, precision "
                f"{100 * often['precision']:.1f} %",
            ]
        for item in self.mistakes:
            lines.append(f"\nnot answered with {item['wanted']!r}:\n  {escaped(item['prompt'])}")
        return "\n".join(lines)


def percent(share: float, n: int) -> str:
    """A share of n with its binomial standard error, in percent."""
    return f"{100 * share:5.1f} % ± {100 * (share * (1 - share) / max(n, 1)) ** 0.5:.1f}"


@torch.inference_mode()
def matches(model: GPT, rows: PairRows, compute: Compute) -> tuple[np.ndarray, np.ndarray]:
    """Whether greedy decoding gives the response of each row, bool (n,), and the loss of each row in nats, (n,)."""
    was_training, block_size = model.training, model.config.block_size
    model.eval()
    exact, losses = np.zeros(len(rows.lengths), dtype=bool), np.zeros(len(rows.lengths))
    order = np.argsort(rows.lengths, kind="stable")  # so that little is padded
    many = max(1, BATCH_TOKENS // int(rows.lengths.max()))
    with tqdm(total=len(order), unit="prompt", desc="measuring exact match", leave=False, disable=None) as bar:
        for index in range(0, len(order), many):
            at = order[index : index + many]
            x, y = (torch.from_numpy(part).to(compute.device) for part in rows.rows(at, rows.width(block_size, at)))
            wanted = y >= 0
            logits = model(x, y)[0]  # of all positions, or of those with a target alone
            logits = (logits[wanted] if logits.dim() == 3 else logits).float()
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
    """Measure the responses to the prompts of a split. Errors: TinyGPTError for examples longer than the context."""
    rows, tokenizer = dataset.sources[split], dataset.tokenizer
    assert isinstance(rows, PairRows)
    rows.require(model.config.block_size, f"{dataset.folder}/{split}.bin")
    pairs, (exact, losses) = rows.texts(tokenizer), matches(model, rows, compute)
    n, often = len(pairs), {}
    response, count = collections.Counter(wanted for _, wanted in pairs).most_common(1)[0]
    if OFTEN * n <= count < n:
        others = np.array([wanted != response for _, wanted in pairs])
        refusals = [tokenizer.encode_pair(prompt, response) for prompt, wanted in pairs if wanted != response]
        false = int(matches(model, PairRows(np.concatenate(refusals), tokenizer), compute)[0].sum())
        true = int(exact[~others].sum())
        often = {
            "response": response,
            "n": count,
            "recall": true / count,
            "precision": true / max(true + false, 1),
            "exact_of_others": float(exact[others].mean()),
        }
    mistakes = [{"prompt": pairs[i][0], "wanted": pairs[i][1]} for i in np.flatnonzero(~exact)[:n_mistakes]]
    loss = float(losses.sum() / rows.targets(rows.every(0), int(rows.lengths.max())).sum())
    return ExactReport(dataset.name, split, n, loss, float(exact.mean()), often, mistakes)
