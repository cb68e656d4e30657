from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoinfer.images.near_duplicates import HASH_BYTES, NEAR_DUPLICATE_BITS, hash_distances, perceptual_hash

if TYPE_CHECKING:
    from pathlib import Path


def by_loops(pixels: np.ndarray) -> list[int]:
    """The hash of a picture of 17 x 16 greys, one bit after the other, first bit highest."""
    bits = []
    for row in range(16):
        for column in range(16):
            bits.append(int(pixels[row, column + 1, 0]) > int(pixels[row, column, 0]))
    return [sum(bit << (7 - place) for place, bit in enumerate(bits[i : i + 8])) for i in range(0, 256, 8)]


@given(st.integers(0, 2**32 - 1))
def test_hash_of_a_grid_of_its_own_size_is_the_comparison_of_neighbours(seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (16, 17, 1), np.uint8)
    pixels = grey.repeat(3, axis=2)
    found = perceptual_hash(pixels)
    assert found.dtype == np.uint8
    assert found.tolist() == by_loops(pixels)


def test_known_pictures() -> None:
    ramp = np.broadcast_to(np.arange(0, 170, 10, dtype=np.uint8)[None, :, None], (16, 17, 3))
    assert perceptual_hash(ramp).tolist() == [255] * HASH_BYTES
    assert perceptual_hash(np.ascontiguousarray(ramp[:, ::-1])).tolist() == [0] * HASH_BYTES
    assert perceptual_hash(np.full((1, 1, 3), 9, np.uint8)).tolist() == [0] * HASH_BYTES


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_distances_are_differing_bits_one_by_one(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 256, (rows, 1, 32), np.uint8), rng.integers(0, 256, (columns, 32), np.uint8)
    found = hash_distances(one, other)
    assert found.shape == (rows, columns)
    assert found.dtype == np.int64
    for i in range(rows):
        for j in range(columns):
            assert found[i, j] == sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(one[i, 0], other[j], strict=True))


def test_re_encoded_copies_are_near_and_other_photos_are_not(example_photos: Path) -> None:
    paths = sorted(example_photos.glob("*.jpg"))
    hashes, copies = [], []
    for path in paths:
        with Image.open(path) as opened:
            photo = opened.convert("RGB").resize((224, 224))
        hashes.append(perceptual_hash(np.asarray(photo)))
        buffer = io.BytesIO()
        photo.resize((150, 150)).save(buffer, "JPEG", quality=40)
        copies.append(perceptual_hash(np.asarray(Image.open(buffer).convert("RGB").resize((224, 224)))))
    distances = hash_distances(np.stack(hashes)[:, None], np.stack(copies)[None])
    assert len(paths) >= 5
    same = np.eye(len(paths), dtype=bool)
    assert distances[same].max() <= NEAR_DUPLICATE_BITS
    assert distances[~same].min() > NEAR_DUPLICATE_BITS
