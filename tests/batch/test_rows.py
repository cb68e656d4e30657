"""Rows: paths that survive as text, numbers that are the same in every format."""

from __future__ import annotations

import json
import math
import os
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.batch.rows import (
    COLUMNS,
    ERROR_COLUMNS,
    abstained_row,
    columns,
    error_report_row,
    failed_row,
    ok_row,
    path_fields,
    path_of,
)
from geoinfer.errors import ImageError
from geoinfer.geolocator import Candidate
from geoinfer.places import Place

ok_numbers = {"latitude": 1.0, "longitude": 2.0, "radius_km": 3.0, "score": 0.5, "top1_similarity": 0.25}


def test_columns_are_the_published_ones():
    start, end = (
        "path,status,latitude,longitude,radius_km,score,top1_similarity,unlike_references",
        "error,location_type",
    )
    assert ",".join(COLUMNS) == ",".join(columns(places=False)) == f"{start},{end},path_bytes"
    assert ",".join(columns(places=True)) == f"{start},country,region,city,city_km,{end},path_bytes"
    assert ",".join(ERROR_COLUMNS).startswith("path,stage,code,message,size_bytes,")


@given(st.binary(min_size=1).filter(lambda path: b"\0" not in path))
def test_any_path_survives_as_text(path):
    fields = path_fields(path)
    again = json.loads(json.dumps(fields, ensure_ascii=False).encode())  # valid UTF-8, or encode() raises
    assert path_of(again) == path
    assert (fields["path_bytes"] == "") == _is_utf8(path)


def _is_utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_path_that_is_not_utf8_can_be_read_by_people_and_made_again_by_anyone():
    fields = path_fields(b"caf\xe9/50% off, \xf0\x9f\x98\x80.jpg")
    assert fields["path"] == "caf\\xe9/50% off, \U0001f600.jpg"
    assert fields["path_bytes"] == "caf%E9/50%25%20off%2C%20%F0%9F%98%80.jpg"
    assert unquote_to_bytes(fields["path_bytes"]) == b"caf\xe9/50% off, \xf0\x9f\x98\x80.jpg"


def test_two_paths_that_read_alike_are_still_told_apart():
    invalid, literal = b"a\xe9.jpg", b"a\\xe9.jpg"
    assert path_fields(invalid)["path"] == path_fields(literal)["path"]
    assert path_of(path_fields(invalid)) == invalid
    assert path_of(path_fields(literal)) == literal


@pytest.mark.parametrize("path", ["naïve.jpg", "100%25.jpg", "日本.jpg", "a\u2028b.jpg"])
def test_utf8_is_left_alone_whatever_the_locale(path, monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1", "replace"))
    assert path_fields(path.encode()) == {"path": path, "path_bytes": ""}
    assert path_of({"path": path, "path_bytes": ""}) == path.encode()


def test_numbers_are_rounded_once_and_zero_has_no_sign():
    row = ok_row(
        b"p", latitude=-0.0000001, longitude=179.99999949, radius_km=12.34567, score=-1e-9, top1_similarity=-1e-9
    )
    assert (row["latitude"], row["longitude"], row["radius_km"]) == (0.0, 179.999999, 12.346)
    for column in ("latitude", "score", "top1_similarity"):
        assert math.copysign(1, row[column]) == 1, column
    assert (row["status"], row["error"], row["location_type"]) == ("ok", "", "estimated")
    assert "candidates" not in row


def test_candidates_are_kept_in_their_order():
    pair = tuple(Candidate(f"r{n}", 1.23456789 + n, 2.0, 0.987654321 - n, "src") for n in range(2))
    row = ok_row(b"p", **ok_numbers, candidates=pair)
    assert row["candidates"] == [
        {"reference": "r0", "latitude": 1.234568, "longitude": 2.0, "similarity": 0.987654, "source": "src",
         "probability": None},
        {"reference": "r1", "latitude": 2.234568, "longitude": 2.0, "similarity": -0.012346, "source": "src",
         "probability": None},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("probability", "written"),
    [(None, None), (0.0, 0.0), (1.0, 1.0), (0.123456789, 0.123457), (1.23456789e-7, 1.23457e-07), (1e-300, 1e-300)],
)
def test_small_probabilities_keep_their_digits(probability, written):
    candidate = Candidate("r", 1.0, 2.0, 0.5, "src", probability)
    (found,) = ok_row(b"p", **ok_numbers, candidates=(candidate,))["candidates"]
    assert found["probability"] == written


@pytest.mark.parametrize(("size", "shown"), [(-1, ""), (0, 0), (77, 77)])
def test_a_failure_is_a_row_and_a_line_of_the_report(size, shown):
    row = failed_row(b"x\xff.jpg", ImageError("decode", "truncated", "cut short", size_bytes=size))
    assert {column: row[column] for column in COLUMNS} == {
        "path": "x\\xff.jpg", "status": "error", "latitude": None, "longitude": None, "radius_km": None, "score": None,
        "top1_similarity": None, "unlike_references": None, "error": "cut short", "location_type": "",
        "path_bytes": "x%FF.jpg",
    }  # fmt: skip
    assert error_report_row(row) == {
        "path": "x\\xff.jpg", "stage": "decode", "code": "truncated", "message": "cut short", "size_bytes": shown,
        "path_bytes": "x%FF.jpg",
    }  # fmt: skip


def test_an_answer_withheld_is_a_row_without_a_place():
    failure = ImageError("answer", "low_score", "the score 0.1 is below 0.5", status="skipped")
    row = abstained_row(b"p", failure, score=0.1, top1_similarity=0.7654321, unlike_references=True)
    assert {column: row[column] for column in COLUMNS} == {
        "path": "p", "status": "skipped", "latitude": None, "longitude": None, "radius_km": None, "score": 0.1,
        "top1_similarity": 0.765432, "unlike_references": True, "error": "the score 0.1 is below 0.5",
        "location_type": "", "path_bytes": "",
    }  # fmt: skip
    assert error_report_row(row)["code"] == "low_score"


def test_names_of_places():
    row = ok_row(b"p", **ok_numbers, place=Place("Italy", "IT", "Europe", "Latium", "Rome", 1.23456))
    assert {name: row[name] for name in ("country", "region", "city", "city_km")} == {
        "country": "Italy", "region": "Latium", "city": "Rome", "city_km": 1.235
    }  # fmt: skip
    assert "country" not in ok_row(b"p", **ok_numbers)


def test_skipped_is_not_error():
    row = failed_row(b"a.nef", ImageError("discover", "camera_raw", "raw", status="skipped"))
    assert (row["status"], row["error"]) == ("skipped", "raw")


def test_a_message_that_is_not_utf8_does_not_stop_the_others():
    row = failed_row(b"a", ImageError("decode", "broken", os.fsdecode(b"bad \xe9 bytes")))
    assert row["error"].encode("utf-8") == b"bad \\udce9 bytes"
