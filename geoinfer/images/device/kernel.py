"""Compiles the resampling kernels for the GPU that is there, by NVIDIA's run-time compiler (NVRTC)."""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from geoinfer.errors import DeviceError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable

ALONG_ROWS, ALONG_COLUMNS = "along_rows", "along_columns"
# As in resample.cu: pixels of a result that a block of threads makes, in each of so many rows.
ACROSS: Final = 32
DOWN: Final = 4

_SOURCE: Final = "resample.cu"


def source() -> str:
    """The kernels, in CUDA C++."""
    return resources.files(__package__).joinpath(_SOURCE).read_text(encoding="utf-8")


@functools.cache
def compiled(compute_capability: tuple[int, int]) -> bytes:
    """Machine code for a GPU; assembly (PTX), which its driver translates, where the compiler is older than the GPU.

    Raises:
        MissingPackageError: NVRTC is not installed.
        DeviceError: it does not compile.
    """
    api = _nvrtc()
    wanted = 10 * compute_capability[0] + compute_capability[1]
    known = [arch for arch in _call(api, "nvrtcGetSupportedArchs") if arch <= wanted]
    if not known:
        raise DeviceError(
            f"photos cannot be decoded on this GPU: its compute capability, {wanted / 10}, is too low for this CUDA",
            hint="--decode cpu decodes them on the CPU",
        )
    exact = max(known) == wanted
    option = f"--gpu-architecture={'sm' if exact else 'compute'}_{max(known)}"
    program = _call(api, "nvrtcCreateProgram", source().encode(), _SOURCE.encode(), 0, [], [])
    try:
        (status, *_) = api.nvrtcCompileProgram(program, 1, [option.encode()])
        if int(status) != 0:
            log = _text(api, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
            raise DeviceError(f"the kernel that resizes photos does not compile ({option}): {log.decode().strip()}")
        kind = "CUBIN" if exact else "PTX"
        return _text(api, program, f"nvrtcGet{kind}Size", f"nvrtcGet{kind}")
    finally:
        api.nvrtcDestroyProgram(program)


def _text(api: Any, program: Any, size: str, get: str) -> bytes:
    text = b" " * int(_call(api, size, program))
    _call(api, get, program, text)
    return text


def _call(api: Any, name: str, *arguments: Any) -> Any:
    call: Callable[..., tuple[Any, ...]] = getattr(api, name)
    status, *values = call(*arguments)
    if int(status) != 0:
        raise DeviceError(f"the compiler of GPU programs failed: {name} says {status}")
    return values[0] if values else None


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # the library itself is only looked for by the first call
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingPackageError(
            f"photos cannot be decoded on a GPU: NVRTC cannot be used: {' '.join(str(error).split())}",
            hint="pip install cuda-python nvidia-cuda-nvrtc; the extra gpu of geoinfer-toolkit brings both",
        ) from error
    return nvrtc
