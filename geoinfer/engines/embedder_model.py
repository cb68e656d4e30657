"""An ONNX model as the builder of engines wants it: checked in full before TensorRT sees a byte of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from geoinfer.engines.onnx_metadata import TensorSpec, read_onnx
from geoinfer.errors import InputError, ModelError, UsageError
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.integrity import sha256_of
from geoinfer.model_metadata import check_metadata, embedding_length, precision_of

if TYPE_CHECKING:
    from pathlib import Path

_EXPORT: Final = "python -m export onnx CHECKPOINT --out {name} makes a model with all that geoinfer needs"


@dataclass(frozen=True, slots=True)
class EmbedderModel:
    """An ONNX model that an engine can be built from.

    Attributes:
        path: the file.
        size_bytes: of the file.
        sha256: of the file.
        input: uint8 (-1, size, size, 3).
        output: float32 or float16 (-1, dim).
        identity: name of the embedding space.
        dim: length of an embedding.
        preprocessing: which pixels it wants, as `Preprocessing.as_dict`.
        precision: one of `geoinfer.model_metadata.PRECISIONS`.
        source: where the weights come from; may be empty.
        licence: of the weights; may be empty.
        weights_sha256: of the weights as they were received; may be empty.
        parity: what the export's parity gate found, None if the model does not say.
    """

    path: Path
    size_bytes: int
    sha256: str
    input: TensorSpec
    output: TensorSpec
    identity: str
    dim: int
    preprocessing: dict[str, Any]
    precision: str
    source: str
    licence: str
    weights_sha256: str
    parity: dict[str, Any] | None


def read_embedder_model(path: Path) -> EmbedderModel:
    """Reads and checks a model.

    Raises:
        InputError: there is no such file.
        ModelError: it is no ONNX model, lacks geoinfer's metadata, or its inputs and outputs are not an embedder's.
    """
    if not path.exists():
        raise InputError(
            f"{path}: there is no such model", hint="name an .onnx file or the folder of a bundle that holds one"
        )
    if path.is_dir():
        raise InputError(f"{path}: is a folder and no bundle", hint="name an .onnx file or the folder of a bundle")
    found = read_onnx(path)
    hint = _EXPORT.format(name=path.name)
    pixels, embeddings = _check_ends(path, found.inputs, found.outputs, hint)
    metadata = found.metadata
    if "geoinfer.preprocessing" not in metadata or "geoinfer.identity" not in metadata:
        raise ModelError(
            f"{path}: the metadata do not say which embedder this is: geoinfer.identity or geoinfer.preprocessing "
            "is missing",
            hint=hint,
        )
    check_metadata(path, metadata, hint)
    if metadata.get("geoinfer.int8_target") == "cpu":
        raise ModelError(
            f"{path}: was quantised for ONNX Runtime on a CPU, in a form that TensorRT does not take",
            hint="export it with --precision int8 --int8-target any, or with --precision fp16",
        )
    preprocessing = _preprocessing(path, metadata["geoinfer.preprocessing"], hint)
    _, height, width, _ = pixels.shape
    size = preprocessing.size
    if height not in (-1, size) or width not in (-1, size):
        raise ModelError(
            f"{path}: the graph takes {height} x {width} pixels, its preprocessing gives {size}", hint=hint
        )
    dim = embedding_length(path, embeddings.shape[1], metadata, hint)
    try:
        return EmbedderModel(
            path=path,
            size_bytes=path.stat().st_size,
            sha256=sha256_of(path),
            input=TensorSpec(pixels.name, pixels.dtype, (-1, size, size, 3)),
            output=TensorSpec(embeddings.name, embeddings.dtype, (-1, dim)),
            identity=metadata["geoinfer.identity"],
            dim=dim,
            preprocessing=preprocessing.as_dict(),
            precision=precision_of(path, metadata, hint),
            source=metadata.get("geoinfer.source", ""),
            licence=metadata.get("geoinfer.licence", ""),
            weights_sha256=metadata.get("geoinfer.weights_sha256", ""),
            parity=_parity(metadata),
        )
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error


def _check_ends(
    path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], hint: str
) -> tuple[TensorSpec, TensorSpec]:
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{path}: the model has {len(inputs)} inputs and {len(outputs)} outputs; expected one of each: pixels and "
            "embeddings",
            hint=hint,
        )
    pixels, embeddings = inputs[0], outputs[0]
    if pixels.dtype != "uint8" or len(pixels.shape) != 4 or pixels.shape[3] != 3:
        raise ModelError(
            f"{path}: the input is {pixels}; expected uint8 (batch, size, size, 3), "
            "with the normalisation in the graph",
            hint=hint,
        )
    if pixels.shape[0] != -1:
        raise ModelError(
            f"{path}: the batch is fixed at {pixels.shape[0]}; an engine for several batches needs a dynamic one",
            hint=hint,
        )
    if embeddings.dtype not in ("float32", "float16") or len(embeddings.shape) != 2:
        raise ModelError(f"{path}: the output is {embeddings}; expected float32 (batch, dim)", hint=hint)
    return pixels, embeddings


def _preprocessing(path: Path, stored: str, hint: str) -> Preprocessing:
    try:
        return Preprocessing.from_dict(json.loads(stored))
    except (UsageError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: geoinfer.preprocessing of the metadata is damaged: {error}", hint=hint) from error


def _parity(metadata: dict[str, str]) -> dict[str, Any] | None:
    """What the export found, kept for a reader; a model works without it."""
    try:
        parity = json.loads(metadata.get("geoinfer.parity", "null"))
    except (ValueError, RecursionError):
        return None
    return parity if isinstance(parity, dict) else None
