"""Where an index's new references come from: photos, embedded into shards first, or ready embeddings, as they are.

Either is iterated over for `ReferenceRows`, and counts what became of its inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from geoinfer.batch.labelled import Labels, ReferenceRows, joined, labelled_pipeline, rows_of
from geoinfer.batch.ledger import InputDigest
from geoinfer.batch.rows import failed_row
from geoinfer.batch.seen_ids import SeenIds, id_hashes
from geoinfer.batch.sequences import NO_TIME, occasion_name, sequence_numbers
from geoinfer.errors import ImageError, InterruptedRunError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from geoinfer.backends import Embedder
    from geoinfer.batch.build_shards import BuildShards
    from geoinfer.batch.labelled import Details
    from geoinfer.batch.pipeline import Block
    from geoinfer.batch.predict import RunObserver
    from geoinfer.batch.ready_embeddings import ReadyEmbeddings

# A shard is made safe when either is reached, always at the end of a block.
_COMMIT_ROWS: Final = 8192
_COMMIT_SECONDS: Final = 15.0

Row = dict[str, Any]


class NewRows(Protocol):
    """New references, and an account of all inputs; the counts are final when all have been iterated over."""

    @property
    def most(self) -> int:
        """At most so many references will come."""
        ...

    @property
    def inputs(self) -> int:
        """Inputs that were named or found."""
        ...

    @property
    def indexed(self) -> int:
        """Those that are references."""
        ...

    @property
    def error(self) -> int:
        """Those that failed."""
        ...

    @property
    def skipped(self) -> int:
        """Those that were left out on purpose."""
        ...

    def __iter__(self) -> Iterator[ReferenceRows]: ...

    def failed(self) -> Iterator[Row]:
        """The rows of the inputs that are no references, in input order."""
        ...


class PhotoRows:
    """References made of photos, each shard of them safe on the disk before the index is begun."""

    def __init__(self, shards: BuildShards, seen: SeenIds, *, first_occasion: int = 1) -> None:
        """Reads nothing yet.

        Args:
            shards: of the build, open.
            seen: names that are taken.
            first_occasion: number of the first sequence that is named here.
        """
        self._shards = shards
        self._seen = seen
        self._before = first_occasion - 1

    @property
    def most(self) -> int:
        """See `NewRows`."""
        return self._shards.rows

    @property
    def inputs(self) -> int:
        """See `NewRows`."""
        return self._shards.inputs

    @property
    def indexed(self) -> int:
        """See `NewRows`."""
        return self._shards.rows

    @property
    def error(self) -> int:
        """See `NewRows`."""
        return self._shards.error

    @property
    def skipped(self) -> int:
        """See `NewRows`."""
        return self._shards.skipped

    def failed(self) -> Iterator[Row]:
        """See `NewRows`."""
        return self._shards.failed()

    def embed(
        self, embedder: Embedder, labels: Labels, *, batch_size: int, workers: int, observer: RunObserver
    ) -> None:
        """Embeds all photos that are in no shard yet.

        Raises:
            UsageError: photos came, went or changed order since the build was begun.
            InterruptedRunError: Ctrl-C, or the disk is full; what is in shards is safe.
            GeoInferError: the labels cannot be read to their end, or the model fails.
        """
        shards, digest = self._shards, InputDigest()
        sources = labels.sources()
        for entry in shards.entries:
            for _, source in zip(range(entry.inputs), sources, strict=False):
                digest.add(source.path)
            if digest.value != entry.digest:
                raise UsageError(
                    f"{shards.output}: an unfinished build is there, made with other photos (some came, went or "
                    "changed order)",
                    hint="choose another --output, or --restart to begin anew",
                )
        for rows in shards.shards(with_embeddings=False):
            self._seen.add(id_hashes(rows.references.ids), 0)
        observer.started(shards.inputs, shards.error)
        # What is in no shard yet, and the digest of the inputs up to its end; replaced together, in one step: wherever
        # a Ctrl-C comes, what it finds here can be committed.
        pending: tuple[list[ReferenceRows], list[Row], str] = ([], [], "")
        last = time.perf_counter()
        try:
            with labelled_pipeline(
                embedder,
                sources,
                batch_size=batch_size,
                workers=workers,
                first=shards.inputs,
                on_progress=observer.progressed,
            ) as pipeline:
                for block in pipeline:
                    rows, failed, again = self._taken(block, labels)
                    if again:
                        observer.progressed(0, again)
                    for done in block.sources:
                        digest.add(done.path)
                    pending = ([*pending[0], rows], pending[1] + failed, digest.value)
                    count = sum(map(len, pending[0])) + len(pending[1])
                    if count >= _COMMIT_ROWS or time.perf_counter() - last >= _COMMIT_SECONDS:
                        self._commit(pending, embedder.dim)
                        pending, last = ([], [], ""), time.perf_counter()
            if pending[2]:
                self._commit(pending, embedder.dim)
                pending = ([], [], "")
            with saving(shards):
                shards.all_safe(shards.rows)
        except KeyboardInterrupt:
            # What is finished need not be lost; unless the commit itself was what was interrupted.
            with contextlib.suppress(OSError):
                if pending[2] and not (shards.entries and shards.entries[-1].digest == pending[2]):
                    self._commit(pending, embedder.dim)
            raise

    def _commit(self, pending: tuple[list[ReferenceRows], list[Row], str], dim: int) -> None:
        with saving(self._shards):
            self._shards.commit(joined(pending[0], dim), pending[1], pending[2])

    def _taken(self, block: Block[Details, bool], labels: Labels) -> tuple[ReferenceRows, list[Row], int]:
        """References of a block, rows of its failures, and how many of these are names that are taken."""
        rows = rows_of(block, labels)
        seen = self._seen.add(id_hashes(rows.references.ids), 0) >= 0
        failures = dict(block.failures)
        for place in np.flatnonzero(seen).tolist():
            failures[block.located[place]] = duplicate_id(rows.references.ids[place])
        failed = [failed_row(block.sources[offset].path, failures[offset]) for offset in sorted(failures)]
        return (select(rows, ~seen) if seen.any() else rows), failed, int(seen.sum())

    def __iter__(self) -> Iterator[ReferenceRows]:
        numbers, start = self._occasions(), 0
        for rows in self._shards.shards():
            of_rows = numbers[start : start + len(rows)].tolist()
            start += len(rows)
            said = rows.references.sequences
            named = [name or occasion_name(number) for name, number in zip(said, of_rows, strict=True)]
            yield dataclasses.replace(rows, references=dataclasses.replace(rows.references, sequences=named))

    def _occasions(self) -> Any:
        """Numbers (n,) of the sequences that EXIF times tell, 0 for none; 24 bytes a photo while they are found."""
        times: list[Any] = []
        places: list[Any] = []
        for rows in self._shards.shards(with_embeddings=False):
            said = np.fromiter(map(bool, rows.references.sequences), bool, len(rows))
            times.append(np.where(said, NO_TIME, rows.taken_at))
            places.append(rows.references.coordinates)
        if not times:
            return np.zeros(0, np.int32)
        numbers = sequence_numbers(np.concatenate(times), np.concatenate(places))
        return np.where(numbers > 0, numbers + self._before, 0)


class SpooledRows:
    """References that an earlier run added, of which only the failures are still here."""

    def __init__(self, spool: Path, indexed: int) -> None:
        """`spool`: file with the rows of those that failed; `indexed`: how many did not."""
        self._spool = spool
        self.indexed = self.most = indexed
        self.error = sum(1 for _ in self.failed())
        self.inputs, self.skipped = self.indexed + self.error, 0

    def failed(self) -> Iterator[Row]:
        """See `NewRows`."""
        with self._spool.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def __iter__(self) -> Iterator[ReferenceRows]:
        return iter(())


class ReadyRows:
    """References whose embeddings are there: read, checked and passed on, in one go."""

    def __init__(self, ready: ReadyEmbeddings, seen: SeenIds, spool: Path, observer: RunObserver) -> None:
        """Reads nothing yet.

        Args:
            ready: the embeddings.
            seen: names that are taken.
            spool: file for the rows of those that fail.
            observer: told how it goes.
        """
        self._ready, self._seen, self._spool, self._observer = ready, seen, spool, observer
        self.most = ready.rows
        self.inputs = self.indexed = self.error = self.skipped = 0

    def failed(self) -> Iterator[Row]:
        """See `NewRows`."""
        return SpooledRows(self._spool, self.indexed).failed()

    def __iter__(self) -> Iterator[ReferenceRows]:
        self._observer.started(0, 0)
        with self._spool.open("wb") as file:
            for rows, kept, problems in self._ready.blocks():
                seen = self._seen.add(id_hashes(rows.references.ids), 0) >= 0
                failed = [(label.line, failed_row(label.path, problem)) for label, problem in problems]
                for place in np.flatnonzero(seen).tolist():
                    label = kept[place]
                    failed.append((label.line, failed_row(label.path, duplicate_id(label.id))))
                for _, row in sorted(failed, key=lambda pair: pair[0]):
                    file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
                self.inputs += len(kept) + len(problems)
                self.error += len(failed)
                self.indexed += len(rows) - int(seen.sum())
                self._observer.progressed(len(kept) + len(problems), len(failed))
                yield select(rows, ~seen) if seen.any() else rows


def select(rows: ReferenceRows, chosen: Any) -> ReferenceRows:
    """Some of the rows, by a mask (m,) of bool."""
    references, places = rows.references, np.flatnonzero(chosen).tolist()

    def some(values: Any) -> list[str]:
        return [values[place] for place in places]

    return ReferenceRows(
        rows.embeddings[chosen],
        dataclasses.replace(
            references,
            ids=some(references.ids),
            coordinates=references.coordinates[chosen],
            sources=some(references.sources),
            attributions=some(references.attributions),
            content_sha256=references.content_sha256[chosen],
            perceptual_hashes=references.perceptual_hashes[chosen],
            sequences=some(references.sequences),
        ),
        rows.taken_at[chosen],
    )


def duplicate_id(name: str) -> ImageError:
    """What is wrong with an input whose name a reference has already."""
    return ImageError("labels", "duplicate_id", f"a reference before it is called {name} too; the first stays")


@contextlib.contextmanager
def saving(shards: BuildShards) -> Iterator[None]:
    """Around each write: a full disk interrupts the build, which can go on where it was."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if not shards.rows:
            raise OutputError(f"{shards.folder}: cannot be written: {reason}", hint="choose another --output") from None
        raise InterruptedRunError(
            f"{shards.folder}: cannot be written: {reason}; {shards.inputs} photos are embedded and safe there",
            hint="make room, then the same command goes on from there",
        ) from error
