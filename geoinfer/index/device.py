"""Where an index is searched: on the CPU, or on a GPU that FAISS can use. Never changed in silence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from geoinfer.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from geoinfer.index.store import StoredIndex

INDEX_DEVICES: Final = ("auto", "cpu", "cuda")

GAINS_BYTES: Final = 64 << 20
"""A CPU goes through fewer embeddings than this faster than a GPU is asked."""

_SCANNED: Final = ("flat", "flat-fp16", "sq8")
"""The kinds that look at every reference; the others hardly keep a CPU busy."""


@dataclass(frozen=True, slots=True)
class IndexDevice:
    """Where an index is searched.

    Attributes:
        name: `cpu` or `cuda`.
        reason: a clause that says why.
        fell_back: whether a GPU was chosen and could not be used.
        chosen: whether there was anything to choose, so that it is worth a line.
    """

    name: str
    reason: str
    fell_back: bool = False
    chosen: bool = True


def check_index_device(wanted: str) -> None:
    """Raises UsageError for a word that is none of `INDEX_DEVICES`."""
    if wanted not in INDEX_DEVICES:
        raise UsageError(f"--index-device {wanted}: expected one of {', '.join(INDEX_DEVICES)}")


def index_on(stored: StoredIndex, wanted: str) -> tuple[StoredIndex, IndexDevice]:
    """Puts an open index where it is to be searched.

    Args:
        stored: as it was opened, on the CPU.
        wanted: `cpu`, `cuda`, or `auto`: a GPU if there is one and it saves time.

    Raises:
        UsageError: `wanted` is another word, or this kind of index cannot be searched on a GPU.
        DeviceError: `cuda`, and FAISS has no GPU to use, or none with room for the index.
    """
    check_index_device(wanted)
    if wanted == "cpu":
        return stored, IndexDevice("cpu", "as asked", chosen=False)
    from geoinfer.index.gpu import gpu_count, to_gpu

    if wanted == "cuda":
        return dataclasses.replace(stored, index=to_gpu(stored)), IndexDevice("cuda", "as asked")
    if gpu_count() == 0:
        return stored, IndexDevice("cpu", "FAISS has no GPU to use", chosen=False)
    if stored.manifest.kind not in _SCANNED:
        return stored, IndexDevice("cpu", f"an index of kind {stored.manifest.kind} is fast on it")
    if stored.manifest.size * stored.index.dim * 4 < GAINS_BYTES:
        return stored, IndexDevice("cpu", f"{stored.manifest.size} references are few")
    try:
        moved = to_gpu(stored)
    except (DeviceError, UsageError) as error:
        return stored, IndexDevice("cpu", f"a GPU was chosen, but: {error}", fell_back=True)
    return dataclasses.replace(stored, index=moved), IndexDevice("cuda", "a GPU was found, and the index is large")
