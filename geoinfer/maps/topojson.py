"""Reads outlines from TopoJSON, and cuts polygons and lines to a map of the world that begins anywhere.

The format is that of the TopoJSON format specification (github.com/topojson/topojson-specification). Points here are
[latitude, longitude] in degrees, as everywhere; in the files they are the other way round.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_TURNS: Final = (-720.0, -360.0, 0.0, 360.0, 720.0)
_POLE: Final = 89.9
"""A ring that lies beyond this latitude with all its points is a pole, not land."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A file, decoded.

    Attributes:
        arcs: (m, 2) float64 degrees each.
        geometries: of each object by name, polygons and multipolygons as the file has them.
    """

    arcs: list[NDArray[np.float64]]
    geometries: dict[str, list[dict[str, Any]]]


def read_topology(path: Path) -> Topology:
    """Reads a quantised topology: arcs are steps from the point before, to be scaled and moved (2.1.2 and 2.1.3)."""
    topology = json.loads(path.read_text(encoding="utf-8"))
    scale, translate = (np.array(topology["transform"][key], np.float64) for key in ("scale", "translate"))
    arcs = [(np.cumsum(np.array(arc, np.int64), axis=0) * scale + translate)[:, ::-1] for arc in topology["arcs"]]
    return Topology(arcs, {name: item["geometries"] for name, item in topology["objects"].items()})


def polygons_of(geometry: dict[str, Any]) -> list[list[list[int]]]:
    """The polygons of a geometry, each a list of rings, each a list of arcs."""
    return [geometry["arcs"]] if geometry["type"] == "Polygon" else geometry["arcs"]


def outlines_of(geometry: dict[str, Any], arcs: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Outlines (m, 2) of a geometry with their holes cut in, longitudes continuous and beyond 180 where they must be.

    What goes around a pole is closed along it.
    """
    outlines: list[NDArray[np.float64]] = []
    for rings in polygons_of(geometry):
        joined = [_join(ring, arcs) for ring in rings]
        # Antarctica may be a ring at the pole with the coast for its hole: what is between them is the land.
        outline, *holes = [_unwrap(ring) for ring in joined if np.abs(ring[:, 0]).min() < _POLE]
        for hole in holes:
            outline = _cut_hole(outline, hole)
        outlines.append(outline)
    return outlines


def polygons_on_map(outlines: Iterable[NDArray[np.float64]], west: float) -> list[NDArray[np.float64]]:
    """Outlines cut to the map from `west`, within [-360, 180], to 360 degrees east of it; none of no width."""
    polygons: list[NDArray[np.float64]] = []
    for outline in outlines:
        for turn in _TURNS:
            piece = _clip_ring(outline + np.array([0.0, turn]), west)
            if len(piece) >= 3:
                polygons.append(piece)
    return polygons


def lines_on_map(lines: Iterable[NDArray[np.float64]], west: float) -> list[NDArray[np.float64]]:
    """Lines (m, 2) cut to the map from `west`, within [-360, 180], to 360 degrees east of it.

    A step of more than 180 degrees of longitude is one across the antimeridian, and shorter the other way round.
    """
    pieces: list[NDArray[np.float64]] = []
    for line in lines:
        continuous = np.column_stack([line[:, 0], np.unwrap(line[:, 1], period=360.0)])
        for turn in _TURNS:
            pieces += _clip_line(continuous + np.array([0.0, turn]), west)
    return pieces


def _join(ring: list[int], arcs: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One ring from its arcs, the last point not repeated. The index ~i stands for arc i walked backwards."""
    parts = [arcs[index] if index >= 0 else arcs[~index][::-1] for index in ring]
    return np.concatenate([part[:-1] for part in parts])  # an arc starts where the one before it ends


def _unwrap(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Makes longitudes continuous, leaving [-180, 180]; a ring around a pole is closed along that pole."""
    longitude = np.unwrap(np.append(ring[:, 1], ring[0, 1]), period=360.0)
    closed = np.column_stack([np.append(ring[:, 0], ring[0, 0]), longitude])
    if abs(longitude[-1] - longitude[0]) < 180.0:
        return closed[:-1]
    pole = np.copysign(90.0, ring[:, 0].mean())
    return np.concatenate([closed, [[pole, longitude[-1]], [pole, longitude[0]]]])


def _cut_hole(outline: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """One polygon of an outline and a hole: walks to the hole at the narrowest place, around it and back."""
    turns = np.round((outline[:, 1].mean() - hole[:, 1].mean()) / 360.0)
    hole = hole + np.array([0.0, 360.0 * turns])
    squared = np.sum((outline[:, None] - hole[None]) ** 2, axis=-1)
    here, there = np.unravel_index(np.argmin(squared), squared.shape)
    around = np.roll(hole, -there, axis=0)
    return np.concatenate([outline[: here + 1], around, around[:1], outline[here:]])


def _clip_ring(ring: NDArray[np.float64], west: float) -> NDArray[np.float64]:
    """The part of a ring between `west` and 360 degrees east of it.

    I. E. Sutherland and G. W. Hodgman, "Reentrant Polygon Clipping", Communications of the ACM 17, 1974.
    """
    for edge, side in ((west, 1.0), (west + 360.0, -1.0)):
        inside = side * ring[:, 1] >= side * edge
        if inside.all():
            continue
        if not inside.any():
            return ring[:0]
        kept: list[NDArray[np.float64]] = []
        for i, point in enumerate(ring):
            before = ring[i - 1]
            if inside[i] != inside[i - 1]:
                part = (edge - before[1]) / (point[1] - before[1])
                kept.append(np.array([before[0] + part * (point[0] - before[0]), edge]))
            if inside[i]:
                kept.append(point)
        ring = np.array(kept).reshape(-1, 2)
    if np.ptp(ring[:, 1]) == 0.0:  # it only touches the edge of the map
        return ring[:0]
    return ring


def _clip_line(line: NDArray[np.float64], west: float) -> list[NDArray[np.float64]]:
    """The parts of a line between `west` and 360 degrees east of it, of two points and more each."""
    east = west + 360.0
    if line[:, 1].min() >= west and line[:, 1].max() <= east:
        return [line] if len(line) > 1 else []
    if line[:, 1].max() < west or line[:, 1].min() > east:
        return []
    for edge in (west, east):
        line = _with_crossings(line, edge)
    middles = (line[:-1, 1] + line[1:, 1]) / 2
    kept = (middles >= west) & (middles <= east)
    starts = np.flatnonzero(kept & ~np.append(False, kept[:-1]))
    ends = np.flatnonzero(kept & ~np.append(kept[1:], False))
    return [line[start : end + 2] for start, end in zip(starts, ends, strict=True)]


def _with_crossings(line: NDArray[np.float64], edge: float) -> NDArray[np.float64]:
    """A line with a point of its own wherever it crosses a meridian."""
    beyond = line[:, 1] - edge
    steps = np.flatnonzero(beyond[:-1] * beyond[1:] < 0.0)
    part = beyond[steps] / (beyond[steps] - beyond[steps + 1])
    points = line[steps] + part[:, None] * (line[steps + 1] - line[steps])
    points[:, 1] = edge
    return np.insert(line, steps + 1, points, axis=0)
