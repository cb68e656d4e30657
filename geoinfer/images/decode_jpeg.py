"""Decode a JPEG by libjpeg-turbo, no larger than needed, and read which way up it is.

What makes it fast: a JPEG, progressive or not, is decoded straight to the smallest of libjpeg's scales (1/8 to 4/8, or
full) that is at least twice the side needed (its scales above 1/2 are both slower and further from the truth); and the
pixels go into memory that the thread used before, in the layout that Pillow resizes. New memory for every photo costs
more than it seems: the kernel clears it page by page, which took a third of the time of a photo of web size.
"""

from __future__ import annotations

import re
import struct
import sys
import threading
from typing import TYPE_CHECKING, Final

import numpy as np
import simplejpeg
from PIL import Image

from geoinfer.images.problems import check_pixels, damaged
from geoinfer.images.resize import Decoded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from geoinfer.images.preprocessing import Preprocessing

# Decoding to twice the target leaves the resampling filter enough to work with (mean difference 0.2 of 255 on 12 MP).
_OVERSAMPLING: Final = 2
# At a scale the last row and column stand for what lies beyond the picture too, which shows where there are only a few.
_LEAST_SIDE: Final = 64
# Passed to simplejpeg: scales between 1/2 and 1 take longer than decoding in full, and blur differently.
_MIN_FACTOR: Final = 2
# What simplejpeg takes for an error though nothing of the picture is missing: header fields of an unusual value.
_HARMLESS: Final = ("JFIF revision", "Adobe color transform", "Invalid SOS parameters")

_LARGEST_KEPT_BYTES: Final = 32 << 20
"""Memory that a thread keeps between photos at most; all but panoramas of a large model's size fit."""

_PHOTOS_WITHOUT_ARROW: Final = 8
"""Importing pyarrow takes as long as some 100 photos gain by it, so a command that answers one photo does not."""


def decode_jpeg(data: bytes, preprocessing: Preprocessing, *, reuse_memory: bool = False) -> Decoded | None:
    """Decodes a JPEG at the scale that `preprocessing` needs.

    Args:
        data: the whole file.
        preprocessing: what the model wants.
        reuse_memory: the picture lies in memory that this thread's next such call overwrites.

    Returns:
        None for the kinds that are left to Pillow (CMYK, odd sampling, harmless oddities).

    Raises:
        ImageError: stage `decode`, as `geoinfer.images.decode_pixels`.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception:  # noqa: BLE001 - besides ValueError it raises KeyError where the header ends early
        return None
    check_pixels(width, height)
    if colorspace not in ("RGB", "YCbCr", "Gray"):
        return None
    # The crop keeps the shorter side whole, squashing keeps both: either way both sides must stay twice the target.
    minimum = min(max(preprocessing.size * _OVERSAMPLING, _LEAST_SIDE), width, height)
    if minimum == 1:  # one pixel wide or high at every scale, which says nothing of the other side
        minimum = max(width, height)
    least = (min(minimum, width), min(minimum, height))
    memory = _kept if reuse_memory else _Memory()
    try:
        try:
            image = memory.decompress(data, *least)
        except ValueError as error:
            if "extraneous bytes" not in str(error):
                raise
            # Some cameras pad between segments, which every viewer accepts. In the picture itself it means damage.
            image = memory.decompress(_without_padding(data), *least)
    except Exception as error:
        if any(words in str(error) for words in _HARMLESS):
            return None  # The picture may well be whole, and every viewer shows it. Pillow says whether it ends early.
        raise damaged(error, data, "jpeg") from error
    # The scale itself, not the ratio of the sizes: those are rounded up, and the last row and column are part empty.
    scale = round(8 * image.width / width) / 8 if width >= height else round(8 * image.height / height) / 8
    return Decoded(image, jpeg_orientation(data), (width, height), scale)


class _Memory(threading.local):
    """Memory that JPEGs are decoded into, one after another; each thread has its own."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._photos = 0

    def decompress(self, data: bytes, min_width: int, min_height: int) -> Image.Image:
        """An RGB picture over this memory, for as long as nothing else is decoded into it."""
        least = {"min_width": min_width, "min_height": min_height, "min_factor": _MIN_FACTOR}
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False, **least)
        self._photos += 1
        mapped = self._photos > _PHOTOS_WITHOUT_ARROW or "pyarrow" in sys.modules
        channels = 4 if mapped else 3
        array: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGBX" if mapped else "RGB", **least, buffer=self._room(height * width * channels), strict=True
        )
        if not mapped:
            return Image.fromarray(array)
        import pyarrow as pa

        # Pillow keeps RGB as four bytes a pixel, as the array has it; Arrow is its way in without a copy.
        flat = pa.Array.from_buffers(pa.uint8(), array.size, [None, pa.py_buffer(array)])
        return Image.fromarrow(flat, "RGB", (width, height))

    def _room(self, size: int) -> NDArray[np.uint8]:
        if size > _LARGEST_KEPT_BYTES:
            return np.empty(size, np.uint8)
        if size > len(self._bytes):
            # With some room to spare: photos of one folder are of nearly one size.
            self._bytes = np.empty(min(size + size // 4, _LARGEST_KEPT_BYTES), np.uint8)
        return self._bytes[:size]


_kept: Final = _Memory()


def jpeg_orientation(data: bytes) -> int:
    """EXIF orientation (1 to 8) of a JPEG, 1 when it has none or nonsense; reads the header only.

    Written out because it is asked of every photo: a whole EXIF reader costs more than the answer is worth, and its
    Python code would hold up the other decoding threads. Layout: JPEG segments (ITU-T T.81, annex B), a TIFF header
    and its first directory (TIFF 6.0, section 2). Where the EXIF does not say, the XMP is asked, as Pillow does.
    """
    in_exif: int | None = None
    in_xmp = 1
    for marker, start, end in _header_segments(data):
        body = start + 4
        if marker == 0xE1 and in_exif is None and data.startswith(b"Exif\0\0", body):
            in_exif = _tiff_orientation(data[body + 6 : end])
            if in_exif is not None:
                return in_exif
        elif marker == 0xE1 and data.startswith(_XMP, body):
            match = _XMP_ORIENTATION.search(data, body, end)
            in_xmp = int(match[1]) if match else 1
    return in_xmp


def _header_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before a JPEG's picture; padding and fill bytes lie in none of them."""
    position = 2
    while (found := _MARKER.search(data, position)) is not None:
        start = found.end() - 2
        marker = data[start + 1]
        if marker in (0xDA, 0xD9):  # the picture begins, or ends
            return
        end = start + 2
        if marker != 0x01 and not 0xD0 <= marker <= 0xD8:  # these stand alone
            end += int.from_bytes(data[end : end + 2], "big")
            yield marker, start, end
        position = end


def _without_padding(data: bytes) -> bytes:
    kept = [data[:2]]
    position = 2
    for _, start, end in _header_segments(data):
        kept.append(data[start:end])
        position = end
    picture = data.find(b"\xff\xda", position)
    if picture < 0:
        return data
    return b"".join((*kept, _PADDED_END.sub(b"\0\0\xff\xd9", data[picture:])))


_PADDED_END: Final = re.compile(rb"(?<!\0)\0{3,}\xff\xd9")
_MARKER: Final = re.compile(rb"\xff[^\xff\0]")
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


_ORIENTATION_TAG: Final = 0x0112


def _tiff_orientation(tiff: bytes) -> int | None:
    """Of a directory that has one, 1 when it is nonsense; None of one that does not."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        for entry in range(count):
            tag, kind, _ = struct.unpack_from(order + "HHI", tiff, offset + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                # A short; some writers use a long. Both stand left-justified in the entry's value field.
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), tiff, offset + 2 + 12 * entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return None
    return None
