"""A GPU of bytes and queues, for what a real one cannot be made to do: fail at a given call, and tell what it holds.

Work that is put into a stream runs only when somebody waits for it, so a result that is read too early is wrong. Memory
is filled with rubbish when it is taken. What a real GPU punishes by undefined behaviour is written down in `misuse`.
`tests/backends/test_tensorrt.py` holds the names used here against the real libraries, where they are installed.
"""

# ruff: noqa: N802 - the functions are called as CUDA calls them

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import sys
import threading
import types
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from geoinfer.engines.onnx_metadata import TensorSpec
from geoinfer.engines.sidecar import BuiltOn, Parity, Profile, Sidecar, StoredFile, this_platform, write_sidecar
from geoinfer.integrity import sha256_of
from tests.onnx_models import DIM, PREPROCESSING, SIZE, expected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

VERSIONS = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116"}
MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}


class Error(enum.IntEnum):
    """Numbers of CUDA's own."""

    SUCCESS = 0
    OUT_OF_MEMORY = 2
    INVALID_RESOURCE = 400
    ILLEGAL_ADDRESS = 700
    CAPTURE_INVALIDATED = 901


class Stream:
    def __init__(self, device: int) -> None:
        self.device = device
        self.work: deque[Work] = deque()
        self.captured: list[Work] | None = None
        self.spoilt = False

    def __int__(self) -> int:
        return id(self)

    def put(self, work: Work) -> None:
        if self.captured is not None:
            self.captured.append(work)
        else:
            self.work.append(work)

    def run(self) -> None:
        while self.work:
            self.work.popleft().do()


@dataclass
class Work:
    """Something that runs later, and the memory that it needs then."""

    do: Callable[[], object]
    addresses: tuple[int, ...]


@dataclass
class Mark:
    """An event."""

    stream: Stream | None = None


class FakeCuda(types.ModuleType):
    """`cuda.bindings.runtime`, with `gpus` devices.

    Set `fail_at` to make the n-th call from then on (from 1) fail, or `fail_names` for every call of some functions.
    """

    cudaStreamNonBlocking, cudaEventBlockingSync, cudaEventDisableTiming, cudaHostAllocDefault = 1, 1, 2, 0  # noqa: N815
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")  # noqa: N815
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread local")  # noqa: N815

    def __init__(self, gpus: int = 1) -> None:
        super().__init__("cuda.bindings.runtime")
        self.gpus = gpus
        self.capability, self.gpu_name = (8, 9), b"NVIDIA Fake"
        self.calls: list[tuple[Any, ...]] = []
        self.misuse: list[str] = []
        self.fail_at: int | None = None
        self.fail_names: set[str] = set()
        self.fail_code = Error.ILLEGAL_ADDRESS
        self.failed = ""
        self.memory: dict[int, tuple[str, Any]] = {}
        self.objects: dict[int, tuple[str, Any]] = {}
        self.lock = threading.RLock()
        self._thread = threading.local()

    @property
    def held(self) -> list[str]:
        """What was taken and not given back."""
        return sorted(kind for kind, _ in (*self.memory.values(), *self.objects.values()))

    def names(self) -> list[str]:
        """The functions that are here."""
        return [name.removeprefix("do_") for name in dir(type(self)) if name.startswith("do_")]

    def called(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        do = object.__getattribute__(self, f"do_{name}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            with self.lock:
                self.calls.append((name, *arguments))
                fails = name in self.fail_names
                if self.fail_at is not None and name != "cudaGetErrorString":
                    self.fail_at -= 1
                    fails = fails or self.fail_at == 0
                if fails:
                    self.failed = name
                    if name == "cudaStreamEndCapture":  # which ends the capture all the same
                        arguments[0].captured = None
                    return (self.fail_code, None)
                found = do(*arguments)
                return found if isinstance(found, tuple) else (Error.SUCCESS, found)

        return call

    def use_check(self, stream: Stream) -> None:
        if getattr(self._thread, "device", 0) != stream.device:
            self.misuse.append("a call for another GPU than the thread's")

    def do_cudaGetDeviceCount(self) -> Any:
        return self.gpus

    def do_cudaGetDeviceProperties(self, ordinal: int) -> Any:
        major, minor = self.capability
        return types.SimpleNamespace(name=self.gpu_name, major=major, minor=minor, totalGlobalMem=24 << 30)

    def do_cudaDriverGetVersion(self) -> Any:
        return 13000 if self.gpus else 0

    def do_cudaSetDevice(self, ordinal: int) -> None:
        self._thread.device = ordinal

    def do_cudaGetErrorString(self, code: Error) -> Any:
        return code.name.lower().replace("_", " ").encode()

    def do_cudaGetLastError(self) -> None: ...

    def _take(self, kind: str, size: int) -> int:
        buffer = ctypes.create_string_buffer(b"\xab" * size, size)
        self.memory[ctypes.addressof(buffer)] = (kind, buffer)
        return ctypes.addressof(buffer)

    def _free_memory(self, kind: str, address: int) -> None:
        streams = [thing for found, thing in self.objects.values() if found == "stream"]
        if any(address in work.addresses for stream in streams for work in stream.work):
            self.misuse.append(f"{kind} memory was freed while work was under way there")
        if self.memory.pop(address, ("",))[0] != kind:
            self.misuse.append(f"{address:#x} is no {kind} memory")

    def do_cudaMalloc(self, size: int) -> int:
        return self._take("device", size)

    def do_cudaFree(self, address: int) -> None:
        self._free_memory("device", address)

    def do_cudaHostAlloc(self, size: int, flags: int) -> int:
        return self._take("pinned", size)

    def do_cudaFreeHost(self, address: int) -> None:
        self._free_memory("pinned", address)

    def room(self, address: int, kind: str) -> int:
        """Bytes from an address to the end of its memory."""
        for start, (found, buffer) in self.memory.items():
            if start <= address < start + len(buffer) and found == kind:
                return start + len(buffer) - address
        self.misuse.append(f"{address:#x} is no {kind} memory")
        return 0

    def _make(self, kind: str, thing: Any) -> Any:
        self.objects[id(thing)] = (kind, thing)
        return thing

    def _destroy(self, kind: str, thing: Any) -> None:
        if self.objects.pop(id(thing), ("",))[0] != kind:
            self.misuse.append(f"no {kind}, or destroyed twice: {thing}")

    def do_cudaStreamCreateWithFlags(self, flags: int) -> Stream:
        return self._make("stream", Stream(getattr(self._thread, "device", 0)))

    def do_cudaStreamDestroy(self, stream: Stream) -> None:
        self._destroy("stream", stream)

    def do_cudaStreamSynchronize(self, stream: Stream) -> None:
        stream.run()

    def do_cudaEventCreateWithFlags(self, flags: int) -> Mark:
        return self._make("event", Mark())

    def do_cudaEventDestroy(self, event: Mark) -> None:
        self._destroy("event", event)

    def do_cudaEventRecord(self, event: Mark, stream: Stream) -> None:
        self.use_check(stream)
        event.stream = stream

    def do_cudaEventSynchronize(self, event: Mark) -> None:
        if event.stream is None:
            self.misuse.append("waited for an event that was not recorded")
        else:
            event.stream.run()

    def do_cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: Stream) -> None:
        self.use_check(stream)
        to, from_ = ("device", "pinned") if kind == "in" else ("pinned", "device")
        if self.room(target, to) < size or self.room(source, from_) < size:
            self.misuse.append(f"a copy {kind} of {size} bytes is out of bounds")
            return
        stream.put(Work(lambda: ctypes.memmove(target, source, size), (target, source)))

    def do_cudaStreamBeginCapture(self, stream: Stream, mode: str) -> None:
        if stream.captured is not None:
            self.misuse.append("captured twice")
        stream.captured, stream.spoilt = [], False

    def do_cudaStreamEndCapture(self, stream: Stream) -> Any:
        captured, stream.captured = stream.captured, None
        if stream.spoilt:
            return (Error.CAPTURE_INVALIDATED, None)
        return self._make("graph", captured)

    def do_cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return self._make("executable graph", list(graph))

    def do_cudaGraphDestroy(self, graph: Any) -> None:
        self._destroy("graph", graph)

    def do_cudaGraphExecDestroy(self, graph: Any) -> None:
        self._destroy("executable graph", graph)

    def do_cudaGraphLaunch(self, graph: Any, stream: Stream) -> None:
        self.use_check(stream)
        if id(graph) not in self.objects:
            self.misuse.append("launched a graph that is gone")
        for work in graph:
            stream.put(work)


@dataclass
class Behaviour:
    """What the engine is and how it behaves; every field is one way to be wrong."""

    profile: tuple[int, int, int] = (1, 8, 16)
    dtype: str = "float32"
    output_shape: tuple[int, ...] = (-1, DIM)
    tensors: tuple[str, str] = ("pixels", "embeddings")
    compute: Callable[[np.ndarray], np.ndarray] = expected
    says: str = ""
    """Logged as an error when a call fails."""
    fail_at: int | None = None
    refuses_capture: bool = False
    cache_fits: bool = True
    computed: list[np.ndarray] = field(default_factory=list)
    """Pixels of every batch, in the order of computing."""
    seen_file: bool = False


class FakeTensorRt(types.ModuleType):
    """`tensorrt` or `tensorrt_rtx`."""

    def __init__(self, flavor: str, cuda: FakeCuda, behaviour: Behaviour) -> None:
        super().__init__(flavor.replace("-", "_"))
        self.__spec__ = importlib.machinery.ModuleSpec(self.__name__, None)
        self.__version__ = VERSIONS[flavor]
        self.flavor, self.cuda, self.behaviour = flavor, cuda, behaviour
        self.live: weakref.WeakSet[Any] = weakref.WeakSet()
        self.failed = ""
        self.Builder = object
        self.ILogger = FakeLogger
        self.Runtime = lambda log: FakeRuntime(self, log)
        self.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
        self.DynamicShapesKernelSpecializationStrategy = enum.Enum("Specialization", ["LAZY", "EAGER", "NONE"])

    def fails(self, name: str, log: Any) -> bool:
        behaviour = self.behaviour
        if behaviour.fail_at is None:
            return False
        behaviour.fail_at -= 1
        if behaviour.fail_at != 0:
            return False
        self.failed = name
        if behaviour.says:
            log.log(1, behaviour.says)
        return True


class FakeLogger:
    def __init__(self) -> None: ...


class FakeRuntime:
    def __init__(self, api: FakeTensorRt, log: Any) -> None:
        self.api, self.log = api, log
        api.behaviour.seen_file = True
        api.live.add(self)

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        return None if self.api.fails("deserialize_cuda_engine", self.log) else FakeEngine(self, data)


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, runtime: FakeRuntime, data: bytes) -> None:
        self.runtime, self.api, self.log = runtime, runtime.api, runtime.log
        assert data.startswith(MAGIC[self.api.flavor])
        self.api.live.add(self)

    def get_tensor_name(self, number: int) -> str:
        return self.api.behaviour.tensors[number]

    def get_tensor_mode(self, name: str) -> Any:
        return types.SimpleNamespace(name="INPUT" if name == self.get_tensor_name(0) else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        float_name = {"float32": "FLOAT", "float16": "HALF"}[self.api.behaviour.dtype]
        return types.SimpleNamespace(name="UINT8" if name == self.get_tensor_name(0) else float_name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, SIZE, SIZE, 3) if name == self.get_tensor_name(0) else self.api.behaviour.output_shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, SIZE, SIZE, 3) for batch in self.api.behaviour.profile]

    def create_runtime_config(self) -> FakeConfig:
        assert self.api.flavor == "tensorrt-rtx"
        return FakeConfig(self.api)

    def create_execution_context(self, config: FakeConfig | None = None) -> FakeContext | None:
        assert (config is not None) == (self.api.flavor == "tensorrt-rtx")
        if self.api.fails("create_execution_context", self.log):
            return None
        return FakeContext(self, config)


class FakeConfig:
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, api: FakeTensorRt) -> None:
        self.api, self.cache = api, None
        api.live.add(self)

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache(self.api)

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.cache = cache
        return True


class FakeCache:
    def __init__(self, api: FakeTensorRt) -> None:
        self.api, self.kernels = api, set()
        api.live.add(self)

    def deserialize(self, blob: bytes) -> bool:
        if not self.api.behaviour.cache_fits or not blob.startswith(b"kernels"):
            return False
        self.kernels = {int(batch) for batch in blob.split()[1:]}
        return True

    def serialize(self) -> bytearray:
        return bytearray(" ".join(["kernels", *map(str, sorted(self.kernels))]).encode())


class FakeContext:
    def __init__(self, engine: FakeEngine, config: FakeConfig | None) -> None:
        self.engine, self.api, self.log, self.config = engine, engine.api, engine.log, config
        self.batch: int | None = None
        self.addresses: dict[str, int] = {}
        self.warm = self.captured = False
        self.api.live.add(self)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.api.behaviour.profile
        if self.api.fails("set_input_shape", self.log) or not least <= shape[0] <= most:
            self.batch = None  # what a context holds after it refused a shape is nobody's business
            return False
        if self.captured:
            self.api.cuda.misuse.append("a context was changed after a graph was captured from it")
        self.batch, self.warm = shape[0], False
        return name == self.engine.get_tensor_name(0) and tuple(shape[1:]) == (SIZE, SIZE, 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.api.fails("set_tensor_address", self.log):
            return False
        self.addresses[name] = address
        return name in self.api.behaviour.tensors

    def execute_async_v3(self, handle: int) -> bool:
        assert type(handle) is int
        cuda, behaviour = self.api.cuda, self.api.behaviour
        stream = next(thing for kind, thing in cuda.objects.values() if kind == "stream" and id(thing) == handle)
        if self.api.fails("execute_async_v3", self.log):
            return False
        if self.batch is None:
            cuda.misuse.append("a context without a shape was run")
            return False
        if stream.captured is not None:
            self.captured = True
            if not self.warm:
                cuda.misuse.append("captured without a warm-up")
            stream.spoilt = behaviour.refuses_capture
        self.warm = True
        cuda.use_check(stream)
        if self.config is not None:
            self.config.cache.kernels.add(self.batch)
        pixels, embeddings = (self.addresses[name] for name in behaviour.tensors)
        stream.put(Work(self._work(self.batch, pixels, embeddings), (pixels, embeddings)))
        return True

    def _work(self, batch: int, source: int, target: int) -> Callable[[], None]:
        behaviour, cuda = self.api.behaviour, self.api.cuda

        def work() -> None:
            size = batch * SIZE * SIZE * 3
            if cuda.room(source, "device") < size:
                cuda.misuse.append("a batch larger than its memory")
                return
            pixels = np.frombuffer(ctypes.string_at(source, size), np.uint8).reshape(batch, SIZE, SIZE, 3)
            behaviour.computed.append(pixels)
            with np.errstate(invalid="ignore"):
                content = behaviour.compute(pixels).astype(behaviour.dtype).tobytes()
            assert cuda.room(target, "device") >= len(content)
            ctypes.memmove(target, content, len(content))

        return work


@dataclass
class Machine:
    """A pretended machine with a GPU."""

    cuda: FakeCuda
    api: FakeTensorRt
    behaviour: Behaviour


def pretend(monkeypatch: pytest.MonkeyPatch, flavor: str = "tensorrt", *, gpus: int = 1, **how: Any) -> Machine:
    """Puts the fakes in the place of the libraries; the other flavour is not installed."""
    cuda = FakeCuda(gpus)
    behaviour = Behaviour(**how)
    api = FakeTensorRt(flavor, cuda, behaviour)
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    bindings.runtime = cuda
    for name, module in (("cuda", package), ("cuda.bindings", bindings), ("cuda.bindings.runtime", cuda)):
        monkeypatch.setitem(sys.modules, name, module)
    from geoinfer.engines import flavors

    monkeypatch.setitem(sys.modules, api.__name__, api)
    monkeypatch.setattr(flavors, "installed_flavors", lambda: [flavor])
    return Machine(cuda, api, behaviour)


def write_engine(
    path: Path,
    flavor: str = "tensorrt",
    profile: tuple[int, int, int] = (1, 8, 16),
    content: bytes = bytes(range(200)),
    **more: Any,
) -> Path:
    """An engine that only the fake runs, and its sidecar; `more` are values of the sidecar."""
    path.write_bytes(MAGIC[flavor] + content)
    values: dict[str, Any] = {
        "geoinfer": "0.1.0",
        "flavor": flavor,
        "flavor_version": VERSIONS[flavor],
        "engine": StoredFile(path.stat().st_size, sha256_of(path)),
        "platform": this_platform(),
        "gpu": BuiltOn("NVIDIA Fake", "8.9"),
        "portable": False,
        "compute_capabilities": ("8.9",),
        "precision": "fp16",
        "profile": Profile(*profile),
        "workspace_bytes": None,
        "input": TensorSpec("pixels", "uint8", (-1, SIZE, SIZE, 3)),
        "output": TensorSpec("embeddings", "float32", (-1, DIM)),
        "onnx": StoredFile(1, "0" * 64, "tiny.onnx"),
        "identity": "tiny:0",
        "dim": DIM,
        "preprocessing": PREPROCESSING,
        "source": "tests",
        "licence": "CC0-1.0",
        "weights_sha256": "0" * 64,
        "parity": Parity(None, None),
        "build_seconds": 1.0,
    }
    write_sidecar(path, Sidecar(**(values | more)))
    return path
