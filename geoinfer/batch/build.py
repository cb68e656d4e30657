"""The index build: labelled photos in, a reference index out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from geoinfer.aggregate import DEFAULT_K, DEFAULT_METHOD
from geoinfer.batch.pipeline import Block, Pipeline
from geoinfer.batch.rows import failed_row, path_fields
from geoinfer.batch.writers import check_error_report, write_error_report
from geoinfer.calibration import calibrate, leave_one_out_errors_km
from geoinfer.errors import ImageError, InputError, InterruptedRunError, OutputError, UsageError
from geoinfer.geodesy import haversine_km
from geoinfer.images import Source, decode_pixels, discover, raw_problem, read_image_file, read_metadata
from geoinfer.images.near_duplicates import HASH_BYTES, perceptual_hash
from geoinfer.index import References, open_index, write_index
from geoinfer.index.store import INDEX_FORMAT
from geoinfer.labels import Label, LabelsFile, count_rows, open_labels, read_labels
from geoinfer.lock import OutputLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.batch.predict import RunObserver

_DIGEST_BYTES = 32
_BLOCK = 64
_SAME_OCCASION = timedelta(hours=1)
_SAME_OCCASION_KM = 50.0


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What an index build is told besides its embedder.

    Attributes:
        labels: a labels CSV, or a folder of photos whose EXIF carries GPS.
        images: folder that the CSV's names are relative to.
        output: the index's folder.
        errors: the error report.
        batch_size: photos that the model sees at once.
        workers: CPU threads.
        source: where the photos come from, for rows that do not say.
        attribution: licence and author, for rows that do not say.
        overwrite: replace an index that is there.
    """

    labels: Path
    images: Path | None
    output: Path
    errors: Path
    batch_size: int
    workers: int
    source: str = ""
    attribution: str = ""
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build did.

    Attributes:
        layout: of the labels: `OSV-5M`, `Im2GPS`, `GeoCLIP`, `CSV` or `EXIF`.
        inputs: photos that were named or found.
        indexed: references in the index.
        error: failed, listed in the error report.
        skipped: photos without a position in their EXIF, and camera raw.
        failures: how many inputs failed, by error code, the most frequent first.
        seconds: from the first photo to the index on the disk.
        median_error_km: of locating the references by one another, with the default way of answering; None when there
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
    median_error_km: float | None
    calibrated: bool


@dataclass(frozen=True, slots=True)
class _Labelled(Source):
    """An input with its label; without one, its position is looked for in its EXIF."""

    label: Label | None = None


@dataclass(frozen=True, slots=True)
class _Details:
    latitude: float
    longitude: float
    taken_at: datetime | None
    content_sha256: bytes
    perceptual_hash: NDArray[np.uint8]


def run_build(embedder: Embedder, options: BuildOptions, observer: RunObserver) -> BuildSummary:
    """Embeds every labelled photo and writes the index and the error report.

    Raises:
        InputError: the labels or photos are missing, or no photo could be indexed.
        LabelsError: the CSV lacks a column.
        OutputError: the output exists and `overwrite` is not set, or cannot be written.
        InterruptedRunError: Ctrl-C; nothing is written.
    """
    check_build(options)
    check_error_report(options.errors)
    with OutputLock(options.output.with_name(f".{options.output.name}.lock"), options.output):
        return _run(embedder, options, observer)


def _run(embedder: Embedder, options: BuildOptions, observer: RunObserver) -> BuildSummary:
    labels = None if options.labels.is_dir() else open_labels(options.labels, options.images)
    started = time.perf_counter()
    builder = _Builder(options)
    observer.started(0, 0)
    try:
        with Pipeline(
            _sources(options, labels),
            embedder,
            builder.prepare(embedder),
            builder.finish,
            batch_size=options.batch_size,
            workers=options.workers,
            block_batches=max(1, _BLOCK // options.batch_size),
            on_progress=observer.progressed,
        ) as pipeline:
            for block in pipeline:
                builder.collect(block)
        observer.writing()
        failures = _write_report(options, builder)
        if not builder.ids:
            raise InputError(f"{options.labels}: {_why_empty(builder, labels)}", hint=_empty_hint(options, builder))
        _write(options, builder, embedder)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; no index was written") from None
    stored = open_index(options.output)
    errors = leave_one_out_errors_km(stored.leave_one_out, stored.references.coordinates, DEFAULT_METHOD, DEFAULT_K)
    calibration = calibrate(stored.leave_one_out, stored.references.coordinates, DEFAULT_METHOD, DEFAULT_K)
    return BuildSummary(
        layout="EXIF" if labels is None else labels.layout,
        inputs=builder.inputs,
        indexed=len(builder.ids),
        error=builder.error,
        skipped=builder.skipped,
        failures=failures,
        seconds=time.perf_counter() - started,
        median_error_km=float(np.median(errors)) if len(errors) else None,
        calibrated=calibration.usable,
    )


class _Builder:
    """Collects what the pipeline delivers. Embeddings stay in the blocks' own arrays until they are joined once."""

    def __init__(self, options: BuildOptions) -> None:
        self._options = options
        self.inputs = self.error = self.skipped = 0
        self.ids: list[str] = []
        self.failed: list[dict[str, Any]] = []
        self._sources: list[str] = []
        self._attributions: list[str] = []
        self._coordinates: list[tuple[float, float]] = []
        self._sequences: list[str] = []
        self._taken_at: list[datetime | None] = []
        self._digests: list[bytes] = []
        self._hashes: list[bytes] = []
        self._embeddings: list[NDArray[np.float32]] = []

    def prepare(self, embedder: Embedder) -> Any:
        preprocessing = embedder.identity.preprocessing

        def prepare(source: Source, pixels: NDArray[np.uint8]) -> _Details:
            assert isinstance(source, _Labelled)
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
            pixels[...] = decode_pixels(data, kind, preprocessing)
            return _Details(*position, metadata.taken_at, hashlib.sha256(data).digest(), perceptual_hash(pixels))

        return prepare

    @staticmethod
    def finish(block: Block[_Details, bool]) -> bool:
        del block
        return True

    def collect(self, block: Block[_Details, bool]) -> None:
        self.inputs += len(block.sources)
        for offset in sorted(block.failures):
            row = failed_row(block.sources[offset].path, block.failures[offset])
            self.failed.append(row)
            if row["status"] == "error":
                self.error += 1
            else:
                self.skipped += 1
        self._embeddings.append(block.embeddings)
        for offset in block.located:
            source, details = block.sources[offset], block.details[offset]
            assert isinstance(source, _Labelled)
            label = source.label
            self.ids.append(label.id if label else self._relative(source.path))
            self._sources.append((label.source if label else "") or self._options.source)
            self._attributions.append((label.attribution if label else "") or self._options.attribution)
            self._coordinates.append((details.latitude, details.longitude))
            self._sequences.append(label.sequence if label else "")
            self._taken_at.append(details.taken_at)
            self._digests.append(details.content_sha256)
            self._hashes.append(details.perceptual_hash.tobytes())

    def references(self) -> References:
        return References(
            ids=self.ids,
            coordinates=np.array(self._coordinates, np.float64).reshape(-1, 2),
            sources=self._sources,
            attributions=self._attributions,
            content_sha256=np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, _DIGEST_BYTES),
            perceptual_hashes=np.frombuffer(b"".join(self._hashes), np.uint8).reshape(-1, HASH_BYTES),
            sequences=named_sequences(self._sequences, self._taken_at, self._coordinates),
        )

    def embeddings(self) -> NDArray[np.float32]:
        return np.concatenate(self._embeddings)

    def _relative(self, path: bytes) -> str:
        return path_fields(os.path.relpath(path, os.fsencode(self._options.labels)))["path"]


def _sources(options: BuildOptions, labels: LabelsFile | None) -> Iterator[Source]:
    if labels is None:
        for source in discover([os.fspath(options.labels)]):
            yield _Labelled(source.path, source.problem)
        return
    for label in read_labels(labels):
        yield _Labelled(label.path, label.problem, label)


def named_sequences(
    known: list[str], taken_at: list[datetime | None], coordinates: list[tuple[float, float]]
) -> list[str]:
    """Which photos were taken together: as the labels say, else by the time in their EXIF and their place.

    Photos that follow one another within an hour and 50 km are of one sequence, whoever took them: better to leave out
    a stranger as a photo's reference, when the index is calibrated, than a picture of the same scene.

    Args:
        known: sequences from the labels, empty where they do not say.
        taken_at: times from the EXIF, None where it does not say.
        coordinates: latitude and longitude in degrees.

    Returns:
        A name for each; empty where neither says.
    """
    names = list(known)
    dated = sorted((taken, row) for row, taken in enumerate(taken_at) if taken is not None and not known[row])
    # Several may go on at the same time, in several places: each with the time and place of its latest photo.
    going_on: list[tuple[datetime, tuple[float, float], str]] = []
    number = 0
    for taken, row in dated:
        going_on = [occasion for occasion in going_on if taken - occasion[0] <= _SAME_OCCASION]
        near = [
            place
            for place, occasion in enumerate(going_on)
            if haversine_km(coordinates[row], occasion[1]) <= _SAME_OCCASION_KM
        ]
        if near:
            name = going_on.pop(near[-1])[2]
        else:
            number += 1
            name = f"taken together {number}"
        names[row] = name
        going_on.append((taken, coordinates[row], name))
    return names


def check_build(options: BuildOptions) -> None:
    """Raises InputError or OutputError for what can be known before a model is opened."""
    output = options.output
    if not options.labels.exists():
        raise InputError(
            f"{options.labels}: there is no such file or folder",
            hint="give a CSV of paths and coordinates, or a folder of photos with GPS in their EXIF",
        )
    if options.labels.is_dir() and options.images is not None:
        raise InputError("--images is for a CSV; with a folder the photos are the folder's own")
    if not output.exists() and _is_index(_replaced(output)):
        # A kill came between the two renames of `_write`: the old index goes back.
        _replaced(output).replace(output)
    if output.exists() and not options.overwrite:
        raise OutputError(f"{output}: exists already", hint="choose another --output, or --overwrite to replace it")
    if output.exists() and not _is_index(output):
        raise OutputError(f"{output}: exists and is not an index, so it is not overwritten")
    if options.labels.is_file():
        open_labels(options.labels, options.images)
    if options.errors.exists() and options.labels.is_file() and options.errors.samefile(options.labels):
        raise UsageError(f"--errors {options.errors}: is the labels themselves", hint="choose another file")
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


def count_inputs(options: BuildOptions) -> int:
    """How many photos the labels name, or the folder holds."""
    if options.labels.is_dir():
        return sum(1 for _ in discover([os.fspath(options.labels)]))
    return count_rows(open_labels(options.labels, options.images))


def _is_index(folder: Path) -> bool:
    """Whether a folder is an index, damaged perhaps: a bundle, say, has a manifest too."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == INDEX_FORMAT


def _replaced(output: Path) -> Path:
    """Where an old index is while a new one takes its place."""
    return output.with_name(f".{output.name}.replaced")


def _write_report(options: BuildOptions, builder: _Builder) -> dict[str, int]:
    try:
        return write_error_report(options.errors, builder.failed, skipped=True)
    except OSError as error:
        raise OutputError(f"{options.errors}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _write(options: BuildOptions, builder: _Builder, embedder: Embedder) -> None:
    output = options.output
    if not output.exists():
        write_index(output, builder.embeddings(), builder.references(), embedder.identity)
        return
    # The old index stays where it is until the new one is whole, so a kill costs at most the moment of the exchange.
    new, old = output.with_name(f".{output.name}.new"), _replaced(output)
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    write_index(new, builder.embeddings(), builder.references(), embedder.identity)
    try:
        output.replace(old)
        try:
            new.replace(output)
        except BaseException:
            old.replace(output)
            raise
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{output}: the old index cannot be replaced: {(error.strerror or str(error)).lower()}"
            ) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _why_empty(builder: _Builder, labels: LabelsFile | None) -> str:
    if builder.inputs == 0:
        return "no photos in this folder" if labels is None else "the CSV has no rows"
    if labels is None and builder.skipped == builder.inputs:
        return f"none of the {builder.inputs} photos has a position in its EXIF"
    return f"none of the {builder.inputs} photos could be indexed"


def _empty_hint(options: BuildOptions, builder: _Builder) -> str:
    if builder.failed:
        first = builder.failed[0]
        return f"the first failure: {first['path']}: {first['error']}; all of them are in {options.errors}"
    return "give a CSV of paths and coordinates, or photos with GPS in their EXIF"
