from __future__ import annotations

import os
import threading
import time

import pytest

from geoinfer.backends.cpu_settings import CpuSettings
from geoinfer.errors import ModelError
from geoinfer.self_tuning.measure import images_per_second
from tests.self_tuning.fakes import Sleeper, pictures


def test_a_rate_is_of_all_threads_and_pictures() -> None:
    embedder = Sleeper(0.01)
    rate = images_per_second(embedder, CpuSettings(batch_size=4), pictures(), cores=3, seconds=0.1)
    # Three threads with four pictures in 10 ms and what waking up takes.
    assert 0.5 * 1200 < rate <= 1200
    assert set(embedder.batches) == {4}
    assert embedder.most_at_once == len(embedder.threads) == 3


@pytest.mark.parametrize(
    ("settings", "calls"),
    [(CpuSettings(threads_per_call=4, calls_at_once=1), 1), (CpuSettings(threads_per_call=2), 2), (CpuSettings(), 4)],
    ids=str,
)
def test_so_many_calls_as_the_settings_say(settings: CpuSettings, calls: int) -> None:
    embedder = Sleeper(0.005)
    images_per_second(embedder, settings, pictures(), cores=4, seconds=0.02)
    assert len(embedder.threads) == calls


def test_a_call_longer_than_the_time_is_counted_whole() -> None:
    embedder = Sleeper(0.05)
    rate = images_per_second(embedder, CpuSettings(), pictures(), cores=1, seconds=0.001)
    assert embedder.batches == [1]
    assert 10 < rate <= 20


def test_nobody_has_the_machine_alone_at_the_end() -> None:
    """One thread's first call takes long; the other goes on calling until it is done, and is not paid for it."""
    slow_one = threading.Event()

    class Uneven(Sleeper):
        def embed(self, pixels):
            if not slow_one.is_set():
                slow_one.set()
                self.slept = True
                time.sleep(0.1)
                return None
            return super().embed(pixels)

    embedder = Uneven(0.01)
    rate = images_per_second(embedder, CpuSettings(), pictures(), cores=2, seconds=0.02)
    assert len(embedder.batches) >= 6
    assert rate <= 10 + 100


def test_threads_are_pinned_and_the_caller_is_not() -> None:
    here = os.sched_getaffinity(0)
    embedder = Sleeper(0.005)
    images_per_second(embedder, CpuSettings(pinned=True), pictures(), cores=len(here), seconds=0.02)
    assert embedder.cores == {frozenset({core}) for core in here}
    assert os.sched_getaffinity(0) == here
    free = Sleeper(0.005)
    images_per_second(free, CpuSettings(), pictures(), cores=len(here), seconds=0.02)
    assert free.cores == {frozenset(here)}


def test_what_goes_wrong_is_raised_and_nobody_waits_for_ever() -> None:
    before = threading.active_count()
    with pytest.raises(ModelError, match="no room"):
        images_per_second(Sleeper(0.001, fault=ModelError("no room")), CpuSettings(), pictures(), cores=4, seconds=5)
    assert threading.active_count() == before
