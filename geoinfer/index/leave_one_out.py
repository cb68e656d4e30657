"""Each reference's neighbours among the others: what calibration learns from, made once when an index is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.images.near_duplicates import NEAR_DUPLICATE_BITS, hash_distances
from geoinfer.index.base import MAX_K

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.index.base import References
    from geoinfer.index.faiss_index import FaissFlatIndex

MAX_ROWS: Final = 2000
"""References that stand in as queries: enough to know a 90% quantile within about a percentage point."""

# Room for copies among the candidates; a reference with more of them than this has a shorter list of neighbours.
_SPARE: Final = 64
_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """Neighbours of a sample of the references, found without the reference itself and without its copies.

    Attributes:
        rows: (m,) int64, which references.
        ids: (m, c) int64, their neighbours, the most similar first, padded with -1; c is at most `MAX_K`.
        similarities: (m, c) float32, padded with 0.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    similarities: NDArray[np.float32]


def leave_one_out(index: FaissFlatIndex, references: References, *, max_rows: int = MAX_ROWS) -> LeaveOneOut:
    """Searches for each sampled reference among the others.

    Left out as its own neighbours: the reference itself, a file of the same bytes or of the same name, and
    near-duplicates by perceptual hash.

    Args:
        index: of all references.
        references: in the order of the index.
        max_rows: at most so many references, drawn with a fixed seed.
    """
    size = len(references)
    rows = np.arange(size, dtype=np.int64)
    if size > max_rows:
        rows = np.sort(np.random.default_rng(0).choice(rows, max_rows, replace=False))
    columns = min(MAX_K, size - 1)
    names: dict[str, int] = {}
    name_of = np.array([names.setdefault(name, len(names)) for name in references.ids], dtype=np.int64)
    ids = np.full((len(rows), columns), -1, np.int64)
    similarities = np.zeros((len(rows), columns), np.float32)
    if columns == 0:
        return LeaveOneOut(rows, ids, similarities)
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        found = index.search(index.vectors[part], min(MAX_K + _SPARE, size))
        same_bytes = (references.content_sha256[found.ids] == references.content_sha256[part][:, None]).all(axis=-1)
        distances = hash_distances(references.perceptual_hashes[found.ids], references.perceptual_hashes[part][:, None])
        excluded = (
            (found.ids == part[:, None])
            | (name_of[found.ids] == name_of[part][:, None])
            | same_bytes
            | (distances <= NEAR_DUPLICATE_BITS)
        )
        # A stable sort of false before true keeps the order of those that stay.
        kept = np.argsort(excluded, axis=1, kind="stable")[:, :columns]
        gone = np.take_along_axis(excluded, kept, axis=1)
        block = slice(start, start + len(part))
        ids[block, : kept.shape[1]] = np.where(gone, -1, np.take_along_axis(found.ids, kept, axis=1))
        similarities[block, : kept.shape[1]] = np.where(gone, 0.0, np.take_along_axis(found.similarities, kept, axis=1))
    return LeaveOneOut(rows, ids, similarities)
