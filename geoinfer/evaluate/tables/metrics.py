"""The metrics of a set as the tables list them: in order, each under one name and heading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from geoinfer.metrics import RADII_KM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geoinfer.evaluate.bootstrap import Interval
    from geoinfer.evaluate.set_metrics import Figures, SetMetrics

PAPER_RADII_KM: Final = (25, 750, 2500)
"""Those that the founding paper's tables print."""

FARTHEST: Final = "_unanswered_as_farthest"
"""Ends the names of metrics that count every photo without an answer as half the Earth away."""

_AREA, _ACCURACY = "area_", "accuracy_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: in the long CSV and, but for areas, in `paired_differences`.
        heading: in tables.
        lower_is_better: as for errors.
    """

    name: str
    heading: str
    lower_is_better: bool = False

    def of(self, figures: Figures) -> Interval | None:
        """The figure and its interval; None where nobody could be asked."""
        if self.name.startswith(_ACCURACY):
            return figures.accuracy.get(float(self.name.removeprefix(_ACCURACY)))
        if self.name.startswith(_AREA):
            area = figures.areas.get(self.name.removeprefix(_AREA))
            return None if area is None else area.percent
        found: Interval = getattr(figures, self.name)
        return found


MEDIAN: Final = Metric("median_km", "Median Error (km)", lower_is_better=True)
MEAN: Final = Metric("mean_km", "Mean Error (km)", lower_is_better=True)
ERRORS: Final = (MEDIAN, MEAN)
GEOSCORE: Final = Metric("geoscore", "GeoScore")


def _accuracies(radii_km: tuple[int, ...]) -> tuple[Metric, ...]:
    return tuple(Metric(f"{_ACCURACY}{radius}", f"Acc@{radius}km (%)") for radius in radii_km)


PAPER_ACCURACIES: Final = _accuracies(PAPER_RADII_KM)
ACCURACIES: Final = _accuracies(RADII_KM)
FIGURES: Final = (*ERRORS, GEOSCORE, *ACCURACIES)
"""What runs are compared by."""


def area_metrics(figures: Figures) -> list[Metric]:
    """The share of the right country, region, sub-region and city, of those that photos could be asked for."""
    return [Metric(f"{_AREA}{name}", f"{name[:1].upper()}{name[1:]} (%)") for name in figures.areas]


def count_of(metric: Metric, figures: Figures, photos: int) -> int:
    """How many of so many photos a figure is of: of areas, those whose label names one."""
    area = figures.areas.get(metric.name.removeprefix(_AREA)) if metric.name.startswith(_AREA) else None
    return photos if area is None else area.count


def counts(metrics: SetMetrics) -> Iterator[tuple[str, int]]:
    """How many photos a set has, and what became of them."""
    yield "labelled", metrics.labelled
    yield "answered", metrics.count
    yield "failed", metrics.failed
    yield "skipped", metrics.skipped
    yield "missing", metrics.missing
