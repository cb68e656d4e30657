from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from geoinfer.benchmark import resources
from geoinfer.benchmark.resources import GpuMeter, Meter, children_bytes, forget_peak, machine_of, peak_memory_bytes
from geoinfer.errors import MissingPackageError
from geoinfer.machine import available_cores
from tests.benchmark.fake_nvml import FakeNvml

ON_LINUX = sys.platform == "linux"
SLEEPER = "import sys, time; held = bytearray(60_000_000); print('up', flush=True); time.sleep(60)"


def test_processor_time_is_of_all_cores() -> None:
    """Against the process's own clock: a loop on one thread is at most one core's work, and sleeping next to none."""
    with Meter() as meter:
        time.sleep(0.2)
    assert meter.usage.seconds >= 0.2
    assert meter.usage.cpu_share < 0.3
    began = time.process_time()
    with Meter() as meter:
        while time.process_time() - began < 0.2:
            pass
    used = meter.usage.cpu_share * meter.usage.seconds * available_cores()
    assert used == pytest.approx(0.2, abs=0.1)


@pytest.mark.skipif(not ON_LINUX, reason="reads /proc")
def test_the_peak_is_of_what_happened_within() -> None:
    """Against the bytes that are allocated here; the first and larger peak is over and does not count."""
    gone = np.ones(400_000_000 // 8)
    del gone
    with Meter() as meter:
        held = np.ones(100_000_000 // 8)
        del held
    now = resources._read("/proc/self/statm").split()[1]
    before = int(now) * os.sysconf("SC_PAGE_SIZE")
    assert meter.usage.peak_memory_bytes is not None
    assert 90e6 < meter.usage.peak_memory_bytes - before < 250e6


@pytest.mark.skipif(not ON_LINUX, reason="reads /proc")
def test_a_childs_memory_counts() -> None:
    child = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert children_bytes() > 60e6
        forget_peak()
        alone = peak_memory_bytes()
        with Meter() as meter:
            time.sleep(0.2)
        assert meter.usage.peak_memory_bytes > alone + 50e6
    finally:
        child.kill()
        child.communicate()
    assert children_bytes() < 60e6


def test_without_what_the_system_should_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_read", lambda _: "")
    monkeypatch.setattr(sys, "platform", "other")
    assert peak_memory_bytes() is None
    with Meter() as meter:
        pass
    assert meter.usage.peak_memory_bytes is None
    assert machine_of(None)["cpu"]


def test_the_meters_thread_ends() -> None:
    with Meter():
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "geoinfer-meter"]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml({"memory": [1 << 30, 5 << 30, 2 << 30], "use": 70, "milliwatts": 350_000}, gpus=4)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def no_cuda() -> None:
        raise MissingPackageError("none here")

    monkeypatch.setattr("geoinfer.engines.gpu.cuda_runtime", no_cuda)
    return fake


def test_a_gpu_is_asked_for_use_power_and_memory(nvml: FakeNvml) -> None:
    gpu = GpuMeter.open("cuda:0")
    assert gpu is not None
    nvml.figures["use"] = [20, 60, 100, 100]
    with Meter(gpu) as meter:
        time.sleep(0.12)
    assert 0.2 < meter.usage.gpu_use <= 1.0
    assert meter.usage.gpu_watts == pytest.approx(350.0)
    assert meter.usage.gpu_memory_bytes == 5 << 30
    assert machine_of(gpu)["gpu"] == {"name": "NVIDIA gpu 0", "driver": "580.1", "memory_bytes": 80 << 30}


def test_energy_is_better_than_samples_of_power(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(resources.time, "perf_counter", lambda: next(clock))
    gpu = GpuMeter.open("cuda:0")
    nvml.figures["millijoules"] = [1_000_000, 1_800_000]
    gpu.start()
    gpu.stop()
    assert gpu.watts == pytest.approx(200.0)  # 800 J in 4 s


def test_what_a_gpu_does_not_say_is_none(nvml: FakeNvml) -> None:
    gpu = GpuMeter.open("cuda:0")
    nvml.figures.clear()
    with Meter(gpu) as meter:
        pass
    assert (meter.usage.gpu_use, meter.usage.gpu_watts, meter.usage.gpu_memory_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("visible", "device", "asked"),
    [
        (None, "cuda:2", 2),
        ("3,1", "cuda:0", 3),
        ("3,1", "tensorrt:1", 1),
        ("GPU-5c1d", "cuda:0", b"GPU-5c1d"),
        ("", "cuda:1", 1),
        (None, "cuda", 0),
    ],
)
def test_the_same_gpu_as_cudas(visible, device, asked, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert GpuMeter.open(device) is not None
    assert nvml.asked_for == [asked]


def test_cuda_itself_says_which_bus(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        @staticmethod
        def cudaDeviceGetPCIBusId(  # noqa: N802 - CUDA's name
            length: int, ordinal: int
        ) -> tuple[int, bytes]:
            return 0, b"0000:0%d:00.0\0\0" % ordinal

    monkeypatch.setattr("geoinfer.engines.gpu.cuda_runtime", lambda: Runtime)
    GpuMeter.open("cuda:3")
    assert nvml.asked_for == [b"0000:03:00.0"]


def test_no_gpu_no_library_no_driver(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> None:
    assert GpuMeter.open("cpu") is None
    assert GpuMeter.open("cuda:9") is None
    nvml.starts = False
    assert GpuMeter.open("cuda:0") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuMeter.open("cuda:0") is None


def test_nothing_names_the_machine_or_its_owner() -> None:
    import socket

    text = repr(machine_of(None))
    assert socket.gethostname() not in text
    assert os.path.expanduser("~") not in text
