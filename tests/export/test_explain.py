from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from export.explain import first_departure  # noqa: E402
from export.graph import Traced, trace  # noqa: E402
from export.pictures import gather_pictures  # noqa: E402
from geoinfer.images import Preprocessing  # noqa: E402

pytestmark = pytest.mark.slow

PREPROCESSING = Preprocessing(size=64)
EXAMPLES = Path(__file__).parents[2] / "examples" / "photos"


def traced_of(name: str, **options: object) -> Traced:
    torch.manual_seed(7)
    network = timm.create_model(name, num_classes=0, **options).eval()
    with torch.no_grad():
        # Fresh batch norms do nothing, or switch their branch off; a fresh layer norm at the end only scales, which the
        # embedding's own norm takes back.
        for module in network.modules():
            if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
        dim = network(torch.zeros(1, 3, 64, 64)).shape[1]
    return trace(network, PREPROCESSING, dim=dim, metadata={})


@pytest.fixture(scope="module")
def vit() -> Traced:
    return traced_of("test_vit", img_size=64)


@pytest.fixture(scope="module")
def resnet() -> Traced:
    return traced_of("test_resnet")


@pytest.fixture(scope="module")
def efficientnet() -> Traced:
    return traced_of("test_efficientnet")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return gather_pictures(EXAMPLES, PREPROCESSING, at_least=3).pixels[:3]


def node_of(traced: Traced, module: str, function: str) -> onnx.NodeProto:
    """The operator in which what torch computes in `module` by `function` ends."""
    for node in traced.program.graph.nodes:
        paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        if paths and paths[-1].partition(".")[2] == module and function in str(node.target):
            for user in (node, *node.users, *(second for first in node.users for second in first.users)):
                if user.name in traced.names:
                    [found] = [each for each in traced.model.graph.node if traced.names[user.name] in each.output]
                    return found
    raise AssertionError(f"no {function} in {module}")


def copy_of(traced: Traced) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(traced.model)
    return model


def weight_before(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """The constant of most numbers among those that lead to a value without another value between, or one."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    [node] = [each for each in model.graph.node if name in each.output]
    near = list(node.input)
    for each in model.graph.node:
        if set(each.output) & set(node.input) and each.op_type == "MatMul":
            near += each.input
    return max((constants[each] for each in near if each in constants), key=lambda tensor: math.prod(tensor.dims))


def perturb(model: onnx.ModelProto, tensor: onnx.TensorProto, by: float) -> None:
    array = onnx.numpy_helper.to_array(tensor).copy()
    noise = np.random.default_rng(3).normal(size=array.shape)
    array += by * np.linalg.norm(array) / np.linalg.norm(noise) * noise.astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize("kind", ["vit", "resnet", "efficientnet"])
def test_a_faithful_model_departs_nowhere(kind: str, pixels: np.ndarray, request: pytest.FixtureRequest) -> None:
    traced = request.getfixturevalue(kind)
    assert first_departure(traced.model, traced, pixels) is None
    assert first_departure(traced.model, traced, pixels[:1]) is None


@pytest.mark.parametrize(
    ("kind", "module", "function", "size"),
    [
        ("vit", "patch_embed.proj", "conv2d", 0.02),
        ("vit", "blocks.0.attn.qkv", "linear", 0.3),
        ("vit", "blocks.2.mlp.fc1", "linear", 0.02),
        ("vit", "blocks.5.mlp.fc2", "linear", 0.3),
        ("resnet", "layer1.0.conv2", "conv2d", 0.02),
        ("resnet", "layer3.0.conv1", "conv2d", 0.3),
        ("efficientnet", "blocks.3.0.conv_dw", "conv2d", 0.02),
        ("efficientnet", "blocks.3.0.se.conv_reduce", "conv2d", 0.3),
        ("efficientnet", "conv_head", "conv2d", 0.02),
    ],
)
def test_a_changed_weight_is_found(
    kind: str, module: str, function: str, size: float, pixels: np.ndarray, request: pytest.FixtureRequest
) -> None:
    traced = request.getfixturevalue(kind)
    model = copy_of(traced)
    perturb(model, weight_before(model, node_of(traced, module, function).output[0]), size)

    departure = first_departure(model, traced, pixels)

    assert departure is not None
    assert departure.sudden
    assert module in departure.layer.name.split(" + ")
    assert departure.layer is departure.steepest[0]
    assert departure.layer.error_before < 1e-5 < size / 20 < departure.layer.error_after
    assert departure.layer.cosine_before > 0.9999999 > departure.layer.cosine_after
    assert departure.layer.name in departure.lines()[0]


@pytest.mark.parametrize("module", ["blocks.1.norm1", "blocks.4.norm2", "norm"])
def test_a_wrong_epsilon_is_found(vit: Traced, module: str, pixels: np.ndarray) -> None:
    model = copy_of(vit)
    name = node_of(vit, module, "layer_norm").name
    [node] = [each for each in model.graph.node if each.name == name]
    [epsilon] = [each for each in node.attribute if each.name == "epsilon"]
    epsilon.f = 0.05

    departure = first_departure(model, vit, pixels)

    assert departure is not None
    assert departure.sudden
    assert (departure.layer.name, departure.layer.operator) == (module, "LayerNormalization")


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every float32 in float16, but for the casts at both ends: what a careless conversion does."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for node in half.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
            assert attribute.type != onnx.AttributeProto.TENSOR
        for slot, name in enumerate(node.output):
            if name == "embeddings":
                node.output[slot] = "embeddings_half"
    cast = onnx.helper.make_node("Cast", ["embeddings_half"], ["embeddings"], to=onnx.TensorProto.FLOAT)
    half.graph.node.append(cast)
    return half


def test_an_overflow_of_float16_is_found(pixels: np.ndarray) -> None:
    """Weights so large that only float32 holds what they give; the layer after them undoes it."""
    torch.manual_seed(7)
    network = timm.create_model("test_vit", img_size=64, num_classes=0).eval()
    with torch.no_grad():
        # Doubling the rest of a branch back to its own size would change nothing for float32.
        network.blocks[3].mlp.fc1.weight *= 2e5
        network.blocks[3].mlp.fc2.weight /= 2e5
    traced = trace(network, PREPROCESSING, dim=64, metadata={})

    departure = first_departure(in_half(traced.model), traced, pixels)

    assert departure is not None
    assert departure.sudden
    assert departure.layer.name == "blocks.3.mlp.fc1"
    assert departure.layer.own_error == math.inf
    assert math.isfinite(departure.layer.error_before)
    assert "infinite" in departure.lines()[0]


def test_float16_alone_does_not_hide_a_changed_weight(vit: Traced, pixels: np.ndarray) -> None:
    """Everything is off by float16's rounding; one layer is off by more."""
    model = copy_of(vit)
    perturb(model, weight_before(model, node_of(vit, "blocks.4.attn.proj", "linear").output[0]), 0.1)

    departure = first_departure(in_half(model), vit, pixels)

    assert departure is not None
    assert departure.sudden
    assert departure.layer.name == "blocks.4.attn.proj"
    assert departure.layer.error_before > 1e-4


def test_an_error_without_consequence_is_no_departure(vit: Traced, pixels: np.ndarray) -> None:
    """A fresh class token is a millionth, where float16 has no digits left; nothing comes of it."""
    departure = first_departure(in_half(vit.model), vit, pixels)

    assert departure is not None
    assert not departure.sudden
    assert departure.lines()[0].startswith("no layer stands out")
    [token] = [layer for layer in departure.steepest if layer.name == "expand"]
    assert token.own_error == max(layer.own_error for layer in departure.steepest) > 10 * departure.usual_error
    assert token.embedding_error < 1e-4
    harm = [layer.embedding_error for layer in departure.steepest]
    assert harm == sorted(harm, reverse=True)
    assert departure.layer is departure.steepest[0]
    assert len(departure.lines()) == 3 + len(departure.steepest)


def test_the_figures_are_those_of_the_whole_model(vit: Traced, pixels: np.ndarray) -> None:
    """Part by part the model must compute what it computes in one piece."""
    import onnxruntime

    model = copy_of(vit)
    perturb(model, weight_before(model, node_of(vit, "blocks.2.mlp.fc1", "linear").output[0]), 0.3)
    departure = first_departure(model, vit, pixels)
    assert departure is not None
    value = departure.layer.value
    model.graph.output.append(onnx.ValueInfoProto(name=value))
    vit_outputs = copy_of(vit)
    vit_outputs.graph.output.append(onnx.ValueInfoProto(name=value))
    given, wanted = (
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        .run([value], {"pixels": pixels})[0]
        .astype(np.float64)
        for each in (model, vit_outputs)
    )

    assert departure.layer.error_after == pytest.approx(
        np.linalg.norm(given - wanted) / np.linalg.norm(wanted), rel=1e-3
    )
    assert departure.layer.cosine_after == pytest.approx(
        (given * wanted).sum() / np.linalg.norm(given) / np.linalg.norm(wanted), abs=1e-6
    )


def test_a_value_that_is_something_else_by_now_is_passed_over(vit: Traced, pixels: np.ndarray) -> None:
    """A conversion that reused a name for another tensor must not hide the fault behind it."""
    model = copy_of(vit)
    perturb(model, weight_before(model, node_of(vit, "blocks.3.mlp.fc1", "linear").output[0]), 0.3)
    names = dict(vit.names)
    names["softmax"], names["add_1"] = names["add_1"], names["softmax"]
    departure = first_departure(model, Traced(vit.model, vit.program, names), pixels)

    assert departure is not None
    assert departure.layer.name == "blocks.3.mlp.fc1"
