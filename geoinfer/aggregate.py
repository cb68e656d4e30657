"""From the neighbours of a query to one place on the Earth.

Three ways, all of them on the sphere:

- `top1`: the place of the most similar reference.
- `mean`: the geographic mean of the k neighbours, weighted by similarity (the founding paper's second algorithm).
- `density`: the mode of a von Mises-Fisher kernel density over the k neighbours, weighted by the exponential of the
  similarity: neighbours that are about as similar vote, and one that stands out decides alone. Where the mean of Lisbon
  and Sydney is an ocean, the mode is in one of the two. (The density is that of "Revisiting IM2GPS in the
  Deep Learning Era", arXiv 1705.04838, with the sphere's own kernel in place of a planar Gaussian.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.answer import DEFAULT_K, DEFAULT_METHOD, METHODS, Method
from geoinfer.errors import UsageError
from geoinfer.geodesy import EARTH_RADIUS_KM, from_unit_vectors, spherical_mean, to_unit_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BANDWIDTH_KM", "DEFAULT_K", "DEFAULT_METHOD", "METHODS", "TEMPERATURE", "Method", "aggregate"]

BANDWIDTH_KM: Final = 200.0
"""Standard deviation of the density's kernel: about what tells one region of a country from another."""

TEMPERATURE: Final = 0.05
"""What counts as about as similar in the density: a neighbour less similar by this much weighs e times less."""

_KAPPA: Final = (EARTH_RADIUS_KM / BANDWIDTH_KM) ** 2
_STARTS: Final = 10
_QUERIES_AT_ONCE: Final = 128
_ITERATIONS: Final = 100
_CONVERGED: Final = 1e-9  # of a unit vector: about a centimetre on the Earth


def aggregate(
    coordinates: NDArray[np.float64], similarities: NDArray[np.float32], method: Method
) -> NDArray[np.float64]:
    """One place for each query.

    Args:
        coordinates: (q, k, 2) degrees of the neighbours, the most similar first; k at least 1.
        similarities: (q, k) float32, descending.
        method: `top1`, `mean` or `density`.

    Returns:
        (q, 2) float64 degrees.

    Raises:
        UsageError: the method is none of these.
    """
    if method == "top1":
        return coordinates[:, 0].copy()
    if method == "mean":
        # Where the neighbours cancel out (antipodes), the mean is undefined and the heaviest of them stands in.
        return spherical_mean(coordinates, similarity_weights(similarities))[0]
    if method == "density":
        weights = exponential_weights(similarities)
        modes = np.empty((len(weights), 2))
        # Every pair of neighbours of every query is looked at, so not of all queries at once.
        for start in range(0, len(weights), _QUERIES_AT_ONCE):
            some = slice(start, start + _QUERIES_AT_ONCE)
            modes[some] = _density_mode(coordinates[some], weights[some])
        return modes
    raise UsageError(f"--aggregate {method}: expected one of {', '.join(METHODS)}")


def similarity_weights(similarities: NDArray[np.float32]) -> NDArray[np.float64]:
    """(q, k) similarities to weights of the same shape that sum to 1 in each row: proportional to the similarity.

    Negative similarities weigh nothing; a row without a positive one is weighted evenly.
    """
    weights = np.maximum(similarities.astype(np.float64), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    even = np.full_like(weights, 1.0 / weights.shape[1])
    return np.divide(weights, total, out=even, where=total > 0)


def exponential_weights(similarities: NDArray[np.float32]) -> NDArray[np.float64]:
    """(q, k) similarities to weights of the same shape that sum to 1 in each row: exp(similarity / temperature)."""
    s = similarities.astype(np.float64)
    weights = np.exp((s - s.max(axis=1, keepdims=True)) / TEMPERATURE)
    return weights / weights.sum(axis=1, keepdims=True)


def _density_mode(coordinates: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean shift on the sphere from the neighbours where the density is highest; the highest peak reached is the mode.

    With the kernel exp(kappa (x . p - 1)) the density's gradient vanishes where x is the direction of the sum of the
    points weighted by their own kernel values; going there again and again climbs to a peak. Every peak has neighbours
    on its slopes, so climbing from all of them would find the mode for certain; of many, the densest few do.
    """
    points = to_unit_vectors(coordinates)
    queries = len(weights)
    at_neighbors = _density(points, points, weights)
    # Of equal densities the more similar neighbour comes first.
    starts = np.argsort(-np.round(at_neighbors, 12), axis=1, kind="stable")[:, :_STARTS]
    rows = np.repeat(np.arange(queries), starts.shape[1])
    peaks = points[rows, starts.ravel()]
    # A climb stops when it has arrived, so that an answer does not depend on which others are in the batch.
    climbing = np.arange(len(peaks))
    for _ in range(_ITERATIONS):
        here, there = peaks[climbing], points[rows[climbing]]
        pull = weights[rows[climbing]] * _kernel(np.einsum("sd,skd->sk", here, there))
        moved = np.einsum("sk,skd->sd", pull, there)
        # A neighbour of no weight, far from all others, has nowhere to climb to.
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        moved = np.divide(moved, length, out=here.copy(), where=length > 0)
        peaks[climbing] = moved
        climbing = climbing[np.abs(moved - here).max(axis=1) >= _CONVERGED]
        if len(climbing) == 0:
            break
    peaks = peaks.reshape(queries, starts.shape[1], 3)
    best = np.argmax(np.round(_density(peaks, points, weights), 9), axis=1)
    return from_unit_vectors(np.take_along_axis(peaks, best[:, None, None], axis=1)[:, 0])


def _density(
    where: NDArray[np.float64], points: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The density, up to a constant, of points (q, k, 3) at places (q, s, 3): (q, s)."""
    return np.einsum("qsk,qk->qs", _kernel(np.einsum("qsd,qkd->qsk", where, points)), weights)


def _kernel(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(_KAPPA * (cosines - 1.0))
