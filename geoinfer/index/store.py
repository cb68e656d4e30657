"""A reference index on the disk: one folder, checked against its manifest when it is opened.

manifest.json          format version, size, embedder identity, checksums
vectors.faiss          the embeddings, as a FAISS index
references.parquet     id, latitude, longitude, source, attribution, sequence, digests
leave_one_out.npz      neighbours of photos whose place is known, for calibration
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.answer import Answer
from geoinfer.backends.base import EmbedderIdentity
from geoinfer.bundle import check_files, describe_files, is_bundle, read_manifest
from geoinfer.errors import IndexFolderError, InputError, OutputError
from geoinfer.geocells import cell_ids
from geoinfer.geodesy import as_coordinates
from geoinfer.index.base import References
from geoinfer.index.faiss_index import FaissFlatIndex
from geoinfer.index.leave_one_out import LeaveOneOut, leave_one_out
from geoinfer.integrity import sync_file, sync_folder, temporary_name, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.index.base import ReferenceIndex

INDEX_FORMAT: Final = "geoinfer-index"
INDEX_VERSION: Final = 1
COVERAGE_LEVEL: Final = 6
"""S2 level at which a manifest counts the cells that hold references; a cell is about 140 km wide."""

_VECTORS, _REFERENCES, _LEAVE_ONE_OUT = "vectors.faiss", "references.parquet", "leave_one_out.npz"
_DIGEST_BYTES: Final = 32
_LARGEST_SCALE: Final = 1e6


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """What `manifest.json` says.

    Attributes:
        kind: of the index; `flat`.
        size: number of references.
        embedder: which embedder made the embeddings.
        geocells: number of S2 cells of level 6 with at least one reference.
        calibrated_on: number of photos that calibration learns from.
        fingerprint: SHA-256 over the checksums of all files and the scale; two indexes with the same one, asked in the
            same way, answer the same.
        files: name to {"bytes", "sha256"}.
        answer: how to answer where nobody says otherwise; None for the general defaults.
        logit_scale: what similarities are multiplied by before the softmax that makes probabilities of them; None where
            they have no such meaning.
    """

    kind: str
    size: int
    embedder: EmbedderIdentity
    geocells: int
    calibrated_on: int
    fingerprint: str
    files: dict[str, dict[str, Any]]
    answer: Answer | None = None
    logit_scale: float | None = None


@dataclass(frozen=True, slots=True)
class StoredIndex:
    """An index that was opened from its folder."""

    folder: Path
    manifest: IndexManifest
    index: ReferenceIndex
    references: References
    leave_one_out: LeaveOneOut


def write_index(
    folder: Path,
    vectors: NDArray[np.float32],
    references: References,
    embedder: EmbedderIdentity,
    *,
    calibration: LeaveOneOut | None = None,
    answer: Answer | None = None,
    logit_scale: float | None = None,
) -> IndexManifest:
    """Writes an index; the folder appears whole or not at all.

    Args:
        folder: must not exist.
        vectors: (n, dim) float32, unit rows.
        references: n of them, in the same order.
        embedder: what made the vectors.
        calibration: what to learn errors from; the references, each among the others, if left out. Where they are no
            photos, `held_out_photos` of others, or `LeaveOneOut.empty()`.
        answer: how to answer where nobody says otherwise.
        logit_scale: see `IndexManifest`.

    Raises:
        ValueError: nothing to index, lengths or dimensions differ, or the scale is not above 0 and at most a million.
        OutputError: the folder exists or cannot be written.
    """
    if len(references) != len(vectors):
        raise ValueError(f"{len(vectors)} embeddings for {len(references)} references")
    if os.path.lexists(folder):
        raise OutputError(f"{folder}: exists already")
    extras: dict[str, Any] = {} if answer is None else {"answer": answer.as_dict()}
    if logit_scale is not None:
        extras["logit_scale"] = _checked_scale(logit_scale)
    index = FaissFlatIndex(vectors)
    if index.dim != embedder.dim:
        raise ValueError(f"embeddings of {index.dim} dimensions from an embedder of {embedder.dim}")
    temporary = folder.with_name(folder.name + ".tmp")
    _remove_leftovers(temporary)
    try:
        temporary.mkdir(parents=True)
        index.write(temporary / _VECTORS)
        _write_references(temporary / _REFERENCES, references)
        held_out = leave_one_out(index, references) if calibration is None else calibration
        _write_leave_one_out(temporary / _LEAVE_ONE_OUT, held_out)
        write_json(
            temporary / "manifest.json",
            {
                "format": INDEX_FORMAT,
                "version": INDEX_VERSION,
                "kind": "flat",
                "size": index.size,
                "embedder": embedder.as_dict(),
                "geocells": len(np.unique(cell_ids(references.coordinates, COVERAGE_LEVEL))),
                "calibrated_on": len(held_out.rows),
                "files": describe_files(temporary, [_VECTORS, _REFERENCES, _LEAVE_ONE_OUT]),
                **extras,
            },
        )
        for name in (_VECTORS, _REFERENCES, _LEAVE_ONE_OUT):
            sync_file(temporary / name)
        temporary.replace(folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, (OSError, RuntimeError)) or isinstance(error, OutputError):
            raise
        # FAISS reports a failed write as a RuntimeError of several lines.
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise OutputError(f"{folder}: the index cannot be written: {reason}") from error
    return read_index_manifest(folder)


def read_index_manifest(folder: Path, *, verify: bool = False) -> IndexManifest:
    """Reads the manifest and compares the files with it.

    Args:
        folder: the index.
        verify: hash the large files too.

    Raises:
        InputError: there is no such folder.
        IndexFolderError: it is not an index, is of another version, or is damaged.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir, it raises nothing, for a name that is too long, say
        raise InputError(
            f"{folder}: there is no such index", hint="`geoinfer index build` makes one; --index takes its folder"
        )
    if is_bundle(folder):
        raise IndexFolderError(f"{folder}: this is a bundle, not an index", hint=f"its index is {folder / 'index'}")
    values = read_manifest(folder / "manifest.json", INDEX_FORMAT, INDEX_VERSION, IndexFolderError, "index")
    files = values["files"]
    missing = {_VECTORS, _REFERENCES, _LEAVE_ONE_OUT} - set(files)
    if missing:
        raise IndexFolderError(f"{folder}/manifest.json: does not list {', '.join(sorted(missing))}")
    try:
        answer = Answer.from_dict(values["answer"]) if "answer" in values else None
        scale = _checked_scale(values["logit_scale"]) if "logit_scale" in values else None
        manifest = IndexManifest(
            kind=str(values["kind"]),
            size=int(values["size"]),
            embedder=EmbedderIdentity.from_dict(values["embedder"]),
            geocells=int(values["geocells"]),
            calibrated_on=int(values["calibrated_on"]),
            fingerprint=_fingerprint(files, scale),
            files=files,
            answer=answer,
            logit_scale=scale,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise IndexFolderError(f"{folder}/manifest.json: damaged: {reason}", hint="build the index again") from error
    if manifest.kind != "flat":
        raise IndexFolderError(
            f"{folder}/manifest.json: an index of kind {manifest.kind!r}; this geoinfer reads flat ones",
            hint="install a geoinfer that fits, or build the index again",
        )
    check_files(folder, files, IndexFolderError, verify=verify)
    return manifest


def open_index(folder: Path) -> StoredIndex:
    """Opens an index for searching.

    Raises:
        InputError: there is no such folder.
        IndexFolderError: it is not an index, is of another version, or is damaged.
        MissingPackageError: FAISS is not installed.
    """
    manifest = read_index_manifest(folder)
    index = FaissFlatIndex.read(folder / _VECTORS)
    references = _read_references(folder / _REFERENCES)
    held_out = _read_leave_one_out(folder / _LEAVE_ONE_OUT, len(references))
    sizes = {manifest.size, index.size, len(references)}
    if len(sizes) != 1 or index.dim != manifest.embedder.dim:
        raise IndexFolderError(
            f"{folder}: manifest.json speaks of {manifest.size} references of {manifest.embedder.dim} dimensions, the "
            f"FAISS index holds {index.size} of {index.dim}, the table {len(references)}",
            hint="build the index again",
        )
    if len(held_out.rows) != manifest.calibrated_on:
        raise IndexFolderError(
            f"{folder / _LEAVE_ONE_OUT}: holds {len(held_out.rows)} photos, manifest.json says "
            f"{manifest.calibrated_on}",
            hint="build the index again",
        )
    return StoredIndex(folder, manifest, index, references, held_out)


def _remove_leftovers(temporary: Path) -> None:
    """Removes what a killed run left behind, and nothing else that happens to have the name."""
    ours = {_VECTORS, _REFERENCES, _LEAVE_ONE_OUT, "manifest.json", temporary_name(temporary / "manifest.json").name}
    others = sorted(set(os.listdir(temporary)) - ours) if os.path.isdir(temporary) else []
    if others:
        raise OutputError(
            f"{temporary}: holds {others[0]}, and an index is written there first",
            hint="move that folder away, or choose another --output",
        )
    shutil.rmtree(temporary, ignore_errors=True)


def _fingerprint(files: dict[str, Any], scale: float | None) -> str:
    import hashlib

    parts = [files[name]["sha256"] for name in sorted(files)] + ([] if scale is None else [repr(scale)])
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _checked_scale(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"logit_scale is {value!r}; expected a number")
    if not 0 < value <= _LARGEST_SCALE:  # NaN compares false
        raise ValueError(f"logit_scale is {value!r}; expected a number above 0, at most {_LARGEST_SCALE:g}")
    return float(value)


def _schema() -> Any:
    import pyarrow as pa

    digest = pa.binary(_DIGEST_BYTES)
    return pa.schema(
        [
            ("id", pa.string()),
            ("latitude", pa.float64()),
            ("longitude", pa.float64()),
            ("source", pa.string()),
            ("attribution", pa.string()),
            ("sequence", pa.string()),
            ("content_sha256", digest),
            ("perceptual_hash", digest),
        ]
    )


def _write_references(path: Path, references: References) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        [
            list(references.ids),
            references.coordinates[:, 0],
            references.coordinates[:, 1],
            list(references.sources),
            list(references.attributions),
            list(references.sequences or [""] * len(references)),
            [row.tobytes() for row in references.content_sha256],
            [row.tobytes() for row in references.perceptual_hashes],
        ],
        schema=_schema(),
    )
    with path.open("wb") as file:  # pyarrow itself opens only names that are UTF-8
        pq.write_table(table, file, compression="zstd")


def _read_references(path: Path) -> References:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read()  # unlike `read_table`, it does not import the half of pyarrow
        for field in schema:
            if field.name not in table.column_names:
                raise ValueError(f"it has no column {field.name}")
            column = table[field.name]
            if column.type != field.type or column.null_count:
                raise ValueError(f"column {field.name} is {column.type}; expected {field.type} without gaps")
        coordinates = np.stack([table["latitude"].to_numpy(), table["longitude"].to_numpy()], axis=1)
        return References(
            ids=table["id"].to_pylist(),
            coordinates=as_coordinates(coordinates),
            sources=table["source"].to_pylist(),
            attributions=table["attribution"].to_pylist(),
            content_sha256=_digests(table["content_sha256"]),
            perceptual_hashes=_digests(table["perceptual_hash"]),
            sequences=table["sequence"].to_pylist(),
        )
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise IndexFolderError(f"{path}: not a table of references: {error}", hint="build the index again") from error


def _digests(column: Any) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, _DIGEST_BYTES)


def _write_leave_one_out(path: Path, held_out: LeaveOneOut) -> None:
    arrays: dict[str, Any] = {
        "rows": held_out.rows.astype(np.int32),
        "ids": held_out.ids.astype(np.int32),
        "similarities": held_out.similarities,
    }
    if held_out.places is not None:
        arrays["places"] = held_out.places
    np.savez(path, **arrays)


def _read_leave_one_out(path: Path, size: int) -> LeaveOneOut:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rows, ids, similarities = arrays["rows"], arrays["ids"], arrays["similarities"]
            places = arrays["places"] if "places" in arrays.files else None
    except Exception as error:  # zipfile, zlib, struct, tokenize: each raises its own for damaged bytes
        raise IndexFolderError(f"{path}: damaged: {error}", hint="build the index again") from error
    fits = (
        (rows.dtype.kind, ids.dtype.kind, similarities.dtype) == ("i", "i", np.float32)
        and rows.ndim == 1
        and ids.ndim == 2
        and len(rows) == len(ids)
        and ids.shape == similarities.shape
        and bool(((rows >= (0 if places is None else -1)) & (rows < size)).all())
        and bool(((ids >= -1) & (ids < size)).all())
        and bool(np.isfinite(similarities).all())
        and (places is None or _are_places(places, len(rows)))
    )
    if not fits:
        raise IndexFolderError(f"{path}: does not belong to this index", hint="build the index again")
    return LeaveOneOut(rows.astype(np.int64), ids.astype(np.int64), similarities, places)


def _are_places(values: NDArray[Any], count: int) -> bool:
    if values.dtype != np.float64 or values.shape != (count, 2):
        return False
    with contextlib.suppress(ValueError):
        as_coordinates(values)
        return True
    return False
