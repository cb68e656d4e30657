"""The map of references: points when they are few, how dense they lie when they are many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.maps.base import Window, base_map, blocks, caption, check_format, map_window, save_map

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_DENSITY_FROM: Final = 20_000
"""From so many references on squares are coloured; fewer are drawn one by one."""
_COLOUR: Final = "#b5305c"
_COLUMNS: Final = 360
"""Squares from west to east."""


def draw_reference_map(coordinates: NDArray[np.float64], path: Path, *, what: str = "reference") -> None:
    """Draws where references lie, of the world or of the part of it that holds them.

    Up to 20,000 are drawn as points. Of more the map is cut into 360 columns of squares, and colours on a logarithmic
    scale say how many lie in each. 50 million cost seconds and no more memory than a million.

    Args:
        coordinates: (n, 2) degrees, [latitude, longitude], perhaps mapped from a file; none is an empty map.
        path: of the picture, .png or .svg.
        what: what one of them is called in the caption.

    Raises:
        ValueError: as `geoinfer.geodesy.as_coordinates`.
        UsageError: the name ends in neither .png nor .svg.
        OutputError: the picture cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    check_format(path)
    window = map_window(coordinates)
    figure, axes = base_map(window)
    count = len(coordinates)
    text = f"{count:,} {what}{'s' * (count != 1)}"
    if count < _DENSITY_FROM:
        _draw_points(axes, window, np.asarray(coordinates))
    else:
        side = _draw_density(figure, axes, window, coordinates)
        text += f"; the colours say how many lie in a square {side:.2g}° wide"
    caption(axes, text)
    save_map(figure, path)


def _draw_points(axes: Any, window: Window, coordinates: NDArray[np.float64]) -> None:
    side = float(np.clip(90.0 / np.sqrt(max(1, len(coordinates))), 1.5, 7.0))
    axes.scatter(
        window.turned(coordinates[:, 1]), coordinates[:, 0], s=side**2, c=_COLOUR, alpha=0.75,
        linewidths=0.3 if side > 3 else 0.0, edgecolors="white", zorder=3,
    )  # fmt: skip


def _draw_density(figure: Any, axes: Any, window: Window, coordinates: NDArray[np.float64]) -> float:
    """Draws the squares and their scale; returns the width of one in degrees of longitude."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    counts = count_squares(window, coordinates)
    most = max(10, int(counts.max()))
    # Without its palest end, which would be lost on the land.
    colours = ListedColormap(colormaps["YlOrRd"](np.linspace(0.25, 1.0, 256)))
    drawn = axes.imshow(
        np.ma.masked_equal(counts, 0), extent=(window.west, window.east, window.south, window.north), origin="lower",
        aspect="auto", interpolation="nearest", norm=LogNorm(1, most), cmap=colours, zorder=3,
    )  # fmt: skip
    box = axes.get_position()
    height = figure.get_figheight()
    bar = figure.add_axes((box.x1 - 0.3, box.y1 + 0.1 / height, 0.3, 0.1 / height))
    scale = figure.colorbar(drawn, cax=bar, orientation="horizontal")
    bar.xaxis.set_ticks_position("top")
    bar.minorticks_off()
    tens = [10**power for power in range(12) if 10**power <= most / 4]
    scale.set_ticks([*tens, most])
    bar.tick_params(colors="#888888", labelsize=9, length=0, pad=1)
    bar.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    scale.outline.set_visible(False)
    return (window.east - window.west) / counts.shape[1]


def count_squares(window: Window, coordinates: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many points lie in each square of a map: (rows, columns) int64, the south in the first row."""
    wide, high = window.size_inches
    rows = max(1, round(_COLUMNS * high / wide))
    counts = np.zeros(rows * _COLUMNS, np.int64)
    for block in blocks(coordinates):
        across = (window.turned(block[:, 1]) - window.west) / (window.east - window.west)
        up = (block[:, 0] - window.south) / (window.north - window.south)
        column = np.clip((across * _COLUMNS).astype(np.int64), 0, _COLUMNS - 1)
        row = np.clip((up * rows).astype(np.int64), 0, rows - 1)
        counts += np.bincount(row * _COLUMNS + column, minlength=len(counts))
    return counts.reshape(rows, _COLUMNS)
