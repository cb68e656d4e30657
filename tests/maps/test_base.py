"""What part of the world a map shows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import MissingPackageError, OutputError, UsageError
from geoinfer.maps import Window, base, base_map, check_map_path, extent, map_window, save_map

if TYPE_CHECKING:
    from pathlib import Path

POINTS = st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=30)


def window_of(points: list[tuple[float, float]]) -> Window:
    return map_window(np.array(points, np.float64).reshape(-1, 2))


def test_no_points_are_shown_on_the_world():
    assert window_of([]) == Window(-60.0, -180.0, 85.0, 180.0)


def test_one_point_is_in_the_middle():
    window = window_of([(48.0, 2.0)])
    assert ((window.south + window.north) / 2, (window.west + window.east) / 2) == pytest.approx((48.0, 2.0))
    assert 6 < window.north - window.south < 20


def test_a_set_across_the_antimeridian_is_shown_across_it():
    window = window_of([(-17.0, 178.0), (-16.5, -179.5), (-18.0, 177.0)])
    assert not window.whole
    assert window.east - window.west < 20
    assert window.turned(np.array([178.0, -179.5, 177.0])) % 360 == pytest.approx([178.0, 180.5, 177.0])


def test_both_names_of_the_antimeridian_are_one_place():
    window = window_of([(10.0, 180.0), (10.0, -180.0)])
    assert window.east - window.west < 20


def test_a_set_around_the_world_is_shown_on_the_world():
    around = [(0.0, -120.0), (0.0, 0.0), (0.0, 120.0)]
    for points in (around, [(0.0, 0.0), (0.0, 180.0)], [(0.0, -180.0), *around, (0.0, 180.0)]):
        window = window_of(points)
        assert (window.west, window.east) == (-180.0, 180.0)


def test_points_far_south_and_north_widen_the_world():
    window = window_of([(-77.8, 166.0), (89.0, -10.0), (0.0, -90.0)])
    assert (window.south, window.north) == (-79.8, 90.0)


@settings(deadline=None)
@given(POINTS)
def test_every_point_is_on_the_map(points):
    window = window_of(points)
    latitudes, longitudes = np.array(points).T
    turned = window.turned(longitudes)
    assert (latitudes >= window.south).all()
    assert (latitudes <= window.north).all()
    assert (turned >= window.west).all()
    assert (turned <= window.east).all()
    apart = np.abs(turned - longitudes) % 360
    assert np.minimum(apart, 360 - apart).max() < 1e-9
    assert -360 <= window.west <= 180
    assert -90 <= window.south < window.north <= 90
    width, height = window.size_inches
    assert 0.3 < width / height < 3.3


@settings(deadline=None)
@given(POINTS, st.floats(-180, 180))
def test_turning_the_globe_turns_the_map(points, turn):
    """A set that fits a map of a part of the world fits it wherever it lies."""
    near = [(latitude / 3, longitude / 9) for latitude, longitude in points]
    moved = [(latitude, (longitude + turn + 180) % 360 - 180) for latitude, longitude in near]
    here, there = window_of(near), window_of(moved)
    assert there.east - there.west == pytest.approx(here.east - here.west, abs=1e-6)
    assert (here.south, here.north) == pytest.approx((there.south, there.north))


@settings(deadline=None)
@given(POINTS)
def test_the_extent_of_any_points(points):
    coordinates = np.array(points)
    south, west, north, east = extent(coordinates)
    assert (south, north) == (coordinates[:, 0].min(), coordinates[:, 0].max())
    assert west in coordinates[:, 1]
    assert east in coordinates[:, 1]
    ordered = np.sort(coordinates[:, 1])
    gaps = np.diff(ordered, append=ordered[0] + 360.0)
    if gaps.max() < 179.0:
        assert (west, east) == (ordered[0], ordered[-1])
    elif gaps.max() > 181.0:
        # It leaves out the widest gap, and nothing else is so wide.
        assert (east - west) % 360.0 == pytest.approx(360.0 - gaps.max(), abs=1e-9)


def test_extents_by_hand():
    assert extent(np.array([[48.0, 2.0]])) == (48.0, 2.0, 48.0, 2.0)
    assert extent(np.array([[-33.87, 151.21], [64.15, -21.94]])) == (-33.87, -21.94, 64.15, 151.21)
    assert extent(np.array([[-17.0, 178.0], [-16.5, -179.5], [-18.0, 177.0]])) == (-18.0, 177.0, -16.5, -179.5)
    _, west, _, east = extent(np.array([[1.0, -180.0], [2.0, 180.0], [3.0, -180.0]]))
    assert (west, east) != (-180.0, 180.0)
    assert extent(np.array([[0.0, 100.0], [0.0, -20.0], [0.0, -140.0]])) == (0.0, -140.0, 0.0, 100.0)


def test_many_points_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch):
    points = np.random.default_rng(0).uniform([-20, 150], [20, 179], (50, 2))
    expected = map_window(points)
    monkeypatch.setattr(base, "_BLOCK", 7)
    assert map_window(points) == expected


def test_labels_count_from_the_nearer_side():
    pytest.importorskip("matplotlib")
    _, axes = base_map(Window(-20.0, 170.0, -10.0, 190.0))
    label = axes.xaxis.get_major_formatter()
    assert [label(x, 0) for x in (175.0, 180.0, 185.0)] == ["175° E", "180°", "175° W"]
    assert [axes.yaxis.get_major_formatter()(y, 0) for y in (-15.0, 0.0, 10.0)] == ["15° S", "0°", "10° N"]


@pytest.mark.parametrize("window", [Window(-60, -180, 85, 180), Window(-90, -180, 90, 180), Window(40, -5, 50, 14)])
def test_the_map_shows_its_window_and_no_more(window: Window):
    pytest.importorskip("matplotlib")
    figure, axes = base_map(window)
    figure.canvas.draw()
    assert (axes.get_xlim(), axes.get_ylim()) == ((window.west, window.east), (window.south, window.north))


@pytest.mark.parametrize("name", ["map.jpg", "map", "map.pdf", ".png.txt"])
def test_other_formats_are_refused(tmp_path: Path, name: str):
    pytest.importorskip("matplotlib")
    figure, _ = base_map(window_of([]))
    with pytest.raises(UsageError, match=r"written as \.png or \.svg"):
        save_map(figure, tmp_path / name)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["a.png", "a.SVG"])
def test_a_map_that_cannot_be_written(tmp_path: Path, name: str):
    pytest.importorskip("matplotlib")
    figure, _ = base_map(window_of([]))
    with pytest.raises(OutputError, match="cannot be written: no such file"):
        save_map(figure, tmp_path / "none" / name)


def test_a_map_replaces_a_map_and_nothing_else(tmp_path: Path):
    pytest.importorskip("matplotlib")
    figure, _ = base_map(window_of([]))
    for name in ("map.png", "map.svg"):
        check_map_path(tmp_path / name)
        save_map(figure, tmp_path / name)
        check_map_path(tmp_path / name)
    (tmp_path / "photo.png").write_bytes(b"somebody's picture")
    with pytest.raises(OutputError, match="was not drawn by geoinfer"):
        check_map_path(tmp_path / "photo.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_map_path(tmp_path / "folder.png")
    with pytest.raises(OutputError, match="there is no folder"):
        check_map_path(tmp_path / "none" / "map.png")
    with pytest.raises(UsageError, match="written as"):
        check_map_path(tmp_path / "map.jpg")


def test_matplotlib_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingPackageError, match="needs matplotlib") as caught:
        base_map(window_of([]))
    assert "[report]" in caught.value.hint
