"""What an exported model changes in the answers of a reference index, against torch's own embeddings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.aggregate import aggregate
from geoinfer.answer import Answer
from geoinfer.errors import InputError, MismatchError, UsageError
from geoinfer.geodesy import haversine_km
from geoinfer.images.near_duplicates import NEAR_DUPLICATE_BITS, hash_distances, perceptual_hash
from geoinfer.index import open_index, read_index_manifest
from geoinfer.labels import open_labels, read_labels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from export.pictures import Pictures
    from geoinfer.backends.base import EmbedderIdentity
    from geoinfer.images import Preprocessing
    from geoinfer.index import Neighbors, References

# Two references whose similarities differ by less are in no order that float32 arithmetic could keep.
_TIE: Final = 1e-6
_SAME_SPOT_KM: Final = 0.1
# Room for a photo's own copies among the references, which are left out.
_SPARE: Final = 64


@dataclass(frozen=True, slots=True)
class IndexParity:
    """Answers by the model's embeddings beside those by torch's, for the upright photos of a gate.

    A photo's own copies among the references (the same bytes, or a near-duplicate) answer for neither: any model finds
    those, so photos that the index was made of would prove nothing.

    Attributes:
        photos: compared; fewer than there are where an index holds nothing but copies of one.
        changed: rows of the photos whose most similar reference is another one, unless it is tied with the first, or
            was taken within 100 m of it.
        labelled: photos whose true place is known.
        model_km: median great-circle distance in km of the model's answers from the true places; NaN without labels.
        torch_km: likewise of the answers by torch's embeddings.
    """

    photos: int
    changed: tuple[int, ...]
    labelled: int
    model_km: float
    torch_km: float

    @property
    def agreement(self) -> float:
        """Share of the photos whose most similar reference is the same; NaN where none could be compared."""
        return (self.photos - len(self.changed)) / self.photos if self.photos else float("nan")

    @property
    def shift_km(self) -> float:
        """By how much the model's median distance is larger; NaN without labels."""
        return self.model_km - self.torch_km


def check_asked(
    index: Path | None, labels: Path | None, *, folder: Path | None, name: str, preprocessing: Preprocessing
) -> None:
    """Finds out what can be known before minutes are spent on embeddings.

    Args:
        index: a reference index.
        labels: a CSV of true places.
        folder: of the photos, that the paths in `labels` are relative to; None for pictures that come from no folder.
        name: of the embedder.
        preprocessing: of the embedder.

    Raises:
        UsageError: labels without an index, or without photos that they could name.
        InputError, IndexFolderError, LabelsError: one is missing, or not what it should be.
        MismatchError: the index was made by another embedder.
    """
    if labels is not None:
        if index is None:
            raise UsageError(
                "labels tell how far the answers of an index are off, and no index is given",
                hint="--index names one that this embedder made, or leave --labels out",
            )
        open_labels(labels, folder)
    if index is not None:
        made_by = read_index_manifest(index).embedder
        if (made_by.name, made_by.preprocessing) != (name, preprocessing):
            raise MismatchError(
                f"the index {index} was made by {made_by}, but the exported model is {name} ({preprocessing})",
                hint="give an index that the same weights made, or leave --index out",
            )


def compare_on_index(
    index: Path,
    labels: Path | None,
    pictures: Pictures,
    *,
    model: NDArray[np.float32],
    expected: NDArray[np.float32],
    identity: EmbedderIdentity,
) -> IndexParity:
    """Asks an index with both embeddings of each upright photo.

    Answers are made as the index itself would make them by default.

    Args:
        index: a folder.
        labels: a CSV of true places, its paths relative to the photos' folder.
        pictures: of the gate.
        model: (n, dim) float32 unit rows, by the exported model.
        expected: likewise, by torch.
        identity: of the embedder.

    Raises:
        UsageError, InputError, IndexFolderError, LabelsError, MismatchError: as `check_asked`, and where the labels
            name none of the photos.
    """
    check_asked(index, labels, folder=pictures.folder, name=identity.name, preprocessing=identity.preprocessing)
    stored = open_index(index)
    if stored.manifest.embedder != identity:
        raise MismatchError(
            f"the index {index} was made by {stored.manifest.embedder}, but the exported model is {identity}",
            hint="give an index that the same weights made, or leave --index out",
        )
    answer = stored.manifest.answer or Answer()
    truth = {} if labels is None else _true_places(labels, pictures)
    references = stored.references
    rows = pictures.photos
    by_torch = stored.index.search(expected[:rows], answer.k + _SPARE)
    by_model = stored.index.search(model[:rows], answer.k + _SPARE)
    compared, changed, model_km, torch_km = 0, [], [], []
    for row in range(rows):
        theirs, ours = _others(references, by_torch, pictures, row), _others(references, by_model, pictures, row)
        if not (len(theirs[0]) and len(ours[0])):
            continue
        compared += 1
        if not _same_answer(references, theirs, int(ours[0][0])):
            changed.append(row)
        if row in truth:
            torch_km.append(_distance_km(references, theirs, answer, truth[row]))
            model_km.append(_distance_km(references, ours, answer, truth[row]))
    return IndexParity(
        photos=compared,
        changed=tuple(changed),
        labelled=len(torch_km),
        model_km=float(np.median(model_km)) if model_km else float("nan"),
        torch_km=float(np.median(torch_km)) if torch_km else float("nan"),
    )


_Found = tuple["NDArray[np.int64]", "NDArray[np.float32]"]


def _others(references: References, neighbors: Neighbors, pictures: Pictures, row: int) -> _Found:
    """A photo's neighbours that are no copies of it: ids (c,) and similarities (c,), the most similar first."""
    ids = neighbors.ids[row]
    digests, hashes = references.content_sha256[ids], references.perceptual_hashes[ids]
    own = hash_distances(hashes, perceptual_hash(pictures.pixels[row])) <= NEAR_DUPLICATE_BITS
    # References without a digest are no photos, whatever stands in place of their hash.
    own &= digests.any(axis=1)
    if pictures.files:
        own |= (digests == pictures.content_sha256[row]).all(axis=1)
    return ids[~own], neighbors.similarities[row][~own]


def _same_answer(references: References, theirs: _Found, ours: int) -> bool:
    """Whether the model's first reference is torch's, or as good: at the same spot, or tied with it for torch."""
    ids, similarities = theirs
    if haversine_km(references.coordinates[ours], references.coordinates[ids[0]]) <= _SAME_SPOT_KM:
        return True
    tied = ids[similarities >= np.float64(similarities[0]) - _TIE]
    return bool((tied == ours).any())


def _distance_km(references: References, found: _Found, answer: Answer, truth: tuple[float, float]) -> float:
    ids, similarities = found[0][: answer.k], found[1][: answer.k]
    place = aggregate(references.coordinates[ids][None], similarities[None], answer)[0]
    return float(haversine_km(place, truth))


def _true_places(labels: Path, pictures: Pictures) -> dict[int, tuple[float, float]]:
    """Row of an upright photo to its latitude and longitude in degrees."""
    rows = {os.path.normpath(path): row for row, path in enumerate(pictures.files)}
    places: dict[int, tuple[float, float]] = {}
    for label in read_labels(open_labels(labels, pictures.folder)):
        row = rows.get(os.path.normpath(label.path))
        if row is not None and label.problem is None:
            places.setdefault(row, (label.latitude, label.longitude))
    if not places:
        raise InputError(
            f"{labels}: names none of the {len(rows)} photos that the model is held to",
            hint="its paths are relative to the folder of --photos",
        )
    return places
