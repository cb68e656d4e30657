"""Batches of pixels, decoded ahead of the model by a pool of threads.

The decoders of the runtime let go of Python's lock while they work, so threads decode in parallel and nothing has to
travel between processes. A photo that cannot be read leaves its row empty and is reported:
batches keep their size, which GPUs that gather one another's embeddings rely on, and the losses leave the row out.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import torch

from geoinfer.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.images import Preprocessing
    from trainer.data.examples import Examples

# Tasks of several photos spare the pool's bookkeeping, and each thread has several, as photos take unequal time.
_PHOTOS_PER_TASK: Final = 16
_BATCHES_AHEAD: Final = 2
_MIN_PHOTOS_AHEAD: Final = 64


@dataclass(frozen=True, slots=True)
class BadPhoto:
    """A photo that could not be read or decoded.

    Attributes:
        id: as the labels name it.
        code: see docs/error-codes.md.
        message: what is wrong.
    """

    id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class PixelBatch:
    """One batch.

    Attributes:
        rows: (n,) int64 rows of the examples; -1 for a row that only fills up.
        pixels: (n, size, size, 3) uint8 on the CPU, in pinned memory where that was asked for; zeros where not valid.
        valid: (n,) bool.
        bad: the photos of the rows that are not valid.
        waited_seconds: how long the consumer was kept from its own work.
    """

    rows: NDArray[np.int64]
    pixels: torch.Tensor
    valid: torch.Tensor
    bad: tuple[BadPhoto, ...]
    waited_seconds: float


class BatchLoader:
    """Reads and decodes batches ahead; a context manager, whose threads end with it."""

    def __init__(self, examples: Examples, preprocessing: Preprocessing, *, workers: int, pinned: bool = False) -> None:
        self._examples = examples
        self._preprocessing = preprocessing
        self._pinned = pinned
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, rows: Iterable[NDArray[np.int64]]) -> Iterator[PixelBatch]:
        """Yields a batch for each array of rows, in order. Several can be under way; each has its own look-ahead."""
        pending: deque[_Pending] = deque()
        source = iter(rows)
        began = time.perf_counter()
        try:
            while True:
                self._look_ahead(source, pending)
                if not pending:
                    return
                pixels, valid, bad = pending[0].finish()
                done = pending.popleft()
                self._look_ahead(source, pending)
                # All of what the consumer waits for, beginning the next batches included.
                yield PixelBatch(done.rows, pixels, valid, bad, time.perf_counter() - began)
                began = time.perf_counter()
        finally:
            for left in pending:
                left.cancel()

    def _look_ahead(self, source: Iterator[NDArray[np.int64]], pending: deque[_Pending]) -> None:
        while len(pending) < _BATCHES_AHEAD or sum(len(p.rows) for p in pending) < _MIN_PHOTOS_AHEAD:
            wanted = next(source, None)
            if wanted is None:
                return
            pending.append(self._start(wanted))

    def _start(self, rows: NDArray[np.int64]) -> _Pending:
        size = self._preprocessing.size
        pixels = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=self._pinned)
        valid = torch.zeros(len(rows), dtype=torch.bool)
        step = max(1, min(_PHOTOS_PER_TASK, len(rows) // (4 * self._workers)))
        tasks = [range(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]
        futures = [self._pool.submit(self._fill, rows, places, pixels.numpy(), valid.numpy()) for places in tasks]
        return _Pending(rows, pixels, valid, futures)

    def _fill(
        self, rows: NDArray[np.int64], places: range, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
    ) -> list[BadPhoto]:
        bad = []
        for place in places:
            row = int(rows[place])
            try:
                if row >= 0:
                    pixels[place] = self._examples.load_pixels(row, self._preprocessing)
                    valid[place] = True
            except ImageError as error:
                bad.append(BadPhoto(self._examples.ids[row], error.code, str(error)))
            if not valid[place]:
                pixels[place] = 0
        return bad


@dataclass(slots=True)
class _Pending:
    rows: NDArray[np.int64]
    pixels: torch.Tensor
    valid: torch.Tensor
    futures: list[Future[list[BadPhoto]]]

    def finish(self) -> tuple[torch.Tensor, torch.Tensor, tuple[BadPhoto, ...]]:
        bad = tuple(photo for future in self.futures for photo in future.result())
        return self.pixels, self.valid, bad

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()
