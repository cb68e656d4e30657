"""The supervised contrastive loss against plain loops, an independent library and hand-placed batches."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.losses import plain_loops

torch = pytest.importorskip("torch")

from trainer.losses.supcon import supervised_contrastive_loss  # noqa: E402

pytestmark = pytest.mark.slow


def unit_rows(count: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def some_labels(count: int, kinds: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Neighbouring values at the ends of the int64 range: as floats they would all be one label.
    names = torch.tensor([2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1, -1, 0, 1])
    return names[torch.randint(kinds, (count,), generator=generator)]


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize(("count", "kinds"), [(2, 1), (5, 2), (7, 7), (24, 3), (24, 7), (24, 1)])
def test_equals_plain_loops(count: int, kinds: int, temperature: float) -> None:
    for seed in range(5):
        rows, labels = unit_rows(count, seed=seed), some_labels(count, kinds, seed)
        expected = plain_loops.supcon(rows.tolist(), labels.tolist(), temperature)
        ours = supervised_contrastive_loss(rows, labels, temperature=temperature)
        assert ours.dtype == torch.float64
        assert ours.shape == ()
        assert ours.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_a_batch_by_hand() -> None:
    # Anchors 0 and 1 share a label and a direction, 2 is at right angles and alone in its cell: it is no anchor.
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    loss = supervised_contrastive_loss(rows, torch.tensor([7, 7, 8]), temperature=0.5)
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)), rel=1e-14)


@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.5])
def test_equals_pytorch_metric_learning(temperature: float) -> None:
    library = pytest.importorskip("pytorch_metric_learning.losses")
    for seed in range(5):
        rows, labels = unit_rows(40, 16, seed), some_labels(40, 7, seed)
        rows.requires_grad_()
        # Its default reducer averages over the anchors with a loss above zero: all that have a positive.
        (theirs_gradient,) = torch.autograd.grad(
            theirs := library.SupConLoss(temperature=temperature)(rows, labels), rows
        )
        (ours_gradient,) = torch.autograd.grad(
            ours := supervised_contrastive_loss(
                torch.nn.functional.normalize(rows, dim=1), labels, temperature=temperature
            ),
            rows,
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=1e-11, atol=1e-13)


def test_memory_equals_the_joined_batch_restricted_to_its_anchors() -> None:
    for seed in range(5):
        rows, labels = unit_rows(30, seed=seed), some_labels(30, 5, seed)
        expected = plain_loops.supcon(rows.tolist(), labels.tolist(), 0.07, anchors=11)
        ours = supervised_contrastive_loss(
            rows[:11], labels[:11], memory_embeddings=rows[11:], memory_labels=labels[11:]
        )
        assert ours.item() == pytest.approx(expected, rel=1e-12)


def test_memory_gives_a_lone_image_its_positive() -> None:
    rows = unit_rows(3)
    loss = supervised_contrastive_loss(
        rows[:1], torch.tensor([5]), memory_embeddings=rows[1:], memory_labels=torch.tensor([5, 6])
    )
    assert loss.item() == pytest.approx(plain_loops.supcon(rows.tolist(), [5, 5, 6], 0.07, anchors=1), rel=1e-12)


def test_an_empty_memory_changes_nothing() -> None:
    rows, labels = unit_rows(9), some_labels(9, 3)
    empty = supervised_contrastive_loss(rows, labels, memory_embeddings=rows[:0], memory_labels=labels[:0])
    assert torch.equal(empty, supervised_contrastive_loss(rows, labels))


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_without_any_positive_loss_and_gradients_are_zero(count: int) -> None:
    rows = unit_rows(count).requires_grad_()
    loss = supervised_contrastive_loss(rows, torch.arange(count))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_identical_embeddings() -> None:
    rows = unit_rows(1).expand(6, -1).contiguous().requires_grad_()
    loss = supervised_contrastive_loss(rows, torch.tensor([1, 1, 1, 2, 2, 3]), temperature=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(5), rel=1e-12)  # every other image has the same share
    assert rows.grad.isfinite().all()


def test_one_class_of_two_has_nothing_to_repel() -> None:
    rows = unit_rows(2).requires_grad_()
    loss = supervised_contrastive_loss(rows, torch.tensor([4, 4]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    assert rows.grad.abs().max() < 1e-13


def test_only_anchors_with_a_positive_count() -> None:
    # Twenty strangers at right angles to the pair and far from attracting it: the mean is still over the pair alone.
    rows = torch.eye(22, dtype=torch.float64)
    loss = supervised_contrastive_loss(rows, torch.tensor([0, 0, *range(1, 21)]), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(21), rel=1e-13)


def test_gradcheck() -> None:
    rows, labels = unit_rows(7, 3).requires_grad_(), torch.tensor([1, 1, 2, 2, 2, 3, 4])
    memory, memory_labels = unit_rows(4, 3, seed=9).requires_grad_(), torch.tensor([3, 3, 1, 8])

    def loss(batch: torch.Tensor, remembered: torch.Tensor) -> torch.Tensor:
        return supervised_contrastive_loss(
            batch, labels, temperature=0.3, memory_embeddings=remembered, memory_labels=memory_labels
        )

    assert torch.autograd.gradcheck(loss, (rows, memory))


def test_sharp_temperature_in_float32() -> None:
    # Similarities of -1 and 1 at temperature 0.01 are exponents of -100 and 100, beyond what float32 holds.
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    loss = supervised_contrastive_loss(rows, torch.tensor([1, 1, 2, 2]), temperature=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(200.0, rel=1e-6)
    assert rows.grad.isfinite().all()


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 12), st.integers(0, 2**31))
def test_the_order_of_a_batch_does_not_matter(data: st.DataObject, count: int, seed: int) -> None:
    labels = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=count, max_size=count)), dtype=torch.int64)
    order = torch.tensor(data.draw(st.permutations(range(count))), dtype=torch.int64)
    rows = unit_rows(count, 4, seed)
    one, other = supervised_contrastive_loss(rows, labels), supervised_contrastive_loss(rows[order], labels[order])
    assert other.item() == pytest.approx(one.item(), rel=1e-12, abs=1e-13)


def test_bad_arguments_are_named() -> None:
    rows, labels = unit_rows(4), some_labels(4, 2)
    with pytest.raises(ValueError, match=r"labels has shape \(3,\); expected \(4,\)"):
        supervised_contrastive_loss(rows, labels[:3])
    with pytest.raises(ValueError, match=r"labels has shape \(4, 1\); expected \(any,\)"):
        supervised_contrastive_loss(rows, labels[:, None])
    with pytest.raises(ValueError, match=r"embeddings has shape \(4,\); expected \(any, any\)"):
        supervised_contrastive_loss(rows[:, 0], labels)
    with pytest.raises(ValueError, match=r"torch\.int64; expected floats"):
        supervised_contrastive_loss(rows.long(), labels)
    with pytest.raises(ValueError, match=r"torch\.float64; expected integers"):
        supervised_contrastive_loss(rows, labels.double())
    with pytest.raises(ValueError, match="temperature is 0"):
        supervised_contrastive_loss(rows, labels, temperature=0.0)
    with pytest.raises(ValueError, match="come together"):
        supervised_contrastive_loss(rows, labels, memory_embeddings=rows)
    with pytest.raises(ValueError, match=r"memory_embeddings has shape \(4, 7\); expected \(any, 8\)"):
        supervised_contrastive_loss(rows, labels, memory_embeddings=rows[:, 1:], memory_labels=labels)
    with pytest.raises(ValueError, match=r"memory_labels has shape \(3,\); expected \(4,\)"):
        supervised_contrastive_loss(rows, labels, memory_embeddings=rows, memory_labels=labels[:3])
    with pytest.raises(ValueError, match=r"torch\.float64; expected integers"):
        supervised_contrastive_loss(rows, labels, memory_embeddings=rows, memory_labels=labels.double())
