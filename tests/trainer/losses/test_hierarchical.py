"""The hierarchical loss against its definition: a weighted sum of plain loops, level by level."""

from __future__ import annotations

import pytest

from tests.trainer.losses import plain_loops

torch = pytest.importorskip("torch")

from trainer.losses.hierarchical import hierarchical_contrastive_loss  # noqa: E402

pytestmark = pytest.mark.slow

TABLE_7 = [[1.0, 0.3, 0.05], [1.0, 0.3, 0.1, 0.03], [0.8, 0.35, 0.15, 0.05]]


def nested_batch(count: int, levels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (count, 6) and labels (count, levels), every level splitting the cells of the one before."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=1)
    leaves = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    return rows, torch.stack([leaves >> (62 - level) for level in range(levels)], 1)


@pytest.mark.parametrize("weights", TABLE_7)
@pytest.mark.parametrize("remembered", [0, 13])
def test_equals_the_weighted_sum_of_plain_loops(weights: list[float], remembered: int) -> None:
    for seed in range(4):
        rows, labels = nested_batch(33, len(weights), seed)
        anchors = len(rows) - remembered
        expected = sum(
            weight * plain_loops.supcon(rows.tolist(), labels[:, level].tolist(), 0.07, anchors)
            for level, weight in enumerate(weights)
        )
        memory = {"memory_embeddings": rows[anchors:], "memory_labels": labels[anchors:]} if remembered else {}
        ours = hierarchical_contrastive_loss(rows[:anchors], labels[:anchors], weights, **memory)
        assert ours.item() == pytest.approx(expected, rel=1e-12)


def test_a_level_without_positives_adds_nothing() -> None:
    rows, _ = nested_batch(6, 1, 0)
    coarse, fine = torch.tensor([1, 1, 1, 2, 2, 2]), torch.arange(6)
    both = hierarchical_contrastive_loss(rows, torch.stack([coarse, fine], 1), [1.0, 0.5])
    assert both.item() == pytest.approx(plain_loops.supcon(rows.tolist(), coarse.tolist(), 0.07), rel=1e-12)


def test_a_level_averages_over_its_own_anchors() -> None:
    # On the fine level two anchors of six have a positive; a mean over the coarse level's six would be a third of it.
    rows, _ = nested_batch(6, 1, 3)
    fine = torch.tensor([1, 1, 2, 3, 4, 5])
    labels = torch.stack([torch.ones(6, dtype=torch.int64), fine], 1)
    expected = plain_loops.supcon(rows.tolist(), [1] * 6, 0.07) + 2 * plain_loops.supcon(
        rows.tolist(), fine.tolist(), 0.07
    )
    assert hierarchical_contrastive_loss(rows, labels, [1.0, 2.0]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_without_any_positive_loss_and_gradients_are_zero(count: int) -> None:
    rows = nested_batch(count, 1, 0)[0].requires_grad_()
    loss = hierarchical_contrastive_loss(rows, torch.arange(2 * count).reshape(count, 2), [1.0, 0.3])
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_gradcheck() -> None:
    rows, labels = nested_batch(8, 3, 1)
    rows.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda batch: hierarchical_contrastive_loss(batch, labels, TABLE_7[0], temperature=0.4), (rows,)
    )


def test_bad_arguments_are_named() -> None:
    rows, labels = nested_batch(5, 3, 0)
    with pytest.raises(ValueError, match=r"labels has shape \(5, 3\); expected \(any, 2\)"):
        hierarchical_contrastive_loss(rows, labels, [1.0, 0.3])
    with pytest.raises(ValueError, match=r"labels has shape \(4, 3\); expected \(5, 3\)"):
        hierarchical_contrastive_loss(rows, labels[:4], [1.0, 0.3, 0.1])
    with pytest.raises(ValueError, match="weights are"):
        hierarchical_contrastive_loss(rows, labels, [1.0, -0.3, 0.1])
    with pytest.raises(ValueError, match=r"memory_labels has shape \(5, 2\); expected \(5, 3\)"):
        hierarchical_contrastive_loss(
            rows, labels, [1.0, 0.3, 0.1], memory_embeddings=rows, memory_labels=labels[:, :2]
        )
