"""Where an index is searched: what is chosen, and what is said of it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from geoinfer.errors import DeviceError, UsageError
from geoinfer.index import gpu
from geoinfer.index.device import GAINS_BYTES, check_index_device, index_on


@dataclasses.dataclass(frozen=True)
class Stored:
    manifest: SimpleNamespace
    index: object


def stored(kind: str = "flat", size: int = 1 << 20) -> Stored:
    return Stored(SimpleNamespace(kind=kind, size=size), SimpleNamespace(dim=256))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """`gpus(2)`: as many as FAISS finds; `gpus(1, DeviceError(...))`: what becomes of laying an index on one."""

    def pretend(count: int, fault: Exception | None = None) -> None:
        def to_gpu(opened: Stored) -> str:
            if fault is not None:
                raise fault
            return f"{opened.manifest.kind} on a GPU"

        monkeypatch.setattr(gpu, "gpu_count", lambda: count)
        monkeypatch.setattr(gpu, "to_gpu", to_gpu)

    return pretend


def test_cpu_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "gpu_count", lambda: pytest.fail("asked"))
    opened = stored()
    found, device = index_on(opened, "cpu")
    assert found is opened
    assert (device.name, device.reason, device.fell_back) == ("cpu", "as asked", False)


@pytest.mark.parametrize("kind", ["flat", "flat-fp16", "sq8", "hnsw", "ivf", "ivf-pq"])
def test_cuda_is_taken_whatever_the_index(gpus, kind: str) -> None:
    gpus(1)
    found, device = index_on(stored(kind, 10), "cuda")
    assert found.index == f"{kind} on a GPU"
    assert (device.name, device.reason) == ("cuda", "as asked")


def test_cuda_that_is_not_there_is_an_error(gpus) -> None:
    gpus(0, DeviceError("there is none"))
    with pytest.raises(DeviceError, match="there is none") as caught:
        index_on(stored(), "cuda")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("count", "kind", "size", "name", "reason"),
    [
        (0, "flat", 1 << 30, "cpu", "FAISS has no GPU to use"),
        (1, "hnsw", 1 << 30, "cpu", "an index of kind hnsw is fast on it"),
        (1, "ivf-pq", 1 << 30, "cpu", "an index of kind ivf-pq is fast on it"),
        (1, "flat", GAINS_BYTES // 1024 - 1, "cpu", f"{GAINS_BYTES // 1024 - 1} references are few"),
        (1, "flat", GAINS_BYTES // 1024, "cuda", "a GPU was found, and the index is large"),
        (2, "sq8", 1 << 30, "cuda", "a GPU was found, and the index is large"),
    ],
)
def test_auto_says_why(gpus, count: int, kind: str, size: int, name: str, reason: str) -> None:
    gpus(count)
    opened = stored(kind, size)
    found, device = index_on(opened, "auto")
    assert (device.name, device.reason, device.fell_back) == (name, reason, False)
    assert (found is opened) == (name == "cpu")


def test_auto_says_when_a_gpu_could_not_be_used(gpus) -> None:
    gpus(1, DeviceError("no room for the references"))
    opened = stored()
    found, device = index_on(opened, "auto")
    assert found is opened
    assert (device.name, device.fell_back) == ("cpu", True)
    assert device.reason == "a GPU was chosen, but: no room for the references"


@pytest.mark.parametrize("wanted", ["", "gpu", "cuda:0", "CPU"])
def test_other_words_are_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match="expected one of auto, cpu, cuda"):
        check_index_device(wanted)
    with pytest.raises(UsageError, match="expected one of auto, cpu, cuda"):
        index_on(stored(), wanted)
