"""Why an exported model failed its parity gate: the first layer that departs from torch.

Torch's exported program is interpreted node by node. For each value that the model has too, the few operators of the
model between that value and those before it are run apart, twice:

- on the model's own values, which gives what the model computes, errors of earlier layers included;
- on torch's values, which gives the layer's own error and nothing else's.

The second is what a layer is judged by. In a model of low precision every value is off and some layers amplify what
they are given; a layer that is off although it was given the truth is where to look. The worst of them are then put
into torch's program one at a time, because being off need not matter: float16 has no digits left for a class token of
a millionth, and nothing comes of it. Values live until the last layer that reads them, so a ViT-L takes no more memory
here than when it is run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
import torch

from export.messages import first_line
from geoinfer.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from export.graph import Traced

# A layer departs if its own error is so many times the median over all layers: rounding differs between healthy layers
# by less, between a softmax over large logits and an addition, say.
_SUDDEN: Final = 10.0
# And if that alone makes so much of the embedding's error. Errors of independent layers add up as squares do, so ten
# layers that share a fault still have a third of it each.
_MATTERS: Final = 0.1
# An embedding off by less has nothing to explain: cosines of 1 - 5e-11, a thousand times better than any limit.
_NOISE: Final = 1e-5
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class Layer:
    """How one value of the model compares with torch's.

    Relative errors are Euclidean norms of the difference over that of torch's value, infinite where the model's is not
    finite; cosines are then 0.

    Attributes:
        name: of the layer: the path of its torch module, such as `blocks.3.norm1`, with the function where a
            module calls several; of several modules that became one operator, all of them.
        operator: ONNX operators that compute the value from those before it.
        value: its name in the model.
        own_error: relative error of the value computed from torch's inputs.
        error_before: largest relative error, in the model, of what the layer was given.
        error_after: relative error of the value in the model.
        cosine_before: smallest cosine with torch's, in the model, of what the layer was given.
        cosine_after: cosine of the value in the model.
        embedding_error: relative error of the embedding if this layer alone were the model's, and all others torch's;
            NaN where that was not tried.
    """

    name: str
    operator: str
    value: str
    own_error: float
    error_before: float
    error_after: float
    cosine_before: float
    cosine_after: float
    embedding_error: float = math.nan


@dataclass(frozen=True, slots=True)
class Departure:
    """Where a model leaves torch.

    Attributes:
        layer: the first that departs; the one that does the embedding most harm where none stands out.
        sudden: whether it stands out: its own error is at least ten times the usual one, and it alone makes a tenth of
            the embedding's error.
        usual_error: median of the layers' own errors.
        steepest: layers with the largest own errors; of these, the one that does the embedding most harm first.
    """

    layer: Layer
    sudden: bool
    usual_error: float
    steepest: tuple[Layer, ...]

    def lines(self) -> list[str]:
        """What the console shows, a line each."""
        layer = self.layer
        shown = [
            f"the first layer that departs is {layer.name} ({layer.operator}): given what torch gives it, it is off by "
            f"{_error(layer.own_error)}; the median layer of this model is off by {_error(self.usual_error)}"
            if self.sudden
            else f"no layer stands out, the error grows from layer to layer; most of it is that of {layer.name} "
            f"({layer.operator}), off by {_error(layer.own_error)} where the median is {_error(self.usual_error)}",
            f"  in the model, its inputs have a cosine of {layer.cosine_before:.7f} with torch's and a relative error "
            f"of {_error(layer.error_before)}; its output {layer.cosine_after:.7f} and {_error(layer.error_after)}",
            "  own error   embedding's by it alone   in the model   layer",
        ]
        shown += [
            f"  {_error(each.own_error):>9}   {_error(each.embedding_error):>23}   {_error(each.error_after):>12}   "
            f"{each.name} ({each.operator})"
            for each in self.steepest
        ]
        return shown


def first_departure(model: onnx.ModelProto, traced: Traced, pixels: NDArray[np.uint8]) -> Departure | None:
    """Finds the first layer of a model that departs from torch.

    Args:
        model: under test, of any precision: `traced.model`, or what was made of it with names of values kept.
        traced: the torch program, and which of its values are which of the model's.
        pixels: (n, size, size, 3) uint8, a few pictures, best those that it did worst on.

    Returns:
        The layer and what stands beside it; None where the embeddings are torch's up to rounding, or where no value of
        the model has a name that torch's program knows.

    Raises:
        ModelError: ONNX Runtime cannot run some part of the model.
    """
    # A batch of one is no example of a batch: programs are traced for two and more.
    pictures = np.ascontiguousarray(pixels if len(pixels) > 1 else np.repeat(pixels, 2, axis=0))
    comparison = _Comparison(model, traced, pictures)
    layers = comparison.run()
    if not layers or layers[-1].error_after < _NOISE:
        return None
    own = [layer.own_error for layer in layers]
    usual = float(np.median([error for error in own if 0 < error < math.inf] or [0.0]))
    # An embedding that is off by more than its length is off altogether, and infinity has no tenth part.
    enough = _MATTERS * min(layers[-1].error_after, 1.0)
    tried = comparison.try_steepest(layers)
    first = next((each for each in tried if each.own_error > _SUDDEN * usual and each.embedding_error > enough), None)
    steepest = sorted(tried, key=lambda each: (-each.embedding_error, -each.own_error))
    return Departure(first or steepest[0], first is not None, usual, tuple(steepest))


@dataclass(frozen=True, slots=True)
class _Part:
    """The operators between a value and the compared ones before it."""

    value: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]


class _Comparison:
    """Runs torch's program and, beside it, the model part by part."""

    def __init__(self, model: onnx.ModelProto, traced: Traced, pixels: NDArray[np.uint8]) -> None:
        self._model = model
        self._program = traced.program
        self._pixels = pixels
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names = _layer_names(traced.program.graph, set(traced.names))
        self._parts = _parts(model, _compared(model, traced))
        self._last_reader = {value: node for node, part in self._parts.items() for value in part.inputs}
        start = model.graph.input[0].name
        self._truth: dict[str, NDArray[Any]] = {start: pixels}
        self._own: dict[str, NDArray[Any]] = {start: pixels}
        # Own error, FX node and value, from torch's inputs, of the layers with the largest own errors.
        self._steepest: list[tuple[float, str, NDArray[Any]]] = []
        # Of the values in `_own`: relative error and cosine.
        self._compared: dict[str, tuple[float, float]] = {start: (0.0, 1.0)}

    def run(self) -> list[Layer]:
        """Layers in the order in which torch computes them."""
        layers: list[Layer] = []

        class Recorder(torch.fx.Interpreter):
            def run_node(recorder, n: torch.fx.Node) -> Any:  # noqa: N805 - the outer self is needed too
                result = super().run_node(n)
                if n.name in self._parts and isinstance(result, torch.Tensor):
                    layer = self._layer(n.name, result.detach().float().cpu().numpy())
                    if layer is not None:
                        layers.append(layer)
                return result

        with torch.no_grad():
            Recorder(self._program.module()).run(torch.from_numpy(self._pixels))
        return layers

    def try_steepest(self, layers: list[Layer]) -> list[Layer]:
        """The layers with the largest own errors, in torch's order, with what each alone does to the embedding."""
        truth = self._embeddings(None, None)
        harm = {
            self._parts[node].value: _compare(self._embeddings(node, value), truth)[0]
            for _, node, value in self._steepest
        }
        return [replace(layer, embedding_error=harm[layer.value]) for layer in layers if layer.value in harm]

    def _layer(self, node: str, truth: NDArray[np.float32]) -> Layer | None:
        """Compares one value; None where the model keeps something else under its name."""
        part = self._parts[node]
        session = self._open(part)
        own = _run(session, part, self._own)
        comparable = own.size == truth.size and own.dtype.kind == "f"
        layer = self._judge(node, session, own, truth) if comparable else None
        self._own[part.value] = own
        self._truth[part.value] = truth.reshape(own.shape) if comparable else own
        self._compared[part.value] = (layer.error_after, layer.cosine_after) if layer else (0.0, 1.0)
        for value in {*part.inputs, part.value} - {self._model.graph.input[0].name}:
            if self._last_reader.get(value, node) == node:
                del self._truth[value], self._own[value], self._compared[value]
        return layer

    def _judge(self, node: str, session: Any, own: NDArray[Any], truth: NDArray[np.float32]) -> Layer:
        part = self._parts[node]
        local = own
        if any(self._truth[value] is not self._own[value] for value in part.inputs):
            # As the model holds them: rounding a value to the model's precision is the deed of the layer that gave it.
            with np.errstate(over="ignore"):
                given = {value: self._truth[value].astype(self._own[value].dtype) for value in part.inputs}
            local = _run(session, part, given)
        own_error = _compare(local, truth)[0]
        self._steepest.append((own_error, node, local))
        self._steepest = sorted(self._steepest, key=lambda each: -each[0])[:_SHOWN]
        error, cosine = _compare(own, truth)
        before = [self._compared[value] for value in part.inputs]
        return Layer(
            name=self._names[node],
            operator=" ".join(dict.fromkeys(each.op_type for each in part.nodes)),
            value=part.value,
            own_error=own_error,
            error_before=max((each[0] for each in before), default=0.0),
            error_after=error,
            cosine_before=min((each[1] for each in before), default=1.0),
            cosine_after=cosine,
        )

    def _embeddings(self, replaced: str | None, value: NDArray[Any] | None) -> NDArray[np.float32]:
        """By torch's program, with another value in place of one node's."""

        class Replacer(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                result = super().run_node(n)
                if n.name != replaced:
                    return result
                return torch.from_numpy(np.asarray(value, np.float32)).reshape(result.shape)

        with torch.no_grad():
            embeddings = Replacer(self._program.module()).run(torch.from_numpy(self._pixels))
        return np.asarray(embeddings.numpy())

    def _open(self, part: _Part) -> Any:
        """A session of one part, for inputs of the types and shapes that the model's own values have."""
        constants = dict.fromkeys(name for node in part.nodes for name in node.input if name in self._constants)
        graph = onnx.helper.make_graph(
            part.nodes,
            "part",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(self._own[name].dtype), list(self._own[name].shape)
                )
                for name in part.inputs
            ],
            [onnx.ValueInfoProto(name=part.value)],
            [self._constants[name] for name in constants],
        )
        model = onnx.helper.make_model(
            graph, ir_version=self._model.ir_version, opset_imports=list(self._model.opset_import)
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # Hundreds of sessions, most of them of one operator: threads that wait for more would be in the way.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(
                model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _cannot_run(part, error) from error


def _run(session: Any, part: _Part, given: dict[str, NDArray[Any]]) -> NDArray[Any]:
    try:
        return np.asarray(session.run([part.value], {name: given[name] for name in part.inputs})[0])
    except Exception as error:
        raise _cannot_run(part, error) from error


def _cannot_run(part: _Part, error: Exception) -> ModelError:
    reason = first_line(error)
    return ModelError(f"ONNX Runtime cannot run the part of the model that gives {part.value}: {reason}")


def _compared(model: onnx.ModelProto, traced: Traced) -> dict[str, str]:
    """FX node to value of the model, in the order of the program, for floating-point values that both compute."""
    produced = {name for node in model.graph.node for name in node.output}
    nodes = list(traced.program.graph.nodes)
    names = dict(traced.names)
    # The exporter gives the last value the name of the output.
    [output] = (node for node in nodes if node.op == "output")
    names[output.args[0][0].name] = model.graph.output[0].name
    taken: set[str] = set()
    compared: dict[str, str] = {}
    for node in nodes:
        value = names.get(node.name, "")
        kind = getattr(node.meta.get("val"), "dtype", None)
        if value in produced and value not in taken and kind is not None and kind.is_floating_point:
            taken.add(value)
            compared[node.name] = value
    return compared


def _parts(model: onnx.ModelProto, compared: dict[str, str]) -> dict[str, _Part]:
    """For each FX node its part of the model, which begins at values compared before it, or at the model's input."""
    producers = {name: position for position, node in enumerate(model.graph.node) for name in node.output if name}
    known = {model.graph.input[0].name}
    parts: dict[str, _Part] = {}
    for node, value in compared.items():
        positions: set[int] = set()
        inputs: dict[str, None] = {}
        pending = [value]
        while pending:
            position = producers[pending.pop()]
            if position in positions:
                continue
            positions.add(position)
            for name in model.graph.node[position].input:
                if name in known:
                    inputs[name] = None
                elif name in producers:
                    pending.append(name)
        parts[node] = _Part(value, tuple(model.graph.node[position] for position in sorted(positions)), tuple(inputs))
        known.add(value)
    return parts


def _compare(value: NDArray[Any], truth: NDArray[np.float32]) -> tuple[float, float]:
    """Relative error and cosine with the truth, where that is finite."""
    wanted = truth.ravel().astype(np.float64)
    given = value.ravel().astype(np.float64)
    finite = np.isfinite(wanted)
    wanted, given = wanted[finite], given[finite]
    if not np.isfinite(given).all():
        return math.inf, 0.0
    length, other = float(np.linalg.norm(wanted)), float(np.linalg.norm(given))
    if length == 0.0:
        return (0.0, 1.0) if other == 0.0 else (math.inf, 0.0)
    cosine = float(wanted @ given) / (length * other) if other else 0.0
    return float(np.linalg.norm(given - wanted)) / length, min(cosine, 1.0)


def _layer_names(graph: torch.fx.Graph, kept: set[str]) -> dict[str, str]:
    """FX node to the name of the layer that it is, with those before it that are no values of the model any more."""
    paths = {node.name: _module_path(node) for node in graph.nodes}
    tops = {path.partition(".")[0] for path in paths.values() if path}
    if len(tops) == 1:
        # What was traced is a wrapper around the network, and only the network's own names mean anything to a reader.
        [top] = tops
        paths = {name: path.removeprefix(top).removeprefix(".") for name, path in paths.items()}
    containers = {path[:end] for path in paths.values() for end, letter in enumerate(path) if letter == "."} | {""}
    names: dict[str, str] = {}
    for node in graph.nodes:
        own = _name(node, paths, containers)
        merged = [_name(each, paths, containers) for each in _merged(node, kept) if paths[each.name] not in containers]
        names[node.name] = " + ".join(dict.fromkeys([*reversed(merged), own]))
    return names


def _merged(node: torch.fx.Node, kept: set[str]) -> Iterable[torch.fx.Node]:
    """Nodes that lead to this one through none that was kept, the nearest first: a convolution to its batch norm."""
    pending = list(node.all_input_nodes)
    seen: set[str] = set()
    while pending:
        each = pending.pop(0)
        if each.op == "call_function" and each.name not in kept and each.name not in seen:
            seen.add(each.name)
            yield each
            pending += each.all_input_nodes


def _name(node: torch.fx.Node, paths: dict[str, str], containers: set[str]) -> str:
    path = paths[node.name]
    if path not in containers:
        return path
    function = _function(node)
    return f"{path}.{function}" if path else function


def _module_path(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    known = [entry[0] for entry in stack.values() if isinstance(entry[0], str) and not entry[0].startswith("_empty")]
    return known[-1] if known else ""


def _function(node: torch.fx.Node) -> str:
    """`softmax` of `aten.softmax.int`; of a choice among several results, what gave them."""
    source = node.args[0] if getattr(node.target, "__name__", "") == "getitem" else node
    target = source.target if isinstance(source, torch.fx.Node) else node.target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet)).strip("_")


def _error(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.1e}"
