"""What is run, by what was asked for, what is kept, and what an earlier run was made with."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from geoinfer.backends.cpu_settings import CpuPlan, CpuSettings
from geoinfer.bundle import SHIPPED
from geoinfer.errors import InputError, ModelError
from geoinfer.self_tuning import cache, plan
from geoinfer.self_tuning import tune as tuning
from geoinfer.self_tuning.cache import CacheKey, Int8Kept, Kept
from geoinfer.self_tuning.choose import Trial
from geoinfer.self_tuning.plan import MeasuredPlan
from geoinfer.self_tuning.tune import Tuned

if TYPE_CHECKING:
    from pathlib import Path

MODEL, SIBLING = SHIPPED / "model.onnx", SHIPPED / "model.int8.onnx"
FAST, FAST_INT8 = CpuSettings(batch_size=4), CpuSettings(batch_size=2)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def keep(model: Path, kept: Kept) -> None:
    assert cache.store(CacheKey.here(sha(model)), kept) == ""


def int8(why_not: str = "", fingerprint: str = "") -> Int8Kept:
    return Int8Kept(fingerprint or sha(SIBLING), 2.34, why_not)


def never() -> bool:
    raise AssertionError("asked whether it pays to measure")


def tuned(settings: CpuSettings = FAST, why_not: str = "there is no int8 sibling", **named: Any) -> Tuned:
    trials = [Trial(CpuSettings(), rates=(1.0,) * 4, default_rates=(1.0,) * 4, same_bits=True)]
    if settings != CpuSettings():
        trials.append(Trial(settings, rates=(1.5,) * 4, default_rates=(1.0,) * 4, same_bits=True))
    return Tuned(trials, settings, int8_why_not=why_not, seconds=3.21, **named)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`tune` gives `result`, and what it was given is in `calls`."""
    made: dict[str, Any] = {"result": tuned(), "calls": []}

    def tune(model: Path, **named: Any) -> Tuned:
        made["calls"].append((model, named))
        return made["result"]

    monkeypatch.setattr(tuning, "tune", tune)
    return made


def test_without_anything_kept_the_model_runs_by_the_default() -> None:
    for precision in ("auto", "fp32"):
        assert MeasuredPlan(precision)(MODEL) == CpuPlan(MODEL, CpuSettings(), "")


def test_what_is_kept_is_used_and_nobody_asks_whether_to_measure() -> None:
    keep(MODEL, Kept(FAST, 1.2))
    for precision in ("auto", "fp32"):
        assert MeasuredPlan(precision, measure=never)(MODEL) == CpuPlan(MODEL, FAST, "")


def test_int8_is_run_where_it_won(played: dict[str, Any]) -> None:
    keep(MODEL, Kept(FAST, 1.2, int8()))
    expected = CpuPlan(SIBLING, CpuSettings(), "int8 (2.3 times as fast as fp32 here)")
    assert MeasuredPlan("auto", measure=never)(MODEL) == expected
    assert MeasuredPlan("fp32", measure=never)(MODEL) == CpuPlan(MODEL, FAST, "")
    keep(SIBLING, Kept(FAST_INT8, 1.1))
    assert MeasuredPlan("auto", measure=never)(MODEL).settings == FAST_INT8
    assert played["calls"] == []


@pytest.mark.parametrize("eight", [int8("slower"), int8(fingerprint="0" * 64), None], ids=["lost", "another", "none"])
def test_int8_is_not_run_where_it_lost_or_is_another_file(eight: Int8Kept | None) -> None:
    keep(MODEL, Kept(FAST, 1.2, eight))
    assert MeasuredPlan("auto")(MODEL) == CpuPlan(MODEL, FAST, "")


def test_int8_is_not_run_where_the_file_is_gone(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(MODEL, model)
    keep(model, Kept(FAST, 1.2, int8()))
    assert MeasuredPlan("auto")(model) == CpuPlan(model, FAST, "")


def test_int8_as_asked() -> None:
    assert MeasuredPlan("int8")(MODEL) == CpuPlan(SIBLING, CpuSettings(), "int8, as asked")
    keep(MODEL, Kept(FAST, 1.2, int8("slower")))
    keep(SIBLING, Kept(FAST_INT8, 1.1))
    assert MeasuredPlan("int8")(MODEL) == CpuPlan(SIBLING, FAST_INT8, "int8, as asked")


def test_int8_that_is_not_there(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(MODEL, model)
    with pytest.raises(InputError, match="has no int8 sibling"):
        MeasuredPlan("int8")(model)
    assert MeasuredPlan("auto")(model) == CpuPlan(model)


def test_a_sibling_that_is_of_no_use_troubles_nobody_who_did_not_ask(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(MODEL, model)
    (tmp_path / "model.int8.onnx").write_bytes(b"no model")
    keep(model, Kept(FAST, 1.2, int8()))
    assert MeasuredPlan("auto")(model) == CpuPlan(model, FAST, "")
    with pytest.raises(ModelError):
        MeasuredPlan("int8")(model)


@pytest.mark.parametrize(
    ("made_with", "expected"),
    [
        (sha(MODEL), CpuPlan(MODEL, FAST, "")),
        (sha(SIBLING), CpuPlan(SIBLING, CpuSettings(), "int8, as this run was begun")),
        ("0" * 64, CpuPlan(MODEL, FAST, "")),
    ],
    ids=["fp32", "int8", "another"],
)
@pytest.mark.parametrize("won", [True, False])
def test_an_unfinished_run_goes_on_with_its_file(made_with: str, expected: CpuPlan, won: bool) -> None:
    keep(MODEL, Kept(FAST, 1.2, int8("" if won else "slower")))
    assert MeasuredPlan("auto", made_with=made_with)(MODEL) == expected


def test_told_to_ignore_it_does(played: dict[str, Any]) -> None:
    keep(MODEL, Kept(FAST, 1.2, int8()))
    assert MeasuredPlan("auto", measure=never, ignore_kept=True)(MODEL) == CpuPlan(MODEL)
    begun = MeasuredPlan("auto", ignore_kept=True, made_with=sha(SIBLING))(MODEL)
    assert begun == CpuPlan(SIBLING, CpuSettings(), "int8, as this run was begun")
    assert played["calls"] == []


def test_a_long_run_measures_once_and_says_so(played: dict[str, Any]) -> None:
    said: list[str] = []
    made = MeasuredPlan("auto", measure=lambda: True, say=said.append)
    assert made(MODEL) == CpuPlan(MODEL, FAST, "")
    assert said == [
        "Measuring how this model runs fastest here (once)…",
        "  batches of 4: 1.50 times as fast as the default; measured in 3.2 s",
    ]
    assert [(model, named["int8"]) for model, named in played["calls"]] == [(MODEL, SIBLING)]
    assert made(MODEL) == CpuPlan(MODEL, FAST, "")
    assert len(played["calls"]) == 1
    assert len(said) == 2


def test_a_short_run_does_not(played: dict[str, Any]) -> None:
    said: list[str] = []
    assert MeasuredPlan("auto", measure=lambda: False, say=said.append)(MODEL) == CpuPlan(MODEL)
    assert (played["calls"], said) == ([], [])


def test_what_was_measured_of_int8_is_kept_and_said(played: dict[str, Any]) -> None:
    eight = Trial(CpuSettings(), "int8", (2.0,) * 4, (1.0,) * 4)
    played["result"] = tuned(CpuSettings(), "", int8=eight)
    said: list[str] = []
    found = MeasuredPlan("auto", measure=lambda: True, say=said.append)(MODEL)
    assert found == CpuPlan(SIBLING, CpuSettings(), "int8 (2.0 times as fast as fp32 here)")
    assert said[1:] == ["  int8, 2.0 times as fast as fp32; measured in 3.2 s"]
    cache.forget(CacheKey.here(sha(MODEL)))
    played["result"] = tuned(CpuSettings(), "its pictures turn too far", int8=eight)
    assert MeasuredPlan("auto", measure=lambda: True, say=said.append)(MODEL) == CpuPlan(MODEL)
    assert said[-2:] == [
        "  the default (1 thread a call, one call a core); nothing was surely faster; measured in 3.2 s",
        "  int8 is not used: its pictures turn too far",
    ]


def test_int8_as_asked_is_measured_by_itself(played: dict[str, Any]) -> None:
    found = MeasuredPlan("int8", measure=lambda: True)(MODEL)
    assert found == CpuPlan(SIBLING, FAST, "int8, as asked")
    assert [(model, named["int8"]) for model, named in played["calls"]] == [(SIBLING, None)]


def test_a_damaged_file_is_said_and_measured_anew(played: dict[str, Any]) -> None:
    path = CacheKey.here(sha(MODEL)).path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    said: list[str] = []
    assert MeasuredPlan(say=said.append)(MODEL) == CpuPlan(MODEL)
    assert said == [f"{path}: damaged; it is not used"]
    assert MeasuredPlan(measure=lambda: True)(MODEL) == CpuPlan(MODEL, FAST)
    assert MeasuredPlan(measure=never)(MODEL) == CpuPlan(MODEL, FAST)
    assert len(played["calls"]) == 1


def test_what_cannot_be_kept_is_said_and_used(played: dict[str, Any], own_cache: Path) -> None:
    own_cache.write_text("a file where a folder should be")
    said: list[str] = []
    assert MeasuredPlan(measure=lambda: True, say=said.append)(MODEL) == CpuPlan(MODEL, FAST)
    assert said[-1].endswith("cannot be written: not a directory; the next run measures again")


def test_who_waited_for_another_process_finds_its_choice(
    played: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits for its turn, the other process stores: it does not measure again."""
    import contextlib

    @contextlib.contextmanager
    def waited(key: CacheKey, *, at_most_seconds: float):
        cache.store(key, Kept(FAST_INT8, 1.1))
        yield

    monkeypatch.setattr(plan.cache, "one_at_a_time", waited)
    assert MeasuredPlan(measure=lambda: True)(MODEL) == CpuPlan(MODEL, FAST_INT8)
    assert played["calls"] == []


def test_a_model_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: no such file"):
        MeasuredPlan()(tmp_path / "no.onnx")
