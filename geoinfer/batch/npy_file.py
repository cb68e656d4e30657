"""Embeddings in a `.npy` file, mapped and read by blocks; nothing executable is ever loaded from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_MAKE: Final = "save a float32 array of shape (n, dim) with numpy.save"


@dataclass(frozen=True, slots=True)
class NpyFile:
    """A `.npy` file whose header makes sense and whose size fits it.

    Attributes:
        path: of the file.
        rows: n of its shape (n, dim).
        dim: length of an embedding.
        dtype: float16, float32 or float64, of either byte order.
        offset: where the numbers begin.
    """

    path: Path
    rows: int
    dim: int
    dtype: np.dtype[Any]
    offset: int

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """The embeddings in their order, so many rows at a time; the last has what is left.

        Raises:
            InputError: the file cannot be read to its end.
        """
        width = self.dim * self.dtype.itemsize
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                for start in range(0, self.rows, rows):
                    count = min(rows, self.rows - start)
                    content = file.read(count * width)
                    if len(content) < count * width:
                        raise InputError(f"{self.path}: was cut short while it was read")
                    yield np.frombuffer(content, self.dtype).reshape(count, self.dim)
        except OSError as error:
            if isinstance(error, InputError):
                raise
            raise _unreadable(self.path, error) from error


def open_npy(path: Path) -> NpyFile:
    """Reads the header of a `.npy` file, and makes sure that all of the numbers are there.

    Raises:
        InputError: it is missing, no `.npy` file, cut short or empty, or holds anything but rows of floats.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise InputError(f"{path}: a .npy file of version {version[0]}.{version[1]}", hint=_MAKE)
            shape, fortran_order, dtype = read[version](file)
            offset = file.tell()
            size = file.seek(0, 2)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(path, error) from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a .npy file, or damaged: {reason}", hint=_MAKE) from error
    if dtype.hasobject:
        raise InputError(f"{path}: holds pickled Python objects, which are never loaded", hint=_MAKE)
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise InputError(f"{path}: holds {dtype}; expected float32, float16 or float64", hint=_MAKE)
    if len(shape) != 2:
        raise InputError(f"{path}: an array of shape {shape}; expected two dimensions, (n, dim)", hint=_MAKE)
    if fortran_order:
        raise InputError(
            f"{path}: lies in Fortran order, column by column, so its rows cannot be streamed",
            hint="save numpy.ascontiguousarray(embeddings) instead",
        )
    rows, dim = shape
    if rows == 0 or dim == 0:
        raise InputError(f"{path}: an array of shape {shape}: there are no embeddings in it")
    expected = offset + rows * dim * dtype.itemsize
    if size != expected:
        what = "cut short" if size < expected else "followed by something else"
        raise InputError(f"{path}: {what}: {size} bytes, where {rows} x {dim} {dtype} take {expected}")
    return NpyFile(path, rows, dim, dtype, offset)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}")
