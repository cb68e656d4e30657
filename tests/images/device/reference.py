"""What the kernels do, said in NumPy: for tests of everything around them, and as their oracle's twin."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from geoinfer.images.device import kernel
from geoinfer.images.device.plan import PASS
from geoinfer.images.device.resample import PRECISION_BITS, taps

if TYPE_CHECKING:
    from geoinfer.images.device.resample import Taps
    from geoinfer.images.preprocessing import Interpolation


def along(pixels: np.ndarray, table: Taps) -> np.ndarray:
    """Resamples the first axis of whole numbers, in 64 bits."""
    sums = np.full((len(table.first), *pixels.shape[1:]), 1 << (PRECISION_BITS - 1), np.int64)
    for step, weights in enumerate(table.weights):
        counted = step < table.count
        rows = pixels[np.where(counted, table.first + step, 0)].astype(np.int64)
        sums += rows * np.where(counted, weights, 0).reshape(-1, *[1] * (pixels.ndim - 1))
    return np.clip(sums >> PRECISION_BITS, 0, 255).astype(np.uint8)


def resized(
    pixels: np.ndarray, size: int, how: Interpolation, box: tuple[float, ...], *, rows_first: bool
) -> np.ndarray:
    """(size, size, 3) of (height, width, 3): the two passes, in the order asked for."""
    height, width = pixels.shape[:2]
    across, down = taps(width, box[0], box[2], size, how), taps(height, box[1], box[3], size, how)
    if rows_first:
        return along(along(pixels.swapaxes(0, 1), across).swapaxes(0, 1), down)
    return along(along(pixels, down).swapaxes(0, 1), across).swapaxes(0, 1)


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
    8: lambda p: p.swapaxes(0, 1)[::-1],
}
"""From a picture as stored to the upright one, by EXIF orientation."""


def run_passes(name: str, grid: tuple[int, ...], block: tuple[int, ...], passes: int) -> None:
    """A kernel over passes that lie at an address of this process; checks that the grid covers them."""
    assert block == ((kernel.ACROSS, kernel.DOWN) if name == kernel.ALONG_ROWS else (kernel.ACROSS * kernel.DOWN, 1))
    for record in np.frombuffer(_memory(passes, grid[2] * PASS.itemsize), PASS):
        one = {field: int(record[field]) for field in PASS.names}
        size, lines = one["size"], one["lines"]
        first, count = (_numbers(one[field], (size,)) for field in ("first", "count"))
        weights = _numbers(one["weights"], (int(count.max()), size))
        end = int((first + count).max())
        if name == kernel.ALONG_ROWS:
            assert grid[0] * kernel.ACROSS >= size
            assert grid[1] * kernel.DOWN >= lines
            rows = _rows(one["source"], one["source_pitch"], lines, 3 * end).reshape(lines, end, 3)
            made = _weighed(rows.swapaxes(0, 1), first, count, weights).swapaxes(0, 1)
        else:
            assert grid[0] * kernel.ACROSS * kernel.DOWN >= lines
            assert grid[1] >= size
            begin = int(first[count > 0].min(initial=end))
            rows = np.zeros((end, lines), np.uint8)
            rows[begin:] = _rows(one["source"] + begin * one["source_pitch"], one["source_pitch"], end - begin, lines)
            made = _weighed(rows, first, count, weights).reshape(size, lines // 3, 3)
        upright = TURNS[one["orientation"]](made)
        _rows(one["target"], one["target_pitch"], len(upright), upright.shape[1] * 3)[...] = upright.reshape(
            len(upright), -1
        )


def _weighed(pixels: np.ndarray, first: np.ndarray, count: np.ndarray, weights: np.ndarray) -> np.ndarray:
    from geoinfer.images.device.resample import Taps

    return along(pixels, Taps(first, count, weights))


def _memory(address: int, size: int) -> Any:
    return (ctypes.c_uint8 * size).from_address(address)


def _numbers(address: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(_memory(address, 4 * int(np.prod(shape))), np.int32).reshape(shape)


def _rows(address: int, pitch: int, rows: int, used: int) -> np.ndarray:
    """(rows, used) bytes, `pitch` apart, to read and write."""
    whole = np.frombuffer(_memory(address, pitch * (rows - 1) + used), np.uint8)
    return np.lib.stride_tricks.as_strided(whole, (rows, used), (pitch, 1), writeable=True)
