"""Read a photo's bytes, and say what is wrong with a file that cannot be one before anything decodes it."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from geoinfer.errors import ImageError

MAX_FILE_BYTES: Final = 1 << 30
"""A file larger than this is refused unread: no photo is, and several are in memory at once."""

RAW_SUFFIXES: Final = frozenset(
    b".3fr .arw .cr2 .cr3 .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 "
    b".srf .srw .x3f".split()
)
"""Camera originals. They are photos, so a folder's own are listed (status `skipped`), not passed over in silence."""

_SNIFF_BYTES: Final = 512


def sniff(head: bytes) -> tuple[str, bool] | None:
    """What a file's first bytes say it is.

    Args:
        head: the first 512 bytes, or all of a shorter file.

    Returns:
        (name, True) for a format that geoinfer decodes, (description, False) for one it knows and does not, None for
        bytes that it does not know.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg", True
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", True
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif", True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp", True
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff", True
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES:
        return "bmp", True
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "jpeg2000", True
    if head[4:8] == b"ftyp":
        return _sniff_iso_media(head)
    for magic, description in _FOREIGN:
        if head.startswith(magic):
            return description, False
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page", False
    if text.startswith((b"<svg", b"<?xml")):
        return "an XML or SVG document", False
    return None


# The sizes that a bitmap's second header can have; without them every text that begins with BM would be a bitmap.
_BMP_HEADER_BYTES: Final = frozenset((12, 16, 40, 52, 56, 64, 108, 124))

_FOREIGN: Final = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"PK\x05\x06", "a ZIP archive or office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"8BPS", "a Photoshop document"),
    (b"OggS", "an Ogg media file"),
    (b"ID3", "an MP3 recording"),
    (b"RIFF", "an AVI video or WAV recording"),
    (b"\x00\x05\x16\x07", "a macOS resource fork, not the photo itself"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"SQLite format 3\0", "a database"),
)


def _sniff_iso_media(head: bytes) -> tuple[str, bool]:
    # The major brand decides, and the compatible brands where it is one of the generic ones (ISO/IEC 23008-12).
    length = int.from_bytes(head[:4], "big")
    brands = {head[8:12]} | {head[i : i + 4] for i in range(16, min(max(length, 16), len(head)), 4)}
    if brands & {b"avif", b"avis"}:
        return "avif", True
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "heif", True
    if head[8:11] == b"crx":
        return "a camera raw file", False
    return "an MP4 or QuickTime video", False


def raw_problem(path: bytes) -> ImageError | None:
    """Why a camera's raw file is left out; None for any other name."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in RAW_SUFFIXES:
        return None
    return ImageError(
        "discover", "camera_raw", f"camera raw ({suffix[1:].decode().upper()}) is not decoded; export it as JPEG first",
        status="skipped",
    )  # fmt: skip


def read_image_file(path: bytes) -> tuple[bytes, str]:
    """Reads a whole file that is a photo.

    Args:
        path: bytes, as the operating system gives them.

    Returns:
        (data, format), the format as `sniff` names it.

    Raises:
        ImageError: stage `read` with code `missing`, `unreadable`, `not_a_file`, `empty_file`, `too_many_bytes`,
            `wrong_type` (recognised as something else, whatever its name says) or `not_an_image`.
    """
    size = -1
    try:
        # Looked at before it is opened: opening a named pipe would wait for ever.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, socket or pipe"
            raise ImageError("read", "not_a_file", f"it is {kind}, not a file")
        size = status.st_size
        if size == 0:
            raise ImageError("read", "empty_file", "the file has no bytes", size_bytes=0)
        with open(path, "rb") as file:
            head = file.read(_SNIFF_BYTES)
            kind_of = sniff(head)
            if kind_of is None:
                raise ImageError("read", "not_an_image", "the bytes are of no image format", size_bytes=size)
            name, decodable = kind_of
            if not decodable:
                raise ImageError("read", "wrong_type", f"the file holds {name}, not an image", size_bytes=size)
            if size > MAX_FILE_BYTES:
                raise ImageError(
                    "read",
                    "too_many_bytes",
                    f"{size} bytes are more than the {MAX_FILE_BYTES} allowed",
                    size_bytes=size,
                )
            file.seek(0)
            return file.read(), name
    except OSError as error:
        if isinstance(error, ImageError):
            raise
        code = "missing" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "unreadable"
        message = "there is no such file" if code == "missing" else (error.strerror or "cannot be read").lower()
        if code == "missing" and os.path.islink(path):
            message = "a symbolic link to a file that is not there"
        raise ImageError("read", code, message, size_bytes=size) from error
    except ValueError as error:  # an embedded NUL byte
        if isinstance(error, ImageError):
            raise
        raise ImageError("read", "missing", f"not a possible file name: {error}") from error
