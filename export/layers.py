"""The layers of an ONNX graph that have weights, and what each of them has to multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from geoinfer.backends.onnx_runtime import import_onnxruntime
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_PRODUCTS: Final = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or matrix product with constant weights.

    Attributes:
        name: of the node.
        operator: `Conv`, `MatMul` or `Gemm`.
        source: value that it reads.
        result: value that it writes.
        weight: initializer of its weights.
        bias: initializer of its bias; empty without one, and for a `MatMul`, whose bias is an addition of its own.
        axis: of the weights along which the output channels lie.
    """

    name: str
    operator: str
    source: str
    result: str
    weight: str
    bias: str
    axis: int


def weighted_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers in the order of the graph; products of two activations, as in attention, are none."""
    weights = {
        tensor.name: len(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    layers = []
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS or node.input[1] not in weights or node.input[0] in weights:
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        axis = 0
        if node.op_type == "MatMul":
            if weights[node.input[1]] != 2:
                continue
            axis = 1
        elif node.op_type == "Gemm":
            if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
                continue
            axis = 0 if attributes.get("transB", 0) else 1
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in weights else ""
        layers.append(Layer(node.name, node.op_type, node.input[0], node.output[0], node.input[1], bias, axis))
    return layers


def count_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulate operations of one picture, by node: of convolutions and of all matrix products.

    The shapes are those of a run on one black picture, so nothing is left to what shape inference can see.

    Args:
        model: with one input, uint8 (batch, size, size, 3).
    """
    nodes = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    wanted = dict.fromkeys(name for node in nodes for name in (node.input[0], node.output[0]))
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    side = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim][1:]
    session = open_session(with_outputs(model, [name for name in wanted if name not in constants]))
    shapes = {
        output.name: np.shape(value)
        for output, value in zip(
            session.get_outputs(), session.run(None, {"pixels": np.zeros((1, *side), np.uint8)}), strict=True
        )
    }
    return {node.name: _macs(node, shapes, constants) for node in nodes}


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]], constants: Mapping[str, Sequence[int]]) -> int:
    results = int(np.prod(shapes[node.output[0]]))
    if node.op_type == "Conv":  # weights are (channels out, channels in of the group, height, width)
        return results * int(np.prod(constants[node.input[1]][1:]))
    source = shapes.get(node.input[0]) or constants[node.input[0]]
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return results * int(source[0 if transposed else -1])


def with_outputs(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model that also gives these values."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    given = {output.name for output in model.graph.output}
    copied.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in values if name not in given)
    return copied


def open_session(model: onnx.ModelProto) -> Any:
    """The model in ONNX Runtime on all cores of this process."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def embed(session: Any, pixels: NDArray[np.uint8], batch: int = 8) -> NDArray[np.float64]:
    """Embeddings of (n, size, size, 3) uint8 pictures, (n, dim) float64 for comparing."""
    parts = [session.run(["embeddings"], {"pixels": pixels[i : i + batch]})[0] for i in range(0, len(pixels), batch)]
    return np.concatenate(parts).astype(np.float64)
