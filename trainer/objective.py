"""What a stage minimises: its losses, weighted and summed, over one batch of embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trainer.losses import (
    haversine_loss,
    hierarchical_contrastive_loss,
    soft_contrastive_loss,
    supervised_contrastive_loss,
    triplet_margin_loss,
)
from trainer.losses.cells import parent_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.losses import CrossBatchMemory
    from trainer.models import GeoModel
    from trainer.recipe import LossTable


@dataclass(frozen=True, slots=True)
class Answers:
    """A batch as the losses see it: what the model said, and what is true.

    Attributes:
        outputs: (n, width), what `GeoModel.forward` answered.
        leaf_cells: (n,) int64, S2 cells of level 30 as bit patterns.
        coordinates: (n, 2) float64 degrees.
    """

    outputs: torch.Tensor
    leaf_cells: torch.Tensor
    coordinates: torch.Tensor

    def __len__(self) -> int:
        return len(self.outputs)

    def rows(self, chosen: torch.Tensor) -> Answers:
        """Some of them: a boolean mask (n,), or row numbers."""
        return Answers(self.outputs[chosen], self.leaf_cells[chosen], self.coordinates[chosen])


class Objective:
    """The losses of one stage."""

    def __init__(self, losses: Sequence[LossTable], model: GeoModel) -> None:
        self._losses = tuple(losses)
        self._split = model.split

    @property
    def labels(self) -> list[str]:
        """Names of the losses, as `metrics.csv` has them."""
        return [loss.label for loss in self._losses]

    def __call__(
        self, answers: Answers, memory: CrossBatchMemory | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum to minimise, and each loss before its weight, detached.

        Args:
            answers: the whole batch, from every GPU, without photos that could not be read.
            memory: further candidates for losses on embeddings.
        """
        embeddings, places = self._split(answers.outputs)
        total = answers.outputs.new_zeros(())
        parts: dict[str, torch.Tensor] = {}
        for loss in self._losses:
            if loss.kind == "haversine":
                assert places is not None
                value = haversine_loss(places, answers.coordinates)
            else:
                assert embeddings is not None
                value = _on_embeddings(loss, embeddings, answers, memory)
            parts[loss.label] = value.detach()
            total = total + loss.weight * value
        return total, parts


def _on_embeddings(
    loss: LossTable, embeddings: torch.Tensor, answers: Answers, memory: CrossBatchMemory | None
) -> torch.Tensor:
    used = memory if memory is not None and len(memory) else None
    remembered = used.embeddings if used else None
    if loss.kind in ("triplet", "soft_supcon"):
        places = used.coordinates if used else None
        if loss.kind == "triplet":
            return triplet_margin_loss(
                embeddings, answers.coordinates, margin=loss.margin, mining=loss.mining, negative_km=loss.negative_km,
                memory_embeddings=remembered, memory_coordinates=places,
            )  # fmt: skip
        return soft_contrastive_loss(
            embeddings, answers.coordinates, temperature=loss.temperature, scale_km=loss.scale_km,
            max_positive_km=loss.max_positive_km, memory_embeddings=remembered, memory_coordinates=places,
        )  # fmt: skip
    labels = _labels(answers.leaf_cells, loss.levels)
    kept = _labels(used.leaf_cells, loss.levels) if used else None
    if loss.kind == "supcon":
        return supervised_contrastive_loss(
            embeddings, labels[:, 0], temperature=loss.temperature,
            memory_embeddings=remembered, memory_labels=None if kept is None else kept[:, 0],
        )  # fmt: skip
    return hierarchical_contrastive_loss(
        embeddings, labels, loss.level_weights, temperature=loss.temperature,
        memory_embeddings=remembered, memory_labels=kept,
    )  # fmt: skip


def _labels(leaf_cells: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    return torch.stack([parent_cells(leaf_cells, level) for level in levels], dim=1)
