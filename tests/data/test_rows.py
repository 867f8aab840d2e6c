"""Rows of text, of pairs and of a mixture: which are drawn, what they contain, which tokens are targets."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.base.configs.core import TrainConfig
from tinygpt.data.dataset import Dataset
from tinygpt.data.rows import Batches, MixedRows, PairRows, Rows, TextRows, draw_windows
from tinygpt.data.tokenizer import SPECIAL, CharTokenizer
from tinygpt.train import batch
from tinygpt.training.processes import Processes


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 64), st.integers(1, 1000), st.integers(0, 50))
def test_windows_depend_on_their_arguments_alone_and_fit(
    seed: int, step: int, block_size: int, spare: int, count: int
) -> None:
    starts = draw_windows(seed, step, block_size + spare, block_size, count)
    assert starts.tolist() == draw_windows(seed, step, block_size + spare, block_size, count).tolist()
    assert starts.shape == (count,) and all(0 <= start < spare for start in starts)


def test_every_window_can_be_drawn() -> None:
    """tokens - block_size starts: the last one ends on the last token."""
    counts = np.bincount(draw_windows(1, 1, tokens=18, block_size=8, count=100_000))
    assert len(counts) == 10 and abs(counts - 10_000).max() < 500  # five standard deviations of a fair draw


def test_the_draw_is_the_same_for_ever() -> None:
    """Another version of numpy or of this code must not change the batches of a run that is resumed."""
    assert draw_windows(1337, 0, 1_003_854, 64, 3).tolist() == [31770, 389898, 218726]
    assert draw_windows(1337, 1999, 1_003_854, 64, 3, stream=2).tolist() == [225922, 604335, 878926]


def test_the_global_batch_does_not_depend_on_the_number_of_processes(tiny_data: Path) -> None:
    """1, 2 and 4 processes: their shares, put together, are the same rows in the same order."""
    config = TrainConfig(batch_size=4, gradient_accumulation_steps=4, block_size=8, seed=5)
    dataset = Dataset(str(tiny_data / "data"), "tiny")

    def shares(step: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        made = []
        for rank in range(count):
            ranks = Processes(rank, count)
            run: Any = SimpleNamespace(config=config, ranks=ranks, rows_per_iter=16, row_length=lambda at: 8)
            run.micro_steps, _ = ranks.share(config)
            run.source, run.compute = dataset.sources["train"], SimpleNamespace(device=torch.device("cpu"))
            made.append([part.reshape(-1, 8) for part in batch(run, step)[:2]])
        return torch.cat([x for x, _ in made]), torch.cat([y for _, y in made])

    for step in range(20):
        x, y = shares(step, 1)
        starts = draw_windows(5, step, len(dataset.splits["train"]), 8, 16)
        assert x.tolist() == [dataset.splits["train"][start : start + 8].tolist() for start in starts]
        assert torch.equal(x[:, 1:], y[:, :-1])
        for count in (2, 4):
            assert all(map(torch.equal, shares(step, count), (x, y)))


LETTERS = CharTokenizer([*"abcdefgh", *SPECIAL])


def text_rows(tokens: int) -> TextRows:
    return TextRows((np.arange(tokens) * 7 % 8).astype("<u2"))


def pair_rows(*lengths: int) -> PairRows:
    """An example for each length: a prompt of `length` letters, and a response of as many, but at most 8."""
    pairs = [LETTERS.encode_pair(("abcdefgh" * 9)[:length], "hgfedcba"[:length]) for length in lengths]
    return PairRows(np.concatenate(pairs), LETTERS)


def test_targets_are_the_response_and_the_end() -> None:
    tokenizer = CharTokenizer([*"abc", *SPECIAL])
    ids = np.concatenate([tokenizer.encode_pair("ab", "c"), tokenizer.encode_pair("c", "aab")])
    x, y = PairRows(ids, tokenizer).rows(np.array([1, 0]), 6)
    p, r, e = (tokenizer.special[name] for name in SPECIAL)
    assert x.tolist() == [[p, 2, r, 0, 0, 1], [p, 0, 1, r, 2, e]]
    assert y.tolist() == [[-1, -1, 0, 0, 1, e], [-1, -1, -1, 2, e, -1]]


SOURCES = st.one_of(
    st.integers(40, 200).map(text_rows),
    st.lists(st.integers(1, 8), min_size=1, max_size=9).map(lambda n: pair_rows(*n)),
)


@given(new=SOURCES, old=SOURCES, share=st.floats(0, 1), mixes=st.booleans(), block_size=st.integers(1, 30))
def test_every_source_keeps_to_the_interface(new: Rows, old: Rows, share: float, mixes: bool, block_size: int) -> None:
    """The rows of `all_rows` and of `draw` have the announced width and number of targets."""
    source: Batches = MixedRows(new, old, share) if mixes else new
    width = source.width(block_size)
    assert 0 < width <= block_size
    drawn = [source.draw(1, 2, block_size, 5), source.draw(1, 2, block_size, 0)]
    for row_indices in drawn if mixes else [new.all_rows(block_size), *drawn]:
        x, y = source.rows(row_indices, width)
        assert x.shape == y.shape == (len(row_indices), width) and x.dtype == y.dtype == np.int64
        counts = source.targets(row_indices, width)
        assert counts.tolist() == (y >= 0).sum(1).tolist()
        assert (x >= 0).all() and all((y[y >= 0] < 11).tolist())
    same = new.as_large_as(new)
    assert same.all_rows(block_size).tolist() == new.all_rows(block_size).tolist()


@given(share=st.floats(0, 1), count=st.integers(1, 20), steps=st.integers(1, 40))
def test_replayed_rows_add_up_to_their_share(share: float, count: int, steps: int) -> None:
    source = MixedRows(text_rows(100), text_rows(50), share)
    replayed = sum(int(source.draw(1, step, 8, count)[:, 0].sum()) for step in range(steps))
    assert replayed == math.floor(steps * share * count)


def test_replayed_rows_are_spread_over_the_batch() -> None:
    """So each of 2 or 4 processes gets its part of them; and they do not repeat the draw of the new rows."""
    text = text_rows(10_000)
    at = MixedRows(text, text, 0.25).draw(7, 0, 8, 16)
    assert at[:, 0].tolist() == [1, 0, 0, 0] * 4
    new, old = at[at[:, 0] == 0, 1], at[at[:, 0] == 1, 1]
    assert new.tolist() == draw_windows(7, 0, 10_000, 8, 12).tolist()
    assert old.tolist() == draw_windows(7, 0, 10_000, 8, 4, stream=3).tolist() != new[:4].tolist()


@given(new=SOURCES, old=SOURCES, block_size=st.integers(1, 30))
def test_mixed_rows_are_those_of_their_sources(new: Rows, old: Rows, block_size: int) -> None:
    """Rows of pairs may be longer than the others, which are padded; rows of text may not: they are cut."""
    mixed = MixedRows(new, old, 0.3)
    width, at = mixed.width(block_size), mixed.draw(1, 2, block_size, 9)
    assert width == max(new.width(block_size), old.width(block_size) if isinstance(old, PairRows) else 0)
    rows = np.stack(mixed.rows(at, width))
    for index, source in enumerate((new, old)):
        places = at[:, 0] == index
        assert np.array_equal(rows[:, places], np.stack(source.rows(at[places, 1], width)))


def test_grouped_batches_have_similar_lengths_and_draw_every_example_alike() -> None:
    rows = pair_rows(*np.random.default_rng(1).integers(9, 69, size=200))
    grouped = rows.arranged(True, False)
    plain, similar = ([source.draw(7, step, 64, 8) for step in range(4000)] for source in (rows, grouped))
    spread = [np.mean([np.ptp(rows.lengths[at]) for at in drawn[:200]]) for drawn in (plain, similar)]
    assert spread[1] < 5 < 30 < spread[0]
    counts = np.bincount(np.concatenate(similar), minlength=200)
    assert counts.min() > 80 and counts.max() < 250  # 160 expected
    assert (grouped.draw(7, 5, 64, 8) == similar[5]).all() and not (similar[5] == similar[6]).all()


@given(count=st.integers(1, 30), tokens=st.integers(20, 400), block_size=st.integers(1, 19))
def test_an_epoch_of_text_has_every_window_once(count: int, tokens: int, block_size: int) -> None:
    """Windows of a pass do not overlap, and leave out less than two windows; the next pass has other ones."""
    rows = TextRows(np.arange(tokens, dtype="<u2")).arranged(False, True)
    size = (tokens - block_size) // block_size or 1  # windows in a pass
    steps = -(-2 * size // count)
    drawn = np.concatenate([rows.draw(5, step, block_size, count) for step in range(steps)])
    for number in range(2):
        windows = np.sort(drawn[number * size : (number + 1) * size])
        assert (np.diff(windows) == block_size).all() and windows[0] >= 0 and windows[-1] + block_size < tokens
        assert windows[0] < block_size and tokens - windows[-1] <= 3 * block_size
    if size > 8:
        first, second = drawn[:size].tolist(), drawn[size : 2 * size].tolist()
        assert first != second and first != sorted(first)
    again = rows.draw(5, steps - 1, block_size, count)  # without the steps before it
    assert drawn[-count:].tolist() == again.tolist()


def test_an_epoch_of_pairs_has_every_example_once() -> None:
    plain = pair_rows(*range(9, 69))
    rows, grouped = plain.arranged(False, True), plain.arranged(True, True)
    for source in (rows, grouped):  # 60 examples in batches of 12
        passes = [np.concatenate([source.draw(5, 5 * number + step, 64, 12) for step in range(5)]) for number in (0, 1)]
        assert all(sorted(each.tolist()) == list(range(60)) for each in passes)
        assert passes[0].tolist() != passes[1].tolist()
    spread = sorted(np.ptp(plain.lengths[grouped.draw(5, step, 64, 12)]) for step in range(5))
    assert spread[:4] == [11] * 4 and spread[4] >= 11
    drawn = np.concatenate([rows.draw(5, step, 64, 7) for step in range(18)])  # batches across the end of a pass
    assert np.bincount(drawn[:60]).tolist() == [1] * 60 == np.bincount(drawn[60:120]).tolist()
    assert (plain.draw(5, 0, 64, 12) != rows.draw(5, 0, 64, 12)).any()


def test_a_grouped_batch_with_replayed_pairs_is_as_wide_as_its_longest_row() -> None:
    rows = pair_rows(*range(9, 69))
    mixed = MixedRows(rows, rows, 0.25).arranged(True, False)
    at = mixed.draw(7, 3, 99, 16)
    only_new = at[at[:, 0] == 0]
    for drawn in (at, only_new):
        assert mixed.width(99, drawn) == rows.lengths[drawn[:, 1]].max() - 1 <= mixed.width(99) == 78
