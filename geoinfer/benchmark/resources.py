"""What a run takes of the machine: processor time, memory, and what NVIDIA's management library says of a GPU."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import resource
import sys
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final, Self

import geoinfer
from geoinfer.errors import GeoInferError
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Iterable

_SAMPLE_SECONDS: Final = 0.05
_PACKAGES: Final = (
    "numpy", "pillow", "simplejpeg", "pi-heif", "onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu",
    "faiss-gpu-cu12", "tensorrt", "tensorrt-rtx", "nvidia-nvimgcodec-cu13",
)  # fmt: skip
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Usage:
    """What was used between entering and leaving a `Meter`.

    Attributes:
        seconds: of the clock.
        cpu_share: processor time of this process, and of the children that ended meanwhile, over seconds x cores.
        peak_memory_bytes: the most that was resident, with the children's; None where the system does not say.
        gpu_use: mean share of time that the GPU was busy; None without a GPU, or where it does not say.
        gpu_watts: its mean power.
        gpu_memory_bytes: the most that was in use on it.
    """

    seconds: float = 0.0
    cpu_share: float = 0.0
    peak_memory_bytes: int | None = None
    gpu_use: float | None = None
    gpu_watts: float | None = None
    gpu_memory_bytes: int | None = None


class Meter:
    """Measures what happens within its block; a context manager. A thread of its own asks now and then."""

    def __init__(self, gpu: GpuMeter | None = None) -> None:
        self.usage = Usage()
        self._gpu = gpu
        self._children_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="geoinfer-meter", daemon=True)
        self._began = self._cpu_began = 0.0

    def __enter__(self) -> Self:
        forget_peak()
        if self._gpu is not None:
            self._gpu.start()
        self._cpu_began, self._began = _cpu_seconds(), time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        seconds = time.perf_counter() - self._began
        cpu = _cpu_seconds() - self._cpu_began
        self._stop.set()
        self._thread.join()
        peak = peak_memory_bytes()
        self.usage = Usage(
            seconds=seconds,
            cpu_share=min(cpu / max(seconds * available_cores(), 1e-9), 1.0),
            peak_memory_bytes=None if peak is None else peak + self._children_bytes,
        )
        if self._gpu is not None:
            self._gpu.stop()
            self.usage.gpu_use = self._gpu.use
            self.usage.gpu_watts = self._gpu.watts
            self.usage.gpu_memory_bytes = self._gpu.memory_bytes

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._children_bytes = max(self._children_bytes, children_bytes())
            if self._gpu is not None:
                self._gpu.sample()


@dataclass(slots=True)
class GpuMeter:
    """One GPU, asked through NVML (`pynvml`, of the package nvidia-ml-py); figures that it does not give are None."""

    nvml: Any
    handle: Any
    name: str
    driver: str
    total_bytes: int
    use: float | None = None
    watts: float | None = None
    memory_bytes: int | None = None
    _uses: list[float] = field(default_factory=list)
    _powers: list[float] = field(default_factory=list)
    _energy_began: tuple[float, float] | None = None

    @classmethod
    def open(cls, device: str) -> GpuMeter | None:
        """The meter of a device as `Embedder.device` names it, None for `cpu` and where NVML is not there."""
        kind, _, ordinal = device.partition(":")
        if kind == "cpu":
            return None
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return None
        try:
            nvml.nvmlInit()
            handle = _handle(nvml, int(ordinal or 0))
            return cls(
                nvml,
                handle,
                _text(nvml.nvmlDeviceGetName(handle)),
                _text(nvml.nvmlSystemGetDriverVersion()),
                int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            )
        except (nvml.NVMLError, ValueError):
            return None

    def start(self) -> None:
        """Begins anew."""
        self._uses, self._powers = [], []
        self.use = self.watts = self.memory_bytes = None
        self._energy_began = self._energy()
        self.sample()

    def sample(self) -> None:
        """Asks once."""
        with contextlib.suppress(self.nvml.NVMLError):
            self._uses.append(self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100)
        with contextlib.suppress(self.nvml.NVMLError):
            self._powers.append(self.nvml.nvmlDeviceGetPowerUsage(self.handle) / 1e3)
        with contextlib.suppress(self.nvml.NVMLError):
            used = int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used)
            self.memory_bytes = max(self.memory_bytes or 0, used)

    def stop(self) -> None:
        """Makes `use` and `watts` of what was seen since `start`."""
        self.sample()
        self.use = sum(self._uses) / len(self._uses) if self._uses else None
        self.watts = sum(self._powers) / len(self._powers) if self._powers else None
        began, ended = self._energy_began, self._energy()
        # The GPU's own counter leaves nothing out between two questions; it moves in steps of some 20 ms to 100 ms.
        if began is not None and ended is not None and ended[0] - began[0] >= 1 and ended[1] > began[1]:
            self.watts = (ended[1] - began[1]) / (ended[0] - began[0])

    def _energy(self) -> tuple[float, float] | None:
        """(seconds, joules), the second since the driver was loaded; None where the GPU does not count them."""
        with contextlib.suppress(self.nvml.NVMLError):
            return time.perf_counter(), self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3
        return None

    def as_dict(self) -> dict[str, Any]:
        """What a result says of it."""
        return {"name": self.name, "driver": self.driver, "memory_bytes": self.total_bytes}


def _handle(nvml: Any, ordinal: int) -> Any:
    """NVML's handle of `cuda:<ordinal>`: the two count differently, so its bus is asked for where CUDA can say it."""
    with contextlib.suppress(GeoInferError):
        from geoinfer.engines.gpu import cuda_runtime

        error, bus = cuda_runtime().cudaDeviceGetPCIBusId(32, ordinal)
        if int(error) == 0:
            return nvml.nvmlDeviceGetHandleByPciBusId(bus.rstrip(b"\0") if isinstance(bus, bytes) else bus)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if ordinal < len(visible):
        name = visible[ordinal].strip()
        if not name.isdecimal():
            return nvml.nvmlDeviceGetHandleByUUID(name.encode())
        ordinal = int(name)
    return nvml.nvmlDeviceGetHandleByIndex(ordinal)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _cpu_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def peak_memory_bytes() -> int | None:
    """The most of this process that was ever in memory at once; since the last `forget_peak` where that works.

    VmHWM where there is one: in `ru_maxrss` the memory of the process that started this one lives on.
    """
    status = _read("/proc/self/status")
    if (found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)) is not None:
        return int(found[1]) * 1024
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def forget_peak() -> None:
    """Lets VmHWM begin anew (proc(5), clear_refs); where the system refuses, it goes on being of the whole process."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def children_bytes() -> int:
    """What this process's children have in memory, 0 where the system does not say."""
    total = 0
    for task in _listed("/proc/self/task"):
        for child in _read(f"/proc/self/task/{task}/children").split():
            resident = _read(f"/proc/{child}/statm").split()[1:2]
            total += int(resident[0]) * _PAGE_BYTES if resident else 0
    return total


def _listed(folder: str) -> Iterable[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return ()


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def machine_of(gpu: GpuMeter | None) -> dict[str, Any]:
    """What a result says of the machine, see `Result.machine`; nothing that names it or its owner."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "memory_bytes": _PAGE_BYTES * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "geoinfer": geoinfer.__version__,
        "packages": versions,
        "gpu": None if gpu is None else gpu.as_dict(),
    }


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or "unknown"
