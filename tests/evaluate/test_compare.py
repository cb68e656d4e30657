from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest

from geoinfer.errors import GeoInferError, InputError, OutputError, UsageError
from geoinfer.evaluate.bootstrap import Interval
from geoinfer.evaluate.compare import compare
from geoinfer.evaluate.compare_report import COLUMNS, signed, write_comparison
from geoinfer.evaluate.errors_file import write_errors
from geoinfer.evaluate.measure import measure
from geoinfer.evaluate.outcomes import Outcomes, Run
from geoinfer.integrity import sha256_of, write_json
from geoinfer.metrics import GEOCLIP, OSV5M

COUNT = 40


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """What takes long and no comparison depends on: the names of places, and the best of all constants."""
    monkeypatch.setattr("geoinfer.evaluate.measure.open_places", lambda: None)
    monkeypatch.setattr("geoinfer.evaluate.measure.best_constant", lambda truth, **_: np.median(truth, axis=0))


def outcomes(off_deg, *, ids=None, failed=(), **changes):
    """Photos about the equator of Africa, a quarter in Austria; answers are `off_deg` degrees of latitude north."""
    n = len(ids) if ids is not None else COUNT
    latitudes = np.where(np.arange(n) % 4 == 0, 47.0, 0.0) + np.arange(n) * 7 % 11 / 10
    truth = np.column_stack([latitudes, 15.0 + np.arange(n) * 5 % 13 / 10])
    predicted = truth + np.column_stack([np.broadcast_to(off_deg, n), np.zeros(n)])
    statuses = ["error" if row in failed else "ok" for row in range(n)]
    predicted[list(failed)] = np.nan
    empty = [""] * n
    made = Outcomes(
        ids or [f"p{row:03}" for row in range(n)],
        [b""] * n,
        truth,
        predicted,
        statuses,
        ["truncated" if row in failed else "" for row in range(n)],
        np.full(n, np.nan),
        np.full(n, np.nan),
        ["AT" if row % 4 == 0 else "CD" for row in range(n)],
        empty, empty, empty, empty, empty,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def report(folder, photos, name="run", *, k=1, convention=OSV5M, **more):
    folder.mkdir()
    write_errors(measure(photos, Run(name, k), convention, baselines=False), folder / "errors.csv")
    files = {"errors.csv": {"sha256": sha256_of(folder / "errors.csv")}}
    values = {"name": name, "k": k, "made_by": {"model": name}, "convention": convention.name, "warnings": []}
    write_json(folder / "metrics.json", {"format": "geoinfer-evaluation", "version": 1, "files": files} | values | more)
    return folder


@pytest.fixture
def two(tmp_path):
    """The second is nearer at three photos of four, and does not answer two that the first does."""
    off = np.where(np.arange(COUNT) % 4 == 1, 9.0, 1.0)
    return [
        report(tmp_path / "a", outcomes(3.0), "first", k=10),
        report(tmp_path / "b", outcomes(off, failed=(2, 3)), "second"),
    ]


def degrees_km(degrees):
    return math.radians(degrees) * 6371.0


def test_differences_are_of_the_photos_that_both_answered(two):
    found = compare(two, convention=OSV5M)
    assert found.names == ["first", "second"]
    whole = found.differences[0]
    assert (whole.set_name, whole.run, whole.against) == ("Global", "second", "first")
    assert (whole.count, whole.nearer, whole.farther, whole.same) == (38, 28, 10, 0)
    assert whole.figures["median_km"].value == pytest.approx(degrees_km(1 - 3))
    assert whole.figures["mean_km"].value == pytest.approx(degrees_km((28 * 1 + 10 * 9) / 38 - 3))
    assert whole.figures["accuracy_200"].value == pytest.approx(100 * 28 / 38)
    assert whole.figures["accuracy_25"].value == 0
    assert [one.set_name for one in found.differences] == ["Global", "Europe", "Africa"]
    assert found.differences[1].count == 10


def test_differences_from_another_run_have_the_other_sign(two):
    there, back = compare(two, convention=OSV5M), compare(two, convention=OSV5M, against="second")
    assert back.differences[0].run == "first"
    for name, one in there.differences[0].figures.items():
        other = back.differences[0].figures[name]
        assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))
    assert back.differences[0].nearer == there.differences[0].farther


def test_figures_are_measured_by_one_convention(two):
    found = compare(two, convention=GEOCLIP)
    # A degree of latitude at the equator of WGS84 is 110.57 km long.
    assert found.evaluations[0].metrics["Africa"].median_km.value == pytest.approx(3 * 110.57, abs=0.1)
    assert any("its own report is by osv5m" in text for text in found.warnings)
    assert not any("osv5m" in text for text in compare(two, convention=OSV5M).warnings)


def test_the_row_of_another_order_is_of_the_same_photo(two, tmp_path):
    photos = outcomes(np.arange(COUNT) / 10)
    backwards = outcomes(0.0)
    rows = range(COUNT - 1, -1, -1)
    backwards = dataclasses.replace(
        photos,
        ids=[photos.ids[row] for row in rows],
        truth=photos.truth[::-1].copy(),
        predicted=photos.predicted[::-1].copy(),
        countries=[photos.countries[row] for row in rows],
    )
    folders = [report(tmp_path / "x", photos, "x"), report(tmp_path / "y", backwards, "y")]
    found = compare(folders, convention=OSV5M)
    assert all(one.same == one.count for one in found.differences)
    assert "y and x have the same answer to every photo." in found.warnings


def test_photos_that_not_all_have_are_left_out_and_counted(two, tmp_path):
    fewer = report(tmp_path / "c", outcomes(2.0, ids=[f"p{row:03}" for row in range(30)]), "third")
    found = compare([*two, fewer], convention=OSV5M)
    assert {len(one.outcomes) for one in found.evaluations} == {30}
    assert "first: 10 of its 40 photos are not in every run; they are left out here." in found.warnings
    assert not any(text.startswith("third: 10") for text in found.warnings)


def test_no_photo_in_common(two, tmp_path):
    other = report(tmp_path / "c", outcomes(2.0, ids=[f"q{row}" for row in range(9)]), "third")
    with pytest.raises(InputError, match=r"no photo in common \(first: p000, p001, p002; third: q0, q1, q2\)"):
        compare([two[0], other], convention=OSV5M)


def test_a_true_place_that_differs_is_named_and_how_far(two, tmp_path):
    moved = outcomes(2.0)
    moved.truth[7, 0] += 1.0
    moved.truth[8, 0] += 0.5
    other = report(tmp_path / "c", moved, "third")
    with pytest.raises(InputError, match=r"the photo p007 are 111\.19 km apart, and 2 of 40 differ"):
        compare([two[0], other], convention=OSV5M)


def test_a_true_place_that_was_rounded_is_the_same(two, tmp_path):
    moved = outcomes(2.0)
    moved.truth[7] += 0.00004
    other = report(tmp_path / "c", moved, "third")
    found = compare([two[0], other], convention=OSV5M)
    # All are measured from the first one's.
    assert found.evaluations[1].outcomes.truth[7].tolist() == found.evaluations[0].outcomes.truth[7].tolist()


def test_labels_that_differ_are_the_firsts_and_a_warning(two, tmp_path):
    countries = ["DE", *outcomes(0.0).countries[1:]]
    kinds = {"kind": ["street"] * COUNT}
    other = report(tmp_path / "c", outcomes(2.0, countries=countries, columns=kinds), "third")
    found = compare([two[0], other], convention=OSV5M)
    assert [one.outcomes.countries[0] for one in found.evaluations] == ["AT", "AT"]
    assert any("third: 1 photos have other countries" in text and "p000: DE and AT" in text for text in found.warnings)
    # Sets of a column that one of them has are sets of all.
    assert all("kind=street" in one.metrics for one in found.evaluations)


def test_runs_of_one_name_are_told_apart_by_their_folders(two, tmp_path):
    other = report(tmp_path / "c", outcomes(2.0), "first")
    assert compare([*two, other], convention=OSV5M).names == ["first (a)", "second", "first (c)"]
    (tmp_path / "deep").mkdir()
    again = report(tmp_path / "deep" / "a", outcomes(2.0), "first")
    names = compare([two[0], again], convention=OSV5M).names
    assert len(set(names)) == 2
    assert all(name.startswith("first (a)") for name in names)


def test_a_run_twice(two, tmp_path):
    with pytest.raises(UsageError, match="are one folder"):
        compare([*two, tmp_path / "b" / ".." / "a"], convention=OSV5M)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_runs(two, count):
    with pytest.raises(UsageError, match="at least two"):
        compare(two[:count], convention=OSV5M)


def test_names_of_no_run(two):
    with pytest.raises(UsageError, match="--against nobody: no run has that name") as caught:
        compare(two, convention=OSV5M, against="nobody")
    assert "first, second" in caught.value.hint
    with pytest.raises(UsageError, match="--baseline nobody"):
        compare(two, convention=OSV5M, baselines=["nobody"])


def spoil_nothing_there(folder):
    shutil.rmtree(folder)


def spoil_no_metrics(folder):
    (folder / "metrics.json").unlink()


def spoil_version(folder):
    values = json.loads((folder / "metrics.json").read_text())
    write_json(folder / "metrics.json", values | {"version": 99})


def spoil_format(folder):
    write_json(folder / "metrics.json", {"format": "something-else", "version": 1})


def spoil_no_errors(folder):
    (folder / "errors.csv").unlink()


def spoil_empty_errors(folder):
    lines = (folder / "errors.csv").read_text().splitlines(keepends=True)
    (folder / "errors.csv").write_text(lines[0])


def spoil_a_photo_twice(folder):
    text = (folder / "errors.csv").read_text()
    (folder / "errors.csv").write_text(text.replace("p001,", "p000,"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_nothing_there, "no such folder"),
        (spoil_no_metrics, "holds no report"),
        (spoil_version, "version 99"),
        (spoil_format, "holds no report"),
        (spoil_no_errors, "errors.csv"),
        (spoil_empty_errors, "holds no photos"),
        (spoil_a_photo_twice, "holds the photo p000 twice"),
    ],
)
def test_what_is_no_report(two, spoil, words):
    spoil(two[1])
    with pytest.raises(GeoInferError, match=words) as caught:
        compare(two, convention=OSV5M)
    assert str(two[1]) in str(caught.value)
    assert caught.value.hint


def test_errors_that_were_changed_are_a_warning(two):
    text = (two[1] / "errors.csv").read_text()
    (two[1] / "errors.csv").write_text(text.replace("truncated", "broken"))
    assert "second: errors.csv has been changed since the report was made." in compare(two, convention=OSV5M).warnings


def test_warnings_of_the_reports_are_passed_on(two, tmp_path):
    other = report(tmp_path / "c", outcomes(2.0), "third", warnings=["Many photos have a reference within 1 km."])
    assert "third: Many photos have a reference within 1 km." in compare([*two, other], convention=OSV5M).warnings


def test_metrics_of_a_strange_make_are_no_traceback(two):
    values = json.loads((two[1] / "metrics.json").read_text())
    values |= {"name": 5, "k": "many", "made_by": [], "warnings": {"a": 1}, "files": [], "convention": None}
    write_json(two[1] / "metrics.json", values)
    found = compare(two, convention=OSV5M)
    assert found.names == ["first", "b"]
    assert found.evaluations[1].run.k is None


def test_the_folder_of_a_comparison(two, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "cmp"
    tables = write_comparison(compare(two, convention=OSV5M, baselines=["second"]), out)
    there = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert [name for name in there if not name.startswith(".")] == [
        "differences.csv", "maps/cumulative.png", "maps/cumulative.svg", "metrics.json", "report.md",
        "tables.csv", "tables.md", "tables.tex",
    ]  # fmt: skip
    with (out / "differences.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == COLUMNS
    nearer = next(row for row in rows if row[0] == "Global" and row[3] == "nearer_percent")
    assert float(nearer[4]) == pytest.approx(100 * 28 / 38)
    assert nearer[7] == "38"
    values = json.loads((out / "metrics.json").read_text())
    assert (values["kind"], values["against"], values["baselines"]) == ("comparison", "first", ["second"])
    assert [run["k"] for run in values["runs"]] == [10, 1]
    assert values["runs"][1]["sets"]["Global"]["count"] == 38
    assert values["differences"][0]["median_km"]["value"] == pytest.approx(degrees_km(-2))
    text = (out / "report.md").read_text()
    assert "## Global Test Set: Differences from first" in text
    assert text.count("\n## ") == 1 + 1 + len(tables) + 1
    # A comparison is no report that could be compared, and is not overwritten unasked.
    with pytest.raises(InputError, match=re.escape("errors.csv")):
        compare([two[0], out], convention=OSV5M)
    with pytest.raises(OutputError, match="another report"):
        write_comparison(compare(two, convention=OSV5M), out)
    write_comparison(compare(two, convention=OSV5M), out, force=True)


def test_a_winner_is_bold_and_doubted_where_the_difference_may_be_chance(tmp_path):
    pytest.importorskip("matplotlib")
    random = np.random.default_rng(5)
    noise = random.uniform(1.0, 5.0, COUNT)
    folders = [
        report(tmp_path / "good", outcomes(noise), "good"),
        report(tmp_path / "alike", outcomes(random.permutation(noise) + 0.01), "alike"),
        report(tmp_path / "bad", outcomes(noise + 4.0), "bad"),
    ]
    table = write_comparison(compare(folders, convention=OSV5M), tmp_path / "one")[0]
    mean = table.columns.index("Mean Error (km)")
    assert [marks[mean] for marks in table.bold[:3]] == [True, False, False]
    assert table.rows[0][mean].endswith("†")
    assert "Not shown to be better" in table.whole_note
    clear = write_comparison(compare([folders[0], folders[2]], convention=OSV5M), tmp_path / "two")[0]
    assert clear.bold[0][mean]
    assert not clear.rows[0][mean].endswith("†")
    assert "Not shown" not in clear.whole_note


def test_unanswered_photos_have_rows_of_their_own(two, tmp_path):
    pytest.importorskip("matplotlib")
    tables = write_comparison(compare(two, convention=OSV5M), tmp_path / "cmp")
    whole = next(table for table in tables if table.title.startswith("Global Test Set: All"))
    rows = {row[0]: row[1:] for row in whole.rows}
    assert rows["Photos answered"][:2] == ["40", "38"]
    assert rows["Photos failed"][:2] == ["0", "2"]
    mean = float(rows["Mean Error (km), unanswered counted as farthest"][1].split()[0])
    assert mean == pytest.approx((degrees_km(28 + 90) + 2 * math.pi * 6371) / 40, abs=0.01)
    assert float(rows["Mean Error (km), unanswered counted as farthest"][0].split()[0].rstrip("†")) == pytest.approx(
        degrees_km(3), abs=0.01
    )
    with (tmp_path / "cmp" / "tables.csv").open(newline="") as file:
        lines = {tuple(row[:3]): row[3:] for row in csv.reader(file)}
    value, low, high, count = lines["Global", "second", "mean_km_unanswered_as_farthest"]
    assert float(value) == pytest.approx((degrees_km(28 + 90) + 2 * math.pi * 6371) / 40)
    assert float(low) < float(value) < float(high)
    assert count == "40"
    assert lines["Global", "second", "mean_km"][3] == "38"
    assert lines["Global", "first", "k"][0] == "10"
    assert ("Global", "first", "mean_km_unanswered_as_farthest") not in lines
    europe = next(table for table in tables if table.title.startswith("Europe-Only Test Set: All"))
    assert not any("unanswered" in row[0] for row in europe.rows)


def test_a_difference_has_its_sign():
    assert signed(Interval(-2.0, -3.0, 0.001)) == "−2.00 (−3.00 to 0.00)"
    assert signed(Interval(2.0, math.nan, math.nan)) == "+2.00"
    assert signed(Interval(math.nan, math.nan, math.nan)) == "N/A"


def test_names_that_matplotlib_would_read_as_formulae(two, tmp_path):
    pytest.importorskip("matplotlib")
    names = ["_$a^{b", "中国 \\frac{1}"]
    for folder, name in zip(two, names, strict=True):
        values = json.loads((folder / "metrics.json").read_text())
        write_json(folder / "metrics.json", values | {"name": name})
    write_comparison(compare(two, convention=OSV5M), tmp_path / "cmp")
    assert (tmp_path / "cmp" / "maps" / "cumulative.svg").stat().st_size > 1000


def test_photos_are_drawn_with_what_the_reports_draw_them_with(tmp_path):
    off = np.repeat([1.0, 4.0, 2.0, 5.0], COUNT // 4)
    sources = [f"source {row // (COUNT // 4)}" for row in range(COUNT)]
    photos = [outcomes(off, sources=sources), outcomes(off[::-1], sources=sources)]
    by_source = {"intervals": {"grouped_by": "source"}}
    same = [report(tmp_path / f"a{row}", one, **by_source) for row, one in enumerate(photos)]
    found = compare(same, convention=OSV5M)
    assert [one.grouped_by for one in found.evaluations] == ["source", "source"]
    assert found.evaluations[0].metrics["Global"].groups == 4
    mixed = [same[0], report(tmp_path / "b", photos[1], "other", intervals={"grouped_by": "none"})]
    other = compare(mixed, convention=OSV5M)
    assert {one.grouped_by for one in other.evaluations} == {"source"}
    assert any(
        "grouped differently (run by source, other by none); here all are by source" in w for w in other.warnings
    )
    alone = compare([report(tmp_path / f"c{row}", one) for row, one in enumerate(photos)], convention=OSV5M)
    first, second = (
        next(one.figures["mean_km"] for one in each.differences if one.set_name == "Global") for each in (found, alone)
    )
    # Photos of one source are off by the same: four sources say much less than all the photos by themselves.
    assert first.value == second.value
    assert first.high - first.low > 2 * (second.high - second.low)
