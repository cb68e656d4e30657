"""The haversine loss: values against the runtime's distances, gradients against the geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.geodesy import destination, haversine_km, to_unit_vectors

torch = pytest.importorskip("torch")

from trainer.losses.haversine import haversine_loss  # noqa: E402

pytestmark = pytest.mark.slow

LATITUDES = st.floats(-90, 90)
LONGITUDES = st.floats(-180, 180)
METRE = 0.001


def vectors(coordinates: object, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(to_unit_vectors(np.asarray(coordinates))).to(dtype)


@settings(deadline=None)
@given(st.lists(st.tuples(LATITUDES, LONGITUDES, LATITUDES, LONGITUDES), min_size=1, max_size=8))
def test_times_the_radius_it_is_the_mean_distance(rows: list[tuple[float, float, float, float]]) -> None:
    places = np.array(rows)
    expected_km = np.mean([haversine_km(row[:2], row[2:]) for row in places])
    ours = haversine_loss(vectors(places[:, :2]), torch.from_numpy(places[:, 2:].copy()))
    assert ours.item() * 6371 == pytest.approx(expected_km, abs=0.001)  # arcsin loses digits near the antipode


@pytest.mark.parametrize(
    "place", [(0.0, 0.0), (90.0, 0.0), (-90.0, 77.0), (0.0, 180.0), (12.3, -180.0), (-33.9, 151.2)]
)
@pytest.mark.parametrize("distance_km", [1e-6, METRE, 1.0, 5000.0, 20000.0, math.pi * 6371 - METRE])
def test_any_distance_has_an_exact_value_and_a_gradient_along_the_sphere(
    place: tuple[float, float], distance_km: float
) -> None:
    there = destination(np.array([place]), 30.0, distance_km)
    predicted = vectors(there).requires_grad_()
    loss = haversine_loss(predicted, torch.tensor([place], dtype=torch.float64))
    loss.backward()
    assert loss.item() * 6371 == pytest.approx(distance_km, abs=1e-8)
    assert predicted.grad.norm().item() == pytest.approx(1.0, rel=1e-6)
    assert (predicted.grad * predicted).sum().item() == pytest.approx(0.0, abs=1e-9)
    # A step against the gradient comes closer by its length.
    step = min(distance_km / 2, 1.0) / 6371
    nearer = haversine_loss((predicted - step * predicted.grad).detach(), torch.tensor([place], dtype=torch.float64))
    assert (loss - nearer).item() == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_predictions_are_measured_in_full(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    places = np.stack([generator.uniform(-90, 90, 50), generator.uniform(-180, 180, 50)], 1)
    for guess in (places, np.stack([-places[:, 0], (places[:, 1] + 360) % 360 - 180], 1)):  # spot on, and antipodes
        predicted = vectors(guess, dtype).requires_grad_()
        loss = haversine_loss(predicted, torch.from_numpy(places))
        loss.backward()
        direction = predicted.detach().double().numpy()
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        target = to_unit_vectors(places)
        near, far = np.linalg.norm(direction - target, axis=1) / 2, np.linalg.norm(direction + target, axis=1) / 2
        expected = np.where(near < far, 2 * np.arcsin(np.minimum(near, 1)), np.pi - 2 * np.arcsin(np.minimum(far, 1)))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.mean(), rel=1e-6, abs=1e-12)
        assert predicted.grad.isfinite().all()
        lengths = predicted.grad.double().norm(dim=1) * len(places)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exactly_there_and_exactly_opposite(dtype: torch.dtype) -> None:
    place = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    for sign, expected in ((1.0, 0.0), (-1.0, math.pi)):
        predicted = torch.tensor([[sign, 0.0, 0.0]], dtype=dtype, requires_grad=True)
        loss = haversine_loss(predicted, place)
        loss.backward()
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(expected, rel=1e-7)
        assert torch.equal(predicted.grad, torch.zeros_like(predicted))


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[90.0, 0], [-90, 0], [0, 180], [0, -180], [51, 0], [-34, 151]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda rows: haversine_loss(rows, places), (predicted,))


def test_no_rows_cost_nothing() -> None:
    predicted = torch.zeros(0, 3, requires_grad=True)
    loss = haversine_loss(predicted, torch.zeros(0, 2, dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0.0


def test_bad_arguments_are_named() -> None:
    rows, places = torch.eye(3), torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"predicted has shape \(3, 2\); expected \(any, 3\)"):
        haversine_loss(rows[:, :2], places)
    with pytest.raises(ValueError, match=r"coordinates has shape \(2, 2\); expected \(3, 2\)"):
        haversine_loss(rows, places[:2])
    with pytest.raises(ValueError, match="expected floats"):
        haversine_loss(rows.long(), places)
    with pytest.raises(ValueError, match=r"torch\.int64; expected float64"):
        haversine_loss(rows, places.long())
