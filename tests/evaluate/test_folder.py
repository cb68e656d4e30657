"""What may lie in a report's folder, and what a kill leaves there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geoinfer.errors import InputError, OutputError
from geoinfer.evaluate import folder as module
from geoinfer.evaluate.folder import ReportFolder, check_report, check_report_folder


def make(out: Path, text: str = "first", *, force: bool = False, maps: tuple[str, ...] = ("errors_world.png",)) -> None:
    with ReportFolder(out, force=force) as report:
        (report.stage / "errors.csv").write_text(text)
        (report.stage / "tables.md").write_text(text)
        (report.stage / "maps").mkdir()
        for name in maps:
            (report.stage / "maps" / name).write_text(text)
        report.commit({"name": text})


def content(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): path.read_text() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_report_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report"
    make(out)
    assert list(content(out)) == ["errors.csv", "maps/errors_world.png", "metrics.json", "tables.md"]
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert (metrics["format"], metrics["name"]) == ("geoinfer-evaluation", "first")
    assert sorted(metrics["files"]) == ["errors.csv", "maps/errors_world.png", "tables.md"]
    assert check_report(out) == metrics


def test_another_report_is_replaced_by_force_only(tmp_path: Path) -> None:
    make(tmp_path / "r", maps=("errors_world.png", "errors_europe.png"))
    (tmp_path / "r" / "notes.txt").write_text("mine")
    before = content(tmp_path / "r")
    with pytest.raises(OutputError, match=r"holds another report \(of first\)") as caught:
        check_report_folder(tmp_path / "r", force=False)
    assert "--force" in caught.value.hint
    check_report_folder(tmp_path / "r", force=True)
    with pytest.raises(OutputError, match="another report"):
        make(tmp_path / "r", "second")
    assert content(tmp_path / "r") == before
    make(tmp_path / "r", "second", force=True, maps=("arrows_world.png",))
    after = content(tmp_path / "r")
    assert list(after) == ["errors.csv", "maps/arrows_world.png", "metrics.json", "notes.txt", "tables.md"]
    assert (after["errors.csv"], after["notes.txt"]) == ("second", "mine")


@pytest.mark.parametrize("name", ["errors.csv", "metrics.json", "tables.tex", "report.html", "maps/mine.png", "maps"])
def test_foreign_files_are_never_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "r"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{"mine": 1}')
    for force in (False, True):
        with pytest.raises(OutputError, match=f"holds {name}, which is of no report"):
            check_report_folder(out, force=force)
    with pytest.raises(OutputError, match="of no report"):
        make(out, force=True)
    assert content(out) == {name: '{"mine": 1}'}


def test_a_foreign_file_beside_a_report_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(OutputError, match=r"holds report\.html"):
        check_report_folder(tmp_path, force=True)


def test_names_in_metrics_are_not_believed(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    names = {"../mine.txt": {}, "maps/../../mine.png": {}, "/etc/passwd": {}, "notes.txt": {}}
    (tmp_path / "r" / "metrics.json").write_text(json.dumps({"format": "geoinfer-evaluation", "files": names}))
    (tmp_path / "r" / "notes.txt").write_text("mine")
    make(tmp_path / "r", force=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_places_that_are_no_place_for_a_report(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "photos").mkdir()
    with pytest.raises(OutputError, match="is a file"):
        check_report_folder(tmp_path / "file", force=True)
    with pytest.raises(OutputError, match="is a file"):
        check_report_folder(tmp_path / "file" / "report", force=True)
    with pytest.raises(OutputError, match="every picture counts as a photo"):
        check_report_folder(tmp_path / "photos" / "report", force=True, photos=tmp_path / "photos")
    check_report_folder(tmp_path / "photos" / "report", force=True)
    from geoinfer.bundle import SHIPPED

    for taken in (SHIPPED, SHIPPED / "index", SHIPPED / "index" / "report"):
        with pytest.raises(OutputError, match="index or a bundle"):
            check_report_folder(taken, force=True)


def test_a_failure_leaves_all_as_it_was(tmp_path: Path) -> None:
    make(tmp_path / "r")
    before = content(tmp_path / "r")
    for out in (tmp_path / "r", tmp_path / "new" / "r"):
        with pytest.raises(RuntimeError), ReportFolder(out, force=True) as report:
            (report.stage / "errors.csv").write_text("half")
            raise RuntimeError
    assert content(tmp_path / "r") == before
    assert not (tmp_path / "new").exists()


def test_two_at_once(tmp_path: Path) -> None:
    with ReportFolder(tmp_path / "r", force=False) as report:
        (report.stage / "errors.csv").write_text("one")
        with pytest.raises(OutputError, match="is writing it"), ReportFolder(tmp_path / "r", force=False):
            pass
        report.commit({})
    assert content(tmp_path / "r")["errors.csv"] == "one"


PROGRAM = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_folder import make
from geoinfer.evaluate import folder
count, kill_at = 0, {kill_at}
real = Path.replace
def replace(self, target):
    global count
    if self.parent.name in ("new", "maps"):
        count += 1
        if count > kill_at:
            os.kill(os.getpid(), 9)
    return real(self, target)
Path.replace = replace
make(Path({out!r}), "second", force=True, maps=("errors_world.png", "arrows_world.png"))
"""


@pytest.mark.parametrize("kill_at", range(6))
def test_a_kill_at_any_move_leaves_no_report_or_a_whole_one(tmp_path: Path, kill_at: int) -> None:
    out = tmp_path / "r"
    make(out, maps=("errors_world.png", "errors_europe.png"))
    (out / "notes.txt").write_text("mine")
    program = PROGRAM.format(tests=str(Path(__file__).parent), kill_at=kill_at, out=str(out))
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    left = content(out)
    if "metrics.json" in left:
        name = json.loads(left["metrics.json"])["name"]
        assert {left["errors.csv"], left["tables.md"], left["maps/errors_world.png"]} == {name}
    else:
        check_report_folder(out, force=False)  # nothing whole is there that would have to be saved
    make(out, "third", force=True)
    after = content(out)
    assert set(after) == {"errors.csv", "maps/errors_world.png", "metrics.json", "notes.txt", "tables.md"}
    assert {text for name, text in after.items() if name not in ("metrics.json", "notes.txt")} == {"third"}


def test_what_is_no_report_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        check_report(tmp_path / "none")
    with pytest.raises(InputError, match="holds no report"):
        check_report(tmp_path)
    with ReportFolder(tmp_path / "c", force=False) as report:
        report.commit({})
    with pytest.raises(InputError, match=r"holds no errors\.csv"):
        check_report(tmp_path / "c")
    make(tmp_path / "r")
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_bytes())
    (tmp_path / "r" / "metrics.json").write_text(json.dumps(metrics | {"version": 99}))
    with pytest.raises(InputError, match="version 99"):
        check_report(tmp_path / "r")
