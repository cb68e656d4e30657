"""From a decoded picture, as it is stored, to the upright square that a model sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.images.preprocessing import Preprocessing

_RESAMPLING: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TRANSPOSES: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded picture that is not resized yet.

    Attributes:
        image: RGB, lying as it is stored, perhaps decoded at a smaller scale.
        orientation: EXIF, 1 to 8.
        full_size: (width, height) as stored in the file.
        scale: of `image` against the full size, at most 1.
    """

    image: Image.Image
    orientation: int
    full_size: tuple[int, int]
    scale: float = 1.0


def resize_decoded(
    decoded: Decoded, preprocessing: Preprocessing, out: NDArray[np.uint8] | None = None, *, keep_shape: bool = False
) -> NDArray[np.uint8]:
    """Resizes the part that is kept, then turns the small result upright: far cheaper than turning the large one.

    Args:
        decoded: of `geoinfer.images.decode_image`.
        preprocessing: what the model wants.
        out: (size, size, 3) uint8, where to write; a new array without it.
        keep_shape: cut and squash nothing: the longer side becomes `size`, or stays where it is shorter already.

    Returns:
        (size, size, 3) uint8, RGB, `out` where it is given; (height, width, 3) with `keep_shape`.
    """
    size = preprocessing.size
    target = (size, size)
    if keep_shape:
        width, height = oriented_size(*decoded.full_size, decoded.orientation)
        shrink = min(size / max(width, height), 1.0)
        upright = (max(round(width * shrink), 1), max(round(height * shrink), 1))
        target = oriented_size(*upright, decoded.orientation)
    resized = decoded.image.resize(
        target, _RESAMPLING[preprocessing.interpolation], box=kept_box(decoded, preprocessing)
    )
    if decoded.orientation in _TRANSPOSES:
        resized = resized.transpose(_TRANSPOSES[decoded.orientation])
    if out is None:
        return np.array(resized, dtype=np.uint8)
    out[...] = np.asarray(resized)
    return out


def kept_box(decoded: Decoded, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """The region of `decoded.image` that the model sees, (left, top, right, bottom) in its pixels.

    The crop is worked out on the upright picture of full size and carried back, so that every order of scaling,
    turning and cutting gives the same pixels.
    """
    size = preprocessing.size
    width, height = oriented_size(*decoded.full_size, decoded.orientation)
    box = (0.0, 0.0, float(width), float(height))
    if preprocessing.resize != "squash":
        # As "resize the shorter side to `size`, round the longer, cut the centre" does, in one step.
        whole = round if preprocessing.resize == "crop" else math.floor
        scaled = (
            (size, max(size, whole(height * size / width)))
            if width <= height
            else (max(size, whole(width * size / height)), size)
        )
        # Half a pixel is rounded to the even one by torchvision, left out by the others.
        middle = round if preprocessing.resize == "crop_torchvision" else math.floor
        left, top = middle((scaled[0] - size) / 2), middle((scaled[1] - size) / 2)
        sx, sy = width / scaled[0], height / scaled[1]
        box = (left * sx, top * sy, (left + size) * sx, (top + size) * sy)
    x0, y0, x1, y1 = (edge * decoded.scale for edge in _unorient_box(box, width, height, decoded.orientation))
    # Rounding may carry an edge a hair beyond the picture, which Pillow refuses.
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(decoded.image.width)), min(y1, float(decoded.image.height))


def oriented_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """(width, height) after EXIF `orientation` (1 to 8) is applied."""
    return (height, width) if orientation >= 5 else (width, height)


def _unorient_box(
    box: tuple[float, float, float, float], width: int, height: int, orientation: int
) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) on the upright picture of width x height, as it lies on the stored one."""
    left, top, right, bottom = box
    mirrored = (width - right, width - left)
    flipped = (height - bottom, height - top)
    # The value of each orientation says which upright side the first row and column lie on (EXIF 2.32, tag 274).
    x0, x1, y0, y1 = {
        1: (left, right, top, bottom),
        2: (*mirrored, top, bottom),
        3: (*mirrored, *flipped),
        4: (left, right, *flipped),
        5: (top, bottom, left, right),
        6: (top, bottom, *mirrored),
        7: (*flipped, *mirrored),
        8: (*flipped, left, right),
    }[orientation]
    return x0, y0, x1, y1
