"""What a photo's header says of its size, without decoding it and without asking a decoder.

For the memory that a decode will take, and for sorting photos into classes. Headers may lie: a decoder checks for
itself, with limits of its own, whatever is said here.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """The size of a picture as it is stored, not turned upright.

    Attributes:
        width: in pixels.
        height: in pixels.
        channels: 1 to 4 numbers a pixel, an alpha channel among them.
        bits: of each number.
        progressive: a JPEG whose coefficients must all be in memory before any pixel can be.
        samples_per_pixel: numbers that are stored a pixel, fewer than `channels` where a JPEG's colour is coarser.
        indexed: the numbers stand in a table of colours.
    """

    width: int
    height: int
    channels: int
    bits: int = 8
    progressive: bool = False
    samples_per_pixel: float = 3.0
    indexed: bool = False

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.width * self.height


def picture_header(data: bytes, kind: str) -> PictureHeader | None:
    """Reads a header.

    Args:
        data: the file, or so much of it that the header is within.
        kind: its format, as `geoinfer.images.read.sniff` names it.

    Returns:
        None where the header cannot be read or says nothing of the size; a decoder will not get far either.
    """
    try:
        header = _READERS[kind](data)
    except (struct.error, IndexError):
        return None
    return header if header is not None and header.width > 0 and header.height > 0 else None


def _jpeg(data: bytes) -> PictureHeader | None:
    # Segments of ITU-T T.81, annex B; a frame header is SOF0 to SOF15 without DHT, JPG and DAC.
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        marker, start = data[found.end() - 1], found.end()
        if marker in (0xDA, 0xD9):
            return None
        position = start
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, count = struct.unpack_from(">BHHB", data, start + 2)
            factors = [data[start + 9 + 3 * i] for i in range(count)]
            shares = [(factor >> 4) * (factor & 15) for factor in factors]
            samples = sum(shares) / max(*shares, 1) if shares else 1.0
            return PictureHeader(width, height, count, bits, marker & 3 == 2, samples)
        if marker != 0x01 and not 0xD0 <= marker <= 0xD8:  # these stand alone
            position += int.from_bytes(data[start : start + 2], "big")
    return None


_JPEG_MARKER: Final = re.compile(rb"\xff[^\xff\0]")


def _png(data: bytes) -> PictureHeader:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour, 4)
    # Only what stands before the picture itself can make a colour transparent.
    if colour in (0, 2, 3) and 0 <= data.find(b"tRNS", 33, 65536) < _first(data, b"IDAT"):
        channels += 1
    return PictureHeader(width, height, channels, bits, indexed=colour == 3)


def _first(data: bytes, word: bytes) -> int:
    found = data.find(word)
    return len(data) if found < 0 else found


def _gif(data: bytes) -> PictureHeader:
    width, height = struct.unpack_from("<HH", data, 6)
    return PictureHeader(width, height, 4, indexed=True)


def _webp(data: bytes) -> PictureHeader | None:
    # RFC 9649, 2.5 to 2.7
    name = data[12:16]
    if name == b"VP8X":
        alpha = bool(data[20] & 0x10)
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return PictureHeader(width, height, 4 if alpha else 3)
    if name == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return PictureHeader(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), 4 if packed >> 28 & 1 else 3)
    width, height = struct.unpack_from("<HH", data, 26)
    return PictureHeader(width & 0x3FFF, height & 0x3FFF, 3)


def _bmp(data: bytes) -> PictureHeader:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    return PictureHeader(abs(width), abs(height), 4 if bits in (16, 32) else 3, indexed=bits <= 8)


def _tiff(data: bytes) -> PictureHeader | None:
    # TIFF 6.0, section 2, and BigTIFF with its wider counts and offsets: the first directory.
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
    first, step, field = (offset + 8, 20, "Q") if big else (offset + 2, 12, "I")
    values: dict[int, int] = {}
    for entry in range(min(count, 4096)):
        at = first + step * entry
        tag, kind, number = struct.unpack_from(order + "HH" + field, data, at)
        if tag not in (256, 257, 258, 277, 262):
            continue
        code, width = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 16: ("Q", 8)}.get(kind, ("H", 2))
        place = at + step - (8 if big else 4)
        if number * width > (8 if big else 4):
            (place,) = struct.unpack_from(order + field, data, place)
        (values[tag],) = struct.unpack_from(order + code, data, place)
    if 256 not in values or 257 not in values:
        return None
    indexed = values.get(262) == 3
    channels = min(values.get(277, 1), 4)
    return PictureHeader(values[256], values[257], 3 if indexed else channels, values.get(258, 1), indexed=indexed)


def _jpeg2000(data: bytes) -> PictureHeader | None:
    # ITU-T T.800, A.5.1: SIZ comes first in the code stream, which begins with SOC.
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    (count,) = struct.unpack_from(">H", data, start + 40)
    return PictureHeader(right - left, bottom - top, count, (data[start + 42] & 0x7F) + 1)


def _iso_media(data: bytes) -> PictureHeader | None:
    # ISO/IEC 23008-12, 6.5.3: `ispe` of each item; the largest is that of the picture, or of the grid it is made of.
    largest: PictureHeader | None = None
    alpha = b":aux:hevc:auxid:1" in data[:65536] or b":auxiliary:alpha" in data[:65536]
    bits = 8
    at = data.find(b"pixi")
    if at >= 0 and data[at + 8] > 0:
        bits = data[at + 9]
    at = data.find(b"ispe")
    while 0 <= at <= _META_BYTES:
        width, height = struct.unpack_from(">II", data, at + 8)
        if largest is None or width * height > largest.pixels:
            largest = PictureHeader(width, height, 4 if alpha else 3, bits)
        at = data.find(b"ispe", at + 4)
    return largest


# Boxes of metadata stand before the coded picture in every file that a camera or an encoder writes.
_META_BYTES: Final = 1 << 20

_READERS: Final[dict[str, Callable[[bytes], PictureHeader | None]]] = {
    "jpeg": _jpeg,
    "png": _png,
    "gif": _gif,
    "webp": _webp,
    "bmp": _bmp,
    "tiff": _tiff,
    "jpeg2000": _jpeg2000,
    "heif": _iso_media,
    "avif": _iso_media,
}
