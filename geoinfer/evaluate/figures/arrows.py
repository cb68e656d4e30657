"""The map of the worst errors: from where photos were taken to where they were said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.evaluate.bands import BANDS, bands_of
from geoinfer.evaluate.figures.error_map import below, headline
from geoinfer.geodesy import from_unit_vectors, to_unit_vectors
from geoinfer.maps import base_map, world_window
from geoinfer.maps.topojson import lines_on_map

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from geoinfer.maps import Window

CURVES, STARTS, ENDS = "curves", "truths", "predictions"
"""Ids of what is drawn, in SVG too."""

_STEP_DEG: Final = 1.0
_ALIGNED: Final = 1e-9


def great_circle(start: ArrayLike, end: ArrayLike) -> NDArray[np.float64]:
    """The shortest way between two points, a point at least every degree.

    Args:
        start: (2,) degrees, [latitude, longitude].
        end: (2,) degrees. Opposite the start every way is as short: the one over the north pole is taken, or, from a
            pole, the one along the meridian of 0°.

    Returns:
        (m, 2) degrees, m at least 2; the first and the last are `start` and `end`.
    """
    first, last = to_unit_vectors(start), to_unit_vectors(end)
    cosine = float(np.clip(first @ last, -1.0, 1.0))
    beside = last - cosine * first
    sine = float(np.linalg.norm(beside))
    if sine < _ALIGNED:
        pole = np.array([0.0, 0.0, 1.0]) if np.hypot(first[0], first[1]) > _ALIGNED else np.array([1.0, 0.0, 0.0])
        beside = pole - (pole @ first) * first
    beside = beside / np.linalg.norm(beside)
    angle = float(np.arctan2(sine, cosine))
    steps = np.linspace(0.0, angle, 1 + max(1, int(np.ceil(np.rad2deg(angle) / _STEP_DEG))))[:, None]
    way = from_unit_vectors(np.cos(steps) * first + np.sin(steps) * beside)
    way[0], way[-1] = np.asarray(start), np.asarray(end)
    return way


def arrow_map(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], distances_km: NDArray[np.float64], title: str
) -> Any:
    """Draws an arrow along the great circle from each true place to what was predicted.

    Args:
        truth: (n, 2) degrees.
        predicted: (n, 2) degrees.
        distances_km: (n,) km, which colour the arrows.
        title: above the map.

    Returns:
        Matplotlib's figure.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    ways = [great_circle(start, end) for start, end in zip(truth, predicted, strict=True)]
    window = world_window(np.concatenate(ways)) if ways else world_window(np.empty((0, 2)))
    figure, axes = base_map(window, borders=True)
    from matplotlib.collections import LineCollection

    bands = bands_of(distances_km)
    for way, band in zip(ways, bands.tolist(), strict=True):
        pieces = [piece[:, ::-1] for piece in lines_on_map([way], window.west)]
        axes.add_collection(
            LineCollection(
                pieces, colors=BANDS[band].colour_light, linewidths=1.1, alpha=0.75, zorder=3, gid=CURVES, clip_on=False
            )
        )
    for (latitude, longitude), way, band in zip(predicted, ways, bands.tolist(), strict=True):
        axes.plot(
            _on_map(longitude, way[-2, 1], window), latitude, linestyle="", marker=(3, 0, _heading(way)), markersize=7,
            color=BANDS[band].colour_light, markeredgecolor="white", markeredgewidth=0.4, zorder=4, gid=ENDS,
            clip_on=False,
        )  # fmt: skip
    if len(truth):
        x = [_on_map(way[0, 1], way[1, 1], window) for way in ways]
        axes.scatter(
            x, truth[:, 0], s=14, c="white", edgecolors="#222222", linewidths=0.9, zorder=5, gid=STARTS, clip_on=False
        )
    headline(axes, title)
    _legend(figure, axes, sorted(set(bands.tolist())))
    return figure


def _on_map(longitude: float, towards: float, window: Window) -> float:
    """Where an end of a way is drawn: at 180° on the side that the way comes from."""
    x = float(window.turned(np.array([longitude]))[0])
    if x == window.west and float(window.turned(np.array([towards]))[0]) > window.west + 180.0:
        return window.east
    return x


def _heading(way: NDArray[np.float64]) -> float:
    """Degrees, counted against the clock, that a triangle pointing up is turned by to point along the way's end.

    A map of the world draws a degree of latitude as long as one of longitude.
    """
    (latitude, longitude), (last_latitude, last_longitude) = way[-2], way[-1]
    across = (last_longitude - longitude + 180.0) % 360.0 - 180.0
    return float(np.rad2deg(np.arctan2(last_latitude - latitude, across))) - 90.0


def _legend(figure: Any, axes: Any, bands: list[int]) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color="white", markeredgecolor="#222222"),
        Line2D([], [], linestyle="", marker=(3, 0, -90), markersize=7, color="#666666"),
        *(Line2D([], [], color=BANDS[band].colour_light, linewidth=1.6) for band in bands),
    ]
    below(figure, axes, handles, ["truth", "prediction", *(BANDS[band].label for band in bands)], handle_length=1.8)
