"""Every stage alone: how many photos a second on all cores, and how long one takes.

Nothing else goes on while a stage is timed; reading, decoding and resizing are told apart as each photo goes through
the three. Each item is timed for itself, and the rate is that of threads that never wait for their next item:
photos x threads / sum of the durations. So the few moments at the end, when some threads have nothing left to do,
count for nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.batch.ledger import RunLedger
from geoinfer.batch.rows import ok_row
from geoinfer.batch.writers import write_error_report, write_rows
from geoinfer.benchmark.result import DECODE, EMBED, EMBED_TOGETHER, READ, RESIZE
from geoinfer.errors import ImageError, InputError
from geoinfer.images import decode_image, raw_problem, read_image_file, resize_decoded
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.geolocator import Geolocator

SHORTEST_SECONDS: Final = 0.3
"""A stage is repeated until it took at least this long."""
LONGEST_SECONDS: Final = 20.0
"""After this no further item is begun, so that a slow model does not take hours; every thread does one at least."""

_MOST_PICTURES: Final = 512
_ROWS_WRITTEN: Final = 1000


@dataclass(slots=True)
class Timings:
    """One stage in one round.

    Attributes:
        seconds: of each item.
        photos: in all items together.
        threads: how many did them side by side.
        share: of the inputs, those that come to this stage: a photo that cannot be decoded is never embedded.
        batch: photos in an item.
        device: `cpu`, or the GPU that does it.
    """

    seconds: list[float] = field(default_factory=list)
    photos: int = 0
    threads: int = 1
    share: float = 1.0
    batch: int = 1
    device: str = "cpu"

    @property
    def rate(self) -> float:
        """Photos a second on all cores."""
        return self.photos * self.threads / max(sum(self.seconds), 1e-9)


def bound(stages: Mapping[str, Timings]) -> float:
    """Photos a second if nothing ever waited for anything: every device busy all the time with its own stages.

    Of the two ways to embed, the faster counts.

    Args:
        stages: by name, of one round.

    Returns:
        The smallest, over the devices, of 1 / (the sum of share / rate over its stages).
    """
    counted = dict(stages)
    together = counted.pop(EMBED_TOGETHER, None)
    if together is not None and together.rate > counted[EMBED].rate:
        counted[EMBED] = together
    cost: defaultdict[str, float] = defaultdict(float)
    for timings in counted.values():
        cost[timings.device] += timings.share / timings.rate
    return 1 / max(cost.values())


def on_threads(
    work: Callable[[int], None],
    count: int,
    threads: int,
    *,
    shortest: float = SHORTEST_SECONDS,
    longest: float = LONGEST_SECONDS,
    pinned: bool = False,
) -> None:
    """Does items 0 to count - 1 on some threads, and again from the first until it took long enough.

    Args:
        work: does one item; called from all threads at once.
        count: at least 1.
        threads: how many.
        shortest: no thread ends sooner, seconds.
        longest: no item after each thread's first is begun later, seconds.
        pinned: keep each thread on a core of its own, where there are as many.
    """
    numbers = itertools.count()
    cores = sorted(os.sched_getaffinity(0)) if pinned and hasattr(os, "sched_setaffinity") else []
    if threads != len(cores):
        cores = []
    start = threading.Barrier(threads)

    def loop(number: int) -> None:
        if cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {cores[number]})
        start.wait()
        began = time.perf_counter()
        first = True
        while True:
            item = next(numbers)
            elapsed = time.perf_counter() - began
            if (item >= count and elapsed >= shortest) or (elapsed >= longest and not first):
                return
            work(item % count)
            first = False

    with ThreadPoolExecutor(threads, thread_name_prefix="geoinfer-stage") as pool:
        for done in [pool.submit(loop, number) for number in range(threads)]:
            done.result()


class StageBench:
    """Times the stages of some photos and an opened model and index, once each round."""

    def __init__(
        self, geolocator: Geolocator, paths: Sequence[bytes], *, workers: int, batch_size: int, block_size: int
    ) -> None:
        """Nothing is done yet.

        Args:
            geolocator: opened as the runs have it.
            paths: the photos.
            workers: CPU threads of the runs; they bound how many calls embed at once.
            batch_size: photos that the model sees at once.
            block_size: photos that are searched for at once.
        """
        self._geolocator = geolocator
        self._paths = paths
        self._workers = workers
        self._batch_size, self._block_size = batch_size, block_size
        self._pixels: NDArray[np.uint8] = np.empty((0, 0, 0, 3), np.uint8)
        self._share = 1.0

    def prepare(self) -> dict[str, Timings]:
        """Reading, decoding and resizing, by stage; keeps the pixels for what follows.

        Raises:
            InputError: none of the photos can be decoded.
        """
        preprocessing = self._geolocator.embedder.identity.preprocessing
        threads = available_cores()
        seconds: dict[str, list[float]] = {READ: [], DECODE: [], RESIZE: []}
        kept: dict[int, NDArray[np.uint8]] = {}
        inputs: list[int] = []

        def one(number: int) -> None:
            inputs.append(number)
            path = self._paths[number]
            if raw_problem(path) is not None:
                return
            began = time.perf_counter()
            try:
                data, kind = read_image_file(path)
            except ImageError:
                seconds[READ].append(time.perf_counter() - began)
                return
            read = time.perf_counter()
            seconds[READ].append(read - began)
            try:
                decoded = decode_image(data, kind, preprocessing, reuse_memory=True)
            except ImageError:
                seconds[DECODE].append(time.perf_counter() - read)
                return
            ready = time.perf_counter()
            seconds[DECODE].append(ready - read)
            slot = np.empty((preprocessing.size, preprocessing.size, 3), np.uint8)
            began = time.perf_counter()
            resize_decoded(decoded, preprocessing, slot)
            seconds[RESIZE].append(time.perf_counter() - began)
            if len(kept) < _MOST_PICTURES:
                kept[number] = slot

        on_threads(one, len(self._paths), threads)
        if not kept:
            raise InputError(
                f"none of the {len(self._paths)} photos can be decoded: there is nothing to measure",
                hint="`geoinfer predict` says what is wrong with each",
            )
        self._pixels = np.stack([kept[number] for number in sorted(kept)])
        self._share = len(seconds[RESIZE]) / len(inputs)
        return {
            name: Timings(values, len(values), threads, len(values) / len(inputs)) for name, values in seconds.items()
        }

    def embed(self, *, batch_size: int | None = None) -> tuple[Timings, NDArray[np.float32]]:
        """Embedding as a run does it, after `prepare`; with another batch size if one is given.

        Returns:
            The timings, and the embeddings of the pictures that were embedded first, finite rows only.
        """
        embedder = self._geolocator.embedder
        threads = min(self._workers, embedder.calls_at_once) if embedder.device == "cpu" else embedder.calls_at_once
        return self._embed(embedder, batch_size or self._batch_size, threads)

    def embed_together(self, embedder: Embedder) -> Timings:
        """Embedding by one call at a time, for an embedder that was opened with all cores."""
        return self._embed(embedder, self._batch_size, 1)[0]

    def _embed(self, embedder: Embedder, batch: int, threads: int) -> tuple[Timings, NDArray[np.float32]]:
        seconds: list[float] = []
        found: dict[int, NDArray[np.float32]] = {}
        calls = max(-(-len(self._pixels) // batch), threads)

        def one(number: int) -> None:
            # Always a whole batch: a GPU sees only one shape, and the pictures begin again where they end.
            rows = np.arange(number * batch, (number + 1) * batch) % len(self._pixels)
            pixels = self._pixels[rows]
            began = time.perf_counter()
            embeddings = embedder.embed(pixels)
            seconds.append(time.perf_counter() - began)
            found.setdefault(number, embeddings)

        # Memory is set up for a shape, and a GPU's algorithms are chosen for it, when it is first seen.
        embedder.embed(self._pixels[np.arange(batch) % len(self._pixels)])
        on_threads(one, calls, threads, pinned=embedder.pins_threads)
        embeddings = np.concatenate([found[number] for number in sorted(found)])
        timings = Timings(seconds, len(seconds) * batch, threads, self._share, batch, embedder.device)
        return timings, embeddings[np.isfinite(embeddings).all(axis=1)]

    def search(self, embeddings: NDArray[np.float32]) -> Timings:
        """Neighbours, the answer of each photo and its radius, in blocks as a run has them.

        Args:
            embeddings: (n, dim) float32; the queries are these, again and again.
        """
        seconds: list[float] = []
        threads = available_cores()
        block = self._block_size

        def one(number: int) -> None:
            rows = np.arange(number * block, (number + 1) * block) % len(embeddings)
            queries = embeddings[rows]
            began = time.perf_counter()
            self._geolocator.locate_embeddings(queries, threads=1)
            seconds.append(time.perf_counter() - began)

        on_threads(one, max(-(-len(embeddings) // block), threads), threads)
        device = self._geolocator.index_device.name
        return Timings(seconds, len(seconds) * block, threads, self._share, block, device)

    def write(self, folder: Path) -> Timings:
        """What one thread does with the rows of a whole run: the part that is made safe, the table, the report."""
        path = self._paths[0]
        row = ok_row(path, latitude=1.5, longitude=2.5, radius_km=3.5, score=0.5, top1_similarity=0.5)
        rows: list[dict[str, Any]] = [row] * min(max(len(self._paths), 1), _ROWS_WRITTEN)
        output = folder / "stage.csv"
        began = time.perf_counter()
        with RunLedger(output, {}) as ledger:
            ledger.open(restart=True)
            ledger.commit(rows, "")
            write_rows(output, ledger.rows())
            write_error_report(folder / "stage.errors.csv", ledger.rows())
            ledger.finish({})
        return Timings([time.perf_counter() - began], len(rows), batch=len(rows))
