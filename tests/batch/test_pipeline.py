"""The pipeline: identity, order, bounds, faults. The embedder is a fake whose answer tells which picture it saw."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.batch.pipeline import Block, Deferred, Pipeline
from geoinfer.errors import ImageError
from geoinfer.images import Source

if TYPE_CHECKING:
    from collections.abc import Iterator


def sources(count: int, raw: frozenset[int] = frozenset()) -> Iterator[Source]:
    for number in range(count):
        problem = ImageError("discover", "camera_raw", f"raw {number}", status="skipped") if number in raw else None
        yield Source(b"%d" % number, problem)


def colours(block: Block[Any, Any]) -> list[tuple[float, ...]]:
    return [tuple(row) for row in block.embeddings.tolist()]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 70),
    batch_size=st.integers(1, 9),
    block_batches=st.integers(1, 4),
    workers=st.integers(1, 4),
    device=st.sampled_from(["cpu", "cuda:0"]),
    first=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_each_input_keeps_its_own_answer(count, batch_size, block_batches, workers, device, first, seed, kit_module):
    fates = [random.Random(seed + n).choice(["ok", "ok", "ok", "bad", "nan", "raw"]) for n in range(count)]
    raw = frozenset(n for n, fate in enumerate(fates) if fate == "raw")
    embedder = kit_module.FakeEmbedder(device=device)

    def prepare(source, pixels):
        number = int(source.path)
        kit_module.paint(pixels, number, nan=fates[number] == "nan")
        if fates[number] == "bad":  # after it has written into the pixels, as a truncated photo does
            raise ImageError("decode", "broken", f"bad {number}")
        return number

    with Pipeline(
        sources(count, raw),
        embedder,
        prepare,
        lambda block: [int(source.path) for source in block.sources],
        batch_size=batch_size,
        workers=workers,
        block_batches=block_batches,
        first=first,
    ) as pipeline:
        blocks = list(pipeline)

    # In input order, and cut where the positions say and nothing else.
    delivered = [int(source.path) for block in blocks for source in block.sources]
    assert delivered == list(range(count))
    assert [n for block in blocks for n in block.answer] == list(range(count))
    span = batch_size * block_batches
    assert [len(block.sources) for block in blocks] == [min(span, count - at) for at in range(0, count, span)]
    assert [block.first for block in blocks] == [first + at for at in range(0, count, span)]
    for block in blocks:
        assert sorted([*block.failures, *block.located]) == list(range(len(block.sources)))
        numbers = [int(block.sources[offset].path) for offset in block.located]
        assert colours(block) == [kit_module.code_of(n) for n in numbers]
        assert [fates[n] for n in numbers] == ["ok"] * len(numbers)
        for offset, failure in block.failures.items():
            number = int(block.sources[offset].path)
            expected = {
                "bad": ("decode", f"bad {number}", "error"),
                "raw": ("discover", f"raw {number}", "skipped"),
                "nan": (
                    "embed",
                    "the model gave this photo no embedding: its numbers are not finite, or all zero",
                    "error",
                ),
            }[fates[number]]
            assert (failure.stage, str(failure), failure.status) == expected
        assert all(block.details[offset] == int(block.sources[offset].path) for offset in block.located)
    # What the model sees at once is decided by the inputs, not by timing; failures leave holes.
    usable = [
        sum(fates[n] in ("ok", "nan") for n in range(at, min(at + batch_size, count)))
        for at in range(0, count, batch_size)
    ]
    # A GPU sees one shape only.
    expected_batches = usable if device == "cpu" else [batch_size for number in usable if number]
    assert sorted(embedder.batches) == sorted(expected_batches)
    assert embedder.most_concurrent <= (workers if device == "cpu" else 1)


@pytest.fixture(scope="module")
def kit_module() -> Any:
    import sys

    return next(
        module
        for module in list(sys.modules.values())
        if hasattr(module, "FakeEmbedder") and hasattr(module, "fill_input")
    )


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_results_come_in_input_order_however_late_the_first_is(kit, workers, device):
    """The first photo is held back until later ones of the same and of other blocks have been embedded."""
    release = threading.Event()
    embedder = kit.FakeEmbedder(device=device)
    done = []

    def prepare(source, pixels):
        number = int(source.path)
        if number == 0:
            assert release.wait(30)
        kit.paint(pixels, number)

    def hook(pixels):
        with embedder.lock:
            done.append(int(pixels[0, 0, 0, 0]))
            if len(done) == 3:
                release.set()

    embedder.hook = hook
    with Pipeline(sources(12), embedder, prepare, lambda _: None, batch_size=1, workers=workers) as pipeline:
        order = [int(source.path) for block in pipeline for source in block.sources]
    assert 0 not in done[:3], "the first photo was late, or this shows nothing"
    assert order == list(range(12))


@pytest.mark.parametrize("seed", range(6))
def test_random_delays_change_nothing(kit, seed):
    """Yields of the processor at random places; what comes out is what went in."""
    chance = random.Random(seed)
    embedder = kit.FakeEmbedder()
    pause = threading.Event()

    def dawdle(*_):
        pause.wait(chance.random() * 0.003)

    def prepare(source, pixels):
        dawdle()
        kit.paint(pixels, int(source.path))

    embedder.hook = dawdle
    with Pipeline(
        sources(90), embedder, prepare, dawdle, batch_size=2 + seed % 3, workers=4, block_batches=2
    ) as pipeline:
        blocks = list(pipeline)
    assert [code for block in blocks for code in colours(block)] == [kit.code_of(n) for n in range(90)]


@pytest.mark.parametrize(
    ("batch_size", "workers", "block_batches", "device"),
    [(1, 1, 1, "cpu"), (1, 4, 3, "cpu"), (4, 2, 1, "cpu"), (8, 3, 2, "cpu"), (4, 3, 2, "cuda:0"), (1, 6, 32, "cpu")],
)
def test_it_never_runs_far_ahead_of_its_consumer(kit, batch_size, workers, block_batches, device):
    advanced = 0
    settled = threading.Event()

    def counted():
        nonlocal advanced
        for source in sources(10**6):
            advanced += 1
            yield source

    buffers: dict[int, Any] = {}

    def prepare(source, pixels):
        buffers.setdefault(id(pixels.base), pixels.base)  # kept, so that no two have one id
        kit.paint(pixels, int(source.path))

    threads = workers if device == "cpu" else workers + 1
    embedding = workers if device == "cpu" else 1
    span = batch_size * block_batches
    # Documented: 4 blocks and what the threads hold, the batch being cut, and the block in the consumer's hands.
    bound = (4 + threads // block_batches) * span + batch_size
    most = 0
    with Pipeline(
        counted(), kit.FakeEmbedder(device=device), prepare, lambda _: None,
        batch_size=batch_size, workers=workers, block_batches=block_batches,
    ) as pipeline:  # fmt: skip
        for number, _block in enumerate(pipeline):
            # Wait until it has gone as far ahead as it will: nothing moves while we look away.
            before = -1
            while before != advanced:
                before = advanced
                settled.wait(0.03)
            most = max(most, advanced - number * span)
            if number == 4:
                break
    assert most <= bound
    assert most > span, "it never ran ahead at all, so nothing was bounded"
    assert len(buffers) <= embedding + 1 + -(-threads // batch_size)
    assert {buffer.shape for buffer in buffers.values()} == {(batch_size, 2, 2, 3)}


def test_a_cpu_gets_no_more_calls_at_once_than_it_gains_by(kit):
    """Four threads, of which two may embed: those two meet, and a third never comes."""
    embedder = kit.FakeEmbedder()
    embedder.calls_at_once = 2
    together = threading.Barrier(2)
    embedder.hook = lambda _: together.wait(30)

    def prepare(source, pixels):
        kit.paint(pixels, int(source.path))

    with Pipeline(sources(40), embedder, prepare, lambda _: None, batch_size=2, workers=4) as pipeline:
        order = [int(source.path) for block in pipeline for source in block.sources]
    assert order == list(range(40))
    assert embedder.most_concurrent == 2


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 50),
    batch_size=st.integers(1, 7),
    workers=st.integers(1, 4),
    device=st.sampled_from(["cpu", "cuda:0"]),
    seed=st.integers(0, 2**32),
)
def test_what_is_deferred_is_decoded_with_its_batch(count, batch_size, workers, device, seed, kit_module):
    fates = [random.Random(seed + n).choice(["here", "later", "later", "bad here", "bad later"]) for n in range(count)]
    calls: list[list[int]] = []
    at_once, most = [0], [0]
    lock = threading.Lock()

    def prepare(source, pixels):
        number = int(source.path)
        if fates[number].startswith("bad here"):
            raise ImageError("read", "missing", f"here {number}")
        if fates[number].endswith("later"):
            return Deferred(b"file %d" % number, "jpeg")
        kit_module.paint(pixels, number)
        return None

    def decode(items):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        calls.append([int(source.path) for source, _, _ in items])
        failures = []
        for source, deferred, pixels in items:
            number = int(source.path)
            assert deferred == Deferred(b"file %d" % number, "jpeg")
            kit_module.paint(pixels, number)
            bad = fates[number] == "bad later"
            failures.append(ImageError("decode", "corrupt", f"later {number}") if bad else None)
        with lock:
            at_once[0] -= 1
        return failures

    with Pipeline(
        sources(count), kit_module.FakeEmbedder(device=device), prepare, lambda _: None,
        batch_size=batch_size, workers=workers, decode_deferred=decode,
    ) as pipeline:  # fmt: skip
        blocks = list(pipeline)
    expected = [
        [n for n in range(at, min(at + batch_size, count)) if fates[n].endswith("later") and fates[n] != "bad here"]
        for at in range(0, count, batch_size)
    ]
    assert sorted(sorted(call) for call in calls) == sorted(batch for batch in expected if batch)
    assert most[0] <= 1
    found = {}
    for block in blocks:
        for offset, row in zip(block.located, colours(block), strict=True):
            found[int(block.sources[offset].path)] = row
        for offset, failure in block.failures.items():
            found[int(block.sources[offset].path)] = str(failure)
    wanted = {"here": None, "later": None, "bad here": "here {}", "bad later": "later {}"}
    assert found == {
        n: kit_module.code_of(n) if wanted[fate] is None else wanted[fate].format(n) for n, fate in enumerate(fates)
    }


class Watch:
    """A monitor that keeps all it is told."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float, float, int]] = []
        self.sizes: list[dict[str, int]] = []

    def task(self, stage, started, ended, photos):
        self.tasks.append((stage, started, ended, photos))

    def queues(self, sizes):
        self.sizes.append(dict(sizes))


def test_a_monitor_hears_of_every_task_and_of_what_waits(kit):
    watch = Watch()
    embedder = kit.FakeEmbedder(device="cuda:0")
    gate = threading.Event()
    embedder.hook = lambda _: gate.wait(30)

    def prepare(source, pixels):
        kit.paint(pixels, int(source.path))
        if int(source.path) == 5:
            gate.set()  # the first batch waited in the model until the third was being decoded
        return Deferred(b"", "jpeg") if int(source.path) % 4 == 3 else None

    with Pipeline(
        sources(24), embedder, prepare, lambda _: None, batch_size=2, block_batches=3, workers=1,
        decode_deferred=lambda items: [None] * len(items), monitor=watch,
    ) as pipeline:  # fmt: skip
        list(pipeline)
    photos = {}
    for stage, started, ended, count in watch.tasks:
        assert started <= ended
        photos[stage] = photos.get(stage, 0) + count
    assert photos == {"prepare": 24, "decode on device": 6, "embed": 24, "finish": 24}
    assert [stage for stage, *_ in watch.tasks].count("finish") == 4
    assert len(watch.sizes) == len(watch.tasks)
    names = {"filling", "to decode on device", "to embed", "to finish", "finished", "idle threads"}
    assert all(set(sizes) == names and min(sizes.values()) >= 0 for sizes in watch.sizes)
    assert watch.sizes[0] == dict.fromkeys(names, 0) | {
        "filling": watch.sizes[0]["filling"], "idle threads": watch.sizes[0]["idle threads"]
    }  # fmt: skip
    # One thread decodes here, one embeds and one decodes for the device: never more than the other two wait.
    assert max(sizes["idle threads"] for sizes in watch.sizes) <= 2
    assert max(sizes["filling"] for sizes in watch.sizes) >= 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")
@pytest.mark.parametrize("more", [0, 1])
def test_threads_are_pinned_only_one_to_a_core(kit, more):
    cores = os.sched_getaffinity(0)
    workers = len(cores) + more
    if len(cores) == 1:
        pytest.skip("one core")
    where: dict[int, set[int]] = {}
    all_there = threading.Barrier(workers)

    def prepare(source, pixels):
        kit.paint(pixels, int(source.path))
        if threading.get_ident() not in where:
            where[threading.get_ident()] = os.sched_getaffinity(0)
            all_there.wait(30)

    embedder = kit.FakeEmbedder()
    embedder.pins_threads = True
    with Pipeline(sources(8 * workers), embedder, prepare, lambda _: None, batch_size=1, workers=workers) as pipeline:
        list(pipeline)
    if not more:
        assert sorted(tuple(on) for on in where.values()) == [(core,) for core in sorted(cores)]
    else:
        assert all(on == cores for on in where.values())
    assert os.sched_getaffinity(0) == cores


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_gpu_gets_as_many_calls_at_once_as_it_gains_by(kit, calls):
    embedder = kit.FakeEmbedder(device="cuda:0")
    embedder.calls_at_once = calls
    together = threading.Barrier(calls)
    embedder.hook = lambda _: together.wait(30)  # breaks if fewer ever come together

    def prepare(source, pixels):
        kit.paint(pixels, int(source.path))

    with Pipeline(sources(24), embedder, prepare, lambda _: None, batch_size=2, workers=2) as pipeline:
        order = [int(source.path) for block in pipeline for source in block.sources]
    assert order == list(range(24))
    assert embedder.most_concurrent == calls


def test_the_pixels_of_a_slow_model_are_bounded(kit):
    """Embedding is held up: decoding stops at its bound instead of filling the memory."""
    gate, full = threading.Event(), threading.Event()
    embedder = kit.FakeEmbedder(device="cuda:0")
    begun = []

    def prepare(source, pixels):
        kit.paint(pixels, int(source.path))
        begun.append(1)
        if len(begun) == 9:  # 1 being embedded, 1 beside it, ceil(3 threads / 4): three batches of four, no more
            full.set()

    embedder.hook = lambda _: gate.wait(30)
    with Pipeline(
        sources(400), embedder, prepare, lambda _: None, batch_size=4, workers=2, block_batches=50
    ) as pipeline:
        iterator = iter(pipeline)
        results: list[Any] = []
        reader = threading.Thread(target=lambda: results.extend(iterator))
        reader.start()
        assert full.wait(30)
        threading.Event().wait(0.2)  # more would come now, were there no bound
        held = len(begun)
        gate.set()
        reader.join(60)
    assert held <= 12
    assert sum(len(block.sources) for block in results) == 400


class BoomError(Exception):
    pass


@pytest.mark.parametrize("where", ["sources", "prepare", "embed", "finish", "progress"])
@pytest.mark.parametrize("at", [0, 7, 39])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_fault_anywhere_reaches_the_consumer(kit, where, at, workers):
    boom = BoomError(f"{where} {at}")
    calls = {"embed": 0, "finish": 0, "progress": 0}
    lock = threading.Lock()

    def count(name):
        with lock:
            calls[name] += 1
            if where == name and calls[name] > at // (10 if name == "finish" else 2):
                raise boom

    def inputs():
        for source in sources(40):
            if where == "sources" and int(source.path) == at:
                raise boom
            yield source

    def prepare(source, pixels):
        if where == "prepare" and int(source.path) == at:
            raise boom
        kit.paint(pixels, int(source.path))

    embedder = kit.FakeEmbedder()
    embedder.hook = lambda _: count("embed")
    with (
        pytest.raises(BoomError) as caught,
        Pipeline(
            inputs(), embedder, prepare, lambda _: count("finish"), batch_size=2, workers=workers, block_batches=5,
            on_progress=lambda *_: count("progress"),
        ) as pipeline,
    ):  # fmt: skip
        for _ in pipeline:
            pass
    assert caught.value is boom


def test_a_model_that_answers_with_too_few_rows_is_a_fault_and_not_a_shift(kit):
    embedder = kit.FakeEmbedder()
    answer = embedder.embed
    embedder.embed = lambda pixels: answer(pixels)[:-1]
    with (
        pytest.raises(AssertionError),
        Pipeline(
            sources(8), embedder, lambda s, p: kit.paint(p, int(s.path)), lambda _: None, batch_size=4, workers=1
        ) as pipeline,
    ):
        list(pipeline)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("where", ["prepare", "embed", "finish"])
def test_closing_in_the_middle_of_work_does_not_hang(kit, where, device):
    """The consumer leaves while tasks are under way; they end, nothing new begins."""
    entered, leave = threading.Event(), threading.Event()
    begun = []

    def hold(name):
        if where == name and len(begun) > 4:
            entered.set()
            leave.wait(30)

    def prepare(source, pixels):
        begun.append(1)
        hold("prepare")
        kit.paint(pixels, int(source.path))

    embedder = kit.FakeEmbedder(device=device)
    embedder.hook = lambda _: hold("embed")
    pipeline = Pipeline(sources(10**6), embedder, prepare, lambda _: hold("finish"), batch_size=1, workers=3)
    next(iter(pipeline))
    assert entered.wait(30)
    closer = threading.Thread(target=pipeline.close)
    closer.start()
    leave.set()
    closer.join(30)
    assert not closer.is_alive()
    after = len(begun)
    assert [t for t in threading.enumerate() if t.name.startswith("geoinfer-")] == []
    assert len(begun) == after < 100


def test_an_unused_pipeline_starts_nothing(kit):
    touched = []
    pipeline = Pipeline(iter(touched), kit.FakeEmbedder(), None, None, batch_size=1, workers=2)
    with pipeline:
        assert [t for t in threading.enumerate() if t.name.startswith("geoinfer-")] == []


def test_what_is_delivered_holds_on_to_no_pixels(kit):
    """Failures carry no traceback (whose frames hold the photo), blocks no picture."""
    kept: list[weakref.ref[np.ndarray]] = []

    class Photo(np.ndarray):
        pass

    def prepare(source, pixels):
        data = np.zeros(100_000, np.uint8).view(Photo)
        kept.extend((weakref.ref(data), weakref.ref(pixels.base)))
        kit.paint(pixels, int(source.path))
        if int(source.path) % 2:
            try:
                raise ValueError("inner", data)
            except ValueError as error:
                raise ImageError("decode", "broken", "outer") from error

    with Pipeline(sources(20), kit.FakeEmbedder(), prepare, lambda _: None, batch_size=4, workers=2) as pipeline:
        blocks = list(pipeline)
    del pipeline
    gc.collect()
    assert sum(len(block.failures) for block in blocks) == 10
    assert [ref for ref in kept if ref() is not None] == []
    assert all(block.embeddings.base is None or block.embeddings.base.ndim == 2 for block in blocks)


def test_progress_counts_every_input_once_and_skipped_ones_as_no_failure(kit):
    told: list[tuple[int, int]] = []
    lock = threading.Lock()

    def progressed(inputs, failed):
        with lock:
            told.append((inputs, failed))

    def prepare(source, pixels):
        if int(source.path) % 5 == 0:
            raise ImageError("decode", "broken", "bad")
        kit.paint(pixels, int(source.path), nan=int(source.path) == 7)

    with Pipeline(
        sources(33, frozenset({1, 2})), kit.FakeEmbedder(), prepare, lambda _: None, batch_size=4, workers=3,
        on_progress=progressed,
    ) as pipeline:  # fmt: skip
        for _ in pipeline:
            pass
    assert sum(inputs for inputs, _ in told) == 33
    assert sum(failed for _, failed in told) == 7 + 1  # 0, 5, .. 30, and the one that was not finite
    assert pipeline.times.prepared == 33
    assert pipeline.times.embedded == 33 - 7 - 2
