"""Cells and distances on tensors against the runtime's on arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import geoinfer.geocells as runtime_cells
from geoinfer.geodesy import destination, haversine_km, to_unit_vectors

torch = pytest.importorskip("torch")

from trainer.losses import spherical  # noqa: E402
from trainer.losses.cells import parent_cells  # noqa: E402

pytestmark = pytest.mark.slow

PLACES = st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), max_size=6)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=8), st.integers(0, 30))
def test_parents_are_the_runtimes(identifiers: list[int], level: int) -> None:
    leaves = np.array(identifiers, dtype=np.uint64)
    ours = parent_cells(torch.from_numpy(leaves.view(np.int64).copy()), level)
    np.testing.assert_array_equal(ours.numpy().view(np.uint64), runtime_cells.parent_cells(leaves, level))


def test_parents_of_real_places_at_every_level() -> None:
    generator = np.random.default_rng(0)
    places = np.stack([generator.uniform(-90, 90, 40), generator.uniform(-180, 180, 40)], 1)
    leaves = runtime_cells.leaf_cells(places)
    assert (leaves > 2**63).any()  # some are negative as int64
    tensor = torch.from_numpy(leaves.view(np.int64)).reshape(8, 5)
    for level in range(31):
        expected = runtime_cells.cell_ids(places, level).view(np.int64).reshape(8, 5)
        np.testing.assert_array_equal(parent_cells(tensor, level).numpy(), expected)


def test_bad_levels_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="S2 level 31 is outside"):
        parent_cells(torch.zeros(1, dtype=torch.int64), 31)
    with pytest.raises(ValueError, match="S2 level -1 is outside"):
        parent_cells(torch.zeros(1, dtype=torch.int64), -1)
    with pytest.raises(ValueError, match=r"shape \(1,\) are torch.float64; expected int64"):
        parent_cells(torch.zeros(1, dtype=torch.float64), 3)


@settings(deadline=None)
@given(PLACES, PLACES)
@example([(90.0, 0.0), (0.0, 180.0)], [(90.0, 120.0), (-90.0, 0.0), (0.0, -180.0), (0.0, 0.0)])
def test_distances_are_the_runtimes(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> None:
    a, b = np.array(first).reshape(-1, 2), np.array(second).reshape(-1, 2)
    ours = spherical.great_circle_km(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    expected = haversine_km(a[:, None], b[None, :])
    assert ours.shape == (len(a), len(b))
    # Near the antipode both go through arcsin of almost 1.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)
    near = expected < 20000
    np.testing.assert_allclose(ours[near], expected[near], rtol=0, atol=1e-8)


@pytest.mark.parametrize("distance_km", [1e-6, 0.001, 1.0, 75.0, 10000.0])
def test_known_distances(distance_km: float) -> None:
    start = np.array([[48.2, 16.4], [90.0, 0.0], [0.0, 180.0]])
    reached = destination(start, 77.0, distance_km)
    ours = spherical.great_circle_km(torch.from_numpy(start), torch.from_numpy(reached)).diagonal()
    np.testing.assert_allclose(ours, distance_km, rtol=0, atol=2e-9)  # the digits that degrees have


def test_equal_places_are_exactly_zero_apart() -> None:
    places = torch.tensor([[48.123456789, 16.987654321]] * 5, dtype=torch.float64)
    assert torch.equal(spherical.great_circle_km(places, places), torch.zeros(5, 5, dtype=torch.float64))


@given(st.floats(0, 20015))
def test_the_chord_of_a_distance(distance_km: float) -> None:
    start = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    end = torch.tensor([[0.0, math.degrees(distance_km / 6371)]], dtype=torch.float64)
    assert spherical.chord_lengths(start, end).item() == pytest.approx(spherical.chord_of_km(distance_km), abs=1e-15)


def test_the_longest_chord_is_the_diameter() -> None:
    assert spherical.chord_of_km(math.pi * 6371) == spherical.chord_of_km(1e9) == 2.0


def test_antipodes_whose_chord_rounds_above_the_diameter() -> None:
    latitudes = torch.linspace(-89, 89, 179, dtype=torch.float64)
    places = torch.stack([latitudes.repeat(4), torch.tensor([36.0, 100.0, 144.0, 180.0]).repeat_interleave(179)], 1)
    opposite = torch.stack([-places[:, 0], places[:, 1] - 180], 1)
    assert spherical.chord_lengths(places, opposite).diagonal().max() > 2
    ours = spherical.great_circle_km(places, opposite).diagonal().numpy()
    np.testing.assert_allclose(ours, math.pi * 6371, rtol=0, atol=1e-3)


def test_float32_coordinates_are_measured_in_float64() -> None:
    places = torch.tensor([[48.25, 16.5], [48.5, 16.75]])
    expected = float(haversine_km([48.25, 16.5], [48.5, 16.75]))
    assert spherical.great_circle_km(places, places)[0, 1].item() == pytest.approx(expected, rel=1e-12)


@given(PLACES)
def test_unit_vectors_are_the_runtimes(places: list[tuple[float, float]]) -> None:
    array = np.array(places).reshape(-1, 2)
    ours = spherical.to_unit_vectors(torch.from_numpy(array)).numpy()
    np.testing.assert_allclose(ours, to_unit_vectors(array), rtol=0, atol=1e-15)


def test_bad_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"coordinates has shape \(3,\); expected \(any, 2\)"):
        spherical.to_unit_vectors(torch.zeros(3))
    with pytest.raises(ValueError, match=r"torch\.int64; expected float64"):
        spherical.to_unit_vectors(torch.zeros(3, 2, dtype=torch.int64))
