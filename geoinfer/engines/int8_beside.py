"""A model's int8 sibling: `vit.int8.onnx` beside `vit.onnx`, the same embedder in bytes, for CPUs that gain from it.

Both are of one identity and share an index. Which of the two is run is decided elsewhere; here it is only found out
whether there is one, and whether it belongs to its model, from what both files say of themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from geoinfer.engines.onnx_metadata import read_onnx
from geoinfer.errors import InputError, MismatchError, ModelError, UsageError
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.model_metadata import check_metadata, embedding_length, precision_of

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX: Final = ".int8.onnx"

_MAKE: Final = (
    "`python -m export onnx CHECKPOINT --precision int8 --int8-target cpu --calibration PHOTOS --out {name}` makes one"
)


def int8_path(model: Path) -> Path:
    """Where the int8 sibling of a model is, if there is one: `vit.int8.onnx` for `vit.onnx`."""
    return model.with_name(f"{model.stem}{SUFFIX}")


def int8_beside(model: Path) -> Path | None:
    """The int8 sibling of a model; None where no such file lies beside it, or the model is itself int8.

    Identity, length of the embeddings and preprocessing are compared, by the metadata alone: no weights are read. That
    the embeddings are close to the model's is for `geoinfer.self_tuning.precision` to find out.

    Args:
        model: an ONNX model. Engines have no siblings.

    Raises:
        ModelError: the file beside it is no ONNX model of geoinfer's, or not int8; or the model itself does not say
            which embedder it is.
        MismatchError: it is of another embedder.
    """
    sibling = int8_path(model)
    if model.suffix.lower() != ".onnx" or not sibling.is_file():
        return None
    own = _described(model)
    if own.precision == "int8":
        return None
    beside = _described(sibling)
    if beside.precision != "int8":
        raise ModelError(
            f"{sibling}: is called int8, and its metadata say that it is {beside.precision}", hint=_make(sibling)
        )
    for what, mine, its in (
        ("the embedder", own.identity, beside.identity),
        ("the length of an embedding", own.dim, beside.dim),
        ("the preprocessing", own.preprocessing, beside.preprocessing),
    ):
        if mine != its:
            raise MismatchError(
                f"{sibling}: lies beside {model.name} and is not of it: {what} is {its}, the model's is {mine}",
                hint=_make(sibling),
            )
    return sibling


def require_int8(model: Path) -> Path:
    """The int8 form of a model for whoever asked for it: its sibling, or the model itself if it is int8.

    Raises:
        InputError: there is none.
        ModelError, MismatchError: as `int8_beside`.
    """
    found = int8_beside(model)
    if found is not None:
        return found
    if model.suffix.lower() == ".onnx" and model.is_file() and _described(model).precision == "int8":
        return model
    sibling = int8_path(model)
    raise InputError(f"{model}: has no int8 sibling: {sibling.name} should lie beside it", hint=_make(sibling))


@dataclass(frozen=True, slots=True)
class _Described:
    """What a model's metadata say."""

    identity: str
    dim: int
    preprocessing: Preprocessing
    precision: str


def _described(path: Path) -> _Described:
    found = read_onnx(path)
    metadata, hint = found.metadata, _make(int8_path(path) if not path.name.endswith(SUFFIX) else path)
    check_metadata(path, metadata, hint)
    try:
        preprocessing = Preprocessing.from_dict(json.loads(metadata["geoinfer.preprocessing"]))
        identity = metadata["geoinfer.identity"]
    except KeyError as error:
        raise ModelError(
            f"{path}: the metadata do not say which embedder this is: {error.args[0]} is missing", hint=hint
        ) from error
    except (UsageError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: geoinfer.preprocessing of the metadata is damaged: {error}", hint=hint) from error
    shape = found.outputs[0].shape if len(found.outputs) == 1 else ()
    dim = embedding_length(path, shape[1] if len(shape) == 2 else -1, metadata, hint)
    return _Described(identity, dim, preprocessing, precision_of(path, metadata, hint))


def _make(sibling: Path) -> str:
    return _MAKE.format(name=sibling.name)
