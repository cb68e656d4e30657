from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("matplotlib")

from geoinfer.answer import Answer
from geoinfer.backends import open_embedder
from geoinfer.calibration import calibrate
from geoinfer.index import References, open_index, write_index
from geoinfer.reliability.report import FILES
from tests.onnx_models import SIZE, expected, make_model

CONTINENTS = {"Africa", "Asia", "Europe", "North America", "Oceania", "South America", "Antarctica"}


def pictures(count: int, seed: int) -> np.ndarray:
    """One-coloured pictures: whatever the resize does to them, their mean colour stays."""
    colours = np.random.default_rng(seed).integers(1, 256, (count, 1, 1, 3), dtype=np.uint8)
    return colours.repeat(SIZE, 1).repeat(SIZE, 2)


def places_of(pixels: np.ndarray, seed: int) -> np.ndarray:
    """Colours that are alike lie near one another, give or take some degrees."""
    colours = pixels[:, 0, 0, :].astype(float)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    noise = np.random.default_rng(seed).normal(0, 3, (len(pixels), 2))
    return np.clip(np.stack([90 * colours[:, 0] - 30, 180 * colours[:, 1] - 90], axis=1) + noise, -80, 170)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an index of 240 references from 40 drives and two sources, and 60 labelled photos that are not in it."""
    folder = tmp_path_factory.mktemp("reliability")
    model = make_model(folder / "tiny.onnx")
    pixels = pictures(240, 0)
    digests = np.random.default_rng(5).integers(0, 256, (2, 240, 32), dtype=np.uint8)
    with open_embedder(model, "cpu") as embedder:
        for name, count in (("index", 240), ("few", 6)):
            write_index(
                folder / name,
                expected(pixels[:count]).astype(np.float32),
                References(
                    [f"r{i}" for i in range(count)], places_of(pixels[:count], 1), [f"s{i % 2}" for i in range(count)],
                    [""] * count, digests[0, :count], digests[1, :count], [f"drive {i // 6}" for i in range(count)],
                ),
                embedder.identity,
            )  # fmt: skip
    (folder / "val").mkdir()
    new = pictures(60, 9)
    lines = ["path,latitude,longitude,sequence"]
    for number, (picture, place) in enumerate(zip(new, places_of(new, 10), strict=True)):
        Image.fromarray(picture).save(folder / "val" / f"{number}.png")
        lines.append(f"{number}.png,{place[0]:.6f},{place[1]:.6f},walk {number // 3}")
    lines.append("missing.png,1,2,walk 99")
    (folder / "val.csv").write_text("\n".join(lines) + "\n")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check_report(folder: Path, photos: int) -> list[dict[str, str]]:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in ("reliability.png", "risk_coverage.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20, "nothing is drawn"
    for name in ("reliability.svg", "risk_coverage.svg"):
        assert ET.parse(folder / name).getroot().tag.endswith("svg")
    rows = rows_of(folder / "reliability.csv")
    assert [row["level"] for row in rows if row["region"] == "all"] == ["0.5", "0.8", "0.9", "0.95"]
    for row in rows:
        assert 0 <= float(row["low"]) <= float(row["coverage"]) <= float(row["high"]) <= 1
        if row["region"] == "all":
            assert int(row["photos"]) == photos
        else:
            assert row["region"] in CONTINENTS
    curve = rows_of(folder / "risk_coverage.csv")
    assert float(curve[-1]["share"]) == 1
    assert {row["random_geoscore"] for row in curve} == {curve[-1]["score_geoscore"]} == {curve[-1]["ideal_geoscore"]}
    return rows


def test_of_the_indexs_own_photos(run, here: Path, made: Path) -> None:
    outcome = run("index", "reliability", made / "index", "--out", "report")
    assert (outcome.code, outcome.err) == (0, "")
    rows = check_report(here / "report", 240)
    assert {row["groups"] for row in rows if row["region"] == "all"} == {"40"}
    assert "the index index was calibrated on, answered by --aggregate density --k 10" in outcome.out
    for row in rows[:4]:
        found, level = float(row["coverage"]), float(row["level"])
        assert f"within the {level:.0%} radius: {found:.1%}" in outcome.out
        assert abs(found - level) < 4 * (level * (1 - level) * (1 / 240 + 1 / 96)) ** 0.5
    text = (here / "report" / "report.md").read_text()
    assert text.startswith("# Reliability\n")
    assert "each tested on what photos of other sequences teach" in text
    # Again, into the same folder, gives the same bytes.
    before = {name: (here / "report" / name).read_bytes() for name in FILES}
    assert run("index", "reliability", made / "index", "--out", "report", "-q").out == ""
    assert {name: (here / "report" / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize(("by", "groups"), [("source", 2), ("sequence", 40), ("geocell", None)])
def test_json_and_what_is_never_split(run, here: Path, made: Path, by: str, groups: int | None) -> None:
    outcome = run("index", "reliability", made / "index", "--out", "report", "--split-by", by, "--json", "--k", "3")
    assert outcome.code == 0
    values = json.loads(outcome.out)
    assert values["photos"] == 240
    assert f"photos of other {by}s teach" in values["how"]
    assert "--k 3" in values["how"]
    everywhere = [row for row in values["rows"] if row["region"] == "all"]
    assert [row["level"] for row in everywhere] == [0.5, 0.8, 0.9, 0.95]
    assert groups is None or {row["groups"] for row in everywhere} == {groups}
    areas = values["geoscore_area"]
    assert areas["random"] <= areas["score"] <= areas["ideal"]
    assert [Path(name).name for name in values["files"]] == list(FILES)
    assert all(Path(name).is_file() for name in values["files"])


def test_of_new_photos(run, here: Path, made: Path) -> None:
    arguments = ["--labels", made / "val.csv", "--images", made / "val", "--engine", made / "tiny.onnx"]
    outcome = run(
        "index", "reliability", made / "index", "--out", "report", *arguments, "--aggregate", "top1", "--k", 1
    )
    assert outcome.code == 0
    assert "left out: 1 missing" in outcome.err
    assert "60 photos of val.csv, answered by the index index with --aggregate top1 --k 1" in outcome.out
    rows = check_report(here / "report", 60)
    assert {row["groups"] for row in rows if row["region"] == "all"} == {"20"}
    # By hand: the nearest colour's place, with the radius that the index's own calibration gives.
    stored = open_index(made / "index")
    places = np.asarray(stored.references.coordinates)
    learnt = calibrate(stored.leave_one_out, places, Answer(1, "top1"))
    alike = expected(pictures(60, 9)) @ expected(pictures(240, 0)).T
    truth = places_of(pictures(60, 9), 10)
    for row in rows[:4]:
        inside = 0
        for similarities, where in zip(alike, truth, strict=True):
            order = np.argsort(-similarities)[:10]
            answer = places[order[0]]
            spread = np.mean([arc_km(answer, place) for place in places[order]])
            radius = learnt.radius_km(np.array([spread]), np.array([similarities.max()]), float(row["level"]))[0]
            inside += arc_km(answer, where) <= radius
        assert float(row["coverage"]) == pytest.approx(inside / 60, abs=1.01 / 60)


def arc_km(a, b) -> float:
    lat1, lon1, lat2, lon2 = np.radians([*a, *b])
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return float(2 * 6371 * np.arcsin(np.sqrt(min(1.0, h))))


def test_without_the_names_of_places(run, here: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "scipy" else found(name, *more)
    )
    outcome = run("index", "reliability", made / "index", "--out", "report")
    assert outcome.code == 0
    assert {row["region"] for row in rows_of(here / "report" / "reliability.csv")} == {"all"}
    assert "geoinfer-toolkit[places]" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--split-by", "country"], "--split-by country: expected one of auto, sequence, source, geocell"),
        (["--images", "x"], "--images and --engine are for --labels"),
        (["--engine", "x"], "--images and --engine are for --labels"),
        (["--labels", "nowhere.csv"], "nowhere.csv: there is no such file"),
        (["--k", "0"], "--k 0: expected 1 to 100"),
        (["--aggregate", "mode"], "--aggregate mode: expected one of top1"),
        (["--batch-size", "0"], "--batch-size 0"),
    ],
)
def test_arguments_that_make_no_sense(run, here: Path, made: Path, arguments: list[str], sentence: str) -> None:
    outcome = run("index", "reliability", made / "index", "--out", "report", *arguments)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert list(here.iterdir()) == []


def test_folders_that_hold_other_things(run, here: Path, made: Path) -> None:
    (here / "notes").mkdir()
    (here / "notes" / "report.md").write_text("my own words")
    outcome = run("index", "reliability", made / "index", "--out", "notes")
    assert outcome.code == 2
    assert "--out notes: holds report.md, and no report of geoinfer's" in outcome.err
    assert (here / "notes" / "report.md").read_text() == "my own words"
    (here / "file").write_text("x")
    assert "--out file: is a file" in run("index", "reliability", made / "index", "--out", "file").err


def test_drawing_needs_a_package(run, here: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else found(name, *more)
    )
    outcome = run("index", "reliability", made / "index", "--out", "report")
    assert outcome.code == 2
    assert "geoinfer-toolkit[report]" in outcome.err
    assert list(here.iterdir()) == []


def test_an_index_of_too_few_photos(run, here: Path, made: Path) -> None:
    outcome = run("index", "reliability", made / "few", "--out", "report")
    assert outcome.code == 2
    assert "geoinfer: " in outcome.err
    assert list(here.iterdir()) == []
