"""`Examples`: the labelled photos of a training set, one row each, and the folder that keeps them.

examples.parquet       id, path, archive, latitude, longitude, country, sequence, split, S2 cells at levels 3 to 14
manifest.json          format version, source, counts, how the split was made, checksum

A row costs some 150 bytes in memory, whatever the photo, so five million of them are less than a gigabyte. Nothing in
an `Examples` ever changes, so any number of threads may read from one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geoinfer.errors import ImageError, InputError, OutputError, UsageError
from geoinfer.geocells import leaf_cells as s2_leaf_cells
from geoinfer.geocells import parent_cells
from geoinfer.geodesy import as_coordinates
from geoinfer.images import decode_pixels, load_pixels, raw_problem, read_image_file
from geoinfer.images.read import sniff
from geoinfer.integrity import atomic_file, sha256_of, sync_folder, temporary_name, write_json
from trainer.data.archives import ArchiveReader, Member

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from geoinfer.images import Preprocessing

EXAMPLES_FORMAT: Final = "geoinfer-examples"
EXAMPLES_VERSION: Final = 1
SPLITS: Final = ("train", "validation", "test")
"""Names of the splits; their positions are the codes in `Examples.splits`."""
LEVELS: Final = range(3, 15)
"""S2 levels that a prepared set has columns for: cells of some 1000 km down to 600 m."""

_TABLE, _MANIFEST = "examples.parquet", "manifest.json"
_SNIFF_BYTES: Final = 512
_ROWS_AT_ONCE: Final = 1 << 18
_T = TypeVar("_T", str, bytes)


class Column(Sequence[_T], Generic[_T]):
    """A column of texts or byte strings, kept as one Arrow array of as many bytes as they have."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return Column(self.array[row])
        return self.array[int(row)].as_py()

    def __iter__(self) -> Iterator[_T]:
        for start in range(0, len(self.array), _ROWS_AT_ONCE):
            yield from self.array.slice(start, _ROWS_AT_ONCE).to_pylist()


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """n labelled photos. Made by `make_examples` and `open_examples`.

    Attributes:
        ids: names, unique.
        coordinates: (n, 2) float64 degrees.
        leaf_cells: (n,) uint64, S2 cells of level 30.
        sequences: (n,) int64, positions in `sequence_names`, -1 where the sequence is not known.
        sequence_names: names of the drives and walks.
        countries: as the labels have them; empty where they do not say.
        splits: (n,) int8, positions in `SPLITS`.
        root: folder that `members` and `archives` are relative to.
        members: paths of photos, or of their names within an archive.
        archives: paths of ZIP archives.
        archive_codes: (n,) int32, positions in `archives`, -1 for a file of its own; None when all are.
        spans: (n, 2) int64, offset and stored length within the archive; None when there is none.
        reader: of the archives.
    """

    ids: Column[str]
    coordinates: NDArray[np.float64]
    leaf_cells: NDArray[np.uint64]
    sequences: NDArray[np.int64]
    sequence_names: Column[str]
    countries: Column[str]
    splits: NDArray[np.int8]
    root: bytes
    members: Column[bytes]
    archives: tuple[bytes, ...]
    archive_codes: NDArray[np.int32] | None
    spans: NDArray[np.int64] | None
    reader: ArchiveReader

    def __len__(self) -> int:
        return len(self.splits)

    @property
    def paths(self) -> Iterator[bytes]:
        """Where each photo is; one in an archive has the archive's path before its own."""
        return (self.path(row) for row in range(len(self)))

    def path(self, row: int) -> bytes:
        """Where a photo is; one in an archive has the archive's path before its own."""
        member = self._member(row)
        if member is not None:
            return os.path.join(member.archive, member.name)
        return os.path.join(self.root, self.members[row])

    def cells(self, level: int) -> NDArray[np.uint64]:
        """S2 cells of a level from 3 to 14, (n,) uint64.

        Raises:
            UsageError: another level.
        """
        if level not in LEVELS:
            raise UsageError(f"S2 level {level} is outside {LEVELS[0]} to {LEVELS[-1]}")
        return parent_cells(self.leaf_cells, level)

    def take(self, rows: ArrayLike) -> Examples:
        """The given rows, (m,) integers or (n,) booleans, in their order."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.int64).reshape(-1)
        arrow = pa.array(index)
        return Examples(
            ids=Column(self.ids.array.take(arrow)),
            coordinates=_frozen(self.coordinates[index]),
            leaf_cells=_frozen(self.leaf_cells[index]),
            sequences=_frozen(self.sequences[index]),
            sequence_names=self.sequence_names,
            countries=Column(self.countries.array.take(arrow)),
            splits=_frozen(self.splits[index]),
            root=self.root,
            members=Column(self.members.array.take(arrow)),
            archives=self.archives,
            archive_codes=None if self.archive_codes is None else _frozen(self.archive_codes[index]),
            spans=None if self.spans is None else _frozen(self.spans[index]),
            reader=self.reader,
        )

    def of_split(self, name: str) -> Examples:
        """The photos of one split, in their order.

        Raises:
            UsageError: there is no split of that name.
        """
        if name not in SPLITS:
            raise UsageError(f"there is no split {name!r}; expected one of {', '.join(SPLITS)}")
        return self.take(self.splits == SPLITS.index(name))

    def subset(self, count: int, seed: int = 0) -> Examples:
        """`count` photos drawn at random, or all if there are no more, in the order that they have here.

        Which ones depends on their ids and the seed alone, so it is the same on every machine and in every order of the
        rows, and a subset of 1000 is part of the subset of 2000.

        Raises:
            UsageError: `count` is negative.
        """
        return self if count >= len(self) else self.take(self.subset_rows(count, seed))

    def subset_rows(self, count: int, seed: int = 0) -> NDArray[np.int64]:
        """Rows of `subset`, ascending."""
        if count < 0:
            raise UsageError(f"a subset of {count} photos makes no sense")
        keys = keyed_hashes(self.ids, seed, purpose="subset")
        return np.sort(np.argsort(keys, kind="stable")[:count])

    def with_splits(self, splits: ArrayLike) -> Examples:
        """The same photos in other splits, (n,) codes."""
        codes = np.asarray(splits, np.int8)
        if codes.shape != self.splits.shape:
            raise ValueError(f"{codes.shape} splits for {len(self)} photos")
        return replace(self, splits=_frozen(codes.copy()))

    def read_bytes(self, row: int) -> bytes:
        """The whole file of a photo, from the disk or from its archive.

        Raises:
            ImageError: stage `read`, with the codes of `geoinfer.images.read_image_file`.
        """
        return self._read(row)[0]

    def load_pixels(self, row: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """Reads, decodes, orients and resizes a photo by the code that prediction uses.

        Returns:
            (size, size, 3) uint8, RGB.

        Raises:
            ImageError: as `geoinfer.images.load_pixels`.
        """
        if self._member(row) is None:
            return load_pixels(self.path(row), preprocessing)
        raw = raw_problem(self.members[row])
        if raw is not None:
            raise raw
        data, kind = self._read(row)
        return decode_pixels(data, kind, preprocessing)

    def write(self, folder: Path, details: Mapping[str, Any] | None = None) -> None:
        """Writes the set into a folder, replacing one that is there; a reader sees the old, the new, or a clear error.

        Args:
            folder: made if it is missing.
            details: what else the manifest shall say, such as where the photos come from and how they were split.

        Raises:
            OutputError: the folder holds something else, or cannot be written.
        """
        try:
            check_output(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _MANIFEST).unlink(missing_ok=True)
            sync_folder(folder)
            with atomic_file(folder / _TABLE) as file:
                self._write_table(file)
            counts = np.bincount(self.splits, minlength=len(SPLITS))
            manifest = {
                **(details or {}),
                "format": EXAMPLES_FORMAT,
                "version": EXAMPLES_VERSION,
                "count": len(self),
                "splits": {name: int(count) for name, count in zip(SPLITS, counts, strict=True)},
                "root": os.fsdecode(self.root),
                "sha256": sha256_of(folder / _TABLE),
            }
            write_json(folder / _MANIFEST, manifest)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{folder}: cannot be written: {(error.strerror or str(error)).lower()}") from error

    def _member(self, row: int) -> Member | None:
        if self.archive_codes is None or self.spans is None or self.archive_codes[row] < 0:
            return None
        archive = os.path.join(self.root, self.archives[self.archive_codes[row]])
        return Member(archive, self.members[row], int(self.spans[row, 0]), int(self.spans[row, 1]))

    def _read(self, row: int) -> tuple[bytes, str]:
        member = self._member(row)
        if member is None:
            return read_image_file(self.path(row))
        data = self.reader.read(member)
        if not data:
            raise ImageError("read", "empty_file", "the file has no bytes", size_bytes=0)
        found = sniff(data[:_SNIFF_BYTES])
        if found is None:
            raise ImageError("read", "not_an_image", "the bytes are of no image format", size_bytes=len(data))
        name, decodable = found
        if not decodable:
            raise ImageError("read", "wrong_type", f"the file holds {name}, not an image", size_bytes=len(data))
        return data, name

    def _write_table(self, file: Any) -> None:
        archived = self.archive_codes is not None and self.spans is not None
        names = pa.array([*self.archives], pa.large_binary())
        schema = pa.schema(
            [
                ("id", pa.large_string()),
                ("path", pa.large_binary()),
                ("archive", pa.large_binary()),
                ("archive_offset", pa.int64()),
                ("archive_bytes", pa.int64()),
                ("latitude", pa.float64()),
                ("longitude", pa.float64()),
                ("country", pa.large_string()),
                ("sequence", pa.large_string()),
                ("split", pa.int8()),
                ("s2_leaf", pa.uint64()),
                *((f"s2_{level:02d}", pa.uint64()) for level in LEVELS),
            ]
        )
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            # In parts, so that the columns of all levels are never in memory for all rows.
            for start in range(0, len(self), _ROWS_AT_ONCE):
                part = slice(start, min(start + _ROWS_AT_ONCE, len(self)))
                leaves = self.leaf_cells[part]
                count = len(leaves)
                if archived:
                    codes, spans = self.archive_codes[part], self.spans[part]  # type: ignore[index]
                    columns = [names.take(pa.array(codes, mask=codes < 0)), spans[:, 0], spans[:, 1]]
                else:
                    columns = [pa.nulls(count, pa.large_binary()), *(np.full((2, count), -1, np.int64))]
                sequences = self.sequences[part]
                columns = [
                    self.ids.array[part],
                    self.members.array[part],
                    *columns,
                    self.coordinates[part, 0],
                    self.coordinates[part, 1],
                    self.countries.array[part],
                    self.sequence_names.array.take(pa.array(sequences, mask=sequences < 0)),
                    self.splits[part],
                    leaves,
                    *(parent_cells(leaves, level) for level in LEVELS),
                ]
                arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def make_examples(
    ids: Sequence[str] | pa.Array,
    paths: Sequence[bytes] | pa.Array,
    coordinates: ArrayLike,
    *,
    root: bytes = b"",
    leaf_cells: NDArray[np.uint64] | None = None,
    sequences: Sequence[str] | pa.Array | None = None,
    countries: Sequence[str] | pa.Array | None = None,
    splits: ArrayLike | None = None,
    archives: Sequence[bytes] = (),
    archive_codes: ArrayLike | None = None,
    spans: ArrayLike | None = None,
) -> Examples:
    """Gathers columns into `Examples`.

    Args:
        ids: n unique names.
        paths: n paths, relative to `root`, or absolute; of a photo in an archive its name there.
        coordinates: (n, 2) degrees.
        root: folder of the photos.
        leaf_cells: (n,) uint64; found from the coordinates if left out.
        sequences: n names, empty or null where not known.
        countries: n names, empty where not known.
        splits: (n,) codes, all `train` if left out.
        archives: paths of ZIP archives, relative to `root`.
        archive_codes: (n,) positions in `archives`, -1 for a file of its own.
        spans: (n, 2) offset and stored length of each in its archive.

    Raises:
        ValueError: lengths differ, or a coordinate is out of range.
    """
    points = as_coordinates(np.asarray(coordinates, np.float64).reshape(-1, 2))
    n = len(points)
    codes, names = _encode(sequences, n)
    made = Examples(
        ids=Column(_arrow(ids, pa.large_string())),
        coordinates=_frozen(points),
        leaf_cells=_frozen(s2_leaf_cells(points) if leaf_cells is None else np.asarray(leaf_cells, np.uint64)),
        sequences=_frozen(codes),
        sequence_names=Column(names),
        countries=Column(_arrow([""] * n if countries is None else countries, pa.large_string()).fill_null("")),
        splits=_frozen(np.zeros(n, np.int8) if splits is None else np.asarray(splits, np.int8)),
        root=root,
        members=Column(_arrow(paths, pa.large_binary())),
        archives=tuple(archives),
        archive_codes=None if archive_codes is None else _frozen(np.asarray(archive_codes, np.int32)),
        spans=None if spans is None else _frozen(np.asarray(spans, np.int64).reshape(-1, 2)),
        reader=ArchiveReader(),
    )
    columns = (made.ids, made.leaf_cells, made.sequences, made.countries, made.splits, made.members)
    if {len(column) for column in (*columns, *(c for c in (made.archive_codes, made.spans) if c is not None))} != {n}:
        raise ValueError("the columns of the examples differ in length")
    return made


def check_output(folder: Path) -> None:
    """Raises OutputError if a folder is there and holds anything but a prepared set, whole or half written."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: a file, not a folder", hint="name a new or empty folder")
    if not folder.is_dir():
        return
    # A set whose writing was cut short may have left no more than the file that was to become its table.
    names = {entry.name for entry in folder.iterdir()} - {temporary_name(folder / _TABLE).name}
    if names and not {_TABLE, _MANIFEST} & names:
        raise OutputError(
            f"{folder}: holds {min(names)} and is no prepared set", hint="name a new folder, or an empty one"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared set.

    Raises:
        InputError: the folder is missing, not a prepared set, of another format version, or broken.
    """
    prepare = "python -m trainer prepare SOURCE --out FOLDER makes one"
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder", hint=prepare)
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError as error:
        broken = (folder / _TABLE).exists()
        what = "a prepared set whose writing was cut short" if broken else "not a prepared set"
        raise InputError(f"{folder}: {what}: it has no {_MANIFEST}", hint=prepare) from error
    except OSError as error:
        raise InputError(f"{folder / _MANIFEST}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise InputError(f"{folder / _MANIFEST}: not JSON", hint="prepare the set again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != EXAMPLES_FORMAT:
        raise InputError(f"{folder}: not a prepared set: its {_MANIFEST} is of something else", hint=prepare)
    if manifest.get("version") != EXAMPLES_VERSION:
        raise InputError(
            f"{folder}: a prepared set of format version {manifest.get('version')}; this trainer reads "
            f"{EXAMPLES_VERSION}",
            hint="prepare the set again",
        )
    if not isinstance(manifest.get("root"), str) or not isinstance(manifest.get("sha256"), str):
        raise InputError(f"{folder / _MANIFEST}: entries are missing", hint="prepare the set again")
    return manifest


def open_examples(folder: Path) -> Examples:
    """Opens what `Examples.write` wrote.

    Raises:
        InputError: the folder is missing, not a prepared set, of another format version, or broken.
    """
    manifest = read_manifest(folder)
    again = "prepare the set again"
    try:
        if sha256_of(folder / _TABLE) != manifest["sha256"]:
            raise InputError(f"{folder / _TABLE}: not the file that its manifest describes", hint=again)
        table = pq.read_table(
            folder / _TABLE,
            columns=["id", "path", "archive_offset", "archive_bytes", "latitude", "longitude", "country", "sequence",
                     "split", "s2_leaf"],
        )  # fmt: skip
        archive = pq.read_table(folder / _TABLE, columns=["archive"], read_dictionary=["archive"])["archive"]
    except FileNotFoundError as error:
        raise InputError(f"{folder}: {_TABLE} is missing", hint=again) from error
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / _TABLE}: cannot be read: {error}", hint=again) from error
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{folder / _TABLE}: columns are missing or broken", hint=again) from error
    names, codes = _dictionary(archive)
    archived = bool(names)
    return make_examples(
        table["id"].combine_chunks(),
        table["path"].combine_chunks(),
        np.stack([table["latitude"].to_numpy(), table["longitude"].to_numpy()], axis=1),
        root=os.fsencode(manifest["root"]),
        leaf_cells=table["s2_leaf"].to_numpy(),
        sequences=table["sequence"].combine_chunks(),
        countries=table["country"].combine_chunks(),
        splits=table["split"].to_numpy(),
        archives=names,
        archive_codes=codes if archived else None,
        spans=(
            np.stack([table["archive_offset"].to_numpy(), table["archive_bytes"].to_numpy()], axis=1)
            if archived
            else None
        ),
    )


def keyed_hashes(keys: Sequence[str], seed: int, *, purpose: str) -> NDArray[np.uint64]:
    """A number for each key that looks random and depends on the key, the seed and the purpose alone, (n,) uint64."""
    base = hashlib.blake2b(digest_size=8, key=f"{purpose} {seed}".encode()[:64])
    hashes = np.empty(len(keys), np.uint64)
    digests = bytearray()
    start = 0
    for position, key in enumerate(keys, start=1):
        hasher = base.copy()
        hasher.update(key.encode("utf-8", "surrogateescape"))
        digests += hasher.digest()
        if position - start == _ROWS_AT_ONCE or position == len(keys):
            hashes[start:position] = np.frombuffer(bytes(digests), "<u8")
            start, digests = position, bytearray()
    return hashes


def _frozen(array: NDArray[Any]) -> Any:
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, Column):
        values = values.array
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    return pa.array(values, kind)


def _encode(sequences: Any, n: int) -> tuple[NDArray[np.int64], pa.Array]:
    """Codes (-1 for null and empty), and the names that they stand for, in order of appearance."""
    if sequences is None:
        return np.full(n, -1, np.int64), pa.array([], pa.large_string())
    texts = _arrow(sequences, pa.large_string())
    known = pc.not_equal(texts, "")
    encoded = pc.if_else(known, texts, pa.scalar(None, pa.large_string())).dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def _dictionary(column: pa.ChunkedArray) -> tuple[list[bytes], NDArray[np.int32]]:
    """The different values of a dictionary column and the (n,) code of each row, -1 for null."""
    unified = column.unify_dictionaries() if column.num_chunks else column.dictionary_encode()
    names: list[bytes] = unified.chunk(0).dictionary.to_pylist() if unified.num_chunks else []
    codes = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in unified.chunks]
    return names, np.concatenate([*codes, np.empty(0, np.int32)]).astype(np.int32)
