"""Rows of a table in any of the formats that predictions come in: CSV, JSON Lines, JSON, Parquet, GeoJSON."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from geoinfer.errors import InputError, LabelsError
from geoinfer.evaluate.json_features import MalformedJsonError, read_members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Rows = "Iterator[tuple[int, Sequence[Any]]]"

_LONGEST_HEADER: Final = 1 << 20
_LOOKED_AT: Final = 1000
"""Records of JSON whose keys together are the columns: those that failed may lack some."""

POINT: Final = ("geometry.latitude", "geometry.longitude")
"""What the columns of a GeoJSON's points are called here."""

_FOREIGN: Final = (
    (b"\x1f\x8b", "a compressed file", "unpack it first"),
    (b"PK\x03\x04", "an archive or a spreadsheet", "save the table as CSV"),
    (b"%PDF", "a PDF", "save the table as CSV"),
    (b"SQLite format 3", "a database", "save the table as CSV"),
    (b"ARROW1", "an Arrow file", "save the table as Parquet or CSV"),
)


@dataclass(frozen=True, slots=True)
class TableRows:
    """A table whose columns are known.

    Attributes:
        layout: `CSV`, `JSON Lines`, `JSON`, `Parquet` or `GeoJSON`.
        header: names of the columns.
        unit: what rows are counted in: `line`, `row` or `feature`.
        delimiter: between the cells of a CSV, else empty; where it is no comma, numbers may have decimal commas.
        nested: cells may be lists.
        point_columns: positions of latitude and longitude that are a GeoJSON's geometry.
        rows: given the positions that are wanted, yields where each row is, counted from 1 (the last line of a CSV's
            row), and its cells by position; raises LabelsError where the file is damaged.
    """

    layout: str
    header: tuple[str, ...]
    unit: str
    delimiter: str
    nested: bool
    rows: Callable[[Sequence[int]], Iterator[tuple[int, Sequence[Any]]]]
    point_columns: tuple[int, int] | None = None


def open_table(path: Path) -> TableRows:
    """Recognises a table by its first bytes and its suffix, and finds the names of its columns.

    Raises:
        InputError: it is missing or cannot be read.
        LabelsError: it is no table, empty, or damaged where it begins.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {(error.strerror or str(error)).lower()}", hint="check the path"
        ) from error
    if not head:
        raise LabelsError(f"{path}: the file is empty", hint="there is nothing to evaluate: check the path")
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1") or suffix in (".parquet", ".pq"):
        return _parquet(path)
    for start, what, hint in _FOREIGN:
        if head.startswith(start):
            raise LabelsError(f"{path}: is {what}, not a table of predictions", hint=hint)
    if b"\0" in head:
        raise LabelsError(
            f"{path}: is binary, or text that is not UTF-8",
            hint="predictions are CSV, JSON Lines or GeoJSON in UTF-8, or Parquet",
        )
    opening = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path)
    if suffix == ".geojson" or (suffix == ".json" and opening == b"{" and _has_features(path)):
        return _geojson(path)
    if suffix == ".json":
        return _json_array(path) if opening == b"[" else _json_lines(path)
    return _csv(path)


def _has_features(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            next(read_members(file), None)
    except (MalformedJsonError, UnicodeDecodeError):
        return False
    return True


def _csv(path: Path) -> TableRows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(_LONGEST_HEADER)
            delimiter = max(",;\t|", key=first.count)
            header = next(csv.reader(itertools.chain([first], file), delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise _not_utf8(path, 0) from error
    except csv.Error as error:
        raise _no_csv(path, error) from error
    width = len(header)

    def rows(_wanted: Sequence[int]) -> Iterator[tuple[int, Sequence[Any]]]:
        line = 1
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=delimiter)
                next(reader, None)
                for cells in reader:
                    line = reader.line_num
                    if cells:  # no empty line
                        yield line, cells if len(cells) >= width else cells + [""] * (width - len(cells))
        except UnicodeDecodeError as error:
            raise _not_utf8(path, line) from error
        except csv.Error as error:
            raise _no_csv(path, error) from error

    return TableRows("CSV", tuple(header), "line", delimiter, nested=False, rows=rows)


def _json_lines(path: Path) -> TableRows:
    return _records(path, "JSON Lines", "line", lambda: _lines(path))


def _json_array(path: Path) -> TableRows:
    return _records(path, "JSON", "row", lambda: _members(path, "row"))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    record = json.loads(text)
                except (ValueError, RecursionError) as error:
                    why = (
                        f"{error.msg.lower()} at column {error.colno}"
                        if isinstance(error, json.JSONDecodeError)
                        else "too deep"
                    )
                    raise LabelsError(
                        f"{path}: line {line} is no JSON: {why}",
                        hint="each line is one object; a file whose last line is broken was cut short",
                    ) from error
                yield line, _object(path, "line", line, record)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, line) from error


def _members(path: Path, unit: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, member in enumerate(read_members(file), 1):
                yield number, _object(path, unit, number, member)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, 0) from error
    except MalformedJsonError as error:
        raise LabelsError(f"{path}: {error}", hint="the file is damaged or was cut short: write it again") from error


def _object(path: Path, unit: str, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LabelsError(
            f"{path}: {unit} {number} is no object but {json.dumps(value, ensure_ascii=False)[:40]}",
            hint='each is an object, such as {"id": "1", "latitude": 48.9, "longitude": 2.4}',
        )
    return value


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Objects within the record as columns of it: `{"prediction": {"lat": 1}}` has a column `prediction.lat`."""
    if not any(isinstance(value, dict) for value in record.values()):
        return record
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _records(
    path: Path,
    layout: str,
    unit: str,
    read: Callable[[], Iterator[tuple[int, dict[str, Any]]]],
    points: Sequence[str] = (),
) -> TableRows:
    keys: dict[str, None] = dict.fromkeys(points)
    for _, record in itertools.islice(read(), _LOOKED_AT):
        keys |= dict.fromkeys(_flat(record))
    header = tuple(keys)

    def rows(wanted: Sequence[int]) -> Iterator[tuple[int, Sequence[Any]]]:
        chosen = [(at, header[at]) for at in wanted]
        for number, record in read():
            flat = _flat(record)
            cells: list[Any] = [None] * len(header)
            for at, key in chosen:
                cells[at] = flat.get(key)
            yield number, cells

    return TableRows(layout, header, unit, "", nested=True, rows=rows, point_columns=(0, 1) if points else None)


def _geojson(path: Path) -> TableRows:
    """RFC 7946: points are [longitude, latitude]; a feature without a geometry is a photo without an answer."""

    def read() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, feature in _members(path, "feature"):
            geometry, properties = feature.get("geometry"), feature.get("properties")
            point = {POINT[0]: None, POINT[1]: None}
            if geometry is not None:
                point = _point(path, number, geometry)
            own = {"id": feature["id"]} if "id" in feature else {}
            yield number, point | own | (properties if isinstance(properties, dict) else {})

    return _records(path, "GeoJSON", "feature", read, points=POINT)


def _point(path: Path, number: int, geometry: Any) -> dict[str, Any]:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind != "Point":
        raise LabelsError(
            f"{path}: feature {number} is a {kind}; expected a Point",
            hint="a prediction is one point; a photo without one has the geometry null",
        )
    position = geometry.get("coordinates")
    if not isinstance(position, list) or len(position) == 1:
        raise LabelsError(
            f"{path}: feature {number} is a Point without coordinates", hint="they are [longitude, latitude]"
        )
    longitude, latitude = position[:2] or (None, None)
    return {POINT[0]: latitude, POINT[1]: longitude}


def _parquet(path: Path) -> TableRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            header = tuple(file.schema_arrow.names)
    except (pa.ArrowException, OSError, ValueError) as error:  # the last for names that are not UTF-8
        raise _no_parquet(path, error) from error

    def rows(wanted: Sequence[int]) -> Iterator[tuple[int, Sequence[Any]]]:
        columns = sorted(set(wanted))
        number = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(16_384, columns=[header[at] for at in columns]):
                    lists = [batch.column(batch.schema.names.index(header[at])).to_pylist() for at in columns]
                    for values in zip(*lists, strict=True):
                        number += 1
                        cells: list[Any] = [None] * len(header)
                        for at, value in zip(columns, values, strict=True):
                            cells[at] = value
                        yield number, cells
        except (pa.ArrowException, OSError, ValueError) as error:  # the last for names that are not UTF-8
            raise _no_parquet(path, error) from error

    return TableRows("Parquet", header, "row", "", nested=True, rows=rows)


def _not_utf8(path: Path, line: int) -> LabelsError:
    where = f" somewhere after line {line}" if line else ""
    return LabelsError(f"{path}: not UTF-8{where}", hint="save it as UTF-8 text")


def _no_csv(path: Path, error: Exception) -> LabelsError:
    return LabelsError(f"{path}: not a CSV: {error}", hint="a quote that is not closed swallows all rows behind it")


def _no_parquet(path: Path, error: Exception) -> LabelsError:
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return LabelsError(
        f"{path}: not a whole Parquet file: {reason}", hint="it is damaged or was cut short: write it again"
    )
