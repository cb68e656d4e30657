"""The whole path but the GPU: a fake one with NumPy's kernels, and Pillow in nvImageCodec's place."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from geoinfer.errors import DeviceError
from geoinfer.images.device import decoder as module
from geoinfer.images.device.check import as_jpeg, check, drawn
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.resize import Decoded, resize_decoded
from tests.backends.fake_tensorrt import Error
from tests.images.device.fake_gpu import PillowCodec, install, open_decoder, picture_of

if TYPE_CHECKING:
    from geoinfer.images.device.decoder import DeviceDecoder

PREPROCESSING = Preprocessing(size=24)
SIZES = [(64, 48), (40, 90), (30, 20), (33, 100), (10, 12), (70, 70), (24, 24), (128, 32)]


@pytest.fixture
def gpu(monkeypatch):
    cuda, driver = install(monkeypatch)
    yield cuda, driver
    assert cuda.misuse == []
    assert cuda.held == []


def photos() -> list[bytes]:
    """One of each orientation."""
    return [as_jpeg(drawn(*size, seed=number), number + 1) for number, size in enumerate(SIZES)]


def expected(data: bytes, preprocessing: Preprocessing = PREPROCESSING) -> np.ndarray:
    """Decoded whole with Pillow, and resized there."""
    picture = Image.open(io.BytesIO(data))
    orientation = picture.getexif().get(0x0112, 1)
    return resize_decoded(Decoded(picture.convert("RGB"), orientation, picture.size), preprocessing)


def decode(decoder: DeviceDecoder, files: list[bytes], kind: str = "jpeg") -> tuple[list[bool], np.ndarray]:
    side = decoder.preprocessing.size
    outs = np.full((len(files), side, side, 3), 9, np.uint8)
    return decoder.decode([(data, kind, out) for data, out in zip(files, outs, strict=True)]), outs


@pytest.mark.parametrize("resize", ["crop", "crop_floor", "crop_torchvision", "squash"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_pixels_are_those_of_pillow(gpu, resize, interpolation):
    preprocessing = Preprocessing(size=24, resize=resize, interpolation=interpolation)
    with open_decoder(preprocessing, PillowCodec()) as decoder:
        filled, outs = decode(decoder, photos())
    assert filled == [True] * len(SIZES)
    for data, out in zip(photos(), outs, strict=True):
        assert np.array_equal(out, expected(data, preprocessing))


def test_two_batches_one_after_the_other_and_none(gpu):
    with open_decoder(PREPROCESSING, PillowCodec()) as decoder:
        first, second = photos()[:3], photos()[5:7]
        for files in (first, [], second):
            filled, outs = decode(decoder, files)
            assert filled == [True] * len(files)
            assert all(np.array_equal(out, expected(data)) for data, out in zip(files, outs, strict=True))


def test_what_it_cannot_decode_is_left_alone(gpu):
    files = photos()
    codec = PillowCodec(refused={files[2]})
    files[4] = files[4][:-10]  # ends early: not even tried
    files.append(b"no JPEG")
    with open_decoder(PREPROCESSING, codec) as decoder:
        filled, outs = decode(decoder, files)
    assert [number for number, done in enumerate(filled) if not done] == [2, 4, 8]
    assert (outs[[2, 4, 8]] == 9).all()
    assert np.array_equal(outs[5], expected(files[5]))
    assert codec.batches == [7, 1]  # the one that failed once more, alone


def test_other_formats_are_not_tried(gpu):
    codec = PillowCodec()
    with open_decoder(PREPROCESSING, codec) as decoder:
        filled, _ = decode(decoder, photos(), "png")
    assert not any(filled)
    assert codec.batches == []


def test_too_little_memory_for_a_batch_costs_no_photo(gpu):
    codec = PillowCodec(most=1)
    with open_decoder(PREPROCESSING, codec) as decoder:
        filled, outs = decode(decoder, photos())
    assert all(filled)
    assert np.array_equal(outs[3], expected(photos()[3]))
    assert codec.batches == [8, *[1] * 8]


def test_a_library_that_fails_at_everything(gpu):
    with open_decoder(PREPROCESSING, PillowCodec(raises=ValueError("?"))) as decoder:
        assert decode(decoder, photos())[0] == [False] * 8


def test_a_picture_of_another_size_than_its_header_says(gpu):
    with open_decoder(PREPROCESSING, PillowCodec(wrong_size=True)) as decoder:
        assert decode(decoder, photos())[0] == [False] * 8


@pytest.mark.parametrize(
    ("limit", "value"), [("_DECODED_BYTES", 40 * 90 * 3 + 50), ("_BETWEEN_BYTES", 9000), ("_TABLE_BYTES", 8000)]
)
def test_goes_are_as_large_as_the_memory(gpu, monkeypatch, limit, value):
    """What is too large by itself is the CPU's; nothing else is lost, and no go overflows (the fake GPU would see)."""
    monkeypatch.setattr(module, limit, value)
    codec = PillowCodec()
    with open_decoder(PREPROCESSING, codec) as decoder:
        filled, outs = decode(decoder, photos())
    assert sum(filled) == sum(codec.batches) >= 4
    assert len(codec.batches) > 1
    for done, data, out in zip(filled, photos(), outs, strict=True):
        assert np.array_equal(out, expected(data)) if done else (out == 9).all()


def test_no_more_at_once_than_asked_for(gpu):
    codec = PillowCodec()
    with open_decoder(PREPROCESSING, codec, most=3) as decoder:
        assert all(decode(decoder, photos())[0])
    assert codec.batches == [3, 3, 2]


def test_photos_of_one_size_share_their_tables(gpu, monkeypatch):
    sizes = []
    added = module._Tables.add
    monkeypatch.setattr(module._Tables, "add", lambda self, array: sizes.append(len(array)) or added(self, array))
    with open_decoder(PREPROCESSING, PillowCodec()) as decoder:
        decode(decoder, [as_jpeg(drawn(60, 40, seed)) for seed in range(5)])
    assert len(sizes) == 2 * 3 + 4  # two sides, and four waves of passes


def test_passes_of_one_kind_start_together(gpu):
    _, driver = gpu
    with open_decoder(PREPROCESSING, PillowCodec()) as decoder:
        decode(decoder, [as_jpeg(drawn(60, 40, seed)) for seed in range(5)])
    assert driver.started == ["along_rows", "along_columns"]


@pytest.mark.parametrize("name", ["cuModuleLoadData", "cuModuleGetFunction"])
def test_kernels_that_cannot_be_loaded(gpu, name):
    gpu[1].fail_names.add(name)
    with pytest.raises(DeviceError, match=f"the driver says ILLEGAL_ADDRESS .*{name}"):
        open_decoder(PREPROCESSING, PillowCodec())


def test_a_full_gpu_says_what_to_do(gpu):
    gpu[1].fail_names.add("cuModuleLoadData")
    gpu[1].fail_code = Error.OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="the memory of GPU 0 is full"):
        open_decoder(PREPROCESSING, PillowCodec())


def test_a_gpu_that_fails_is_an_error_and_not_a_bad_photo(gpu):
    cuda, driver = gpu
    with open_decoder(PREPROCESSING, PillowCodec()) as decoder:
        driver.fail_names.add("cuLaunchKernel")
        with pytest.raises(DeviceError, match="cuLaunchKernel"):
            decode(decoder, photos())
        driver.fail_names.clear()
        assert all(decode(decoder, photos())[0])
    with open_decoder(PREPROCESSING, PillowCodec(raises=RuntimeError("CUDA failure"))) as decoder:
        cuda.fail_names.add("cudaEventSynchronize")
        with pytest.raises(DeviceError, match="cudaEventSynchronize"):
            decode(decoder, photos())


def test_wherever_opening_fails_everything_is_given_back(monkeypatch):
    for step in range(1, 40):
        cuda, _ = install(monkeypatch)
        cuda.fail_at = step
        try:
            open_decoder(PREPROCESSING, PillowCodec()).close()
        except DeviceError:
            assert cuda.held == []
        else:
            break
    else:
        pytest.fail("it never came to the end")
    assert step > 6
    assert cuda.held == []


def test_closed_twice(gpu):
    decoder = open_decoder(PREPROCESSING, PillowCodec())
    decoder.close()
    decoder.close()


class TestCheck:
    def test_passes(self, gpu):
        with open_decoder(PREPROCESSING, PillowCodec()) as decoder:
            check(decoder)

    def test_a_kernel_that_is_wrong_in_the_last_digit(self, gpu, monkeypatch):
        with open_decoder(PREPROCESSING, PillowCodec()) as decoder:
            resize = decoder.resize
            monkeypatch.setattr(decoder, "resize", lambda pictures: resize(pictures) ^ 1)
            with pytest.raises(DeviceError, match="resizes otherwise than the CPU") as error:
                check(decoder)
        assert "--decode cpu" in error.value.hint

    def test_no_jpeg_is_decoded(self, gpu):
        with (
            open_decoder(PREPROCESSING, PillowCodec(raises=RuntimeError())) as decoder,
            pytest.raises(DeviceError, match="decodes no JPEG here") as error,
        ):
            check(decoder)
        assert "nvidia-nvjpeg" in error.value.hint

    def test_other_colours(self, gpu, monkeypatch):
        codec = PillowCodec()
        monkeypatch.setattr(
            codec, "_picture", lambda data: picture_of(np.asarray(Image.open(io.BytesIO(data)))[..., ::-1])
        )
        with (
            open_decoder(PREPROCESSING, codec) as decoder,
            pytest.raises(DeviceError, match="its pixels differ from the CPU's by"),
        ):
            check(decoder)
