"""The predict run: photos in, one row each in a file, resumable."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Protocol

import geoinfer
from geoinfer.batch.ledger import InputDigest, RunLedger
from geoinfer.batch.pipeline import Block, Pipeline
from geoinfer.batch.rows import ESTIMATED, LOW_SCORE, abstained_row, failed_row, ok_row
from geoinfer.batch.writers import WITH_CANDIDATES, check_error_report, format_of, write_error_report, write_rows
from geoinfer.errors import InputError, InterruptedRunError, UsageError
from geoinfer.images import Source, check_sources, discover
from geoinfer.images.loader import PhotoLoader
from geoinfer.places.places import PACKAGE as PLACES_PACKAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.batch.device_decoding import DeviceDecoding
    from geoinfer.batch.monitor import PipelineMonitor
    from geoinfer.batch.pipeline import Deferred
    from geoinfer.errors import ImageError
    from geoinfer.geolocator import Geolocator

# A part is made safe when either is reached, always at the end of a block.
_COMMIT_ROWS: Final = 4096
_COMMIT_SECONDS: Final = 5.0

CPU_BATCH: Final = 1
"""On a CPU single-threaded calls on one photo each, one a core, are as fast as any batch, and need no waiting."""
GPU_BATCH: Final = 64

# Inputs that are searched for and delivered together: enough for BLAS to be worth its start; more where the index is
# so large that reading it once for many queries decides the speed.
_BLOCK: Final = 32
_BLOCK_LARGE_INDEX: Final = 256
_LARGE_INDEX_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several equal shares of the inputs, chosen by a hash of each path: no process need know of the others.

    Attributes:
        number: from 1.
        of: how many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `I/N`, as in `2/8`.

        Raises:
            UsageError: anything else, or I outside 1 to N.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, as in 2/8")
        return cls(int(match[1]), int(match[2]))

    def holds(self, path: bytes) -> bool:
        """Whether an input is in this share."""
        digest = hashlib.blake2b(path, digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.of == self.number - 1


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """How many inputs may fail before the exit code says so.

    Attributes:
        value: a count, or a percentage of the inputs.
        percent: whether it is one.
    """

    value: float = 0.0
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> ErrorLimit:
        """From `12` or `0.5%`.

        Raises:
            UsageError: anything else.
        """
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text.strip())
        if match is None or (match[2] and float(match[2]) > 100):
            raise UsageError(f"--max-errors {text}: expected a count, as in 10, or a percentage, as in 0.5%")
        return cls(float(match[1] or match[2]), percent=match[2] is not None)

    def exceeded(self, errors: int, inputs: int) -> bool:
        """Whether `errors` of `inputs` are too many."""
        return errors > (self.value * inputs / 100 if self.percent else self.value)


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What a predict run is told besides its `Geolocator`.

    Attributes:
        sources: see `geoinfer.images.discover`.
        output: the result; its suffix is its format.
        errors: the error report.
        batch_size: photos that the model sees at once.
        workers: CPU threads.
        top: candidates kept of each answer, in the formats that have room for them.
        shard: do only this share of the inputs.
        restart: forget an earlier run and replace its output.
    """

    sources: tuple[str, ...]
    output: Path
    errors: Path
    batch_size: int
    workers: int
    top: int = 5
    shard: Shard | None = None
    restart: bool = False


@dataclass(slots=True)
class PredictSummary:
    """What a run did.

    Attributes:
        inputs: all of them: `ok` + `error` + `skipped`.
        ok: located.
        error: failed, listed in the error report.
        skipped: left out on purpose.
        abstained: of those skipped, how many were not answered because their score is below `--min-score`.
        resumed: inputs that an earlier run had done already.
        seconds: of this run, from the first photo to the last row written.
        already_finished: nothing was left to do.
        failures: how many inputs failed, by error code, the most frequent first.
        stage_seconds: thread time by stage.
        decoded: photos by who decoded them, where a GPU did some: see `DecodeCounts`.
    """

    inputs: int
    ok: int
    error: int
    skipped: int
    resumed: int
    seconds: float
    already_finished: bool = False
    abstained: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    decoded: dict[str, int] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Of the inputs that this run did itself."""
        return (self.inputs - self.resumed) / self.seconds if self.seconds > 0 else 0.0


class RunObserver(Protocol):
    """Is told how a run goes; rendering is somebody else's job."""

    def started(self, resumed: int, failed: int) -> None:
        """The pipeline starts; so many inputs are done already, and so many of them failed."""

    def progressed(self, inputs: int, failed: int) -> None:
        """So many more inputs are done, of which so many failed; called from many threads."""

    def writing(self) -> None:
        """All inputs are done; the output is being written."""


def run_predict(
    geolocator: Geolocator,
    options: PredictOptions,
    observer: RunObserver,
    *,
    see: Callable[[dict[str, Any]], None] | None = None,
    monitor: PipelineMonitor | None = None,
    open_decoding: Callable[[PhotoLoader], DeviceDecoding | None] | None = None,
) -> PredictSummary:
    """Locates every input and writes the result and the error report.

    Args:
        geolocator: a model and an index.
        options: what to do.
        observer: is told how it goes.
        see: is shown every row of the result once, in their order, while the result is written, those of an earlier
            run that this one resumes too; none where nothing was left to do. The rows that this run makes have their
            candidates, whether the result's format has room for them or not.
        monitor: is told what each thread of the pipeline does.
        open_decoding: makes of the CPU's loader what decodes on a GPU as well, or nothing; without it the CPU does.

    Raises:
        InputError: an argument names nothing, or all of them together hold no photo.
        OutputError, UsageError: see `RunLedger.open`.
        InterruptedRunError: Ctrl-C, or the disk or the memory is full; what was done is safe and the same call resumes.
        GeoInferError: the model failed.
    """
    format_of(options.output)
    check_sources(options.sources)
    if options.errors.resolve() == options.output.resolve():
        raise UsageError(f"--errors {options.errors}: is the output itself", hint="choose another file")
    check_error_report(options.errors)
    with contextlib.ExitStack() as held:
        loader = held.enter_context(PhotoLoader(geolocator.embedder.identity.preprocessing, options.workers))
        decoding = None if open_decoding is None else open_decoding(loader)
        if decoding is not None:
            held.enter_context(decoding)
        ledger = held.enter_context(RunLedger(options.output, _fingerprint(geolocator, options, decoding)))
        ledger.open(restart=options.restart)
        if ledger.finished is not None:
            try:
                return _already_finished(options, ledger.finished)
            finally:
                ledger.discard()
        try:
            return _run(geolocator, options, observer, ledger, see, _Decoders(loader, decoding), monitor)
        except BaseException:
            # An unfinished run with nothing in it would only stand in the way of the command that is put right.
            if ledger.inputs == 0:
                ledger.discard()
            raise


def _run(
    geolocator: Geolocator,
    options: PredictOptions,
    observer: RunObserver,
    ledger: RunLedger,
    see: Callable[[dict[str, Any]], None] | None,
    decoders: _Decoders,
    monitor: PipelineMonitor | None,
) -> PredictSummary:
    inputs = _Inputs(options)
    resumed, digest = ledger.inputs, InputDigest()
    started = last_commit = time.perf_counter()
    # Rows that are in no part yet, and the digest of the inputs up to their end. Always replaced together, in one step:
    # wherever a Ctrl-C comes, what it finds here can be committed.
    pending: tuple[list[dict[str, Any]], str] = ([], "")
    try:
        _skip_done(inputs, ledger, digest, options.output)
        observer.started(resumed, ledger.counts["error"])
        top = options.top if see is not None or format_of(options.output) in WITH_CANDIDATES else 0
        with _pipeline(geolocator, options, inputs, resumed, observer, top, decoders, monitor) as pipeline:
            for block in pipeline:
                assert block.answer is not None
                assert len(block.answer) == len(block.sources)
                for source in block.sources:
                    digest.add(source.path)
                pending = (pending[0] + block.answer, digest.value)
                if len(pending[0]) >= _COMMIT_ROWS or time.perf_counter() - last_commit >= _COMMIT_SECONDS:
                    with _saving(options.output, ledger):
                        ledger.commit(*pending)
                    pending, last_commit = ([], ""), time.perf_counter()
        times = pipeline.times
        if pending[0]:
            with _saving(options.output, ledger):
                ledger.commit(*pending)
            pending = ([], "")
        if inputs.seen == 0:
            raise InputError(
                f"no photos found in {', '.join(options.sources)}",
                hint="folders and patterns are searched for files with an image's suffix, hidden ones left out",
            )
        observer.writing()
        with _saving(options.output, ledger):
            write_rows(options.output, _shown(ledger.rows(), see), places=geolocator.places is not None)
        with _saving(options.errors, ledger):
            failures = write_error_report(options.errors, ledger.rows())
        abstained = failures.pop(LOW_SCORE, 0)
        counts = ledger.counts
        summary = PredictSummary(
            inputs=ledger.inputs,
            resumed=resumed,
            seconds=time.perf_counter() - started,
            ok=counts["ok"],
            error=counts["error"],
            skipped=counts["skipped"],
            abstained=abstained,
            failures=failures,
            decoded={} if decoders.device is None else decoders.device.counts.as_dict(),
            stage_seconds={
                "read and decode": times.prepare_seconds + times.decode_on_device_seconds,
                "embed": times.embed_seconds,
                "search": times.finish_seconds,
            },
        )
        assert summary.inputs == digest.count == summary.ok + summary.error + summary.skipped
        with _saving(ledger.record_path, ledger):
            ledger.finish(run_record(geolocator, summary, digest.value))
    except (KeyboardInterrupt, MemoryError) as stopped:
        # What is finished but not yet in a part need not be lost; unless the commit itself was what was interrupted.
        with contextlib.suppress(OSError, MemoryError):
            if pending[0] and not (ledger.parts and ledger.parts[-1].digest == pending[1]):
                ledger.commit(*pending)
        why, instead = "interrupted", ""
        if isinstance(stopped, MemoryError):
            why, instead = "there is not enough memory", "; with fewer --workers it takes less"
        again = "the same command without --restart" if options.restart else "the same command"
        if ledger.inputs == 0:
            raise InterruptedRunError(
                f"{why}; nothing was done yet" if instead else "interrupted before anything was done",
                hint=instead.removeprefix("; "),
            ) from None
        raise InterruptedRunError(
            f"{why}; {ledger.inputs} inputs are done and safe in {ledger.folder}",
            hint=f"{again} goes on from there{instead}" + ("" if options.restart else "; add --restart to begin anew"),
        ) from None
    return summary


def _shown(rows: Iterator[dict[str, Any]], see: Callable[[dict[str, Any]], None] | None) -> Iterator[dict[str, Any]]:
    for row in rows:
        if see is not None:
            see(row)
        yield row


@contextlib.contextmanager
def _saving(path: Path, ledger: RunLedger) -> Iterator[None]:
    """Around each write: a full disk interrupts the run, which can go on where it was."""
    try:
        yield
    except OSError as error:
        raise InterruptedRunError(
            f"{path}: cannot be written: {(error.strerror or str(error)).lower()}; {ledger.inputs} inputs "
            f"are done and safe in {ledger.folder}",
            hint="make room, then the same command goes on from there",
        ) from error


@dataclass(frozen=True, slots=True)
class _Decoders:
    """What makes pixels of files: the CPU, and a GPU if there is one."""

    loader: PhotoLoader
    device: DeviceDecoding | None

    def prepare(self, source: Source, pixels: NDArray[np.uint8]) -> Deferred | None:
        if self.device is not None:
            return self.device.prepare(source.path, pixels)
        self.loader.load(source.path, pixels)
        return None

    def decode(self, items: Sequence[tuple[Source, Deferred, NDArray[np.uint8]]]) -> list[ImageError | None]:
        assert self.device is not None
        return self.device.decode([(source.path, left.data, left.kind, pixels) for source, left, pixels in items])


def _pipeline(
    geolocator: Geolocator,
    options: PredictOptions,
    inputs: _Inputs,
    first: int,
    observer: RunObserver,
    top: int,
    decoders: _Decoders,
    monitor: PipelineMonitor | None,
) -> Pipeline[None, list[dict[str, Any]]]:
    embedder, index = geolocator.embedder, geolocator.index.index
    # The pipeline's own threads fill the cores; a search that spread out would only get in their way.
    threads = 1
    large = index.size * index.dim * 4 >= _LARGE_INDEX_BYTES
    block_size = _BLOCK_LARGE_INDEX if large else _BLOCK

    def finish(block: Block[None, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        located = geolocator.locate_embeddings(block.embeddings, top=top, threads=threads)
        rows = {offset: failed_row(block.sources[offset].path, failure) for offset, failure in block.failures.items()}
        for row, offset in enumerate(block.located):
            path = block.sources[offset].path
            if (failure := located.too_low.get(row)) is not None:
                rows[offset] = abstained_row(
                    path,
                    failure,
                    score=float(located.scores[row]),
                    top1_similarity=float(located.similarities[row, 0]),
                    unlike_references=located.unlike(row),
                )
                continue
            rows[offset] = ok_row(
                path,
                latitude=float(located.coordinates[row, 0]),
                longitude=float(located.coordinates[row, 1]),
                radius_km=float(located.radius_km[row]),
                score=float(located.scores[row]),
                top1_similarity=float(located.similarities[row, 0]),
                unlike_references=located.unlike(row),
                place=None if located.places is None else located.places[row],
                candidates=geolocator.candidates(located, row, top),
            )
        return [rows[offset] for offset in range(len(block.sources))]

    return Pipeline(
        iter(inputs),
        embedder,
        decoders.prepare,
        finish,
        batch_size=options.batch_size,
        workers=options.workers,
        block_batches=max(1, -(-block_size // options.batch_size)),
        first=first,
        on_progress=observer.progressed,
        decode_deferred=None if decoders.device is None else decoders.decode,
        monitor=monitor,
    )


class _Inputs:
    """The run's inputs, once through; counts those that were there before a shard was taken."""

    def __init__(self, options: PredictOptions) -> None:
        self.seen = 0
        self._iterator = self._generate(options)

    def __iter__(self) -> Iterator[Source]:
        return self._iterator

    def _generate(self, options: PredictOptions) -> Iterator[Source]:
        for source in discover(options.sources):
            self.seen += 1
            if options.shard is None or options.shard.holds(source.path):
                yield source


def _skip_done(inputs: Iterable[Source], ledger: RunLedger, digest: InputDigest, output: Path) -> None:
    """Advances over the inputs that are safe already, and makes sure that they are the same as then."""
    iterator = iter(inputs)
    for part in ledger.parts:
        for _ in range(part.inputs):
            source = next(iterator, None)
            if source is None:
                break
            digest.add(source.path)
        if digest.value != part.digest:
            raise UsageError(
                f"{output}: an unfinished run is there, made with other inputs (files came, went or changed order)",
                hint="choose another --output, or --restart to begin anew",
            )


def _already_finished(options: PredictOptions, record: dict[str, Any]) -> PredictSummary:
    if not options.errors.exists():
        raise UsageError(
            f"{options.output}: a finished run is there, but not its error report {options.errors}",
            hint="name the report that it wrote, choose another --output, or --restart to do all again",
        )
    digest = InputDigest()
    for source in _Inputs(options):
        digest.add(source.path)
    if digest.value != record.get("inputs_digest"):
        raise UsageError(
            f"{options.output}: a finished run is there, of other inputs ({record.get('inputs')} then, "
            f"{digest.count} now)",
            hint="choose another --output, or --restart to replace it",
        )
    return PredictSummary(
        inputs=record["inputs"],
        ok=record["ok"],
        error=record["error"],
        skipped=record["skipped"],
        resumed=record["inputs"],
        seconds=0.0,
        already_finished=True,
        abstained=record.get("abstained", 0),
        failures=record.get("failures", {}),
    )


def _fingerprint(geolocator: Geolocator, options: PredictOptions, decoding: DeviceDecoding | None) -> dict[str, Any]:
    """Everything that decides what the rows say."""
    embedder = geolocator.embedder
    return {
        "geoinfer": geoinfer.__version__,
        "engine": embedder.identity.name,
        "engine file": embedder.fingerprint,
        "preprocessing": embedder.identity.preprocessing.as_dict(),
        "index": geolocator.index.manifest.fingerprint,
        "device": embedder.device.partition(":")[0],
        # A GPU's libraries choose their algorithms by the shape of a batch, and with them the last digits.
        "--batch-size": None if embedder.device == "cpu" else options.batch_size,
        "--decode": None if decoding is None else decoding.fingerprint,
        "--k": geolocator.answer.k,
        "--aggregate": geolocator.answer.aggregate,
        "--temperature": geolocator.answer.used_temperature,
        "--bandwidth-km": geolocator.answer.used_bandwidth_km,
        "--min-score": geolocator.min_score,
        # The names are those of the package's list of cities.
        "--places": None if geolocator.places is None else version(PLACES_PACKAGE),
        "--index-device": geolocator.index_device.name,
        "--top": options.top if format_of(options.output) in WITH_CANDIDATES else None,
        "--shard": None if options.shard is None else f"{options.shard.number}/{options.shard.of}",
    }


def run_record(geolocator: Geolocator, summary: PredictSummary, inputs_digest: str) -> dict[str, Any]:
    """What `<output>.run.json` keeps of a finished run: how the locations were made, and that they are estimates."""
    return {
        "location_type": ESTIMATED,
        "notice": geolocator.notice,
        "inputs": summary.inputs,
        "ok": summary.ok,
        "error": summary.error,
        "skipped": summary.skipped,
        "abstained": summary.abstained,
        "failures": summary.failures,
        "inputs_digest": inputs_digest,
    }
