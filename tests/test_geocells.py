from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import s2sphere
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer import geocells
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


def s2_leaves(points: np.ndarray) -> np.ndarray:
    """What s2sphere answers, point by point."""
    leaves = [s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(*point)).id() for point in points.tolist()]
    return np.array(leaves, np.uint64)


def on_the_sphere(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], axis=1)


def test_random_points():
    points = on_the_sphere(60_000, 3)
    assert np.array_equal(leaf_cells(points), s2_leaves(points))
    check(points[:100].tolist())


def test_neighbouring_floats_across_every_edge():
    """On the edges and corners of faces and of cells, and on the floats beside them, a last bit decides."""
    edges = [-180.0, -135.0, -90.0, -45.0, -0.0, 0.0, 45.0, 90.0, 135.0, 180.0]
    corner = math.degrees(math.atan(math.sqrt(0.5)))
    latitudes = [-90.0, -45.0, -corner, -0.0, 0.0, corner, 45.0, 90.0, 5e-324, -5e-324]
    # The face around (0, 0) at u = v = 0.5: an edge of cells of level 2 and below, at atan(u) from the middle.
    for u in (0.1, 0.25, 0.5, 1 / 3):
        edges += [math.degrees(math.atan(u)), math.degrees(math.atan(-u))]
        latitudes += [math.degrees(math.atan(u))]
    points = []
    for latitude in latitudes:
        for longitude in edges:
            for steps in range(-3, 4):
                near = [
                    value + steps * math.ulp(value) if abs(value + steps * math.ulp(value)) <= most else value
                    for value, most in ((latitude, 90.0), (longitude, 180.0))
                ]
                points += [(near[0], longitude), (latitude, near[1]), tuple(near)]
    points = np.array(points)
    assert np.array_equal(leaf_cells(points), s2_leaves(points))


def test_corners_of_cells():
    """The corners of cells of all levels, which four cells share."""
    rng = np.random.default_rng(5)
    points = []
    for leaf, level in zip(s2_leaves(on_the_sphere(400, 6)).tolist(), rng.integers(0, 31, 400).tolist(), strict=True):
        cell = s2sphere.Cell(s2sphere.CellId(leaf).parent(level))
        for number in range(4):
            corner = s2sphere.LatLng.from_point(cell.get_vertex(number))
            points.append((corner.lat().degrees, corner.lng().degrees))
    points = np.array(points)
    assert np.array_equal(leaf_cells(points), s2_leaves(points))


@pytest.mark.slow
def test_a_million_random_points():
    points = on_the_sphere(1_000_000, 11)
    assert np.array_equal(leaf_cells(points), s2_leaves(points))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=50))
def test_leaves_of_any_points(points):
    assert np.array_equal(leaf_cells(points), s2_leaves(np.array(points)))


def test_where_the_blocks_end(monkeypatch: pytest.MonkeyPatch):
    points = on_the_sphere(100, 7)
    expected = leaf_cells(points)
    for block in (1, 7, 50, 99, 100, 101):
        monkeypatch.setattr(geocells, "_BLOCK", block)
        assert np.array_equal(leaf_cells(points), expected)


def test_arrays_that_are_not_contiguous():
    points = np.asfortranarray(on_the_sphere(50, 8))
    assert np.array_equal(leaf_cells(points[::-2]), s2_leaves(points[::-2]))


def test_memory_does_not_grow_with_the_points():
    points = on_the_sphere(400_000, 9)
    tracemalloc.start()
    leaf_cells(points)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The answer takes 3 MB, the check of the input as much for a moment, all at once would take a hundred.
    assert peak < 20e6


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
