from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import UsageError
from trainer.data.sampling import CellBatches, RandomBatches, positive_share


def cells_of(counts: list[int], seed: int = 0) -> np.ndarray:
    """Cells of the given numbers of photos, shuffled, under names that are no positions."""
    names = np.repeat(np.arange(len(counts), dtype=np.uint64) * np.uint64(977) + np.uint64(5), counts)
    return np.random.default_rng(seed).permutation(names)


@given(n=st.integers(1, 200), batch_size=st.integers(1, 60), seed=st.integers(0, 99), number=st.integers(0, 9))
def test_random_batches_are_a_permutation_cut_up(n: int, batch_size: int, seed: int, number: int) -> None:
    sampler = RandomBatches(n, batch_size, seed)
    batches = list(sampler.epoch(number))
    assert len(batches) == len(sampler) == max(1, n // batch_size)
    assert {len(rows) for rows in batches} == {min(n, batch_size)}
    assert all(rows.dtype == np.int64 for rows in batches)
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen)
    assert seen.min() >= 0
    assert seen.max() < n


def test_random_epochs_differ_and_repeat() -> None:
    sampler = RandomBatches(1000, 100, 3)
    first, again, second = (np.stack(list(sampler.epoch(number))) for number in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.stack(list(RandomBatches(1000, 100, 4).epoch(0))))
    assert np.array_equal(np.stack(list(RandomBatches(1000, 100, 3).epoch(1, start=7))), second[7:])
    assert list(sampler.epoch(0, start=10)) == []


@pytest.mark.parametrize(("n", "batch_size", "seed"), [(0, 4, 0), (4, 0, 0), (4, 4, -1)])
def test_random_batches_that_make_no_sense(n: int, batch_size: int, seed: int) -> None:
    with pytest.raises(UsageError):
        RandomBatches(n, batch_size, seed)


@settings(max_examples=300, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=25),
    batch_size=st.integers(2, 40),
    per_cell=st.integers(2, 8),
    seed=st.integers(0, 5),
    known=st.sampled_from([None, 3, 40]),
)
def test_cell_batches(counts: list[int], batch_size: int, per_cell: int, seed: int, known: int | None) -> None:
    cells = cells_of(counts, seed)
    sequences = None if known is None else np.random.default_rng(seed).integers(-1, known, len(cells))
    usable = sum(count for count in counts if count > 1)
    paired = sum(count - count % 2 if per_cell == 2 else count for count in counts if count > 1)
    if paired < batch_size:
        with pytest.raises(UsageError):
            CellBatches(cells, batch_size, per_cell, seed, sequences)
        return
    sampler = CellBatches(cells, batch_size, per_cell, seed, sequences)
    assert sampler.left_out == len(cells) - usable
    batches = list(sampler.epoch(1))
    assert len(batches) == len(sampler) == paired // batch_size
    alone = 0
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen)  # no photo twice in an epoch, let alone in a batch
    for rows in batches:
        assert rows.shape == (batch_size,)
        assert rows.dtype == np.int64
        per_batch = Counter(cells[rows].tolist())
        alone += sum(count == 1 for count in per_batch.values())
        assert all(counts[(cell - 5) // 977] > 1 for cell in per_batch)
    # A batch needs at most one photo on its own to come to its exact size.
    assert alone <= len(batches)
    again = list(CellBatches(cells, batch_size, per_cell, seed, sequences).epoch(1, start=len(batches) // 2))
    assert all(np.array_equal(a, b) for a, b in zip(again, batches[len(batches) // 2 :], strict=True))


def test_every_photo_is_seen_about_once_an_epoch() -> None:
    counts = [400, 90, 33, *[7] * 40, *[3] * 50, *[2] * 30, *[1] * 60]
    cells = cells_of(counts)
    sampler = CellBatches(cells, 32, 4, 0)
    times = np.zeros(len(cells), int)
    for number in range(20):
        for rows in sampler.epoch(number):
            np.add.at(times, rows, 1)
    in_company = np.isin(cells, [name for name, count in Counter(cells.tolist()).items() if count > 1])
    assert (times[~in_company] == 0).all()
    assert sampler.left_out == 60
    # Only the incomplete batch at the end is missing, and never the same photos.
    assert times[in_company].min() >= 15
    assert times[in_company].max() <= 20
    assert times.sum() == 20 * len(sampler) * 32


def test_with_pairs_an_odd_photo_waits_in_turn() -> None:
    cells = cells_of([3] * 40)
    sampler = CellBatches(cells, 8, 2, 0)
    assert len(sampler) == 10
    times = np.zeros(len(cells), int)
    for number in range(60):
        for rows in sampler.epoch(number):
            assert set(Counter(cells[rows].tolist()).values()) == {2}
            times[rows] += 1
    assert times.min() > 20
    assert times.sum() == 60 * 80


def test_groups_are_whole_and_cells_distinct_where_sizes_allow() -> None:
    cells = cells_of([40] * 50)
    sampler = CellBatches(cells, 64, 4, 0)
    for rows in sampler.epoch(0):
        assert set(Counter(cells[rows].tolist()).values()) == {4}  # 16 distinct cells of 4


@pytest.mark.parametrize("batch_size", [32, 48, 64, 100])
def test_cells_of_any_size_give_nearly_all_anchors_a_positive(batch_size: int) -> None:
    generator = np.random.default_rng(1)
    cells = cells_of((generator.pareto(1.0, 800) * 2 + 1).astype(int).tolist())
    sampler = CellBatches(cells, batch_size, 4, 0)
    share = positive_share(sampler, cells, batches_looked_at=1000)
    # Counted again without NumPy's help.
    found = total = 0
    for rows in sampler.epoch(0):
        for anchor in rows:
            total += 1
            found += any(other != anchor and cells[other] == cells[anchor] for other in rows)
    assert share == pytest.approx(found / total)
    assert share > 0.98
    assert positive_share(RandomBatches(len(cells), batch_size, 0), cells) < share


def test_rich_cells_are_spread_over_the_epoch() -> None:
    cells = cells_of([1000, *[4] * 500])  # a third of all photos in one cell
    rich = np.uint64(5)
    shares = [float(np.mean(cells[rows] == rich)) for rows in CellBatches(cells, 60, 4, 0).epoch(0)]
    assert max(shares) <= 0.34 + 2 * 4 / 60
    assert min(shares) > 0.15


def test_photos_of_one_sequence_are_parted() -> None:
    # Each cell: four drives of five photos. Five groups of four can be, and are, of four different drives.
    cells = np.repeat(np.arange(30, dtype=np.uint64), 20)
    sequences = np.repeat(np.arange(120), 5)
    order = np.random.default_rng(0).permutation(600)
    cells, sequences = cells[order], sequences[order]
    for rows in CellBatches(cells, 40, 4, 0, sequences).epoch(0):
        assert max(Counter(sequences[rows].tolist()).values()) == 1
    apart = [max(Counter(sequences[rows].tolist()).values()) for rows in CellBatches(cells, 40, 4, 0).epoch(0)]
    assert max(apart) > 1


def test_smaller_groups_keep_two_drives_apart() -> None:
    cells = np.repeat(np.arange(50, dtype=np.uint64), 4)
    sequences = np.tile([0, 0, 1, 1], 50) + 2 * np.repeat(np.arange(50), 4)
    for rows in CellBatches(cells, 20, 4, 0, sequences).epoch(0):
        assert max(Counter(sequences[rows].tolist()).values()) == 1
        assert set(Counter(cells[rows].tolist()).values()) == {2}


def test_unknown_sequences_are_not_one_sequence() -> None:
    cells = np.repeat(np.arange(50, dtype=np.uint64), 4)
    unknown = np.full(200, -1)
    for rows, plain in zip(
        CellBatches(cells, 20, 4, 0, unknown).epoch(0), CellBatches(cells, 20, 4, 0).epoch(0), strict=True
    ):
        assert np.array_equal(rows, plain)
        assert set(Counter(cells[rows].tolist()).values()) == {4}


def test_two_cells_fill_a_batch_though_groups_are_small() -> None:
    cells = cells_of([50, 50])
    for rows in CellBatches(cells, 20, 4, 0).epoch(0):
        assert sorted(Counter(cells[rows].tolist()).values())[0] >= 4


def test_epochs_differ() -> None:
    sampler = CellBatches(cells_of([8] * 40), 32, 4, 0)
    first, second = (np.stack(list(sampler.epoch(number))) for number in (0, 1))
    assert not np.array_equal(first, second)
    # Photos meet other photos of their cell, not the same ones again.
    groups = [{tuple(sorted(group)) for group in epoch.reshape(-1, 4).tolist()} for epoch in (first, second)]
    assert len(groups[0] & groups[1]) < len(groups[0]) / 2


@pytest.mark.parametrize(
    ("counts", "batch_size", "per_cell", "words"),
    [
        ([], 4, 2, "no photos"),
        ([1], 4, 2, "alone"),
        ([1] * 50, 4, 2, "alone"),
        ([50], 4, 2, "one geocell"),
        ([2, 2, 1, 1, 1, 1, 1], 6, 2, "fewer than a batch"),
        ([3, 3], 6, 2, "fewer than a batch"),
        ([8, 8], 4, 1, "at least two"),
        ([8, 8], 1, 2, "at least two"),
        ([8, 8], 0, 2, "no sense"),
    ],
)
def test_what_gives_no_batches_is_said(counts: list[int], batch_size: int, per_cell: int, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        CellBatches(cells_of(counts), batch_size, per_cell, 0)
    if words in ("alone", "fewer than a batch"):
        assert "coarser" in caught.value.hint
