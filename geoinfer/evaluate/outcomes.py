"""What became of each labelled photo: the table that everything in this package is computed from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.prediction import Candidate

OK, ERROR, SKIPPED, MISSING = "ok", "error", "skipped", "missing"

STATUSES: Final = (OK, ERROR, SKIPPED, MISSING)
"""Answered; failed; left out on purpose (camera raw, a score below `--min-score`); no prediction of that name."""


Grouping = Literal["none", "sequence", "source"]
GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)
"""What photos are drawn with for intervals, from the smallest groups to the largest."""


@dataclass(frozen=True, slots=True)
class Run:
    """What made the predictions.

    Attributes:
        name: the row's name in tables.
        k: neighbours that each answer was made of; None where nobody says.
        made_by: what else is known, ready for JSON: model, index, method, device, or the file of predictions and its
            SHA-256.
    """

    name: str
    k: int | None = None
    made_by: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NearestReferences:
    """The reference most similar to each photo, and the one nearest to it on the Earth: what leakage shows itself by.

    Empty strings and NaN where nothing is known of a photo.

    Attributes:
        similar_ids: n names of the most similar references.
        similar_sources: n, where those come from.
        similarities: (n,) float64 cosines.
        similar_km: (n,) float64, great-circle distance from the photo's true place to the most similar reference's.
        nearest_ids: n names of the references nearest on the Earth.
        nearest_sources: n, where those come from.
        nearest_km: (n,) float64, great-circle distance from the photo's true place.
        relations: n, how the photo is related to a reference among those most similar to it, see
            `geoinfer.evaluate.leakage.relations`; empty where it is not.
    """

    similar_ids: list[str]
    similar_sources: list[str]
    similarities: NDArray[np.float64]
    similar_km: NDArray[np.float64]
    nearest_ids: list[str]
    nearest_sources: list[str]
    nearest_km: NDArray[np.float64]
    relations: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """n labelled photos in the labels' order, column by column; row i of all belongs to one photo.

    Attributes:
        ids: as the labels name them.
        paths: where the photos are, or would be; empty where nobody says.
        truth: (n, 2) float64 degrees, all of them valid.
        predicted: (n, 2) float64 degrees, NaN where there is no answer.
        statuses: n of `STATUSES`.
        reasons: why there is no answer; empty where there is one.
        scores: (n,) float64, NaN where unknown; higher is surer.
        radii_km: (n,) float64, NaN where unknown.
        countries: as the labels have them (codes or names), empty where they say nothing; likewise the next three.
        regions: largest subdivisions.
        sub_regions: smaller ones.
        cities: nearest or own.
        sources: where the photos come from, by the labels; may be empty.
        sequences: the drive or walk that each belongs to, by the labels; may be empty.
        columns: further columns of the labels, by name, for sets of the user's own.
        references: None where the references are not known, as for predictions out of a file.
        candidates: each answer's most similar references, best first; None where nobody says.
    """

    ids: list[str]
    paths: list[bytes]
    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]
    statuses: list[str]
    reasons: list[str]
    scores: NDArray[np.float64]
    radii_km: NDArray[np.float64]
    countries: list[str]
    regions: list[str]
    sub_regions: list[str]
    cities: list[str]
    sources: list[str]
    sequences: list[str]
    columns: dict[str, list[str]] = field(default_factory=dict)
    references: NearestReferences | None = None
    candidates: list[tuple[Candidate, ...]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def answered(self) -> NDArray[np.bool_]:
        """(n,) whether each photo has an answer."""
        return np.array([status == OK for status in self.statuses], bool).reshape(len(self))

    def grouping(self) -> Grouping:
        """Sequences where the labels name any; else each photo by itself."""
        return "sequence" if any(self.sequences) else "none"

    def group_names(self, by: Grouping) -> list[str]:
        """N names of what photos are drawn with; an empty one is a group by itself."""
        return {"none": [""] * len(self), "sequence": self.sequences, "source": self.sources}[by]
