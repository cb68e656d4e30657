"""Each reference's neighbours among the others: what calibration learns from, made once when an index is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.geodesy import haversine_km
from geoinfer.images.near_duplicates import NEAR_DUPLICATE_BITS, hash_distances
from geoinfer.index.base import MAX_K

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.index.base import References
    from geoinfer.index.faiss_index import FaissFlatIndex

MAX_ROWS: Final = 2000
"""References that stand in as queries: enough to know a 90% quantile within about a percentage point."""

# Room for what is left out; where that does not do, as in long sequences, the search is repeated with more.
_SPARE: Final = 64
_WIDE: Final = 4096
_SAME_SPOT_KM: Final = 0.1
_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """Neighbours of a sample of the references, found without the reference itself and without its relatives.

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

    Left out as its own neighbours: the reference itself, a file of the same bytes or of the same name, near-duplicates
    by perceptual hash, photos of the same sequence, and, where of neither a sequence is known, photos within 100 m. A
    new photo has no such relatives among the references.

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
    ids = np.full((len(rows), columns), -1, np.int64)
    similarities = np.zeros((len(rows), columns), np.float32)
    if columns == 0:
        return LeaveOneOut(rows, ids, similarities)
    relatives = _Relatives(references)
    for start in range(0, len(rows), _BATCH):
        block = slice(start, min(start + _BATCH, len(rows)))
        ids[block], similarities[block] = _search(index, relatives, rows[block], min(MAX_K + _SPARE, size), columns)
        short = start + np.flatnonzero(ids[block, -1] < 0)
        if len(short) and size > MAX_K + _SPARE:
            ids[short], similarities[short] = _search(index, relatives, rows[short], min(_WIDE, size), columns)
    return LeaveOneOut(rows, ids, similarities)


class _Relatives:
    """Knows which references must not help to locate which."""

    def __init__(self, references: References) -> None:
        self._names = _numbered(references.ids)
        self._sequences = _numbered(references.sequences or [""] * len(references))
        self._in_sequence = np.array([bool(name) for name in references.sequences or [""] * len(references)])
        self._references = references

    def excluded(self, rows: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(m, c) bool for candidates (m, c) of rows (m,)."""
        own = rows[:, None]
        digests, hashes = self._references.content_sha256, self._references.perceptual_hashes
        result: NDArray[np.bool_] = (
            (candidates == own)
            | (self._names[candidates] == self._names[own])
            | (self._in_sequence[own] & (self._sequences[candidates] == self._sequences[own]))
            | (~self._in_sequence[own] & ~self._in_sequence[candidates] & self._same_spot(own, candidates))
            | (digests[candidates] == digests[own]).all(axis=-1)
            | (hash_distances(hashes[candidates], hashes[own]) <= NEAR_DUPLICATE_BITS)
        )
        return result

    def _same_spot(self, rows: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether they were taken so close to one another that they may well be two shots of one scene."""
        places = self._references.coordinates
        near: NDArray[np.bool_] = haversine_km(places[candidates], places[rows]) <= _SAME_SPOT_KM
        return near


def _search(
    index: FaissFlatIndex, relatives: _Relatives, rows: NDArray[np.int64], found: int, columns: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first `columns` of `found` neighbours that are no relatives: ids padded with -1, similarities with 0."""
    neighbors = index.search(index.vectors[rows], found)
    excluded = relatives.excluded(rows, neighbors.ids)
    # A stable sort of false before true keeps the order of those that stay.
    kept = np.argsort(excluded, axis=1, kind="stable")[:, :columns]
    gone = np.take_along_axis(excluded, kept, axis=1)
    return (
        np.where(gone, -1, np.take_along_axis(neighbors.ids, kept, axis=1)),
        np.where(gone, np.float32(0), np.take_along_axis(neighbors.similarities, kept, axis=1)),
    )


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Names to numbers: equal ones, and only those, to the same."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
