"""Every number of the tables, one a line, unrounded: for spreadsheets and plots."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Final

from geoinfer.evaluate.tables.metrics import FARTHEST, FIGURES, area_metrics, count_of, counts
from geoinfer.evaluate.tables.models import models_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from geoinfer.evaluate.measure import Evaluation
    from geoinfer.evaluate.set_metrics import Figures
    from geoinfer.evaluate.tables.models import Model

COLUMNS: Final = ("set", "model", "metric", "value", "low", "high", "count")


def long_csv(evaluations: Sequence[Evaluation]) -> str:
    """The tables in long form with a header; empty where there is no number.

    `count` is the number of photos that a figure is of. Metrics whose name ends in `_unanswered_as_farthest` count
    every photo without an answer as half the Earth away.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in dict.fromkeys(name for one in evaluations for name in one.metrics):
        for model in models_of(evaluations, name, ()):
            writer.writerows((name, model.name, *line) for line in _lines(model))
    return file.getvalue()


def _lines(model: Model) -> Iterator[tuple[str, ...]]:
    metrics = model.metrics
    yield "k", "" if model.k is None else str(model.k), "", "", ""
    for name, number in counts(metrics):
        yield name, str(number), "", "", str(metrics.labelled)
    yield from _figures(metrics, metrics.count, "")
    if metrics.farthest is not None:
        yield from _figures(metrics.farthest, metrics.labelled, FARTHEST)


def _figures(figures: Figures, photos: int, ending: str) -> Iterator[tuple[str, ...]]:
    for metric in (*FIGURES, *area_metrics(figures)):
        found = metric.of(figures)
        if found is not None:
            ends = (number_text(found.value), number_text(found.low), number_text(found.high))
            yield metric.name + ending, *ends, str(count_of(metric, figures, photos))


def number_text(value: float) -> str:
    """The shortest text that reads as the same float64; empty for NaN."""
    # Adding 0 makes -0 a 0.
    return repr(float(value) + 0.0) if math.isfinite(value) else ""
