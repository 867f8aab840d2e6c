"""The training rows of a run, and the tokens of the training split that are their targets.

A row is an example, or a passage of block_size tokens, which is in the windows of plain text that overlap it.
"""

import dataclasses

import numpy as np

from tinygpt.base.configs.core import TrainConfig
from tinygpt.data.rows import PairRows, Rows
from tinygpt.examine.why.explained import Explained


def rows_of_batch(source: Rows, config: TrainConfig, number: int) -> np.ndarray:
    """Return the indices of the rows of an iteration's batch, which train.batch draws, too."""
    return source.draw(config.seed, number, config.block_size, config.batch_size * config.gradient_accumulation_steps)


def positions_of(source: Rows, rows: np.ndarray, width: int) -> np.ndarray:
    """Return the position in the split's tokens of each target of rows, int64 (rows, width); at most the last one."""
    first = source.starts[rows] if isinstance(source, PairRows) else rows
    return np.minimum(first[:, None] + 1 + np.arange(width), len(source.tokens) - 1)


def spans_of(source: Rows, rows: np.ndarray, config: TrainConfig) -> list[tuple[int, int]]:
    """Return where the targets of each row begin and end in the split's tokens."""
    if isinstance(source, PairRows):
        return list(zip(source.starts[rows].tolist(), source.ends[rows].tolist(), strict=True))
    return [(row + 1, min(row + 1 + config.block_size, len(source.tokens))) for row in rows.tolist()]


def sums_of_rows(values: np.ndarray, explained: Explained) -> np.ndarray:
    """Add up a value per token of the split, (tokens,), over the targets of each training row: (rows,)."""
    sums = np.append(0, np.cumsum(values))
    spans = spans_of(explained.source, explained.rows, explained.config)
    return np.array([sums[end] - sums[start] for start, end in spans])


def without(explained: Explained, left_out: np.ndarray) -> np.ndarray:
    """Return the weights of the tokens of the training split without some rows: float32 (tokens,), 0 or 1. A passage of
    plain text is left out in whichever window it is."""
    weights = np.ones(len(explained.source.tokens), dtype=np.float32)
    for start, end in spans_of(explained.source, explained.rows[left_out], explained.config):
        weights[start:end] = 0
    return weights


def exposures_of(explained: Explained, seed: int) -> np.ndarray:
    """Count the targets of each training row in all iterations of a run with this seed: int64 (rows,)."""
    source = explained.source
    config = dataclasses.replace(explained.config, seed=seed)
    counts = np.zeros(len(source.tokens), dtype=np.int64)
    for number in range(explained.checkpoint.step):
        rows = rows_of_batch(source, config, number)
        width = source.width(config.block_size, rows)
        np.add.at(counts, positions_of(source, rows, width)[source.rows(rows, width)[1] >= 0], 1)
    return sums_of_rows(counts, explained)
