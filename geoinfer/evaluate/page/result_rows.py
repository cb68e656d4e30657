"""The rows of a result that `geoinfer predict` wrote, read back one by one from any of its formats."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any, Final

from geoinfer.batch.rows import COLUMNS
from geoinfer.batch.writers import format_of
from geoinfer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Row = dict[str, Any]

_NUMBERS: Final = ("latitude", "longitude", "radius_km", "score", "top1_similarity", "city_km")
_MAY_BE_EMPTY: Final = frozenset((*_NUMBERS, "unlike_references"))
_AT_ONCE: Final = 4096


def read_result(path: Path) -> Iterator[Row]:
    """Yields the rows of a result in their order, as `geoinfer.batch.rows` made them, as far as the format holds them.

    Memory does not grow with the file.

    Args:
        path: a result of `geoinfer predict`, unchanged since.

    Raises:
        UsageError: a suffix that names no format.
        InputError: while iterating: it cannot be read, or is no such result.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
        ".geojson": _read_geojson,
    }
    try:
        for row in readers[format_of(path)](path):
            _check(row)
            yield row
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path}: is no result of geoinfer predict, or was changed since", hint="--restart makes it again"
        ) from error


def _check(row: Row) -> None:
    missing = [name for name in COLUMNS if row.get(name) is None and name not in _MAY_BE_EMPTY]
    if missing or (row["status"] == "ok" and not all(isinstance(row.get(name), float | int) for name in _NUMBERS[:4])):
        raise ValueError("a row lacks what every row has")


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {*COLUMNS} <= {*(reader.fieldnames or ())}:
            raise ValueError("not the header of a result")
        for fields in reader:
            row: Row = dict(fields)
            for name in _NUMBERS:
                if name in row:
                    row[name] = float(row[name]) if row[name] else None
            yield row


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _read_geojson(path: Path) -> Iterator[Row]:
    """One feature a line, as they were written: a whole file of ten million would not fit the memory."""
    with path.open("rb") as file:
        if not next(file, b"").startswith(b'{"type": "FeatureCollection"'):
            raise ValueError("not the first line of a result")
        for line in file:
            if line.startswith(b"{"):
                yield json.loads(line.rstrip(b",\n"))["properties"]


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_AT_ONCE):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
