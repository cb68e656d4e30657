from __future__ import annotations

import logging

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from export.graph import trace  # noqa: E402
from export.half import as_a_gpu_rounds, to_half  # noqa: E402
from geoinfer.images import Preprocessing  # noqa: E402
from tests.export.networks import IMAGENET, ClipTower, Tiny, built_by, drawn, randomised, truth, vit  # noqa: E402
from trainer.efficientnet_lite import load_efficientnet_lite  # noqa: E402

pytestmark = pytest.mark.slow

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
PLAIN = Preprocessing(size=8, resize="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def traced(network: torch.nn.Module, dim: int, preprocessing: Preprocessing = IMAGENET, **more: int) -> onnx.ModelProto:
    return trace(network, preprocessing, dim=dim, metadata={"geoinfer.format": "1"}, **more).model


def embed(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], {"pixels": pixels})[0]


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types | {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.einsum("ij,ij->i", a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


LIT = [0, 1, 3, 5]
"""Rows of `drawn(8)` that are not black."""

KINDS = {
    "vit": (vit, 64),
    "clip": (ClipTower, 24),
    "resnet": (lambda: randomised(timm.create_model("test_resnet", num_classes=0)), 96),
    "efficientnet-lite": (lambda: load_efficientnet_lite(0), 1280),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, onnx.ModelProto, onnx.ModelProto]:
    make, dim = KINDS[request.param]
    network = make()
    model = traced(network, dim)
    return network, model, to_half(model, drawn(32))


def test_a_half_model_keeps_close_to_torch_in_any_batch(pair: tuple) -> None:
    network, _, half = pair
    pictures = np.resize(drawn(32), (16, 32, 32, 3))
    expected = truth(network, pictures)
    rounded = as_a_gpu_rounds(half)
    for batch in (1, 2, 3, 16):
        for model in (half, rounded):
            outputs = embed(model, pictures[:batch])
            assert outputs.dtype == np.float32
            assert cosines(outputs, expected[:batch]).min() > 0.9995
            np.testing.assert_allclose(np.linalg.norm(outputs, axis=1), 1.0, atol=1e-6)


def test_what_is_half_and_what_is_not(pair: tuple) -> None:
    _, model, half = pair
    onnx.checker.check_model(half, full_check=True)
    types = types_of(half)
    full = {"LayerNormalization", "Softmax", "ReduceMean", "ReduceL2"}
    for node in half.graph.node:
        floats = {types[value] for value in node.input if types.get(value) in (FLOAT, HALF)}
        if node.op_type in full:
            assert floats == {FLOAT}, node.name
        elif node.op_type in ("Conv", "MatMul", "Gemm"):
            assert floats == {HALF}, node.name
    assert [n.op_type for n in half.graph.node if n.op_type != "Shape"][:5] == [
        "Cast",
        "Transpose",
        "Mul",
        "Add",
        "Cast",
    ]
    assert [n.op_type for n in half.graph.node][-3:] == ["ReduceL2", "Clip", "Div"]
    sizes = [sum(len(tensor.raw_data) for tensor in each.graph.initializer) for each in (half, model)]
    assert sizes[0] < 0.55 * sizes[1]


def test_names_inputs_and_metadata_stay(pair: tuple) -> None:
    _, model, half = pair
    assert {v for n in model.graph.node for v in n.output} <= {v for n in half.graph.node for v in n.output}
    assert half.graph.input == model.graph.input
    assert half.graph.output == model.graph.output
    assert half.metadata_props == model.metadata_props
    assert half.opset_import == model.opset_import


def test_no_value_is_cast_twice_and_none_there_and_back(pair: tuple) -> None:
    _, _, half = pair
    casts = {node.output[0]: node for node in half.graph.node if node.op_type == "Cast"}
    assert len({(node.input[0], node.attribute[0].i) for node in casts.values()}) == len(casts)
    assert not [node.name for node in casts.values() if node.input[0] in casts]


def test_the_same_bytes_each_time(pair: tuple) -> None:
    _, model, half = pair
    assert to_half(model, drawn(32)).SerializeToString(deterministic=True) == half.SerializeToString(deterministic=True)


def test_tensorrt_for_rtx_builds_it_strongly_typed(pair: tuple) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    _, _, half = pair
    assert built_by(trt, half.SerializeToString())[0] == -1


class Layers(torch.nn.Module):
    """The mean colour through two matrices: (n, 3, 8, 8) -> (n, 3)."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        matrix = torch.tensor([[0.9, 0.2, -0.3], [0.1, 1.1, 0.4], [-0.5, 0.3, 0.8]])
        self.first = torch.nn.Parameter(first * matrix)
        self.second = torch.nn.Parameter(second * matrix.T.contiguous())

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return planes.mean((2, 3)) @ self.first @ self.second


def test_rounding_is_that_of_float16_after_each_operator() -> None:
    layers = Layers(1.7, 0.6)
    pictures = drawn(8)[LIT]
    half = to_half(traced(layers, 3, PLAIN))

    values = (pictures.astype(np.float32) / np.float32(255)).mean(axis=(1, 2)).astype(np.float16)
    for matrix in (layers.first, layers.second):
        weights = matrix.detach().numpy().astype(np.float16)
        values = (values.astype(np.float64) @ weights.astype(np.float64)).astype(np.float16)
    expected = values / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)

    np.testing.assert_allclose(embed(as_a_gpu_rounds(half), pictures), expected, atol=1e-6)
    # Why that is needed: on a CPU, ONNX Runtime leaves the rounding out.
    assert np.abs(embed(half, pictures) - expected).max() > 1e-5


def test_an_activation_beyond_half_is_seen_on_a_cpu() -> None:
    layers = Layers(50_000.0, 1e-3)
    pictures = drawn(8)[5:]  # white, which the matrix makes 80,000 of
    half = to_half(traced(layers, 3, PLAIN))
    assert np.isfinite(embed(half, pictures)).all()
    assert not np.isfinite(embed(as_a_gpu_rounds(half), pictures)).all()


def test_an_operator_whose_activations_are_beyond_half_stays_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    layers = Layers(50_000.0, 1e-3)
    pictures = drawn(8)
    model = traced(layers, 3, PLAIN)
    with caplog.at_level(logging.DEBUG, logger="export.half"):
        half = to_half(model, pictures)
    assert "stays in float32" in caplog.text
    assert "on the pictures" in caplog.text
    assert cosines(embed(as_a_gpu_rounds(half), pictures[LIT]), truth(layers, pictures[LIT], PLAIN)).min() > 0.99999


@pytest.mark.parametrize(("scale", "kept"), [(5_000.0, False), (20_000.0, True)])
def test_activations_keep_their_distance_from_the_end_of_half(scale: float, kept: bool) -> None:
    """White makes 1.6 times the scale, and photos yet unseen may make more; the end is at 65504."""
    half = to_half(traced(Layers(scale, 1.0), 3, PLAIN), drawn(8))
    types = types_of(half)
    first = next(node for node in half.graph.node if node.op_type in ("MatMul", "Gemm"))
    assert types[first.output[0]] == (FLOAT if kept else HALF)


@pytest.mark.parametrize(("scale", "said"), [(1e6, "float16 ends at 65504"), (1e-7, "too small for float16")])
def test_weights_that_half_cannot_hold_stay(scale: float, said: str, caplog: pytest.LogCaptureFixture) -> None:
    layers = Layers(scale, 1.0 / scale)
    model = traced(layers, 3, PLAIN)
    with caplog.at_level(logging.DEBUG, logger="export.half"):
        half = to_half(model)
    assert said in caplog.text
    [told] = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert told == f"2 of {len(model.graph.node)} operators stay in float32 because float16 cannot hold their values"
    pictures = drawn(8)[LIT]
    outputs = embed(as_a_gpu_rounds(half), pictures)
    assert cosines(outputs, truth(layers, pictures, PLAIN)).min() > 0.99999


def test_a_converted_model_is_not_changed_itself() -> None:
    model = traced(Tiny(), 8)
    before = model.SerializeToString(deterministic=True)
    to_half(model, drawn(32))
    as_a_gpu_rounds(to_half(model))
    assert model.SerializeToString(deterministic=True) == before


class Decomposed(torch.nn.Module):
    """A root-mean-square norm spelled out: squares of activations in the hundreds do not fit into half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 12, 8, stride=8)
        randomised(self)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        values = 200.0 * self.conv(planes).flatten(2)
        return (values * torch.rsqrt(values.pow(2).mean(1, keepdim=True) + 1e-6)).flatten(1)


def test_a_norm_that_is_spelled_out_stays_in_float32_as_a_whole() -> None:
    network = Decomposed()
    half = to_half(traced(network, 192))
    pictures = drawn(32)
    assert cosines(embed(as_a_gpu_rounds(half), pictures), truth(network, pictures)).min() > 0.9999
    types = types_of(half)
    between = [n for n in half.graph.node if n.op_type in ("Pow", "Sqrt", "ReduceMean", "Reciprocal")]
    assert between
    assert {types[n.output[0]] for n in between} == {FLOAT}
