"""The few calls of CUDA that embedding by TensorRT and decoding on a GPU need: checked, and freed together.

The calls go through NVIDIA's own bindings (the package cuda-python), which return a status first and never raise. They
are those of the runtime, but for kernels of our own, which only CUDA's driver loads and starts.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.engines.gpu import cuda_runtime
from geoinfer.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_OUT_OF_MEMORY: Final = 2  # cudaErrorMemoryAllocation


class PinnedMemory:
    """Memory of the host that the GPU copies from and to without the processor's help.

    Attributes:
        address: of the first byte.
        bytes: (n,) uint8, the memory itself; gone once the `Cuda` that made it is closed.
    """

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class Cuda:
    """One GPU, and everything that was made on it; `close` frees that, in the reverse order.

    Every method raises DeviceError, naming the call and what CUDA says, when a call fails.
    """

    def __init__(self, ordinal: int, *, when_full: str) -> None:
        """Makes the GPU the calling thread's own.

        Args:
            ordinal: which GPU.
            when_full: the hint of an error that says that its memory is full.

        Raises:
            MissingPackageError: cuda-python is not installed.
        """
        self._api = cuda_runtime()
        self._ordinal = ordinal
        self._when_full = when_full
        self._held: list[tuple[str, Any]] = []
        self.use()

    def use(self) -> None:
        """Makes this GPU the one that calls of this thread mean: each thread has its own choice."""
        self._call("cudaSetDevice", self._ordinal)

    def stream(self) -> Any:
        """A stream that waits for no other."""
        return self._hold("cudaStreamDestroy", self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))

    def event(self) -> Any:
        """An event; a thread that waits for it sleeps, and leaves its core to those that decode photos."""
        flags = self._api.cudaEventBlockingSync | self._api.cudaEventDisableTiming
        return self._hold("cudaEventDestroy", self._call("cudaEventCreateWithFlags", flags))

    def memory(self, size: int) -> int:
        """Address of `size` bytes on the GPU."""
        return int(self._hold("cudaFree", self._call("cudaMalloc", size)))

    def pinned(self, size: int) -> PinnedMemory:
        """`size` bytes of the host."""
        address = self._call("cudaHostAlloc", size, self._api.cudaHostAllocDefault)
        return PinnedMemory(int(self._hold("cudaFreeHost", address)), size)

    def copy_in(self, target: int, source: PinnedMemory, size: int, stream: Any) -> None:
        """Puts a copy of the first `size` bytes to the GPU into the stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source.address, size, kind, stream)

    def copy_out(self, target: PinnedMemory, source: int, size: int, stream: Any) -> None:
        """Puts a copy of `size` bytes from the GPU into the stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.address, source, size, kind, stream)

    def record(self, event: Any, stream: Any) -> None:
        """Marks the place in the stream that `wait` waits for."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: Any) -> None:
        """Waits until the GPU has come to the event; what failed on the way is said here."""
        self._call("cudaEventSynchronize", event)

    def settle(self, stream: Any) -> None:
        """Waits until nothing runs in the stream, without a word of what failed: before its memory is used anew."""
        self._api.cudaStreamSynchronize(stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """Records what `enqueue` puts into the stream as a graph; none of it runs.

        Returns:
            An executable graph for `launch`.

        Raises:
            DeviceError: something in it cannot be captured; whatever `enqueue` raises. The stream is as it was before.
        """
        # Thread-local: what other threads do with CUDA, ONNX Runtime's for one, has nothing to do with it.
        self._call("cudaStreamBeginCapture", stream, self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        except BaseException:
            # A stream that is left capturing takes no other work.
            status, graph = self._api.cudaStreamEndCapture(stream)
            self._discard(graph if int(status) == 0 else None)
            raise
        try:
            graph = self._call("cudaStreamEndCapture", stream)
        except DeviceError:
            self._discard(None)
            raise
        try:
            return self._hold("cudaGraphExecDestroy", self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._discard(graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Puts a captured graph into the stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def kernels(self, code: bytes, names: Sequence[str]) -> list[Any]:
        """Loads compiled kernels.

        Args:
            code: machine code for this GPU, or assembly (PTX).
            names: of the kernels wanted, which are `extern "C"`.
        """
        # PTX must end with a zero, which does no harm to machine code.
        image = np.frombuffer(code + b"\0", np.uint8)
        module = self._hold("cuModuleUnload", self._drive("cuModuleLoadData", image.ctypes.data))
        return [self._drive("cuModuleGetFunction", module, name.encode()) for name in names]

    def start(
        self, kernel: Any, grid: tuple[int, int, int], block: tuple[int, int], addresses: Sequence[int], stream: Any
    ) -> None:
        """Puts a kernel, all of whose parameters are pointers, into the stream."""
        values = np.array(addresses, np.uint64)
        # CUDA wants to be told where each parameter's value is, and has copied it when the call returns.
        where = values.ctypes.data + np.arange(len(values), dtype=np.uint64) * values.itemsize
        self._drive("cuLaunchKernel", kernel, *grid, *block, 1, 0, int(stream), where.ctypes.data, 0)

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """If the block fails, what was made in it is freed."""
        before = len(self._held)
        try:
            yield
        except BaseException:
            self._free(before)
            raise

    def close(self) -> None:
        """Frees everything. What cannot be freed is lost with the process, and stops nothing else from being freed."""
        if self._held:
            self._api.cudaSetDevice(self._ordinal)
        self._free(0)

    def _free(self, keep: int) -> None:
        while len(self._held) > keep:
            free, handle = self._held.pop()
            # The runtime's functions are called cuda..., the driver's cu...
            getattr(self._api if free.startswith("cuda") else _driver(), free)(handle)

    def _discard(self, graph: Any) -> None:
        """Frees a captured graph, and the error that a capture may have left for TensorRT to take for its own."""
        if graph is not None:
            self._api.cudaGraphDestroy(graph)
        self._api.cudaGetLastError()

    def _hold(self, free: str, handle: Any) -> Any:
        self._held.append((free, handle))
        return handle

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._api, name)(*arguments)
        self._check(name, status)
        return values[0] if values else None

    def _drive(self, name: str, *arguments: Any) -> Any:
        """A call of CUDA's driver."""
        driver = _driver()
        status, *values = getattr(driver, name)(*arguments)
        if int(status) != 0:
            # Full memory has one number in both.
            self._check(name, status, driver.cuGetErrorString)
        return values[0] if values else None

    def _check(self, name: str, status: Any, describe: Callable[[Any], Any] | None = None) -> None:
        code = int(status)
        if code == _OUT_OF_MEMORY:
            raise DeviceError(f"the memory of GPU {self._ordinal} is full ({name})", hint=self._when_full)
        if code != 0:
            _, text = (describe or self._api.cudaGetErrorString)(status)
            words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            raise DeviceError(
                f"GPU {self._ordinal} failed: {words} (CUDA error {code} of {name})",
                hint="`geoinfer doctor` shows the devices; --device cpu with the ONNX model runs without one",
            )


def _driver() -> Any:
    from cuda.bindings import driver

    return driver
