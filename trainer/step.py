"""One training step: forward, the loss of the whole batch, backward; in parts where memory is short.

A contrastive loss needs all embeddings of a batch at once, but memory is taken by activations. GradCache (L. Gao et
al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021, arXiv 2101.06983) embeds the batch
in parts without keeping activations, computes the loss and its gradient with respect to the embeddings, then embeds
each part again and sends that gradient through it. The result is the gradient of the whole batch.

With several GPUs every rank holds its share of the batch. All embeddings are gathered, each rank computes the loss of
the global batch with a gradient for its own rows only, and multiplies it by the number of ranks, since averaging is how
data-parallel gradients are combined afterwards.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from trainer.devices import gathered
from trainer.objective import Answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

    from trainer.losses import CrossBatchMemory
    from trainer.objective import Objective

_PRIME: Final = 1_000_003
_SEEDS: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A rank's share of a batch on its device.

    Attributes:
        pixels: (n, size, size, 3) uint8.
        valid: (n,) bool; False for a photo that could not be read.
        leaf_cells: (n,) int64.
        coordinates: (n, 2) float64 degrees.
    """

    pixels: torch.Tensor
    valid: torch.Tensor
    leaf_cells: torch.Tensor
    coordinates: torch.Tensor

    def rows(self, chosen: torch.Tensor) -> DeviceBatch:
        """Some of them, by a boolean mask (n,)."""
        return DeviceBatch(self.pixels[chosen], self.valid[chosen], self.leaf_cells[chosen], self.coordinates[chosen])


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step found.

    Attributes:
        loss: of the global batch.
        parts: each loss before its weight.
        answers: of the global batch, valid rows only, detached.
    """

    loss: float
    parts: dict[str, float]
    answers: Answers


def backward(
    fabric: Fabric,
    model: Any,
    objective: Objective,
    batch: DeviceBatch,
    *,
    seed: int,
    micro_batch: int = 0,
    memory: CrossBatchMemory | None = None,
    check: Callable[[float, int], None] | None = None,
) -> StepResult:
    """Adds the gradient of a batch's loss to the model's parameters.

    Args:
        fabric: that the model was set up with.
        model: in the mode it trains in.
        objective: of the stage.
        batch: this rank's share, as long on every rank.
        seed: of this step's random numbers (dropout), which depend on nothing else but the parts that the batch is
            computed in: a resumed run draws the same.
        micro_batch: photos of a rank in memory at once; 0 for all.
        memory: candidates from earlier batches.
        check: called with the loss and the number of photos it is of, before anything flows back; may raise.
    """
    size = len(batch.pixels)
    whole = not micro_batch or micro_batch >= size
    parts = [slice(0, size)] if whole else [slice(i, i + micro_batch) for i in range(0, size, micro_batch)]
    with contextlib.nullcontext() if whole else torch.no_grad():
        outputs = torch.cat([_embed(model, batch.pixels[part], fabric, seed, part.start) for part in parts])
    # What is differentiated is the loss over a leaf, so that its gradient can be sent through each part on its own.
    leaf = outputs.detach().requires_grad_()
    answers = gather(fabric, leaf, batch)
    loss, losses = objective(answers, memory)
    value = float(loss.detach())
    if check is not None:
        check(value, len(answers))
    (gradient,) = torch.autograd.grad(loss * fabric.world_size, leaf)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with fabric.no_backward_sync(model, enabled=not last and fabric.world_size > 1):
            again = outputs if whole else _embed(model, batch.pixels[part], fabric, seed, part.start)
            # The derivative of this sum is the gradient itself; scaling for fp16 happens in fabric.backward.
            fabric.backward((again * gradient[part]).sum(), model=model)
    detached = Answers(answers.outputs.detach(), answers.leaf_cells, answers.coordinates)
    return StepResult(value, {name: float(part) for name, part in losses.items()}, detached)


def gather(fabric: Fabric, outputs: torch.Tensor, batch: DeviceBatch) -> Answers:
    """The valid rows of every rank, in rank order; a gradient reaches this rank's own."""
    leaf_cells, coordinates, valid = batch.leaf_cells, batch.coordinates, batch.valid
    if fabric.world_size > 1:
        shares = gathered(fabric, outputs)
        shares[fabric.global_rank] = outputs
        outputs = torch.cat(shares)
        leaf_cells, coordinates, valid = (
            torch.cat(gathered(fabric, column)) for column in (leaf_cells, coordinates, valid)
        )
    answers = Answers(outputs, leaf_cells, coordinates)
    # Asking costs a wait for the device, and taking rows a copy: only where something is missing.
    return answers if bool(valid.all()) else answers.rows(valid)


def _embed(model: Any, pixels: torch.Tensor, fabric: Fabric, seed: int, part: int) -> torch.Tensor:
    # Both passes over a part must drop the same units, and every part and rank others.
    torch.manual_seed(((seed * _PRIME + part) * _PRIME + fabric.global_rank) % _SEEDS)
    return model(pixels)
