"""`geoinfer index build` and `geoinfer index info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoinfer.cli import options
from geoinfer.errors import EXIT_FAILED_INPUTS, EXIT_OK, UsageError

if TYPE_CHECKING:
    from geoinfer.batch.build import BuildOptions, BuildSummary

app = typer.Typer(
    name="index",
    help="Build and look at reference indexes: photos whose place is known.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Start with: geoinfer index build ./tagged --output my-index",
)


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


def info(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Check the checksums of large files too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in an index, and whether it is whole.

    \b
    Example:
      geoinfer index info my-index
    """
    from geoinfer.answer import DEFAULT_ANSWER
    from geoinfer.calibration import calibrate, leave_one_out_errors_km
    from geoinfer.cli.console import answer, checksums, kilometres
    from geoinfer.index import open_index, read_index_manifest

    manifest = read_index_manifest(folder, verify=verify)
    stored = open_index(folder)
    coordinates = stored.references.coordinates
    way = manifest.answer or DEFAULT_ANSWER
    errors = leave_one_out_errors_km(stored.leave_one_out, coordinates, way.aggregate, way.k)
    calibrated = calibrate(stored.leave_one_out, coordinates, way.aggregate, way.k).usable
    errors.sort()
    extent = [*coordinates.min(axis=0).tolist(), *coordinates.max(axis=0).tolist()]
    if as_json:
        values = {
            "kind": manifest.kind,
            "size": manifest.size,
            "embedder": manifest.embedder.as_dict(),
            "geocells_level_6": manifest.geocells,
            "calibrated": calibrated,
            "calibrated_on": len(errors),
            "calibrated_by": "references" if stored.leave_one_out.places is None else "labelled photos",
            "answer": way.as_dict(),
            "logit_scale": manifest.logit_scale,
            "median_error_km": round(float(errors[len(errors) // 2]), 3) if len(errors) else None,
            "extent": extent,
            "files": manifest.files,
        }
        answer(json.dumps(values, indent=2, ensure_ascii=False))
        return
    total = sum(file["bytes"] for file in manifest.files.values())
    answer(f"{folder}: a {manifest.kind} index of {manifest.size} references, {total / 1e6:.1f} MB")
    answer(f"  made by:    {manifest.embedder}")
    answer(
        f"  coverage:   {manifest.geocells} geocells (S2 level 6), latitude {extent[0]:.2f} to {extent[2]:.2f}, "
        f"longitude {extent[1]:.2f} to {extent[3]:.2f}"
    )
    if manifest.answer is not None:
        answer(f"  answers by: --aggregate {way.aggregate} --k {way.k}, unless told otherwise")
    if manifest.logit_scale is not None:
        answer(f"  candidates: with probabilities, the softmax of {manifest.logit_scale:.6g} times the similarity")
    among = "references, each located by the others" if stored.leave_one_out.places is None else "labelled photos"
    if calibrated:
        half, most = errors[len(errors) // 2], errors[int(len(errors) * 0.9)]
        answer(f"  calibrated: on {len(errors)} {among}: half within {kilometres(half)}, 90% within {kilometres(most)}")
    elif manifest.calibrated_on == 0:
        answer("  calibrated: no; give labelled photos when it is made")
    elif stored.leave_one_out.places is not None:
        answer(f"  calibrated: no, {len(errors)} labelled photos are too few")
    else:
        answer(f"  calibrated: no, {len(errors)} references that others can locate are too few")
    answer(f"  checksums:  {checksums(manifest.files, verified=verify)}")


app.command("build", short_help="Make an index of photos whose place is known.")(build)
app.command("info", short_help="Say what is in an index.")(info)


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
