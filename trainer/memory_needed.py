"""What a recipe needs, worked out without computing anything: parameters that learn, and memory on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.models import create_model
from trainer.models.freezing import count_parameters, freeze, training_mode

if TYPE_CHECKING:
    from trainer.models import GeoModel
    from trainer.recipe import Recipe, StageTable


@dataclass(frozen=True, slots=True)
class StageNeeds:
    """What a stage of a recipe takes.

    Attributes:
        stage: its name.
        learnable: parameters that learn.
        parameters: of the whole model.
        bytes_fixed: weights, gradients and the optimizer's moments.
        bytes_per_photo: activations that are kept for the way back.
        photos_at_once: as many of these.
    """

    stage: str
    learnable: int
    parameters: int
    bytes_fixed: int
    bytes_per_photo: int
    photos_at_once: int

    @property
    def bytes_total(self) -> int:
        """About what the device must have; what libraries and the allocator take comes on top."""
        return self.bytes_fixed + self.bytes_per_photo * self.photos_at_once


def stage_needs(recipe: Recipe) -> list[StageNeeds]:
    """Needs of each stage of a recipe on one device.

    The model is traced with tensors that have shapes and no contents, and what autograd would keep is summed up, so
    this takes seconds and no memory.

    Raises:
        UsageError: the backbone is not known, or a freezing policy does not fit it.
    """
    table = recipe.model
    preprocessing = recipe.make_preprocessing()
    with torch.device("meta"):
        model = create_model(
            table.backbone, preprocessing, weights="none", dim=table.dim, hidden=table.hidden, dropout=table.dropout,
            coordinates=table.coordinates,
        )  # fmt: skip
    # Fake tensors, unlike those of the meta device, take the kernels and the autocast of a real one.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        return [_needs(recipe, stage, model) for stage in recipe.stages]


def _needs(recipe: Recipe, stage: StageTable, model: GeoModel) -> StageNeeds:
    freeze(model, stage.train.backbone, recipe.heads_of(stage))
    training_mode(model, batch_norm=recipe.model.batch_norm == "train")
    learnable, parameters = count_parameters(model, learnable=True), count_parameters(model)
    half = recipe.run.precision != "fp32"
    # Of two batches the difference is what each photo adds: casts of the weights are kept too, once.
    one, two = (_kept_bytes(model, count, half=half) for count in (1, 2))
    at_once = min(stage.micro_batch or stage.batch_size, stage.batch_size)
    return StageNeeds(
        stage=stage.name,
        learnable=learnable,
        parameters=parameters,
        bytes_fixed=4 * parameters + 12 * learnable + max(0, 2 * one - two),
        bytes_per_photo=two - one,
        photos_at_once=at_once,
    )


def _kept_bytes(model: GeoModel, photos: int, *, half: bool) -> int:
    size = model.preprocessing.size
    weights = {p.untyped_storage()._cdata for p in model.parameters()}  # noqa: SLF001
    kept: dict[int, tuple[Any, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Several views of one storage are kept once; the storage is held on to, so that its number stays its own.
        if storage._cdata not in weights:  # noqa: SLF001
            kept[storage._cdata] = (storage, storage.nbytes())  # noqa: SLF001
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        model(torch.zeros(photos, size, size, 3, dtype=torch.uint8))
    return sum(count for _, count in kept.values())
