"""Decoding on a GPU as a run sees it, with a fake GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geoinfer.batch import device_decoding as module
from geoinfer.batch.device_decoding import DecodeCounts, DeviceDecoding, decoding_key, open_device_decoding
from geoinfer.batch.pipeline import Deferred
from geoinfer.errors import DeviceError, ImageError, MissingPackageError, UsageError
from geoinfer.images import load_pixels
from geoinfer.images.device.check import as_jpeg, drawn
from geoinfer.images.device.choose import IMAGE_CLASSES, Rates
from geoinfer.images.loader import PhotoLoader
from geoinfer.images.preprocessing import Preprocessing
from tests.images.device.fake_gpu import CODE, PillowCodec, install, open_decoder

if TYPE_CHECKING:
    from pathlib import Path

PREPROCESSING = Preprocessing(size=16)
FASTER, SLOWER = Rates((1.0,), (2.0,)), Rates((2.0,), (1.0,))


def embedder(device: str = "cuda:0") -> SimpleNamespace:
    return SimpleNamespace(device=device, identity=SimpleNamespace(preprocessing=PREPROCESSING))


@pytest.fixture
def gpu(monkeypatch):
    """A fake GPU that works."""
    cuda, _ = install(monkeypatch)
    codec = PillowCodec()
    monkeypatch.setattr(module, "NvImageCodec", lambda ordinal, threads: codec)
    monkeypatch.setattr(module, "compiled", lambda capability: CODE)
    yield SimpleNamespace(cuda=cuda, codec=codec)
    assert cuda.misuse == []
    assert cuda.held == []


@pytest.fixture
def loader():
    with PhotoLoader(PREPROCESSING, 1) as loader:
        yield loader


def opened(loader, mode="gpu", device="cuda:0", **options) -> DeviceDecoding | None:
    return open_device_decoding(mode, embedder(device), loader, workers=1, batch_size=4, **options)


def files(folder: Path) -> dict[str, bytes]:
    """Names to paths: what the GPU takes, what it leaves, and what nobody can decode."""
    good = as_jpeg(drawn(64, 48, 1))
    contents = {
        "web.jpg": good,
        "progressive.jpg": as_jpeg(drawn(64, 48, 2), progressive=True),
        "refused.jpg": as_jpeg(drawn(64, 48, 3)),
        "damaged.jpg": good[: len(good) // 2] + b"\xff\xd9",
        "short.jpg": good[:-30],
        "text.jpg": b"no picture at all",
        "raw.dng": good,
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    drawn(64, 48, 4).save(folder / "picture.png")
    return {path.name: os.fsencode(path) for path in sorted(folder.iterdir())}


def run(decoding: DeviceDecoding, paths: list[bytes]) -> list[np.ndarray | ImageError]:
    """As a pipeline does it: everything prepared, then a batch of what was deferred."""
    outs = np.zeros((len(paths), 16, 16, 3), np.uint8)
    results: list[np.ndarray | ImageError] = list(outs)
    deferred: dict[int, Deferred] = {}
    for number, path in enumerate(paths):
        try:
            left = decoding.prepare(path, outs[number])
        except ImageError as error:
            results[number] = error
        else:
            if left is not None:
                deferred[number] = left
    failures = decoding.decode([(paths[n], one.data, one.kind, outs[n]) for n, one in deferred.items()])
    for number, failure in zip(deferred, failures, strict=True):
        if failure is not None:
            results[number] = failure
    return results


def outcome(path: bytes) -> np.ndarray | ImageError:
    """Of the CPU alone."""
    try:
        return load_pixels(path, PREPROCESSING)
    except ImageError as error:
        return error


def test_every_photo_has_the_outcome_that_it_has_without_a_gpu(gpu, loader, tmp_path):
    paths = files(tmp_path)
    gpu.codec.refused = {(tmp_path / name).read_bytes() for name in ("refused.jpg", "damaged.jpg")}
    with opened(loader) as decoding:
        results = dict(zip(paths, run(decoding, list(paths.values())), strict=True))
    for name, path in paths.items():
        found, expected = results[name], outcome(path)
        if isinstance(expected, ImageError):
            assert isinstance(found, ImageError), name
            assert (found.code, str(found), found.status) == (expected.code, str(expected), expected.status)
        else:
            assert abs(found.astype(int) - expected).mean() <= 2, name
    assert results["damaged.jpg"].__traceback__ is None
    assert np.array_equal(results["refused.jpg"], load_pixels(paths["refused.jpg"], PREPROCESSING))
    counts = decoding.counts
    assert (counts.gpu, counts.fell_back) == (2, 2)
    assert counts.cpu == 2  # the PNG, and what ends early
    assert str(counts) == "decoded on the GPU: 2, on the CPU: 4 (2 of them because the GPU could not)"
    assert counts.as_dict() == {"gpu": 2, "fell_back": 2, "cpu": 2}


def test_counts_without_a_fallback():
    assert str(DecodeCounts(gpu=3, cpu=1)) == "decoded on the GPU: 3, on the CPU: 1"


def test_classes_that_the_cpu_keeps(gpu, loader, tmp_path):
    paths = files(tmp_path)
    with DeviceDecoding(
        open_decoder(PREPROCESSING, gpu.codec), loader, frozenset({"progressive"}), workers=1, name="a GPU"
    ) as decoding:
        out = np.zeros((16, 16, 3), np.uint8)
        assert decoding.prepare(paths["web.jpg"], out) is None
        assert np.array_equal(out, load_pixels(paths["web.jpg"], PREPROCESSING))
        assert isinstance(decoding.prepare(paths["progressive.jpg"], out), Deferred)
    assert decoding.described == "JPEGs (progressive) are decoded on a GPU by a fake of Pillow"
    assert decoding.fingerprint == "progressive by a fake of Pillow on a GPU"


def test_gpu_takes_every_class(gpu, loader):
    with opened(loader, device="cpu") as decoding:
        assert decoding.classes == set(IMAGE_CLASSES)
        assert "NVIDIA Fake" in decoding.described


@pytest.mark.parametrize(("mode", "device"), [("cpu", "cuda:0"), ("auto", "cpu")])
def test_the_cpu_alone(loader, mode, device, monkeypatch):
    monkeypatch.setattr(module, "open_decoder", lambda *_, **__: pytest.fail("it was opened"))
    assert opened(loader, mode, device) is None


def test_no_such_mode(loader):
    with pytest.raises(UsageError, match="--decode tpu: expected auto, cpu or gpu"):
        opened(loader, "tpu")


class TestAuto:
    def keep(self, rates: dict[str, Rates]) -> dict[str, object]:
        return {name: found.as_dict() for name, found in rates.items()}

    def test_what_was_measured_before_decides(self, gpu, loader, monkeypatch):
        monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("measured again"))
        rates = {"original": FASTER, "web": SLOWER, "progressive": SLOWER}
        with opened(loader, "auto", remembered=self.keep(rates)) as decoding:
            assert decoding.classes == {"original"}

    @pytest.mark.parametrize("remembered", [None, {}, {"original": 1}, {"original": {"cpu": [], "gpu": []}}], ids=str)
    def test_else_it_is_measured_and_kept(self, gpu, loader, monkeypatch, remembered):
        rates = dict.fromkeys(IMAGE_CLASSES, FASTER)
        monkeypatch.setattr(module, "measure", lambda *_, **__: rates)
        kept = []
        with opened(loader, "auto", remembered=remembered, remember=kept.append) as decoding:
            assert decoding.classes == set(IMAGE_CLASSES)
        assert kept == [self.keep(rates)]

    def test_a_slow_gpu_is_left_out_and_said(self, gpu, loader):
        said = []
        remembered = self.keep(dict.fromkeys(IMAGE_CLASSES, SLOWER))
        assert opened(loader, "auto", remembered=remembered, say=said.append) is None
        assert said == ["photos are decoded on the CPU, which is faster at it here than the GPU"]

    def test_a_gpu_that_does_not_decode_is_never_an_error(self, gpu, loader):
        gpu.codec.raises = RuntimeError("?")
        said = []
        assert opened(loader, "auto", say=said.append) is None
        assert "decodes no JPEG here" in said[0]
        with pytest.raises(DeviceError, match="decodes no JPEG here"):
            opened(loader, "gpu")

    def test_nor_one_that_fails_while_it_is_measured(self, gpu, loader, monkeypatch):
        def fail(*_: object, **__: object) -> None:
            raise DeviceError("the GPU fell off the bus")

        monkeypatch.setattr(module, "measure", fail)
        said = []
        assert opened(loader, "auto", say=said.append) is None
        assert said == ["photos are decoded on the CPU: the GPU fell off the bus"]

    def test_nor_missing_packages(self, gpu, loader, monkeypatch):
        def missing(*_: object, **__: object) -> None:
            raise MissingPackageError("nvImageCodec is not there")

        monkeypatch.setattr(module, "NvImageCodec", missing)
        assert opened(loader, "auto") is None
        with pytest.raises(MissingPackageError):
            opened(loader, "gpu")

    def test_nor_a_missing_gpu(self, loader, monkeypatch):
        install(monkeypatch, gpus=0)
        assert opened(loader, "auto") is None
        with pytest.raises(DeviceError, match="no NVIDIA GPU"):
            opened(loader, "gpu")


def test_key_of_a_measurement(gpu):
    first = decoding_key(embedder(), 2, 4)
    assert first == decoding_key(embedder(), 2, 4)
    other = embedder()
    other.identity.preprocessing = replace(PREPROCESSING, size=32)
    assert len({str(key) for key in (first, decoding_key(other, 2, 4), decoding_key(embedder(), 3, 4))}) == 3
