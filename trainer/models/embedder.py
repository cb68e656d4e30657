"""`GeoModel`: uint8 pixels to unit embeddings, to coordinates, or to both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn
from torch.nn import functional

from geoinfer.errors import UsageError
from trainer.models.backbones import PRETRAINED, Backbone, create_backbone

if TYPE_CHECKING:
    from geoinfer.images import Preprocessing

CoordinateHead = Literal["none", "backbone", "embedding"]

HIDDEN: Final = 768
"""Width between the two layers of a head. The paper does not give it; with 768, the learnable parameters are the
paper's "approximately 24 million" (23.8) for ResNet50 and "approximately 29 million" (29.1) for ViT-B/16."""


class GeoModel(nn.Module):
    """A backbone with its heads. The graph normalises pixels and embeddings, so that an export takes all of it.

    Two heads, each optional, both of two layers with ReLU and dropout between:

    - the projection: pooled activations -> embedding of `dim` entries, unit length;
    - the coordinate head: pooled activations (`backbone`: the paper's regression baseline) or the embedding
      (`embedding`: its final head) -> a unit vector on the sphere, as `geoinfer.geodesy.to_unit_vectors` lays it out.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing,
        *,
        dim: int = 256,
        hidden: int = HIDDEN,
        dropout: float = 0.3,
        coordinates: CoordinateHead = "none",
    ) -> None:
        """`dim` 0 leaves the projection out.

        Raises:
            UsageError: neither head is there, or the coordinate head stands on an embedding that is not.
        """
        super().__init__()
        if dim == 0 and coordinates == "none":
            raise UsageError("model.dim is 0 and model.coordinates none: the model would answer with nothing")
        if dim == 0 and coordinates == "embedding":
            raise UsageError("model.coordinates is embedding, and model.dim 0 leaves the embedding out")
        self.preprocessing = preprocessing
        self.dim = dim
        self.coordinates = coordinates
        self.backbone = backbone.module
        self.projection = _two_layers(backbone.width, hidden, dim, dropout) if dim else None
        self.coordinate_head: nn.Module | None = None
        if coordinates != "none":
            width = backbone.width if coordinates == "backbone" else dim
            self.coordinate_head = _two_layers(width, hidden, 3, dropout)
        self._memory_format = torch.contiguous_format
        # Not in the state dict: they belong to the preprocessing, which is kept beside it.
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, 255.0 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def use_channels_last(self) -> None:
        """Lays pictures and convolutions out channels-last, which many devices compute faster; results are the same."""
        self._memory_format = torch.channels_last
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds.

        Args:
            pixels: (n, size, size, 3) uint8, RGB.

        Returns:
            (n, dim + 3) float32 with both heads, otherwise (n, dim) or (n, 3): the embedding, then the unit vector of
            the place. One tensor, since that is what is gathered among GPUs and recomputed in parts; `split` takes it
            apart.
        """
        pictures = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        pooled = self.backbone(pictures.contiguous(memory_format=self._memory_format))
        answers = []
        embeddings = None
        if self.projection is not None:
            embeddings = unit_rows(self.projection(pooled))
            answers.append(embeddings)
        if self.coordinate_head is not None:
            start = embeddings if self.coordinates == "embedding" else pooled
            answers.append(unit_rows(self.coordinate_head(start)))
        return torch.cat(answers, dim=1)

    def split(self, answers: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Takes `forward`'s answer apart: embeddings (n, dim) and places (n, 3), None for a head that is not there."""
        embeddings = answers[:, : self.dim] if self.dim else None
        places = answers[:, self.dim :] if self.coordinate_head is not None else None
        return embeddings, places


def unit_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Rows at unit length, in float32 at least: half precision knows a norm of 768 numbers to three digits."""
    with torch.autocast(vectors.device.type, enabled=False):
        wide = vectors if vectors.dtype == torch.float64 else vectors.float()
        return functional.normalize(wide, dim=1)


def create_model(
    backbone: str,
    preprocessing: Preprocessing,
    *,
    weights: str = PRETRAINED,
    dim: int = 256,
    hidden: int = HIDDEN,
    dropout: float = 0.3,
    coordinates: CoordinateHead = "none",
) -> GeoModel:
    """Builds backbone and heads; see `create_backbone` and `GeoModel`. The heads draw from torch's random numbers."""
    return GeoModel(
        create_backbone(backbone, weights, size=preprocessing.size),
        preprocessing,
        dim=dim,
        hidden=hidden,
        dropout=dropout,
        coordinates=coordinates,
    )


def _two_layers(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out))
