"""GeoCLIP by our runtime, against the package itself: no weights of CLIP are at hand, so its tower is random."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("huggingface_hub")
pytest.importorskip("onnxscript")
import torch
import transformers

from export import geoclip as export_module
from export.bundle import bundle_lock
from export.commands.geoclip_command import geoclip as command
from export.geoclip import (
    ANSWER,
    CLIP_REPOSITORY,
    CLIP_SHAPE,
    PREPROCESSING,
    GeoClipOptions,
    embed_gallery,
    export_geoclip,
    find_clip,
    load_geoclip,
    weights_digest,
)
from geoinfer import Geolocator
from geoinfer.batch.predict import PredictOptions, run_predict
from geoinfer.bundle import open_bundle
from geoinfer.errors import GeoInferError, InputError, MissingPackageError, ModelError, OutputError, UsageError
from geoinfer.images import load_pixels
from geoinfer.index import open_index
from tests.engines.fakes import put_engine

with warnings.catch_warnings():  # of torch, of what the package does with it
    warnings.simplefilter("ignore")
    geoclip = pytest.importorskip("geoclip")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = sorted((CHECKOUT / "examples" / "photos").glob("*.jpg"))
ROWS = 400
"""Of the gallery, where its size does not matter."""
AMONG_FEW = 1e-3
"""Allowed between probabilities among so few rows: each is some 250 times what it is in the whole gallery."""


TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
"""What `make_clip` has less of than CLIP ViT-L/14."""


@pytest.fixture(scope="module", autouse=True)
def tiny_towers_are_wanted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "CLIP_SHAPE", CLIP_SHAPE | TINY)
        yield


def make_clip(folder: Path, *, projection: int = 768, image: int = 224, seed: int = 0, **vision: object) -> Path:
    """A CLIP of two narrow layers, in the files that Hugging Face keeps one in."""
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(
        projection_dim=projection,
        text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "projection_dim": projection, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 2},
        vision_config={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "patch_size": 14, "projection_dim": projection, "image_size": image} | vision,
    )  # fmt: skip
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        model.visual_projection.weight.mul_(20)  # so that photos differ as much as GeoCLIP's layers expect
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "tiny")


def copy_package(folder: Path) -> Path:
    """The package's files, with the first rows of its gallery alone."""
    original = Path(geoclip.__file__).parent
    shutil.copytree(original / "model" / "weights", folder / "model" / "weights")
    (folder / "model" / "gps_gallery").mkdir()
    with (original / "model" / "gps_gallery" / "coordinates_100K.csv").open() as file:
        rows = [next(file) for _ in range(ROWS + 1)]
    (folder / "model" / "gps_gallery" / "coordinates_100K.csv").write_text("".join(rows))
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's files, to damage."""
    folder = copy_package(tmp_path / "package")
    monkeypatch.setattr(export_module, "package_folder", lambda: folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A bundle of the tiny tower, not to be changed."""
    folder = tmp_path_factory.mktemp("bundle")
    small = copy_package(folder / "package")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "package_folder", lambda: small)
        export_geoclip(folder / "bundle", GeoClipOptions(clip=clip))
    return folder / "bundle"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every attempt to reach a network, and lets none through."""
    attempts: list[str] = []

    def refuse(name):
        def refused(*arguments, **_):
            attempts.append(f"{name} {arguments[1:]}")
            raise OSError(101, "Network is unreachable")

        return refused

    monkeypatch.setattr(socket.socket, "connect", refuse("connect"))
    monkeypatch.setattr(socket.socket, "connect_ex", refuse("connect_ex"))
    monkeypatch.setattr(socket, "create_connection", refuse("create_connection"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse("getaddrinfo"))
    return attempts


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class _Silent:
    def started(self, resumed: int, failed: int) -> None: ...

    def progressed(self, inputs: int, failed: int) -> None: ...

    def writing(self) -> None: ...


def predictions(bundle: Path, photos: list[Path], folder: Path, top: int = 5) -> list[dict]:
    """Rows of `geoinfer predict`, through its own decoding, pipeline and files."""
    listed = folder / "photos.txt"
    listed.write_text("\n".join(map(str, photos)))
    output = folder / "answers.jsonl"
    with Geolocator.open(bundle, device="cpu") as geolocator:
        options = PredictOptions((f"@{listed}",), output, folder / "e.csv", 1, 1, top=top, restart=True)
        run_predict(geolocator, options, _Silent())
    return [json.loads(line) for line in output.read_text().splitlines()]


def check_like(rows: list[dict], theirs: dict[str, tuple[list, list]], *, within: float = 1e-4) -> float:
    """Same coordinates in the same order, probabilities within so much; the largest difference of these."""
    worst = 0.0
    for row in rows:
        places, probabilities = theirs[row["path"]]
        assert row["status"] == "ok"
        found = [(candidate["latitude"], candidate["longitude"]) for candidate in row["candidates"]]
        # Ours are rounded to a tenth of a metre.
        assert found == [(pytest.approx(lat, abs=6e-7), pytest.approx(lon, abs=6e-7)) for lat, lon in places]
        assert (row["latitude"], row["longitude"]) == found[0]
        differences = [
            abs(candidate["probability"] - probability)
            for candidate, probability in zip(row["candidates"], probabilities, strict=True)
        ]
        worst = max(worst, *differences)
    assert worst <= within
    return worst


class _Remembered(torch.nn.Module):
    """The package embeds its gallery on every call; its own numbers are kept from the first."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.kept: torch.Tensor | None = None

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.encoder(coordinates)
        return self.kept


class TestTrueShape:
    """CLIP ViT-L/14 as large as it is, the whole gallery, and real photos; takes some 8 GB and minutes."""

    @pytest.fixture(scope="class")
    def both(self, tmp_path_factory: pytest.TempPathFactory):
        folder = tmp_path_factory.mktemp("geoclip")
        torch.manual_seed(0)
        package = geoclip.GeoCLIP(from_pretrained=True, clip_pretrained=False).eval()
        package.location_encoder = _Remembered(package.location_encoder)
        theirs = {}
        for photo in EXAMPLES:
            places, probabilities = package.predict(str(photo), 5)
            theirs[str(photo)] = (places.tolist(), probabilities.tolist())
        with torch.inference_mode():
            gallery = torch.nn.functional.normalize(package.location_encoder.kept, dim=1).numpy()
        scale = float(package.logit_scale.exp())
        coordinates = package.gps_gallery.numpy().astype(np.float64)
        package.image_encoder.CLIP.save_pretrained(folder / "clip")
        del package
        gc.collect()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export_module, "CLIP_SHAPE", CLIP_SHAPE)
            export_geoclip(folder / "bundle", GeoClipOptions(clip=folder / "clip"))
        shutil.rmtree(folder / "clip")
        gc.collect()
        yield SimpleNamespace(
            bundle=folder / "bundle", theirs=theirs, gallery=gallery, scale=scale, coordinates=coordinates
        )
        shutil.rmtree(folder / "bundle")

    def test_answers_of_the_package(self, both, tmp_path: Path) -> None:
        assert len(EXAMPLES) >= 8
        rows = predictions(both.bundle, EXAMPLES, tmp_path)
        assert len({tuple(row["candidates"][0].values()) for row in rows}) == len(rows)
        print(f"largest difference of a probability: {check_like(rows, both.theirs):.1e}")
        # The random tower tells photos apart, or the order would prove little.
        assert len({row["candidates"][0]["reference"] for row in rows}) >= 3

    def test_the_index_is_the_gallery(self, both) -> None:
        stored = open_index(both.bundle / "index")
        assert stored.manifest.size == len(both.coordinates) == 100_000
        np.testing.assert_array_equal(stored.references.coordinates, both.coordinates)
        assert np.abs(stored.index.vectors - both.gallery).max() < 1e-6
        assert stored.manifest.logit_scale == both.scale
        assert stored.manifest.answer == ANSWER
        assert stored.references.ids[7] == "gallery 7"


class TestAgainstThePackage:
    """The package with a tiny tower, through the same files as a real one."""

    @pytest.fixture
    def theirs(self, clip: Path):
        model = geoclip.GeoCLIP(clip_path=str(clip)).eval()
        model.gps_gallery = model.gps_gallery[:ROWS]
        return model

    def test_answers(self, theirs, bundle: Path, tmp_path: Path) -> None:
        expected = {}
        for photo in EXAMPLES:
            places, probabilities = theirs.predict(str(photo), 5)
            expected[str(photo)] = (places.tolist(), probabilities.tolist())
        check_like(predictions(bundle, EXAMPLES, tmp_path), expected, within=AMONG_FEW)

    def test_a_photo_with_its_orientation_in_the_exif(self, theirs, bundle: Path, tmp_path: Path) -> None:
        """The package looks at it lying on its side; we as the photographer did."""
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(EXAMPLES[0]) as image:
            image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
        with Image.open(tmp_path / "turned.jpg") as image:
            image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
        places, probabilities = theirs.predict(str(tmp_path / "upright.png"), 5)
        turned = str(tmp_path / "turned.jpg")
        check_like(
            predictions(bundle, [tmp_path / "turned.jpg"], tmp_path),
            {turned: (places.tolist(), probabilities.tolist())},
            within=AMONG_FEW,
        )
        assert theirs.predict(turned, 5)[1].tolist() != probabilities.tolist()

    def test_pixels(self, theirs) -> None:
        """Theirs through torchvision, ours through libjpeg's scales and Pillow's crop: the same but for rounding."""
        mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
        for photo in EXAMPLES:
            with Image.open(photo) as image:
                planes = theirs.image_encoder.preprocess_image(image.convert("RGB"))[0].numpy()
            expected = (planes.transpose(1, 2, 0) * std + mean) * 255
            differences = np.abs(load_pixels(bytes(photo), PREPROCESSING) - expected)
            assert differences.mean() < 0.25
            assert differences.max() < 4

    def test_twelve_megapixels(self, theirs, bundle: Path, tmp_path: Path) -> None:
        """Decoded at half scale by us and in full by them, which no answer should show."""
        with Image.open(EXAMPLES[1]) as image:
            large = image.convert("RGB").resize((4032, 3024), Image.Resampling.LANCZOS)
        large.save(tmp_path / "large.jpg", quality=92)
        places, probabilities = theirs.predict(str(tmp_path / "large.jpg"), 5)
        photo = tmp_path / "large.jpg"
        rows = predictions(bundle, [photo], tmp_path)
        check_like(rows, {str(photo): (places.tolist(), probabilities.tolist())}, within=AMONG_FEW)

    def test_probabilities_are_of_the_whole_gallery(self, bundle: Path, tmp_path: Path) -> None:
        (row,) = predictions(bundle, EXAMPLES[:1], tmp_path, top=100)
        shown = math.fsum(candidate["probability"] for candidate in row["candidates"])
        assert 0 < shown < 1 - 1e-6

    def test_what_the_bundle_says(self, bundle: Path) -> None:
        opened = open_bundle(bundle, verify=True)
        assert opened.name == "geoclip"
        assert "MIT" in opened.licences["model.onnx"]
        assert "OpenAI" in opened.licences["model.onnx"]
        assert "MIT" in opened.licences["index"]
        assert f"gallery of {ROWS} coordinates" in opened.description
        assert opened.metrics["index"]["size"] == ROWS
        with Geolocator.open(bundle, device="cpu") as geolocator:
            assert (geolocator.k, geolocator.method) == (1, "top1")
            assert "gallery" in geolocator.notice
            assert not geolocator.calibrated
            assert "not calibrated: give labelled photos" in geolocator.why_not_calibrated
            assert geolocator.embedder.identity.name.startswith("geoclip-clip_vit_l14:")

    def test_the_same_bytes_each_time(self, bundle: Path, package: Path, clip: Path, tmp_path: Path) -> None:
        again = export_geoclip(tmp_path / "again", GeoClipOptions(clip=clip))
        assert again.files == open_bundle(bundle).files
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []

    def test_other_weights_are_another_embedder(self, package: Path, clip: Path, tmp_path: Path) -> None:
        first, same = load_geoclip(clip), load_geoclip(clip)
        other = load_geoclip(make_clip(tmp_path / "other", seed=1))
        assert first.identity == same.identity != other.identity
        assert first.weights_sha256.startswith(first.identity.partition(":")[2])


class TestIdentity:
    def test_the_shape_is_that_of_clip_vit_l_14(self) -> None:
        """By the package, which builds that tower, and by open_clip, which knows OpenAI's."""
        with torch.device("meta"):
            config = geoclip.GeoCLIP(
                from_pretrained=False, clip_pretrained=False
            ).image_encoder.CLIP.vision_model.config
        assert {name: getattr(config, name) for name in CLIP_SHAPE} == CLIP_SHAPE
        open_clip = pytest.importorskip("open_clip")
        theirs = open_clip.get_model_config("ViT-L-14-quickgelu")
        vision = theirs["vision_cfg"]
        assert theirs["quick_gelu"]
        assert CLIP_SHAPE["projection_dim"] == theirs["embed_dim"]
        assert [CLIP_SHAPE[name] for name in ("image_size", "num_hidden_layers", "hidden_size", "patch_size")] == [
            vision[name] for name in ("image_size", "layers", "width", "patch_size")
        ]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("hidden_size", 32),
            ("num_hidden_layers", 1),
            ("num_attention_heads", 4),
            ("patch_size", 16),
            ("hidden_act", "gelu"),
            ("layer_norm_eps", 1e-6),
            ("image_size", 336),
            ("projection_dim", 512),
        ],
    )
    def test_a_field_of_the_configuration_that_differs(
        self, package: Path, clip: Path, tmp_path: Path, name: str, value: object
    ) -> None:
        """The weights stay: some of these fields leave them as they are, and change every answer."""
        folder = tmp_path / "clip"
        shutil.copytree(clip, folder)
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"][name] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=f"says {name} {value!r}; GeoCLIP stands on {CLIP_REPOSITORY}") as caught:
            load_geoclip(folder)
        assert str(folder) in str(caught.value)
        assert "model.safetensors" in caught.value.hint

    def test_what_weights_do_not_show_is_in_the_digest(self, package: Path, clip: Path, tmp_path: Path) -> None:
        first = load_geoclip(clip)
        other = make_clip(tmp_path / "other", hidden_act="gelu")
        assert (other / "model.safetensors").read_bytes() == (clip / "model.safetensors").read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export_module, "CLIP_SHAPE", export_module.CLIP_SHAPE | {"hidden_act": "gelu"})
            assert load_geoclip(other).identity != first.identity

    def test_swapped_tensors_are_other_weights(self) -> None:
        networks = []
        for names in ("ab", "ba", "ab"):
            network = torch.nn.Module()
            for number, name in enumerate(names):
                network.register_parameter(name, torch.nn.Parameter(torch.full((2, 3), float(number))))
            networks.append(network)
        digests = [weights_digest(network, CLIP_SHAPE) for network in networks]
        assert digests[0] == digests[2] != digests[1]
        assert weights_digest(networks[0], CLIP_SHAPE | {"layer_norm_eps": 1e-6}) != digests[0]

    def test_names_count_and_their_order_does_not(self) -> None:
        one, reversed_, renamed = torch.nn.Module(), torch.nn.Module(), torch.nn.Module()
        tensors = {"a": torch.zeros(2), "b": torch.ones(3)}
        for module, names in ((one, "ab"), (reversed_, "ba")):
            for name in names:
                module.register_buffer(name, tensors[name])
        for name in "ab":
            renamed.register_buffer(f"{name}{name}", tensors[name])
        digest = weights_digest(one, CLIP_SHAPE)
        assert weights_digest(reversed_, CLIP_SHAPE) == digest != weights_digest(renamed, CLIP_SHAPE)

    def test_only_what_comes_from_its_repository_is_called_so(
        self, package: Path, clip: Path, cache: Path, tmp_path: Path
    ) -> None:
        snapshot = cache / "models--openai--clip-vit-large-patch14" / "snapshots" / ("0" * 40)
        shutil.copytree(clip, snapshot)
        folder = tmp_path / "mine"
        shutil.copytree(clip, folder)
        assert load_geoclip(snapshot).source.endswith(" on openai/clip-vit-large-patch14")
        named = load_geoclip(folder)
        assert named.source.endswith(" on CLIP of mine")
        assert named.identity == load_geoclip(snapshot).identity


class TestWhereClipComesFrom:
    def test_without_the_flag_the_network_is_not_touched(self, cache: Path, no_network: list[str]) -> None:
        with pytest.raises(
            InputError, match="not in the cache of Hugging Face, and downloads are not allowed"
        ) as caught:
            find_clip(None, allow_download=False)
        assert caught.value.exit_code == 2
        for words in ("--allow-download", "1.7 GB", "--clip FOLDER", "model.safetensors"):
            assert words in caught.value.hint
        assert no_network == []

    def test_nor_by_an_export_from_a_folder(
        self, cache: Path, package: Path, clip: Path, no_network: list[str], tmp_path: Path
    ) -> None:
        export_geoclip(tmp_path / "bundle", GeoClipOptions(clip=clip))
        assert no_network == []

    def test_with_the_flag_it_is_and_failing_is_a_sentence(self, cache: Path, no_network: list[str]) -> None:
        with pytest.raises(InputError, match="cannot be downloaded") as caught:
            find_clip(None, allow_download=True)
        assert no_network
        assert "--clip FOLDER" in caught.value.hint

    def put(self, cache: Path, clip: Path, *names: str) -> Path:
        repository = cache / f"models--{CLIP_REPOSITORY.replace('/', '--')}"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        for name in names:
            shutil.copy(clip / name, snapshot / name)
        return snapshot

    @pytest.mark.parametrize("allowed", [False, True])
    def test_what_the_cache_holds_is_not_fetched(self, cache, clip, no_network, allowed) -> None:
        snapshot = self.put(cache, clip, "config.json", "model.safetensors")
        assert find_clip(None, allow_download=allowed).resolve() == snapshot.resolve()
        assert no_network == []
        load_geoclip(snapshot)

    def test_half_of_it_in_the_cache_is_not_enough(self, cache, clip, no_network) -> None:
        self.put(cache, clip, "config.json")
        with pytest.raises(InputError, match="not in the cache"):
            find_clip(None, allow_download=False)
        assert no_network == []

    @pytest.mark.parametrize("names", [(), ("config.json",), ("model.safetensors",)])
    def test_a_folder_that_lacks_a_file(self, clip: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
        (tmp_path / "f").mkdir()
        for name in names:
            shutil.copy(clip / name, tmp_path / "f" / name)
        with pytest.raises(InputError, match="holds no") as caught:
            find_clip(tmp_path / "f", allow_download=True)
        for name in {"config.json", "model.safetensors"} - set(names):
            assert name in str(caught.value)


class _Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestDamage:
    @pytest.mark.parametrize("fault", ["cut", "text", "empty", "layer missing", "another shape", "no config", "config"])
    def test_of_clip(self, package: Path, clip: Path, tmp_path: Path, fault: str) -> None:
        from safetensors.torch import load_file, save_file

        folder = tmp_path / "clip"
        shutil.copytree(clip, folder)
        weights = folder / "model.safetensors"
        if fault == "cut":
            weights.write_bytes(weights.read_bytes()[:-1000])
        elif fault in ("text", "empty"):
            weights.write_bytes(b"not tensors" if fault == "text" else b"")
        elif fault == "no config":
            (folder / "config.json").write_text("{")
        elif fault == "config":
            (folder / "config.json").write_text('{"model_type": "bert"}')
        else:
            tensors = load_file(weights)
            name = "vision_model.encoder.layers.1.mlp.fc1.weight"
            tensors[name] = tensors[name][:5].clone()
            if fault == "layer missing":
                del tensors[name]
            save_file(tensors, weights, metadata={"format": "pt"})
        with pytest.raises(ModelError) as caught:
            load_geoclip(folder)
        assert str(folder) in str(caught.value)
        assert caught.value.exit_code == 3
        if fault in ("layer missing", "another shape"):
            assert "mlp.fc1.weight" in str(caught.value)

    @pytest.mark.parametrize(
        ("projection", "image", "words"), [(512, 224, "projection_dim 512"), (768, 336, "image_size 336")]
    )
    def test_another_clip(self, package: Path, tmp_path: Path, projection: int, image: int, words: str) -> None:
        with pytest.raises(ModelError, match=f"says {words};"):
            load_geoclip(make_clip(tmp_path / "other", projection=projection, image=image))

    def test_pickles_in_the_folder_are_not_looked_at(self, package: Path, clip: Path, tmp_path: Path) -> None:
        folder = tmp_path / "clip"
        shutil.copytree(clip, folder)
        torch.save(_Trap(tmp_path / "sprung"), folder / "pytorch_model.bin")
        load_geoclip(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError):
            load_geoclip(folder)
        assert not (tmp_path / "sprung").exists()

    FILES = (
        "weights/image_encoder_mlp_weights.pth",
        "weights/location_encoder_weights.pth",
        "weights/logit_scale_weights.pth",
        "gps_gallery/coordinates_100K.csv",
    )

    @pytest.mark.parametrize("fault", ["missing", "empty", "cut", "text"])
    @pytest.mark.parametrize("name", FILES)
    def test_of_the_package(self, package: Path, clip: Path, name: str, fault: str) -> None:
        path = package / "model" / name
        data = path.read_bytes()
        path.unlink()
        if fault != "missing":
            path.write_bytes({"empty": b"", "cut": data[: len(data) // 2 + 1], "text": b"LAT,LONG\nx,y\n"}[fault])
        if fault == "cut" and name.endswith("csv"):
            path.write_text("LAT,LON\n12.5,13.5\n95.0,13.5\n")
        with pytest.raises(ModelError, match="of the package geoclip is missing or damaged") as caught:
            load_geoclip(clip)
            embed_gallery()
        assert str(path) in str(caught.value)
        assert "--force-reinstall" in caught.value.hint

    @pytest.mark.parametrize("name", FILES[:3])
    def test_a_pickle_that_would_run_something(self, package: Path, clip: Path, tmp_path: Path, name: str) -> None:
        torch.save(_Trap(tmp_path / "sprung"), package / "model" / name)
        with pytest.raises(ModelError):
            load_geoclip(clip)
            embed_gallery()
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("scale", [torch.tensor([1.0, 2.0]), torch.tensor(math.nan), {"scale": 1.0}])
    def test_a_scale_that_is_none(self, package: Path, scale) -> None:
        torch.save(scale, package / "model" / "weights" / "logit_scale_weights.pth")
        with pytest.raises(ModelError, match="holds no number"):
            embed_gallery()

    def test_weights_that_are_not_finite(self, package: Path, clip: Path) -> None:
        path = package / "model" / "weights" / "image_encoder_mlp_weights.pth"
        weights = torch.load(path, weights_only=True)
        weights["0.bias"][3] = math.inf
        torch.save(weights, path)
        with pytest.raises(ModelError, match="not finite"):
            load_geoclip(clip)

    def test_no_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "geoclip", None)
        with pytest.raises(MissingPackageError, match="geoclip cannot be imported"):
            export_module.package_folder()


class TestCalibration:
    @pytest.fixture
    def labels(self, tmp_path: Path) -> Path:
        path = tmp_path / "labels.csv"
        rows = [f"{photo.name},{i},{-i}" for i, photo in enumerate(EXAMPLES)]
        path.write_text(
            "path,latitude,longitude\n" + "\n".join([*rows, "gone.jpg,1,2", f"{EXAMPLES[0].name},91,0", ""])
        )
        return path

    def test_on_labelled_photos(self, package: Path, clip: Path, labels: Path, tmp_path: Path) -> None:
        told: list[str] = []
        options = GeoClipOptions(clip=clip, labels=labels, images=EXAMPLES[0].parent)
        bundle = export_geoclip(tmp_path / "bundle", options, told.append)
        stored = open_index(tmp_path / "bundle" / "index")
        held_out = stored.leave_one_out
        assert held_out.places.tolist() == [[i, -i] for i in range(len(EXAMPLES))]
        assert held_out.rows.tolist() == [-1] * len(EXAMPLES)
        # The neighbours are what predicting the same photos finds.
        rows = predictions(tmp_path / "bundle", EXAMPLES, tmp_path)
        best = [row["candidates"][0]["reference"] for row in rows]
        assert [stored.references.ids[i] for i in held_out.ids[:, 0]] == best
        assert any("2 of them cannot be used: 1 missing, 1 bad_coordinates" in line for line in told)
        assert bundle.metrics["leave_one_out"]["count"] == len(EXAMPLES)
        with Geolocator.open(tmp_path / "bundle", device="cpu") as geolocator:
            assert f"calibrated on {len(EXAMPLES)} labelled photos, which are too few" in geolocator.why_not_calibrated

    def test_enough_of_them_bound_the_radius(self, package: Path, clip: Path, tmp_path: Path) -> None:
        rows = [f"{photo},{i},{j}" for j in range(3) for i, photo in enumerate(EXAMPLES)]
        (tmp_path / "l.csv").write_text("path,latitude,longitude\n" + "\n".join(rows))
        export_geoclip(tmp_path / "bundle", GeoClipOptions(clip=clip, labels=tmp_path / "l.csv"))
        with Geolocator.open(tmp_path / "bundle", device="cpu") as geolocator:
            assert geolocator.calibrated
            assert geolocator.locate(EXAMPLES[:1])[0].radius_km > 0

    def test_none_can_be_used(self, package: Path, clip: Path, tmp_path: Path) -> None:
        (tmp_path / "l.csv").write_text("path,latitude,longitude\ngone.jpg,1,2\nlost.jpg,1,2\n")
        with pytest.raises(InputError, match=r"none of the 2 photos can be used"):
            export_geoclip(tmp_path / "bundle", GeoClipOptions(clip=clip, labels=tmp_path / "l.csv"))
        assert not (tmp_path / "bundle").exists()

    @pytest.mark.parametrize("text", ["path,latitude\na.jpg,1\n", "path,latitude,longitude\n"])
    def test_labels_that_are_none_are_found_before_any_work(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(GeoInferError, match=r"l\.csv"):
            export_geoclip(tmp_path / "b", GeoClipOptions(clip=tmp_path / "no such", labels=tmp_path / "l.csv"))


class TestOutput:
    def test_what_is_there_is_not_lost(self, tmp_path: Path, bundle: Path, package: Path, clip: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("mine")
        with pytest.raises(OutputError):
            export_geoclip(tmp_path / "mine", GeoClipOptions(clip=tmp_path / "no such", force=True))
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
        shutil.copytree(bundle, tmp_path / "b")
        before = hashlib.sha256((tmp_path / "b" / "bundle.json").read_bytes()).hexdigest()
        with pytest.raises(OutputError):
            export_geoclip(tmp_path / "b", GeoClipOptions(clip=clip))
        assert hashlib.sha256((tmp_path / "b" / "bundle.json").read_bytes()).hexdigest() == before
        export_geoclip(tmp_path / "b", GeoClipOptions(clip=clip, force=True))

    def test_a_failure_leaves_nothing(self, tmp_path: Path, package: Path, clip: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "out").mkdir()
        with pytest.raises(GeoInferError):
            export_geoclip(tmp_path / "out" / "b", GeoClipOptions(clip=clip, photos=tmp_path / "empty"))
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize(
        "arguments",
        [
            {"precision": "fp8"},
            {"precision": "int8"},
            {"calibration": Path("x")},
            {"images": Path("x")},
            {"min_agreement": 0.5},
            {"max_batch": 0},
        ],
        ids=str,
    )
    def test_options_that_make_no_sense(self, tmp_path: Path, arguments: dict) -> None:
        with pytest.raises(UsageError):
            command(out=tmp_path / "b", **arguments)

    def test_what_a_killed_export_left_is_removed(self, tmp_path: Path, package: Path, clip: Path) -> None:
        left = tmp_path / "out" / ".b.geoclip-tmp"
        left.mkdir(parents=True)
        (left / "model.onnx").write_bytes(b"gigabytes")
        export_geoclip(tmp_path / "out" / "b", GeoClipOptions(clip=clip))
        assert os.listdir(tmp_path / "out") == ["b"]

    def test_unless_another_export_is_at_it(self, tmp_path: Path, package: Path, clip: Path) -> None:
        (tmp_path / ".b.geoclip-tmp").mkdir()
        with bundle_lock(tmp_path / "b"), pytest.raises(OutputError, match="is writing it"):
            export_geoclip(tmp_path / "b", GeoClipOptions(clip=clip))
        assert (tmp_path / ".b.geoclip-tmp").exists()

    def test_ctrl_c(self, tmp_path: Path, clip: Path) -> None:
        program = (
            "import os, signal, sys\n"
            f"sys.argv[1:] = ['geoclip', '--out', {str(tmp_path / 'b')!r}, '--clip', {str(clip)!r}]\n"
            "from export import geoclip\n"
            "def interrupted(*_):\n"
            f"    assert os.path.isdir({str(tmp_path / '.b.geoclip-tmp')!r})\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            "    except BaseException:\n"
            "        pass\n"
            "geoclip.load_geoclip = interrupted\n"
            "from export.__main__ import main\n"
            "main()\n"
        )
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=CHECKOUT
        )
        assert ended.returncode == 130
        assert ended.stderr.endswith("export: interrupted\n")
        assert "Traceback" not in ended.stderr
        assert os.listdir(tmp_path) == []

    def test_no_room_is_told_before_the_long_work(
        self, tmp_path: Path, package: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        monkeypatch.setattr(export_module, "export_onnx", lambda *_: pytest.fail("the long work"))
        with pytest.raises(OutputError, match="the disk has 0 MB left"):
            export_geoclip(tmp_path / "out" / "b", GeoClipOptions(clip=clip))
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_rounded_model_is_held_to_the_gallery(self, tmp_path: Path, package: Path, clip: Path) -> None:
        export_geoclip(tmp_path / "b", GeoClipOptions(clip=clip, precision="fp16"))
        parity = open_bundle(tmp_path / "b").metrics["parity"]
        assert parity["agreement_photos"] == len(EXAMPLES)
        assert parity["agreement"] >= 0.9
        assert os.listdir(tmp_path / "b" / "index")
        assert not (tmp_path / "b" / "gallery").exists()

    def test_engines_of_the_old_bundle_are_told_of(
        self, tmp_path: Path, bundle: Path, package: Path, clip: Path
    ) -> None:
        shutil.copytree(bundle, tmp_path / "b")
        put_engine(tmp_path / "b" / "a.trt")
        told: list[str] = []
        export_geoclip(tmp_path / "b", GeoClipOptions(clip=clip, force=True), told.append)
        assert any(line.startswith("the engine a.trt of the old bundle is left out: the engine") for line in told)

    def test_the_command(self, tmp_path: Path, package: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command(out=tmp_path / "b", clip=clip)
        shown = capsys.readouterr().out
        assert "Not calibrated: radius_km will be the whole Earth; --labels" in shown
        assert f"geoinfer predict PHOTOS --engine {tmp_path / 'b'}" in shown
