"""Where land is: outlines to draw, and a mask to ask.

`land-110m.json` beside this module is Natural Earth's land at 1:110 million (public domain) as TopoJSON, from the npm
package `world-atlas` 2.0.2. At that scale a coast is true to some 20 km, small islands are missing, and the Caspian
is the only lake that is cut out.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw

from geoinfer.geodesy import as_coordinates
from geoinfer.maps.topojson import outlines_of, polygons_on_map, read_topology

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_DATA: Final = Path(__file__).with_name("land-110m.json")

_CELL_DEG: Final = 0.125
_SHARE_CELL_DEG: Final = 0.5
_SHARE_SCALE_DEG: Final = 0.5


def land_polygons(west: float = -180.0) -> list[NDArray[np.float64]]:
    """Outlines of the land, ready to be filled on a map of the world that begins anywhere.

    Args:
        west: longitude of the map's western edge, within [-360, 180].

    Returns:
        (m, 2) float64 each, degrees, [latitude, longitude], not repeating the first point. Longitudes are within
        [west, west + 360] and jump nowhere but along the south pole: what crosses the edge of the map is cut in two
        along it, Antarctica is closed along the pole, and the Caspian is joined to its coast by a cut of no width, so
        that each polygon can be filled by itself. The arrays are the caller's own.
    """
    return [polygon.copy() for polygon in _polygons(west)]


def is_land(coordinates: ArrayLike) -> NDArray[np.bool_]:
    """Whether points lie on land, to the precision of the outlines and of a mask of an eighth of a degree.

    Args:
        coordinates: (n, 2) degrees, [latitude, longitude].

    Returns:
        (n,) bool.

    Raises:
        ValueError: as `geoinfer.geodesy.as_coordinates`.
    """
    points = as_coordinates(coordinates)
    mask = _mask()
    rows, columns = mask.shape
    row = np.clip(np.floor((90.0 - points[:, 0]) / _CELL_DEG).astype(np.int64), 0, rows - 1)
    column = np.floor((points[:, 1] + 180.0) / _CELL_DEG).astype(np.int64) % columns
    return mask[row, column]


def land_share(coordinates: ArrayLike) -> NDArray[np.float64]:
    """How much of the surroundings is land: 1 far inland, about a half on a straight coast, 0 far out at sea.

    The mask under a Gaussian window of standard deviation half a degree of latitude (56 km, and as many km from west
    to east), interpolated between cells: continuous everywhere, the antimeridian included.

    Args:
        coordinates: (n, 2) degrees, [latitude, longitude].

    Returns:
        (n,) float64 within [0, 1].

    Raises:
        ValueError: as `geoinfer.geodesy.as_coordinates`.
    """
    points = as_coordinates(coordinates)
    field = _share()
    rows, columns = field.shape
    # Cell centres are half a cell off the edges of the map.
    y = np.clip((90.0 - points[:, 0]) / _SHARE_CELL_DEG - 0.5, 0.0, rows - 1.0)
    x = (points[:, 1] + 180.0) / _SHARE_CELL_DEG - 0.5
    top = np.minimum(np.floor(y).astype(np.int64), rows - 2)
    left = np.floor(x).astype(np.int64)
    down, right = y - top, x - left
    west, east = left % columns, (left + 1) % columns
    upper = field[top, west] * (1 - right) + field[top, east] * right
    lower = field[top + 1, west] * (1 - right) + field[top + 1, east] * right
    return np.clip(upper * (1 - down) + lower * down, 0.0, 1.0)


@functools.lru_cache(maxsize=4)
def _polygons(west: float) -> tuple[NDArray[np.float64], ...]:
    """See `land_polygons`."""
    return tuple(polygons_on_map(_outlines(), west))


@functools.cache
def _outlines() -> tuple[NDArray[np.float64], ...]:
    topology = read_topology(_DATA)
    return tuple(
        outline for geometry in topology.geometries["land"] for outline in outlines_of(geometry, topology.arcs)
    )


@functools.cache
def _mask() -> NDArray[np.bool_]:
    """Land as (rows, columns) bool, north at the top, cells of `_CELL_DEG`."""
    image = Image.new("L", (round(360 / _CELL_DEG), round(180 / _CELL_DEG)))
    draw = ImageDraw.Draw(image)
    for polygon in _polygons(-180.0):
        # Pillow's coordinates name centres of pixels, hence the half.
        x = (polygon[:, 1] + 180.0) / _CELL_DEG - 0.5
        y = (90.0 - polygon[:, 0]) / _CELL_DEG - 0.5
        draw.polygon([*zip(x.tolist(), y.tolist(), strict=True)], fill=1)
    mask = np.asarray(image).astype(bool)
    mask.flags.writeable = False
    return mask


@functools.cache
def _share() -> NDArray[np.float64]:
    """The mask blurred over the sphere, (rows, columns) float64, cells of `_SHARE_CELL_DEG`."""
    mask = _mask()
    step = round(_SHARE_CELL_DEG / _CELL_DEG)
    rows, columns = mask.shape[0] // step, mask.shape[1] // step
    coarse = mask.reshape(rows, step, columns, step).mean(axis=(1, 3))
    sigma = _SHARE_SCALE_DEG / _SHARE_CELL_DEG
    # From west to east by the Fourier transform of a Gaussian, which closes the circle at the antimeridian by itself
    # and takes a width of its own in each row: a degree of longitude shrinks with the cosine of the latitude.
    latitude = np.deg2rad(90.0 - (np.arange(rows) + 0.5) * _SHARE_CELL_DEG)
    frequency = np.fft.rfftfreq(columns)
    gain = np.exp(-2.0 * (np.pi * frequency * sigma / np.cos(latitude)[:, None]) ** 2)
    blurred = np.fft.irfft(np.fft.rfft(coarse, axis=1) * gain, n=columns, axis=1)
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(blurred, ((reach, reach), (0, 0)), mode="edge")
    field = sum(weight * padded[i : i + rows] for i, weight in enumerate(kernel / kernel.sum()))
    return np.asarray(field, np.float64)
