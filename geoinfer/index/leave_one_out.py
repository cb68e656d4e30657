"""What calibration learns from, made once when an index is built: neighbours of photos whose place is known.

They are the references themselves, each among the others; or, where the references are no photos, other labelled ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.answer import MAX_K
from geoinfer.geodesy import as_coordinates, haversine_km
from geoinfer.images.near_duplicates import NEAR_DUPLICATE_BITS, hash_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.index.base import ReferenceIndex, References

MAX_ROWS: Final = 2000
"""References that stand in as queries: enough to know a 90% quantile within about a percentage point."""

# Room for what is left out; where that does not do, as in long sequences, the search is repeated with more.
_SPARE: Final = 64
_WIDE: Final = 4096
_SAME_SPOT_KM: Final = 0.1
# Exact search reads all references once a batch; what is known of the candidates is read for fewer rows at a time.
_BATCH: Final = 1024
_COMPARED_AT_ONCE: Final = 128


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """Neighbours of photos whose place is known.

    Of a sample of the references, found without the reference itself and without its relatives; or of photos outside
    the index.

    Attributes:
        rows: (m,) int64, which references; -1 for photos outside the index.
        ids: (m, c) int64, their neighbours, the most similar first, padded with -1; c is at most `MAX_K`.
        similarities: (m, c) float32, padded with 0.
        places: (m, 2) float64 degrees, where they were taken; None where all are references, whose places are known.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    similarities: NDArray[np.float32]
    places: NDArray[np.float64] | None = None

    @classmethod
    def empty(cls) -> LeaveOneOut:
        """Of no photos: for an index whose references are none, and that is not calibrated."""
        return cls(np.empty(0, np.int64), np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))

    def true_places(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m, 2) degrees, where the photos were taken, given the places (n, 2) of the references."""
        places: NDArray[np.float64] = coordinates[self.rows] if self.places is None else self.places
        return places


def leave_one_out(index: ReferenceIndex, references: References, *, max_rows: int = MAX_ROWS) -> LeaveOneOut:
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


def held_out_photos(
    index: ReferenceIndex,
    embeddings: NDArray[np.float32],
    places: NDArray[np.float64],
    *,
    max_rows: int = MAX_ROWS,
) -> LeaveOneOut:
    """Searches for labelled photos that are no references: what an index of other things than photos learns from.

    Args:
        index: of all references.
        embeddings: (m, dim) float32, unit rows, of the photos.
        places: (m, 2) degrees, where they were taken.
        max_rows: at most so many photos, drawn with a fixed seed.

    Raises:
        ValueError: shapes differ, or a value is not finite or out of range.
    """
    places = as_coordinates(places)
    if len(places) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings for {len(places)} places")
    if len(places) > max_rows:
        chosen = np.sort(np.random.default_rng(0).choice(len(places), max_rows, replace=False))
        embeddings, places = embeddings[chosen], places[chosen]
    neighbors = index.search(embeddings, MAX_K)
    return LeaveOneOut(np.full(len(places), -1, np.int64), neighbors.ids, neighbors.similarities, places)


class _Relatives:
    """Knows which references must not help to locate which; reads no more than the rows it is asked about."""

    def __init__(self, references: References) -> None:
        self._references = references

    def excluded(self, rows: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(m, c) bool for candidates (m, c) of rows (m,)."""
        parts = [
            self._excluded(rows[start : start + _COMPARED_AT_ONCE], candidates[start : start + _COMPARED_AT_ONCE])
            for start in range(0, len(rows), _COMPARED_AT_ONCE)
        ]
        return np.concatenate(parts)

    def _excluded(self, rows: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
        concerned, places = np.unique(np.concatenate([rows[:, None], candidates], axis=1), return_inverse=True)
        places = places.reshape(len(rows), -1)
        own, others = places[:, :1], places[:, 1:]
        known = self._references
        names = _numbered([known.ids[row] for row in concerned.tolist()])
        of_sequence = (
            [known.sequences[row] for row in concerned.tolist()] if len(known.sequences) else [""] * len(concerned)
        )
        sequences, in_sequence = _numbered(of_sequence), np.array([name != "" for name in of_sequence])
        digests, hashes = known.content_sha256[concerned], known.perceptual_hashes[concerned]
        in_file = digests.any(axis=-1)  # zeros stand for a reference without a photo, of which neither is known
        result: NDArray[np.bool_] = (
            (others == own)
            | (names[others] == names[own])
            | (in_sequence[own] & (sequences[others] == sequences[own]))
            | (~in_sequence[own] & ~in_sequence[others] & self._same_spot(rows[:, None], candidates))
            | (in_file[own] & in_file[others] & self._same_picture(digests, hashes, own, others))
        )
        return result

    @staticmethod
    def _same_picture(
        digests: NDArray[np.uint8], hashes: NDArray[np.uint8], own: NDArray[np.int64], others: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether their files are the same, or their pictures nearly so."""
        alike: NDArray[np.bool_] = (digests[others] == digests[own]).all(axis=-1)
        return alike | (hash_distances(hashes[others], hashes[own]) <= NEAR_DUPLICATE_BITS)

    def _same_spot(self, rows: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether they were taken so close to one another that they may well be two shots of one scene."""
        places = self._references.coordinates
        near: NDArray[np.bool_] = haversine_km(places[candidates], places[rows]) <= _SAME_SPOT_KM
        return near


def _search(
    index: ReferenceIndex, relatives: _Relatives, rows: NDArray[np.int64], found: int, columns: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first `columns` of `found` neighbours that are no relatives: ids padded with -1, similarities with 0."""
    neighbors = index.search(index.vectors[rows].astype(np.float32), found)
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
