from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from export.graph import OPSET, in_float32, trace, weight_bytes, without_weights  # noqa: E402
from geoinfer.errors import ModelError  # noqa: E402
from tests.export.networks import IMAGENET, ClipTower, Tiny, built_by, drawn, randomised, truth, vit  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from export.graph import Traced
    from geoinfer.images import Preprocessing

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]


class Attending(torch.nn.Module):
    """Patches of 8 pixels that attend to each other in one of the ways that torch's attention offers."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 3 * 4 * 6, 8, stride=8)
        self.options = options
        randomised(self)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        query, key, value = self.patches(planes).flatten(2).unflatten(1, (3, 4, 6)).transpose(3, 4).unbind(1)
        if self.options.get("enable_gqa"):
            key, value = key[:, :2], value[:, :2]
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, **self.options)
        return attended.flatten(1)


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    allowed = torch.rand((16, 16), generator=generator) > 0.4
    allowed.fill_diagonal_(True)
    return allowed, torch.randn((4, 16, 16), generator=generator)


def traced(network: torch.nn.Module, dim: int, preprocessing: Preprocessing = IMAGENET, **options: object) -> Traced:
    return trace(network, preprocessing, dim=dim, metadata={"geoinfer.format": "1"}, **options)


def embed(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], {"pixels": pixels})[0]


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "vit": (vit, 64),
    "clip": (ClipTower, 24),
    "convolutions": (lambda: randomised(Tiny()), 8),
    "resnet": (lambda: randomised(timm.create_model("test_resnet", num_classes=0)), 96),
    "convnext": (lambda: randomised(timm.create_model("test_convnext", num_classes=0)), 64),
    "plain attention": (Attending, 384),
    "causal attention": (lambda: Attending(is_causal=True), 384),
    "masked attention": (lambda: Attending(attn_mask=masks()[0]), 384),
    "biased attention": (lambda: Attending(attn_mask=masks()[1]), 384),
    "scaled attention": (lambda: Attending(scale=0.8), 384),
    "grouped attention": (lambda: Attending(enable_gqa=True), 384),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_any_batch_gives_what_torch_gives(kind: str) -> None:
    make, dim = NETWORKS[kind]
    network = make()
    model = traced(network, dim).model

    pictures = np.resize(drawn(32), (17, 32, 32, 3))
    expected = truth(network, pictures)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 3, 16, 17):
        outputs = session.run(["embeddings"], {"pixels": pictures[:batch]})[0]
        assert outputs.dtype == np.float32
        np.testing.assert_allclose(outputs, expected[:batch], atol=2e-5)


def test_a_transformer_is_made_of_whole_operators() -> None:
    graph = traced(vit(), 64).model.graph
    kinds = Counter(node.op_type for node in graph.node)
    blocks = 6
    assert kinds["Gelu"] == kinds["Softmax"] == blocks
    assert kinds["LayerNormalization"] == 2 * blocks + 1
    assert "Erf" not in kinds
    assert kinds["MatMul"] == 6 * blocks
    assert kinds["Shape"] <= 1  # of the batch, for the class token
    assert [node.op_type for node in graph.node if node.op_type != "Shape"][:5] == [
        "Cast", "Transpose", "Mul", "Add", "Conv",
    ]  # fmt: skip
    assert [node.op_type for node in graph.node][-3:] == ["ReduceL2", "Clip", "Div"]


def test_bytes_are_transposed_where_that_is_asked_for() -> None:
    graph = traced(Tiny(), 8, opset=18, transpose_bytes=True).model.graph
    assert [node.op_type for node in graph.node][:4] == ["Transpose", "Cast", "Mul", "Add"]


def test_opset_inputs_outputs_and_metadata() -> None:
    model = traced(Tiny(), 8).model
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert traced(Tiny(), 8, opset=18).model.opset_import[0].version == 18
    [taken], [given] = model.graph.input, model.graph.output
    assert (taken.name, taken.type.tensor_type.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert (given.name, given.type.tensor_type.elem_type) == ("embeddings", onnx.TensorProto.FLOAT)
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (taken, given)]
    assert shapes == [["batch", 32, 32, 3], ["batch", 8]]
    assert {entry.key: entry.value for entry in model.metadata_props} == {"geoinfer.format": "1"}


def test_names_lead_from_torchs_values_to_the_models() -> None:
    network = vit()
    result = traced(network, 64)
    values = {value for node in result.model.graph.node for value in node.output} | {"pixels"}
    assert set(result.names.values()) <= values
    assert set(result.names) <= {node.name for node in result.program.graph.nodes}
    assert len(result.names) > 0.5 * len(result.model.graph.node)

    # What torch computes under a name is what the model computes under its counterpart.
    softmax = [name for name in result.names if "softmax" in name]
    assert len(softmax) == 6
    seen: dict[str, np.ndarray] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.name in softmax:
                seen[n.name] = value.numpy()
            return value

    pictures = drawn(32)
    with torch.inference_mode():
        Recorder(result.program.module()).run(torch.from_numpy(pictures))
    probe = onnx.ModelProto()
    probe.CopyFrom(result.model)
    for name in softmax:
        probe.graph.output.append(
            onnx.helper.make_tensor_value_info(result.names[name], onnx.TensorProto.FLOAT, [None] * 4)
        )
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run([result.names[name] for name in softmax], {"pixels": pictures})
    for name, output in zip(softmax, outputs, strict=True):
        np.testing.assert_allclose(output, seen[name], atol=1e-5)


def test_the_same_network_gives_the_same_bytes_in_two_processes() -> None:
    program = (
        "import hashlib\nfrom export.graph import trace\nfrom tests.export.networks import IMAGENET, ClipTower\n"
        "model = trace(ClipTower(), IMAGENET, dim=24, metadata={'b': '1', 'a': '2'}).model\n"
        "print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())"
    )
    search = os.pathsep.join([str(CHECKOUT), *(str(Path(p).resolve()) for p in sys.path if p)])
    environment = os.environ | {"PYTHONHASHSEED": "17", "PYTHONPATH": search}
    other = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout.split()[-1]

    model = trace(ClipTower(), IMAGENET, dim=24, metadata={"a": "2", "b": "1"}).model
    data = model.SerializeToString(deterministic=True)
    assert hashlib.sha256(data).hexdigest() == other
    assert str(CHECKOUT).encode() not in data
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


class Branching(Tiny):
    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return super().forward(planes if planes.mean() > 0 else -planes)


class Conditional(Tiny):
    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(planes)
        return torch.cond(outputs.sum() > 0, torch.sin, torch.cos, (outputs,))


class OneBatchSize(Tiny):
    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return super().forward(planes).reshape(2, 8)


@pytest.mark.parametrize("network", [Branching, Conditional, OneBatchSize])
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_graph_is_refused(network: type[Tiny]) -> None:
    with pytest.raises(ModelError) as caught:
        traced(network(), 8)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 30


def test_the_network_is_left_as_it_was() -> None:
    network = Tiny().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    traced(network, 8)
    assert network.training
    assert isinstance(network.pool, torch.nn.AdaptiveAvgPool2d)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_that_fit_are_shared_and_others_converted() -> None:
    network = Tiny().train()
    shared = in_float32(network)
    assert not shared.training
    assert network.training
    assert shared.conv.weight.data_ptr() == network.conv.weight.data_ptr()

    half = Tiny().half()
    converted = in_float32(half)
    assert converted.conv.weight.dtype == torch.float32
    assert half.conv.weight.dtype == torch.float16
    assert converted.norm.running_var.dtype == torch.float32


def test_weights_are_counted_once_and_in_float32() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10, bias=False))
    assert weight_bytes(network) == 800
    network[1].weight = network[0].weight
    assert weight_bytes(network) == 400
    assert weight_bytes(network.half()) == 400


def test_a_graph_without_weights_is_small_and_infers_the_same_shapes() -> None:
    model = traced(ClipTower(), 24).model
    slim = without_weights(model)
    assert len(slim.SerializeToString()) < 0.5 * len(model.SerializeToString())
    shapes = [
        {value.name: value.type for value in onnx.shape_inference.infer_shapes(each, data_prop=True).graph.value_info}
        for each in (model, slim)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", ["vit", "clip", "resnet"])
def test_tensorrt_for_rtx_builds_it(kind: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    make, dim = NETWORKS[kind]
    model = traced(make(), dim).model
    assert built_by(trt, model.SerializeToString()) == (-1, dim)
