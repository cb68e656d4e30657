"""What the machine has to offer."""

from __future__ import annotations

import os


def available_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def sums_bytes_exactly() -> bool:
    """Whether the processor has instructions (VNNI) that sum products of bytes in 32 bits; False where nobody says.

    Without them uint8 times int8 is summed in 16 bits, two products at a time, and saturates.
    """
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags
