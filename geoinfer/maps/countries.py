"""Outlines of countries, coasts and borders, finer than those of `land`: to be drawn.

`countries-50m.json` beside this module is Natural Earth's countries at 1:50 million (public domain) as TopoJSON, from
the npm package `world-atlas` 2.0.2. Borders are drawn as Natural Earth draws them: as they are held, not as they are
claimed; Antarctica is without its ice shelves. Fiji is cut in two along the antimeridian; no line is drawn there.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.maps.topojson import Topology, lines_on_map, outlines_of, polygons_of, polygons_on_map, read_topology

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_DATA: Final = Path(__file__).with_name("countries-50m.json")
_SEAM_DEG: Final = 179.999
_POLE_DEG: Final = 89.9


def country_polygons(west: float = -180.0) -> dict[str, list[NDArray[np.float64]]]:
    """Outlines of the countries, ready to be filled on a map of the world that begins anywhere.

    Args:
        west: longitude of the map's western edge, within [-360, 180].

    Returns:
        By Natural Earth's name of the country (English, long ones shortened), polygons as those of
        `geoinfer.maps.land_polygons`. The arrays are the caller's own.
    """
    return {name: [polygon.copy() for polygon in polygons] for name, polygons in _polygons_on_map(west).items()}


def country_land(west: float = -180.0) -> list[NDArray[np.float64]]:
    """All countries as one land, without the borders between them; see `country_polygons`."""
    return [polygon.copy() for polygon in _land_on_map(west)]


def coast_lines(west: float = -180.0) -> list[NDArray[np.float64]]:
    """Coasts, as lines on a map of the world that begins at the longitude `west`, within [-360, 180].

    Returns:
        (m, 2) float64 each, degrees, [latitude, longitude], longitudes within [west, west + 360] and continuous: what
        crosses the edge of the map is cut in two there. The arrays are the caller's own.
    """
    return [line.copy() for line in _lines_on_map(west)[0]]


def border_lines(west: float = -180.0) -> list[NDArray[np.float64]]:
    """Borders between two countries; see `coast_lines`."""
    return [line.copy() for line in _lines_on_map(west)[1]]


@functools.lru_cache(maxsize=4)
def _polygons_on_map(west: float) -> dict[str, list[NDArray[np.float64]]]:
    return {name: polygons_on_map(outlines, west) for name, outlines in _outlines().items()}


@functools.lru_cache(maxsize=4)
def _land_on_map(west: float) -> list[NDArray[np.float64]]:
    topology = _topology()
    outlines = [outline for shape in topology.geometries["land"] for outline in outlines_of(shape, topology.arcs)]
    return polygons_on_map(outlines, west)


@functools.lru_cache(maxsize=4)
def _lines_on_map(west: float) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    coasts, borders = _lines()
    return lines_on_map(coasts, west), lines_on_map(borders, west)


@functools.cache
def _topology() -> Topology:
    return read_topology(_DATA)


@functools.cache
def _outlines() -> dict[str, list[NDArray[np.float64]]]:
    topology = _topology()
    found: dict[str, list[NDArray[np.float64]]] = {}
    for geometry in topology.geometries["countries"]:
        found.setdefault(geometry["properties"]["name"], []).extend(outlines_of(geometry, topology.arcs))
    return found


@functools.cache
def _lines() -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Coasts, and borders: an arc of one country is a coast, an arc that two share is a border."""
    topology = _topology()
    used = Counter(
        max(arc, ~arc)  # ~i is arc i walked backwards
        for geometry in topology.geometries["countries"]
        for polygon in polygons_of(geometry)
        for ring in polygon
        for arc in ring
    )
    coasts: list[NDArray[np.float64]] = []
    borders: list[NDArray[np.float64]] = []
    for arc, times in used.items():
        (coasts if times == 1 else borders).extend(_without_seams(topology.arcs[arc]))
    return coasts, borders


def _without_seams(line: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """The parts of a line that do not run along the antimeridian or a pole."""
    at_seam, at_pole = np.abs(line[:, 1]) > _SEAM_DEG, np.abs(line[:, 0]) > _POLE_DEG
    along = (at_seam[:-1] & at_seam[1:]) | (at_pole[:-1] & at_pole[1:])
    for part in np.split(np.arange(len(line)), np.flatnonzero(along) + 1):
        if len(part) > 1:
            yield line[part]
