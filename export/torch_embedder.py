"""`TorchEmbedder`: weights that become an ONNX model, whoever trained them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from geoinfer.errors import ModelError
from geoinfer.integrity import sha256_of
from trainer.checkpoint import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.images import Preprocessing
    from trainer.checkpoint import CheckpointInfo
    from trainer.models import GeoModel

UNKNOWN_LICENCE: Final = "NOASSERTION"
"""SPDX's word where nobody has stated a licence. A checkpoint does not say: it depends on the weights that training
began with, on the photos, and on whoever trained it."""


@dataclass(frozen=True, slots=True)
class TorchEmbedder:
    """Weights that become an ONNX model.

    Attributes:
        network: in eval mode; (n, 3, size, size) float32 normalised pixels -> (n, dim) float32, not L2-normalised.
        preprocessing: that the network was trained with.
        identity: name of the embedding space with a digest, such as
            `vit_base_patch16_224-vit_two_stage:0123456789abcdef`; two embedders of one identity must give the same
            embeddings.
        source: where the weights come from, for a reader.
        licence: of the weights, as an SPDX expression.
        weights_sha256: hexadecimal, of the checkpoint or file of weights as it was received.
    """

    network: torch.nn.Module
    preprocessing: Preprocessing
    identity: str
    source: str
    licence: str
    weights_sha256: str


def load_checkpoint(path: Path, *, licence: str = UNKNOWN_LICENCE) -> TorchEmbedder:
    """Takes the embedder out of a checkpoint of the trainer; a coordinate head stays behind.

    Args:
        path: the checkpoint.
        licence: of the weights, as an SPDX expression.

    Raises:
        InputError: it is not there or cannot be read.
        ModelError: it is no checkpoint of the trainer's, or the model in it answers with coordinates alone.
    """
    model, info = load_model(path)
    if model.projection is None:
        raise ModelError(
            f"{path}: the model in it answers with coordinates, and has no embedding to search an index by",
            hint="train one with model.dim above 0, for example the recipe vit_single_stage",
        )
    sha256 = sha256_of(path)
    return TorchEmbedder(
        network=_EmbeddingNetwork(model).eval(),
        preprocessing=info.preprocessing,
        identity=f"{info.model['backbone']}-{info.recipe['name']}:{sha256[:16]}",
        source=_source(info),
        licence=licence,
        weights_sha256=sha256,
    )


class _EmbeddingNetwork(torch.nn.Module):
    """The part of a `GeoModel` between its two normalisations."""

    def __init__(self, model: GeoModel) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.projection = model.projection

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.projection(self.backbone(planes))  # type: ignore[misc]
        return embeddings


def _source(info: CheckpointInfo) -> str:
    words = [f"{info.model['backbone']} trained by recipe {info.recipe['name']}"]
    # A checkpoint of weights alone, such as the best or the final one, does not say when it was taken.
    stages, progress = info.recipe.get("stages", []), info.progress
    if "step" in progress and 0 <= progress.get("stage", -1) < len(stages):
        words.append(f"stage {stages[progress['stage']]['name']}")
    if "step" in progress:
        words.append(f"step {progress['step']:,}")
    return ", ".join(words)
