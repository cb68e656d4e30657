"""The weights of Pillow's resampling, worked out so that a kernel that adds whole numbers gives Pillow's own pixels.

Pillow resizes 8-bit pictures in fixed point (its `Resample.c`): each side is resampled by itself; a weight is a whole
number, 2^22 times its real value, rounded away from zero at the half; the products are added in 32 bits, one half is
added, and the sum is shifted down and cut to 0 to 255, between the two passes as well. What is left to get right is
the order in which floating-point numbers make the weights, that Pillow keeps the box it cuts out as 32-bit floats, and
which side comes first, which changed in Pillow 13.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import PIL

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from geoinfer.images.preprocessing import Interpolation

PRECISION_BITS: Final = 22
"""A weight of one is 2 to this power: 32 bits less the 8 of a pixel and 2 for filters that overshoot."""

_PILLOW: Final = int(PIL.__version__.partition(".")[0])


@dataclass(frozen=True, slots=True)
class Taps:
    """What each pixel along one side of the result is made of.

    Attributes:
        first: (size,) int32, the first pixel of the source that counts.
        count: (size,) int32, how many count from there on.
        weights: (most, size) int32, their weights times 2^22, zero beyond `count`. The result's pixels lie along the
            second axis, so that neighbouring threads of a GPU read neighbouring numbers.
    """

    first: NDArray[np.int32]
    count: NDArray[np.int32]
    weights: NDArray[np.int32]

    @property
    def reach(self) -> tuple[int, int]:
        """First and end of the source's pixels that count at all."""
        counted = self.count > 0
        if not counted.any():
            return 0, 0
        return int(self.first[counted].min()), int((self.first + self.count)[counted].max())


def rows_first(width: int, height: int, size: int, *, pillow: int = _PILLOW) -> bool:
    """Whether Pillow makes each row of a picture `size` wide before it makes the columns `size` high.

    Args:
        width: of the whole picture, in pixels, whatever part of it is kept.
        height: likewise.
        size: side of the result.
        pillow: major version.
    """
    return pillow < 13 or not (height > size and height - size > 2 * (width - size))


# A folder's photos mostly share a few sizes, so that their tables are made once.
@functools.lru_cache(maxsize=64)
def taps(source: int, start: float, end: float, size: int, interpolation: Interpolation) -> Taps:
    """Of one side.

    Args:
        source: length of the source's side, in pixels.
        start: where the box that is kept begins on it, 0 or more.
        end: where it ends, beyond `start` and at most `source`.
        size: length of the result's side.
        interpolation: the filter.

    Returns:
        Shared with other callers; not to be written to.
    """
    first_edge, last_edge = np.float32(start), np.float32(end)
    if interpolation == "nearest":
        return _nearest(source, first_edge, last_edge, size)
    kernel, radius = _KERNELS[interpolation]
    scale = float(last_edge - first_edge) / size
    stretch = max(scale, 1.0)
    support = radius * stretch
    centres = float(first_edge) + (np.arange(size) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centres + support + 0.5).astype(np.int64), source) - first
    offsets = np.arange(max(int(count.max()), 1))[:, None]
    weights = kernel((offsets + first - centres + 0.5) * (1.0 / stretch))
    weights[offsets >= count] = 0.0
    # Added one after the other, as Pillow does: NumPy's sum adds in pairs, and its last digit is another.
    total = np.add.accumulate(weights, axis=0)[-1]
    weights = np.divide(weights, total, out=weights, where=total != 0.0)
    scaled = weights * (1 << PRECISION_BITS)
    fixed = np.where(scaled < 0, scaled - 0.5, scaled + 0.5).astype(np.int32)
    return _frozen(first, count, fixed)


def _nearest(source: int, start: np.float32, end: np.float32, size: int) -> Taps:
    """Pillow does this by an affine transformation: it steps from pixel to pixel and lets the error of adding grow."""
    step = float(end - start) / size
    steps = np.full(size, step)
    steps[0] = float(start) + step * 0.5
    position = np.add.accumulate(steps).astype(np.int64)
    inside = position < source
    return _frozen(np.where(inside, position, 0), inside, inside[None] * (1 << PRECISION_BITS))


def _frozen(first: NDArray[np.int64], count: NDArray[np.integer | np.bool_], weights: NDArray[np.integer]) -> Taps:
    found = Taps(*(np.ascontiguousarray(values, np.int32) for values in (first, count, weights)))
    for values in (found.first, found.count, found.weights):
        values.flags.writeable = False
    return found


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = -1/2 (IEEE Transactions ASSP 29, 1981)."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = (x >= -3.0) & (x < 3.0)
    return np.where(inside, _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # The sine of the C library, which Pillow uses; NumPy's own differs from it in the last digit.
    angle = x * math.pi
    sine = np.array([math.sin(value) for value in angle.ravel().tolist()]).reshape(x.shape)
    return np.divide(sine, angle, out=np.ones_like(x), where=x != 0.0)


_KERNELS: Final[dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
