"""What the machine says of itself."""

from __future__ import annotations

import builtins
import io

import pytest

from geoinfer.machine import sums_bytes_exactly


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
