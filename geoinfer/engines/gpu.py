"""Which NVIDIA GPU is in the machine, asked of the CUDA runtime itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from geoinfer.errors import DeviceError, MissingPackageError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that this process can use.

    Attributes:
        ordinal: the N of `cuda:N`.
        name: such as `NVIDIA A10`.
        compute_capability: what its hardware can do, (major, minor).
        memory_bytes: all of its memory.
    """

    ordinal: int
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} (compute capability {major}.{minor})"


def cuda_runtime() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        MissingPackageError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError) as error:
        raise MissingPackageError(
            f"CUDA cannot be used: cuda-python cannot be imported: {' '.join(str(error).split())}",
            hint="pip install cuda-python; the extras gpu, tensorrt and rtx of geoinfer-toolkit bring it",
        ) from error
    return runtime


_NO_OR_OLD_DRIVER: Final = 35  # cudaErrorInsufficientDriver


def find_gpu(ordinal: int = 0) -> Gpu:
    """The GPU `cuda:<ordinal>`.

    Raises:
        DeviceError: there is no driver, no GPU, or none of this number.
        MissingPackageError: cuda-python is not installed.
    """
    runtime = cuda_runtime()
    error, count = runtime.cudaGetDeviceCount()
    if int(error) != 0 or not count:
        reason = _reason(runtime, error) if int(error) else "no CUDA-capable device is detected"
        raise DeviceError(
            f"no NVIDIA GPU can be used here: {reason}",
            hint="a GPU needs its driver; `geoinfer doctor` shows what is there",
        )
    if not 0 <= ordinal < count:
        raise DeviceError(
            f"cuda:{ordinal}: there is no such GPU; this machine has {count}, from cuda:0",
            hint="`geoinfer doctor` shows them",
        )
    error, properties = runtime.cudaGetDeviceProperties(ordinal)
    if int(error) != 0:
        raise DeviceError(f"cuda:{ordinal}: cannot be used: {_reason(runtime, error)}")
    name = properties.name
    return Gpu(
        ordinal=ordinal,
        name=name.decode(errors="replace") if isinstance(name, bytes) else str(name),
        compute_capability=(int(properties.major), int(properties.minor)),
        memory_bytes=int(properties.totalGlobalMem),
    )


def _reason(runtime: Any, error: Any) -> str:
    # CUDA's own words, "driver version is insufficient", are what it says where there is no driver at all.
    if int(error) == _NO_OR_OLD_DRIVER:
        return "there is no NVIDIA driver, or it is older than this CUDA needs"
    _, text = runtime.cudaGetErrorString(error)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
