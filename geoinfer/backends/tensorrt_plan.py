"""A TensorRT engine in memory: read from its file, compared with its sidecar, and the contexts that run it.

Both flavours have one API. Two things differ, and both have to do with when kernels are made:

- `tensorrt` made them when the engine was built. `tensorrt-rtx` compiles them on the GPU where it runs, anew for each
  shape, and keeps them in a cache that can be stored: it is, beside the engine (`vit.trt.cache`). Where it cannot be
  written the next start takes longer, and that is all.
- For `tensorrt-rtx` the specialised kernels are compiled before a shape is first computed (EAGER) and not beside it
  (LAZY): kernels that are exchanged in the middle of a run would change the last digits of its results.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from geoinfer.engines.build import make_logger
from geoinfer.engines.flavors import TENSORRT_RTX
from geoinfer.errors import DeviceError, GeoInferError, ModelError
from geoinfer.integrity import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from geoinfer.engines.flavors import Flavor
    from geoinfer.engines.sidecar import Sidecar

_DTYPES: Final = {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16"}
_NO_MEMORY: Final = ("out of memory", "outofmemory", "memoryallocation")
"""How TensorRT's own messages say it, in lower case."""


class Plan:
    """A deserialised engine; `close` frees it.

    Attributes:
        input_name: of the pixels.
        output_name: of the embeddings.
        output_dtype: `float32` or `float16`.
        graphs_of_its_own: whether its contexts capture and replay CUDA graphs by themselves.
    """

    def __init__(self, path: Path, sidecar: Sidecar, flavor: Flavor, *, rebuild: str, when_full: str) -> None:
        """Reads the engine onto the GPU that is the calling thread's own.

        Args:
            path: the engine; its pre-flight checks are done.
            sidecar: what it should be.
            flavor: what runs it.
            rebuild: the hint of errors that only another engine mends.
            when_full: the hint of an error that says that the GPU's memory is full.

        Raises:
            ModelError: TensorRT refuses it, or it is not what its sidecar says.
            DeviceError: it does not fit into the GPU's memory.
        """
        self._path, self._flavor = path, flavor
        self._rebuild, self._when_full = rebuild, when_full
        self._log = _log_of(flavor)
        self._log.faults.clear()
        self._engine: Any = None
        self._cache: Any = None
        # A hidden engine is one that is being built and tried out, to be renamed or removed.
        self._cache_path = None if path.name.startswith(".") else path.with_name(f"{path.name}.cache")
        self._cached = b""
        self.graphs_of_its_own = flavor.name == TENSORRT_RTX
        self._runtime: Any = None
        self.input_name, self.output_name = sidecar.input.name, sidecar.output.name
        self.output_dtype = sidecar.output.dtype
        try:
            with self._saying("TensorRT cannot read the engine"):
                self._runtime = flavor.api.Runtime(self._log)
                self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise self.error("TensorRT cannot read the engine")
            self._check(sidecar)
        except BaseException:
            self.close()
            raise

    def context(self, batch: int) -> tuple[Any, Any]:
        """What runs the engine, one batch at a time, and what must live as long; its memory is taken now.

        Args:
            batch: pictures at once; 0 if that changes from call to call.

        Raises:
            ModelError, DeviceError: TensorRT cannot make it.
        """
        with self._saying("TensorRT cannot prepare the engine"):
            config = self._config() if self._flavor.name == TENSORRT_RTX else None
            context = self._engine.create_execution_context(*(() if config is None else (config,)))
        if context is None:
            raise self.error("TensorRT cannot prepare the engine")
        if batch:
            self.reshape(context, batch)
        return context, config

    def reshape(self, context: Any, batch: int) -> None:
        """Tells a context how many pictures come at once."""
        _, *shape = self._engine.get_tensor_shape(self.input_name)
        if not context.set_input_shape(self.input_name, (batch, *shape)):
            raise self.error(f"TensorRT refuses a batch of {batch}")

    def bind(self, context: Any, pixels: int, embeddings: int) -> None:
        """Tells a context where on the GPU its pixels are and its embeddings go."""
        for name, address in ((self.input_name, pixels), (self.output_name, embeddings)):
            if not context.set_tensor_address(name, address):
                raise self.error(f"TensorRT refuses memory for {name}")

    def enqueue(self, context: Any, stream: Any) -> None:
        """Puts one batch into the stream."""
        if not context.execute_async_v3(int(stream)):
            raise self.error("TensorRT cannot run the engine")

    def error(self, what: str) -> ModelError | DeviceError:
        """An error with what TensorRT said first when it went wrong."""
        everything, fault = " ".join(self._log.faults).lower(), self._log.fault()
        self._log.faults.clear()
        if any(sign in everything for sign in _NO_MEMORY):
            return DeviceError(f"{self._path}: the GPU's memory is too small for this engine", hint=self._when_full)
        return ModelError(f"{self._path}: {what}" + (f": {fault}" if fault else ""), hint=self._rebuild)

    def save_cache(self) -> None:
        """Stores the kernels compiled so far, for the next start, if there are new ones."""
        if self._cache is None or self._cache_path is None:
            return
        with contextlib.suppress(OSError, RuntimeError):  # for want of a folder that can be written, or of a GPU
            blob = self._cache.serialize()
            content = b"" if blob is None else bytes(memoryview(blob))
            if content and content != self._cached:
                self._cached = content
                with atomic_file(self._cache_path) as file:
                    file.write(content)

    def close(self) -> None:
        """Frees the engine; the contexts must be gone before."""
        self._cache = None
        self._engine = None
        self._runtime = None

    @contextlib.contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        """TensorRT reports by what it returns; what its bindings raise becomes an error of ours all the same."""
        try:
            yield
        except OSError as error:
            raise ModelError(f"{self._path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
        except (RuntimeError, TypeError) as error:
            if isinstance(error, GeoInferError):
                raise
            self._log.faults.append(str(error))
            raise self.error(what) from error

    def _check(self, sidecar: Sidecar) -> None:
        """Compares the engine's inputs and outputs with the sidecar's."""
        found = {self._tensor(self._engine.get_tensor_name(n)) for n in range(self._engine.num_io_tensors)}
        expected = {
            (tensor.name, mode, tensor.dtype, tensor.shape)
            for tensor, mode in ((sidecar.input, "input"), (sidecar.output, "output"))
        }
        if found != expected:
            raise ModelError(
                f"{self._path}: the engine's tensors are {_listed(found)}; its sidecar promises {_listed(expected)}",
                hint=self._rebuild,
            )
        batches = [next(iter(shape)) for shape in self._engine.get_tensor_profile_shape(self.input_name, 0)]
        profile = sidecar.profile
        if batches != [profile.min, profile.opt, profile.max]:
            raise ModelError(
                f"{self._path}: the engine takes batches of {batches} (least, best, most); its sidecar promises "
                f"{[profile.min, profile.opt, profile.max]}",
                hint=self._rebuild,
            )

    def _tensor(self, name: str) -> tuple[str, str, str, tuple[int, ...]]:
        """Name, mode, dtype and shape."""
        # No frame that an error passes through may hold the engine: it would live as long as the traceback.
        kind = self._engine.get_tensor_dtype(name).name
        mode = self._engine.get_tensor_mode(name).name.lower()
        return name, mode, _DTYPES.get(kind, kind), tuple(self._engine.get_tensor_shape(name))

    def _config(self) -> Any:
        """How a context of tensorrt-rtx compiles its kernels, where it keeps them, and that it uses CUDA graphs.

        Its own graphs and not ours: it knows which kernel it would exchange, and captures anew when a shape changes.
        """
        api = self._flavor.api
        config = self._engine.create_runtime_config()
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                self._cached = self._cache_path.read_bytes() if self._cache_path else b""
                # One of another GPU, version or a damaged one is refused, left empty, and replaced at the end.
                if self._cached:
                    self._cache.deserialize(self._cached)
        config.set_runtime_cache(self._cache)
        config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.dynamic_shapes_kernel_specialization_strategy = api.DynamicShapesKernelSpecializationStrategy.EAGER
        return config


def _listed(tensors: set[tuple[Any, ...]]) -> str:
    return ", ".join(f"{mode} {name} {dtype} {shape}" for name, mode, dtype, shape in sorted(tensors))


_logs: dict[Any, Any] = {}


def _log_of(flavor: Flavor) -> Any:
    """One log for the whole process: the library holds on to the first that it is given."""
    if flavor.api not in _logs:
        _logs[flavor.api] = make_logger(flavor.api)
    return _logs[flavor.api]
