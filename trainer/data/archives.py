"""Photos inside ZIP archives, read by many threads at once.

OSV-5M comes as a hundred archives of 50,000 photos. Python's `zipfile` keeps an object of half a kilobyte for each
member of each open archive, some 2.5 GB for that set, and guards every read with a lock. Here the directory of an
archive is read once, when a set is prepared; from then on a photo is an offset and a length, and is read by one
`pread`, which needs neither lock nor directory.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from geoinfer.errors import ImageError, InputError
from geoinfer.images.read import MAX_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

# PKWARE's APPNOTE.TXT 6.3.10, 4.3.7: the local header that stands before each member's bytes.
_LOCAL_HEADER: Final = struct.Struct("<4sHHHHHIIIHH")
_SIGNATURE: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 1 << 0
_SIZES_BEHIND: Final = 1 << 3  # the header's checksum and sizes are zero, they stand behind the data
_STORED, _DEFLATED = 0, 8
_IN_EXTRA_FIELD: Final = 0xFFFFFFFF  # a size of ZIP64
# What is read beyond the expected length in one go, for the extra fields that only the local header has.
_SLACK_BYTES: Final = 128
# Past this many archives the rest are opened for each read: a process may have 1024 open files on most systems.
_KEPT_OPEN: Final = 256


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        archive: the archive's path.
        name: as the archive's directory has it, UTF-8.
        offset_bytes: where its local header begins.
        stored_bytes: its length in the archive, compressed or not.
    """

    archive: bytes
    name: bytes
    offset_bytes: int
    stored_bytes: int


def list_members(archive: bytes) -> Iterator[Member]:
    """Yields the files of a ZIP archive in the order of its directory.

    Raises:
        InputError: it cannot be read, or is no ZIP archive.
    """
    shown = os.fsdecode(archive)
    try:
        with zipfile.ZipFile(shown) as file:
            for info in file.infolist():
                if not info.is_dir():
                    name = info.orig_filename.encode()
                    yield Member(archive, name, info.header_offset, info.compress_size)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{shown}: not a whole ZIP archive: {str(error).lower()}", hint="fetch the archive again, or move it away"
        ) from error
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {(error.strerror or str(error)).lower()}") from error


class ArchiveReader:
    """Reads members by their offsets; any number of threads may share one, and processes after a fork too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[bytes, int] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._descriptors)

    def __reduce__(self) -> tuple[type[ArchiveReader], tuple[Any, ...]]:
        return ArchiveReader, ()  # a process that is started anew opens the archives itself

    def read(self, member: Member) -> bytes:
        """A member's bytes, uncompressed.

        Raises:
            ImageError: stage `read`, code `missing` (the archive is not there), `too_many_bytes`, or `unreadable` (it
                has changed, is damaged, encrypted, or compressed in a way that is not known here).
        """
        if member.stored_bytes > MAX_FILE_BYTES:
            raise ImageError(
                "read",
                "too_many_bytes",
                f"{member.stored_bytes} bytes are more than the {MAX_FILE_BYTES} allowed",
                size_bytes=member.stored_bytes,
            )
        try:
            descriptor = self._descriptor(member.archive)
            try:
                header, data = _pread_member(descriptor, member)
            finally:
                if self._descriptors.get(member.archive) != descriptor:
                    os.close(descriptor)
        except FileNotFoundError as error:
            raise ImageError("read", "missing", f"the archive {os.fsdecode(member.archive)} is not there") from error
        except OSError as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError("read", "unreadable", (error.strerror or "cannot be read").lower()) from error
        return _unpack(header, data, member)

    def _descriptor(self, archive: bytes) -> int:
        """Of the open archive; one that is not among those kept open is the caller's to close."""
        kept = self._descriptors.get(archive)
        if kept is not None:
            return kept
        with self._lock:
            kept = self._descriptors.get(archive)
            if kept is not None:
                return kept
            descriptor = os.open(archive, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            if len(self._descriptors) < _KEPT_OPEN:
                self._descriptors[archive] = descriptor
            return descriptor


def _close_all(descriptors: dict[bytes, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()


def _pread_member(descriptor: int, member: Member) -> tuple[tuple[Any, ...], bytes]:
    """The local header's fields and the member's bytes as they are stored."""
    expected = _LOCAL_HEADER.size + len(member.name) + member.stored_bytes + _SLACK_BYTES
    block = os.pread(descriptor, expected, member.offset_bytes)
    if len(block) < _LOCAL_HEADER.size:
        raise _changed(member)
    fields = _LOCAL_HEADER.unpack_from(block)
    name_bytes, extra_bytes = fields[9], fields[10]
    name = block[_LOCAL_HEADER.size : _LOCAL_HEADER.size + name_bytes]
    if fields[0] != _SIGNATURE or name != _stored_name(member, fields[2]):
        raise _changed(member)
    start = _LOCAL_HEADER.size + name_bytes + extra_bytes
    data = block[start : start + member.stored_bytes]
    missing = member.stored_bytes - len(data)
    if missing:
        data += os.pread(descriptor, missing, member.offset_bytes + start + len(data))
    if len(data) < member.stored_bytes:
        raise ImageError("read", "unreadable", "the archive ends before the photo does", size_bytes=member.stored_bytes)
    return fields, data


def _stored_name(member: Member, flags: int) -> bytes:
    """Names are UTF-8 where bit 11 says so, and code page 437 otherwise (APPNOTE.TXT, appendix D)."""
    if flags & 1 << 11:
        return member.name
    return member.name.decode("utf-8", "replace").encode("cp437", "replace")


def _unpack(fields: tuple[Any, ...], data: bytes, member: Member) -> bytes:
    _, _, flags, method, _, _, checksum, _, size_bytes, _, _ = fields
    if flags & _ENCRYPTED:
        raise ImageError("read", "unreadable", "it is encrypted in its archive", size_bytes=member.stored_bytes)
    if method == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(data, MAX_FILE_BYTES)
        except zlib.error as error:
            raise _damaged(member) from error
        if inflater.unconsumed_tail:
            message = f"more than the {MAX_FILE_BYTES} bytes allowed once it is unpacked"
            raise ImageError("read", "too_many_bytes", message, size_bytes=member.stored_bytes)
        if not inflater.eof:
            raise _damaged(member)
    elif method != _STORED:
        message = f"compressed by ZIP's method {method} in its archive; only stored and deflated are read"
        raise ImageError("read", "unreadable", message, size_bytes=member.stored_bytes)
    if not flags & _SIZES_BEHIND:
        whole = size_bytes == _IN_EXTRA_FIELD or size_bytes == len(data)
        if not whole or zlib.crc32(data) != checksum:
            raise _damaged(member)
    return data


def _changed(member: Member) -> ImageError:
    return ImageError(
        "read",
        "unreadable",
        f"the archive {os.fsdecode(member.archive)} has changed since the set was prepared",
        hint="run `python -m trainer prepare` again",
    )


def _damaged(member: Member) -> ImageError:
    return ImageError(
        "read", "unreadable", "it is damaged in its archive (wrong checksum)", size_bytes=member.stored_bytes
    )
