"""Whether a model's int8 sibling may take its place here: close enough on pictures, on a CPU that sums bytes exactly.

How fast it is, is measured elsewhere. That it passed its gate at export is not enough: that was on another CPU, whose
kernels may round otherwise, and on other photos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.engine_check import drawn_pictures, row_cosines
from geoinfer.errors import MismatchError
from geoinfer.machine import sums_bytes_exactly
from geoinfer.model_metadata import INT8_MIN_COSINE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.backends.base import Embedder

_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether int8 may be used.

    Attributes:
        min_cosine: the smallest between a picture's two embeddings; NaN where none was compared.
        pictures: compared on.
        passes: whether it may be used.
        reason: why, or why not, as a clause for a reader.
    """

    min_cosine: float
    pictures: int
    passes: bool
    reason: str


def int8_verdict(fp32: Embedder, int8: Embedder, pixels: NDArray[np.uint8] | None = None) -> Verdict:
    """Compares the embeddings of a model and of its int8 sibling.

    A CPU that does not sum products of bytes exactly never gets int8, whatever the cosines.

    Args:
        fp32: the model, open on the CPU.
        int8: its sibling, likewise.
        pixels: (n, size, size, 3) uint8, pictures to compare on, n at least 1: photos of the run are best. Drawn ones
            if None.

    Raises:
        MismatchError: the two are not of one embedder.
        ModelError: one of them fails.
    """
    if fp32.identity != int8.identity:
        raise MismatchError(f"the int8 model is {int8.identity}, the model it should stand for {fp32.identity}")
    if not sums_bytes_exactly():
        return Verdict(float("nan"), 0, False, "this CPU does not sum products of bytes exactly (it has no VNNI)")
    kind = "photos"
    if pixels is None:
        pixels, kind = drawn_pictures(fp32.identity.preprocessing.size), "drawn pictures"
    worst = float(row_cosines(_embedded(int8, pixels), _embedded(fp32, pixels)).min())
    passes = worst >= INT8_MIN_COSINE
    shown = math.floor(1e4 * worst) / 1e4  # so that what fails never looks like the limit
    reason = f"smallest cosine with fp32 {shown:.4f} on {len(pixels)} {kind}, "
    reason += f"{'at least' if passes else 'less than'} the {INT8_MIN_COSINE:g} that int8 is held to"
    return Verdict(worst, len(pixels), passes, reason)


def _embedded(embedder: Embedder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([embedder.embed(pixels[at : at + _AT_ONCE]) for at in range(0, len(pixels), _AT_ONCE)])
