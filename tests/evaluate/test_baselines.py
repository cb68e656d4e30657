"""The constant against brute force on a fine grid; random references against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.evaluate.baselines import best_constant, median_distances_km, random_pairs, random_pairs_apart
from geoinfer.geodesy import destination, haversine_km, to_unit_vectors


def brute_force_km(truth: np.ndarray, step_deg: float = 1.0, window: tuple = (-90, 90, -180, 180)) -> float:
    """The smallest median over a grid, and over the photos' own places."""
    south, north, west, east = window
    latitudes, longitudes = np.arange(south, north + step_deg, step_deg), np.arange(west, east, step_deg)
    grid = np.stack(np.meshgrid(latitudes, longitudes, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = np.concatenate([grid[np.abs(grid[:, 0]) <= 90], truth])
    best = np.inf
    for start in range(0, len(grid), 4096):
        medians = np.median(haversine_km(grid[start : start + 4096, None], truth[None]), axis=1)
        best = min(best, float(medians.min()))
    return best


def scattered(seed: int, count: int) -> np.ndarray:
    """Photos about a few places, as the world's are."""
    random = np.random.default_rng(seed)
    centres = np.column_stack([random.uniform(-60, 70, 5), random.uniform(-180, 180, 5)])
    own = centres[random.integers(5, size=count)]
    return destination(own, random.uniform(0, 360, count), random.exponential(1200, count))


def median_km(place: np.ndarray, truth: np.ndarray) -> float:
    return float(np.median(haversine_km(place, truth)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [9, 50, 301])
def test_no_place_of_a_grid_is_better(seed: int, count: int) -> None:
    truth = scattered(seed, count)
    found = median_km(best_constant(truth), truth)
    assert found <= brute_force_km(truth) + 1e-6


def test_fine_grid_about_the_answer() -> None:
    truth = scattered(7, 200)
    place = best_constant(truth)
    south, west = np.floor(place) - 1
    window = (south, south + 3, west, west + 3)
    assert median_km(place, truth) <= brute_force_km(truth, 0.02, window) + 1e-3


def test_by_hand() -> None:
    # Three of five are at one spot: so is the constant.
    spot = np.array([[10.0, 20.0]] * 3 + [[-50.0, 100.0], [60.0, -90.0]])
    assert median_km(best_constant(spot), spot) == pytest.approx(0, abs=0.02)
    # Three within a degree about the antimeridian, two far away: half the way around them, across it.
    across = np.array([[0.0, 179.5], [0.0, -179.5], [0.0, 180.0], [45.0, 0.0], [-45.0, 0.0]])
    assert median_km(best_constant(across), across) == pytest.approx(111.1949 / 2, abs=0.05)
    # The same about a pole.
    pole = np.array([[89.5, 0.0], [89.5, 180.0], [89.5, 90.0], [-10.0, 0.0], [-10.0, 90.0]])
    assert median_km(best_constant(pole), pole) == pytest.approx(111.1949 / 2, abs=0.05)
    # Of an even number the median is the mean of the middle two: any place between two photos will do.
    two = np.array([[0.0, 0.0], [0.0, 10.0]])
    assert median_km(best_constant(two), two) == pytest.approx(5 * 111.1949, abs=0.01)
    assert median_km(best_constant(two[:1]), two[:1]) == pytest.approx(0, abs=0.02)


def test_many_photos_are_judged_by_all() -> None:
    truth = scattered(3, 20_000)
    found = median_km(best_constant(truth), truth)
    some = truth[np.random.default_rng(0).choice(20_000, 1500, replace=False)]
    candidates = np.concatenate([some, np.column_stack([np.repeat(np.arange(-80, 81, 10), 36),
                                                        np.tile(np.arange(-180, 180, 10), 17)])])  # fmt: skip
    assert found <= median_distances_km(candidates, to_unit_vectors(truth)).min()


def test_same_every_time() -> None:
    truth = scattered(1, 4000)
    assert np.array_equal(best_constant(truth), best_constant(truth))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=12))
def test_medians_are_numpys(photos: list) -> None:
    truth = np.array(photos)
    places = np.array([[0.0, 0.0], [90.0, 0.0], [-33.0, 180.0]])
    expected = [median_km(place, truth) for place in places]
    assert median_distances_km(places, to_unit_vectors(truth)) == pytest.approx(expected, abs=1e-3)


def test_all_pairs_where_they_are_few() -> None:
    photos, references = random_pairs(3, 4)
    assert sorted(zip(photos.tolist(), references.tolist(), strict=True)) == [
        (p, r) for p in range(3) for r in range(4)
    ]


def test_many_pairs_are_drawn() -> None:
    photos, references = random_pairs(100, 5000, most=10_000)
    assert np.bincount(photos).tolist() == [100] * 100
    assert len(references) == 10_000
    assert 0 <= references.min() <= references.max() < 5000
    assert len(np.unique(references)) > 4000
    assert np.array_equal(references, random_pairs(100, 5000, most=10_000)[1])
    # At least one for each photo.
    assert np.bincount(random_pairs(50, 7, most=10)[0]).tolist() == [1] * 50


def test_pairs_apart() -> None:
    photos, references = np.array([3, 5, 3, 9]), np.array([3, 3, 5, 7, 5, 3])
    rows, drawn = random_pairs_apart(photos, references, most=800)
    assert np.bincount(rows).tolist() == [200] * 4
    for row, number in enumerate(photos):
        # Every reference of another number, and none of the same.
        assert set(drawn[rows == row].tolist()) == set(np.flatnonzero(references != number).tolist())
