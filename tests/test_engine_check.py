from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import geoinfer.backends
from geoinfer import engine_check
from geoinfer.engine_check import check_engine, drawn_pictures, photos_of, row_cosines
from geoinfer.engines.flavors import Flavor
from geoinfer.engines.gpu import Gpu
from geoinfer.engines.sidecar import read_sidecar
from geoinfer.errors import DeviceError, InputError, MissingPackageError, ModelError
from geoinfer.images import Preprocessing, load_pixels
from tests.engines.fakes import put_engine
from tests.onnx_models import expected, make_model

if TYPE_CHECKING:
    from pathlib import Path


class Machine:
    """An A10, and engines that do what `engine` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.onnx = make_model(folder / "vit.onnx")
        self.batches: list[int] = []
        self.best_batch = 8
        self.engine: Any = lambda pixels: expected(pixels).astype(np.float32)
        self.lines: list[str] = []
        self.gpu: Gpu | Exception = Gpu(0, "NVIDIA A10", (8, 6), 1)
        opened = geoinfer.backends.open_embedder

        def open_embedder(path: Path, device: str = "auto", **options: Any) -> Any:
            if path.suffix == ".onnx":
                assert device == "cpu"
                return opened(path, device, **options)
            assert device == "cuda:0"
            return self

        def find_gpu(ordinal: int) -> Gpu:
            if isinstance(self.gpu, Exception):
                raise self.gpu
            return self.gpu

        monkeypatch.setattr(geoinfer.backends, "open_embedder", open_embedder)
        monkeypatch.setattr(engine_check, "find_gpu", find_gpu)
        monkeypatch.setattr(engine_check, "load_flavor", lambda name: Flavor(name, "10.13.3.9", None, b""))
        monkeypatch.setattr("geoinfer.engines.sidecar.this_platform", lambda: "linux-x86_64")

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        return self.engine(pixels)

    def check(self, photos: Path | None = None, **changes: Any) -> dict[str, Any] | None:
        engine = put_engine(self.folder / "vit.trt", **changes)
        return check_engine(engine, read_sidecar(engine), self.onnx, photos=photos, device=0, report=self.lines.append)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_an_engine_that_gives_the_same(machine: Machine) -> None:
    found = machine.check()
    assert found is not None
    assert found["min_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["pictures"] == 16
    assert found["against"].startswith("onnxruntime ")
    assert machine.batches == [1, 2, 3, 10, 17]
    assert machine.lines[0].startswith("checked on NVIDIA A10: 16 drawn pictures, smallest cosine 1.000000")


def turned(pixels: np.ndarray, row: int, cosine: float) -> np.ndarray:
    """The right embeddings, one of them turned to have this cosine with itself."""
    rows = expected(pixels)
    if len(rows) > row:
        other = np.roll(rows[row], 1)
        other -= (other @ rows[row]) * rows[row]
        rows[row] = cosine * rows[row] + (1 - cosine**2) ** 0.5 * other / np.linalg.norm(other)
    return rows.astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "cosine", "passes"),
    [("fp16", 0.9995, True), ("fp16", 0.9985, False), ("fp32", 0.9985, False), ("int8", 0.985, True),
     ("int8", 0.975, False)],
)  # fmt: skip
def test_the_worst_picture_decides(machine: Machine, precision: str, cosine: float, passes: bool) -> None:
    # Only the last of the small batches has ten.
    machine.engine = lambda pixels: turned(pixels, 9 if len(pixels) == 10 else 99, cosine)
    if passes:
        found = machine.check(precision=precision)
        assert found is not None
        assert found["min_cosine"] == pytest.approx(cosine, abs=1e-5)
        return
    with pytest.raises(ModelError, match="failed its check: on picture 16 of 16, in a small batch") as caught:
        machine.check(precision=precision)
    assert f"a cosine of {cosine:.4f}" in str(caught.value)
    assert "nothing was written" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("row", "picture"), [(0, 1), (7, 8), (15, 16), (16, 1), (128, 1)])
@pytest.mark.parametrize("best", [8, 64])
def test_full_batches_count_as_the_small_ones_do(machine: Machine, row: int, picture: int, best: int) -> None:
    """Two full lanes and a rest: what only they get wrong is found, wherever it is."""
    machine.best_batch = best
    row = min(row, 2 * best)
    machine.engine = lambda pixels: turned(pixels, row if len(pixels) == 2 * best + 1 else 10**6, 0.9)
    with pytest.raises(ModelError, match=f"picture {picture} of 16, in a call of {2 * best + 1}, its embedding"):
        machine.check()
    assert machine.batches[-1] == 2 * best + 1


def test_embeddings_that_are_no_numbers_fail(machine: Machine) -> None:
    machine.engine = lambda pixels: np.full((len(pixels), 4), np.nan, np.float32)
    with pytest.raises(ModelError, match="on picture 1 of 16"):
        machine.check()


@pytest.mark.parametrize(
    ("gpu", "changes", "line"),
    [
        (DeviceError("no NVIDIA GPU can be used here: none"), {}, "not checked: no NVIDIA GPU"),
        (MissingPackageError("no cuda-python"), {}, "not checked: no cuda-python"),
        (Gpu(0, "NVIDIA H100", (9, 0), 1), {}, "not checked: "),
        (Gpu(0, "NVIDIA A10", (8, 6), 1), {"platform": "linux-aarch64"}, "not checked: "),
    ],
)
def test_what_cannot_be_checked_is_said(machine: Machine, gpu: Any, changes: dict[str, Any], line: str) -> None:
    machine.gpu = gpu
    assert machine.check(**changes) is None
    assert machine.lines[0].startswith(line)
    assert machine.batches == []


def test_a_gpu_that_fails_is_no_pass(machine: Machine) -> None:
    def fail(pixels: np.ndarray) -> np.ndarray:
        raise DeviceError("out of memory")

    machine.engine = fail
    with pytest.raises(DeviceError):
        machine.check()


def test_photos(machine: Machine, example_photos: Path) -> None:
    found = machine.check(example_photos)
    assert found is not None
    assert found["pictures"] == len(list(example_photos.glob("*.jpg")))
    assert "photos, smallest cosine" in machine.lines[0]


def test_few_photos_and_none(machine: Machine, example_photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(InputError, match="there are no photos here"):
        machine.check(folder)
    (folder / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match="there are no photos here"):
        machine.check(folder)
    photo = sorted(example_photos.glob("*.jpg"))[0]
    (folder / "one.JPG").write_bytes(photo.read_bytes())
    found = machine.check(folder)
    assert found is not None
    assert found["pictures"] == 1
    np.testing.assert_array_equal(
        photos_of(folder, Preprocessing(8))[0], load_pixels(str(photo).encode(), Preprocessing(8))
    )


def test_many_photos_are_spread_over_the_folder(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(40):
        Image.new("RGB", (9, 9), (number * 6, 0, 0)).save(tmp_path / f"{number:02}.png")
    reds = photos_of(tmp_path, Preprocessing(8))[:, 0, 0, 0]
    assert reds.tolist() == [number * 6 for number in range(0, 32, 2)]


def test_cosines_one_by_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 5)).astype(np.float32)
    a[1] = np.nan
    b[2] = np.inf
    a[3] = b[3] = np.nan
    one_by_one = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        finite = [all(abs(v) < 1e30 for v in row) for row in (x, y)]
        if not any(finite):
            one_by_one.append(1.0)
        elif not all(finite):
            one_by_one.append(-1.0)
        else:
            dot = sum(p * q for p, q in zip(x, y, strict=True))
            one_by_one.append(dot / (sum(p * p for p in x) * sum(q * q for q in y)) ** 0.5)
    np.testing.assert_allclose(row_cosines(a, b), one_by_one, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 8, 224])
def test_drawn_pictures_are_the_same_each_time(size: int) -> None:
    pictures = drawn_pictures(size)
    assert (pictures.shape, pictures.dtype) == ((16, size, size, 3), np.uint8)
    np.testing.assert_array_equal(pictures, drawn_pictures(size))
    if size > 1:
        assert (pictures.reshape(16, -1).min(axis=1) == 0).all()
        assert (pictures.reshape(16, -1).max(axis=1) == 255).all()
        assert len({picture.tobytes() for picture in pictures}) == 16
