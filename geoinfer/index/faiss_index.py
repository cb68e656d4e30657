"""Exact search by FAISS's flat index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import IndexFolderError, MissingPackageError
from geoinfer.index.base import Neighbors, check_queries, check_vectors, rank, softmax_over_all
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# FAISS finds a few more than asked, so that those which its float32 sums misorder at the cut, and ties, come out right.
_SPARE: Final = 16


def import_faiss() -> Any:
    """Imports FAISS and sets it up.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import faiss

        # Its defaults leave BLAS to batches of several hundred queries and multiply in blocks of 1024 references;
        # measured on a million references of 256 dimensions, these were nine times faster (docs/architecture.md).
        faiss.cvar.distance_compute_blas_threshold = 20
        faiss.cvar.distance_compute_blas_database_bs = 16384
    except (ImportError, AttributeError) as error:  # the second from a package that is half there
        raise MissingPackageError(
            f"FAISS cannot be imported: {error}",
            hint="pip install 'geoinfer-toolkit[cpu]' (or [gpu], never both); `geoinfer doctor` tells more",
        ) from error
    return faiss


class FaissFlatIndex:
    """FAISS's `IndexFlatIP`, with FAISS's answer ranked again exactly. See `ReferenceIndex` for the contract."""

    # An index that was read points into what FAISS returned, which must live as long.
    _owner: Any = None

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        """`vectors`: (n, d) float32, unit rows."""
        self._faiss = import_faiss()
        array = check_vectors(vectors)
        self._index = self._faiss.IndexFlatIP(array.shape[1])
        self._index.add(array)
        self._vectors = self._stored()

    @classmethod
    def read(cls, path: Path) -> FaissFlatIndex:
        """Opens a file that `write` wrote.

        Raises:
            IndexFolderError: it is no FAISS flat index with inner products, or holds values that are not finite.
        """
        faiss = import_faiss()
        try:
            # FAISS itself opens only names that are UTF-8.
            with path.open("rb") as file:
                owner = faiss.read_index(faiss.PyCallbackIOReader(file.read))
        except OSError as error:
            raise IndexFolderError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
        except (RuntimeError, MemoryError) as error:  # a damaged length asks for more memory than there is
            raise IndexFolderError(
                f"{path}: FAISS cannot read it; the file is damaged", hint="copy or build the index again"
            ) from error
        index = faiss.downcast_index(owner)
        # Not isinstance: subclasses such as IndexFlatPanorama arrange their vectors differently.
        if type(index) not in (faiss.IndexFlat, faiss.IndexFlatIP) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise IndexFolderError(f"{path}: a FAISS {type(index).__name__}; expected a flat index of inner products")
        if index.ntotal == 0 or index.d == 0:
            raise IndexFolderError(f"{path}: the index is empty", hint="build the index again")
        self = cls.__new__(cls)
        self._faiss, self._owner, self._index = faiss, owner, index
        self._vectors = self._stored()
        # With a NaN among its vectors FAISS answers -1. A product with ones finds it eight times sooner than isfinite.
        with np.errstate(all="ignore"):
            finite = np.isfinite(self._vectors @ np.ones(self.dim, np.float32)).all()
        if not finite:
            raise IndexFolderError(
                f"{path}: holds a value that is not finite; the file is damaged", hint="build the index again"
            )
        return self

    def write(self, path: Path) -> None:
        """Writes the index in FAISS's own format."""
        with path.open("wb") as file:
            self._faiss.write_index(self._index, self._faiss.PyCallbackIOWriter(file.write))

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self._index.d)

    @property
    def size(self) -> int:
        """Number of references."""
        return int(self._index.ntotal)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The reference embeddings, (size, dim) float32; a view that must not be written to."""
        return self._vectors

    def search(self, queries: NDArray[np.float32], k: int, *, threads: int = 0) -> Neighbors:
        """See `ReferenceIndex.search`."""
        check_queries(queries, self.dim, k)
        k = min(k, self.size)
        if len(queries) == 0:
            return rank(queries, self._vectors, np.empty((0, k), np.int64), k)
        # OpenMP keeps this setting per calling thread, so it is made in every call and disturbs nobody else.
        self._faiss.omp_set_num_threads(threads or available_cores())
        queries = np.ascontiguousarray(queries)
        found = min(k + _SPARE, self.size)
        similarities, candidates = self._index.search(queries, found)
        neighbors = rank(queries, self._vectors, candidates, k)
        if found < self.size:
            self._resolve_ties(queries, k, found, similarities, neighbors)
        return neighbors

    def probabilities(self, queries: NDArray[np.float32], ids: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
        """See `ReferenceIndex.probabilities`."""
        check_queries(queries, self.dim, 1)
        if len(queries) != len(ids):
            raise ValueError(f"{len(queries)} queries and references of {len(ids)}")
        return softmax_over_all(queries, self._vectors, ids, scale)

    def _resolve_ties(
        self,
        queries: NDArray[np.float32],
        k: int,
        found: int,
        similarities: NDArray[np.float32],
        neighbors: Neighbors,
    ) -> None:
        """Searches again, wider, where more references tie with the k-th than FAISS returned."""
        # Copies of one photo differ by rounding in FAISS's sums, never by more than this.
        tolerance = 1e-5
        for row in np.flatnonzero(similarities[:, k - 1] - similarities[:, -1] <= tolerance):
            wider = found
            while wider < self.size:
                wider = min(wider * 4, self.size)
                sims, candidates = self._index.search(queries[row : row + 1], wider)
                if sims[0, k - 1] - sims[0, -1] > tolerance:
                    break
            again = rank(queries[row : row + 1], self._vectors, candidates, k)
            neighbors.ids[row], neighbors.similarities[row] = again.ids[0], again.similarities[0]

    def _stored(self) -> NDArray[np.float32]:
        flat = self._faiss.rev_swig_ptr(self._index.get_xb(), self.size * self.dim)
        return np.asarray(_Kept(np.asarray(flat).reshape(self.size, self.dim), self._owner or self._index))


class _Kept:
    """An array over somebody's memory that keeps its owner alive, by NumPy's array interface."""

    def __init__(self, array: NDArray[np.float32], owner: object) -> None:
        self._owner = owner
        self.__array_interface__ = array.__array_interface__
