"""Arranges figures as tables: those of the founding paper first, then for each set all there is to know."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

from geoinfer.evaluate.baselines import CONSTANT, RANDOM_REFERENCE
from geoinfer.evaluate.bootstrap import REPLICATES
from geoinfer.evaluate.tables.metrics import ERRORS, FIGURES, PAPER_ACCURACIES, Metric, area_metrics, counts
from geoinfer.evaluate.tables.models import Margins, apart, models_of, value
from geoinfer.evaluate.tables.table import DAGGER, Table
from geoinfer.evaluate.tables.winners import printed, winners
from geoinfer.places import CONTINENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from geoinfer.evaluate.bootstrap import Interval
    from geoinfer.evaluate.measure import Evaluation
    from geoinfer.evaluate.set_metrics import Figures, SetMetrics

_NONE: Final = "N/A"
_CHOOSE_K: Final = (
    "k is what each run used; choose it, as every other setting, on validation data and not on these photos."
)
_DOUBTFUL: Final = (
    f"{DAGGER} Not shown to be better than the runner-up: the 95% interval of the paired difference, on the photos "
    "that both answered, holds 0, or cannot be told; or it is worse when what runs left unanswered counts as half the "
    "Earth away."
)
_DOUBTFUL_SHARES: Final = (
    f"{DAGGER} Of areas, and of figures that count the unanswered: the two intervals overlap, or cannot be told."
)
_BASELINES: Final = {
    CONSTANT: f"{CONSTANT}: one place for all photos of the set, chosen with knowledge of the truth to make the median "
    "small.",
    RANDOM_REFERENCE: (
        f"{RANDOM_REFERENCE}: the place of any reference that the photo may be answered with, whatever it shows."
    ),
}


def make_tables(
    evaluations: Sequence[Evaluation], *, baselines: Collection[str] = (), margins: Margins | None = None
) -> list[Table]:
    """All tables of some runs.

    For each set the error metrics as in the paper's Tables 1-3 and 8-10, then for each set the accuracies as in its
    Tables 4-6 and 11-13, then for each set all figures with intervals. The best of the runs is bold where more than one
    contends; a dagger marks the best that is not shown to be better than the runner-up.

    Args:
        evaluations: one a run, of one convention and the same photos, in the order of the rows; their names differ.
        baselines: names of runs that only stand there to be compared with, and are never bold.
        margins: of these evaluations, where some are computed already.
    """
    names = list(dict.fromkeys(name for one in evaluations for name in one.metrics))
    margins = margins or Margins(evaluations)
    builders = [
        _SetTables(evaluations, name, label, baselines, margins)
        for name, label in zip(names, labels_of(names), strict=True)
    ]
    return [
        *(one.paper_table("Error Metrics", "errors", ERRORS, with_k=True) for one in builders),
        *(one.paper_table("Accuracy Metrics", "accuracies", PAPER_ACCURACIES, with_k=False) for one in builders),
        *(one.full_table() for one in builders),
    ]


def labels_of(names: Sequence[str]) -> list[str]:
    """A word of lower-case ASCII letters, digits and hyphens for each set, all of them different."""
    labels: list[str] = []
    for name in names:
        plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
        label = re.sub("[^a-z0-9]+", "-", plain).strip("-") or "set"
        number = 1
        while label in labels:
            number += 1
            label = f"{label.removesuffix(f'-{number - 1}')}-{number}"
        labels.append(label)
    return labels


def set_title(name: str) -> str:
    """What the paper calls a test set."""
    return f"{name}{'-Only' if name in CONTINENTS else ''} Test Set"


class _SetTables:
    """The tables of one set."""

    def __init__(
        self,
        evaluations: Sequence[Evaluation],
        set_name: str,
        label: str,
        baselines: Collection[str],
        margins: Margins,
    ) -> None:
        self._evaluations = evaluations
        self._set = set_name
        self._label = label
        self._margins = margins
        self._models = models_of(evaluations, set_name, baselines)

    def paper_table(self, kind: str, slug: str, metrics: Sequence[Metric], *, with_k: bool) -> Table:
        """One row a model."""
        columns = ["Model", *(["Best k"] if with_k else []), *(metric.heading for metric in metrics)]
        rows = [[model.name] for model in self._models]
        bold = [[False] for _ in self._models]
        if with_k:
            for row, marks, model in zip(rows, bold, self._models, strict=True):
                row.append(_NONE if model.k is None else str(model.k))
                marks.append(False)
        doubts = False
        for metric in metrics:
            figures = [metric.of(model.metrics) for model in self._models]
            best, doubtful = self._winners(metric, figures, self._paired(metric))
            doubts |= any(doubtful)
            for row, marks, figure, wins, doubted in zip(rows, bold, figures, best, doubtful, strict=True):
                row.append(printed(value(figure)) + (DAGGER if doubted else ""))
                marks.append(wins)
        note = [self._photos(), *([self._intervals()] if doubts else [])]
        shared = [f"{self._convention()}.", *([_CHOOSE_K] if with_k else []), *self._baseline_notes()]
        return Table(
            f"{set_title(self._set)}: {kind}",
            columns,
            rows,
            bold,
            " ".join(note),
            f"{self._label}-{slug}",
            (*shared, *([_DOUBTFUL] if doubts else [])),
            self._set,
        )

    def full_table(self) -> Table:
        """One column a model, one row a figure."""
        models = self._models
        rows: list[list[str]] = []
        bold: list[list[bool]] = []
        for name, numbers in zip(
            ("labelled", "answered", "failed", "skipped", "missing"),
            zip(*([number for _, number in counts(model.metrics)] for model in models), strict=True),
            strict=True,
        ):
            rows.append([f"Photos {name}", *(f"{number:,}" for number in numbers)])
            bold.append([False] * (1 + len(models)))
        areas = list(dict.fromkeys(metric for model in models for metric in area_metrics(model.metrics)))
        whole = [model.metrics for model in models]
        doubts = [
            self._add(rows, bold, metric, metric.heading, whole, self._paired(metric) if metric in FIGURES else None)
            for metric in (*FIGURES, *areas)
        ]
        if any(model.metrics.farthest is not None for model in models):
            # Where all are answered, the figures are what they are; a baseline answers what its run did.
            farthest = [
                model.metrics if model.metrics.count == model.metrics.labelled else model.metrics.farthest
                for model in models
            ]
            doubts += [
                self._add(rows, bold, metric, f"{metric.heading}, unanswered counted as farthest", farthest, None)
                for metric in (*FIGURES, *areas)
            ]
        note = [self._photos(), self._intervals(), *self._area_notes()]
        shared = [f"{self._convention()}.", *self._baseline_notes()]
        shared += [_DOUBTFUL, _DOUBTFUL_SHARES] if any(doubts) else []
        columns = ["Metric", *(model.name for model in models)]
        title = f"{set_title(self._set)}: All Metrics with 95% Intervals"
        return Table(title, columns, rows, bold, " ".join(note), f"{self._label}-all", tuple(shared), self._set)

    def _add(
        self,
        rows: list[list[str]],
        bold: list[list[bool]],
        metric: Metric,
        heading: str,
        figures: Sequence[Figures | None],
        proven: Callable[[int, int], bool] | None,
    ) -> bool:
        """Adds a row; returns whether its winner is doubtful."""
        found = [None if one is None else metric.of(one) for one in figures]
        best, doubtful = self._winners(
            metric, found, proven or (lambda first, second: apart(found[first], found[second]))
        )
        cells = [
            with_interval(figure) + (DAGGER if doubted else "") for figure, doubted in zip(found, doubtful, strict=True)
        ]
        rows.append([heading, *cells])
        bold.append([False, *best])
        return any(doubtful)

    def _winners(
        self, metric: Metric, figures: Sequence[Interval | None], proven: Callable[[int, int], bool]
    ) -> tuple[list[bool], list[bool]]:
        return winners(
            [value(figure) for figure in figures],
            [model.contends for model in self._models],
            lower_is_better=metric.lower_is_better,
            proven=proven,
        )

    def _paired(self, metric: Metric) -> Callable[[int, int], bool]:
        """Whether one row of the table is shown to be better than another by that metric."""

        def proven(first: int, second: int) -> bool:
            one, other = self._models[first].run, self._models[second].run
            if one is None or other is None or not self._margins.proven(self._set, metric.name, one, other):
                return False
            return self._holds_with_unanswered(metric, self._models[first].metrics, self._models[second].metrics)

        return proven

    def _holds_with_unanswered(self, metric: Metric, first: SetMetrics, second: SetMetrics) -> bool:
        """Whether the first is no worse than the second if what either left unanswered counts as half the Earth away.

        A run that answers only the easy photos has the smallest error, and shows nothing by it.
        """
        own, other = (value(metric.of(one.farthest or one)) for one in (first, second))
        return own <= other if metric.lower_is_better else own >= other

    def _photos(self) -> str:
        runs = [model for model in self._models if model.run is not None]
        labelled = sorted({model.metrics.labelled for model in runs})
        answered = {model.metrics.count for model in runs}
        if len(labelled) == 1 and answered == set(labelled):
            return f"{_photos(labelled[0])}, all answered{' by every model' if len(runs) > 1 else ''}."
        each = ", ".join(f"{model.name} {model.metrics.count:,} of {model.metrics.labelled:,}" for model in runs)
        return f"Figures are of the photos that were answered: {each}."

    def _convention(self) -> str:
        return self._evaluations[0].convention.description

    def _intervals(self) -> str:
        first = next(model.metrics for model in self._models if model.run is not None)
        grouped_by = self._evaluations[0].grouped_by
        drawn = "as many photos" if grouped_by == "none" else _counted(first.groups, grouped_by)
        return f"95% intervals: bootstrap, {REPLICATES:,} draws of {drawn} with replacement."

    def _area_notes(self) -> list[str]:
        """Of how many photos the areas are, where not of all."""
        notes = []
        for model in self._models[:1]:
            of = [f"{name} {area.count:,} (by {area.truth_from})" for name, area in model.metrics.areas.items()]
            if of:
                notes.append(f"Areas are of the photos whose true one is known, of {model.name}'s: {', '.join(of)}.")
        return notes

    def _baseline_notes(self) -> list[str]:
        present = {name for one in self._evaluations for name, by_set in one.baselines.items() if self._set in by_set}
        return [text for name, text in _BASELINES.items() if name in present]


def with_interval(figure: Interval | None) -> str:
    """A figure with its interval in brackets, as far as it is known."""
    if figure is None or printed(figure.value) == _NONE:
        return _NONE
    if _NONE in (printed(figure.low), printed(figure.high)):
        return printed(figure.value)
    return f"{printed(figure.value)} ({printed(figure.low)} to {printed(figure.high)})"


def _photos(number: int) -> str:
    return _counted(number, "photo")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
