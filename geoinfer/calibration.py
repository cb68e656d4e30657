"""How far off an answer may be, and whether a photo is like anything indexed: split conformal calibration.

It learns from photos whose place is known. Each sampled reference is located by the others
(`geoinfer.index.leave_one_out`), so its true error is known; where the references are no photos, labelled photos
outside the index stand in. On one half of them a line is fitted that foretells the error from what is known at
prediction time: how far the neighbours lie from the answer and how alike the nearest is. On the other half the true
errors are divided by the foretold ones; the 90% quantile of these ratios, with the finite-sample correction, times the
foretold error of a new photo is its radius. It then holds the truth with probability 90%, and likewise for any other
share, for photos that are to the references as those learnt from; docs/confidence.md says where that fails (V. Vovk et
al., "Algorithmic Learning in a Random World"; the scaled scores are those of J. Lei et al., "Distribution-Free
Predictive Inference for Regression", section 5.2).

With too few of them nothing can be promised, and the radius is that of the whole Earth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.aggregate import aggregate
from geoinfer.answer import GEOSCORE_SCALE_KM
from geoinfer.geodesy import HALF_CIRCUMFERENCE_KM, haversine_km

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.answer import Answer
    from geoinfer.index import LeaveOneOut

COVERAGE: Final = 0.9
"""The share of photos whose true place lies within `radius_km` of a result."""

SPREAD_K: Final = 10
"""Neighbours that the spread is taken over, also where the answer itself is made of fewer."""

UNLIKE: Final = 0.01
"""A photo is unlike the references if fewer than this share of photos like those learnt from is as far from them."""

_RIDGE: Final = 1e-3
_SEED: Final = 0
_FLOOR_KM: Final = 0.1  # a foretold error of nothing would make ratios of infinity; GPS is no better than this


@dataclass(frozen=True, slots=True)
class Evidence:
    """Photos whose place is known, located as new ones would be.

    Attributes:
        rows: (m,) int64, which rows of the `LeaveOneOut` they are; some have too few neighbours left and are no use.
        errors_km: (m,) float64, from the answer to the true place.
        spread_km: (m,) float64, see `neighbor_spread_km`.
        top1: (m,) float64, similarity of the nearest neighbour.
    """

    rows: NDArray[np.int64]
    errors_km: NDArray[np.float64]
    spread_km: NDArray[np.float64]
    top1: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Evidence:
        """Some of the photos, by number or by a mask."""
        return Evidence(self.rows[chosen], self.errors_km[chosen], self.spread_km[chosen], self.top1[chosen])


@dataclass(frozen=True, slots=True)
class Calibration:
    """Foretells errors of one way of answering.

    Attributes:
        coefficients: (3,) of log error km on 1, log spread, similarity of the nearest.
        ratios: (m,) sorted true errors over foretold ones, of the half that the coefficients never saw.
        top1: (n,) sorted similarities of the nearest, of all photos learnt from.
    """

    coefficients: NDArray[np.float64]
    ratios: NDArray[np.float64]
    top1: NDArray[np.float64]

    @property
    def usable(self) -> bool:
        """Whether there were enough photos to promise anything."""
        return self.promises(COVERAGE)

    @property
    def tells_unlike(self) -> bool:
        """Whether there were enough photos (99) to tell which are unlike the references."""
        return 1 / (len(self.top1) + 1) <= UNLIKE

    def promises(self, coverage: float) -> bool:
        """Whether there were enough photos for a radius of this coverage (0 to 1) to be less than the whole Earth."""
        return _quantile_rank(len(self.ratios), coverage) <= len(self.ratios)

    def radius_km(
        self, spread_km: NDArray[np.float64], top1: NDArray[np.float64], coverage: float = COVERAGE
    ) -> NDArray[np.float64]:
        """The radius that holds the truth with a given probability.

        Args:
            spread_km: (q,), see `neighbor_spread_km`.
            top1: (q,) similarity of the nearest neighbour.
            coverage: the probability, more than 0 and less than 1.

        Returns:
            (q,) km, at most half the Earth's circumference.

        Raises:
            ValueError: `coverage` is out of range.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage is {coverage}; expected more than 0 and less than 1")
        if not self.promises(coverage):
            return np.full(len(spread_km), HALF_CIRCUMFERENCE_KM)
        ratio = self.ratios[_quantile_rank(len(self.ratios), coverage) - 1]
        return np.clip(self._foretold_km(spread_km, top1) * ratio, _FLOOR_KM, HALF_CIRCUMFERENCE_KM)

    def score(self, spread_km: NDArray[np.float64], top1: NDArray[np.float64]) -> NDArray[np.float64]:
        """The expected GeoScore, from 0 (no idea) to 1 (exact): orders predictions by how far to trust them.

        Arguments as for `radius_km`. (q,) float64; 0 where nothing could be calibrated.
        """
        if not self.usable:
            return np.zeros(len(spread_km))
        errors = self._foretold_km(spread_km, top1)[:, None] * self.ratios
        return np.exp(-np.minimum(errors, HALF_CIRCUMFERENCE_KM) / GEOSCORE_SCALE_KM).mean(axis=1)

    def unlike_references(self, top1: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which photos are so far from the nearest reference that hardly any photo learnt from was as far.

        The conformal p-value of "this photo is like those": one more than the number of them whose nearest was no more
        similar, over one more than all of them. Of photos like those learnt from, at most 1% are flagged.

        Args:
            top1: (q,) similarity of the nearest neighbour.

        Returns:
            (q,) bool; never true with fewer than 99 photos to compare with.
        """
        as_far = np.searchsorted(self.top1, top1, side="right")
        unlike: NDArray[np.bool_] = (1 + as_far) / (len(self.top1) + 1) <= UNLIKE
        return unlike

    def _foretold_km(self, spread_km: NDArray[np.float64], top1: NDArray[np.float64]) -> NDArray[np.float64]:
        return _foretell(self.coefficients, spread_km, top1)


def neighbor_spread_km(answers: NDArray[np.float64], coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean great-circle distance in km from each answer (q, 2) to its nearest neighbours' places (q, k, 2)."""
    near = coordinates[:, :SPREAD_K]
    spread: NDArray[np.float64] = haversine_km(answers[:, None, :], near).mean(axis=1)
    return spread


def calibrate(held_out: LeaveOneOut, coordinates: NDArray[np.float64], answer: Answer) -> Calibration:
    """Calibrates one way of answering.

    Args:
        held_out: neighbours of photos whose place is known.
        coordinates: (n, 2) degrees of all references.
        answer: how neighbours become a place; its k is cut to what leaving one out leaves.
    """
    return learn(gather_evidence(held_out, coordinates, answer))


def learn(evidence: Evidence) -> Calibration:
    """The calibration that photos whose place is known allow."""
    shuffled = np.random.default_rng(_SEED).permutation(len(evidence))
    fitting, testing = evidence.of(shuffled[: len(evidence) // 2]), evidence.of(shuffled[len(evidence) // 2 :])
    coefficients = _fit(fitting.errors_km, fitting.spread_km, fitting.top1)
    ratios = testing.errors_km / _foretell(coefficients, testing.spread_km, testing.top1)
    return Calibration(coefficients, np.sort(ratios), np.sort(evidence.top1))


def leave_one_out_errors_km(
    held_out: LeaveOneOut, coordinates: NDArray[np.float64], answer: Answer
) -> NDArray[np.float64]:
    """True errors in km of the photos that calibration learns from; arguments as for `calibrate`."""
    return gather_evidence(held_out, coordinates, answer).errors_km


def gather_evidence(held_out: LeaveOneOut, coordinates: NDArray[np.float64], answer: Answer) -> Evidence:
    """Locates the photos that have enough neighbours left; arguments as for `calibrate`."""
    needed = min(max(answer.k, SPREAD_K), held_out.ids.shape[1])
    # Relatives that were left out may leave a row fewer than k neighbours; it counts as long as the spread is known.
    least = min(needed, SPREAD_K)
    enough = held_out.ids[:, least - 1] >= 0 if least else np.zeros(len(held_out.rows), bool)
    ids, similarities = held_out.ids[enough, :needed], held_out.similarities[enough, :needed]
    rows = np.flatnonzero(enough)
    if len(rows) == 0:
        return Evidence(rows, np.empty(0), np.empty(0), np.empty(0))
    missing = ids < 0
    ids, similarities = np.where(missing, ids[:, :1], ids), np.where(missing, np.float32(-np.inf), similarities)
    places = np.asarray(coordinates[ids], np.float64)
    answers = aggregate(places[:, : answer.k], similarities[:, : answer.k], answer)
    errors = haversine_km(answers, held_out.true_places(coordinates)[enough])
    return Evidence(rows, errors, neighbor_spread_km(answers, places), similarities[:, 0].astype(np.float64))


def why_not_calibrated(held_out: LeaveOneOut) -> str:
    """A clause that says why a calibration on these photos is not `usable`."""
    if len(held_out.rows) == 0:
        return "the index was not calibrated: give labelled photos when it is made"
    if held_out.places is not None:
        return f"the index was calibrated on {len(held_out.rows)} labelled photos, which are too few"
    return "the index has too few references, or of too few occasions"


def _quantile_rank(count: int, coverage: float) -> int:
    """Which of `count` sorted scores, counted from 1, bounds the next one with probability `coverage`."""
    return max(1, math.ceil((count + 1) * coverage - 1e-9))


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
