"""Which kind of index suits so many references: `--kind auto`.

Measured on two cores, a million clustered references of 256 dimensions, ten neighbours: exact search answers 120-200
queries a second in batches of 256, and its time grows with references times dimensions. Up to a quarter of a million
such references that is under two milliseconds a query, less than it takes to decode the photo, so nothing approximate
is worth its loss. Beyond, `ivf` answers 25 times as many at recall@10 0.99, from codes of 72 bytes a reference; it
ranks by the stored vectors, which should fit into memory, too. Where they do not, `ivf-pq` takes half of the disk and
maps its codes; it answers a quarter as many as `ivf`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from geoinfer.index_kinds import Kind

_SECONDS_A_PRODUCT: Final = 3e-11
_EXACT_VALUES: Final = 64_000_000
# A GPU compares with everything, as long as everything fits beside a model.
_GPU_BYTES: Final = 16 << 30
_GPU_WIDE_BYTES: Final = 4 << 30
# Of the memory, so much may go to an index.
_SHARE: Final = 0.5
_BYTES_BESIDE: Final = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """A kind, and a clause that says why: `335 references are searched exactly in under a millisecond`."""

    kind: Kind
    why: str


def choose_kind(size: int, dim: int, *, memory_bytes: int | None = None, gpu: bool = False) -> Choice:
    """Chooses by size, device and memory.

    Args:
        size: number of references, at least 1.
        dim: length of an embedding.
        memory_bytes: of the machine that will search; None for this one.
        gpu: whether it searches on a GPU.
    """
    values = size * dim
    memory = _memory_bytes() if memory_bytes is None else memory_bytes
    room = int(memory * _SHARE)
    if values <= _EXACT_VALUES:
        return Choice("flat", f"{size:,} references are searched exactly in {_milliseconds(values)}")
    if gpu and values * 4 <= _GPU_WIDE_BYTES:
        return Choice("flat", f"a GPU compares a query with all {size:,} references in well under a millisecond")
    if gpu and values * 2 <= _GPU_BYTES:
        return Choice(
            "flat-fp16", f"a GPU compares a query with all {size:,} references, which fit it in half precision"
        )
    slow = f"comparing a query with all {size:,} references would take about {values * _SECONDS_A_PRODUCT * 1e3:.3g} ms"
    wanted = values * 4 + size * (dim // 4 + _BYTES_BESIDE)
    if wanted <= room:
        return Choice("ivf", f"{slow}, and {_gigabytes(wanted)} of embeddings and codes fit into memory")
    return Choice(
        "ivf-pq", f"{slow}, and {_gigabytes(wanted)} of embeddings and codes would crowd {_gigabytes(memory)} of memory"
    )


def _milliseconds(values: int) -> str:
    milliseconds = values * _SECONDS_A_PRODUCT * 1e3
    if milliseconds < 0.1:
        return "well under a millisecond"
    return "under a millisecond" if milliseconds < 1 else "about two milliseconds"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def _memory_bytes() -> int:
    """Of this machine; 8 GB where nobody says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 << 30
