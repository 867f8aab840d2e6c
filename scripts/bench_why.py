"""Measure how well `tinygpt why` predicts what leaving out training rows does: the linear datamodeling score (LDS).

Models are trained again without random sets of the training rows, each set with several seeds. As in `tinygpt why`,
the rows left out stay in their batches without a loss; Park et al. train on the other rows alone. For each of some
outputs of the validation split, the sum of the effects of the rows left out is compared with what was measured, by
Spearman's rank correlation over the sets (Park et al. 2023, "TRAK", section 2). Measured is the log-odds of the
output, log p - log(1 - p), as for the classes in that paper: the log-probability hardly moves where p is near 1.
Effects and measurements are means over the seeds. BM25, embeddings and, for pairs, the label are scored in the same
way.

Repeatability r is the correlation of two trainings without the same rows, with two seeds. Means over k seeds correlate
with r_k = k r / (1 + (k - 1) r) (Spearman-Brown). A perfect prediction that does not know the seeds, as BM25 does not,
would reach the ceiling, about sqrt(r_k). Influence knows them: it is measured in runs with the weights at the start and
the batches of those that it predicts, so it could pass the ceiling. Its correlation with trainings of another seed says
how much of it is about the data.

python scripts/bench_why.py pairs            # 300 transactions; 15 minutes on one core; stopped, it continues
python scripts/bench_why.py text             # 40,000 characters
python scripts/bench_why.py labels --share 0.01 0.05 0.2 0.5 --seeds=1 --sweeps=4     # with derivatives of trainings
"""

import argparse
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tinygpt import api
from tinygpt.base.configs.examine import WhyConfig
from tinygpt.data.corpora import industry_descriptions
from tinygpt.data.memory import write_dataset
from tinygpt.data.tasks import TASKS
from tinygpt.examine.experiment.stages import Identity, Results, Stage, run
from tinygpt.examine.why.effects import of_present_rows, random_set
from tinygpt.examine.why.exact import exact_effects
from tinygpt.examine.why.explained import Explained, load_run, output, texts_of
from tinygpt.examine.why.influence import estimated_effects
from tinygpt.examine.why.rows import sums_of_rows
from tinygpt.examine.why.step import Training
from tinygpt.training.child import train_in_child
from tinygpt.use.ask import embeddings

PAIRS, CHARACTERS = 300, 40_000
SETTINGS = {"n_layer": 1, "dropout": 0.0, "batch_size": 16, "max_iters": 100, "eval_interval": 100, "warmup_iters": 10}
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 48, "max_iters": 80, "eval_interval": 80}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # preset, and what differs from it and from SETTINGS
    "pairs": ("lab_classifier", {}),
    "labels": ("lab_classifier", {"optimizer": "adamw", "learning_rate": 1e-3}),
    "text": ("lab_canary", {}),
    "standard": ("shakespeare_char", TINY),
    "nanogpt": ("nanogpt", TINY | {"batch_size": 12}),
}
DRAWS = 500  # of the bootstrap
CONTINUATION = 8  # characters of an output of plain text


def fit(folder: Path, kind: str) -> None:
    """Write the dataset, and train the run."""
    data, (preset, settings) = folder / "data" / kind, KINDS[kind]
    if preset == "lab_classifier":
        task = TASKS["transactions"].make(1337)
        splits = task | {"train": task["train"][:PAIRS]}
        write_dataset(data, splits, TASKS["transactions"].labels, task)
    else:
        write_dataset(data, industry_descriptions()[:CHARACTERS])
    train_in_child("train", preset, folder / "run", data, device="cpu", threads=1, **(SETTINGS | settings))


def outputs_of(explained: Explained, count: int) -> list[tuple[str, str]]:
    """Return beginnings and continuations from the validation split, at equal intervals."""
    source, decode = explained.dataset.sources["val"], explained.dataset.tokenizer.decode
    if explained.dataset.pairs:
        pairs = source.examples(explained.dataset.tokenizer)
        return pairs[:: max(1, len(pairs) // count)][:count]
    half, rows = explained.config.block_size // 2, source.all_rows(explained.config.block_size)[:-1]
    starts = rows[:: max(1, len(rows) // count)][:count].tolist()
    cut = lambda first, last: decode(source.tokens[first:last].tolist())  # noqa: E731
    return [(cut(start, start + half), cut(start + half, start + half + CONTINUATION)) for start in starts]


def similarities(query: str, texts: list[str]) -> dict[str, np.ndarray]:
    """Score the training rows by their similarity to an output, float64 (rows,) each: BM25, and wordllama's vectors."""
    table = embeddings.WordLlama()
    cosines = (table.vectors(texts) @ table.vectors([query])[0]).astype(np.float64)
    scores = np.zeros(len(texts))
    for passage in api.Documents(texts=texts).search(query, len(texts)):
        scores[passage.id - 1] = passage.bm25
    return {"BM25": scores, "wordllama's embeddings": cosines}


def stages(explained: Explained, sets: dict[str, np.ndarray], seeds: range, count: int, sweeps: int) -> Iterator[Stage]:
    encoded = [output(explained, pair) for pair in outputs_of(explained, count)]

    def predict(seed: int) -> list[list[float]]:
        training = Training(explained, seed)
        return [sums_of_rows(estimated_effects(training, *each)[0], explained).tolist() for each in encoded]

    def differentiate(seed: int) -> list[list[float]]:
        found = []
        for number in range(sweeps):
            training = Training(explained, seed, random_set(len(explained.rows), number))
            effects, _ = exact_effects(training, encoded, 4e9)
            found.append([sums_of_rows(each, explained) for each in effects])
        by_output = [of_present_rows(each) for each in zip(*found, strict=True)]
        return [np.nanmedian(each, axis=0).tolist() for each in by_output]

    def measure(rows: np.ndarray, seed: int) -> list[float]:
        training = Training(explained, seed, rows)
        weights = training.run()
        return [float(training.log_probability(weights, *each)) for each in encoded]

    for seed in seeds:  # with more seeds, the same command goes on
        yield Stage(f"effects, seed {seed}", count, partial(predict, seed))
        if sweeps:
            yield Stage(f"{sweeps} sweeps, seed {seed}", 5 * sweeps * count, partial(differentiate, seed))
        for name, rows in sets.items():
            yield Stage(f"{name}, seed {seed}", 1, partial(measure, rows, seed))


def rank_correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation over the sets for each output; 0 if a prediction is constant. Both arrays are
    (sets, outputs)."""
    return np.nan_to_num([spearmanr(*columns).statistic for columns in zip(predicted.T, measured.T, strict=True)])


def interval(measured: np.ndarray, predicted: np.ndarray, minus: np.ndarray | None = None) -> tuple[float, float]:
    """Return the 95% bootstrap interval, over sets and outputs, of the mean rank correlation of a prediction, or of its
    lead over another one. All arrays are (sets, outputs)."""
    generator, means = np.random.default_rng(0), []
    for _ in range(DRAWS):
        sets, outputs = (generator.integers(0, size, size) for size in measured.shape)
        drawn = np.ix_(sets, outputs)
        mean = rank_correlations(predicted[drawn], measured[drawn]).mean()
        means.append(mean - (0 if minus is None else rank_correlations(minus[drawn], measured[drawn]).mean()))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def report(
    results: Results, explained: Explained, sets: dict[str, np.ndarray], seeds: range, count: int, sweeps: int
) -> None:
    """Print the scores of each way to predict, over some sets of one size."""
    outputs, texts, k = outputs_of(explained, count), texts_of(explained), len(seeds)
    of_seeds = {"influence": np.array([results[f"effects, seed {seed}"] for seed in seeds])}  # (seeds, outputs, rows)
    if sweeps:
        of_seeds["derivatives"] = np.array([results[f"{sweeps} sweeps, seed {seed}"] for seed in seeds])
    scores: dict[str, Any] = {name: each.mean(axis=0) for name, each in of_seeds.items()}
    for pair in outputs:  # the nearer the rows left out, the lower the probability
        for name, each in similarities(" ".join(pair), texts).items():
            scores.setdefault(name, []).append(-each)
    if explained.dataset.labels:
        labels = np.array([label for _, label in explained.source.examples(explained.dataset.tokenizer)])
        scores["rows of the same label"] = [-1.0 * (labels == label) for _, label in outputs]
    logs = np.array([[results[f"{name}, seed {seed}"] for name in sets] for seed in seeds])
    odds = logs - np.log(-np.expm1(np.minimum(logs, -1e-6)))  # (seeds, sets, outputs)
    size = len(next(iter(sets.values())))
    print(f"\n{len(sets)} sets of {size} of {len(explained.rows)} rows, seeds: {k}, {len(outputs)} outputs")
    repeats = [rank_correlations(*pair) for pair in itertools.combinations(odds, 2)]
    if repeats:
        r = float(np.mean(repeats))
        ceiling = max(0.0, k * r / (1 + (k - 1) * r)) ** 0.5
        print(f"repeatability of single trainings {r:.2f}; ceiling for means over {k} seeds {ceiling:.2f}")
        for name, effect in of_seeds.items():
            sums = np.stack([effect[:, :, rows].sum(axis=2) for rows in sets.values()], axis=1)
            same = np.mean([rank_correlations(sums[a], odds[a]) for a in range(k)])
            other = np.mean([rank_correlations(sums[a], odds[b]) for a, b in itertools.permutations(range(k), 2)])
            print(f"{name} in one run, with trainings of its seed {same:.2f}, of another seed {other:.2f}")
    print(f"{'':<26}{'LDS (95% interval)':<24}influence minus it (95% interval)")
    measured, first = odds.mean(axis=0), next(iter(scores))
    by_sets = {
        name: np.array([np.asarray(each)[:, rows].sum(axis=1) for rows in sets.values()])
        for name, each in scores.items()
    }
    for name, predicted in by_sets.items():
        low, high = interval(measured, predicted)
        score = rank_correlations(predicted, measured).mean()
        line = f"{name:<26}{f'{score:5.2f} ({low:5.2f} to {high:5.2f})':<24}"
        if name != first:
            lead = rank_correlations(by_sets[first], measured).mean() - score
            low, high = interval(measured, by_sets[first], predicted)
            line += f"{lead:5.2f} ({low:5.2f} to {high:5.2f})"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--sets", type=int, default=50, help="random sets of rows that are left out")
    parser.add_argument("--share", type=float, nargs="+", default=[0.5], help="of the rows in each of them")
    parser.add_argument("--sweeps", type=int, default=0, help="also score the median derivative of so many trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--outputs", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("out-bench-why"))
    args = parser.parse_args()
    folder, seeds = args.out / args.kind, range(1337, 1337 + args.seeds)
    identity = Identity("bench", args.kind, {"outputs": args.outputs, **SETTINGS, **KINDS[args.kind][1]}, {})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    run(folder, identity, [Stage("train", 5, partial(fit, folder, args.kind))])
    explained = load_run(WhyConfig(run=str(folder / "run"), data_dir=str(folder / "data")))
    rows, by_share = len(explained.rows), {}
    for share in args.share:
        generator, size = np.random.default_rng(0), max(1, round(share * rows))
        drawn = [generator.permutation(rows)[:size] for _ in range(args.sets)]
        by_share[share] = {f"set {number} of {size} rows": left for number, left in enumerate(drawn)}
    sets = {name: left for each in by_share.values() for name, left in each.items()}
    results = run(folder, identity, list(stages(explained, sets, seeds, args.outputs, args.sweeps)))
    for each in by_share.values():
        report(results, explained, each, seeds, args.outputs, args.sweeps)


if __name__ == "__main__":
    main()
