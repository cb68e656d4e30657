"""Decode, orient and resize: bytes of a photo to the `(size, size, 3)` uint8 pixels that a model sees.

The result is within 2/255 on average of decoding the whole picture with Pillow, turning it upright, and resizing it
with the same antialiased filter; a test holds every photo to that. What makes it fast is that a JPEG is decoded
straight to the smallest of libjpeg's scales (1/8 to 4/8, or full) that is at least twice the side needed, and that
only the region which survives the crop is resampled. (Its scales above 1/2 are both slower and further from the truth.)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import io
import logging
import math
import os
import re
import struct
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
import PIL
import simplejpeg
from PIL import Image, UnidentifiedImageError

from geoinfer.errors import ImageError
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.read import raw_problem, read_image_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAX_PIXELS: Final = 178_956_970
"""A picture of more pixels is refused before it is decoded; it is the limit at which Pillow itself speaks of a bomb."""

# Pillow warns at half of that limit, and of damaged metadata. A run of a million photos answers per file, with an error
# row, and keeps the terminal free. (`catch_warnings` would be of no use: it is not safe among threads.)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

_RESAMPLING: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Only these of Pillow's readers are ever asked: others start external programs (EPS) or read what no camera writes.
_PILLOW_FORMATS: Final = {
    "jpeg": ("JPEG", "MPO"),
    "png": ("PNG",),
    "gif": ("GIF",),
    "webp": ("WEBP",),
    "tiff": ("TIFF",),
    "bmp": ("BMP",),
    "jpeg2000": ("JPEG2000",),
    "avif": ("AVIF",),
    "heif": ("HEIF",),
}
_ORIENTATION_TAG: Final = 0x0112
_TRANSPOSES: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Decoding to twice the target leaves the resampling filter enough to work with (mean difference 0.2 of 255 on 12 MP).
_JPEG_OVERSAMPLING: Final = 2
# What simplejpeg takes for an error though nothing of the picture is missing: header fields of an unusual value.
_HARMLESS_IN_JPEG: Final = ("JFIF revision", "Adobe color transform", "Invalid SOS parameters")
# Passed to simplejpeg: scales between 1/2 and 1 take longer than decoding in full, and blur differently.
_JPEG_MIN_FACTOR: Final = 2


def load_pixels(path: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Reads and decodes one photo.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        ImageError: as `read_image_file` and `decode_pixels`.
    """
    raw = raw_problem(path)
    if raw is not None:
        raise raw
    data, kind = read_image_file(path)
    return decode_pixels(data, kind, preprocessing)


def decode_pixels(data: bytes, kind: str, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decodes, orients and resizes a photo's bytes.

    Args:
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.
        preprocessing: what the model wants.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        ImageError: stage `decode` with code `truncated`, `corrupt`, `too_many_pixels`, `heic_support_missing` or
            `unsupported_variant`.
    """
    return _decode(data, kind, preprocessing)


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
    return _decode(data, kind, Preprocessing(size=longest, resize="squash"), keep_shape=True)


def _decode(data: bytes, kind: str, preprocessing: Preprocessing, *, keep_shape: bool = False) -> NDArray[np.uint8]:
    try:
        if kind == "jpeg":
            decoded = _decode_jpeg(data, preprocessing, keep_shape=keep_shape)
            if decoded is not None:
                return decoded
        image = open_lazily(data, kind)
        try:
            image.load()
        except Exception as error:
            raise _damaged(error, data, kind) from error
        # Asked between the two: loading a TIFF turns it upright, and converting may drop what carries the orientation.
        orientation = _orientation(image)
        return _resize(_to_rgb(image, data, kind), orientation, preprocessing, keep_shape=keep_shape)
    except ImageError as error:
        error.size_bytes = len(data)
        raise


def pixels_from_array(array: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
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
    return _resize(Image.fromarray(np.ascontiguousarray(picture)), 1, preprocessing)


def oriented_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """(width, height) after EXIF `orientation` (1 to 8) is applied."""
    return (height, width) if orientation >= 5 else (width, height)


def _decode_jpeg(data: bytes, preprocessing: Preprocessing, *, keep_shape: bool) -> NDArray[np.uint8] | None:
    """By libjpeg-turbo; None for the kinds that it leaves to Pillow (CMYK, odd sampling, harmless oddities)."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception:  # noqa: BLE001 - besides ValueError it raises KeyError where the header ends early
        return None
    _check_pixels(width, height)
    if colorspace not in ("RGB", "YCbCr", "Gray"):
        return None
    orientation = jpeg_orientation(data)
    # The crop keeps the shorter side whole, squashing keeps both: either way both sides must stay twice the target.
    minimum = min(preprocessing.size * _JPEG_OVERSAMPLING, width, height)
    if minimum == 1:  # one pixel wide or high at every scale, which says nothing of the other side
        minimum = max(width, height)
    try:
        try:
            array = _decompress(data, min(minimum, width), min(minimum, height))
        except ValueError as error:
            if "extraneous bytes" not in str(error):
                raise
            # Some cameras pad between segments, which every viewer accepts. In the picture itself it means damage.
            array = _decompress(_without_padding(data), min(minimum, width), min(minimum, height))
    except Exception as error:
        if any(words in str(error) for words in _HARMLESS_IN_JPEG):
            return None  # The picture may well be whole, and every viewer shows it. Pillow says whether it ends early.
        raise _damaged(error, data, "jpeg") from error
    # The scale itself, not the ratio of the sizes: those are rounded up, and the last row and column are part empty.
    scale = round(8 * array.shape[1] / width) / 8 if width >= height else round(8 * array.shape[0] / height) / 8
    return _resize(
        Image.fromarray(array),
        orientation,
        preprocessing,
        full_size=(width, height),
        scale=scale,
        keep_shape=keep_shape,
    )


def _decompress(data: bytes, min_width: int, min_height: int) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, "RGB", min_width=min_width, min_height=min_height, min_factor=_JPEG_MIN_FACTOR, strict=True
    )
    return array


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


def open_lazily(data: bytes, kind: str) -> Image.Image:
    """Opens a photo's bytes with Pillow: size, mode and metadata are known, no pixel is decoded.

    Raises:
        ImageError: stage `decode`, as `decode_pixels`.
    """
    if kind == "heif":
        _register_heif()
    elif kind == "tiff":
        _silence_libtiff()
    try:
        image = _open(data, kind)
    except Image.DecompressionBombError as error:
        raise ImageError("decode", "too_many_pixels", f"more than the {MAX_PIXELS} pixels allowed") from error
    except Exception as error:
        raise _damaged(error, data, kind) from error
    _check_pixels(*image.size)
    return image


def _open(data: bytes, kind: str) -> Image.Image:
    if kind == "heif":
        data = _with_readable_item_types(data)
    try:
        return Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS[kind])
    except ValueError as error:
        # Pillow's limits on text (1 MiB compressed, 64 MiB in all) would cost a picture that is not affected by it.
        if kind == "png" and "text" in str(error).lower():
            return Image.open(io.BytesIO(_without_text(data)), formats=_PILLOW_FORMATS[kind])
        raise


def _with_readable_item_types(heif: bytes) -> bytes:
    """Turns what is not ASCII in the types of a HEIC's items into question marks.

    One such byte, as a damaged file may hold, makes pi-heif 1.4 crash the process. An `infe` box (ISO/IEC 14496-12,
    8.11.6) is its length, name, version and flags, identifier, protection, and from there on its type and names.
    """
    clean = bytearray(heif)
    with contextlib.suppress(struct.error):
        for name, begin, finish in _iso_boxes(heif):
            at = heif.find(b"infe", begin, finish) if name == b"meta" else -1
            while at >= 0:
                start = at + (14 if heif[at + 4 : at + 5] == b"\3" else 12)
                end = min(at - 4 + int.from_bytes(heif[at - 4 : at], "big"), finish)
                clean[start:end] = bytes(byte if byte < 128 else 63 for byte in heif[start:end])
                at = heif.find(b"infe", at + 4, finish)
    return bytes(clean)


def _iso_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
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


def _without_text(png: bytes) -> bytes:
    kept = [png[:8]]
    position = 8
    while position + 8 <= len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _register_heif() -> None:
    try:
        import pi_heif
    except ImportError as error:
        raise ImageError(
            "decode",
            "heic_support_missing",
            "HEIC needs the package pi-heif: pip install 'geoinfer-toolkit[heic]'",
        ) from error
    # Nothing but the picture itself is asked for: the less of a damaged file is read, the less can go wrong.
    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


@functools.cache
def _silence_libtiff() -> None:
    """Keeps libtiff from printing to standard error; what it says comes as an exception as well.

    Pillow gives no way to ask for that. Its wheels carry the library in one of these folders; elsewhere (a Pillow of
    a Linux distribution) it stays talkative.
    """
    folder = os.path.dirname(PIL.__file__)
    for pattern in ("../pillow.libs/libtiff-*.so*", ".dylibs/libtiff*.dylib"):
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(path)
                for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                    handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                    handler(None)


def _check_pixels(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("decode", "corrupt", f"the picture is {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            "decode", "too_many_pixels", f"{width} x {height} pixels are more than the {MAX_PIXELS} allowed"
        )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - damaged metadata must not cost a picture that decodes
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, data: bytes, kind: str) -> Image.Image:
    """Converts any mode to RGB; transparency is laid over white, 16 bits are scaled to 8."""
    try:
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.mode.startswith("I") or image.mode == "F":
            return _wide_to_rgb(image)
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            canvas.alpha_composite(rgba)
            return canvas.convert("RGB")
        return image.convert("RGB")
    except Exception as error:
        raise _damaged(error, data, kind) from error


def _wide_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floats: scaled by what the type can hold, not by what the picture happens to hold."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        finite = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)
        scale = 255.0 if finite.max(initial=0.0) <= 1.0 else 1.0
    else:
        finite, scale = values, 1.0 / 257.0  # 65535 / 257 = 255 exactly
    grey = np.clip(np.rint(finite * scale), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _damaged(error: Exception, data: bytes, kind: str) -> ImageError:
    message = str(error).strip().rstrip(".") or type(error).__name__
    lowered = message.lower()
    if isinstance(error, MemoryError):
        return ImageError("decode", "unsupported_variant", f"this {kind.upper()} needs more memory than there is")
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
        boxes = {name: end for name, _, end in _iso_boxes(data)}  # HEIC, AVIF, JPEG 2000
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


def _resize(
    image: Image.Image,
    orientation: int,
    preprocessing: Preprocessing,
    *,
    full_size: tuple[int, int] | None = None,
    scale: float = 1.0,
    keep_shape: bool = False,
) -> NDArray[np.uint8]:
    """Resizes the part that is kept, then turns the small result upright: far cheaper than turning the large one.

    The crop is worked out on the upright picture of full size and carried back, so that every order of scaling,
    turning and cutting gives the same pixels.

    Args:
        image: RGB, as stored, perhaps decoded at a smaller scale.
        orientation: EXIF, 1 to 8.
        preprocessing: what the model wants.
        full_size: (width, height) as stored in the file, where `image` was decoded at a smaller scale.
        scale: of `image` against the full size.
        keep_shape: squash only until the longer side is `size`, or not at all where it is shorter already.
    """
    size = preprocessing.size
    width, height = oriented_size(*(full_size or image.size), orientation)
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
    x0, y0, x1, y1 = (edge * scale for edge in _unorient_box(box, width, height, orientation))
    # Rounding may carry an edge a hair beyond the picture, which Pillow refuses.
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(image.width)), min(y1, float(image.height)))
    target = (size, size)
    if keep_shape:
        shrink = min(size / max(width, height), 1.0)
        upright = (max(round(width * shrink), 1), max(round(height * shrink), 1))
        target = oriented_size(*upright, orientation)
    resized = image.resize(target, _RESAMPLING[preprocessing.interpolation], box=inside)
    if orientation in _TRANSPOSES:
        resized = resized.transpose(_TRANSPOSES[orientation])
    return np.array(resized, dtype=np.uint8)


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
