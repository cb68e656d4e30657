"""Decoding on an NVIDIA GPU. `make gpu-check`."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from geoinfer.batch.device_decoding import open_decoder
from geoinfer.engines.gpu import find_gpu
from geoinfer.errors import GeoInferError, MissingPackageError
from geoinfer.images.device.check import MOST_DIFFERENCE, as_jpeg, drawn
from geoinfer.images.device.choose import IMAGE_CLASSES, choose, measure
from geoinfer.images.device.frame import Frame, frame_of
from geoinfer.images.device.nvimagecodec import Picture
from geoinfer.images.device.plan import plan_resize
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.read import read_image_file
from geoinfer.images.resize import Decoded, resize_decoded


def no_gpu() -> str:
    try:
        find_gpu()
    except GeoInferError as error:
        return str(error)
    return ""


REASON = no_gpu()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON != "", reason=REASON or "there is a GPU")]
SIZES = [(4032, 3024), (1024, 768), (768, 1024), (426, 640), (300, 700), (17, 23), (224, 224), (1, 1), (5000, 60)]


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    try:
        open_decoder(Preprocessing(size=32)).close()
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def decoder(packages):
    with open_decoder(Preprocessing()) as decoder:
        yield decoder


def decode(decoder, files):
    outs = np.zeros((len(files), 224, 224, 3), np.uint8)
    filled = decoder.decode([(data, "jpeg", out) for data, out in zip(files, outs, strict=True)])
    return filled, outs


def whole(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    frame = frame_of(data, "jpeg")
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return resize_decoded(Decoded(picture, frame.orientation, picture.size), preprocessing)


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_that_of_pillow_bit_by_bit(resize, interpolation):
    preprocessing = Preprocessing(resize=resize, interpolation=interpolation)
    pictures = [(drawn(*size, seed), seed % 8 + 1) for seed, size in enumerate(SIZES)]
    with open_decoder(preprocessing) as decoder:
        jobs = [
            (
                Picture(decoder.upload(np.asarray(picture)), *picture.size, 3 * picture.width, None),
                plan_resize(Frame(*picture.size, orientation, "web"), preprocessing),
            )
            for picture, orientation in pictures
        ]
        found = decoder.resize(jobs)
        for (picture, orientation), one in zip(pictures, found, strict=True):
            expected = resize_decoded(Decoded(picture, orientation, picture.size), preprocessing)
            assert np.array_equal(one, expected), (picture.size, orientation)


def test_real_photos_are_as_close_as_the_cpu_is_held_to(decoder, shared_photos):
    paths = sorted(shared_photos.rglob("*.jpg"))
    files = [read_image_file(str(path).encode())[0] for path in paths]
    for start in range(0, len(files), 64):
        some = files[start : start + 64]
        filled, outs = decode(decoder, some)
        assert all(filled)
        for path, data, out in zip(paths[start:], some, outs, strict=False):
            difference = abs(out.astype(int) - whole(data, decoder.preprocessing)).mean()
            assert difference <= MOST_DIFFERENCE, (path, difference)


def test_every_orientation(decoder):
    files = [as_jpeg(drawn(640, 480, 1), orientation) for orientation in range(1, 9)]
    filled, outs = decode(decoder, files)
    assert all(filled)
    for data, out in zip(files, outs, strict=True):
        assert abs(out.astype(int) - whole(data, decoder.preprocessing)).mean() <= MOST_DIFFERENCE


def test_what_becomes_of_a_photo_does_not_depend_on_its_batch(decoder):
    """A resumed run cuts its batches elsewhere, and must write the same bytes."""
    files = [as_jpeg(drawn(*size, seed)) for seed, size in enumerate(SIZES[:6])]
    files.append(as_jpeg(drawn(1600, 1200, 9), progressive=True))
    _, together = decode(decoder, files)
    damaged = files[0][:1000] + bytes(5000) + files[0][6000:]
    for company in ([], files[::-1], [damaged, *files], files * 9):
        for number, data in enumerate(files):
            filled, outs = decode(decoder, [*company, data])
            assert filled[-1]
            assert np.array_equal(outs[-1], together[number])


def test_a_picture_without_its_second_half_is_not_taken_for_whole(decoder):
    """The CPU says `truncated`; a row must not depend on who decoded."""
    good = as_jpeg(drawn(1024, 768, 1))
    cut = good[: len(good) // 2] + b"\xff\xd9"
    filled, _ = decode(decoder, [good, cut, good])
    assert filled == [True, False, True]


def test_memory_is_given_back(decoder):
    from geoinfer.engines.gpu import cuda_runtime

    files = [as_jpeg(drawn(4032, 3024, 1))] * 64
    decode(decoder, files)
    _, before, _ = cuda_runtime().cudaMemGetInfo()
    for _ in range(5):
        assert all(decode(decoder, files)[0])
    _, after, _ = cuda_runtime().cudaMemGetInfo()
    assert before - after < 256 << 20


def test_measuring_finds_rates_of_every_class(decoder):
    rates = measure(decoder, workers=2, seconds=0.05)
    assert set(rates) == set(IMAGE_CLASSES)
    assert choose(rates) <= set(IMAGE_CLASSES)
