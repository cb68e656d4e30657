"""How far off an answer may be: split conformal calibration on photos whose place is known.

Each sampled reference is located by the others (`geoinfer.index.leave_one_out`), so its true error is known; where the
references are no photos, labelled photos outside the index stand in. On one half of them a line is fitted that
foretells the error from what is known at prediction time: how far the neighbours lie from the answer and how alike the
nearest is. On the other half the true errors are divided by the foretold ones; the 90% quantile of these ratios, with
the finite-sample correction, times the foretold error of a new photo is its radius. It then holds the truth with
probability 90%, for photos that are to the references as those learnt from; docs/confidence.md says where that fails
(V. Vovk et al., "Algorithmic Learning in a Random World"; the scaled scores are those of J. Lei et al.,
"Distribution-Free Predictive Inference for Regression", section 5.2).

With too few of them nothing can be promised, and the radius is that of the whole Earth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.aggregate import aggregate
from geoinfer.geodesy import HALF_CIRCUMFERENCE_KM, haversine_km

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.aggregate import Method
    from geoinfer.index import LeaveOneOut

COVERAGE: Final = 0.9
"""The share of photos whose true place lies within `radius_km`."""

SPREAD_K: Final = 10
"""Neighbours that the spread is taken over, also where the answer itself is made of fewer."""

GEOSCORE_SCALE_KM: Final = 1492.7
"""The scale of the GeoScore of OpenStreetView-5M: 5000 exp(-d / 1492.7 km)."""

_RIDGE: Final = 1e-3
_SEED: Final = 0
_FLOOR_KM: Final = 0.1  # a foretold error of nothing would make ratios of infinity; GPS is no better than this


@dataclass(frozen=True, slots=True)
class Calibration:
    """Foretells errors of one way of answering (a method and a k).

    Attributes:
        coefficients: (3,) of log error km on 1, log spread, similarity of the nearest.
        ratios: (m,) sorted true errors over foretold ones, of the half that the coefficients never saw.
    """

    coefficients: NDArray[np.float64]
    ratios: NDArray[np.float64]

    @property
    def usable(self) -> bool:
        """Whether there were enough photos to promise anything."""
        return _quantile_rank(len(self.ratios)) <= len(self.ratios)

    def radius_km(self, spread_km: NDArray[np.float64], top1: NDArray[np.float64]) -> NDArray[np.float64]:
        """The radius that holds the truth with 90% probability.

        Args:
            spread_km: (q,), see `neighbor_spread_km`.
            top1: (q,) similarity of the nearest neighbour.

        Returns:
            (q,) km, at most half the Earth's circumference.
        """
        if not self.usable:
            return np.full(len(spread_km), HALF_CIRCUMFERENCE_KM)
        ratio = self.ratios[_quantile_rank(len(self.ratios)) - 1]
        return np.clip(self._foretold_km(spread_km, top1) * ratio, _FLOOR_KM, HALF_CIRCUMFERENCE_KM)

    def score(self, spread_km: NDArray[np.float64], top1: NDArray[np.float64]) -> NDArray[np.float64]:
        """The expected GeoScore, from 0 (no idea) to 1 (exact): orders predictions by how far to trust them.

        Arguments as for `radius_km`. (q,) float64; 0 where nothing could be calibrated.
        """
        if not self.usable:
            return np.zeros(len(spread_km))
        errors = self._foretold_km(spread_km, top1)[:, None] * self.ratios
        return np.exp(-np.minimum(errors, HALF_CIRCUMFERENCE_KM) / GEOSCORE_SCALE_KM).mean(axis=1)

    def _foretold_km(self, spread_km: NDArray[np.float64], top1: NDArray[np.float64]) -> NDArray[np.float64]:
        return _foretell(self.coefficients, spread_km, top1)


def neighbor_spread_km(answers: NDArray[np.float64], coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean great-circle distance in km from each answer (q, 2) to its nearest neighbours' places (q, k, 2)."""
    near = coordinates[:, :SPREAD_K]
    spread: NDArray[np.float64] = haversine_km(answers[:, None, :], near).mean(axis=1)
    return spread


def calibrate(held_out: LeaveOneOut, coordinates: NDArray[np.float64], method: Method, k: int) -> Calibration:
    """Calibrates one way of answering.

    Args:
        held_out: neighbours of photos whose place is known.
        coordinates: (n, 2) degrees of all references.
        method: how neighbours become a place.
        k: of how many; cut to what leaving one out leaves.
    """
    errors, spread, top1 = _locate_held_out(held_out, coordinates, method, k)
    shuffled = np.random.default_rng(_SEED).permutation(len(errors))
    fitting, testing = shuffled[: len(errors) // 2], shuffled[len(errors) // 2 :]
    coefficients = _fit(errors[fitting], spread[fitting], top1[fitting])
    ratios = errors[testing] / _foretell(coefficients, spread[testing], top1[testing])
    return Calibration(coefficients, np.sort(ratios))


def leave_one_out_errors_km(
    held_out: LeaveOneOut, coordinates: NDArray[np.float64], method: Method, k: int
) -> NDArray[np.float64]:
    """True errors in km of the photos that calibration learns from; arguments as for `calibrate`."""
    return _locate_held_out(held_out, coordinates, method, k)[0]


def why_not_calibrated(held_out: LeaveOneOut) -> str:
    """A clause that says why a calibration on these photos is not `usable`."""
    if len(held_out.rows) == 0:
        return "the index was not calibrated: give labelled photos when it is made"
    if held_out.places is not None:
        return f"the index was calibrated on {len(held_out.rows)} labelled photos, which are too few"
    return "the index has too few references, or of too few occasions"


def _locate_held_out(
    held_out: LeaveOneOut, coordinates: NDArray[np.float64], method: Method, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(errors km, spread km, similarity of the nearest) of the photos that have enough neighbours left."""
    needed = min(max(k, SPREAD_K), held_out.ids.shape[1])
    # Relatives that were left out may leave a row fewer than k neighbours; it counts as long as the spread is known.
    least = min(needed, SPREAD_K)
    enough = held_out.ids[:, least - 1] >= 0 if least else np.zeros(len(held_out.rows), bool)
    ids, similarities = held_out.ids[enough, :needed], held_out.similarities[enough, :needed]
    if len(ids) == 0:
        return np.empty(0), np.empty(0), np.empty(0)
    missing = ids < 0
    ids, similarities = np.where(missing, ids[:, :1], ids), np.where(missing, np.float32(-np.inf), similarities)
    places = coordinates[ids]
    answers = aggregate(places[:, :k], similarities[:, :k], method)
    errors = haversine_km(answers, held_out.true_places(coordinates)[enough])
    return errors, neighbor_spread_km(answers, places), similarities[:, 0].astype(np.float64)


def _quantile_rank(count: int) -> int:
    """Which of `count` sorted scores, counted from 1, bounds the next one with probability `COVERAGE`."""
    return max(1, math.ceil((count + 1) * COVERAGE - 1e-9))


def _features(spread_km: NDArray[np.float64], top1: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones(len(spread_km)), np.log(spread_km + _FLOOR_KM), top1], axis=1)


def _fit(errors: NDArray[np.float64], spread_km: NDArray[np.float64], top1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ridge regression of the log error; the intercept is not shrunk."""
    if len(errors) == 0:
        return np.zeros(3)
    features = _features(spread_km, top1)
    centre = features.mean(axis=0)
    centred, target = features[:, 1:] - centre[1:], np.log(errors + _FLOOR_KM)
    gram = centred.T @ centred + _RIDGE * len(errors) * np.eye(2)
    slopes = np.linalg.solve(gram, centred.T @ (target - target.mean()))
    return np.concatenate([[target.mean() - slopes @ centre[1:]], slopes])


def _foretell(
    coefficients: NDArray[np.float64], spread_km: NDArray[np.float64], top1: NDArray[np.float64]
) -> NDArray[np.float64]:
    logs = _features(spread_km, top1) @ coefficients
    return np.exp(np.clip(logs, math.log(_FLOOR_KM), math.log(HALF_CIRCUMFERENCE_KM)))
