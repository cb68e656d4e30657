"""`leave_one_out-*.npz`: what calibration learns from, on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from geoinfer.errors import IndexFolderError
from geoinfer.geodesy import as_coordinates
from geoinfer.index.leave_one_out import LeaveOneOut
from geoinfer.integrity import atomic_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def write_leave_one_out(folder: Path, held_out: LeaveOneOut) -> tuple[str, dict[str, Any]]:
    """Writes the file, whole and on the disk; returns its name, which its contents give it, and its manifest entry."""
    arrays: dict[str, Any] = {
        "rows": held_out.rows.astype(np.int32),
        "ids": held_out.ids.astype(np.int32),
        "similarities": held_out.similarities,
    }
    if held_out.places is not None:
        arrays["places"] = held_out.places
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    name = f"leave_one_out-{digest[:16]}.npz"
    with atomic_file(folder / name) as file:
        file.write(data)
    return name, {"bytes": len(data), "sha256": digest}


def read_leave_one_out(path: Path, size: int) -> LeaveOneOut:
    """Reads the file.

    Args:
        path: the file.
        size: number of references in the index.

    Raises:
        IndexFolderError: it is damaged, or speaks of other references.
    """
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
