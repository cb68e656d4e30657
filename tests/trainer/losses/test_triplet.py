"""The triplet loss and its mining against plain loops, an independent library and hand-placed maps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.losses import plain_loops

torch = pytest.importorskip("torch")

from trainer.losses.triplet import farthest_triplets, semi_hard_triplets, triplet_margin_loss  # noqa: E402

pytestmark = pytest.mark.slow


def unit_rows(count: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def clustered_places(count: int, seed: int = 0) -> torch.Tensor:
    """Places in a few clusters some hundred km wide, one at the antimeridian and one at a pole."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[48.0, 11.0], [50.0, 14.0], [-17.0, 180.0], [89.0, 0.0], [-33.0, 151.0]])
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64) * 1.5
    places = centres[torch.randint(len(centres), (count,), generator=generator)] + noise
    return torch.stack([90 - (90 - places[:, 0]).abs(), (places[:, 1] + 180) % 360 - 180], 1)


def found_triplets(mined: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> list[tuple[int, int, int]]:
    positive, negative, found = (part.tolist() for part in mined)
    return [(row, p, n) for row, (p, n, there) in enumerate(zip(positive, negative, found, strict=True)) if there]


@pytest.mark.parametrize("remembered", [0, 9])
@pytest.mark.parametrize("margin", [0.0, 0.2, 1.5])
def test_farthest_equals_plain_loops(margin: float, remembered: int) -> None:
    for seed in range(5):
        rows, places = unit_rows(31, seed=seed), clustered_places(31, seed)
        n = 31 - remembered
        memory = {"memory_embeddings": rows[n:], "memory_coordinates": places[n:]} if remembered else {}
        triplets = plain_loops.farthest_triplets(places.tolist(), n)
        assert found_triplets(farthest_triplets(places[:n], places)) == triplets
        ours = triplet_margin_loss(rows[:n], places[:n], margin=margin, **memory)
        assert ours.item() == pytest.approx(plain_loops.triplet(rows.tolist(), triplets, margin), rel=1e-12)


@pytest.mark.parametrize("remembered", [0, 9])
@pytest.mark.parametrize("negative_km", [0.0, 200.0, 2000.0])
def test_semi_hard_equals_plain_loops(negative_km: float, remembered: int) -> None:
    for seed in range(5):
        rows, places = unit_rows(31, 3, seed), clustered_places(31, seed)
        n = 31 - remembered
        memory = {"memory_embeddings": rows[n:], "memory_coordinates": places[n:]} if remembered else {}
        triplets = plain_loops.semi_hard_triplets(rows.tolist(), places.tolist(), negative_km, n)
        assert found_triplets(semi_hard_triplets(rows[:n], rows, places[:n], places, negative_km)) == triplets
        ours = triplet_margin_loss(rows[:n], places[:n], mining="semi_hard", negative_km=negative_km, **memory)
        assert ours.item() == pytest.approx(plain_loops.triplet(rows.tolist(), triplets, 0.2), rel=1e-12)


def test_semi_hard_holds_for_rows_of_any_length() -> None:
    for seed in range(5):
        lengths = torch.linspace(0.2, 3.0, 30, dtype=torch.float64)[:, None]
        rows, places = unit_rows(30, 3, seed) * lengths, clustered_places(30, seed)
        triplets = plain_loops.semi_hard_triplets(rows.tolist(), places.tolist(), 200.0)
        assert found_triplets(semi_hard_triplets(rows, rows, places, places, 200.0)) == triplets


@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_equals_pytorch_metric_learning_on_the_same_triplets(margin: float) -> None:
    library = pytest.importorskip("pytorch_metric_learning")
    theirs_of = library.losses.TripletMarginLoss(
        margin=margin,
        distance=library.distances.LpDistance(normalize_embeddings=False, p=2, power=2),
        reducer=library.reducers.MeanReducer(),  # the default leaves out triplets that are already apart
    )
    for seed in range(3):
        rows, places = unit_rows(24, seed=seed).requires_grad_(), clustered_places(24, seed)
        for mining, triplets in (
            ("farthest", plain_loops.farthest_triplets(places.tolist())),
            ("semi_hard", plain_loops.semi_hard_triplets(rows.tolist(), places.tolist(), 200.0)),
        ):
            indices = tuple(torch.tensor(triplets).unbind(1))
            theirs = theirs_of(rows, indices_tuple=indices)
            ours = triplet_margin_loss(rows, places, margin=margin, mining=mining)
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(
                torch.autograd.grad(ours, rows), torch.autograd.grad(theirs, rows), rtol=1e-9, atol=1e-12
            )


def test_distances_are_squared() -> None:
    # On a line: the positive 3 away from the anchor, the negative 2 away; squared 9 and 4, else 3 and 2.
    rows = torch.tensor([[0.0], [3.0], [2.0]], dtype=torch.float64)
    places = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 90.0]], dtype=torch.float64)
    # Anchor 0: 9 - 4 + 0.5; anchor 1: 9 - 1 + 0.5; anchor 2: nearest is 1, farthest is 0: 1 - 4 + 0.5 is below zero.
    assert triplet_margin_loss(rows, places, margin=0.5).item() == pytest.approx((5.5 + 8.5 + 0.0) / 3, rel=1e-14)


def test_places_across_the_antimeridian_and_around_a_pole_are_near() -> None:
    places = torch.tensor([[0.0, 179.9], [0.0, -179.9], [0.0, 170.0], [89.9, 10.0], [89.9, -170.0], [85.0, 10.0]])
    positive, _, found = mined = farthest_triplets(places.double(), places.double())
    assert positive.tolist() == [1, 0, 0, 4, 3, 3]
    assert found.all()
    assert found_triplets(mined) == plain_loops.farthest_triplets(places.double().tolist())


def test_an_antipode_is_the_farthest() -> None:
    places = torch.tensor([[35.0, 70.0], [-35.0, -110.0], [-35.0, -109.0], [36.0, 70.0]], dtype=torch.float64)
    positive, negative, _ = farthest_triplets(places, places)
    assert (positive[0], negative[0]) == (3, 1)


def test_among_equal_places_the_first_counts() -> None:
    places = torch.tensor([[0.0, 0.0], [10.0, 10.0], [10.0, 10.0], [50.0, 50.0], [50.0, 50.0]], dtype=torch.float64)
    positive, negative, found = farthest_triplets(places, places)
    assert positive.tolist() == [1, 2, 1, 4, 3]
    assert negative.tolist() == [3, 3, 3, 0, 0]
    assert found.all()


@pytest.mark.parametrize("mining", ["farthest", "semi_hard"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_without_any_triplet_loss_and_gradients_are_zero(count: int, mining: str) -> None:
    rows = unit_rows(count).requires_grad_()
    places = torch.tensor([[64.1, -21.9]], dtype=torch.float64).expand(count, 2)  # all in one place
    loss = triplet_margin_loss(rows, places, mining=mining)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_two_images_have_no_triplet_wherever_they_are() -> None:
    places = torch.tensor([[64.1, -21.9], [-33.0, 151.0]], dtype=torch.float64)
    for mining in ("farthest", "semi_hard"):
        assert triplet_margin_loss(unit_rows(2), places, mining=mining).item() == 0.0


def test_anchors_without_a_triplet_are_not_averaged_over() -> None:
    # Only the two at the ends are more than 1000 km apart; the one between them has no negative.
    places = torch.tensor([[0.0, 0.0], [0.0, 5.0], [0.0, 9.5]], dtype=torch.float64)
    rows = unit_rows(3, seed=2)
    ours = triplet_margin_loss(rows, places, mining="semi_hard", negative_km=1000.0, margin=4.0)
    expected = plain_loops.triplet(rows.tolist(), [(0, 1, 2), (2, 1, 0)], 4.0)
    assert ours.item() == pytest.approx(expected, rel=1e-12)


def test_semi_hard_by_hand() -> None:
    # On a line: anchor at 0, positive at 1, and negatives far away on the Earth at the given positions.
    def negative_of(*positions: float) -> int:
        rows = torch.tensor([[0.0], [1.0], *([p] for p in positions)], dtype=torch.float64)
        places = torch.tensor([[0.0, 0.0], [0.0, 0.1]] + [[0.0, 40.0 + i] for i in range(len(positions))])
        return semi_hard_triplets(rows, rows, places.double(), places.double(), 200.0)[1][0].item() - 2

    assert negative_of(0.5, 1.05, 1.04, 3.0) == 2  # the closest of those less alike than the positive
    assert negative_of(5.0, 3.0, 0.2) == 1  # the same beyond the margin, where the loss is zero
    assert negative_of(0.3, 0.9, 0.6) == 1  # all are more alike: the least alike
    assert negative_of(1.0, 0.5) == 0  # as alike as the positive is not less alike
    assert negative_of(1.0, 1.5) == 1  # and so is passed over for one that is
    assert negative_of(2.0, -2.0) == 0  # among equals the first


def test_an_image_just_within_negative_km_is_no_negative() -> None:
    rows = unit_rows(3)
    one_degree_km = plain_loops.km([0.0, 0.0], [0.0, 1.0])
    places = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
    for negative_km, found in ((one_degree_km * 0.999, True), (one_degree_km * 1.001, False)):
        assert semi_hard_triplets(rows, rows, places, places, negative_km)[2][0].item() is found


def test_a_radius_beyond_the_earth_leaves_no_negative() -> None:
    rows, places = unit_rows(12), clustered_places(12)
    assert triplet_margin_loss(rows, places, mining="semi_hard", negative_km=30000.0).item() == 0.0


def test_gradcheck() -> None:
    rows, places = unit_rows(9, 3).requires_grad_(), clustered_places(12)
    memory = unit_rows(3, 3, seed=5).requires_grad_()
    for mining in ("farthest", "semi_hard"):
        assert torch.autograd.gradcheck(
            lambda batch, kept, mining=mining: triplet_margin_loss(
                batch,
                places[:9],
                margin=0.7,
                mining=mining,
                memory_embeddings=kept,
                memory_coordinates=places[9:],
            ),
            (rows, memory),
        )


def test_identical_embeddings_cost_the_margin() -> None:
    rows = unit_rows(1).expand(8, -1).contiguous().requires_grad_()
    for mining in ("farthest", "semi_hard"):
        loss = triplet_margin_loss(rows, clustered_places(8), mining=mining)
        assert loss.item() == pytest.approx(0.2, rel=1e-12)
        assert torch.autograd.grad(loss, rows)[0].isfinite().all()


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 12), st.integers(0, 2**31), st.sampled_from(["farthest", "semi_hard"]))
def test_the_order_of_a_batch_does_not_matter(data: st.DataObject, count: int, seed: int, mining: str) -> None:
    order = torch.tensor(data.draw(st.permutations(range(count))), dtype=torch.int64)
    rows, places = unit_rows(count, 4, seed), clustered_places(count, seed)
    one = triplet_margin_loss(rows, places, mining=mining)
    other = triplet_margin_loss(rows[order], places[order], mining=mining)
    assert other.item() == pytest.approx(one.item(), rel=1e-12, abs=1e-13)


def test_bad_arguments_are_named() -> None:
    rows, places = unit_rows(4), clustered_places(4)
    with pytest.raises(ValueError, match="mining is 'hardest'; expected one of farthest, semi_hard"):
        triplet_margin_loss(rows, places, mining="hardest")
    with pytest.raises(ValueError, match="margin is -1"):
        triplet_margin_loss(rows, places, margin=-1.0)
    with pytest.raises(ValueError, match="negative_km is nan"):
        triplet_margin_loss(rows, places, mining="semi_hard", negative_km=float("nan"))
    with pytest.raises(ValueError, match=r"coordinates has shape \(4, 3\); expected \(any, 2\)"):
        triplet_margin_loss(rows, torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"coordinates has shape \(3, 2\); expected \(4, 2\)"):
        triplet_margin_loss(rows, places[:3])
    with pytest.raises(ValueError, match=r"memory_coordinates has shape \(3, 2\); expected \(4, 2\)"):
        triplet_margin_loss(rows, places, memory_embeddings=rows, memory_coordinates=places[:3])
