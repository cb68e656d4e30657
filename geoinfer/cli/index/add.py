"""`geoinfer index add`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from geoinfer.cli import options
from geoinfer.cli.index import inputs
from geoinfer.index_kinds import AUTO


def add(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.", show_default=False)],
    labels: inputs.Labels,
    images: inputs.Images = None,
    embeddings: inputs.Embeddings = None,
    normalize: inputs.Normalize = False,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="How references are searched from now on.",
            metavar=inputs.KIND_WORDS,
            show_default="as before",
        ),
    ] = AUTO,
    engine: options.Engine = None,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", help="Report of inputs that failed, a CSV.", show_default="<INDEX>.errors.csv"),
    ] = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    source: inputs.Source = "",
    attribution: inputs.Attribution = "",
    max_errors: options.MaxErrors = "0",
    restart: Annotated[bool, typer.Option("--restart", help="Forget an unfinished run, and begin anew.")] = False,
    quiet: options.Quiet = False,
    preprocessing: options.Pixels = None,
) -> None:
    """Add references to an index; until they are all in, it answers as before.

    \b
    Examples:
      geoinfer index add my-index ./more-tagged-photos
      geoinfer index add my-index l.csv --embeddings l.npy -e vit.onnx

    The model must be the one that the index was made with. A photo that the index has under the same name is left out
    and reported. The same command again goes on where it was interrupted.
    """
    from geoinfer.batch.add import check_add, run_add
    from geoinfer.batch.build import BuildOptions, count_inputs
    from geoinfer.batch.predict import ErrorLimit
    from geoinfer.cli.console import Console, answer, device_line, duration, say
    from geoinfer.cli.interrupts import interrupts_raise

    limit = ErrorLimit.parse(max_errors)
    pixels = options.parsed_preprocessing(preprocessing)
    folder = Path(*folder.parts)  # without a slash at its end
    run = BuildOptions(
        labels=labels,
        images=images,
        embeddings=embeddings,
        normalize=normalize,
        output=folder,
        errors=errors or folder.with_name(f"{folder.name}.errors.csv"),
        workers=options.checked_workers(workers),
        source=source,
        attribution=attribution,
        kind=kind,
        restart=restart,
    )
    check_add(run)
    options.check_batch_size(batch_size)
    options.check_written({"--errors": run.errors}, [str(labels)], folder.parent)
    plan, device = options.planned("fp32", device, quiet=quiet, pixels=pixels)
    with inputs.opened_embedder(engine, device, pixels, ready=run.ready, plan=plan) as embedder:
        run = dataclasses.replace(run, batch_size=options.chosen_batch_size(batch_size, embedder))
        with Console(quiet=quiet, doing="indexing", count=lambda: count_inputs(run)) as console:
            if not run.ready:
                device_line(console, embedder)
            with interrupts_raise():
                summary = run_add(embedder, run, console)
    built = summary.built
    if not quiet:
        answer(
            f"Added {inputs.what_was_read(built, ready=run.ready)} to the {summary.before} references that were there, "
            f"in {duration(built.seconds)}; {built.error} errors, {built.skipped} skipped (no position, or camera raw)."
        )
        for line in inputs.summary_lines(run, built, engine):
            answer(line)
    if summary.stale:
        say(
            f"note: {folder} was calibrated on labelled photos before these references were added; its radii are still "
            "those"
        )
    inputs.end(limit, max_errors, built.error, built.inputs)
