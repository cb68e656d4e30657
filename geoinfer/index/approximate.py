"""Approximate search: FAISS finds candidates among compressed codes, the stored vectors rank them exactly.

What is found has its true similarity and order; what may be missing is a neighbour that FAISS did not look at. How far
it looks are the run-time parameters:

    sq8     refine              codes of one byte a dimension, all of them looked at
    hnsw    efSearch            a graph over such codes, walked with so many nodes in hand
    ivf     nprobe, refine      lists, the nearest so many of them looked at; codes of half a byte for two dimensions,
                                which the processor compares many at a time
    ivf-pq  nprobe, refine      likewise, codes of about 64 bytes, mapped; the process stays small

`refine` is how many candidates are ranked for each neighbour that is asked for.
"""

from __future__ import annotations

import math
from copy import copy
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import IndexFolderError
from geoinfer.index.base import Neighbors, check_queries, softmax_over_all
from geoinfer.index.flat import FlatIndex, import_faiss
from geoinfer.index.rerank import Reranker
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.index.base import Vectors
    from geoinfer.index_kinds import Kind

DEFAULTS: Final[dict[str, dict[str, float]]] = {
    "sq8": {"refine": 2},
    "hnsw": {"efSearch": 256},
    "ivf": {"nprobe": 64, "refine": 12},
    "ivf-pq": {"nprobe": 64, "refine": 6},
}
"""The kinds, and their run-time parameters where nobody tuned them."""

LARGEST_PARAMETER: Final = 1_000_000

# Candidates beyond the k asked for: codes of a byte misorder the last few.
_SPARE: Final = 16
# Fewer neighbours are looked for among as many candidates as these: what settings are tuned for.
_LEAST_RANKED: Final = 10
# Asked for more than this part of the references, FAISS is no faster than comparing with all.
_EXACT_SHARE: Final = 0.25
_WIDER: Final = 8
# Queries that FAISS is given together; bounds what it and the ranking hold.
_AT_ONCE: Final = 4096


class ApproximateIndex:
    """A FAISS index beside the vectors it was made of. See `ReferenceIndex` for the contract."""

    def __init__(
        self,
        kind: Kind,
        faiss_index: Any,
        vectors: Vectors,
        parameters: Mapping[str, float] | None = None,
        *,
        owner: Any = None,
        path: Path | None = None,
    ) -> None:
        """Keeps both; neither may change while the index is used.

        Args:
            kind: a key of `DEFAULTS`.
            faiss_index: of that kind, over the vectors.
            vectors: (n, d) float32 or float16, contiguous, unit rows.
            parameters: of the search; what is left out has its default.
            owner: what FAISS returned, if the index points into it.
            path: of the index's file, for errors.

        Raises:
            ValueError: a parameter is unknown or out of range.
        """
        self._faiss = import_faiss()
        self._kind, self._vectors, self._index = kind, vectors, faiss_index
        self._owner, self._path = owner, path
        self._parameters = checked(kind, parameters or {})
        self._reranker = Reranker(vectors, lean=kind == "ivf-pq")
        self._exact = FlatIndex(vectors, checked=True)

    @property
    def kind(self) -> Kind:
        """Which of the approximate kinds."""
        return self._kind

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

    @property
    def faiss_index(self) -> Any:
        """The index that FAISS searches; it must not be changed."""
        return self._index

    @property
    def parameters(self) -> dict[str, float]:
        """Of the search, all of them."""
        return dict(self._parameters)

    def with_parameters(self, parameters: Mapping[str, float]) -> ApproximateIndex:
        """The same index, searched with other parameters; nothing is copied.

        Raises:
            ValueError: a parameter is unknown or out of range.
        """
        other = copy(self)
        other._parameters = checked(self._kind, parameters)  # noqa: SLF001 - one of its own
        return other

    def search(self, queries: NDArray[np.float32], k: int, *, threads: int = 0) -> Neighbors:
        """See `ReferenceIndex.search`."""
        check_queries(queries, self.dim, k)
        k = min(k, self.size)
        found = max(k + _SPARE, math.ceil(max(k, _LEAST_RANKED) * self._parameters.get("refine", 1)))
        if found > self.size * _EXACT_SHARE:
            return self._compared_with_all(queries, k, threads)
        result = Neighbors(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32))
        queries = np.ascontiguousarray(queries)
        # OpenMP keeps this setting per calling thread, so it is made in every call and disturbs nobody else. FAISS
        # shares out queries: more threads than those would only wait for one another.
        self._faiss.omp_set_num_threads(max(1, min(threads or available_cores(), len(queries))))
        for start in range(0, len(queries), _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, len(queries)))
            for wider in (1, _WIDER):
                candidates = self._candidates(queries[rows], found, wider)
                enough = (candidates >= 0).sum(axis=1) >= k
                _put(result, rows[enough], self._reranker.best(queries[rows[enough]], candidates[enough], k))
                rows = rows[~enough]
                if not len(rows):
                    break
            else:
                _put(result, rows, self._compared_with_all(queries[rows], k, threads))
        return result

    def probabilities(self, queries: NDArray[np.float32], ids: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
        """See `ReferenceIndex.probabilities`; over all references."""
        check_queries(queries, self.dim, 1)
        if len(queries) != len(ids):
            raise ValueError(f"{len(queries)} queries and references of {len(ids)}")
        result = softmax_over_all(queries, self._vectors, ids, scale)
        self._reranker.release()
        return result

    def _candidates(self, queries: NDArray[np.float32], found: int, wider: int) -> NDArray[np.int64]:
        """(q, found) rows of the references, -1 where FAISS found none."""
        candidates: NDArray[np.int64]
        _, candidates = self._index.search(queries, found, params=self._faiss_parameters(found, wider))
        if candidates.size and (candidates.max() >= self.size or candidates.min() < -1):
            raise IndexFolderError(
                f"{self._path or 'search.faiss'}: names references that there are not; the file is damaged",
                hint="copy or build the index again",
            )
        return candidates

    def _faiss_parameters(self, found: int, wider: int) -> Any:
        """For one call; attributes of the index itself would be shared with other threads."""
        values = self._parameters
        if self._kind == "hnsw":
            return self._faiss.SearchParametersHNSW(efSearch=max(int(values["efSearch"]) * wider, found))
        if self._kind == "sq8":
            return None
        nprobe = min(int(values["nprobe"]) * wider, self._index.nlist)
        if self._kind == "ivf-pq":
            return self._faiss.IVFPQSearchParameters(nprobe=nprobe)
        return self._faiss.SearchParametersIVF(nprobe=nprobe)

    def _compared_with_all(self, queries: NDArray[np.float32], k: int, threads: int) -> Neighbors:
        neighbors = self._exact.search(queries, k, threads=threads)
        self._reranker.release()
        return neighbors


def checked(kind: Kind, parameters: Mapping[str, float]) -> dict[str, float]:
    """All parameters of a kind's search, with defaults for those left out.

    Raises:
        ValueError: one is unknown, or not a number from 1 to a million; all but `refine` are whole.
    """
    values = dict(DEFAULTS[kind])
    for name, value in parameters.items():
        if name not in values:
            raise ValueError(f"an index of kind {kind} has no parameter {name!r}; it has {', '.join(values)}")
        if not 1 <= value <= LARGEST_PARAMETER or (name != "refine" and value != int(value)):
            raise ValueError(f"{name} is {value!r}; expected a whole number from 1 to {LARGEST_PARAMETER}")
        values[name] = value if name == "refine" else int(value)
    return values


def _put(result: Neighbors, rows: NDArray[np.int64], found: Neighbors) -> None:
    result.ids[rows], result.similarities[rows] = found.ids, found.similarities
