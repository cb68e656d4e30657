"""Where labelled photos come from: a labels CSV, OpenStreetView-5M with or without unpacking it, photos with GPS.

`recognise` says what a path is, `read_rows` yields one row a photo, in the order of the source. Photos are only looked
for here, never opened, except those whose own metadata is the label.
"""

from __future__ import annotations

import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from geoinfer.errors import ImageError, InputError, LabelsError
from geoinfer.images import discover
from geoinfer.images.discover import IMAGE_SUFFIXES
from geoinfer.images.exif import own_location
from geoinfer.labels import LabelsFile, open_labels, read_labels
from trainer.data.archives import list_members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_READ_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class Table:
    """A labels CSV and what its photos are for.

    Attributes:
        labels: the CSV.
        split: `test` where the source itself sets these photos apart, else None.
    """

    labels: LabelsFile
    split: Literal["test"] | None = None


@dataclass(frozen=True, slots=True)
class PhotoSource:
    """What a path turned out to be.

    Attributes:
        kind: in words.
        path: as the user named it.
        root: folder that holds the photos, absolute; empty if its name is not UTF-8.
        tables: the labels; none where the photos carry their own.
        notes: what the user should know of how it was read.
    """

    kind: str
    path: Path
    root: bytes
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a photo's bytes are.

    Attributes:
        path: of the file, absolute or relative to the source's root; of a photo in an archive, its name there.
        archive: of the ZIP archive, absolute or relative likewise; empty for a file of its own.
        offset_bytes: where it begins in the archive, -1 for a file.
        stored_bytes: its length there, -1 for a file.
    """

    path: bytes
    archive: bytes = b""
    offset_bytes: int = -1
    stored_bytes: int = -1

    def below(self, root: bytes) -> Place:
        """The same place, its file or archive relative to a folder if it is in that."""
        if self.archive:
            return replace(self, archive=_relative(self.archive, root))
        return replace(self, path=_relative(self.path, root))


@dataclass(frozen=True, slots=True)
class Row:
    """One photo of a source.

    Attributes:
        id: its name.
        line: of the CSV, 0 where there is none.
        coordinates: latitude and longitude in degrees; NaN where there is a problem with them.
        written: the two as they stand in the CSV, possible or not.
        place: where it is; None if nobody found it, or if there is a problem.
        country: may be empty.
        sequence: may be empty.
        is_test: the source itself sets it apart for testing.
        problem: why it cannot be used.
    """

    id: str
    line: int
    coordinates: tuple[float, float]
    written: tuple[float, float]
    place: Place | None
    country: str = ""
    sequence: str = ""
    is_test: bool = False
    problem: ImageError | None = None


def recognise(source: Path, images: Path | None = None) -> PhotoSource:
    """Says what a path holds.

    Args:
        source: a labels CSV; a folder with `train.csv` or `test.csv` and photos below `images/`, in folders or ZIP
            archives, as OpenStreetView-5M has it; a folder with one labels CSV; or a folder of photos with GPS.
        images: folder that the names in a CSV are relative to; for OpenStreetView-5M what stands for `images/`.

    Raises:
        InputError: there is no such path, or it holds nothing that can be used.
        LabelsError: a CSV lacks columns, or several could be meant.
    """
    if images is not None and not images.is_dir():
        raise InputError(f"{images}: there is no such folder", hint="--images names the folder that holds the photos")
    if not source.is_dir():
        labels = open_labels(source, images)
        return PhotoSource(f"{labels.layout} labels", source, _root(labels.images), (Table(labels),))
    known = [name for name in ("train.csv", "test.csv") if (source / name).is_file()]
    if known:
        folder = images or (source / "images" if (source / "images").is_dir() else source)
        tables = []
        for name in known:
            part = folder / name.removesuffix(".csv")
            labels = open_labels(source / name, part if part.is_dir() else folder)
            tables.append(Table(labels, "test" if name == "test.csv" and len(known) == 2 else None))
        layout = tables[0].labels.layout
        notes = (_LONE_TEST,) if known == ["test.csv"] else ()
        return PhotoSource(f"{layout} folder ({' and '.join(known)})", source, _root(folder), tuple(tables), notes)
    usable, unusable = [], []
    for path in sorted(source.glob("*.csv")):
        try:
            usable.append(open_labels(path, images))
        except LabelsError as error:
            unusable.append(error)
    if len(usable) > 1:
        names = ", ".join(labels.path.name for labels in usable)
        raise LabelsError(f"{source}: several labels CSVs: {names}", hint="name the one that is meant instead")
    if usable:
        (labels,) = usable
        kind = f"folder with {labels.layout} labels ({labels.path.name})"
        return PhotoSource(kind, source, _root(labels.images), (Table(labels),))
    passed = tuple(f"not taken for labels: {error}" for error in unusable)
    return PhotoSource("folder of photos with GPS", source, _root(source), (), passed)


_LONE_TEST: Final = "there is a test.csv and no train.csv, so its photos are split like any others"


def read_rows(source: PhotoSource, *, check_files: bool = True, threads: int = 8) -> Iterator[Row]:
    """Yields the photos of a source, those that cannot be used with the reason why.

    Args:
        source: from `recognise`.
        check_files: look whether files are there that the CSV names by their path.
        threads: that read photos, where they carry their own labels.

    Raises:
        InputError: while iterating: a folder or an archive cannot be read.
        LabelsError: while iterating: a CSV is damaged further down.
    """
    if not source.tables:
        yield from _rows_of_photos(source, threads)
    for table in source.tables:
        yield from _rows_of_table(table, source.root, check_files=check_files)


def _rows_of_table(table: Table, root: bytes, *, check_files: bool) -> Iterator[Row]:
    index = PhotoIndex(_absolute(table.labels.images))
    # Photos are looked for below, so that one in an archive keeps its place there.
    for label in read_labels(table.labels, lambda name: (name.encode(), None)):
        problem, place = label.problem, None
        if problem is None:
            place, problem = index.find(label.id, check_files=check_files)
        if place is not None:
            place = place.below(root)
        yield Row(
            id=label.id,
            line=label.line,
            coordinates=(label.latitude, label.longitude),
            written=label.written,
            place=place,
            country=label.country,
            sequence=label.sequence,
            is_test=table.split == "test",
            problem=problem,
        )


def _rows_of_photos(source: PhotoSource, threads: int) -> Iterator[Row]:
    photos = discover([os.fsdecode(_absolute(source.path))])
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(photos, _READ_AT_ONCE)):
            paths = [photo.path for photo in batch]
            known = [photo.problem for photo in batch]
            for path, answer in zip(paths, pool.map(own_location, paths, known), strict=True):
                relative = _relative(path, source.root)
                where = answer if isinstance(answer, tuple) else (float("nan"), float("nan"))
                yield Row(
                    id=relative.decode("utf-8", "backslashreplace"),
                    line=0,
                    coordinates=where,
                    written=where,
                    place=Place(relative),
                    problem=answer if isinstance(answer, ImageError) else None,
                )


class PhotoIndex:
    """Finds photos by the names that a CSV gives them: files below a folder, and members of the ZIP archives there.

    A name with a folder of its own is a path, and nothing else is taken for it. A bare name, with or without an
    image's suffix, is looked for at the top and then anywhere: OpenStreetView-5M keeps `<id>.jpg` in numbered folders
    or archives that its CSV does not name. A file counts before a member of the same name.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._read = False
        # Five million photos: a few flat columns, and one dictionary from a name without its suffix to a position.
        self._containers: list[tuple[bytes, bool]] = []
        self._container = array("i")
        self._names: list[bytes] = []
        self._offsets = array("q")
        self._lengths = array("q")
        self._by_stem: dict[bytes, int] = {}
        self._more: dict[bytes, list[int]] = {}

    def find(self, name: str, *, check_files: bool = True) -> tuple[Place | None, ImageError | None]:
        """Where a photo is, or why it cannot be told."""
        encoded = os.fsencode(name)
        path = os.path.join(self._root, encoded)
        if "\0" in name:
            return None, _missing(name)
        if b"/" in encoded:
            if not check_files or os.path.isfile(path):
                return Place(path), None
            members = [position for position in self._candidates(os.path.basename(encoded)) if self._archived(position)]
            exact = [position for position in members if self._names[position] == encoded]
            return (self._place(exact[0]), None) if len(exact) == 1 else (None, _missing(name))
        candidates = self._candidates(encoded)
        for choice in (
            [p for p in candidates if not self._archived(p) and self._path(p) == path],
            [p for p in candidates if not self._archived(p) and os.path.basename(self._names[p]) == encoded],
            [p for p in candidates if not self._archived(p)],
            [p for p in candidates if os.path.basename(self._names[p]) == encoded],
            candidates,
        ):
            if len(choice) == 1:
                return self._place(choice[0]), None
            if choice:
                message = f"more than one photo below {os.fsdecode(self._root)} is called so"
                hint = "give the photo's path in the CSV, not its name alone"
                return None, ImageError("labels", "ambiguous_name", message, hint=hint)
        if os.path.isfile(path):  # called as no photo is, yet named by the CSV itself
            return Place(path), None
        return None, _missing(name)

    def _candidates(self, name: bytes) -> list[int]:
        """Positions of all photos that a bare name could mean."""
        if not self._read:
            self._scan()
        stem, suffix = os.path.splitext(name)
        found: list[int] = []
        for key in (name, stem) if suffix.lower() in IMAGE_SUFFIXES else (name,):
            if key in self._by_stem:
                found += self._more.get(key) or [self._by_stem[key]]
        return found

    def _scan(self) -> None:
        self._read = True
        seen: set[tuple[int, int]] = set()
        archives: list[bytes] = []
        for folder, folders, files in os.walk(self._root, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a loop of links
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            container = len(self._containers)
            self._containers.append((folder, False))
            for file in sorted(files):
                if file.lower().endswith(b".zip"):
                    archives.append(os.path.join(folder, file))
                else:
                    self._add(container, file, -1, -1)
        for archive in archives:
            container = len(self._containers)
            self._containers.append((archive, True))
            for member in list_members(archive):
                self._add(container, member.name, member.offset_bytes, member.stored_bytes)

    def _add(self, container: int, name: bytes, offset_bytes: int, stored_bytes: int) -> None:
        base = os.path.basename(name)
        stem, suffix = os.path.splitext(base)
        if suffix.lower() not in IMAGE_SUFFIXES or base.startswith(b"."):
            return
        position = len(self._names)
        self._container.append(container)
        self._names.append(name)
        self._offsets.append(offset_bytes)
        self._lengths.append(stored_bytes)
        first = self._by_stem.setdefault(stem, position)
        if first != position:
            self._more.setdefault(stem, [first]).append(position)

    def _archived(self, position: int) -> bool:
        return self._containers[self._container[position]][1]

    def _path(self, position: int) -> bytes:
        return os.path.join(self._containers[self._container[position]][0], self._names[position])

    def _place(self, position: int) -> Place:
        container, archived = self._containers[self._container[position]]
        if not archived:
            return Place(self._path(position))
        return Place(self._names[position], container, self._offsets[position], self._lengths[position])


def _missing(name: str) -> ImageError:
    return ImageError("read", "missing", f"there is no photo {name!r} below the images' folder")


def _absolute(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _root(path: Path) -> bytes:
    """The folder, absolute. One whose name is not UTF-8 cannot stand in a manifest and stays a part of every path."""
    root = _absolute(path)
    try:
        root.decode()
    except UnicodeDecodeError:
        return b""
    return root


def _relative(path: bytes, root: bytes) -> bytes:
    """Below the root, if it is."""
    if not root:
        return path
    prefix = root.rstrip(b"/") + b"/"
    return path.removeprefix(prefix)
