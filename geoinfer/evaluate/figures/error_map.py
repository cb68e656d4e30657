"""The map of errors: each photo where it was taken, in the colour of its error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.evaluate.bands import BANDS, NO_BAND, UNANSWERED_LIGHT, band_counts, bands_of
from geoinfer.evaluate.figures.style import RASTERISED_FROM, TEXT
from geoinfer.maps import Window, base_map, map_window, world_window

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRAMES: Final = {
    "Europe": Window(34.0, -25.0, 72.0, 45.0),
    "North America": Window(7.0, -170.0, 75.0, -50.0),
    "Africa": Window(-37.0, -26.0, 38.0, 58.0),
    "South America": Window(-57.0, -93.0, 14.0, -33.0),
}
"""What the maps of some continents show, whatever photos there are, so that maps of several runs look alike. Outside
are Russia east of 45° E, Svalbard, the Canary Islands (Europe's, as all of Spain is) and the north of Greenland."""

POINTS, CROSSES = "points", "unanswered"
"""Ids of what is drawn, in SVG too."""

_SMALLEST_DEG: Final = 30.0
"""From south to north at least, so that around a photo of a small island there is land to tell where it is."""
_LAYERS: Final = 8
_SMALLEST, _LARGEST = 1.5, 7.0
_EDGED_FROM: Final = 2.5
_EDGE: Final = "#4a4a4a"


def window_of(name: str, truth: NDArray[np.float64]) -> Window:
    """What the map of a set shows: a continent's frame, the world of `Global`, or where the photos are."""
    if name in FRAMES:
        return FRAMES[name]
    return world_window(truth) if name == "Global" else map_window(truth, smallest_deg=_SMALLEST_DEG)


def shown_in(window: Window, coordinates: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether points (n, 2) lie within a window."""
    latitude, longitude = coordinates.T
    return (latitude >= window.south) & (latitude <= window.north) & (window.turned(longitude) <= window.east)


def error_map(truth: NDArray[np.float64], distances_km: NDArray[np.float64], window: Window, title: str) -> Any:
    """Draws errors, none above the others: points are drawn in a random order, the same each time.

    Args:
        truth: (n, 2) degrees.
        distances_km: (n,) km, NaN where there is no answer: those are crosses.
        window: what to show.
        title: above the map.

    Returns:
        Matplotlib's figure.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure, axes = base_map(window, borders=True)
    inside = shown_in(window, truth)
    _draw_points(axes, window, truth[inside], bands_of(distances_km[inside]))
    outside = int((~inside).sum())
    # `headline` and `_legend` stand in the margins that `base_map` leaves.
    headline(axes, title, f"{outside:,} outside the map" if outside else "")
    _legend(figure, axes, distances_km)
    return figure


def headline(axes: Any, title: str, remark: str = "") -> None:
    """Writes above a map, to the left and to the right."""
    axes.set_title(title, fontsize=11, color=TEXT, loc="left", pad=7)
    axes.set_title(remark, fontsize=9, color="#777777", loc="right", pad=7)


def below(figure: Any, axes: Any, handles: list[Any], labels: list[str], *, handle_length: float = 1.0) -> None:
    """A legend in one line below a map; the length of a handle in heights of a letter."""
    box = axes.get_position()
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(box.x0, 0.0), ncols=len(labels), frameon=False,
        fontsize=9, labelcolor=TEXT, borderaxespad=0.5, borderpad=0.1, handletextpad=0.4, columnspacing=1.5,
        handlelength=handle_length,
    )  # fmt: skip


def _draw_points(axes: Any, window: Window, truth: NDArray[np.float64], bands: NDArray[np.int64]) -> None:
    from matplotlib.colors import to_rgba_array

    side = float(np.clip(90.0 / np.sqrt(max(1, len(truth))), _SMALLEST, _LARGEST))
    x, y = window.turned(truth[:, 1]), truth[:, 0]
    colours = to_rgba_array([band.colour_light for band in BANDS])
    order = np.random.default_rng(0).permutation(len(truth))
    rasterised = len(truth) > RASTERISED_FROM
    # One collection holds one kind of mark; several layers of both keep either from covering the other.
    for layer in np.array_split(order, min(_LAYERS, max(1, len(order)))):
        points, crosses = layer[bands[layer] != NO_BAND], layer[bands[layer] == NO_BAND]
        if len(points):
            axes.scatter(
                x[points], y[points], s=side**2, c=colours[bands[points]], edgecolors=_EDGE,
                linewidths=0.35 if side > _EDGED_FROM else 0.0, zorder=3, rasterized=rasterised, gid=POINTS,
                clip_on=False,
            )  # fmt: skip
        if len(crosses):
            axes.scatter(
                x[crosses], y[crosses], s=side**2, c=UNANSWERED_LIGHT, marker="x", linewidths=max(0.5, side / 5),
                zorder=3, rasterized=rasterised, gid=CROSSES, clip_on=False,
            )  # fmt: skip


def _legend(figure: Any, axes: Any, distances_km: NDArray[np.float64]) -> None:
    from matplotlib.lines import Line2D

    total, counts = len(distances_km), band_counts(distances_km)
    handles: list[Any] = [
        Line2D([], [], linestyle="", marker="o", markersize=7, color=band.colour_light, markeredgecolor=_EDGE,
               markeredgewidth=0.35)
        for band in BANDS
    ]  # fmt: skip
    labels = [f"{band.label}: {_counted(count, total)}" for band, count in zip(BANDS, counts, strict=True)]
    unanswered = total - sum(counts)
    if unanswered:
        handles.append(Line2D([], [], linestyle="", marker="x", markersize=6, color=UNANSWERED_LIGHT))
        labels.append(f"no answer: {_counted(unanswered, total)}")
    below(figure, axes, handles, labels)


def _counted(count: int, total: int) -> str:
    share = f"{100 * count / total:.1f}" if total else "0.0"
    return f"{count:,} ({share}%)"
