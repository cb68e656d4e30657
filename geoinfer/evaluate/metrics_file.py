"""`metrics.json`: the figures of a report and all that they depend on, for programs."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import geoinfer
from geoinfer.evaluate.bootstrap import LEVEL, REPLICATES, SEED
from geoinfer.evaluate.leakage import leakage
from geoinfer.integrity import atomic_file, sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.evaluate.match import Matched
    from geoinfer.evaluate.measure import Evaluation, SetMetrics
    from geoinfer.evaluate.truth import Truth

KIND = "evaluation"

_SHOWN = 100


def metrics_values(evaluation: Evaluation, truth: Truth, matched: Matched | None) -> dict[str, Any]:
    """What `metrics.json` says, but for `format`, `version` and `files`.

    Args:
        evaluation: the figures.
        truth: the labels; they are named by file name and SHA-256, so that a report tells nothing of the machine.
        matched: how predictions were found; None where geoinfer made them.
    """
    run, convention = evaluation.run, evaluation.convention
    values = {
        "kind": KIND,
        "geoinfer": geoinfer.__version__,
        "name": run.name,
        "k": run.k,
        "made_by": run.made_by,
        "convention": {
            "name": convention.name,
            "source": convention.source,
            "definitions": convention.description,
            "earth_radius_km": convention.earth_radius_km,
            "inclusive": convention.inclusive,
            "score_rounded": convention.score_rounded,
        },
        "labels": {
            "name": truth.path.resolve().name,
            "layout": truth.layout,
            "sha256": sha256_of(truth.path) if truth.path.is_file() else None,
            "photos": len(truth),
            "duplicates": truth.duplicates,
            "unusable": len(truth.unusable),
        },
        "intervals": {"level": LEVEL, "replicates": REPLICATES, "seed": SEED, "grouped_by": evaluation.grouped_by},
        "sets_from": evaluation.sets_from,
        "sets": _sets(evaluation.metrics),
        "baselines": {name: _sets(of_row) for name, of_row in evaluation.baselines.items()},
        "constants": {name: list(place) for name, place in evaluation.constants.items()},
        "leakage": leakage(evaluation.outcomes),
        "warnings": evaluation.warnings,
    }
    if matched is not None:
        labels, predictions = matched.unmatched_labels, matched.unmatched_predictions
        values["matched"] = {
            "how": matched.how,
            "unmatched_labels": {"count": len(labels), "first": labels[:_SHOWN]},
            "unmatched_predictions": {"count": len(predictions), "first": predictions[:_SHOWN]},
        }
    return values


def write_unmatched(path: Path, truth: Truth, matched: Matched | None) -> int:
    """Writes every label without a prediction, prediction without a label and label that is no truth; returns how many.

    Where there are none there is no file.

    Raises:
        OSError: it cannot be written.
    """
    rows = [(name, "label", "no prediction", "") for name in matched.unmatched_labels] if matched else []
    rows += [(name, "prediction", "no label", "") for name in matched.unmatched_predictions] if matched else []
    rows += [(name, "label", reason, str(line or "")) for name, line, reason in truth.unusable]
    if rows:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("id", "of", "reason", "line"))
        writer.writerows(rows)
        with atomic_file(path) as file:
            file.write(text.getvalue().encode(errors="backslashreplace"))
    return len(rows)


def _sets(metrics: dict[str, SetMetrics]) -> dict[str, Any]:
    return {name: one.as_dict() for name, one in metrics.items()}
