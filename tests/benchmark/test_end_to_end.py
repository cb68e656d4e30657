from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.benchmark import end_to_end
from geoinfer.benchmark.end_to_end import OUTPUT, Watch, run_once
from geoinfer.benchmark.photos import look_at
from geoinfer.errors import InterruptedRunError, OutputError

if TYPE_CHECKING:
    from pathlib import Path


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=40),
)
def test_queues_are_weighted_by_time(told: list[tuple[int, int]]) -> None:
    """Against a plain list with the number of each nanosecond."""
    now, each = 100, []
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end_to_end.time, "perf_counter_ns", lambda: now)
        for size, lasts in told:
            watch.queues({"to embed": size})
            each += [size] * lasts
            now += lasts
        watch.queues({"to embed": 0})
    found = watch.queue("to embed")
    assert found.mean == pytest.approx(np.mean(each))
    assert found.max == max(each)
    assert found.empty_share == pytest.approx(each.count(0) / len(each))
    assert found.p50 == sorted(each)[(len(each) - 1) // 2]


def test_one_look_is_all_there_is() -> None:
    watch = Watch()
    watch.queues({"to embed": 3})
    found = watch.all_queues()["to embed"]
    assert (found.mean, found.p50, found.max, found.empty_share) == (3.0, 3.0, 3, 0.0)


def test_threads_and_their_time() -> None:
    watch = Watch()

    def work(seconds: float) -> None:
        watch.task("prepare", 10.0, 10.0 + seconds, 1)
        watch.task("embed", 20.0, 20.5, 4)

    for seconds in (1.0, 2.0):
        # Both at once, so that they are two threads to the system as well.
        thread = threading.Thread(target=work, args=(seconds,))
        thread.start()
        thread.join()
    work(0.0)
    assert watch.thread_seconds == {"prepare": 3.0, "embed": 1.5}
    assert watch.largest == {"prepare": 1, "embed": 4}


def test_idle_time_is_what_is_left_of_all_threads_time() -> None:
    watch = Watch()
    barrier = threading.Barrier(2)

    def work() -> None:
        watch.task("prepare", 0.0, 3.0, 1)
        barrier.wait(10)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.idle_share(4.0) == pytest.approx(1 - 6 / 8)
    assert watch.idle_share(2.0) == 0.0
    assert Watch().idle_share(1.0) == 0.0


def test_a_run_is_counted_and_leaves_photos_alone(opened, photos, broken, tmp_path: Path) -> None:
    chosen = look_at([*photos * 10, broken, b"/no/such/photo.jpg"])
    before = {path: os.stat(path) for path in photos}
    source = chosen.write_list(tmp_path / "photos.list")
    run, watch = run_once(opened, source, tmp_path, None, kind="warm", number=3)
    assert (run.kind, run.round, run.photos, run.ok, run.failed) == ("warm", 3, 42, 40, 2)
    assert run.images_per_second == pytest.approx(42 / run.seconds)
    assert 0 <= run.cpu_share <= 1
    assert run.gpu_use is None
    assert set(run.queues) >= {"filling", "to embed", "to finish", "finished", "idle threads"}
    assert set(run.thread_seconds) == {"prepare", "embed", "finish"}
    assert sum(run.thread_seconds.values()) <= 2 * run.seconds
    assert watch.largest["embed"] == opened.batch_size
    assert watch.largest["finish"] == 32
    assert (tmp_path / OUTPUT).read_text().count("\n") == 43
    assert {path: os.stat(path) for path in photos} == before
    # The same again replaces what is there, instead of finding that all is done.
    again, _ = run_once(opened, source, tmp_path, None, kind="warm", number=4)
    assert (again.photos, again.ok) == (42, 40)


def test_an_interrupt_is_no_run_to_resume(opened, photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise InterruptedRunError("12 inputs are safe", hint="the same command goes on")

    monkeypatch.setattr(end_to_end, "run_predict", interrupted)
    with pytest.raises(InterruptedRunError, match="nothing is kept") as raised:
        run_once(opened, "@x", tmp_path, None, kind="warm", number=0)
    assert raised.value.hint == ""


def test_a_full_disk_names_the_folder(opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise InterruptedRunError("no room") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(end_to_end, "run_predict", full)
    with pytest.raises(OutputError, match="no space left on device") as raised:
        run_once(opened, "@x", tmp_path, None, kind="warm", number=0)
    assert str(tmp_path) in str(raised.value)
    assert "TMPDIR" in raised.value.hint
