"""The map of a split: where training, validation and test photos lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from geoinfer.errors import OutputError
from geoinfer.integrity import atomic_file
from trainer.data.examples import SPLITS
from trainer.world import land_polygons

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from trainer.data.examples import Examples

_COLOURS: Final = {"train": "#5b7c99", "validation": "#f28e1c", "test": "#d62728"}
_SEA, _LAND, _LINES = "#f6f9fb", "#e3e1d8", "#c6c3b8"
_DRAWN: Final = 80_000
"""About so many points are drawn; more would only cover each other."""
_DRAWN_AT_LEAST: Final = 5_000
_WIDTH_INCHES: Final = 12.0
_SIDES_INCHES, _ABOVE_INCHES, _BELOW_INCHES = 0.5, 0.45, 0.65
_DPI: Final = 130
_PARTLY: Final = 150.0
"""A map of fewer degrees of longitude shows a part of the world."""
_SHAPE: Final = 1.9
"""Width to height of the map of a part of the world."""
_MARGIN: Final = 0.08
_SMALLEST_DEG: Final = 4.0


def draw_split_map(examples: Examples, path: Path, seed: int = 0) -> None:
    """Draws the photos of each split over the land into a PNG.

    The map shows the whole world, or the part of it that holds the photos, stretched so that shapes at its middle
    latitude look right. Of more than 80,000 photos about as many, drawn at random from each split in proportion, stand
    for all, which the caption says.

    Args:
        examples: n photos; none is an empty map.
        path: of the PNG.
        seed: of the photos drawn.

    Raises:
        OutputError: the picture cannot be written.
    """
    south, west, north, east = _extent(examples.coordinates)
    stretch = _stretch((south + north) / 2) if east - west < _PARTLY else 1.0
    wide = _WIDTH_INCHES - 2 * _SIDES_INCHES
    high = wide * (north - south) / (east - west) * stretch
    tall = high + _ABOVE_INCHES + _BELOW_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, tall), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_SIDES_INCHES / _WIDTH_INCHES, _BELOW_INCHES / tall, wide / _WIDTH_INCHES, high / tall))
    axes.set(xlim=(west, east), ylim=(south, north), facecolor=_SEA)
    _degree_lines(axes, whole=east - west >= _PARTLY)
    axes.add_collection(
        PolyCollection(
            [polygon[:, ::-1] for polygon in land_polygons()], facecolors=_LAND, edgecolors=_LINES, linewidths=0.5
        )
    )
    counts = np.bincount(examples.splits, minlength=len(SPLITS)).tolist()
    generator = np.random.default_rng(seed)
    drawn: list[NDArray[np.int64]] = []
    for code, count in enumerate(counts):
        rows = np.flatnonzero(examples.splits == code)
        most = max(_DRAWN_AT_LEAST, _DRAWN * count // max(_DRAWN, len(examples)))
        drawn.append(generator.choice(rows, most, replace=False) if count > most else rows)
    rows = generator.permutation(np.concatenate(drawn))
    # All splits in one shuffled layer: none hides the others where they mix. The rare ones are a little larger.
    side = float(np.clip(90.0 / np.sqrt(max(1, len(rows))), 1.3, 7.0))
    colours = np.array([_COLOURS[name] for name in SPLITS])
    sizes = np.array([1.0, 1.25, 1.25]) * side**2
    splits = examples.splits[rows]
    axes.scatter(
        examples.coordinates[rows, 1], examples.coordinates[rows, 0], s=sizes[splits], c=colours[splits],
        linewidths=0.3 if side > 3 else 0.0, edgecolors="white", zorder=3,
    )  # fmt: skip
    present = [(name, count) for name, count in zip(SPLITS, counts, strict=True) if count]
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=8, color=_COLOURS[name], label=f"{name}  {count:,}")
        for name, count in present
    ]
    if handles:
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.1, ncols=len(handles),
            frameon=False, fontsize=12, handletextpad=0.2, columnspacing=1.6,
        )  # fmt: skip
    axes.set_xlabel(_caption(len(examples), drawn), fontsize=10, color="#555555", labelpad=6, loc="left")
    try:
        with atomic_file(path) as file:
            figure.savefig(file, format="png")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _extent(coordinates: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """South, west, north and east of the map, in degrees: of the photos and what is around them, or of the world."""
    south, west, north, east = -60.0, -180.0, 85.0, 180.0
    if not len(coordinates):
        return south, west, north, east
    lowest, highest = coordinates.min(axis=0), coordinates.max(axis=0)
    tall, wide = np.maximum((highest - lowest) * (1 + 2 * _MARGIN), _SMALLEST_DEG)
    middle = (lowest + highest) / 2
    shape = _SHAPE * _stretch(float(middle[0]))
    tall = max(tall, wide / shape)
    wide = tall * shape
    if wide >= _PARTLY:
        return max(-90.0, min(south, lowest[0] - 2.0)), west, max(north, min(90.0, highest[0] + 2.0)), east
    low = float(np.clip(middle[0] - tall / 2, -90.0, 90.0 - tall))
    left = float(np.clip(middle[1] - wide / 2, -180.0, 180.0 - wide))
    return low, left, low + tall, left + wide


def _stretch(latitude: float) -> float:
    """How many degrees of longitude look as long as one of latitude; beyond 75 degrees no more than there."""
    return float(1.0 / np.cos(np.deg2rad(np.clip(latitude, -75.0, 75.0))))


def _degree_lines(axes: Axes, *, whole: bool) -> None:
    axes.tick_params(colors="#888888", labelsize=9, length=0)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees(value, "E", "W"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "N", "S"))
    if whole:
        axes.set_xticks(np.arange(-180, 181, 60))
        axes.set_yticks(np.arange(-30, 90, 30))
    axes.grid(color=_LINES, linewidth=0.4, zorder=2)
    axes.spines[:].set_color(_LINES)


def _degrees(value: float, positive: str, negative: str) -> str:
    letter = "" if value in (0.0, 180.0, -180.0) else positive if value > 0 else negative
    return f"{abs(value):g}° {letter}".rstrip()


def _caption(total: int, drawn: list[NDArray[np.int64]]) -> str:
    text = f"{total:,} photo{'s' * (total != 1)}"
    if sum(map(len, drawn)) < total:
        shown = [f"{len(rows):,} {name}" for name, rows in zip(SPLITS, drawn, strict=True) if len(rows)]
        text += f"; the points are {', '.join(shown)}, chosen at random"
    return text
