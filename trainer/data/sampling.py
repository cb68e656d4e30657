"""Which photos make up a batch: all at random, or P geocells x K photos, so that every anchor has its positives.

A batch is an array of row numbers. Seed and number of the epoch decide everything, so that an interrupted run goes on
in the middle of an epoch with the batches that it would have had.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from geoinfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_RANDOM, _CELLS = 1, 2  # so that two samplers of one seed do not draw the same numbers
# How many groups are looked through for one whose size completes a batch exactly.
_LOOKED_THROUGH: Final = 64
# Where its rows start, how many they are, its cell, and how often that may be in a batch.
_Group = tuple[int, int, int, int]


class Batches(Protocol):
    """What both samplers are."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yields the batches of an epoch from number `start` on."""


class RandomBatches:
    """All photos in random order, cut into batches; what is left at the end, less than a batch, waits for other epochs.

    Fewer photos than a batch takes are one smaller batch.

    Args:
        n: number of photos.
        batch_size: rows of a batch.
        seed: not negative.

    Raises:
        UsageError: there are no photos, or a number makes no sense.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        _check(n, batch_size, seed)
        self.n = n
        self.batch_size = min(batch_size, n)
        self.seed = seed

    def __len__(self) -> int:
        return self.n // self.batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yields batches `start`, `start` + 1, ... of an epoch, (batch_size,) int64 rows each."""
        order = np.random.default_rng((self.seed, number, _RANDOM)).permutation(self.n)
        for batch in range(start, len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size].astype(np.int64)


class CellBatches:
    """Batches made of groups: 2 to `images_per_cell` photos of one geocell.

    In every epoch the photos of each cell are shuffled and dealt out into groups of nearly equal size, photos of one
    sequence into different groups as far as they go round (a cell gets smaller groups where that keeps its sequences
    apart). The groups of a cell are spread evenly over the epoch, so a cell of many photos appears often and a photo is
    seen once; only the last incomplete batch is dropped, and with two images a cell one photo of each odd cell, another
    one every time. A cell is in a batch once, or as often as needed if it has more groups than there are batches.

    A group that does not fit at the end of a batch is cut in two. Where sizes leave no other way to fill a batch
    exactly, one photo of it stands alone: no anchor then, but a negative for all others.

    Args:
        cells: (n,) geocell of each photo; cells of a single photo are left out.
        batch_size: rows of a batch.
        images_per_cell: largest group, at least 2.
        seed: not negative.
        sequences: (n,) sequence of each photo, negative where it is not known.

    Attributes:
        left_out: number of photos that are alone in their cell.
        usable_cells: number of cells with at least two photos.

    Raises:
        UsageError: no cell has two photos, the photos of all usable cells are fewer than a batch takes, all photos are
            in one cell, or a number makes no sense.
    """

    def __init__(
        self,
        cells: NDArray[np.uint64],
        batch_size: int,
        images_per_cell: int,
        seed: int,
        sequences: NDArray[np.int64] | None = None,
    ) -> None:
        n = len(cells)
        _check(n, batch_size, seed)
        if images_per_cell < 2 or batch_size < 2:
            raise UsageError(
                f"{images_per_cell} images a cell in batches of {batch_size}: a positive needs at least two of each"
            )
        self.batch_size = batch_size
        self.images_per_cell = images_per_cell
        self.seed = seed
        different, codes, counts = np.unique(cells, return_inverse=True, return_counts=True)
        usable = counts > 1
        self.left_out = int(np.count_nonzero(counts == 1))
        self.usable_cells = int(np.count_nonzero(usable))
        coarser = "choose a coarser S2 level (a smaller number), or random batches"
        if self.usable_cells == 0:
            raise UsageError(f"each of the {n} photos is alone in its geocell, so none has a positive", hint=coarser)
        if len(different) == 1:
            raise UsageError(
                f"all {n} photos are in one geocell, so none has a negative",
                hint="choose a finer S2 level (a larger number), or random batches",
            )
        if counts[usable].sum() < batch_size:
            raise UsageError(
                f"{counts[usable].sum()} photos share a geocell with another one, fewer than a batch of {batch_size}",
                hint=f"choose a smaller batch; or {coarser}",
            )
        # Rows of usable cells, cell by cell: an epoch then only shuffles within stretches.
        order = np.argsort(codes, kind="stable")
        self._rows = order[usable[codes[order]]]
        self._cell_of_row = (np.cumsum(usable) - 1)[codes[self._rows]]
        self._counts = counts[usable]
        # With pairs, an odd cell has one photo that finds no partner.
        self._kept = self._counts - (self._counts % 2 if images_per_cell == 2 else 0)
        self._sequences, longest = _sequence_codes(sequences, self._rows, self._cell_of_row, self.usable_cells)
        least = -(-self._kept // images_per_cell)
        # More groups than needed, if then no group has two of one drive and still each has two photos.
        apart = np.where(longest <= self._kept // 2, longest, 0)
        self._groups = np.maximum(least, apart)
        self._batches = int(self._kept.sum()) // batch_size
        if self._batches == 0:
            raise UsageError(
                f"{self._kept.sum()} photos can be paired within their geocells, fewer than a batch of {batch_size}",
                hint=f"choose a smaller batch; or {coarser}",
            )

    def __len__(self) -> int:
        return self._batches

    def epoch(self, number: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yields batches `start`, `start` + 1, ... of an epoch, (batch_size,) int64 rows each."""
        generator = np.random.default_rng((self.seed, number, _CELLS))
        dealt, cells, starts, sizes = self._deal(generator)
        # The j-th of a cell's g groups falls into the j-th of g equal parts of the epoch.
        first = np.cumsum(self._groups) - self._groups
        place = np.arange(len(cells)) - first[cells]
        order = np.argsort((place + generator.random(len(cells))) / self._groups[cells], kind="stable")
        # One more than the average where that is above one, so that what had to wait once can be made up for.
        allowed = -(-self._groups // self._batches) + (self._groups > self._batches)
        packed = _pack(starts[order], sizes[order], cells[order], allowed[cells[order]], self.batch_size)
        for batch in range(self._batches):
            pieces = next(packed)
            if batch >= start:
                yield dealt[np.concatenate([np.arange(begin, begin + count) for begin, count in pieces])]

    def _deal(
        self, generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Shuffled rows, group after group; and cell, start and size of each group."""
        shuffled = generator.permutation(len(self._rows))
        shuffled = shuffled[np.argsort(self._cell_of_row[shuffled], kind="stable")]
        cells = self._cell_of_row[shuffled]
        if not np.array_equal(self._kept, self._counts):
            begins = np.cumsum(self._counts) - self._counts
            stays = np.arange(len(shuffled)) - begins[cells] < self._kept[cells]
            shuffled, cells = shuffled[stays], cells[stays]
        if self._sequences is not None:
            # Photos of a sequence side by side, sequences in random order: dealing in turn then parts them.
            drawn = generator.permutation(int(self._sequences.max()) + 1)[self._sequences[shuffled]]
            shuffled = shuffled[np.lexsort((drawn, cells))]
        begins = np.cumsum(self._kept) - self._kept
        place = np.arange(len(shuffled)) - begins[cells]
        groups = self._groups[cells]
        size, larger = np.divmod(self._kept, self._groups)  # the first `larger` groups have one photo more
        turn, group = np.divmod(place, groups)
        dealt = np.empty(len(shuffled), np.int64)
        dealt[begins[cells] + group * size[cells] + np.minimum(group, larger[cells]) + turn] = self._rows[shuffled]
        group_cells = np.repeat(np.arange(len(self._groups)), self._groups)
        first = np.cumsum(self._groups) - self._groups
        sizes = size[group_cells] + (np.arange(len(group_cells)) - first[group_cells] < larger[group_cells])
        return dealt, group_cells, np.cumsum(sizes) - sizes, sizes


def positive_share(batches: Batches, cells: NDArray[np.uint64], batches_looked_at: int = 50) -> float:
    """Share of photos that share their geocell with another one in their batch, over the first batches of an epoch.

    Args:
        batches: a sampler.
        cells: (n,) geocells that the loss compares.
        batches_looked_at: at most so many.
    """
    anchors = found = 0
    for rows, _ in zip(batches.epoch(0), range(batches_looked_at), strict=False):
        _, code, counts = np.unique(cells[rows], return_inverse=True, return_counts=True)
        anchors += len(rows)
        found += int(np.count_nonzero(counts[code] > 1))
    return found / anchors if anchors else math.nan


def _check(n: int, batch_size: int, seed: int) -> None:
    if n < 1:
        raise UsageError("there are no photos to make batches of")
    if batch_size < 1:
        raise UsageError(f"a batch of {batch_size} photos makes no sense")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative")


def _sequence_codes(
    sequences: NDArray[np.int64] | None, rows: NDArray[np.int64], cells: NDArray[np.int64], cell_count: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """(r,) dense codes of sequences, each unknown one its own, None if none is known; (c,) longest run of each cell."""
    longest = np.ones(cell_count, np.int64)
    if sequences is None or not (sequences[rows] >= 0).any():
        return None, longest
    known = sequences[rows] >= 0
    _, codes = np.unique(np.where(known, sequences[rows], -1 - np.arange(len(rows))), return_inverse=True)
    order = np.lexsort((codes, cells))
    changes = (np.diff(cells[order]) != 0) | (np.diff(codes[order]) != 0)
    begins = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(np.concatenate([begins, [len(order)]]))
    np.maximum.at(longest, cells[order][begins], lengths)
    return codes, longest


def _pack(
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    cells: NDArray[np.int64],
    allowed: NDArray[np.int64],
    batch_size: int,
) -> Iterator[list[tuple[int, int]]]:
    """Fills batches with groups in their order; yields the (start, count) pieces of each, `batch_size` rows in all.

    A group waits for the next batch if its cell is in this one as often as allowed, or if another of the next few
    completes the batch without cutting one in two.
    """
    stream = zip(starts.tolist(), sizes.tolist(), cells.tolist(), allowed.tolist(), strict=True)
    waiting: deque[_Group] = deque()
    singles: list[_Group] = []  # what is left of a group of which all but one were needed
    while True:
        pieces: list[tuple[int, int]] = []
        present: dict[int, int] = {}
        passed: list[_Group] = []  # whose cell is in this batch as often as allowed
        room = batch_size
        while room:
            if room == 1 and singles:
                group = singles.pop()
            elif (next_one := waiting.popleft() if waiting else next(stream, None)) is not None:
                group = next_one
                if present.get(group[2], 0) >= group[3]:
                    passed.append(group)
                    continue
                if group[1] != room and room - group[1] < 2:  # it would not fit, or leave room for one alone
                    waiting.appendleft(group)
                    waiting.extend(itertools.islice(stream, max(0, _LOOKED_THROUGH - len(waiting))))
                    group, rest = _last_of_batch(waiting, room, present)
                    if rest is not None:
                        singles.append(rest) if rest[1] == 1 else waiting.appendleft(rest)
            elif passed:
                # Nothing else is left: the rule of one group a cell gives way.
                waiting.extend(passed)
                passed.clear()
                present.clear()
                continue
            elif singles:
                group = singles.pop()
            else:
                return
            start, size, cell, _ = group
            pieces.append((start, size))
            present[cell] = present.get(cell, 0) + 1
            room -= size
        waiting.extendleft(reversed(passed))
        yield pieces


def _last_of_batch(waiting: deque[_Group], room: int, present: dict[int, int]) -> tuple[_Group, _Group | None]:
    """Takes from the waiting groups the one that best ends a batch, or a part of it; the rest of it is the second.

    Best is one of exactly the size; then one that leaves room for two or more; then one that can be cut so that both
    parts have two or more; then one of which one is cut off; then any.
    """

    def rank(group: _Group) -> int:
        _, size, cell, most = group
        if present.get(cell, 0) >= most:
            return 5
        if size == room:
            return 0
        if size < room - 1:
            return 1
        if size - room >= 2:
            return 2 if room >= 2 else 3
        return 4

    best, position = 6, 0
    for index, group in enumerate(itertools.islice(waiting, _LOOKED_THROUGH)):
        if (found := rank(group)) < best:
            best, position = found, index
            if best == 0:
                break
    start, size, cell, most = waiting[position]
    del waiting[position]
    if size <= room:
        return (start, size, cell, most), None
    return (start, room, cell, most), (start + room, size - room, cell, most)
