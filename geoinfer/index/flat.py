"""Exact search over all references, by FAISS's blocked inner products over the stored array itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from geoinfer.errors import IndexFolderError, MissingPackageError
from geoinfer.index.base import Neighbors, blocks_of, check_queries, check_vectors, rank, softmax_over_all
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from geoinfer.index.base import Vectors
    from geoinfer.index_kinds import Kind

# FAISS finds a few more than asked, so that those which its float32 sums misorder at the cut, and ties, come out right.
_SPARE: Final = 16
# Copies of one photo differ by rounding in float32 sums, never by more than this.
_TOLERANCE: Final = 1e-5
# FAISS keeps so many rows of products with 65,536 references: 128 MiB.
_QUERIES_AT_ONCE: Final = 512
# Candidates of one query that are ranked together, where very many tie.
_SETTLED_AT: Final = 4096


def import_faiss() -> Any:
    """Imports FAISS and sets it up.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import faiss

        # Its defaults leave BLAS to batches of several hundred queries and multiply in blocks of 1024 references;
        # measured on a million references of 256 dimensions, these were many times faster (docs/architecture.md).
        faiss.cvar.distance_compute_blas_threshold = 20
        faiss.cvar.distance_compute_blas_database_bs = 65536
    except (ImportError, AttributeError, RuntimeError) as error:
        # The second from a package that is half there, the third from faiss-gpu without NVIDIA's libraries.
        raise MissingPackageError(
            f"FAISS cannot be imported: {error}",
            hint="pip install 'geoinfer-toolkit[cpu]' (or [gpu], never both); `geoinfer doctor` tells more",
        ) from error
    return faiss


class FlatIndex:
    """Compares a query with every reference, and ranks the best exactly. See `ReferenceIndex` for the contract.

    The vectors are neither copied nor changed: of a mapped file nothing is in memory but what the system keeps of it.
    Float16 vectors are widened to float32 a block at a time.
    """

    def __init__(self, vectors: Vectors, *, checked: bool = False) -> None:
        """Looks at the vectors, and keeps them.

        Args:
            vectors: (n, d) float32 or float16, unit rows; must not change while the index is used.
            checked: that every value is finite is known, as of a large file that `IndexWriter` wrote; otherwise all
                are looked at.

        Raises:
            ValueError: another shape, no rows, or a value that is not finite.
            MissingPackageError: FAISS is not installed.
        """
        self._faiss = import_faiss()
        self._vectors = check_vectors(vectors, finite=not checked)

    @property
    def kind(self) -> Kind:
        """`flat`, or `flat-fp16` over float16."""
        return "flat-fp16" if self._vectors.dtype == np.float16 else "flat"

    @property
    def vectors(self) -> Vectors:
        """The reference embeddings, (size, dim); they must not be written to."""
        return self._vectors

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self._vectors.shape[1])

    @property
    def size(self) -> int:
        """Number of references."""
        return len(self._vectors)

    def search(self, queries: NDArray[np.float32], k: int, *, threads: int = 0) -> Neighbors:
        """See `ReferenceIndex.search`."""
        check_queries(queries, self.dim, k)
        k = min(k, self.size)
        # OpenMP keeps this setting per calling thread, so it is made in every call and disturbs nobody else.
        self._faiss.omp_set_num_threads(threads or available_cores())
        ids = np.empty((len(queries), k), np.int64)
        similarities = np.empty((len(queries), k), np.float32)
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            some = slice(start, start + _QUERIES_AT_ONCE)
            found = self._search(np.ascontiguousarray(queries[some]), k)
            ids[some], similarities[some] = found.ids, found.similarities
        return Neighbors(ids, similarities)

    def probabilities(self, queries: NDArray[np.float32], ids: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
        """See `ReferenceIndex.probabilities`."""
        check_queries(queries, self.dim, 1)
        if len(queries) != len(ids):
            raise ValueError(f"{len(queries)} queries and references of {len(ids)}")
        return softmax_over_all(queries, self._vectors, ids, scale)

    def _search(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        found = min(k + _SPARE, self.size)
        similarities, candidates = self._nearest(queries, found)
        if not np.isfinite(similarities).all() or (candidates < 0).any():
            raise IndexFolderError(
                "an embedding in the index has a value that is not finite; its file is damaged",
                hint="`geoinfer index info INDEX --verify` names the file; copy or build the index again",
            )
        neighbors = rank(queries, self._vectors, candidates, k)
        if found < self.size:
            tied = np.flatnonzero(similarities[:, k - 1] - similarities[:, -1] <= _TOLERANCE)
            if len(tied):
                again = self._all_ties(queries[tied], similarities[tied, k - 1] - _TOLERANCE, k)
                neighbors.ids[tied], neighbors.similarities[tied] = again.ids, again.similarities
        return neighbors

    def _nearest(self, queries: NDArray[np.float32], found: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Similarities and rows of the `found` nearest, both (q, found), in float32 sums, descending."""
        metric = self._faiss.METRIC_INNER_PRODUCT
        if self._vectors.dtype == np.float32:
            similarities, ids = self._faiss.knn(queries, self._vectors, found, metric=metric)
            return similarities, ids
        best_sims = np.full((len(queries), found), -np.inf, np.float32)
        best_ids = np.full((len(queries), found), -1, np.int64)
        start = 0
        for block in self._widened():
            sims, ids = self._faiss.knn(queries, block, min(found, len(block)), metric=metric)
            ids[ids >= 0] += start
            sims, ids = np.concatenate([best_sims, sims], axis=1), np.concatenate([best_ids, ids], axis=1)
            order = np.argsort(-sims, axis=1, kind="stable")[:, :found]
            best_sims, best_ids = np.take_along_axis(sims, order, axis=1), np.take_along_axis(ids, order, axis=1)
            start += len(block)
        return best_sims, best_ids

    def _all_ties(self, queries: NDArray[np.float32], least: NDArray[np.float32], k: int) -> Neighbors:
        """The k best of each query among all references whose similarity is at least `least` (q,).

        For where more references tie with the k-th than FAISS returned: it keeps whichever it met. At least k must
        reach `least`.
        """
        kept: list[list[NDArray[np.int64]]] = [[] for _ in queries]
        waiting = np.zeros(len(queries), np.int64)
        start = 0
        for block in self._widened():
            reaches = queries @ block.T >= least[:, None]
            for row in np.flatnonzero(reaches.any(axis=1)):
                kept[row].append(start + np.flatnonzero(reaches[row]))
                waiting[row] += len(kept[row][-1])
                if waiting[row] > _SETTLED_AT:
                    kept[row] = [self._settled(queries[row], kept[row], k).ids[0]]
                    waiting[row] = 0
            start += len(block)
        settled = [self._settled(query, rows, k) for query, rows in zip(queries, kept, strict=True)]
        return Neighbors(np.concatenate([s.ids for s in settled]), np.concatenate([s.similarities for s in settled]))

    def _widened(self) -> Iterator[NDArray[np.float32]]:
        """The vectors in order, in float32, a block at a time; a block is good until the next one is asked for."""
        if self._vectors.dtype != np.float16:
            yield from cast("Iterator[NDArray[np.float32]]", blocks_of(self._vectors))
            return
        # Several times as fast as NumPy's conversion, and by all threads.
        codec = self._faiss.IndexScalarQuantizer(self.dim, self._faiss.ScalarQuantizer.QT_fp16)
        room: NDArray[np.float32] | None = None
        for block in blocks_of(self._vectors):
            room = np.empty(block.shape, np.float32) if room is None else room[: len(block)]
            codec.sa_decode(block.view(np.uint8), room)
            yield room

    def _settled(self, query: NDArray[np.float32], rows: list[NDArray[np.int64]], k: int) -> Neighbors:
        return rank(query[None], self._vectors, np.concatenate(rows)[None], k)
