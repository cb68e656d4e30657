"""Labelled photos, from a CSV or a folder of photos with GPS in their EXIF, to embeddings with what is known of each.

The index build takes them as they come, by the million; `embed_labelled` takes a set for validation whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from geoinfer.batch.pipeline import Block, Pipeline
from geoinfer.batch.rows import failed_row, path_fields
from geoinfer.batch.sequences import as_seconds, named_sequences
from geoinfer.errors import ImageError, InputError
from geoinfer.images import Source, discover, raw_problem, read_image_file, read_metadata
from geoinfer.images.loader import PhotoLoader
from geoinfer.images.near_duplicates import HASH_BYTES, perceptual_hash
from geoinfer.index import References
from geoinfer.labels import Label, LabelsFile, count_rows, open_labels, read_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.batch.predict import RunObserver
    from geoinfer.index.base import Vectors

DIGEST_BYTES: Final = 32
_BLOCK: Final = 64


@dataclass(frozen=True, slots=True)
class ReferenceRows:
    """References with their embeddings; row i of all belongs to one.

    Attributes:
        embeddings: (m, dim) float32, or float16 out of an index that keeps such, unit rows.
        references: m of them; sequences as the labels name them.
        taken_at: (m,) int64, see `geoinfer.batch.sequences.as_seconds`.
    """

    embeddings: Vectors
    references: References
    taken_at: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True, slots=True)
class LabelledEmbeddings:
    """A set of labelled photos, embedded.

    Attributes:
        embeddings: (m, dim) float32, unit rows.
        references: the photos, in the same order, with the sequences that labels or EXIF times tell.
        failures: how many inputs could not be used, by error code, the most frequent first.
    """

    embeddings: NDArray[np.float32]
    references: References
    failures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Labels:
    """Where labelled photos are named.

    Attributes:
        path: a labels CSV, or a folder of photos whose EXIF carries GPS.
        file: the CSV; None for a folder.
        source: where the photos come from, for rows that do not say.
        attribution: licence and author, for rows that do not say.
    """

    path: Path
    file: LabelsFile | None
    source: str = ""
    attribution: str = ""

    @property
    def layout(self) -> str:
        """`OSV-5M`, `Im2GPS`, `GeoCLIP`, `CSV` or `EXIF`."""
        return "EXIF" if self.file is None else self.file.layout

    def sources(self) -> Iterator[LabelledSource]:
        """The photos, in the order of the CSV or of the folder's names."""
        if self.file is None:
            for source in discover([os.fspath(self.path)]):
                yield LabelledSource(source.path, source.problem)
            return
        for label in read_labels(self.file):
            yield LabelledSource(label.path, label.problem, label)

    def count(self) -> int:
        """How many there are."""
        if self.file is None:
            return sum(1 for _ in discover([os.fspath(self.path)]))
        return count_rows(self.file)

    def id_of(self, source: LabelledSource) -> str:
        """The name of a reference: as the CSV gives it, or the path within the folder."""
        if source.label is not None:
            return source.label.id
        return path_fields(os.path.relpath(source.path, os.fsencode(self.path)))["path"]


@dataclass(frozen=True, slots=True)
class LabelledSource(Source):
    """An input with its label; without one, its position is looked for in its EXIF."""

    label: Label | None = None


@dataclass(frozen=True, slots=True)
class Details:
    """What a photo's file tells besides its pixels."""

    latitude: float
    longitude: float
    taken_at: int
    content_sha256: bytes
    perceptual_hash: NDArray[np.uint8]


def open_labelled(labels: Path, images: Path | None, *, source: str = "", attribution: str = "") -> Labels:
    """Opens a labels CSV, or a folder of photos.

    Args:
        labels: either.
        images: folder that the CSV's names are relative to; its own if left out.
        source: see `Labels`.
        attribution: see `Labels`.

    Raises:
        InputError: one of them is missing or cannot be read, or `images` is given for a folder.
        LabelsError: the CSV lacks a column.
    """
    if not labels.exists():
        raise InputError(
            f"{labels}: there is no such file or folder",
            hint="give a CSV of paths and coordinates, or a folder of photos with GPS in their EXIF",
        )
    if labels.is_dir() and images is not None:
        raise InputError("--images is for a CSV; with a folder the photos are the folder's own")
    return Labels(labels, None if labels.is_dir() else open_labels(labels, images), source, attribution)


@contextlib.contextmanager
def labelled_pipeline(
    embedder: Embedder,
    sources: Iterator[LabelledSource],
    *,
    batch_size: int,
    workers: int,
    first: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Pipeline[Details, bool]]:
    """Opens a pipeline that embeds labelled photos and reads what their files tell; arguments as for `Pipeline`."""
    loader = PhotoLoader(embedder.identity.preprocessing, workers)

    def prepare(source: Source, pixels: NDArray[np.uint8]) -> Details:
        assert isinstance(source, LabelledSource)
        raw = raw_problem(source.path)
        if raw is not None:  # one that a CSV names holds a thumbnail that would be taken for the photo
            raise raw
        data, kind = read_image_file(source.path)
        metadata = read_metadata(data, kind)
        label = source.label
        position = metadata.coordinates if label is None else (label.latitude, label.longitude)
        if position is None:
            raise ImageError(
                "labels", "no_gps", "the photo's EXIF holds no position", size_bytes=len(data), status="skipped"
            )
        loader.decode(data, kind, pixels)
        return Details(*position, as_seconds(metadata.taken_at), hashlib.sha256(data).digest(), perceptual_hash(pixels))

    pipeline: Pipeline[Details, bool] = Pipeline(
        iter(sources),
        embedder,
        prepare,
        lambda _block: True,
        batch_size=batch_size,
        workers=workers,
        block_batches=max(1, _BLOCK // batch_size),
        first=first,
        on_progress=on_progress,
    )
    with loader, pipeline:
        yield pipeline


def rows_of(block: Block[Details, bool], labels: Labels) -> ReferenceRows:
    """What of a delivered block becomes references; row i is at offset `block.located[i]`."""
    chosen = [cast("LabelledSource", block.sources[offset]) for offset in block.located]
    details = [block.details[offset] for offset in block.located]
    said = [source.label for source in chosen]
    references = References(
        ids=[labels.id_of(source) for source in chosen],
        coordinates=np.array([(one.latitude, one.longitude) for one in details], np.float64).reshape(-1, 2),
        sources=[(label.source if label else "") or labels.source for label in said],
        attributions=[(label.attribution if label else "") or labels.attribution for label in said],
        content_sha256=np.frombuffer(b"".join(one.content_sha256 for one in details), np.uint8).reshape(
            -1, DIGEST_BYTES
        ),
        perceptual_hashes=np.array([one.perceptual_hash for one in details], np.uint8).reshape(-1, HASH_BYTES),
        sequences=[label.sequence if label else "" for label in said],
    )
    taken_at = np.array([one.taken_at for one in details], np.int64)
    return ReferenceRows(block.embeddings, references, taken_at)


def joined(parts: Sequence[ReferenceRows], dim: int) -> ReferenceRows:
    """Several runs of rows as one; none at all as no rows of `dim` numbers."""

    def all_of(name: str) -> list[str]:
        return [value for part in parts for value in getattr(part.references, name)]

    def stacked(name: str, width: int, dtype: type[Any]) -> NDArray[Any]:
        arrays = [getattr(part.references, name) for part in parts]
        return np.concatenate(arrays) if arrays else np.empty((0, width), dtype)

    references = References(
        ids=all_of("ids"),
        coordinates=stacked("coordinates", 2, np.float64),
        sources=all_of("sources"),
        attributions=all_of("attributions"),
        content_sha256=stacked("content_sha256", DIGEST_BYTES, np.uint8),
        perceptual_hashes=stacked("perceptual_hashes", HASH_BYTES, np.uint8),
        sequences=all_of("sequences"),
    )
    if not parts:
        return ReferenceRows(np.empty((0, dim), np.float32), references, np.empty(0, np.int64))
    return ReferenceRows(
        np.concatenate([part.embeddings for part in parts]),
        references,
        np.concatenate([part.taken_at for part in parts]),
    )


def embed_labelled(
    embedder: Embedder,
    labels: Path,
    images: Path | None = None,
    *,
    batch_size: int,
    workers: int,
    observer: RunObserver | None = None,
) -> LabelledEmbeddings:
    """Embeds a set of labelled photos, as the index build would; all of it stays in memory.

    Args:
        embedder: of the index that the set is for.
        labels: a labels CSV, or a folder of photos whose EXIF carries GPS.
        images: folder that the CSV's names are relative to; its own if left out.
        batch_size: photos that the model sees at once.
        workers: CPU threads.
        observer: is told how it goes.

    Raises:
        InputError: labels or photos are missing, or none can be used; the hint quotes the first failure.
        LabelsError: the CSV lacks a column.
        ModelError: the model fails.
    """
    opened = open_labelled(labels, images)
    if observer is not None:
        observer.started(0, 0)
    return embed_sources(embedder, opened, opened.sources(), batch_size=batch_size, workers=workers, observer=observer)


def embed_sources(
    embedder: Embedder,
    labels: Labels,
    sources: Iterator[LabelledSource],
    *,
    batch_size: int,
    workers: int,
    observer: RunObserver | None = None,
) -> LabelledEmbeddings:
    """Embeds some of the photos that labels name; arguments and errors as for `embed_labelled`."""
    parts: list[ReferenceRows] = []
    failures: Counter[str] = Counter()
    first = ""
    with labelled_pipeline(
        embedder,
        sources,
        batch_size=batch_size,
        workers=workers,
        on_progress=None if observer is None else observer.progressed,
    ) as pipeline:
        for block in pipeline:
            parts.append(rows_of(block, labels))
            for offset in sorted(block.failures):
                failure = block.failures[offset]
                failures[failure.code] += 1
                first = first or "{path}: {error}".format(**failed_row(block.sources[offset].path, failure))
    rows = joined(parts, embedder.dim)
    if not len(rows):
        inputs = sum(failures.values())
        raise InputError(
            f"{labels.path}: " + (f"none of the {inputs} photos can be used" if inputs else "names no photos"),
            hint=f"the first failure: {first}" if first else "give a CSV of paths and coordinates, or photos with GPS",
        )
    references = rows.references
    named = named_sequences(references.sequences, rows.taken_at, references.coordinates)
    embeddings = np.asarray(rows.embeddings, np.float32)
    return LabelledEmbeddings(
        embeddings, dataclasses.replace(references, sequences=named), dict(failures.most_common())
    )
