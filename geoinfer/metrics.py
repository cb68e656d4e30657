"""Distances, accuracies and scores as three projects of the field compute them.

| | Earth | formula | within R km | GeoScore |
|---|---|---|---|---|
| `osv5m` | sphere, 6371 km | haversine by arctan2 | d < R | 5000 exp(-d / 1492.7 km) |
| `pigeon` | sphere, 6378.137 km | haversine by arcsin | d < R | the same, rounded photo by photo |
| `geoclip` | WGS84 ellipsoid | geodesic | d <= R | none of its own: as `osv5m` |

Read in the projects' own code: `metrics/utils.py` and `metrics/distance_based.py` of gastruc/osv5m,
`preprocessing/geo_utils.py`, `evaluation/metrics.py` and `config.py` of LukasHaas/PIGEON, `geoclip/train/eval.py` of
VicenteVivan/geo-clip, which asks geopy and through it geographiclib. (GeoEstimation counts `d <= R` on the sphere of
6371 km.) All of them average over all photos; the median is ours but in PIGEON, which takes NumPy's, as we do: of an
even number the mean of the two middle ones.

Where the results are not theirs to the last bit:

- OSV-5M computes in float32, radians included, which step by 2.4e-7 beyond 2: its distances are off by a metre or two,
  half the Earth away by kilometres. Here everything is float64.
- On the spheres, rounding may carry the haversine a hair above 1 at antipodes, where their code answers NaN. Here it is
  half the circumference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.answer import GEOSCORE_SCALE_KM
from geoinfer.errors import MissingPackageError, UsageError
from geoinfer.geodesy import EARTH_RADIUS_KM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

RADII_KM: Final = (1, 25, 200, 750, 2500)
"""Street, city, region, country, continent: the radii of all three projects."""

MOST_POINTS: Final = 5000
"""The GeoScore of an answer without error."""

_WGS84_KM: Final = 6378.137
_WGS84_FLATTENING: Final = 1 / 298.257223563
_HALF_MERIDIAN_KM: Final = 20003.931458625
"""From pole to pole along WGS84: no two points are farther apart (C. F. F. Karney, J. Geodesy 87, 2013)."""


@dataclass(frozen=True, slots=True)
class Convention:
    """One project's way of measuring.

    Attributes:
        name: the word for `--convention`.
        title: the project's name.
        source: the files of its code that say so.
        earth_radius_km: of the sphere; None for geodesics on WGS84.
        inclusive: whether an error of exactly R km is within R km.
        score_rounded: whether each photo's GeoScore is rounded to whole points (halves to even) before the mean.
    """

    name: str
    title: str
    source: str
    earth_radius_km: float | None
    inclusive: bool
    score_rounded: bool

    @property
    def farthest_km(self) -> float:
        """The largest distance there is: half the way around the Earth."""
        return _HALF_MERIDIAN_KM if self.earth_radius_km is None else math.pi * self.earth_radius_km

    @property
    def description(self) -> str:
        """What it means, in a sentence without its full stop."""
        earth = (
            "geodesics on WGS84"
            if self.earth_radius_km is None
            else f"great-circle distances on a sphere of {self.earth_radius_km:.7g} km"
        )
        rounded = ", rounded photo by photo" if self.score_rounded else ""
        return (
            f"{self.title}'s definitions: {earth}, within R km is d {'≤' if self.inclusive else '<'} R, "
            f"GeoScore {MOST_POINTS} exp(-d / {GEOSCORE_SCALE_KM:g} km){rounded}"
        )


OSV5M: Final = Convention(
    "osv5m", "OSV-5M", "gastruc/osv5m: metrics/utils.py, metrics/distance_based.py", EARTH_RADIUS_KM, False, False
)
PIGEON: Final = Convention(
    "pigeon", "PIGEON", "LukasHaas/PIGEON: preprocessing/geo_utils.py, evaluation/metrics.py", _WGS84_KM, False, True
)
GEOCLIP: Final = Convention("geoclip", "GeoCLIP", "VicenteVivan/geo-clip: geoclip/train/eval.py", None, True, False)

CONVENTIONS: Final[Mapping[str, Convention]] = MappingProxyType({c.name: c for c in (OSV5M, PIGEON, GEOCLIP)})
DEFAULT_CONVENTION: Final = OSV5M.name


def convention(name: str) -> Convention:
    """The convention of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CONVENTIONS:
        raise UsageError(f"--convention {name}: expected one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def distances_km(truth: ArrayLike, predicted: ArrayLike, convention: Convention) -> NDArray[np.float64]:
    """How far each prediction is off.

    Args:
        truth: (n, 2) degrees, [latitude, longitude].
        predicted: (n, 2) degrees; or (2,), one place for all.
        convention: see the head of this module.

    Returns:
        (n,) float64 km; NaN where a coordinate is NaN.

    Raises:
        MissingPackageError: geodesics need the extra `report`.
    """
    first, second = np.broadcast_arrays(np.asarray(truth, np.float64), np.asarray(predicted, np.float64))
    if convention.earth_radius_km is None:
        return _geodesics_km(first, second)
    one, two = np.deg2rad(first), np.deg2rad(second)
    half_dlat, half_dlon = (two[..., 0] - one[..., 0]) / 2, (two[..., 1] - one[..., 1]) / 2
    h = np.sin(half_dlat) ** 2 + np.cos(one[..., 0]) * np.cos(two[..., 0]) * np.sin(half_dlon) ** 2
    h = np.clip(h, 0.0, 1.0)
    # In exact arithmetic the two are one; each is written as its project writes it, for distances at a radius.
    if convention == PIGEON:
        return np.asarray(convention.earth_radius_km * 1000 * (2 * np.arcsin(np.sqrt(h))) / 1000)
    return np.asarray(convention.earth_radius_km * (2 * np.arctan2(np.sqrt(h), np.sqrt(1 - h))))


def within(distances_km: ArrayLike, radius_km: float, convention: Convention) -> NDArray[np.bool_]:
    """Whether each distance counts as within the radius; NaN does not. Any shape."""
    distances = np.asarray(distances_km, np.float64)
    return np.asarray(distances <= radius_km if convention.inclusive else distances < radius_km)


def accuracy_percent(distances_km: ArrayLike, radius_km: float, convention: Convention) -> float:
    """The share of distances (n,) within a radius, in percent; NaN counts as beyond it. NaN of none."""
    inside = within(distances_km, radius_km, convention)
    return 100.0 * float(inside.mean()) if inside.size else math.nan


def geoscores(distances_km: ArrayLike, convention: Convention) -> NDArray[np.float64]:
    """Each distance's GeoScore, 0 to 5000; the metric is their mean. Any shape; NaN stays NaN."""
    points = MOST_POINTS * np.exp(-np.asarray(distances_km, np.float64) / GEOSCORE_SCALE_KM)
    return np.asarray(np.round(points) if convention.score_rounded else points)


def _geodesics_km(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along WGS84 (C. F. F. Karney, "Algorithms for geodesics", J. Geodesy 87, 2013), in km as geopy does."""
    try:
        from geographiclib.geodesic import Geodesic
    except ImportError as error:
        raise MissingPackageError(
            "--convention geoclip measures along the ellipsoid, which needs the package geographiclib, which is not "
            "installed",
            hint="pip install 'geoinfer-toolkit[report]'",
        ) from error
    earth = Geodesic(_WGS84_KM, _WGS84_FLATTENING)
    shape = first.shape[:-1]
    found = np.full(math.prod(shape), np.nan)
    pairs = np.concatenate([first, second], axis=-1).reshape(-1, 4)
    for row in np.flatnonzero(np.isfinite(pairs).all(axis=1)).tolist():
        found[row] = earth.Inverse(*pairs[row].tolist(), Geodesic.DISTANCE)["s12"]
    return found.reshape(shape)
