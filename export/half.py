"""Float32 ONNX models in half precision: matrix products and what lies between them in float16, what would suffer not.

Written here, because `onnxruntime.transformers.float16` and the `onnxconverter_common` that it stems from press weights
beyond float16's range to its limit without a word, and cast down and up again between any two neighbours that are to
stay in float32.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime

from export.graph import MAX_BYTES, check_graph, without_weights
from geoinfer.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

FLOAT: Final = onnx.TensorProto.FLOAT
HALF: Final = onnx.TensorProto.FLOAT16

HEADROOM: Final = 4.0
"""Activations seen this many times below float16's largest number (65504) are trusted to stay below it."""

MAX_WEIGHT_ERROR: Final = 1e-3
"""Of a constant as a whole, relative. Rounding to float16's 11 bits costs 2e-4; what is beyond its range or below its
smallest numbers costs more."""

_FIRST_AXIS: Final = "first_axis"

_KEPT: Final = frozenset([
    "BatchNormalization", "CumSum", "Exp", "GlobalAveragePool", "GlobalLpPool", "GroupNormalization",
    "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "Pow", "RMSNormalization",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Softmax", "Sqrt",
])  # fmt: skip
"""Sums over many numbers, and what overflows or vanishes early (the square of 256 is beyond float16)."""

_PLAIN: Final = frozenset([
    "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Div", "Expand", "Flatten", "Floor", "Identity", "Max", "Min",
    "Mul", "Neg", "Relu", "Reshape", "Sign", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
])  # fmt: skip
"""Operators that cost nothing worth saving: they stay in float32 where all around them does."""


def to_half(model: onnx.ModelProto, pixels: NDArray[np.uint8] | None = None) -> onnx.ModelProto:
    """Converts a canonical float32 model; inputs, outputs and the names of values stay as they are.

    In float32 stay the pixels up to the first product, normalisations, softmax, means and other long sums, the L2 norm
    of the embeddings, and every operator with a constant or an activation that float16 cannot hold. How many those are
    is told by this module's logger, and which, at the level of debugging.

    Args:
        model: as `export.graph.trace` makes it; not changed.
        pixels: (n, size, size, 3) uint8, pictures to measure activations on; without them, and for models that are too
            large for one protobuf, only the constants are looked at.

    Returns:
        The model, with float16 weights. The same model and pixels give the same bytes.

    Raises:
        ModelError: the graph holds an operator that ONNX does not describe.
    """
    return _Conversion(model, pixels).converted()


def as_a_gpu_rounds(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that computes on a CPU what a GPU computes from `model`, as far as float16 is concerned.

    ONNX Runtime has no float16 arithmetic on most CPUs. It computes in float32 and, at whatever level of optimisation,
    leaves out the rounding between two operators: an activation of 100,000, infinite on a GPU, passes unnoticed. Here
    each float16 value is given an axis and stripped of it again, which keeps ONNX Runtime from that. Sums within an
    operator are float32's, as in the matrix units of GPUs.

    Args:
        model: by `to_half`; not changed.
    """
    types = _element_types(model)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    del rounded.graph.node[:]
    for node in model.graph.node:
        copied = rounded.graph.node.add()
        copied.CopyFrom(node)
        for slot, value in enumerate(node.output):
            if types.get(value) != HALF:
                continue
            copied.output[slot] = f"{value}_unrounded"
            deeper = f"{value}_deeper"
            rounded.graph.node.append(onnx.helper.make_node("Unsqueeze", [copied.output[slot], _FIRST_AXIS], [deeper]))
            rounded.graph.node.append(onnx.helper.make_node("Squeeze", [deeper, _FIRST_AXIS], [value]))
    if len(rounded.graph.node) > len(model.graph.node):
        rounded.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), _FIRST_AXIS))
    return rounded


class _Conversion:
    def __init__(self, model: onnx.ModelProto, pixels: NDArray[np.uint8] | None) -> None:
        self._model = model
        self._nodes = list(model.graph.node)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._opset = next(entry.version for entry in model.opset_import if not entry.domain)
        self._types = _element_types(model)
        self._consumers: dict[str, list[int]] = {}
        for number, node in enumerate(self._nodes):
            for value in node.input:
                self._consumers.setdefault(value, []).append(number)
        self._producers = {value: number for number, node in enumerate(self._nodes) for value in node.output}
        self._outputs = {value.name for value in model.graph.output}
        self._kept = self._choose(pixels)

    def _choose(self, pixels: NDArray[np.uint8] | None) -> set[int]:
        """Numbers of the nodes that stay in float32."""
        kept = {
            number
            for number, node in enumerate(self._nodes)
            if node.op_type in _KEPT
            or not self._takes_half(node)
            or (self._outputs.intersection(node.output) and node.op_type in _PLAIN)
        } | self._before_first_product()
        self._fill(kept)
        beyond = self._beyond_half(pixels)
        added = [number for number in beyond if number not in kept]
        for number in added:
            _log.debug("%s stays in float32: %s", self._nodes[number].name, beyond[number])
        if added:
            _log.info(
                "%d of %d operators stay in float32 because float16 cannot hold their values",
                len(added),
                len(self._nodes),
            )
        kept |= beyond.keys()
        self._fill(kept)
        return kept

    def _fill(self, kept: set[int]) -> None:
        """Adds what lies between float32 on all sides, and would only be rounded there and back."""
        while between := {n for n in range(len(self._nodes)) if n not in kept and self._is_between(n, kept)}:
            kept |= between

    def _takes_half(self, node: onnx.NodeProto) -> bool:
        if not any(self._types.get(value) == FLOAT for value in node.output):
            return True  # of integers: nothing to convert
        floats = [value for value in node.input if self._types.get(value) == FLOAT]
        if node.op_type != "Cast" and not floats:
            return False  # a constant or random numbers, whose type an attribute gives
        schema = self._schema(node)
        return _admits_half(schema, schema.outputs[0].type_str)

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema:
        try:
            return onnx.defs.get_schema(node.op_type, self._opset, node.domain)
        except onnx.defs.SchemaError as error:
            raise ModelError(f"{node.name}: {node.op_type} is no operator of ONNX opset {self._opset}") from error

    def _before_first_product(self) -> set[int]:
        """Nodes that normalise pixels."""
        numbers: set[int] = set()
        values = {value.name for value in self._model.graph.input}
        for number, node in enumerate(self._nodes):
            dynamic = [value for value in node.input if value and value not in self._constants]
            if node.op_type in _PLAIN and dynamic and values.issuperset(dynamic):
                numbers.add(number)
                values.update(node.output)
        return numbers

    def _is_between(self, number: int, kept: set[int]) -> bool:
        node = self._nodes[number]
        if node.op_type not in _PLAIN:
            return False
        floats = [v for v in node.input if self._types.get(v) == FLOAT and v not in self._constants]
        consumers = [consumer for value in node.output for consumer in self._consumers.get(value, [])]
        return (
            bool(floats)
            and bool(consumers)
            and all(self._producers.get(value) in kept for value in floats)
            and kept.issuperset(consumers)
        )

    def _beyond_half(self, pixels: NDArray[np.uint8] | None) -> dict[int, str]:
        """Nodes whose constants or activations float16 cannot hold, and what they are."""
        found: dict[int, str] = {}
        peaks = {} if pixels is None else self._peaks(pixels)
        limit = float(np.finfo(np.float16).max) / HEADROOM
        for number, node in enumerate(self._nodes):
            for value in node.input:
                if value not in self._constants or self._types[value] != FLOAT:
                    continue
                if reason := _lost(onnx.numpy_helper.to_array(self._constants[value])):
                    found.setdefault(number, f"its constant {value} {reason}")
            for value in (*node.input, *node.output):
                if not peaks.get(value, 0.0) <= limit:
                    found.setdefault(number, f"{value} reaches {peaks[value]:.3g} on the pictures")
        return found

    def _peaks(self, pixels: NDArray[np.uint8]) -> dict[str, float]:
        """The largest magnitude of each float value on the pictures."""
        if sum(len(tensor.raw_data) for tensor in self._constants.values()) > MAX_BYTES:
            _log.info("activations are not measured: the model in float32 is too large for one protobuf")
            return {}
        values = [v for node in self._nodes for v in node.output if self._types.get(v) == FLOAT]
        measured = onnx.ModelProto()
        measured.CopyFrom(self._model)
        del measured.graph.output[:]
        for number, value in enumerate(values):
            measured.graph.node.append(onnx.helper.make_node("Abs", [value], [f"magnitude{number}"]))
            measured.graph.node.append(
                onnx.helper.make_node("ReduceMax", [f"magnitude{number}"], [f"peak{number}"], keepdims=0)
            )
            measured.graph.output.append(onnx.helper.make_tensor_value_info(f"peak{number}", FLOAT, []))
        session = onnxruntime.InferenceSession(measured.SerializeToString(), providers=["CPUExecutionProvider"])
        peaks = np.max([session.run(None, {"pixels": picture[None]}) for picture in pixels], axis=0)
        return dict(zip(values, map(float, peaks), strict=True))

    def converted(self) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(without_weights(self._model))
        result.producer_name = self._model.producer_name
        result.metadata_props.extend(self._model.metadata_props)
        graph = result.graph
        for field in (graph.node, graph.initializer, graph.input):
            del field[:]
        graph.input.extend(self._model.graph.input)

        now = dict(self._types)  # the type that each value has by now
        wanted_as: dict[tuple[str, int], str] = {}
        for number, node in enumerate(self._nodes):
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            half = number not in self._kept
            for slot, value in enumerate(node.input):
                if self._types.get(value) != FLOAT:
                    if value in self._constants and (value, 0) not in wanted_as:
                        wanted_as[value, 0] = value
                        graph.initializer.append(self._constants[value])
                    continue
                wanted = HALF if half and self._slot_takes_half(node, slot) else FLOAT
                copied.input[slot] = self._as_type(graph, wanted_as, now, value, wanted)
            if half and any(self._types.get(value) == FLOAT for value in node.output):
                now |= {value: HALF for value in node.output if self._types.get(value) == FLOAT}
                if node.op_type == "Cast":
                    next(attribute for attribute in copied.attribute if attribute.name == "to").i = HALF
                for slot, value in enumerate(copied.output):
                    if value in self._outputs:
                        copied.output[slot] = f"{value}_fp16"
                graph.node.append(copied)
                for value in self._outputs.intersection(node.output):
                    graph.node.append(_cast(f"{value}_fp16", value, FLOAT))
            else:
                graph.node.append(copied)
        check_graph(result)
        return result

    def _slot_takes_half(self, node: onnx.NodeProto, slot: int) -> bool:
        schema = self._schema(node)
        return _admits_half(schema, schema.inputs[min(slot, len(schema.inputs) - 1)].type_str)

    def _as_type(
        self,
        graph: onnx.GraphProto,
        wanted_as: dict[tuple[str, int], str],
        now: Mapping[str, int],
        value: str,
        wanted: int,
    ) -> str:
        """Name of a value in the wanted type; a constant is added, and a cast, when they are first asked for."""
        key = (value, wanted)
        if key in wanted_as:
            return wanted_as[key]
        if value in self._constants:
            name = value if wanted == FLOAT else f"{value}_fp16"
            array = onnx.numpy_helper.to_array(self._constants[value])
            with np.errstate(over="ignore", under="ignore"):
                array = array if wanted == FLOAT else array.astype(np.float16)
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        elif now[value] == wanted:
            name = value
        else:
            name = f"{value}_{'fp16' if wanted == HALF else 'fp32'}"
            graph.node.append(_cast(value, name, wanted))
        wanted_as[key] = name
        return name


def _cast(value: str, name: str, wanted: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [value], [name], name=f"{name}_cast", to=wanted)


def _admits_half(schema: onnx.defs.OpSchema, type_str: str) -> bool:
    allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    return "tensor(float16)" in allowed.get(type_str, [type_str])


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        inferred = onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the types of the graph cannot be told: {error}") from error
    types = {tensor.name: int(tensor.data_type) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _lost(array: NDArray[np.float32]) -> str:
    """What float16 would make of a constant, if that is worse than rounding it; otherwise nothing."""
    finite = array[np.isfinite(array)].astype(np.float64)
    if not finite.size:
        return ""
    with np.errstate(over="ignore", under="ignore"):
        rounded = finite.astype(np.float16)
    if not np.isfinite(rounded).all():
        return f"reaches {np.abs(finite).max():.3g}, and float16 ends at 65504"
    error = float(np.linalg.norm(rounded - finite)) / max(float(np.linalg.norm(finite)), 1e-300)
    if error > MAX_WEIGHT_ERROR:
        return f"is too small for float16: it would be off by {error:.2g} of itself"
    return ""
