from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from geoinfer.benchmark import preparing, stages
from geoinfer.benchmark.preparing import Preparation
from geoinfer.benchmark.result import DECODE, DECODE_ON_DEVICE, READ, RESIZE
from geoinfer.benchmark.stages import StageBench
from geoinfer.errors import ImageError, InputError
from geoinfer.images import load_pixels
from geoinfer.images.loader import PhotoLoader
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.machine import available_cores
from tests.onnx_models import SIZE, expected

if TYPE_CHECKING:
    from pathlib import Path

SQUASH = Preprocessing(size=SIZE, resize="squash", interpolation="bilinear")


def prepared(paths: list[bytes], decoding=None, preprocessing: Preprocessing = SQUASH, times: int = 1):
    with PhotoLoader(preprocessing, 2) as loader:
        bench = Preparation(paths, preprocessing, loader, decoding)
        for _ in range(times):
            for number in range(len(paths)):
                bench.one(number)
        return bench, bench.timings(4, "cuda:0")


def test_the_pixels_are_those_of_a_run(photos) -> None:
    bench, _ = prepared(photos)
    assert sorted(bench.pixels) == [0, 1, 2, 3]
    for number, path in enumerate(photos):
        assert np.array_equal(bench.pixels[number], load_pixels(path, SQUASH))


def test_each_photo_counts_as_far_as_it_comes(photos, broken, tmp_path: Path) -> None:
    paths = [*photos, broken, bytes(tmp_path / "missing.jpg"), b"/x/raw.cr2", *photos[:1]]
    bench, timings = prepared(paths, times=2)
    assert {name: found.photos for name, found in timings.items()} == {READ: 14, DECODE: 12, RESIZE: 10}
    assert timings[READ].share == 7 / 8
    assert timings[DECODE].share == 6 / 8
    assert timings[RESIZE].share == bench.usable_share == 5 / 8
    assert all(found.threads == available_cores() for found in timings.values())


def test_formats_with_processes_of_their_own_are_decoded_there(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.jp2"
    Image.new("RGB", (30, 20), "red").save(path)
    seen = []
    decode = PhotoLoader.decode
    monkeypatch.setattr(PhotoLoader, "decode", lambda self, *a: (seen.append(a[1]), decode(self, *a)))
    bench, timings = prepared([bytes(path)])
    assert seen == ["jpeg2000"]
    assert timings[DECODE].photos == 1
    assert RESIZE not in timings
    assert np.array_equal(bench.pixels[0], load_pixels(bytes(path), SQUASH))


class FakeDecoding:
    """Decodes web-sized JPEGs in one call a batch, and fails at what is called bad."""

    classes = frozenset({"web"})

    def __init__(self) -> None:
        self.calls: list[int] = []

    def decode(self, items):
        self.calls.append(len(items))
        failures = []
        for path, _, kind, out in items:
            assert kind == "jpeg"
            out[...] = 77
            failures.append(ImageError("decode", "corrupt", "bad") if b"bad" in path else None)
        return failures


def test_what_a_gpu_decodes_is_timed_apart(tmp_path: Path, photos, monkeypatch) -> None:
    monkeypatch.setattr(preparing, "SHORTEST_SECONDS", 0.0)
    jpegs = []
    for name in ("a", "b", "c", "d", "bad"):
        Image.new("RGB", (40, 30), "blue").save(tmp_path / f"{name}.jpg")
        jpegs.append(bytes(tmp_path / f"{name}.jpg"))
    decoding = FakeDecoding()
    bench, timings = prepared([*jpegs, *photos], decoding, times=2)
    assert decoding.calls == [4, 1]  # each file once, however often it was read
    found = timings[DECODE_ON_DEVICE]
    assert (found.photos, found.batch, found.threads, found.device) == (5, 4, 1, "cuda:0, decoder")
    assert found.share == 5 / 9
    assert timings[READ].photos == 18
    assert timings[DECODE].share == 4 / 9
    assert bench.usable_share == pytest.approx(8 / 9)
    assert sorted(bench.pixels) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert (bench.pixels[0] == 77).all()


@pytest.fixture
def bench(opened, photos, broken, monkeypatch) -> StageBench:
    from geoinfer.benchmark import timing

    monkeypatch.setattr(stages, "on_threads", lambda *a, **n: timing.on_threads(*a, **{"shortest": 0.02} | n))
    return StageBench(opened, [*photos, broken], block_size=3)


def test_embedding_is_of_whole_batches_of_the_photos(bench, photos) -> None:
    bench.prepare()
    pixels = np.stack([load_pixels(path, SQUASH) for path in photos])
    for batch in (1, 3, 4, 7):
        timings, embeddings = bench.embed(batch_size=batch)
        assert timings.photos == len(timings.seconds) * batch
        assert timings.batch == batch
        assert timings.threads == min(2, available_cores())
        assert timings.share == pytest.approx(4 / 5)
        wanted = np.resize(pixels, (len(embeddings), *pixels.shape[1:]))
        assert np.allclose(embeddings, expected(wanted), atol=1e-5)


def test_search_has_the_blocks_of_a_run_and_one_thread_each(bench, opened, monkeypatch) -> None:
    bench.prepare()
    asked = []
    locate = opened.geolocator.locate_embeddings

    def seen(queries, **named):
        asked.append((queries.shape, named))
        return locate(queries, **named)

    monkeypatch.setattr(opened.geolocator, "locate_embeddings", seen)
    timings = bench.search(bench.embed()[1])
    assert {shape for shape, _ in asked} == {(3, 4)}
    assert all(named == {"threads": 1} for _, named in asked)
    assert timings.photos == 3 * len(asked)
    assert timings.device == "cpu"


def test_together_is_one_call_at_a_time(bench, opened, monkeypatch) -> None:
    bench.prepare()
    timings = bench.embed_together(opened.geolocator.embedder)
    assert timings.threads == 1
    assert timings.photos == len(timings.seconds) * opened.batch_size


def test_writing_leaves_a_whole_result(bench, tmp_path: Path) -> None:
    timings = bench.write(tmp_path)
    assert (timings.photos, len(timings.seconds), timings.threads) == (5, 1, 1)
    assert (tmp_path / "stage.csv").read_text().count("\n") == 6
    bench.write(tmp_path)  # and again over it


def test_no_photo_that_can_be_decoded(opened, broken) -> None:
    with pytest.raises(InputError, match="none of the 1 photos can be decoded"):
        StageBench(opened, [broken], block_size=1).prepare()


def test_photos_stay_as_they_are(bench, photos) -> None:
    before = [os.stat(path) for path in photos]
    bench.prepare()
    assert [os.stat(path) for path in photos] == before
