"""TensorRT engines on an NVIDIA GPU, and ONNX Runtime's GPU providers beside them. `make gpu-check`."""

from __future__ import annotations

import csv
import os
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from geoinfer.backends import open_embedder
from geoinfer.backends.onnx_runtime import import_onnxruntime
from geoinfer.bundle import SHIPPED
from geoinfer.engines.build import BuildOptions, build_engine
from geoinfer.engines.flavors import FLAVORS, installed_flavors
from geoinfer.engines.gpu import cuda_runtime, find_gpu
from geoinfer.engines.sidecar import read_sidecar, sidecar_path
from geoinfer.errors import GeoInferError, MismatchError, ModelError
from geoinfer.images import load_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from geoinfer.backends import Embedder

OPT, MAX = 8, 12
BATCHES = [1, 2, 3, OPT, MAX, MAX + 1, 3 * OPT + 5]
MIN_COSINE = 0.999
"""ONNX Runtime multiplies float32 matrices in TensorFloat-32, and fp16 rounds."""


def no_gpu() -> str:
    try:
        find_gpu()
    except GeoInferError as error:
        return str(error)
    return ""


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(no_gpu() != "", reason=no_gpu() or "there is a GPU"),
]
EACH_FLAVOR = pytest.mark.parametrize(
    "flavor",
    [
        pytest.param(name, marks=pytest.mark.skipif(name not in installed_flavors(), reason=f"{name} is not installed"))
        for name in FLAVORS
    ],
)
EACH_MODEL = pytest.mark.parametrize("model", ["shipped", "vit"])


@pytest.fixture(scope="module")
def photos(example_photos_folder: Path) -> list[bytes]:
    return [os.fsencode(path) for path in sorted(example_photos_folder.glob("*.jpg"))]


@pytest.fixture(scope="module")
def example_photos_folder() -> Path:
    from tests.conftest import CHECKOUT

    return CHECKOUT / "examples" / "photos"


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The shipped model, fp32; or a small ViT of random weights, fp16."""
    made: dict[str, Path] = {"shipped": SHIPPED / "model.onnx"}

    def get(name: str) -> Path:
        if name not in made:
            pytest.importorskip("timm")
            pytest.importorskip("onnxscript")
            from export.onnx_model import ExportOptions, export_onnx
            from export.public import load_public

            path = tmp_path_factory.mktemp("vit") / "vit.onnx"
            export_onnx(load_public("vit_tiny_patch16_224", weights="none"), path, ExportOptions(precision="fp16"))
            made[name] = path
        return made[name]

    return get


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, onnx_model: Callable[[str], Path]) -> Callable[[str, str], Path]:
    """Builds each engine once; one that the flavour does not serve on this GPU skips the test."""
    made: dict[tuple[str, str], Path] = {}

    def get(flavor: str, model: str) -> Path:
        if (flavor, model) not in made:
            path = tmp_path_factory.mktemp("engine") / f"{model}-{flavor}.trt"
            options = BuildOptions(flavor=flavor, opt_batch=OPT, max_batch=MAX)
            sidecar = build_engine(onnx_model(model), path, options, print)
            if not sidecar.runs_on(find_gpu().compute_capability):
                pytest.skip(
                    f"{sidecar.title} builds for {', '.join(sidecar.compute_capabilities)}, this is {find_gpu()}"
                )
            made[flavor, model] = path
        return made[flavor, model]

    return get


@pytest.fixture(scope="module")
def pictures(onnx_model: Callable[[str], Path], photos: list[bytes]) -> Callable[[str], np.ndarray]:
    """As many as the largest call takes: the example photos, and each again from other sides."""
    made: dict[str, np.ndarray] = {}

    def get(model: str) -> np.ndarray:
        if model not in made:
            with open_embedder(onnx_model(model), "cpu") as embedder:
                wanted = embedder.identity.preprocessing
            real = np.stack([load_pixels(path, wanted) for path in photos])
            made[model] = np.concatenate([real, real[:, :, ::-1], real[:, ::-1]])[: max(BATCHES)]
            assert len(made[model]) == max(BATCHES)
        return made[model]

    return get


@pytest.fixture(scope="module")
def expected(onnx_model: Callable[[str], Path], pictures: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """What ONNX Runtime gives on the CPU."""
    made: dict[str, np.ndarray] = {}

    def get(model: str) -> np.ndarray:
        if model not in made:
            with open_embedder(onnx_model(model), "cpu") as embedder:
                made[model] = embedder.embed(pictures(model))
        return made[model]

    return get


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert (found * wanted).sum(axis=1).min() >= MIN_COSINE
    # Not only alike: nearer to their own than to any other, or rows were mixed up. Random weights see some alike.
    others = wanted @ wanted.T
    np.fill_diagonal(others, -1)
    told_apart = np.flatnonzero(others.max(axis=1) < 0.995)
    assert len(told_apart) > len(wanted) // 4
    np.testing.assert_array_equal((found @ wanted.T).argmax(axis=1)[told_apart], told_apart)


@EACH_FLAVOR
@EACH_MODEL
def test_batches_of_every_kind(
    flavor: str, model: str, engine: Callable[..., Path], pictures: Any, expected: Any
) -> None:
    with open_embedder(engine(flavor, model)) as embedder:
        assert embedder.device == "cuda:0"
        assert "without CUDA graphs" not in embedder.device_reason
        assert embedder.embed(pictures(model)[:0]).shape == (0, embedder.dim)
        for count in BATCHES * 2:
            check(embedder.embed(pictures(model)[:count]), expected(model)[:count])


@EACH_FLAVOR
def test_a_row_does_not_depend_on_its_neighbours(flavor: str, engine: Callable[..., Path], pictures: Any) -> None:
    pixels = pictures("shipped")
    with open_embedder(engine(flavor, "shipped")) as embedder:
        first = embedder.embed(pixels[: OPT - 1])
        noise = np.random.default_rng(0).integers(0, 256, (3 * OPT, *pixels.shape[1:]), dtype=np.uint8)
        embedder.embed(noise)
        np.testing.assert_array_equal(embedder.embed(pixels[: OPT - 1]), first)
        beside = np.concatenate([pixels[: OPT - 1], noise[:1]])
        np.testing.assert_array_equal(embedder.embed(beside)[:-1], first)
    with open_embedder(engine(flavor, "shipped")) as embedder:
        np.testing.assert_array_equal(embedder.embed(pixels[: OPT - 1]), first)


@EACH_FLAVOR
@EACH_MODEL
def test_two_threads(flavor: str, model: str, engine: Callable[..., Path], pictures: Any, expected: Any) -> None:
    faults: list[object] = []
    with open_embedder(engine(flavor, model)) as embedder:

        def work(turn: int) -> None:
            try:
                for count in BATCHES[turn:] + BATCHES[:turn]:
                    check(embedder.embed(pictures(model)[:count]), expected(model)[:count])
            except BaseException as error:
                faults.append(error)

        expected(model)
        threads = [threading.Thread(target=work, args=(turn,)) for turn in (0, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert faults == []


@EACH_FLAVOR
@EACH_MODEL
def test_two_threads_that_begin_with_small_batches(
    flavor: str, model: str, engine: Callable[..., Path], pictures: Any, expected: Any
) -> None:
    """The lane for them is made, and its shapes are compiled, while the other thread computes."""
    wanted, pixels = expected(model), pictures(model)
    faults: list[object] = []
    for _ in range(3):
        together = threading.Barrier(2)
        with open_embedder(engine(flavor, model)) as embedder:

            def work(counts: list[int], embedder: Embedder = embedder, together: threading.Barrier = together) -> None:
                try:
                    together.wait(60)
                    for count in counts:
                        found = embedder.embed(pixels[:count])
                        assert ((found * wanted[:count]).sum(axis=1) >= MIN_COSINE).all(), count
                except BaseException as error:
                    faults.append(error)

            orders = [1, 2, 4, 3, OPT, 1, OPT + 1], [2, 1, OPT, 4, 2, 3 * OPT + 1, 1]
            threads = [threading.Thread(target=work, args=(counts,)) for counts in orders]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert faults == []


@EACH_FLAVOR
def test_close_gives_the_memory_back(flavor: str, engine: Callable[..., Path], pictures: Any) -> None:
    runtime = cuda_runtime()

    def free_bytes() -> int:
        error, free, _ = runtime.cudaMemGetInfo()
        assert int(error) == 0
        return int(free)

    def use() -> None:
        with open_embedder(engine(flavor, "shipped")) as embedder:
            embedder.embed(pictures("shipped"))

    use()  # what CUDA and TensorRT load once stays
    before = free_bytes()
    for _ in range(5):
        use()
    assert before - free_bytes() < 16 << 20


@EACH_FLAVOR
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("flavor_version", "9.9.9", "built by TensorRT"),
        ("compute_capabilities", ["5.0"], "built for"),
        ("platform", "plan9-mips", "engines do not move between platforms"),
        ("profile", {"min": 1, "opt": OPT + 1, "max": MAX}, "its sidecar promises [1, 9, 12]"),
        ("output", {"name": "other", "dtype": "float32", "shape": [-1, 1280]}, "the engine's tensors are"),
    ],
)
def test_a_sidecar_that_is_not_the_engines(
    flavor: str, field: str, value: object, words: str, engine: Callable[..., Path], tmp_path: Path
) -> None:
    import json
    import shutil

    path = tmp_path / "x.trt"
    shutil.copy(engine(flavor, "shipped"), path)
    values = json.loads(sidecar_path(engine(flavor, "shipped")).read_text())
    sidecar_path(path).write_text(json.dumps(values | {field: value}))
    with pytest.raises((MismatchError, ModelError)) as caught:
        open_embedder(path)
    assert words in str(caught.value)
    assert "geoinfer engine build" in caught.value.hint
    assert caught.value.exit_code == 3


@EACH_FLAVOR
def test_an_engine_that_is_damaged_inside(flavor: str, engine: Callable[..., Path], tmp_path: Path) -> None:
    """Its checksum is made to fit: TensorRT itself has to refuse it, and does so in a sentence of ours."""
    import json

    from geoinfer.integrity import sha256_of

    source = engine(flavor, "shipped")
    path = tmp_path / "x.trt"
    path.write_bytes(source.read_bytes()[:4096])
    values = json.loads(sidecar_path(source).read_text())
    values["engine"] = {"bytes": 4096, "sha256": sha256_of(path)}
    sidecar_path(path).write_text(json.dumps(values))
    with pytest.raises(ModelError, match="TensorRT cannot read the engine") as caught:
        open_embedder(path)
    assert "geoinfer engine build" in caught.value.hint


@EACH_FLAVOR
def test_predict_answers_as_the_cpu_does(
    flavor: str,
    engine: Callable[..., Path],
    example_photos_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from geoinfer.cli import main

    def rows(name: str, *arguments: object) -> list[dict[str, str]]:
        output = tmp_path / f"{name}.csv"
        words = ["predict", example_photos_folder, "--index", SHIPPED / "index", "-o", output, *arguments]
        monkeypatch.setattr(sys, "argv", ["geoinfer", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, capsys.readouterr().err
        with open(output, newline="") as file:
            return list(csv.DictReader(file))

    wanted = rows("cpu", "--engine", SHIPPED / "model.onnx", "--device", "cpu")
    for name, arguments in (("engine", []), ("small", ["--batch-size", "3"]), ("large", ["--batch-size", "100"])):
        found = rows(name, "--engine", engine(flavor, "shipped"), *arguments)
        assert [row["path"] for row in found] == [row["path"] for row in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert float(one["top1_similarity"]) == pytest.approx(float(other["top1_similarity"]), abs=2e-3)
            assert float(one["latitude"]) == pytest.approx(float(other["latitude"]), abs=0.5)
            assert float(one["longitude"]) == pytest.approx(float(other["longitude"]), abs=0.5)


@EACH_FLAVOR
def test_kernels_that_were_compiled_are_kept(flavor: str, engine: Callable[..., Path], pictures: Any) -> None:
    path = engine(flavor, "shipped")
    cache = path.with_name(f"{path.name}.cache")
    with open_embedder(path) as embedder:
        embedder.embed(pictures("shipped"))
    assert cache.exists() == (flavor == "tensorrt-rtx")
    if cache.exists():
        before = cache.read_bytes()
        with open_embedder(path) as embedder:
            embedder.embed(pictures("shipped"))
        assert cache.read_bytes() == before
        cache.write_bytes(before[: len(before) // 2])
        with open_embedder(path) as embedder:
            embedder.embed(pictures("shipped"))
        assert len(cache.read_bytes()) > len(before) // 2


@pytest.fixture
def provider(onnx_model: Callable[[str], Path]) -> Iterator[Callable[[str, str], Embedder]]:
    """ONNX Runtime on the GPU; skips where it has no such provider."""
    opened: list[Embedder] = []

    def get(device: str, model: str) -> Embedder:
        name = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[device]
        if name not in import_onnxruntime().get_available_providers():
            pytest.skip(f"this ONNX Runtime has no {name}")
        if device == "tensorrt":
            try:
                there = version("tensorrt")
            except PackageNotFoundError:
                pytest.skip("tensorrt is not installed")
            if there.partition(".")[0] != "10":
                pytest.skip(f"ONNX Runtime needs TensorRT 10, this is {there}")
        opened.append(open_embedder(onnx_model(model), device))
        return opened[-1]

    yield get
    for embedder in opened:
        embedder.close()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
@EACH_MODEL
def test_the_providers_of_onnx_runtime(
    device: str, model: str, provider: Callable[..., Embedder], pictures: Any, expected: Any
) -> None:
    embedder = provider(device, model)
    assert embedder.device == f"{device}:0"
    for count in (1, 3, OPT) if device == "cuda" else (OPT,):  # TensorRT builds an engine for each shape
        check(embedder.embed(pictures(model)[:count]), expected(model)[:count])


@EACH_FLAVOR
def test_the_sidecar_says_what_runs(flavor: str, engine: Callable[..., Path]) -> None:
    path = engine(flavor, "shipped")
    sidecar = read_sidecar(path)
    with open_embedder(path) as embedder:
        assert embedder.best_batch == OPT
        assert embedder.fingerprint == sidecar.engine.sha256
        assert find_gpu().name in embedder.device_reason
        assert sidecar.title in embedder.device_reason
