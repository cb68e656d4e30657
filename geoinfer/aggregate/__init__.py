"""From the neighbours of a query to one place on the Earth.

Six ways, all of them on the sphere. Which knows a temperature or a bandwidth, `geoinfer.answer.PARAMETERS` says.

- `top1`: the place of the most similar reference.
- `mean`: the geographic mean of the k neighbours, weighted by similarity (the founding paper's second algorithm).
- `median`: the geometric median: the smallest weighted sum of great-circle distances. One stray does not move it far.
- `density`: the mode of a von Mises-Fisher kernel density over the k neighbours, weighted by the exponential of the
  similarity: neighbours that are about as similar vote, and one that stands out decides alone. Where the mean of Lisbon
  and Sydney is an ocean, the mode is in one of the two.
- `cells`: a vote of S2 cells from coarse to fine, see `geoinfer.aggregate.cells`.
- `geoscore`: the place of the largest expected GeoScore: between the density's mode, which looks no further than its
  bandwidth, and the median, to which what is far matters as much as what is near.

An answer depends on its own neighbours alone, to the last bit: not on the batch it is in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.aggregate.cells import cell_vote
from geoinfer.aggregate.density import density_mode
from geoinfer.aggregate.nearest_to_all import best_geoscore, geometric_median
from geoinfer.aggregate.weights import neighbor_weights
from geoinfer.answer import METHODS
from geoinfer.geodesy import spherical_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.answer import Answer

__all__ = ["METHODS", "aggregate"]

_QUERIES_AT_ONCE: Final = 128


def aggregate(
    coordinates: NDArray[np.float64], similarities: NDArray[np.float32], answer: Answer
) -> NDArray[np.float64]:
    """One place for each query.

    Args:
        coordinates: (q, k, 2) degrees of the neighbours, the most similar first; k at least 1.
        similarities: (q, k) float32, descending; -inf for a neighbour that does not count, the first excepted.
        answer: how; its `k` is not looked at: all neighbours given count.

    Returns:
        (q, 2) float64 degrees.
    """
    if answer.aggregate == "top1":
        return coordinates[:, 0].copy()
    weights = neighbor_weights(similarities, answer.used_temperature)
    places = np.empty((len(weights), 2))
    # Most look at every pair of neighbours of every query, so not at all queries at once.
    for start in range(0, len(weights), _QUERIES_AT_ONCE):
        some = slice(start, start + _QUERIES_AT_ONCE)
        places[some] = _places(coordinates[some], weights[some], answer)
    return places


def _places(coordinates: NDArray[np.float64], weights: NDArray[np.float64], answer: Answer) -> NDArray[np.float64]:
    if answer.aggregate == "density":
        assert answer.used_bandwidth_km is not None
        return density_mode(coordinates, weights, answer.used_bandwidth_km)
    if answer.aggregate == "median":
        return geometric_median(coordinates, weights)
    if answer.aggregate == "geoscore":
        return best_geoscore(coordinates, weights)
    if answer.aggregate == "cells":
        return cell_vote(coordinates, weights)
    # Where the neighbours cancel out (antipodes), the mean is undefined and the heaviest of them stands in.
    return spherical_mean(coordinates, weights)[0]
