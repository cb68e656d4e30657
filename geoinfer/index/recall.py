"""Recall: how much of the exact answer an index finds. Measured when it is built, and whenever it is tuned."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.index.base import Neighbors
from geoinfer.index.flat import FlatIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from geoinfer.index.base import ReferenceIndex, Vectors

# Two sums in float64 that are rounded to float32 differ by a unit in the last place, if at all.
_ROUNDING: Final = 2e-7
# Exact search is what costs: so many products of two numbers, a minute or two on two cores.
_MOST_PRODUCTS: Final = 4e12
_LEAST_QUERIES: Final = 100
# Float16 vectors are widened once for so many.
_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class RecallReport:
    """How much an index finds.

    Attributes:
        queries: how many were asked.
        recall_at: of the k most similar references, the share among the k that the index answers, on average; by k. An
            answer as similar as the k-th is none less.
        queries_per_s: asked all at once, for the largest k.
        left_out: whether the queries are references, each left out of its own answers.
    """

    queries: int
    recall_at: dict[int, float]
    queries_per_s: float
    left_out: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return {
            "queries": self.queries,
            "of": "references, each left out" if self.left_out else "given queries",
            "recall_at": {str(k): round(value, 6) for k, value in self.recall_at.items()},
            "queries_per_s": round(self.queries_per_s, 1),
        }


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What exact search answers.

    Attributes:
        queries: (m, dim) float32.
        rows: (m,) int64, which references the queries are; None where they are none.
        similarities: (m, k) float32 of the k most similar references, descending, the query itself left out.
    """

    queries: NDArray[np.float32]
    rows: NDArray[np.int64] | None
    similarities: NDArray[np.float32]

    def part(self, which: NDArray[np.int64]) -> GroundTruth:
        """Some of the queries."""
        rows = None if self.rows is None else self.rows[which]
        return GroundTruth(self.queries[which], rows, self.similarities[which])


def ground_truth(
    vectors: Vectors,
    k: int,
    *,
    queries: NDArray[np.float32] | None = None,
    max_queries: int = 1000,
    seed: int = 0,
    threads: int = 0,
    on_step: Callable[[str, float], None] | None = None,
) -> GroundTruth:
    """Asks `FlatIndex`.

    Args:
        vectors: (n, dim) float32 or float16.
        k: neighbours; as many as there are, if there are fewer.
        queries: (m, dim) float32 unit rows that are no references; without them, a sample of the references.
        max_queries: at most so many are asked, drawn at random; fewer, 100 at least, of very many references.
        seed: of the draw.
        threads: CPU threads to use; 0 for all cores.
        on_step: called with what is being done and how much of it is, 0 to 1.
    """
    flat = FlatIndex(vectors, checked=True)
    most = min(max_queries, max(_LEAST_QUERIES, int(_MOST_PRODUCTS / vectors.size)))
    count = flat.size if queries is None else len(queries)
    drawn = np.sort(np.random.default_rng(seed).choice(count, min(most, count), replace=False)).astype(np.int64)
    rows = drawn if queries is None else None
    asked = np.ascontiguousarray((vectors if queries is None else queries)[drawn], np.float32)
    k = min(k, flat.size - (rows is not None))
    similarities = np.empty((len(asked), k), np.float32)
    for start in range(0, len(asked) if k else 0, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        found = _asked(flat, asked[some], None if rows is None else rows[some], k, threads)
        similarities[some] = found.similarities
        if on_step is not None:
            on_step("measuring recall", min(start + _AT_ONCE, len(asked)) / len(asked))
    return GroundTruth(asked, rows, similarities)


def recall_against(
    index: ReferenceIndex, truth: GroundTruth, ks: Sequence[int] = (1, 10), *, threads: int = 0
) -> RecallReport:
    """Asks the index what exact search was asked.

    Args:
        index: over the same references.
        truth: with as many neighbours as the largest of `ks`, or all there are.
        ks: numbers of neighbours.
        threads: CPU threads to use; 0 for all cores.
    """
    count, most = truth.similarities.shape
    if not count or not most:
        return RecallReport(0, dict.fromkeys(ks, 1.0), 0.0, truth.rows is not None)  # there is nothing to miss
    start = time.perf_counter()
    found = _asked(index, truth.queries, truth.rows, min(max(ks), most), threads)
    seconds = time.perf_counter() - start
    recall_at = {}
    for k in ks:
        wanted = min(k, most)
        reached = found.similarities[:, :wanted] >= truth.similarities[:, wanted - 1 : wanted] - _ROUNDING
        recall_at[k] = float(reached.mean())
    return RecallReport(count, recall_at, count / seconds, truth.rows is not None)


def measure_recall(
    index: ReferenceIndex,
    *,
    queries: NDArray[np.float32] | None = None,
    ks: Sequence[int] = (1, 10),
    max_queries: int = 1000,
    seed: int = 0,
    threads: int = 0,
    on_step: Callable[[str, float], None] | None = None,
) -> RecallReport:
    """Compares an index with exact search over the same vectors; see `ground_truth` for the arguments.

    Raises:
        ValueError: the queries do not fit the index.
    """
    truth = ground_truth(
        index.vectors, max(ks), queries=queries, max_queries=max_queries, seed=seed, threads=threads, on_step=on_step
    )
    return recall_against(index, truth, ks, threads=threads)


def _asked(
    index: ReferenceIndex, queries: NDArray[np.float32], rows: NDArray[np.int64] | None, k: int, threads: int
) -> Neighbors:
    """The k neighbours of each query; of a query that is the reference `rows`, none is itself."""
    if rows is None:
        return index.search(queries, k, threads=threads)

    found = index.search(queries, k + 1, threads=threads)
    # Where the reference itself is not among what was found, the last goes instead.
    out = found.ids == rows[:, None]
    out[~out.any(axis=1), -1] = True
    shape = (len(queries), k)
    return Neighbors(found.ids[~out].reshape(shape), found.similarities[~out].reshape(shape))
