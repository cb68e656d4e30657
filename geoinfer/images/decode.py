"""Decode, orient and resize: bytes of a photo to the `(size, size, 3)` uint8 pixels that a model sees.

The result is within 2/255 on average of decoding the whole picture with Pillow, turning it upright, and resizing it
with the same antialiased filter; a test holds every photo to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from geoinfer.errors import ImageError
from geoinfer.images.decode_jpeg import decode_jpeg
from geoinfer.images.decode_pillow import decode_by_pillow
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.problems import damaged
from geoinfer.images.read import raw_problem, read_image_file
from geoinfer.images.resize import Decoded, resize_decoded

if TYPE_CHECKING:
    from numpy.typing import NDArray


def load_pixels(path: bytes, preprocessing: Preprocessing, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Reads and decodes one photo.

    Args:
        path: bytes, as the operating system gives them.
        preprocessing: what the model wants.
        out: (size, size, 3) uint8, where to write, as a slot of a batch; a new array without it.

    Returns:
        (size, size, 3) uint8, RGB; `out` where it is given.

    Raises:
        ImageError: as `read_image_file` and `decode_pixels`.
    """
    raw = raw_problem(path)
    if raw is not None:
        raise raw
    data, kind = read_image_file(path)
    return decode_pixels(data, kind, preprocessing, out)


def decode_pixels(
    data: bytes, kind: str, preprocessing: Preprocessing, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Decodes, orients and resizes a photo's bytes.

    Args:
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.
        preprocessing: what the model wants.
        out: (size, size, 3) uint8, where to write; a new array without it. Untouched where this raises.

    Returns:
        (size, size, 3) uint8, RGB; `out` where it is given.

    Raises:
        ImageError: stage `decode` with code `truncated`, `corrupt`, `too_many_pixels`, `heic_support_missing`,
            `not_enough_memory` or `unsupported_variant`.
    """
    return _resized(decode_image(data, kind, preprocessing, reuse_memory=True), data, kind, preprocessing, out)


def decode_whole(data: bytes, kind: str, longest: int) -> NDArray[np.uint8]:
    """Decodes and orients a photo's bytes and makes it small, as a person looks at it: nothing is cut or squashed.

    Args:
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.
        longest: neither side of the result is longer, in pixels; a smaller photo stays as it is.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ImageError: as `decode_pixels`.
    """
    preprocessing = Preprocessing(size=longest, resize="squash")
    decoded = decode_image(data, kind, preprocessing, reuse_memory=True)
    return _resized(decoded, data, kind, preprocessing, None, keep_shape=True)


def decode_image(data: bytes, kind: str, preprocessing: Preprocessing, *, reuse_memory: bool = False) -> Decoded:
    """Decodes a photo's bytes, a JPEG no larger than `preprocessing` needs, for `resize_decoded` to go on with.

    Args:
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.
        preprocessing: what the model wants.
        reuse_memory: a JPEG's picture lies in memory that the next photo which this thread decodes overwrites. That
            is faster by far than new memory for each.

    Raises:
        ImageError: as `decode_pixels`.
    """
    try:
        decoded = decode_jpeg(data, preprocessing, reuse_memory=reuse_memory) if kind == "jpeg" else None
        return decode_by_pillow(data, kind) if decoded is None else decoded
    except ImageError as error:
        error.size_bytes = len(data)
        raise


def pixels_from_array(
    array: NDArray[np.uint8], preprocessing: Preprocessing, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Resizes a picture that is already decoded and upright, (height, width, 3) uint8 RGB, any size.

    Raises:
        ImageError: stage `decode`, code `unsupported_variant`: another dtype or shape.
    """
    picture = np.asarray(array)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ImageError(
            "decode",
            "unsupported_variant",
            f"the array is {picture.dtype} of shape {picture.shape}; expected uint8 (height, width, 3), RGB",
        )
    image = Image.fromarray(np.ascontiguousarray(picture))
    return resize_decoded(Decoded(image, 1, image.size), preprocessing, out)


def _resized(
    decoded: Decoded,
    data: bytes,
    kind: str,
    preprocessing: Preprocessing,
    out: NDArray[np.uint8] | None,
    *,
    keep_shape: bool = False,
) -> NDArray[np.uint8]:
    try:
        return resize_decoded(decoded, preprocessing, out, keep_shape=keep_shape)
    except MemoryError as error:
        failure = damaged(error, data, kind)
        failure.size_bytes = len(data)
        raise failure from error
