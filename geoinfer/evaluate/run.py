"""One evaluation from labels to a report: photos located, or predictions matched, then measured and written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from geoinfer.errors import InputError, OutputError, UsageError
from geoinfer.evaluate.errors_file import write_errors
from geoinfer.evaluate.figures import draw_figures
from geoinfer.evaluate.folder import ERRORS, MAPS, PAGE, UNMATCHED
from geoinfer.evaluate.leakage import leakage, leakage_warnings
from geoinfer.evaluate.locate import locate_truth
from geoinfer.evaluate.match import match
from geoinfer.evaluate.measure import Evaluation, measure
from geoinfer.evaluate.metrics_file import metrics_values, write_unmatched
from geoinfer.evaluate.nearest import NearestOnEarth
from geoinfer.evaluate.outcomes import NearestReferences, Outcomes, Run
from geoinfer.evaluate.page.build import build_page
from geoinfer.evaluate.page.data import evaluation_data
from geoinfer.evaluate.prediction_files import read_predictions
from geoinfer.evaluate.tables import write_tables
from geoinfer.integrity import atomic_file, sha256_of
from geoinfer.metrics import distances_km
from geoinfer.reliability.draw import check_drawing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.batch.predict import RunObserver
    from geoinfer.evaluate.coordinate_checks import Units
    from geoinfer.evaluate.folder import ReportFolder
    from geoinfer.evaluate.match import Matched
    from geoinfer.evaluate.truth import Truth
    from geoinfer.geolocator import Geolocator
    from geoinfer.index import References
    from geoinfer.metrics import Convention

GroupBy = Literal["auto", "sequence", "source", "none"]

_SOMEWHERE: Final = np.zeros((1, 2))


@dataclass(frozen=True, slots=True)
class Answered:
    """Labelled photos with an answer each, before anything is computed of them.

    Attributes:
        outcomes: the photos.
        run: what answered.
        references: places that answers were made of; None where nobody says.
        matched: how predictions were found; None where geoinfer made them.
        warnings: what a reader of the figures should know.
        held_out: see `geoinfer.evaluate.measure.measure`.
    """

    outcomes: Outcomes
    run: Run
    references: References | None
    matched: Matched | None
    warnings: list[str]
    held_out: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None


def answer_photos(
    geolocator: Geolocator,
    truth: Truth,
    *,
    name: str,
    batch_size: int,
    workers: int,
    observer: RunObserver | None = None,
    hold_out: Literal["source"] | None = None,
    top: int = 5,
) -> Answered:
    """Locates the photos, see `geoinfer.evaluate.locate.locate_truth`.

    Args:
        geolocator: answers.
        truth: the photos, with the paths of their files.
        name: of the run; the bundle's or the model's if empty.
        batch_size: photos that the model sees at once.
        workers: CPU threads.
        observer: is told how it goes.
        hold_out: `source`: no photo is answered by references of its own source.
        top: candidates kept of each answer.

    Raises:
        InputError: not one photo can be located.
        UsageError: nothing can be held out.
        ModelError: the model fails.
        MissingPackageError: SciPy is not installed.
    """
    located = locate_truth(
        geolocator, truth, batch_size=batch_size, workers=workers, observer=observer, hold_out=hold_out, top=top
    )
    outcomes = located.outcomes
    if not outcomes.answered.any():
        raise _nothing_answered(outcomes)
    warnings = list(located.warnings)
    if not geolocator.calibrated:
        why = geolocator.why_not_calibrated
        warnings.append(f"There are no scores and no radii: {why}.")
    run = Run(name or _name_of(geolocator), geolocator.answer.k, _made_by(geolocator, located.held_out))
    return Answered(outcomes, run, geolocator.index.references, None, warnings, located.numbers)


def answer_from_file(
    predictions: Path, truth: Truth, *, name: str, units: Units, references: References | None = None
) -> Answered:
    """Finds each photo's answer in a file of predictions.

    Args:
        predictions: see `geoinfer.evaluate.prediction_files.read_predictions`.
        truth: the photos.
        name: of the run; the file's if empty.
        units: of the file's latitudes and longitudes.
        references: what the predictions are said to be made of, to look for leakage.

    Raises:
        InputError: not one labelled photo has an answer. Otherwise as `read_predictions` and `match`.
    """
    table = read_predictions(predictions, units=units)
    matched = match(truth, table, units=units)
    outcomes = matched.outcomes
    if not outcomes.answered.any():
        raise _nothing_answered(outcomes)
    if references is not None:
        outcomes = replace(outcomes, references=_nearest(outcomes, references))
    made_by = {
        "predictions": predictions.name,
        "sha256": sha256_of(predictions),
        "layout": table.layout,
        "columns": list(table.columns),
        "units": units,
    }
    run = Run(name or predictions.stem, None, made_by)
    return Answered(outcomes, run, references, matched, [*table.warnings, *matched.warnings])


def evaluate(
    answered: Answered,
    truth: Truth,
    convention: Convention,
    *,
    set_columns: Sequence[str] = (),
    group_by: GroupBy = "auto",
    baselines: bool = True,
) -> Evaluation:
    """Computes every figure, and gathers what a reader should know.

    Raises:
        UsageError: photos are to be grouped by what the labels do not say. Otherwise as
            `geoinfer.evaluate.measure.measure`.
    """
    outcomes = answered.outcomes
    evaluation = measure(
        outcomes,
        answered.run,
        convention,
        set_columns=set_columns,
        group_by=None if group_by == "auto" else group_by,
        baselines=baselines,
        reference_coordinates=None if answered.references is None else np.asarray(answered.references.coordinates),
        held_out=answered.held_out,
    )
    found = [
        *leakage_warnings(leakage(outcomes)),
        *answered.warnings,
        *truth.warnings,
        *evaluation.warnings,
    ]
    evaluation.warnings[:] = dict.fromkeys(text if text.endswith((".", "?")) else f"{text}." for text in found)
    return evaluation


def check_packages(convention: Convention) -> None:
    """Raises MissingPackageError if a package that a report needs is not installed; better now than after hours."""
    check_drawing()
    distances_km(_SOMEWHERE, _SOMEWHERE, convention)
    NearestOnEarth(_SOMEWHERE)


def check_group_by(truth: Truth, group_by: str) -> None:
    """Raises UsageError for photos that are to be grouped by what their labels do not say."""
    known = {"sequence": truth.sequences, "source": truth.sources}.get(group_by)
    if known is not None and not any(known):
        raise UsageError(
            f"--group-by {group_by}: the labels do not say of any photo what its {group_by} is",
            hint=f"{truth.path} needs a column `{group_by}`; --group-by none takes each photo by itself",
        )


def write_report(
    evaluation: Evaluation,
    report: ReportFolder,
    truth: Truth,
    *,
    matched: Matched | None,
    images: Path | None,
    thumbnails: int,
    workers: int | None = None,
    svg: bool = True,
) -> dict[str, Any]:
    """Writes the files of a report and puts them into place.

    Args:
        evaluation: what to write.
        report: where, opened.
        truth: the labels.
        matched: how predictions were found, if they were.
        images: folder to look for photos in whose path leads nowhere.
        thumbnails: pictures on the page, at most.
        workers: threads that make those.
        svg: whether maps are written as SVG, too.

    Returns:
        What `metrics.json` says.

    Raises:
        OutputError: a file cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    stage = report.stage
    try:
        write_errors(evaluation, stage / ERRORS)
        write_unmatched(stage / UNMATCHED, truth, matched)
        tables = write_tables([evaluation], stage)
        (stage / MAPS).mkdir(exist_ok=True)
        figures = draw_figures(evaluation, stage / MAPS, formats=(".png", ".svg") if svg else (".png",))
        data = evaluation_data(evaluation, tables, figures, images=images, thumbnails=thumbnails, workers=workers)
        page = build_page(data)
        with atomic_file(stage / PAGE) as file:
            file.write(page)
    except OSError as error:
        if isinstance(error, (OutputError, ImportError)):
            raise
        raise OutputError(
            f"{stage}: cannot be written: {(error.strerror or str(error)).lower()}",
            hint="see to space on the disk and to who may write there, or choose another folder",
        ) from error
    return report.commit(metrics_values(evaluation, truth, matched))


def _nearest(outcomes: Outcomes, references: References) -> NearestReferences:
    """What is known of references that nobody searched: which is the nearest on the Earth."""
    count = len(outcomes)
    rows, distances = NearestOnEarth(references.coordinates).find(outcomes.truth)
    nothing = np.full(count, np.nan)
    return NearestReferences(
        similar_ids=[""] * count,
        similar_sources=[""] * count,
        similarities=nothing,
        similar_km=nothing,
        nearest_ids=[references.ids[row] for row in rows.tolist()],
        nearest_sources=[references.sources[row] for row in rows.tolist()],
        nearest_km=distances,
        relations=[""] * count,
    )


def _name_of(geolocator: Geolocator) -> str:
    if geolocator.bundle is not None:
        return geolocator.bundle.name
    return geolocator.embedder.identity.name.partition(":")[0]


def _made_by(geolocator: Geolocator, held_out: list[str]) -> dict[str, Any]:
    answer, manifest = geolocator.answer, geolocator.index.manifest
    return {
        "engine": geolocator.embedder.identity.name,
        "engine_file": geolocator.embedder.fingerprint,
        "device": geolocator.embedder.device,
        "index": geolocator.index.folder.resolve().name,
        "index_fingerprint": manifest.fingerprint,
        "index_kind": manifest.kind,
        "references": manifest.size,
        "k": answer.k,
        "aggregate": answer.aggregate,
        "temperature": answer.used_temperature,
        "bandwidth_km": answer.used_bandwidth_km,
        "min_score": geolocator.min_score,
        "calibrated": geolocator.calibrated,
        "hold_out": "source" if held_out else None,
        "held_out_sources": held_out,
        "notice": geolocator.notice,
    }


def _nothing_answered(outcomes: Outcomes) -> InputError:
    row = next((row for row, reason in enumerate(outcomes.reasons) if reason), None)
    return InputError(
        f"not one of the {len(outcomes):,} labelled photos has an answer, so there is nothing to measure",
        hint="" if row is None else f"the first failure: {outcomes.ids[row]}: {outcomes.reasons[row]}",
    )
