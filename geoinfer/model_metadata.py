"""What an ONNX model's `geoinfer.*` metadata may say, whoever reads them: ONNX Runtime or the builder of engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from geoinfer.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PRECISIONS: Final = ("fp16", "int8", "fp32")
"""What a model's arithmetic may be, the one that an engine is best run in first."""

INT8_MIN_COSINE: Final = 0.98
"""The smallest cosine allowed between a picture's embeddings by an int8 model and by the float32 one, at export and in
use."""

_FORMAT: Final = "1"
_LONGEST: Final = 1 << 31


def check_metadata(path: Path, metadata: Mapping[str, str], hint: str) -> None:
    """Checks those entries that are there, and mean something wherever the model runs.

    Raises:
        ModelError: another format than this geoinfer reads, an empty identity, or a precision that is none.
    """
    if metadata.get("geoinfer.format", _FORMAT) != _FORMAT:
        raise ModelError(
            f"{path}: metadata of format {metadata['geoinfer.format']}; this geoinfer reads {_FORMAT}",
            hint="install a geoinfer that fits, or export the model again",
        )
    if not metadata.get("geoinfer.identity", "unknown").strip():
        raise ModelError(
            f"{path}: the metadata do not say which embedder this is: geoinfer.identity is empty", hint=hint
        )
    precision_of(path, metadata, hint)


def precision_of(path: Path, metadata: Mapping[str, str], hint: str) -> str:
    """One of `PRECISIONS`; models of before there were others say nothing of it, and are fp32.

    Raises:
        ModelError: it is another.
    """
    precision = metadata.get("geoinfer.precision", "fp32")
    if precision not in PRECISIONS:
        raise ModelError(
            f"{path}: geoinfer.precision is {precision!r}; expected one of {', '.join(sorted(PRECISIONS))}", hint=hint
        )
    return precision


def embedding_length(path: Path, declared: int, metadata: Mapping[str, str], hint: str) -> int:
    """Length of an embedding.

    Args:
        path: the model.
        declared: by the graph; -1 where that leaves it open.
        metadata: of the model, whose `geoinfer.dim` must not say otherwise.
        hint: of the error.

    Raises:
        ModelError: neither says it, or they contradict each other.
    """
    stored = metadata.get("geoinfer.dim", "")
    if declared > 0 and stored in ("", str(declared)):
        return declared
    if declared == -1 and stored.isascii() and stored.isdecimal() and len(stored) < 11 and 0 < int(stored) < _LONGEST:
        return int(stored)
    raise ModelError(
        f"{path}: graph and metadata do not agree on how long an embedding is: "
        f"{declared if declared > 0 else 'dynamic'} and {stored or 'nothing'}",
        hint=hint,
    )
