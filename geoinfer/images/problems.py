"""What is wrong with a photo that cannot be decoded: a code for programs and a sentence for people."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from PIL import UnidentifiedImageError

from geoinfer.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PIXELS: Final = 178_956_970
"""A picture of more pixels is refused before it is decoded; it is the limit at which Pillow itself speaks of a bomb."""

NOT_ENOUGH_MEMORY: Final = "not_enough_memory"
"""Error code of a photo that the machine has no memory to decode."""


def check_pixels(width: int, height: int) -> None:
    """Raises ImageError, stage `decode`, for a picture of no pixels (`corrupt`) or too many (`too_many_pixels`)."""
    if width < 1 or height < 1:
        raise ImageError("decode", "corrupt", f"the picture is {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            "decode", "too_many_pixels", f"{width} x {height} pixels are more than the {MAX_PIXELS} allowed"
        )


def damaged(error: Exception, data: bytes, kind: str) -> ImageError:
    """What a decoder's own exception says of a photo.

    Args:
        error: what the decoder raised.
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.

    Returns:
        An error of stage `decode` with code `truncated`, `corrupt`, `not_enough_memory` or `unsupported_variant`.
    """
    message = str(error).strip().rstrip(".") or type(error).__name__
    lowered = message.lower()
    if isinstance(error, MemoryError) or "insufficient memory" in lowered:
        return ImageError("decode", NOT_ENOUGH_MEMORY, f"this {kind.upper()} needs more memory than there is")
    if any(word in lowered for word in _SAYS_TRUNCATED) or _ends_early(data, kind):
        return ImageError("decode", "truncated", f"the {kind.upper()} ends before the picture does")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("decode", "corrupt", f"the header says {kind.upper()} but it cannot be opened as one")
    if "unsupported" in lowered or "not implemented" in lowered or isinstance(error, NotImplementedError):
        return ImageError("decode", "unsupported_variant", f"this kind of {kind.upper()} cannot be decoded: {message}")
    return ImageError("decode", "corrupt", f"the {kind.upper()} is damaged: {message}")


_SAYS_TRUNCATED: Final = ("truncated", "unexpected end", "premature end", "end of file", "eof", "not enough data")


def _ends_early(data: bytes, kind: str) -> bool:
    """Whether the end of a file that could not be decoded is missing, by what its own headers say of its length."""
    size = len(data)
    try:
        if kind == "jpeg":
            # The picture's own end, not that of a thumbnail before it. (In JPEG data 0xff is always followed by 0.)
            return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
        if kind == "png":
            return b"IEND" not in data[-4096:]
        if kind == "gif":
            return not data.rstrip(b"\0").endswith(b";")
        if kind == "webp":
            return struct.unpack_from("<I", data, 4)[0] + 8 > size
        if kind == "bmp":
            return struct.unpack_from("<I", data, 2)[0] > size
        if kind == "tiff":
            return _tiff_ends_early(data)
        if kind == "jpeg2000" and data.startswith(b"\xff\x4f"):
            return not data.endswith(b"\xff\xd9")
        boxes = {name: end for name, _, end in iso_boxes(data)}  # HEIC, AVIF, JPEG 2000
    except struct.error:  # a header ends early already
        return True
    else:
        if kind == "jpeg2000":
            return b"jp2c" not in boxes or not data.endswith(b"\xff\xd9")
        return b"meta" not in boxes or max(boxes.values()) > size


def _tiff_ends_early(data: bytes) -> bool:
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        return bool(struct.unpack_from(order + "Q", data, 8)[0] >= len(data))
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, offset)
    extents: dict[int, tuple[int, ...]] = {}
    for entry in range(count):
        at = offset + 2 + 12 * entry
        tag, kind, values = struct.unpack_from(order + "HHI", data, at)
        if tag in _TIFF_EXTENTS and kind in (3, 4) and values <= len(data):
            code, width = ("H", 2) if kind == 3 else ("I", 4)
            if values * width > 4:
                (at,) = struct.unpack_from(order + "I", data, at + 8)
            else:
                at += 8
            extents[tag] = struct.unpack_from(f"{order}{values}{code}", data, at)
    ends = [
        start + length
        for starts, lengths in ((273, 279), (324, 325))
        for start, length in zip(extents.get(starts, ()), extents.get(lengths, ()), strict=False)
    ]
    return max(ends, default=0) > len(data)


_TIFF_EXTENTS: Final = (273, 279, 324, 325)
"""StripOffsets, StripByteCounts, TileOffsets, TileByteCounts (TIFF 6.0)."""


def iso_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each outermost box (ISO/IEC 14496-12, 4.2); struct.error where a header ends early."""
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
        end = position + length if length else len(data)
        yield data[position + 4 : position + 8], position, end
        if length == 0 or length < 8:
            return
        position = end
