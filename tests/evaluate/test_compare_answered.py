"""Runs that answered different photos: no row may look better than it is because it answered the easy ones alone."""

from __future__ import annotations

import numpy as np
import pytest

from geoinfer.evaluate.compare import compare
from geoinfer.evaluate.errors_file import write_errors
from geoinfer.evaluate.measure import measure
from geoinfer.evaluate.outcomes import Outcomes, Run
from geoinfer.evaluate.tables.build import make_tables
from geoinfer.integrity import sha256_of, write_json
from geoinfer.metrics import OSV5M

COUNT = 120


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr("geoinfer.evaluate.measure.open_places", lambda: None)
    monkeypatch.setattr("geoinfer.evaluate.measure.best_constant", lambda truth, **_: np.median(truth, axis=0))


def report(folder, off_deg, answered):
    """Photos along a meridian; answers are `off_deg` degrees north, of the first `answered` photos only."""
    truth = np.column_stack([np.linspace(-40.0, 40.0, COUNT), np.full(COUNT, 20.0)])
    predicted = truth + np.column_stack([np.broadcast_to(off_deg, COUNT), np.zeros(COUNT)])
    predicted[answered:] = np.nan
    nothing, empty = np.full(COUNT, np.nan), [""] * COUNT
    outcomes = Outcomes(
        [f"p{row}" for row in range(COUNT)], [b""] * COUNT, truth, predicted,
        ["ok" if row < answered else "missing" for row in range(COUNT)], empty, nothing, nothing,
        ["CD"] * COUNT, empty, empty, empty, empty, empty,
    )  # fmt: skip
    folder.mkdir()
    write_errors(measure(outcomes, Run(folder.name), OSV5M, baselines=False), folder / "errors.csv")
    files = {"errors.csv": {"sha256": sha256_of(folder / "errors.csv")}}
    values = {"name": folder.name, "k": 1, "made_by": {}, "convention": "osv5m", "warnings": []}
    write_json(folder / "metrics.json", {"format": "geoinfer-evaluation", "version": 1, "files": files} | values)
    return folder


def global_errors(folders):
    return make_tables(compare(folders, convention=OSV5M).evaluations)[0]


def test_the_best_of_the_photos_that_it_chose_to_answer_is_doubted(tmp_path):
    off = np.linspace(1.0, 3.0, COUNT)
    table = global_errors([report(tmp_path / "chosen", off, 30), report(tmp_path / "all", off + 0.5, COUNT)])
    mean = table.columns.index("Mean Error (km)")
    assert table.bold[0][mean]
    assert table.rows[0][mean].endswith("†")


def test_a_few_unanswered_photos_do_not_make_a_clear_winner_doubtful(tmp_path):
    off = np.linspace(1.0, 3.0, COUNT)
    table = global_errors([report(tmp_path / "good", off, COUNT - 1), report(tmp_path / "bad", off + 20.0, COUNT)])
    mean = table.columns.index("Mean Error (km)")
    assert table.bold[0][mean]
    assert not table.rows[0][mean].endswith("†")


def test_each_run_has_the_constant_of_the_photos_that_it_answered(tmp_path):
    off = np.linspace(1.0, 3.0, COUNT)
    folders = [
        report(tmp_path / name, off + at, count) for at, (name, count) in enumerate({"a": 30, "b": COUNT}.items())
    ]
    table = global_errors([*folders, report(tmp_path / "c", off + 2.0, COUNT)])
    medians = {row[0]: float(row[2].rstrip("†")) for row in table.rows}
    # Along a meridian, evenly: a quarter of the span of what was answered.
    step_km = np.pi * 6371 / 180 * 80 / (COUNT - 1)
    assert medians["constant (photos of a)"] == pytest.approx(29 / 4 * step_km, rel=0.05)
    assert medians["constant (photos of b)"] == pytest.approx(119 / 4 * step_km, rel=0.05)
    assert "constant (photos of c)" not in medians
