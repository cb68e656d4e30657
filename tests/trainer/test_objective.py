"""What a stage minimises against its losses called by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pydantic")

from geoinfer.geocells import leaf_cells, parent_cells  # noqa: E402
from trainer.losses import (  # noqa: E402
    CrossBatchMemory,
    haversine_loss,
    hierarchical_contrastive_loss,
    soft_contrastive_loss,
    supervised_contrastive_loss,
    triplet_margin_loss,
)
from trainer.models import GeoModel  # noqa: E402
from trainer.objective import Answers, Objective  # noqa: E402
from trainer.recipe import LossTable  # noqa: E402

pytestmark = pytest.mark.slow

DIM = 16


def answers(count: int = 24, seed: int = 0) -> Answers:
    generator = np.random.default_rng(seed)
    # Three towns, each on both sides of a border of cells now and then; one lies on the antimeridian.
    centres = np.array([[48.0, 11.0], [-17.0, 180.0], [60.0, -100.0]])[np.arange(count) % 3]
    coordinates = centres + generator.uniform(-2, 2, (count, 2))
    coordinates[:, 1] = (coordinates[:, 1] + 180) % 360 - 180
    outputs = torch.from_numpy(generator.normal(size=(count, DIM + 3)))
    outputs = torch.cat([torch.nn.functional.normalize(part, dim=1) for part in outputs.split([DIM, 3], dim=1)], dim=1)
    return Answers(
        outputs.requires_grad_(),
        torch.from_numpy(leaf_cells(coordinates).view(np.int64)),
        torch.from_numpy(coordinates),
    )


def objective(*losses: LossTable) -> Objective:
    model: Any = SimpleNamespace(dim=DIM, coordinate_head=object())
    model.split = lambda outputs: GeoModel.split(model, outputs)
    return Objective(losses, model)


def cells(batch: Answers, *levels: int) -> torch.Tensor:
    leaves = batch.leaf_cells.numpy().view(np.uint64)
    return torch.stack([torch.from_numpy(parent_cells(leaves, level).view(np.int64)) for level in levels], dim=1)


LOSSES = [
    LossTable(kind="supcon", levels=[4], temperature=0.2, weight=0.5),
    LossTable(kind="supcon", levels=[7]),
    LossTable(kind="hierarchical", levels=[3, 5, 6], level_weights=[1.0, 0.3, 0.05], temperature=0.1, weight=2.0),
    LossTable(kind="triplet", margin=0.4, mining="semi_hard", negative_km=300.0, weight=3.0),
    LossTable(kind="haversine", weight=0.25),
    LossTable(kind="soft_supcon", temperature=0.3, scale_km=120.0, max_positive_km=500.0),
]


def by_hand(batch: Answers, memory: CrossBatchMemory | None = None) -> list[torch.Tensor]:
    embeddings, places = batch.outputs[:, :DIM], batch.outputs[:, DIM:]
    held: Any = SimpleNamespace(embeddings=None, coordinates=None)
    labels: dict[str, Any] = {}
    if memory is not None:
        held = memory
        remembered = Answers(memory.embeddings, memory.leaf_cells, memory.coordinates)
        labels = {"4": cells(remembered, 4)[:, 0], "7": cells(remembered, 7)[:, 0], "h": cells(remembered, 3, 5, 6)}
    return [
        supervised_contrastive_loss(
            embeddings, cells(batch, 4)[:, 0], temperature=0.2, memory_embeddings=held.embeddings,
            memory_labels=labels.get("4"),
        ),
        supervised_contrastive_loss(
            embeddings, cells(batch, 7)[:, 0], temperature=0.07, memory_embeddings=held.embeddings,
            memory_labels=labels.get("7"),
        ),
        hierarchical_contrastive_loss(
            embeddings, cells(batch, 3, 5, 6), [1.0, 0.3, 0.05], temperature=0.1, memory_embeddings=held.embeddings,
            memory_labels=labels.get("h"),
        ),
        triplet_margin_loss(
            embeddings, batch.coordinates, margin=0.4, mining="semi_hard", negative_km=300.0,
            memory_embeddings=held.embeddings, memory_coordinates=held.coordinates,
        ),
        haversine_loss(places, batch.coordinates),
        soft_contrastive_loss(
            embeddings, batch.coordinates, temperature=0.3, scale_km=120.0, max_positive_km=500.0,
            memory_embeddings=held.embeddings, memory_coordinates=held.coordinates,
        ),
    ]  # fmt: skip


def filled() -> CrossBatchMemory:
    memory = CrossBatchMemory(40, DIM)
    for seed in (1, 2):
        earlier = answers(seed=seed)
        memory.add(earlier.outputs.detach()[:, :DIM].float(), earlier.leaf_cells, earlier.coordinates)
    return memory


@pytest.mark.parametrize("with_memory", [False, True])
def test_the_sum_is_that_of_the_losses_by_hand(with_memory: bool) -> None:
    batch, memory = answers(), filled() if with_memory else None
    total, parts = objective(*LOSSES)(batch, memory)
    (gradient,) = torch.autograd.grad(total, batch.outputs)
    expected = by_hand(batch, memory)
    weighted = sum(loss.weight * value for loss, value in zip(LOSSES, expected, strict=True))
    (expected_gradient,) = torch.autograd.grad(weighted, batch.outputs)
    assert total.item() == pytest.approx(weighted.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)
    assert [value.item() for value in parts.values()] == pytest.approx([value.item() for value in expected], rel=1e-12)
    assert all(value.item() > 0 for value in expected)
    assert not any(value.requires_grad for value in parts.values())


def test_a_memory_changes_the_losses_on_embeddings_and_no_other() -> None:
    batch = answers()
    made = objective(*LOSSES)
    without, with_ = made(batch)[1], made(batch, filled())[1]
    same = {label for label in without if without[label].item() == with_[label].item()}
    assert same == {"haversine"}


def test_an_empty_memory_is_none() -> None:
    batch = answers()
    assert objective(*LOSSES)(batch, CrossBatchMemory(8, DIM))[0].item() == objective(*LOSSES)(batch)[0].item()


def test_labels_tell_losses_apart() -> None:
    made = objective(*LOSSES)
    names = ["supcon_l4", "supcon_l7", "hierarchical_l3_l5_l6", "triplet", "haversine", "soft_supcon"]
    assert made.labels == names
    assert list(made(answers())[1]) == names


def test_no_photo_costs_nothing() -> None:
    batch = answers().rows(torch.zeros(24, dtype=torch.bool))
    assert len(batch) == 0
    total, parts = objective(*LOSSES)(batch)
    assert total.item() == 0
    assert all(value.item() == 0 for value in parts.values())


def test_rows_are_chosen_together() -> None:
    batch = answers()
    mask = torch.arange(24) % 5 == 0
    for chosen in (mask, torch.arange(0, 24, 5)):
        some = batch.rows(chosen)
        assert torch.equal(some.outputs, batch.outputs[::5])
        assert torch.equal(some.leaf_cells, batch.leaf_cells[::5])
        assert torch.equal(some.coordinates, batch.coordinates[::5])
