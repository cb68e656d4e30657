"""Embeddings that somebody has already: from a labels CSV with a `.npy`, a Parquet file, or the trainer's `embed`.

They are streamed by blocks, checked, and become references without photos: content and picture are not known, which is
written as zeros.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.batch.labelled import DIGEST_BYTES, ReferenceRows
from geoinfer.batch.npy_file import NpyFile, open_npy
from geoinfer.batch.parquet_embeddings import ParquetEmbeddings, check_trainer, is_parquet, open_parquet
from geoinfer.batch.sequences import NO_TIME
from geoinfer.errors import ImageError, InputError, MismatchError, UsageError
from geoinfer.index import References
from geoinfer.labels import LabelsFile, count_rows, open_labels, read_labels

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends.base import EmbedderIdentity
    from geoinfer.labels import Label

BLOCK_ROWS: Final = 8192

_UNIT_TOLERANCE: Final = 9.9e-3  # fp16 models normalise to about 1e-3; the writer's own is 1e-2, in float32


@dataclass(frozen=True, slots=True)
class CsvEmbeddings:
    """A labels CSV and a `.npy` file whose row i belongs to its row i."""

    labels: LabelsFile
    file: NpyFile

    @property
    def rows(self) -> int:
        """How many."""
        return self.file.rows

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.file.dim

    def blocks(self, rows: int) -> Iterator[tuple[NDArray[Any], list[Label]]]:
        """See `ParquetEmbeddings.blocks`."""
        # No photo is looked for: a name is a name.
        labels = read_labels(self.labels, lambda name: (name.encode(errors="surrogateescape"), None))
        for vectors in self.file.blocks(rows):
            yield vectors, list(islice(labels, len(vectors)))


@dataclass(frozen=True, slots=True)
class ReadyEmbeddings:
    """Ready embeddings that fit their embedder.

    Attributes:
        path: of the file with the embeddings.
        layout: a clause for the summary.
        table: where they are read from.
        normalize: whether each is divided by its length.
        source: where the photos come from, for rows that do not say.
        attribution: licence and author, for rows that do not say.
    """

    path: Path
    layout: str
    table: CsvEmbeddings | ParquetEmbeddings
    normalize: bool = False
    source: str = ""
    attribution: str = ""

    @property
    def rows(self) -> int:
        """How many there are, good and bad."""
        return self.table.rows

    def blocks(self) -> Iterator[tuple[ReferenceRows, list[Label], list[tuple[Label, ImageError]]]]:
        """The references in their order, a block at a time.

        Yields:
            (references, their labels, the other labels with what is wrong with each).

        Raises:
            InputError: a file cannot be read to its end, or an embedding is not of unit length.
            LabelsError: the CSV is none from some line on.
        """
        first = 0
        for vectors, labels in self.table.blocks(BLOCK_ROWS):
            if len(labels) != len(vectors):
                raise InputError(f"{self.path}: its labels have fewer rows than when they were counted")
            embeddings, problems = self._checked(vectors, labels, first)
            kept = [row for row, problem in enumerate(problems) if problem is None]
            failed = [(label, problem) for label, problem in zip(labels, problems, strict=True) if problem is not None]
            chosen = [labels[row] for row in kept]
            yield self._rows(embeddings[kept], chosen), chosen, failed
            first += len(labels)

    def _checked(
        self, vectors: NDArray[Any], labels: list[Label], first: int
    ) -> tuple[NDArray[np.float32], list[ImageError | None]]:
        """Embeddings (m, dim) float32, and why a row cannot be used."""
        wide = vectors.astype(np.float64)
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(wide).all(axis=1))
        # By its largest number first, so that no square overflows or vanishes.
        largest = np.where(finite, np.abs(wide).max(axis=1, initial=0.0), 1.0)
        scaled = np.where(finite[:, None], wide, 0.0) / np.where(largest > 0, largest, 1.0)[:, None]
        scaled_norms = np.linalg.norm(scaled, axis=1)
        problems = [
            label.problem or _problem(bool(is_finite), float(size))
            for label, is_finite, size in zip(labels, finite.tolist(), largest.tolist(), strict=True)
        ]
        usable = np.array([problem is None for problem in problems], bool)
        if self.normalize:
            return (scaled / np.where(usable, scaled_norms, 1.0)[:, None]).astype(np.float32), problems
        lengths = largest * scaled_norms
        wrong = np.flatnonzero(usable & ~(np.abs(lengths - 1.0) <= _UNIT_TOLERANCE))
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"{self.path}: the embedding of row {first + row}, counted from 0 ({labels[row].id}), has length "
                f"{lengths[row]:.4g}; expected 1",
                hint="--normalize divides each by its length",
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return vectors.astype(np.float32), problems

    def _rows(self, embeddings: NDArray[np.float32], labels: list[Label]) -> ReferenceRows:
        unknown = np.zeros((len(labels), DIGEST_BYTES), np.uint8)
        references = References(
            ids=[label.id for label in labels],
            coordinates=np.array([(label.latitude, label.longitude) for label in labels], np.float64).reshape(-1, 2),
            sources=[label.source or self.source for label in labels],
            attributions=[label.attribution or self.attribution for label in labels],
            content_sha256=unknown,
            perceptual_hashes=unknown,
            sequences=[label.sequence for label in labels],
        )
        return ReferenceRows(embeddings, references, np.full(len(labels), NO_TIME, np.int64))


def is_ready(labels: Path, embeddings: Path | None) -> bool:
    """Whether a build takes embeddings that are there, and no photos."""
    return embeddings is not None or is_parquet(labels)


def open_ready(
    labels: Path,
    embeddings: Path | None,
    identity: EmbedderIdentity | None,
    *,
    normalize: bool = False,
    source: str = "",
    attribution: str = "",
) -> ReadyEmbeddings:
    """Opens ready embeddings and compares them with the embedder whose they are said to be.

    Args:
        labels: a CSV where `embeddings` is given, else a Parquet file or a folder that the trainer's `embed` wrote.
        embeddings: a `.npy` file, row i of which belongs to row i of the CSV.
        identity: of the embedder; None to leave the comparison out for now.
        normalize: divide each by its length; else one that is not of unit length is an error.
        source: see `ReadyEmbeddings`.
        attribution: see `ReadyEmbeddings`.

    Raises:
        InputError: a file is missing, damaged or empty, or CSV and embeddings differ in their number.
        LabelsError: a column is missing or of a type that makes no sense.
        MismatchError: the embeddings are not of this embedder.
        UsageError: a Parquet file together with `embeddings`.
    """
    table: CsvEmbeddings | ParquetEmbeddings
    if embeddings is not None:
        if is_parquet(labels) or labels.is_dir():
            raise UsageError(
                f"--embeddings {embeddings}: is for a CSV of labels, but {labels} is none",
                hint="a Parquet file has its embeddings in a column",
            )
        opened, file = _by_id(open_labels(labels)), open_npy(embeddings)
        count = count_rows(opened)
        if count != file.rows:
            raise InputError(
                f"{labels} has {count} rows, but {embeddings} has {file.rows} embeddings",
                hint="row i of the one belongs to row i of the other",
            )
        path, table, layout = embeddings, CsvEmbeddings(opened, file), f"a CSV and {embeddings.name}"
    else:
        table = open_parquet(labels)
        path, layout = table.path, "a Parquet file"
        if labels.is_dir():
            layout = "the trainer's embeddings"
            if identity is not None:
                check_trainer(labels, identity)
    if identity is not None and table.dim not in (identity.dim, 0):
        raise MismatchError(
            f"{path}: embeddings of {table.dim} numbers, but --engine is {identity}",
            hint="give the model that made them",
        )
    return ReadyEmbeddings(path, layout, table, normalize, source, attribution)


def _by_id(labels: LabelsFile) -> LabelsFile:
    """With a column `id` as the names, where there is one: no photo is looked for by its path."""
    for position, column in enumerate(labels.header):
        if column.strip().lower() == "id":
            return dataclasses.replace(labels, positions=labels.positions | {"name": position})
    return labels


def _problem(finite: bool, largest: float) -> ImageError | None:
    if not finite:
        return ImageError("embed", "not_finite", "the embedding has a value that is not finite")
    if largest == 0:
        return ImageError("embed", "zero_embedding", "the embedding is all zeros, and has no direction")
    return None
