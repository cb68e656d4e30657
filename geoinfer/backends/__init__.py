"""Embedders: what turns pixels into embeddings, behind one protocol, opened by one function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geoinfer.backends.base import NOT_FINITE, Embedder, EmbedderIdentity
from geoinfer.bundle import ENGINE_TAKES
from geoinfer.errors import InputError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.backends.cpu_settings import CpuSettings
    from geoinfer.images import Preprocessing

__all__ = ["ENGINE_SUFFIX", "MODEL_SUFFIXES", "NOT_FINITE", "Embedder", "EmbedderIdentity", "open_embedder"]

ENGINE_SUFFIX = ".trt"
MODEL_SUFFIXES = (".onnx", ENGINE_SUFFIX)
"""What `open_embedder` opens, in lower case."""


def open_embedder(
    path: Path,
    device: str = "auto",
    *,
    preprocessing: Preprocessing | None = None,
    threads: int = 0,
    settings: CpuSettings | None = None,
) -> Embedder:
    """Opens a model file on a device; the library that runs it is imported here and not before.

    Args:
        path: an `.onnx` model, or a `.trt` engine.
        device: `auto` (a CUDA GPU if ONNX Runtime can use one, else the CPU), `cpu`, `cuda`, `cuda:N`, or
            `tensorrt[:N]` for ONNX Runtime's TensorRT provider. An engine runs on a GPU alone: any but `cpu`.
        preprocessing: for a model whose metadata has none.
        threads: CPU threads that one call of `embed` uses; 0 for all cores.
        settings: of a CPU, if the model comes to run there, in place of `threads`.

    Raises:
        InputError: there is no such file.
        ModelError: it is not a model that geoinfer can use.
        MismatchError: an engine that was built by another TensorRT, or for another GPU.
        DeviceError: the device asked for is not there.
        UsageError: `device` makes no sense, or not for this file.
        MissingPackageError: ONNX Runtime, or what an engine needs, is not installed.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such model", hint=ENGINE_TAKES)
    if path.is_dir():
        raise ModelError(
            f"{path}: a folder without bundle.json is not a bundle, and a model is a file",
            hint=f"{ENGINE_TAKES}; an index goes with --index",
        )
    suffix = path.suffix.lower()
    if suffix == ENGINE_SUFFIX:
        from geoinfer.backends.tensorrt import TensorRtEmbedder

        return TensorRtEmbedder(path, device, preprocessing=preprocessing)
    if suffix not in MODEL_SUFFIXES:
        raise ModelError(f"{path}: not an .onnx model or a .trt engine", hint=ENGINE_TAKES)
    from geoinfer.backends.onnx_runtime import OnnxRuntimeEmbedder

    return OnnxRuntimeEmbedder(path, device, preprocessing=preprocessing, threads=threads, settings=settings)
