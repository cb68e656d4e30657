"""A perceptual hash: tells copies, re-encodings and burst shots of one picture without asking any embedder.

Calibration must not let a photo be located by its own copy. An embedder cannot be asked which photos are copies: a good
one puts different photos of one town as close together as copies, and leaving those out would hide how good it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

HASH_BYTES: Final = 32
_SIDE: Final = 16

NEAR_DUPLICATE_BITS: Final = 40
"""Pictures whose hashes differ in at most this many of 256 bits are near-duplicates; unrelated ones differ in ~128."""


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The difference hash of a picture: which of neighbouring cells of a 17 x 16 grid is brighter.

    Args:
        pixels: (height, width, 3) uint8, RGB.

    Returns:
        (32,) uint8, 256 bits.
    """
    small = Image.fromarray(pixels).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1])


def hash_distances(hashes: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Differing bits between hashes (..., 32) and others (..., 32), broadcast; int64 without the last axis."""
    return np.bitwise_count(hashes ^ others).sum(axis=-1, dtype=np.int64)
