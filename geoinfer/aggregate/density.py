"""The mode of a von Mises-Fisher kernel density on the sphere.

The density is that of "Revisiting IM2GPS in the Deep Learning Era" (N. Vo, N. Jacobs, J. Hays, arXiv 1705.04838), with
the sphere's own kernel in place of a planar Gaussian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.geodesy import EARTH_RADIUS_KM, from_unit_vectors, to_unit_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STARTS: Final = 10
_ITERATIONS: Final = 100
_CONVERGED: Final = 1e-9  # of a unit vector: about a centimetre on the Earth


def density_mode(
    coordinates: NDArray[np.float64], weights: NDArray[np.float64], bandwidth_km: float
) -> NDArray[np.float64]:
    """Mean shift on the sphere from the neighbours where the density is highest; the highest peak reached is the mode.

    With the kernel exp(kappa (x . p - 1)) the density's gradient vanishes where x is the direction of the sum of the
    points weighted by their own kernel values; going there again and again climbs to a peak. Every peak has neighbours
    on its slopes, so climbing from all of them would find the mode for certain; of many, the densest few do.

    Args:
        coordinates: (q, k, 2) degrees.
        weights: (q, k), not negative.
        bandwidth_km: standard deviation of the kernel; kappa is the square of the Earth's radius over it.

    Returns:
        (q, 2) degrees.
    """
    kappa = (EARTH_RADIUS_KM / bandwidth_km) ** 2
    points = to_unit_vectors(coordinates)
    queries = len(weights)
    at_neighbors = _density(points, points, weights, kappa)
    # Of equal densities the more similar neighbour comes first.
    starts = np.argsort(-np.round(at_neighbors, 12), axis=1, kind="stable")[:, :_STARTS]
    rows = np.repeat(np.arange(queries), starts.shape[1])
    peaks = points[rows, starts.ravel()]
    # A climb stops when it has arrived, so that an answer does not depend on which others are in the batch.
    climbing = np.arange(len(peaks))
    for _ in range(_ITERATIONS):
        here, there = peaks[climbing], points[rows[climbing]]
        pull = weights[rows[climbing]] * _kernel(np.einsum("sd,skd->sk", here, there), kappa)
        moved = np.einsum("sk,skd->sd", pull, there)
        # A neighbour of no weight, far from all others, has nowhere to climb to.
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        moved = np.divide(moved, length, out=here.copy(), where=length > 0)
        peaks[climbing] = moved
        climbing = climbing[np.abs(moved - here).max(axis=1) >= _CONVERGED]
        if len(climbing) == 0:
            break
    peaks = peaks.reshape(queries, starts.shape[1], 3)
    best = np.argmax(np.round(_density(peaks, points, weights, kappa), 9), axis=1)
    return from_unit_vectors(np.take_along_axis(peaks, best[:, None, None], axis=1)[:, 0])


def _density(
    where: NDArray[np.float64], points: NDArray[np.float64], weights: NDArray[np.float64], kappa: float
) -> NDArray[np.float64]:
    """The density, up to a constant, of points (q, k, 3) at places (q, s, 3): (q, s)."""
    return np.einsum("qsk,qk->qs", _kernel(np.einsum("qsd,qkd->qsk", where, points), kappa), weights)


def _kernel(cosines: NDArray[np.float64], kappa: float) -> NDArray[np.float64]:
    exponents = cosines - 1.0
    exponents *= kappa
    return np.exp(exponents, out=exponents)
