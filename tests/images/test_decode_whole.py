from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from geoinfer.errors import ImageError
from geoinfer.images import decode_whole


def encoded(width: int, height: int, kind: str, orientation: int, seed: int = 0) -> bytes:
    """A picture of few frequencies, as photos are; JPEG keeps it nearly as it is."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind, exif=exif, quality=95)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700), st.integers(1, 700), st.sampled_from(["jpeg", "png"]), st.integers(1, 8), st.integers(1, 200)
)
def test_it_is_the_whole_photo_made_smaller(width: int, height: int, kind: str, orientation: int, longest: int) -> None:
    data = encoded(width, height, kind, orientation, seed=width)
    pixels = decode_whole(data, kind, longest)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    shrink = min(longest / max(upright.size), 1)
    size = tuple(max(round(side * shrink), 1) for side in upright.size)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (size[1], size[0], 3)
    plainly = np.asarray(upright.resize(size, Image.Resampling.BICUBIC)).astype(int)
    assert abs(pixels.astype(int) - plainly).mean() <= 4


def test_damage_is_an_error_as_for_a_model() -> None:
    data = encoded(300, 200, "jpeg", 1)
    with pytest.raises(ImageError, match="ends before the picture does") as caught:
        decode_whole(data[: len(data) // 2], "jpeg", 100)
    assert (caught.value.code, caught.value.size_bytes) == ("truncated", len(data) // 2)
