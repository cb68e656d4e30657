"""Rows to files: CSV, JSON Lines, Parquet and GeoJSON, streamed, each appearing whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from geoinfer.batch.rows import COLUMNS, ERROR_COLUMNS, error_report_row
from geoinfer.errors import OutputError, UsageError
from geoinfer.integrity import atomic_file, temporary_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Row = dict[str, Any]

FORMATS: Final = (".csv", ".jsonl", ".parquet", ".geojson")
WITH_CANDIDATES: Final = (".jsonl", ".parquet")
"""The formats that have room for the candidates of an answer."""

_REPORT_START: Final = ",".join(ERROR_COLUMNS[:5]).encode()

# Row groups of a fixed size: the bytes must not depend on where a run was interrupted.
_ROW_GROUP: Final = 65_536


def format_of(path: Path) -> str:
    """The suffix that says how to write `path`.

    Raises:
        UsageError: it is none of those known.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"--output {path}: the suffix {suffix or '(none)'} is no known format", hint=f"use {', '.join(FORMATS)}"
        )
    return suffix


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes all rows in the format that the suffix names."""
    {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet, ".geojson": _write_geojson}[
        format_of(path)
    ](path, rows)


def write_error_report(path: Path, rows: Iterable[Row], *, skipped: bool = False) -> dict[str, int]:
    """Writes the rows that have a failure as a CSV; only a header when there are none.

    Args:
        path: the report.
        rows: of a result.
        skipped: list the inputs that were left out on purpose, too.

    Returns:
        How many rows have each error code, the most frequent first.
    """
    codes: Counter[str] = Counter()

    def failed() -> Iterator[Row]:
        for row in rows:
            if row["status"] == "error" or (skipped and row["status"] == "skipped"):
                codes[row["_failure"]["code"]] += 1
                yield error_report_row(row)

    _write_table(path, ERROR_COLUMNS, failed())
    return dict(codes.most_common())


def check_error_report(path: Path) -> None:
    """Makes sure, before hours of work, that an error report can be written and that no other file is lost to it.

    Raises:
        OutputError: it cannot be, or a file is there that is no error report.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OutputError(f"{path}: is a folder", hint="--errors names a file")
        start = b""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            start = file.read(len(_REPORT_START))
        with temporary_name(path).open("ab"):
            pass
        temporary_name(path).unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{path}: the error report cannot be written here: {(error.strerror or str(error)).lower()}",
            hint="choose another --errors",
        ) from error
    if start and start != _REPORT_START:
        raise OutputError(f"{path}: exists already, and is no error report", hint="choose another --errors")


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    _write_table(path, COLUMNS, rows)


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[Row]) -> None:
    with atomic_file(path) as file:
        writer = csv.DictWriter(_Lines(file), columns, extrasaction="ignore", lineterminator="\r\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row)


class _Lines:
    """Takes the csv module's lines, which end in CR LF, and writes them ending in LF.

    Up to Python 3.12 it quotes a field for the sake of a line end only where that is its own: with LF alone it would
    leave a CR bare, at which other readers break the row.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n").encode() + b"\n")


def _write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write((json.dumps(_ordered(row), ensure_ascii=False, allow_nan=False) + "\n").encode())


def _ordered(row: Row) -> Row:
    ordered = {column: row[column] for column in COLUMNS}
    ordered["candidates"] = row.get("candidates", [])
    return ordered


def _write_geojson(path: Path, rows: Iterable[Row]) -> None:
    """RFC 7946: positions are [longitude, latitude]; an input without a location is a feature without a geometry."""
    with atomic_file(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        separator = b"\n"
        for row in rows:
            geometry = None
            if row["status"] == "ok":
                geometry = {"type": "Point", "coordinates": [row["longitude"], row["latitude"]]}
            feature = {
                "type": "Feature",
                "geometry": geometry,
                "properties": {column: row[column] for column in COLUMNS},
            }
            file.write(separator + json.dumps(feature, ensure_ascii=False, allow_nan=False).encode())
            separator = b",\n"
        file.write(b"\n]}\n")


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, text = pa.float64(), pa.string()
    candidate = pa.struct(
        [
            ("reference", text),
            ("latitude", number),
            ("longitude", number),
            ("similarity", number),
            ("source", text),
            ("probability", number),
        ]
    )
    numeric = ("latitude", "longitude", "radius_km", "score", "top1_similarity")
    schema = pa.schema(
        [(column, number if column in numeric else text) for column in COLUMNS] + [("candidates", pa.list_(candidate))]
    )
    with atomic_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist([_ordered(row) for row in group], schema), _ROW_GROUP)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while group := list(itertools.islice(iterator, _ROW_GROUP)):
        yield group
