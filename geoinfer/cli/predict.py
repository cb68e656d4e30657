"""`geoinfer predict`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from geoinfer.cli import options
from geoinfer.cli.decoding import check_decode, decoding_opener
from geoinfer.errors import (
    EXIT_FAILED_INPUTS,
    EXIT_OK,
    GeoInferError,
    InputError,
    InterruptedRunError,
    OutputError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from geoinfer.batch.predict import PredictOptions, PredictSummary, Shard
    from geoinfer.cli.console import Console
    from geoinfer.evaluate.prediction_page import PredictionSample
    from geoinfer.geolocator import Geolocator
    from geoinfer.images import Source

_MOST_THUMBNAILS: Final = 10_000

_EPILOG = """\b
Examples:
  geoinfer predict ./photos
  geoinfer predict ./photos --index my-index --output answers.geojson
  geoinfer predict ./photos --map map.html
  find / -name '*.jpg' -print0 | geoinfer predict - -o all.parquet

\b
An estimate is an estimate: read radius_km beside every location. The same
command again goes on where an interrupted run stopped.
"""


def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES",
            help="Photos, folders (searched recursively), patterns, @list.txt, or - for paths on standard input.",
            show_default=False,
        ),
    ],
    engine: options.Engine = None,
    index: Annotated[
        Path | None,
        typer.Option("--index", "-i", help="Folder of a reference index.", show_default="the bundle's own"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Result: .csv, .jsonl, .parquet or .geojson.",
            show_default="predictions.csv, or predictions-I-of-N.csv with --shard",
        ),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", help="Report of failed inputs, a CSV.", show_default="<output>.errors.csv"),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    no_tune: options.NoTune = False,
    decode: options.Decode = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    k: options.K = None,
    aggregate: options.Aggregate = None,
    temperature: options.Temperature = None,
    bandwidth_km: options.BandwidthKm = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            help="Give no answer whose score is lower, 0 to 1: such a photo is skipped.",
            metavar="SCORE",
            show_default="all are given",
        ),
    ] = None,
    places: Annotated[
        bool, typer.Option("--places", help="Name the country, region and nearest city of each answer.")
    ] = False,
    index_device: Annotated[
        str,
        typer.Option("--index-device", help="Where the index is searched: auto, cpu or cuda.", metavar="DEVICE"),
    ] = "auto",
    top: Annotated[int, typer.Option("--top", help="Candidates kept of each answer (.jsonl, .parquet).")] = 5,
    max_errors: options.MaxErrors = "0",
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew and replace the output, instead of resuming.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Do only the I-th of N equal shares.", metavar="I/N")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="Draw the answers on a map, a web page of one file that works offline; with --shard, OUT-I-of-N.html.",
            metavar="OUT.html",
        ),
    ] = None,
    thumbnails: Annotated[
        int | None,
        typer.Option(
            "--thumbnails",
            help="Small pictures in the map, 0 for none.",
            metavar="N",
            show_default="up to 1000",
        ),
    ] = None,
    quiet: options.Quiet = False,
    summary_json: Annotated[
        Path | None, typer.Option("--summary-json", help="Write what was done, as JSON.", metavar="PATH")
    ] = None,
    preprocessing: options.Pixels = None,
) -> None:
    """Locate photos: one row each, with latitude, longitude and an error radius."""
    from geoinfer.batch.predict import ErrorLimit, PredictOptions, Shard, run_predict
    from geoinfer.batch.writers import format_of
    from geoinfer.cli.console import Console, answer, device_line, failed_line, index_device_line, say
    from geoinfer.cli.interrupts import interrupts_raise
    from geoinfer.cli.start import started
    from geoinfer.geolocator import Geolocator
    from geoinfer.images import check_sources

    # Everything that can be wrong with the arguments is found before a model is opened.
    limit = ErrorLimit.parse(max_errors)
    share = None if shard is None else Shard.parse(shard)
    if output is None:
        output = Path("predictions.csv" if share is None else f"predictions-{share.number}-of-{share.of}.csv")
    format_of(output)
    if not 0 <= top <= 100:
        raise UsageError(f"--top {top}: expected 0 to 100")
    worker_count = options.checked_workers(workers)
    options.check_batch_size(batch_size)
    pixels = options.parsed_preprocessing(preprocessing)
    check_decode(decode)
    check_sources(sources)
    errors = errors or output.with_name(f"{output.stem}.errors.csv")
    written = {"--output": output, "the run's record": output.with_name(f"{output.name}.run.json"), "--errors": errors}
    if summary_json is not None:
        written["--summary-json"] = summary_json
    drawn = _checked_map(page, thumbnails, share)
    if drawn is not None:
        written["--map"] = drawn.path
    options.check_written(written, sources, output.parent)
    if summary_json is not None:
        options.check_summary(summary_json)
    made_with, finished = (None, False) if restart else _begun(output)
    enough = None if finished or not _listable(sources) else lambda: options.many(_inputs(sources, share))
    plan, device = options.planned(
        precision, device, quiet=quiet, no_tune=no_tune, enough=enough, made_with=made_with, pixels=pixels
    )
    with Geolocator.open(
        engine,
        index,
        device=device,
        k=k,
        aggregate=aggregate,  # type: ignore[arg-type]  # checked by what it is given to
        temperature=temperature,
        bandwidth_km=bandwidth_km,
        min_score=min_score,
        places=places,
        index_device=index_device,
        preprocessing=pixels,
        threads=1,
        plan=plan,
    ) as geolocator:
        started()
        run = PredictOptions(
            sources=tuple(sources),
            output=output,
            errors=errors,
            batch_size=options.chosen_batch_size(batch_size, geolocator.embedder),
            workers=worker_count,
            top=top,
            shard=share,
            restart=restart,
        )
        with Console(quiet=quiet, count=_counter(run)) as console:
            embedder = geolocator.embedder
            device_line(console, embedder)
            index_device_line(console, geolocator.index_device)
            with interrupts_raise():
                summary = run_predict(
                    geolocator,
                    run,
                    console,
                    see=None if drawn is None else drawn.sample.add,
                    open_decoding=decoding_opener(
                        decode, embedder, workers=worker_count, batch_size=run.batch_size, tell=console.say
                    ),
                )
                # Only now: whatever becomes of the map, the result is safe.
                no_map = None if drawn is None else _draw_map(drawn, geolocator, run, summary, console)
        code = EXIT_FAILED_INPUTS if limit.exceeded(summary.error, summary.inputs) else EXIT_OK
        if no_map is not None:
            code = no_map.exit_code
        if summary_json is not None:
            done = _summary(geolocator, run, summary, code)
            done["map"] = None if drawn is None or no_map is not None else str(drawn.path.absolute())
            _write_summary(summary_json, done)
        if not quiet:
            for line in _lines(geolocator, run, summary):
                answer(line)
            if drawn is not None and no_map is None:
                answer(f"  map:       {drawn.path}")
        if geolocator.notice:
            say(f"note: {geolocator.notice}")
    if no_map is not None:
        raise no_map
    if code != EXIT_OK:
        say(failed_line(summary.error, max_errors))
    raise typer.Exit(code)


predict.__doc__ = (predict.__doc__ or "") + "\n\n" + _EPILOG


@dataclass(frozen=True, slots=True)
class _Map:
    """The page that `--map` asks for, and what it is made of."""

    path: Path
    thumbnails: int
    sample: PredictionSample

    def made_of(self, output: Path) -> str:
        """Names a finished run's result and how the page shows it."""
        record = output.with_name(f"{output.name}.run.json").read_bytes()
        return hashlib.sha256(record + f"{self.thumbnails}".encode()).hexdigest()


def _checked_map(page: Path | None, thumbnails: int | None, share: Shard | None) -> _Map | None:
    if page is None:
        if thumbnails is not None:
            raise UsageError("--thumbnails is for --map", hint="give --map OUT.html, too")
        return None
    from geoinfer.evaluate.page.data import THUMBNAILS
    from geoinfer.evaluate.prediction_page import PredictionSample, check_page

    if thumbnails is not None and not 0 <= thumbnails <= _MOST_THUMBNAILS:
        raise UsageError(f"--thumbnails {thumbnails}: expected 0 to {_MOST_THUMBNAILS}")
    # As results are: shares that run side by side must not write over each other's.
    path = page if share is None else page.with_name(f"{page.stem}-{share.number}-of-{share.of}{page.suffix}")
    check_page(path)
    return _Map(path, THUMBNAILS if thumbnails is None else thumbnails, PredictionSample())


def _draw_map(
    drawn: _Map, geolocator: Geolocator, run: PredictOptions, summary: PredictSummary, console: Console
) -> GeoInferError | None:
    """Writes the page; returns, and does not raise, why it could not be."""
    from geoinfer.evaluate.page.result_rows import read_result
    from geoinfer.evaluate.prediction_page import is_page_of, write_prediction_page

    share = "" if run.shard is None else f", share {run.shard.number} of {run.shard.of}"
    warnings = []
    if not geolocator.calibrated:
        warnings.append(
            f"How far off an answer is cannot be told, and every radius is the whole Earth: "
            f"{geolocator.why_not_calibrated}."
        )
    try:
        made_of = drawn.made_of(run.output)
        if summary.already_finished:
            # Drawn by the run itself it may have candidates, which not every result has room for.
            if is_page_of(drawn.path, made_of):
                return None
            for row in read_result(run.output):
                drawn.sample.add(row)
            if drawn.sample.total != summary.inputs:
                raise InputError(
                    f"{run.output}: holds {drawn.sample.total} rows, and the run had {summary.inputs} inputs",
                    hint="--restart makes it again",
                )
        console.step("drawing the map", 0.0)
        write_prediction_page(
            drawn.sample,
            drawn.path,
            made_of=made_of,
            title=f"Estimated locations: {run.output.name}{share}",
            made_by=f"{geolocator.embedder.identity.name}, k {geolocator.answer.k}, {geolocator.answer.aggregate}.",
            notice=geolocator.notice,
            warnings=warnings,
            thumbnails=drawn.thumbnails,
            workers=run.workers,
        )
    except KeyboardInterrupt:
        reason: GeoInferError = InterruptedRunError(
            f"interrupted while the map was drawn; the result is whole: {run.output}",
            hint="the same command without --restart draws the map",
        )
    except InputError as error:
        return error
    except OSError as error:
        words = str(error) if isinstance(error, GeoInferError) else (error.strerror or str(error)).lower()
        reason = OutputError(
            f"--map {drawn.path}: cannot be drawn: {words}; the result is whole: {run.output}",
            hint="the same command without --restart draws it again",
        )
    else:
        return None
    return reason


def _counter(run: PredictOptions) -> Callable[[], int] | None:
    """Counts the inputs; None where that would use them up."""
    return (lambda: sum(1 for _ in _inputs(run.sources, run.shard))) if _listable(run.sources) else None


def _listable(sources: Iterable[str]) -> bool:
    """Whether the inputs can be gone through without using them up, as standard input or a pipe's list would be."""
    return not any(
        name == "-" or (name.startswith("@") and not os.path.lexists(name) and not os.path.isfile(name[1:]))
        for name in sources
    )


def _inputs(sources: Iterable[str], share: Shard | None) -> Iterator[Source]:
    from geoinfer.images import discover

    return (source for source in discover(sources) if share is None or share.holds(source.path))


def _begun(output: Path) -> tuple[str | None, bool]:
    """SHA-256 of the model file that an earlier run of this output was made with, and whether it is finished."""
    from geoinfer.batch.ledger import earlier_run

    fingerprint, finished = earlier_run(output)
    model = (fingerprint or {}).get("engine file")
    return (model if isinstance(model, str) else None), finished


def _lines(geolocator: Geolocator, run: PredictOptions, summary: PredictSummary) -> list[str]:
    from geoinfer.batch.rows import LOW_SCORE
    from geoinfer.cli.console import duration, error_line

    if summary.already_finished:
        return [
            f"Nothing to do: {run.output} holds all {summary.inputs} inputs already "
            f"({summary.ok} located, {summary.error} errors, {summary.skipped} skipped).",
            "  Photos that changed since are not looked at; --restart does all of them again.",
        ]
    lines = [
        f"Located {summary.ok} of {summary.inputs} photos in {duration(summary.seconds)} "
        f"({summary.images_per_second:.1f} photos/s); {summary.error} errors, {summary.skipped} skipped."
    ]
    if geolocator.min_score is not None and summary.abstained:
        lines.append(f"  {summary.abstained} skipped for a score below {geolocator.min_score:g}.")
    failures = summary.failures | ({LOW_SCORE: summary.abstained} if summary.abstained else {})
    if summary.resumed:
        lines.append(f"  {summary.resumed} of them had been done by an earlier run.")
    if summary.decoded:
        from geoinfer.batch.device_decoding import DecodeCounts

        counts = str(DecodeCounts(**summary.decoded))
        lines.append(f"  {counts[0].upper()}{counts[1:]}.")
    lines.append(f"  locations: {run.output}")
    lines.append(f"  errors:    {error_line(run.errors, failures)}")
    if not geolocator.calibrated:
        why = geolocator.why_not_calibrated
        lines.append(
            f"  {why[0].upper()}{why[1:]}. How far off an answer is cannot be told, and radius_km is the whole Earth."
        )
    return lines


def _summary(geolocator: Geolocator, run: PredictOptions, summary: PredictSummary, code: int) -> dict[str, Any]:
    import geoinfer

    embedder = geolocator.embedder
    return {
        "geoinfer": geoinfer.__version__,
        "location_type": "estimated",
        "inputs": summary.inputs,
        "ok": summary.ok,
        "error": summary.error,
        "skipped": summary.skipped,
        "abstained": summary.abstained,
        "failures": summary.failures,
        "resumed": summary.resumed,
        "already_finished": summary.already_finished,
        "seconds": round(summary.seconds, 3),
        "images_per_second": round(summary.images_per_second, 3),
        "decoded": summary.decoded,
        "stage_seconds": {name: round(value, 3) for name, value in summary.stage_seconds.items()},
        "output": str(run.output.absolute()),
        "errors": str(run.errors.absolute()),
        "engine": embedder.identity.name,
        "engine_file": embedder.fingerprint,
        "index": str(geolocator.index.folder.absolute()),
        "device": embedder.device,
        "device_reason": embedder.device_reason,
        "k": geolocator.answer.k,
        "aggregate": geolocator.answer.aggregate,
        "temperature": geolocator.answer.used_temperature,
        "bandwidth_km": geolocator.answer.used_bandwidth_km,
        "min_score": geolocator.min_score,
        "places": geolocator.places is not None,
        "index_device": geolocator.index_device.name,
        "index_device_reason": geolocator.index_device.reason,
        "batch_size": run.batch_size,
        "workers": run.workers,
        "calibrated": geolocator.calibrated,
        "notice": geolocator.notice,
        "exit_code": code,
    }


def _write_summary(path: Path, summary: dict[str, Any]) -> None:
    from geoinfer.integrity import write_json

    try:
        write_json(path, summary)
    except OSError as error:
        raise OutputError(
            f"--summary-json {path}: cannot be written: {(error.strerror or str(error)).lower()}"
        ) from error
