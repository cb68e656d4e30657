from __future__ import annotations

import sys

import pytest

from geoinfer.engines import gpu
from geoinfer.engines.gpu import Gpu, find_gpu
from geoinfer.errors import DeviceError, MissingPackageError
from tests.engines.fakes import FakeRuntime


def use(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> None:
    monkeypatch.setattr(gpu, "cuda_runtime", lambda: runtime)


def test_says_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRuntime(("NVIDIA A10", 8, 6), ("NVIDIA H100", 9, 0)))
    assert find_gpu() == Gpu(0, "NVIDIA A10", (8, 6), 24 << 30)
    assert find_gpu(1).compute_capability == (9, 0)
    assert str(find_gpu(1)) == "NVIDIA H100 (compute capability 9.0)"


@pytest.mark.parametrize("ordinal", [2, -1, 99])
def test_none_of_this_number(monkeypatch: pytest.MonkeyPatch, ordinal: int) -> None:
    use(monkeypatch, FakeRuntime(("NVIDIA A10", 8, 6), ("NVIDIA H100", 9, 0)))
    with pytest.raises(DeviceError, match=f"cuda:{ordinal}: there is no such GPU; this machine has 2") as caught:
        find_gpu(ordinal)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("error", "reason"), [(35, "there is no NVIDIA driver"), (100, "CUDA error 100"), (0, "no CUDA-capable")]
)
def test_no_driver_or_no_gpu(monkeypatch: pytest.MonkeyPatch, error: int, reason: str) -> None:
    use(monkeypatch, FakeRuntime(error=error))
    with pytest.raises(DeviceError, match=reason) as caught:
        find_gpu()
    assert caught.value.exit_code == 4
    assert "geoinfer doctor" in caught.value.hint


def test_a_gpu_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(("NVIDIA A10", 8, 6))
    runtime.cudaGetDeviceProperties = lambda ordinal: (46, None)
    use(monkeypatch, runtime)
    with pytest.raises(DeviceError, match="cuda:0: cannot be used: CUDA error 46"):
        find_gpu()


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingPackageError, match="cuda-python cannot be imported") as caught:
        find_gpu()
    assert "pip install cuda-python" in caught.value.hint


def test_the_real_runtime_has_an_answer() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    try:
        found = str(find_gpu())
    except DeviceError as error:
        found = str(error)
    assert "CUDA" in found or "compute capability" in found
