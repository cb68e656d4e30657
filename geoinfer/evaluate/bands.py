"""The colours of errors on maps: green up to 500 km, yellow up to 1500, orange up to 2500, red beyond.

The edges are those of the founding paper's Figures 4 and 5 and belong to the lower band, whatever convention the
metrics follow. The four differ in lightness by at least 15 of CIELAB's 100 on light ground and 10 on dark, so that they
are told apart by those who see fewer colours, and in grey.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Band:
    """One band of errors.

    Attributes:
        upto_km: its upper edge, which belongs to it; infinite for the last.
        name: of its colour.
        label: for a legend.
        colour_light: to draw with on light ground, as #rrggbb.
        colour_dark: on dark ground.
    """

    upto_km: float
    name: str
    label: str
    colour_light: str
    colour_dark: str


BANDS: Final = (
    Band(500.0, "green", "≤ 500 km", "#0b8361", "#1fa884"),
    Band(1500.0, "yellow", "500–1500 km", "#f5d327", "#ffee75"),
    Band(2500.0, "orange", "1500–2500 km", "#ee801c", "#ff9a3d"),
    Band(math.inf, "red", "> 2500 km", "#96082a", "#e0304f"),
)

UNANSWERED_LIGHT: Final = "#6f6f6f"
UNANSWERED_DARK: Final = "#a9b1b8"
"""Of photos without an answer, which are crosses, not points."""

NO_BAND: Final = -1


def bands_of(distances_km: ArrayLike) -> NDArray[np.int64]:
    """The band of each error.

    Args:
        distances_km: (n,) km, NaN where there is no answer.

    Returns:
        (n,) int64, places in `BANDS`; `NO_BAND` where the distance is NaN.
    """
    distances = np.asarray(distances_km, np.float64)
    edges = np.array([band.upto_km for band in BANDS[:-1]])
    return np.where(np.isnan(distances), NO_BAND, np.searchsorted(edges, distances, side="left"))


def band_counts(distances_km: ArrayLike) -> list[int]:
    """How many errors are in each of `BANDS`; NaN is in none. Arguments as for `bands_of`."""
    bands = bands_of(distances_km)
    return np.bincount(bands[bands != NO_BAND], minlength=len(BANDS)).tolist()
