"""Places that are near to all neighbours, by great-circle distance: the geometric median and the best GeoScore.

Both minimise a weighted sum of phi(distance) with phi concave: phi(d) = d is the geometric median, and
phi(d) = -exp(-d / scale) the place of the largest expected GeoScore, if each neighbour is the truth with the
probability of its weight. A concave phi lies below its tangent, so a step that lowers the sum of distances weighted by
phi' lowers this sum too: one descent serves both.

A step is Newton's where that descends, else Weiszfeld's, which always does on a sphere (P. T. Fletcher, S.
Venkatasubramanian, S. Joshi, "The geometric median on Riemannian manifolds", NeuroImage 45, 2009). On a neighbour,
where the distance to it has no gradient, the step is shortened by its weight, and none is taken where the others pull
less than it holds (Y. Vardi, C.-H. Zhang, "The multivariate L1-median and associated data depth", PNAS 97, 2000).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.answer import GEOSCORE_SCALE_KM
from geoinfer.geodesy import EARTH_RADIUS_KM, from_unit_vectors, to_unit_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STARTS: Final = 4
_ITERATIONS: Final = 40
_CONVERGED: Final = 1e-9  # radians: less than a centimetre on the Earth
_SAME_PLACE: Final = 1e-9


def geometric_median(coordinates: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place with the smallest weighted sum of great-circle distances.

    Args:
        coordinates: (q, k, 2) degrees.
        weights: (q, k), not negative.

    Returns:
        (q, 2) degrees.
    """
    return _nearest_to_all(coordinates, weights, None)


def best_geoscore(coordinates: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of the largest expected GeoScore; arguments as for `geometric_median`."""
    return _nearest_to_all(coordinates, weights, EARTH_RADIUS_KM / GEOSCORE_SCALE_KM)


def _nearest_to_all(
    coordinates: NDArray[np.float64], weights: NDArray[np.float64], rate: float | None
) -> NDArray[np.float64]:
    """`rate` is the Earth's radius over the scale of phi; None for phi(d) = d.

    The descent starts at the neighbours where the sum is smallest. A minimum on a neighbour is thus found at once.
    """
    points = to_unit_vectors(coordinates)
    queries = len(weights)
    # Cosines know a place to a few centimetres only, so smaller differences than those are ties here, which go to the
    # more similar neighbour.
    cosines = np.clip(np.einsum("qsd,qkd->qsk", points, points), -1.0, 1.0)
    at_neighbors = np.einsum("qsk,qk->qs", _phi(np.arccos(cosines), rate), weights)
    starts = np.argsort(np.round(at_neighbors, 7), axis=1, kind="stable")[:, :_STARTS]
    rows = np.repeat(np.arange(queries), starts.shape[1])
    places, sums = _descend(points, weights, rows, points[rows, starts.ravel()], rate)
    best = np.argmin(np.round(sums, 9).reshape(queries, -1), axis=1)
    return from_unit_vectors(places.reshape(queries, -1, 3)[np.arange(queries), best])


def _descend(
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
    rows: NDArray[np.int64],
    places: NDArray[np.float64],
    rate: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Walks each of the places (s, 3) of queries `rows` (s,) down to a minimum: (places, sums (s,))."""
    places = places.copy()
    sums = _sums(places, points[rows], weights[rows], rate)
    # A walk stops when it has arrived, so that an answer does not depend on which others are in the batch.
    walking = np.arange(len(places))
    for _ in range(_ITERATIONS):
        if len(walking) == 0:
            break
        here, there, weight = places[walking], points[rows[walking]], weights[rows[walking]]
        newton, weiszfeld = _steps(here, there, weight, rate)
        moved = _walked(here, newton)
        reached = _sums(moved, there, weight, rate)
        worse = np.flatnonzero(~(reached < sums[walking]))
        moved[worse] = _walked(here[worse], weiszfeld[worse])
        reached[worse] = _sums(moved[worse], there[worse], weight[worse], rate)
        # What does not descend any more is where rounding ends.
        lower = reached < sums[walking]
        far = np.abs(moved - here).max(axis=1) >= _CONVERGED
        places[walking[lower]], sums[walking[lower]] = moved[lower], reached[lower]
        walking = walking[lower & far]
    return places, sums


def _steps(
    here: NDArray[np.float64], there: NDArray[np.float64], weights: NDArray[np.float64], rate: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Newton's and Weiszfeld's steps (s, 3), tangent vectors in radians, from places (s, 3) of points (s, k, 3).

    Along the direction u to a point the distance d has no curvature, and across it cot d (on the unit sphere).
    """
    cosines = np.einsum("sd,skd->sk", here, there)
    toward = there - cosines[..., None] * here[:, None, :]
    sines = np.sqrt(np.einsum("skd,skd->sk", toward, toward))
    apart = sines > _SAME_PLACE
    # An antipode is away in every direction, and so in none.
    toward = np.divide(toward, sines[..., None], out=np.zeros_like(toward), where=apart[..., None])
    distances = np.arctan2(sines, cosines)
    slopes = weights if rate is None else weights * np.exp(-rate * distances)
    held = np.einsum("sk,sk->s", slopes, ~apart & (cosines > 0))
    pull = np.einsum("sk,skd->sd", slopes, toward)
    strength = np.sqrt(np.einsum("sd,sd->s", pull, pull))
    ahead = np.divide(pull, strength[:, None], out=np.zeros_like(pull), where=strength[:, None] > 0)
    free = np.maximum(strength - held, 0.0)
    stiffness = np.divide(slopes, distances, out=np.zeros_like(distances), where=apart).sum(axis=1)
    length = np.divide(free, stiffness, out=np.zeros_like(free), where=stiffness > 0)
    weiszfeld = length[:, None] * ahead
    # In the tangent plane: `ahead` along the pull, `aside` across it.
    aside = np.cross(here, ahead)
    u, v = np.einsum("skd,sd->sk", toward, ahead), np.einsum("skd,sd->sk", toward, aside)
    across = slopes * np.divide(cosines, sines, out=np.zeros_like(sines), where=apart)
    along = np.zeros_like(slopes) if rate is None else -rate * slopes * apart
    h11 = (across * v**2 + along * u**2).sum(axis=1)
    h22 = (across * u**2 + along * v**2).sum(axis=1)
    h12 = ((along - across) * u * v).sum(axis=1)
    determinant = h11 * h22 - h12**2
    curved = (h11 > 0) & (determinant > 1e-12 * h11 * h22) & (held == 0)
    scale = np.divide(strength, determinant, out=np.zeros_like(strength), where=curved)
    newton = scale[:, None] * (h22[:, None] * ahead - h12[:, None] * aside)
    # A long step says that the quadratic which it trusts does not hold that far.
    trusted = curved & (np.einsum("sd,sd->s", newton, newton) < 0.25)
    return np.where(trusted[:, None], newton, weiszfeld), weiszfeld


def _walked(here: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where one arrives from places (s, 3) along the great circle of tangent vectors (s, 3)."""
    angle = np.sqrt(np.einsum("sd,sd->s", steps, steps))[:, None]
    heading = np.divide(steps, angle, out=np.zeros_like(steps), where=angle > 0)
    moved = np.cos(angle) * here + np.sin(angle) * heading
    return moved / np.sqrt(np.einsum("sd,sd->s", moved, moved))[:, None]


def _sums(
    places: NDArray[np.float64], points: NDArray[np.float64], weights: NDArray[np.float64], rate: float | None
) -> NDArray[np.float64]:
    """(s,) weighted sums at places (s, 3) over points (s, k, 3); by chords, which are exact for what is near."""
    chords = points - places[:, None, :]
    halves = np.sqrt(np.einsum("skd,skd->sk", chords, chords)) / 2
    return np.einsum("sk,sk->s", weights, _phi(2 * np.arcsin(np.minimum(halves, 1.0)), rate))


def _phi(distances: NDArray[np.float64], rate: float | None) -> NDArray[np.float64]:
    return distances if rate is None else -np.exp(-rate * distances) / rate
