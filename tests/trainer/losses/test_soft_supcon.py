"""The soft contrastive loss against plain loops, and its limits against the supervised contrastive loss."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.losses import plain_loops

torch = pytest.importorskip("torch")

from trainer.losses.soft_supcon import soft_contrastive_loss, target_weights  # noqa: E402

pytestmark = pytest.mark.slow


def unit_rows(count: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def places_around(count: int, spread_deg: float, seed: int = 0) -> torch.Tensor:
    """Places around where the equator meets the antimeridian."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(count, 2, generator=generator, dtype=torch.float64) * spread_deg
    return torch.stack([places[:, 0].clamp(-90, 90), places[:, 1] % 360 - 180], 1)


@pytest.mark.parametrize("max_km", [math.inf, 500.0, 0.0])
@pytest.mark.parametrize("scale_km", [10.0, 75.0, 3000.0])
@pytest.mark.parametrize("remembered", [0, 8])
def test_equals_plain_loops(scale_km: float, max_km: float, remembered: int) -> None:
    for seed, spread_deg in ((0, 0.5), (1, 5.0), (2, 30.0)):
        rows, places = unit_rows(25, seed=seed), places_around(25, spread_deg, seed)
        n = 25 - remembered
        memory = {"memory_embeddings": rows[n:], "memory_coordinates": places[n:]} if remembered else {}
        ours = soft_contrastive_loss(rows[:n], places[:n], scale_km=scale_km, max_positive_km=max_km, **memory)
        expected = plain_loops.soft_supcon(rows.tolist(), places.tolist(), 0.07, scale_km, max_km, n)
        assert ours.item() == pytest.approx(expected, rel=1e-11)


def test_a_batch_by_hand() -> None:
    # Anchor 0 sees 1 and 2 one and two degrees away: targets 1 and exp(-one degree / scale), before they add up to 1.
    places = torch.tensor([[0.0, 0.0], [0.0, 1.0], [-2.0, 0.0]], dtype=torch.float64)
    scale_km = plain_loops.km([0, 0], [0, 1]) / math.log(3)
    weights = target_weights(places, places, scale_km, math.inf)
    torch.testing.assert_close(weights[0], torch.tensor([0.0, 3 / 4, 1 / 4], dtype=torch.float64) / 3)


def test_widely_separated_cells_are_the_supervised_loss() -> None:
    # Images at three places exactly, thousands of km apart: nothing of a target leaves its place.
    rows, labels = unit_rows(15), torch.arange(15) % 3
    places = torch.tensor([[0.0, 0.0], [90.0, 0.0], [0.0, 180.0]], dtype=torch.float64)[labels]
    expected = plain_loops.supcon(rows.tolist(), labels.tolist(), 0.07)
    assert soft_contrastive_loss(rows, places).item() == pytest.approx(expected, rel=1e-12)


def test_an_anchor_far_from_all_is_left_out_and_still_repels() -> None:
    rows, places = unit_rows(3), torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, 90.0]], dtype=torch.float64)
    expected = plain_loops.supcon(rows.tolist(), [1, 1, 2], 0.07)
    assert soft_contrastive_loss(rows, places, max_positive_km=100.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_without_any_anchor_loss_and_gradients_are_zero(count: int) -> None:
    rows = unit_rows(count).requires_grad_()
    places = torch.tensor([[0.0, 0.0], [0.0, 90.0], [0.0, 180.0]], dtype=torch.float64)[:count]
    loss = soft_contrastive_loss(rows, places, max_positive_km=100.0)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_one_place_pulls_all_alike() -> None:
    rows = unit_rows(7).requires_grad_()
    places = torch.tensor([[90.0, 12.0]], dtype=torch.float64).expand(7, 2)
    loss = soft_contrastive_loss(rows, places, max_positive_km=0.0)
    assert loss.item() == pytest.approx(plain_loops.supcon(rows.tolist(), [1] * 7, 0.07), rel=1e-12)
    assert torch.autograd.grad(loss, rows)[0].isfinite().all()


def test_antipodes_and_poles_are_finite() -> None:
    rows = unit_rows(4).requires_grad_()
    places = torch.tensor([[90.0, 0.0], [-90.0, 0.0], [0.0, 180.0], [0.0, 0.0]], dtype=torch.float64)
    loss = soft_contrastive_loss(rows, places, temperature=0.01, scale_km=0.001)
    loss.backward()
    assert loss.isfinite()
    assert rows.grad.isfinite().all()


def test_gradcheck() -> None:
    rows, memory = unit_rows(7, 3).requires_grad_(), unit_rows(4, 3, seed=4).requires_grad_()
    places = places_around(11, 2.0)

    def loss(batch: torch.Tensor, remembered: torch.Tensor) -> torch.Tensor:
        return soft_contrastive_loss(
            batch,
            places[:7],
            temperature=0.3,
            max_positive_km=150.0,
            memory_embeddings=remembered,
            memory_coordinates=places[7:],
        )

    assert torch.autograd.gradcheck(loss, (rows, memory))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), max_size=10),
    st.randoms(use_true_random=False),
    st.sampled_from([1.0, 75.0, 5000.0]),
)
def test_the_order_of_a_batch_does_not_matter(
    places: list[tuple[float, float]], random: object, scale_km: float
) -> None:
    coordinates = torch.tensor(places, dtype=torch.float64).reshape(-1, 2)
    order = torch.tensor(random.sample(range(len(places)), len(places)), dtype=torch.int64)
    rows = unit_rows(len(places), 4)
    one = soft_contrastive_loss(rows, coordinates, scale_km=scale_km)
    other = soft_contrastive_loss(rows[order], coordinates[order], scale_km=scale_km)
    assert other.item() == pytest.approx(one.item(), rel=1e-9, abs=1e-12)


def test_bad_arguments_are_named() -> None:
    rows, places = unit_rows(4), places_around(4, 1.0)
    with pytest.raises(ValueError, match="scale_km is 0"):
        soft_contrastive_loss(rows, places, scale_km=0.0)
    with pytest.raises(ValueError, match="temperature is -1"):
        soft_contrastive_loss(rows, places, temperature=-1.0)
    with pytest.raises(ValueError, match="max_positive_km is nan"):
        soft_contrastive_loss(rows, places, max_positive_km=math.nan)
    with pytest.raises(ValueError, match=r"coordinates has shape \(3, 2\); expected \(4, 2\)"):
        soft_contrastive_loss(rows, places[:3])
