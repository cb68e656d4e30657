from __future__ import annotations

import gzip
import json
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.batch.rows import abstained_row, failed_row, ok_row, path_of
from geoinfer.batch.writers import FORMATS, WITH_CANDIDATES, write_rows
from geoinfer.errors import GeoInferError, ImageError, InputError, LabelsError, UsageError
from geoinfer.evaluate import prediction_files
from geoinfer.evaluate.cells import CANDIDATES_KEPT
from geoinfer.evaluate.prediction_files import PredictionTable, read_predictions
from geoinfer.prediction import Candidate

if TYPE_CHECKING:
    from pathlib import Path

LAYOUTS = {
    ".csv": "geoinfer CSV",
    ".jsonl": "geoinfer JSON Lines",
    ".parquet": "geoinfer Parquet",
    ".geojson": "geoinfer GeoJSON",
}
CITIES = [(48.86, 2.35), (40.71, -74.01), (-33.87, 151.21), (35.68, 139.69), (-22.91, -43.17)]


def write(folder: Path, text: str | bytes, name: str = "p.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(folder: Path, text: str | bytes, name: str = "p.csv", **options: Any) -> PredictionTable:
    return read_predictions(write(folder, text, name), **options)


def places(table: PredictionTable) -> list[tuple[float, float] | None]:
    return [None if math.isnan(a) else (a, b) for a, b in table.coordinates.tolist()]


latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)
shares = st.floats(0, 1)


def is_plain(path: bytes) -> bool:
    """A name that begins or ends with a space is not told from one without, in any table of names."""
    text = path.decode(errors="backslashreplace")
    return b"\0" not in path and text.strip() == text


# As the operating system gives them: any bytes but NUL.
paths = (
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8).map(str.encode)
    | st.binary(min_size=1, max_size=6)
).filter(is_plain)
candidates = st.builds(
    Candidate,
    reference=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
        lambda name: name == name.strip()
    ),
    latitude=latitudes,
    longitude=longitudes,
    similarity=st.floats(-1, 1),
    source=st.just("s"),
    probability=st.none() | shares,
)


@st.composite
def result_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = []
    for path in draw(st.lists(paths, min_size=1, max_size=6, unique=True)):
        kind = draw(st.sampled_from(["ok", "ok", "error", "skipped", "abstained"]))
        if kind == "ok" or not rows:
            rows.append(
                ok_row(
                    path,
                    latitude=draw(latitudes),
                    longitude=draw(longitudes),
                    radius_km=draw(st.floats(0, 20_000)),
                    score=draw(shares),
                    top1_similarity=draw(shares),
                    candidates=tuple(draw(st.lists(candidates, max_size=3))),
                )
            )
        elif kind == "abstained":
            failure = ImageError("embed", "low_score", "too low", status="skipped")
            rows.append(abstained_row(path, failure, score=draw(shares), top1_similarity=0.5, unlike_references=None))
        else:
            rows.append(failed_row(path, ImageError("read", "x", draw(st.sampled_from(["gone", "a, b"])), status=kind)))
    return rows


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=60, deadline=None)
@given(rows=result_rows())
def test_what_geoinfer_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("results") / f"out{suffix}"
    write_rows(path, rows)
    table = read_predictions(path)
    assert table.layout == LAYOUTS[suffix]
    assert [table.raw_paths.get(at, name.encode()) for at, name in enumerate(table.ids)] == [
        path_of(row) for row in rows
    ]
    assert table.statuses == [row["status"] for row in rows]
    assert table.reasons == [row["error"] for row in rows]
    assert places(table) == [None if row["latitude"] is None else (row["latitude"], row["longitude"]) for row in rows]
    for column, name in ((table.scores, "score"), (table.radii_km, "radius_km")):
        expected = [math.nan if row[name] is None else row[name] for row in rows]
        assert np.array_equal(column, expected, equal_nan=True)
    written = [row.get("candidates", []) for row in rows]
    if suffix in WITH_CANDIDATES and any(written):
        assert table.candidates == [tuple(Candidate(**one) for one in row) for row in written]
    else:
        assert table.candidates is None


@pytest.mark.parametrize(
    "header",
    [
        "id,latitude,longitude",
        "path,lat,lon",
        "IMG_ID,LAT,LON",
        "IMG_FILE,pred_lat,pred_lon",
        "id,lat_pred,lng_pred",
        "Image,Predicted Latitude,Predicted Longitude",
        "filename,latitude_pred,longitude_pred",
        "key,gps_lat,gps_lon",
        "image_id,predLat,predLon",
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_columns_by_name(tmp_path: Path, header: str, delimiter: str) -> None:
    rows = [header, *(f"{at},{a},{b}" for at, (a, b) in enumerate(CITIES))]
    table = read(tmp_path, "\ufeff" + "\r\n".join(row.replace(",", delimiter) for row in rows))
    assert (table.layout, table.ids, places(table)) == ("CSV", ["0", "1", "2", "3", "4"], CITIES)
    assert list(table.columns) == header.split(",")[1:]
    assert (table.statuses, table.reasons, table.warnings) == (["ok"] * 5, [""] * 5, [])
    assert np.isnan(table.scores).all()
    assert np.isnan(table.radii_km).all()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("id,lat,lon,pred_lat,pred_lon", (3.0, 4.0)),
        ("id,true_lat,true_lon,lat,lon", (3.0, 4.0)),
        ("id,LAT,LON,predicted_latitude,predicted_longitude", (3.0, 4.0)),
        ("id,pred_lat,pred_lon,gt_lat,gt_lon", (1.0, 2.0)),
        ("id,true_latitude,true_longitude,latitude,longitude", (3.0, 4.0)),
    ],
)
def test_truth_beside_it_is_never_taken_for_the_prediction(
    tmp_path: Path, header: str, expected: tuple[float, float]
) -> None:
    assert places(read(tmp_path, f"{header}\na,1,2,3,4\n")) == [expected]


@pytest.mark.parametrize(
    "header", ["id,lat,lon,latitude,longitude", "id,pred_lat,pred_lon,est_lat,est_lon", "id,lat,lon,gps_lat,gps_lon"]
)
def test_columns_that_could_both_be_meant(tmp_path: Path, header: str) -> None:
    with pytest.raises(LabelsError, match="several columns could be the predictions") as caught:
        read(tmp_path, f"{header}\na,1,2,3,4\n")
    assert "pred_lat" in caught.value.hint


def test_true_places_alone_are_no_predictions(tmp_path: Path) -> None:
    with pytest.raises(
        LabelsError, match="no columns for the predicted latitude and longitude besides the true places"
    ):
        read(tmp_path, "id,true_lat,true_lon\na,1,2\n")


def test_units(tmp_path: Path) -> None:
    radians = "id,lat,lon\n" + "".join(
        f"{at},{math.radians(a)},{math.radians(b)}\n" for at, (a, b) in enumerate(CITIES)
    )
    assert np.allclose(read(tmp_path, radians, units="radians").coordinates, CITIES)
    assert "--units radians" in read(tmp_path, radians).warnings[0]
    degrees = "id,lat,lon\n" + "".join(f"{at},{a},{b}\n" for at, (a, b) in enumerate(CITIES))
    with pytest.raises(LabelsError, match="these are degrees, not radians"):
        read(tmp_path, degrees, units="radians")
    named = radians.replace("lat,lon", "lat_rad,lon_rad", 1)
    with pytest.raises(LabelsError, match="are radians by their names, and degrees were asked for") as caught:
        read(tmp_path, named)
    assert "--units radians" in caught.value.hint
    assert np.allclose(read(tmp_path, named, units="radians").coordinates, CITIES)
    both = "id,lat_deg,lon_deg,lat_rad,lon_rad\na,57.29577951308232,0,1,0\n"
    assert read(tmp_path, both, units="radians").columns == ("lat_rad", "lon_rad")
    assert read(tmp_path, both).columns == ("lat_deg", "lon_deg")
    with pytest.raises(UsageError, match="no units 'gon'"):
        read(tmp_path, degrees, units="gon")


def test_rows_without_a_place_have_failed_and_say_why(tmp_path: Path) -> None:
    good = "".join(f"g{at},{at % 80},{at}\n" for at in range(180))
    table = read(tmp_path, f'id,lat,lon\n{good}a,,\nb,nan,nan\nc,1,\nd,x,2\ne,inf,2\nf,95,2\ng\nh,"48,85","2,35"\n')
    assert table.statuses == ["ok"] * 180 + ["error"] * 8
    reasons = dict(zip(table.ids, table.reasons, strict=True))
    assert reasons["a"] == reasons["g"] == "the row has no latitude and longitude"
    assert reasons["b"] == "latitude, longitude are 'nan', 'nan'"
    assert reasons["c"] == "latitude, longitude are '1', ''"
    assert reasons["e"].startswith("latitude, longitude are inf, 2; expected degrees")
    assert reasons["f"].startswith("latitude, longitude are 95, 2; expected degrees")
    assert reasons["h"] == "latitude, longitude are '48,85', '2,35'"
    assert np.isnan(table.coordinates[180:]).all()


def test_status_counts_before_the_place(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "id,status,lat,lon,error\na,ok,1,2,\nb,error,,,gone\nc,skipped,,,raw\nd,Failed,3,4,\ne,success,5,6,\n"
        "f,ok,,,\ng,missing,,,\n",
    )
    assert table.statuses == ["ok", "error", "skipped", "error", "ok", "error", "missing"]
    assert table.reasons == [
        "",
        "gone",
        "raw",
        "its status is 'failed'",
        "",
        "the row has no latitude and longitude",
        "its status is 'missing'",
    ]
    assert places(table) == [(1, 2), None, None, None, (5, 6), None, None]
    assert "1 rows have a place, but failed by their status" in table.warnings[0]


def test_an_error_in_km_is_no_reason(tmp_path: Path) -> None:
    assert read(tmp_path, "id,lat,lon,error\na,1,2,123.4\n").reasons == [""]


def test_swapped_columns(tmp_path: Path) -> None:
    rows = "".join(f"{at},{-170 + at},{at / 10}\n" for at in range(340))
    with pytest.raises(LabelsError, match=r"latitude beyond 90 in 159 rows; are the columns swapped\?"):
        read(tmp_path, f"id,lat,lon\n{rows}")


def test_decimal_commas(tmp_path: Path) -> None:
    assert places(read(tmp_path, "id;lat;lon\na;48,85;-2,35\n")) == [(48.85, -2.35)]
    with pytest.raises(LabelsError, match="not one of its 1 rows has a place") as caught:
        read(tmp_path, 'id,lat,lon\na,"48,85","2,35"\n')
    assert "decimal point" in caught.value.hint


def test_longitudes_from_0_to_360(tmp_path: Path) -> None:
    table = read(tmp_path, "id,lat,lon\na,1,2\nb,3,350\n")
    assert places(table) == [(1, 2), (3, -10)]
    assert "run from 0 to 360" in table.warnings[0]


def test_duplicates(tmp_path: Path) -> None:
    table = read(tmp_path, "id,lat,lon,score\na,1,2,.1\nb,3,4,.2\na,1.0,2,.1\nc,5,6,.3\nb,3,4,.2\n")
    assert (table.ids, table.duplicates, places(table)) == (["a", "b", "c"], 2, [(1, 2), (3, 4), (5, 6)])
    assert table.scores.tolist() == [0.1, 0.2, 0.3]
    assert "2 rows say again" in table.warnings[0]
    with pytest.raises(
        LabelsError, match="1 row says something else of a photo than a row before: 'a' in lines 2 and 5"
    ):
        read(tmp_path, "id,lat,lon\na,1,2\nb,3,4\n\na,1,2.5\n")
    with pytest.raises(LabelsError, match="'a' in lines 1 and 2"):
        read(tmp_path, '{"id": "a", "lat": 1, "lon": 2}\n{"id": "a", "lat": null, "lon": null}\n', "p.jsonl")
    # The same failure twice is still one photo.
    assert read(tmp_path, "id,lat,lon\na,1,2\nb,,\nb,,\n").statuses == ["ok", "error"]


def test_rows_without_a_name(tmp_path: Path) -> None:
    table = read(tmp_path, "id,lat,lon\na,1,2\n,3,4\n  ,5,6\n")
    assert table.ids == ["a"]
    assert table.warnings == [f"{tmp_path / 'p.csv'}: 2 rows name no photo, the first in line 3"]
    with pytest.raises(LabelsError, match="not one row names a photo"):
        read(tmp_path, "id,lat,lon\n,3,4\n")


def test_ids_are_text(tmp_path: Path) -> None:
    assert read(tmp_path, "id,lat,lon\n007,1,2\nNA,3,4\n1e5,5,6\n").ids == ["007", "NA", "1e5"]
    table = pa.table({"id": pa.array([7, 2**60]), "lat": [1.0, 2.0], "lon": [3, 4]})
    pq.write_table(table, tmp_path / "p.parquet")
    read_back = read_predictions(tmp_path / "p.parquet")
    assert (read_back.layout, read_back.ids, places(read_back)) == ("Parquet", ["7", str(2**60)], [(1, 3), (2, 4)])
    pq.write_table(pa.table({"id": [7.0, 8.0], "lat": [1, None], "lon": [3, 4]}), tmp_path / "q.parquet")
    read_back = read_predictions(tmp_path / "q.parquet")
    assert (read_back.ids, read_back.statuses) == (["7", "8"], ["ok", "error"])


def test_several_names(tmp_path: Path) -> None:
    table = read(tmp_path, "id,path,lat,lon\n7,a/b.jpg,1,2\n")
    assert (table.ids, table.other_names) == (["a/b.jpg"], {"id": ["7"]})


@pytest.mark.parametrize(
    ("name", "text", "layout"),
    [
        ("p.jsonl", '{"id": 1, "error": "gone"}\n\n{"id": "2", "lat": "3.5", "lon": 4}\n', "JSON Lines"),
        ("p.ndjson", '{"id": 1, "lat": null, "lon": NaN}\n{"id": 2, "lat": 3.5, "lon": 4}', "JSON Lines"),
        ("p.json", '[{"id": 1},\n{"id": 2, "lat": 3.5, "lon": 4}]', "JSON"),
        ("p.json", '{"id": 1}\n{"id": 2, "pred": {"lat": 3.5, "lon": 4}, "truth": {"lat": 8, "lon": 9}}', "JSON Lines"),
        (
            "p.geojson",
            '{"features": [{"id": 1, "geometry": null}, {"type": "Feature", "id": 2, "properties": {"score": 0.5}, '
            '"geometry": {"type": "Point", "coordinates": [4, 3.5, 100]}}], "type": "FeatureCollection"}',
            "GeoJSON",
        ),
        (
            "p.json",
            '{"type": "FeatureCollection", "features": [{"geometry": null, "properties": {"path": "1"}}, '
            '{"properties": {"path": "2"}, "geometry": {"type": "Point", "coordinates": [4, 3.5]}}]}',
            "GeoJSON",
        ),
        (
            "p.geojson",
            '{"features": [{"properties": {"id": "1"}, "geometry": {"type": "Point", "coordinates": [8, 9]}}, '
            '{"properties": {"id": "2", "pred_lat": 3.5, "pred_lon": 4}, "geometry": null}]}',
            "GeoJSON",
        ),
    ],
)
def test_json_of_others(tmp_path: Path, name: str, text: str, layout: str) -> None:
    table = read(tmp_path, text, name)
    assert (table.layout, table.ids, table.statuses) == (layout, ["1", "2"], ["error", "ok"])
    assert places(table) == [None, (3.5, 4.0)]


def test_candidates_of_others_and_of_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": str(at), "lat": at, "lon": at, "candidates": [7]} for at in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(tmp_path, text, "p.jsonl").candidates is None
    good = {"reference": "r", "latitude": 1, "longitude": 2, "similarity": None}
    text = "".join(json.dumps(row | {"candidates": [good] * 12}) + "\n" for row in rows)
    table = read(tmp_path, text, "p.jsonl")
    assert table.candidates is not None
    assert [len(answer) for answer in table.candidates] == [CANDIDATES_KEPT] * 5
    assert math.isnan(table.candidates[0][0].similarity)
    monkeypatch.setattr(prediction_files, "MOST_WITH_CANDIDATES", 4)
    assert read(tmp_path, text, "p.jsonl").candidates is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", b"", "the file is empty"),
        ("p.parquet", b"", "the file is empty"),
        ("p.geojson", b"", "the file is empty"),
        ("p.csv", b"\n\n", "no column for the photo"),
        ("p.csv", b"id,lat,lon\n", "holds no predictions"),
        ("p.jsonl", b"\n\n", "no column for the photo"),
        ("p.csv", b"a.jpg,1.0,2.0\nb.jpg,3,4\n", r"no column for the photo: .* the file has a\.jpg, 1\.0, 2\.0"),
        ("p.csv", b"lat,lon\n1,2\n", "no column for the photo"),
        ("p.csv", b"id,lat\n1,2\n", "no columns for the predicted latitude and longitude"),
        ("p.csv", b"id,lat,lon\na,,\nb,x,y\n", "not one of its 2 rows .* 'a': the row has no latitude"),
        ("p.csv", b"path,status,lat,lon,error\na,error,,,gone\nb,error,,,x\n", "not one of its 2 rows .* 'a': gone"),
        ("p.csv", b"id,lat,lon\ncaf\xe9,1,2\n", "not UTF-8"),
        ("p.csv", b"id,lat,lon\n" + b"a,1,2\n" * 5000 + b"caf\xe9,1,2\n", "not UTF-8 somewhere after line"),
        ("p.csv", "id,lat,lon\na,1,2\n".encode("utf-16"), "binary, or text that is not UTF-8"),
        ("p.csv", b"\xff\xd8\xff\xe0\0\x10JFIF\0" * 9, "binary"),
        ("p.csv", b"\x7fELF" + bytes(range(200)), "binary"),
        ("p.csv", gzip.compress(b"id,lat,lon\n", mtime=0), "a compressed file"),
        ("p.csv", b"PK\x03\x04" + bytes(60), "a spreadsheet"),
        ("p.csv", b'id,lat,lon\n"a,1,2\n' + b"b,1,2\n" * 30_000, "not a CSV"),
        ("p.jsonl", b'{"id": 1, "lat": 1, "lon": 2}\n{"id": 2, "la', "line 2 is no JSON"),
        ("p.jsonl", b'{"id": 1, "lat": 1, "lon": 2}\n\n[1, 2]\n', "line 3 is no object"),
        ("p.jsonl", b'{"id": 1, "lat": 1, "lon": 2}\n' + b"[" * 100_000 + b"\n", "line 2 is no JSON"),
        ("p.jsonl", b'{"id": "\xff"}\n', "not UTF-8"),
        ("p.json", b'[{"id": 1, "lat": 1, "lon": 2}, {"id"', "cut short"),
        ("p.geojson", b'{"type": "FeatureCollection"}', "no `features`"),
        ("p.geojson", b'{"features": [{"id": 1, "geometry": null}', "ends early"),
        ("p.geojson", b'{"features": [7]}', "feature 1 is no object"),
        ("p.geojson", b'{"features": []}', "no column for the photo"),
        (
            "p.geojson",
            b'{"features": [{"id": 1, "geometry": null}, {"id": 2, "geometry": {"type": "Polygon"}}]}',
            "feature 2 is a Polygon; expected a Point",
        ),
        ("p.geojson", b'{"features": [{"id": 1, "geometry": {"type": "Point"}}]}', "a Point without coordinates"),
        ("p.geojson", b'{"features": [{"id": 1, "geometry": {"type": "Point", "coordinates": [1]}}]}', "without coord"),
        ("p.geojson", b'{"features": [{"id": 1, "geometry": {"type": "Point", "coordinates": []}}]}', "not one of its"),
        ("p.parquet", b"id,lat,lon\n", "not a whole Parquet file"),
        ("p.csv", b"PAR1 and no more", "not a whole Parquet file"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    with pytest.raises(LabelsError, match=message) as caught:
        read(tmp_path, text, name)
    assert name in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        ok_row(b"%d.jpg" % at, latitude=at % 80, longitude=at, radius_km=1, score=0.5, top1_similarity=0.5)
        for at in range(count)
    ]


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cut_short_or_damaged_anywhere_there_is_a_sentence_or_a_table(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    write_rows(folder / f"whole{suffix}", rows_of(30))
    whole = (folder / f"whole{suffix}").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 2))  # a last line end may be missing
    piece = data.draw(st.binary(max_size=3))
    (folder / f"cut{suffix}").write_bytes(whole[:at])
    (folder / f"bad{suffix}").write_bytes(whole[:at] + piece + whole[at + len(piece) :])
    for name in ("cut", "bad"):
        try:
            table = read_predictions(folder / f"{name}{suffix}")
        except GeoInferError as error:
            told = (name + suffix in str(error), bool(error.hint))
        else:
            told = (len(table) <= 31, suffix in (".csv", ".jsonl") or name == "bad")
        assert told == (True, True)


def test_parquet_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_rows(path, rows_of(3000))
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with pytest.raises(LabelsError, match="not a whole Parquet file"):
        read_predictions(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: no such file"):
        read_predictions(tmp_path / "no.csv")
    with pytest.raises(InputError, match="cannot be read: is a directory"):
        read_predictions(tmp_path)
    path = write(tmp_path, "id,lat,lon\n")
    if os.geteuid():
        path.chmod(0)
        with pytest.raises(InputError, match="cannot be read: permission denied"):
            read_predictions(path)
