"""Whether `score` orders predictions: how good the best-scored share of them is, against the share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.metrics import MOST_POINTS, OSV5M, geoscores

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POINTS: Final = 200
"""Shares that a curve is drawn at, at most."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Predictions in some order, the most trusted first.

    Attributes:
        median_km: (p,) median error of each share of them.
        geoscore: (p,) mean GeoScore of each share, 0 to 1.
        area: the mean over all shares of the mean GeoScore: the area under that curve.
    """

    median_km: NDArray[np.float64]
    geoscore: NDArray[np.float64]
    area: float


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Curves of the predictions ordered by their score, by their true error, and at random.

    Attributes:
        shares: (p,) ascending to 1, of the predictions that are kept.
        scored: ordered by the score.
        ideal: ordered by the true error: no order is better.
        random: in no order: the same for every share.
        limits: (p,) the score that the last prediction of each share has: what `--min-score` keeps that share.
    """

    shares: NDArray[np.float64]
    scored: Curve
    ideal: Curve
    random: Curve
    limits: NDArray[np.float64]

    @property
    def gain(self) -> float:
        """How much of the way from a random order to the ideal one the score goes, by area; 1 where they are one."""
        way = self.ideal.area - self.random.area
        return (self.scored.area - self.random.area) / way if way > 0 else 1.0


def risk_coverage(scores: NDArray[np.float64], errors_km: NDArray[np.float64]) -> RiskCoverage:
    """How well scores order predictions (R. El-Yaniv and Y. Wiener, JMLR 11, 2010).

    Predictions of equal score count as if in random order among themselves: each with the mean GeoScore of all of
    them, and a median with all of them.

    Args:
        scores: (m,) float64, m at least 1.
        errors_km: (m,) float64.
    """
    count = len(errors_km)
    kept = np.unique(np.ceil(np.linspace(1 / _POINTS, 1, _POINTS) * count - 1e-9).astype(np.int64))
    geoscore = geoscores(errors_km, OSV5M) / MOST_POINTS
    order = np.argsort(-scores, kind="stable")
    everyone = Curve(
        np.full(len(kept), np.median(errors_km)), np.full(len(kept), geoscore.mean()), float(geoscore.mean())
    )
    return RiskCoverage(
        shares=kept / count,
        scored=_curve(scores, errors_km, geoscore, kept),
        ideal=_curve(-errors_km, errors_km, geoscore, kept),
        random=everyone,
        limits=scores[order][kept - 1],
    )


def _curve(
    trust: NDArray[np.float64], errors_km: NDArray[np.float64], geoscore: NDArray[np.float64], kept: NDArray[np.int64]
) -> Curve:
    order = np.argsort(-trust, kind="stable")
    # Blocks of equal trust, by number, from the most trusted.
    _, first, block, sizes = np.unique(-trust[order], return_index=True, return_inverse=True, return_counts=True)
    shared = (np.bincount(block, weights=geoscore[order]) / sizes)[block]
    means = np.cumsum(shared) / np.arange(1, len(order) + 1)
    ends = (first + sizes)[block[kept - 1]]
    sorted_errors = errors_km[order]
    medians = np.array([np.median(sorted_errors[:end]) for end in ends.tolist()])
    return Curve(medians, means[kept - 1], float(means.mean()))
