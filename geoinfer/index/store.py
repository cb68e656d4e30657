"""A reference index on the disk: one folder, checked against its manifest when it is opened, and read in place.

manifest.json               format version, kind, size, embedder identity, checksums, how to search and to answer
vectors.npy                 (n, dim) the embeddings, float32, or float16 for the kinds flat-fp16, sq8 and ivf-pq
coordinates.npy             (n, 2) float64 degrees
digests.npy                 (n, 64) uint8, SHA-256 of each file and perceptual hash of each picture
references.arrow            id, source, attribution, sequence
search.faiss                what an approximate kind searches
leave_one_out-<digest>.npz  neighbours of photos whose place is known, for calibration

The files of n rows are mapped: opening them takes neither time nor memory, and processes share one copy. Of files of
more than 64 MiB the sizes alone are compared when they are opened; `geoinfer index info --verify` reads them all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from geoinfer.bundle import HASHED_AT_OPEN
from geoinfer.errors import GeoInferError, IndexFolderError, OutputError
from geoinfer.geodesy import as_coordinates
from geoinfer.index.array_file import open_array
from geoinfer.index.base import References
from geoinfer.index.exchange import check_no_bundle, index_lock
from geoinfer.index.flat import FlatIndex
from geoinfer.index.leave_one_out_file import read_leave_one_out, write_leave_one_out
from geoinfer.index.manifest import (
    COORDINATES,
    DIGESTS,
    EXACT_KINDS,
    HALF_KINDS,
    LEAVE_ONE_OUT,
    MANIFEST,
    REFERENCES,
    SEARCH,
    VECTORS,
    IndexManifest,
    checked_parameters,
    read_index_manifest,
)
from geoinfer.index.references_table import open_table
from geoinfer.integrity import write_json

if TYPE_CHECKING:
    from geoinfer.answer import Answer
    from geoinfer.index.base import ReferenceIndex, Vectors
    from geoinfer.index.leave_one_out import LeaveOneOut


@dataclass(frozen=True, slots=True)
class StoredIndex:
    """An index that was opened from its folder."""

    folder: Path
    manifest: IndexManifest
    index: ReferenceIndex
    references: References
    leave_one_out: LeaveOneOut


def open_index(folder: Path) -> StoredIndex:
    """Opens an index for searching.

    Raises:
        InputError: there is no such folder.
        IndexFolderError: it is not an index, is of another version, or is damaged.
        MissingPackageError: FAISS is not installed.
    """
    manifest = read_index_manifest(folder)
    index = open_search_of(folder, manifest)
    references = open_references(folder, manifest)
    path = folder / manifest.leave_one_out
    held_out = read_leave_one_out(path, manifest.size)
    if len(held_out.rows) != manifest.calibrated_on:
        raise IndexFolderError(
            f"{path}: holds {len(held_out.rows)} photos, {MANIFEST} says {manifest.calibrated_on}",
            hint="build the index again",
        )
    return StoredIndex(folder, manifest, index, references, held_out)


def open_vectors(folder: Path, manifest: IndexManifest) -> Vectors:
    """The embeddings of an index, mapped.

    Raises:
        IndexFolderError: the file is damaged.
    """
    dtype = np.float16 if manifest.kind in HALF_KINDS else np.float32
    return open_array(folder / VECTORS, dtype, manifest.embedder.dim, manifest.size)


def open_search_of(folder: Path, manifest: IndexManifest) -> ReferenceIndex:
    """What searches the index: over the vectors themselves, or by `search.faiss`.

    Raises:
        IndexFolderError: a file is damaged.
        MissingPackageError: FAISS is not installed.
    """
    vectors = open_vectors(folder, manifest)
    if manifest.kind not in EXACT_KINDS:
        from geoinfer.index.search_file import open_search

        return open_search(folder / SEARCH, manifest.kind, vectors, manifest.parameters)
    try:
        return FlatIndex(vectors, checked=_is_large(folder / VECTORS))
    except ValueError as error:
        raise IndexFolderError(f"{folder / VECTORS}: damaged: {error}", hint="copy or build the index again") from error


def open_references(folder: Path, manifest: IndexManifest) -> References:
    """What is known of the references of an index, mapped.

    Raises:
        IndexFolderError: a file is damaged.
    """
    coordinates = open_array(folder / COORDINATES, np.float64, 2, manifest.size)
    digests = open_array(folder / DIGESTS, np.uint8, 64, manifest.size)
    texts = open_table(folder / REFERENCES, checked=not _is_large(folder / REFERENCES))
    if len(texts["id"]) != manifest.size:
        raise IndexFolderError(
            f"{folder / REFERENCES}: holds {len(texts['id'])} references, {MANIFEST} says {manifest.size}",
            hint="build the index again",
        )
    if not _is_large(folder / COORDINATES):
        try:
            as_coordinates(coordinates)
        except ValueError as error:
            raise IndexFolderError(f"{folder / COORDINATES}: damaged: {error}", hint="build the index again") from error
    return References(
        ids=texts["id"],
        coordinates=coordinates,
        sources=texts["source"],
        attributions=texts["attribution"],
        content_sha256=digests[:, :32],
        perceptual_hashes=digests[:, 32:],
        sequences=texts["sequence"],
    )


def update_index(
    folder: Path,
    *,
    answer: Answer | EllipsisType | None = ...,
    calibration: LeaveOneOut | EllipsisType = ...,
    parameters: dict[str, float] | EllipsisType = ...,
    recall: dict[str, Any] | EllipsisType | None = ...,
    tuning: list[dict[str, Any]] | EllipsisType | None = ...,
) -> IndexManifest:
    """Changes what an index says of itself; what is left out stays. The files of its references are not touched.

    A kill leaves the index as it was or as it is to be.

    Args:
        folder: the index.
        answer: how to answer where nobody says otherwise; None for the general defaults.
        calibration: what to learn errors from.
        parameters: what the search is run with.
        recall: how much of the exact answer it finds with them.
        tuning: the table that they were chosen from.

    Raises:
        InputError: there is no such folder.
        IndexFolderError: it is not an index, or is damaged.
        ValueError: a parameter is no finite number.
        OutputError: it cannot be written, or another process is writing it.
    """
    folder = Path(os.path.abspath(folder))
    check_no_bundle(folder)
    try:
        with index_lock(folder):
            manifest = read_index_manifest(folder)
            changes: dict[str, Any] = {
                name: value
                for name, value in (("answer", answer), ("recall", recall), ("tuning", tuning))
                if not isinstance(value, EllipsisType)
            }
            if not isinstance(parameters, EllipsisType):
                changes["parameters"] = checked_parameters(parameters)
            if not isinstance(calibration, EllipsisType):
                name, entry = write_leave_one_out(folder, calibration)
                kept = {name: entry for name, entry in manifest.files.items() if not LEAVE_ONE_OUT.fullmatch(name)}
                changes |= {"files": kept | {name: entry}, "calibrated_on": len(calibration.rows)}
            changed = replace(manifest, **changes)
            write_json(folder / MANIFEST, changed.as_dict())
            for name in os.listdir(folder):
                if LEAVE_ONE_OUT.fullmatch(name) and name not in changed.files:
                    os.unlink(folder / name)
    except OSError as error:
        if isinstance(error, GeoInferError):
            raise
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"{folder}: the index cannot be changed: {reason}") from error
    return changed


def _is_large(path: Path) -> bool:
    """Whether a file's checksum was not looked at when it was opened."""
    return path.stat().st_size > HASHED_AT_OPEN
