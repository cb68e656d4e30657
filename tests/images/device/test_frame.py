from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from geoinfer.images.device.frame import ORIGINAL_PIXELS, frame_of
from geoinfer.images.read import sniff


def jpeg(width=64, height=48, mode="RGB", orientation=0, **options) -> bytes:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    picture.convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def test_size_and_orientation():
    frame = frame_of(jpeg(64, 48, orientation=6), "jpeg")
    assert frame is not None
    assert (frame.width, frame.height, frame.orientation, frame.image_class) == (64, 48, 6, "web")
    assert frame.decoded_bytes == 64 * 48 * 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"width": 2000, "height": ORIGINAL_PIXELS // 2000}, "original"),
        ({"width": 2000, "height": ORIGINAL_PIXELS // 2000 - 1}, "web"),
        ({"progressive": True}, "progressive"),
        ({"mode": "L"}, "web"),
    ],
)
def test_classes(options, expected):
    frame = frame_of(jpeg(**options), "jpeg")
    assert frame is not None
    assert frame.image_class == expected


def adobe_rgb() -> bytes:
    """A JPEG whose three components are red, green and blue, and says so."""
    return jpeg(keep_rgb=True)


def with_trailer_of_another_scan() -> bytes:
    return jpeg() + b"\xff\xda"


@pytest.mark.parametrize(
    "data",
    [
        jpeg(mode="CMYK"),
        adobe_rgb(),
        jpeg(1, 101),
        jpeg()[:-2],
        jpeg()[:300],
        jpeg()[:3],
        b"",
        with_trailer_of_another_scan(),
        jpeg().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),  # 12 bits
    ],
    ids=["CMYK", "RGB", "a line", "no end", "short", "shorter", "nothing", "another scan", "12 bits"],
)
def test_left_to_the_cpu(data):
    assert frame_of(data, "jpeg") is None


def test_a_whole_thumbnail_does_not_hide_a_missing_end():
    exif = Image.Exif()
    exif[0x010E] = "x"
    inner = jpeg(16, 16)
    data = jpeg(exif=exif)
    start = data.index(b"\xff\xe1")
    with_thumbnail = data[:start] + b"\xff\xe5" + (len(inner) + 2).to_bytes(2, "big") + inner + data[start:]
    assert frame_of(with_thumbnail, "jpeg") is not None
    assert frame_of(with_thumbnail[:-20], "jpeg") is None


def test_other_formats():
    assert frame_of(jpeg(), "png") is None


def test_every_shared_photo_is_a_frame(shared_photos):
    for path in sorted(shared_photos.rglob("*.jpg"))[:60]:
        data = path.read_bytes()
        if sniff(data[:512]) != ("jpeg", True):
            continue
        frame = frame_of(data, "jpeg")
        assert frame is not None
        assert (frame.width, frame.height) == Image.open(path).size
