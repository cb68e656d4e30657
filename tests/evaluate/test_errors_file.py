from __future__ import annotations

import csv
import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geoinfer.errors import InputError
from geoinfer.evaluate.errors_file import COLUMNS, read_errors, write_errors
from geoinfer.evaluate.measure import Evaluation
from geoinfer.evaluate.outcomes import NearestReferences, Outcomes, Run
from geoinfer.metrics import OSV5M

if TYPE_CHECKING:
    from pathlib import Path

ODD = ['comma, "quote"', "line\nend", "tab\t", "", "NA", "ünïcode", "=1+1"]


def made() -> Evaluation:
    count = len(ODD)
    random = np.random.default_rng(0)
    statuses = ["ok", "error", "skipped", "missing", "ok", "ok", "ok"]
    answered = np.array([status == "ok" for status in statuses])
    predicted = np.where(answered[:, None], random.uniform(-80, 80, (count, 2)), np.nan)
    numbers = random.uniform(0, 1, (5, count)) * math.pi
    outcomes = Outcomes(
        ids=[f"photo {name}" for name in ODD],
        paths=[b"plain/a.jpg", b"caf\xe9/b.jpg", b"", "ü.jpg".encode(), b"a,b.jpg", b"c\nd.jpg", b"e.jpg"],
        truth=random.uniform(-80, 80, (count, 2)),
        predicted=predicted,
        statuses=statuses,
        reasons=["", 'truncated, "so it seems"', "camera raw", "nobody\nsaid", "", "", ""],
        scores=numbers[0],
        radii_km=np.where(answered, numbers[1] * 1e3, np.nan),
        countries=ODD,
        regions=ODD[::-1],
        sub_regions=[""] * count,
        cities=ODD,
        sources=["s"] * count,
        sequences=ODD,
        columns={"weather": ODD, "label:odd": ODD[::-1]},
        references=NearestReferences(
            ODD, ["s"] * count, numbers[2], numbers[3], [f"r{i}" for i in range(count)], ["t"] * count, numbers[4],
            ["same file"] + [""] * (count - 1),
        ),
    )  # fmt: skip
    sets = {"Global": np.ones(count, bool), "Europe": np.arange(count) < 2, "weather=": np.zeros(count, bool)}
    distances = np.where(answered, random.uniform(0, 2e4, count), np.nan)
    return Evaluation(Run("a"), OSV5M, outcomes, distances, sets, "", metrics={}, baselines={})


def same(a: object, b: object) -> None:
    for field in dataclasses.fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        elif dataclasses.is_dataclass(one):
            same(one, other)
        else:
            assert one == other, field.name


def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    evaluation = made()
    write_errors(evaluation, tmp_path / "errors.csv")
    outcomes, distances = read_errors(tmp_path / "errors.csv")
    same(outcomes, evaluation.outcomes)
    np.testing.assert_array_equal(distances, evaluation.distances_km)


def test_columns_for_people(tmp_path: Path) -> None:
    write_errors(made(), tmp_path / "errors.csv")
    with (tmp_path / "errors.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == (*COLUMNS, "label:weather", "label:label:odd")
    assert [row["continent"] for row in rows] == ["Europe"] * 2 + [""] * 5
    assert [row["location_type"] for row in rows] == ["estimated", "", "", "", "estimated", "estimated", "estimated"]
    assert {row["same_source"] for row in rows} == {"yes"}
    assert rows[1]["path"] == "caf\\xe9/b.jpg"
    assert rows[1]["latitude"] == rows[1]["distance_km"] == ""


def test_without_references_and_odd_text(tmp_path: Path) -> None:
    evaluation = made()
    evaluation.outcomes = dataclasses.replace(
        evaluation.outcomes, references=None, reasons=["\udce9"] * len(evaluation.outcomes)
    )
    write_errors(evaluation, tmp_path / "errors.csv")
    outcomes, _ = read_errors(tmp_path / "errors.csv")
    assert outcomes.references is None
    assert outcomes.reasons[0] == "\\udce9"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("distance_km", "km", "no column distance_km"),
        (",ok,", ",fine,", "no status 'fine'"),
        (",ok,", ",error,", "an answer and another status"),
        (",ok,", ",ok,91", "out of range"),
        (",ok,", ",ok,x", "could not convert"),
        (",ok,", ",ok,1,", "cells instead of"),
    ],
    ids=["column", "status", "answer", "range", "number", "cells"],
)
def test_a_changed_file_is_refused(tmp_path: Path, old: str, new: str, what: str) -> None:
    path = tmp_path / "errors.csv"
    write_errors(made(), path)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=what):
        read_errors(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_errors(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not as"):
        read_errors(tmp_path / "bytes.csv")
