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


def free_memory_bytes() -> int:
    """Bytes that this process can still take before the system runs out, or before a limit set on it is reached.

    The least of what the machine has left without swapping, what the control groups that the process is in leave it
    (a container's limit is one), and what is left of its address space (`ulimit -v`). Half of the machine's memory
    where the system does not say what is left.
    """
    meminfo = _numbers("/proc/meminfo")
    free = meminfo["MemAvailable"] * 1024 if "MemAvailable" in meminfo else _physical_bytes() // 2
    return max(min(free, *_control_group_bytes(), *_address_space_bytes()), 0)


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 8 << 30


def _control_group_bytes(proc: str = "/proc/self/cgroup", mounted: str = "/sys/fs/cgroup") -> list[int]:
    """What each group leaves; no group can have more than those that it lies in. Cached file contents can be dropped.

    Args:
        proc: lines `number:controllers:path`.
        mounted: where the groups are to be seen, version 2 of them or version 1 (cgroups(7)).
    """
    left = []
    for line in _text(proc).splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            root, limit, used, cached = mounted, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, used = f"{mounted}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        # A container sees its own group as the root, perhaps under a path of the host that it cannot see.
        names = [name for name in path.split("/") if name not in ("", "..")]
        for depth in range(len(names) + 1):
            folder = "/".join([root, *names[:depth]])
            most, now = _text(f"{folder}/{limit}").strip(), _text(f"{folder}/{used}").strip()
            if most.isdecimal() and now.isdecimal():
                left.append(int(most) - int(now) + _numbers(f"{folder}/memory.stat").get(cached, 0))
    return left


def _address_space_bytes() -> list[int]:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return []
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _numbers("/proc/self/status").get("VmSize")
    return [] if most == resource.RLIM_INFINITY or taken is None else [most - taken * 1024]


def _numbers(path: str) -> dict[str, int]:
    """The first number of each line of a file, by the line's first word."""
    numbers = {}
    for line in _text(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isdecimal():
            numbers[words[0]] = int(words[1])
    return numbers


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
