"""`geoinfer index merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoinfer.cli import options  # noqa: TC001 - typer reads the annotations
from geoinfer.cli.index import inputs
from geoinfer.errors import UsageError
from geoinfer.index_kinds import AUTO

_FIRST = "first"


def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="INDEX", help="Folders of two indexes or more.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new index.", show_default=False)],
    kind: Annotated[str, typer.Option("--kind", help="How references are searched.", metavar=inputs.KIND_WORDS)] = AUTO,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help="Which reference stays where two indexes have another one of the same name.",
            metavar=_FIRST,
            show_default="an error",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Make one index of several that were made with the same model.

    \b
    Example:
      geoinfer index merge europe-index asia-index --output eurasia-index

    A photo that several of them hold under one name is taken once.
    """
    from geoinfer.batch.merge import MergeOptions, run_merge
    from geoinfer.cli.console import Console, answer, duration, say
    from geoinfer.cli.interrupts import interrupts_raise

    if not output.name:
        raise UsageError(f"--output {output}: expected the name of a new folder")
    if keep not in (None, _FIRST):
        raise UsageError(f"--keep {keep}: expected {_FIRST}")
    run = MergeOptions(folders=folders, output=output, kind=kind, keep_first=keep == _FIRST, overwrite=overwrite)
    with Console(quiet=quiet) as console, interrupts_raise():
        summary = run_merge(run, console)
    if not quiet:
        sizes = " + ".join(map(str, summary.sizes))
        answer(
            f"Merged {sizes} references into {summary.size} in {duration(summary.seconds)}; {summary.same} were in "
            f"more than one index, {summary.dropped} gave way to another of the same name."
        )
        answer(f"  index:  {output} ({summary.kind}, calibrated on {summary.calibrated_on} references)")
        if summary.recall is not None:
            answer(f"  recall: {inputs.recall_words(summary.recall)}")
        answer(f"  Use it: geoinfer predict PHOTOS --index {output}, with the --engine of the indexes it was made of")
    for sentence in summary.left_out:
        say(f"note: {sentence}")
