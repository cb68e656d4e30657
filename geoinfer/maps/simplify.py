"""Lines with fewer points, which look the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def simplified(line: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Leaves out points of a line, none of which is farther from what is left than a tolerance.

    D. H. Douglas and T. K. Peucker, "Algorithms for the Reduction of the Number of Points Required to Represent a
    Digitized Line or its Caricature", Cartographica 10, 1973.

    Args:
        line: (m, 2) x and y; a ring begins and ends in the same point.
        tolerance: 0 or more, in units of x and y.

    Returns:
        (k, 2), k at most m: some of the points in their order, the first and the last among them; a single one of a
        line that does not leave the tolerance around the point where it begins and ends.
    """
    kept = np.zeros(len(line), bool)
    kept[[0, -1]] = True
    waiting = [(0, len(line) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        away = _distances(line[first + 1 : last], line[first], line[last])
        farthest = int(np.argmax(away))
        if away[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            waiting += [(first, middle), (middle, last)]
    left = line[kept]
    return left[:1] if len(left) == 2 and (left[0] == left[1]).all() else left


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) from points (n, 2) to the piece of a straight line between two others."""
    along = end - start
    squared = float(along @ along)
    beside = points - start
    if squared > 0.0:
        beside -= np.clip(beside @ along / squared, 0.0, 1.0)[:, None] * along
    return np.hypot(beside[:, 0], beside[:, 1])
