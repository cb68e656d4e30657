"""Decode by Pillow: every format but the usual JPEG, and the JPEGs that libjpeg-turbo's own interface leaves."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import io
import logging
import os
import struct
import warnings
from typing import Final

import numpy as np
import PIL
from PIL import Image

from geoinfer.errors import ImageError
from geoinfer.images.problems import MAX_PIXELS, check_pixels, damaged, iso_boxes
from geoinfer.images.resize import Decoded

# Pillow warns at half of that limit, and of damaged metadata. A run of a million photos answers per file, with an error
# row, and keeps the terminal free. (`catch_warnings` would be of no use: it is not safe among threads.)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

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


def decode_by_pillow(data: bytes, kind: str) -> Decoded:
    """Decodes a photo's bytes in full.

    Raises:
        ImageError: stage `decode`, as `geoinfer.images.decode_pixels`.
    """
    image = open_lazily(data, kind)
    try:
        image.load()
    except Exception as error:
        raise damaged(error, data, kind) from error
    # Asked between the two: loading a TIFF turns it upright, and converting may drop what carries the orientation.
    orientation = _orientation(image)
    rgb = _to_rgb(image, data, kind)
    return Decoded(rgb, orientation, rgb.size)


def open_lazily(data: bytes, kind: str) -> Image.Image:
    """Opens a photo's bytes with Pillow: size, mode and metadata are known, no pixel is decoded.

    Raises:
        ImageError: stage `decode`, as `geoinfer.images.decode_pixels`.
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
        raise damaged(error, data, kind) from error
    check_pixels(*image.size)
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
        for name, begin, finish in iso_boxes(heif):
            at = heif.find(b"infe", begin, finish) if name == b"meta" else -1
            while at >= 0:
                start = at + (14 if heif[at + 4 : at + 5] == b"\3" else 12)
                end = min(at - 4 + int.from_bytes(heif[at - 4 : at], "big"), finish)
                clean[start:end] = bytes(byte if byte < 128 else 63 for byte in heif[start:end])
                at = heif.find(b"infe", at + 4, finish)
    return bytes(clean)


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
        raise damaged(error, data, kind) from error


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
