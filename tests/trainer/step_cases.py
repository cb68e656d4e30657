"""One training step of a whole batch or of a rank's share of it: what two processes and one are compared in."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geoinfer.geocells import leaf_cells
from tests.trainer.tiny_runs import stage, tiny_recipe
from trainer.losses import CrossBatchMemory
from trainer.models import create_model
from trainer.objective import Objective
from trainer.step import DeviceBatch, StepResult, backward

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_fabric import Fabric


@dataclass(frozen=True)
class StepCase:
    """A loss, parts of `micro_batch` photos of the whole batch, `count` photos of which some cannot be read."""

    kind: str = "supcon"
    micro_batch: int = 0
    count: int = 12
    bad: tuple[int, ...] = ()
    memory: bool = False
    dropout: float = 0.0


CASES = {
    **{f"{kind}, parts of {micro}": StepCase(kind, micro) for kind in ("supcon", "hierarchical", "triplet", "haversine")
       for micro in (0, 4)},
    "soft_supcon": StepCase("soft_supcon"),
    "a photo of the second rank is bad": StepCase("hierarchical", bad=(8,)),
    "a photo of the second rank is bad, in parts": StepCase("triplet", 4, bad=(8,)),
    "all photos of the first rank are bad": StepCase("supcon", 6, bad=(0, 1, 2, 3, 4, 5)),
    "an odd number": StepCase("supcon", count=11),
    "an odd number, in parts": StepCase("hierarchical", 4, count=11),
    "memory": StepCase("supcon", memory=True),
    "memory, in parts": StepCase("triplet", 6, memory=True, bad=(3,)),
}  # fmt: skip


def make_model(case: StepCase) -> Any:
    torch.manual_seed(3)
    coordinates = "embedding" if case.kind == "haversine" else "none"
    preprocessing = tiny_recipe().make_preprocessing()
    model = create_model(
        "test_efficientnet", preprocessing, weights="none", dim=8, hidden=16, dropout=case.dropout,
        coordinates=coordinates,
    )  # fmt: skip
    model.eval()  # batch norms as they are; of the rest only dropout knows the difference
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    return model


def make_batch(count: int) -> DeviceBatch:
    generator = np.random.default_rng(11)
    towns = np.stack([np.linspace(-50, 60, 4), np.linspace(-150, 160, 4)], axis=1)
    coordinates = towns[np.arange(count) % 4] + generator.uniform(-1, 1, (count, 2))
    return DeviceBatch(
        pixels=torch.from_numpy(generator.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)),
        valid=torch.ones(count, dtype=torch.bool),
        leaf_cells=torch.from_numpy(leaf_cells(coordinates).view(np.int64)),
        coordinates=torch.from_numpy(coordinates),
    )


def make_memory() -> CrossBatchMemory:
    generator = torch.Generator().manual_seed(4)
    old = make_batch(9)
    memory = CrossBatchMemory(9, 8)
    rows = torch.nn.functional.normalize(torch.randn(9, 8, generator=generator, dtype=torch.float32), dim=1)
    memory.add(rows, old.leaf_cells, old.coordinates)
    return memory


def share_of(batch: DeviceBatch, rank: int, ranks: int, bad: tuple[int, ...]) -> DeviceBatch:
    """A rank's share, as long on every rank; what fills up is zero and not valid, and so are bad photos."""
    valid = batch.valid.clone()
    valid[list(bad)] = False
    pixels = batch.pixels * valid[:, None, None, None]
    share = -(-len(valid) // ranks)
    fill = share * ranks - len(valid)

    def part(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, torch.zeros_like(tensor[:1]).expand(fill, *tensor.shape[1:])])[
            rank * share : (rank + 1) * share
        ].contiguous()

    return DeviceBatch(part(pixels), part(valid), part(batch.leaf_cells), part(batch.coordinates))


def take_step(fabric: Fabric, case: StepCase, batch: DeviceBatch | None = None) -> tuple[StepResult, dict[str, Any]]:
    """The step's result, and the gradient of every weight."""
    model = make_model(case)
    objective = Objective(tiny_recipe(
        "model.coordinates=embedding", stages=[stage(kind=case.kind)]).stages[0].losses, model)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapped, _ = fabric.setup(model, optimizer)
    if batch is None:
        batch = share_of(make_batch(case.count), fabric.global_rank, fabric.world_size, case.bad)
    with answers_as_wide_as_the_model(model):
        result = backward(
            fabric, wrapped, objective, batch, seed=21, micro_batch=case.micro_batch // fabric.world_size,
            memory=make_memory() if case.memory else None,
        )  # fmt: skip
    return result, {name: p.grad for name, p in model.named_parameters()}


@contextlib.contextmanager
def answers_as_wide_as_the_model(model: Any) -> Iterator[None]:
    """Fabric rounds what a float64 model answers to the default, which is float32."""
    torch.set_default_dtype(next(model.parameters()).dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
