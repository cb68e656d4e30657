"""`python -m export backbone`."""

from __future__ import annotations

from typing import Annotated

import typer

from export.commands import options  # noqa: TC001 - typer reads annotations at run time


def backbone(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="As timm knows it, with the tag of its weights, or open_clip:ARCHITECTURE/TAG."
        ),
    ],
    out: options.Out,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE|none",
            help="A file of weights, or none for random ones.",
            show_default="the published ones, from this machine's cache",
        ),
    ] = None,
    allow_download: Annotated[
        bool, typer.Option("--allow-download", help="Fetch the weights where no cache has them.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=1, help="Side of the pictures in pixels.", show_default="what the weights were trained at"
        ),
    ] = None,
    precision: options.Precision = "fp32",
    photos: options.Photos = None,
    calibration: options.Calibration = None,
    int8_target: options.Int8Target = "any",
    min_cosine: options.MinCosine = None,
    max_batch: options.MaxBatch = 16,
    explain: options.Explain = False,
    licence: Annotated[
        str | None, typer.Option("--licence", help="SPDX expression.", show_default="what the publisher says")
    ] = None,
) -> None:
    """Write a published embedder, of timm or open_clip, as an ONNX model for `geoinfer index build`.

    Nothing is fetched unless --allow-download is given. docs/embedders.md compares some of them.

    \b
    Examples:
      python -m export backbone vit_base_patch14_dinov2.lvd142m --size 224 --out dinov2.onnx --allow-download
      python -m export backbone open_clip:ViT-B-32/laion2b_s34b_b79k --out clip.onnx --allow-download
    """
    from export.onnx_model import ExportOptions, check_options, export_onnx
    from export.parity import chosen_limits
    from export.public import load_public

    chosen = ExportOptions(
        precision=precision,
        photos=photos,
        calibration=calibration,
        int8_target=int8_target,
        limits=chosen_limits(precision, min_cosine=min_cosine),
        max_batch=max_batch,
        explain=explain,
    )
    check_options(out, chosen)
    embedder = load_public(name, weights=weights, allow_download=allow_download, size=size, licence=licence)
    export_onnx(embedder, out, chosen)
    typer.echo(f"{out}: {embedder.identity}, {out.stat().st_size / 1e6:.1f} MB")
    typer.echo(f"  pixels:  {embedder.preprocessing}")
    typer.echo(f"  licence: {_said(embedder.licence)}")
    typer.echo(f"  Use it:  geoinfer index build PHOTOS --engine {out} --output my-index")


def _said(licence: str) -> str:
    from export.torch_embedder import UNKNOWN_LICENCE

    return (
        "not known: see where the weights come from, and say it with --licence"
        if licence == UNKNOWN_LICENCE
        else licence
    )
