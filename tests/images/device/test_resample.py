from __future__ import annotations

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoinfer.images.device.resample import rows_first, taps
from tests.images.device.reference import resized

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
HOW = st.sampled_from(sorted(FILTERS))


def random_pixels(width: int, height: int, seed: int, *, hard: bool) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Black and white alone make the filters overshoot, which is cut off.
    return np.where(pixels > 127, 255, 0).astype(np.uint8) if hard else pixels


@given(
    width=st.integers(1, 300), height=st.integers(1, 300), size=st.sampled_from([1, 2, 7, 16, 61, 224]), how=HOW,
    box=st.none() | st.tuples(*[st.floats(0, 1)] * 4), seed=st.integers(0, 2**32), hard=st.booleans(),
)  # fmt: skip
def test_pixels_are_those_of_pillow(width, height, size, how, box, seed, hard):
    left, right = sorted((box[0] * width, box[1] * width)) if box else (0.0, float(width))
    top, bottom = sorted((box[2] * height, box[3] * height)) if box else (0.0, float(height))
    if min(right - left, bottom - top) < 1e-3 or height > 100 * width:
        return
    pixels = random_pixels(width, height, seed, hard=hard)
    expected = Image.fromarray(pixels).resize((size, size), FILTERS[how], box=(left, top, right, bottom))
    found = resized(pixels, size, how, (left, top, right, bottom), rows_first=rows_first(width, height, size))
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("how", sorted(FILTERS))
@pytest.mark.parametrize(("width", "height"), [(4032, 40), (40, 1800), (700, 1300)])
def test_long_sides(how, width, height):
    pixels = random_pixels(width, height, 1, hard=False)
    expected = Image.fromarray(pixels).resize((224, 224), FILTERS[how])
    box = (0.0, 0.0, float(width), float(height))
    found = resized(pixels, 224, how, box, rows_first=rows_first(width, height, 224))
    assert np.array_equal(found, np.asarray(expected))


@given(width=st.integers(1, 9000), height=st.integers(1, 9000), size=st.integers(1, 600))
def test_which_side_comes_first(width, height, size):
    assert rows_first(width, height, size, pillow=12)
    # Said as Pillow 13's own source says it.
    tall = height - size > 0 and height - size > (width - size) * 2
    assert rows_first(width, height, size, pillow=13) == (not tall)
    assert rows_first(width, height, size) == rows_first(
        width, height, size, pillow=int(PIL.__version__.split(".", maxsplit=1)[0])
    )


@given(source=st.integers(1, 5000), size=st.integers(1, 300), how=HOW, seed=st.integers(0, 2**32))
def test_tables_stay_within_the_picture(source, size, how, seed):
    edges = np.random.default_rng(seed).uniform(0, source, 2)
    table = taps(source, float(edges.min()), float(edges.max()), size, how)
    assert (table.first >= 0).all()
    assert (table.first + table.count <= source).all()
    # As the kernel takes for granted where it decides what to stage.
    counted = table.count > 0
    assert (np.diff(table.first[counted]) >= 0).all()
    assert (np.diff((table.first + table.count)[counted]) >= 0).all()
    begin, end = table.reach
    assert 0 <= begin <= end <= source
    beyond = np.arange(len(table.weights))[:, None] >= table.count
    assert (table.weights[beyond] == 0).all()
    # What is white stays white: the sum of the weights is one, but for rounding each.
    assert (abs(table.weights.sum(axis=0)[counted] - (1 << 22)) <= table.count[counted]).all()


def test_tables_are_shared_and_safe():
    table = taps(100, 0.0, 100.0, 10, "bicubic")
    assert taps(100, 0.0, 100.0, 10, "bicubic") is table
    with pytest.raises(ValueError, match="read-only"):
        table.weights[0] = 1
