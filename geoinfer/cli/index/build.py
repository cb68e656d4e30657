"""`geoinfer index build`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from geoinfer.cli import options
from geoinfer.cli.index import inputs
from geoinfer.errors import UsageError
from geoinfer.index_kinds import AUTO


def build(
    labels: inputs.Labels,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new index.", show_default=False)],
    images: inputs.Images = None,
    embeddings: inputs.Embeddings = None,
    normalize: inputs.Normalize = False,
    kind: Annotated[str, typer.Option("--kind", help="How references are searched.", metavar=inputs.KIND_WORDS)] = AUTO,
    engine: options.Engine = None,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", help="Report of inputs that failed, a CSV.", show_default="<output>.errors.csv"),
    ] = None,
    device: options.Device = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="On a CPU: fp32 for the model itself, which auto means here too, or int8 for the int8 file beside it.",
            metavar="PRECISION",
        ),
    ] = "fp32",
    no_tune: options.NoTune = False,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    source: inputs.Source = "",
    attribution: inputs.Attribution = "",
    max_errors: options.MaxErrors = "0",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an unfinished build, and begin anew.")] = False,
    quiet: options.Quiet = False,
    preprocessing: options.Pixels = None,
) -> None:
    """Embed photos whose place is known, and write an index that others are located by.

    \b
    Examples:
      geoinfer index build ./tagged-photos --output my-index
      geoinfer index build train.csv --images ./train --output osv5m-index
      geoinfer index build l.csv --embeddings l.npy -e vit.onnx -o my-index
      geoinfer predict ./untagged-photos --index my-index

    The CSV's columns are found by name; the layouts of OSV-5M, Im2GPS and GeoCLIP are recognised. A photo that cannot
    be used costs its own place in the index and nothing else. The same command again goes on where it was interrupted.
    """
    from geoinfer.batch.build import BuildOptions, check_build, count_inputs, run_build
    from geoinfer.batch.labelled import open_labelled
    from geoinfer.batch.predict import ErrorLimit
    from geoinfer.cli.console import Console, answer, device_line, duration
    from geoinfer.cli.interrupts import interrupts_raise

    limit = ErrorLimit.parse(max_errors)
    pixels = options.parsed_preprocessing(preprocessing)
    if not output.name:
        raise UsageError(f"--output {output}: expected the name of a new folder")
    run = BuildOptions(
        labels=labels,
        images=images,
        embeddings=embeddings,
        normalize=normalize,
        output=output,
        errors=errors or output.with_name(f"{output.name}.errors.csv"),
        workers=options.checked_workers(workers),
        source=source,
        attribution=attribution,
        kind=kind,
        overwrite=overwrite,
        restart=restart,
    )
    check_build(run)
    options.check_batch_size(batch_size)
    options.check_written({"--errors": run.errors}, [str(labels)], output.parent)
    # References are what all else is compared with: where nobody says int8, they are made by the model itself.
    plan, device = options.planned(
        "fp32" if precision == "auto" else precision,
        device,
        quiet=quiet,
        no_tune=no_tune,
        enough=None if run.ready else lambda: options.many(open_labelled(run.labels, run.images).sources()),
        pixels=pixels,
    )
    with inputs.opened_embedder(engine, device, pixels, ready=run.ready, plan=plan) as embedder:
        run = dataclasses.replace(run, batch_size=options.chosen_batch_size(batch_size, embedder))
        with Console(quiet=quiet, doing="indexing", count=lambda: count_inputs(run)) as console:
            if not run.ready:
                device_line(console, embedder)
            with interrupts_raise():
                summary = run_build(embedder, run, console)
    if not quiet:
        answer(
            f"Indexed {inputs.what_was_read(summary, ready=run.ready)} in {duration(summary.seconds)}; "
            f"{summary.error} errors, {summary.skipped} skipped (no position, or camera raw)."
        )
        for line in inputs.summary_lines(run, summary, engine):
            answer(line)
    inputs.end(limit, max_errors, summary.error, summary.inputs)
