"""Labels: which photo was taken where, from a CSV of any of the field's layouts.

Columns are found by name, never by position; identifiers are text; `NA` is Namibia and not a missing value.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from geoinfer.errors import ImageError, InputError, LabelsError
from geoinfer.geodesy import as_coordinates
from geoinfer.images.discover import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LATITUDE: Final = ("latitude", "lat")
_LONGITUDE: Final = ("longitude", "lon", "lng", "long")
_NAME: Final = (
    "path",
    "file",
    "filename",
    "file_name",
    "image",
    "image_path",
    "img_file",
    "img_id",
    "id",
    "key",
    "name",
)
_SOURCE: Final = ("source",)
_ATTRIBUTION: Final = ("attribution", "licence", "license")


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
        problem: why this row cannot be used; coordinates are then NaN.
    """

    id: str
    path: bytes
    latitude: float
    longitude: float
    source: str = ""
    attribution: str = ""
    problem: ImageError | None = None


@dataclass(frozen=True, slots=True)
class LabelsFile:
    """A labels CSV whose columns are recognised.

    Attributes:
        path: the CSV.
        images: folder that names are relative to.
        layout: `OSV-5M`, `Im2GPS`, `GeoCLIP` or `CSV`.
        columns: role (`name`, `latitude`, ...) to the column's name in the file.
        delimiter: between the columns.
    """

    path: Path
    images: Path
    layout: str
    columns: dict[str, str]
    delimiter: str


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
            first = file.readline()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path}: not a CSV in UTF-8", hint="save it as UTF-8 text") from error
    delimiter = max(",;\t|", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter), [])
    columns: dict[str, str] = {}
    for role, names in (
        ("name", _NAME),
        ("latitude", _LATITUDE),
        ("longitude", _LONGITUDE),
        ("source", _SOURCE),
        ("attribution", _ATTRIBUTION),
    ):
        present = {column.strip().lower(): column for column in reversed(header)}
        found = next((present[name] for name in names if name in present), None)
        if found is not None:
            columns[role] = found
        elif role in ("name", "latitude", "longitude"):
            raise LabelsError(
                f"{path}: no column for the {'photo' if role == 'name' else role}: looked for {', '.join(names)}; the "
                f"file has {', '.join(header) or 'no header'}",
                hint="the first line must name the columns",
            )
    return LabelsFile(path, images or path.parent, _layout(header), columns, delimiter)


def read_labels(labels: LabelsFile) -> Iterator[Label]:
    """Yields the rows in their order. A row that cannot be used has a `problem`, and costs nothing else.

    Raises:
        LabelsError: while iterating: the file is not UTF-8, or is no CSV, from some line on.
    """
    locate = _Locator(os.fsencode(labels.images))
    columns = labels.columns
    try:
        with labels.path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter=labels.delimiter, restval=""):
                name = (row.get(columns["name"]) or "").strip()
                path = locate(name)
                source = row.get(columns.get("source", ""), "") or ""
                attribution = row.get(columns.get("attribution", ""), "") or ""
                try:
                    latitude, longitude = _parse(row, columns)
                    problem = None if name else ImageError("labels", "no_name", "the row names no photo")
                except ImageError as error:
                    latitude = longitude = float("nan")
                    problem = error
                yield Label(name, path, latitude, longitude, source, attribution, problem)
    except UnicodeDecodeError as error:
        raise LabelsError(f"{labels.path}: not UTF-8 from byte {error.start} on", hint="save it as UTF-8") from error
    except csv.Error as error:
        raise LabelsError(f"{labels.path}: not a CSV: {error}") from error


def _layout(header: list[str]) -> str:
    names = set(header)
    if {"id", "latitude", "longitude"} <= names and names & {"sequence", "unique_country", "quadtree_10_5000"}:
        return "OSV-5M"
    if {"IMG_ID", "LAT", "LON"} <= names:
        return "Im2GPS"
    if {"IMG_FILE", "LAT", "LON"} <= names:
        return "GeoCLIP"
    return "CSV"


def _parse(row: dict[str, str], columns: dict[str, str]) -> tuple[float, float]:
    texts = [(row.get(columns[role]) or "").strip() for role in ("latitude", "longitude")]
    try:
        pair = as_coordinates([float(text) for text in texts])[0]
    except ValueError:
        shown = ", ".join(repr(text) for text in texts)
        raise ImageError(
            "labels",
            "bad_coordinates",
            f"latitude, longitude are {shown}; expected degrees within [-90, 90] and [-180, 180]",
        ) from None
    return float(pair[0]), float(pair[1])


class _Locator:
    """Finds a photo's file from the name in the CSV.

    First as a path, absolute or relative to the images' folder. Failing that, a file of that name (with or without an
    image's suffix) anywhere below: OSV-5M keeps `<id>.jpg` in numbered folders that its CSV does not name.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._by_name: dict[bytes, bytes] | None = None

    def __call__(self, name: str) -> bytes:
        path = os.path.join(self._root, os.fsencode(name))
        if not name or "\0" in name or os.path.isfile(path):
            return path
        if self._by_name is None:
            self._by_name = self._scan()
        base = os.path.basename(os.fsencode(name))
        return self._by_name.get(base, self._by_name.get(os.path.splitext(base)[0], path))

    def _scan(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for folder, folders, files in os.walk(self._root):
            folders.sort()
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)
                if suffix.lower() in IMAGE_SUFFIXES:
                    found.setdefault(file, os.path.join(folder, file))
                    found.setdefault(stem, os.path.join(folder, file))
        return found
