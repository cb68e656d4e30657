"""The exact end of an approximate search: candidates ranked by the stored vectors themselves.

`geoinfer.index.base.rank` is the oracle. This gives the same answer several times faster: similarities of all
candidates in float32, straight from the mapped rows, and then those that may be among the best, in float64. Measured
on a busy core, 100 candidates of 256 dimensions: 264 us a query by `rank`, 60 us here.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import IndexFolderError
from geoinfer.index.base import Neighbors
from geoinfer.index.flat import import_faiss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.index.base import Vectors

# Beyond the k best in float32, so many are summed in float64; all that are closer to the k-th than float32 sums of
# unit vectors err, however many they are.
_SPARE: Final = 6
_TOLERANCE: Final = 1e-5
# Rows widened to float32 together.
_WIDENED_VALUES: Final = 1 << 20
_SUMMED_VALUES: Final = 1 << 21


class Reranker:
    """Ranks candidates by exact inner products, ties by id. Several threads may call it."""

    def __init__(self, vectors: Vectors, *, lean: bool = False) -> None:
        """Keeps the vectors.

        Args:
            vectors: (n, d) contiguous float32 or float16, unit rows.
            lean: read rows of a mapped file by system calls instead, so that the process stays small: for each row
                that is touched, Linux maps up to 2 MiB around it. Costs a microsecond or two a candidate.
        """
        self._faiss = import_faiss()
        self._vectors = vectors
        self._file = MappedFile.of(vectors) if lean else None
        half = vectors.dtype == np.float16
        # FAISS widens ten times faster than NumPy.
        self._half = (
            self._faiss.ScalarQuantizer(vectors.shape[1], self._faiss.ScalarQuantizer.QT_fp16) if half else None
        )

    def best(self, queries: NDArray[np.float32], candidates: NDArray[np.int64], k: int) -> Neighbors:
        """The k best candidates of each query.

        OpenMP's threads are those the caller set.

        Args:
            queries: (q, d) float32, contiguous.
            candidates: (q, c) int64 rows of the vectors, each row of it without repetition, at least k of them; what is
                missing is -1.
            k: how many to keep.

        Raises:
            IndexFolderError: a reference's embedding has a value that is not finite.
        """
        shape = (len(queries), k)
        result = Neighbors(np.empty(shape, np.int64), np.empty(shape, np.float32))
        step = self._queries_at_once(candidates.shape[1])
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            table, local = self._rows(candidates[some])
            _best(self._faiss, queries[some], table, local, candidates[some], k, result, start)
        return result

    def release(self) -> None:
        """Lets go of mapped pages, after somebody else went through the vectors, where that was asked for."""
        if self._file is not None:
            self._file.release()

    def _queries_at_once(self, count: int) -> int:
        values = _SUMMED_VALUES if self._half is None else _WIDENED_VALUES
        return max(1, values // max(1, count * self._vectors.shape[1]))

    def _rows(self, candidates: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """A table in float32, and which of its rows the candidates are; any row for those that are missing."""
        present = np.maximum(candidates, 0)
        if self._half is None and self._file is None:
            table: Any = self._vectors
            return table, present
        rows, local = np.unique(present, return_inverse=True)
        read: Any = self._vectors[rows] if self._file is None else self._file.rows(rows, self._vectors)
        table = read if self._half is None else self._half.decode(read.view(np.uint8))
        return table, local.reshape(candidates.shape).astype(np.int64, copy=False)


def _best(
    faiss: Any,
    queries: NDArray[np.float32],
    table: NDArray[np.float32],
    local: NDArray[np.int64],
    candidates: NDArray[np.int64],
    k: int,
    result: Neighbors,
    start: int,
) -> None:
    """Fills the rows of the result from `start` on."""
    rough = np.empty(local.shape, np.float32)
    local = np.ascontiguousarray(local)
    pointer = faiss.swig_ptr
    faiss.fvec_inner_products_by_idx(
        pointer(rough), pointer(queries), pointer(table), pointer(local), queries.shape[1], *local.shape
    )
    if not np.isfinite(rough).all():
        raise IndexFolderError(
            "an embedding in the index has a value that is not finite; its file is damaged",
            hint="`geoinfer index info INDEX --verify` names the file; copy or build the index again",
        )
    rough[candidates < 0] = -np.inf
    kept = min(k + _SPARE, local.shape[1])
    stop = start + len(queries)
    if kept == local.shape[1]:
        result.ids[start:stop], result.similarities[start:stop] = _exact(queries, table, local, candidates, k)
        return
    # The one after the kept tells whether the cut is clear.
    order = np.argpartition(-rough, (k - 1, kept), axis=1)[:, : kept + 1]
    edges = np.take_along_axis(rough, order[:, [k - 1, kept]], axis=1)
    chosen = order[:, :kept]
    result.ids[start:stop], result.similarities[start:stop] = _exact(
        queries, table, np.take_along_axis(local, chosen, axis=1), np.take_along_axis(candidates, chosen, axis=1), k
    )
    for row in np.flatnonzero(edges[:, 0] - edges[:, 1] <= _TOLERANCE):
        one = slice(row, row + 1)
        ids, similarities = _exact(queries[one], table, local[one], candidates[one], k)
        result.ids[start + row], result.similarities[start + row] = ids[0], similarities[0]


def _exact(
    queries: NDArray[np.float32],
    table: NDArray[np.float32],
    local: NDArray[np.int64],
    candidates: NDArray[np.int64],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sums in float64, rounded once; descending, ties by id, the missing last."""
    wide = queries.astype(np.float64)
    similarities = np.matmul(table[local].astype(np.float64), wide[:, :, None])[:, :, 0].astype(np.float32)
    similarities[candidates < 0] = -np.inf
    order = np.lexsort((candidates, -similarities), axis=1)[:, :k]
    return np.take_along_axis(candidates, order, axis=1), np.take_along_axis(similarities, order, axis=1)


class MappedFile:
    """The file behind a mapped array, for reading rows of it without touching the mapping."""

    def __init__(self, mapped: np.memmap[Any, Any], name: str, first: int) -> None:
        """`first`: where in the file the array begins."""
        self._mapped, self._first = mapped, first
        self._file = open(name, "rb")  # noqa: SIM115 - open as long as this lives
        weakref.finalize(self, self._file.close)

    @classmethod
    def of(cls, array: NDArray[Any]) -> MappedFile | None:
        """Of a contiguous array; None where it is in memory, or the system cannot do this."""
        owner: Any = array
        while isinstance(owner, np.ndarray) and not isinstance(owner, np.memmap):
            owner = owner.base
        # Views of a memmap are of its class, too, and only the first knows its place in the file.
        while isinstance(owner, np.memmap) and isinstance(owner.base, np.memmap):
            owner = owner.base
        if not isinstance(owner, np.memmap) or owner.filename is None or not hasattr(os, "pread"):
            return None
        ahead = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        return cls(owner, owner.filename, owner.offset + ahead)

    def rows(self, rows: NDArray[np.int64], like: NDArray[Any]) -> NDArray[Any]:
        """Some rows, as an array of its own.

        Args:
            rows: (m,) int64.
            like: the array.

        Raises:
            IndexFolderError: the file has become shorter, or cannot be read any more.
        """
        width = like.shape[1] * like.dtype.itemsize
        descriptor = self._file.fileno()
        try:
            parts = [os.pread(descriptor, width, start) for start in (rows * width + self._first).tolist()]
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise IndexFolderError(f"{self._file.name}: cannot be read: {reason}") from error
        content = b"".join(parts)
        if len(content) != len(rows) * width:
            raise IndexFolderError(f"{self._file.name}: was cut short while it was read")
        return np.frombuffer(content, like.dtype).reshape(len(rows), -1)

    def release(self) -> None:
        """Unmaps what was touched; it is mapped again where it is touched again."""
        mapping: Any = self._mapped.base
        if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)
