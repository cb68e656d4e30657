"""Supervised contrastive loss: images of one geocell attract each other, all others repel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trainer.losses.pairs import check_shape, join_memory, pair_logits, weighted_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


def supervised_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    memory_embeddings: Tensor | None = None,
    memory_labels: Tensor | None = None,
) -> Tensor:
    """Eq. 1 of the paper, averaged over the anchors that have a positive.

    Every image is an anchor, the images of its label are its positives, and an anchor is neither its own positive nor
    part of its own denominator. The paper's sum over the batch would grow with the batch; the mean does not, and an
    anchor alone in its cell, for which Eq. 1 divides by zero, is left out of it (P. Khosla et al., "Supervised
    Contrastive Learning", 2020, arXiv 2004.11362, L_out).

    Args:
        embeddings: (n, d) unit rows, floats of any precision.
        labels: (n,) integers, for instance S2 cell identifiers as int64 bit patterns; equal means positive.
        temperature: divides the similarities.
        memory_embeddings: (m, d), candidates that are not anchors, such as a `CrossBatchMemory` holds.
        memory_labels: (m,) their labels.

    Returns:
        A scalar, float64 for float64 embeddings and float32 otherwise; exactly 0 where no anchor has a positive.

    Raises:
        ValueError: shapes or types do not fit together, or the temperature is not above zero.
    """
    check_shape("labels", labels, (None,), "one label for each embedding")
    anchors, candidates, candidate_labels = join_memory(embeddings, labels, memory_embeddings, memory_labels, "labels")
    check_labels(candidate_labels)
    logits = pair_logits(anchors, candidates, temperature)
    return weighted_cross_entropy(logits, positive_weights(labels, candidate_labels, logits.dtype))


def check_labels(labels: Tensor) -> None:
    """Refuses floats with a ValueError: a cell identifier does not survive as one."""
    if labels.is_floating_point():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)}, memory included, are {labels.dtype}; expected integers"
        )


@torch.no_grad()
def positive_weights(labels: Tensor, candidate_labels: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of each pair in the mean of Eq. 1, (n, c).

    A positive pair weighs one over its anchor's number of positives, over the number of anchors that have any; every
    other pair, an anchor with itself included, weighs nothing.

    Args:
        labels: (n,) of the anchors.
        candidate_labels: (c,), of which the first n are the anchors' own.
        dtype: of the result.
    """
    positive = labels[:, None] == candidate_labels[None, :]
    positive.fill_diagonal_(fill_value=False)
    counts = positive.sum(1)
    # The clamps stand for anchors without positives, whose rows are zero whatever they are divided by.
    shares = (counts.clamp(min=1) * (counts > 0).sum().clamp(min=1)).to(dtype).reciprocal()
    return positive.to(dtype).mul_(shares[:, None])
