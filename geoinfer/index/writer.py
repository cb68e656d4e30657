"""Writes an index, shard by shard: the folder appears whole or not at all, and what it replaces stays until then."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from geoinfer.errors import GeoInferError, OutputError
from geoinfer.geocells import cell_ids
from geoinfer.geodesy import as_coordinates
from geoinfer.index.array_file import ArrayWriter
from geoinfer.index.exchange import check_no_bundle, is_index, new_folder, put_in_place, recover_index
from geoinfer.index.flat import import_faiss
from geoinfer.index.leave_one_out import leave_one_out
from geoinfer.index.leave_one_out_file import write_leave_one_out
from geoinfer.index.manifest import (
    COORDINATES,
    COVERAGE_LEVEL,
    DATA_FILES,
    DIGESTS,
    EXACT_KINDS,
    HALF_KINDS,
    LEAVE_ONE_OUT,
    MANIFEST,
    REFERENCES,
    SEARCH,
    VECTORS,
    IndexManifest,
    checked_scale,
    read_index_manifest,
)
from geoinfer.index.references_table import TableWriter
from geoinfer.index.store import open_references, open_search_of, open_vectors
from geoinfer.integrity import sha256_of, sync_file, sync_folder, write_json
from geoinfer.unfinished import undone_at_the_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import BufferedRandom
    from types import TracebackType

    from numpy.typing import NDArray

    from geoinfer.answer import Answer
    from geoinfer.backends.base import EmbedderIdentity
    from geoinfer.index.base import References, Vectors
    from geoinfer.index.leave_one_out import LeaveOneOut
    from geoinfer.index_kinds import Kind

_DIGEST_BYTES = 32
# What the embedders themselves allow: graphs in float16 normalise to about 1e-3.
_LENGTH_TOLERANCE = 1e-2
# An index of version 1 may be replaced.
_FORMER = frozenset({"vectors.faiss", "references.parquet", "leave_one_out.npz"})


class IndexWriter:
    """A context manager that takes embeddings in shards and makes an index of them.

    Left without `finish`, by an exception or not, it leaves nothing behind. One process at a time may write an index:
    hold `geoinfer.index.exchange.index_lock` around it where another could.
    """

    def __init__(
        self,
        folder: Path,
        embedder: EmbedderIdentity,
        *,
        kind: Kind = "flat",
        overwrite: bool = False,
        rows: int | None = None,
        answer: Answer | None = None,
        logit_scale: float | None = None,
        on_step: Callable[[str, float], None] | None = None,
    ) -> None:
        """Nothing is written yet.

        Args:
            folder: of the index.
            embedder: what makes the vectors.
            kind: of the index.
            overwrite: replace an index that is there, when the new one is whole.
            rows: how many references will come, where that is known: it saves reading the files once more.
            answer: how to answer where nobody says otherwise.
            logit_scale: see `IndexManifest`.
            on_step: called with what is being done and how much of it is, 0 to 1.

        Raises:
            ValueError: the scale is not above 0 and at most a million.
        """
        self._folder = Path(os.path.realpath(folder) if overwrite else os.path.abspath(folder))
        self._shown = folder
        self._overwrite = overwrite
        self._embedder, self._kind, self._rows = embedder, kind, rows
        self._answer = answer
        self._scale = None if logit_scale is None else checked_scale(logit_scale)
        self._on_step = on_step or (lambda _step, _share: None)
        self._new = new_folder(self._folder)
        self._size = 0
        self._cells: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._files: dict[str, BufferedRandom] = {}
        self._stack = contextlib.ExitStack()
        self._finished = False

    def __enter__(self) -> Self:
        """Makes room for the index beside its place.

        Raises:
            OutputError: the folder exists and may not be replaced, or cannot be written.
            MissingPackageError: FAISS is not installed.
        """
        import_faiss()  # better now than after all has been embedded
        with self._reported():
            recover_index(self._folder)
            check_replaceable(self._shown, overwrite=self._overwrite)
            _remove_leftovers(self._new)
            self._new.mkdir(parents=True)
            try:
                self._stack.enter_context(undone_at_the_end(self._undo))
                self._open_files()
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _open_files(self) -> None:
        for name in sorted(DATA_FILES):
            self._files[name] = (self._new / name).open("w+b")
        half = self._kind in HALF_KINDS
        self._arrays = {
            VECTORS: self._array(VECTORS, np.float16 if half else np.float32, self._embedder.dim),
            COORDINATES: self._array(COORDINATES, np.float64, 2),
            DIGESTS: self._array(DIGESTS, np.uint8, 2 * _DIGEST_BYTES),
        }
        self._table_file = _Hashing(self._files[REFERENCES])
        self._table = TableWriter(self._table_file)

    def _end(self) -> None:
        """Closes what is open, and removes what was written unless it is in its place."""
        if not self._finished:
            for file in self._files.values():
                with contextlib.suppress(OSError):
                    file.close()
            self._undo()
        self._stack.close()

    def add(self, vectors: Vectors, references: References) -> None:
        """Appends a shard; it may be empty.

        Args:
            vectors: (m, dim) float32 or float16, unit rows.
            references: m of them, in the same order.

        Raises:
            ValueError: lengths or dimensions differ, a row is not finite, all zero or not of unit length (the message
                names the row), a coordinate is out of range, or a text is no Unicode.
            OutputError: the disk is full, or the folder cannot be written.
        """
        coordinates = _checked(np.asarray(vectors), references, self._embedder.dim, self._size)
        digests = np.concatenate(
            [np.asarray(references.content_sha256), np.asarray(references.perceptual_hashes)], axis=1
        )
        if len(vectors) == 0:
            return
        with self._reported():
            self._table.add(references)
            self._arrays[VECTORS].add(vectors)
            self._arrays[COORDINATES].add(coordinates)
            self._arrays[DIGESTS].add(digests)
        self._cells = np.union1d(self._cells, cell_ids(coordinates, COVERAGE_LEVEL))
        self._size += len(vectors)

    def finish(self, *, calibration: LeaveOneOut | None = None, search_from: Path | None = None) -> IndexManifest:
        """Makes what is searched, measures it, writes the manifest and puts the index in its place.

        Args:
            calibration: what to learn errors from; the references, each among the others, if left out. Where they are
                no photos, `held_out_photos` of others, or `LeaveOneOut.empty()`.
            search_from: folder of an index of the same kind whose references are the first of these, in the same order:
                what it learned is kept, and the rest added. For exact kinds it means nothing.

        Raises:
            ValueError: there is nothing to index, two references have the same id, or `search_from` is no beginning
                of this index.
            OutputError: the disk is full, the folder cannot be written, or the old index cannot be replaced.
            MissingPackageError: FAISS is not installed.
        """
        if self._size == 0:
            raise ValueError("there is nothing to index: no embeddings")
        with self._reported():
            manifest = self._completed_data()
            if self._kind not in EXACT_KINDS:
                manifest = self._with_search(manifest, search_from)
            manifest = self._with_figures(manifest, calibration)
            write_json(self._new / MANIFEST, manifest.as_dict())
            sync_folder(self._new)
            put_in_place(self._folder)
            self._finished = True
        return read_index_manifest(self._folder)

    def _completed_data(self) -> IndexManifest:
        """Closes the files of the references; returns a manifest that names them."""
        self._table.finish()
        checksums = {name: array.finish() for name, array in self._arrays.items()}
        checksums[REFERENCES] = self._table_file.digest.hexdigest()
        entries = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            entries[name] = {"bytes": os.fstat(file.fileno()).st_size, "sha256": checksums[name]}
            file.close()
        return IndexManifest(
            kind=self._kind,
            size=self._size,
            embedder=self._embedder,
            geocells=len(self._cells),
            calibrated_on=0,
            files=entries,
            answer=self._answer,
            logit_scale=self._scale,
        )

    def _with_search(self, manifest: IndexManifest, search_from: Path | None) -> IndexManifest:
        from geoinfer.index.search_file import build_search, extend_search

        vectors, path = open_vectors(self._new, manifest), self._new / SEARCH
        if search_from is None:
            parameters = build_search(self._kind, vectors, path, on_step=self._on_step)
        else:
            former = read_index_manifest(search_from)
            _check_beginning(former, open_vectors(search_from, former), self._kind, vectors)
            extend_search(search_from / SEARCH, self._kind, vectors, former.size, path, on_step=self._on_step)
            parameters = former.parameters
        sync_file(path)
        entry = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        return replace(manifest, files=manifest.files | {SEARCH: entry}, parameters=parameters)

    def _with_figures(self, manifest: IndexManifest, calibration: LeaveOneOut | None) -> IndexManifest:
        """Checks what only the whole can tell, and adds the calibration and the recall."""
        references = open_references(self._new, manifest)
        twice = first_duplicate(references.ids)
        if twice is not None:
            raise ValueError(f"references {twice[0]} and {twice[1]} have the same id, {references.ids[twice[0]]!r}")
        index = open_search_of(self._new, manifest)
        if calibration is None:
            self._on_step("calibrating", 0.0)
            calibration = leave_one_out(index, references)
            self._on_step("calibrating", 1.0)
        name, entry = write_leave_one_out(self._new, calibration)
        manifest = replace(manifest, files=manifest.files | {name: entry}, calibrated_on=len(calibration.rows))
        if self._kind not in EXACT_KINDS:
            from geoinfer.index.recall import measure_recall

            self._on_step("measuring recall", 0.0)
            manifest = replace(manifest, recall=measure_recall(index).as_dict())
            self._on_step("measuring recall", 1.0)
        return manifest

    def _array(self, name: str, dtype: Any, columns: int) -> ArrayWriter:
        return ArrayWriter(self._files[name], dtype, columns, self._rows)

    def _undo(self) -> None:
        shutil.rmtree(self._new, ignore_errors=True)
        with contextlib.suppress(OSError):
            recover_index(self._folder)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Says of what the system refuses which index it concerns."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if isinstance(error, GeoInferError):
                raise
            # FAISS reports a failed write as a RuntimeError of several lines.
            reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
            raise OutputError(
                f"{self._shown}: the index cannot be written: {reason}",
                hint="an index that was there before is as it was" if os.path.lexists(self._folder) else "",
            ) from error


def write_index(
    folder: Path,
    vectors: Vectors,
    references: References,
    embedder: EmbedderIdentity,
    *,
    kind: Kind = "flat",
    calibration: LeaveOneOut | None = None,
    answer: Answer | None = None,
    logit_scale: float | None = None,
) -> IndexManifest:
    """Writes an index of what is in memory; the folder appears whole or not at all.

    Args:
        folder: must not exist.
        vectors: (n, dim) float32 or float16, unit rows.
        references: n of them, in the same order.
        embedder: what made the vectors.
        kind: of the index.
        calibration: see `IndexWriter.finish`.
        answer: how to answer where nobody says otherwise.
        logit_scale: see `IndexManifest`.

    Raises:
        ValueError: see `IndexWriter`.
        OutputError: the folder exists or cannot be written.
    """
    writer = IndexWriter(folder, embedder, kind=kind, rows=len(vectors), answer=answer, logit_scale=logit_scale)
    with writer:
        writer.add(vectors, references)
        return writer.finish(calibration=calibration)


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Raises OutputError unless an index may be written to `folder`: nothing is there, or one that may be replaced."""
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise OutputError(f"{folder}: exists already", hint="choose another --output, or --overwrite to replace it")
    if not is_index(folder):
        raise OutputError(f"{folder}: exists and is not an index, so it is not overwritten")
    check_no_bundle(folder)
    others = _others(folder)
    if others:
        raise OutputError(
            f"{folder}: holds {others[0]}, which is no part of an index, so it is not overwritten",
            hint="move that file away, or choose another --output",
        )


def first_duplicate(ids: Sequence[str]) -> tuple[int, int] | None:
    """Two rows with the same id, the first such; None where all differ. Eight bytes a row are held in memory."""
    hashes = np.fromiter((hash(name) for name in ids), np.int64, len(ids))
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: dict[str, int] = {}
    if suspects:
        for row, name in enumerate(ids):
            if hash(name) in suspects and seen.setdefault(name, row) != row:
                return seen[name], row
    return None


class _Hashing:
    """A file that is written once, in order, and hashed on the way."""

    def __init__(self, file: BufferedRandom) -> None:
        self.digest = hashlib.sha256()
        self._file = file
        self.closed = False

    def write(self, data: Any) -> int:
        """Writes and hashes."""
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Arrow asks for it."""
        self._file.flush()


def _checked(vectors: NDArray[Any], references: References, dim: int, start: int) -> NDArray[np.float64]:
    """Raises ValueError for a shard that makes no index; returns its coordinates. `start`: rows before it."""
    if len(references) != len(vectors):
        raise ValueError(f"{len(vectors)} embeddings for {len(references)} references")
    if vectors.ndim != 2:
        raise ValueError(f"embeddings have shape {vectors.shape}; expected (n, {dim})")
    if vectors.shape[1] != dim:
        raise ValueError(f"embeddings of {vectors.shape[1]} dimensions from an embedder of {dim}")
    if vectors.dtype.kind != "f":
        raise ValueError(f"embeddings are {vectors.dtype}; expected float32 or float16")
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))  # NaN compares false
    if len(wrong):
        row, length = int(wrong[0]), lengths[wrong[0]]
        what = (
            "has a value that is not finite"
            if not np.isfinite(length)
            else "is all zeros"
            if length == 0
            else f"has length {length:.4g}; expected 1"
        )
        raise ValueError(f"embedding {start + row} {what}")
    for name in ("content_sha256", "perceptual_hashes"):
        digests = np.asarray(getattr(references, name))
        if digests.shape != (len(vectors), _DIGEST_BYTES) or digests.dtype != np.uint8:
            raise ValueError(f"{name} is {digests.shape} of {digests.dtype}; expected ({len(vectors)}, 32) of uint8")
    return as_coordinates(references.coordinates)


def _check_beginning(former: IndexManifest, known: Vectors, kind: Kind, vectors: Vectors) -> None:
    """Raises ValueError unless the vectors begin with those that are known; a few hundred are compared."""
    rows = np.unique(np.linspace(0, former.size - 1, 256).astype(np.int64))
    if (
        former.kind != kind
        or former.size > len(vectors)
        or known.shape[1] != vectors.shape[1]
        or not np.array_equal(known[rows], vectors[rows])
    ):
        raise ValueError("search_from: an index of another kind, or of other references than the first of these")


def _remove_leftovers(folder: Path) -> None:
    """Removes what a killed run left behind, and nothing else that happens to have the name."""
    others = _others(folder) if os.path.isdir(folder) else []
    if others:
        raise OutputError(
            f"{folder}: holds {others[0]}, and an index is written there first",
            hint="move that folder away, or choose another --output",
        )
    shutil.rmtree(folder, ignore_errors=True)


def _others(folder: Path) -> list[str]:
    """What is in a folder and no part of an index; hidden files do not count."""
    ours = DATA_FILES | _FORMER | {MANIFEST}
    return sorted(
        name
        for name in os.listdir(folder)
        if not (name in ours or name.startswith((".", SEARCH)) or LEAVE_ONE_OUT.fullmatch(name))
    )
