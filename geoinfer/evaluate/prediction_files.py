"""Predictions out of a file: all that `geoinfer predict` writes, and anybody's table with columns found by name."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import numpy as np

from geoinfer.columns import coordinate_columns, listed, normalised
from geoinfer.errors import LabelsError, UsageError
from geoinfer.evaluate.cells import NOT_A_NUMBER, candidates_of, no_place, number, text
from geoinfer.evaluate.coordinate_checks import UNITS, Units, check_coordinates, may_be_radians
from geoinfer.evaluate.outcomes import ERROR, OK, STATUSES
from geoinfer.evaluate.table_rows import open_table
from geoinfer.labels import NAME_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.columns import CoordinateColumns
    from geoinfer.evaluate.table_rows import TableRows
    from geoinfer.prediction import Candidate

_STATUS: Final = ("status",)
_REASON: Final = ("error", "reason", "error_message", "message")
_SCORE: Final = ("score", "confidence", "probability", "prob")
_RADIUS: Final = ("radius_km", "error_radius_km", "uncertainty_km")
_OURS: Final = frozenset(("top1_similarity", "location_type", "path_bytes"))
_FAILED: Final = frozenset((ERROR, "failed", "failure"))

MOST_WITH_CANDIDATES: Final = 300_000
"""Of a file with more rows the candidates are not kept: five of each of five million photos are many gigabytes."""

_LONGEST_SHOWN: Final = 200  # characters of a name in a message
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """n predictions in the order of the file; row i of all belongs to one photo, and no name is twice.

    Attributes:
        path: the file.
        layout: `geoinfer CSV`, `CSV`, `JSON Lines`, `GeoJSON`, ...: the format, and whether geoinfer wrote it.
        columns: names of the latitude and the longitude that were read.
        ids: the photos' names as they are written, where several columns name them the path.
        other_names: what else the photos are called, by column.
        raw_paths: row to the bytes of a path that is not UTF-8, and that `ids` can therefore only describe.
        coordinates: (n, 2) float64 degrees, NaN where there is no answer.
        statuses: n of `geoinfer.evaluate.outcomes.STATUSES`.
        reasons: why there is no answer; empty where there is one.
        scores: (n,) float64, NaN where unknown.
        radii_km: (n,) float64, NaN where unknown.
        candidates: at most 10 of each answer, best first; None where the file has none, or more than 300,000 rows.
        duplicates: rows left out because they say again what one before them says.
        warnings: sentences for the user.
    """

    path: Path
    layout: str
    columns: tuple[str, str]
    ids: list[str]
    other_names: dict[str, list[str]]
    raw_paths: dict[int, bytes]
    coordinates: NDArray[np.float64]
    statuses: list[str]
    reasons: list[str]
    scores: NDArray[np.float64]
    radii_km: NDArray[np.float64]
    candidates: list[tuple[Candidate, ...]] | None = None
    duplicates: int = 0
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def read_predictions(path: Path, *, units: Units = "degrees") -> PredictionTable:
    """Reads a table of predictions.

    Args:
        path: CSV with any delimiter, JSON Lines (`.jsonl`, `.ndjson`), a JSON array (`.json`), Parquet, or GeoJSON of
            points. Predictions are the columns that are named so (`pred_lat`, `latitude_pred`, `predictedLatitude`,
            ...), or else those that are plainly called latitude and longitude; those that are named the truth
            (`true_lat`, `gt_lon`, ...) are never read.
        units: that the predictions are written in.

    A row without a place, or with one that is none, is a failed photo with its reason.

    Raises:
        InputError: the file is missing or cannot be read.
        LabelsError: a column is missing, or several could be meant; the file is damaged or no such table; the
            coordinates are none (swapped columns, other units); a photo has two different predictions; or no row has
            a place.
        UsageError: there are no such units.
    """
    if units not in UNITS:
        raise UsageError(f"there are no units {units!r}; expected {' or '.join(UNITS)}")
    table = open_table(path)
    names = _NameColumns.of(path, table.header)
    pair = _prediction_columns(path, table, units)
    gathered = _gather(table, names, pair)
    columns = (table.header[pair.latitude], table.header[pair.longitude])
    return _finished(path, table, names, columns, gathered, units)


@dataclass(frozen=True, slots=True)
class _NameColumns:
    """Positions of the columns that name photos, the one that counts first in front, and of `path_bytes`."""

    positions: list[int]
    path_bytes: int | None

    @classmethod
    def of(cls, path: Path, header: Sequence[str]) -> _NameColumns:
        present = {normalised(name): at for at, name in reversed([*enumerate(header)])}
        positions = [present[name] for name in NAME_COLUMNS if name in present]
        if not positions:
            raise LabelsError(
                f"{path}: no column for the photo: looked for {', '.join(NAME_COLUMNS)}; the file has {listed(header)}",
                hint="name the columns, in a CSV in its first line: an id or path, latitude and longitude are enough",
            )
        return cls(positions, present.get("path_bytes"))


def _prediction_columns(path: Path, table: TableRows, units: Units) -> CoordinateColumns:
    header = table.header
    pairs = coordinate_columns(header)
    hint = "call the predicted ones pred_lat and pred_lon, and the true ones true_lat and true_lon"
    chosen: list[CoordinateColumns] = []
    for meaning in ("predicted", "plain"):
        chosen = [pair for pair in pairs if pair.meaning == meaning]
        if chosen:
            break
    if not chosen:
        true = " besides the true places" if pairs else ""
        raise LabelsError(
            f"{path}: no columns for the predicted latitude and longitude{true}; the file has {listed(header)}",
            hint="name the columns, in a CSV in its first line: pred_lat and pred_lon, or latitude and longitude",
        )
    if len(chosen) > 1:  # the same in both units
        chosen = [pair for pair in chosen if pair.unit == units] or chosen
    if len(chosen) > 1 and table.point_columns:  # a GeoJSON's own points, and what its properties say of them again
        chosen = [pair for pair in chosen if pair.latitude == table.point_columns[0]] or chosen
    if len(chosen) > 1:
        words = " and ".join(f"{header[pair.latitude]!r}, {header[pair.longitude]!r}" for pair in chosen)
        raise LabelsError(f"{path}: several columns could be the predictions: {words}", hint=hint)
    (pair,) = chosen
    if pair.unit and pair.unit != units:
        raise LabelsError(
            f"{path}: the columns {header[pair.latitude]!r} and {header[pair.longitude]!r} are {pair.unit} by their "
            f"names, and {units} were asked for",
            hint=f"say --units {pair.unit}, or rename them",
        )
    return pair


@dataclass(slots=True)
class _Gathered:
    """The rows as they are read."""

    ids: list[str] = field(default_factory=list)
    others: list[list[str]] = field(default_factory=list)
    raw_paths: dict[int, bytes] = field(default_factory=dict)
    latitudes: array[float] = field(default_factory=lambda: array("d"))
    longitudes: array[float] = field(default_factory=lambda: array("d"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    radii: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    statuses: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    candidates: list[tuple[Candidate, ...]] | None = None
    nameless: int = 0
    first_nameless: int = 0
    withdrawn: int = 0


def _gather(table: TableRows, names: _NameColumns, pair: CoordinateColumns) -> _Gathered:
    present = {normalised(name): at for at, name in reversed([*enumerate(table.header)])}

    def role(wanted: Sequence[str]) -> int | None:
        return next((present[name] for name in wanted if name in present), None)

    status_at, reason_at, score_at, radius_at = role(_STATUS), role(_REASON), role(_SCORE), role(_RADIUS)
    candidates_at = present.get("candidates") if table.nested else None
    main, *others = names.positions
    gathered = _Gathered(others=[[] for _ in others])
    candidates: list[tuple[Candidate, ...]] | None = None if candidates_at is None else []
    wanted = [
        *names.positions,
        pair.latitude,
        pair.longitude,
        *(at for at in (names.path_bytes, status_at, reason_at, score_at, radius_at, candidates_at) if at is not None),
    ]
    decimal = table.delimiter
    for line, cells in table.rows(wanted):
        name = text(cells[main])
        if not name:
            gathered.nameless += 1
            gathered.first_nameless = gathered.first_nameless or line
            continue
        latitude, longitude = cells[pair.latitude], cells[pair.longitude]
        place = number(latitude, decimal), number(longitude, decimal)
        placed = not (math.isnan(place[0]) or math.isnan(place[1]))
        word = "" if status_at is None else text(cells[status_at]).lower()
        reason = ""
        if word in _FAILED or (word in STATUSES and word != OK):
            status = ERROR if word in _FAILED else word
            gathered.withdrawn += placed
            place = math.nan, math.nan
            reason = (text(cells[reason_at]) if reason_at is not None else "") or f"its status is {word!r}"
        elif placed:
            status = OK
        else:
            status = ERROR
            reason = (text(cells[reason_at]) if reason_at is not None else "") or no_place(latitude, longitude)
        if names.path_bytes is not None and (escaped := text(cells[names.path_bytes])):
            gathered.raw_paths[len(gathered.ids)] = unquote_to_bytes(escaped)
        gathered.ids.append(name)
        for at, column in zip(others, gathered.others, strict=True):
            column.append(text(cells[at]))
        gathered.latitudes.append(place[0])
        gathered.longitudes.append(place[1])
        gathered.scores.append(math.nan if score_at is None else number(cells[score_at], decimal))
        gathered.radii.append(math.nan if radius_at is None else number(cells[radius_at], decimal))
        gathered.lines.append(line)
        gathered.statuses.append(status)
        gathered.reasons.append(reason)
        if candidates is not None and candidates_at is not None:
            candidates.append(candidates_of(cells[candidates_at]))
            if len(candidates) > MOST_WITH_CANDIDATES:
                candidates = None
    gathered.candidates = candidates if candidates is not None and any(candidates) else None
    return gathered


def _finished(
    path: Path, table: TableRows, names: _NameColumns, columns: tuple[str, str], gathered: _Gathered, units: Units
) -> PredictionTable:
    if not gathered.ids:
        if gathered.nameless:
            raise LabelsError(f"{path}: not one row names a photo", hint="each needs an id or a path")
        raise LabelsError(f"{path}: holds no predictions", hint="there is nothing to evaluate: check the file")
    written = np.column_stack([np.frombuffer(gathered.latitudes), np.frombuffer(gathered.longitudes)])
    checked = check_coordinates(written, path, columns, units=units)
    for row, reason in checked.problems.items():
        gathered.statuses[row], gathered.reasons[row] = ERROR, reason
    if OK not in gathered.statuses:
        not_numbers = gathered.reasons[0].startswith(NOT_A_NUMBER)
        first = gathered.ids[0][:_LONGEST_SHOWN]
        raise LabelsError(
            f"{path}: not one of its {len(written):,} rows has a place; the first, {first!r}: {gathered.reasons[0]}",
            hint=f"{columns[0]!r} and {columns[1]!r} must hold {units}"
            + (", with a decimal point where a comma separates the columns" if not_numbers else ""),
        )
    degrees = checked.degrees
    degrees[np.isnan(degrees).any(axis=1)] = np.nan
    warnings = checked.warnings
    if gathered.nameless:
        warnings.append(
            f"{path}: {gathered.nameless:,} rows name no photo, the first in {table.unit} {gathered.first_nameless}"
        )
    if gathered.withdrawn:
        warnings.append(f"{path}: {gathered.withdrawn:,} rows have a place, but failed by their status: not used")
    if units == "degrees" and may_be_radians(degrees):
        warnings.append(
            f"{path}: no latitude is beyond 1.571 and no longitude beyond 3.142: if they are radians, say "
            "--units radians"
        )
    kept = _without_duplicates(path, table, gathered, degrees)
    duplicates = 0
    if kept is not None:
        duplicates = len(gathered.ids) - len(kept)
        rows = "1 row says" if duplicates == 1 else f"{duplicates:,} rows say"
        warnings.append(f"{path}: {rows} again what an earlier one says; each photo is counted once")
        degrees = degrees[kept]
        gathered = _taken(gathered, kept)
    return PredictionTable(
        path=path,
        layout=f"geoinfer {table.layout}" if {normalised(name) for name in table.header} >= _OURS else table.layout,
        columns=columns,
        ids=gathered.ids,
        other_names={table.header[at]: values for at, values in zip(names.positions[1:], gathered.others, strict=True)},
        raw_paths=gathered.raw_paths,
        coordinates=degrees,
        statuses=gathered.statuses,
        reasons=gathered.reasons,
        scores=np.array(gathered.scores),
        radii_km=np.array(gathered.radii),
        candidates=gathered.candidates,
        duplicates=duplicates,
        warnings=warnings,
    )


def _without_duplicates(
    path: Path, table: TableRows, gathered: _Gathered, degrees: NDArray[np.float64]
) -> NDArray[np.int64] | None:
    """The rows that name a photo for the first time; None if all do.

    Raises:
        LabelsError: a photo has two different predictions.
    """
    ids, raw_paths = gathered.ids, gathered.raw_paths
    # Only rows whose names have the same hash are compared: a dictionary of five million names is half a gigabyte.
    hashes = np.fromiter((hash(name) for name in ids), np.int64, len(ids))
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    if not same.any():
        return None
    suspects = np.sort(order[np.concatenate([[False], same]) | np.concatenate([same, [False]])])
    first: dict[tuple[str, bytes], int] = {}
    repeated: list[int] = []
    torn: list[tuple[int, int]] = []
    for row in suspects.tolist():
        before = first.setdefault((ids[row], raw_paths.get(row, b"")), row)
        if before == row:
            continue
        repeated.append(row)
        alike = np.array_equal(degrees[before], degrees[row], equal_nan=True)
        if not alike or gathered.statuses[before] != gathered.statuses[row]:
            torn.append((before, row))
    if torn:
        shown = "; ".join(
            f"{ids[before]!r} in {table.unit}s {gathered.lines[before]} and {gathered.lines[row]}"
            for before, row in torn[:_SHOWN]
        )
        rows = "1 row says" if len(torn) == 1 else f"{len(torn):,} rows say"
        raise LabelsError(
            f"{path}: {rows} something else of a photo than a row before: {shown}"
            f"{'; ...' if len(torn) > _SHOWN else ''}",
            hint="leave one prediction for each photo",
        )
    if not repeated:
        return None
    kept = np.ones(len(ids), bool)
    kept[repeated] = False
    return np.flatnonzero(kept)


def _taken(gathered: _Gathered, rows: NDArray[np.int64]) -> _Gathered:
    chosen = rows.tolist()
    taken = _Gathered(
        ids=[gathered.ids[row] for row in chosen],
        others=[[column[row] for row in chosen] for column in gathered.others],
        raw_paths={at: gathered.raw_paths[row] for at, row in enumerate(chosen) if row in gathered.raw_paths},
        statuses=[gathered.statuses[row] for row in chosen],
        reasons=[gathered.reasons[row] for row in chosen],
        candidates=None if gathered.candidates is None else [gathered.candidates[row] for row in chosen],
    )
    taken.scores.extend(gathered.scores[row] for row in chosen)
    taken.radii.extend(gathered.radii[row] for row in chosen)
    return taken
