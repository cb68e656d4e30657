"""The bounded pipeline: discover -> read and decode -> embed -> finish, overlapping, results in input order.

One pool of threads does all the work, and a thread that looks for something to do takes the task that is furthest
along: finishing a block before embedding a batch before preparing one more photo. So no core waits while there is work
of any kind (on a CPU every thread may embed, each with a single-threaded call, so none waits for the slowest part of a
layer), and nothing piles up, because fresh photos are only begun when there is room for them.

What is computed together does not depend on timing. Inputs are cut, in their order, into batches of `batch_size` (what
the model sees at once) and blocks of `block_batches` batches (what is finished and delivered at once). Nothing takes
the place of a photo that fails. So the same inputs give the same bytes, in one go or resumed
at the end of any block.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Self, TypeAlias, TypeVar

import numpy as np

from geoinfer.backends import NOT_FINITE
from geoinfer.errors import ImageError
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.batch.monitor import PipelineMonitor, Stage
    from geoinfer.images import Source

_LONGEST_TASK_SECONDS: Final = 60.0

Detail = TypeVar("Detail")
Answer = TypeVar("Answer")

_NOT_FINITE = ImageError("embed", "not_finite", NOT_FINITE)


@dataclass(frozen=True, slots=True)
class Deferred:
    """What `prepare` returns for a photo that is better decoded together with the others of its batch, on a device.

    Attributes:
        data: the photo's file.
        kind: its format, as `geoinfer.images.read.sniff` names it.
    """

    data: bytes
    kind: str


Decode: TypeAlias = "Callable[[Sequence[tuple[Source, Deferred, NDArray[np.uint8]]]], Sequence[ImageError | None]]"
"""Fills the (size, size, 3) uint8 pixels of each photo of a batch, or says why it could not, in their order."""


@dataclass(slots=True)
class StageTimes:
    """Seconds that threads spent in each stage, added up over threads, and what they worked on."""

    prepare_seconds: float = 0.0
    decode_on_device_seconds: float = 0.0
    embed_seconds: float = 0.0
    finish_seconds: float = 0.0
    prepared: int = 0
    embedded: int = 0


@dataclass(slots=True)
class _Batch(Generic[Detail]):
    """Up to `batch_size` consecutive inputs on their way from files to embeddings."""

    sources: list[Source]
    failures: dict[int, ImageError] = field(default_factory=dict)
    details: dict[int, Detail] = field(default_factory=dict)
    deferred: dict[int, Deferred] = field(default_factory=dict)
    pixels: NDArray[np.uint8] | None = None
    embeddings: NDArray[np.float32] | None = None
    unprepared: int = 0
    next_slot: int = 0


@dataclass(slots=True)
class Block(Generic[Detail, Answer]):
    """Consecutive inputs that are delivered together.

    Attributes:
        first: position of the first input in the run, counted from 0.
        sources: the inputs.
        failures: offset in the block to what went wrong; every offset is either here or among `located`.
        located: offsets in the block whose embeddings exist, ascending.
        embeddings: (len(located), dim) float32.
        details: what `prepare` returned, by offset.
        answer: what `finish` made of the block.
    """

    first: int
    sources: list[Source]
    failures: dict[int, ImageError] = field(default_factory=dict)
    located: list[int] = field(default_factory=list)
    embeddings: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    details: dict[int, Detail] = field(default_factory=dict)
    answer: Answer | None = None


@dataclass(slots=True)
class _OpenBlock(Generic[Detail]):
    number: int
    first: int
    batches: list[_Batch[Detail]]
    unembedded: int


class Pipeline(Generic[Detail, Answer]):
    """Runs photos through `prepare`, an embedder and `finish`; iterate over it for the blocks, in input order.

    A context manager: leaving it stops the threads, whatever state they are in.
    """

    def __init__(
        self,
        sources: Iterator[Source],
        embedder: Embedder,
        prepare: Callable[[Source, NDArray[np.uint8]], Detail | Deferred],
        finish: Callable[[Block[Detail, Answer]], Answer],
        *,
        batch_size: int,
        workers: int,
        block_batches: int = 1,
        first: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        decode_deferred: Decode | None = None,
        monitor: PipelineMonitor | None = None,
    ) -> None:
        """Nothing starts before the first iteration.

        Args:
            sources: the inputs; advanced by one thread only, no further than there is room.
            embedder: what embeds; called from as many threads at once as it gains by.
            prepare: fills one photo's pixels, (size, size, 3) uint8, and returns whatever `finish` needs to know of
                it; raises ImageError for a photo that cannot be used. Called from many threads. With
                `decode_deferred` it may leave the pixels to that and return a `Deferred`.
            finish: makes the answer of a block. Called from many threads.
            batch_size: photos that the model sees at once.
            workers: CPU threads.
            block_batches: batches that are finished together.
            first: position of the first input in the run.
            on_progress: told (inputs done, of which failed) after each batch; called from many threads.
            decode_deferred: decodes what `prepare` deferred, all of a batch in one call, one batch at a time.
            monitor: is told what each thread does.
        """
        on_cpu = embedder.device == "cpu"
        self._sources = sources
        self._embedder = embedder
        self._prepare, self._finish = prepare, finish
        self._batch_size, self._block_batches = batch_size, block_batches
        self._first = first
        self._on_progress = on_progress
        self._decode_deferred = decode_deferred
        self._monitor = monitor
        # A GPU is fed by threads of its own, so that the others go on decoding while it computes.
        self._embed_slots = min(workers, embedder.calls_at_once) if on_cpu else embedder.calls_at_once
        self._thread_count = workers if on_cpu else workers + self._embed_slots
        self._thread_count += decode_deferred is not None
        # With fewer threads than cores, or more, somebody else's threads would have to share a core with one of ours.
        self._cores = _cores() if embedder.pins_threads and self._thread_count == available_cores() else []
        # A GPU's libraries choose their algorithms, or build an engine, anew for each shape: it sees only one.
        self._whole_batches = not on_cpu
        # Batches whose pixels may be in memory: those being embedded, and enough beside them to decode into.
        self._pixel_limit = self._embed_slots + 1 + -(-self._thread_count // batch_size)
        self._pixel_limit += decode_deferred is not None
        self._block_limit = 4 + self._thread_count // block_batches

        self._condition = threading.Condition()
        self._filling: deque[tuple[_OpenBlock[Detail], _Batch[Detail]]] = deque()
        self._to_decode: deque[tuple[_OpenBlock[Detail], _Batch[Detail]]] = deque()
        self._to_embed: deque[tuple[_OpenBlock[Detail], _Batch[Detail]]] = deque()
        self._to_finish: deque[_OpenBlock[Detail]] = deque()
        self._finished: dict[int, Block[Detail, Answer]] = {}
        self._embedding = 0
        self._decoding = 0
        self._idle = 0
        self._live_pixels = 0
        self._open_blocks = 0
        self._total_blocks: int | None = None
        self._spare_pixels: list[NDArray[np.uint8]] = []
        self._fault: BaseException | None = None
        self._stopped = False
        self._nothing = np.empty((0, embedder.dim), np.float32)
        self._threads: list[threading.Thread] = []
        self.times = StageTimes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads and waits until each has ended the task it was at."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        for thread in self._threads:
            # The feeder may be waiting for standard input, which nothing can interrupt; it dies with the process. So
            # does a worker that is stuck in somebody's library: better than not to end.
            thread.join(timeout=1.0 if thread.name == "geoinfer-feeder" else _LONGEST_TASK_SECONDS)

    def __iter__(self) -> Iterator[Block[Detail, Answer]]:
        """Yields the blocks in input order.

        Raises:
            Exception: whatever `sources`, the embedder, or `prepare` (other than ImageError) and `finish` raised.
        """
        self._start()
        number = 0
        while True:
            with self._condition:
                while number not in self._finished and self._fault is None and number != self._total_blocks:
                    self._condition.wait()
                if self._fault is not None:
                    raise self._fault
                if number == self._total_blocks:
                    return
                block = self._finished.pop(number)
            yield block
            with self._condition:
                self._open_blocks -= 1
                self._condition.notify_all()
            number += 1

    def _start(self) -> None:
        names = ["geoinfer-feeder"] + [f"geoinfer-worker-{i}" for i in range(self._thread_count)]
        targets = [self._feed] + [self._work] * self._thread_count
        self._threads = [
            threading.Thread(target=self._guard, args=(target,), name=name, daemon=True)
            for name, target in zip(names, targets, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - carried to the thread that iterates, which raises it
            with self._condition:
                self._fault = self._fault or error
                self._stopped = True
                self._condition.notify_all()

    def _feed(self) -> None:
        """Cuts the inputs into batches and blocks, and waits whenever enough of them are open."""
        number, position = 0, self._first
        block: _OpenBlock[Detail] | None = None
        sources: list[Source] = []
        for source in self._sources:
            sources.append(source)
            if len(sources) < self._batch_size:
                continue
            if block is None:
                block = _OpenBlock(number, position, [], self._block_batches)
                number += 1
            if not self._admit(block, sources):
                return
            position += len(sources)
            sources = []
            if len(block.batches) == self._block_batches:
                block = None
        if sources:
            if block is None:
                block = _OpenBlock(number, position, [], self._block_batches)
                number += 1
            if not self._admit(block, sources):
                return
        with self._condition:
            if block is not None:
                # The last block has fewer batches than it was opened for.
                block.unembedded -= self._block_batches - len(block.batches)
                if block.unembedded == 0:
                    self._to_finish.append(block)
            self._total_blocks = number
            self._condition.notify_all()

    def _admit(self, block: _OpenBlock[Detail], sources: list[Source]) -> bool:
        """Hands a batch to the workers when there is room; False when the pipeline was stopped meanwhile."""
        batch: _Batch[Detail] = _Batch(sources, unprepared=len(sources))
        size = self._embedder.identity.preprocessing.size
        with self._condition:
            is_new = not block.batches
            while not self._stopped and (
                self._live_pixels >= self._pixel_limit or (is_new and self._open_blocks >= self._block_limit)
            ):
                self._condition.wait()
            if self._stopped:
                return False
            self._open_blocks += is_new
            self._live_pixels += 1
            batch.pixels = (
                self._spare_pixels.pop()
                if self._spare_pixels
                else np.empty((self._batch_size, size, size, 3), np.uint8)
            )
            block.batches.append(batch)
            self._filling.append((block, batch))
            self._condition.notify_all()
        return True

    def _work(self) -> None:
        if self._cores:
            self._pin()
        while True:
            with self._condition:
                self._idle += 1
                while not (
                    self._stopped or self._to_finish or self._can_embed() or self._can_decode() or self._filling
                ):
                    self._condition.wait()
                self._idle -= 1
                if self._stopped:
                    return
                if self._monitor is not None:
                    self._monitor.queues(self._queues())
                task = self._take()
            task()

    def _pin(self) -> None:
        """Keeps this thread on a core of its own; where the system does not let it, it goes without."""
        with self._condition:
            core = self._cores.pop()
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})

    def _queues(self) -> dict[str, int]:
        return {
            "filling": sum(len(batch.sources) - batch.next_slot for _, batch in self._filling),
            "to decode on device": len(self._to_decode),
            "to embed": len(self._to_embed),
            "to finish": len(self._to_finish),
            "finished": len(self._finished),
            "idle threads": self._idle,
        }

    def _ended(self, stage: Stage, started: float, photos: int) -> float:
        """Tells the monitor, and returns the seconds that a task took."""
        ended = time.perf_counter()
        if self._monitor is not None:
            self._monitor.task(stage, started, ended, photos)
        return ended - started

    def _can_embed(self) -> bool:
        return bool(self._to_embed) and self._embedding < self._embed_slots

    def _can_decode(self) -> bool:
        return bool(self._to_decode) and self._decoding < 1

    def _take(self) -> Callable[[], None]:
        """The task that is furthest along; called with the lock held, when there is one."""
        if self._to_finish:
            block = self._to_finish.popleft()
            return lambda: self._finish_block(block)
        if self._can_embed():
            of_block, batch = self._to_embed.popleft()
            self._embedding += 1
            return lambda: self._embed_batch(of_block, batch)
        if self._can_decode():
            of_block, batch = self._to_decode.popleft()
            self._decoding += 1
            return lambda: self._decode_batch(of_block, batch)
        of_block, batch = self._filling[0]
        slot = batch.next_slot
        batch.next_slot += 1
        if batch.next_slot == len(batch.sources):
            self._filling.popleft()
        return lambda: self._prepare_photo(of_block, batch, slot)

    def _prepare_photo(self, block: _OpenBlock[Detail], batch: _Batch[Detail], slot: int) -> None:
        started = time.perf_counter()
        source = batch.sources[slot]
        assert batch.pixels is not None
        failure = source.problem
        detail: Detail | Deferred | None = None
        if failure is None:
            try:
                detail = self._prepare(source, batch.pixels[slot])
            except ImageError as error:
                # Its traceback would keep the photo's bytes alive until the block is written.
                failure = error.with_traceback(None)
                failure.__cause__ = failure.__context__ = None
        seconds = self._ended("prepare", started, 1)
        with self._condition:
            self.times.prepare_seconds += seconds
            self.times.prepared += 1
            if failure is not None:
                batch.failures[slot] = failure
            elif isinstance(detail, Deferred):
                batch.deferred[slot] = detail
            elif detail is not None:
                batch.details[slot] = detail
            batch.unprepared -= 1
            if batch.unprepared == 0:
                (self._to_decode if batch.deferred else self._to_embed).append((block, batch))
                self._condition.notify_all()

    def _decode_batch(self, block: _OpenBlock[Detail], batch: _Batch[Detail]) -> None:
        started = time.perf_counter()
        pixels = batch.pixels
        assert pixels is not None
        assert self._decode_deferred is not None
        deferred = batch.deferred
        failures = self._decode_deferred([(batch.sources[slot], deferred[slot], pixels[slot]) for slot in deferred])
        seconds = self._ended("decode on device", started, len(deferred))
        with self._condition:
            for slot, failure in zip(deferred, failures, strict=True):
                if failure is not None:
                    batch.failures[slot] = failure
            # The files' bytes go now, not when the block is delivered.
            batch.deferred = {}
            self.times.decode_on_device_seconds += seconds
            self._decoding -= 1
            self._to_embed.append((block, batch))
            self._condition.notify_all()

    def _embed_batch(self, block: _OpenBlock[Detail], batch: _Batch[Detail]) -> None:
        started = time.perf_counter()
        assert batch.pixels is not None
        usable = [slot for slot in range(len(batch.sources)) if slot not in batch.failures]
        if self._whole_batches:
            # What is in the other rows costs its share of the time, and is thrown away.
            embeddings = self._embedder.embed(batch.pixels)[usable] if usable else self._nothing
        else:
            pixels = batch.pixels[: len(batch.sources)]
            embeddings = self._embedder.embed(pixels if len(usable) == len(pixels) else pixels[usable])
        finite = np.isfinite(embeddings).all(axis=1)
        for row in np.flatnonzero(~finite).tolist():
            batch.failures[usable[row]] = _NOT_FINITE
        batch.embeddings = embeddings[finite]
        seconds = self._ended("embed", started, len(usable))
        with self._condition:
            self.times.embed_seconds += seconds
            self.times.embedded += len(usable)
            self._embedding -= 1
            self._live_pixels -= 1
            self._spare_pixels.append(batch.pixels)
            batch.pixels = None
            block.unembedded -= 1
            if block.unembedded == 0:
                self._to_finish.append(block)
            self._condition.notify_all()
        if self._on_progress is not None:
            failed = sum(failure.status == "error" for failure in batch.failures.values())
            self._on_progress(len(batch.sources), failed)

    def _finish_block(self, open_block: _OpenBlock[Detail]) -> None:
        started = time.perf_counter()
        block: Block[Detail, Answer] = Block(open_block.first, [])
        parts = []
        for batch in open_block.batches:
            offset = len(block.sources)
            block.sources += batch.sources
            block.failures |= {offset + slot: failure for slot, failure in batch.failures.items()}
            block.details |= {offset + slot: detail for slot, detail in batch.details.items()}
            block.located += [offset + slot for slot in range(len(batch.sources)) if slot not in batch.failures]
            assert batch.embeddings is not None
            parts.append(batch.embeddings)
        block.embeddings = np.concatenate(parts)
        assert len(block.embeddings) == len(block.located)
        assert len(block.located) + len(block.failures) == len(block.sources)
        block.answer = self._finish(block)
        seconds = self._ended("finish", started, len(block.sources))
        with self._condition:
            self.times.finish_seconds += seconds
            self._finished[open_block.number] = block
            self._condition.notify_all()


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
