"""TopoJSON decoded, and lines cut to a map, against cases placed by hand and plain loops."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.maps.topojson import lines_on_map, outlines_of, polygons_on_map, read_topology

if TYPE_CHECKING:
    from pathlib import Path

STEPS = st.lists(st.tuples(st.floats(-80, 80), st.floats(-60, 60)), min_size=1, max_size=12)


def test_arcs_are_steps_scaled_and_moved(tmp_path: Path):
    topology = {
        "type": "Topology",
        "transform": {"scale": [0.5, 2.0], "translate": [10.0, -4.0]},
        "objects": {"land": {"type": "GeometryCollection", "geometries": [
            {"type": "Polygon", "arcs": [[0, ~1]]}, {"type": "MultiPolygon", "arcs": [[[0, ~1]]]}]}},
        "arcs": [[[0, 0], [4, 0], [0, 3]], [[0, 0], [0, 3], [4, 0]]],
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(topology))
    read = read_topology(tmp_path / "t.json")
    assert read.arcs[0].tolist() == [[-4.0, 10.0], [-4.0, 12.0], [2.0, 12.0]]
    square = [[-4.0, 10.0], [-4.0, 12.0], [2.0, 12.0], [2.0, 10.0]]
    for geometry in read.geometries["land"]:
        (outline,) = outlines_of(geometry, read.arcs)
        assert outline.tolist() == square


def test_a_ring_at_the_pole_is_no_land():
    pole = np.array([[-89.999, x] for x in (-180.0, 90.0, 0.0, -90.0, -180.0)])
    coast = np.array([[-70.0, x] for x in (-180.0, -90.0, 0.0, 90.0, 180.0)])
    (outline,) = outlines_of({"type": "Polygon", "arcs": [[0], [1]]}, [pole, coast])
    assert outline[:, 0].max() == -70.0
    assert outline[:, 0].min() == -90.0
    y, x = outline.T
    assert 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) == pytest.approx(20.0 * 360.0)


def test_a_line_across_the_antimeridian_is_cut_there():
    pieces = lines_on_map([np.array([[0.0, 170.0], [10.0, -170.0]])], -180.0)
    assert sorted(piece.tolist() for piece in pieces) == [
        [[0.0, 170.0], [5.0, 180.0]], [[5.0, -180.0], [10.0, -170.0]],
    ]  # fmt: skip
    (whole,) = lines_on_map([np.array([[0.0, 170.0], [10.0, -170.0]])], 0.0)
    assert whole.tolist() == [[0.0, 170.0], [10.0, 190.0]]


def test_a_line_that_touches_the_edge_or_is_a_point():
    assert lines_on_map([np.array([[1.0, 2.0]])], -180.0) == []
    touching = lines_on_map([np.array([[0.0, 170.0], [1.0, 180.0], [2.0, 170.0]])], -180.0)
    assert [piece.tolist() for piece in touching] == [[[0.0, 170.0], [1.0, 180.0], [2.0, 170.0]]]


@settings(deadline=None)
@given(st.floats(-180, 180), STEPS, st.floats(-360, 180))
def test_no_part_of_a_line_is_lost(start: float, steps: list[tuple[float, float]], west: float):
    line = np.array([(0.0, start), *((latitude, 0.0) for latitude, _ in steps)])
    line[1:, 1] = start + np.cumsum([step for _, step in steps])
    wrapped = np.column_stack([line[:, 0], (line[:, 1] + 180.0) % 360.0 - 180.0])
    pieces = lines_on_map([wrapped], west)
    for piece in pieces:
        assert len(piece) > 1
        assert west - 1e-9 <= piece[:, 1].min()
        assert piece[:, 1].max() <= west + 360.0 + 1e-9
    # Nothing but steps along an edge is drawn twice, once on either side.
    drawn = sum(np.abs(np.diff(piece[:, 1])).sum() for piece in pieces)
    assert drawn == pytest.approx(np.abs(np.diff(line[:, 1])).sum(), abs=1e-6)


def test_a_polygon_cut_in_two_keeps_its_area():
    square = np.array([[0.0, 170.0], [0.0, 190.0], [10.0, 190.0], [10.0, 170.0]])
    east, west = sorted(polygons_on_map([square], -180.0), key=lambda polygon: -polygon[:, 1].max())
    assert (east[:, 1].min(), east[:, 1].max()) == (170.0, 180.0)
    assert (west[:, 1].min(), west[:, 1].max()) == (-180.0, -170.0)
    assert len(polygons_on_map([square], 0.0)) == 1
