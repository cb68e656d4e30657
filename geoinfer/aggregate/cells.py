"""A vote of S2 cells from coarse to fine, backing off where the neighbours disagree.

The cells of level 2 (some 2300 km wide) vote with the weights of the neighbours in them, and the heaviest wins. Inside
it the cells of the next level vote likewise, and so on to level 14 (some 500 m), as long as the winner keeps at least
half of the weight of the cell around it. The answer is the weighted geographic mean of the neighbours in the last cell
that did: a village where they agree on one, a country where they agree on no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.geocells import leaf_cells, parent_cells
from geoinfer.geodesy import spherical_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

COARSEST_LEVEL: Final = 2
FINEST_LEVEL: Final = 14
LEAST_SHARE: Final = 0.5


def cell_vote(coordinates: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the neighbours in the cell that wins.

    Args:
        coordinates: (q, k, 2) degrees; the more similar neighbour first, whose cell wins among equals.
        weights: (q, k), not negative.

    Returns:
        (q, 2) degrees.
    """
    leaves = leaf_cells(coordinates.reshape(-1, 2)).reshape(weights.shape)
    inside = np.ones(weights.shape, bool)
    votes = np.full(len(weights), -1.0)
    walking = np.arange(len(weights))
    for level in range(COARSEST_LEVEL, FINEST_LEVEL + 1):
        cells = parent_cells(leaves[walking], level)
        kept = np.where(inside[walking], weights[walking], 0.0)
        together = cells[:, :, None] == cells[:, None, :]
        # Equal sums added up in another order differ in their last bits.
        totals = np.round(np.einsum("qij,qj->qi", together, kept), 12)
        winner = np.argmax(np.where(inside[walking], totals, -1.0), axis=1)
        here = np.arange(len(walking))
        total = totals[here, winner]
        agreed = total >= LEAST_SHARE * votes[walking]
        walking, here, winner = walking[agreed], here[agreed], winner[agreed]
        votes[walking] = total[agreed]
        inside[walking] &= together[here, winner]
        if len(walking) == 0:
            break
    return spherical_mean(coordinates, np.where(inside, weights, 0.0))[0]
