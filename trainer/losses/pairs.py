"""What the losses over pairs of images share: checked tensors, similarities, and a weighted cross-entropy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def check_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], meaning: str) -> None:
    """Refuses a tensor of another shape.

    Args:
        name: what the caller calls the tensor.
        tensor: any.
        expected: the sizes, None where any will do.
        meaning: what the expected shape stands for, in words.

    Raises:
        ValueError: the shape is another one; the message names the tensor, its shape and what is expected.
    """
    shape = tuple(tensor.shape)
    fits = len(shape) == len(expected) and all(
        want is None or want == have for have, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        wanted += "," if len(expected) == 1 else ""
        raise ValueError(f"{name} has shape {shape}; expected ({wanted}), {meaning}")


def check_positive(name: str, value: float) -> None:
    """Refuses a setting that is not a finite number above zero, with a ValueError."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; expected a number above zero")


def join_memory(
    embeddings: Tensor,
    companions: Tensor,
    memory_embeddings: Tensor | None,
    memory_companions: Tensor | None,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Puts the memory's rows after the batch's, so that candidate i is anchor i itself for every i below n.

    Args:
        embeddings: (n, d) floats.
        companions: (n, ...), what belongs to each row: its label or its coordinates.
        memory_embeddings: (m, d) or None.
        memory_companions: (m, ...) or None.
        name: what the companions are called in a message.

    Returns:
        The anchors (n, d), float64 if they were and float32 otherwise; the candidates (n + m, d) of the same type; and
        the candidates' companions (n + m, ...).

    Raises:
        ValueError: shapes do not fit together, one half of the memory is missing, or embeddings are not floats.
    """
    check_shape("embeddings", embeddings, (None, None), "one embedding a row")
    if not embeddings.is_floating_point():
        raise ValueError(f"embeddings of shape {tuple(embeddings.shape)} are {embeddings.dtype}; expected floats")
    count, dim = embeddings.shape
    check_shape(name, companions, (count, *companions.shape[1:]), "one row for each embedding")
    anchors = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    if memory_embeddings is None and memory_companions is None:
        return anchors, anchors, companions
    if memory_embeddings is None or memory_companions is None:
        raise ValueError(f"memory_embeddings and memory_{name} come together; one of them is missing")
    check_shape("memory_embeddings", memory_embeddings, (None, dim), "rows as wide as the batch's embeddings")
    check_shape(
        f"memory_{name}",
        memory_companions,
        (len(memory_embeddings), *companions.shape[1:]),
        f"one row for each remembered embedding, shaped as those of {name}",
    )
    return (
        anchors,
        torch.cat([anchors, memory_embeddings.to(anchors.dtype)]),
        torch.cat([companions, memory_companions]),
    )


def pair_logits(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """Dot products over the temperature, (n, n + m), with an anchor's pairing with itself out of the running.

    The diagonal holds the lowest finite number and not minus infinity: the softmax gives it nothing all the same, and a
    weight of zero times it stays zero, where zero times infinity would put NaN into losses and gradients.

    Raises:
        ValueError: the temperature is not above zero.
    """
    check_positive("temperature", temperature)
    with torch.autocast(anchors.device.type, enabled=False):
        logits = (anchors / temperature) @ candidates.T
    return logits.fill_diagonal_(torch.finfo(logits.dtype).min)


def weighted_cross_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """The sum over all pairs of -weight x log softmax(logits), the softmax taken over each row.

    Every contrastive loss here is this sum, with weights of its own. Writing a row as (its total weight) x logsumexp -
    weights . logits leaves one logsumexp, however many levels or positives went into the weights.

    Args:
        logits: (n, c) of `pair_logits`.
        weights: (n, c), not negative, zero on the diagonal, without gradient.

    Returns:
        A scalar. Rows without weight add exactly zero to it and to the gradients.
    """
    return (weights.sum(1) * torch.logsumexp(logits, 1) - (weights * logits).sum(1)).sum()
