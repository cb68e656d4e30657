"""The seal at the end of `search.faiss`: whether its structure is as it was written, at the cost of reading that alone.

FAISS believes the numbers in its files; a mapped one that was cut short, or whose counts are damaged, ends the process.
So the file ends with a checksum of all but its bulk (codes, lists, links: what grows with the references and is mapped)
and with its length. FAISS does not look behind what it reads. Damage within the bulk costs neighbours, and is found by
`geoinfer index info --verify`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from geoinfer.errors import IndexFolderError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MAGIC: Final = b"geoinfer"
# The magic, how long the file is without the seal, two ranges that are bulk (start and stop of each), a SHA-256.
_SEAL: Final = struct.Struct("<8sq4q32s")
_READ_BYTES: Final = 1 << 22


def write_seal(file: BinaryIO, bulk: Sequence[tuple[int, int]]) -> None:
    """Seals a file.

    Args:
        file: open for reading and writing.
        bulk: ranges of bytes that are not hashed, in order; two at most.
    """
    total = file.seek(0, os.SEEK_END)
    ranges = [*bulk, *[(total, total)] * (2 - len(bulk))]
    digest = _digest(file, total, ranges)
    file.seek(total)
    file.write(_SEAL.pack(_MAGIC, total, *ranges[0], *ranges[1], digest))


def check_seal(file: Any, path: Path) -> None:
    """Raises IndexFolderError unless the file is as it was sealed, but for its bulk."""
    hint = "copy or build the index again"
    size = file.seek(0, os.SEEK_END)
    if size < _SEAL.size:
        raise IndexFolderError(f"{path}: cut short after {size} bytes", hint=hint)
    file.seek(size - _SEAL.size)
    magic, total, *edges, digest = _SEAL.unpack(file.read(_SEAL.size))
    if magic != _MAGIC or total + _SEAL.size != size:
        raise IndexFolderError(f"{path}: cut short, or not written by geoinfer", hint=hint)
    if sorted([0, *edges, total]) != [0, *edges, total]:
        raise IndexFolderError(f"{path}: damaged at its end", hint=hint)
    if _digest(file, total, [(edges[0], edges[1]), (edges[2], edges[3])]) != digest:
        raise IndexFolderError(f"{path}: damaged: its checksum differs", hint=hint)


def _digest(file: Any, total: int, bulk: Sequence[tuple[int, int]]) -> bytes:
    """SHA-256 of the ranges' own edges and of all outside of them."""
    digest = hashlib.sha256(struct.pack("<q4q", total, *bulk[0], *bulk[1]))
    start = 0
    for first, after in [*bulk, (total, total)]:
        file.seek(start)
        left = first - start
        while left > 0 and (content := file.read(min(left, _READ_BYTES))):
            digest.update(content)
            left -= len(content)
        start = after
    return digest.digest()
