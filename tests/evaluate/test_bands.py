"""Which colour an error has, and whether colours are told apart."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from geoinfer.evaluate.bands import (
    BANDS,
    NO_BAND,
    UNANSWERED_DARK,
    UNANSWERED_LIGHT,
    band_counts,
    bands_of,
)

LIGHT_GROUND, DARK_GROUND = "#e3e1d8", "#12161b"


def lightness(colour: str) -> float:
    """CIELAB's L* (CIE 15, 8.2.1.1) of an sRGB colour (IEC 61966-2-1)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    y = sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 116 * y ** (1 / 3) - 16


@pytest.mark.parametrize(
    ("distance", "colour"),
    [(0.0, "green"), (500.0, "green"), (500.0000001, "yellow"), (1500.0, "yellow"), (1500.0000001, "orange"),
     (2500.0, "orange"), (2500.0000001, "red"), (20015.0, "red"), (math.inf, "red")],
)  # fmt: skip
def test_edges_belong_to_the_lower_band(distance: float, colour: str) -> None:
    assert BANDS[bands_of([distance])[0]].name == colour


def test_no_answer_is_in_no_band() -> None:
    assert bands_of([math.nan, 1.0]).tolist() == [NO_BAND, 0]
    assert band_counts([math.nan, 1.0, 501.0, 3000.0, 3001.0, math.nan]) == [1, 1, 0, 2]
    assert band_counts([]) == [0, 0, 0, 0]
    assert bands_of(np.empty(0)).dtype == np.int64


def test_colours_differ_in_lightness() -> None:
    for colours, least in (
        ([band.colour_light for band in BANDS], 15.0),
        ([band.colour_dark for band in BANDS], 10.0),
    ):
        assert min(abs(lightness(a) - lightness(b)) for a, b in itertools.combinations(colours, 2)) > least


def test_every_band_is_seen_on_its_ground() -> None:
    for band in BANDS:
        # The yellow on light ground has a dark edge besides, where points are large enough.
        assert abs(lightness(band.colour_light) - lightness(LIGHT_GROUND)) > (4 if band.name == "yellow" else 20)
        assert lightness(band.colour_dark) - lightness(DARK_GROUND) > 30
    assert lightness(LIGHT_GROUND) - lightness(UNANSWERED_LIGHT) > 30
    assert lightness(UNANSWERED_DARK) - lightness(DARK_GROUND) > 30
