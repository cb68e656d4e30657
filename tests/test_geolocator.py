from __future__ import annotations

import csv
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")

from geoinfer import Geolocator
from geoinfer import bundle as bundles
from geoinfer.answer import METHODS, Answer
from geoinfer.backends import open_embedder
from geoinfer.bundle import SHIPPED, write_bundle_manifest
from geoinfer.errors import DeviceError, GeoInferError, InputError, MismatchError, ModelError, UsageError
from geoinfer.images import Preprocessing
from geoinfer.index import References, write_index
from tests.backends.fake_tensorrt import Machine, pretend, write_engine
from tests.onnx_models import METADATA, SIZE, expected, make_model

HALF_EARTH_KM = math.pi * 6371.0


def make_index(folder: Path, model: Path, pixels: np.ndarray, places: np.ndarray) -> Path:
    count = len(places)
    digests = np.random.default_rng(5).integers(0, 256, (2, count, 32), dtype=np.uint8)
    with open_embedder(model, "cpu") as embedder:
        write_index(
            folder,
            expected(pixels).astype(np.float32),
            References(
                [f"r{i}" for i in range(count)], places, [f"s{i}" for i in range(count)], [""] * count, *digests
            ),
            embedder.identity,
        )
    return folder


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """One-coloured pictures: whatever the resize does to them, their mean colour stays."""
    colours = np.random.default_rng(seed).integers(1, 256, (count, 1, 1, 3), dtype=np.uint8)
    return colours.repeat(SIZE, 1).repeat(SIZE, 2)


def places(count: int) -> np.ndarray:
    return np.random.default_rng(3).uniform([-80, -179], [80, 179], (count, 2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return make_index(tmp_path_factory.mktemp("index") / "five", model, pictures(5), places(5))


class TestShipped:
    def test_the_same_as_the_command(
        self, example_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from geoinfer.cli import main

        output = tmp_path / "o.csv"
        arguments = ["predict", str(example_photos), "-o", str(output), "--device", "cpu", "--batch-size", "3"]
        monkeypatch.setattr(sys, "argv", ["geoinfer", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        with open(output, newline="") as file:
            rows = list(csv.DictReader(file))
        with Geolocator.open(device="cpu", threads=1) as geolocator:
            predictions = geolocator.locate([row["path"] for row in rows])
        assert len(predictions) == 10
        for row, prediction in zip(rows, predictions, strict=True):
            assert (row["path"], row["status"]) == (prediction.source, prediction.status)
            for name, digits in (
                ("latitude", 6), ("longitude", 6), ("radius_km", 3), ("score", 6), ("top1_similarity", 6)
            ):  # fmt: skip
                assert float(row[name]) == round(getattr(prediction, name), digits), name

    def test_every_way_of_naming_a_photo(self, example_photos: Path) -> None:
        path = example_photos / "cannes-heidi.jpg"
        with Image.open(path) as image:
            array = np.asarray(image.convert("RGB"))
        with Geolocator.open(device="cpu") as geolocator:
            first, *others, decoded = geolocator.locate([str(path), path, os.fsencode(path), array])
        assert first.status == "ok"
        assert others == [first, first]
        assert decoded.source == "array 3"
        # Pillow's full decode against simplejpeg's scaled one: other pixels, by a little.
        assert decoded.top1_similarity == pytest.approx(first.top1_similarity, abs=0.02)

    def test_notice_and_calibration(self, tmp_path: Path) -> None:
        with Geolocator.open(device="cpu") as geolocator:
            assert "demonstration" in geolocator.notice
            assert geolocator.calibrated
        shutil.copytree(SHIPPED / "index", tmp_path / "copy")
        with Geolocator.open(index=tmp_path / "copy", device="cpu") as geolocator:
            assert geolocator.notice == ""
            assert geolocator.bundle is not None
        with Geolocator.open(index=SHIPPED / ".." / "demo" / "index", device="cpu") as geolocator:
            assert "demonstration" in geolocator.notice


class TestAnswers:
    def test_top1_is_the_nearest_reference(self, model: Path, index: Path) -> None:
        queries, wanted = pictures(9, seed=8), expected(pictures(9, seed=8)) @ expected(pictures(5)).T
        with Geolocator.open(model, index, aggregate="top1", k=1) as geolocator:
            predictions = geolocator.locate(list(queries), top=3)
        for row, prediction in zip(wanted, predictions, strict=True):
            order = np.argsort(-row)
            assert [candidate.reference for candidate in prediction.candidates] == [f"r{i}" for i in order[:3]]
            assert [candidate.source for candidate in prediction.candidates] == [f"s{i}" for i in order[:3]]
            assert (prediction.latitude, prediction.longitude) == tuple(places(5)[order[0]])
            assert prediction.top1_similarity == pytest.approx(row[order[0]], abs=2e-6)
            assert [c.similarity for c in prediction.candidates] == pytest.approx(row[order[:3]], abs=2e-6)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_an_index_too_small_to_calibrate_promises_nothing(
        self, tmp_path: Path, model: Path, count: int, method: str
    ) -> None:
        folder = make_index(tmp_path / "i", model, pictures(count), places(count))
        with Geolocator.open(model, folder, aggregate=method, k=100) as geolocator:
            assert not geolocator.calibrated
            predictions = geolocator.locate(list(pictures(3, seed=4)), top=50)
        for prediction in predictions:
            assert prediction.status == "ok"
            assert prediction.radius_km == pytest.approx(HALF_EARTH_KM, rel=1e-6)
            assert prediction.score == 0
            assert len(prediction.candidates) == count
            assert -90 <= prediction.latitude <= 90
            if count == 1:
                where = (prediction.latitude, prediction.longitude)
                assert where == pytest.approx(tuple(places(1)[0]), abs=1e-6)

    def test_top(self, model: Path, index: Path) -> None:
        with Geolocator.open(model, index, k=2) as geolocator:
            counts = [len(geolocator.locate(pictures(1), top=top)[0].candidates) for top in (0, 1, 2, 4, 99)]
            assert counts == [0, 1, 2, 4, 5]
            with pytest.raises(UsageError, match="top is -1"):
                geolocator.locate(pictures(1), top=-1)

    def test_embeddings(self, model: Path, index: Path) -> None:
        queries = expected(pictures(4, seed=2)).astype(np.float32)
        with Geolocator.open(model, index, aggregate="top1", k=3) as geolocator:
            located = geolocator.locate_embeddings(queries)
            nobody = geolocator.locate_embeddings(queries[:0], top=4)
            more = geolocator.locate_embeddings(queries, top=4)
        order = np.argsort(-(queries.astype(np.float64) @ expected(pictures(5)).T), axis=1)
        np.testing.assert_array_equal(located.ids, order[:, :3])
        np.testing.assert_array_equal(located.coordinates, places(5)[order[:, 0]])
        np.testing.assert_array_equal(more.ids, order[:, :4])
        assert nobody.coordinates.shape == (0, 2)
        assert nobody.ids.shape == (0, 4)
        assert nobody.radius_km.shape == nobody.scores.shape == (0,)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return make_index(tmp_path_factory.mktemp("index") / "many", model, pictures(200), places(200))


class TestConfidence:
    """An index of two hundred references, enough to tell how far off an answer is and what is unlike all of them."""

    def test_an_answer_of_a_low_score_is_not_given(self, model: Path, calibrated: Path) -> None:
        queries = pictures(40, seed=8)
        with Geolocator.open(model, calibrated) as geolocator:
            given = geolocator.locate(queries, top=2)
        limit = sorted(prediction.score for prediction in given)[15]
        limit = math.floor(limit * 1e6) / 1e6
        with Geolocator.open(model, calibrated, min_score=limit) as geolocator:
            assert geolocator.min_score == limit
            some = geolocator.locate([*queries, "nowhere.jpg"], top=2)
        assert some[-1].error_code == "missing"
        withheld = 0
        for before, after in zip(given, some[:-1], strict=True):
            if round(before.score, 6) >= limit:
                assert after == before
                continue
            withheld += 1
            assert (after.status, after.error_code) == ("skipped", "low_score")
            assert after.error == f"the score {round(before.score, 6):.6g} is below {limit:g}"
            assert math.isnan(after.latitude)
            assert math.isnan(after.longitude)
            assert math.isnan(after.radius_km)
            assert (after.score, after.top1_similarity, after.candidates) == (before.score, before.top1_similarity, ())
            assert after.unlike_references == before.unlike_references
        assert 10 < withheld <= 15

    def test_without_a_calibration_there_is_no_score_to_ask_for(self, model: Path, index: Path) -> None:
        with pytest.raises(UsageError, match=r"--min-score 0.5: no answer has a score, as the index has too few ref"):
            Geolocator.open(model, index, min_score=0.5)

    def test_unlike_references(self, model: Path, calibrated: Path, index: Path) -> None:
        queries = pictures(40, seed=8)
        vectors = expected(pictures(200)).astype(np.float64)
        np.fill_diagonal(alike := vectors @ vectors.T, -np.inf)
        # Each reference among the others; places are all further apart than photos of one spot.
        learnt = alike.max(axis=1)
        with Geolocator.open(model, calibrated, aggregate="top1", k=1) as geolocator:
            predictions = geolocator.locate(queries)
            # The direction in which there are no colours at all.
            strange = geolocator.locate_embeddings(-vectors[:3].astype(np.float32))
        for prediction in predictions:
            as_far = sum(1 for one in learnt if one <= prediction.top1_similarity)
            assert prediction.unlike_references is ((1 + as_far) / 201 <= 0.01)
        assert strange.unlike_references.tolist() == [True] * 3
        with Geolocator.open(model, index) as geolocator:
            assert geolocator.locate(queries[:1])[0].unlike_references is None

    def test_radii_of_other_probabilities(self, model: Path, calibrated: Path, index: Path) -> None:
        queries = expected(pictures(20, seed=8)).astype(np.float32)
        with Geolocator.open(model, calibrated) as geolocator:
            located = geolocator.locate_embeddings(queries)
            radii = [geolocator.radius_km(located, coverage) for coverage in (0.5, 0.8, 0.9, 0.95)]
            with pytest.raises(ValueError, match="coverage is 1"):
                geolocator.radius_km(located, 1)
        assert (np.diff(radii, axis=0) >= 0).all()
        assert (radii[0] < radii[3]).all()
        np.testing.assert_array_equal(radii[2], located.radius_km)
        with Geolocator.open(model, index) as geolocator:
            wide = geolocator.radius_km(geolocator.locate_embeddings(queries), 0.9)
            assert wide == pytest.approx([HALF_EARTH_KM] * 20)

    def test_places(self, model: Path, calibrated: Path) -> None:
        pytest.importorskip("reverse_geocode")
        from geoinfer.places import Places

        with Geolocator.open(model, calibrated, places=True, aggregate="top1", k=1) as geolocator:
            predictions = geolocator.locate([*pictures(20, seed=8), "nowhere.jpg"])
        assert {p.status for p in predictions} == {"ok", "error"}
        cities = Places.open()
        for prediction in predictions:
            if prediction.status != "ok":
                assert prediction.place is None
                continue
            (alone,) = cities.names([(prediction.latitude, prediction.longitude)])
            assert prediction.place == alone
        with Geolocator.open(model, calibrated) as geolocator:
            assert geolocator.locate(pictures(1))[0].place is None

    def test_temperature_and_bandwidth_are_those_of_the_answer(self, model: Path, calibrated: Path) -> None:
        queries = expected(pictures(10, seed=8)).astype(np.float32)
        with Geolocator.open(model, calibrated, k=20, temperature=0.001) as geolocator:
            assert geolocator.answer == Answer(20, "density", 0.001)
            sharp = geolocator.locate_embeddings(queries).coordinates
        with Geolocator.open(model, calibrated, k=1, aggregate="top1") as geolocator:
            nearest = geolocator.locate_embeddings(queries).coordinates
        with Geolocator.open(model, calibrated, k=20, temperature=1.0, bandwidth_km=3000.0) as geolocator:
            broad = geolocator.locate_embeddings(queries).coordinates
        # All of the weight on the nearest, or next to none.
        near = [haversine(a, b) for a, b in zip(sharp, nearest, strict=True)]
        far = [haversine(a, b) for a, b in zip(broad, nearest, strict=True)]
        assert np.median(near) < 1
        assert np.median(far) > 500
        with pytest.raises(UsageError, match="temperature"):
            Geolocator.open(model, calibrated, aggregate="top1", temperature=0.1)


def haversine(a: np.ndarray, b: np.ndarray) -> float:
    lat1, lon1, lat2, lon2 = (math.radians(float(v)) for v in (*a, *b))
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(min(1, h)))


class TestInputs:
    @pytest.fixture
    def geolocator(self, model: Path, index: Path):
        with Geolocator.open(model, index, aggregate="top1", k=1) as opened:
            yield opened

    def test_nothing(self, geolocator: Geolocator) -> None:
        assert geolocator.locate([]) == []
        assert geolocator.locate(iter(())) == []

    @pytest.mark.parametrize("count", [1, 15, 16, 17, 33])
    def test_a_generator_of_any_length(self, geolocator: Geolocator, count: int) -> None:
        """Around the size of a batch; each answer belongs to its own photo."""
        queries = pictures(count, seed=6)
        predictions = geolocator.locate(picture for picture in queries)
        assert [prediction.source for prediction in predictions] == [f"array {i}" for i in range(count)]
        nearest = (expected(queries) @ expected(pictures(5)).T).argmax(axis=1)
        assert [(p.latitude, p.longitude) for p in predictions] == [tuple(place) for place in places(5)[nearest]]

    def test_camera_raw_is_skipped_as_the_command_skips_it(self, geolocator: Geolocator, tmp_path: Path) -> None:
        # Most raw files are TIFFs with a thumbnail, which would decode.
        Image.new("RGB", (20, 20), (200, 10, 10)).save(tmp_path / "x.nef", "TIFF")
        (prediction,) = geolocator.locate([tmp_path / "x.nef"])
        assert (prediction.status, prediction.error_code) == ("skipped", "camera_raw")

    def test_a_bad_photo_costs_its_own_answer(self, geolocator: Geolocator, tmp_path: Path) -> None:
        (tmp_path / "text.jpg").write_bytes(b"no photo")
        Image.fromarray(pictures(1)[0]).save(tmp_path / "good.png")
        inputs = [
            tmp_path / "good.png", tmp_path / "none.jpg", tmp_path / "text.jpg", pictures(1)[0], tmp_path,
            "with\0nul.jpg", "\ud800.jpg", b"caf\xe9.jpg", tmp_path / "good.png",
        ]  # fmt: skip
        predictions = geolocator.locate(inputs)
        assert [p.status for p in predictions] == ["ok", "error", "error", "ok", *["error"] * 4, "ok"]
        assert [p.error_code for p in predictions] == [
            "", "missing", "not_an_image", "", "not_a_file", "missing", "missing", "missing", "",
        ]  # fmt: skip
        assert predictions[0] == predictions[-1]
        assert (predictions[0].latitude, predictions[0].longitude) == tuple(places(5)[0])
        assert predictions[3].source == "array 3"
        for prediction in predictions:
            failed = prediction.status == "error"
            assert bool(prediction.error) == failed
            assert math.isnan(prediction.latitude) == math.isnan(prediction.radius_km) == failed
            assert (prediction.candidates == ()) == failed

    @pytest.mark.parametrize(
        "array",
        [
            pictures(1)[0].astype(np.float32), pictures(1)[0].astype(np.int64), pictures(1)[0] > 9,
            pictures(1)[0][..., 0], pictures(1), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 4), np.uint8),
            np.array("x"),
        ],
        ids=["float32", "int64", "bool", "grey", "batch", "empty", "alpha", "text"],
    )  # fmt: skip
    def test_arrays_that_are_no_pictures(self, geolocator: Geolocator, array: np.ndarray) -> None:
        bad, good = geolocator.locate([array, pictures(1)[0]])
        assert (bad.source, bad.status) == ("array 0", "error")
        assert bad.error
        assert good.status == "ok"

    def test_an_array_keeps_its_pixels(self, geolocator: Geolocator) -> None:
        array = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        before = array.copy()
        views = [array, array[::-1, ::-1][::-1, ::-1], np.asfortranarray(array)]
        first, *others = geolocator.locate(views)
        np.testing.assert_array_equal(array, before)
        assert [p.top1_similarity for p in others] == [first.top1_similarity] * 2

    @pytest.mark.parametrize("one", ["a.jpg", b"a.jpg", Path("a.jpg")])
    def test_one_path_instead_of_several(self, geolocator: Geolocator, one: object) -> None:
        with pytest.raises(UsageError, match="list"):
            geolocator.locate(one)

    def test_a_photo_that_the_model_cannot_compute(self, tmp_path: Path, index: Path) -> None:
        broken = make_model(tmp_path / "nan.onnx", nan=True)
        black = np.zeros((SIZE, SIZE, 3), np.uint8)
        with Geolocator.open(broken, index) as geolocator:
            predictions = geolocator.locate([black, pictures(1)[0], black])
        assert [p.status for p in predictions] == ["error", "ok", "error"]
        assert predictions[0].error_code == "not_finite"


class TestOpen:
    def test_context_manager_closes(self, model: Path, index: Path) -> None:
        with Geolocator.open(model, index) as geolocator:
            assert geolocator.locate(pictures(1))[0].status == "ok"
        with pytest.raises(ModelError, match="closed"):
            geolocator.locate(pictures(1))

    def test_mismatch_names_both_and_closes_the_model(
        self, tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from geoinfer.backends.onnx_runtime import OnnxRuntimeEmbedder

        closed: list[object] = []
        monkeypatch.setattr(OnnxRuntimeEmbedder, "close", lambda self: closed.append(self))
        other = make_model(tmp_path / "o.onnx", metadata=METADATA | {"geoinfer.identity": "other:1"})
        with pytest.raises(MismatchError) as caught:
            Geolocator.open(other, index)
        assert "tiny:0" in str(caught.value)
        assert "other:1" in str(caught.value)
        assert caught.value.exit_code == 3
        assert len(closed) == 1

    @pytest.mark.parametrize("large", [True, False])
    def test_a_bundle_whose_model_is_not_the_one_it_was_made_with(
        self, tmp_path: Path, model: Path, index: Path, large: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However large the model is: past a size it is not hashed when the bundle is opened, but when it is loaded."""
        folder = tmp_path / "bundle"
        folder.mkdir()
        shutil.copy(model, folder / "model.onnx")
        shutil.copytree(index, folder / "index")
        bundles.write_bundle_manifest(folder, name="b", description="", notice="", licences={})
        monkeypatch.setattr(bundles, "HASHED_AT_OPEN", 0 if large else 1 << 20)
        with Geolocator.open(folder, device="cpu") as geolocator:
            assert geolocator.locate(pictures(1))[0].status == "ok"
        data = (folder / "model.onnx").read_bytes()
        assert data.count(b"tests") == 1  # its producer: the model stays whole and means the same
        (folder / "model.onnx").write_bytes(data.replace(b"tests", b"guest"))
        with pytest.raises(ModelError, match=r"model\.onnx.*checksum") as caught:
            Geolocator.open(folder, device="cpu")
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize(
        "options",
        [
            {"k": 0}, {"k": 101}, {"k": -1}, {"aggregate": "mode"}, {"aggregate": ""}, {"device": "gpu"},
            {"min_score": -0.1}, {"min_score": 1.01}, {"min_score": math.nan}, {"index_device": "gpu"},
            {"index_device": "cuda:0"}, {"temperature": 0.0}, {"temperature": -1.0}, {"bandwidth_km": 0.0},
        ],
    )  # fmt: skip
    def test_options_that_make_no_sense(self, model: Path, index: Path, options: dict) -> None:
        with pytest.raises(UsageError, match="expected") as caught:
            Geolocator.open(model, index, **options)
        assert isinstance(caught.value, ValueError)

    def test_missing_things(self, tmp_path: Path, model: Path) -> None:
        with pytest.raises(InputError, match="no such index"):
            Geolocator.open(model, tmp_path / "none")
        with pytest.raises(InputError, match="no such model"):
            Geolocator.open(tmp_path / "none.onnx")
        with pytest.raises(UsageError, match="without an index"):
            Geolocator.open(str(model))
        with pytest.raises(ModelError, match=r"a folder without bundle\.json"):
            Geolocator.open(tmp_path)

    def test_preprocessing_for_a_model_that_has_none(self, tmp_path: Path) -> None:
        bare = make_model(tmp_path / "bare.onnx", metadata=None)
        pixels = Preprocessing(size=SIZE, resize="squash")
        with open_embedder(bare, "cpu", preprocessing=pixels) as embedder:
            digests = np.arange(64, dtype=np.uint8).reshape(2, 32)
            references = References(["a", "b"], places(2), ["", ""], ["", ""], digests, digests[::-1].copy())
            write_index(tmp_path / "i", expected(pictures(2)).astype(np.float32), references, embedder.identity)
        with Geolocator.open(bare, tmp_path / "i", preprocessing=pixels, k=1, aggregate="top1") as geolocator:
            (prediction,) = geolocator.locate(pictures(1))
        assert (prediction.latitude, prediction.longitude) == tuple(places(1)[0])
        with pytest.raises(GeoInferError, match="does not say which pixels"):
            Geolocator.open(bare, tmp_path / "i")


class TestEngines:
    """A TensorRT engine by itself, and beside a bundle's model."""

    @pytest.fixture
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> Machine:
        return pretend(monkeypatch)

    @pytest.fixture
    def bundle(self, tmp_path: Path, model: Path, index: Path) -> Path:
        folder = tmp_path / "tiny"
        shutil.copytree(index, folder / "index")
        shutil.copy(model, folder / "model.onnx")
        write_bundle_manifest(folder, name="tiny", description="", notice="for tests", licences={})
        return folder

    @staticmethod
    def answers(geolocator: Geolocator) -> np.ndarray:
        with geolocator:
            return np.array([(p.latitude, p.longitude, p.radius_km) for p in geolocator.locate(pictures(30, seed=9))])

    @pytest.mark.parametrize("device", ["auto", "cuda", "tensorrt"])
    def test_one_beside_the_model_is_used(self, machine: Machine, bundle: Path, device: str) -> None:
        write_engine(bundle / "a.trt", precision="fp32")
        write_engine(bundle / "b.trt", precision="fp16")
        with Geolocator.open(bundle, device=device) as geolocator:
            assert geolocator.embedder.device == "cuda:0"
            assert geolocator.embedder.device_reason.startswith("b.trt, fp16, by TensorRT 10.13.3.9 on NVIDIA Fake")
            assert not geolocator.embedder.fell_back
            assert geolocator.notice == "for tests"
        wanted = self.answers(Geolocator.open(bundle, device="cpu"))
        np.testing.assert_allclose(self.answers(Geolocator.open(bundle, device=device)), wanted, atol=1e-3)
        assert machine.cuda.held == []

    def test_not_on_a_cpu_nor_without_one(self, machine: Machine, bundle: Path) -> None:
        write_engine(bundle / "vit.trt")
        with Geolocator.open(bundle, device="cpu") as geolocator:
            assert (geolocator.embedder.device, geolocator.embedder.device_reason) == ("cpu", "as asked")
        assert machine.cuda.calls == []
        (bundle / "vit.trt").unlink()
        with Geolocator.open(bundle) as geolocator:
            assert ".trt" not in geolocator.embedder.device_reason
        assert machine.cuda.calls == []

    def test_none_that_fits(self, machine: Machine, bundle: Path) -> None:
        write_engine(bundle / "vit.trt", flavor_version="9.9.9")
        with Geolocator.open(bundle) as geolocator:
            assert geolocator.embedder.device == "cpu"
            assert not geolocator.embedder.fell_back
            assert "none fits" in geolocator.embedder.device_reason
            assert "built by TensorRT 9.9.9, here is 10.13.3.9" in geolocator.embedder.device_reason
        with pytest.raises(DeviceError, match=r"--device tensorrt: .*TensorrtExecutionProvider.*built by TensorRT 9"):
            Geolocator.open(bundle, device="tensorrt")
        assert not machine.behaviour.seen_file

    def test_no_gpu(self, machine: Machine, bundle: Path) -> None:
        write_engine(bundle / "vit.trt")
        machine.cuda.gpus = 0
        with Geolocator.open(bundle) as geolocator:
            assert geolocator.embedder.device == "cpu"
            assert "no NVIDIA GPU can be used here" in geolocator.embedder.device_reason

    def test_one_that_fits_and_fails(self, machine: Machine, bundle: Path) -> None:
        write_engine(bundle / "vit.trt")
        machine.behaviour.fail_at = 1
        with Geolocator.open(bundle) as geolocator:
            assert geolocator.embedder.device == "cpu"
            assert geolocator.embedder.fell_back
            assert "vit.trt beside the model was chosen, but: " in geolocator.embedder.device_reason
        machine.behaviour.fail_at = 1
        with pytest.raises(DeviceError, match=r"TensorrtExecutionProvider.*TensorRT cannot read the engine"):
            Geolocator.open(bundle, device="tensorrt")
        assert machine.cuda.held == []

    def test_one_of_another_embedder(self, machine: Machine, bundle: Path) -> None:
        write_engine(bundle / "vit.trt", identity="other:1")
        with Geolocator.open(bundle) as geolocator:
            assert geolocator.embedder.device == "cpu"
            assert "the embedder is other:1, the model's tiny:0" in geolocator.embedder.device_reason

    def test_one_that_the_bundle_lists_and_that_is_another(self, machine: Machine, bundle: Path) -> None:
        write_engine(bundle / "vit.trt")
        write_bundle_manifest(bundle, name="tiny", description="", notice="", licences={})
        with Geolocator.open(bundle) as geolocator:
            assert geolocator.embedder.device == "cuda:0"
        (bundle / "vit.trt").write_bytes((bundle / "vit.trt").read_bytes()[:-1] + b"!")
        with pytest.raises(ModelError, match=r"vit\.trt.*checksum"):
            Geolocator.open(bundle)

    def test_by_itself(self, machine: Machine, tmp_path: Path, index: Path, bundle: Path) -> None:
        path = write_engine(tmp_path / "vit.trt")
        with Geolocator.open(path, index) as geolocator:
            assert geolocator.bundle is None
            assert geolocator.embedder.fingerprint != ""
        with pytest.raises(UsageError, match="without an index"):
            Geolocator.open(path)
        with pytest.raises(UsageError, match="runs on an NVIDIA GPU alone"):
            Geolocator.open(path, index, device="cpu")
        # In a bundle's folder it has the bundle's index.
        path = write_engine(bundle / "vit.trt")
        with Geolocator.open(path) as geolocator:
            assert geolocator.notice == "for tests"
            assert geolocator.embedder.device == "cuda:0"
        with Geolocator.open(path, index) as geolocator:
            assert geolocator.notice == ""
        assert machine.cuda.held == []
