"""A management library with one GPU, or several, whose figures a test sets."""

# ruff: noqa: N802 - the names are the library's

from __future__ import annotations

from types import SimpleNamespace


class NVMLError(Exception):
    pass


class FakeNvml:
    """As much of `pynvml` as is used; what is not in `figures` is not supported, as on some GPUs."""

    NVMLError = NVMLError

    def __init__(self, figures: dict[str, object], *, gpus: int = 1, starts: bool = True) -> None:
        self.figures, self.gpus, self.starts = figures, gpus, starts
        self.asked_for: list[object] = []

    def nvmlInit(self) -> None:
        if not self.starts:
            raise NVMLError("no driver")

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:
        self.asked_for.append(number)
        if not 0 <= number < self.gpus:
            raise NVMLError("no such GPU")
        return f"gpu {number}"

    def nvmlDeviceGetHandleByUUID(self, name: bytes) -> str:
        self.asked_for.append(name)
        return "gpu by name"

    def nvmlDeviceGetHandleByPciBusId(self, bus: bytes) -> str:
        self.asked_for.append(bus)
        return "gpu by bus"

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"NVIDIA {handle}"

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.1"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(total=80 << 30, used=self._next("memory"))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._next("use"))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> object:
        return self._next("milliwatts")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> object:
        return self._next("millijoules")

    def _next(self, name: str) -> object:
        """A figure; of a list the next, and the last one again and again."""
        found = self.figures.get(name)
        if found is None:
            raise NVMLError(f"{name} is not supported")
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found
