"""`python -m export geoclip`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from export.commands import options  # noqa: TC001 - typer reads annotations at run time


def geoclip(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.", show_default=False)],
    clip: Annotated[
        Path | None,
        typer.Option(
            "--clip",
            help="Folder with config.json and model.safetensors of openai/clip-vit-large-patch14.",
            show_default="the cache of Hugging Face",
        ),
    ] = None,
    allow_download: Annotated[
        bool, typer.Option("--allow-download", help="Fetch CLIP's weights (1.7 GB) where they are not at hand.")
    ] = False,
    precision: options.Precision = "fp32",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="LABELS.csv",
            help="Photos whose place is known, to calibrate radius_km on; without them it is the whole Earth.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder that the CSV's paths are relative to.", show_default="the CSV's own"),
    ] = None,
    photos: options.Photos = None,
    calibration: options.Calibration = None,
    min_cosine: options.MinCosine = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            "--min-agreement",
            help="Share of the photos whose coordinates must stay.",
            show_default="fp16 0.95, int8 0.85",
        ),
    ] = None,
    max_batch: options.MaxBatch = 16,
    explain: options.Explain = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Make a bundle of GeoCLIP: its image tower, and its gallery of 100,000 coordinates as the index.

    \b
    Examples:
      python -m export geoclip --out geoclip/ --allow-download
      python -m export geoclip --out geoclip/ --labels photos.csv --images photos/
      geoinfer predict PHOTOS --engine geoclip/ --output answers.jsonl
    """
    from geoinfer.errors import UsageError

    if images is not None and labels is None:
        raise UsageError("--images is for the CSV of --labels", hint="give --labels LABELS.csv too")
    if min_agreement is not None and precision == "fp32":
        raise UsageError("--min-agreement is for models that are rounded", hint="--precision fp16 or int8")

    from export.geoclip import GeoClipOptions, export_geoclip
    from export.parity import chosen_limits

    chosen = GeoClipOptions(
        clip=clip,
        allow_download=allow_download,
        precision=precision,
        photos=photos,
        calibration=calibration,
        limits=chosen_limits(precision, min_cosine=min_cosine, min_agreement=min_agreement),
        max_batch=max_batch,
        explain=explain,
        labels=labels,
        images=images,
        force=force,
    )
    bundle = export_geoclip(out, chosen, typer.echo)
    total = sum(file["bytes"] for file in bundle.files.values())
    typer.echo(f"{out}: {bundle.description}, {total / 1e6:.1f} MB")
    if labels is None:
        typer.echo("  Not calibrated: radius_km will be the whole Earth; --labels LABELS.csv changes that.")
    typer.echo(f"  Use it: geoinfer predict PHOTOS --engine {out}")
