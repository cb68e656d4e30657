from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geoinfer.backends import EmbedderIdentity, open_embedder
from geoinfer.bundle import SHIPPED
from geoinfer.errors import MismatchError
from geoinfer.images import Preprocessing, load_pixels
from geoinfer.self_tuning import precision
from geoinfer.self_tuning.precision import int8_verdict

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 8
IDENTITY = EmbedderIdentity("two numbers", 2, Preprocessing(size=SIZE))


class Turned:
    """Embeds a picture as (cos a, sin a), a its first byte in degrees, turned further by `extra` where it is 40."""

    def __init__(self, extra: float = 0.0, *, identity: EmbedderIdentity = IDENTITY, nan: bool = False) -> None:
        self.identity, self.extra, self.nan = identity, extra, nan
        self.batches: list[int] = []

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        byte = pixels[:, 0, 0, 0].astype(np.float64)
        angles = np.radians(byte + np.where(byte == 40, self.extra, 0.0))
        found = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        if self.nan:
            found[byte == 40] = np.nan
        return found


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "sums_bytes_exactly", lambda: True)


def pictures(*bytes_: int) -> np.ndarray:
    return np.broadcast_to(np.array(bytes_, np.uint8)[:, None, None, None], (len(bytes_), SIZE, SIZE, 3))


# The limit, cos a = 0.98, lies at 11.4783 degrees.
@pytest.mark.parametrize(("degrees", "passes"), [(0.0, True), (11.47, True), (11.49, False), (180.0, False)])
def test_the_worst_picture_decides(degrees: float, passes: bool) -> None:
    found = int8_verdict(Turned(), Turned(degrees), pictures(10, 40, 90))
    assert found.passes is passes
    assert found.min_cosine == pytest.approx(math.cos(math.radians(degrees)), abs=1e-6)
    assert found.pictures == 3
    word = "at least" if passes else "less than"
    assert found.reason.endswith(f"on 3 photos, {word} the 0.98 that int8 is held to")


def test_what_fails_never_looks_like_the_limit() -> None:
    found = int8_verdict(Turned(), Turned(11.4800), pictures(40))
    assert 0.97995 < found.min_cosine < 0.98
    assert found.reason.startswith("smallest cosine with fp32 0.9799 ")


def test_all_pictures_are_looked_at() -> None:
    model = Turned()
    found = int8_verdict(model, Turned(20.0), pictures(*[1] * 20, 40))
    assert (found.pictures, found.passes, sum(model.batches)) == (21, False, 21)


def test_numbers_that_are_none_fail() -> None:
    found = int8_verdict(Turned(), Turned(nan=True), pictures(10, 40))
    assert (found.min_cosine, found.passes) == (-1.0, False)


def test_drawn_pictures_where_none_are_given() -> None:
    found = int8_verdict(Turned(), Turned())
    assert (found.pictures, found.passes) == (16, True)
    assert "on 16 drawn pictures" in found.reason


def test_never_on_a_cpu_that_does_not_sum_bytes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "sums_bytes_exactly", lambda: False)
    model = Turned()
    found = int8_verdict(model, Turned(), pictures(10))
    assert (found.passes, found.pictures, model.batches) == (False, 0, [])
    assert math.isnan(found.min_cosine)
    assert "does not sum products of bytes exactly" in found.reason


def test_two_embedders_are_not_compared() -> None:
    other = EmbedderIdentity("two others", 2, Preprocessing(size=SIZE))
    with pytest.raises(MismatchError, match="the int8 model is two others"):
        int8_verdict(Turned(), Turned(identity=other), pictures(10))


def test_the_shipped_sibling_passes(example_photos: Path) -> None:
    """On photos that it was not calibrated on, and on what is measured where there are none."""
    with (
        open_embedder(SHIPPED / "model.onnx", "cpu", threads=1) as model,
        open_embedder(SHIPPED / "model.int8.onnx", "cpu", threads=1) as sibling,
    ):
        photos = sorted(example_photos.iterdir())
        pixels = np.stack([load_pixels(bytes(path), model.identity.preprocessing) for path in photos])
        assert int8_verdict(model, sibling, pixels).min_cosine > 0.985
        assert int8_verdict(model, sibling).passes
