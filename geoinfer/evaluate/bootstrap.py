"""How sure one is of figures that were counted on a sample: the cluster bootstrap.

Photos of one drive or walk fare alike, so whole groups are drawn, not photos: as many groups as there are, with
replacement, a thousand times; a photo counts as often as its group was drawn (A. C. Davison and D. V. Hinkley,
"Bootstrap Methods and their Application", 1997, section 3.8). The interval runs from the 2.5% to the 97.5% quantile of
what that comes to. With few groups it is too narrow, as every bootstrap is.

Two samples that are given together are drawn together: differences between them are paired.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.errors import UsageError
from geoinfer.metrics import RADII_KM, geoscores, within
from geoinfer.reliability.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from geoinfer.metrics import Convention

REPLICATES: Final = 1000
SEED: Final = 0
LEVEL: Final = 0.95

_LOW, _HIGH = 2.5, 97.5
_BLOCK_BYTES: Final = 1 << 26  # of drawn counts at a time
_WINDOW_DEVIATIONS: Final = 6.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95% interval.

    Attributes:
        value: what was found; NaN of no photos.
        low: the lower end; NaN where one group is all there is, which says nothing about another.
        high: the upper end, likewise.
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Ready for JSON, which has no NaN."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Photos by their errors, and shares of them that are of interest.

    Attributes:
        distances_km: (m,) float64, no NaN; m at least 1.
        groups: (m,) int64, from 0: what each photo is drawn with.
        numerators: s arrays (m,): ratio j is the sum of numerator j over that of denominator j.
        denominators: s arrays (m,), or None for the number of photos.
    """

    distances_km: NDArray[np.float64]
    groups: NDArray[np.int64]
    numerators: Sequence[NDArray[np.generic]]
    denominators: Sequence[NDArray[np.generic] | None]

    def values(self) -> NDArray[np.float64]:
        """(1 + s,) the median, then each ratio; NaN where its denominator is 0."""
        ratios = [
            _ratio(float(top.sum(dtype=np.float64)), float(len(top) if below is None else below.sum(dtype=np.float64)))
            for top, below in zip(self.numerators, self.denominators, strict=True)
        ]
        return np.array([float(np.median(self.distances_km)), *ratios])


def _ratio(top: float, below: float) -> float:
    return top / below if below else math.nan


def figure_columns(distances_km: NDArray[np.float64], convention: Convention) -> list[NDArray[np.generic]]:
    """The numerators of the mean error, of the mean GeoScore and of each accuracy in percent, for `Sample`."""
    inside = [100.0 * within(distances_km, radius, convention) for radius in RADII_KM]
    return [distances_km, geoscores(distances_km, convention), *inside]


FIGURES: Final = ("median_km", "mean_km", "geoscore", *(f"accuracy_{radius}" for radius in RADII_KM))
"""What the first values of a sample made with `figure_columns` are."""


def group_numbers(names: Sequence[str]) -> NDArray[np.int64]:
    """(n,) numbers from 0, the same for photos of one name; a photo without a name is a group by itself."""
    numbers: dict[str | int, int] = {}
    keys = [name or row for row, name in enumerate(names)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def resample(samples: Sequence[Sample], *, replicates: int = REPLICATES, seed: int = SEED) -> list[NDArray[np.float64]]:
    """What the values of samples come to, drawn again and again, all of them with the same groups.

    Args:
        samples: of the same groups, some of which may have no photos in a sample. The larger the number of the last
            group, the more memory: number them without gaps.
        replicates: how often to draw.
        seed: of the draw; the same for as many groups.

    Returns:
        For each sample (replicates, 1 + s), as `Sample.values`; NaN where a ratio's denominator comes to 0, or no photo
        was drawn at all.
    """
    number = max(int(sample.groups.max()) for sample in samples) + 1
    prepared = [_Prepared(sample, number) for sample in samples]
    found = [np.empty((replicates, 1 + len(sample.numerators))) for sample in samples]
    start = 0
    for counts in drawn_counts(number, replicates, seed):
        rows = slice(start, start + len(counts))
        for one, values in zip(prepared, found, strict=True):
            values[rows] = one.values(counts)
        start += len(counts)
    return found


def drawn_counts(number: int, replicates: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yields (b, number) how often each of so many groups was drawn, until there are as many rows as replicates."""
    random = np.random.default_rng(seed)
    block = max(1, min(replicates, _BLOCK_BYTES // (8 * number)))
    for start in range(0, replicates, block):
        counts = np.empty((min(block, replicates - start), number))
        for row in counts:
            row[:] = np.bincount(random.integers(number, size=number), minlength=number)
        yield counts


class _Prepared:
    """Sums by group for the ratios; for the median the photos about the middle, sorted.

    A replicate's median lies near that of all. How near, the sums by group say: so only photos within six standard
    deviations of the middle are looked at one by one, and those below are a sum, too. Where a replicate falls out of
    that window, all are looked at: the result is the same whatever the window.
    """

    def __init__(self, sample: Sample, number: int) -> None:
        order = np.argsort(sample.distances_km, kind="stable")
        self._sorted = sample.distances_km[order]
        self._groups = sample.groups[order]
        count = len(order)
        middle = np.bincount(self._groups[: count // 2], minlength=number)
        sizes = np.bincount(self._groups, minlength=number)
        deviation = math.sqrt(float(((middle - sizes / 2) ** 2).sum()))
        reach = math.ceil(_WINDOW_DEVIATIONS * deviation) + 1
        self._start, self._stop = max(0, count // 2 - reach), min(count, count // 2 + reach)
        below = np.bincount(self._groups[: self._start], minlength=number)
        # One column for each sum that a replicate needs; photos are counted once for all ratios that divide by them.
        columns = [sizes, below, *(self._sums(sample.groups, top, number) for top in sample.numerators)]
        self._divide_by = []
        for denominator in sample.denominators:
            self._divide_by.append(0 if denominator is None else len(columns))
            if denominator is not None:
                columns.append(self._sums(sample.groups, denominator, number))
        self._columns = np.column_stack([np.asarray(column, np.float64) for column in columns])
        self._ratios = slice(2, 2 + len(sample.numerators))

    @staticmethod
    def _sums(groups: NDArray[np.int64], values: NDArray[np.generic], number: int) -> NDArray[np.float64]:
        return np.asarray(np.bincount(groups, weights=values.astype(np.float64), minlength=number))

    def values(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = counts @ self._columns
        # Whole numbers below 2^53 are exact in float64, whatever the order of a sum.
        medians = [
            self._median(row, int(total), int(below))
            for row, (total, below) in zip(counts, sums[:, :2].tolist(), strict=True)
        ]
        tops, divisors = sums[:, self._ratios], sums[:, self._divide_by]
        ratios = np.full(tops.shape, np.nan)
        np.divide(tops, divisors, out=ratios, where=divisors > 0)
        return np.column_stack([np.array(medians), ratios])

    def _median(self, counts: NDArray[np.float64], total: int, below: int) -> float:
        """NumPy's median of the photos repeated as often as drawn: of an even number the mean of the middle two.

        NaN where none of them was drawn.
        """
        if total == 0:
            return math.nan
        ranks = np.array([(total - 1) // 2, total // 2])
        start, stop = self._start, self._stop
        upto = below + np.cumsum(counts[self._groups[start:stop]])
        if ranks[0] < below or ranks[1] >= upto[-1]:
            start, upto = 0, np.cumsum(counts[self._groups])
        first, second = self._sorted[start + np.searchsorted(upto, ranks, side="right")].tolist()
        return first if first == second else (first + second) / 2


def intervals(samples: Sequence[Sample], *, replicates: int = REPLICATES, seed: int = SEED) -> list[list[Interval]]:
    """For each of some samples of the same groups, drawn together, its values with their intervals.

    Raises:
        UsageError: fewer than two replicates.
    """
    if replicates < 2:
        raise UsageError(f"{replicates} bootstrap replicates: expected at least 2")
    return [
        as_intervals(sample.values(), drawn, int(np.count_nonzero(np.bincount(sample.groups))))
        for sample, drawn in zip(samples, resample(samples, replicates=replicates, seed=seed), strict=True)
    ]


def as_intervals(values: NDArray[np.float64], drawn: NDArray[np.float64], groups: int) -> list[Interval]:
    """Values with the interval that their replicates (replicates, v) span; of one group none."""
    found = []
    for value, column in zip(values.tolist(), drawn.T, strict=True):
        known = column[~np.isnan(column)]
        if groups < 2 or len(known) == 0 or math.isnan(value):
            found.append(Interval(value, math.nan, math.nan))
        else:
            low, high = np.percentile(known, [_LOW, _HIGH]).tolist()
            found.append(Interval(value, low, high))
    return found


def widened(percent: Interval, groups: int) -> Interval:
    """The interval of a share of none or all, which drawing again can only repeat.

    Wilson's for as many independent trials as there are groups: no hit in 20 photos leaves a share of 16% possible.
    """
    if percent.value not in (0.0, 100.0) or math.isnan(percent.low):
        return percent
    low, high = wilson(percent.value / 100, groups)
    return Interval(percent.value, 100 * low, 100 * high)


def paired_differences(
    a_distances: NDArray[np.float64],
    b_distances: NDArray[np.float64],
    groups: NDArray[np.int64] | Sequence[str],
    convention: Convention,
    *,
    replicates: int = REPLICATES,
    seed: int = SEED,
) -> dict[str, Interval]:
    """What one run's figures are above another's, on the photos that both answered.

    Args:
        a_distances: (n,) float64 km, NaN where the first run has no answer.
        b_distances: (n,) likewise of the second; row i is the same photo.
        groups: (n,) numbers, or names of which an empty one is a group by itself.
        convention: of the distances.
        replicates: how often groups are drawn.
        seed: of the draw.

    Returns:
        For each of `FIGURES`, a minus b; shares in percentage points. NaN where no photo was answered by both.
    """
    both = np.flatnonzero(np.isfinite(a_distances) & np.isfinite(b_distances))
    if len(both) == 0:
        return {name: Interval(math.nan, math.nan, math.nan) for name in FIGURES}
    numbers = as_groups(groups, len(a_distances))
    _, member = np.unique(numbers[both], return_inverse=True)
    samples = []
    for distances in (a_distances[both], b_distances[both]):
        columns = figure_columns(distances, convention)
        samples.append(Sample(distances, member, columns, [None] * len(columns)))
    first, second = resample(samples, replicates=replicates, seed=seed)
    found = as_intervals(samples[0].values() - samples[1].values(), first - second, int(member.max()) + 1)
    return dict(zip(FIGURES, found, strict=True))


def as_groups(groups: NDArray[np.int64] | Sequence[str], count: int) -> NDArray[np.int64]:
    """Numbers as they are, names by `group_numbers`.

    Raises:
        UsageError: there are not as many as photos.
    """
    if len(groups) != count:
        raise UsageError(f"{len(groups)} groups for {count} photos")
    return groups if isinstance(groups, np.ndarray) else group_numbers(groups)
