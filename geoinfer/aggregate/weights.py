"""From similarities to weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def neighbor_weights(similarities: NDArray[np.float32], temperature: float | None) -> NDArray[np.float64]:
    """(q, k) similarities to weights of the same shape that sum to 1 in each row.

    Args:
        similarities: finite, or -inf for a neighbour that does not count; the first of a row is finite.
        temperature: see `geoinfer.answer.PARAMETERS`; None weighs in proportion to the similarity.
    """
    return similarity_weights(similarities) if temperature is None else exponential_weights(similarities, temperature)


def similarity_weights(similarities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weights in proportion to the similarity.

    Negative similarities weigh nothing; a row without a positive one is weighted evenly.
    """
    weights = np.maximum(similarities.astype(np.float64), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    counted = np.isfinite(similarities)
    even = counted / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    return np.divide(weights, total, out=even, where=total > 0)


def exponential_weights(similarities: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Weights in proportion to exp(similarity / temperature)."""
    s = similarities.astype(np.float64)
    weights: NDArray[np.float64] = np.exp((s - s.max(axis=1, keepdims=True)) / temperature)
    return weights / weights.sum(axis=1, keepdims=True)
