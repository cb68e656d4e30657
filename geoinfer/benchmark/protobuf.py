"""Writing what little of an ONNX file is needed here, without the onnx package, which the runtime does not bring.

Field numbers are those of onnx.proto3 of the ONNX project; `geoinfer.engines.onnx_metadata` reads them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from geoinfer.engines.onnx_metadata import BYTES, GRAPH_INPUT, GRAPH_NODE, GRAPH_OUTPUT, MODEL_GRAPH, VARINT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FLOAT: Final = 1
UINT8: Final = 2
INT8: Final = 3
INT32: Final = 6
FLOAT16: Final = 10
"""Element types, TensorProto.DataType."""

_IR_VERSION: Final = 8
_OPSET: Final = 17


def more_outputs(names: Iterable[str]) -> bytes:
    """What makes values within a graph outputs of it, when it is appended to the bytes of a model.

    Protobuf merges a message that comes twice, and joins the lists in it.
    """
    return field(MODEL_GRAPH, b"".join(field(GRAPH_OUTPUT, field(1, name.encode())) for name in names))


def chain_of_products(operator: str, left: int, right: int, out: int, side: int, length: int) -> bytes:
    """A model that multiplies `a` with `b`, that with `b` again, and so on, into `c`; all (side, side).

    Args:
        operator: `MatMul` or `MatMulInteger`, for which the length must be 1: it gives other numbers than it takes.
        left: element type of `a`.
        right: of `b`.
        out: of `c`.
        side: of the matrices.
        length: how many products.
    """
    names = ["a", *(f"c{i}" for i in range(1, length)), "c"]
    nodes = (_node(operator, [before, "b"], after) for before, after in itertools.pairwise(names))
    graph = b"".join(field(GRAPH_NODE, node) for node in nodes) + field(2, b"products")
    graph += field(GRAPH_INPUT, _value("a", left, side)) + field(GRAPH_INPUT, _value("b", right, side))
    graph += field(GRAPH_OUTPUT, _value("c", out, side))
    return number(1, _IR_VERSION) + field(8, field(1, b"") + number(2, _OPSET)) + field(MODEL_GRAPH, graph)


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    return (
        b"".join(field(1, name.encode()) for name in inputs) + field(2, output.encode()) + field(4, operator.encode())
    )


def _value(name: str, kind: int, side: int) -> bytes:
    shape = 2 * field(1, number(1, side))
    return field(1, name.encode()) + field(2, field(1, number(1, kind) + field(2, shape)))


def field(key: int, contents: bytes) -> bytes:
    """A field of bytes, of text or of another message."""
    return _varint(key << 3 | BYTES) + _varint(len(contents)) + contents


def number(key: int, value: int) -> bytes:
    """A field of a whole number, not negative."""
    return _varint(key << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
