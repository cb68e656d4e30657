"""Neighbours of labelled photos among the references, without those that a new photo would not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.answer import MAX_K
from geoinfer.geodesy import as_coordinates, haversine_km
from geoinfer.images.near_duplicates import NEAR_DUPLICATE_BITS, hash_distances
from geoinfer.index import LeaveOneOut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.index import ReferenceIndex, References

SAME_SPOT_KM: Final = 0.1

NUMBERED: Final = "taken together "
"""How a sequence's name begins that was only numbered, by times in EXIF: it says nothing outside its own collection."""

_SPARE: Final = 64
# Of unit vectors: those of a photo and its copy differ by rounding, also in float16.
_SAME_EMBEDDING: Final = 1 - 1e-5
_WIDE: Final = 4096
_BATCH: Final = 128


def find_neighbors(
    index: ReferenceIndex,
    references: References,
    embeddings: NDArray[np.float32],
    photos: References,
    *,
    of_photos: bool = True,
    threads: int = 0,
) -> LeaveOneOut:
    """Searches for labelled photos, some of which may be references themselves.

    Left out are files of the same bytes or of the same name, near-duplicates by perceptual hash, photos of the same
    sequence, photos of the sequence of such a relative, and, where of neither a sequence is known, photos within 100 m:
    the rules of `geoinfer.index.leave_one_out`. Of a reference without a file (a ready embedding) no bytes are known:
    one with the photo's own embedding counts as the photo. References that are no photos have no relatives.

    Args:
        index: of all references.
        references: in the order of the index.
        embeddings: (m, dim) float32, unit rows.
        photos: the m labelled photos.
        of_photos: whether the references are photos, see `IndexManifest`.
        threads: CPU threads to search with; 0 for all cores.

    Returns:
        Their neighbours, at most `MAX_K`, padded with -1.
    """
    size = len(references)
    columns = min(MAX_K, size)
    ids = np.full((len(embeddings), columns), -1, np.int64)
    similarities = np.zeros((len(embeddings), columns), np.float32)
    relatives = _Relatives(references, photos)

    def find(rows: NDArray[np.int64], count: int) -> None:
        found = index.search(embeddings[rows], min(count, size), threads=threads)
        excluded = np.zeros(found.ids.shape, bool)
        if of_photos:
            excluded = relatives.excluded(rows, found.ids, found.similarities)
        # A stable sort of false before true keeps the order of those that stay.
        kept = np.argsort(excluded, axis=1, kind="stable")[:, :columns]
        gone = np.take_along_axis(excluded, kept, axis=1)
        ids[rows] = np.where(gone, -1, np.take_along_axis(found.ids, kept, axis=1))
        similarities[rows] = np.where(gone, np.float32(0), np.take_along_axis(found.similarities, kept, axis=1))

    for start in range(0, len(embeddings), _BATCH):
        block = np.arange(start, min(start + _BATCH, len(embeddings)))
        find(block, columns + _SPARE)
        short = block[ids[block, -1] < 0]
        for few in np.array_split(short, -(-len(short) // 16) or 1) if size > columns + _SPARE else ():
            if len(few):
                find(few, _WIDE)
    places = as_coordinates(photos.coordinates)
    return LeaveOneOut(np.full(len(places), -1, np.int64), ids, similarities, places)


class _Relatives:
    """Knows which references must not help to locate which photos."""

    def __init__(self, references: References, photos: References) -> None:
        self._references = references
        self._photos = photos

    def excluded(
        self, rows: NDArray[np.int64], candidates: NDArray[np.int64], similarities: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """(m, c) bool for candidates (m, c), so similar, of photos (m,)."""
        references, photos = self._references, self._photos
        own = rows[:, None]
        known, where = np.unique(candidates, return_inverse=True)
        where = where.reshape(candidates.shape)
        digests, hashes = references.content_sha256[known], references.perceptual_hashes[known]
        in_file = np.asarray(digests.any(axis=1))[where]  # zeros stand for a reference without a file
        names, own_names = _numbered([references.ids[i] for i in known], [photos.ids[i] for i in rows])
        alike = (digests[where] == photos.content_sha256[own]).all(axis=-1) | (
            hash_distances(hashes[where], photos.perceptual_hashes[own]) <= NEAR_DUPLICATE_BITS
        )
        result: NDArray[np.bool_] = (names[where] == own_names[:, None]) | np.where(
            in_file, alike, similarities >= _SAME_EMBEDDING
        )
        theirs = [references.sequences[i] if references.sequences else "" for i in known]
        mine = [photos.sequences[i] if photos.sequences else "" for i in rows]
        # A number that was given to an occasion among the references says nothing of one among these photos.
        comparable = ["" if name.startswith(NUMBERED) else name for name in mine]
        sequences, own_sequences = _numbered(theirs, comparable)
        in_sequence = np.array([bool(name) for name in theirs])
        near = haversine_km(references.coordinates[known][where], photos.coordinates[own]) <= SAME_SPOT_KM
        alone = np.array([not name for name in mine])[:, None]
        result |= in_sequence[where] & (sequences[where] == own_sequences[:, None])
        result |= alone & ~in_sequence[where] & near
        for row in np.flatnonzero((result & in_sequence[where]).any(axis=1)).tolist():
            related = sequences[where[row, result[row] & in_sequence[where[row]]]]
            result[row] |= in_sequence[where[row]] & np.isin(sequences[where[row]], related)
        return result


def _numbered(names: Sequence[str], others: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Names to numbers: equal ones, and only those, to the same."""
    numbers: dict[str, int] = {}
    given = [numbers.setdefault(name, len(numbers)) for name in (*names, *others)]
    together = np.array(given, dtype=np.int64)
    return together[: len(names)], together[len(names) :]
