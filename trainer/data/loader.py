"""Batches of pixels, decoded ahead of the model by a pool of threads.

The decoders of the runtime let go of Python's lock while they work, so threads decode in parallel straight into the
batch's own memory, with no copy between processes. A photo that cannot be read leaves its row empty and is reported:
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

# A task of several photos spares the pool's bookkeeping; few enough that a batch spreads over all threads.
_PHOTOS_PER_TASK: Final = 4
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
        waited_seconds: how long the consumer waited for it.
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
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, rows: Iterable[NDArray[np.int64]]) -> Iterator[PixelBatch]:
        """Yields a batch for each array of rows, in order. Several can be under way; each has its own look-ahead."""
        pending: deque[_Pending] = deque()
        source = iter(rows)
        try:
            while True:
                while len(pending) < _BATCHES_AHEAD or sum(len(p.rows) for p in pending) < _MIN_PHOTOS_AHEAD:
                    wanted = next(source, None)
                    if wanted is None:
                        break
                    pending.append(self._start(wanted))
                if not pending:
                    return
                yield pending.popleft().finish()
        finally:
            for left in pending:
                left.cancel()

    def _start(self, rows: NDArray[np.int64]) -> _Pending:
        size = self._preprocessing.size
        pixels = torch.zeros((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=self._pinned)
        valid = torch.zeros(len(rows), dtype=torch.bool)
        futures = [
            self._pool.submit(self._fill, rows, start, pixels, valid) for start in range(0, len(rows), _PHOTOS_PER_TASK)
        ]
        return _Pending(rows, pixels, valid, futures)

    def _fill(self, rows: NDArray[np.int64], start: int, pixels: torch.Tensor, valid: torch.Tensor) -> list[BadPhoto]:
        bad = []
        into = pixels.numpy()
        for place in range(start, min(start + _PHOTOS_PER_TASK, len(rows))):
            row = int(rows[place])
            if row < 0:
                continue
            try:
                into[place] = self._examples.load_pixels(row, self._preprocessing)
                valid[place] = True
            except ImageError as error:
                bad.append(BadPhoto(self._examples.ids[row], error.code, str(error)))
        return bad


@dataclass(slots=True)
class _Pending:
    rows: NDArray[np.int64]
    pixels: torch.Tensor
    valid: torch.Tensor
    futures: list[Future[list[BadPhoto]]]

    def finish(self) -> PixelBatch:
        began = time.perf_counter()
        bad = tuple(photo for future in self.futures for photo in future.result())
        return PixelBatch(self.rows, self.pixels, self.valid, bad, time.perf_counter() - began)

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()
