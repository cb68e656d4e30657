"""What the machine says of itself."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from geoinfer import machine
from geoinfer.machine import free_memory_bytes, sums_bytes_exactly

if TYPE_CHECKING:
    from pathlib import Path

GB = 1 << 30


@pytest.mark.parametrize(
    ("cpuinfo", "exactly"),
    [
        ("processor : 0\nflags : fpu avx2 avx512f avx512_vnni\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx_vnni\n", True),
        ("processor : 0\nflags : fpu avx2 avx512f avx512vl\n", False),
        ("processor : 0\nFeatures : fp asimd\n", False),
        ("", False),
        (None, False),
    ],
)
def test_processors_that_sum_bytes_exactly(monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, exactly: bool) -> None:
    def opened(name: str, **_: str) -> io.StringIO:
        assert name == "/proc/cpuinfo"
        if cpuinfo is None:
            raise FileNotFoundError(name)
        return io.StringIO(cpuinfo)

    monkeypatch.setattr(builtins, "open", opened)
    assert sums_bytes_exactly() is exactly


def group(folder: Path, names: tuple[str, str], most: object, used: int, cached: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(cached)


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_control_groups_of_version_2(tmp_path: Path) -> None:
    """The whole chain counts, and what is cached can be dropped."""
    group(tmp_path / "a", V2, 4 * GB, 3 * GB, f"anon {GB}\ninactive_file {2 * GB}\n")
    group(tmp_path / "a" / "b", V2, "max", GB, "")
    group(tmp_path / "a" / "b" / "c", V2, 8 * GB, GB, "")
    (tmp_path / "proc").write_text("0::/a/b/c\n")
    assert sorted(machine._control_group_bytes(str(tmp_path / "proc"), str(tmp_path))) == [3 * GB, 7 * GB]


def test_control_groups_of_version_1_seen_from_a_container(tmp_path: Path) -> None:
    group(tmp_path / "memory", V1, 2 * GB, GB, f"cache 5\ntotal_inactive_file {GB // 2}\n")
    (tmp_path / "proc").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/0123\n0::/\n\nnonsense\n")
    assert machine._control_group_bytes(str(tmp_path / "proc"), str(tmp_path)) == [3 * GB // 2]


def test_no_control_groups(tmp_path: Path) -> None:
    assert machine._control_group_bytes(str(tmp_path / "none"), str(tmp_path)) == []


def test_free_memory_of_this_machine() -> None:
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < free_memory_bytes() <= total


def test_an_address_space_that_is_limited_counts() -> None:
    script = (
        "import resource; from geoinfer.machine import free_memory_bytes\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))\n"
        "before = free_memory_bytes(); taken = bytearray(300 << 20); print(before, free_memory_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    before, after = map(int, done.stdout.split())
    assert 0 < after < before < GB
    assert abs(before - after - (300 << 20)) < 8 << 20
