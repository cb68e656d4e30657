"""Bytes become numbers before anything else: the one change that an exported graph needs for TensorRT.

TensorRT takes uint8 inputs, but the only thing it does with bytes is to convert them. Models exported for ONNX Runtime
move the channels first, since bytes are the cheapest thing to move. Both orders give the same numbers to the last bit,
so `Transpose` and `Cast` change places, in the protobuf itself: no onnx package is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from geoinfer.engines.onnx_metadata import (
    BYTES,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    GRAPH_VALUE_INFO,
    MODEL_GRAPH,
    Field,
    fields,
    text,
)

if TYPE_CHECKING:
    import mmap

_NODE_INPUT: Final = 1
_NODE_OUTPUT: Final = 2
_NODE_OPERATOR: Final = 4
_VALUE_NAME: Final = 1


@dataclass(slots=True)
class _Node:
    place: Field
    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    wiring: list[Field] = field(default_factory=list)
    rest: list[Field] = field(default_factory=list)


def with_cast_first(data: bytes | mmap.mmap, pixels: str) -> bytes | None:
    """The same model with `pixels -> Cast -> Transpose` in place of `pixels -> Transpose -> Cast`.

    Args:
        data: an ONNX model that `read_onnx` reads.
        pixels: name of its input.

    Returns:
        The changed model, or None when it does not begin so and there is nothing to change.
    """
    graph = next(f for f in fields(data, 0, len(data)) if f.number == MODEL_GRAPH and f.wire == BYTES)
    parts = list(fields(data, graph.first, graph.end))
    nodes = [_node(data, part) for part in parts if part.number == GRAPH_NODE]
    named = {_value_name(data, part): part for part in parts if part.number in (GRAPH_OUTPUT, GRAPH_VALUE_INFO)}
    pair = _pair(nodes, pixels)
    if pair is None:
        return None
    transpose, cast = pair
    between = transpose.outputs[0]
    if between in named and named[between].number == GRAPH_OUTPUT:
        return None
    swapped = {transpose.place.start: _join(data, transpose, cast), cast.place.start: _join(data, cast, transpose)}
    # What stands between the two has another type and shape now; a note of the old ones would be a lie.
    gone = named[between].start if between in named else -1
    pieces = [
        _message(GRAPH_NODE, swapped[part.start]) if part.start in swapped else bytes(data[part.start : part.end])
        for part in parts
        if part.start != gone
    ]
    changed = b"".join(pieces)
    return b"".join(
        (bytes(data[: graph.start]), _header(MODEL_GRAPH, len(changed)), changed, bytes(data[graph.end : len(data)]))
    )


def _node(data: bytes | mmap.mmap, part: Field) -> _Node:
    node = _Node(part)
    for item in fields(data, part.first, part.end):
        if item.number == _NODE_INPUT:
            node.inputs.append(text(data, item))
        elif item.number == _NODE_OUTPUT:
            node.outputs.append(text(data, item))
        elif item.number == _NODE_OPERATOR:
            node.operator = text(data, item)
        (node.wiring if item.number in (_NODE_INPUT, _NODE_OUTPUT) else node.rest).append(item)
    return node


def _pair(nodes: list[_Node], pixels: str) -> tuple[_Node, _Node] | None:
    """A `Transpose` of the pixels whose outcome is cast and nothing else; graphs within nodes may read it unseen."""
    if any(node.operator in ("If", "Loop", "Scan") for node in nodes):
        return None
    for node in nodes:
        if node.operator == "Transpose" and node.inputs == [pixels] and len(node.outputs) == 1:
            readers = [other for other in nodes if node.outputs[0] in other.inputs]
            if len(readers) == 1 and readers[0].operator == "Cast":
                return node, readers[0]
    return None


def _value_name(data: bytes | mmap.mmap, part: Field) -> str:
    return next((text(data, item) for item in fields(data, part.first, part.end) if item.number == _VALUE_NAME), "")


def _join(data: bytes | mmap.mmap, place: _Node, content: _Node) -> bytes:
    """A node that reads and writes what `place` does, and does what `content` does."""
    return b"".join(bytes(data[item.start : item.end]) for item in (*place.wiring, *content.rest))


def _message(number: int, content: bytes) -> bytes:
    return _header(number, len(content)) + content


def _header(number: int, length: int) -> bytes:
    return _encoded(number << 3 | BYTES) + _encoded(length)


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
