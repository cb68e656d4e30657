"""References added to an index that is there: photos, or ready embeddings of the same embedder.

The old references and the new ones are written to a new folder, which takes the old one's place when it is whole; until
then the old index answers as before, whatever happens. Old references keep their rows.

What calibration learns from is found anew where it is the references themselves. Where it is labelled photos, their
embeddings are not kept, so nobody can search for them again: the calibration stays as it was, and the user is told. New
references can only bring a photo's nearest neighbours closer, so radii tend to be too large rather than too small; but
references of another kind of place or picture may mislead, and then nobody knows.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.batch.build import (
    build_fingerprint,
    build_under_way,
    check_any,
    check_labels,
    chosen_kind,
    fill,
    new_rows,
    reported,
    summarise,
)
from geoinfer.batch.build_rows import PhotoRows, SpooledRows
from geoinfer.batch.labelled import ReferenceRows, open_labelled
from geoinfer.batch.seen_ids import SeenIds, id_hashes
from geoinfer.batch.sequences import NO_TIME, occasion_name, occasion_number
from geoinfer.batch.writers import check_error_report
from geoinfer.errors import MismatchError, OutputError
from geoinfer.index import IndexWriter, index_lock, open_index, read_index_manifest
from geoinfer.index.manifest import DATA_FILES
from geoinfer.index.search_file import list_count
from geoinfer.index_kinds import AUTO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geoinfer.backends import Embedder
    from geoinfer.backends.base import EmbedderIdentity
    from geoinfer.batch.build import BuildObserver, BuildOptions, BuildSummary
    from geoinfer.batch.build_rows import NewRows
    from geoinfer.batch.build_shards import BuildShards
    from geoinfer.index import IndexManifest, ReferenceIndex, References, StoredIndex

READ_AT_ONCE: Final = 8192
"""References that are read from an index together."""


@dataclass(frozen=True, slots=True)
class AddSummary:
    """What was added to what.

    Attributes:
        built: of the new references, and of the index as it is now.
        before: references that were there.
        stale: whether calibration still is what labelled photos told of the index before.
    """

    built: BuildSummary
    before: int
    stale: bool


def run_add(embedder: Embedder, options: BuildOptions, observer: BuildObserver) -> AddSummary:
    """Adds references to the index `options.output`; `options.kind` `auto` keeps its kind.

    Raises:
        MismatchError: the index was made by another embedder.
        IndexFolderError: it is damaged.
        GeoInferError: as `run_build`.
    """
    check_add(options)
    check_error_report(options.errors)
    started = time.perf_counter()
    before = read_index_manifest(options.output)
    if before.embedder != embedder.identity:
        raise MismatchError(
            f"{options.output} was made by {before.embedder}, but --engine is {embedder.identity}",
            hint="embeddings of two models cannot be compared: give the model that the index was made with",
        )
    fingerprint = build_fingerprint(embedder, options) | {"index": _state(before)}

    def made(header: dict[str, Any], references: int) -> bool:
        """Whether the references of an earlier call were added before a kill came, and are those of this one."""
        same = {name: header.get(name) for name in fingerprint} == fingerprint | {"index": header.get("index")}
        return same and header["index"]["size"] + references == before.size != header["index"]["size"]

    with build_under_way(options, fingerprint, made) as shards:
        if shards.finished:
            return _added_before(options, shards, before, observer, started)
        seen, occasions = _taken(open_index(options.output).references)
        layout, rows = new_rows(embedder, options, shards, seen, observer, first_occasion=occasions + 1)
        check_any(options, rows, final=rows.most == 0)
        with index_lock(options.output):
            stored = open_index(options.output)  # anew: somebody may have tuned it meanwhile
            if _state(stored.manifest) != _state(before):
                raise OutputError(f"{options.output}: somebody else changed it meanwhile", hint="--restart begins anew")
            failures = _write(stored, options, shards, rows, observer)
        summary = summarise(options, layout, rows, failures, started)
        shards.discard()
    return AddSummary(summary, before.size, stored.leave_one_out.places is not None)


def _write(
    stored: StoredIndex, options: BuildOptions, shards: BuildShards, rows: NewRows, observer: BuildObserver
) -> dict[str, int]:
    """Writes old references and new ones, and the error report; returns how many inputs failed, by code."""
    before, held_out = stored.manifest, stored.leave_one_out
    kind, most = before.kind, before.size + rows.most
    if options.kind != AUTO:
        kind = chosen_kind(options.kind, most, before.embedder.dim, observer)
    with IndexWriter(
        options.output,
        before.embedder,
        kind=kind,
        overwrite=True,
        rows=None if options.ready else most,
        answer=before.answer,
        logit_scale=before.logit_scale,
        on_step=observer.step,
    ) as writer:
        fill(writer, chain(stored_rows(stored), rows), observer, most)
        shards.all_safe(rows.indexed)
        failures = reported(options, rows)
        check_any(options, rows, final=True)
        learned = kind == before.kind and _still_fits(stored.index, most)
        kept = held_out.places is not None or not len(held_out.rows)
        writer.finish(calibration=held_out if kept else None, search_from=stored.folder if learned else None)
    return failures


def _still_fits(index: ReferenceIndex, size: int) -> bool:
    """Whether what an index learned serves so many references: more than twice those it learned from want more lists.

    A graph learns nothing that ages; scalar codes are learned anew in no time.
    """
    if index.kind == "hnsw":
        return True
    lists = getattr(getattr(index, "faiss_index", None), "nlist", 0)
    return lists >= list_count(size // 2)


def _added_before(
    options: BuildOptions, shards: BuildShards, now: IndexManifest, observer: BuildObserver, started: float
) -> AddSummary:
    """What a call that was killed at its very end had done."""
    assert shards.complete is not None
    observer.say("the references were added by an earlier run already")
    rows = SpooledRows(shards.spool, shards.complete) if options.ready else PhotoRows(shards, SeenIds())
    layout = "ready embeddings" if options.ready else open_labelled(options.labels, options.images).layout
    summary = summarise(options, layout, rows, reported(options, rows), started)
    shards.discard()
    return AddSummary(summary, now.size - shards.complete, open_index(options.output).leave_one_out.places is not None)


def _state(manifest: IndexManifest) -> dict[str, Any]:
    """What of an index adding builds on; tuning changes nothing of it."""
    return {"size": manifest.size, "data": {name: manifest.files[name]["sha256"] for name in sorted(DATA_FILES)}}


def check_add(options: BuildOptions) -> EmbedderIdentity:
    """What can be known before a model is opened; returns which one the index needs.

    Raises:
        InputError, LabelsError, UsageError: the index is not there, or labels or embeddings make no sense.
        IndexFolderError: the index is damaged.
    """
    check_labels(options)
    return read_index_manifest(options.output).embedder


def stored_rows(stored: StoredIndex, *, occasions: int = 0) -> Iterator[ReferenceRows]:
    """The references of an index, a block at a time.

    Args:
        stored: the index.
        occasions: is added to the numbers of the sequences that EXIF times told, so that they are not taken for those
            of another index.
    """
    table, vectors = stored.references, stored.index.vectors
    for start in range(0, len(table), READ_AT_ONCE):
        stop = min(start + READ_AT_ONCE, len(table))
        rows = table.part(start, stop)
        if occasions:
            rows = dataclasses.replace(rows, sequences=[_renumbered(name, occasions) for name in rows.sequences])
        yield ReferenceRows(vectors[start:stop], rows, np.full(stop - start, NO_TIME, np.int64))


def last_occasion(references: References) -> int:
    """The largest number of a sequence that EXIF times told, 0 for none."""
    return max(map(occasion_number, references.sequences), default=0)


def _taken(references: References) -> tuple[SeenIds, int]:
    """The names that are taken, and the largest number of a sequence that EXIF times told."""
    seen = SeenIds()
    for start in range(0, len(references), READ_AT_ONCE):
        part = references.part(start, min(start + READ_AT_ONCE, len(references)))
        seen.add(id_hashes(part.ids), start)
    return seen, last_occasion(references)


def _renumbered(name: str, more: int) -> str:
    number = occasion_number(name)
    return occasion_name(number + more) if number else name
