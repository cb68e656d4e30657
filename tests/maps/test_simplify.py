from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.geodesy import haversine_km
from geoinfer.maps.base import map_window
from geoinfer.maps.countries import country_land, country_polygons
from geoinfer.maps.simplify import simplified

coordinate = st.integers(-50, 50).map(float)
lines = st.lists(st.tuples(coordinate, coordinate), min_size=2, max_size=30)


def from_piece(point: tuple[float, float], start: tuple[float, float], end: tuple[float, float]) -> float:
    """The distance of a point from a piece of a line, by looking at many of its points and the plumb line's foot."""
    (x, y), (ax, ay), (bx, by) = point, start, end
    length2 = (bx - ax) ** 2 + (by - ay) ** 2
    share = 0.0 if length2 == 0 else max(0.0, min(1.0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length2))
    return math.hypot(ax + share * (bx - ax) - x, ay + share * (by - ay) - y)


@given(lines, st.floats(0, 40))
def test_no_point_is_far_from_what_is_left(line: list[tuple[float, float]], tolerance: float) -> None:
    left = [tuple(point) for point in simplified(np.array(line), tolerance).tolist()]
    positions = iter(range(len(line)))
    assert all(any(line[position] == point for position in positions) for point in left)  # in their order
    assert left[0] == line[0]
    assert left[-1] == line[-1]
    pieces = list(itertools.pairwise(left)) or [(left[0], left[0])]
    for point in line:
        assert min(from_piece(point, *piece) for piece in pieces) <= tolerance + 1e-9


def test_by_hand() -> None:
    line = np.array([[0.0, 0.0], [1.0, 0.1], [2.0, 0.0], [3.0, 5.0], [4.0, 0.0]])
    assert simplified(line, 0.5).tolist() == [[0, 0], [2, 0], [3, 5], [4, 0]]
    assert simplified(line, 10.0).tolist() == [[0, 0], [4, 0]]
    assert simplified(line, 0.0).tolist() == line.tolist()
    island = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert simplified(island, 2.0).tolist() == [[0, 0]]


def area(polygon: np.ndarray) -> float:
    """In square degrees, by the shoelace formula."""
    x, y = polygon[:, 1], polygon[:, 0]
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2


def test_the_land_is_all_countries_together() -> None:
    countries = sum(area(polygon) for polygons in country_polygons().values() for polygon in polygons)
    land = sum(area(polygon) for polygon in country_land())
    assert abs(land / countries - 1) < 0.01


def test_one_photo_has_surroundings() -> None:
    place = np.array([[-27.1, -109.4]])
    narrow, wide = map_window(place), map_window(place, smallest_deg=30.0)
    for window, least in ((narrow, 8.0), (wide, 30.0)):
        assert window.north - window.south >= least
        assert window.south < -27.1 < window.north
        assert window.west < -109.4 < window.east
    assert narrow.north - narrow.south < 30
    corner = [wide.north, wide.west]
    assert haversine_km(place[0], corner) > 1500
