from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from geoinfer.errors import ImageError
from geoinfer.images import Preprocessing, decode_pixels, load_pixels, oriented_size, pixels_from_array
from geoinfer.images.decode_jpeg import jpeg_orientation
from geoinfer.images.problems import MAX_PIXELS
from geoinfer.images.read import sniff

if TYPE_CHECKING:
    import random

pi_heif = pytest.importorskip("pi_heif")
pi_heif.register_heif_opener()

# pytest's own filters go before those that geoinfer sets; `test_nothing_is_printed` holds geoinfer to its own.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.", "ignore::PIL.Image.DecompressionBombWarning")

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP, SQUASH = Preprocessing(size=32), Preprocessing(size=32, resize="squash")
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def plainly(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """The rule in full: decode all, turn upright, resize all, cut. int64, so that differences do not wrap."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        over = Image.new("RGBA", upright.size, "white")
        over.paste(upright.convert("RGBA"), mask=upright.convert("RGBA").getchannel("A"))
        upright = over
    upright = upright.convert("RGB")
    size, resampling = preprocessing.size, FILTERS[preprocessing.interpolation]
    if preprocessing.resize == "squash":
        return np.asarray(upright.resize((size, size), resampling)).astype(int)
    width, height = upright.size
    whole = round if preprocessing.resize == "crop" else int
    if width <= height:
        width, height = size, max(size, whole(height * size / width))
    else:
        width, height = max(size, whole(width * size / height)), size
    if preprocessing.resize == "crop_torchvision":
        left, top = round((width - size) / 2), round((height - size) / 2)
    else:
        left, top = (width - size) // 2, (height - size) // 2
    resized = upright.resize((width, height), resampling)
    return np.asarray(resized.crop((left, top, left + size, top + size))).astype(int)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, preprocessing: Preprocessing = SQUASH) -> np.ndarray:
    found = sniff(data[:512])
    assert found is not None
    assert found[1]
    pixels = decode_pixels(data, found[0], preprocessing)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (preprocessing.size, preprocessing.size, 3)
    return pixels.astype(int)


def failure(data: bytes, kind: str | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_pixels(data, kind or sniff(data[:512])[0], SQUASH)  # type: ignore[index]
    assert caught.value.stage == "decode"
    assert caught.value.size_bytes == len(data)
    return caught.value


def off(data: bytes, preprocessing: Preprocessing) -> float:
    """Mean difference from the plain reference, of 255."""
    return float(abs(decoded(data, preprocessing) - plainly(Image.open(io.BytesIO(data)), preprocessing)).mean())


def quadrants(width: int = 120, height: int = 80) -> Image.Image:
    """Red, green / blue, yellow: shows at once which way it was turned."""
    array = np.empty((height, width, 3), np.uint8)
    array[: height // 2, : width // 2], array[: height // 2, width // 2 :] = RED, GREEN
    array[height // 2 :, : width // 2], array[height // 2 :, width // 2 :] = BLUE, YELLOW
    return Image.fromarray(array)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Colours of the four quadrants, row by row, each to pure black or full."""
    near, far = pixels.shape[0] // 4, 3 * pixels.shape[0] // 4
    return [tuple((pixels[y, x] > 127) * 255) for y, x in ((near, near), (near, far), (far, near), (far, far))]


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """A picture of few frequencies, as photos are; JPEG keeps it nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# ---------------------------------------------------------------- against plain Pillow


def test_every_shared_photo_is_within_two_of_the_plain_reference(shared_photos: Path) -> None:
    """Exhaustive: all 345 photos, some 15 seconds."""
    paths = sorted(shared_photos.rglob("*.jpg"))
    assert len(paths) == 345
    worst = {}
    for number, path in enumerate(paths):
        data = path.read_bytes()
        # Both policies and several sizes in turn; 224 crop is the one that models use most.
        wanted = [Preprocessing(224)] if number % 3 else [Preprocessing(260, "squash", "bilinear"), Preprocessing(64)]
        for preprocessing in wanted:
            worst[path.name, preprocessing.size] = off(data, preprocessing)
    assert max(worst.values()) <= 2, max(worst, key=worst.__getitem__)
    assert np.mean([*worst.values()]) <= 0.75


def test_shared_originals_and_formats_are_within_two_of_the_plain_reference(
    shared_exif: Path, shared_formats: Path
) -> None:
    names = "Arbitro.tiff BSG1.tiff Irvine_CA.avif noexif.jpg png_with_exif_and_gps.png samplefilehub.heif 47102787.jp2"
    paths = [shared_formats / name for name in names.split()]
    paths += [shared_exif / name for name in ("DSCN0010.jpg", "IMG_5910.jpg", "berlin-01.jpg", "issue-exifr-3.jpg")]
    for path in paths:
        for preprocessing in (Preprocessing(96), Preprocessing(96, "squash")):
            assert off(path.read_bytes(), preprocessing) <= 2, path.name


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 41),
    orientation=st.integers(0, 9),
    resize=st.sampled_from(["crop", "crop_floor", "crop_torchvision", "squash"]),
    interpolation=st.sampled_from(sorted(FILTERS)),
    kind=st.sampled_from(["PNG", "TIFF", "JPEG"]),
    seed=st.integers(0, 99),
)
def test_any_size_orientation_and_policy_is_as_the_plain_reference(
    width: int, height: int, size: int, orientation: int, resize: str, interpolation: str, kind: str, seed: int
) -> None:
    # The nearest pixel depends on the last bit of a sum, so it is asked only where it has no half to round.
    assume(interpolation != "nearest" or (width == height == size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = saved(smooth(width, height, seed), kind, exif=exif, **options)
    # Of a picture of a few pixels JPEG's scaled decoding makes a few other pixels; no model is that small.
    size = max(size, 8) if kind == "JPEG" else size
    assert off(data, Preprocessing(size, resize, interpolation)) <= 2  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    short=st.integers(1, 3),
    long=st.integers(1, 1500),
    upright=st.booleans(),
    size=st.sampled_from([1, 2, 7, 32]),
    resize=st.sampled_from(["crop", "crop_floor", "crop_torchvision", "squash"]),
    kind=st.sampled_from(["PNG", "JPEG"]),
)
def test_very_long_pictures_are_as_the_plain_reference(
    short: int, long: int, upright: bool, size: int, resize: str, kind: str
) -> None:
    shape = (short, long) if upright else (long, short)
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = saved(smooth(*shape, seed=7), kind, **options)
    size = max(size, 8) if kind == "JPEG" else size
    assert off(data, Preprocessing(size, resize)) <= 2  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 100), (100, 1), (1, 3), (3, 1), (2, 9)])
def test_jpeg_of_one_pixel_across_is_not_decoded_at_a_smaller_scale(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (shape[1], shape[0], 1), np.uint8).repeat(3, axis=2)
    data = saved(Image.fromarray(noise), "JPEG", quality=95, subsampling=0)
    assert off(data, SQUASH) <= 2
    assert off(data, Preprocessing(8)) <= 2


def test_the_longer_side_is_rounded_or_not() -> None:
    """48 x 36 to 28: the longer side becomes 37.33 either way; 50 x 36 to 38.89, which is 39 or 38."""
    picture = smooth(50, 36, 3)
    rounded = np.asarray(picture.resize((39, 28), FILTERS["bicubic"]).crop((5, 0, 33, 28))).astype(int)
    floored = np.asarray(picture.resize((38, 28), FILTERS["bicubic"]).crop((5, 0, 33, 28))).astype(int)
    array = np.asarray(picture)
    assert abs(pixels_from_array(array, Preprocessing(28)) - rounded).max() <= 1
    assert abs(pixels_from_array(array, Preprocessing(28, "crop_floor")) - floored).max() <= 1
    assert abs(rounded - floored).max() > 3
    even = np.asarray(smooth(48, 36, 3))
    same = [pixels_from_array(even, Preprocessing(28, resize)) for resize in ("crop", "crop_floor")]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
    ("width", "height", "policy", "longer", "start"),
    [
        # 1024 x 683 to 224: the longer side is 335.84, half of what is over 56 or 55.5.
        (1024, 683, "crop", 336, 56),
        (1024, 683, "crop_floor", 335, 55),
        (1024, 683, "crop_torchvision", 335, 56),
        (683, 1024, "crop", 336, 56),
        (683, 1024, "crop_floor", 335, 55),
        (683, 1024, "crop_torchvision", 335, 56),
        # Nothing to round but half of 109 over, which is 54.5: the even one is the lower.
        (333, 224, "crop", 333, 54),
        (333, 224, "crop_floor", 333, 54),
        (333, 224, "crop_torchvision", 333, 54),
        # The longer side is 298.67, half of what is over 37.33.
        (640, 480, "crop", 299, 37),
        (640, 480, "crop_floor", 298, 37),
        (640, 480, "crop_torchvision", 298, 37),
        (480, 480, "crop_torchvision", 224, 0),
    ],
)
def test_each_policy_cuts_where_it_says(width: int, height: int, policy: str, longer: int, start: int) -> None:
    picture = smooth(width, height, 3).convert("RGB")
    if width >= height:
        scaled, box = (longer, 224), (start, 0, start + 224, 224)
    else:
        scaled, box = (224, longer), (0, start, 224, start + 224)
    expected = np.asarray(picture.resize(scaled, FILTERS["bilinear"]).crop(box)).astype(int)
    found = pixels_from_array(np.asarray(picture), Preprocessing(224, policy, "bilinear"))  # type: ignore[arg-type]
    assert abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    ("policy", "starts"),
    [
        # Of what is over 0 to 8 pixels, by hand.
        ("crop", [0, 0, 1, 1, 2, 2, 3, 3, 4]),
        ("crop_floor", [0, 0, 1, 1, 2, 2, 3, 3, 4]),
        ("crop_torchvision", [0, 0, 1, 2, 2, 2, 3, 4, 4]),
    ],
)
def test_a_picture_that_is_only_cut_keeps_its_pixels(policy: str, starts: list[int]) -> None:
    for over, start in enumerate(starts):
        wide = np.random.default_rng(over).integers(0, 256, (5, 5 + over, 3), np.uint8)
        tall = np.ascontiguousarray(wide.swapaxes(0, 1))
        preprocessing = Preprocessing(5, policy)  # type: ignore[arg-type]
        np.testing.assert_array_equal(pixels_from_array(wide, preprocessing), wide[:, start : start + 5])
        np.testing.assert_array_equal(pixels_from_array(tall, preprocessing), tall[start : start + 5])


def test_an_uneven_cut_is_of_the_upright_picture() -> None:
    """Three pixels over: the picture that lies on its side, or upside down, is cut where the upright one would be."""
    upright = np.random.default_rng(2).integers(0, 256, (5, 8, 3), np.uint8)
    for orientation, stored in ((3, upright[::-1, ::-1]), (6, np.rot90(upright)), (8, np.rot90(upright, -1))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
        found = decoded(data, Preprocessing(5, "crop_torchvision"))
        np.testing.assert_array_equal(found, upright[:, 2:7])


def test_longest_jpeg_there_is() -> None:
    data = saved(Image.new("RGB", (65500, 1), RED), "JPEG", quality=95)
    assert abs(decoded(data, Preprocessing(224)) - RED).max() <= 3
    assert abs(decoded(data, Preprocessing(224, "squash")) - RED).max() <= 3


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 30),
    st.sampled_from(["crop", "crop_floor", "crop_torchvision", "squash"]),
)
def test_array_is_as_the_plain_reference(width: int, height: int, size: int, resize: str) -> None:
    picture = smooth(width, height, 3)
    preprocessing = Preprocessing(size, resize)  # type: ignore[arg-type]
    found = pixels_from_array(np.asarray(picture), preprocessing).astype(int)
    assert abs(found - plainly(picture, preprocessing)).mean() <= 1
    # Not contiguous, and read-only.
    mirrored = np.asarray(picture)[:, ::-1]
    expected = plainly(ImageOps.mirror(picture), preprocessing)
    assert abs(pixels_from_array(mirrored, preprocessing).astype(int) - expected).mean() <= 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_array_of_another_kind_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError) as caught:
        pixels_from_array(array, SQUASH)
    assert (caught.value.stage, caught.value.code) == ("decode", "unsupported_variant")


def test_result_is_the_callers_own() -> None:
    source = np.zeros((32, 32, 3), np.uint8)
    pixels = pixels_from_array(source, CROP)
    pixels[...] = 9
    assert source.max() == 0


# ---------------------------------------------------------------- orientation

# What the upright quadrants are when the stored ones are red, green / blue, yellow; from the EXIF standard's table of
# where the stored row 0 and column 0 lie.
UPRIGHT = {
    1: [RED, GREEN, BLUE, YELLOW],
    2: [GREEN, RED, YELLOW, BLUE],
    3: [YELLOW, BLUE, GREEN, RED],
    4: [BLUE, YELLOW, RED, GREEN],
    5: [RED, BLUE, GREEN, YELLOW],
    6: [BLUE, RED, YELLOW, GREEN],
    7: [YELLOW, GREEN, BLUE, RED],
    8: [GREEN, YELLOW, RED, BLUE],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 95}),
        ("MPO", {}),
    ],
    ids=str,
)
def test_all_eight_orientations_by_quadrant(orientation: int, kind: str, options: dict[str, object]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(quadrants(), kind, exif=exif, **options)
    assert corners(decoded(data, SQUASH)) == UPRIGHT[orientation]
    # The crop of a square middle keeps a part of each quadrant.
    assert corners(decoded(data, CROP)) == UPRIGHT[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crop_is_taken_from_the_upright_picture(orientation: int) -> None:
    # Only the centre square is white; the crop is all of it, whichever way the picture lies.
    array = np.zeros((40, 120, 3), np.uint8)
    array[:, 40:80] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(saved(Image.fromarray(array), "PNG", exif=exif), Preprocessing(40))
    assert found[:, 2:-2].min() >= 250 if orientation < 5 else found[2:-2].min() >= 250


def test_shared_orientation_files_show_the_same_picture(shared_formats: Path) -> None:
    folder = shared_formats / "orientation"
    for preprocessing in (Preprocessing(24), Preprocessing(40, "squash")):
        upright = load_pixels(os.fsencode(folder / "f1t.jpg"), preprocessing).astype(int)
        assert upright.std() > 20  # there is something to see
        for number in range(2, 9):
            turned = load_pixels(os.fsencode(folder / f"f{number}t.jpg"), preprocessing).astype(int)
            assert abs(turned - upright).mean() < 4, number


def test_heic_turned_by_its_container_is_not_turned_again(shared_formats: Path) -> None:
    path = shared_formats / "IMG_5195.HEIC"
    assert off(path.read_bytes(), SQUASH) <= 2


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))
def test_oriented_size_swaps_from_five_on(width: int, height: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("1", (width, height))
    picture.info["exif"] = exif.tobytes()
    assert oriented_size(width, height, orientation) == ImageOps.exif_transpose(picture).size


def tiff_header(order: str, entries: list[tuple[int, int, int]]) -> bytes:
    """A TIFF header and one directory; each entry a tag, a type (3 short, 4 long) and a value."""
    packed = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
    for tag, kind, value in entries:
        packed += struct.pack(order + "HHI", tag, kind, 1)
        packed += struct.pack(order + "I", value) if kind == 4 else struct.pack(order + "HH", value, 0)
    return packed + b"\0" * 4


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


JPEG = saved(Image.new("RGB", (8, 8)), "JPEG")
REST_OF_JPEG = JPEG[2:]


def by_pillow(data: bytes) -> int:
    value = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    return value if value in range(1, 9) else 1


exif_segments = st.builds(
    lambda order, before, tag: segment(0xE1, b"Exif\0\0" + tiff_header(order, sorted(before) + tag)),
    st.sampled_from("<>"),
    st.lists(st.tuples(st.integers(0x100, 0x111), st.just(3), st.integers(0, 9)), max_size=4, unique_by=lambda e: e[0]),
    st.lists(st.tuples(st.just(0x112), st.sampled_from([3, 4]), st.integers(0, 10)), max_size=1),
)
xmp_segments = st.builds(
    lambda form, value: segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x " + form % value + b"/>"),
    st.sampled_from([b'tiff:Orientation="%d"', b"<tiff:Orientation>%d</tiff:Orientation>", b'tiff:Make="%d"']),
    st.integers(0, 9),
)
other_segments = st.builds(
    segment, st.sampled_from([0xFE, 0xE2, 0xED]), st.sampled_from([b"", b"\xff\xe1\0\0", b"Exif\0\0"])
)
between = st.sampled_from([b"", b"", b"\0\0", b"abc", b"\xff\xff"])


@settings(max_examples=300, deadline=None)
@given(
    exif=st.lists(exif_segments, max_size=1),
    xmp=st.lists(xmp_segments, max_size=1),
    others=st.lists(other_segments, max_size=3),
    padding=st.lists(between, min_size=6, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_jpeg_orientation_is_what_pillow_reads(
    exif: list[bytes], xmp: list[bytes], others: list[bytes], padding: list[bytes], order: random.Random
) -> None:
    segments = exif + xmp + others
    order.shuffle(segments)
    # Pillow takes a file for a JPEG only when a marker follows at once, so the padding stands behind the segments.
    data = b"\xff\xd8" + b"".join(part + pad for pad, part in zip(padding, segments, strict=False)) + REST_OF_JPEG
    assert jpeg_orientation(data) == by_pillow(data)


def test_jpeg_orientation_of_every_shared_jpeg_is_what_pillow_reads(
    shared_photos: Path, shared_exif: Path, shared_formats: Path
) -> None:
    found = {}
    for folder in (shared_photos, shared_exif, shared_formats):
        for path in folder.rglob("*.jpg"):
            found[path] = jpeg_orientation(path.read_bytes())
            with Image.open(path) as opened:
                value = opened.getexif().get(0x0112, 1)
            assert found[path] == value, path
    assert len(found) > 360
    assert set(found.values()) == set(range(1, 9))


@given(st.binary(max_size=200))
def test_jpeg_orientation_takes_any_bytes(data: bytes) -> None:
    for head in (b"\xff\xd8", b"\xff\xd8\xff\xe1\0\x40Exif\0\0II*\0\x08\0\0\0", b"\xff\xd8\xff\xe1\0\x40Exif\0\0MM"):
        assert 1 <= jpeg_orientation(head + data) <= 8


def test_garbled_exif_costs_nothing() -> None:
    body = REST_OF_JPEG
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        # A directory that is its own successor, with entries that point to it.
        b"Exif\0\0" + tiff_header("<", [(0x8769, 4, 8), (0x8825, 4, 8)])[:-4] + struct.pack("<I", 8),
        b"Exif\0\0" + b"\xff" * 65000,
    ):
        data = b"\xff\xd8" + segment(0xE1, exif) + body
        assert decoded(data).max() == 0


# ---------------------------------------------------------------- kinds of pixels


def test_grey_and_palette_and_cmyk_photos() -> None:
    picture = smooth(90, 60, 1)
    for kind, image in (
        ("JPEG", picture.convert("L")),
        ("PNG", picture.convert("L")),
        ("PNG", picture.convert("P", palette=Image.Palette.ADAPTIVE)),
        ("PNG", picture.convert("1")),
        ("GIF", picture.convert("P", palette=Image.Palette.ADAPTIVE)),
        ("BMP", picture),
        ("BMP", picture.convert("P", palette=Image.Palette.ADAPTIVE)),
        ("JPEG", picture.convert("CMYK")),
        ("TIFF", picture.convert("CMYK")),
        ("TIFF", picture.convert("YCbCr")),
        ("TIFF", picture.convert("1")),
        ("JPEG2000", picture),
        ("JPEG2000", picture.convert("L")),
        ("WEBP", picture),
    ):
        data = saved(image, kind)
        assert off(data, SQUASH) <= 1, (kind, image.mode)
        # A mistaken inversion or a swapped channel would be far from the picture itself.
        if image.mode != "1":
            truth = plainly(image, SQUASH)
            assert abs(decoded(data) - truth).mean() < 6, (kind, image.mode)


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, YELLOW, (255, 255, 255), (0, 0, 0)])
def test_cmyk_and_ycck_jpegs_have_their_colours(colour: tuple[int, int, int]) -> None:
    cmyk = Image.new("RGB", (32, 32), colour).convert("CMYK")
    assert abs(decoded(saved(cmyk, "JPEG", quality=95)) - colour).max() <= 4
    # Written by libjpeg-turbo from CMYK it is YCCK, inverted as Adobe does.
    inverted = np.ascontiguousarray(255 - np.asarray(cmyk))
    ycck = simplejpeg.encode_jpeg(inverted, quality=98, colorspace="CMYK", colorsubsampling="444")
    assert simplejpeg.decode_jpeg_header(ycck)[2] in ("CMYK", "YCCK")
    expected = np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB").resize((32, 32))).astype(int)
    assert abs(decoded(ycck) - expected).max() <= 4


@pytest.mark.parametrize("value", [0, 1, 128, 129, 257, 32896, 65278, 65535])
def test_sixteen_bits_are_scaled_by_what_they_can_hold(value: int) -> None:
    expected = round(value / 257)
    grey = np.full((9, 9), value, np.uint16)
    assert np.unique(decoded(saved(Image.fromarray(grey), "PNG"))).tolist() == [expected]
    assert np.unique(decoded(saved(Image.fromarray(grey), "TIFF"))).tolist() == [expected]
    big_endian = Image.frombytes("I;16B", (9, 9), grey.astype(">u2").tobytes())
    assert np.unique(decoded(saved(big_endian, "TIFF"))).tolist() == [expected]


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, list[int]]], pixels: bytes, order: str = "<") -> bytes:
    """A TIFF by hand: directory first, then long values, then pixels, where tag 273 is filled in."""
    at = 8 + 2 + 12 * (len(tags) + 1) + 4
    long_values, entries = b"", b""
    sizes = {1: "B", 3: "H", 4: "I"}
    strip = at + sum(len(v) * struct.calcsize(sizes[k]) for k, v in tags.values() if len(v) * "  BHI".find("H") > 4)
    strip = at + sum(len(v) * struct.calcsize(sizes[k]) for k, v in tags.values() if len(v) * {1: 1, 3: 2, 4: 4}[k] > 4)
    for tag, (kind, values) in sorted((tags | {273: (4, [strip])}).items()):
        packed = struct.pack(f"{order}{len(values)}{sizes[kind]}", *values)
        entries += struct.pack(order + "HHI", tag, kind, len(values))
        if len(packed) > 4:
            entries += struct.pack(order + "I", at + len(long_values))
            long_values += packed
        else:
            entries += packed.ljust(4, b"\0")
    head = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags) + 1)
    return head + entries + b"\0" * 4 + long_values + pixels


def test_sixteen_bit_colour() -> None:
    row = struct.pack(">3H", 65535, 32896, 257)
    data = png(4, 4, 16, 2, b"".join(b"\0" + row * 4 for _ in range(4)))
    assert abs(decoded(data) - (255, 128, 1)).max() <= 1
    for order in "<>":
        tags = {256: (3, [4]), 257: (3, [4]), 258: (3, [16, 16, 16]), 259: (3, [1]), 262: (3, [2]), 277: (3, [3])}
        tags |= {278: (3, [4]), 279: (4, [96])}
        data = tiff(tags, struct.pack(order + "3H", 65535, 32896, 257) * 16, order)
        assert abs(decoded(data) - (255, 128, 1)).max() <= 1, order


def test_float_tiff_whether_to_one_or_to_255_and_not_finite() -> None:
    for values, expected in ((0.5, 128), (1.0, 255), (0.0, 0), (200.0, 200), (1e30, 255), (np.nan, 0), (-5.0, 0)):
        data = saved(Image.fromarray(np.full((9, 9), values, np.float32)), "TIFF")
        assert np.unique(decoded(data)).tolist() == [expected]


def test_transparency_is_laid_over_white() -> None:
    half = [abs(c // 2 + 128) for c in (200, 100, 0)]
    for kind in ("PNG", "WEBP", "TIFF", "AVIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(Image.new("RGBA", (16, 16), (200, 100, 0, 127)), kind, **options)
        assert abs(decoded(data) - half).max() <= 4, kind
        clear = decoded(saved(Image.new("RGBA", (16, 16), (200, 100, 0, 0)), kind, **options))
        assert clear.min() >= 252, kind
    assert abs(decoded(saved(Image.new("LA", (9, 9), (0, 127)), "PNG")) - 128).max() <= 1
    for mode, colour in (("L", 7), ("RGB", (1, 2, 3)), ("1", 0)):
        data = saved(Image.new(mode, (9, 9), colour), "PNG", transparency=colour)
        assert decoded(data).min() == 255, mode
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 200, 100, 0])
    assert decoded(saved(palette, "PNG", transparency=1)).min() == 255
    assert abs(decoded(saved(palette, "PNG", transparency=bytes([255, 127]))) - half).max() <= 2
    assert decoded(saved(palette, "GIF", transparency=1)).min() == 255
    assert abs(decoded(saved(palette, "PNG")) - (200, 100, 0)).max() == 0


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "MPO", "WEBP", "PNG", "AVIF"])
def test_first_of_several_frames(kind: str) -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert corners(decoded(data)) == [RED] * 4


def test_gif_whose_frame_is_smaller_than_its_screen() -> None:
    frame = saved(Image.new("P", (8, 8), 0), "GIF")
    data = bytearray(frame)
    data[6:10] = struct.pack("<HH", 16, 16)
    assert decoded(bytes(data)).shape == (32, 32, 3)


# ---------------------------------------------------------------- oddities of JPEG that cost nothing


def odd_jpegs() -> dict[str, bytes]:
    plain = saved(quadrants(), "JPEG", quality=95)
    tables = plain.index(b"\xff\xdb")
    jfif = plain.index(b"JFIF\0") + 5
    scan = plain.index(b"\xff\xda")
    end_of_scan_header = scan + 2 + int.from_bytes(plain[scan + 2 : scan + 4], "big")
    progressive = saved(quadrants(), "JPEG", quality=95, progressive=True)
    second = progressive.index(b"\xff\xc2")
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07")
    return {
        "padded": plain[:tables] + b"\0" * 10 + plain[tables:],
        "fill bytes": plain[:tables] + b"\xff" * 1000 + plain[tables:],
        "padded progressive": progressive[:second] + b"\0" * 10 + progressive[second:],
        "padded end": plain[:-2] + b"\0" * 99 + plain[-2:],
        "trailer": plain + b"\0" * 999,
        "second picture behind": plain + saved(Image.new("RGB", (9, 9)), "JPEG")[:-20],
        "JFIF 3": plain[:jfif] + b"\3" + plain[jfif + 1 :],
        "odd scan parameters": plain[: end_of_scan_header - 2] + b"\0\1" + plain[end_of_scan_header:],
        "odd Adobe transform": plain[:2] + adobe + plain[2:],
        "progressive": saved(quadrants(), "JPEG", quality=95, progressive=True),
        "optimised": saved(quadrants(), "JPEG", quality=95, optimize=True),
        "restart markers": saved(quadrants(), "JPEG", quality=95, restart_marker_blocks=2),
        "4:2:2": saved(quadrants(), "JPEG", quality=95, subsampling=1),
        "comment": saved(quadrants(), "JPEG", quality=95, comment=b"x" * 60000),
    }


@pytest.mark.parametrize("name", odd_jpegs())
def test_odd_but_whole_jpegs_are_decoded(name: str) -> None:
    assert corners(decoded(odd_jpegs()[name])) == [RED, GREEN, BLUE, YELLOW]


def test_padded_jpeg_that_is_cut_is_still_found_out() -> None:
    data = odd_jpegs()["padded"]
    for missing in (60, 200, 400):
        assert failure(data[:-missing]).code == "truncated"


def test_heic_whose_item_types_are_not_text_does_not_crash(shared_formats: Path) -> None:
    # pi-heif 1.4 ends the process on these; in one of its own, so that the others go on if it does again.
    data = (shared_formats / "samplefilehub.heif").read_bytes()
    at = data.index(b"application/rdf+xml")
    program = (
        "import sys\n"
        "from geoinfer.images import Preprocessing, decode_pixels\n"
        "data = bytearray(sys.stdin.buffer.read())\n"
        f"for at in ({at}, {at - 1}, {at - 3}):\n"
        "    damaged = bytes(data[:at]) + b'\\xff' + bytes(data[at + 1:])\n"
        "    print(decode_pixels(damaged, 'heif', Preprocessing(8)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    assert done.stdout.split(b"\n")[:1] == [b"(8, 8, 3)"]


def test_orientation_behind_padding_is_found() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(quadrants(), "JPEG", quality=95, exif=exif)
    at = data.index(b"\xff\xe1")
    assert corners(decoded(data[:at] + b"\0" * 7 + data[at:])) == UPRIGHT[6]


def test_damaged_middle_of_a_jpeg_is_an_error_not_grey_pixels() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8))
    data = bytearray(saved(noise, "JPEG", quality=90))
    middle = len(data) // 2
    data[middle : middle + 400] = b"\xff\0" * 200
    assert failure(bytes(data)).code in ("corrupt", "truncated")


@pytest.mark.parametrize("compressed", [False, True])
def test_png_with_an_enormous_text_is_decoded(compressed: bool) -> None:
    text = PngInfo()
    text.add_text("prompt", "x" * (3_000_000 if compressed else 70_000_000), zip=compressed)
    data = saved(quadrants(), "PNG", pnginfo=text)
    assert corners(decoded(data)) == [RED, GREEN, BLUE, YELLOW]


# ---------------------------------------------------------------- truncated, damaged, too large


def real_files() -> dict[str, bytes]:
    picture = smooth(96, 64, 5)
    noise = np.random.default_rng(1).integers(0, 40, (64, 96, 3))
    picture = Image.fromarray((np.asarray(picture) // 2 + noise).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "jpeg": saved(picture, "JPEG", exif=exif),
        "progressive": saved(picture, "JPEG", progressive=True),
        "cmyk": saved(picture.convert("CMYK"), "JPEG"),
        "png": saved(picture, "PNG", exif=exif),
        "webp": saved(picture, "WEBP", exif=exif),
        "tiff": saved(picture, "TIFF", exif=exif),
        "tiff lzw": saved(picture, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": saved(picture, "TIFF", compression="jpeg"),
        "gif": saved(picture, "GIF"),
        "bmp": saved(picture, "BMP"),
        "avif": saved(picture, "AVIF"),
        "jpeg2000": saved(picture, "JPEG2000"),
    }
    heic = SHARED / "formats" / "samplefilehub.heif"
    return files | ({"heif": heic.read_bytes()} if heic.is_file() else {})


FILES = real_files()


@pytest.mark.parametrize("name", FILES)
def test_cut_short_at_many_points(name: str) -> None:
    data = FILES[name]
    codes = []
    for at in np.linspace(32, len(data) * 0.97, 40).astype(int).tolist():
        codes.append(failure(data[:at], sniff(data[:512])[0]).code)  # type: ignore[index]
    # A cut in the middle of a TIFF's directory cannot always be told from damage.
    assert set(codes) <= {"truncated", "corrupt"} if name.startswith("tiff") else set(codes) == {"truncated"}
    assert codes.count("truncated") >= 34


def pixels_or_image_error(data: bytes, kind: str) -> None:
    try:
        pixels = decode_pixels(data, kind, SQUASH)
    except ImageError as error:
        caught = (error.stage, error.code)
    else:
        assert pixels.shape == (32, 32, 3)
        return
    assert caught in {("decode", code) for code in ("truncated", "corrupt", "too_many_pixels", "unsupported_variant")}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=70, deadline=None)
@given(data=st.data())
def test_damage_gives_pixels_or_an_image_error_and_nothing_else(name: str, data: st.DataObject) -> None:
    whole = FILES[name]
    damaged = bytearray(whole[: data.draw(st.integers(1, len(whole)))] if data.draw(st.booleans()) else whole)
    # Headers are where it hurts, so half of the flips go there.
    places = st.one_of(st.integers(0, min(400, len(damaged)) - 1), st.integers(0, len(damaged) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        damaged[place] = value
    pixels_or_image_error(bytes(damaged), sniff(whole[:512])[0])  # type: ignore[index]


KINDS = ["jpeg", "png", "gif", "webp", "tiff", "bmp", "jpeg2000", "avif", "heif"]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KINDS), st.binary(max_size=300), st.integers(0, 40))
def test_random_bytes_behind_a_real_beginning(kind: str, noise: bytes, kept: int) -> None:
    pixels_or_image_error(noise, kind)
    pixels_or_image_error(FILES.get(kind, b"")[:kept] + noise, kind)


def test_shared_broken_files(shared_formats: Path) -> None:
    for path in sorted(shared_formats.iterdir()):
        if path.is_file() and ("broken" in path.name or "empty" in path.name):
            pixels_or_image_error(path.read_bytes(), sniff(path.read_bytes()[:512])[0])  # type: ignore[index]


def bombs() -> dict[str, bytes]:
    """Files of a few hundred bytes that claim to be huge, and hold no pixels to speak of."""
    small = {kind: saved(Image.new("RGB", (16, 16)), kind) for kind in ("JPEG", "GIF", "BMP", "AVIF", "JPEG2000")}
    jpeg = bytearray(small["JPEG"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    gif = bytearray(small["GIF"])
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(small["BMP"])
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    avif = bytearray(small["AVIF"])
    ispe = avif.index(b"ispe")
    avif[ispe + 8 : ispe + 16] = struct.pack(">II", 15000, 15000)
    jp2 = bytearray(small["JPEG2000"])
    ihdr = jp2.index(b"ihdr")
    jp2[ihdr + 4 : ihdr + 12] = struct.pack(">II", 60000, 60000)
    siz = jp2.index(b"\xff\x51")
    jp2[siz + 6 : siz + 14] = struct.pack(">II", 60000, 60000)
    tags = {256: (4, [60000]), 257: (4, [60000]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1]), 277: (3, [1])}
    vp8x = b"VP8X" + struct.pack("<II", 10, 0) + (16382).to_bytes(3, "little") * 2
    vp8l = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + (16382 | 16382 << 14).to_bytes(4, "little") + b"\0" * 5
    webp = vp8l
    return {
        "jpeg": bytes(jpeg),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "png": png(60000, 60000, 8, 2, b""),
        "png of bits": png(200_000, 200_000, 1, 0, b""),
        "tiff": tiff(tags | {278: (4, [60000]), 279: (4, [10])}, b"\0" * 10),
        "webp": b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
        "webp canvas": b"RIFF" + struct.pack("<I", 4 + len(vp8x + vp8l)) + b"WEBP" + vp8x + vp8l,
        "avif": bytes(avif),
        "jpeg2000": bytes(jp2),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_by_their_pixel_count(name: str) -> None:
    error = failure(bombs()[name])
    assert error.code == "too_many_pixels", error


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    for name, data in bombs().items():
        (tmp_path / f"{name.replace(' ', '-')}.img").write_bytes(data)
    program = (
        "import os, resource, sys\n"
        "from geoinfer.errors import ImageError\n"
        "from geoinfer.images import Preprocessing, load_pixels\n"
        "import PIL.Image; PIL.Image.init()\n"
        "names = sorted(os.listdir(os.fsencode(sys.argv[1])))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "refused = 0\n"
        "for name in names:\n"
        "    try: load_pixels(os.path.join(os.fsencode(sys.argv[1]), name), Preprocessing())\n"
        "    except ImageError: refused += 1\n"
        "print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    refused, grown_kib = map(int, done.stdout.split())
    assert refused == len(bombs())
    assert grown_kib < 64 << 10
    assert done.stderr == ""


def test_the_limit_itself() -> None:
    # One row more than allowed is refused for its size; one of the allowed size fails only for having no pixels.
    width = 10_000
    height = MAX_PIXELS // width
    assert failure(png(width, height + 1, 8, 0, b"")).code == "too_many_pixels"
    assert failure(png(width, height, 8, 0, b"")).code != "too_many_pixels"


def test_picture_of_no_pixels() -> None:
    assert failure(png(0, 5, 8, 2, b"")).code == "corrupt"


# ---------------------------------------------------------------- what the user's terminal and threads see


def test_nothing_is_printed(tmp_path: Path) -> None:
    """libtiff and Pillow have much to say of damaged files; it belongs in the error report."""
    cut = {f"{name}-{at}": data[: len(data) * at // 10] for name, data in FILES.items() for at in (2, 5, 9)}
    tags = {256: (3, [4]), 257: (3, [4]), 258: (3, [8] * 9), 259: (3, [1]), 262: (3, [2]), 277: (3, [9])}
    cut["samples"] = tiff(tags | {278: (3, [4]), 279: (4, [144])}, b"\0" * 144)
    cut["exif"] = b"\xff\xd8" + segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1\x12") + REST_OF_JPEG
    damaged_lzw = bytearray(FILES["tiff lzw"])
    damaged_lzw[200:1200] = b"\xaa" * 1000
    cut["lzw"] = bytes(damaged_lzw)
    cut["group4"] = saved(Image.new("1", (64, 64)), "TIFF", compression="group4").replace(b"\x00\x10\x01", b"\xff\1\1")
    cut["large"] = png(12_000, 10_000, 1, 0, b"")  # where Pillow already speaks of a bomb and geoinfer does not
    for name, data in cut.items():
        (tmp_path / name.replace(" ", "-")).write_bytes(data)
    program = (
        "import os, sys\n"
        "from geoinfer.errors import ImageError\n"
        "from geoinfer.images import Preprocessing, load_pixels, read_image_file, read_metadata\n"
        "failed = 0\n"
        "for name in sorted(os.listdir(sys.argv[1])):\n"
        "    path = os.path.join(os.fsencode(sys.argv[1]), os.fsencode(name))\n"
        "    try: read_metadata(*read_image_file(path))\n"
        "    except ImageError: pass\n"
        "    try: load_pixels(path, Preprocessing())\n"
        "    except ImageError: failed += 1\n"
        "print(failed)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert int(done.stdout) >= 30


def test_first_photos_of_every_format_in_many_threads_at_once(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name.replace(" ", "-")).write_bytes(data)
    program = (
        "import os, sys, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from geoinfer.images import Preprocessing, load_pixels\n"
        "folder = os.fsencode(sys.argv[1])\n"
        "names = sorted(os.listdir(folder), reverse=True) * 8\n"
        "names.sort(key=lambda name: name != b'heif')\n"
        "gate = threading.Barrier(16)\n"
        "def work(number):\n"
        "    gate.wait()\n"
        "    return [load_pixels(os.path.join(folder, n), Preprocessing(32)).tobytes() for n in names[number::16]]\n"
        "sys.setswitchinterval(1e-5)\n"
        "with ThreadPoolExecutor(16) as pool: got = list(pool.map(work, range(16)))\n"
        "seen = {}\n"
        "for number, group in enumerate(got):\n"
        "    for name, pixels in zip(names[number::16], group, strict=True):\n"
        "        seen.setdefault(name, set()).add(pixels)\n"
        "print(len(seen), sum(map(len, got)), max(map(len, seen.values())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout.split(), done.stderr) == ([str(len(FILES)), str(8 * len(FILES)), "1"], "")


def test_heic_without_its_package_says_what_to_install(shared_formats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    error = failure((shared_formats / "samplefilehub.heif").read_bytes())
    assert error.code == "heic_support_missing"
    assert "geoinfer-toolkit[heic]" in str(error)


def test_decoding_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in FILES.values():
            decoded(data)
