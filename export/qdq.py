"""Quantisation as a pair of operators: where `QuantizeLinear` and `DequantizeLinear` stand, and with which scales.

ONNX Runtime's own quantiser measures the ranges. Its placing is not used, for it hands quantised activations to layers
that are left in float as well; ONNX Runtime takes such a layer, between a `DequantizeLinear` and a `QuantizeLinear`,
for one that was forgotten, and quantises its weights when the model is loaded, with one scale for all channels. That
took EfficientNet-Lite2 from a cosine of 0.96 to 0.89 by *not* quantising its most sensitive layer. Here a layer in
float reads values that never were quantised.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.layers import Layer, open_session, weighted_layers, with_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from numpy.typing import NDArray

Target = Literal["any", "cpu"]
Calibration = Literal["minmax", "percentile"]

PERCENTILE: Final = 99.99
"""Of the values of a tensor that a clipped range holds."""

_BINS: Final = 2048
_BIAS_STEPS: Final = float(2**30)
_CLIPPING: Final = ("Relu", "Clip")


@dataclass(frozen=True, slots=True)
class Placement:
    """Which layers compute in int8, and which values are quantised for it.

    Attributes:
        layers: that are quantised, in the order of the graph.
        values: activations that get a pair of operators, in the order of the graph.
        unquantised: names of the layers that read values as they were before quantisation.
    """

    layers: tuple[Layer, ...]
    values: tuple[str, ...]
    unquantised: frozenset[str]


def quantisable_layers(model: onnx.ModelProto, target: Target) -> list[Layer]:
    """The layers that gain from int8, in the order of the graph.

    ONNX Runtime has no `Gemm` from int8 to float with a bias in float; it is left to the small head that it mostly is.
    """
    return [layer for layer in weighted_layers(model) if target == "any" or layer.operator != "Gemm"]


def place(model: onnx.ModelProto, quantised: Collection[str], target: Target) -> Placement:
    """Decides where the pairs stand.

    Every quantised layer reads a quantised value. For the CPU a convolution must write one too, behind the clipping
    activation that may follow it: ONNX Runtime has no convolution from int8 to float. One whose result is read by a
    layer in float would gain nothing, and computes in float as well, though on quantised values, so that what comes
    before it can be int8.

    Args:
        model: canonical, float32.
        quantised: names of the layers to quantise, of `quantisable_layers`.
        target: `any` or `cpu`.
    """
    layers = weighted_layers(model)
    unquantised = frozenset(layer.name for layer in layers) - set(quantised)
    chosen = [layer for layer in layers if layer.name in quantised]
    values = set()
    if target == "cpu":
        readers = _readers(model)
        results = {layer.name: _behind_clipping(layer.result, readers) for layer in chosen if layer.operator == "Conv"}
        feeding = {
            name for name, value in results.items() if any(node.name in unquantised for node in readers.get(value, ()))
        }
        chosen = [layer for layer in chosen if layer.name not in feeding]
        values = {value for name, value in results.items() if name not in feeding}
    values |= {layer.source for layer in chosen}
    return Placement(tuple(chosen), _in_order(model, values), unquantised)


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    return readers


def _behind_clipping(value: str, readers: Mapping[str, list[onnx.NodeProto]]) -> str:
    while len(readers.get(value, ())) == 1 and readers[value][0].op_type in _CLIPPING:
        value = readers[value][0].output[0]
    return value


def _in_order(model: onnx.ModelProto, values: set[str]) -> tuple[str, ...]:
    given = {output.name for output in model.graph.output}
    return tuple(name for node in model.graph.node for name in node.output if name in values and name not in given)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Smallest and largest value to represent, by value of the graph, under each way of calibrating."""

    minmax: dict[str, tuple[float, float]]
    percentile: dict[str, tuple[float, float]]

    def get(self, calibration: Calibration) -> dict[str, tuple[float, float]]:
        """The ranges of one way of calibrating."""
        return self.minmax if calibration == "minmax" else self.percentile


def measure_ranges(
    model: onnx.ModelProto,
    values: Iterable[str],
    pixels: NDArray[np.uint8],
    tick: Callable[[int], None] | None = None,
) -> Ranges:
    """Runs the float model, one picture at a time, so that memory does not depend on how many there are.

    Args:
        model: canonical, float32.
        values: of the graph.
        pixels: (n, size, size, 3) uint8.
        tick: called with the number of pictures done.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    names = list(values)
    session = open_session(with_outputs(model, names))
    collector = HistogramCollector(
        method="percentile",
        symmetric=False,
        num_bins=_BINS,
        num_quantized_bins=_BINS,
        percentile=PERCENTILE,
        scenario="same",
    )
    for position, picture in enumerate(pixels):
        results = session.run(names, {"pixels": picture[None]})
        collector.collect_value(dict(zip(names, results, strict=True)))
        if tick is not None:
            tick(position + 1)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its settings
        clipped = collector.compute_percentile()
    histograms = collector.get_histogram_dict()
    return Ranges(
        minmax={name: (float(histograms[name][2]), float(histograms[name][3])) for name in names},
        percentile={name: (float(clipped[name][0]), float(clipped[name][1])) for name in names},
    )


def insert_pairs(
    model: onnx.ModelProto,
    placement: Placement,
    ranges: Mapping[str, tuple[float, float]],
    target: Target,
) -> onnx.ModelProto:
    """A copy of the model that computes the layers of `placement` in int8, and all others from values in float.

    Weights are int8, symmetric, with a scale for each output channel. Activations are int8 and symmetric for `any`,
    as TensorRT wants them, uint8 with a zero point for `cpu`. Biases stay in float: TensorRT takes no others, and ONNX
    Runtime quantises them when it loads the model. All values of the float model keep their names.

    Args:
        model: canonical, float32.
        placement: from `place`.
        ranges: by value, at least those of `placement`.
        target: `any` or `cpu`.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants: list[onnx.TensorProto] = []
    scales: dict[str, float] = {}
    pairs: dict[str, list[onnx.NodeProto]] = {}
    for value in placement.values:
        scale, zero = _activation_scale(*ranges[value], target)
        scales[value] = float(scale)
        constants += [numpy_helper.from_array(scale, f"{value}_scale"), numpy_helper.from_array(zero, f"{value}_zero")]
        arguments = [f"{value}_scale", f"{value}_zero"]
        pairs[value] = [
            helper.make_node("QuantizeLinear", [value, *arguments], [f"{value}_int8"], f"{value}_quantise"),
            helper.make_node(
                "DequantizeLinear", [f"{value}_int8", *arguments], [f"{value}_dequantised"], f"{value}_dequantise"
            ),
        ]
    chosen = {layer.name: layer for layer in placement.layers}
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        if node.name not in placement.unquantised:
            for slot, name in enumerate(node.input):
                if name in pairs:
                    node.input[slot] = f"{name}_dequantised"
        if node.name in chosen:
            layer = chosen[node.name]
            bias = weights[layer.bias] if layer.bias else None
            prefix = f"{layer.name}_weight"
            tensors = _quantise_weights(weights[layer.weight], layer.axis, bias, scales[layer.source])
            names = [f"{prefix}_int8", f"{prefix}_scale", f"{prefix}_zero"]
            constants += [numpy_helper.from_array(array, name) for array, name in zip(tensors, names, strict=True)]
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", names, [f"{prefix}_dequantised"], f"{prefix}_dequantise", axis=layer.axis
                )
            )
            node.input[1] = f"{prefix}_dequantised"
        nodes.append(node)
        for name in node.output:
            nodes.extend(pairs.get(name, ()))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used] + constants
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del made.graph.node[:]
    del made.graph.initializer[:]
    made.graph.node.extend(copied)
    made.graph.initializer.extend(kept)
    return made


def _activation_scale(lowest: float, highest: float, target: Target) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Scale and zero point of a range, which is widened to hold zero, so that zero stays zero."""
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    if target == "any":
        scale = max(-lowest, highest) / 127.0
        return np.array(scale if scale > 0 else 1.0, np.float32), np.array(0, np.int8)
    scale = (highest - lowest) / 255.0
    if scale <= 0:
        return np.array(1.0, np.float32), np.array(0, np.uint8)
    return np.array(scale, np.float32), np.array(np.clip(np.rint(-lowest / scale), 0, 255), np.uint8)


def _quantise_weights(
    weights: NDArray[np.float32], axis: int, bias: NDArray[np.float32] | None, source_scale: float
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]]:
    """Symmetric int8 by output channel: (weights, scales, zero points)."""
    others = tuple(position for position in range(weights.ndim) if position != axis)
    scales = np.abs(weights).max(axis=others).astype(np.float64) / 127.0
    if bias is not None:
        # ONNX Runtime rounds the bias to int32 in steps of both scales: nearly empty channels must not overflow it.
        scales = np.maximum(scales, np.abs(bias.astype(np.float64)).ravel() / (source_scale * _BIAS_STEPS))
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    steps = np.clip(np.rint(weights / scales.reshape(shape)), -127, 127).astype(np.int8)
    return steps, scales, np.zeros(len(scales), np.int8)
