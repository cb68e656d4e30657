"""`python -m export onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from export.commands import options  # noqa: TC001 - typer reads annotations at run time


def onnx(
    checkpoint: Annotated[
        Path, typer.Argument(help="Of the trainer, such as RUN/checkpoints/best.safetensors.", show_default=False)
    ],
    out: options.Out,
    precision: options.Precision = "fp32",
    photos: options.Photos = None,
    calibration: options.Calibration = None,
    int8_target: options.Int8Target = "any",
    index: Annotated[
        Path | None,
        typer.Option("--index", help="Index of this embedder; its top-1 answers must stay.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="CSV of the photos' places; the median error must stay.", show_default=False),
    ] = None,
    min_cosine: options.MinCosine = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            "--min-agreement", help="Share of top-1 answers to stay.", show_default="fp32 0.98, fp16 0.95, int8 0.85"
        ),
    ] = None,
    max_shift: Annotated[
        float | None,
        typer.Option(
            "--max-shift", help="Share the median may grow by.", show_default="fp32 0.01, fp16 0.03, int8 0.1"
        ),
    ] = None,
    max_batch: options.MaxBatch = 16,
    explain: options.Explain = False,
    licence: Annotated[
        str,
        typer.Option("--licence", metavar="SPDX", help="Of the weights; NOASSERTION says that nobody has stated it."),
    ] = "NOASSERTION",
) -> None:
    """Write a checkpoint's embedder as an ONNX model, if it gives torch's embeddings on real photos.

    \b
    Examples:
      python -m export onnx RUN/checkpoints/best.safetensors --out vit.onnx
      python -m export onnx best.safetensors --out vit.onnx --precision fp16 --licence CC-BY-NC-4.0
    """
    from export.onnx_model import ExportOptions, check_options, export_onnx
    from export.parity import chosen_limits
    from export.torch_embedder import load_checkpoint

    chosen = ExportOptions(
        precision=precision,
        photos=photos,
        calibration=calibration,
        int8_target=int8_target,
        limits=chosen_limits(precision, min_cosine=min_cosine, min_agreement=min_agreement, max_shift=max_shift),
        index=index,
        labels=labels,
        max_batch=max_batch,
        explain=explain,
    )
    check_options(out, chosen)
    embedder = load_checkpoint(checkpoint, licence=licence)
    typer.echo(f"{checkpoint}: {embedder.source}; {embedder.preprocessing}")
    export_onnx(embedder, out, chosen)
    typer.echo(f"{out}: {precision}, {out.stat().st_size / 1e6:.1f} MB, embedder {embedder.identity}")
    if licence == "NOASSERTION":
        typer.echo("  Its licence is not stated: --licence SPDX writes it into the model, for whoever gets it.")
    typer.echo(f"  Index photos with it: geoinfer index build PHOTOS --engine {out} --output INDEX")
    typer.echo(f"  Compile it for this GPU: geoinfer engine build {out} --out {out.with_suffix('.trt')}")
