"""Arrays on the disk: `.npy` files that are written in order, shard by shard, and read in place."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import IndexFolderError

if TYPE_CHECKING:
    from io import BufferedRandom
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

_AGAIN: Final = "copy or build the index again"


class ArrayWriter:
    """Writes a (rows, columns) array whose number of rows is known at the end, and its checksum.

    The number stands at the file's beginning. Where it is foretold, the checksum is made while the rows are written;
    otherwise the file is read once more.
    """

    def __init__(self, file: BufferedRandom, dtype: DTypeLike, columns: int, rows: int | None) -> None:
        """Writes a header.

        Args:
            file: open for writing and reading, empty.
            dtype: of the values.
            columns: length of a row.
            rows: how many are expected; None where nobody knows.
        """
        self._file, self._dtype, self._columns = file, np.dtype(dtype), columns
        self._expected = rows
        self._rows = 0
        self._header = _header(self._dtype, (rows or 0, columns))
        self._digest = hashlib.sha256(self._header)
        file.write(self._header)

    def add(self, rows: NDArray[Any]) -> None:
        """Appends (m, columns) rows, converted to the file's dtype."""
        array = np.ascontiguousarray(rows, self._dtype)
        assert array.shape[1:] == (self._columns,)
        if not array.size:
            return
        self._rows += len(array)
        data = array.reshape(-1).view(np.uint8).data
        self._file.write(data)
        if self._expected is not None:
            self._digest.update(data)

    def finish(self) -> str:
        """Completes the header and returns the file's SHA-256 in hexadecimal."""
        if self._rows != self._expected:
            header = _header(self._dtype, (self._rows, self._columns))
            assert len(header) == len(self._header)
            self._file.seek(0)
            self._file.write(header)
            self._file.seek(0)
            self._digest = hashlib.file_digest(self._file, "sha256")
        return self._digest.hexdigest()


def _header(dtype: np.dtype[Any], shape: tuple[int, int]) -> bytes:
    """NumPy's own: of a length divisible by 64, with room for any number of rows."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def open_array(path: Path, dtype: DTypeLike, columns: int, rows: int) -> NDArray[Any]:
    """Maps a file that `ArrayWriter` wrote, read-only.

    Args:
        path: the file.
        dtype: of the values.
        columns: length of a row.
        rows: how many the manifest speaks of.

    Raises:
        IndexFolderError: it is no such array, has other rows or columns, or was cut short.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # tokenize, struct, SyntaxError and more: each its own for a damaged header
        raise IndexFolderError(f"{path}: damaged: not an array that can be mapped: {error}", hint=_AGAIN) from error
    # An .npz archive under this name loads as something else.
    if not isinstance(mapped, np.ndarray) or not mapped.flags.c_contiguous:
        raise IndexFolderError(f"{path}: damaged: not an array that can be mapped", hint=_AGAIN)
    if mapped.dtype != np.dtype(dtype) or mapped.shape != (rows, columns):
        raise IndexFolderError(
            f"{path}: holds {' x '.join(map(str, mapped.shape))} {mapped.dtype}; manifest.json speaks of "
            f"{rows} x {columns} {np.dtype(dtype)}",
            hint=_AGAIN,
        )
    # Without the subclass, which every view of it would carry along; the mapping lives as long as the array.
    return np.asarray(mapped)
