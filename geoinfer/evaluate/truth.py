"""Where photos were truly taken: from labels of any layout, or from the photos' own EXIF."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

from geoinfer.batch.rows import path_fields
from geoinfer.columns import coordinate_columns, normalised
from geoinfer.errors import ImageError, InputError, LabelsError
from geoinfer.evaluate.coordinate_checks import check_coordinates, look_swapped, may_be_radians
from geoinfer.evaluate.outcomes import Outcomes
from geoinfer.images import discover
from geoinfer.images.exif import own_location
from geoinfer.labels import NAME_COLUMNS, open_labels, other_columns, read_labels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.evaluate.outcomes import NearestReferences
    from geoinfer.labels import Label, LabelsFile
    from geoinfer.prediction import Candidate

_SHOWN: Final = 3
_THREADS: Final = 8
_READ_AT_ONCE: Final = 1024


_NO_LABELS: Final = frozenset((".jsonl", ".ndjson", ".json", ".geojson", ".parquet"))


@dataclass(frozen=True, slots=True)
class Truth:
    """n photos and their true places, in the labels' order; row i of all belongs to one photo, and no photo is twice.

    Attributes:
        layout: `OSV-5M`, `Im2GPS`, `GeoCLIP`, `CSV` or `EXIF`.
        path: the labels, or the folder of photos.
        ids: as the labels name them; a path within the folder for EXIF.
        paths: where the photos are, or would be.
        coordinates: (n, 2) float64 degrees, all of them valid.
        countries: as the labels have them (codes or names; `NA` is Namibia), empty where they say nothing; likewise the
            next three.
        regions: largest parts of a country.
        sub_regions: smaller ones.
        cities: nearest or own.
        sources: where the photos come from; may be empty.
        sequences: the drive or walk that each belongs to; may be empty.
        columns: the further columns that were asked for, by the names that were asked for.
        other_names: what else the photos are called, by the names of the labels' columns.
        unusable: id, line of the CSV (0 for EXIF) and reason of each row that is no truth.
        duplicates: rows left out because the photo stands in the labels before, at the same place.
        warnings: sentences for the user.
    """

    layout: str
    path: Path
    ids: list[str]
    paths: list[bytes]
    coordinates: NDArray[np.float64]
    countries: list[str]
    regions: list[str]
    sub_regions: list[str]
    cities: list[str]
    sources: list[str]
    sequences: list[str]
    columns: dict[str, list[str]] = field(default_factory=dict)
    other_names: dict[str, list[str]] = field(default_factory=dict)
    unusable: list[tuple[str, int, str]] = field(default_factory=list)
    duplicates: int = 0
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def outcomes(
        self,
        predicted: NDArray[np.float64],
        statuses: list[str],
        reasons: list[str],
        *,
        scores: NDArray[np.float64],
        radii_km: NDArray[np.float64],
        references: NearestReferences | None = None,
        candidates: list[tuple[Candidate, ...]] | None = None,
    ) -> Outcomes:
        """These photos with what was answered of them, all in this order; see `Outcomes`."""
        return Outcomes(
            ids=self.ids,
            paths=self.paths,
            truth=self.coordinates,
            predicted=predicted,
            statuses=statuses,
            reasons=reasons,
            scores=scores,
            radii_km=radii_km,
            countries=self.countries,
            regions=self.regions,
            sub_regions=self.sub_regions,
            cities=self.cities,
            sources=self.sources,
            sequences=self.sequences,
            columns=self.columns,
            references=references,
            candidates=candidates,
        )


def read_truth(
    labels: Path, images: Path | None = None, *, columns: Sequence[str] = (), need_photos: bool = False
) -> Truth:
    """Reads labels, or the positions in photos' EXIF.

    Args:
        labels: a CSV of any layout that `geoinfer.labels` knows, or a folder of photos whose EXIF holds GPS.
        images: folder that the names in a CSV are relative to; the CSV's own if left out.
        columns: further columns of the CSV to keep.
        need_photos: the photos are going to be opened.

    Raises:
        InputError: the labels or the folder are missing or cannot be read, or photos are needed and none is there.
        LabelsError: a column is missing; the coordinates are none (swapped columns, other units); a photo has two
            different places; the locations are estimates of geoinfer's; or no row can be used.
    """
    if not labels.exists():
        raise InputError(
            f"{labels}: there is no such file or folder",
            hint="give a CSV of ids or paths and coordinates, or a folder of photos with GPS in their EXIF",
        )
    if labels.is_dir():
        if images is not None:
            raise InputError("--images is for a CSV; with a folder the photos are the folder's own")
        if columns:
            raise LabelsError(
                f"{labels}: photos' EXIF has no column {columns[0]!r}", hint="columns are for labels in a CSV"
            )
        return _truth_of_exif(labels)
    if labels.suffix.lower() in _NO_LABELS:
        raise LabelsError(
            f"{labels}: labels are read from a CSV, not from {labels.suffix}",
            hint="write id or path, latitude and longitude as a CSV; predictions may be of that format",
        )
    opened = open_labels(labels, images)
    _check_header(opened)
    return _truth_of_csv(opened, columns, find=need_photos or images is not None, need_photos=need_photos)


def _check_header(opened: LabelsFile) -> None:
    """Refuses tables whose only coordinates are predictions."""
    chosen = opened.positions["latitude"]
    meanings = {pair.latitude: pair.meaning for pair in coordinate_columns(opened.header)}
    columns = {normalised(name) for name in opened.header}
    # What geoinfer writes without a word of truth: its estimates are marked row by row, too, where there are any.
    ours = {"radius_km", "top1_similarity", "location_type"} <= columns
    if meanings.get(chosen) == "predicted" or (ours and meanings.get(chosen) != "true"):
        _refuse_estimates(opened.path)


def _refuse_estimates(path: Path) -> NoReturn:
    raise LabelsError(
        f"{path}: these locations are themselves predictions, not labels",
        hint="--labels names the true places, --predictions the estimated ones",
    )


def _truth_of_csv(opened: LabelsFile, columns: Sequence[str], *, find: bool, need_photos: bool) -> Truth:
    chosen = opened.header[opened.positions["name"]]
    others = [name for name in dict.fromkeys(opened.header) if normalised(name) in NAME_COLUMNS and name != chosen]
    positions = (*other_columns(opened, columns), *other_columns(opened, others))
    folder = os.fsencode(opened.images)
    # Photos that are not opened are not looked for: labels of millions of them may lie alone on a disk.
    locate = None if find else lambda name: (os.path.join(folder, os.fsencode(name)), None)
    rows: list[Label] = list(read_labels(opened, locate, others=positions))
    written = np.array([row.written for row in rows], np.float64).reshape(-1, 2)
    names = opened.header[opened.positions["latitude"]], opened.header[opened.positions["longitude"]]
    if rows and all(row.problem is not None and row.problem.code == "estimated" for row in rows):
        _refuse_estimates(opened.path)
    checked = check_coordinates(written, opened.path, names)
    warnings = checked.warnings
    usable: list[int] = []
    unusable: list[tuple[str, int, str]] = []
    for at, row in enumerate(rows):
        problem = row.problem
        placed = bool(np.isfinite(checked.degrees[at]).all())
        if problem is not None and (
            (problem.code == "bad_coordinates" and placed)  # a longitude counted from 0 to 360
            or (problem.code == "ambiguous_name" and not need_photos)
        ):
            problem = None
        if problem is None and placed:
            usable.append(at)
        else:
            unusable.append((row.id, row.line, str(problem) if problem else checked.problems.get(at, "no place")))
    shares = look_swapped(written)
    if shares is not None:
        warnings.append(
            f"{opened.path}: {names[0]!r} and {names[1]!r} may be swapped: {shares.as_given:.0%} of the rows are "
            f"possible places on land as they stand, {shares.exchanged:.0%} the other way round"
        )
    if may_be_radians(checked.degrees[usable]):
        warnings.append(
            f"{opened.path}: no latitude is beyond 1.571 and no longitude beyond 3.142: labels must be in degrees, and "
            "these may be radians"
        )
    usable, duplicates = _without_duplicates(opened.path, rows, usable, checked.degrees)
    if not usable:
        raise _nothing(opened.path, len(rows), unusable)
    kept = [rows[at] for at in usable]
    if unusable:
        warnings.append(_unusable_words(opened.path, len(rows), unusable))
    if duplicates:
        warnings.append(f"{opened.path}: {duplicates:,} rows repeat an earlier one, and each photo is counted once")
    if need_photos:
        _check_some_photo(opened, kept)
    return Truth(
        layout=opened.layout,
        path=opened.path,
        ids=[row.id for row in kept],
        paths=[row.path for row in kept],
        coordinates=checked.degrees[usable],
        countries=[row.country for row in kept],
        regions=[row.region for row in kept],
        sub_regions=[row.sub_region for row in kept],
        cities=[row.city for row in kept],
        sources=[row.source for row in kept],
        sequences=[row.sequence for row in kept],
        columns={name: [row.extra[at] for row in kept] for at, name in enumerate(columns)},
        other_names={name: [row.extra[at] for row in kept] for at, name in enumerate(others, len(columns))},
        unusable=unusable,
        duplicates=duplicates,
        warnings=warnings,
    )


def _without_duplicates(
    path: Path, rows: list[Label], usable: list[int], degrees: NDArray[np.float64]
) -> tuple[list[int], int]:
    """The rows of `usable` that name a photo for the first time, and how many do not.

    Raises:
        LabelsError: a photo has two places.
    """
    first: dict[bytes, int] = {}
    kept: list[int] = []
    torn: list[tuple[int, int]] = []
    for at in usable:
        before = first.setdefault(os.path.normpath(rows[at].path), at)
        if before == at:
            kept.append(at)
        elif (degrees[before] != degrees[at]).any():
            torn.append((before, at))
    if torn:
        shown = "; ".join(
            f"{rows[before].id!r} in lines {rows[before].line} and {rows[at].line}" for before, at in torn[:_SHOWN]
        )
        photos = "1 photo has" if len(torn) == 1 else f"{len(torn):,} rows give a photo"
        raise LabelsError(
            f"{path}: {photos} two different places: {shown}{'; ...' if len(torn) > _SHOWN else ''}",
            hint="each photo has one true place: remove the wrong rows",
        )
    return kept, len(usable) - len(kept)


def _truth_of_exif(folder: Path) -> Truth:
    root = os.fsencode(folder)
    ids: list[str] = []
    paths: list[bytes] = []
    places: list[tuple[float, float]] = []
    unusable: list[tuple[str, int, str]] = []
    photos = discover([os.fspath(folder)])
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(photos, _READ_AT_ONCE)):
            found = pool.map(own_location, [photo.path for photo in batch], [photo.problem for photo in batch])
            for photo, place in zip(batch, found, strict=True):
                name = path_fields(os.path.relpath(photo.path, root))["path"]
                if isinstance(place, ImageError):
                    unusable.append((name, 0, str(place)))
                else:
                    ids.append(name)
                    paths.append(photo.path)
                    places.append(place)
    count = len(ids) + len(unusable)
    if not ids:
        tables = sorted(table.name for table in folder.glob("*.csv"))
        raise _nothing(folder, count, unusable, f"labels may be in {folder / tables[0]}: name that" if tables else "")
    empty = [""] * len(ids)
    return Truth(
        layout="EXIF",
        path=folder,
        ids=ids,
        paths=paths,
        coordinates=np.array(places, np.float64).reshape(-1, 2),
        countries=empty,
        regions=empty.copy(),
        sub_regions=empty.copy(),
        cities=empty.copy(),
        sources=empty.copy(),
        sequences=empty.copy(),
        unusable=unusable,
        warnings=[_unusable_words(folder, count, unusable)] if unusable else [],
    )


def _check_some_photo(opened: LabelsFile, rows: list[Label]) -> None:
    if not any(os.path.isfile(row.path) for row in rows if b"\0" not in row.path):
        raise InputError(
            f"{opened.path}: none of its {len(rows):,} photos is below {opened.images}; the first was looked for as "
            f"{path_fields(rows[0].path)['path']}",
            hint="--images names the folder that the names in the CSV are relative to",
        )


def _nothing(path: Path, count: int, unusable: list[tuple[str, int, str]], hint: str = "") -> LabelsError:
    if not count:
        return LabelsError(f"{path}: names no photos", hint=hint or "there is nothing to evaluate: check the path")
    name, line, reason = unusable[0]
    where = f" (line {line})" if line else ""
    return LabelsError(
        f"{path}: not one of its {count:,} rows is a true place; the first, {name!r}{where}: {reason}",
        hint=hint
        or "labels need an id or path, and latitude and longitude in degrees; photos without labels need GPS in their "
        "EXIF",
    )


def _unusable_words(path: Path, count: int, unusable: list[tuple[str, int, str]]) -> str:
    name, line, reason = unusable[0]
    where = f" in line {line}" if line else ""
    return (
        f"{path}: {len(unusable):,} of {count:,} rows are no truth and are left out of everything, the first "
        f"{name!r}{where}: {reason}"
    )
