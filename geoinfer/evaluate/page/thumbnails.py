"""Small pictures of the photos that a page shows.

They are made from decoded pixels alone: nothing of a camera's metadata, its GPS position least of all, goes into a
page.
"""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import simplejpeg

from geoinfer.errors import ImageError
from geoinfer.images import decode_whole, raw_problem, read_image_file
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE: Final = 160
"""No side of a picture is longer, in pixels."""

MEAN_BYTES: Final = 8 << 10
"""All pictures of one page together take no more than this for each, as JPEG; in the page they take a third more."""

_QUALITY: Final = 70
_MOST_THREADS: Final = 8
"""Each holds a whole photo and its pixels; more of them than this would gain little."""
_AT_ONCE: Final = 64


def thumbnail(path: bytes, side: int = SIDE) -> bytes | None:
    """A small upright JPEG of a photo without any metadata; None where the photo cannot be read or decoded.

    Args:
        path: of the photo, which is only read.
        side: neither side of the picture is longer, in pixels; its shape is the photo's.
    """
    if not path or raw_problem(path) is not None:
        return None
    try:
        data, kind = read_image_file(path)
        pixels = decode_whole(data, kind, side)
        return bytes(simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorspace="RGB", colorsubsampling="420"))
    except (ImageError, MemoryError, ValueError):
        return None


def thumbnails(
    paths: Sequence[bytes], *, side: int = SIDE, total_bytes: int | None = None, workers: int | None = None
) -> list[bytes | None]:
    """Pictures of many photos, in their order; None for those that have none.

    The first that would take more than what is left of `total_bytes` and all behind it go without, so the same photos
    have the same pictures every time, however many threads there are.

    Args:
        paths: of the photos.
        side: see `thumbnail`.
        total_bytes: of all pictures together; `MEAN_BYTES` for each where nobody says.
        workers: threads; the cores that this process may use, at most eight, where nobody says.
    """
    made: list[bytes | None] = []
    left = MEAN_BYTES * len(paths) if total_bytes is None else total_bytes
    with ThreadPoolExecutor(
        min(workers or available_cores(), _MOST_THREADS), thread_name_prefix="geoinfer-thumbnail"
    ) as pool:
        # In portions: what was asked of a pool cannot be taken back, neither when the room ends nor at a Ctrl-C.
        for start in range(0, len(paths), _AT_ONCE):
            portion = paths[start : start + _AT_ONCE]
            for picture in pool.map(lambda path: thumbnail(path, side), portion):
                if picture is not None and len(picture) > left:
                    return made + [None] * (len(paths) - len(made))
                left -= len(picture or b"")
                made.append(picture)
    return made


def as_data_uri(picture: bytes, kind: str = "jpeg") -> str:
    """A picture as a page holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
