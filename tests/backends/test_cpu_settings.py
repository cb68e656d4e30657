from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from geoinfer.backends import open_embedder
from geoinfer.backends.beside import open_planned
from geoinfer.backends.cpu_settings import CpuPlan, CpuSettings
from geoinfer.bundle import SHIPPED
from geoinfer.engine_check import drawn_pictures
from geoinfer.machine import available_cores

MODEL = SHIPPED / "model.onnx"


@pytest.mark.parametrize(
    "settings",
    [
        CpuSettings(),
        CpuSettings(threads_per_call=4, calls_at_once=1),
        CpuSettings(2, 3, 8, False, False, "extended"),
        CpuSettings(pinned=True),
    ],
    ids=str,
)
def test_what_is_written_is_read_back(settings: CpuSettings) -> None:
    assert CpuSettings.from_dict(settings.as_dict()) == settings


@pytest.mark.parametrize(
    "change",
    [
        {"threads_per_call": 0}, {"threads_per_call": True}, {"threads_per_call": 1.0}, {"calls_at_once": -1},
        {"batch_size": 0}, {"batch_size": 5000}, {"batch_size": "2"}, {"pinned": 1}, {"arena": None}, {"graph": "none"},
        {"graph": None}, {"pinned": True, "threads_per_call": 2}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_refused(change: dict) -> None:
    with pytest.raises((TypeError, ValueError)):
        CpuSettings.from_dict(CpuSettings().as_dict() | change)


@pytest.mark.parametrize("missing", [field.name for field in dataclasses.fields(CpuSettings)])
def test_what_is_not_whole_is_refused(missing: str) -> None:
    values = CpuSettings().as_dict()
    del values[missing]
    with pytest.raises(ValueError, match="expected threads_per_call"):
        CpuSettings.from_dict(values)


def test_calls_fill_the_cores() -> None:
    assert CpuSettings().calls_on(6) == 6
    assert CpuSettings(threads_per_call=4).calls_on(6) == 1
    assert CpuSettings(threads_per_call=8).calls_on(6) == 1
    assert CpuSettings(threads_per_call=2).calls_on(6) == 3
    assert CpuSettings(calls_at_once=2).calls_on(6) == 2


def test_words_for_people() -> None:
    assert str(CpuSettings()) == "1 thread a call, one call a core"
    assert CpuSettings().changes == "default"
    assert CpuSettings(batch_size=4, arena=False).changes == "batches of 4, no arena"
    assert str(CpuSettings(pinned=True)) == "1 thread a call, one call a core, threads pinned"
    assert CpuSettings(threads_per_call=8, calls_at_once=1).changes == "8 threads a call, 1 call at once"
    assert CpuSettings(threads_per_call=2, graph="extended").changes == (
        "2 threads a call, as many calls as fit the cores, graph extended"
    )


def test_an_embedder_tells_what_its_settings_mean() -> None:
    cores = available_cores()
    with open_embedder(MODEL, "cpu", settings=CpuSettings(batch_size=4, pinned=True)) as embedder:
        assert (embedder.best_batch, embedder.calls_at_once, embedder.pins_threads) == (4, cores, True)
    with open_embedder(MODEL, "cpu", settings=CpuSettings(threads_per_call=cores, calls_at_once=1)) as embedder:
        assert (embedder.best_batch, embedder.calls_at_once, embedder.pins_threads) == (1, 1, False)


def test_without_settings_the_cores_are_shared_out() -> None:
    cores = available_cores()
    for threads, calls in ((1, cores), (0, 1), (cores, 1), (2 * cores, 1)):
        with open_embedder(MODEL, "cpu", threads=threads) as embedder:
            assert (embedder.best_batch, embedder.calls_at_once, embedder.pins_threads) == (None, calls, False)


def test_settings_reach_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    seen = []
    real = onnxruntime.InferenceSession

    def session(*arguments, sess_options, **named):
        seen.append(sess_options)
        return real(*arguments, sess_options=sess_options, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    settings = CpuSettings(threads_per_call=2, arena=False, graph="extended")
    open_embedder(MODEL, "cpu", settings=settings).close()
    open_embedder(MODEL, "cpu", settings=CpuSettings()).close()
    level = onnxruntime.GraphOptimizationLevel
    found = [(o.intra_op_num_threads, o.enable_cpu_mem_arena, o.graph_optimization_level) for o in seen]
    assert found == [(2, False, level.ORT_ENABLE_EXTENDED), (1, True, level.ORT_ENABLE_ALL)]


def test_of_the_shipped_model_no_setting_but_the_graph_changes_a_bit() -> None:
    """The documentation says so; where it does not hold, the setting is not chosen."""
    with open_embedder(MODEL, "cpu", settings=CpuSettings()) as embedder:
        pixels = drawn_pictures(embedder.identity.preprocessing.size)[:8]
        expected = np.concatenate([embedder.embed(picture[None]) for picture in pixels])
        for count in range(1, 9):
            assert embedder.embed(pixels[:count]).tobytes() == expected[:count].tobytes(), count
    for settings in (CpuSettings(threads_per_call=2, calls_at_once=1), CpuSettings(arena=False)):
        with open_embedder(MODEL, "cpu", settings=settings) as embedder:
            assert embedder.embed(pixels[:3]).tobytes() == expected[:3].tobytes(), settings
    with open_embedder(MODEL, "cpu", settings=CpuSettings(graph="extended")) as embedder:
        np.testing.assert_allclose(embedder.embed(pixels[:3]), expected[:3], atol=1e-5)


def test_a_planner_is_asked_for_a_model_on_the_cpu_and_heard() -> None:
    asked = []

    def plan(model):
        asked.append(model)
        return CpuPlan(SHIPPED / "model.int8.onnx", CpuSettings(batch_size=2), "int8, because")

    embedder, opened = open_planned(MODEL, "cpu", plan=plan)
    with embedder:
        assert (asked, opened) == ([MODEL], SHIPPED / "model.int8.onnx")
        assert (embedder.best_batch, embedder.device_reason) == (2, "as asked; int8, because")
    embedder, opened = open_planned(MODEL, "cpu", threads=1)
    with embedder:
        assert (opened, embedder.best_batch, embedder.device_reason) == (MODEL, None, "as asked")


def test_a_planner_is_not_asked_where_the_cpu_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import geoinfer.backends.beside as beside
    from geoinfer.backends import onnx_runtime

    def plan(_model):
        raise AssertionError("asked")

    monkeypatch.setattr(onnx_runtime, "_choose", lambda _available: ("cuda", "an NVIDIA GPU was found"))
    monkeypatch.setattr(beside, "open_embedder", lambda path, device, **_: (path, device))
    for device in ("auto", "cuda", "cuda:1", "tensorrt"):
        assert open_planned(MODEL, device, plan=plan) == ((MODEL, device), MODEL)
