"""The map that points are drawn on: land, sea and lines of degrees, of the world or of a part of it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from geoinfer.errors import MissingPackageError, OutputError, UsageError
from geoinfer.geodesy import as_coordinates
from geoinfer.integrity import atomic_file
from geoinfer.maps.countries import border_lines, coast_lines, country_land
from geoinfer.maps.land import land_polygons
from geoinfer.maps.simplify import simplified

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS: Final = (".png", ".svg")

_TITLE: Final = "Drawn by geoinfer"
"""In the metadata of every picture, by which one may take the place of an earlier one, and of nothing else."""
_TITLE_WITHIN: Final = 4096

_SEA, _LAND, _LINES = "#f6f9fb", "#e3e1d8", "#c6c3b8"
_BORDERS: Final = "#a9a598"
_STEPS: Final = 1200
"""From west to east on a map, about a pixel each: outlines need nothing that is smaller."""
_TOLERANCE: Final = 0.4
"""How far off an outline may be drawn, in steps."""
_BEYOND_DEG: Final = 20.0
"""Longer than any step of a coast or border, but for those along meridians and parallels."""
_GRID: Final = 4
"""Parts of a step that points are rounded to."""
_WIDTH_INCHES: Final = 12.0
_SIDES_INCHES, _ABOVE_INCHES, _BELOW_INCHES = 0.6, 0.45, 0.65
_DPI: Final = 130
_PARTLY_DEG: Final = 150.0
"""A map of fewer degrees of longitude shows a part of the world."""
_SHAPE: Final = 1.9
"""Width to height of the map of a part of the world."""
_MARGIN: Final = 0.08
SMALLEST_DEG: Final = 8.0
_SLICES: Final = 720
"""Slices of longitude among which a set of points is searched for its widest gap."""
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """What a map shows, in degrees: latitudes `south` to `north`, longitudes `west` to `east`.

    West is within [-360, 180] and east is west of 360 degrees beyond it: a map across the antimeridian goes from 175 to
    185, say.
    """

    south: float
    west: float
    north: float
    east: float

    @property
    def whole(self) -> bool:
        """Whether the map goes around the world."""
        return self.east - self.west >= 360.0

    @property
    def stretch(self) -> float:
        """How many times as long as a degree of longitude one of latitude is drawn."""
        return 1.0 if self.whole else _stretch((self.south + self.north) / 2)

    @property
    def size_inches(self) -> tuple[float, float]:
        """Width and height of the map alone, without what is written around it."""
        width = _WIDTH_INCHES - 2 * _SIDES_INCHES
        return width, width * (self.north - self.south) / (self.east - self.west) * self.stretch

    def turned(self, longitudes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Longitudes (n,) as this map counts them: within [west, west + 360)."""
        return self.west + (longitudes - self.west) % 360.0


def extent(coordinates: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """South, west, north and east of a set of points, in degrees, as they stand.

    Of a set that fits half of the world, the west and the east between which it lies: across the antimeridian the west,
    177 say, is larger than the east, -179 (as in RFC 7946, section 5.2). Of a larger one the smallest and the largest
    longitude.

    Args:
        coordinates: (n, 2) degrees, [latitude, longitude], n at least 1. Read in blocks, up to three times.

    Raises:
        ValueError: as `geoinfer.geodesy.as_coordinates`.
    """
    return _edges(coordinates)[:4]


def world_window(coordinates: NDArray[np.float64]) -> Window:
    """The world from 60 S to 85 N, and farther where there are points beyond.

    Args:
        coordinates: (n, 2) degrees, [latitude, longitude]; n may be 0.

    Raises:
        ValueError: as `geoinfer.geodesy.as_coordinates`.
    """
    south, north = -60.0, 85.0
    for block in blocks(as_coordinates(coordinates)):
        south = max(-90.0, min(south, float(block[:, 0].min()) - 2.0))
        north = min(90.0, max(north, float(block[:, 0].max()) + 2.0))
    return Window(south, -180.0, north, 180.0)


def map_window(coordinates: NDArray[np.float64], *, smallest_deg: float = SMALLEST_DEG) -> Window:
    """The part of the world that holds all points and something of what is around them.

    A set that spans less than `_PARTLY_DEG` is shown by itself, across the antimeridian if it lies there; a larger one
    on a map of the world, from 60 S to 85 N unless there are points beyond.

    Args:
        coordinates: (n, 2) degrees, [latitude, longitude]; of none it is the world. Read in blocks, twice.
        smallest_deg: degrees of latitude, and of longitude, that the map shows at least; up to 90.

    Raises:
        ValueError: as `geoinfer.geodesy.as_coordinates`.
    """
    if not len(coordinates):
        return world_window(coordinates)
    lowest, left, highest, _, span = _edges(coordinates)
    tall = max((highest - lowest) * (1 + 2 * _MARGIN), smallest_deg)
    wide = max(span * (1 + 2 * _MARGIN), smallest_deg)
    shape = _SHAPE * _stretch((lowest + highest) / 2)
    tall = max(tall, wide / shape)
    wide = tall * shape
    if wide >= _PARTLY_DEG:
        return world_window(np.array([[lowest, 0.0], [highest, 0.0]]))
    low = float(np.clip((lowest + highest - tall) / 2, -90.0, 90.0 - tall))
    left += (span - wide) / 2
    return Window(low, left, low + tall, left + wide)


def base_map(window: Window, *, borders: bool = False) -> tuple[Any, Any]:
    """A map to draw on: matplotlib's figure and axes; x is the longitude as `Window.turned` gives it, y the latitude.

    Args:
        window: what to show.
        borders: whether to draw the borders of countries, and finer coasts with them.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import PolyCollection
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "drawing a map needs matplotlib, which is not installed", hint="pip install 'geoinfer-toolkit[report]'"
        ) from error
    wide, high = window.size_inches
    tall = high + _ABOVE_INCHES + _BELOW_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, tall), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_SIDES_INCHES / _WIDTH_INCHES, _BELOW_INCHES / tall, wide / _WIDTH_INCHES, high / tall))
    axes.set(xlim=(window.west, window.east), ylim=(window.south, window.north), facecolor=_SEA)
    _degree_lines(axes, window)
    # The polygons are cut on the far side of the world, where a map of a part of it does not show the cut.
    cut = (window.west + window.east) / 2 - 180.0
    if borders:
        _countries(axes, window, cut)
    else:
        axes.add_collection(
            PolyCollection(
                [polygon[:, ::-1] for polygon in land_polygons(cut)], facecolors=_LAND, edgecolors=_LINES,
                linewidths=0.5,
            )
        )  # fmt: skip
    return figure, axes


def caption(axes: Any, text: str) -> None:
    """Writes a line below the map."""
    axes.set_xlabel(text, fontsize=10, color="#555555", labelpad=6, loc="left")


def check_format(path: Path) -> None:
    """Raises UsageError unless the name of a picture ends in .png or .svg."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path}: a picture is written as {' or '.join(FORMATS)}", hint=f"{path.stem or 'map'}.png, say"
        )


def check_map_path(path: Path) -> None:
    """Finds out before a run what would stop a map from being written at its end, or make it overwrite a picture.

    Raises:
        UsageError: the name ends in neither .png nor .svg.
        OutputError: there is a file of that name that geoinfer did not draw, or no folder to write to.
    """
    check_format(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder", hint="name a file")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}", hint="make it, or choose another file")
    try:
        with path.open("rb") as file:
            ours = _TITLE.encode() in file.read(_TITLE_WITHIN)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    if not ours:
        raise OutputError(f"{path}: exists, and was not drawn by geoinfer", hint="choose another file")


def save_map(figure: Any, path: Path) -> None:
    """Writes a figure as its name says, whole or not at all; the same figure gives the same bytes.

    Raises:
        UsageError: the name ends in neither .png nor .svg.
        OutputError: it cannot be written.
    """
    import matplotlib as mpl

    check_format(path)
    kind = path.suffix.lower().removeprefix(".")
    try:
        # An SVG names the day it was made, and its parts at random, unless told otherwise.
        metadata = {"Title": _TITLE} | ({"Date": None} if kind == "svg" else {})
        with mpl.rc_context({"svg.hashsalt": "geoinfer"}):
            figure.savefig(drawn := io.BytesIO(), format=kind, metadata=metadata)
        with atomic_file(path) as file:
            if kind == "png":
                _write_palette(drawn, file)
            else:
                file.write(drawn.getbuffer())
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _write_palette(drawn: BinaryIO, file: BinaryIO) -> None:
    """Writes a PNG with 256 colours, which a drawing looks the same in, at a third of the size."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    with Image.open(drawn) as image:
        told = PngInfo()
        for key, value in image.info.items():
            if isinstance(value, str):
                told.add_text(str(key), value)
        # Not the median cut, which gives colours away that few pixels have: those of the few points that stand out.
        # The k-means step then gives large areas their own colour back.
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        few.save(file, "PNG", optimize=True, pnginfo=told, dpi=image.info.get("dpi", (96, 96)))


def blocks(coordinates: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Rows of a large, perhaps mapped, array, a million at a time."""
    for start in range(0, len(coordinates), _BLOCK):
        yield np.asarray(coordinates[start : start + _BLOCK], np.float64)


def _edges(coordinates: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    """See `extent`; and how many degrees of longitude the set spans, its widest gap left out."""
    taken = np.zeros(_SLICES, bool)
    south, north = np.inf, -np.inf
    for block in blocks(coordinates):
        as_coordinates(block)
        south, north = min(south, float(block[:, 0].min())), max(north, float(block[:, 0].max()))
        taken[np.floor((block[:, 1] + 180.0) * (_SLICES / 360.0)).astype(np.int64) % _SLICES] = True
    filled = np.flatnonzero(taken)
    # The step to each slice that holds points from the one before; counting begins in the middle of the widest gap, far
    # from where a point and its rounding could fall on either side.
    steps = np.diff(filled, prepend=filled[-1] - _SLICES)
    first = np.argmax(steps)
    origin = float(filled[first] - (steps[first] - 1) / 2) * (360.0 / _SLICES) - 180.0
    west = east = 0.0
    least, most = np.inf, -np.inf
    for block in blocks(coordinates):
        counted = (block[:, 1] - origin) % 360.0
        left, right = int(np.argmin(counted)), int(np.argmax(counted))
        if counted[left] < least:
            least, west = float(counted[left]), float(block[left, 1])
        if counted[right] > most:
            most, east = float(counted[right]), float(block[right, 1])
    wide = most - least
    if wide > 180.0:
        longitudes = [float(edge) for block in blocks(coordinates) for edge in (block[:, 1].min(), block[:, 1].max())]
        west, east = min(longitudes), max(longitudes)
    elif west == -180.0 and east > 0.0:  # both names of the antimeridian, and the order of the two is rounding's
        west = 180.0
    return south, west, north, east, wide


def _stretch(latitude: float) -> float:
    """How many degrees of longitude look as long as one of latitude; beyond 75 degrees no more than there."""
    return float(1.0 / np.cos(np.deg2rad(np.clip(latitude, -75.0, 75.0))))


def _countries(axes: Any, window: Window, cut: float) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    # Edges of their own colour close the hairline along the antimeridian through Fiji and Russia.
    polygons = _seen(country_land(cut), window, closed=True)
    land = PolyCollection(polygons, facecolors=_LAND, edgecolors=_LAND, linewidths=0.3)
    axes.add_collection(land)
    for lines, width in ((coast_lines(cut), 0.5), (border_lines(cut), 0.5)):
        axes.add_collection(LineCollection(_seen(lines, window), colors=_BORDERS, linewidths=width, zorder=2.5))


def _seen(lines: list[NDArray[np.float64]], window: Window, *, closed: bool = False) -> list[NDArray[np.float64]]:
    """What a map shows of lines or, `closed`, polygons, as (m, 2) x and y with no more points than one can see.

    Polygons, and lines that end where they begin, are left out where they are smaller than a step.
    """
    step = (window.east - window.west) / _STEPS
    scale = np.array([step, step / window.stretch]) / _GRID
    corner, opposite = np.array([window.south, window.west]), np.array([window.north, window.east])
    seen = []
    for line in lines:
        (south, west), (north, east) = line.min(axis=0), line.max(axis=0)
        if south > window.north or north < window.south or west > window.east or east < window.west:
            continue
        ring = closed or bool((line[0] == line[-1]).all())
        if ring and east - west < step and (north - south) * window.stretch < step:
            continue
        # What lies far outside is drawn together there, where the map does not show it.
        near = np.clip(line, corner - _BEYOND_DEG, opposite + _BEYOND_DEG)[:, ::-1]
        places = np.round((np.vstack([near, near[:1]]) if closed else near) / scale)
        places = simplified(places, _TOLERANCE * _GRID)
        if len(places) >= (4 if closed else 2):
            seen.append(places * scale)
    return seen


def _degree_lines(axes: Any, window: Window) -> None:
    axes.tick_params(colors="#888888", labelsize=9, length=0)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees((value + 180.0) % 360.0 - 180.0, "E", "W"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "N", "S"))
    if window.whole:
        axes.set_xticks(np.arange(-180, 181, 60))
        # Lines of degrees at the very edge would draw over the frame, and those beyond it would widen the map.
        axes.set_yticks([latitude for latitude in range(-60, 61, 30) if latitude > window.south])
    axes.grid(color=_LINES, linewidth=0.4, zorder=2)
    axes.spines[:].set_color(_LINES)


def _degrees(value: float, positive: str, negative: str) -> str:
    letter = "" if value in (0.0, 180.0, -180.0) else positive if value > 0 else negative
    return f"{abs(value):g}° {letter}".rstrip()
