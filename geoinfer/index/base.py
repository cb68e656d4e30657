"""The `ReferenceIndex` protocol, its answer, and the table of what the references are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from geoinfer.index_kinds import Kind

Vectors: TypeAlias = "NDArray[np.float32] | NDArray[np.float16]"
"""Reference embeddings, (n, dim), in one of the precisions they are stored in."""

_RANKED_VALUES: Final = 1 << 23  # 64 MiB of float64
_BLOCK_VALUES: Final = 1 << 23  # 32 MiB of float32
_SUMMED_AT_ONCE: Final = 4096


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest references of each query.

    Attributes:
        ids: (q, k) int64, rows of `References`; never -1.
        similarities: (q, k) float32, descending; equal ones are ordered by id.
    """

    ids: NDArray[np.int64]
    similarities: NDArray[np.float32]


class ReferenceIndex(Protocol):
    """Finds the references whose embeddings are most similar to a query's. Calls from several threads are allowed."""

    @property
    def kind(self) -> Kind:
        """How it searches."""
        ...

    @property
    def vectors(self) -> Vectors:
        """The reference embeddings, (size, dim); read-only, and mapped from the disk where a folder was opened."""
        ...

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        ...

    @property
    def size(self) -> int:
        """Number of references."""
        ...

    def search(self, queries: NDArray[np.float32], k: int, *, threads: int = 0) -> Neighbors:
        """The `k` most similar references of each query.

        Args:
            queries: (q, dim) float32, unit rows; q may be 0.
            k: at least 1; more than `size` is cut to `size`.
            threads: CPU threads to use; 0 for all cores.

        Returns:
            ids (q, k) and similarities (q, k): inner products, which are cosines for unit rows. Always `k` columns: an
            approximate index that finds fewer looks further.

        Raises:
            ValueError: shape or dtype differ, k < 1, or a query has a NaN.
            IndexFolderError: a reference's embedding is damaged.
        """
        ...

    def probabilities(self, queries: NDArray[np.float32], ids: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
        """How probable some references are among all: the softmax of `scale` times the similarity.

        Args:
            queries: (q, dim) float32, unit rows; q may be 0.
            ids: (q, c) int64, rows of `References`.
            scale: above 0; the larger, the more of the whole goes to the most similar.

        Returns:
            (q, c) float64; over all references a row sums to 1.

        Raises:
            ValueError: shape or dtype differ, or a query has a NaN.
        """
        ...


def check_queries(queries: NDArray[np.float32], dim: int, k: int) -> None:
    """Raises ValueError for what no index answers; see `ReferenceIndex.search`."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries have shape {queries.shape}; expected (q, {dim})")
    if queries.dtype != np.float32:
        raise ValueError(f"queries are {queries.dtype}; expected float32")
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    if not np.isfinite(queries).all():
        raise ValueError("a query has a value that is not finite")


def check_vectors(vectors: Vectors, *, finite: bool = True) -> Vectors:
    """Reference embeddings as a contiguous (n, d) array, float16 if they are that, else float32; no copy unless needed.

    Args:
        vectors: (n, d).
        finite: whether every value is looked at.

    Raises:
        ValueError: another shape, no rows, or a value that is not finite.
    """
    given = np.asarray(vectors)
    half = given.dtype == np.float16
    array: Vectors = np.ascontiguousarray(given, np.float16) if half else np.ascontiguousarray(given, np.float32)
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] == 0:
        raise ValueError(f"embeddings have shape {array.shape}; expected (n, d) with n and d at least 1")
    if finite and not all(np.isfinite(block).all() for block in blocks_of(array)):
        raise ValueError("an embedding has a value that is not finite")
    return array


def blocks_of(vectors: Vectors) -> Iterator[Vectors]:
    """The vectors in order, a few tens of megabytes at a time."""
    rows = max(1, _BLOCK_VALUES // vectors.shape[1])
    for start in range(0, len(vectors), rows):
        yield vectors[start : start + rows]


def rank(queries: NDArray[np.float32], vectors: Vectors, candidates: NDArray[np.int64], k: int) -> Neighbors:
    """The k best of each query's candidates: exact inner products, ties by id.

    Products are summed in float64 and rounded once, so that the answer does not depend on how a library ordered its
    additions: not on the size of the batch, the number of threads or the device.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32 or float16.
        candidates: (q, c) int64 with c >= k, rows of `vectors`.
        k: how many to keep.
    """
    similarities = np.empty(candidates.shape, np.float32)
    # Few queries at a time: their candidates are copied out in float64.
    at_once = max(1, _RANKED_VALUES // max(1, candidates.shape[1] * vectors.shape[1]))
    for start in range(0, len(queries), at_once):
        some = slice(start, start + at_once)
        chosen = vectors[candidates[some]].astype(np.float64)
        similarities[some] = np.einsum("qd,qcd->qc", queries[some].astype(np.float64), chosen)
    order = np.lexsort((candidates, -similarities), axis=1)[:, :k]
    return Neighbors(np.take_along_axis(candidates, order, axis=1), np.take_along_axis(similarities, order, axis=1))


def softmax_over_all(
    queries: NDArray[np.float32], vectors: Vectors, ids: NDArray[np.int64], scale: float
) -> NDArray[np.float64]:
    """See `ReferenceIndex.probabilities`.

    Sums in float64, over blocks of references, with the largest exponent so far taken out of the sum, so that no scale
    makes it overflow or vanish.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32 or float16.
        ids: (q, c) int64, rows of `vectors`.
        scale: above 0.
    """
    wide = queries.astype(np.float64)
    largest = np.full(len(wide), -np.inf)
    total = np.zeros(len(wide))
    for start in range(0, len(vectors), _SUMMED_AT_ONCE):
        exponents = wide @ vectors[start : start + _SUMMED_AT_ONCE].astype(np.float64).T
        exponents *= scale
        larger = np.maximum(largest, exponents.max(axis=1))
        exponents -= larger[:, None]
        total = total * np.exp(largest - larger) + np.exp(exponents, out=exponents).sum(axis=1)
        largest = larger
    result = np.empty(ids.shape)
    for row, chosen in enumerate(ids):
        result[row] = np.exp(scale * (vectors[chosen].astype(np.float64) @ wide[row]) - largest[row]) / total[row]
    return result


@dataclass(frozen=True, slots=True)
class References:
    """What is known of each reference; row i belongs to embedding i.

    Of an index that was opened nothing is in memory: the arrays are mapped, and the sequences of texts are
    `geoinfer.index.references_table.Texts`, which read a row when it is asked for.

    Attributes:
        ids: the name a label gave it, or its path.
        coordinates: (n, 2) float64 degrees.
        sources: where it comes from (a collection, a website); may be empty strings.
        attributions: licence and author to be named with it; may be empty strings.
        content_sha256: (n, 32) uint8, of the file's bytes.
        perceptual_hashes: (n, 32) uint8, see `geoinfer.images.near_duplicates`.
        sequences: on which drive, walk or occasion it was taken; empty strings, or no list at all, where unknown.
    """

    ids: Sequence[str]
    coordinates: NDArray[np.float64]
    sources: Sequence[str]
    attributions: Sequence[str]
    content_sha256: NDArray[np.uint8]
    perceptual_hashes: NDArray[np.uint8]
    sequences: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.coordinates)

    def part(self, start: int, stop: int) -> References:
        """The references `start` to `stop`; what is mapped stays so."""
        some = slice(start, stop)
        return References(
            ids=self.ids[some],
            coordinates=self.coordinates[some],
            sources=self.sources[some],
            attributions=self.attributions[some],
            content_sha256=self.content_sha256[some],
            perceptual_hashes=self.perceptual_hashes[some],
            sequences=self.sequences[some],
        )
