"""`geoinfer predict … --map OUT.html`."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from geoinfer.batch import predict as batch_predict
from geoinfer.bundle import SHIPPED
from geoinfer.evaluate import prediction_page

COLOURS = {"red": (48.86, 2.35), "green": (-33.87, 151.21), "blue": (64.15, -21.94)}
NOTICE = json.loads((SHIPPED / "bundle.json").read_bytes())["notice"]


@pytest.fixture
def predict(run, here: Path, tiny):
    """With the tiny model and index."""

    def call(*arguments: object, stdin: bytes = b""):
        return run("predict", *arguments, "-e", tiny.model, "-i", tiny.index, "--aggregate", "top1", stdin=stdin)

    return call


def data_of(page: Path | str) -> dict[str, Any]:
    """What a browser would read out of the page."""
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', Path(page).read_bytes(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def points_of(page: Path | str) -> dict[str, dict[str, Any]]:
    """By the photo's name without its suffix."""
    points = data_of(page)["points"]
    rows = [dict(zip(points, values, strict=True)) for values in zip(*points.values(), strict=True)]
    return {Path(row["id"]).stem: row for row in rows}


def test_the_page_has_every_photo_with_picture_and_candidates_though_the_output_is_a_csv(predict, tiny) -> None:
    plain = predict(tiny.photos, "-o", "plain.csv")
    outcome = predict(tiny.photos, "--map", "map.html", "--summary-json", "s.json")
    assert outcome.code == 0, outcome.err
    assert "  map:       map.html" in outcome.out.splitlines()
    assert "map" not in plain.out
    assert Path("plain.csv").read_bytes() == Path("predictions.csv").read_bytes()
    summary = json.loads(Path("s.json").read_bytes())
    assert (summary["map"], summary["exit_code"]) == (str(Path("map.html").absolute()), 0)
    data, points = data_of("map.html"), points_of("map.html")
    assert (data["kind"], data["shown"], data["of"], len(data["thumbs"])) == ("predictions", 4, 4, 4)
    assert set(points) == {"red", "green", "blue", "grey"}
    assert sorted(point["thumb"] for point in points.values()) == [0, 1, 2, 3]
    for name, place in COLOURS.items():
        assert (points[name]["lat"], points[name]["lon"]) == place
        assert points[name]["candidates"][0][0] == name
        assert len(points[name]["candidates"]) == 3
    assert any("every radius is the whole Earth" in warning for warning in data["warnings"])


def test_the_shipped_bundle_with_places(run, here: Path, example_photos: Path) -> None:
    pytest.importorskip("reverse_geocode")
    outcome = run("predict", example_photos, "--map", "map.html", "--places", "--thumbnails", "3", "-q")
    assert (outcome.code, outcome.out) == (0, "")
    data = data_of("map.html")
    assert data["notice"].lower() == NOTICE.lower()
    assert len(data["thumbs"]) == 3
    assert [table["title"] for table in data["tables"]] == ["Radius", "Countries"]
    assert all(data["points"]["place"])
    for photo in example_photos.glob("*.jpg"):
        assert photo.name in data["points"]["id"]


def test_a_finished_run_keeps_its_page_or_makes_one_from_the_result(predict, tiny) -> None:
    assert predict(tiny.photos, "--map", "map.html").code == 0
    before = Path("map.html").read_bytes()
    os.utime("map.html", (1, 1))
    again = predict(tiny.photos, "--map", "map.html")
    assert again.code == 0
    assert again.out.startswith("Nothing to do")
    assert again.out.splitlines()[-1] == "  map:       map.html"
    assert Path("map.html").stat().st_mtime == 1
    # Another number of pictures is another page, and a CSV has no room for candidates.
    assert predict(tiny.photos, "--map", "map.html", "--thumbnails", "0").code == 0
    now, then = data_of("map.html"), json.loads(re.search(rb'id="data">(.*?)</script>', before, re.DOTALL)[1])  # type: ignore[index]
    assert now["thumbs"] == []
    for name in ("id", "path", "lat", "lon", "radius_km", "score", "status"):
        assert now["points"][name] == then["points"][name]
    assert now["points"]["candidates"] == [[]] * 4


@pytest.mark.parametrize("output", ["o.jsonl", "o.parquet"])
def test_where_the_result_has_candidates_its_page_is_the_same_whenever_it_is_made(predict, tiny, output: str) -> None:
    assert predict(tiny.photos, "-o", output, "--map", "during.html").code == 0
    assert predict(tiny.photos, "-o", output, "--map", "after.html").code == 0
    assert Path("during.html").read_bytes() == Path("after.html").read_bytes()


def interrupt_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Ctrl-C comes once, when so many parts, of one photo each, are safe."""
    monkeypatch.setattr(batch_predict, "_COMMIT_ROWS", 1)
    monkeypatch.setattr(batch_predict, "_BLOCK", 1)
    commit, commits = batch_predict.RunLedger.commit, []

    def interrupting(self, *arguments):
        commit(self, *arguments)
        commits.append(1)
        if len(commits) == parts:
            raise KeyboardInterrupt

    monkeypatch.setattr(batch_predict.RunLedger, "commit", interrupting)


@pytest.mark.parametrize(("first", "then"), [((), ("--map", "m.html")), (("--map", "m.html"), ())])
def test_an_interrupted_run_goes_on_with_or_without_a_map(
    predict, tiny, monkeypatch: pytest.MonkeyPatch, first: tuple[str, ...], then: tuple[str, ...]
) -> None:
    assert predict(tiny.photos, "-o", "whole.csv", "--map", "whole.html").code == 0
    interrupt_after(monkeypatch, 2)
    stopped = predict(tiny.photos, *first)
    assert (stopped.code, Path("m.html").exists()) == (130, False)
    assert predict(tiny.photos, *then).code == 0
    assert Path("predictions.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert Path("m.html").exists() == bool(then)
    if then:
        points, whole = points_of("m.html"), points_of("whole.html")
        assert {name: point["lat"] for name, point in points.items()} == {
            name: point["lat"] for name, point in whole.items()
        }
        # Those of the first part were not kept, as nobody had asked for them.
        assert sorted(len(point["candidates"]) for point in points.values()) == [0, 0, 3, 3]


def test_a_run_with_a_map_that_is_interrupted_ends_with_the_same_page(
    predict, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.photos, "photos")
    Path("photos/broken.jpg").write_bytes(b"no photo")
    assert predict("photos", "--map", "m.html", "--max-errors", "1").code == 0
    whole = Path("m.html").read_bytes()
    Path("m.html").unlink()
    interrupt_after(monkeypatch, 3)
    assert predict("photos", "--map", "m.html", "--restart").code == 130
    assert predict("photos", "--map", "m.html", "--max-errors", "1").code == 0
    assert Path("m.html").read_bytes() == whole
    assert points_of("m.html")["broken"]["reason"] == "the bytes are of no image format"


def test_shares_have_a_page_each(predict, tiny) -> None:
    for number in (1, 2):
        assert predict(tiny.photos, "--shard", f"{number}/2", "--map", "m.html").code == 0
    names = [set(points_of(f"m-{number}-of-2.html")) for number in (1, 2)]
    assert names[0] | names[1] == {"red", "green", "blue", "grey"}
    assert not names[0] & names[1]
    assert not Path("m.html").exists()
    assert "share 1 of 2" in data_of("m-1-of-2.html")["title"]


def test_what_is_wrong_with_the_map_is_found_before_anything_is_done(predict, tiny, here: Path) -> None:
    Path("mine.html").write_text("<p>my own page</p>")
    Path("folder.html").mkdir()
    Path("list.html").write_text(f"{tiny.photos}/red.png\n")
    for arguments, words in [
        (("--map", "mine.html"), "exists already, and is no page of geoinfer"),
        (("--map", "folder.html"), "folder"),
        (("--map", "map.htm"), "not that of a page"),
        (("--map", "nowhere/map.html"), "there is no folder nowhere"),
        (("--map", "s.html", "--summary-json", "s.html"), "is the file of --summary-json too"),
        (("--map", "e.html", "--errors", "e.html"), "is the file of --errors too"),
        (("--map", "m.html", "--thumbnails", "-1"), "--thumbnails -1: expected 0 to"),
        (("--thumbnails", "5"), "--thumbnails is for --map"),
        (("@list.html", "--map", "list.html"), "list.html"),
    ]:
        outcome = predict(tiny.photos, *arguments)
        assert outcome.code == 2, arguments
        assert words in outcome.err
        assert "Traceback" not in outcome.err
    assert Path("mine.html").read_text() == "<p>my own page</p>"
    assert sorted(path.name for path in here.iterdir()) == ["folder.html", "list.html", "mine.html"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(predict, tiny, here: Path) -> None:
    locked = here / "locked"
    locked.mkdir(mode=0o500)
    assert "permission denied" in predict(tiny.photos, "--map", "locked/m.html").err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device"), 2, "the map cannot be written: no space left on device"),
        (KeyboardInterrupt(), 130, "interrupted while the map was drawn"),
    ],
)
def test_a_map_that_fails_costs_no_result(
    predict, tiny, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def failing(_path):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(prediction_page, "atomic_file", failing)
        outcome = predict(tiny.photos, "--map", "m.html", "--summary-json", "s.json")
    assert outcome.code == code
    assert words in outcome.err
    assert "the result is whole: predictions.csv" in outcome.err
    assert "Located 4 of 4" in outcome.out
    assert "map:" not in outcome.out
    summary = json.loads(Path("s.json").read_bytes())
    assert (summary["ok"], summary["map"], summary["exit_code"]) == (4, None, code)
    again = predict(tiny.photos, "--map", "m.html")
    assert again.code == 0
    assert set(points_of("m.html")) == {"red", "green", "blue", "grey"}


def test_names_that_are_hostile_or_not_utf8(predict, tiny, here: Path) -> None:
    folder = here / "photos"
    folder.mkdir()
    names = [b"caf\xe9.png", b"<script>alert(1)<.png", "日本.png".encode()]
    for name in names:
        shutil.copyfile(tiny.photos / "red.png", os.fsencode(folder) + b"/" + name)
    outcome = predict("photos", "--map", "m.html")
    assert outcome.code == 0, outcome.err
    data = data_of("m.html")
    assert sorted(data["points"]["id"]) == ["<script>alert(1)<.png", "caf\\xe9.png", "日本.png"]
    assert -1 not in data["points"]["thumb"]
    assert b"<script>alert" not in Path("m.html").read_bytes()


def test_the_output_may_not_be_changed_between(predict, tiny) -> None:
    assert predict(tiny.photos).code == 0
    content = Path("predictions.csv").read_bytes()
    header, row, other = content.splitlines()[:3]
    short = header + b"\n" + row + b"\n"
    # Of the same length, so that the run is taken for finished.
    for changed, words in [
        (b"x" * len(content), "is no result of geoinfer predict, or was changed since"),
        (short + other.ljust(len(content) - len(short) - 1, b"x") + b"\n", "holds 2 rows, and the run had 4 inputs"),
    ]:
        Path("predictions.csv").write_bytes(changed)
        outcome = predict(tiny.photos, "--map", "m.html")
        assert outcome.code == 2
        assert words in outcome.err
        assert not Path("m.html").exists()
