"""How good predictions are: every figure of every set, with its interval."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.evaluate.areas import AREAS, AreaNamer, open_places
from geoinfer.evaluate.baselines import (
    CONSTANT,
    MOST_GEODESICS,
    MOST_PAIRS,
    RANDOM_REFERENCE,
    best_constant,
    random_pairs,
    random_pairs_apart,
)
from geoinfer.evaluate.bootstrap import Interval, Sample, figure_columns, group_numbers, intervals, widened
from geoinfer.evaluate.outcomes import ERROR, MISSING, SKIPPED
from geoinfer.evaluate.set_metrics import Area, Figures, SetMetrics
from geoinfer.evaluate.sets import GLOBAL, make_sets
from geoinfer.metrics import RADII_KM, distances_km

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.evaluate.areas import AreaNames, AreaTruth
    from geoinfer.evaluate.outcomes import Grouping, Outcomes, Run
    from geoinfer.metrics import Convention

__all__ = ["Area", "Evaluation", "Figures", "SetMetrics", "measure"]

FEW_PHOTOS: Final = 100
FEW_GROUPS: Final = 30
"""Fewer than this and figures, or their intervals, are not to be relied on; a warning says so."""

_OWN, _FARTHEST = "own", "farthest"
_UNKNOWN: Final = Interval(math.nan, math.nan, math.nan)
_NOTHING: Final = Figures(
    median_km=_UNKNOWN,
    mean_km=_UNKNOWN,
    geoscore=_UNKNOWN,
    accuracy={float(radius): _UNKNOWN for radius in RADII_KM},
    areas={},
)


@dataclass(slots=True, eq=False)
class Evaluation:
    """A run and all that is known of how good it is.

    Attributes:
        run: what made the predictions.
        convention: how distances and scores are computed.
        outcomes: n photos.
        distances_km: (n,) float64, NaN where there is no answer.
        sets: name to (n,) bool.
        sets_from: how the continents were told, in words.
        metrics: of the run, by set.
        baselines: name of the row to metrics by set.
        constants: by set, the (2,) degrees that the baseline `constant` answers.
        grouped_by: what photos were drawn with for the intervals.
        warnings: what a reader should know before believing a figure.
    """

    run: Run
    convention: Convention
    outcomes: Outcomes
    distances_km: NDArray[np.float64]
    sets: dict[str, NDArray[np.bool_]]
    sets_from: str
    metrics: dict[str, SetMetrics]
    baselines: dict[str, dict[str, SetMetrics]]
    constants: dict[str, tuple[float, float]] = field(default_factory=dict)
    grouped_by: Grouping = "none"
    warnings: list[str] = field(default_factory=list)


def measure(
    outcomes: Outcomes,
    run: Run,
    convention: Convention,
    *,
    set_columns: Sequence[str] = (),
    group_by: Grouping | None = None,
    baselines: bool = True,
    reference_coordinates: NDArray[np.float64] | None = None,
    held_out: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> Evaluation:
    """Computes every figure of every set.

    Args:
        outcomes: n photos.
        run: what made the predictions.
        convention: how distances and scores are computed.
        set_columns: columns of the labels whose values make sets.
        group_by: what photos are drawn with for the intervals; None for sequences where the labels name any.
        baselines: whether to compute those rows, too.
        reference_coordinates: (r, 2) degrees, the places that the baseline `random reference` answers; None for none.
        held_out: numbers (n,) of the photos and (r,) of the references: that baseline answers no photo with a reference
            of the same number.

    Raises:
        LabelsError: the labels lack one of `set_columns`.
        MissingPackageError: the convention needs geographiclib.
        InputError: the list of places is broken.
    """
    distances = np.full(len(outcomes), np.nan)
    answered = outcomes.answered
    distances[answered] = distances_km(outcomes.truth[answered], outcomes.predicted[answered], convention)
    places = open_places()
    namer = None if places is None else AreaNamer(places)
    sets = make_sets(outcomes, columns=set_columns, places=places)
    grouped_by = group_by or outcomes.grouping()
    measurer = _Measurer(outcomes, convention, namer, group_numbers(outcomes.group_names(grouped_by)))
    evaluation = Evaluation(
        run, convention, outcomes, distances, sets.masks, sets.made_from,
        metrics={}, baselines={}, grouped_by=grouped_by, warnings=list(sets.warnings),
    )  # fmt: skip
    measurer.fill(evaluation, with_baselines=baselines, references=reference_coordinates, held_out=held_out)
    evaluation.warnings += _warnings(evaluation)
    if measurer.truth is None:
        evaluation.warnings.append(
            "Countries, regions and cities are left out: naming them needs pip install 'geoinfer-toolkit[places]'."
        )
    else:
        evaluation.warnings += measurer.truth.warnings
    return evaluation


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """Photos and an answer to each; a photo may occur more than once.

    Attributes:
        rows: (m,) of the photos.
        distances_km: (m,).
        names: areas of p answers; None where they are not named.
        named: (m,) which of those is the photo's; -1 for none.
    """

    rows: NDArray[np.int64]
    distances_km: NDArray[np.float64]
    names: AreaNames | None
    named: NDArray[np.int64]

    def among(self, photos: NDArray[np.bool_]) -> _Answers:
        kept = photos[self.rows]
        return _Answers(self.rows[kept], self.distances_km[kept], self.names, self.named[kept])


class _Measurer:
    """Computes figures of answers to some photos."""

    def __init__(
        self, outcomes: Outcomes, convention: Convention, namer: AreaNamer | None, groups: NDArray[np.int64]
    ) -> None:
        self._outcomes = outcomes
        self._convention = convention
        self._namer = namer
        self._groups = groups
        self.truth: AreaTruth | None = None if namer is None else namer.of_truth(outcomes)

    def fill(
        self,
        evaluation: Evaluation,
        *,
        with_baselines: bool,
        references: NDArray[np.float64] | None,
        held_out: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    ) -> None:
        """Computes the metrics of all sets."""
        answered = evaluation.outcomes.answered
        rows = np.flatnonzero(answered)
        own = self._answers(
            rows, evaluation.distances_km[rows], evaluation.outcomes.predicted[rows], np.arange(len(rows))
        )
        anyone = None
        if with_baselines and references is not None and len(references) and len(rows):
            anyone = self._random(rows, references, held_out)
            evaluation.baselines[RANDOM_REFERENCE] = {}
        if with_baselines and len(rows):
            evaluation.baselines[CONSTANT] = {}
        for name, mask in evaluation.sets.items():
            given = {}
            here = own.among(mask)
            if len(here.rows):
                given[_OWN] = here
            if (mask & ~answered).any():
                given[_FARTHEST] = self._farthest(here, mask)
            if anyone is not None and len(here.rows):
                given[RANDOM_REFERENCE] = anyone.among(mask)
            if with_baselines and len(here.rows):
                given[CONSTANT], evaluation.constants[name] = self._constant(here.rows)
            figures = self._figures(given, mask)
            evaluation.metrics[name] = self._of_set(name, mask, figures.get(_OWN, _NOTHING), figures.get(_FARTHEST))
            for row in evaluation.baselines.keys() & figures.keys():
                # A baseline answers the same photos; what the run left unanswered is not its affair.
                evaluation.baselines[row][name] = self._of_set(name, mask, figures[row], None)

    def _answers(
        self,
        rows: NDArray[np.int64],
        distances: NDArray[np.float64],
        places: NDArray[np.float64],
        named: NDArray[np.int64],
    ) -> _Answers:
        return _Answers(rows, distances, None if self._namer is None else self._namer.of_points(places), named)

    def _random(
        self,
        rows: NDArray[np.int64],
        references: NDArray[np.float64],
        held_out: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    ) -> _Answers:
        truth = self._outcomes.truth[rows]
        most = MOST_GEODESICS if self._convention.earth_radius_km is None else MOST_PAIRS
        if held_out is None:
            photos, drawn = random_pairs(len(rows), len(references), most=most)
        else:
            photos, drawn = random_pairs_apart(held_out[0][rows], held_out[1], most=most)
        # A reference at the very place of the photo is the photo itself, where photos are located by one another.
        other = (references[drawn] != truth[photos]).any(axis=1)
        other |= ~np.isin(photos, photos[other])  # unless there is no other
        photos, drawn = photos[other], drawn[other]
        used, named = np.unique(drawn, return_inverse=True)
        photos, places = rows[photos], references[used]
        distances = distances_km(self._outcomes.truth[photos], places[named], self._convention)
        return self._answers(photos, distances, places, named)

    def _constant(self, rows: NDArray[np.int64]) -> tuple[_Answers, tuple[float, float]]:
        truth = self._outcomes.truth[rows]
        place = best_constant(truth)
        distances = distances_km(truth, place, self._convention)
        answers = self._answers(rows, distances, place[None], np.zeros(len(rows), np.int64))
        return answers, (float(place[0]), float(place[1]))

    def _farthest(self, own: _Answers, mask: NDArray[np.bool_]) -> _Answers:
        """The answers, and for photos without one the farthest place there is."""
        unanswered = np.flatnonzero(mask & ~self._outcomes.answered)
        return _Answers(
            np.concatenate([own.rows, unanswered]),
            np.concatenate([own.distances_km, np.full(len(unanswered), self._convention.farthest_km)]),
            own.names,
            np.concatenate([own.named, np.full(len(unanswered), -1)]),
        )

    def _figures(self, given: dict[str, _Answers], mask: NDArray[np.bool_]) -> dict[str, Figures]:
        """Figures of answers to some of a set's photos. Groups of the whole set are drawn, for all of them alike."""
        rows = np.flatnonzero(mask)
        groups = np.full(len(mask), -1, np.int64)
        groups[rows] = np.unique(self._groups[rows], return_inverse=True)[1]
        samples = []
        for answers in given.values():
            columns = figure_columns(answers.distances_km, self._convention)
            divisors: list[NDArray[np.generic] | None] = [None] * len(columns)
            if self.truth is not None and answers.names is not None:
                right = self.truth.right(answers.names, answers.rows, answers.named)
                columns += [100.0 * right[area] for area in AREAS]
                divisors += [self.truth.asked(area)[answers.rows] for area in AREAS]
            samples.append(Sample(answers.distances_km, groups[answers.rows], columns, divisors))
        found = intervals(samples) if samples else []
        return {
            name: self._arranged(values, answers.rows)
            for (name, answers), values in zip(given.items(), found, strict=True)
        }

    def _arranged(self, found: list[Interval], rows: NDArray[np.int64]) -> Figures:
        photos = np.zeros(len(self._outcomes), bool)
        photos[rows] = True
        accuracy, of_areas = found[3 : 3 + len(RADII_KM)], found[3 + len(RADII_KM) :]
        areas = {}
        for area, percent in zip(AREAS, of_areas, strict=False):  # without places there are none
            assert self.truth is not None
            asked = photos & self.truth.asked(area)
            if asked.any():
                sure = widened(percent, self._number_of_groups(asked))
                areas[area] = Area(sure, int(asked.sum()), self.truth.truth_from(area, photos))
        groups = self._number_of_groups(photos)
        return Figures(
            median_km=found[0],
            mean_km=found[1],
            geoscore=found[2],
            accuracy={float(r): widened(share, groups) for r, share in zip(RADII_KM, accuracy, strict=True)},
            areas=areas,
        )

    def _number_of_groups(self, photos: NDArray[np.bool_]) -> int:
        return len(np.unique(self._groups[photos]))

    def _of_set(self, name: str, mask: NDArray[np.bool_], figures: Figures, farthest: Figures | None) -> SetMetrics:
        answered = mask & self._outcomes.answered
        statuses = Counter(self._outcomes.statuses[row] for row in np.flatnonzero(mask & ~answered).tolist())
        return SetMetrics(
            median_km=figures.median_km,
            mean_km=figures.mean_km,
            geoscore=figures.geoscore,
            accuracy=figures.accuracy,
            areas=figures.areas,
            name=name,
            labelled=int(mask.sum()),
            count=int(answered.sum()),
            failed=statuses[ERROR],
            skipped=statuses[SKIPPED],
            missing=statuses[MISSING],
            groups=self._number_of_groups(answered),
            farthest=farthest,
        )


def _warnings(evaluation: Evaluation) -> list[str]:
    whole = evaluation.metrics[GLOBAL]
    found = []
    unanswered = whole.labelled - whole.count
    if unanswered:
        parts = [("failed", whole.failed), ("skipped", whole.skipped), ("without a prediction", whole.missing)]
        found.append(
            f"{unanswered:,} of {whole.labelled:,} labelled photos {'has' if unanswered == 1 else 'have'} no answer ("
            + ", ".join(f"{number} {word}" for word, number in parts if number)
            + f"); the figures are of the other {whole.count}, and once more with each of those half the Earth away."
        )
    few = [f"{name} {one.count}" for name, one in evaluation.metrics.items() if one.count < FEW_PHOTOS]
    if few:
        listed = ", ".join(few[:8]) + (", …" if len(few) > 8 else "")
        found.append(f"Sets of fewer than {FEW_PHOTOS} answered photos say little: {listed}.")
    constant = evaluation.baselines.get(CONSTANT, {}).get(GLOBAL)
    if constant is not None and whole.count > 1 and whole.median_km.value >= constant.median_km.value:
        found.append(
            f"The median error, {whole.median_km.value:.0f} km, is no smaller than that of one place for all photos, "
            f"{constant.median_km.value:.0f} km: the predictions are worth no more than not looking."
        )
    if FEW_GROUPS > whole.groups < whole.count:
        found.append(
            f"The answered photos are of {whole.groups} {evaluation.grouped_by}s only; intervals from fewer than "
            f"{FEW_GROUPS} are too narrow."
        )
    return found
