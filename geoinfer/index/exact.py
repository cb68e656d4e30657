"""Exact search in NumPy: the oracle that every other index is compared with. Small, plain, and right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geoinfer.index.base import Neighbors, check_queries, check_vectors, rank

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.index.base import Vectors
    from geoinfer.index_kinds import Kind


class ExactIndex:
    """Inner products with every reference, sorted. See `ReferenceIndex` for the contract."""

    def __init__(self, vectors: Vectors) -> None:
        """`vectors`: (n, d) float32 or float16, unit rows."""
        self._vectors = check_vectors(vectors)

    @property
    def kind(self) -> Kind:
        """`flat`, or `flat-fp16` over float16."""
        return "flat-fp16" if self._vectors.dtype == np.float16 else "flat"

    @property
    def vectors(self) -> Vectors:
        """The reference embeddings, (size, dim)."""
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
        """See `ReferenceIndex.search`; NumPy decides on its threads itself."""
        del threads
        check_queries(queries, self.dim, k)
        everyone = np.arange(self.size, dtype=np.int64)[None, :]
        parts = [rank(query[None, :], self._vectors, everyone, min(k, self.size)) for query in queries]
        if not parts:
            return rank(queries, self._vectors, everyone[:0], min(k, self.size))
        return Neighbors(np.concatenate([p.ids for p in parts]), np.concatenate([p.similarities for p in parts]))

    def probabilities(self, queries: NDArray[np.float32], ids: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
        """See `ReferenceIndex.probabilities`."""
        check_queries(queries, self.dim, 1)
        result = np.empty(ids.shape)
        for row, (query, chosen) in enumerate(zip(queries, ids, strict=True)):
            exponents = scale * (self._vectors.astype(np.float64) @ query.astype(np.float64))
            weights = np.exp(exponents - exponents.max())
            result[row] = weights[chosen] / weights.sum()
        return result
