"""`errors.csv`: every labelled photo with its truth, its answer, how far that is off, and the references next to it.

Numbers are written in full, so that whoever reads the file computes the same figures; `geoinfer evaluate --compare`
does. As a file of predictions it says the same again.
"""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import numpy as np

from geoinfer.batch.rows import ESTIMATED, path_fields
from geoinfer.errors import InputError
from geoinfer.evaluate.outcomes import OK, STATUSES, NearestReferences, Outcomes
from geoinfer.integrity import atomic_file
from geoinfer.places import CONTINENTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.evaluate.measure import Evaluation

COLUMNS: Final = (
    "id",
    "path",
    "status",
    "true_latitude",
    "true_longitude",
    "latitude",
    "longitude",
    "distance_km",
    "score",
    "radius_km",
    "country",
    "region",
    "sub_region",
    "city",
    "continent",
    "source",
    "sequence",
    "most_similar_reference",
    "most_similar_source",
    "similarity",
    "most_similar_km",
    "nearest_reference",
    "nearest_source",
    "nearest_reference_km",
    "same_source",
    "relation",
    "reason",
    "location_type",
    "path_bytes",
)
"""Columns that every such file has; behind them those of the labels that make sets, as `label:NAME`."""

LABEL_PREFIX: Final = "label:"


def write_errors(evaluation: Evaluation, path: Path) -> None:
    """Writes one row a labelled photo, in the labels' order.

    Raises:
        OSError: it cannot be written.
    """
    columns = list(evaluation.outcomes.columns)
    with atomic_file(path) as file:
        # A name may hold what is no text; one such row must not keep all others from the disk.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, *(LABEL_PREFIX + name for name in columns)])
        writer.writerows(_rows(evaluation, columns))
        text.detach()


def read_errors(path: Path) -> tuple[Outcomes, NDArray[np.float64]]:
    """What `write_errors` wrote: the photos without their candidates, and (n,) km, NaN where there is no answer.

    Raises:
        InputError: it cannot be read, or is not such a file.
    """
    cells: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            lacking = [name for name in COLUMNS if name not in header]
            if lacking:
                raise _damaged(path, f"it has no column {lacking[0]}")
            columns: list[list[str]] = [[] for _ in header]
            for row in rows:
                if len(row) != len(header):
                    raise _damaged(path, f"line {rows.line_num} has {len(row)} cells instead of {len(header)}")
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell)
            cells = dict(zip(header, columns, strict=True))
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, str(error)) from error
    return _outcomes(path, cells)


def _rows(evaluation: Evaluation, columns: list[str]) -> Iterator[list[str]]:
    outcomes, known = evaluation.outcomes, evaluation.outcomes.references
    continents = [""] * len(outcomes)
    for name in CONTINENTS:
        for row in np.flatnonzero(evaluation.sets.get(name, np.empty(0, bool))).tolist():
            continents[row] = name
    for row in range(len(outcomes)):
        path = path_fields(outcomes.paths[row]) if outcomes.paths else {"path": "", "path_bytes": ""}
        answered = outcomes.statuses[row] == OK
        yield [
            outcomes.ids[row],
            path["path"],
            outcomes.statuses[row],
            *_numbers(*outcomes.truth[row], *outcomes.predicted[row]),
            *_numbers(evaluation.distances_km[row], outcomes.scores[row], outcomes.radii_km[row]),
            outcomes.countries[row],
            outcomes.regions[row],
            outcomes.sub_regions[row],
            outcomes.cities[row],
            continents[row],
            outcomes.sources[row],
            outcomes.sequences[row],
            *([""] * 9 if known is None else _near(known, row, outcomes.sources[row])),
            outcomes.reasons[row],
            ESTIMATED if answered else "",
            path["path_bytes"],
            *(outcomes.columns[name][row] for name in columns),
        ]


def _near(known: NearestReferences, row: int, source: str) -> list[str]:
    similar, nearest = known.similar_sources[row], known.nearest_sources[row]
    alike = "" if not known.nearest_ids[row] else "yes" if source and source in (similar, nearest) else "no"
    return [
        known.similar_ids[row],
        similar,
        *_numbers(known.similarities[row], known.similar_km[row]),
        known.nearest_ids[row],
        nearest,
        *_numbers(known.nearest_km[row]),
        alike,
        known.relations[row] if known.relations else "",
    ]


def _numbers(*values: float) -> list[str]:
    # The shortest text that reads back as the same number.
    return ["" if math.isnan(value) else repr(float(value)) for value in values]


def _outcomes(path: Path, cells: dict[str, list[str]]) -> tuple[Outcomes, NDArray[np.float64]]:
    def numbers(name: str) -> NDArray[np.float64]:
        try:
            return np.array([float(cell) if cell else math.nan for cell in cells[name]], np.float64)
        except ValueError as error:
            raise _damaged(path, f"{name} {error}") from error

    def pairs(latitude: str, longitude: str) -> NDArray[np.float64]:
        both = np.stack([numbers(latitude), numbers(longitude)], axis=1)
        if (np.abs(both[:, 0]) > 90).any() or (np.abs(both[:, 1]) > 180).any():
            raise _damaged(path, f"{latitude} or {longitude} is out of range")
        return both

    truth, predicted = pairs("true_latitude", "true_longitude"), pairs("latitude", "longitude")
    if np.isnan(truth).any():
        raise _damaged(path, "a photo has no true place")
    if strangers := set(cells["status"]) - set(STATUSES):
        raise _damaged(path, f"there is no status {min(strangers)!r}")
    answered = np.array([status == OK for status in cells["status"]], bool)
    if (np.isnan(predicted).any(axis=1) == answered).any():
        raise _damaged(path, "a photo has the status ok and no answer, or an answer and another status")
    references = None
    if any(cells["nearest_reference"]) or any(cells["most_similar_reference"]):
        references = NearestReferences(
            similar_ids=cells["most_similar_reference"],
            similar_sources=cells["most_similar_source"],
            similarities=numbers("similarity"),
            similar_km=numbers("most_similar_km"),
            nearest_ids=cells["nearest_reference"],
            nearest_sources=cells["nearest_source"],
            nearest_km=numbers("nearest_reference_km"),
            relations=cells["relation"],
        )
    outcomes = Outcomes(
        ids=cells["id"],
        paths=[
            unquote_to_bytes(other) if other else plain.encode()
            for plain, other in zip(cells["path"], cells["path_bytes"], strict=True)
        ],
        truth=truth,
        predicted=predicted,
        statuses=cells["status"],
        reasons=cells["reason"],
        scores=numbers("score"),
        radii_km=numbers("radius_km"),
        countries=cells["country"],
        regions=cells["region"],
        sub_regions=cells["sub_region"],
        cities=cells["city"],
        sources=cells["source"],
        sequences=cells["sequence"],
        columns={name.removeprefix(LABEL_PREFIX): cells[name] for name in cells if name.startswith(LABEL_PREFIX)},
        references=references,
    )
    return outcomes, numbers("distance_km")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: not as `geoinfer evaluate` wrote it: {what}", hint="make the report again")
