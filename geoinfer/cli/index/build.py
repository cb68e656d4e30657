"""`geoinfer index build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoinfer.cli import options
from geoinfer.errors import EXIT_FAILED_INPUTS, EXIT_OK, UsageError

if TYPE_CHECKING:
    from geoinfer.batch.build import BuildOptions, BuildSummary


def build(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="A CSV with path (or id), latitude and longitude, or a folder of photos with GPS in their EXIF.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new index.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder that the CSV's paths are relative to.", show_default="the CSV's own"),
    ] = None,
    engine: options.Engine = None,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", help="Report of photos that failed, a CSV.", show_default="<output>.errors.csv"),
    ] = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    source: Annotated[str, typer.Option("--source", help="Where the photos come from, for rows that do not say.")] = "",
    attribution: Annotated[
        str, typer.Option("--attribution", help="Licence and author, for rows that do not say.")
    ] = "",
    max_errors: options.MaxErrors = "0",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    quiet: options.Quiet = False,
    preprocessing: options.Pixels = None,
) -> None:
    """Embed photos whose place is known, and write an index that others are located by.

    \b
    Examples:
      geoinfer index build ./tagged-photos --output my-index
      geoinfer index build train.csv --images ./train --output osv5m-index
      geoinfer predict ./untagged-photos --index my-index

    The CSV's columns are found by name; the layouts of OSV-5M, Im2GPS and GeoCLIP are recognised. A photo that cannot
    be used costs its own place in the index and nothing else.
    """
    from geoinfer.backends import open_embedder
    from geoinfer.backends.beside import open_beside
    from geoinfer.batch.build import BuildOptions, check_build, count_inputs, run_build
    from geoinfer.batch.predict import ErrorLimit
    from geoinfer.bundle import SHIPPED, check_loaded, is_bundle, open_bundle
    from geoinfer.cli.console import Console, answer, device_line, failed_line, say
    from geoinfer.cli.interrupts import interrupts_raise
    from geoinfer.index import read_index_manifest

    limit = ErrorLimit.parse(max_errors)
    worker_count = options.checked_workers(workers)
    pixels = options.parsed_preprocessing(preprocessing)
    engine_path = engine or SHIPPED
    if not output.name:
        raise UsageError(f"--output {output}: expected the name of a new folder")
    build_errors = errors or output.with_name(f"{output.name}.errors.csv")
    run = BuildOptions(labels, images, output, build_errors, 1, worker_count, source, attribution, overwrite)
    check_build(run)
    options.check_batch_size(batch_size)
    options.check_written({"--errors": build_errors}, [str(labels)], output.parent)
    bundle = open_bundle(engine_path) if is_bundle(engine_path) or engine is None else None
    if bundle is None:
        embedder = open_embedder(engine_path, device, preprocessing=pixels, threads=1)
    else:
        made_by = read_index_manifest(bundle.index_path).embedder
        embedder, opened = open_beside(bundle.model_path, made_by, device, preprocessing=pixels, threads=1)
    with embedder:
        if bundle is not None:
            check_loaded(bundle, opened, embedder.fingerprint)
        run = BuildOptions(
            labels=labels,
            images=images,
            output=output,
            errors=build_errors,
            batch_size=options.chosen_batch_size(batch_size, embedder),
            workers=worker_count,
            source=source,
            attribution=attribution,
            overwrite=overwrite,
        )
        with Console(quiet=quiet, doing="indexing", count=lambda: count_inputs(run)) as console:
            device_line(console, embedder)
            with interrupts_raise():
                summary = run_build(embedder, run, console)
    if not quiet:
        for line in _lines(run, summary, engine):
            answer(line)
    if limit.exceeded(summary.error, summary.inputs):
        say(failed_line(summary.error, max_errors))
        raise typer.Exit(EXIT_FAILED_INPUTS)
    raise typer.Exit(EXIT_OK)


def _lines(run: BuildOptions, summary: BuildSummary, engine: Path | None) -> list[str]:
    from geoinfer.cli.console import duration, error_line, kilometres

    named = {"EXIF": "photos with GPS in their EXIF", "CSV": "a CSV"}.get(
        summary.layout, f"a CSV in {summary.layout}'s layout"
    )
    lines = [
        f"Indexed {summary.indexed} of {summary.inputs} photos ({named}) in {duration(summary.seconds)}; "
        f"{summary.error} errors, {summary.skipped} skipped (no position, or camera raw).",
        f"  index:  {run.output}",
        f"  errors: {error_line(run.errors, summary.failures)}",
    ]
    if summary.median_error_km is not None:
        lines.append(
            f"  Located by one another, half of the references come out within {kilometres(summary.median_error_km)}."
        )
    if not summary.calibrated:
        lines.append(
            "  Too few references, or of too few occasions, to know how far off an answer is: radius_km will be the "
            "whole Earth."
        )
    model = f" --engine {engine}" if engine is not None else ""
    lines.append(f"  Use it: geoinfer predict PHOTOS{model} --index {run.output}")
    return lines
