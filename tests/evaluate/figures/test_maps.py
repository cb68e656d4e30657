"""Maps of errors and arrows, read back from what matplotlib was told to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from geoinfer.evaluate.bands import BANDS, UNANSWERED_LIGHT
from geoinfer.evaluate.figures.arrows import CURVES, ENDS, STARTS, arrow_map, great_circle
from geoinfer.evaluate.figures.error_map import CROSSES, FRAMES, POINTS, error_map, shown_in, window_of
from geoinfer.geodesy import haversine_km, to_unit_vectors
from geoinfer.maps import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAN = np.nan
POINT = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


def drawn(figure: Any, gid: str) -> list[Any]:
    return [artist for artist in figure.axes[0].get_children() if artist.get_gid() == gid]


def offsets(artists: list[Any]) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(artist.get_offsets()) for artist in artists] or [np.empty((0, 2))])


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_point_has_the_colour_of_its_error():
    truth = np.array([[10.0, 5.0], [20.0, 15.0], [30.0, 25.0], [40.0, 35.0], [50.0, 45.0], [60.0, 55.0], [0.0, 65.0]])
    distances = np.array([0.0, 500.0, 500.1, 1500.1, 2500.0, 2500.1, NAN])
    figure = error_map(truth, distances, window_of("Global", truth), "title")
    found = {}
    for collection in drawn(figure, POINTS):
        for (x, y), colour in zip(collection.get_offsets(), collection.get_facecolors(), strict=True):
            found[y, x] = to_hex(colour)
    green, yellow, orange, red = (band.colour_light for band in BANDS)
    assert found == dict(zip(map(tuple, truth[:6]), (green, green, yellow, orange, orange, red), strict=True))
    (crosses,) = drawn(figure, CROSSES)
    assert crosses.get_offsets().tolist() == [[65.0, 0.0]]
    # Crosses are made of edges alone.
    assert to_hex(crosses.get_edgecolors()[0]) == UNANSWERED_LIGHT
    assert legend(figure) == [
        "≤ 500 km: 2 (28.6%)", "500–1500 km: 1 (14.3%)", "1500–2500 km: 2 (28.6%)", "> 2500 km: 1 (14.3%)",
        "no answer: 1 (14.3%)",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 7, 20, 3000, 5000])
def test_every_photo_is_drawn_once(make_random, count: int):
    evaluation = make_random(count)
    truth = evaluation.outcomes.truth
    figure = error_map(truth, evaluation.distances_km, window_of("Global", truth), "")
    answered = np.isfinite(evaluation.distances_km)
    for gid, kept in ((POINTS, answered), (CROSSES, ~answered)):
        places = offsets(drawn(figure, gid))[:, ::-1]
        # Longitudes are counted from the map's edge and back, and may lose their last bit.
        assert sorted(map(tuple, places.round(9).tolist())) == sorted(map(tuple, truth[kept].round(9).tolist()))
        assert all(artist.get_rasterized() == (count > 3000) for artist in drawn(figure, gid))


def test_no_band_is_drawn_above_the_others(make_random):
    evaluation = make_random(4000)
    figure = error_map(evaluation.outcomes.truth, evaluation.distances_km, window_of("Global", np.empty((0, 2))), "")
    layers = [artist for artist in figure.axes[0].get_children() if artist.get_gid() in (POINTS, CROSSES)]
    assert len({artist.zorder for artist in layers}) == 1  # so that they are drawn in this order
    half = len(layers) // 2
    for gid in (POINTS, CROSSES):
        first, last = (
            sum(len(a.get_offsets()) for a in part if a.get_gid() == gid) for part in (layers[:half], layers[half:])
        )
        assert abs(first - last) < 0.3 * (first + last)
    colours = np.concatenate([artist.get_facecolors() for artist in drawn(figure, POINTS)])
    red = [to_hex(colour) == BANDS[-1].colour_light for colour in colours]
    assert np.mean(red[: len(red) // 2]) == pytest.approx(np.mean(red[len(red) // 2 :]), abs=0.05)


def test_photos_outside_a_frame_are_counted_and_not_drawn():
    truth = np.array([[48.9, 2.3], [43.1, 131.9], [28.1, -15.4], [72.0, 45.0], [34.0, -25.0]])
    figure = error_map(truth, np.zeros(5), FRAMES["Europe"], "Europe")
    assert len(offsets(drawn(figure, POINTS))) == 3
    assert figure.axes[0].get_title(loc="right") == "2 outside the map"
    assert legend(figure)[0] == "≤ 500 km: 5 (100.0%)"


def test_frames_hold_what_they_are_named_for():
    europe = [(38.7, -9.1), (64.1, -21.9), (37.9, 23.7), (60.2, 24.9), (55.8, 37.6), (35.9, 14.5), (71.1, 25.8)]
    america = [(61.2, -149.9), (21.3, -157.9), (19.4, -99.1), (45.5, -73.6), (47.6, -52.7), (9.0, -79.5), (18.5, -66.1)]
    africa = [(14.9, -23.5), (37.3, 9.8), (11.8, 51.3), (-34.8, 20.0), (-20.2, 57.5), (-4.6, 55.5)]
    south = [(12.4, -71.7), (-55.9, -67.3), (-0.7, -90.3), (-7.2, -34.8), (-51.7, -57.9)]
    for name, places in (("Europe", europe), ("North America", america), ("Africa", africa), ("South America", south)):
        assert shown_in(FRAMES[name], np.array(places)).all()
    assert not shown_in(FRAMES["Europe"], np.array(america)).any()


def test_other_continents_are_shown_where_their_photos_are():
    islands = np.array([[-17.8, 178.0], [-13.8, -171.8]])
    window = window_of("Oceania", islands)
    assert not window.whole
    assert shown_in(window, islands).all()
    figure = error_map(islands, np.array([1.0, 2.0]), window, "")
    assert sorted(offsets(drawn(figure, POINTS))[:, 0] % 360.0) == pytest.approx([178.0, 188.2])
    assert window_of("Global", np.array([[-89.0, 0.0]])) == Window(-90.0, -180.0, 85.0, 180.0)


@pytest.mark.parametrize("place", [(90.0, 0.0), (-90.0, 180.0), (0.0, 180.0), (0.0, -180.0)])
def test_the_ends_of_the_world(place: tuple[float, float]):
    truth = np.array([place])
    figure = error_map(truth, np.array([1.0]), window_of("Global", truth), "")
    ((x, y),) = offsets(drawn(figure, POINTS))
    assert y == place[0]
    assert (x - place[1]) % 360.0 == 0.0


@settings(deadline=None)
@given(POINT, POINT)
def test_a_way_lies_on_the_great_circle(start: tuple[float, float], end: tuple[float, float]):
    way = great_circle(start, end)
    assert (tuple(way[0]), tuple(way[-1])) == (start, end)
    direct = float(haversine_km(start, end))
    assume(direct < 20_000.0)
    # On the shortest way, and only there, the two distances add up to the whole.
    assert haversine_km(start, way) + haversine_km(way, end) == pytest.approx(direct, abs=1e-3)
    steps = haversine_km(way[:-1], way[1:])
    assert steps.max() < 112.0
    if direct > 1e-3:
        normal = np.cross(to_unit_vectors(start), to_unit_vectors(end))
        if np.linalg.norm(normal) > 1e-3:
            assert np.abs(to_unit_vectors(way) @ normal / np.linalg.norm(normal)).max() < 1e-6


@pytest.mark.parametrize(
    ("start", "end"),
    [((0.0, 0.0), (0.0, 180.0)), ((45.0, 10.0), (-45.0, -170.0)), ((90.0, 0.0), (-90.0, 0.0)),
     ((-90.0, 5.0), (90.0, -5.0))],
)  # fmt: skip
def test_ways_between_antipodes_are_half_the_earth(start: tuple[float, float], end: tuple[float, float]):
    way = great_circle(start, end)
    assert np.isfinite(way).all()
    assert haversine_km(way[:-1], way[1:]).sum() == pytest.approx(np.pi * 6371.0, rel=1e-6)


def test_the_way_from_london_to_tokyo_goes_north():
    way = great_circle((51.5, -0.1), (35.7, 139.7))
    assert way[:, 0].max() == pytest.approx(70.7, abs=0.5)  # over the Arctic, as aeroplanes did


def test_arrows_are_cut_at_the_antimeridian():
    truth, predicted = np.array([[35.0, 140.0], [10.0, 20.0]]), np.array([[40.0, -120.0], [12.0, 60.0]])
    figure = arrow_map(truth, predicted, np.array([8300.0, 2000.0]), "")
    curves = drawn(figure, CURVES)
    assert [len(curve.get_segments()) for curve in curves] == [2, 1]
    for curve in curves:
        for segment in curve.get_segments():
            assert np.abs(np.diff(segment[:, 0])).max() < 10.0
    east, west = sorted(curves[0].get_segments(), key=lambda segment: -segment[:, 0].max())
    assert east[:, 0].max() == 180.0
    assert west[:, 0].min() == -180.0
    assert [to_hex(curve.get_colors()[0]) for curve in curves] == [BANDS[3].colour_light, BANDS[2].colour_light]
    assert offsets(drawn(figure, STARTS))[:, ::-1].tolist() == truth.tolist()
    ends = [(line.get_ydata()[0], line.get_xdata()[0]) for line in drawn(figure, ENDS)]
    assert ends == [tuple(place) for place in predicted]


@pytest.mark.parametrize(
    ("start", "end", "turned"),
    [((0.0, 0.0), (0.0, 30.0), -90.0), ((0.0, 0.0), (0.0, -30.0), 90.0), ((0.0, 0.0), (30.0, 0.0), 0.0),
     ((0.0, 0.0), (-30.0, 0.0), 180.0), ((0.0, 170.0), (0.0, -160.0), -90.0)],
)  # fmt: skip
def test_heads_point_where_arrows_go(start: tuple[float, float], end: tuple[float, float], turned: float):
    figure = arrow_map(np.array([start]), np.array([end]), np.array([3000.0]), "")
    (head,) = drawn(figure, ENDS)
    sides, style, angle = head.get_marker()
    assert (sides, style) == (3, 0)
    assert (angle - turned) % 360.0 == pytest.approx(0.0, abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(POINT, POINT), min_size=1, max_size=3))
def test_any_arrow_can_be_drawn(pairs: list[tuple[tuple[float, float], tuple[float, float]]]):
    truth, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    figure = arrow_map(truth, predicted, haversine_km(truth, predicted), "")
    axes = figure.axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for curve in drawn(figure, CURVES):
        for segment in curve.get_segments():
            assert left - 1e-9 <= segment[:, 0].min()
            assert segment[:, 0].max() <= right + 1e-9
            assert bottom <= segment[:, 1].min()
            assert segment[:, 1].max() <= top
