"""ONNX models through ONNX Runtime: on the CPU, or by its CUDA and TensorRT providers."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from geoinfer.backends.base import (
    EmbedderIdentity,
    blank_rows_without_direction,
    check_pixels,
    check_preprocessing,
    parse_device,
)
from geoinfer.errors import DeviceError, GeoInferError, MissingPackageError, ModelError
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.integrity import sha256_of
from geoinfer.machine import available_cores, sums_bytes_exactly
from geoinfer.model_metadata import check_metadata, embedding_length

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends.cpu_settings import CpuSettings

INSTALL_GPU: Final = "pip uninstall onnxruntime faiss-cpu && pip install 'geoinfer-toolkit[gpu]'"
"""What makes a machine use its NVIDIA GPU: the wheels of the cpu extra and of the gpu extra overwrite each other."""


def import_onnxruntime() -> Any:
    """Imports ONNX Runtime with its telemetry off.

    Raises:
        MissingPackageError: it is not installed, or its files are broken.
    """
    # Read when the library is loaded: its GPU discovery otherwise warns on machines that have none.
    os.environ.setdefault("ORT_LOGGING_LEVEL", "3")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f"ONNX Runtime cannot be imported: {error}",
            hint="pip install 'geoinfer-toolkit[cpu]' (or [gpu], never both); `geoinfer doctor` tells more",
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise MissingPackageError(
            "the onnxruntime package is broken (two of its wheels overwrote each other?)",
            hint="pip uninstall onnxruntime onnxruntime-gpu, then install one; `geoinfer doctor` tells more",
        )
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


class OnnxRuntimeEmbedder:
    """An ONNX model with uint8 NHWC input and unit-norm float32 output; see `Embedder` for the contract."""

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        *,
        preprocessing: Preprocessing | None = None,
        threads: int = 0,
        settings: CpuSettings | None = None,
    ) -> None:
        self._path = path
        self._asked = device
        kind, ordinal = parse_device(device)
        self._ort = import_onnxruntime()
        available = self._ort.get_available_providers()
        self.device_reason = "as asked"
        self.fell_back = False
        self.best_batch: int | None = None
        self.calls_at_once = 1
        self.pins_threads = False
        if kind == "auto":
            kind, self.device_reason = _choose(available)
        self.device = "cpu" if kind == "cpu" else f"{kind}:{ordinal}"
        self.fingerprint = _fingerprint(path)
        try:
            self._session = self._open(kind, ordinal, available, threads, settings)
        except DeviceError as error:
            if device != "auto":
                raise
            # Nobody asked for the GPU, and the reason is shown: a laptop whose CUDA is broken still locates photos.
            kind, self.device, self.fell_back = "cpu", "cpu", True
            self.device_reason = f"a GPU was found, but: {error}"
            self._session = self._open(kind, ordinal, available, threads, settings)
        if kind == "cpu":
            self._fit_to_cores(threads, settings)
        self._check_session(kind)
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self.identity = self._read_identity(preprocessing)
        self._check_shapes()
        if kind != "tensorrt":  # which would build an engine for this shape alone
            self._try_out()

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.identity.dim

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        if self._session is None:
            raise ModelError(f"{self._path}: the embedder is closed")
        check_pixels(self._path, pixels, self.identity.preprocessing.size)
        if len(pixels) == 0:
            return np.empty((0, self.dim), np.float32)
        try:
            result = self._session.run([self._output], {self._input: np.ascontiguousarray(pixels)})[0]
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise self._run_error(error, len(pixels)) from error
        embeddings = np.asarray(result, dtype=np.float32)
        if embeddings.shape != (len(pixels), self.dim):
            raise ModelError(
                f"{self._path}: embeddings have shape {embeddings.shape}; expected ({len(pixels)}, {self.dim})"
            )
        blank_rows_without_direction(self._path, embeddings)
        return embeddings

    def close(self) -> None:
        """Frees the session."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _fit_to_cores(self, threads: int, settings: CpuSettings | None) -> None:
        """How those who call it use the cores: as the settings say, else so that all are busy and none is shared."""
        cores = available_cores()
        if settings is None:
            self.calls_at_once = max(1, cores // (threads or cores))
            return
        self.best_batch = settings.batch_size
        self.calls_at_once = settings.calls_on(cores)
        self.pins_threads = settings.pinned

    def _open(self, kind: str, ordinal: int, available: list[str], threads: int, settings: CpuSettings | None) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        if kind == "cpu" and settings is not None:
            options.intra_op_num_threads = settings.threads_per_call
            options.enable_cpu_mem_arena = settings.arena
            options.graph_optimization_level = {
                "all": self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
                "extended": self._ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            }[settings.graph]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin take the cores that decoding could use.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Sums of int8 models saturate on processors without VNNI; on those that have it, this would halve their speed.
        if not sums_bytes_exactly():
            options.add_session_config_entry("session.x64quantprecision", "1")
        needed = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}.get(kind)
        if needed and needed not in available:
            raise DeviceError(
                f"--device {self._asked}: this ONNX Runtime has no {needed} (it has {', '.join(available)})",
                hint=f"{INSTALL_GPU}; `geoinfer doctor` tells more",
            )
        if needed:
            load_cuda(self._ort)
        if kind == "tensorrt":
            _load_tensorrt()
        try:
            session = self._ort.InferenceSession(
                _openable(self._path), sess_options=options, providers=_providers(kind, ordinal)
            )
        except Exception as error:
            if kind != "cpu" and not _is_model_fault(error):
                raise DeviceError(
                    f"--device {self.device}: ONNX Runtime cannot use it: {_first_line(error)}",
                    hint="`geoinfer doctor` shows the devices; --device cpu runs without one",
                ) from error
            raise ModelError(
                f"{self._path}: not a model that ONNX Runtime can open: {_first_line(error)}",
                hint="the file may be damaged or not ONNX at all: copy or export it again",
            ) from error
        # It falls back to the CPU without a word when a provider cannot start; the session knows what it got.
        if needed and needed not in session.get_providers():
            wants = ", or no TensorRT 10" if kind == "tensorrt" else ""
            raise DeviceError(
                f"--device {self.device}: {needed} did not start (no GPU, driver or CUDA{wants}?)",
                hint="`geoinfer doctor` shows the devices; --device cpu runs without one",
            )
        session.disable_fallback()
        return session

    def _check_session(self, kind: str) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1:
            raise ModelError(f"{self._path}: the model has {len(inputs)} inputs; expected one, uint8 pixels")
        if inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4 or inputs[0].shape[3] != 3:
            raise ModelError(
                f"{self._path}: the input {inputs[0].name} is {inputs[0].type} {inputs[0].shape}; expected uint8 "
                "(batch, size, size, 3), RGB",
                hint="normalisation belongs inside the graph: export the model with `python -m export`",
            )
        if isinstance(inputs[0].shape[0], int):
            raise ModelError(
                f"{self._path}: the batch is fixed at {inputs[0].shape[0]}; expected a dynamic one",
                hint="export the model with a dynamic batch dimension",
            )
        if len(outputs[0].shape) != 2 or outputs[0].type not in ("tensor(float)", "tensor(float16)"):
            raise ModelError(
                f"{self._path}: the output {outputs[0].name} is {outputs[0].type} {outputs[0].shape}; expected float "
                "(batch, dim)"
            )

    def _read_identity(self, given: Preprocessing | None) -> EmbedderIdentity:
        metadata = self._session.get_modelmeta().custom_metadata_map
        stored = metadata.get("geoinfer.preprocessing")
        hint = "export it again with `python -m export`"
        check_metadata(self._path, metadata, hint)
        declared = self._session.get_outputs()[0].shape[1]
        dim = embedding_length(self._path, declared if isinstance(declared, int) else -1, metadata, hint)
        if stored is None:
            if given is None:
                raise ModelError(
                    f"{self._path}: the model's metadata does not say which pixels it wants",
                    hint="give --preprocessing size=224,resize=crop,interpolation=bicubic,mean=imagenet,std=imagenet "
                    "with the values it was trained with",
                )
            return EmbedderIdentity(f"sha256:{self.fingerprint[:16]}", dim, given)
        try:
            preprocessing = Preprocessing.from_dict(json.loads(stored))
            name = metadata["geoinfer.identity"]
        except (KeyError, ValueError) as error:
            raise ModelError(f"{self._path}: the model's geoinfer metadata is damaged: {error}") from error
        check_preprocessing(self._path, preprocessing, given)
        return EmbedderIdentity(name, dim, preprocessing)

    def _check_shapes(self) -> None:
        _, height, width, _ = self._session.get_inputs()[0].shape
        size = self.identity.preprocessing.size
        if (isinstance(height, int) and height != size) or (isinstance(width, int) and width != size):
            raise ModelError(f"{self._path}: the graph takes {height} x {width} pixels, its preprocessing gives {size}")

    def _try_out(self) -> None:
        """One picture through the model: what it does wrong shows now, not hours into a run."""
        size = self.identity.preprocessing.size
        ramp = np.linspace(0, 255, size).astype(np.uint8)
        self.embed(np.ascontiguousarray(np.broadcast_to(ramp[:, None], (1, size, size, 3))))

    def _run_error(self, error: Exception, count: int) -> GeoInferError:
        text = _first_line(error)
        if any(word in str(error).lower() for word in ("out of memory", "failed to allocate", "bad_alloc", "bfcarena")):
            return DeviceError(
                f"{self.device} ran out of memory on a batch of {count}", hint=f"try --batch-size {max(1, count // 2)}"
            )
        return ModelError(f"{self._path}: the model failed on a batch of {count}: {text}")


def model_metadata(path: Path) -> dict[str, Any]:
    """What `geoinfer info` prints of an ONNX model, whether geoinfer can use it or not.

    Raises:
        ModelError: it is not an ONNX model.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(_openable(path), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"{path}: not a model that ONNX Runtime can open: {_first_line(error)}",
            hint="the file may be damaged or not ONNX at all: copy or export it again",
        ) from error
    meta = session.get_modelmeta()
    return {
        "producer": meta.producer_name,
        "inputs": [(i.name, i.type, i.shape) for i in session.get_inputs()],
        "outputs": [(o.name, o.type, o.shape) for o in session.get_outputs()],
        "metadata": dict(sorted(meta.custom_metadata_map.items())),
    }


def _openable(path: Path) -> str | bytes:
    """A model as ONNX Runtime takes it: by name, or, where the name is not UTF-8 and it could not, by contents."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return str(path)


def load_cuda(ort: Any) -> None:
    """Loads CUDA and cuDNN from their Python packages, where ONNX Runtime can; else the system's are found, or not."""
    if hasattr(ort, "preload_dlls"):
        # It prints what it does not find, which the session's own error says better.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _load_tensorrt() -> None:
    """Loads TensorRT from its Python package, whose libraries lie where ONNX Runtime does not look."""
    with contextlib.suppress(ImportError, OSError):  # a system's own TensorRT needs no package
        importlib.import_module("tensorrt")


def runs_on_cpu(device: str) -> bool:
    """Whether a model that is opened on `device` comes to run on the CPU, as far as can be told before.

    Raises:
        UsageError: `device` makes no sense.
        MissingPackageError: ONNX Runtime is not installed.
    """
    kind, _ = parse_device(device)
    return kind == "cpu" or (kind == "auto" and _choose(import_onnxruntime().get_available_providers())[0] == "cpu")


def _choose(available: list[str]) -> tuple[str, str]:
    if "CUDAExecutionProvider" not in available:
        return "cpu", "this ONNX Runtime has no CUDA provider"
    if not _has_nvidia_gpu():
        return "cpu", "ONNX Runtime has a CUDA provider, but no NVIDIA GPU was found"
    return "cuda", "an NVIDIA GPU was found"


def _has_nvidia_gpu() -> bool:
    try:
        import pynvml
    except ImportError:
        return os.path.exists("/dev/nvidia0")
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount()) > 0
    except pynvml.NVMLError:
        return False


def _providers(kind: str, ordinal: int) -> list[Any]:
    cpu = "CPUExecutionProvider"
    cuda = (
        "CUDAExecutionProvider",
        {
            "device_id": ordinal,
            "arena_extend_strategy": "kSameAsRequested",
            # The default tries all algorithms and takes the fastest, anew for each shape: two runs would differ.
            "cudnn_conv_algo_search": "HEURISTIC",
        },
    )
    if kind == "cpu":
        return [cpu]
    if kind == "cuda":
        return [cuda, cpu]
    return [("TensorrtExecutionProvider", {"device_id": ordinal}), cuda, cpu]


def _is_model_fault(error: Exception) -> bool:
    return type(error).__name__ in (
        "InvalidProtobuf",
        "InvalidGraph",
        "NoModel",
        "NoSuchFile",
        "ModelRequiresCompilation",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    # "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from x failed:Protobuf parsing failed." to its last part.
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)[:300]


def _fingerprint(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
