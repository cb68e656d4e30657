"""Every stage alone: how many photos a second on all cores, and how long one takes.

Nothing else goes on while a stage is timed; reading, decoding and resizing are told apart as each photo goes through
the three. Each item is timed for itself, and the rate is that of threads that never wait for their next item:
photos x threads / sum of the durations. So the few moments at the end, when some threads have nothing left to do,
count for nothing.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.batch.ledger import RunLedger
from geoinfer.batch.rows import ok_row
from geoinfer.batch.writers import write_error_report, write_rows
from geoinfer.benchmark.preparing import Preparation
from geoinfer.benchmark.timing import Timings, on_threads
from geoinfer.errors import InputError
from geoinfer.images.loader import PhotoLoader
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.benchmark.setup import Opened

_ROWS_WRITTEN: Final = 1000


class StageBench:
    """Times the stages of some photos and an opened model and index, once each round."""

    def __init__(self, opened: Opened, paths: Sequence[bytes], *, block_size: int) -> None:
        """Nothing is done yet.

        Args:
            opened: model, index and settings, as the runs have them.
            paths: the photos.
            block_size: photos that are searched for at once.
        """
        self._opened = opened
        self._geolocator = opened.geolocator
        self._paths = paths
        self._block_size = block_size
        self._pixels: NDArray[np.uint8] = np.empty((0, 0, 0, 3), np.uint8)
        self._share = 1.0

    def prepare(self) -> dict[str, Timings]:
        """Reading, decoding and resizing, by stage; keeps the pixels for what follows.

        Raises:
            InputError: none of the photos can be decoded.
        """
        preprocessing = self._geolocator.embedder.identity.preprocessing
        opener = self._opened.open_decoding
        with contextlib.ExitStack() as held:
            loader = held.enter_context(PhotoLoader(preprocessing, available_cores()))
            decoding = None if opener is None else opener(loader)
            if decoding is not None:
                held.enter_context(decoding)
            prepared = Preparation(self._paths, preprocessing, loader, decoding)
            on_threads(prepared.one, len(self._paths), available_cores())
            timings = prepared.timings(self._opened.batch_size, self._geolocator.embedder.device)
        if not prepared.pixels:
            raise InputError(
                f"none of the {len(self._paths)} photos can be decoded: there is nothing to measure",
                hint="`geoinfer predict` says what is wrong with each",
            )
        self._pixels = np.stack([prepared.pixels[number] for number in sorted(prepared.pixels)])
        self._share = prepared.usable_share
        return timings

    def embed(self, *, batch_size: int | None = None) -> tuple[Timings, NDArray[np.float32]]:
        """Embedding as a run does it, after `prepare`; with another batch size if one is given.

        Returns:
            The timings, and the embeddings of the pictures that were embedded first, finite rows only.
        """
        embedder = self._geolocator.embedder
        threads = (
            min(self._opened.setup.workers, embedder.calls_at_once)
            if embedder.device == "cpu"
            else embedder.calls_at_once
        )
        return self._embed(embedder, batch_size or self._opened.batch_size, threads)

    def embed_together(self, embedder: Embedder) -> Timings:
        """Embedding by one call at a time, for an embedder that was opened with all cores."""
        return self._embed(embedder, self._opened.batch_size, 1)[0]

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
