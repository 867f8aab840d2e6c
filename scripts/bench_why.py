"""Measure how well `tinygpt why` predicts what leaving out training rows does: the linear datamodeling score.

Models are trained again without random halves of the training rows. For each of some outputs of the validation split,
the sum of the effects of the rows left out is compared with the log-probability of the output in each model, by
Spearman's rank correlation (Park et al. 2023, "TRAK", section 2). BM25 and embeddings are scored in the same way. The
ceiling is the correlation with models that were trained without the same rows, with another seed.

python scripts/bench_why.py out --trainings=50 --outputs=20
"""

import argparse

import numpy as np
from scipy.stats import spearmanr

from tinygpt import terminal
from tinygpt.config.schema import WhyConfig
from tinygpt.why.explained import Explained, load_run, log_probability, output, texts_of
from tinygpt.why.nearest import similarities
from tinygpt.why.retrain import effects, retrain


def outputs_of(explained: Explained, count: int) -> list[tuple[str, str]]:
    """Return beginnings and continuations from the validation split, at equal intervals."""
    source, decode = explained.dataset.sources["val"], explained.dataset.tokenizer.decode
    if explained.dataset.pairs:
        pairs = source.examples(explained.dataset.tokenizer)
        return pairs[:: max(1, len(pairs) // count)][:count]
    half, rows = explained.config.block_size // 2, source.all_rows(explained.config.block_size)[:-1]
    starts = rows[:: max(1, len(rows) // count)][:count].tolist()
    cut = lambda first, last: decode(source.tokens[first:last].tolist())  # noqa: E731
    return [(cut(start, start + half), cut(start + half, start + half + 8)) for start in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--trainings", type=int, default=50)
    parser.add_argument("--outputs", type=int, default=20)
    args = parser.parse_args()
    explained = load_run(WhyConfig(run=args.run))
    texts = texts_of(explained)
    outputs = outputs_of(explained, args.outputs)
    encoded = [output(explained, *pair) for pair in outputs]
    scores: dict[str, list[np.ndarray]] = {}
    for pair, (x, y) in zip(outputs, encoded, strict=True):
        for name, each in similarities(explained, " ".join(pair), texts).items():
            scores.setdefault(name, []).append(-each)  # the nearer the rows left out, the lower the probability
        scores.setdefault("influence", []).append(effects(explained, x, y)[0])
    rows, generator = len(explained.rows), np.random.default_rng(0)
    halves = [generator.permutation(rows)[: rows // 2] for _ in range(args.trainings)]
    measured = np.zeros((2, args.trainings, len(outputs)))  # with the run's seed, and with another
    for number, half in enumerate(terminal.progress(halves, unit="half")):
        for other in range(2):
            model = retrain(explained, half, explained.config.seed + other)
            measured[other, number] = [log_probability(model, *pair) for pair in encoded]
    predicted = {
        name: np.array([[each[half].sum() for each in parts] for half in halves]) for name, parts in scores.items()
    }
    for name, values in {**predicted, "ceiling": measured[1]}.items():
        columns = zip(values.T, measured[0].T, strict=True)
        correlations = np.nan_to_num([spearmanr(*column).statistic for column in columns])
        half_width = 1.96 * correlations.std(ddof=1) / len(correlations) ** 0.5
        print(f"{name:<24}{correlations.mean():6.3f} +- {half_width:.3f}")


if __name__ == "__main__":
    main()
