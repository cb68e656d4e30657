from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.benchmark.result import (
    BatchSize,
    Percentiles,
    Queue,
    Result,
    Roofline,
    Run,
    Stage,
    Yardstick,
    read_result,
    write_result,
)
from geoinfer.errors import InputError, OutputError

if TYPE_CHECKING:
    from pathlib import Path


def a_run(kind: str = "warm", number: int = 0, rate: float = 40.0) -> Run:
    return Run(
        kind, number, 5.0, 200, 198, 2, rate, 0.97, 300_000_000, None, None, None,
        {"to embed": Queue(1.5, 1.0, 3, 0.25)}, {"prepare": 4.0, "embed": 5.5}, 0.02,
    )  # fmt: skip


def a_result() -> Result:
    return Result(
        settings={"engine": "tiny:0", "photos": {"count": 200, "classes": {"JPEG, below 2 MP": 200}}, "plan": None},
        machine={"cpu": "a processor", "cores": 2},
        stages=[Stage("decode", [80.0, 82.0], Percentiles(1.0, 2.0, 3.0, 4.0, 5.0, 400)), ],
        runs=[a_run(), a_run("cold", 0, 30.0), a_run("warm", 1, 44.0)],
        batch_sizes=[BatchSize(8, [50.0, 51.0])],
        bounds=[50.0, 55.0],
        yardsticks=[Yardstick(100.0, 200.0), Yardstick(101.0, 202.0)],
        roofline=Roofline(1e9, 1e6, 1e11, 1e10, 100.0, 0.5),
        notes=["A note."],
        verdict="All is well.",
        measured_at="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


def plain() -> dict[str, Any]:
    return json.loads(json.dumps(a_result().as_dict()))


def test_it_comes_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    write_result(tmp_path / "r.json", a_result())
    assert read_result(tmp_path / "r.json") == a_result()


def test_what_is_left_out_has_its_default() -> None:
    values = plain()
    for name in ("batch_sizes", "roofline", "notes", "verdict"):
        del values["result"][name]
    found = Result.from_dict(values)
    assert (found.batch_sizes, found.roofline, found.notes, found.verdict) == ([], None, [], "")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 2, "format 2; this geoinfer reads format 1"),
        ("geoinfer", "predict", "no result of `geoinfer benchmark`"),
        ("result.stages", {}, "result.stages is {}"),
        ("result.stages.0.rates.0", "fast", "result.stages[0].rates[0] is 'fast'; expected float"),
        ("result.stages.0.rates.0", float("nan"), "rates[0] is nan"),
        ("result.stages.0.rates.0", True, "rates[0] is True"),
        ("result.stages.0.latency.count", 1.5, "latency.count is 1.5; expected int"),
        ("result.runs.0.kind", "tepid", "'tepid', none of cold, warm"),
        ("result.runs.0.queues.to embed.mean", None, "queues['to embed'].mean is None"),
        ("result.machine", [], "result.machine is []"),
        ("result.surprise", 1, "a field 'surprise'"),
        ("result", None, "result is not an object"),
    ],
)
def test_a_damaged_file_is_refused_by_name(path: str, value: object, said: str, tmp_path: Path) -> None:
    values = plain()
    *parts, last = path.split(".")
    at: Any = values
    for part in parts:
        at = at[int(part)] if isinstance(at, list) else at[part]
    if isinstance(at, list):
        at[int(last)] = value
    else:
        at[last] = value
    file = tmp_path / "old.json"
    file.write_text(json.dumps(values))
    with pytest.raises(InputError) as raised:
        read_result(file)
    assert said in str(raised.value)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("needed", ["settings", "machine", "stages", "runs"])
def test_a_missing_part_is_named(needed: str) -> None:
    values = plain()
    del values["result"][needed]
    with pytest.raises(ValueError, match=f"result lacks '{needed}'"):
        Result.from_dict(values)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}'])
def test_what_is_no_result_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json: it is n"):
        read_result(tmp_path / "x.json")


def test_missing_and_unwritable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: no such file"):
        read_result(tmp_path / "none.json")
    with pytest.raises(OutputError, match=r"--json .* cannot be written"):
        write_result(tmp_path / "none" / "r.json", a_result())


def test_a_run_alone() -> None:
    assert Run.from_dict(json.loads(json.dumps(dataclasses.asdict(a_run("cold"))))) == a_run("cold")
    with pytest.raises(ValueError, match="run lacks 'kind'"):
        Run.from_dict({"round": 1})


def test_shares_are_of_the_same_round() -> None:
    assert a_result().shares_of_bound() == [40 / 50, 44 / 55]
    assert [run.images_per_second for run in a_result().runs_of("cold")] == [30.0]
    assert a_result().stage("decode").rates == [80.0, 82.0]
    assert a_result().stage("embed") is None


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=60))
def test_percentiles_leave_nothing_out(seconds: list[float]) -> None:
    found = Percentiles.of(seconds)
    ordered = sorted(value * 1e3 for value in seconds)
    assert found.count == len(seconds)
    assert found.max == pytest.approx(ordered[-1])
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.95, found.p95), (0.99, found.p99)):
        # By hand: linear between the two order statistics around share x (n - 1).
        at = share * (len(ordered) - 1)
        below = int(at)
        above = min(below + 1, len(ordered) - 1)
        assert value == pytest.approx(ordered[below] + (at - below) * (ordered[above] - ordered[below]), rel=1e-9)


def test_one_slow_item_shows() -> None:
    found = Percentiles.of([0.001] * 999 + [7.0])
    assert (found.p50, found.p99) == (1.0, 1.0)
    assert found.max == 7000.0


def test_percentiles_take_arrays() -> None:
    assert Percentiles.of(np.array([0.5])) == Percentiles(500.0, 500.0, 500.0, 500.0, 500.0, 1)
