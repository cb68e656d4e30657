"""kNN validation against plain loops, hand-placed vectors, and a model that answers by table."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pydantic")
pytest.importorskip("lightning_fabric")

from trainer.data.examples import make_examples  # noqa: E402
from trainer.objective import Answers, Objective  # noqa: E402
from trainer.recipe import StageTable  # noqa: E402
from trainer.validation import (  # noqa: E402
    GeolocationErrors,
    batched_loss,
    best_of,
    neighbor_errors,
    place_errors,
)

pytestmark = pytest.mark.slow

RADIUS_KM = 6371.0


def vector(place: Any) -> tuple[float, float, float]:
    latitude, longitude = math.radians(place[0]), math.radians(place[1])
    return (
        math.cos(latitude) * math.cos(longitude),
        math.cos(latitude) * math.sin(longitude),
        math.sin(latitude),
    )


def angle_km(a: Any, b: Any) -> float:
    """By the cross and the dot product: another formula than the haversine's."""
    cross = np.linalg.norm(np.cross(a, b))
    return float(RADIUS_KM * math.atan2(cross, float(np.dot(a, b))))


def by_loops(queries: Any, truth: Any, references: Any, places: Any, k: int) -> list[float]:
    errors = []
    for query, here in zip(queries, truth, strict=True):
        similarities = [float(np.dot(query, reference)) for reference in references]
        order = sorted(range(len(references)), key=lambda i: (-similarities[i], i))[:k]
        mean = sum(max(0.0, similarities[i]) * np.array(vector(places[i])) for i in order)
        if k == 1:
            mean = np.array(vector(places[order[0]]))
        errors.append(angle_km(mean, np.array(vector(here))))
    return errors


def unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def random_places(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.stack([generator.uniform(-90, 90, count), generator.uniform(-180, 180, count)], axis=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 40))
def test_errors_equal_plain_loops(seed: int, queries: int, references: int) -> None:
    generator = np.random.default_rng(seed)
    # Near one another, so that all similarities are positive and no mean cancels out.
    asked, known = (unit(1 + 0.5 * generator.normal(size=(n, 6))) for n in (queries, references))
    truth, places = random_places(generator, queries), random_places(generator, references)
    ks = [1, 3, 5, 20]
    for k, errors in zip(ks, neighbor_errors(asked, truth, known, places, ks), strict=True):
        assert errors.k == k
        expected = by_loops(asked.astype(float), truth, known.astype(float), places, k)
        if k == 1:
            np.testing.assert_allclose(errors.distances_km, expected, rtol=1e-6, atol=1e-3)
        else:
            # Similarities are float32: a sum of vectors that all but cancels turns by more than one of others does.
            np.testing.assert_allclose(errors.distances_km, expected, rtol=1e-3, atol=2.0)


def test_hand_placed_neighbours() -> None:
    # The nearest reference is 10 degrees of latitude off; the mean of the two, one on each side, is right.
    references = unit([[1, 0.1], [1, -0.11], [-1, 0.5]])
    places = np.array([[10.0, 20.0], [-10.0, 20.0], [80.0, 0.0]])
    errors = neighbor_errors(unit([[1, 0]]), np.array([[0.0, 20.0]]), references, places, [1, 2, 3])
    assert errors[0].distances_km[0] == pytest.approx(math.radians(10) * RADIUS_KM)
    assert errors[1].distances_km[0] < 10
    # The third is not similar at all and weighs nothing.
    assert errors[2].distances_km[0] == pytest.approx(errors[1].distances_km[0], abs=1e-6)
    assert best_of(errors).k == 2


def test_a_mean_across_the_antimeridian() -> None:
    references = unit([[1, 0.1], [1, -0.1]])
    places = np.array([[0.0, 179.0], [0.0, -179.0]])
    (errors,) = neighbor_errors(unit([[1, 0]]), np.array([[0.0, 180.0]]), references, places, [2])
    assert errors.distances_km[0] < 0.1


def test_fewer_references_than_neighbours_asked_for() -> None:
    references, places = unit([[1, 0.0], [0.9, 0.1]]), np.array([[5.0, 5.0], [6.0, 5.0]])
    truth = np.array([[5.0, 5.0]])
    one, two, many = neighbor_errors(unit([[1, 0]]), truth, references, places, [1, 2, 100])
    assert one.distances_km[0] == pytest.approx(0, abs=1e-9)
    assert many.distances_km.tolist() == two.distances_km.tolist()
    assert best_of([many, two]).k == 2  # of equal ones the smallest


def test_the_best_k_has_the_smallest_median() -> None:
    errors = [GeolocationErrors(k, np.array(d, float)) for k, d in ((1, [0, 9, 9]), (5, [8, 8, 8]), (3, [0, 8, 99]))]
    assert best_of(errors).k == 3
    assert best_of(errors[:2]).k == 5
    assert best_of(errors[::-1]).k == 3


def test_accuracies_and_score_by_hand() -> None:
    # A distance of exactly the radius does not count: d < r, as OSV-5M has it.
    row = GeolocationErrors(5, np.array([24.999, 25.0, 200.0, 750.0, 2499.9, 2500.0, 20000.0, 0.0])).as_row()
    assert row["best_k"] == 5
    assert [row[f"accuracy_{r}_km"] for r in (25, 200, 750, 2500)] == [25.0, 37.5, 50.0, 75.0]
    assert row["median_km"] == (200 + 750) / 2
    assert row["mean_km"] == pytest.approx(25999.899 / 8)
    (single,) = [GeolocationErrors(1, np.array([1492.7])).as_row()]
    assert single["geoscore"] == pytest.approx(5000 / math.e)
    pair = GeolocationErrors(1, np.array([0.0, 1492.7 * math.log(2)])).as_row()
    assert pair["geoscore"] == pytest.approx((5000 + 2500) / 2)


def test_errors_of_a_coordinate_head() -> None:
    truth = np.array([[0.0, 0.0], [89.0, 10.0], [-45.0, 180.0]])
    places = np.array([vector((0, 1)), vector((89, -170)), vector((-45, -180))], np.float32)
    errors = place_errors(places, truth)
    assert errors.k == 0
    one_degree = math.radians(1) * RADIUS_KM
    np.testing.assert_allclose(errors.distances_km, [one_degree, 2 * one_degree, 0], atol=1.0)


def photos(count: int) -> Any:
    coordinates = np.stack([np.linspace(-60, 60, count), np.linspace(-170, 170, count)], axis=1)
    # In pairs: each photo has one partner in its cell.
    coordinates = np.repeat(coordinates[::2], 2, axis=0)[:count]
    return make_examples([f"p{i}" for i in range(count)], [b"x"] * count, coordinates)


def stage(**more: Any) -> StageTable:
    values = {"name": "one", "epochs": 1, "batch_size": 4, "losses": [{"kind": "supcon", "levels": [5]}]}
    return StageTable.model_validate(values | more)


class Recorded(Objective):
    """Answers with the number of its rows, and keeps them."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, answers: Answers, memory: Any = None) -> Any:
        assert memory is None
        rows = answers.outputs[:, 0].long()
        self.seen.append(rows.tolist())
        expected = photos(10)
        assert np.array_equal(answers.leaf_cells.numpy().view(np.uint64), expected.leaf_cells[rows.numpy()])
        assert np.array_equal(answers.coordinates.numpy(), expected.coordinates[rows.numpy()])
        return torch.tensor(float(len(rows))), {}


@pytest.mark.parametrize("sampler", [{"kind": "random"}, {"kind": "cells", "level": 5, "images_per_cell": 2}])
def test_validation_batches_are_made_as_the_stage_makes_them(sampler: dict[str, Any]) -> None:
    outputs = np.arange(10, dtype=np.float32)[:, None]
    seen = []
    for _ in range(2):
        objective = Recorded()
        batched_loss(objective, stage(sampler=sampler), outputs, photos(10), seed=7)
        seen.append(objective.seen)
        for rows in objective.seen:
            assert len(set(rows)) == len(rows) <= 4
            if sampler["kind"] == "cells":
                assert all(row ^ 1 in rows for row in rows)
    assert seen[0] == seen[1]  # the same every epoch


def test_the_loss_is_the_mean_over_batches() -> None:
    objective = Recorded()
    loss = batched_loss(objective, stage(), np.arange(10, dtype=np.float32)[:, None], photos(10), seed=7)
    assert loss == pytest.approx(sum(map(len, objective.seen)) / len(objective.seen))


def test_fewer_validation_photos_than_a_batch() -> None:
    objective = Recorded()
    sampler = {"kind": "cells", "level": 5, "images_per_cell": 4}
    outputs = np.arange(10, dtype=np.float32)[:, None]
    loss = batched_loss(objective, stage(batch_size=64, sampler=sampler), outputs, photos(10), seed=7)
    # No cell has four photos: they are drawn at random instead.
    assert loss == 10
    assert sorted(objective.seen[0]) == list(range(10))


def test_no_photo_has_no_loss() -> None:
    empty: Any = SimpleNamespace()
    assert math.isnan(batched_loss(empty, stage(), np.zeros((0, 1), np.float32), photos(0), seed=7))
