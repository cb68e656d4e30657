"""How often radii hold the truth, on photos that the calibration never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.calibration import gather_evidence, learn
from geoinfer.errors import UsageError
from geoinfer.reliability.groups import FOLDS, group_folds
from geoinfer.reliability.intervals import grouped_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.answer import Answer
    from geoinfer.calibration import Calibration, Evidence
    from geoinfer.index import LeaveOneOut

LEVELS: Final = (0.5, 0.8, 0.9, 0.95)
"""The shares of photos that are promised to lie within their radius."""

ALL: Final = "all"
"""The region of the rows that count every photo."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Photos whose place is known, with what a calibration that never saw them says of them.

    Attributes:
        errors_km: (m,) float64.
        scores: (m,) float64.
        groups: (m,) int64, what each belongs to.
        levels: those that all radii can be promised at.
        radius_km: (levels, m) float64.
        unlike: (m,) bool, whether a photo is called unlike the references.
    """

    errors_km: NDArray[np.float64]
    scores: NDArray[np.float64]
    groups: NDArray[np.int64]
    levels: tuple[float, ...]
    radius_km: NDArray[np.float64]
    unlike: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.errors_km)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a reliability table.

    Attributes:
        region: a continent, or `all`.
        level: the share that is promised.
        photos: how many were tested.
        groups: of how many occasions or places.
        coverage: the share of them that lie within their radius.
        low: lower end of its 95% interval, see `grouped_interval`.
        high: upper end.
        median_radius_km: of the photos tested.
        mean_radius_km: likewise.
    """

    region: str
    level: float
    photos: int
    groups: int
    coverage: float
    low: float
    high: float
    median_radius_km: float
    mean_radius_km: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability table and what it was made of.

    Attributes:
        rows: all photos first, then each region by its name; of each, the levels in order.
        judged: the photos.
    """

    rows: tuple[Row, ...]
    judged: Judged


def reliability(
    held_out: LeaveOneOut,
    coordinates: NDArray[np.float64],
    answer: Answer,
    groups: NDArray[np.int64],
    *,
    regions: Sequence[str] | None = None,
    levels: Sequence[float] = LEVELS,
    folds: int = FOLDS,
) -> Reliability:
    """The table of a way of answering, cross-fitted: each photo's radius is learnt from photos of other groups.

    Args:
        held_out: neighbours of m photos whose place is known.
        coordinates: (n, 2) degrees of all references.
        answer: how neighbours become a place.
        groups: (m,) what each photo belongs to; photos of one group are never both learnt from and tested.
        regions: m names, for rows of their own; None for none.
        levels: shares to promise, each more than 0 and less than 1.
        folds: so many times a part is held back.

    Raises:
        UsageError: all photos are of one group, or they are too few to learn from.
    """
    evidence = gather_evidence(held_out, coordinates, answer)
    if len(evidence) == 0:
        raise UsageError(
            "no photo has neighbours enough to be located by", hint="calibrate the index on labelled photos"
        )
    of_photos = groups[evidence.rows]
    fold_of = group_folds(of_photos, folds)
    learnt = [learn(evidence.of(fold_of != fold)) for fold in range(int(fold_of.max()) + 1)]
    return tabulate(judge(evidence, of_photos, learnt, fold_of, levels), _kept(regions, evidence))


def reliability_on_new(
    calibration: Calibration,
    held_out: LeaveOneOut,
    coordinates: NDArray[np.float64],
    answer: Answer,
    groups: NDArray[np.int64],
    *,
    regions: Sequence[str] | None = None,
    levels: Sequence[float] = LEVELS,
) -> Reliability:
    """The table of a calibration as it is, on photos that are all new to it. Arguments as for `reliability`."""
    evidence = gather_evidence(held_out, coordinates, answer)
    if len(evidence) == 0:
        raise UsageError("no photo has neighbours enough to be located by")
    fold_of = np.zeros(len(evidence), np.int64)
    photos = judge(evidence, groups[evidence.rows], [calibration], fold_of, levels)
    return tabulate(photos, _kept(regions, evidence))


def judge(
    evidence: Evidence,
    groups: NDArray[np.int64],
    calibrations: Sequence[Calibration],
    fold_of: NDArray[np.int64],
    levels: Sequence[float],
) -> Judged:
    """What each photo's calibration, that of its fold, says of it.

    Raises:
        UsageError: no level can be promised, as too few photos were learnt from.
    """
    promised = tuple(level for level in levels if all(known.promises(level) for known in calibrations))
    if not promised:
        fewest = min(len(known.top1) for known in calibrations)
        raise UsageError(
            f"{fewest} photos are too few to learn from", hint="use an index that is calibrated on a few hundred photos"
        )
    scores, unlike = np.empty(len(evidence)), np.empty(len(evidence), bool)
    radii = np.empty((len(promised), len(evidence)))
    for fold, known in enumerate(calibrations):
        rows = np.flatnonzero(fold_of == fold)
        spread, top1 = evidence.spread_km[rows], evidence.top1[rows]
        scores[rows], unlike[rows] = known.score(spread, top1), known.unlike_references(top1)
        for number, level in enumerate(promised):
            radii[number, rows] = known.radius_km(spread, top1, level)
    return Judged(evidence.errors_km, scores, groups, promised, radii, unlike)


def tabulate(photos: Judged, regions: Sequence[str] | None) -> Reliability:
    """The table of tested photos; m regions, or None."""
    everywhere = np.ones(len(photos), bool)
    parts = {ALL: everywhere}
    if regions is not None:
        names = np.array(regions)
        parts |= {str(name): names == name for name in np.unique(names)}
    rows = []
    for name, part in parts.items():
        groups = photos.groups[part]
        for level, radius in zip(photos.levels, photos.radius_km, strict=True):
            inside = photos.errors_km[part] <= radius[part]
            low, high = grouped_interval(inside, groups)
            rows.append(
                Row(
                    region=name,
                    level=level,
                    photos=len(inside),
                    groups=len(np.unique(groups)),
                    coverage=float(inside.mean()),
                    low=low,
                    high=high,
                    median_radius_km=float(np.median(radius[part])),
                    mean_radius_km=float(radius[part].mean()),
                )
            )
    return Reliability(tuple(rows), photos)


def _kept(regions: Sequence[str] | None, evidence: Evidence) -> list[str] | None:
    return None if regions is None else [regions[row] for row in evidence.rows.tolist()]
