"""Each format, read back by somebody else's reader."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from geoinfer.batch import writers
from geoinfer.batch.rows import abstained_row, failed_row, ok_row, path_of
from geoinfer.batch.writers import check_error_report, format_of, write_error_report, write_rows
from geoinfer.errors import ImageError, OutputError, UsageError
from geoinfer.geolocator import Candidate
from geoinfer.places import Place

COLUMNS = (
    "path,status,latitude,longitude,radius_km,score,top1_similarity,unlike_references,error,location_type,path_bytes"
)
WITH_PLACES = COLUMNS.replace("error", "country,region,city,city_km,error", 1)
NUMBERS = ("latitude", "longitude", "radius_km", "score", "top1_similarity")
PATHS = [
    b"plain.jpg",
    b"with, comma.jpg",
    b'with "quotes".jpg',
    b"with\nnewline.jpg",
    b"with\rreturn.jpg",
    b"with\r\nboth.jpg",
    b" spaces and\ttab ",
    b"caf\xe9.jpg",
    b"\xff\xfe\x80",
    "日本/naïve \U0001f600.jpg".encode(),
    b"=cmd|' /C calc'!A0.jpg",
    b"trailing\\",
    b"\x01control\x1b.jpg",
    "line\u2028separator\u0085next.jpg".encode(),
    b"NA",
    b"-",
]
UNLIKE = [True, False, None]
FORMATS = ["csv", "jsonl", "parquet", "geojson"]


def rows():
    for number, path in enumerate(PATHS):
        if number % 5 == 4:
            yield failed_row(path, ImageError("decode", "truncated", 'cut, "short"\nafter\r2', size_bytes=number))
        elif number % 5 == 3:
            yield failed_row(path, ImageError("discover", "camera_raw", "raw", status="skipped"))
        else:
            yield ok_row(
                path, latitude=-80.5 + number, longitude=170.25 - number / 8, radius_km=1e-3 * number,
                score=number / 64, top1_similarity=1e-6, unlike_references=UNLIKE[number % 3],
                candidates=(Candidate("ref, 1", 1.5, -2.5, 0.5, 'a "source"'),) * (number % 3),
            )  # fmt: skip


def expected():
    """The same, in words of this test: what was written above, without the code under test."""
    for number, path in enumerate(PATHS):
        status = {4: "error", 3: "skipped"}.get(number % 5, "ok")
        numbers = (
            (-80.5 + number, 170.25 - number / 8, round(1e-3 * number, 3), round(number / 64, 6), 1e-6)
            if status == "ok"
            else (None,) * 5
        )
        error = {"error": 'cut, "short"\nafter\r2', "skipped": "raw", "ok": ""}[status]
        yield path, status, numbers, error, number % 3 if status == "ok" else 0


def check(path: bytes, values: dict, number: int) -> None:
    want = list(expected())[number]
    assert path == want[0]
    assert (values["status"], tuple(values[name] for name in NUMBERS), values["error"]) == want[1:4]
    assert values["location_type"] == ("estimated" if want[1] == "ok" else "")
    unlike = UNLIKE[number % 3] if want[1] == "ok" else None
    assert values["unlike_references"] in ({True: ["true", True], False: ["false", False], None: ["", None]}[unlike])


def test_csv(tmp_path, kit):
    write_rows(tmp_path / "a.csv", rows())
    data = (tmp_path / "a.csv").read_bytes()
    assert data.startswith(COLUMNS.encode() + b"\n")
    assert data.endswith(b"\n")
    assert not data.endswith(b"\r\n")
    read = kit.table(data)
    assert len(read) == len(PATHS)
    for number, row in enumerate(read):
        assert None not in row
        assert None not in row.values()
        check(path_of(row), row | {name: float(row[name]) if row[name] else None for name in NUMBERS}, number)


def test_csv_by_a_reader_that_breaks_lines_at_any_line_end(tmp_path):
    """Like pandas and Excel, pyarrow takes a bare CR for the end of a row: such fields must be quoted."""
    write_rows(tmp_path / "a.csv", rows())
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(("path", "error", "path_bytes"), "string"))
    read = pyarrow.csv.read_csv(tmp_path / "a.csv", parse_options=options, convert_options=convert).to_pylist()
    assert len(read) == len(PATHS)
    for number, row in enumerate(read):
        check(path_of(row), row, number)


def test_jsonl(tmp_path):
    write_rows(tmp_path / "a.jsonl", rows())
    lines = (tmp_path / "a.jsonl").read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(PATHS)
    for number, (line, want) in enumerate(zip(lines, expected(), strict=True)):
        row = json.loads(line, parse_constant=pytest.fail)
        assert list(row) == [*COLUMNS.split(","), "candidates"]
        check(path_of(row), row, number)
        candidate = {
            "reference": "ref, 1",
            "latitude": 1.5,
            "longitude": -2.5,
            "similarity": 0.5,
            "source": 'a "source"',
            "probability": None,
        }
        assert row["candidates"] == [candidate] * want[4]


def test_parquet(tmp_path):
    write_rows(tmp_path / "a.parquet", rows())
    read = pq.read_table(tmp_path / "a.parquet")
    assert read.column_names == [*COLUMNS.split(","), "candidates"]
    assert {name: str(read.schema.field(name).type) for name in COLUMNS.split(",")} == {
        name: "double" if name in NUMBERS else "bool" if name == "unlike_references" else "string"
        for name in COLUMNS.split(",")
    }
    assert read.num_rows == len(PATHS)
    for number, (row, want) in enumerate(zip(read.to_pylist(), expected(), strict=True)):
        check(path_of(row), row, number)
        assert [c["reference"] for c in row["candidates"]] == ["ref, 1"] * want[4]
        assert all((c["latitude"], c["longitude"]) == (1.5, -2.5) for c in row["candidates"])


def test_geojson_is_rfc_7946(tmp_path):
    write_rows(tmp_path / "a.geojson", rows())
    data = json.loads((tmp_path / "a.geojson").read_bytes().decode("utf-8"), parse_constant=pytest.fail)
    assert data["type"] == "FeatureCollection"
    assert set(data) == {"type", "features"}  # no "crs": section 4
    assert len(data["features"]) == len(PATHS)
    for number, (feature, want) in enumerate(zip(data["features"], expected(), strict=True)):
        assert feature["type"] == "Feature"
        assert set(feature) == {"type", "geometry", "properties"}
        check(path_of(feature["properties"]), feature["properties"], number)
        if want[1] != "ok":
            assert feature["geometry"] is None  # section 3.2: unlocated
            continue
        latitude, longitude = want[2][:2]
        assert abs(longitude) > 90, "or a swap would not show"
        # Section 3.1.1: easting, then northing.
        assert feature["geometry"] == {"type": "Point", "coordinates": [longitude, latitude]}


def read_back(path: Path) -> list[dict]:
    """Rows of any format, empty cells of a CSV as None."""
    if path.suffix == ".csv":
        table = pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True))
        return table.to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [feature["properties"] for feature in json.loads(path.read_text())["features"]]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("places", [False, True])
def test_answers_withheld_and_names_of_places(tmp_path, suffix, places):
    numbers = {"latitude": 1.5, "longitude": 2.5, "radius_km": 3.5, "score": 0.75, "top1_similarity": 0.25}
    failure = ImageError("answer", "low_score", "the score 0.25 is below 0.5", status="skipped")
    place = Place("Cabo Verde", "CV", "Africa", "", "Mindelo", 0.5)
    path = tmp_path / f"a.{suffix}"
    write_rows(
        path,
        [
            ok_row(b"a", **numbers, unlike_references=False, place=place if places else None),
            abstained_row(b"b", failure, score=0.25, top1_similarity=0.5, unlike_references=True),
            failed_row(b"c", ImageError("decode", "truncated", "cut short")),
        ],
        places=places,
    )
    located, withheld, failed = ({k: v for k, v in row.items() if v not in ("", None, [])} for row in read_back(path))
    named = {"country": "Cabo Verde", "city": "Mindelo", "city_km": 0.5} if places else {}
    assert located == numbers | named | {
        "path": "a", "status": "ok", "unlike_references": False, "location_type": "estimated"
    }  # fmt: skip
    assert withheld == {
        "path": "b", "status": "skipped", "score": 0.25, "top1_similarity": 0.5, "unlike_references": True,
        "error": "the score 0.25 is below 0.5",
    }  # fmt: skip
    assert failed == {"path": "c", "status": "error", "error": "cut short"}
    header = (WITH_PLACES if places else COLUMNS).split(",")
    assert list(read_back(path)[0]) == [*header, *(["candidates"] if suffix in ("jsonl", "parquet") else [])]


def test_the_report_lists_answers_withheld_but_no_camera_raw(tmp_path, kit):
    withheld = ImageError("answer", "low_score", "the score 0.25 is below 0.5", status="skipped")
    raw = ImageError("discover", "camera_raw", "raw", status="skipped")
    some = [
        abstained_row(b"b", withheld, score=0.25, top1_similarity=0.5, unlike_references=None),
        failed_row(b"raw", raw),
        failed_row(b"c", ImageError("decode", "truncated", "cut short")),
    ]
    assert write_error_report(tmp_path / "e.csv", some) == {"low_score": 1, "truncated": 1}
    assert [row["path"] for row in kit.table((tmp_path / "e.csv").read_bytes())] == ["b", "c"]
    assert sum(write_error_report(tmp_path / "e.csv", some, skipped=True).values()) == 3


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_rows_are_a_file_without_rows(tmp_path, suffix, kit):
    path = tmp_path / f"a.{suffix}"
    write_rows(path, iter(()))
    data = path.read_bytes()
    if suffix == "csv":
        assert data == COLUMNS.encode() + b"\n"
    elif suffix == "jsonl":
        assert data == b""
    elif suffix == "geojson":
        assert json.loads(data) == {"type": "FeatureCollection", "features": []}
    else:
        read = pq.read_table(path)
        assert (read.num_rows, read.column_names[:3]) == (0, ["path", "status", "latitude"])


@pytest.mark.parametrize("suffix", ["jsonl", "geojson"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_never_reaches_a_json_file(tmp_path, suffix, value):
    bad = ok_row(b"p", latitude=1.0, longitude=1.0, radius_km=value, score=0.0, top1_similarity=0.0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / f"a.{suffix}", [bad])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("old")

    def breaking():
        yield from rows()
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write_rows(path, breaking())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_parquet_row_groups_do_not_depend_on_how_rows_arrive(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "_ROW_GROUP", 5)
    write_rows(tmp_path / "a.parquet", rows())
    write_rows(tmp_path / "b.parquet", iter(list(rows())))
    meta = pq.read_metadata(tmp_path / "a.parquet")
    assert [meta.row_group(g).num_rows for g in range(meta.num_row_groups)] == [5, 5, 5, 1]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert [path_of(row) for row in pq.read_table(tmp_path / "a.parquet").to_pylist()] == PATHS


def test_error_report(tmp_path, kit):
    write_error_report(tmp_path / "e.csv", rows())
    data = (tmp_path / "e.csv").read_bytes()
    assert data.split(b"\n")[0] == b"path,stage,code,message,size_bytes,path_bytes"
    read = kit.table(data)
    wanted = [(n, row) for n, row in enumerate(expected()) if row[1] == "error"]
    assert len(read) == len(wanted) == 3
    for row, (number, want) in zip(read, wanted, strict=True):
        assert path_of(row) == want[0]
        assert (row["stage"], row["code"], row["message"]) == ("decode", "truncated", want[3])
        assert row["size_bytes"] == str(number)


def test_error_report_without_errors_is_a_header(tmp_path):
    write_error_report(tmp_path / "e.csv", [row for row in rows() if row["status"] != "error"])
    assert (tmp_path / "e.csv").read_bytes() == b"path,stage,code,message,size_bytes,path_bytes\n"


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "x.y.jsonl", "a.Parquet", "a.geojson"])
def test_the_suffix_is_the_format(name):
    assert format_of(Path(name)) == re.search(r"\.[a-z]+$", name.lower())[0]


@pytest.mark.parametrize("name", ["a.txt", "csv", ".csv", "a.json", "a.csv.gz"])
def test_another_suffix_is_refused_naming_those_known(name):
    with pytest.raises(UsageError) as caught:
        format_of(Path(name))
    assert caught.value.exit_code == 2
    assert ".geojson" in caught.value.hint


class TestCheckErrorReport:
    def test_a_foreign_file_is_kept(self, tmp_path):
        path = tmp_path / "labels.csv"
        path.write_text("path,latitude,longitude\na.jpg,1,2\n")
        with pytest.raises(OutputError, match="no error report"):
            check_error_report(path)
        assert path.read_text() == "path,latitude,longitude\na.jpg,1,2\n"
        assert os.listdir(tmp_path) == ["labels.csv"]

    def test_an_earlier_report_may_go(self, tmp_path):
        write_error_report(tmp_path / "e.csv", rows())
        before = (tmp_path / "e.csv").read_bytes()
        check_error_report(tmp_path / "e.csv")
        assert (tmp_path / "e.csv").read_bytes() == before

    def test_nothing_there_is_fine_and_stays_so(self, tmp_path):
        check_error_report(tmp_path / "new" / "e.csv")
        assert os.listdir(tmp_path / "new") == []

    def test_a_folder_or_a_place_that_cannot_be_written_is_found_at_once(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path, tmp_path / "file" / "e.csv", Path("/proc/e.csv")):
            with pytest.raises(OutputError) as caught:
                check_error_report(path)
            assert caught.value.exit_code == 2
