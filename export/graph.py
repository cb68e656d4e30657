"""From a torch network to a canonical ONNX graph: pixels in, unit embeddings out, the same bytes each time."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import onnx.numpy_helper
import torch

from export.messages import first_line
from geoinfer.errors import GeoInferError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from geoinfer.images import Preprocessing

OPSET: Final = 20
"""The first with GELU as one operator.

Measured on ViT-S/16, ONNX Runtime 1.32 on one core and tensorrt-rtx 1.7: opsets 18, 20 and 23 embed equally many
pictures a second within the noise (10.6, 10.8 and 10.7 alone; 9.2, 9.2 and 9.5 by sixteen), because matrix products
take nearly all of it; ONNX Runtime joins GELU and its bias from opset 20 on, TensorRT reads 48 nodes less. From 23 on
attention is one operator, which tensorrt-rtx parses and then cannot build in float32 ("not supported by a dedicated
kernel"), and which TensorRT knows since 10.14 only; as two products around a softmax it is built everywhere. onnxslim
finds nothing more in the graph that is not there by chance, such as a bias of zeros."""

IR_VERSION: Final = 10

MAX_BYTES: Final = 2**31 - 2**20
"""A protobuf holds less than 2 GiB; a MiB of it is left to what is not weights."""

EPSILON: Final = 1e-12
"""Norms below it count as it, so that an embedding of zeros stays zeros."""

_LARGE: Final = 1024


@dataclass(frozen=True, slots=True)
class Traced:
    """A network as a graph, in two forms.

    Attributes:
        model: canonical and float32; `pixels` uint8 (batch, size, size, 3) -> `embeddings` float32 (batch, dim), of
            unit length.
        program: that was translated; takes and gives the same.
        names: of values that are in both: FX node of `program` -> value of `model`.
    """

    model: onnx.ModelProto
    program: torch.export.ExportedProgram
    names: dict[str, str]


def trace(
    network: torch.nn.Module,
    preprocessing: Preprocessing,
    *,
    dim: int,
    metadata: dict[str, str],
    opset: int = OPSET,
    transpose_bytes: bool = False,
) -> Traced:
    """Translates a network, with normalisation of pixels before it and of embeddings after it.

    Args:
        network: (n, 3, size, size) float32 -> (n, dim) float32, not normalised. It is copied, never changed.
        preprocessing: whose mean, std and size the graph has.
        dim: of the embeddings.
        metadata: of the model.
        opset: of the ONNX operators.
        transpose_bytes: make pixels channels-first while they are bytes. ONNX Runtime takes as long either way (0.1 ms
            a picture), and TensorRT cannot transpose bytes; models that were made so keep their bytes by it.

    Raises:
        ModelError: the network has no form in plain ONNX operators without branches, or works at one batch size only.
    """
    graph = _EmbedderGraph(in_float32(network), preprocessing, transpose_bytes=transpose_bytes)
    try:
        exported = _export(graph.eval(), preprocessing.size, opset)
    except GeoInferError:
        raise
    except Exception as error:  # torch's tracer and translators raise errors of many kinds
        raise ModelError(
            f"the network cannot be traced to ONNX: {first_line(error)}",
            hint="an embedder is one chain of operators on tensors, whatever the pictures and however many: no "
            "branches, loops or shapes that depend on them",
        ) from error
    model, names = _canonical(exported.model_proto, size=preprocessing.size, dim=dim, opset=opset, metadata=metadata)
    program = exported.exported_program
    computed = {"pixels"}.union(*(node.output for node in model.graph.node))
    survived = {node.name: names[node.name] for node in program.graph.nodes if names.get(node.name) in computed}
    return Traced(model, program, survived)


def in_float32(network: torch.nn.Module) -> torch.nn.Module:
    """A copy in eval mode and float32 on the CPU. Weights that are so already are shared, not held twice."""
    tensors = (*network.parameters(), *network.buffers())
    fitting = [t for t in tensors if t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point())]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in fitting}).cpu().float().eval()


def weight_bytes(network: torch.nn.Module) -> int:
    """Size of the weights in float32, each counted once however often it is used."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return 4 * sum(tensor.numel() for tensor in tensors.values())


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large constants as further inputs: what checks of types and shapes need, and no more.

    Small ones stay, since shapes depend on them.
    """
    slim = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    slim.graph.name = model.graph.name
    slim.graph.node.extend(model.graph.node)
    slim.graph.input.extend(model.graph.input)
    slim.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) > _LARGE:
            slim.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            slim.graph.initializer.append(tensor)
    return slim


def check_graph(model: onnx.ModelProto) -> None:
    """Raises ModelError if operators, types or shapes do not fit together."""
    try:
        onnx.checker.check_model(without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported graph is not valid ONNX: {first_line(error)}") from error


class _EmbedderGraph(torch.nn.Module):
    """What is traced: (n, size, size, 3) uint8 -> (n, dim) float32 unit rows."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: torch.nn.Module, preprocessing: Preprocessing, *, transpose_bytes: bool) -> None:
        super().__init__()
        self.network = _with_plain_pooling(network)
        self.transpose_bytes = transpose_bytes
        std = np.asarray(preprocessing.std, dtype=np.float64)
        mean = np.asarray(preprocessing.mean, dtype=np.float64)
        # (x / 255 - mean) / std as one multiplication and one addition, rounded to float32 once.
        self.register_buffer("scale", _per_channel(1.0 / (255.0 * std)))
        self.register_buffer("shift", _per_channel(-mean / std))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # Channels first before any arithmetic: a constant of three values along the last axis takes ONNX Runtime off
        # its vectorised path (1.7 ms instead of 0.1 ms a picture).
        if self.transpose_bytes:
            planes = pixels.permute(0, 3, 1, 2).to(torch.float32)
        else:
            planes = pixels.to(torch.float32).permute(0, 3, 1, 2)
        embeddings: torch.Tensor = self.network(planes * self.scale + self.shift)
        norms: torch.Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        return embeddings / norms.clamp_min(EPSILON)


class _GlobalMean(torch.nn.Module):
    """Stands in for `AdaptiveAvgPool2d(1)`, which torch's exporter spells as an indexed copy of computed strides."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = activations.mean((2, 3), keepdim=True)
        return means


def _with_plain_pooling(network: torch.nn.Module) -> torch.nn.Module:
    for name, module in list(network.named_modules()):
        if name and isinstance(module, torch.nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, _GlobalMean())
    return network


def _per_channel(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(1, 3, 1, 1)


def _export(graph: torch.nn.Module, size: int, opset: int) -> torch.onnx.ONNXProgram:
    """The graph as torch's exporter and its optimiser write it: batch norms and padding folded into convolutions."""
    # Two pictures: a batch of one would be taken for a constant.
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with torch.no_grad(), _plain_attention():
        program = torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
        # Left to torch's exporter, the transposition of the keys takes nine nodes that compute shapes.
        program = program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: _attention})
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=["pixels"],
            output_names=["embeddings"],
            optimize=True,
            verbose=False,
        )
    if exported is None:
        raise ModelError("torch exported nothing")
    return exported


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Keeps torch from one operator for all of `MultiheadAttention`, which has no form in ONNX."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` as its documentation defines it, of plain operators.

    Without dropout, as an embedder in eval mode has none.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    # Scaled before the product, as float16 may not hold the product.
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        masks = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masks else scores + attn_mask
    return torch.softmax(scores, dim=-1) @ value


def _canonical(
    traced: onnx.ModelProto, *, size: int, dim: int, opset: int, metadata: dict[str, str]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The same graph, built anew from what it computes alone; and the name in it of each value of `traced`.

    Nothing is copied but operators, attributes and constants, so stack traces, file paths and the exporter's counters
    stay behind; names follow from the position in the graph, so they do not change with the exporter's own.
    """
    if traced.functions or any(imported.domain for imported in traced.opset_import):
        raise ModelError("the backbone needs operators that are not part of ONNX")
    constants = {tensor.name: tensor for tensor in traced.graph.initializer}
    names = {"": "", "pixels": "pixels"}
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    for position, node in enumerate(traced.graph.node):
        name = f"{position:04d}_{node.op_type}"
        for slot, value in enumerate(node.input):
            if value in constants and value not in names:
                names[value] = f"{name}_constant{slot}"
                array = onnx.numpy_helper.to_array(constants[value])
                initializers.append(onnx.numpy_helper.from_array(array, names[value]))
        for slot, value in enumerate(node.output):
            if value:
                names[value] = value if value == "embeddings" else f"{name}_{slot}"
        copied = onnx.NodeProto(name=name, op_type=node.op_type)
        copied.input.extend(names[value] for value in node.input)
        copied.output.extend(names[value] for value in node.output)
        copied.attribute.extend(_canonical_attributes(node))
        nodes.append(copied)

    graph = onnx.helper.make_graph(
        nodes,
        "embedder",
        [onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", size, size, 3])],
        [onnx.helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["batch", dim])],
        initializers,
    )
    model = onnx.helper.make_model(
        graph, producer_name="geoinfer", ir_version=IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", opset)]
    )
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    check_graph(model)
    return model, names


def _canonical_attributes(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    attributes = []
    for attribute in sorted(node.attribute, key=lambda item: item.name):
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise ModelError(f"the backbone branches or loops ({node.op_type}); an embedder is a plain graph")
        copied = onnx.AttributeProto()
        copied.CopyFrom(attribute)
        copied.ClearField("doc_string")
        attributes.append(copied)
    return attributes
