from __future__ import annotations

import importlib
import io
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from geoinfer.images import Preprocessing
from tests.conftest import CHECKOUT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module("bench_decode")


def test_the_rate_is_that_of_all_threads(bench: Any) -> None:
    """Of a decoder that only waits, and lets the others wait beside it."""
    assert bench.rate(lambda _: time.sleep(0.02), [b""], 1, 0.2) == pytest.approx(50, rel=0.3)
    assert bench.rate(lambda _: time.sleep(0.02), [b""], 4, 0.2) == pytest.approx(200, rel=0.3)


def test_ratios_are_taken_within_rounds(bench: Any) -> None:
    ways = {"one thread": [10.0, 20.0, 30.0], "threads": [20.0, 40.0, 60.0]}
    ways |= {"as a run": [10.0, 20.0, 60.0], "Pillow": [5.0, 5.0, 5.0]}
    assert bench.table({"PNG": ways}, {"PNG": 1.234}, 2).splitlines() == [
        "| photos | MB | photos/s, one core | against Pillow | 2 threads against 1 | as a run against 1 |",
        "|---|---|---|---|---|---|",
        "| PNG | 1.23 | 20.0 (10.0 to 30.0) | 4.0 (2.0 to 6.0) | 2.0 (2.0 to 2.0) | 1.0 (1.0 to 2.0) |",
    ]


def test_every_way_is_measured_in_every_round(bench: Any) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    rates = bench.measure({"PNG": [buffer.getvalue()]}, Preprocessing(8), 2, 0.01)
    assert set(rates["PNG"]) == set(bench.WAYS)
    assert all(len(figures) == 2 and min(figures) > 0 for figures in rates["PNG"].values())


def test_pillow_does_the_whole_task(bench: Any) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    expected = ImageOps.fit(picture.transpose(Image.Transpose.ROTATE_270), (8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(bench.by_pillow(buffer.getvalue(), 8), np.asarray(expected))
