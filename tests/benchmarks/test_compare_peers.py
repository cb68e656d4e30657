from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module("compare_peers")


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module("peers.outcome")


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("path,latitude,longitude\n" + "".join(f"/x/{name},{place},{place}\n" for name, place in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "bad_file", "words"),
    [
        ([("a", "1"), ("b", ""), ("c", "3")], "error row", "3 of 3 rows, one an error row"),
        ([("a", "1"), ("c", "3")], "no row", "2 of 3 rows, nothing said of the bad one"),
        ([("a", "1"), ("b", "3"), ("c", "3")], "answered as the next photo", "the bad file's is the next photo's"),
        ([("a", "1"), ("b", "2"), ("c", "3")], "answered", "the bad file is answered"),
        ([("a", "1")], "no row", "stops, 1 of 3 rows"),
        ([], "no row", "stops, 0 of 3 rows"),
    ],
)
def test_what_became_of_a_bad_file(
    outcomes: Any, tmp_path: Path, rows: list[tuple[str, str]], bad_file: str, words: str
) -> None:
    paths = [tmp_path / name for name in "abc"]
    output = write(tmp_path / "out.csv", rows) if rows else tmp_path / "missing.csv"
    found = outcomes.outcome(paths, paths[1], output, 0, "")
    assert (found.inputs, found.rows, found.bad_file) == (3, len(rows), bad_file)
    assert words in found.words


def test_the_file_in_the_middle_is_spoilt_and_no_other(outcomes: Any, tmp_path: Path) -> None:
    for kind in outcomes.BAD_FILES:
        paths = [tmp_path / f"{number}.jpg" for number in range(5)]
        for path in paths:
            path.write_bytes(b"\xff\xd8" + bytes(998))
        assert outcomes.spoil(paths, kind) == paths[2]
        assert [path.stat().st_size == 1000 for path in paths] == [True, True, False, True, True]
        assert paths[2].read_bytes()[:9] == (b"<!DOCTYPE" if kind == "a web page" else b"\xff\xd8" + bytes(7))


def test_a_program_is_timed_and_its_memory_seen_with_that_of_its_workers(peers: Any) -> None:
    # 150 MB written to in the program and 100 in a child of its own, which begins as its copy.
    script = """
import os, sys, time
mine = bytearray(150_000_000)
if os.fork() == 0:
    own = bytearray(100_000_000)
    time.sleep(0.5)
    os._exit(0)
os.wait()
print("said", os.environ.get("OMP_NUM_THREADS"), os.environ["GIVEN"])
print("first\\nlast words", file=sys.stderr)
sys.exit(3)
"""
    done = peers.run(["-c", script], environment={"GIVEN": "yes"}, measure_memory=True)
    assert (done.exit_code, done.stdout, done.last_words) == (3, "said None yes", "last words")
    assert done.seconds > 0.5
    assert 250e6 < done.peak_bytes < 300e6
    assert peers.run(["-c", "pass"], environment={}).peak_bytes is None


def figures(ours: float, plain: float, bound: float) -> dict[str, Any]:
    return {
        "geoinfer": {"rate": ours, "with_start": ours / 2},
        "plain": {"rate": plain, "with_start": plain / 2},
        "bound": {"bound": bound, "stages": {"read": 1000.0, "decode": 80.0}},
    }


@pytest.fixture
def result() -> dict[str, Any]:
    about = {
        "count": 200,
        "few": 2,
        "mean_file_bytes": 2_090_000,
        "peak_bytes": {"geoinfer": 300 << 20, "plain": 900 << 20},
        "similarities_differ_by": {"plain": 0.0125, "timm": 0.01},
    }
    became = {
        "cut off": {"geoinfer": {"words": "21 of 21 rows, one an error row"}, "plain": {"words": "stops"}},
        "a web page": {"geoinfer": {"words": "21 of 21 rows, one an error row"}, "plain": {"words": "stops"}},
    }
    return {
        "machine": {"cpu": "A CPU", "cores": 2},
        "programs": ["plain", "geoinfer"],
        "kinds": {
            "12MP": about | {"rounds": [figures(40, 5, 41), figures(36, 4, 40), figures(50, 6, 50)]},
            "web": about | {"rounds": [figures(60, 30, 70), figures(66, 20, 70), figures(70, 25, 75)]},
        },
        "bad_files": became,
    }


def test_ratios_are_taken_within_a_round_and_aims_judged_by_their_median(peers: Any, result: dict[str, Any]) -> None:
    assert peers.aims(result) == [
        "- 12 megapixels: 8.3 (8.0 to 9.0) times the plain loop; the aim of 8 times is reached.",
        "- 12 megapixels: 97.6 (90.0 to 100.0) % of the work-conserving bound; the aim of 95% is reached.",
        "- web size: 2.8 (2.0 to 3.3) times the plain loop; the aim of 4 times is not reached.",
        "- web size: 93.3 (85.7 to 94.3) % of the work-conserving bound; the aim of 95% is not reached.",
    ]


def test_the_tables_show_every_program_and_every_stage(peers: Any, result: dict[str, Any]) -> None:
    short, long = peers.table(json.loads(json.dumps(result))), peers.details(result)
    assert (
        "| **geoinfer predict** | 40.0 (36.0 to 50.0) | 66.0 (60.0 to 70.0) | 300 MiB "
        "| 21 of 21 rows, one an error row | 21 of 21 rows, one an error row |" in short.splitlines()
    )
    assert (
        "| plain torch loop | 5.0 (4.0 to 6.0) | 2.5 (2.0 to 3.0) | 1.0 (1.0 to 1.0) | 900 MiB |" in long.splitlines()
    )
    assert "| work-conserving bound | 41.0 (40.0 to 50.0) |" in long.splitlines()
    assert "| decode | 80.0 (80.0 to 80.0) |" in long.splitlines()
    # A Markdown table has as many cells in each of its rows.
    for text in (short, long):
        for block in text.split("\n\n"):
            assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


def test_programs_that_find_other_similarities_are_not_compared(peers: Any, tmp_path: Path) -> None:
    def found(name: str, column: str, similarities: list[float]) -> Path:
        lines = [f"/{name}/{number}.jpg,{value}" for number, value in enumerate(similarities)]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join([f"path,{column}", *lines]) + "\n")
        return path

    outputs = {
        peers.OURS: found("ours", "top1_similarity", [0.5, 0.6]),
        peers.PLAIN: found("plain", "similarity", [0.51, 0.58]),
        peers.TIMM: found("timm", "similarity", [0.5, 0.6]),
    }
    differ = peers.check_agreement(outputs)
    assert differ[peers.PLAIN] == pytest.approx(0.02)
    assert differ[peers.TIMM] == 0
    outputs[peers.TIMM] = found("timm", "similarity", [0.5, 0.9])
    with pytest.raises(SystemExit, match=r"differ from geoinfer's by up to 0\.300"):
        peers.check_agreement(outputs)
    outputs[peers.TIMM] = found("timm", "similarity", [0.5])
    with pytest.raises(SystemExit, match="answered 1 photos, geoinfer 2"):
        peers.check_agreement(outputs)


def test_pages_are_filled_between_their_marks_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    pages: Any = importlib.import_module("fill_pages")
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for name, text in (("a", r"| new \1 |"), ("b", "second\n\ntable")):
        (tmp_path / "benchmarks" / "results" / f"{name}.md").write_text(text + "\n")
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "page.md"
    begin = "<!-- benchmarks/results/{}.md -->\n"
    frame = (
        "before\n" + begin.format("a") + "{}\n<!-- end -->\nbetween\n" + begin.format("b") + "{}\n<!-- end -->\nafter\n"
    )
    readme.write_text(frame.format("old", "old\n\nlines"))
    page.write_text("no table\n")
    assert pages.fill(tmp_path) == [readme]
    assert readme.read_text() == frame.format(r"| new \1 |", "second\n\ntable")
    assert pages.fill(tmp_path) == []
