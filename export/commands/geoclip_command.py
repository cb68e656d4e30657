"""`python -m export geoclip`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or int8.")] = "fp32",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="LABELS.csv",
            help="Photos whose place is known, to calibrate radius_km on; without them it is the whole Earth.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder that the CSV's paths are relative to.", show_default="the CSV's own"),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option("--photos", help="Photos that the parity gate compares on.", show_default="examples/photos"),
    ] = None,
    int8_photos: Annotated[
        Path | None, typer.Option("--int8-photos", help="Photos that int8 takes its ranges from; needed for int8.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Make a bundle of GeoCLIP: its image tower, and its gallery of 100,000 coordinates as the index.

    \b
    Examples:
      python -m export geoclip --out geoclip/ --allow-download
      python -m export geoclip --out geoclip/ --calibrate photos.csv --images photos/
      geoinfer predict PHOTOS --engine geoclip/ --output answers.jsonl
    """
    from export.geoclip import GeoClipOptions, export_geoclip
    from geoinfer.errors import UsageError

    if precision not in ("fp32", "fp16", "int8"):
        raise UsageError(f"--precision {precision}: expected fp32, fp16 or int8")
    if images is not None and calibrate is None:
        raise UsageError("--images is for the CSV of --calibrate", hint="give --calibrate LABELS.csv too")
    if precision == "int8" and int8_photos is None:
        raise UsageError("--precision int8 needs photos to take its ranges from", hint="give --int8-photos FOLDER")
    options = GeoClipOptions(
        clip=clip,
        allow_download=allow_download,
        precision=precision,  # type: ignore[arg-type]  # checked above
        photos=photos,
        int8_photos=int8_photos,
        labels=calibrate,
        images=images,
        force=force,
    )
    bundle = export_geoclip(out, options, typer.echo)
    total = sum(file["bytes"] for file in bundle.files.values())
    typer.echo(f"{out}: {bundle.description}, {total / 1e6:.1f} MB")
    if calibrate is None:
        typer.echo("  Not calibrated: radius_km will be the whole Earth; --calibrate LABELS.csv changes that.")
    typer.echo(f"  Use it: geoinfer predict PHOTOS --engine {out}")
