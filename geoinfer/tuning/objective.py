"""What makes one way of answering better than another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geoinfer.errors import UsageError
from geoinfer.metrics import OSV5M, geoscores, within

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Objective:
    """A figure over many errors, by OSV-5M's definitions.

    Attributes:
        name: `median` or `mean` error, `geoscore`, or `acc@R`: the share of errors below R km.
        radius_km: R; NaN for the others.
    """

    name: str = "median"
    radius_km: float = math.nan

    @classmethod
    def parse(cls, text: str) -> Objective:
        """From what a user wrote.

        Raises:
            UsageError: it is none.
        """
        if text in ("median", "mean", "geoscore"):
            return cls(text)
        name, _, radius = text.partition("@")
        try:
            value = float(radius)
        except ValueError:
            value = math.nan
        if name != "acc" or not 0 < value < math.inf:
            raise UsageError(f"--objective {text}: expected median, mean, geoscore or acc@25 (any radius in km)")
        return cls(text, value)

    @property
    def larger_is_better(self) -> bool:
        """Whether it is a score and not an error."""
        return self.name not in ("median", "mean")

    @property
    def label(self) -> str:
        """For a table's head or a figure's axis."""
        if self.name == "geoscore":
            return "GeoScore"
        return f"{self.name} error (km)" if not self.larger_is_better else f"share within {self.radius_km:g} km (%)"

    def values(self, errors_km: NDArray[np.float64]) -> NDArray[np.float64]:
        """(...) of errors (..., m); m at least 1."""
        if self.name == "median":
            return np.asarray(np.median(errors_km, axis=-1))
        if self.name == "mean":
            return np.asarray(errors_km.mean(axis=-1))
        if self.name == "geoscore":
            return np.asarray(geoscores(errors_km, OSV5M).mean(axis=-1))
        return np.asarray(100.0 * within(errors_km, self.radius_km, OSV5M).mean(axis=-1))

    def costs(self, errors_km: NDArray[np.float64]) -> NDArray[np.float64]:
        """As `values`, but smaller is always better."""
        values = self.values(errors_km)
        return -values if self.larger_is_better else values

    def written(self, value: float) -> str:
        """With its unit, to read: `117 km`, `41.2%`, `3120 points`."""
        return f"{value:.1f}%" if self.name.startswith("acc@") else self.difference(value)

    def difference(self, value: float) -> str:
        """Likewise of two values; of shares in percentage points."""
        if not self.larger_is_better:
            return f"{value:.3g} km" if abs(value) < 100 else f"{value:.0f} km"
        return f"{value:.0f} points" if self.name == "geoscore" else f"{value:.1f} percentage points"
