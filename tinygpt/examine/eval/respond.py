"""Tasks with free text: greedy responses to many prompts, exact match, and the checks of a task.

Greedy decoding gives the expected response if and only if, after each of its prefixes, its next token (or its end) is
the most probable one. So one forward pass per batch measures exact match, without decoding. The metric is that of
extractive question answering (Rajpurkar et al. 2016, section 6.1), without its normalisation of the texts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tinygpt.base.device import Compute
from tinygpt.base.intervals import INTERVALS, by_group, intervals, percent, wilson
from tinygpt.base.terminal import counted, escaped, progress
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import PairRows
from tinygpt.data.tasks import TASKS
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.examine.eval.classify import encoded, of_equal_length
from tinygpt.generate import GREEDY, generate_with_logits, require_finite
from tinygpt.model import GPT

BATCH_TOKENS = 1 << 14  # prompts and responses of a batch, padding included
BATCH_LOGITS = 1 << 26  # of a batch whose losses are measured: 256 MB


@torch.inference_mode()
def responses(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], longest: int, skip_unknown: bool = False
) -> tuple[list[str], np.ndarray]:
    """Decode the response to each prompt greedily, up to its end or `longest` tokens: texts, and their probabilities.

    A probability, float64 (n,), is the product over the response's tokens and END, if it is not cut off. Errors:
    TinyGPTError for a prompt that leaves no room for a response in the context, and for logits that are not finite.
    """
    assert tokenizer.pair is not None
    end = int(tokenizer.pair.end[0])
    device = model.lm_head.weight.device
    block_size = model.config.block_size
    ending = f", and the model's context has {block_size}"
    prompt_ids = encoded(prompts, tokenizer, skip_unknown, block_size - 1, 0, ending)
    texts = [""] * len(prompt_ids)
    log_probabilities = np.zeros(len(prompt_ids))
    batch_size = BATCH_TOKENS // (max(map(len, prompt_ids), default=0) + longest)
    with progress(total=len(prompt_ids), unit="prompt", desc="writing responses") as bar:
        for indices in of_equal_length(prompt_ids, batch_size):
            idx = torch.from_numpy(np.stack([prompt_ids[i] for i in indices])).to(device)
            steps = min(longest, block_size - idx.size(1))
            response_ids = np.full((len(indices), steps), end)
            ended = torch.zeros(len(indices), dtype=torch.bool)
            total = torch.zeros(len(indices), dtype=torch.float64)
            decoded = generate_with_logits(model, idx, steps, GREEDY, tokenizer.vocab_size)
            for step, (tokens, logits) in enumerate(decoded):
                best = logits.float().log_softmax(-1).amax(-1).cpu()
                chosen = tokens.cpu()
                total += best.double().masked_fill(ended, 0)
                ended = ended | (chosen == end)
                response_ids[:, step] = chosen.masked_fill(ended, end).numpy()
                if ended.all():
                    break
            for row, i in enumerate(indices):
                texts[i] = tokenizer.decode(response_ids[row][response_ids[row] != end].tolist())
                log_probabilities[i] = total[row]
            bar.update(len(indices))
    return texts, np.exp(log_probabilities)


@torch.inference_mode()
def matches(model: GPT, rows: PairRows, compute: Compute) -> tuple[np.ndarray, np.ndarray]:
    """Return whether greedy decoding gives the response of each row, bool (n,), and the loss of each in nats, (n,)."""
    model.eval()
    exact = np.zeros(len(rows.lengths), dtype=bool)
    losses = np.zeros(len(rows.lengths))
    order = np.argsort(rows.lengths, kind="stable")  # so that little is padded
    batch_tokens = min(BATCH_TOKENS, BATCH_LOGITS // model.config.vocab_size)
    batch_size = max(1, batch_tokens // int(rows.lengths.max()))
    with progress(total=len(order), unit="prompt", desc="measuring exact match") as bar:
        for index in range(0, len(order), batch_size):
            row_indices = order[index : index + batch_size]
            block = rows.rows(row_indices, rows.width(model.config.block_size, row_indices))
            x, y = (torch.from_numpy(part).to(compute.device) for part in block)
            is_target = y >= 0
            logits = model(x, y, targets_only=True)[0]
            row = is_target.nonzero()[:, 0].cpu().numpy()  # of each target
            wrong = (logits.argmax(-1) != y[is_target]).cpu().numpy()
            exact[row_indices] = np.bincount(row, wrong, len(row_indices)) == 0
            token_losses = F.cross_entropy(logits, y[is_target], reduction="none").cpu().numpy()
            losses[row_indices] = np.bincount(row, token_losses, len(row_indices))
            bar.update(len(row_indices))
    require_finite(torch.from_numpy(losses), "the loss is")
    return exact, losses


def make_report(model: GPT, dataset: Dataset, split: str, compute: Compute) -> dict[str, Any]:
    """Measure exact match on a split: the values for JSON. An abstention, too, counts only if it is exact. Errors:
    TinyGPTError for an example longer than the context."""
    rows = dataset.sources[split]
    tokenizer = dataset.tokenizer
    assert isinstance(rows, PairRows)
    rows.require(model.config.block_size, f"{dataset.folder}/{split}.bin")
    pairs = rows.examples(tokenizer)
    exact, losses = matches(model, rows, compute)
    n = len(pairs)
    task = TASKS.get(dataset.name)
    abstention: dict[str, Any] = {}
    if task and task.abstention:
        abstaining = [(prompt, task.abstention(prompt, response)) for prompt, response in pairs]
        has_answer = np.array([pair != other for pair, other in zip(pairs, abstaining, strict=True)])
        answerable = [tokenizer.encode_pair(*abstaining[i]) for i in np.flatnonzero(has_answer)]
        true = int(exact[~has_answer].sum())
        false = 0
        without = n - len(answerable)
        if answerable:
            false = int(matches(model, PairRows(np.concatenate(answerable), tokenizer), compute)[0].sum())
        abstention = {
            "n": without,  # prompts without an answer
            "abstentions": true + false,
            "recall": true / max(without, 1),
            "precision": true / max(true + false, 1),
            "exact_of_others": int(exact[has_answer].sum()) / max(len(answerable), 1),
        }
        cases = {"recall": without, "precision": true + false, "exact_of_others": len(answerable)}
        abstention |= intervals(abstention, cases) if without else {}
    mistakes = [{"prompt": pairs[i][0], "wanted": pairs[i][1]} for i in np.flatnonzero(~exact)]
    passed: dict[str, np.ndarray] = {}
    if task and task.scores:
        longest = 2 * max(len(tokenizer.encode(response)) for _, response in pairs)
        texts, _ = responses(model, tokenizer, [prompt for prompt, _ in pairs], longest)
        judgements = [task.scores(*pair, text) for pair, text in zip(pairs, texts, strict=True)]
        passed = {check: np.array([checks[check] for checks in judgements]) for check in judgements[0]}
        mistakes = []
        for (prompt, response), text, checks in zip(pairs, texts, judgements, strict=True):
            if fails := ", ".join(check for check, ok in checks.items() if not ok):
                mistakes.append({"prompt": prompt, "wanted": response, "said": text, "fails": fails})
    groups = {}
    if task and task.group:
        groups = by_group([task.group(prompt) for prompt, _ in pairs], {"exact match": exact, **passed})
    share = float(exact.mean())
    scores = {name: float(ok.mean()) for name, ok in passed.items()}
    return {
        "task": dataset.name,
        "split": split,
        "n": n,
        "loss": float(losses.sum() / rows.targets(rows.all_rows(0), int(rows.lengths.max())).sum()),  # nats per token
        "exact": share,
        "abstention": abstention,  # empty unless the task has prompts without an answer
        "scores": scores,  # shares of the responses that pass each check of the task; empty if it has none
        "groups": groups,  # of each group of prompts: n, exact match and scores; empty if it has none
        "mistakes": mistakes[:3],
        "exact_interval": [*wilson(share, n)],
        "scores_interval": {name: [*wilson(score, n)] for name, score in scores.items()},
    }


def as_text(report: dict[str, Any]) -> str:
    """Format a report for the terminal."""
    n = report["n"]
    scores = report["scores"]
    abstention = report["abstention"]
    width = max(21, *(len(name) + 2 for name in scores), 0)
    lines = [
        f"{report['task']}, split {report['split']}: {counted(n, 'prompt')}; "
        f"loss {report['loss']:.4f} nats per token of the response",
        f"{INTERVALS}\n",
        *(f"{name:<{width}}{percent(share, n)}" for name, share in ({"exact match": report["exact"]} | scores).items()),
    ]
    if abstention:
        without = abstention["n"]
        given = abstention["abstentions"]
        lines += [
            f"  with an answer     {percent(abstention['exact_of_others'], n - without)} of {n - without:,}",
            f"  without an answer  {percent(abstention['recall'], without)} of {without:,}: recall of abstention",
            f"                     {percent(abstention['precision'], given)} of {given:,}: precision of abstention",
        ]
    for group, rates in report["groups"].items():
        lines.append(f"\n{group}: {counted(rates['n'], 'prompt')}")
        lines += [f"  {name:<19}{percent(rate, rates['n'])}" for name, rate in rates.items() if name != "n"]
    for item in report["mistakes"]:
        lines.append(f"\nprompt:    {escaped(item['prompt'])}\nexpected:  {escaped(item['wanted'])}")
        if "said" in item:
            lines.append(f"response:  {escaped(item['said'])} (fails: {item['fails']})")
    return "\n".join(lines)
