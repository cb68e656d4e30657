from __future__ import annotations

import pytest

from geoinfer.columns import CoordinateColumns, coordinate_columns, listed, normalised


@pytest.mark.parametrize(
    ("latitude", "longitude", "meaning", "unit"),
    [
        ("latitude", "longitude", "plain", ""),
        ("LAT", "LON", "plain", ""),
        ("lat", "lng", "plain", ""),
        (" Latitude ", " Long ", "plain", ""),
        ("gps_lat", "gps_lon", "plain", ""),
        ("GPSLatitude", "GPSLongitude", "plain", ""),
        ("Latitude (deg)", "Longitude (deg)", "plain", "degrees"),
        ("pred_lat", "pred_lon", "predicted", ""),
        ("lat_pred", "lng_pred", "predicted", ""),
        ("predicted_latitude", "predicted_longitude", "predicted", ""),
        ("latitude_pred", "longitude_pred", "predicted", ""),
        ("predLat", "predLon", "predicted", ""),
        ("predlat", "predlon", "predicted", ""),
        ("Predicted Latitude", "Predicted Longitude", "predicted", ""),
        ("prediction.lat", "prediction.lon", "predicted", ""),
        ("pred-lat-rad", "pred-lon-rad", "predicted", "radians"),
        ("estimated_lat", "estimated_lng", "predicted", ""),
        ("true_lat", "true_lon", "true", ""),
        ("gt_latitude", "gt_longitude", "true", ""),
        ("latitudeTruth", "longitudeTruth", "true", ""),
        ("lat_ground_truth", "lon_ground_truth", "true", ""),
    ],
)
def test_pairs(latitude: str, longitude: str, meaning: str, unit: str) -> None:
    assert coordinate_columns(["id", longitude, "score", latitude]) == [CoordinateColumns(3, 1, meaning, unit)]


@pytest.mark.parametrize(
    "header",
    [
        [],
        ["", " "],
        ["latitude"],
        ["lon"],
        ["lat_bin", "lon_bin"],
        ["latlon"],
        ["platform", "longest", "flat", "salon"],
        ["lat_lon", "lon_lat"],
        ["pred_lat", "true_lon"],
        ["dist_lat", "dist_lon"],
        ["candidate_1_lat", "candidate_1_lon"],
    ],
)
def test_no_pair(header: list[str]) -> None:
    assert coordinate_columns(header) == []


def test_truth_and_prediction_side_by_side_are_told_apart() -> None:
    found = coordinate_columns(["id", "lat", "lon", "pred_lat", "pred_lon", "true_lat", "true_lng"])
    assert [(pair.meaning, pair.latitude, pair.longitude) for pair in found] == [
        ("plain", 1, 2),
        ("predicted", 3, 4),
        ("true", 5, 6),
    ]


def test_two_pairs_of_one_meaning_stay_two() -> None:
    found = coordinate_columns(["longitude", "lon", "lat", "latitude"])
    assert [(pair.latitude, pair.longitude) for pair in found] == [(2, 1), (3, 0)]


def test_first_of_two_columns_of_one_name() -> None:
    assert coordinate_columns(["lat", "lon", "LAT", "LON"]) == [CoordinateColumns(0, 1, "plain", "")]


def test_words_for_one_axis_may_differ_in_length() -> None:
    assert coordinate_columns(["latitude", "lng"]) == [CoordinateColumns(0, 1, "plain", "")]


def test_normalised() -> None:
    assert [normalised(name) for name in ("sub-region", " Sub Region", "SUB_REGION", "")] == ["sub_region"] * 3 + [""]


def test_a_long_header_is_not_shown_whole() -> None:
    assert listed(["id", "lat"]) == "id, lat"
    assert listed([]) == "no header"
    shown = listed([f"column{number}" for number in range(5000)])
    assert shown.startswith("column0, column1, ")
    assert shown.endswith("column19 and 4,980 more")
    assert len(listed(["x" * 100_000])) < 100
