"""Several indexes of one embedder made one.

A reference that two indexes have, under the same name and of the same content, is taken once. A name that stands for
different things is an error, or the first one stays. Sequences that EXIF times told are numbered on, so that those of
two indexes are never taken for one.

What calibration learns from is found anew among the references. Where one of the indexes was calibrated on labelled
photos, or not at all, its references may be no photos, and could not stand in for them: the merged index is then not
calibrated, and the user is told.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from geoinfer.batch.add import last_occasion, stored_rows
from geoinfer.batch.build import chosen_kind, fill
from geoinfer.batch.build_rows import select
from geoinfer.batch.build_shards import building_folder
from geoinfer.batch.seen_ids import SeenIds, id_hashes
from geoinfer.errors import GeoInferError, InputError, InterruptedRunError, MismatchError, OutputError, UsageError
from geoinfer.index import IndexWriter, LeaveOneOut, index_lock, is_index, open_index
from geoinfer.index.exchange import recover_unattended
from geoinfer.index_kinds import AUTO, KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from geoinfer.batch.build import BuildObserver
    from geoinfer.batch.labelled import ReferenceRows
    from geoinfer.index import StoredIndex
    from geoinfer.index_kinds import Kind

_SAME_EMBEDDING = 1e-2  # float16 keeps three digits


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """What a merge is told.

    Attributes:
        folders: the indexes, at least two; the first one's references come first.
        output: folder of the new index; none of `folders`.
        kind: of the new index, or `auto`.
        keep_first: where a name stands for different things, take the first.
        overwrite: replace an index that is there.
    """

    folders: Sequence[Path]
    output: Path
    kind: str = AUTO
    keep_first: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class MergeSummary:
    """What a merge did.

    Attributes:
        sizes: references of each of the indexes.
        size: of the new one.
        same: references that an index before had already, with the same content.
        dropped: names that stood for something else in an index before.
        kind: of the new index.
        recall: of an approximate kind, as its manifest has it; None for an exact one.
        seconds: it took.
        calibrated_on: references that calibration learns from.
        left_out: what of the indexes could not be kept, each a sentence.
    """

    sizes: list[int]
    size: int
    same: int
    dropped: int
    kind: Kind
    recall: dict[str, Any] | None
    seconds: float
    calibrated_on: int
    left_out: list[str]


def run_merge(options: MergeOptions, observer: BuildObserver) -> MergeSummary:
    """Writes an index of the references of several.

    Raises:
        UsageError: fewer than two indexes, one of them twice, or the output is one of them.
        InputError, IndexFolderError: one of them is missing or damaged.
        MismatchError: they were made by different embedders; both are named.
        InputError: a name stands for different things, and `keep_first` is not set; both indexes are named.
        OutputError: the output exists and `overwrite` is not set, or cannot be written.
        InterruptedRunError: Ctrl-C; nothing is written.
    """
    _check(options)
    started = time.perf_counter()
    indexes = [open_index(folder) for folder in options.folders]
    first = indexes[0]
    for other in indexes[1:]:
        if other.manifest.embedder != first.manifest.embedder:
            raise MismatchError(
                f"{first.folder} was made by {first.manifest.embedder}, but {other.folder} by "
                f"{other.manifest.embedder}",
                hint="embeddings of two models, or of other pixels, cannot be compared: build them with the same one",
            )
    left_out: list[str] = []
    answer = _agreed(indexes, "answer", "the way of answering", left_out)
    scale = _agreed(indexes, "logit_scale", "the scale of probabilities", left_out)
    calibration = None
    if any(one.leave_one_out.places is not None or not len(one.leave_one_out.rows) for one in indexes):
        calibration = LeaveOneOut.empty()
        left_out.append("calibration is left out, because not all of the indexes learned it from their references")
    sizes = [one.manifest.size for one in indexes]
    kind = chosen_kind(options.kind, sum(sizes), first.manifest.embedder.dim, observer)
    rows = _Merged(indexes, keep_first=options.keep_first)
    try:
        with (
            index_lock(options.output),
            IndexWriter(
                options.output,
                first.manifest.embedder,
                kind=kind,
                overwrite=options.overwrite,
                answer=answer,
                logit_scale=scale,
                on_step=observer.step,
            ) as writer,
        ):
            fill(writer, rows, observer, sum(sizes))
            manifest = writer.finish(calibration=calibration)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; no index was written") from None
    except OSError as error:
        if isinstance(error, GeoInferError):
            raise
        raise OutputError(f"{options.output}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    return MergeSummary(
        sizes=sizes,
        size=manifest.size,
        same=rows.same,
        dropped=rows.dropped,
        kind=manifest.kind,
        recall=manifest.recall,
        seconds=time.perf_counter() - started,
        calibrated_on=manifest.calibrated_on,
        left_out=left_out,
    )


class _Merged:
    """The references of all indexes, each name once; counts what is not taken."""

    def __init__(self, indexes: Sequence[StoredIndex], *, keep_first: bool) -> None:
        self._indexes = indexes
        self._keep_first = keep_first
        self._starts = np.cumsum([0] + [one.manifest.size for one in indexes])
        self.same = self.dropped = 0

    def __iter__(self) -> Iterator[ReferenceRows]:
        seen, occasions = SeenIds(), 0
        for number, stored in enumerate(self._indexes):
            position = int(self._starts[number])
            for rows in stored_rows(stored, occasions=occasions):
                earlier = seen.add(id_hashes(rows.references.ids), position)
                again = np.zeros(len(rows), bool)
                for row in np.flatnonzero(earlier >= 0).tolist():
                    again[row] = self._is_again(number, rows, row, int(earlier[row]))
                position += len(rows)
                yield select(rows, ~again) if again.any() else rows
            occasions += last_occasion(stored.references)

    def _is_again(self, number: int, rows: ReferenceRows, row: int, earlier: int) -> bool:
        """Whether a reference is left out, because one before it has its name.

        Raises:
            InputError: they are not the same, and the first is not to be kept.
        """
        of = int(np.searchsorted(self._starts, earlier, side="right")) - 1
        before, place = self._indexes[of], earlier - int(self._starts[of])
        name = rows.references.ids[row]
        if before.references.ids[place] != name:  # the same hash by chance
            return False
        differs = _difference(before, place, rows, row)
        if differs is None:
            self.same += 1
        elif self._keep_first:
            self.dropped += 1
        else:
            raise InputError(
                f"{name} is in {before.folder} and in {self._indexes[number].folder}, with another {differs}",
                hint="--keep first takes the one of the index that is named first",
            )
        return True


def _difference(before: StoredIndex, place: int, rows: ReferenceRows, row: int) -> str | None:
    """In what two references of one name differ, None where they are the same photo at the same place."""
    old, new = before.references, rows.references
    if not np.array_equal(old.coordinates[place], new.coordinates[row]):
        return "place"
    contents = old.content_sha256[place], new.content_sha256[row]
    if contents[0].any() and contents[1].any():
        return None if np.array_equal(*contents) else "content"
    # Of references that are no photos the content is not known; the embedding is all that they are.
    vectors = before.index.vectors[place].astype(np.float32), np.asarray(rows.embeddings[row], np.float32)
    return None if np.abs(vectors[0] - vectors[1]).max() <= _SAME_EMBEDDING else "embedding"


def _agreed(indexes: Sequence[StoredIndex], name: str, words: str, left_out: list[str]) -> Any:
    """What all manifests say; None, with a sentence to the user, where they differ."""
    values = [getattr(one.manifest, name) for one in indexes]
    if all(value == values[0] for value in values):
        return values[0]
    left_out.append(f"{words} is left out, because the indexes differ in it")
    return None


def _check(options: MergeOptions) -> None:
    if options.kind not in (AUTO, *KINDS):
        raise UsageError(f"--kind {options.kind}: expected one of {', '.join((AUTO, *KINDS))}")
    if len(options.folders) < 2:
        raise UsageError("a merge takes two indexes or more")
    output = options.output
    recover_unattended(output)
    real = Counter(folder.resolve() for folder in options.folders)
    twice = next((folder for folder in options.folders if real[folder.resolve()] > 1), None)
    if twice is not None:
        raise UsageError(f"{twice}: is named twice")
    if output.resolve() in real:
        raise UsageError(
            f"--output {output}: is one of the indexes that are merged", hint="name a new folder; remove the old later"
        )
    if output.exists() and not options.overwrite:
        raise OutputError(f"{output}: exists already", hint="choose another --output, or --overwrite to replace it")
    if output.exists() and not is_index(output):
        raise OutputError(f"{output}: exists and is not an index, so it is not overwritten")
    if building_folder(output).is_dir():
        raise OutputError(
            f"{output}: an unfinished build of it is there, in {building_folder(output)}",
            hint="repeat the build's command, or choose another --output",
        )
