"""Labels: which photo was taken where, from a CSV of any of the field's layouts.

Columns are found by name, never by position; identifiers are text; `NA` is Namibia and not a missing value.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from geoinfer.columns import coordinate_columns, listed, normalised
from geoinfer.errors import ImageError, InputError, LabelsError
from geoinfer.images.discover import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Locator = Callable[[str], tuple[bytes, ImageError | None]]

_LATITUDE: Final = ("latitude", "lat", "gpslatitude", "gps_latitude")
_LONGITUDE: Final = ("longitude", "lon", "lng", "long", "gpslongitude", "gps_longitude")
NAME_COLUMNS: Final = (
    "path",
    "file",
    "filename",
    "file_name",
    "file_path",
    "filepath",
    "sourcefile",
    "image",
    "image_path",
    "img_file",
    "img_id",
    "id",
    "key",
    "name",
    "image_id",
    "image_name",
    "img",
    "img_path",
    "photo",
    "photo_id",
)
"""Columns that name a photo, the one that counts first; spelt as `geoinfer.columns.normalised` does."""
_SOURCE: Final = ("source",)
_ATTRIBUTION: Final = ("attribution", "licence", "license")
_SEQUENCE: Final = ("sequence", "sequence_id")
_COUNTRY: Final = ("country", "country_code", "unique_country")
_REGION: Final = ("region", "unique_region")
_SUB_REGION: Final = ("sub_region", "subregion", "unique_sub_region")
_CITY: Final = ("city", "unique_city")
_LOCATION_TYPE: Final = ("location_type",)

_LONGEST_HEADER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Label:
    """One row.

    Attributes:
        id: the photo's name as the CSV gives it.
        path: where the photo is, or would be.
        latitude: degrees.
        longitude: degrees.
        source: where the photo comes from; may be empty.
        attribution: licence and author; may be empty.
        sequence: the drive or walk that it belongs to; may be empty.
        country: as the CSV writes it; `NA` is Namibia. May be empty, as the next three may.
        region: the country's larger part.
        sub_region: the region's part.
        city: nearest or own.
        line: of the CSV that the row ends in.
        written: latitude and longitude as the columns have them, possible or not; NaN where there is no number.
        extra: the cells of the further columns that `read_labels` was asked for, in their order.
        problem: why this row cannot be used.
    """

    id: str
    path: bytes
    latitude: float
    longitude: float
    source: str = ""
    attribution: str = ""
    sequence: str = ""
    country: str = ""
    region: str = ""
    sub_region: str = ""
    city: str = ""
    line: int = 0
    written: tuple[float, float] = (math.nan, math.nan)
    extra: tuple[str, ...] = ()
    problem: ImageError | None = None


@dataclass(frozen=True, slots=True)
class LabelsFile:
    """A labels CSV whose columns are recognised.

    Attributes:
        path: the CSV.
        images: folder that names are relative to.
        layout: `OSV-5M`, `Im2GPS`, `GeoCLIP` or `CSV`.
        positions: role (`name`, `latitude`, ...) to the position of its column.
        delimiter: between the columns.
        header: names of the columns as they are written.
    """

    path: Path
    images: Path
    layout: str
    positions: dict[str, int]
    delimiter: str
    header: tuple[str, ...]


def open_labels(path: Path, images: Path | None = None) -> LabelsFile:
    """Reads a CSV's header.

    Args:
        path: the CSV, UTF-8.
        images: folder that names are relative to; the CSV's own folder if left out.

    Raises:
        InputError: the CSV or the folder is missing or cannot be read.
        LabelsError: a column is missing; the message names what was looked for and what is there.
    """
    if images is not None and not images.is_dir():
        raise InputError(f"{images}: there is no such folder", hint="--images names the folder that holds the photos")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(_LONGEST_HEADER)
            delimiter = max(",;\t|", key=first.count)
            header = next(csv.reader(itertools.chain([first], file), delimiter=delimiter), [])
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path}: not a CSV in UTF-8", hint="save it as UTF-8 text") from error
    except csv.Error as error:
        raise LabelsError(f"{path}: not a CSV: {error}") from error
    positions = column_positions(path, header)
    layout = _layout(header) if header[positions["latitude"]].lower() in _LATITUDE else "CSV"
    return LabelsFile(path, images or path.parent, layout, positions, delimiter, tuple(header))


def column_positions(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Which column plays which role (`name`, `latitude`, `longitude`, `source`, ...), by its name.

    Args:
        path: the table, for the message.
        header: names of its columns. Where some are said to be true (`true_latitude`, `gt_lat`), as in tables that hold
            predictions too, they are the latitude and the longitude.

    Raises:
        LabelsError: one that is needed is missing; the message names what was looked for and what is there.
    """
    positions: dict[str, int] = {}
    present = {normalised(column): position for position, column in reversed([*enumerate(header)])}
    true = next((pair for pair in coordinate_columns(header) if pair.meaning == "true"), None)
    if true is not None:
        positions |= {"latitude": true.latitude, "longitude": true.longitude}
    for role, names in (
        ("name", NAME_COLUMNS),
        ("latitude", _LATITUDE),
        ("longitude", _LONGITUDE),
        ("source", _SOURCE),
        ("attribution", _ATTRIBUTION),
        ("sequence", _SEQUENCE),
        ("country", _COUNTRY),
        ("region", _REGION),
        ("sub_region", _SUB_REGION),
        ("city", _CITY),
        ("location_type", _LOCATION_TYPE),
    ):
        if role in positions or (role == "location_type" and true is not None):  # it speaks of the predictions
            continue
        found = next((present[name] for name in names if name in present), None)
        if found is not None:
            positions[role] = found
        elif role in ("name", "latitude", "longitude"):
            raise LabelsError(
                f"{path}: no column for the {'photo' if role == 'name' else role}: looked for {', '.join(names)}; the "
                f"file has {listed(header)}",
                hint="the first line must name the columns",
            )
    return positions


def other_columns(labels: LabelsFile, columns: Sequence[str]) -> tuple[int, ...]:
    """Where the columns of these names are, for `read_labels`.

    Args:
        labels: from `open_labels`.
        columns: names as the CSV has them, or else but for case, spaces and hyphens.

    Raises:
        LabelsError: there is no such column; the message names those that are there.
    """
    alike = {normalised(name): at for at, name in reversed([*enumerate(labels.header)])}
    exactly = {name: at for at, name in reversed([*enumerate(labels.header)])}
    found = []
    for column in columns:
        position = exactly.get(column, alike.get(normalised(column)))
        if position is None:
            raise LabelsError(
                f"{labels.path}: there is no column {column!r}; the file has {', '.join(labels.header)}",
                hint="name one of them",
            )
        found.append(position)
    return tuple(found)


def read_labels(labels: LabelsFile, locate: Locator | None = None, *, others: Sequence[int] = ()) -> Iterator[Label]:
    """Yields the rows in their order. A row that cannot be used has a `problem`, and costs nothing else.

    Args:
        labels: from `open_labels`.
        locate: finds a photo by the name that the CSV gives it: its path, and why it cannot be used. If left out,
            photos are files below the images' folder.
        others: positions of further columns to read, from `other_columns`.

    Raises:
        LabelsError: while iterating: the file is not UTF-8, or is no CSV, from some line on.
    """
    if locate is None:
        locate = _Locator(os.fsencode(labels.images))
    positions = labels.positions
    roles = tuple(positions)
    lines = 1
    try:
        with labels.path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=labels.delimiter)
            next(rows, None)
            for row in rows:
                lines = rows.line_num
                if not row:  # an empty line
                    continue
                cells = {role: row[positions[role]] if positions[role] < len(row) else "" for role in roles}
                name = cells["name"].strip()
                path, problem = locate(name)
                texts = cells["latitude"].strip(), cells["longitude"].strip()
                written = as_number(texts[0], labels.delimiter), as_number(texts[1], labels.delimiter)
                latitude, longitude = written
                # Written so that NaN, which compares false with everything, counts as bad.
                if not (abs(latitude) <= 90.0 and abs(longitude) <= 180.0):
                    latitude = longitude = math.nan
                    problem = bad_coordinates(texts)
                if cells.get("location_type") == "estimated":
                    problem = estimated()
                if not name:
                    problem = ImageError("labels", "no_name", f"the row that ends in line {lines} names no photo")
                yield Label(
                    id=name,
                    path=path,
                    latitude=latitude,
                    longitude=longitude,
                    source=cells.get("source", ""),
                    attribution=cells.get("attribution", ""),
                    sequence=cells.get("sequence", ""),
                    country=cells.get("country", ""),
                    region=cells.get("region", ""),
                    sub_region=cells.get("sub_region", ""),
                    city=cells.get("city", ""),
                    line=lines,
                    written=written,
                    extra=tuple(row[other] if other < len(row) else "" for other in others),
                    problem=problem,
                )
    except UnicodeDecodeError as error:
        raise LabelsError(f"{labels.path}: not UTF-8 somewhere after line {lines}", hint="save it as UTF-8") from error
    except csv.Error as error:
        raise LabelsError(f"{labels.path}: not a CSV: {error}") from error


def count_rows(labels: LabelsFile) -> int:
    """How many rows `read_labels` yields; no file is looked for."""
    with labels.path.open(encoding="utf-8-sig", newline="") as file:
        return max(0, sum(1 for row in csv.reader(file, delimiter=labels.delimiter) if row) - 1)


def _layout(header: list[str]) -> str:
    names = set(header)
    if {"id", "latitude", "longitude"} <= names and names & {"sequence", "unique_country", "quadtree_10_5000"}:
        return "OSV-5M"
    if {"IMG_ID", "LAT", "LON"} <= names:
        return "Im2GPS"
    if {"IMG_FILE", "LAT", "LON"} <= names:
        return "GeoCLIP"
    return "CSV"


def as_number(text: str, delimiter: str) -> float:
    """What a cell says, NaN if it is no number; `delimiter` separates the cells."""
    if delimiter != ",":  # spreadsheets write decimal commas where a comma does not separate
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return math.nan


def bad_coordinates(texts: tuple[str, str]) -> ImageError:
    """What is wrong with a row whose latitude and longitude, as they are written, are no coordinates."""
    shown = ", ".join(repr(text) for text in texts)
    return ImageError(
        "labels",
        "bad_coordinates",
        f"latitude, longitude are {shown}; expected degrees within [-90, 90] and [-180, 180]",
    )


def estimated() -> ImageError:
    """What is wrong with a row whose location geoinfer made: an index of guesses would be taken for one of facts."""
    return ImageError("labels", "estimated", "the location is itself an estimate of geoinfer's")


class _Locator:
    """Finds a photo's file from the name in the CSV.

    First as a path, absolute or relative to the images' folder. Failing that, a bare name (with or without an image's
    suffix) is looked for anywhere below: OSV-5M keeps `<id>.jpg` in numbered folders that its CSV does not name. A name
    with a folder of its own is not: `rome/1.jpg` must never be answered with `paris/1.jpg`.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._by_name: dict[bytes, bytes | None] | None = None

    def __call__(self, name: str) -> tuple[bytes, ImageError | None]:
        """The path, and why it cannot be used."""
        encoded = os.fsencode(name)
        path = os.path.join(self._root, encoded)
        if not name:
            return path, ImageError("labels", "no_name", "the row names no photo")
        if "\0" in name or b"/" in encoded or os.path.isfile(path):
            return path, None
        if self._by_name is None:
            self._by_name = self._scan()
        stem, suffix = os.path.splitext(encoded)
        for key in (encoded, stem) if suffix.lower() in IMAGE_SUFFIXES else (encoded,):
            if key in self._by_name:
                found = self._by_name[key]
                if found is None:
                    message = f"more than one file below {os.fsdecode(self._root)} is called so"
                    return path, ImageError(
                        "labels", "ambiguous_name", message, hint="give the photo's path in the CSV, not its name alone"
                    )
                return found, None
        return path, None

    def _scan(self) -> dict[bytes, bytes | None]:
        """Name, and name without its suffix, to path; to None where several files share it."""
        found: dict[bytes, bytes | None] = {}
        for folder, _, files in os.walk(self._root):
            for file in files:
                stem, suffix = os.path.splitext(file)
                if suffix.lower() in IMAGE_SUFFIXES:
                    path = os.path.join(folder, file)
                    for key in (file, stem):
                        found[key] = None if key in found else path
        return found
