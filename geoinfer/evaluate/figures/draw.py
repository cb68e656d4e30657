"""Draws all pictures of an evaluation that make sense for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import OutputError
from geoinfer.evaluate.figures.arrows import arrow_map
from geoinfer.evaluate.figures.by_score import error_by_score
from geoinfer.evaluate.figures.confusion import confusion_figure
from geoinfer.evaluate.figures.cumulative import cumulative
from geoinfer.evaluate.figures.error_map import error_map, shown_in, window_of
from geoinfer.evaluate.figures.style import photos, run_title
from geoinfer.evaluate.sets import GLOBAL
from geoinfer.maps import save_map
from geoinfer.places import CONTINENTS
from geoinfer.reliability.draw import check_drawing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from geoinfer.evaluate.measure import Evaluation

ARROWS: Final = 50


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture that was drawn.

    Attributes:
        name: of its files, without a suffix.
        title: what it shows.
        paths: its files, in the order of the formats asked for.
    """

    name: str
    title: str
    paths: tuple[Path, ...]


def draw_figures(
    evaluation: Evaluation, folder: Path, *, formats: Sequence[str] = (".png", ".svg"), arrows: int = ARROWS
) -> list[Figure]:
    """Draws maps of errors and plots. The same evaluation gives the same bytes.

    Left out is what makes no sense: the map of a continent without photos, arrows and distributions where nothing was
    answered, errors against scores where there are none or they are all the same, the confusion of countries where the
    extra `places` is not installed (which `measure` warns of) or there is one country only.

    Args:
        evaluation: of some photos.
        folder: to write to; made where it is missing.
        formats: suffixes of `geoinfer.maps.base.FORMATS`.
        arrows: how many of the worst errors have one; 0 for no such map.

    Raises:
        MissingPackageError: matplotlib is not installed.
        UsageError: there is no such format.
        OutputError: a file cannot be written.
        InputError: the list of places is broken.
    """
    check_drawing()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written: {(error.strerror or str(error)).lower()}",
            hint="see to space on the disk and to who may write there, or choose another folder",
        ) from error
    drawn = []
    for name, title, figure in _pictures(evaluation, arrows):
        paths = tuple(folder / f"{name}{suffix}" for suffix in formats)
        for path in paths:
            save_map(figure, path)
        drawn.append(Figure(name, title, paths))
    return drawn


def _pictures(evaluation: Evaluation, arrows: int) -> Iterator[tuple[str, str, Any]]:
    """Name, title and matplotlib's figure of each, one at a time: a figure of many photos is large."""
    if not len(evaluation.outcomes):
        return
    for name in (GLOBAL, *(name for name in evaluation.sets if name in CONTINENTS)):
        yield from _error_map(evaluation, name)
    figure = _worst(evaluation, arrows)
    if figure is not None:
        yield "arrows_world", "The worst errors, from truth to prediction", figure
    for name, title, draw in (
        ("cumulative", "Cumulative distribution of the error", cumulative),
        ("error_by_score", "Error against score", error_by_score),
        ("confusion", "Confusion of countries", confusion_figure),
    ):
        figure = draw(evaluation)
        if figure is not None:
            yield name, title, figure


def _error_map(evaluation: Evaluation, name: str) -> Iterator[tuple[str, str, Any]]:
    mask = evaluation.sets[name]
    truth = evaluation.outcomes.truth[mask]
    window = window_of(name, truth)
    if not shown_in(window, truth).any():
        return
    where = "World" if name == GLOBAL else name
    title = f"{where}, {photos(len(truth))}: {run_title(evaluation.run)}"
    figure = error_map(truth, evaluation.distances_km[mask], window, title)
    yield f"errors_{where.lower().replace(' ', '_')}", f"Errors: {where}", figure


def _worst(evaluation: Evaluation, arrows: int) -> Any:
    """The map of the worst errors; None where there are none."""
    distances = np.nan_to_num(evaluation.distances_km, nan=0.0)
    worst = np.argsort(-distances, kind="stable")[: max(0, arrows)]
    worst = worst[distances[worst] > 0.0]
    if not len(worst):
        return None
    outcomes = evaluation.outcomes
    what = "error" if len(worst) == 1 else f"{len(worst):,} errors"
    title = f"The worst {what}: {run_title(evaluation.run)}"
    return arrow_map(outcomes.truth[worst], outcomes.predicted[worst], distances[worst], title)
