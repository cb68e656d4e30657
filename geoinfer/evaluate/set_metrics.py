"""The figures of one set of photos, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoinfer.evaluate.bootstrap import Interval


@dataclass(frozen=True, slots=True)
class Area:
    """How many predictions are in the right country, say.

    Attributes:
        percent: of the photos that could be asked.
        count: of those photos.
        truth_from: `labels`, `coordinates` or `labels and coordinates`.
    """

    percent: Interval
    count: int
    truth_from: str

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**self.percent.as_dict(), "count": self.count, "truth_from": self.truth_from}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What some distances come to.

    Attributes:
        median_km: median error.
        mean_km: mean error.
        geoscore: mean GeoScore, 0 to 5000.
        accuracy: radius in km to the percentage within it.
        areas: of `geoinfer.evaluate.areas.AREAS`, those that any photo could be asked for.
    """

    median_km: Interval
    mean_km: Interval
    geoscore: Interval
    accuracy: dict[float, Interval]
    areas: dict[str, Area]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; NaN is None."""
        return {
            "median_km": self.median_km.as_dict(),
            "mean_km": self.mean_km.as_dict(),
            "accuracy": {f"{radius:g}": share.as_dict() for radius, share in self.accuracy.items()},
            "geoscore": self.geoscore.as_dict(),
            "areas": {name: area.as_dict() for name, area in self.areas.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMetrics(Figures):
    """The figures of one set, over the photos that have an answer.

    Attributes:
        name: of the set.
        labelled: photos in it.
        count: answered ones, which the figures are of.
        failed: photos that could not be read or located.
        skipped: photos left out on purpose.
        missing: photos without a prediction of their name.
        groups: of answered photos, which the intervals are drawn by.
        farthest: the figures over all labelled photos, with every unanswered one as far off as the Earth allows and in
            no area right; None where all are answered.
    """

    name: str
    labelled: int
    count: int
    failed: int
    skipped: int
    missing: int
    groups: int
    farthest: Figures | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; NaN is None."""
        counts = {
            "count": self.count, "labelled": self.labelled, "failed": self.failed, "skipped": self.skipped,
            "missing": self.missing, "groups": self.groups,
        }  # fmt: skip
        farthest = None if self.farthest is None else self.farthest.as_dict()
        return {**counts, **Figures.as_dict(self), "with_unanswered_as_farthest": farthest}
