"""How many points lie in each country and on each continent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.places.places import continent_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.places.places import Places

COUNTED: Final = 1_000_000
"""Of more points so many are counted, which stand for all."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Points by country and continent.

    Attributes:
        total: number of points.
        counted: how many of them were looked at; fewer than `total` where a sample stands for all.
        countries: code to the number of counted points, most first.
        continents: name to the number of counted points, most first; empty for countries that are not known.
    """

    total: int
    counted: int
    countries: dict[str, int]
    continents: dict[str, int]


def measure_coverage(
    places: Places, coordinates: NDArray[np.float64], *, most: int = COUNTED, seed: int = 0
) -> Coverage:
    """Counts points by country, that of the nearest city; see `geoinfer.places.places` for where that is wrong.

    Args:
        places: to ask.
        coordinates: (n, 2) degrees, perhaps mapped from a file; n may be 0.
        most: of more points than this, one of each of so many stretches of rows is drawn at random.
        seed: of what is drawn.

    Raises:
        ValueError: as `geoinfer.geodesy.as_coordinates`.
    """
    total = len(coordinates)
    if total > most:
        # One row of each stretch: all different, and in the order in which they lie in the file.
        edges = np.arange(most + 1) * total // most
        within = np.random.default_rng(seed).random(most)
        rows = edges[:-1] + (within * np.diff(edges)).astype(np.int64)
        coordinates = coordinates[rows]
    countries = places.count(coordinates)
    continents: Counter[str] = Counter()
    for code, number in countries.items():
        continents[continent_of(code)] += number
    return Coverage(total, len(coordinates), countries, dict(continents.most_common()))
