"""Distances on the sphere, on tensors, in float64.

Coordinates are (n, 2) tensors of degrees, [latitude, longitude]; the Earth is `geoinfer.geodesy`'s sphere of 6371 km.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from geoinfer.geodesy import EARTH_RADIUS_KM
from trainer.losses.pairs import check_shape

if TYPE_CHECKING:
    from torch import Tensor


def to_unit_vectors(coordinates: Tensor) -> Tensor:
    """(n, 2) degrees to (n, 3) float64 unit vectors: x to (0, 0), y to (0, 90 E), z to the north pole.

    Raises:
        ValueError: the shape is not (n, 2), or the coordinates are not floats.
    """
    check_shape("coordinates", coordinates, (None, 2), "latitude and longitude in degrees")
    if not coordinates.is_floating_point():
        raise ValueError(f"coordinates of shape {tuple(coordinates.shape)} are {coordinates.dtype}; expected float64")
    latitude, longitude = torch.deg2rad(coordinates.double()).unbind(1)
    return torch.stack([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()], 1)


def chord_lengths(first: Tensor, second: Tensor) -> Tensor:
    """Straight-line distance through a sphere of radius 1 between coordinates (n, 2) and (c, 2), as (n, c) float64.

    It grows with the great-circle distance, so it orders pairs as that does, without trigonometry for every pair. Made
    of differences and not of dot products, which lose half the digits of points close together: points at the same
    coordinates are exactly 0 apart.
    """
    return torch.cdist(to_unit_vectors(first), to_unit_vectors(second), compute_mode="donot_use_mm_for_euclid_dist")


def chord_of_km(distance_km: float) -> float:
    """The length in `chord_lengths` of a great-circle distance; 2, the diameter, from half the circumference on."""
    return 2 * math.sin(min(distance_km / EARTH_RADIUS_KM, math.pi) / 2)


def great_circle_km(first: Tensor, second: Tensor) -> Tensor:
    """Great-circle distance in km between coordinates (n, 2) and (c, 2) of degrees, as (n, c) float64.

    Good to a micrometre, except near the antipode, where the arc sine of almost 1 leaves it good to a metre.
    """
    # Rounding can carry a chord a hair above the diameter, where arcsin would answer NaN.
    return chord_lengths(first, second).div_(2).clamp_(max=1.0).asin_().mul_(2 * EARTH_RADIUS_KM)


def central_angles(first: Tensor, second: Tensor) -> Tensor:
    """The angle between the vectors of each row of two (n, 3) tensors, (n,) radians within 0 to pi.

    From sine and cosine both, arctan2(|a x b|, a . b): value and gradient keep their digits at 0 and at pi, where the
    arc cosine of a dot product has neither. Where the vectors are exactly parallel, and the gradient has no direction,
    it is zero.
    """
    sine = torch.linalg.vector_norm(torch.linalg.cross(first, second), dim=1)
    return torch.atan2(sine, (first * second).sum(1))
