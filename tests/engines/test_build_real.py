"""Real engines by the real TensorRT-RTX, which builds without a GPU."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx")
torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from geoinfer.bundle import SHIPPED  # noqa: E402
from geoinfer.engines import build as module  # noqa: E402
from geoinfer.engines.build import BuildOptions, build_engine  # noqa: E402
from geoinfer.engines.flavors import load_flavor  # noqa: E402
from geoinfer.engines.sidecar import check_engine_file, plan_flavor, read_sidecar  # noqa: E402
from geoinfer.errors import DeviceError, ModelError, UsageError  # noqa: E402
from geoinfer.images import Preprocessing  # noqa: E402
from geoinfer.integrity import canonical_json  # noqa: E402
from tests.onnx_models import METADATA, make_model  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


class Embedder(torch.nn.Module):
    """Bytes in, unit rows out, as an exported model is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(name, pretrained=False, num_classes=0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        return torch.nn.functional.normalize(self.backbone(planes), dim=1)


def export(name: str, path: Path, precision: str = "fp32") -> Path:
    torch.manual_seed(0)
    program = torch.onnx.export(
        Embedder(name).eval(), (torch.zeros((2, 224, 224, 3), dtype=torch.uint8),), dynamo=True, opset_version=18,
        input_names=["pixels"], output_names=["embeddings"], dynamic_shapes=({0: torch.export.Dim("batch")},),
        optimize=True, verbose=False,
    )  # fmt: skip
    model = program.model_proto
    dim = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    values = {
        "geoinfer.format": "1", "geoinfer.identity": f"{name}:0", "geoinfer.dim": str(dim),
        "geoinfer.preprocessing": canonical_json(Preprocessing(224).as_dict()), "geoinfer.precision": precision,
    }  # fmt: skip
    onnx.helper.set_model_props(model, values)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, Path] = {"efficientnet_lite2": SHIPPED / "model.onnx"}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = export(name, folder / f"{name}.onnx")
        return made[name]

    return get


class Watched:
    """The real module, keeping what the builder was given: without a GPU a plan cannot be opened and looked at."""

    def __init__(self) -> None:
        self.networks: list[Any] = []
        self.profiles: list[Any] = []
        self.configs: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(trt, name)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        watched = self

        class Builder(trt.Builder):
            def create_network(self, flags: int) -> Any:
                watched.networks.append(super().create_network(flags))
                return watched.networks[-1]

            def create_builder_config(self) -> Any:
                watched.configs.append(super().create_builder_config())
                watched.tf32_by_default = watched.configs[-1].get_flag(trt.BuilderFlag.TF32)
                return watched.configs[-1]

            def create_optimization_profile(self) -> Any:
                watched.profiles.append(super().create_optimization_profile())
                return watched.profiles[-1]

        return Builder(logger)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    from dataclasses import replace

    seen = Watched()
    monkeypatch.setattr(module, "load_flavor", lambda name: replace(load_flavor(name), api=seen))
    return seen


@pytest.mark.parametrize(
    ("name", "size", "dim"),
    [("resnet50", 224, 2048), ("efficientnet_lite2", 260, 1280), ("vit_base_patch16_224", 224, 768)],
)
def test_engines_of_real_models(exported, watched: Watched, tmp_path: Path, name: str, size: int, dim: int) -> None:
    model, out = exported(name), tmp_path / "x.trt"
    lines: list[str] = []
    options = BuildOptions(flavor="tensorrt-rtx", min_batch=1, opt_batch=8, max_batch=32)
    sidecar = build_engine(model, out, options, lines.append)

    # What TensorRT's parser made of the model, and the profile as TensorRT has it.
    (network,), (profile,) = watched.networks, watched.profiles
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    pixels, embeddings = network.get_input(0), network.get_output(0)
    assert (pixels.name, pixels.dtype, tuple(pixels.shape)) == ("pixels", trt.uint8, (-1, size, size, 3))
    assert (embeddings.name, embeddings.dtype) == ("embeddings", trt.float32)
    assert tuple(embeddings.shape)[1:] == (dim,)
    assert [tuple(shape) for shape in profile.get_shape("pixels")] == [(n, size, size, 3) for n in (1, 8, 32)]
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) in (True, False)  # the only mode since 11

    # The plan: its magic, its own length, the version that made it.
    data = out.read_bytes()
    assert data[:4] == b"vtrt"
    assert struct.unpack("<Q", data[16:24]) == (len(data),)
    assert tuple(data[24:28]) == tuple(int(n) for n in trt.__version__.split("."))
    assert plan_flavor(out) == ("tensorrt-rtx", trt.__version__.rpartition(".")[0])
    assert len(data) > 0.9 * model.stat().st_size

    assert read_sidecar(out) == sidecar
    check_engine_file(out, sidecar)
    assert (sidecar.input.shape, sidecar.output.shape) == ((-1, size, size, 3), (-1, dim))
    assert (sidecar.flavor_version, sidecar.portable) == (trt.__version__, True)
    assert sidecar.onnx.name == model.name
    assert lines[0].startswith(f"building with TensorRT-RTX {trt.__version__} for compute capability 8.0, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.trt", "x.trt.json"]


def mask(path: Path) -> int:
    """The compute capabilities of a plan, as its header has them: one bit each, ascending."""
    return int.from_bytes(path.read_bytes()[32:40], "little")


def test_compute_capabilities_reach_the_plan(tmp_path: Path) -> None:
    model = SHIPPED / "model.onnx"  # Turing has no fp32 matrix product, but convolutions
    masks = {}
    for wanted in ((), ("8.0",), ("8.9",), ("12.0",), ("7.5", "8.9")):
        out = tmp_path / "x.trt"
        options = BuildOptions(flavor="tensorrt-rtx", compute_capabilities=wanted)
        sidecar = build_engine(model, out, options, lambda line: None)
        masks[wanted] = mask(out)
        assert sidecar.portable is (not wanted)
        assert sidecar.compute_capabilities == (wanted or ("8.0", "8.6", "8.9", "12.0", "12.1+"))
    single = [masks["8.0",], masks["8.9",], masks["12.0",]]
    assert all(bits.bit_count() == 1 for bits in single)
    assert masks["7.5", "8.9"] == masks["8.9",] | 1
    # The default holds every one of them but Turing.
    assert all(masks[()] & bits for bits in single)
    assert not masks[()] & 1


def test_hopper_is_not_among_them(tmp_path: Path) -> None:
    """Should this fail with a newer TensorRT-RTX, the docs have good news to tell."""
    with pytest.raises(UsageError, match=r"--compute-capability 9\.0: TensorRT-RTX .* builds for 7\.5, 8\.0, 8\.6"):
        build_engine(
            make_model(tmp_path / "tiny.onnx"), tmp_path / "x.trt",
            BuildOptions(flavor="tensorrt-rtx", compute_capabilities=("9.0",)), lambda line: None,
        )  # fmt: skip


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_outputs_type_is_the_models(tmp_path: Path, watched: Watched, kind: int) -> None:
    model = make_model(tmp_path / "tiny.onnx", out_dtype=kind)
    sidecar = build_engine(model, tmp_path / "x.trt", BuildOptions(flavor="tensorrt-rtx"), lambda line: None)
    assert watched.networks[0].get_output(0).dtype == {1: trt.float32, 10: trt.float16}[kind]
    assert sidecar.output.dtype == {1: "float32", 10: "float16"}[kind]


def test_fp32_is_fp32(tmp_path: Path, watched: Watched) -> None:
    build_engine(
        make_model(tmp_path / "tiny.onnx"), tmp_path / "x.trt", BuildOptions(flavor="tensorrt-rtx"), lambda line: None
    )
    assert watched.tf32_by_default
    assert watched.configs[0].get_flag(trt.BuilderFlag.TF32) is False


def test_precision_is_the_graphs_own(tmp_path: Path, watched: Watched) -> None:
    """A matrix product in fp16 stays one, between casts that were written down."""
    source = onnx.load(str(make_model(tmp_path / "tiny.onnx")))
    weights = source.graph.initializer[0]
    half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights).astype(np.float16), "weights")
    source.graph.initializer[0].CopyFrom(half)
    nodes = list(source.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.op_type == "MatMul")
    down = helper.make_node("Cast", ["colour"], ["colour_half"], to=TensorProto.FLOAT16)
    product = helper.make_node("MatMul", ["colour_half", "weights"], ["raw_half"])
    up = helper.make_node("Cast", ["raw_half"], ["raw"], to=TensorProto.FLOAT)
    del source.graph.node[:]
    source.graph.node.extend([*nodes[:at], down, product, up, *nodes[at + 1 :]])
    onnx.save(source, str(tmp_path / "half.onnx"))
    build_engine(tmp_path / "half.onnx", tmp_path / "x.trt", BuildOptions(flavor="tensorrt-rtx"), lambda line: None)
    network = watched.networks[0]
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    (matmul,) = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    assert matmul.get_output(0).dtype == trt.float16


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny.onnx", external=True)
    sidecar = build_engine(model, tmp_path / "x.trt", BuildOptions(flavor="tensorrt-rtx"), lambda line: None)
    assert sidecar.engine.bytes == (tmp_path / "x.trt").stat().st_size
    (tmp_path / "tiny.onnx.data").unlink()
    with pytest.raises(ModelError, match="cannot read the model"):
        build_engine(model, tmp_path / "y.trt", BuildOptions(flavor="tensorrt-rtx"), lambda line: None)


def test_an_operator_that_it_does_not_know(tmp_path: Path) -> None:
    model = onnx.load(str(make_model(tmp_path / "tiny.onnx")))
    model.graph.node[2].op_type = "Gelatine"
    model.opset_import.append(helper.make_opsetid("kitchen", 1))
    model.graph.node[2].domain = "kitchen"
    onnx.save(model, str(tmp_path / "odd.onnx"))
    with pytest.raises(ModelError, match=r"does not know the ONNX operator Gelatine$") as caught:
        build_engine(tmp_path / "odd.onnx", tmp_path / "x.trt", BuildOptions(flavor="tensorrt-rtx"), lambda line: None)
    assert caught.value.hint
    assert not (tmp_path / "x.trt").exists()


def test_an_input_that_tensorrt_cannot_take(tmp_path: Path) -> None:
    """Bytes that are moved twice before they are numbers: the reason is in the sentence."""
    model = onnx.load(str(make_model(tmp_path / "tiny.onnx")))
    model.graph.node.insert(0, helper.make_node("Transpose", ["pixels"], ["same"], perm=[0, 2, 1, 3]))
    model.graph.node.insert(1, helper.make_node("Transpose", ["same"], ["turned"], perm=[0, 2, 1, 3]))
    model.graph.node[2].input[0] = "turned"
    onnx.save(model, str(tmp_path / "odd.onnx"))
    with pytest.raises(ModelError, match=r"cannot read the model at Transpose: .*first input has type UInt8"):
        build_engine(tmp_path / "odd.onnx", tmp_path / "x.trt", BuildOptions(flavor="tensorrt-rtx"), lambda line: None)


def test_damaged_weights(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny.onnx", metadata=METADATA)
    data = model.read_bytes()
    # The graph's own bytes, with its frame left whole: what no reader of frames can notice.
    at = data.index(b"ReduceMean")
    (tmp_path / "bad.onnx").write_bytes(data[:at] + b"\xff" * 10 + data[at + 10 :])
    with pytest.raises(ModelError, match=r"cannot read the model|not an ONNX model"):
        build_engine(tmp_path / "bad.onnx", tmp_path / "x.trt", BuildOptions(flavor="tensorrt-rtx"), lambda line: None)


def test_a_workspace_that_is_too_small(exported, tmp_path: Path) -> None:
    options = BuildOptions(flavor="tensorrt-rtx", workspace_bytes=1 << 20)
    with pytest.raises(ModelError, match="ran out of memory within --workspace") as caught:
        build_engine(exported("efficientnet_lite2"), tmp_path / "x.trt", options, lambda line: None)
    assert "a larger --workspace" in caught.value.hint


def test_rtx_says_of_a_machine_without_a_gpu_what_we_say(tmp_path: Path) -> None:
    """Without a driver the real runtime opens nothing; a message is all that a test can hold it to."""
    from geoinfer.engines.gpu import find_gpu

    try:
        find_gpu()
    except DeviceError:
        pass
    else:
        pytest.skip("there is a GPU")
    out = tmp_path / "x.trt"
    build_engine(make_model(tmp_path / "t.onnx"), out, BuildOptions(flavor="tensorrt-rtx"), lambda line: None)
    logger = module.make_logger(trt)
    assert trt.Runtime(logger).deserialize_cuda_engine(out.read_bytes()) is None
    assert "CUDA" in logger.fault()
