from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoinfer.evaluate.bands import BANDS
from geoinfer.evaluate.measure import Evaluation, measure
from geoinfer.evaluate.outcomes import Outcomes, Run
from geoinfer.evaluate.page.build import build_page
from geoinfer.evaluate.page.data import evaluation_data, kilometre_words, kilometres, shares, text
from geoinfer.evaluate.tables.table import Table
from geoinfer.metrics import convention
from geoinfer.prediction import Candidate

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "</script><script>alert(1)</script>.jpg"


@pytest.fixture(autouse=True)
def no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of places by coordinates take a second to look up, and the page does not care for them."""
    monkeypatch.setattr("geoinfer.evaluate.measure.open_places", lambda: None)


@dataclass
class Picture:
    title: str
    paths: list[Path]


def outcomes(count: int, *, paths: list[bytes] | None = None, seed: int = 0) -> Outcomes:
    """Random photos, of which every seventh has no answer."""
    rng = np.random.default_rng(seed)
    truth = np.column_stack([rng.uniform(-80, 80, count), rng.uniform(-180, 180, count)])
    predicted = np.column_stack([rng.uniform(-80, 80, count), rng.uniform(-180, 180, count)])
    statuses = [("error", "skipped", "missing")[i // 7 % 3] if i % 7 == 6 else "ok" for i in range(count)]
    unanswered = np.array([status != "ok" for status in statuses], bool).reshape(count)
    predicted[unanswered] = np.nan
    none = [""] * count
    return Outcomes(
        ids=[f"id {i}" for i in range(count)],
        paths=paths or [b""] * count,
        truth=truth,
        predicted=predicted,
        statuses=statuses,
        reasons=["" if status == "ok" else f"why {i}" for i, status in enumerate(statuses)],
        scores=np.where(unanswered, np.nan, rng.uniform(0, 1, count)),
        radii_km=np.where(unanswered, np.nan, rng.uniform(1, 9000, count)),
        countries=["FR" if i % 2 else "Peru" for i in range(count)],
        regions=none,
        sub_regions=none,
        cities=["Lyon" if i % 3 else "" for i in range(count)],
        sources=none,
        sequences=none,
        columns={"season": ["summer" if i % 4 else "winter" for i in range(count)]},
        candidates=[
            ()
            if statuses[i] != "ok"
            else tuple(Candidate(f"ref {i} {n}", 1.23456789, -170.5, 0.9 - n / 10, "s") for n in range(i % 8))
            for i in range(count)
        ],
    )


def evaluated(table: Outcomes, **made_by: Any) -> Evaluation:
    return measure(table, Run("my run", 10, made_by), convention("osv5m"), set_columns=("season",), baselines=False)


def plain_km(a: np.ndarray, b: np.ndarray) -> float:
    """The haversine formula, for one pair, on the 6371 km of OSV-5M."""
    (lat1, lon1), (lat2, lon2) = np.radians(a), np.radians(b)
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(h))


def near(value: float | None, expected: float, within: float) -> bool:
    return value is None if math.isnan(expected) else value is not None and abs(value - expected) <= within


def check(data: dict[str, Any], table: Outcomes) -> None:
    """Every point against the photo that it names, one by one."""
    points = data["points"]
    assert {len(column) for column in points.values()} == {data["shown"]}
    rows = [table.ids.index(name) for name in points["id"]]
    assert rows == sorted(set(rows))
    for place, row in enumerate(rows):
        point = {name: column[place] for name, column in points.items()}
        assert point["status"] == table.statuses[row]
        assert point["reason"] == table.reasons[row]
        for name, expected, within in (
            ("lat", table.predicted[row, 0], 6e-6), ("lon", table.predicted[row, 1], 6e-6),
            ("true_lat", table.truth[row, 0], 6e-6), ("true_lon", table.truth[row, 1], 6e-6),
            ("error_km", plain_km(table.truth[row], table.predicted[row]), 0.051),
            ("score", table.scores[row], 6e-5), ("radius_km", table.radii_km[row], 0.051),
        ):  # fmt: skip
            assert near(point[name], expected, within), (name, row)
        country = "France" if row % 2 else "Peru"
        assert point["place"] == (f"Lyon, {country}" if row % 3 else country)
        season = "season=summer" if row % 4 else "season=winter"
        named = {data["sets"][number] for number in point["sets"]}
        assert {"Global", season} <= named
        assert len([name for name in named if name.startswith("season=")]) == 1
        wanted = [] if table.statuses[row] != "ok" else [f"ref {row} {n}" for n in range(min(row % 8, 5))]
        assert [one[0] for one in point["candidates"]] == wanted
        for n, one in enumerate(point["candidates"]):
            assert one[1:] == [1.23457, -170.5, round(0.9 - n / 10, 4)]


def test_every_point_is_its_photos(tmp_path: Path) -> None:
    table = outcomes(60)
    evaluation = evaluated(table, notice="this is a demonstration")
    evaluation.warnings.append("mind the gap")
    data = evaluation_data(evaluation, [], [])
    assert (data["kind"], data["shown"], data["of"]) == ("evaluation", 60, 60)
    check(data, table)
    assert data["notice"] == "This is a demonstration"
    assert "mind the gap" in data["warnings"]
    assert [band["upto_km"] for band in data["bands"]] == [500, 1500, 2500, None]
    assert [band["colour_light"] for band in data["bands"]] == [band.colour_light for band in BANDS]
    summary = {item["label"]: item for item in data["summary"]}
    errors = [plain_km(a, b) for a, b in zip(table.truth, table.predicted, strict=True)]
    known = [error for error in errors if not math.isnan(error)]
    assert summary["Photos"]["value"] == f"{len(known)}"
    assert summary["Photos"]["detail"] == "answered, of 60 labelled"
    assert summary["Median error"]["value"] == f"{np.median(known):,.0f} km"
    assert summary["Within 2,500 km"]["value"] == f"{100 * np.mean(np.array(known) < 2500):.1f}%"
    assert summary["Unanswered"] == {
        "label": "Unanswered", "value": "8", "detail": "3 failed, 3 skipped, 2 without a prediction"
    }  # fmt: skip
    json.dumps(data, allow_nan=False)


def test_of_many_the_worst_and_a_sample_are_shown_and_figures_are_of_all() -> None:
    table = outcomes(500)
    evaluation = evaluated(table)
    data, whole = (evaluation_data(evaluation, [], [], limit=limit) for limit in (40, 500))
    check(data, table)
    assert (data["shown"], data["of"]) == (40, 500)
    assert "40 of 500 shown: the 20 worst and a random sample of the rest." in data["subtitle"]
    assert "shown" not in whole["subtitle"]
    assert data["summary"] == whole["summary"]
    worst = sorted((error for error in whole["points"]["error_km"] if error is not None), reverse=True)[:20]
    assert sorted((error for error in data["points"]["error_km"] if error is not None), reverse=True)[:20] == worst
    assert data == evaluation_data(evaluation, [], [], limit=40)


def test_pictures_go_to_the_worst_and_to_some_of_the_rest(tmp_path: Path) -> None:
    paths = []
    for number in range(30):
        Image.new("RGB", (40, 20), (number * 8, 0, 0)).save(tmp_path / f"{number}.png")
        paths.append(f"{number}.png".encode())
    (tmp_path / "3.png").write_bytes(b"broken")
    paths[4] = paths[5]
    table = outcomes(30, paths=paths)
    evaluation = evaluated(table)
    data = evaluation_data(evaluation, [], [], images=tmp_path, thumbnails=30)
    thumb = data["points"]["thumb"]
    assert thumb[3] == -1
    assert thumb[4] == thumb[5]
    assert len(set(thumb)) == 29
    assert len(data["thumbs"]) == 28
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in data["thumbs"])
    few = evaluation_data(evaluation, [], [], images=tmp_path, thumbnails=10)
    errors = [error or 0 for error in few["points"]["error_km"]]
    worst = sorted(range(30), key=lambda row: -errors[row])[:5]
    with_picture = {row for row in range(30) if few["points"]["thumb"][row] >= 0}
    assert set(worst) - {3} <= with_picture
    assert len(few["thumbs"]) <= 10
    none = evaluation_data(evaluation, [], [], images=tmp_path, thumbnails=0)
    assert (none["thumbs"], set(none["points"]["thumb"])) == ([], {-1})
    # They are found from another folder only with its name.
    assert evaluation_data(evaluation, [], [])["thumbs"] == []


def test_paths_are_shown_from_the_folder_of_photos_on(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    table = outcomes(3, paths=[bytes(tmp_path / "a.png"), bytes(tmp_path) + b"-other/b.png", b"c.png"])
    data = evaluation_data(evaluated(table), [], [], images=tmp_path)
    assert data["points"]["path"] == ["a.png", f"{tmp_path}-other/b.png", "c.png"]
    assert data["points"]["thumb"] == [0, -1, -1]


def test_names_that_are_not_utf8_or_hostile_do_no_harm(tmp_path: Path) -> None:
    table = outcomes(4, paths=[b"caf\xe9.jpg", HOSTILE.encode(), "é.jpg".encode(), b""])
    table.ids[:] = ["caf\udce9.jpg", HOSTILE, "é \ud800", "plain"]
    data = evaluation_data(evaluated(table), [], [])
    assert data["points"]["id"] == ["caf\\xe9.jpg", HOSTILE, "é \\ud800", "plain"]
    assert data["points"]["path"] == ["caf\\xe9.jpg", HOSTILE, "é.jpg", ""]
    page = build_page(data)
    assert b"<script>alert" not in page
    assert page == build_page(evaluation_data(evaluated(table), [], []))


def test_tables_and_figures_are_carried_over(tmp_path: Path) -> None:
    (tmp_path / "world.png").write_bytes(b"png")
    figures = [
        Picture("World", [tmp_path / "world.svg", tmp_path / "world.png"]),
        Picture("no png", [tmp_path / "x.svg"]),
    ]
    table = Table(
        "Errors", ["Model", "Median"], [["mine", "12.3"]], [[False, True]], "a note", "x", ("shared",), "Europe"
    )
    data = evaluation_data(evaluated(outcomes(5)), [table, table], figures)  # type: ignore[arg-type]
    assert data["figures"] == [{"title": "World", "png": "data:image/png;base64,cG5n"}]
    shown = {
        "title": "Errors", "columns": ["Model", "Median"], "rows": [["mine", "12.3"]], "bold": [[False, True]],
        "note": "a note", "set": "Europe",
    }  # fmt: skip
    assert data["tables"] == [shown, shown]
    assert data["table_notes"] == ["shared"]


def test_no_distance_is_rounded_onto_an_edge() -> None:
    edges = [1.0, 25.0, 200.0, 500.0, 750.0, 1500.0, 2500.0]
    for beside in (-0.0004, -1e-9, 1e-9, 0.0004, 0.04):
        for edge, made in zip(edges, kilometres(np.array(edges) + beside), strict=True):
            assert made is not None
            assert (made < edge, made > edge) == (beside < 0, beside > 0)
    assert kilometres([500.0, 1.0]) == [500, 1]


@pytest.mark.parametrize("count", [1, 7])
def test_a_run_of_failures_alone_is_shown_too(count: int) -> None:
    table = outcomes(7 * count)
    table.statuses[:] = ["error"] * (7 * count)
    table.predicted[:] = np.nan
    data = evaluation_data(evaluated(table), [], [])
    assert set(data["points"]["error_km"]) == {None}
    assert [item["label"] for item in data["summary"]] == ["Photos", "Unanswered"]
    json.dumps(data, allow_nan=False)
    build_page(data)


@given(st.lists(st.one_of(st.floats(), st.floats(0, 20)), max_size=20))
def test_numbers_are_plain_and_near(values: list[float]) -> None:
    for made, within in ((kilometres(values), 0.0501), (shares(values), 5.1e-5)):
        for value, number in zip(values, made, strict=True):
            if not math.isfinite(value):
                assert number is None
            elif abs(value) < 1e6:
                assert abs(value - number) <= within
        json.dumps(made, allow_nan=False)


@given(st.text(st.characters(exclude_categories=())))
def test_text_can_always_be_written(value: str) -> None:
    made = text(value)
    made.encode()
    if value.isascii():
        assert made == value


@pytest.mark.parametrize(
    ("km", "words"),
    [(0.5249, "0.52 km"), (8.44, "8.4 km"), (99.96, "100.0 km"), (1234.5, "1,234 km"), (math.nan, "not known")],
)
def test_distances_in_words(km: float, words: str) -> None:
    assert kilometre_words(km) == words
