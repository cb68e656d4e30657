"""Triplet margin loss on squared distances, triplets formed from the coordinates within the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch

from trainer.losses.pairs import check_shape, join_memory
from trainer.losses.spherical import chord_lengths, chord_of_km

if TYPE_CHECKING:
    from torch import Tensor

Mining = Literal["farthest", "semi_hard"]


def triplet_margin_loss(
    embeddings: Tensor,
    coordinates: Tensor,
    *,
    margin: float = 0.2,
    mining: Mining = "farthest",
    negative_km: float = 200.0,
    memory_embeddings: Tensor | None = None,
    memory_coordinates: Tensor | None = None,
) -> Tensor:
    """Eq. 2 of the paper, max(|a - p|^2 - |a - n|^2 + margin, 0), averaged over the anchors that have a triplet.

    Every image is an anchor, and its positive is the geographically nearest other image. The negative depends on
    `mining`:

    `farthest`, as in the paper: the geographically farthest image. An anchor none of whose candidates is farther than
    its nearest has no triplet.

    `semi_hard`: candidates are the images farther from the anchor than both `negative_km` and the positive; an anchor
    without any has no triplet. Taken is the one most alike to the anchor among those less alike than the positive; if
    that lies beyond the margin, the anchor's loss is zero. Where all are more alike than the positive, the least alike
    of them is taken, as implementations of semi-hard mining usually do: the hardest would collapse the embedding early
    in training (F. Schroff et al., "FaceNet", 2015, arXiv 1503.03832, section 3.2).

    Among equals the first candidate counts, those of the batch before those of the memory.

    Args:
        embeddings: (n, d) unit rows, floats of any precision.
        coordinates: (n, 2) degrees, float64.
        margin: in squared embedding distance.
        mining: how the negative is chosen.
        negative_km: for `semi_hard`, the great-circle distance up to which an image is no negative.
        memory_embeddings: (m, d), candidates that are not anchors, such as a `CrossBatchMemory` holds.
        memory_coordinates: (m, 2) their coordinates.

    Returns:
        A scalar, float64 for float64 embeddings and float32 otherwise; exactly 0 where no anchor has a triplet.

    Raises:
        ValueError: shapes or types do not fit together, `mining` is another word, or margin or `negative_km` is
            negative.
    """
    if mining not in get_args(Mining):
        raise ValueError(f"mining is {mining!r}; expected one of {', '.join(get_args(Mining))}")
    for name, value in (("margin", margin), ("negative_km", negative_km)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; expected a number that is not negative")
    check_shape("coordinates", coordinates, (None, 2), "latitude and longitude for each embedding")
    anchors, candidates, places = join_memory(
        embeddings, coordinates, memory_embeddings, memory_coordinates, "coordinates"
    )
    if not len(anchors):
        return anchors.sum()
    if mining == "farthest":
        positive, negative, found = farthest_triplets(coordinates, places)
    else:
        positive, negative, found = semi_hard_triplets(anchors, candidates, coordinates, places, negative_km)
    to_positive = (anchors - candidates[positive]).square().sum(1)
    to_negative = (anchors - candidates[negative]).square().sum(1)
    losses = (to_positive - to_negative + margin).clamp(min=0)
    return losses.masked_fill(~found, 0.0).sum() / found.sum().clamp(min=1)


@torch.no_grad()
def farthest_triplets(coordinates: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest and the farthest candidate of every anchor.

    Args:
        coordinates: (n, 2) degrees, of the anchors; n is at least 1.
        places: (c, 2) degrees, of the candidates, of which the first n are the anchors themselves.

    Returns:
        positive: (n,) int64 rows of candidates.
        negative: (n,) int64 rows of candidates.
        found: (n,) bool; where False the other two mean nothing.
    """
    distance = chord_lengths(coordinates, places)
    nearest, positive = distance.fill_diagonal_(math.inf).min(1)
    farthest, negative = distance.fill_diagonal_(-math.inf).max(1)
    return positive, negative, farthest > nearest


@torch.no_grad()
def semi_hard_triplets(
    anchors: Tensor, candidates: Tensor, coordinates: Tensor, places: Tensor, negative_km: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest candidate of every anchor, and its semi-hard negative as `triplet_margin_loss` describes it.

    Args:
        anchors: (n, d); n is at least 1.
        candidates: (c, d), of which the first n are the anchors.
        coordinates: (n, 2) degrees, of the anchors.
        places: (c, 2) degrees, of the candidates.
        negative_km: the great-circle distance up to which an image is no negative.

    Returns:
        The three tensors of `farthest_triplets`.
    """
    distance = chord_lengths(coordinates, places)
    nearest, positive = distance.fill_diagonal_(math.inf).min(1)
    floor = nearest.clamp(min=chord_of_km(negative_km))[:, None]
    is_negative = distance.fill_diagonal_(-math.inf) > floor
    with torch.autocast(anchors.device.type, enabled=False):
        apart = candidates.square().sum(1) - 2 * (anchors @ candidates.T)  # squared distance less the anchor's |a|^2
    beyond = is_negative & (apart > apart.gather(1, positive[:, None]))
    closest_beyond = apart.masked_fill(~beyond, math.inf).argmin(1)
    least_alike = apart.masked_fill(~is_negative, -math.inf).argmax(1)
    return positive, torch.where(beyond.any(1), closest_beyond, least_alike), is_negative.any(1)
