"""Embedders: what turns pixels into embeddings, behind one protocol, opened by one function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geoinfer.backends.base import NOT_FINITE, Embedder, EmbedderIdentity
from geoinfer.errors import InputError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.images import Preprocessing

__all__ = ["NOT_FINITE", "Embedder", "EmbedderIdentity", "open_embedder"]


def open_embedder(
    path: Path, device: str = "auto", *, preprocessing: Preprocessing | None = None, threads: int = 0
) -> Embedder:
    """Opens a model file on a device; the library that runs it is imported here and not before.

    Args:
        path: an `.onnx` model.
        device: `auto` (a CUDA GPU if ONNX Runtime can use one, else the CPU), `cpu`, `cuda`, `cuda:N`, or
            `tensorrt[:N]` for ONNX Runtime's TensorRT provider.
        preprocessing: for a model whose metadata has none.
        threads: CPU threads that one call of `embed` uses; 0 for all cores.

    Raises:
        InputError: there is no such file.
        ModelError: it is not a model that geoinfer can use.
        DeviceError: the device asked for is not there.
        MissingPackageError: ONNX Runtime is not installed.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such model", hint="--engine takes a bundle folder or an .onnx model")
    if path.is_dir():
        raise ModelError(
            f"{path}: a folder without bundle.json is not a bundle, and an .onnx model is a file",
            hint="--engine takes a bundle folder or an .onnx model; an index goes with --index",
        )
    if path.suffix.lower() != ".onnx":
        raise ModelError(f"{path}: not an .onnx model", hint="--engine takes a bundle folder or an .onnx model")
    from geoinfer.backends.onnx_runtime import OnnxRuntimeEmbedder

    return OnnxRuntimeEmbedder(path, device, preprocessing=preprocessing, threads=threads)
