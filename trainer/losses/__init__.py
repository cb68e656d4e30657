"""The losses that the embedders are trained with, pure functions of a batch, one a file.

| module | loss |
|---|---|
| `supcon` | supervised contrastive: images of one geocell attract each other, all others repel (Eq. 1 of the paper) |
| `hierarchical` | its weighted sum over several S2 levels (the paper's appendix) |
| `soft_supcon` | the same with targets that fall off with great-circle distance instead of ending at a cell's border |
| `triplet` | squared triplet margin (Eq. 2), triplets formed from the coordinates within the batch |
| `haversine` | great-circle distance between predicted and true positions |

`memory` keeps the embeddings of earlier batches as further candidates, and `cells` and `spherical` are the geography
that the losses need, on tensors.

Whatever precision autocast runs the model in, a loss is computed in float32, and in float64 where it is given float64.
A batch that holds nothing to learn from (one image, or no two of one cell) has a loss of exactly zero, with gradients
of zero. Time and memory grow with the number of pairs, never with pairs times dimensions.
"""

from __future__ import annotations

from trainer.losses.cells import parent_cells
from trainer.losses.haversine import haversine_loss
from trainer.losses.hierarchical import hierarchical_contrastive_loss
from trainer.losses.memory import CrossBatchMemory
from trainer.losses.soft_supcon import soft_contrastive_loss
from trainer.losses.supcon import supervised_contrastive_loss
from trainer.losses.triplet import triplet_margin_loss

__all__ = [
    "CrossBatchMemory",
    "haversine_loss",
    "hierarchical_contrastive_loss",
    "parent_cells",
    "soft_contrastive_loss",
    "supervised_contrastive_loss",
    "triplet_margin_loss",
]
