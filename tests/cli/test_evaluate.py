"""`geoinfer evaluate` as a whole: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from geoinfer.bundle import SHIPPED
from geoinfer.evaluate.figures import Figure
from geoinfer.geodesy import haversine_km

LABELS = {"a.jpg": (48.86, 2.35), "b.jpg": (-33.87, 151.21), "c.jpg": (64.15, -21.94), "d.jpg": (40.71, -74.01)}
FILES = ["errors.csv", "maps", "metrics.json", "report.html", "tables.csv", "tables.md", "tables.tex"]


@pytest.fixture
def no_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps take seconds, and have tests of their own."""
    from geoinfer.evaluate import run

    def draw(_evaluation: object, folder: Path, *, formats: tuple[str, ...]) -> list[Figure]:
        paths = tuple(folder / f"errors_world{suffix}" for suffix in formats)
        for path in paths:
            path.write_bytes(b"drawn")
        return [Figure("errors_world", "World", paths)]

    monkeypatch.setattr(run, "draw_figures", draw)


def write_labels(path: Path, rows: dict[str, tuple[object, object]] = LABELS, header: str = "id,latitude,longitude"):
    path.write_text("\n".join([header, *(f"{name},{a},{b}" for name, (a, b) in rows.items())]) + "\n")
    return path


@pytest.fixture
def labels(here: Path) -> Path:
    return write_labels(here / "labels.csv")


@pytest.fixture
def predictions(here: Path) -> Path:
    """Each half a degree north of the truth; one is missing."""
    rows = {name: (a + 0.5, b) for name, (a, b) in LABELS.items() if name != "d.jpg"}
    return write_labels(here / "predictions.csv", rows, "id,lat,lon")


def table(path: Path | str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metrics(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "metrics.json").read_bytes())


class TestPhotos:
    def test_end_to_end_with_the_shipped_bundle(self, run, here: Path, example_photos: Path) -> None:
        labels = example_photos.parent / "labels.csv"
        outcome = run("evaluate", labels, "--out", "report", "--device", "cpu", "--workers", 2)
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith("demo: 10 of 10 photos answered; labels: CSV.")
        assert "report: report/report.html; errors: report/errors.csv" in outcome.out
        assert "9 of 10 photos (90%) come from the same source" in outcome.err
        assert outcome.err.splitlines()[-1].startswith("note: this is the demonstration bundle")
        assert sorted(os.listdir("report")) == FILES
        written = metrics("report")
        assert {"arrows_world.png", "errors_world.png", "errors_world.svg", "errors_europe.png"} <= set(
            os.listdir("report/maps")
        )
        assert set(written["files"]) == {
            path.relative_to("report").as_posix() for path in Path("report").rglob("*") if path.is_file()
        } - {"metrics.json"}
        page = Path("report/report.html").read_text(encoding="utf-8")
        assert "his is the demonstration bundle, little better than guessing" in page
        assert "data:image/jpeg;base64," in page
        rows = table("report/errors.csv")
        assert {row["status"] for row in rows} == {"ok"}
        assert {row["relation"] for row in rows} == {""}
        distances = [
            float(haversine_km([float(row["true_latitude"]), float(row["true_longitude"])],
                               [float(row["latitude"]), float(row["longitude"])]))
            for row in rows
        ]  # fmt: skip
        assert [float(row["distance_km"]) for row in rows] == pytest.approx(distances)
        whole = written["sets"]["Global"]
        assert (whole["count"], whole["labelled"]) == (10, 10)
        assert whole["median_km"]["value"] == pytest.approx(np.median(distances))
        assert whole["mean_km"]["value"] == pytest.approx(np.mean(distances))
        assert whole["accuracy"]["750"]["value"] == pytest.approx(100 * np.mean(np.array(distances) < 750))
        assert whole["geoscore"]["value"] == pytest.approx(np.mean([5000 * math.exp(-d / 1492.7) for d in distances]))
        assert set(written["baselines"]) == {"random reference", "constant"}
        assert written["made_by"]["references"] == 335
        assert (written["leakage"]["relations"], written["leakage"]["same_source"]["count"]) == ({}, 9)
        assert str(example_photos.parent) not in (Path("report") / "metrics.json").read_text()

    def test_references_as_photos_are_warned_of(self, run, here: Path, shared_photos: Path, no_maps) -> None:
        lines = (shared_photos / "photos.csv").read_text(encoding="utf-8").splitlines()
        (here / "few.csv").write_text("\n".join(lines[:13]) + "\n", encoding="utf-8")
        outcome = run("evaluate", "few.csv", "--images", shared_photos, "--out", "r", "--thumbnails", 0)
        assert outcome.code == 0, outcome.err
        same = [row for row in table("r/errors.csv") if row["relation"] == "same file"]
        assert len(same) > 8
        assert f"{len(same)} of 12 photos are references themselves" in outcome.err
        assert "within 1 km of their true place" in outcome.err
        assert all(float(row["nearest_reference_km"]) < 0.001 for row in same)
        assert all(float(row["similarity"]) > 0.9999 for row in same)

    def test_a_bad_photo_costs_its_row(self, run, here: Path, tiny, no_maps) -> None:
        (here / "broken.png").write_bytes(b"no picture")
        rows = [f"{tiny.photos}/{name}.png,{place}" for name, place in (("red", "48,2"), ("blue", "64,-21"))]
        (here / "labels.csv").write_text(
            "path,latitude,longitude\n" + "\n".join([*rows, "broken.png,1,2", "gone.png,3,4", "x.png,,4"]) + "\n"
        )
        common = ("evaluate", "labels.csv", "-e", tiny.model, "-i", tiny.index, "--no-svg")
        outcome = run(*common, "--out", "r")
        assert outcome.code == 1
        assert "2 of 4 photos answered, 2 failed" in outcome.out
        assert "geoinfer: 2 inputs failed, more than --max-errors 0" in outcome.err
        assert [row["status"] for row in table("r/errors.csv")] == ["ok", "ok", "error", "error"]
        assert table("r/errors.csv")[2]["reason"]
        (bad,) = table("r/unmatched.csv")
        assert (bad["id"], bad["line"]) == ("x.png", "6")
        assert bad["reason"]
        written = metrics("r")
        assert written["labels"]["unusable"] == 1
        whole = written["sets"]["Global"]
        assert (whole["count"], whole["failed"], whole["labelled"]) == (2, 2, 4)
        assert whole["with_unanswered_as_farthest"]["mean_km"]["value"] > 10_000
        assert os.listdir("r/maps") == ["errors_world.png"]
        assert run(*common, "--out", "s", "--max-errors", "50%").code == 0

    def test_photos_with_their_own_positions(self, run, here: Path, tiny, shared_exif: Path, no_maps) -> None:
        outcome = run("evaluate", shared_exif, "-e", tiny.model, "-i", tiny.index, "--out", "r", "--thumbnails", 0)
        assert outcome.code == 0, outcome.err
        assert "labels: EXIF." in outcome.out
        outcome = run("evaluate", shared_exif, "-e", tiny.model, "-i", tiny.index, "--out", shared_exif / "report")
        assert outcome.code == 2
        assert "every picture counts as a photo" in outcome.err
        assert not (shared_exif / "report").exists()

    def test_none_can_be_located(self, run, here: Path, tiny, no_maps) -> None:
        (here / "a.png").write_bytes(b"no picture")
        write_labels(here / "labels.csv", {"a.png": (1, 2)}, "path,latitude,longitude")
        outcome = run("evaluate", "labels.csv", "-e", tiny.model, "-i", tiny.index, "--out", "r")
        assert outcome.code == 2
        assert "not one of the 1 labelled photos has an answer" in outcome.err
        assert "the first failure: a.png: " in outcome.err
        assert not Path("r").exists()

    def test_a_source_is_held_out(self, run, here: Path, tiny, no_maps) -> None:
        rows = [f"{tiny.photos}/red.png,48.86,2.35,somewhere", f"{tiny.photos}/blue.png,1,2,elsewhere"]
        (here / "labels.csv").write_text("path,latitude,longitude,source\n" + "\n".join(rows) + "\n")
        common = ("evaluate", "labels.csv", "-e", tiny.model, "-i", tiny.index, "--out", "r")
        outcome = run(*common, "--hold-out", "source")
        assert outcome.code == 2
        assert "all references come from somewhere" in outcome.err
        assert not Path("r").exists()
        assert "expected source" in run(*common, "--hold-out", "country").err

    def test_sets_groups_and_names(self, run, here: Path, tiny, no_maps) -> None:
        lines = ["path,latitude,longitude,weather,sequence,source"]
        lines += [
            f"{tiny.photos}/{n}.png,48,2,{w},s{w},x" for n, w in (("red", "sun"), ("blue", "rain"), ("grey", "rain"))
        ]
        (here / "labels.csv").write_text("\n".join(lines) + "\n")
        common = ("evaluate", "labels.csv", "-e", tiny.model, "-i", tiny.index)
        outcome = run(
            *common, "--out", "r", "--sets-by", "weather", "--name", "mine", "--notice", "Mind the gap.",
            "--convention", "pigeon", "--aggregate", "top1", "--no-baselines",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        assert outcome.err.splitlines()[-1] == "note: Mind the gap."
        written = metrics("r")
        assert (written["name"], written["convention"]["name"]) == ("mine", "pigeon")
        assert {name: one["count"] for name, one in written["sets"].items() if "=" in name} == {
            "weather=sun": 1,
            "weather=rain": 2,
        }
        assert written["sets"]["Global"]["groups"] == 2
        assert written["baselines"] == {}
        assert "Mind the gap." in Path("r/report.html").read_text(encoding="utf-8")
        run(*common, "--out", "s", "--group-by", "source")
        assert metrics("s")["sets"]["Global"]["groups"] == 1
        run(*common, "--out", "t", "--group-by", "none")
        assert metrics("t")["sets"]["Global"]["groups"] == 3
        assert "column" in run(*common, "--out", "u", "--sets-by", "colour").err
        assert not Path("u").exists()


class TestPredictions:
    def test_anybodys_predictions(self, run, labels: Path, predictions: Path, no_maps) -> None:
        outcome = run("evaluate", "--predictions", predictions, "--labels", labels, "--out", "r")
        assert outcome.code == 1
        assert outcome.out.startswith("predictions: 3 of 4 photos answered, 1 without a prediction; labels: CSV.")
        assert "matched by id" in outcome.err
        assert "1 input failed, more than --max-errors 0" in outcome.err
        whole = metrics("r")["sets"]["Global"]
        assert whole["median_km"]["value"] == pytest.approx(0.5 * math.pi / 180 * 6371)
        assert whole["missing"] == 1
        assert whole["with_unanswered_as_farthest"]["mean_km"]["value"] == pytest.approx(
            (3 * 55.597463 + math.pi * 6371) / 4, rel=1e-6
        )
        assert [(row["id"], row["of"]) for row in table("r/unmatched.csv")] == [("d.jpg", "label")]
        assert metrics("r")["leakage"] is None
        assert metrics("r")["intervals"] == {"level": 0.95, "replicates": 1000, "seed": 0, "grouped_by": "none"}

    def test_labels_may_stand_first(self, run, labels: Path, predictions: Path, no_maps) -> None:
        assert run("evaluate", labels, "--predictions", predictions, "-o", "r", "--max-errors", 1).code == 0

    def test_radians(self, run, here: Path, labels: Path, no_maps) -> None:
        rows = {name: (math.radians(a + 0.5), math.radians(b)) for name, (a, b) in LABELS.items()}
        path = write_labels(here / "radians.csv", rows)
        outcome = run("evaluate", labels, "--predictions", path, "--units", "radians", "-o", "r")
        assert outcome.code == 0, outcome.err
        assert metrics("r")["sets"]["Global"]["median_km"]["value"] == pytest.approx(55.597463, rel=1e-6)
        outcome = run("evaluate", labels, "--predictions", path, "-o", "s")
        assert outcome.code == 2
        assert "radians" in outcome.err
        assert not Path("s").exists()

    def test_its_own_errors_are_predictions(self, run, labels: Path, predictions: Path, no_maps) -> None:
        run("evaluate", labels, "--predictions", predictions, "-o", "r")
        outcome = run("evaluate", labels, "--predictions", "r/errors.csv", "-o", "s", "--max-errors", 1)
        assert outcome.code == 0, outcome.err
        before, after = metrics("r")["sets"]["Global"], metrics("s")["sets"]["Global"]
        assert after["median_km"] == before["median_km"]
        assert (after["count"], after["labelled"]) == (before["count"], before["labelled"])

    def test_leakage_of_an_index_that_is_named(self, run, labels: Path, predictions: Path, tiny, no_maps) -> None:
        outcome = run("evaluate", labels, "--predictions", predictions, "-i", tiny.index, "-o", "r")
        assert "have a reference within 1 km of their true place" in outcome.err
        assert metrics("r")["leakage"]["within_1_km"]["count"] == 3
        assert [row["nearest_reference"] for row in table("r/errors.csv")] == ["red", "green", "blue", "blue"]

    def test_json_and_quiet(self, run, labels: Path, predictions: Path, no_maps) -> None:
        common = ("evaluate", labels, "--predictions", predictions, "--max-errors", 4)
        outcome = run(*common, "-o", "r", "--json", "--quiet")
        assert json.loads(outcome.out) == metrics("r")
        assert all(line.startswith("warning: ") for line in outcome.err.splitlines())
        assert run(*common, "-o", "s", "--quiet").out == ""

    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            ({"x.jpg": (1, 2), "y.jpg": (3, 4)}, "not one of its 2 predictions"),
            (dict.fromkeys(LABELS, ("", "")), ""),
            (dict.fromkeys(LABELS, ("nan", "nan")), ""),
            ({name: (b, a) for name, (a, b) in LABELS.items()}, "swapped"),
        ],
        ids=["other ids", "all failed", "nan", "swapped"],
    )
    def test_bad_predictions(self, run, here: Path, labels: Path, rows, says: str) -> None:
        path = write_labels(here / "bad.csv", rows)
        outcome = run("evaluate", labels, "--predictions", path, "-o", "r")
        assert outcome.code == 2
        assert says in outcome.err
        assert "Traceback" not in outcome.err
        assert sorted(os.listdir(here)) == ["bad.csv", "labels.csv"]

    def test_swapped_labels(self, run, here: Path, predictions: Path) -> None:
        rows = {f"{n}.jpg": (100 + n % 60, 10) for n in range(312)}
        labels = write_labels(here / "swapped.csv", rows)
        outcome = run("evaluate", labels, "--predictions", predictions, "-o", "r")
        assert outcome.code == 2
        assert "latitude beyond 90 in 312 rows; are the columns swapped?" in outcome.err


class TestFolders:
    def test_another_report_and_force(self, run, labels: Path, predictions: Path, no_maps) -> None:
        common = ("evaluate", labels, "--predictions", predictions, "--max-errors", 4, "-o", "r")
        assert run(*common, "--name", "first").code == 0
        before = Path("r/metrics.json").read_bytes()
        outcome = run(*common, "--name", "second")
        assert outcome.code == 2
        assert "holds another report (of first)" in outcome.err
        assert "--force" in outcome.err
        assert Path("r/metrics.json").read_bytes() == before
        assert run(*common, "--name", "second", "--force").code == 0
        assert metrics("r")["name"] == "second"

    def test_foreign_files(self, run, labels: Path, predictions: Path) -> None:
        Path("r").mkdir()
        Path("r/tables.md").write_text("mine")
        outcome = run("evaluate", labels, "--predictions", predictions, "-o", "r", "--force")
        assert outcome.code == 2
        assert "holds tables.md" in outcome.err
        assert os.listdir("r") == ["tables.md"]

    def test_the_same_again_is_the_same(self, run, labels: Path, predictions: Path, no_maps) -> None:
        for name in ("r", "s"):
            run("evaluate", labels, "--predictions", predictions, "-o", name)
        for path in Path("r").rglob("*"):
            if path.is_file():
                assert path.read_bytes() == (Path("s") / path.relative_to("r")).read_bytes(), path

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
    def test_a_kill_leaves_the_earlier_report(self, run, labels: Path, predictions: Path, no_maps, number: int) -> None:
        run("evaluate", labels, "--predictions", predictions, "-o", "r")
        before = {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()}
        command = [sys.executable, "-m", "geoinfer", "evaluate", str(labels), "--predictions", str(predictions)]
        process = subprocess.Popen([*command, "-o", "r", "--force"], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not list(Path("r").glob(".geoinfer-report/new/maps/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (130, -signal.SIGKILL)
        assert {path: path.read_bytes() for path in before} == before
        assert Path("r/.geoinfer-report").exists() is (number == signal.SIGKILL)
        # And the next one is not kept out by what a killed one left.
        assert run("evaluate", labels, "--predictions", predictions, "-o", "r", "--force").code == 1
        assert not Path("r/.geoinfer-report").exists()


class TestCompare:
    def test_two_runs(self, run, here: Path, labels: Path, predictions: Path, no_maps) -> None:
        rows = {name: (a + 2, b) for name, (a, b) in LABELS.items()}
        worse = write_labels(here / "worse.csv", rows)
        run("evaluate", labels, "--predictions", predictions, "-o", "a", "--name", "near")
        run("evaluate", labels, "--predictions", worse, "-o", "b", "--name", "far")
        outcome = run("evaluate", "--compare", "a", "b", "--out", "c")
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith("Compared 2 runs on 4 photos")
        assert {"tables.md", "differences.csv", "metrics.json", "report.md"} <= set(os.listdir("c"))
        difference = [
            row for row in table("c/differences.csv") if (row["set"], row["metric"]) == ("Global", "median_km")
        ]
        assert float(difference[0]["difference"]) == pytest.approx(1.5 * math.pi / 180 * 6371)
        assert run("evaluate", "--compare", "a", "b", "--out", "c").code == 2
        assert json.loads(run("evaluate", "--compare", "a", "b", "-o", "c", "--force", "--json").out) == metrics("c")
        outcome = run("evaluate", "--compare", "a", "b", "--out", "a", "--force")
        assert "is one of the runs" in outcome.err

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("a",), "two"),
            (("a", "nowhere"), "no such folder"),
            (("a", "a"), "one folder"),
            (("a", "a", "--labels", "x"), "--labels is not for --compare"),
            (("a", "a", "--k", "3"), "--k is not for --compare"),
        ],
        ids=["one", "missing", "twice", "labels", "k"],
    )
    def test_refused(self, run, labels: Path, predictions: Path, no_maps, arguments, says: str) -> None:
        run("evaluate", labels, "--predictions", predictions, "-o", "a")
        outcome = run("evaluate", "--compare", *arguments, "--out", "c")
        assert outcome.code == 2
        assert says in outcome.err
        assert not Path("c").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no labels are given"),
        (("x.csv",), "no such file"),
        (("labels.csv", "--labels", "labels.csv"), "given 2 times"),
        (("labels.csv", "--units", "radians"), "--units is for --predictions"),
        (("labels.csv", "--predictions", "p.csv", "--units", "gon"), "expected degrees or radians"),
        (("labels.csv", "--predictions", "p.csv", "--k", "3"), "not for --predictions"),
        (("labels.csv", "--predictions", "nowhere.csv"), "nowhere.csv"),
        (("labels.csv", "--convention", "mine"), "osv5m"),
        (("labels.csv", "--group-by", "mood"), "--group-by mood: expected one of auto"),
        (("labels.csv", "--predictions", "labels.csv", "--group-by", "sequence"), "do not say of any photo"),
        (("labels.csv", "--thumbnails", "-1"), "--thumbnails -1"),
        (("labels.csv", "--max-errors", "many"), "--max-errors many"),
        (("labels.csv", "--against", "x"), "--against is for --compare"),
        (("labels.csv", "--images", "nowhere"), "nowhere"),
        (("labels.csv", "--batch-size", "0"), "--batch-size 0"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "says",
)
def test_refused_before_anything_is_done(run, here: Path, labels: Path, arguments, says: str) -> None:
    outcome = run("evaluate", *arguments, "--out", "r")
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert sorted(os.listdir(here)) == ["labels.csv"]


def test_the_shipped_bundle_is_never_a_report(run, here: Path, labels: Path, predictions: Path) -> None:
    outcome = run("evaluate", labels, "--predictions", predictions, "-o", SHIPPED, "--force")
    assert outcome.code == 2
    assert "index or a bundle" in outcome.err
