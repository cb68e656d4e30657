"""The index build: labelled photos, or ready embeddings, in; a reference index out."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import geoinfer
from geoinfer.answer import DEFAULT_ANSWER
from geoinfer.batch.build_rows import PhotoRows, ReadyRows
from geoinfer.batch.build_shards import BuildShards, building_folder
from geoinfer.batch.labelled import open_labelled
from geoinfer.batch.predict import RunObserver
from geoinfer.batch.ready_embeddings import is_ready, open_ready
from geoinfer.batch.seen_ids import SeenIds
from geoinfer.batch.writers import check_error_report, write_error_report
from geoinfer.calibration import calibrate, leave_one_out_errors_km
from geoinfer.errors import GeoInferError, InputError, InterruptedRunError, OutputError, UsageError
from geoinfer.index import IndexWriter, index_lock, is_index, open_index, read_index_manifest
from geoinfer.index.exchange import recover_unattended
from geoinfer.index_kinds import AUTO, KINDS
from geoinfer.integrity import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from geoinfer.backends import Embedder
    from geoinfer.batch.build_rows import NewRows
    from geoinfer.batch.labelled import ReferenceRows
    from geoinfer.index_kinds import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build is told besides its embedder; adding to an index is told the same.

    Attributes:
        labels: a labels CSV, a folder of photos whose EXIF carries GPS, a Parquet file of embeddings, or a folder that
            the trainer's `embed` wrote.
        output: the index's folder.
        errors: the error report.
        images: folder that the CSV's names are relative to.
        embeddings: a `.npy` file with an embedding for each row of the CSV; no photos are read then.
        normalize: divide ready embeddings by their lengths.
        batch_size: photos that the model sees at once.
        workers: CPU threads.
        source: where the photos come from, for rows that do not say.
        attribution: licence and author, for rows that do not say.
        kind: of the index, or `auto`.
        overwrite: replace an index that is there.
        restart: forget an unfinished build.
    """

    labels: Path
    output: Path
    errors: Path
    images: Path | None = None
    embeddings: Path | None = None
    normalize: bool = False
    batch_size: int = 1
    workers: int = 1
    source: str = ""
    attribution: str = ""
    kind: str = AUTO
    overwrite: bool = False
    restart: bool = False

    @property
    def ready(self) -> bool:
        """Whether the embeddings are there, and no photos are read."""
        return is_ready(self.labels, self.embeddings)


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build did.

    Attributes:
        layout: of the labels: `OSV-5M`, `Im2GPS`, `GeoCLIP`, `CSV`, `EXIF`, or a few words for ready embeddings.
        inputs: photos or rows that were named or found.
        indexed: those that are references now.
        error: failed, listed in the error report.
        skipped: photos without a position in their EXIF, and camera raw.
        failures: how many inputs failed, by error code, the most frequent first.
        seconds: from the first photo to the index on the disk.
        kind: of the index.
        size: references in it.
        recall: of an approximate kind, as its manifest has it; None for an exact one.
        median_error_km: of locating the references by one another, with the index's way of answering; None when there
            are too few.
        calibrated: whether radii from this index mean anything.
    """

    layout: str
    inputs: int
    indexed: int
    error: int
    skipped: int
    failures: dict[str, int]
    seconds: float
    kind: Kind
    size: int
    recall: dict[str, Any] | None
    median_error_km: float | None
    calibrated: bool


class BuildObserver(RunObserver, Protocol):
    """Is told how a build goes; rendering is somebody else's job."""

    def say(self, line: str) -> None:
        """Something that the user should know now."""

    def step(self, name: str, done: float) -> None:
        """A step of making the index, such as `training`, is done to this share, 0 to 1."""


def run_build(embedder: Embedder, options: BuildOptions, observer: BuildObserver) -> BuildSummary:
    """Makes an index of labelled photos, or of ready embeddings of this embedder, and writes the error report.

    Photos are embedded into shards beside the output (`geoinfer.batch.build_shards`); after a kill the same call goes
    on from there, and the files are those of an unbroken run. Embeddings and names are never all in memory.

    Raises:
        InputError: labels, photos or embeddings are missing or make no sense, or nothing could be indexed.
        LabelsError: a column is missing.
        MismatchError: ready embeddings are not of this embedder.
        OutputError: the output exists and `overwrite` is not set, cannot be written, or another process writes it.
        UsageError: an unfinished build is there, of something else.
        InterruptedRunError: Ctrl-C, or a full disk; the same call goes on where it was.
    """
    check_build(options)
    check_error_report(options.errors)
    started = time.perf_counter()
    with build_under_way(options, build_fingerprint(embedder, options)) as shards:
        if options.output.exists() and not options.overwrite:
            _check_made_by(shards, options.output)  # and a kill came before its shards were cleared away
        layout, rows = new_rows(embedder, options, shards, SeenIds(), observer)
        check_any(options, rows, final=rows.most == 0)
        kind = chosen_kind(options.kind, rows.most, embedder.dim, observer)
        with (
            index_lock(options.output),
            IndexWriter(
                options.output,
                embedder.identity,
                kind=kind,
                overwrite=options.output.exists(),
                rows=None if options.ready else rows.most,
                on_step=observer.step,
            ) as writer,
        ):
            fill(writer, rows, observer, rows.most)
            shards.all_safe(rows.indexed)
            failures = reported(options, rows)
            check_any(options, rows, final=True)
            writer.finish()
        summary = summarise(options, layout, rows, failures, started)
        shards.discard()
    return summary


@contextlib.contextmanager
def build_under_way(
    options: BuildOptions, fingerprint: dict[str, Any], made: Callable[[dict[str, Any], int], bool] | None = None
) -> Iterator[BuildShards]:
    """The folder of the build within the block, and what becomes of it when the block fails.

    Args:
        options: of the build.
        fingerprint: see `BuildShards`.
        made: see `BuildShards.open`.

    Raises:
        InterruptedRunError: Ctrl-C or a full disk within the block; the message says what is safe.
    """
    shards = BuildShards(options.output, fingerprint)
    try:
        shards.open(restart=options.restart, made=made)
    except OSError as error:
        if isinstance(error, GeoInferError):
            raise
        raise OutputError(
            f"{options.output}: cannot be written here: {(error.strerror or str(error)).lower()}",
            hint="choose another --output",
        ) from error
    try:
        yield shards
    except BaseException as error:
        safe = shards.inputs
        # An unfinished build with nothing in it, or nothing but failures, only stands in the way.
        if shards.rows == 0:
            safe = 0
            shards.discard()
        if not isinstance(error, KeyboardInterrupt) and not _is_full_disk(error):
            raise
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        if not safe:
            if not isinstance(error, KeyboardInterrupt):
                raise
            raise InterruptedRunError("interrupted; no index was written") from None
        again = "the same command without --restart" if options.restart else "the same command"
        raise InterruptedRunError(
            f"{what}; {safe} photos are embedded and safe in {shards.folder}", hint=f"{again} goes on from there"
        ) from error
    finally:
        shards.close()


def new_rows(
    embedder: Embedder,
    options: BuildOptions,
    shards: BuildShards,
    seen: SeenIds,
    observer: BuildObserver,
    *,
    first_occasion: int = 1,
) -> tuple[str, NewRows]:
    """(layout, references): photos are all embedded when this returns, ready embeddings are yet to be read.

    Args:
        embedder: of the index.
        options: what to read.
        shards: of this build, open.
        seen: names that are taken.
        observer: told how it goes.
        first_occasion: number of the first sequence that EXIF times tell.
    """
    if options.ready:
        ready = open_ready(
            options.labels,
            options.embeddings,
            embedder.identity,
            normalize=options.normalize,
            source=options.source,
            attribution=options.attribution,
        )
        return ready.layout, ReadyRows(ready, seen, shards.spool, observer)
    labels = open_labelled(options.labels, options.images, source=options.source, attribution=options.attribution)
    photos = PhotoRows(shards, seen, first_occasion=first_occasion)
    photos.embed(embedder, labels, batch_size=options.batch_size, workers=options.workers, observer=observer)
    observer.writing()
    return labels.layout, photos


def build_fingerprint(embedder: Embedder, options: BuildOptions) -> dict[str, Any]:
    """Everything that decides what the references are. The kind is none of it: it may change when a build resumes."""
    values: dict[str, Any] = {
        "geoinfer": geoinfer.__version__,
        "engine": embedder.identity.name,
        "preprocessing": embedder.identity.preprocessing.as_dict(),
        "--source": options.source,
        "--attribution": options.attribution,
        "labels": _labels_state(options),
    }
    if options.ready:
        return values | {"--embeddings": _state(options.embeddings), "--normalize": options.normalize}
    return values | {
        "engine file": embedder.fingerprint,
        "device": embedder.device.partition(":")[0],
        # A GPU's libraries choose their algorithms by the shape of a batch, and with them the last digits.
        "--batch-size": None if embedder.device == "cpu" else options.batch_size,
        "--images": None if options.images is None else str(options.images.resolve()),
    }


def chosen_kind(kind: str, size: int, dim: int, observer: BuildObserver) -> Kind:
    """The kind that was asked for, or the one that fits, of which the user is told why."""
    for known in KINDS:
        if kind == known:
            return known
    from geoinfer.index.choose import choose_kind

    choice = choose_kind(size, dim)
    observer.say(f"kind: {choice.kind} ({choice.why})")
    return choice.kind


def fill(writer: IndexWriter, rows: Iterable[ReferenceRows], observer: BuildObserver, most: int) -> None:
    """Hands references to a writer as they come, and tells how many of at most so many are written."""
    done = 0
    for block in rows:
        writer.add(block.embeddings, block.references)
        done += len(block)
        observer.step("writing", done / most)


def reported(options: BuildOptions, rows: NewRows) -> dict[str, int]:
    """Writes the error report; how many inputs failed, by code."""
    try:
        return write_error_report(options.errors, rows.failed(), skipped=True)
    except OSError as error:
        raise OutputError(f"{options.errors}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def check_any(options: BuildOptions, rows: NewRows, *, final: bool) -> None:
    """Raises InputError, the report written, if it is certain that nothing can be indexed."""
    if not final or rows.indexed:
        return
    reported(options, rows)
    first = next(rows.failed(), None)
    if first is not None:
        hint = f"the first failure: {first['path']}: {first['error']}; all of them are in {options.errors}"
    else:
        hint = "give a CSV of paths and coordinates, or photos with GPS in their EXIF"
    raise InputError(f"{options.labels}: {_why_empty(options, rows)}", hint=hint)


def summarise(
    options: BuildOptions, layout: str, rows: NewRows, failures: dict[str, int], started: float
) -> BuildSummary:
    """Looks at the index that was made."""
    stored = open_index(options.output)
    held_out, coordinates = stored.leave_one_out, stored.references.coordinates
    answer = stored.manifest.answer or DEFAULT_ANSWER
    errors = leave_one_out_errors_km(held_out, coordinates, answer)
    return BuildSummary(
        layout=layout,
        inputs=rows.inputs,
        indexed=rows.indexed,
        error=rows.error,
        skipped=rows.skipped,
        failures=failures,
        seconds=time.perf_counter() - started,
        kind=stored.manifest.kind,
        size=stored.manifest.size,
        recall=stored.manifest.recall,
        median_error_km=float(np.median(errors)) if len(errors) else None,
        calibrated=calibrate(held_out, coordinates, answer).usable,
    )


def check_build(options: BuildOptions) -> None:
    """Raises InputError, LabelsError or OutputError for what can be known before a model is opened."""
    output = options.output
    check_labels(options)
    recover_unattended(output)
    if output.exists() and not options.overwrite and not (building_folder(output).is_dir() and is_index(output)):
        raise OutputError(f"{output}: exists already", hint="choose another --output, or --overwrite to replace it")
    if output.exists() and not is_index(output):
        raise OutputError(f"{output}: exists and is not an index, so it is not overwritten")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        probe = output.with_name(output.name + ".probe")
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written here: {(error.strerror or str(error)).lower()}",
            hint="choose another --output",
        ) from error


def check_labels(options: BuildOptions) -> None:
    """Raises InputError, LabelsError or UsageError for labels or embeddings that make no sense by themselves."""
    if options.kind not in (AUTO, *KINDS):
        raise UsageError(f"--kind {options.kind}: expected one of {', '.join((AUTO, *KINDS))}")
    if options.ready:
        if options.images is not None:
            raise UsageError("--images is for photos; with ready embeddings none are looked for")
        open_ready(options.labels, options.embeddings, None)
    elif options.normalize:
        raise UsageError("--normalize is for ready embeddings; a model normalises its own")
    else:
        open_labelled(options.labels, options.images)
    for path in (options.labels, options.embeddings):
        if path is not None and path.is_file() and options.errors.exists() and options.errors.samefile(path):
            raise UsageError(f"--errors {options.errors}: is an input", hint="choose another file")


def count_inputs(options: BuildOptions) -> int:
    """How many photos or rows the labels name, or the folder holds."""
    if options.ready:
        return open_ready(options.labels, options.embeddings, None).rows
    return open_labelled(options.labels, options.images).count()


def _check_made_by(shards: BuildShards, output: Path) -> None:
    """Raises OutputError unless the index that is there can only be what this build made before it was killed."""
    if shards.complete is None or read_index_manifest(output).size != shards.complete:
        raise OutputError(f"{output}: exists already", hint="choose another --output, or --overwrite to replace it")


def _labels_state(options: BuildOptions) -> Any:
    if options.labels.is_dir() and not options.ready:
        return str(options.labels.resolve())  # which photos are in it is compared as they are found
    return sha256_of(options.labels) if options.embeddings is not None or not options.ready else _state(options.labels)


def _state(path: Path | None) -> Any:
    """What tells a large file from another without reading it."""
    if path is None:
        return None
    status = (path / "embeddings.parquet" if path.is_dir() else path).stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _is_full_disk(error: BaseException) -> bool:
    return isinstance(error, OutputError) and isinstance(error.__cause__, OSError)


def _why_empty(options: BuildOptions, rows: NewRows) -> str:
    if options.ready:
        return f"none of the {rows.inputs} embeddings can be indexed"
    folder = options.labels.is_dir()
    if rows.inputs == 0:
        return "no photos in this folder" if folder else "the CSV has no rows"
    if folder and rows.skipped == rows.inputs:
        return f"none of the {rows.inputs} photos has a position in its EXIF"
    return f"none of the {rows.inputs} photos could be indexed"
