"""What an ONNX file says of itself, read without the onnx package and without reading its weights.

A device that has TensorRT alone must be able to build an engine, so the protobuf is walked here: only the fields that
are needed, by their numbers in onnx.proto3 of the ONNX project; all others are stepped over by their length.
"""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from geoinfer.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VARINT: Final = 0
BYTES: Final = 2

# Field numbers of onnx.proto3.
MODEL_GRAPH: Final = 7
MODEL_METADATA: Final = 14
GRAPH_NODE: Final = 1
GRAPH_INPUT: Final = 11
GRAPH_OUTPUT: Final = 12
GRAPH_VALUE_INFO: Final = 13
_MODEL_IR_VERSION: Final = 1
_GRAPH_INITIALIZER: Final = 5
_TENSOR_NAME: Final = 8

_DTYPES: Final = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}


class DamagedError(ValueError):
    """The bytes are not a protobuf message."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output.

    Attributes:
        name: of the tensor.
        dtype: as NumPy calls it.
        shape: -1 for a length that is only known when the model runs.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join('batch' if n < 0 else str(n) for n in self.shape)})"


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """Metadata, inputs and outputs of an ONNX model; constants are not counted among its inputs."""

    metadata: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a protobuf message.

    Attributes:
        number: its number in the message's definition.
        wire: its type on the wire.
        start: where it begins, its tag included.
        first: where its contents begin, for `BYTES`.
        end: where it ends.
        value: of a `VARINT`; else 0.
    """

    number: int
    wire: int
    start: int
    first: int
    end: int
    value: int = 0


def read_onnx(path: Path) -> OnnxFile:
    """Reads what an ONNX file says of itself.

    Raises:
        ModelError: it cannot be read, or is no ONNX model.
    """
    with mapped(path) as data, damage_named(path):
        return _read(data)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Within the block, bytes that make no sense are a ModelError that names their file."""
    try:
        yield
    except (DamagedError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: not an ONNX model, or a damaged one: {error}", hint="copy or export it again"
        ) from error


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, read from the disk only where they are looked at.

    Raises:
        ModelError: it is empty or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # what mmap says of an empty file
        raise ModelError(f"{path}: not an ONNX model: the file is empty", hint="copy or export it again") from error
    with data:
        yield data


def fields(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies in `data[start:end]`, in their order.

    Raises:
        DamagedError: it is no message.
    """
    at = start
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise DamagedError("a field has the number 0")
        if wire == VARINT:
            value, at = _varint(data, at, end)
            yield Field(number, wire, begin, at, at, value)
            continue
        if wire == BYTES:
            length, at = _varint(data, at, end)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise DamagedError(f"a field has the unknown type {wire}")
        if length > end - at:
            raise DamagedError("the file ends in the middle of a field")
        yield Field(number, wire, begin, at, at + length)
        at += length


def text(data: bytes | mmap.mmap, field: Field) -> str:
    """The contents of a string field."""
    return bytes(data[field.first : field.end]).decode()


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise DamagedError("the file ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise DamagedError("a number does not end")


def _read(data: bytes | mmap.mmap) -> OnnxFile:
    metadata: dict[str, str] = {}
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    constants: set[str] = set()
    versions = graphs = 0
    for field in fields(data, 0, len(data)):
        if field.number == MODEL_METADATA and field.wire == BYTES:
            entry = {part.number: text(data, part) for part in _parts(data, field)}
            metadata[entry.get(1, "")] = entry.get(2, "")
        elif field.number == _MODEL_IR_VERSION and field.wire == VARINT:
            versions += 1
        elif field.number == MODEL_GRAPH and field.wire == BYTES:
            graphs += 1
            for part in _parts(data, field):
                if part.number == GRAPH_INPUT:
                    inputs.append(_tensor(data, part))
                elif part.number == GRAPH_OUTPUT:
                    outputs.append(_tensor(data, part))
                elif part.number == _GRAPH_INITIALIZER:
                    constants.update(text(data, p) for p in _parts(data, part) if p.number == _TENSOR_NAME)
    if not versions or graphs != 1:
        raise DamagedError("it holds no graph" if not graphs else "it holds no version or several graphs")
    return OnnxFile(metadata, tuple(i for i in inputs if i.name not in constants), tuple(outputs))


def _parts(data: bytes | mmap.mmap, field: Field) -> Iterator[Field]:
    """The fields of a message within a message that are strings or messages themselves."""
    return (part for part in fields(data, field.first, field.end) if part.wire == BYTES)


def _tensor(data: bytes | mmap.mmap, field: Field) -> TensorSpec:
    name, dtype = "", "unknown"
    shape: list[int] = []
    for part in _parts(data, field):
        if part.number == 1:
            name = text(data, part)
        elif part.number == 2:
            for kind in _parts(data, part):
                if kind.number == 1:  # TypeProto.tensor_type; the other kinds are no tensors
                    dtype, shape = _dtype_and_shape(data, kind)
    return TensorSpec(name, dtype, tuple(shape))


def _dtype_and_shape(data: bytes | mmap.mmap, field: Field) -> tuple[str, list[int]]:
    dtype = "unknown"
    shape: list[int] = []
    for part in fields(data, field.first, field.end):
        if part.number == 1 and part.wire == VARINT:
            dtype = _DTYPES.get(part.value, f"type {part.value}")
        elif part.number == 2 and part.wire == BYTES:
            for dimension in _parts(data, part):
                known = [p.value for p in fields(data, dimension.first, dimension.end) if p.wire == VARINT]
                # Negative lengths, which nobody means, stand for unknown ones in some exporters.
                shape.append(known[0] if known and known[0] < 1 << 63 else -1)
    return dtype, shape
