"""Hierarchical supervised contrastive loss: the weighted sum over several S2 levels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from trainer.losses.pairs import check_shape, join_memory, pair_logits, weighted_cross_entropy
from trainer.losses.supcon import check_labels, positive_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def hierarchical_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    weights: Sequence[float],
    *,
    temperature: float = 0.07,
    memory_embeddings: Tensor | None = None,
    memory_labels: Tensor | None = None,
) -> Tensor:
    """The loss of the paper's appendix A.2: the sum over levels of weight x supervised contrastive loss.

    Each level's loss is the mean over the anchors that have a positive at that level. The similarities and their
    softmax are the same at all levels and are computed once.

    Args:
        embeddings: (n, d) unit rows, floats of any precision.
        labels: (n, L) integers, a column a level, for instance S2 cells as int64 bit patterns.
        weights: L numbers, not negative.
        temperature: divides the similarities.
        memory_embeddings: (m, d), candidates that are not anchors, such as a `CrossBatchMemory` holds.
        memory_labels: (m, L) their labels.

    Returns:
        A scalar, float64 for float64 embeddings and float32 otherwise; exactly 0 where no anchor has a positive.

    Raises:
        ValueError: shapes or types do not fit together, a weight is negative or not finite, or the temperature is not
            above zero.
    """
    check_shape("labels", labels, (None, len(weights)), "a row for each embedding, a column for each weight")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"weights are {list(weights)}; expected numbers that are not negative")
    anchors, candidates, candidate_labels = join_memory(embeddings, labels, memory_embeddings, memory_labels, "labels")
    check_labels(candidate_labels)
    logits = pair_logits(anchors, candidates, temperature)
    pair_weights = torch.zeros_like(logits)
    for level, weight in enumerate(weights):
        level_weights = positive_weights(labels[:, level], candidate_labels[:, level], logits.dtype)
        pair_weights.add_(level_weights, alpha=weight)
    return weighted_cross_entropy(logits, pair_weights)
