"""Distances and means on the sphere, vectorised, in float64.

Coordinates are `(..., 2)` arrays of degrees, `[latitude, longitude]` in that order everywhere. The Earth is a sphere of
6371 km, the radius that the OpenStreetView-5M benchmark computes its metrics with.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS_KM: Final = 6371.0
HALF_CIRCUMFERENCE_KM: Final = math.pi * EARTH_RADIUS_KM
"""The largest great-circle distance there is."""

# Below this length a weighted sum of unit vectors has no direction worth the name: the points cancel out, as two
# antipodes do. 1e-6 of the total weight is a mean direction known to no better than about the rounding of the input.
_CANCELLED: Final = 1e-6


def as_coordinates(values: ArrayLike) -> NDArray[np.float64]:
    """Checks and returns coordinates as float64 of shape (n, 2), degrees, [latitude, longitude].

    Args:
        values: anything of shape (n, 2), or one pair of shape (2,).

    Raises:
        ValueError: the shape is another one, a value is NaN or infinite, a latitude is outside [-90, 90] or a
            longitude outside [-180, 180]; the message names the first bad row.
    """
    coordinates = np.asarray(values, dtype=np.float64)
    if coordinates.ndim == 1 and coordinates.shape == (2,):
        coordinates = coordinates[None, :]
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise ValueError(f"coordinates have shape {coordinates.shape}; expected (n, 2): latitude, longitude in degrees")
    # Written so that NaN, which compares false with everything, counts as bad.
    good = (np.abs(coordinates[:, 0]) <= 90.0) & (np.abs(coordinates[:, 1]) <= 180.0)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        latitude, longitude = coordinates[row]
        raise ValueError(
            f"coordinates row {row} is ({latitude:g}, {longitude:g}); latitude must be within [-90, 90] and longitude "
            "within [-180, 180], both finite"
        )
    return coordinates


def haversine_km(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Great-circle distance in km between coordinates `a` and `b`.

    Args:
        a: (..., 2) degrees.
        b: (..., 2) degrees, broadcast against `a`.

    Returns:
        float64 of the broadcast shape without the last axis.

    The haversine formula keeps full precision for points close together, where the arc cosine of a dot product loses
    half its digits (R. W. Sinnott, "Virtues of the Haversine", Sky and Telescope 68, 1984).
    """
    first, second = np.deg2rad(np.asarray(a, np.float64)), np.deg2rad(np.asarray(b, np.float64))
    half_dlat = (second[..., 0] - first[..., 0]) / 2
    half_dlon = (second[..., 1] - first[..., 1]) / 2
    h = np.sin(half_dlat) ** 2 + np.cos(first[..., 0]) * np.cos(second[..., 0]) * np.sin(half_dlon) ** 2
    # Rounding can carry h a hair above 1 at antipodes, where arcsin would answer NaN.
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0)))


def to_unit_vectors(coordinates: ArrayLike) -> NDArray[np.float64]:
    """(..., 2) degrees to (..., 3) unit vectors: x to (0, 0), y to (0, 90 E), z to the north pole."""
    radians = np.deg2rad(np.asarray(coordinates, np.float64))
    latitude, longitude = radians[..., 0], radians[..., 1]
    return np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=-1
    )


def from_unit_vectors(vectors: ArrayLike) -> NDArray[np.float64]:
    """(..., 3) vectors of any positive length to (..., 2) degrees, longitude within [-180, 180]."""
    v = np.asarray(vectors, np.float64)
    latitude = np.arctan2(v[..., 2], np.hypot(v[..., 0], v[..., 1]))
    longitude = np.arctan2(v[..., 1], v[..., 0])
    return np.rad2deg(np.stack([latitude, longitude], axis=-1))


def spherical_mean(coordinates: ArrayLike, weights: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Weighted geographic mean: the direction of the weighted sum of unit vectors.

    A mean of latitudes and longitudes fails across 180 degrees and at the poles; this does not.

    Args:
        coordinates: (..., k, 2) degrees.
        weights: (..., k), not negative.

    Returns:
        means: (..., 2) degrees. Where the points cancel out (two antipodes of equal weight, say) no mean exists, and
            the point of the largest weight, the first of them, stands in.
        defined: (...) bool, False where it had to stand in.
    """
    w = np.asarray(weights, np.float64)
    total = np.sum(w[..., None] * to_unit_vectors(coordinates), axis=-2)
    defined = np.linalg.norm(total, axis=-1) > _CANCELLED * np.sum(w, axis=-1)
    heaviest = np.argmax(w, axis=-1)[..., None, None]
    stand_in = np.take_along_axis(np.asarray(coordinates, np.float64), heaviest, axis=-2)[..., 0, :]
    return np.where(defined[..., None], from_unit_vectors(total), stand_in), defined


def destination(coordinates: ArrayLike, bearing_deg: ArrayLike, distance_km: ArrayLike) -> NDArray[np.float64]:
    """Where one arrives from `coordinates` (..., 2) going `distance_km` at `bearing_deg` (0 north, 90 east).

    Returns:
        (..., 2) degrees, longitude within [-180, 180].
    """
    start = np.deg2rad(np.asarray(coordinates, np.float64))
    latitude, longitude = start[..., 0], start[..., 1]
    bearing = np.deg2rad(np.asarray(bearing_deg, np.float64))
    angle = np.asarray(distance_km, np.float64) / EARTH_RADIUS_KM
    # Tangent basis at the start (north, east); walking along the great circle is a rotation in the plane they span.
    origin = to_unit_vectors(np.asarray(coordinates, np.float64))
    north = np.stack(
        [-np.sin(latitude) * np.cos(longitude), -np.sin(latitude) * np.sin(longitude), np.cos(latitude)], axis=-1
    )
    east = np.stack([-np.sin(longitude), np.cos(longitude), np.zeros_like(longitude)], axis=-1)
    heading = np.cos(bearing)[..., None] * north + np.sin(bearing)[..., None] * east
    return from_unit_vectors(np.cos(angle)[..., None] * origin + np.sin(angle)[..., None] * heading)
