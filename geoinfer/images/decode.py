"""Decode, orient and resize: bytes of a photo to the `(size, size, 3)` uint8 pixels that a model sees.

The result is within 2/255 on average of decoding the whole picture with Pillow, turning it upright, and resizing it
with the same antialiased filter; a test holds every photo to that. What makes it fast is that a JPEG is decoded
straight to the smallest of libjpeg's scales (1/8 to 4/8, or full) that is at least twice the side needed, and that
only the region which survives the crop is resampled. (Its scales above 1/2 are both slower and further from the truth.)
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from geoinfer.errors import ImageError
from geoinfer.images.read import read_image_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.images.preprocessing import Preprocessing

MAX_PIXELS: Final = 178_956_970
"""A picture of more pixels is refused before it is decoded; it is the limit at which Pillow itself speaks of a bomb."""

# Pillow warns at half of that limit; geoinfer's own limit answers the same question, per file and with an error row.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

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
# Passed to simplejpeg: scales between 1/2 and 1 take longer than decoding in full, and blur differently.
_JPEG_MIN_FACTOR: Final = 2


def load_pixels(path: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Reads and decodes one photo.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        ImageError: as `read_image_file` and `decode_pixels`.
    """
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
    try:
        if kind == "jpeg":
            decoded = _decode_jpeg(data, preprocessing)
            if decoded is not None:
                return decoded
        image = open_lazily(data, kind)
        # Asked first, while the file is only opened: converting may drop what carries it.
        orientation = _orientation(image)
        return _resize(_to_rgb(image), orientation, preprocessing)
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


def _decode_jpeg(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8] | None:
    """By libjpeg-turbo; None for the kinds that it leaves to Pillow (CMYK, odd sampling)."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    _check_pixels(width, height)
    if colorspace not in ("RGB", "YCbCr", "Gray"):
        return None
    orientation = jpeg_orientation(data)
    # The crop keeps the shorter side whole, squashing keeps both: either way both sides must stay twice the target.
    minimum = min(preprocessing.size * _JPEG_OVERSAMPLING, width, height)
    try:
        array = _decompress(data, minimum, strict=True)
    except ValueError as error:
        message = str(error)
        if "premature end" in message.lower():
            raise ImageError("decode", "truncated", "the JPEG ends before the picture does") from error
        if "extraneous bytes" not in message.lower():
            raise ImageError("decode", "corrupt", f"the JPEG is damaged: {message.strip().rstrip('.')}") from error
        # Some cameras pad between segments. The picture is whole, and every viewer shows it.
        array = _decompress(data, minimum, strict=False)
    # The scale itself, not the ratio of the sizes: those are rounded up, and the last row and column are part empty.
    scale = round(8 * array.shape[1] / width) / 8 if width >= height else round(8 * array.shape[0] / height) / 8
    return _resize(Image.fromarray(array), orientation, preprocessing, full_size=(width, height), scale=scale)


def _decompress(data: bytes, minimum: int, *, strict: bool) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, "RGB", min_width=minimum, min_height=minimum, min_factor=_JPEG_MIN_FACTOR, strict=strict
    )
    return array


def jpeg_orientation(data: bytes) -> int:
    """EXIF orientation (1 to 8) of a JPEG, 1 when it has none or nonsense; reads the header only.

    Written out because it is asked of every photo: a whole EXIF reader costs more than the answer is worth, and its
    Python code would hold up the other decoding threads. Layout: JPEG segments (ITU-T T.81, annex B), a TIFF header
    and its first directory (TIFF 6.0, section 2).
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in (0xDA, 0xD9):  # the picture begins, or ends: no metadata after this
            return 1
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = position + 4
        if marker == 0xE1 and data[segment : segment + 6] == b"Exif\0\0":
            return _tiff_orientation(data[segment + 6 : position + 2 + length])
        position += 2 + length
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
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
        return 1
    return 1


def open_lazily(data: bytes, kind: str) -> Image.Image:
    """Opens a photo's bytes with Pillow: size, mode and metadata are known, no pixel is decoded.

    Raises:
        ImageError: stage `decode`, as `decode_pixels`.
    """
    if kind == "heif":
        _register_heif()
    try:
        image = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS[kind])
    except Image.DecompressionBombError as error:
        raise ImageError("decode", "too_many_pixels", f"more than the {MAX_PIXELS} pixels allowed") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "decode", "corrupt", f"the header says {kind.upper()} but it cannot be opened as one"
        ) from error
    except Exception as error:
        raise _damaged(error, kind) from error
    _check_pixels(*image.size)
    return image


def _register_heif() -> None:
    try:
        import pi_heif
    except ImportError as error:
        raise ImageError(
            "decode",
            "heic_support_missing",
            "HEIC needs the package pi-heif",
            hint="pip install 'geoinfer-toolkit[heic]'",
        ) from error
    pi_heif.register_heif_opener()


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


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decodes and converts any mode to RGB; transparency is laid over white, 16 bits are scaled to 8."""
    try:
        image.load()
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
        raise _damaged(error, (image.format or "image").lower()) from error


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


def _damaged(error: Exception, kind: str) -> ImageError:
    message = str(error) or type(error).__name__
    lowered = message.lower()
    if isinstance(error, MemoryError):
        return ImageError("decode", "unsupported_variant", f"this {kind.upper()} needs more memory than there is")
    if any(word in lowered for word in ("truncated", "unexpected end", "end of file", "eof", "not enough data")):
        return ImageError("decode", "truncated", f"the {kind.upper()} ends before the picture does")
    if "unsupported" in lowered or "not implemented" in lowered or isinstance(error, NotImplementedError):
        return ImageError("decode", "unsupported_variant", f"this kind of {kind.upper()} cannot be decoded: {message}")
    return ImageError("decode", "corrupt", f"the {kind.upper()} is damaged: {message}")


def _resize(
    image: Image.Image,
    orientation: int,
    preprocessing: Preprocessing,
    *,
    full_size: tuple[int, int] | None = None,
    scale: float = 1.0,
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
    """
    size = preprocessing.size
    width, height = oriented_size(*(full_size or image.size), orientation)
    box = (0.0, 0.0, float(width), float(height))
    if preprocessing.resize == "crop":
        # As "resize the shorter side to `size`, round the longer, cut the centre" does, in one step.
        scaled = (
            (size, max(size, round(height * size / width)))
            if width <= height
            else (max(size, round(width * size / height)), size)
        )
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        sx, sy = width / scaled[0], height / scaled[1]
        box = (left * sx, top * sy, (left + size) * sx, (top + size) * sy)
    x0, y0, x1, y1 = (edge * scale for edge in _unorient_box(box, width, height, orientation))
    # Rounding may carry an edge a hair beyond the picture, which Pillow refuses.
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(image.width)), min(y1, float(image.height)))
    resized = image.resize((size, size), _RESAMPLING[preprocessing.interpolation], box=inside)
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
