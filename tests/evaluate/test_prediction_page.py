from __future__ import annotations

import itertools
import json
import math
import re
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoinfer.batch.rows import abstained_row, failed_row, ok_row, path_of
from geoinfer.batch.writers import write_rows
from geoinfer.errors import GeoInferError, ImageError, InputError, OutputError, UsageError
from geoinfer.evaluate.page.build import build_page
from geoinfer.evaluate.page.result_rows import read_result
from geoinfer.evaluate.prediction_page import (
    PredictionSample,
    check_page,
    is_page_of,
    prediction_data,
    write_prediction_page,
)
from geoinfer.places import Place
from geoinfer.prediction import Candidate

if TYPE_CHECKING:
    from pathlib import Path

COUNTRIES = ("Chile", "Kenya", "Nepal")
BROKEN = ImageError("decode", "truncated", "the JPEG ends before the picture does", size_bytes=5)
LOW = ImageError("answer", "low_score", "the score 0.1 is below 0.2", status="skipped")
HOSTILE = b"</script><script>alert(1)</script>.jpg"


def a_row(number: int, path: bytes | None = None, *, places: bool = True, candidates: int = 6) -> dict[str, Any]:
    path = path or f"album/{number:07}.jpg".encode()
    if number % 10 == 8:
        return failed_row(path, BROKEN)
    if number % 10 == 9:
        return abstained_row(path, LOW, score=0.1, top1_similarity=0.5, unlike_references=True)
    country = COUNTRIES[number % 7 % 3]
    return ok_row(
        path,
        latitude=number % 160 - 80 + 1 / 3,
        longitude=number % 350 - 175 - 1 / 3,
        radius_km=(100, 200, 200.001, 749, 2500, 9000)[number % 6],
        score=number % 11 / 11,
        top1_similarity=0.5,
        unlike_references=number % 5 == 0,
        place=Place(country, "", "", f"{country} region", f"{country} city", 3.0) if places else None,
        candidates=tuple(Candidate(f"r{number}-{n}", 12.3456789, 45.0, 0.9, "") for n in range(candidates)),
    )


def sample_of(rows: list[dict[str, Any]], limit: int = 20_000) -> PredictionSample:
    sample = PredictionSample(limit)
    for row in rows:
        sample.add(row)
    return sample


def test_counts_are_of_all_rows_and_points_are_their_own() -> None:
    rows = [a_row(number) for number in range(300)]
    data = prediction_data(sample_of(rows, limit=60), title="t", thumbnails=0)
    points = data["points"]
    assert {len(column) for column in points.values()} == {data["shown"]} == {63}
    assert data["of"] == 300
    assert "63 of 300 shown: a random sample." in data["subtitle"]
    by_path = {row["path"]: row for row in rows}
    order = [row["path"] for row in rows]
    assert [order.index(path) for path in points["path"]] == sorted(order.index(path) for path in points["path"])
    for place, path in enumerate(points["path"]):
        row = by_path[path]
        assert points["status"][place] == row["status"]
        assert points["reason"][place] == row["error"]
        assert points["id"][place] == path.removeprefix("album/")
        for name, key, within in (("lat", "latitude", 6e-6), ("lon", "longitude", 6e-6),
                                  ("radius_km", "radius_km", 0.051), ("score", "score", 6e-5)):  # fmt: skip
            if row[key] is None:
                assert points[name][place] is None
            else:
                assert abs(points[name][place] - row[key]) <= within
        if row["status"] == "ok":
            assert points["place"][place] == f"{row['city']}, {row['region']}, {row['country']}"
            assert [one[0] for one in points["candidates"][place]] == [
                one["reference"] for one in row["candidates"][:5]
            ]
            assert points["candidates"][place][0][1:] == [12.34568, 45, 0.9]
        else:
            assert (points["place"][place], points["candidates"][place]) == ("", [])
    for name in ("true_lat", "true_lon", "error_km"):
        assert set(points[name]) == {None}
    summary = {item["label"]: item["value"] for item in data["summary"]}
    located = [row for row in rows if row["status"] == "ok"]
    assert summary == {
        "Located": "240", "Errors": "30", "Skipped": "30", "Countries": "3",
        "Unlike the references": str(sum(row["unlike_references"] for row in located)),
    }  # fmt: skip
    radius, countries = data["tables"]
    edges = (-1, 200, 750, 2500, math.inf)
    assert [cells[1] for cells in radius["rows"]] == [
        str(sum(low < row["radius_km"] <= high for row in located)) for low, high in itertools.pairwise(edges)
    ]
    assert {cells[0]: int(cells[1]) for cells in countries["rows"]} == {
        country: sum(row["country"] == country for row in located) for country in COUNTRIES
    }
    assert [band["upto_km"] for band in data["bands"]] == [200, 750, 2500, None]
    assert len(data["tables"][0]["bold"]) == len(data["tables"][0]["rows"])


def test_without_places_there_are_no_countries() -> None:
    data = prediction_data(sample_of([a_row(number, places=False) for number in range(9)]), title="t", thumbnails=0)
    assert [table["title"] for table in data["tables"]] == ["Radius"]
    assert set(data["points"]["place"]) == {""}


def test_an_empty_run_and_one_of_failures_have_a_page() -> None:
    for rows in ([], [a_row(8)], [a_row(9), a_row(18)]):
        data = prediction_data(sample_of(rows), title="t")
        assert (data["shown"], data["of"]) == (len(rows), len(rows))
        build_page(data)


def test_many_failures_do_not_push_the_located_off_the_map() -> None:
    rows = [a_row(8, f"{number}.jpg".encode()) for number in range(5000)] + [a_row(1), a_row(2)]
    shown = prediction_data(sample_of(rows, limit=100), title="t", thumbnails=0)["points"]["status"]
    assert (shown.count("ok"), shown.count("error")) == (2, 5)


def test_memory_does_not_grow_with_the_run() -> None:
    def peak(count: int) -> int:
        sample = PredictionSample(200)
        tracemalloc.start()
        for number in range(count):
            sample.add(a_row(number))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sample.total == count
        return most

    peak(1000)
    # Kept whole, the 18,000 rows between would be some 10 MB.
    assert peak(20_000) < peak(2_000) + 200_000


def test_names_that_are_not_utf8_or_hostile_find_their_photos_and_do_no_harm(tmp_path: Path) -> None:
    folder = bytes(tmp_path)
    names = [b"caf\xe9.png", "é.png".encode(), b'a "quote" & <b>.png']
    for name in names:
        with open(folder + b"/" + name, "wb") as file:
            Image.new("RGB", (30, 20), (9, 99, 9)).save(file, "PNG")
    rows = [a_row(number, folder + b"/" + name) for number, name in enumerate([*names, HOSTILE, b"gone.jpg"])]
    data = prediction_data(sample_of(rows), title="</title><b>")
    assert data["points"]["id"] == [
        "caf\\xe9.png", "é.png", 'a "quote" & <b>.png', "script>.jpg", "gone.jpg"
    ]  # fmt: skip
    assert data["points"]["path"][3].endswith(HOSTILE.decode())
    assert data["points"]["thumb"] == [0, 1, 2, -1, -1]
    page = build_page(data)
    assert b"<script>alert" not in page
    assert b"</title><b>" not in page


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".geojson"])
@pytest.mark.parametrize("places", [False, True])
def test_a_results_own_file_makes_the_same_page(tmp_path: Path, suffix: str, places: bool) -> None:
    names = [b"caf\xe9.jpg", b'a "b", c\nd.jpg', HOSTILE, *(b"%d.jpg" % number for number in range(40))]
    rows = [a_row(number, name, places=places) for number, name in enumerate(names)]
    output = tmp_path / f"result{suffix}"
    write_rows(output, iter(rows), places=places)
    back = list(read_result(output))
    assert [path_of(row) for row in back] == names
    now, then = (prediction_data(sample_of(some, limit=20), title="t", thumbnails=0) for some in (back, rows))
    if suffix in (".csv", ".geojson"):
        then["points"]["candidates"] = [[] for _ in then["points"]["candidates"]]
    assert now == then


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".geojson"])
@pytest.mark.parametrize("content", [b"nonsense\nmore", b'{"a": 1}\n{"b": 2}\n', b"path,status\nx,ok\n"])
def test_another_file_is_no_result(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no result"):
        list(read_result(path))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_result(tmp_path / f"missing{suffix}"))


def test_only_a_page_of_geoinfer_is_written_over(tmp_path: Path) -> None:
    page = tmp_path / "map.html"
    check_page(page)
    words = {"title": "t", "made_of": "ab12"}
    write_prediction_page(sample_of([a_row(1)]), page, **words)
    check_page(page)
    assert is_page_of(page, "ab12")
    assert not is_page_of(page, "ab1")
    assert not is_page_of(tmp_path / "none.html", "ab12")
    before = page.read_bytes()
    write_prediction_page(sample_of([a_row(1)]), page, **words)
    assert page.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]
    (tmp_path / "empty.html").touch()
    check_page(tmp_path / "empty.html")
    (tmp_path / "mine.html").write_text("<!DOCTYPE html><title>My holidays</title>")
    with pytest.raises(OutputError, match=re.escape("mine.html: exists already, and is no page of geoinfer")):
        check_page(tmp_path / "mine.html")
    for name in ("map.htm", "map", "map.csv"):
        with pytest.raises(UsageError, match="is not that of a page"):
            check_page(tmp_path / name)


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(GeoInferError, match="the map cannot be written: no such file"):
        write_prediction_page(sample_of([a_row(1)]), tmp_path / "none" / "map.html", title="t")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 99), max_size=60), st.integers(1, 40))
def test_any_run_makes_a_page_of_plain_values(numbers: list[int], limit: int) -> None:
    rows = [a_row(number, f"{place}.jpg".encode()) for place, number in enumerate(numbers)]
    sample = sample_of(rows, limit)
    kept = sample.rows
    located = sum(row["status"] == "ok" for row in rows)
    assert sum(row["status"] == "ok" for row in kept) == min(located, limit)
    assert len({row["path"] for row in kept}) == len(kept)
    json.dumps(prediction_data(sample, title="t", thumbnails=0), allow_nan=False)
