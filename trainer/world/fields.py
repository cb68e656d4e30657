"""What a place of the toy world looks like: smooth random fields over the sphere, climate by latitude, and regions.

Nothing here knows of pictures. `look_at` answers with numbers between which the eye can tell; `trainer.world.render`
paints them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.geodesy import EARTH_RADIUS_KM, to_unit_vectors
from geoinfer.maps import land_share

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

CONTINENTAL_KM: Final = (2500.0, 12000.0)
REGIONAL_KM: Final = (500.0, 1500.0)
LOCAL_KM: Final = (120.0, 200.0)

# (south, north, west, east) in degrees. Coarse on purpose: a box or two a country.
_DRIVES_LEFT: Final = (
    (49.8, 61.0, -11.0, 1.6),  # Great Britain and Ireland
    (5.0, 29.5, 66.5, 92.5),  # India, Sri Lanka, Bangladesh
    (24.0, 36.8, 61.5, 74.0),  # Pakistan
    (5.5, 20.0, 97.5, 105.0),  # Thailand
    (-11.0, 7.0, 95.0, 119.5),  # Malaysia, western Indonesia
    (-11.0, 0.0, 119.5, 155.0),  # eastern Indonesia, Papua
    (30.5, 45.6, 129.5, 146.0),  # Japan
    (-48.0, -11.0, 112.0, 179.0),  # Australia, New Zealand
    (-35.0, -17.5, 11.5, 41.0),  # southern Africa
    (-17.5, -8.0, 22.0, 40.8),  # Zambia, Malawi, northern Mozambique
    (-11.5, 4.5, 29.5, 41.8),  # Tanzania, Kenya, Uganda
)
_AMERICAS: Final = ((-57.0, 84.0, -168.5, -52.0), (-57.0, 13.0, -52.0, -34.0))
_DIAMOND_SIGNS: Final = (*_AMERICAS, (51.3, 55.5, -10.7, -5.4), (-48.0, -11.0, 112.0, 179.0))
_WOODEN_POLES: Final = (*_AMERICAS[:1], (-48.0, -11.0, 112.0, 179.0), (49.8, 71.5, -25.0, 31.0))


@dataclass(frozen=True, slots=True)
class Look:
    """What coordinates decide, before weather, hour and camera have their say. Arrays of n rows.

    Attributes:
        latitude: degrees, for the sun.
        soil: (n, 3) colour within [0, 1], as all colours.
        grass: (n, 3) colour of low vegetation.
        leaves: (n, 3) colour of trees.
        roofs: (n, 3) colour.
        sea: (n, 3) colour.
        cover: share of the ground that grass covers.
        trees: how many of the places for a tree hold one, [0, 1].
        tree_height: in heights of the camera.
        conifer: how much trees are cones, [0, 1]; with `palm` and the rest (round crowns) it sums to 1.
        palm: how much trees are bare stems with a tuft.
        relief: height of the hills on the horizon, in half pictures.
        snow: share of the ground under snow in the middle of winter, [0, 1].
        coast: 0 inland, 1 where the sea fills the horizon.
        furrows: strength of field lines, [0, 1].
        furrow_angle: their direction in radians; only its double means anything.
        asphalt: brightness of the road.
        road_width: relative to the usual.
        drives_left: bool.
        yellow_lines: bool.
        diamond_signs: bool; round ones elsewhere.
        wooden_poles: bool; concrete elsewhere.
    """

    latitude: Floats
    soil: Floats
    grass: Floats
    leaves: Floats
    roofs: Floats
    sea: Floats
    cover: Floats
    trees: Floats
    tree_height: Floats
    conifer: Floats
    palm: Floats
    relief: Floats
    snow: Floats
    coast: Floats
    furrows: Floats
    furrow_angle: Floats
    asphalt: Floats
    road_width: Floats
    drives_left: NDArray[np.bool_]
    yellow_lines: NDArray[np.bool_]
    diamond_signs: NDArray[np.bool_]
    wooden_poles: NDArray[np.bool_]


def waves(vectors: Floats, name: str, world_seed: int, lengths_km: tuple[float, float], count: int = 8) -> Floats:
    """A smooth random field: plane waves through the Earth, read off at its surface.

    On the unit vectors there is neither a seam at the antimeridian nor a knot at the poles.

    Args:
        vectors: (n, 3) unit vectors.
        name: which field; each name has waves of its own.
        world_seed: which world.
        lengths_km: shortest and longest wavelength; drawn evenly in their logarithm.
        count: how many waves.

    Returns:
        (n,) of mean about 0 and variance about 1.
    """
    rng = np.random.default_rng([world_seed, zlib.crc32(name.encode()), round(lengths_km[0])])
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length_km = np.exp(rng.uniform(np.log(lengths_km[0]), np.log(lengths_km[1]), count))
    phase = rng.uniform(0, 2 * np.pi, count)
    total = np.zeros(len(vectors))
    # Not a matrix product: that rounds differently with the number of rows, and a photo must not depend on its batch.
    for (x, y, z), frequency, shift in zip(direction, 2 * np.pi * EARTH_RADIUS_KM / length_km, phase, strict=True):
        total += np.cos(frequency * (vectors[:, 0] * x + vectors[:, 1] * y + vectors[:, 2] * z) + shift)
    return total * np.sqrt(2.0 / count)


def in_boxes(coordinates: Floats, boxes: tuple[tuple[float, float, float, float], ...]) -> NDArray[np.bool_]:
    """(n,) bool: whether any of the (south, north, west, east) boxes holds the point."""
    inside = np.zeros(len(coordinates), bool)
    latitude, longitude = coordinates[:, 0], coordinates[:, 1]
    for south, north, west, east in boxes:
        inside |= (latitude >= south) & (latitude <= north) & (longitude >= west) & (longitude <= east)
    return inside


def drives_left(coordinates: Floats) -> NDArray[np.bool_]:
    """(n,) bool: whether traffic keeps to the left there."""
    return in_boxes(coordinates, _DRIVES_LEFT)


def look_at(coordinates: ArrayLike, world_seed: int) -> Look:
    """The look of places.

    Args:
        coordinates: (n, 2) degrees, [latitude, longitude].
        world_seed: which world; the regions are the same in each.
    """
    points = np.asarray(coordinates, np.float64)
    vectors = to_unit_vectors(points)
    latitude = points[:, 0]
    away = np.abs(latitude)

    def field(name: str, regional: float = 0.35) -> Floats:
        broad = waves(vectors, name, world_seed, CONTINENTAL_KM)
        return np.sqrt(1 - regional**2) * broad + regional * waves(vectors, name, world_seed, REGIONAL_KM)

    def local(name: str) -> Floats:
        return waves(vectors, name, world_seed, LOCAL_KM)

    def bell(centre: float, width: float) -> Floats:
        return np.exp(-0.5 * ((away - centre) / width) ** 2)

    warm = bell(0.0, 18.0)  # red soils and broad leaves
    dry = np.clip(0.9 * bell(26.0, 8.0) + 0.35 * field("dry"), 0.0, 1.0)
    cold = _rise((away - 56.0 + 4.0 * field("cold")) / 10.0)

    soil = _mix([0.42, 0.34, 0.26], [0.62, 0.28, 0.16], warm)
    soil = soil + dry[:, None] * (np.array([0.80, 0.66, 0.45]) - soil)
    soil = soil + cold[:, None] * (np.array([0.40, 0.39, 0.37]) - soil)
    soil = soil + field("soil hue")[:, None] * [0.09, 0.0, -0.09] + field("soil light")[:, None] * [0.10, 0.10, 0.10]
    grass = _mix([0.30, 0.44, 0.17], [0.60, 0.56, 0.25], dry)
    grass = (
        grass + field("grass hue")[:, None] * [0.12, 0.0, -0.04] + field("grass light")[:, None] * [0.05, 0.09, 0.03]
    )
    leaves = _mix([0.20, 0.36, 0.12], [0.10, 0.26, 0.16], cold)
    leaves = leaves + field("leaf hue")[:, None] * [0.09, 0.0, 0.05] + field("leaf light")[:, None] * [0.05, 0.07, 0.03]
    roofs = _mix([0.40, 0.38, 0.40], [0.70, 0.30, 0.20], _rise(1.5 * field("roofs")))

    conifer = _rise((away - 45.0) / 8.0 + 1.6 * field("conifer"))
    palm = (1.0 - conifer) * _rise((28.0 - away) / 6.0 + 1.6 * field("palm"))
    return Look(
        latitude=latitude,
        soil=np.clip(soil, 0.05, 0.95),
        grass=np.clip(grass, 0.05, 0.95),
        leaves=np.clip(leaves, 0.04, 0.9),
        roofs=np.clip(roofs, 0.05, 0.95),
        sea=_mix([0.10, 0.22, 0.32], [0.08, 0.50, 0.55], bell(0.0, 22.0)),
        cover=np.clip(0.60 - 0.6 * dry + 0.22 * field("cover") + 0.08 * local("cover"), 0.0, 1.0),
        trees=np.clip(0.55 - 0.5 * dry - 0.3 * _rise((away - 68.0) / 4.0) + 0.25 * field("trees"), 0.03, 1.0),
        tree_height=np.clip(3.2 * np.exp(0.32 * field("tree height")), 1.2, 7.0),
        conifer=conifer,
        palm=palm,
        relief=np.clip(0.12 + 0.13 * field("relief", 0.6), 0.0, 0.5),
        snow=_rise((away - 55.0 + 5.0 * field("snow")) / 4.0),
        coast=np.clip((0.95 - land_share(points)) / 0.4, 0.0, 1.0),
        furrows=np.clip(0.35 + 0.45 * field("furrows") + 0.1 * local("furrows"), 0.0, 1.0) * (1.0 - cold),
        furrow_angle=0.5 * np.arctan2(field("furrow sine") + 0.2 * local("furrow sine"), field("furrow cosine")),
        asphalt=np.clip(0.36 + 0.07 * field("asphalt"), 0.18, 0.6),
        road_width=np.exp(0.14 * field("road width")),
        drives_left=drives_left(points),
        yellow_lines=in_boxes(points, _AMERICAS),
        diamond_signs=in_boxes(points, _DIAMOND_SIGNS),
        wooden_poles=in_boxes(points, _WOODEN_POLES),
    )


def _rise(values: Floats) -> Floats:
    """A soft step from 0 to 1."""
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def _mix(none: list[float], full: list[float], share: Floats) -> Floats:
    """(n, 3) colours between two, by `share` (n,)."""
    return np.array(none) + share[:, None] * (np.array(full) - np.array(none))
