"""Soft supervised contrastive loss: targets that fall off with great-circle distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from trainer.losses.pairs import check_positive, check_shape, join_memory, pair_logits, weighted_cross_entropy
from trainer.losses.spherical import great_circle_km

if TYPE_CHECKING:
    from torch import Tensor


def soft_contrastive_loss(
    embeddings: Tensor,
    coordinates: Tensor,
    *,
    temperature: float = 0.07,
    scale_km: float = 75.0,
    max_positive_km: float = math.inf,
    memory_embeddings: Tensor | None = None,
    memory_coordinates: Tensor | None = None,
) -> Tensor:
    """Cross-entropy between the similarities' softmax and targets that fall off with distance from the anchor.

    An anchor's target for another image, d km away, is proportional to exp(-(d - d_min) / scale_km), with d_min the
    distance to its nearest other image. This is PIGEON's haversine smoothing of cell labels (L. Haas et al., "PIGEON:
    Predicting Image Geolocations", 2024, arXiv 2307.05845), applied to the images of a batch in place of cells: two
    images on either side of a cell's border are no longer strangers.

    Only the distance beyond the nearest counts, so every anchor has a full target, also one whose nearest is on another
    continent. `max_positive_km` leaves such anchors out; they remain candidates for the others.

    Args:
        embeddings: (n, d) unit rows, floats of any precision.
        coordinates: (n, 2) degrees, float64.
        temperature: divides the similarities.
        scale_km: the distance beyond the nearest at which a target has fallen to 1/e of the nearest's.
        max_positive_km: an anchor whose nearest other image is farther away is not counted.
        memory_embeddings: (m, d), candidates that are not anchors, such as a `CrossBatchMemory` holds.
        memory_coordinates: (m, 2) their coordinates.

    Returns:
        A scalar, the mean over the anchors counted; float64 for float64 embeddings and float32 otherwise; exactly 0
        where no anchor counts.

    Raises:
        ValueError: shapes or types do not fit together, temperature or scale is not above zero, or `max_positive_km` is
            negative.
    """
    check_positive("scale_km", scale_km)
    if not max_positive_km >= 0:
        raise ValueError(f"max_positive_km is {max_positive_km}; expected a distance in km")
    check_shape("coordinates", coordinates, (None, 2), "latitude and longitude for each embedding")
    anchors, candidates, places = join_memory(
        embeddings, coordinates, memory_embeddings, memory_coordinates, "coordinates"
    )
    logits = pair_logits(anchors, candidates, temperature)
    return weighted_cross_entropy(logits, target_weights(coordinates, places, scale_km, max_positive_km).to(logits))


@torch.no_grad()
def target_weights(coordinates: Tensor, candidates: Tensor, scale_km: float, max_positive_km: float) -> Tensor:
    """Each anchor's targets over the number of anchors counted, (n, c) float64; zero on the diagonal.

    Args:
        coordinates: (n, 2) degrees, of the anchors.
        candidates: (c, 2) degrees, of which the first n are the anchors' own.
        scale_km: as in `soft_contrastive_loss`.
        max_positive_km: as in `soft_contrastive_loss`.
    """
    distance_km = great_circle_km(coordinates, candidates).fill_diagonal_(math.inf)
    if not len(coordinates):
        return distance_km
    nearest_km = distance_km.amin(1, keepdim=True)
    alone = nearest_km.isinf()  # one image and no memory: its targets are all zero
    counted = nearest_km <= max_positive_km
    targets = distance_km.sub_(nearest_km.masked_fill(alone, 0.0)).div_(-scale_km).exp_()
    totals = targets.sum(1, keepdim=True).clamp(min=1.0)  # the nearest adds 1; only a lone image has less
    return targets.mul_(counted / (totals * counted.sum().clamp(min=1)))
