"""The random reference beside a run that held out sources; the holding out itself is tested in `test_locate`."""

from __future__ import annotations

import numpy as np

from geoinfer.evaluate.baselines import RANDOM_REFERENCE, random_pairs_apart
from geoinfer.evaluate.measure import measure
from geoinfer.evaluate.outcomes import Outcomes, Run
from geoinfer.geodesy import haversine_km
from geoinfer.metrics import OSV5M


def test_no_pair_is_of_one_number_and_each_photo_has_as_many() -> None:
    photos, references = np.array([0, 1, -1, 0]), np.array([0] * 5 + [1] * 45)
    rows, drawn = random_pairs_apart(photos, references, most=40_000)
    assert np.bincount(rows).tolist() == [10_000] * 4
    assert not (photos[rows] == references[drawn]).any()
    shares = [np.bincount(drawn[rows == row], minlength=50) / 10_000 for row in range(4)]
    for row, allowed in enumerate((range(5, 50), range(5), range(50), range(5, 50))):
        assert np.flatnonzero(shares[row]).tolist() == list(allowed)
        assert np.abs(shares[row][list(allowed)] - 1 / len(allowed)).max() < 0.02


def test_a_random_reference_is_of_another_source() -> None:
    random = np.random.default_rng(1)
    truth, places = random.uniform(-60, 60, (6, 2)), random.uniform(-60, 60, (40, 2))
    photos, references = np.array([0, 0, 0, 1, 1, -1]), np.arange(40) % 4 // 3  # 30 of one source, 10 of the other
    empty, nothing = [""] * 6, np.full(6, np.nan)
    outcomes = Outcomes(
        [f"{row}" for row in range(6)], [b""] * 6, truth, truth + 1, ["ok"] * 6, empty, nothing, nothing,
        empty, empty, empty, empty, empty, empty,
    )  # fmt: skip
    found = measure(
        outcomes, Run("a"), OSV5M, reference_coordinates=places, held_out=(photos, references)
    ).baselines[RANDOM_REFERENCE]["Global"]  # fmt: skip
    means = [
        haversine_km(place, places[references != number]).mean() for place, number in zip(truth, photos, strict=True)
    ]
    assert abs(found.mean_km.value - np.mean(means)) < 30
