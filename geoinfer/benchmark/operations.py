"""How much a model has to multiply for one picture, counted from its graph.

Counted are convolutions and matrix products, which are nearly all of it; a multiplication and the addition that
follows are two operations, as in the figures that processors are sold with.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.backends.onnx_runtime import import_onnxruntime
from geoinfer.benchmark.protobuf import more_outputs
from geoinfer.engines.onnx_metadata import (
    BYTES,
    GRAPH_NODE,
    MODEL_GRAPH,
    VARINT,
    damage_named,
    fields,
    mapped,
    read_onnx,
    text,
)
from geoinfer.errors import ModelError
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable
    from pathlib import Path

    from geoinfer.engines.onnx_metadata import Field

FP32: Final = "fp32"
FP16: Final = "fp16"
INT8: Final = "int8"

_INITIALIZER: Final = 5
_DIMS, _KIND, _NAME = 1, 2, 8
_BYTES_OF: Final = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_FLOAT16: Final = (10, 16)

# Which of a node's inputs are multiplied with each other.
_PRODUCTS: Final = {
    "Conv": (0, 1),
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
}
_IN_BYTES: Final = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
_NOT_COUNTED: Final = ("Attention", "ConvTranspose", "DeformConv", "Einsum", "GRU", "If", "Loop", "LSTM", "RNN", "Scan")
_ONLY_MOVES: Final = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_OWN_DOMAINS: Final = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Operations:
    """What a model does for one picture.

    Attributes:
        flop: operations by the precision they are done in, `fp32`, `fp16` or `int8`; only those that there are.
        weight_bytes: of all its constants, as they are stored.
        image_bytes: of a picture's pixels.
    """

    flop: dict[str, int]
    weight_bytes: int
    image_bytes: int

    @property
    def total(self) -> int:
        """Operations in any precision."""
        return sum(self.flop.values())


@dataclass(frozen=True, slots=True)
class _Node:
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Constant:
    shape: tuple[int, ...]
    kind: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _BYTES_OF.get(self.kind, 4)


def count_operations(path: Path) -> Operations:
    """Counts the operations of a model.

    The shapes of what flows through it are those of a run on one black picture, on the CPU, so nothing is left to what
    a graph says of itself. A product is int8 if both that it multiplies come from `DequantizeLinear`, else what its
    weights are stored in. The model is in memory twice meanwhile.

    Args:
        path: an ONNX model with one input, uint8 (batch, size, size, 3).

    Raises:
        ModelError: it cannot be read, or run, or has operators that are not counted here.
        MissingPackageError: ONNX Runtime is not installed.
    """
    nodes, constants = _read_graph(path)
    uncounted = sorted({node.operator for node in nodes if not _is_counted(node)})
    if uncounted:
        raise ModelError(f"{path}: operations of {', '.join(uncounted)} are not counted")
    products = [(node, *_multiplied(node)) for node in nodes if _is_product(node)]
    wanted = {name for node, left, right in products for name in (left, right, node.outputs[0])} - set(constants)
    size, shapes = _run(path, sorted(wanted))
    shapes |= {name: (constant.shape, constant.kind in _FLOAT16) for name, constant in constants.items()}
    makers = {name: node for node in nodes for name in node.outputs}
    flop: Counter[str] = Counter()
    for node, left, right in products:
        precision = FP16 if shapes[right][1] else FP32
        if node.operator in _IN_BYTES or all(_from_bytes(name, makers) for name in (left, right)):
            precision = INT8
        flop[precision] += 2 * _multiplications(node, *(shapes[name][0] for name in (left, right, node.outputs[0])))
    return Operations(dict(flop), sum(constant.bytes for constant in constants.values()), 3 * size * size)


def _is_product(node: _Node) -> bool:
    return node.domain in _OWN_DOMAINS and node.operator in _PRODUCTS


def _multiplied(node: _Node) -> tuple[str, str]:
    left, right = _PRODUCTS[node.operator]
    return node.inputs[left], node.inputs[right]


def _is_counted(node: _Node) -> bool:
    """False of what multiplies, or may, and is not known here."""
    if node.domain in _OWN_DOMAINS:
        return node.operator not in _NOT_COUNTED
    return node.operator in ("QuantizeLinear", "DequantizeLinear")


def _from_bytes(name: str, makers: dict[str, _Node]) -> bool:
    maker = makers.get(name)
    while maker is not None and maker.operator in _ONLY_MOVES:
        maker = makers.get(maker.inputs[0])
    return maker is not None and maker.operator == "DequantizeLinear"


def _multiplications(node: _Node, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]) -> int:
    """For each number that comes out, how many products are summed."""
    results = math.prod(out)
    if "Conv" in node.operator:  # weights are (channels out, channels in of the group, height, width)
        return results * math.prod(right[1:])
    if node.operator == "Gemm":  # either side may be transposed; (rows, summed) times (summed, columns)
        return results * (math.prod(left) // out[0])
    return results * left[-1]


def _read_graph(path: Path) -> tuple[list[_Node], dict[str, _Constant]]:
    with mapped(path) as data, damage_named(path):
        graph = next((f for f in fields(data, 0, len(data)) if f.number == MODEL_GRAPH and f.wire == BYTES), None)
        if graph is None:
            raise ModelError(f"{path}: not an ONNX model: it holds no graph")
        nodes: list[_Node] = []
        constants: dict[str, _Constant] = {}
        for part in fields(data, graph.first, graph.end):
            if part.number == GRAPH_NODE and part.wire == BYTES:
                nodes.append(_node(data, part))
            elif part.number == _INITIALIZER and part.wire == BYTES:
                name, constant = _constant(data, part)
                constants[name] = constant
        return nodes, constants


def _node(data: mmap.mmap, field: Field) -> _Node:
    inputs: list[str] = []
    outputs: list[str] = []
    operator = domain = ""
    for part in fields(data, field.first, field.end):
        if part.wire != BYTES:
            continue
        if part.number == 1:
            inputs.append(text(data, part))
        elif part.number == 2:
            outputs.append(text(data, part))
        elif part.number == 4:
            operator = text(data, part)
        elif part.number == 7:
            domain = text(data, part)
    return _Node(operator, domain, tuple(inputs), tuple(outputs))


def _constant(data: mmap.mmap, field: Field) -> tuple[str, _Constant]:
    shape: list[int] = []
    name, kind = "", 0
    for part in fields(data, field.first, field.end):
        if part.number == _DIMS and part.wire == VARINT:
            shape.append(part.value)
        elif part.number == _DIMS and part.wire == BYTES:  # packed: bare numbers, one after another
            shape += _packed(data, part)
        elif part.number == _KIND and part.wire == VARINT:
            kind = part.value
        elif part.number == _NAME and part.wire == BYTES:
            name = text(data, part)
    return name, _Constant(tuple(shape), kind)


def _packed(data: mmap.mmap, field: Field) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in data[field.first : field.end]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    return found


def _run(path: Path, names: Iterable[str]) -> tuple[int, dict[str, tuple[tuple[int, ...], bool]]]:
    """(the side of a picture, shape of each value and whether it is of 16 bits) in a run on one black picture."""
    inputs = read_onnx(path).inputs
    if len(inputs) != 1 or inputs[0].dtype != "uint8" or len(inputs[0].shape) != 4 or min(inputs[0].shape[1:]) < 1:
        raise ModelError(f"{path}: the operations of a model are counted for one input, uint8 (batch, size, size, 3)")
    wanted = list(names)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 4
    # What is fused into another operator is still asked for, so there is no point in trying.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        session = onnxruntime.InferenceSession(
            path.read_bytes() + more_outputs(wanted), options, providers=["CPUExecutionProvider"]
        )
        values: list[Any] = session.run(wanted, {inputs[0].name: np.zeros((1, *inputs[0].shape[1:]), np.uint8)})
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise ModelError(f"{path}: operations cannot be counted: {str(error).splitlines()[0]}") from error
    found = {name: (np.shape(value), value.dtype.itemsize == 2) for name, value in zip(wanted, values, strict=True)}
    return inputs[0].shape[1], found
