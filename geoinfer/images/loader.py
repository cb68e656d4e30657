"""Loads the photos of a run, each into its place in a batch, from many threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from geoinfer.errors import ImageError
from geoinfer.images.decode import decode_pixels
from geoinfer.images.isolated import ISOLATED_KINDS, DecodePool
from geoinfer.images.memory_gate import MemoryGate, decode_bytes
from geoinfer.images.read import raw_problem, read_image_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.images.preprocessing import Preprocessing


class PhotoLoader:
    """Reads, decodes and resizes photos for one model; thread safe; a context manager.

    Most formats are decoded in the thread that asks, as their decoders let the others run meanwhile; those that do
    not, or that can crash, in processes of their own. Huge photos wait for each other.
    """

    def __init__(self, preprocessing: Preprocessing, workers: int) -> None:
        """Starts nothing yet.

        Args:
            preprocessing: what the model wants.
            workers: how many threads load photos at once.
        """
        self._preprocessing = preprocessing
        self._gate = MemoryGate()
        self._pool = DecodePool(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what was started; what is loaded meanwhile fails."""
        self._pool.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes that decode now, see `geoinfer.images.isolated`."""
        return self._pool.pids

    def load(self, path: bytes, out: NDArray[np.uint8]) -> None:
        """Loads one photo into `out`, (size, size, 3) uint8.

        Raises:
            ImageError: as `geoinfer.images.load_pixels`, or stage `decode` with code `decoder_died`.
        """
        raw = raw_problem(path)
        if raw is not None:
            raise raw
        self.decode(*read_image_file(path), out)

    def decode(self, data: bytes, kind: str, out: NDArray[np.uint8]) -> None:
        """Decodes one photo's bytes into `out`, (size, size, 3) uint8.

        Args:
            data: the whole file.
            kind: its format, as `geoinfer.images.read.sniff` names it.
            out: where to write.

        Raises:
            ImageError: as `load`.
        """
        self._pool.end_idle()
        try:
            with self._gate.room(decode_bytes(data, kind, self._preprocessing)):
                if kind in ISOLATED_KINDS and self._pool.load(data, kind, self._preprocessing, out):
                    return
                decode_pixels(data, kind, self._preprocessing, out)
        except ImageError as error:
            error.size_bytes = len(data)
            raise
