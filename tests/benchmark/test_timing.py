from __future__ import annotations

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.benchmark.result import DECODE, EMBED, EMBED_TOGETHER, READ, SEARCH
from geoinfer.benchmark.timing import Timings, bound, on_threads


def of_rate(rate: float, **named) -> Timings:
    """One thread that did ten photos at a rate."""
    return Timings([1 / rate] * 10, 10, 1, **named)


def test_the_rate_is_of_threads_that_never_wait() -> None:
    # Four photos of 0.5 s each on two threads: four photos in one second.
    assert Timings([0.5] * 4, 4, 2).rate == pytest.approx(4.0)
    # Two batches of eight, 2 s each, one after the other.
    assert Timings([2.0, 2.0], 16, 1, batch=8).rate == pytest.approx(4.0)


def test_the_bound_adds_up_what_each_photo_costs() -> None:
    stages = {READ: of_rate(1000), DECODE: of_rate(100), EMBED: of_rate(50), SEARCH: of_rate(2000)}
    assert bound(stages) == pytest.approx(1 / (0.001 + 0.01 + 0.02 + 0.0005))


def test_a_stage_that_half_the_photos_come_to_costs_half() -> None:
    assert bound({DECODE: of_rate(100), EMBED: of_rate(50, share=0.5)}) == pytest.approx(1 / (0.01 + 0.01))


def test_the_faster_way_to_embed_counts() -> None:
    stages = {DECODE: of_rate(100), EMBED: of_rate(50)}
    assert bound(stages | {EMBED_TOGETHER: of_rate(40)}) == pytest.approx(bound(stages))
    assert bound(stages | {EMBED_TOGETHER: of_rate(100)}) == pytest.approx(50.0)


def test_devices_work_side_by_side() -> None:
    stages = {DECODE: of_rate(100), SEARCH: of_rate(400), EMBED: of_rate(500, device="cuda:0")}
    assert bound(stages) == pytest.approx(80.0)
    stages[EMBED] = of_rate(60, device="cuda:0")
    assert bound(stages) == pytest.approx(60.0)


@given(st.lists(st.floats(0.1, 1e5), min_size=1, max_size=6), st.integers(0, 5))
def test_no_bound_is_above_any_stage(rates: list[float], on_gpu: int) -> None:
    names = [READ, DECODE, EMBED, SEARCH, "resize", "write"]
    stages = {
        name: of_rate(rate, device="cuda:0" if number < on_gpu else "cpu")
        for number, (name, rate) in enumerate(zip(names, rates, strict=False))
    }
    assert bound(stages) <= min(rates) * (1 + 1e-9)
    assert bound(stages) >= min(rates) / len(rates) * (1 - 1e-9)


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (1, 4), (7, 3), (40, 2)])
def test_each_item_is_done_and_evenly_often(count: int, threads: int) -> None:
    done: list[int] = []
    on_threads(done.append, count, threads, shortest=0.0)
    times = [done.count(number) for number in range(count)]
    assert min(times) >= 1
    # Each thread does at least one item, so a few come twice.
    assert len(done) < count + threads


def test_it_goes_on_until_it_took_long_enough() -> None:
    done: list[int] = []

    def one(number: int) -> None:
        done.append(number)
        time.sleep(0.001)

    began = time.perf_counter()
    on_threads(one, 3, 2, shortest=0.1)
    assert time.perf_counter() - began >= 0.1
    assert len(done) > 6


def test_it_ends_when_it_took_too_long_but_each_thread_does_one() -> None:
    done: list[int] = []
    lock = threading.Lock()

    def one(number: int) -> None:
        time.sleep(0.02)
        with lock:
            done.append(number)

    on_threads(one, 1000, 2, shortest=0.0, longest=0.0)
    assert sorted(done) == [0, 1]


def test_a_fault_comes_out() -> None:
    def one(number: int) -> None:
        raise ValueError(f"item {number}")

    with pytest.raises(ValueError, match="item"):
        on_threads(one, 5, 2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_pinned_threads_have_a_core_each_and_nobody_else_is_pinned() -> None:
    cores = os.sched_getaffinity(0)
    seen: set[frozenset[int]] = set()
    on_threads(lambda _: seen.add(frozenset(os.sched_getaffinity(0))), 50, len(cores), shortest=0.0, pinned=True)
    assert seen == {frozenset({core}) for core in cores}
    assert os.sched_getaffinity(0) == cores
    seen.clear()
    on_threads(lambda _: seen.add(frozenset(os.sched_getaffinity(0))), 5, len(cores) + 1, shortest=0.0, pinned=True)
    assert seen == {frozenset(cores)}
