"""S2 geocells: the identifier of the cell that holds a point, at any level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import s2sphere

from geoinfer.geodesy import as_coordinates

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MAX_LEVEL = 30


def leaf_cells(coordinates: ArrayLike) -> NDArray[np.uint64]:
    """Level-30 S2 cell identifiers, (n,) uint64, of coordinates (n, 2) in degrees.

    Raises:
        ValueError: a coordinate is out of range or not finite.
    """
    points = as_coordinates(coordinates)
    leaves = [s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(lat, lon)).id() for lat, lon in points.tolist()]
    return np.array(leaves, dtype=np.uint64)


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
