"""S2 geocells: the identifier of the cell that holds a point, at any level.

The whole way from degrees to an identifier is that of s2sphere, operation by operation, so that every bit agrees, on
the edges of cells as well: arithmetic, roots and rounding are exact to the last bit in NumPy as in Python, and sines
and cosines, which NumPy computes by code of its own, are taken from Python's `math`, as s2sphere takes them. The
geometry is described at s2geometry.io, "S2 Cells": a point is projected onto one of six faces of a cube, its place on
the face is stretched so that cells become more alike in size, and a Hilbert curve numbers the cells of the face.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.geodesy import as_coordinates

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MAX_LEVEL = 30

_BLOCK: Final = 1 << 15
"""Points at once: what lies between degrees and identifiers then stays in a core's cache."""

_SWAP, _INVERT = 1, 2
_VISITED: Final = ((0, 1, 3, 2), (0, 2, 3, 1), (3, 2, 0, 1), (3, 1, 0, 2))
"""By orientation of the Hilbert curve: the quarters, 2 i + j, in the order in which the curve visits them."""
_TURNED: Final = (_SWAP, 0, 0, _SWAP | _INVERT)
"""How the curve's orientation changes in each quarter that it visits."""
_STEP_LEVELS: Final = 4
"""Levels that one look into the table descends."""


def leaf_cells(coordinates: ArrayLike) -> NDArray[np.uint64]:
    """Level-30 S2 cell identifiers, (n,) uint64, of coordinates (n, 2) in degrees.

    The memory needed beside the answer does not grow with n.

    Raises:
        ValueError: a coordinate is out of range or not finite.
    """
    points = as_coordinates(coordinates)
    leaves = np.empty(len(points), np.uint64)
    for start in range(0, len(points), _BLOCK):
        block = slice(start, start + _BLOCK)
        leaves[block] = _leaves(points[block])
    return leaves


def parent_cells(leaves: NDArray[np.uint64], level: int) -> NDArray[np.uint64]:
    """The cells of `level` that hold the given cells, (n,) uint64, by bit operations.

    An S2 identifier is three bits of face, two bits a level of position along the Hilbert curve, a one and zeros; the
    parent at `level` keeps the bits above that level, sets the one and clears the rest (s2geometry.io, "S2 Cells").

    Raises:
        ValueError: `level` is outside 0 to 30.
    """
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"S2 level {level} is outside 0 to {MAX_LEVEL}")
    lowest_bit = np.uint64(1 << (2 * (MAX_LEVEL - level)))
    return (leaves & (~lowest_bit + np.uint64(1))) | lowest_bit


def cell_ids(coordinates: ArrayLike, level: int) -> NDArray[np.uint64]:
    """S2 cell identifiers of `level`, (n,) uint64, of coordinates (n, 2) in degrees."""
    return parent_cells(leaf_cells(coordinates), level)


def _leaves(points: NDArray[np.float64]) -> NDArray[np.uint64]:
    """`leaf_cells` of one block."""
    latitude, longitude = (points * (math.pi / 180.0)).T.tolist()
    count = len(latitude)
    cos_latitude = np.fromiter(map(math.cos, latitude), np.float64, count)
    x = np.fromiter(map(math.cos, longitude), np.float64, count) * cos_latitude
    y = np.fromiter(map(math.sin, longitude), np.float64, count) * cos_latitude
    z = np.fromiter(map(math.sin, latitude), np.float64, count)
    face, u, v = _onto_cube(x, y, z)
    return _along_curve(face, _grid(u), _grid(v))


def _onto_cube(
    x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Face of the cube, 0 to 5, and the place on it, u and v within [-1, 1]; between equals the later axis wins."""
    far_x, far_y, far_z = np.abs(x), np.abs(y), np.abs(z)
    axis = np.where(far_x > far_y, np.where(far_x > far_z, 0, 2), np.where(far_y > far_z, 1, 2))
    along = np.choose(axis, (x, y, z))
    behind = along < 0
    # On the three faces behind, u and v change places and signs; division by a negative number turns the signs already.
    u = np.choose(axis, (np.where(behind, z, y), np.where(behind, z, -x), np.where(behind, -y, -x))) / along
    v = np.choose(axis, (np.where(behind, y, z), np.where(behind, -x, z), np.where(behind, -x, -y))) / along
    return axis + 3 * behind, u, v


def _grid(u: NDArray[np.float64]) -> NDArray[np.int64]:
    """Row or column of the leaf cell, 0 to 2^30 - 1, by S2's quadratic stretch of the face."""
    root = np.sqrt(1.0 + 3.0 * np.abs(u))
    stretched = np.where(u >= 0.0, 0.5 * root, 1.0 - 0.5 * root)
    size = 1 << MAX_LEVEL
    return np.clip(np.floor(size * stretched), 0.0, size - 1.0).astype(np.int64)


def _along_curve(face: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Identifiers of the leaf cells (i, j) of each face, several levels of the Hilbert curve at a time."""
    table, low = _curve_table(), (1 << _STEP_LEVELS) - 1
    identifiers = face << (2 * MAX_LEVEL)
    state = face & _SWAP
    # The two levels above the face's own that the first step goes through turn the curve twice, which is not at all.
    for shift in range(MAX_LEVEL + 2 - _STEP_LEVELS, -1, -_STEP_LEVELS):
        square = ((i >> shift) & low) << _STEP_LEVELS | ((j >> shift) & low)
        found = table[square << 2 | state]
        identifiers |= (found >> 2) << (2 * shift)
        state = found & (_SWAP | _INVERT)
    return identifiers.view(np.uint64) << np.uint64(1) | np.uint64(1)


@functools.cache
def _curve_table() -> NDArray[np.int64]:
    """By i and j (`_STEP_LEVELS` bits each) and orientation (2 bits): place along the curve, and orientation there."""
    table = np.empty(4 << (2 * _STEP_LEVELS), np.int64)

    def descend(levels: int, i: int, j: int, entered: int, place: int, orientation: int) -> None:
        if levels == _STEP_LEVELS:
            table[(i << _STEP_LEVELS | j) << 2 | entered] = place << 2 | orientation
            return
        for step, quarter in enumerate(_VISITED[orientation]):
            turned = orientation ^ _TURNED[step]
            descend(levels + 1, i << 1 | quarter >> 1, j << 1 | quarter & 1, entered, place << 2 | step, turned)

    for orientation in range(4):
        descend(0, 0, 0, orientation, 0, orientation)
    table.flags.writeable = False
    return table
