"""Classification with a language model: probabilities of labels, metrics, calibration and their report.

The probability of a label as the response to a prompt is the product over its tokens and END, so P(label | prompt) is
exact; nothing is sampled. The softmax over the labels excludes all other responses, and the most probable label is the
answer. The length-normalised score is the mean over the tokens instead of the sum, for models that were not trained on
these labels: they prefer short ones (Brown et al. 2020, section 2.4).

Shapes: n prompts, L labels.

    scores = label_scores(model, tokenizer, [prompt for prompt, _ in val], labels)      # (n, L), (L,)
    print(as_text(make_report("trec", "val", val, labels, *scores, train)))             # val, train: pairs
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.intervals import INTERVALS, by_group, intervals, percent
from tinygpt.base.terminal import counted, cut, escaped, progress, table
from tinygpt.data.tasks import TASKS
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.examine.eval.classifiers import FEATURES, FIXED_C, Linear
from tinygpt.examine.eval.confusion import matrix_lines
from tinygpt.generate import require_finite
from tinygpt.model import GPT, KVCache

BATCH_TOKENS = 2048  # of answers in a forward pass, padding included
BATCH_LOGITS = 1 << 24  # likewise, for large vocabularies
COLUMNS = 100  # of the terminal
MISTAKES = 5  # in a report, the most confident ones

LabelledPrompts = Sequence[tuple[str, str]]  # (prompt, label)
Classifier = Callable[[Sequence[str]], np.ndarray]  # from n prompts to probabilities (n, L)


# ---- scores -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def label_scores(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], labels: Sequence[str], skip_unknown: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Compute log P(label, END | prompt) in nats, float64 (n, L); and count the tokens of each label and END, (L,).

    Errors: TinyGPTError for a prompt that, with the longest label, does not fit the model's context, for a character
    without an id (in prompts, `skip_unknown` leaves those out), and for a model whose loss is not finite.
    """
    assert tokenizer.pair is not None
    device = model.lm_head.weight.device
    label_ids = [tokenizer.encode_response(label).astype(np.int64) for label in labels]  # with its end
    lengths = [len(answer) for answer in label_ids]
    block_size = model.config.block_size
    longest = max(lengths)
    what = f" with the label {labels[lengths.index(longest)]!r}, but the model reads {block_size}"
    prompt_ids = encoded(prompts, tokenizer, skip_unknown, block_size, longest - 1, what)
    model.eval()
    # all prompts begin with the same tokens, which are read once
    prefix = torch.from_numpy(tokenizer.pair.prefix.astype(np.int64))[None].to(device)
    prefix_cache = model.new_cache(1, max(map(len, prompt_ids), default=0) + longest)
    model.next_logits(prefix, prefix_cache)
    batch_size = min(BATCH_TOKENS, BATCH_LOGITS // model.config.vocab_size) // (len(labels) * longest)
    total = np.zeros((len(prompt_ids), len(labels)))
    with progress(total=total.size, unit="label", desc="scoring all labels") as bar:
        for indices in of_equal_length(prompt_ids, batch_size):
            batch = torch.from_numpy(np.stack([prompt_ids[i] for i in indices])[:, prefix.size(1) :]).to(device)
            total[indices] = answer_scores(model, prefix_cache.repeated(len(indices)), batch, label_ids)
            bar.update(len(indices) * len(labels))
    require_finite(torch.from_numpy(total), "the loss is")
    return total, np.array(lengths)


def encoded(
    prompts: Sequence[str], tokenizer: Tokenizer, skip_unknown: bool, block_size: int, extra: int, ending: str
) -> list[np.ndarray]:
    """Encode prompts, int64 (T,) each. Errors: TinyGPTError, whose message ends with `ending`, if T + extra exceeds
    `block_size` for a prompt."""
    encoded_prompts = [tokenizer.encode_prompt(prompt, skip_unknown).astype(np.int64) for prompt in prompts]
    for number, (prompt, ids) in enumerate(zip(prompts, encoded_prompts, strict=True), start=1):
        if len(ids) + extra > block_size:
            problem = f"prompt {number} ({cut(repr(prompt), 40)}) takes {len(ids) + extra} tokens{ending}"
            raise TinyGPTError(problem, "shorten it, or tinygpt train with a larger --block_size")
    return encoded_prompts


def of_equal_length(sequences: Sequence[np.ndarray], max_size: int) -> Iterator[list[int]]:
    """Divide the indices of sequences into batches of equally long ones, of at most `max_size` and at least one."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    for _, group in itertools.groupby(order, key=lambda index: len(sequences[index])):
        indices = list(group)
        for start in range(0, len(indices), max(1, max_size)):
            yield indices[start : start + max(1, max_size)]


def answer_scores(model: GPT, cache: KVCache, prompts: torch.Tensor, answers: Sequence[np.ndarray]) -> np.ndarray:
    """Compute log-probabilities (B, L) of L answers, int64 (n,), after prompts int64 (B, T) that continue the cache."""
    B = len(prompts)
    L = len(answers)
    longest = max(map(len, answers))
    y = np.full((L, longest), -1)
    for row, answer in enumerate(answers):
        y[row, : len(answer)] = answer
    targets = torch.from_numpy(y).to(prompts.device).repeat(B, 1)  # (B L, longest)
    logits = model.next_logits(prompts, cache).repeat_interleave(L, 0)[:, None]  # (B L, 1, V)
    if longest > 1:
        logits = torch.cat((logits, model(targets[:, :-1].clamp(min=0), cache=cache.repeated(L))[0]), dim=1)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return -losses.cpu().double().view(B, L, longest).sum(2).numpy()


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Convert log-scores (n, L) to probabilities (n, L): a softmax over the labels."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def gpt_classifier(model: GPT, tokenizer: Tokenizer, labels: Sequence[str]) -> Classifier:
    """Make the function that computes the probabilities of labels with a GPT."""
    return lambda prompts: probabilities(label_scores(model, tokenizer, prompts, labels, skip_unknown=True)[0])


# ---- metrics ----------------------------------------------------------------------------------------------------


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, n_labels: int) -> np.ndarray:
    """Count the prompts of label i with the answer j: int64 (L, L), from indices of labels (n,)."""
    return np.bincount(truth * n_labels + predicted, minlength=n_labels**2).reshape(n_labels, n_labels)


def rates(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Compute precision, recall, F1 and support of each label, (L,) each; 0 where the denominator is 0."""
    correct = confusion.diagonal()
    support = confusion.sum(axis=1)
    answered = confusion.sum(axis=0)
    return {
        "precision": correct / np.maximum(answered, 1),
        "recall": correct / np.maximum(support, 1),
        "f1": 2 * correct / np.maximum(support + answered, 1),  # the harmonic mean of the two
        "support": support,
    }


def quality(confusion: np.ndarray) -> dict[str, float]:
    """Compute accuracy, and macro F1: the mean over the labels that occur in the truth or among the answers."""
    occurs = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    accuracy = confusion.trace() / confusion.sum()
    return {"accuracy": float(accuracy), "macro_f1": float(rates(confusion)["f1"][occurs].mean())}


def calibration(probs: np.ndarray, truth: np.ndarray, n_bins: int = 10) -> tuple[float, list[dict[str, Any]]]:
    """Compute the expected calibration error (Guo et al. 2017, equation 3) of probabilities (n, L), and its bins.

    Bin m holds the answers with a confidence in ((m - 1) / n_bins, m / n_bins]; its means are None if it is empty.
    """
    confidence = probs.max(axis=1)
    correct = probs.argmax(axis=1) == truth
    bin_indices = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    error = 0.0
    bins = []
    for index in range(n_bins):
        in_bin = bin_indices == index
        count = int(in_bin.sum())
        mean = None
        accuracy = None
        if count:
            mean = float(confidence[in_bin].mean())
            accuracy = float(correct[in_bin].mean())
            error += count / len(truth) * abs(accuracy - mean)
        bins.append({"count": count, "confidence": mean, "accuracy": accuracy})
    return error, bins


def ngram_classifier(
    train_prompts: Sequence[str], train_truth: np.ndarray, n_labels: int, kind: str = "ngram"
) -> tuple[Classifier | None, str]:
    """Train a logistic regression on the features `FEATURES[kind]`. Returns it, or None and the reason."""
    if importlib.util.find_spec("sklearn") is None:
        return None, "the n-gram and word baselines need scikit-learn: pip install scikit-learn"
    try:
        with progress(desc=f"training the {ROWS[kind]}", bar_format="{desc} ..."):
            return Linear.fit(train_prompts, train_truth, n_labels, features=(kind,), C=FIXED_C), ""
    except TinyGPTError as error:
        return None, f"the {ROWS[kind]} cannot be trained: {error.message}"


def ngrams(examples: LabelledPrompts, labels: Sequence[str]) -> Classifier:
    """Train the n-gram baseline on examples. Errors: TinyGPTError if it cannot be trained."""
    truth = label_indices(examples, labels)
    trained, problem = ngram_classifier([prompt for prompt, _ in examples], truth, len(labels))
    if trained is None:
        raise TinyGPTError(problem)
    return trained


@torch.inference_mode()
def continuation_scores(model: GPT, tokenizer: Tokenizer, prefix: str, continuations: Sequence[str]) -> np.ndarray:
    """Compute the log-probabilities of continuations of a text, in nats, float64 (n,).

    A model of pairs reads the text as a prompt, and continuations as responses with their end. Errors: TinyGPTError for
    an unknown character, and for a text that, with the longest continuation, does not fit the model's context.
    """
    pair = tokenizer.pair is not None
    encode = tokenizer.encode_response if pair else tokenizer.encode
    ids = tokenizer.encode_prompt(prefix) if pair else tokenizer.encode(prefix)
    prefix_ids = torch.from_numpy(ids.astype(np.int64))[None].to(model.lm_head.weight.device)
    continuation_ids = [encode(text).astype(np.int64) for text in continuations]
    longest = max(map(len, continuation_ids))
    total = prefix_ids.size(1) + longest
    block_size = model.config.block_size
    if total - 1 > block_size:
        problem = f"the text and its longest continuation take {total} tokens, but the model reads {block_size}"
        raise TinyGPTError(problem, "shorten them")
    batch_size = max(1, BATCH_TOKENS // longest)
    scores = []
    for start in range(0, len(continuation_ids), batch_size):
        batch = continuation_ids[start : start + batch_size]
        scores.append(answer_scores(model, model.new_cache(1, total), prefix_ids, batch)[0])
    return np.concatenate(scores)


# ---- the report -------------------------------------------------------------------------------------------------

ROWS = {
    "model": "model",
    "normalised": "model, length-normalised",
    "ngram": "n-gram baseline",
    "word": "word baseline",
    "majority": "majority baseline",
}
EXPLAINED = {  # the rows that need it
    "normalised": "length-normalised: ranked by mean log-probability per token; the sum favours short labels",
    "ngram": "n-gram baseline: logistic regression on the character n-grams of the training split",
    "word": "word baseline: logistic regression on the words (unigrams and bigrams) of the training split",
    "majority": "majority baseline: always the most frequent label of the training split",
}


def make_report(
    task: str,
    split: str,
    examples: LabelledPrompts,
    labels: Sequence[str],
    total: np.ndarray,
    tokens: np.ndarray,
    train: LabelledPrompts,
) -> dict[str, Any]:
    """Measure the classification of `examples`: the values for JSON. total (n, L), tokens (L,): the `label_scores` of
    their prompts."""
    truth = label_indices(examples, labels)
    train_truth = label_indices(train, labels)
    probs = probabilities(total)
    n = len(examples)
    L = len(labels)
    predicted = probs.argmax(axis=1)
    prompts, train_prompts = ([prompt for prompt, _ in pairs] for pairs in (examples, train))
    answers = {"model": predicted, "normalised": (total / tokens).argmax(axis=1)}
    answers["majority"] = np.full(n, np.bincount(train_truth).argmax())
    notes: list[str] = []
    by_classifier = {"model": probs}
    for kind in FEATURES:
        classifier, note = ngram_classifier(train_prompts, train_truth, L, kind)
        if classifier:
            by_classifier[kind] = classifier(prompts)
            answers[kind] = by_classifier[kind].argmax(axis=1)
        if note and note not in notes:
            notes.append(note)
    builtin = TASKS.get(task)
    groups = {}
    if builtin and builtin.group and set(builtin.labels) == set(labels):
        correct = {key: answer == truth for key, answer in answers.items()}
        groups = by_group([builtin.group(prompt) for prompt in prompts], correct)
    confusion = confusion_matrix(truth, predicted, L)
    results = {key: quality(confusion_matrix(truth, answer, L)) for key, answer in answers.items()}
    error, bins = calibration(probs, truth)
    confidence = probs.max(axis=1).tolist()
    wrong = np.flatnonzero(predicted != truth)
    columns = rates(confusion)
    most_confident = sorted(wrong, key=lambda i: -confidence[i])[:MISTAKES]
    return {
        "task": task,
        "split": split,
        "n": n,
        "labels": list(labels),
        "loss": float(-total[np.arange(n), truth].sum() / tokens[truth].sum()),  # nats per token of the true responses
        "results": {key: row | intervals(row, {"accuracy": n}) for key, row in results.items()},  # by ROWS
        "groups": groups,  # of each group of prompts: n, and accuracy by ROWS; empty if it has none
        "per_label": {
            label: {key: column[j].item() for key, column in columns.items()} for j, label in enumerate(labels)
        },
        "confusion": confusion.tolist(),  # (L, L): rows are the truth, columns the answers
        "calibration_error": error,
        "bins": bins,
        "mistakes": [
            {
                "prompt": prompts[i],
                "true": labels[truth[i]],
                "predicted": labels[predicted[i]],
                "probability": confidence[i],
            }
            for i in most_confident
        ],
        "note": "; ".join(notes),  # why a baseline is missing
        "true": [label for _, label in examples],  # in the order of the split
        "probabilities": {key: np.round(each, 6).tolist() for key, each in by_classifier.items()},  # (n, L) by ROWS
    }


def as_text(report: dict[str, Any]) -> str:
    """Format for the terminal, in 100 columns. With more than a dozen labels the matrix may be wider."""
    n = report["n"]
    results = report["results"]
    bins = [part for part in report["bins"] if part["count"]]
    names = {key: name for key, name in ROWS.items() if key in results}
    figures = [(name, percent(results[key]["accuracy"], n), results[key]["macro_f1"]) for key, name in names.items()]
    lines = [
        f"{report['task']}, split {report['split']}: {counted(n, 'prompt')}, {len(report['labels'])} labels; "
        f"loss {report['loss']:.4f} nats per token of the true response\n",
        *table({"": "<26", "  accuracy": "<27", "macro F1": ">8.3f"}, figures),
        *([f"({report['note']})"] if report["note"] else []),
        f"\n  {INTERVALS}",
        *(f"  {text}" for key, text in EXPLAINED.items() if key in results),
    ]
    del names["normalised"]
    if report["groups"]:
        heads = {"accuracy in each group": "<26", "prompts": ">8,"}
        heads |= {name.removesuffix(" baseline"): ">11" for name in names.values()}
        groups = [(name, r["n"], *(f"{100 * r[key]:.1f}%" for key in names)) for name, r in report["groups"].items()]
        lines += ["", *table(heads, groups)]
    confidence = sum(part["count"] * part["confidence"] for part in bins) / n
    pairs = (f"{100 * part['confidence']:.0f}→{100 * part['accuracy']:.0f}" for part in bins)
    lines += [
        *("", *matrix_lines(report, COLUMNS), ""),
        f"calibration: expected error {report['calibration_error']:.3f}; mean confidence {100 * confidence:.1f}%, "
        f"accuracy {100 * results['model']['accuracy']:.1f}%",
        f"  confidence → accuracy of each bin, in %: {', '.join(pairs)}",
    ]
    if report["mistakes"]:
        heads = {"confident errors": "<17", "true": "<17", "answer": "<17", "prompt": "<0"}
        errors = []
        for item in report["mistakes"]:
            labels = (cut(escaped(item[key]), 16) for key in ("true", "predicted"))
            errors.append((f"{100 * item['probability']:>13.1f}%", *labels, cut(repr(item["prompt"]), COLUMNS - 51)))
        lines += ["", *table(heads, errors)]
    return "\n".join(lines)


def label_indices(examples: LabelledPrompts, labels: Sequence[str]) -> np.ndarray:
    """Return the index of each example's label in `labels`: int64 (n,)."""
    return np.array([labels.index(label) for _, label in examples])
