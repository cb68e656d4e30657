"""Land: places whose side of the coast anybody can look up, and what holds of any outline on a sphere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.geodesy import destination, from_unit_vectors
from geoinfer.maps import is_land, land_polygons, land_share

# Well inland, since the outlines are true to some 20 km only.
LAND = {
    "Paris": (48.86, 2.35),
    "Moscow": (55.75, 37.62),
    "Beijing": (39.90, 116.40),
    "Delhi": (28.61, 77.21),
    "Nairobi": (-1.29, 36.82),
    "Johannesburg": (-26.20, 28.05),
    "Denver": (39.74, -104.99),
    "Brasilia": (-15.79, -47.88),
    "Alice Springs": (-23.70, 133.88),
    "Bilibino, Chukotka": (68.05, 166.44),
    "Egvekinot, beyond 180": (66.90, -178.00),
    "Madagascar": (-19.00, 47.00),
    "Iceland": (64.80, -18.50),
    "New Zealand": (-44.00, 170.50),
    "Borneo": (0.50, 114.00),
    "Greenland": (75.00, -40.00),
    "South pole": (-90.0, 0.0),
    "Antarctica at 180": (-85.0, 180.0),
    "Antarctica at -180": (-85.0, -180.0),
    "Vanua Levu, Fiji": (-16.60, 179.00),
}
SEA = {
    "Mid Atlantic": (30.0, -40.0),
    "Pacific at 180": (0.0, 180.0),
    "Pacific at -180": (0.0, -180.0),
    "Bering Sea": (58.0, 180.0),
    "North pole": (90.0, 0.0),
    "Gulf of Guinea": (0.0, 0.0),
    "Mediterranean": (34.0, 19.0),
    "Black Sea": (43.0, 34.0),
    "Caspian Sea": (41.5, 51.0),
    "Hudson Bay": (60.0, -86.0),
    "Gulf of Mexico": (25.0, -90.0),
    "Red Sea": (20.0, 38.5),
    "North Sea": (56.0, 3.0),
    "Baltic": (57.5, 19.9),
    "Sea of Japan": (40.0, 135.0),
    "Bay of Bengal": (15.0, 88.0),
    "Drake Passage": (-59.0, -65.0),
    "Tasman Sea": (-38.0, 162.0),
}


@pytest.mark.parametrize("name", LAND)
def test_known_land(name):
    assert is_land([LAND[name]])[0]


@pytest.mark.parametrize("name", SEA)
def test_known_sea(name):
    assert not is_land([SEA[name]])[0]


def test_share_of_land_is_that_of_the_earth():
    # 149 of 510 million km2; points even over the sphere on a Fibonacci lattice.
    n = 40_000
    z = 1 - (2 * np.arange(n) + 1) / n
    turn = np.pi * (1 + 5**0.5) * np.arange(n)
    flat = np.sqrt(1 - z**2)
    points = from_unit_vectors(np.column_stack([flat * np.cos(turn), flat * np.sin(turn), z]))
    assert is_land(points).mean() == pytest.approx(0.292, abs=0.006)


def test_polygons_can_be_filled_on_a_map():
    polygons = land_polygons()
    assert len(polygons) > 120
    for polygon in polygons:
        assert polygon.dtype == np.float64
        assert polygon.shape[1] == 2
        assert len(polygon) >= 3
        assert np.abs(polygon[:, 0]).max() <= 90.0
        assert np.abs(polygon[:, 1]).max() <= 180.0
        around = np.vstack([polygon, polygon[:1]])
        jumps = np.abs(np.diff(around[:, 1]))
        at_pole = (around[1:, 0] == -90.0) & (around[:-1, 0] == -90.0)
        assert jumps[~at_pole].max() < 30.0


def test_polygons_are_the_callers_own():
    land_polygons()[0][:] = 0.0
    assert np.ptp(land_polygons()[0]) > 0.0


def even_odd(point, polygons):
    """The textbook ray test, one edge at a time."""
    inside = False
    for polygon in polygons:
        for (y0, x0), (y1, x1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if (y0 > point[0]) != (y1 > point[0]) and point[1] < x0 + (point[0] - y0) / (y1 - y0) * (x1 - x0):
                inside = not inside
    return inside


def test_mask_agrees_with_the_outlines():
    polygons = land_polygons()
    points = np.random.default_rng(5).uniform([-90, -180], [90, 180], (60, 2))
    share = land_share(points)
    clear = (share < 0.02) | (share > 0.98)
    assert clear.sum() > 30
    expected = [even_odd(point, polygons) for point in points[clear]]
    assert is_land(points[clear]).tolist() == expected


def test_empty_and_bad_coordinates():
    assert is_land(np.empty((0, 2))).shape == (0,)
    assert land_share(np.empty((0, 2))).shape == (0,)
    for bad in ([[91.0, 0.0]], [[0.0, 181.0]], [[np.nan, 0.0]]):
        with pytest.raises(ValueError, match="coordinates row 0"):
            is_land(bad)


def test_share_far_inland_at_sea_and_on_the_coast():
    far = land_share([[25.0, 10.0], [55.0, 90.0], [-88.0, 20.0]])
    assert far.min() > 0.999
    assert land_share([[30.0, -40.0], [0.0, 180.0], [89.0, 0.0]]).max() < 0.001
    # The straight coast of northern Chile.
    assert 0.25 < land_share([[-23.0, -70.5]])[0] < 0.75


@settings(deadline=None)
@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(0, 360))
def test_share_is_smooth(latitude, longitude, bearing):
    here = np.array([[latitude, longitude]])
    there = destination(here, bearing, 1.0)
    before, after = land_share(here)[0], land_share(there)[0]
    assert 0.0 <= before <= 1.0
    # A Gaussian of 56 km is nowhere steeper than 0.4 / 56 a km; next to a pole a kilometre spans many columns.
    assert abs(before - after) < 0.02


def test_both_names_of_the_antimeridian_agree():
    latitude = np.linspace(-90, 90, 721)
    east, west = (np.column_stack([latitude, np.full_like(latitude, side)]) for side in (180.0, -180.0))
    assert land_share(east) == pytest.approx(land_share(west), abs=1e-9)
    assert (is_land(east) == is_land(west)).all()


def area(polygon):
    """In square degrees of the map (the shoelace formula)."""
    y, x = polygon.T
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


@pytest.mark.parametrize("west", [-360.0, -180.0, -33.3, 0.0, 12.25, 180.0])
def test_polygons_of_a_map_that_begins_elsewhere(west):
    polygons = land_polygons(west)
    longitudes = np.concatenate([polygon[:, 1] for polygon in polygons])
    assert longitudes.min() >= west
    assert longitudes.max() <= west + 360.0
    # However the world is cut, there is as much land on the map.
    assert sum(map(area, polygons)) == pytest.approx(sum(map(area, land_polygons())), rel=1e-9)


def test_land_across_the_antimeridian_is_whole_on_a_map_around_it():
    inside = [polygon for polygon in land_polygons(0.0) if even_odd((66.9, 182.0), [polygon])]
    assert len(inside) == 1
    assert inside[0][:, 1].min() < 30.0
    assert inside[0][:, 1].max() > 189.0
