"""Rows to files: CSV, JSON Lines, Parquet and GeoJSON, streamed, each appearing whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from geoinfer.batch.rows import ERROR_COLUMNS, LOW_SCORE, PLACE_COLUMNS, columns, error_report_row
from geoinfer.errors import OutputError, UsageError
from geoinfer.integrity import atomic_file, temporary_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
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


def write_rows(path: Path, rows: Iterable[Row], *, places: bool = False) -> None:
    """Writes all rows in the format that the suffix names, with the columns of `geoinfer.batch.rows.columns`."""
    writers: dict[str, Callable[[Path, tuple[str, ...], Iterable[Row]], None]] = {
        ".csv": _write_csv,
        ".jsonl": _write_jsonl,
        ".parquet": _write_parquet,
        ".geojson": _write_geojson,
    }
    writers[format_of(path)](path, columns(places=places), rows)


def write_error_report(path: Path, rows: Iterable[Row], *, skipped: bool = False) -> dict[str, int]:
    """Writes the rows that have a failure as a CSV; only a header when there are none.

    Photos that were not answered for a low score are among them, though their status is `skipped`.

    Args:
        path: the report.
        rows: of a result.
        skipped: list all other inputs that were left out on purpose, too.

    Returns:
        How many rows have each error code, the most frequent first.
    """
    codes: Counter[str] = Counter()

    def failed() -> Iterator[Row]:
        for row in rows:
            if row["status"] == "ok":
                continue
            if skipped or row["status"] == "error" or row["_failure"]["code"] == LOW_SCORE:
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


def _write_csv(path: Path, names: tuple[str, ...], rows: Iterable[Row]) -> None:
    _write_table(path, names, ({name: _word(value) for name, value in _values(row, names).items()} for row in rows))


def _values(row: Row, names: tuple[str, ...]) -> Row:
    """The columns of a row in their order; a photo without a location has no names of places either."""
    return {
        name: row.get(name, None if name == "city_km" else "") if name in PLACE_COLUMNS else row[name] for name in names
    }


def _word(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _write_table(path: Path, names: tuple[str, ...], rows: Iterable[Row]) -> None:
    with atomic_file(path) as file:
        writer = csv.DictWriter(_Lines(file), names, extrasaction="ignore", lineterminator="\r\n")
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


def _write_jsonl(path: Path, names: tuple[str, ...], rows: Iterable[Row]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write((json.dumps(_with_candidates(row, names), ensure_ascii=False, allow_nan=False) + "\n").encode())


def _with_candidates(row: Row, names: tuple[str, ...]) -> Row:
    return _values(row, names) | {"candidates": row.get("candidates", [])}


def _write_geojson(path: Path, names: tuple[str, ...], rows: Iterable[Row]) -> None:
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
                "properties": _values(row, names),
            }
            file.write(separator + json.dumps(feature, ensure_ascii=False, allow_nan=False).encode())
            separator = b",\n"
        file.write(b"\n]}\n")


def _write_parquet(path: Path, names: tuple[str, ...], rows: Iterable[Row]) -> None:
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
    types = dict.fromkeys(("latitude", "longitude", "radius_km", "score", "top1_similarity", "city_km"), number)
    types["unlike_references"] = pa.bool_()
    schema = pa.schema([(name, types.get(name, text)) for name in names] + [("candidates", pa.list_(candidate))])
    with atomic_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(rows):
            table = pa.Table.from_pylist([_with_candidates(row, names) for row in group], schema)
            writer.write_table(table, _ROW_GROUP)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while group := list(itertools.islice(iterator, _ROW_GROUP)):
        yield group
