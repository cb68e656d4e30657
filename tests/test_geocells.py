from __future__ import annotations

import math

import numpy as np
import pytest
import s2sphere
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.geocells import cell_ids, leaf_cells, parent_cells

LEVELS = range(3, 15)


def face_edges() -> list[tuple[float, float]]:
    """Points on and a hair off the edges and corners between the six faces of the cube."""
    corner = math.degrees(math.atan(math.sqrt(0.5)))
    exact = [(0.0, 45.0), (0.0, 135.0), (0.0, -45.0), (0.0, -135.0), (45.0, 0.0), (-45.0, 90.0), (45.0, 180.0)]
    exact += [(sign * corner, longitude) for sign in (1, -1) for longitude in (45.0, 135.0, -45.0, -135.0)]
    return [
        (lat + d, lon + e) for lat, lon in exact for d in (-1e-9, 0.0, 1e-9) for e in (-1e-9, 0.0) if lon + e <= 180
    ]


def s2_parent(latitude: float, longitude: float, level: int) -> s2sphere.CellId:
    return s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(latitude, longitude)).parent(level)


def check(points: list[tuple[float, float]], levels=LEVELS) -> None:
    for level in levels:
        got = cell_ids(points, level)
        assert got.dtype == np.uint64
        assert got.tolist() == [s2_parent(*point, level).id() for point in points]


def test_random_points():
    rng = np.random.default_rng(3)
    latitudes = np.degrees(np.arcsin(rng.uniform(-1, 1, 150)))
    check(list(zip(latitudes.tolist(), rng.uniform(-180, 180, 150).tolist(), strict=True)))


def test_poles_antimeridian_and_origin():
    check(
        [
            *((lat, lon) for lat in (90.0, -90.0, 89.9999999) for lon in (0.0, 180.0, -180.0, 77.0)),
            *((lat, lon) for lat in (0.0, 10.0, -80.0) for lon in (180.0, -180.0, 179.9999999, -179.9999999)),
            (0.0, 0.0),
            (-0.0, -0.0),
        ]
    )


def test_edges_of_the_faces():
    check(face_edges())


def test_every_level():
    check([(48.8584, 2.2945), (-33.8568, 151.2153), (0.0, 45.0)], range(31))


@settings(deadline=None)
@given(st.floats(-90, 90), st.floats(-180, 180), st.integers(0, 30))
def test_any_point(latitude, longitude, level):
    expected = s2_parent(latitude, longitude, level)
    assert cell_ids((latitude, longitude), level).tolist() == [expected.id()]
    assert s2sphere.CellId(int(cell_ids((latitude, longitude), level)[0])).level() == level


def test_a_published_cell():
    # s2geometry.io, "S2 Cells": the face cells are 1, 3, 5, 7, 9, b followed by zeros.
    centres = [(0, 0), (0, 90), (90, 0), (0, 180), (0, -90), (-90, 0)]
    assert [f"{cell:016x}" for cell in cell_ids(centres, 0).tolist()] == [f"{d}{'0' * 15}" for d in "13579b"]


def test_parents_of_parents():
    leaves = leaf_cells([(48.8584, 2.2945), (-33.8568, 151.2153)])
    assert np.array_equal(parent_cells(leaves, 30), leaves)
    for level in LEVELS:
        children = [s2sphere.CellId(int(cell)) for cell in parent_cells(leaves, level + 1)]
        assert parent_cells(parent_cells(leaves, level + 1), level).tolist() == [c.parent().id() for c in children]


@pytest.mark.parametrize("level", [-1, 31, 100])
def test_levels_outside_the_scale_are_refused(level):
    with pytest.raises(ValueError, match=f"S2 level {level} is outside 0 to 30"):
        cell_ids([(0, 0)], level)


def test_bad_points_are_refused_by_row():
    with pytest.raises(ValueError, match="row 1 "):
        cell_ids([(0, 0), (math.nan, 0)], 6)


def test_no_points():
    assert cell_ids(np.empty((0, 2)), 6).tolist() == []
    assert leaf_cells(np.empty((0, 2))).dtype == np.uint64
