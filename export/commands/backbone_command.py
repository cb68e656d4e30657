"""`python -m export backbone`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def backbone(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="As timm knows it, with the tag of its weights, or open_clip:ARCHITECTURE/TAG."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.", show_default=False)],
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
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option("--precision", help="fp16 is for GPUs; int8 needs photos to calibrate on."),
    ] = "fp32",
    photos: Annotated[
        Path | None,
        typer.Option("--photos", help="Photos that the parity gate compares on.", show_default="examples/photos"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Photos that int8 takes its ranges from.", show_default=False),
    ] = None,
    int8_target: Annotated[
        Literal["any", "cpu"],
        typer.Option("--int8-target", help="any device, or a form that ONNX Runtime is faster with on a CPU."),
    ] = "any",
    min_cosine: Annotated[
        float | None,
        typer.Option("--min-cosine", help="Limit of the gate.", show_default="fp32 0.99999, fp16 0.999, int8 0.98"),
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Largest batch that the gate runs.")] = 16,
    explain: Annotated[
        bool, typer.Option("--explain", help="If the gate fails, name the first layer that departs.")
    ] = False,
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
    import dataclasses

    from export.onnx_model import ExportOptions, export_onnx
    from export.parity import default_limits
    from export.public import load_public
    from geoinfer.errors import OutputError

    if not out.parent.is_dir():
        raise OutputError(f"cannot write {out.name}: there is no folder {out.parent}")
    limits = default_limits(precision)
    if min_cosine is not None:
        limits = dataclasses.replace(limits, min_cosine=min_cosine)
    embedder = load_public(name, weights=weights, allow_download=allow_download, size=size, licence=licence)
    export_onnx(
        embedder,
        out,
        ExportOptions(
            precision=precision,
            photos=photos,
            calibration=calibration,
            int8_target=int8_target,
            limits=limits,
            max_batch=max_batch,
            explain=explain,
        ),
    )
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
