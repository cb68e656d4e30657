"""`python -m export bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bundle(
    model: Annotated[Path, typer.Option("--model", help="The ONNX model.", show_default=False)],
    index: Annotated[
        Path, typer.Option("--index", help="Folder of the index that this model made.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.", show_default=False)],
    int8: Annotated[
        Path | None,
        typer.Option("--int8", help="The same model in int8, for CPUs that gain from it.", show_default="none"),
    ] = None,
    engine: Annotated[
        list[Path] | None,
        typer.Option("--engine", help="A .trt engine of the same embedder, its sidecar beside it. May be repeated."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Short name.", show_default="the folder's")] = "",
    description: Annotated[
        str, typer.Option("--description", help="One line.", show_default="made from the model's metadata")
    ] = "",
    notice: Annotated[str, typer.Option("--notice", help="One line that every run with the bundle shows.")] = "",
    licence: Annotated[
        list[str] | None,
        typer.Option(
            "--licence",
            metavar="PART=TEXT",
            help="Terms of a part: model.onnx, model.int8.onnx, index or an engine's name. May be repeated.",
            show_default="what model and index say",
        ),
    ] = None,
    attribution: Annotated[
        Path | None,
        typer.Option(
            "--attribution", help="Text that becomes ATTRIBUTION.md.", show_default="made from the index's sources"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that is there; its engines stay where they fit.")
    ] = False,
) -> None:
    """Make a bundle, which `geoinfer predict --engine` takes, of a model and its index.

    \b
    Example:
      python -m export bundle --model vit.onnx --index my-index --out vit/
    """
    from export.bundle import BundleParts, read_attribution, write_bundle
    from geoinfer.errors import UsageError

    licences: dict[str, str] = {}
    for given in licence or ():
        part, equals, terms = (piece.strip() for piece in given.partition("="))
        if not (part and equals and terms):
            raise UsageError(f"--licence {given}: expected PART=TEXT, as in index=CC-BY-SA-4.0")
        licences[part] = terms
    parts = BundleParts(
        model=model,
        index=index,
        int8=int8,
        engines=tuple(engine or ()),
        name=name,
        description=description,
        notice=notice,
        licences=licences,
        attribution=None if attribution is None else read_attribution(attribution),
    )
    written = write_bundle(parts, out, force=force, report=typer.echo)
    total_bytes = sum(file["bytes"] for file in written.files.values())
    typer.echo(f"{out}: {written.description}, {total_bytes / 1e6:.1f} MB")
    if figures := written.metrics.get("leave_one_out"):
        typer.echo(
            f"  {figures['count']} photos located by the index: half within {figures['median_km']:g} km, GeoScore "
            f"{figures['geoscore']}"
        )
    typer.echo(f"  Use it: geoinfer predict PHOTOS --engine {out}")
