"""What a device does at best, measured: large matrix products by precision, and a large copy.

The products run in ONNX Runtime, whose kernels also embed; on a CPU NumPy's count too where they are faster. fp16 has
no arithmetic of its own on most CPUs and is held to fp32's rate there. On a GPU fp32 is TF32, as in ONNX Runtime.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.backends.base import parse_device
from geoinfer.backends.onnx_runtime import import_onnxruntime, load_cuda
from geoinfer.benchmark.operations import FP16, FP32, INT8
from geoinfer.benchmark.protobuf import FLOAT, FLOAT16, INT32, UINT8, chain_of_products
from geoinfer.benchmark.protobuf import INT8 as INT8_ELEMENTS
from geoinfer.engines.gpu import cuda_runtime
from geoinfer.errors import DeviceError, GeoInferError
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BYTES: Final = "bytes"
"""The name of the rate of a copy, beside those of `geoinfer.benchmark.operations`."""

_CPU_SIDE, _GPU_SIDE = 1536, 8192
_GPU_CHAIN: Final = 8  # products in a call, so that calling weighs nothing
_CPU_BYTES, _GPU_BYTES = 1 << 28, 1 << 30
_ROUNDS: Final = 7
_LEAST_ROUNDS: Final = 3
_SECONDS: Final = 0.5  # after which the least will do


def measure_peaks(device: str) -> dict[str, float]:
    """Operations a second of large matrix products by precision, and bytes a second (`BYTES`) read and written.

    Takes about two seconds. A precision that the device cannot multiply in is left out.

    Args:
        device: as of an embedder: `cpu`, `cuda:0`, `tensorrt:0`.

    Raises:
        DeviceError: a GPU without ONNX Runtime's CUDA provider.
        MissingPackageError: what is needed is not installed.
    """
    kind, ordinal = parse_device(device)
    return cpu_peaks() if kind == "cpu" else gpu_peaks(ordinal)


def cpu_peaks(side: int = _CPU_SIDE, moved_bytes: int = _CPU_BYTES) -> dict[str, float]:
    """See `measure_peaks`.

    Args:
        side: of the matrices.
        moved_bytes: of the copy.
    """
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(side, side)).astype(np.float32) for _ in range(2))
    out = np.empty_like(left)
    bytes_left, bytes_right = rng.integers(0, 256, (side, side), np.uint8), rng.integers(-127, 128, left.shape, np.int8)
    session, session8 = product_session(FP32, side), product_session(INT8, side)
    works: list[tuple[str, Callable[[], object]]] = [
        (FP32, lambda: session.run(None, {"a": left, "b": right})),
        (FP32, lambda: np.matmul(left, right, out=out)),
        (INT8, lambda: session8.run(None, {"a": bytes_left, "b": bytes_right})),
    ]
    rates = dict.fromkeys((FP32, FP16, INT8), 0.0)
    for precision, work in works:
        rates[precision] = max(rates[precision], 2 * side**3 / fastest_seconds(work))
    rates[FP16] = rates[FP32]
    return rates | {BYTES: _cpu_copy(moved_bytes)}


def _cpu_copy(moved: int) -> float:
    source, target = np.ones(moved, np.uint8), np.zeros(moved, np.uint8)
    cores = available_cores()
    bounds = np.linspace(0, moved, cores + 1).astype(int).tolist()

    def part(i: int) -> None:
        np.copyto(target[bounds[i] : bounds[i + 1]], source[bounds[i] : bounds[i + 1]])

    with ThreadPoolExecutor(cores) as pool:
        return 2 * moved / fastest_seconds(lambda: list(pool.map(part, range(cores))))


def gpu_peaks(ordinal: int = 0) -> dict[str, float]:
    """See `measure_peaks`."""
    rates = {}
    for precision in (FP32, FP16, INT8):
        length = 1 if precision == INT8 else _GPU_CHAIN
        try:
            work = bound_product(precision, "cuda", ordinal, side=_GPU_SIDE, length=length)
        except DeviceError:
            if precision == FP32:
                raise
            continue
        rates[precision] = length * 2 * _GPU_SIDE**3 / fastest_seconds(work)
    return rates | {BYTES: _gpu_copy(ordinal)}


def product_session(precision: str, side: int, length: int = 1, providers: list[Any] | None = None) -> Any:
    """A session of `chain_of_products` in a precision, on all cores or by the providers given."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 4
    left = {FP32: FLOAT, FP16: FLOAT16, INT8: INT8_ELEMENTS if providers else UINT8}[precision]
    right, out = (INT8_ELEMENTS, INT32) if precision == INT8 else (left, left)
    operator = "MatMulInteger" if precision == INT8 else "MatMul"
    model = chain_of_products(operator, left, right, out, side, length)
    return onnxruntime.InferenceSession(model, options, providers=providers or ["CPUExecutionProvider"])


def bound_product(precision: str, device: str, ordinal: int, *, side: int, length: int) -> Callable[[], None]:
    """A call that multiplies matrices that are on the device and leaves the result there; it returns when that is done.

    Args:
        precision: `fp32`, `fp16` or `int8`.
        device: `cuda`, or `cpu`.
        ordinal: of the GPU.
        side: of the matrices.
        length: products in a call; 1 in int8.

    Raises:
        DeviceError: the device has no such product, or none of its libraries.
    """
    onnxruntime = import_onnxruntime()
    provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise DeviceError(f"the rate of {device}:{ordinal} is measured by ONNX Runtime, which has no {provider} here")
    if device == "cuda":
        load_cuda(onnxruntime)
    rng = np.random.default_rng(0)
    if precision == INT8:
        given = [rng.integers(-127, 128, (side, side), np.int8) for _ in range(2)]
    else:
        dtype = np.float16 if precision == FP16 else np.float32
        # So scaled, products of products stay the same size, and none becomes infinite, which would be quick to do.
        given = [(rng.standard_normal((side, side), np.float32) / side**0.5).astype(dtype) for _ in range(2)]
    try:
        session = product_session(precision, side, length, [(provider, {"device_id": ordinal} if ordinal else {})])
        if provider not in session.get_providers():
            raise DeviceError(f"{device}:{ordinal}: {provider} did not start")
        session.disable_fallback()
        binding = session.io_binding()
        for name, values in zip("ab", given, strict=True):
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(values, device, ordinal))
        binding.bind_output("c", device, ordinal)
        session.run_with_iobinding(binding)
    except GeoInferError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise DeviceError(f"{device}:{ordinal}: no products in {precision}: {str(error).splitlines()[0]}") from error

    def work() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return work


def _gpu_copy(ordinal: int) -> float:
    runtime = cuda_runtime()

    def checked(result: tuple[Any, ...]) -> Any:
        if int(result[0]) != 0:
            raise DeviceError(f"cuda:{ordinal}: memory cannot be copied: {result[0]}")
        return result[-1]

    checked(runtime.cudaSetDevice(ordinal))
    places: list[Any] = []
    try:
        places += [checked(runtime.cudaMalloc(_GPU_BYTES)) for _ in range(2)]

        def copy() -> None:
            kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            checked(runtime.cudaMemcpy(places[0], places[1], _GPU_BYTES, kind))
            checked(runtime.cudaDeviceSynchronize())

        return 2 * _GPU_BYTES / fastest_seconds(copy)
    finally:
        for place in places:
            runtime.cudaFree(place)


def fastest_seconds(work: Callable[[], object]) -> float:
    """The shortest of three to seven calls, after one that is not counted."""
    work()
    times: list[float] = []
    while len(times) < _LEAST_ROUNDS or (len(times) < _ROUNDS and sum(times) < _SECONDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def best_of(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """The higher of two measurements of each rate: on a busy machine the best may come at any time."""
    return {name: max(first.get(name, 0.0), second.get(name, 0.0)) for name in {**first, **second}}
