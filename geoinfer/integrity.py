"""Checksums, and writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from geoinfer.errors import OutputError
from geoinfer.unfinished import undone_at_the_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_known: dict[tuple[int, ...], str] = {}
_KNOWN_BYTES: Final = 1 << 20
_SETTLED_SECONDS: Final = 10.0


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes.

    A file of more than a megabyte is read once in a process, as long as nothing about it changes: a model's digest is
    asked for by its bundle, by what opens it and by what was measured of it.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        # Who writes twice within one tick of the clock leaves the same time behind: what is that new is not believed.
        settled = abs(time.time() - max(status.st_mtime, status.st_ctime)) > _SETTLED_SECONDS
        if not settled or status.st_size < _KNOWN_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if key not in _known:
            _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _known[key]


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that appears under `path`, whole and on the disk, when the block ends; on an error it never does.

    Raises:
        OSError: it cannot be written.
        OutputError: `path` is a device, a pipe or a socket, which a file would take the place of.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OutputError(f"{path}: not a regular file", hint="a file would take its place; choose another name")
    temporary = temporary_name(path)
    try:
        with undone_at_the_end(lambda: temporary.unlink(missing_ok=True)):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """Where a file is written before it takes its place: hidden, and called as no user would call a file."""
    return path.with_name(f".{path.name}.geoinfer-tmp")


def sync_file(path: Path) -> None:
    """Makes what was written to a file survive a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut (POSIX; elsewhere folders cannot be synced and need not be)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, for hashing and for files whose bytes must not depend on dictionary order."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON with sorted keys, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
