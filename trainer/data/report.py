"""What a preparation found: counts, geocells, how far the splits are apart; and all that in lines for a terminal."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.geocells import parent_cells
from geoinfer.geodesy import EARTH_RADIUS_KM, to_unit_vectors
from trainer.data.examples import LEVELS, SPLITS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.data.examples import Examples

_QUERIES: Final = 5000
_NEAR_KM: Final = 1.0
_SMALLEST_CUBE: Final = 2.0**-12  # of the Earth's radius, 1.6 km


@dataclass(frozen=True, slots=True)
class DropReason:
    """Why photos were left out: a word, how many, and the first case (line 0 where there is no CSV)."""

    code: str
    count: int
    line: int
    id: str
    message: str


@dataclass(frozen=True, slots=True)
class CellCounts:
    """Training photos and S2 cells of a level.

    Attributes:
        level: of the cells.
        cells: that hold a photo.
        median_photos: per cell.
        accompanied: share of the photos whose cell holds another one, so that they can have a positive.
    """

    level: int
    cells: int
    median_photos: float
    accompanied: float


@dataclass(frozen=True, slots=True)
class Leak:
    """How near the photos of a split are to the nearest photo that is trained on.

    Attributes:
        split: its name.
        looked_at: how many of its photos were measured.
        median_km: great-circle distance.
        near: share of them within 1 km.
    """

    split: str
    looked_at: int
    median_km: float
    near: float


@dataclass(frozen=True, slots=True)
class PreparationReport:
    """What `prepare` did.

    Attributes:
        source: as the user named it.
        kind: what it turned out to be.
        notes: on how it was read.
        out: the prepared set.
        examples: what is in it.
        read: rows or photos of the source.
        usable: of them, before a subset was drawn.
        dropped: why the others were left out.
        split: policy, level, shares and seed, as in the manifest.
        cells: per level, of the training photos.
        leaks: of validation and test, where there are any.
    """

    source: str
    kind: str
    notes: tuple[str, ...]
    out: Path
    examples: Examples
    read: int
    usable: int
    dropped: tuple[DropReason, ...]
    split: dict[str, Any]
    cells: tuple[CellCounts, ...]
    leaks: tuple[Leak, ...]

    def lines(self) -> list[str]:
        """The report as text, a line each, no wider than needed."""
        return [
            f"source      {self.source}: {self.kind}",
            *(f"            {note}" for note in self.notes),
            *self._count_lines(),
            *self._split_lines(),
            "",
            *self._cell_lines(),
            "",
            f"written to {self.out}",
        ]

    def _count_lines(self) -> list[str]:
        examples = self.examples
        lines = [f"photos      {self.usable:,} of {self.read:,} can be used"]
        width = max((len(reason.code) for reason in self.dropped), default=0)
        for reason in self.dropped:
            where = f"line {reason.line}, {reason.id}" if reason.line else reason.id
            lines.append(f"  dropped   {reason.count:>9,}  {reason.code:<{width}}  {where}: {reason.message}")
        if self.dropped:
            lines.append(f"            all of them with the reason in {self.out / 'dropped.csv'}")
        if len(examples) < self.usable:
            lines.append(f"subset      {len(examples):,} drawn with seed {self.split['seed']}")
        known = examples.sequences >= 0
        if known.any():
            different = len(np.unique(examples.sequences[known]))
            lines.append(f"sequences   {different:,} of {_photos(int(known.sum()))}")
        countries = {country for country in examples.countries.array.unique().to_pylist() if country}
        if countries:
            lines.append(f"countries   {len(countries)}")
        return lines

    def _split_lines(self) -> list[str]:
        policy = self.split["policy"]
        how = f"by geocell, S2 level {self.split['level']}" if policy == "geocell" else f"by {policy}"
        lines = [f"split       {'at random' if policy == 'random' else how}, seed {self.split['seed']}"]
        counts = np.bincount(self.examples.splits, minlength=len(SPLITS))
        leaks = {leak.split: leak for leak in self.leaks}
        for name, count in zip(SPLITS, counts.tolist(), strict=True):
            line = f"  {name:<10}{count:>9,}  {count / max(1, len(self.examples)):6.1%}"
            if name in leaks:
                leak = leaks[name]
                sample = f" ({leak.looked_at:,} looked at)" if leak.looked_at < count else ""
                line += (
                    f"  nearest training photo: median {_distance(leak.median_km)}, {leak.near:.1%} within 1 km{sample}"
                )
            lines.append(line)
        if not counts[SPLITS.index("validation")] and self.split["validation"]:
            lines.append(
                "  there is nothing to validate on: too few photos, sequences or cells for the share asked for"
            )
        if any(leak.near > 0.05 for leak in self.leaks):
            lines.append("  near neighbours make a model look better than it is: split by sequence or by geocell")
        return lines

    def _cell_lines(self) -> list[str]:
        lines = ["S2 level      cells  median photos  photos with another in their cell (training)"]
        lines += [
            f"{cell.level:>8} {cell.cells:>10,} {cell.median_photos:>14,g} {cell.accompanied:>33.1%}"
            for cell in self.cells
        ]
        return lines


def describe_cells(examples: Examples) -> tuple[CellCounts, ...]:
    """Counts cells and their photos at levels 3 to 14."""
    # Parents of sorted cells are sorted: one sort serves all levels.
    leaves = np.sort(examples.leaf_cells)
    counted = []
    for level in LEVELS:
        cells = parent_cells(leaves, level)
        begins = np.flatnonzero(np.concatenate([np.ones(min(1, len(cells)), bool), cells[1:] != cells[:-1]]))
        counts = np.diff(np.append(begins, len(cells)))
        accompanied = float(counts[counts > 1].sum()) / max(1, len(cells))
        counted.append(CellCounts(level, len(begins), float(np.median(counts)) if len(begins) else 0.0, accompanied))
    return tuple(counted)


def measure_leak(examples: Examples, split: str, seed: int = 0) -> Leak | None:
    """Distances from photos of a split to the nearest training photo; None where one of the two has no photo.

    Of more than 5000 photos of the split as many are drawn and measured.
    """
    training = examples.coordinates[examples.splits == SPLITS.index("train")]
    rows = np.flatnonzero(examples.splits == SPLITS.index(split))
    if not len(training) or not len(rows):
        return None
    if len(rows) > _QUERIES:
        rows = np.sort(np.random.default_rng((seed, len(rows))).choice(rows, _QUERIES, replace=False))
    nearest = nearest_km(examples.coordinates[rows], training)
    return Leak(split, len(rows), float(np.median(nearest)), float(np.mean(nearest < _NEAR_KM)))


def nearest_km(queries: NDArray[np.float64], references: NDArray[np.float64]) -> NDArray[np.float64]:
    """Great-circle distance from each query (q, 2) to the nearest of the references (n, 2), n > 0, (q,) float64 km.

    Exact to the rounding of float64. The references are sorted into cubes; whoever finds one within the side of a cube
    among its own and the 26 around it has found the nearest, and the others look again in cubes of twice the side.
    (A matrix product in float32, as FAISS takes, is off by kilometres at such distances.)
    """
    wanted, known = to_unit_vectors(queries), to_unit_vectors(references)
    squared = np.full(len(wanted), np.inf)
    left = np.arange(len(wanted))
    side = _SMALLEST_CUBE
    while len(left):
        cubes = _cube_numbers(np.floor((known + 1.0) / side), side)
        order = np.argsort(cubes, kind="stable")
        cubes, known = cubes[order], known[order]
        own = np.floor((wanted[left] + 1.0) / side)
        for step in itertools.product((-1, 0, 1), repeat=3):
            numbers = _cube_numbers(own + step, side)
            begin, end = np.searchsorted(cubes, numbers, "left"), np.searchsorted(cubes, numbers, "right")
            for position in np.flatnonzero(end > begin).tolist():
                query = left[position]
                others = known[begin[position] : end[position]]
                squared[query] = min(squared[query], float(np.min(np.sum((others - wanted[query]) ** 2, axis=1))))
        left = left[squared[left] > side**2]
        side *= 2
    distances: NDArray[np.float64] = 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(np.sqrt(squared) / 2, 0.0, 1.0))
    return distances


def _cube_numbers(cubes: NDArray[np.float64], side: float) -> NDArray[np.int64]:
    """(m, 3) places of cubes, from -1 on, as one number each."""
    along = int(2.0 / side) + 4
    whole = cubes.astype(np.int64) + 1
    return (whole[:, 0] * along + whole[:, 1]) * along + whole[:, 2]


def _photos(count: int) -> str:
    return f"{count:,} photo{'s' * (count != 1)}"


def _distance(km: float) -> str:
    if km < 1:
        return f"{1000 * km:.0f} m"
    return f"{km:.1f} km" if km < 100 else f"{km:,.0f} km"
