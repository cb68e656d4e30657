from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import LabelsError
from geoinfer.evaluate.coordinate_checks import check_against_truth, check_coordinates, look_swapped, may_be_radians

TABLE, LABELS = Path("p.csv"), Path("l.csv")
NAMES = ("lat", "lon")
CITIES = np.array(
    [
        [48.86, 2.35],
        [40.71, -74.01],
        [-33.87, 151.21],
        [35.68, 139.69],
        [-22.91, -43.17],
        [64.15, -21.94],
        [1.35, 103.8],
    ]
)


def many(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(-60, 75, count), rng.uniform(-180, 180, count)])


def photos(folder: Path) -> np.ndarray:
    with (folder / "photos.csv").open(encoding="utf-8", newline="") as file:
        return np.array([(float(row["latitude"]), float(row["longitude"])) for row in csv.DictReader(file)])


pairs = st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), max_size=20)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_what_is_possible_is_taken_as_it_is(rows: list[tuple[float, float]]) -> None:
    written = np.array(rows, np.float64).reshape(-1, 2)
    checked = check_coordinates(written, TABLE, NAMES)
    assert np.array_equal(checked.degrees, written)
    assert (checked.problems, checked.warnings) == ({}, [])


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_radians(rows: list[tuple[float, float]]) -> None:
    written = np.array([(math.radians(a), math.radians(b)) for a, b in rows], np.float64).reshape(-1, 2)
    checked = check_coordinates(written, TABLE, NAMES, units="radians")
    assert np.allclose(checked.degrees, np.array(rows, np.float64).reshape(-1, 2), rtol=0, atol=1e-12)
    assert not checked.problems
    assert (np.abs(checked.degrees) <= (90, 180)).all()


def test_what_was_written_is_left_as_it_is() -> None:
    written = np.array([[math.nan, 1.0], [math.inf, 2.0], *[[1.0, 350.0]] * 3])
    before = written.copy()
    check_coordinates(written, TABLE, NAMES)
    assert np.array_equal(written, before, equal_nan=True)


def test_single_rows_that_are_no_place() -> None:
    written = many(1000)
    written[3], written[5], written[7], written[9] = (91, 5), (5, -181), (math.nan, 5), (math.inf, 5)
    checked = check_coordinates(written, TABLE, NAMES)
    assert sorted(checked.problems) == [3, 5, 9]
    assert checked.problems[3] == "latitude, longitude are 91, 5; expected degrees within [-90, 90] and [-180, 180]"
    assert np.flatnonzero(np.isnan(checked.degrees).any(axis=1)).tolist() == [3, 5, 7, 9]
    assert checked.warnings == ["p.csv: latitude beyond 90 in 1 row; those rows cannot be used"]


def test_swapped_columns_are_asked_for() -> None:
    written = many(1000)[:, ::-1]
    beyond = sum(1 for latitude, _ in written.tolist() if abs(latitude) > 90)
    with pytest.raises(LabelsError) as caught:
        check_coordinates(written, TABLE, NAMES)
    assert str(caught.value) == f"p.csv: latitude beyond 90 in {beyond} rows; are the columns swapped?"
    assert "'lat' and 'lon'" in caught.value.hint


def test_longitudes_from_0_to_360() -> None:
    expected = many(200)
    written = expected.copy()
    written[written[:, 1] < 0, 1] += 360
    checked = check_coordinates(written, TABLE, NAMES)
    assert np.allclose(checked.degrees, expected, atol=1e-9)
    assert "from 0 to 360" in checked.warnings[0]
    # With a western longitude among them they are not counted so.
    written[0, 1] = -5
    with pytest.raises(LabelsError, match="longitude beyond 180 in"):
        check_coordinates(written, TABLE, NAMES)


@pytest.mark.parametrize("factor", [1e7, 111_319.5])
def test_metres_and_scaled_degrees(factor: float) -> None:
    with pytest.raises(LabelsError, match="latitude beyond 90 in 7 rows, such as") as caught:
        check_coordinates(CITIES * factor, TABLE, NAMES)
    assert "projection" in caught.value.hint


def test_degrees_that_are_said_to_be_radians() -> None:
    with pytest.raises(LabelsError, match=r"latitude beyond pi/2 in .* rows: these are degrees, not radians") as caught:
        check_coordinates(CITIES, TABLE, NAMES, units="radians")
    assert "leave --units radians out" in caught.value.hint


def test_small_places_may_be_radians() -> None:
    assert may_be_radians(np.deg2rad(CITIES))
    assert not may_be_radians(CITIES)
    assert not may_be_radians(np.array([[1.0, 2.0]] * 50))
    assert not may_be_radians(np.empty((0, 2)))
    assert may_be_radians(np.vstack([np.deg2rad(CITIES), [[math.nan, math.nan]]]))


def test_radians_against_the_truth() -> None:
    predicted = CITIES + 0.5
    assert check_against_truth(CITIES, predicted, TABLE, LABELS) == []
    with pytest.raises(LabelsError, match="look like radians") as caught:
        check_against_truth(CITIES, np.deg2rad(predicted), TABLE, LABELS)
    assert "--units radians" in caught.value.hint


def test_labels_in_radians_against_the_predictions() -> None:
    with pytest.raises(LabelsError, match=r"l\.csv: the places look like radians") as caught:
        check_against_truth(np.deg2rad(CITIES), CITIES + 0.5, TABLE, LABELS)
    assert "180 / pi" in caught.value.hint


def test_small_predictions_of_a_place_at_null_island_are_degrees() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1.5, 1.5, (100, 2))
    assert check_against_truth(truth, truth + rng.normal(0, 0.01, (100, 2)), TABLE, LABELS) == []


@pytest.mark.parametrize("count", [7, 400])
def test_swapped_predictions_against_the_truth(count: int) -> None:
    # All of Europe: no latitude is out of range.
    rng = np.random.default_rng(1)
    truth = np.column_stack([rng.uniform(38, 65, count), rng.uniform(-9, 30, count)])
    predicted = truth + rng.normal(0, 0.3, truth.shape)
    assert check_against_truth(truth, predicted, TABLE, LABELS) == []
    predicted[0] = math.nan
    with pytest.raises(LabelsError, match=r"look swapped in p\.csv or in l\.csv"):
        check_against_truth(truth, predicted[:, ::-1], TABLE, LABELS)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [5, 20, 200])
def test_bad_models_are_not_said_to_be_swapped(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = many(count, seed)
    for predicted in (many(count, seed + 100), truth + rng.normal(0, 40, truth.shape), truth[rng.permutation(count)]):
        predicted = np.clip(predicted, (-90, -180), (90, 180))
        assert all("swapped" not in word for word in check_against_truth(truth, predicted, TABLE, LABELS))
    # A constant that is nearer if exchanged: it is one place, and says nothing of the columns.
    assert (
        check_against_truth(np.tile([[40.0, 5.0]], (count, 1)), np.tile([[0.0, 40.0]], (count, 1)), TABLE, LABELS) == []
    )


def test_predictions_that_are_the_truth() -> None:
    (words,) = check_against_truth(CITIES, CITIES.copy(), TABLE, LABELS)
    assert "7 of 7 predictions are the true place itself" in words


def test_look_swapped(shared_photos: Path) -> None:
    places = photos(shared_photos)
    assert look_swapped(places) is None
    shares = look_swapped(places[:, ::-1])
    assert shares is not None
    assert shares.exchanged > 0.85 > shares.as_given
    assert look_swapped(places[:40, ::-1]) is None
    assert look_swapped(np.full((100, 2), np.nan)) is None
