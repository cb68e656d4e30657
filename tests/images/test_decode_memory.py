"""Where decoded pixels lie: no copies that nobody needs, and no photo in another's memory."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from geoinfer.errors import ImageError
from geoinfer.images import Preprocessing, decode_image, decode_pixels, pixels_from_array, resize_decoded
from geoinfer.images import decode as decode_module

assert pa  # loaded, as it is in every run after a few photos


def jpeg(width: int, height: int, seed: int = 0, **options: object) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_pixels_are_written_into_the_slot(kind: str) -> None:
    batch = np.full((3, 32, 32, 3), 7, np.uint8)
    data = jpeg(200, 120)
    if kind == "png":
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).save(buffer, "PNG")
        data = buffer.getvalue()
    returned = decode_pixels(data, kind, Preprocessing(32), batch[1])
    assert returned.base is batch
    np.testing.assert_array_equal(batch[1], decode_pixels(data, kind, Preprocessing(32)))
    assert (batch[[0, 2]] == 7).all()


def test_an_array_is_resized_into_the_slot() -> None:
    out = np.empty((8, 8, 3), np.uint8)
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert pixels_from_array(array, Preprocessing(8), out) is out
    np.testing.assert_array_equal(out, pixels_from_array(array, Preprocessing(8)))


def test_a_failure_leaves_the_slot_alone() -> None:
    out = np.full((32, 32, 3), 7, np.uint8)
    with pytest.raises(ImageError):
        decode_pixels(jpeg(640, 480)[:2000], "jpeg", Preprocessing(32), out)
    assert (out == 7).all()


def test_both_steps_are_the_whole() -> None:
    preprocessing = Preprocessing(100, "squash")
    for data in (jpeg(900, 700), jpeg(150, 100)):
        decoded = decode_image(data, "jpeg", preprocessing)
        np.testing.assert_array_equal(
            resize_decoded(decoded, preprocessing), decode_pixels(data, "jpeg", preprocessing)
        )


def test_a_decoded_picture_is_its_own_unless_memory_is_to_be_used_again() -> None:
    preprocessing = Preprocessing(64)
    first, second = jpeg(300, 200, 1), jpeg(300, 200, 2)
    kept = decode_image(first, "jpeg", preprocessing)
    before = resize_decoded(kept, preprocessing)
    decode_pixels(second, "jpeg", preprocessing)
    np.testing.assert_array_equal(resize_decoded(kept, preprocessing), before)
    lent = decode_image(first, "jpeg", preprocessing, reuse_memory=True)
    decode_pixels(second, "jpeg", preprocessing)
    assert (resize_decoded(lent, preprocessing) != before).any()


def test_photos_of_all_sizes_in_turn_and_at_once_do_not_touch_each_other() -> None:
    photos = [jpeg(width, height, seed) for seed, (width, height) in enumerate([(640, 480), (16, 900), (2000, 1500)])]
    preprocessing = Preprocessing(224)
    expected = [resize_decoded(decode_image(data, "jpeg", preprocessing), preprocessing) for data in photos]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda i: decode_pixels(photos[i % 3], "jpeg", preprocessing), range(60))
        for i, pixels in enumerate(found):
            np.testing.assert_array_equal(pixels, expected[i % 3])


def test_a_picture_larger_than_what_is_kept_is_decoded() -> None:
    data = jpeg(5000, 1800)  # decoded in full, 36 MB
    preprocessing = Preprocessing(1024, "squash")
    plain = Image.open(io.BytesIO(data)).resize((1024, 1024), Image.Resampling.BICUBIC)
    assert abs(decode_pixels(data, "jpeg", preprocessing).astype(int) - np.asarray(plain)).mean() <= 2


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize(
    ("width", "height", "size", "eighths"),
    [(1600, 1200, 64, 1), (1600, 1200, 100, 2), (1600, 1200, 224, 3), (1600, 1200, 260, 4), (1600, 1200, 320, 8)],
)
def test_jpegs_are_decoded_no_larger_than_needed(
    progressive: bool, width: int, height: int, size: int, eighths: int
) -> None:
    decoded = decode_image(jpeg(width, height, progressive=progressive), "jpeg", Preprocessing(size))
    assert decoded.image.size == (width * eighths // 8, height * eighths // 8)
    assert decoded.full_size == (width, height)
    assert decoded.scale == eighths / 8


def test_no_new_memory_for_each_photo() -> None:
    """Each page that the kernel clears is a fault; the pixels of this photo are 768 pages, twice that with a copy."""
    data = jpeg(1024, 768)
    preprocessing = Preprocessing(260)
    for _ in range(10):
        decode_pixels(data, "jpeg", preprocessing)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        decode_pixels(data, "jpeg", preprocessing)
    # Other threads of the test run may fault meanwhile; Pillow's rows between its two passes are 195 pages.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20 < 500


def test_the_first_photos_are_the_same_without_arrow() -> None:
    """In a process of its own: a command that answers one photo does not wait for pyarrow to be imported."""
    program = (
        "import sys\n"
        "from geoinfer.images import Preprocessing, decode_pixels\n"
        "data = sys.stdin.buffer.read()\n"
        "first = decode_pixels(data, 'jpeg', Preprocessing(50))\n"
        "assert 'pyarrow' not in sys.modules\n"
        "for _ in range(20):\n"
        "    assert (decode_pixels(data, 'jpeg', Preprocessing(50)) == first).all()\n"
        "assert 'pyarrow' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], input=jpeg(300, 200), check=True, cwd=Path(__file__).parents[2])


def test_memory_that_ends_while_resizing_costs_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode_module, "resize_decoded", no_memory)
    data = jpeg(64, 64)
    with pytest.raises(ImageError) as caught:
        decode_pixels(data, "jpeg", Preprocessing(32))
    assert (caught.value.code, caught.value.size_bytes) == ("not_enough_memory", len(data))
