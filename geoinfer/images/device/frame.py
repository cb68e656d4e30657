"""Which JPEGs a GPU may be asked to decode, and how large and which way up they are, by their header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import simplejpeg

from geoinfer.images.decode_jpeg import jpeg_orientation
from geoinfer.images.headers import picture_header

ImageClass = Literal["original", "web", "progressive"]

ORIGINAL_PIXELS: Final = 4_000_000
"""From here on a photo is taken for a camera's original, below for one that was made smaller for the web."""

# Pillow 12 resizes a picture in another order where it is this much taller than wide, and nobody's photo is.
_MOST_TIMES_TALLER: Final = 100


@dataclass(frozen=True, slots=True)
class Frame:
    """A JPEG that a GPU may decode.

    Attributes:
        width: in pixels, as stored.
        height: likewise.
        orientation: EXIF, 1 to 8.
        image_class: what decides about its speed: `original` (4 megapixels and more), `web`, or `progressive`, of any
            size, which a GPU's decoding circuits leave to its ordinary processors.
    """

    width: int
    height: int
    orientation: int
    image_class: ImageClass

    @property
    def decoded_bytes(self) -> int:
        """Of all its pixels."""
        return 3 * self.width * self.height


def frame_of(data: bytes, kind: str) -> Frame | None:
    """Reads a header, and no pixel.

    Args:
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.

    Returns:
        None for what the CPU had better decode: other formats, JPEGs of unusual colours or depth, and files that end
        early, for which the CPU has the right words.
    """
    if kind != "jpeg" or not _is_whole(data):
        return None
    header = picture_header(data, kind)
    if header is None or header.bits != 8 or header.channels not in (1, 3):
        return None
    if header.height > _MOST_TIMES_TALLER * header.width:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception:  # noqa: BLE001 - besides ValueError it raises KeyError where the header ends early
        return None
    if colours not in ("YCbCr", "Gray") or (width, height) != (header.width, header.height):
        return None
    image_class: ImageClass = "original" if header.pixels >= ORIGINAL_PIXELS else "web"
    return Frame(width, height, jpeg_orientation(data), "progressive" if header.progressive else image_class)


def _is_whole(jpeg: bytes) -> bool:
    """Whether the end is there: a GPU may paint what is missing grey and say nothing."""
    # In JPEG data 0xff is always followed by 0.
    end = jpeg.rfind(b"\xff\xd9")
    return end > 0 and jpeg.find(b"\xff\xda", end) < 0
