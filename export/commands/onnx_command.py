"""`python -m export onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def onnx(
    checkpoint: Annotated[
        Path, typer.Argument(help="Of the trainer, such as RUN/checkpoints/best.safetensors.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.", show_default=False)],
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
    index: Annotated[
        Path | None,
        typer.Option("--index", help="Index of this embedder; its top-1 answers must stay.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="CSV of the photos' places; the median error must stay.", show_default=False),
    ] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option("--min-cosine", help="Limit of the gate.", show_default="fp32 0.99999, fp16 0.999, int8 0.98"),
    ] = None,
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
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Largest batch that the gate runs.")] = 16,
    explain: Annotated[
        bool, typer.Option("--explain", help="If the gate fails, name the first layer that departs.")
    ] = False,
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
    import dataclasses

    from export.onnx_model import ExportOptions, export_onnx
    from export.parity import default_limits
    from export.torch_embedder import load_checkpoint

    given = {"min_cosine": min_cosine, "min_agreement": min_agreement, "max_shift": max_shift}
    limits = dataclasses.replace(default_limits(precision), **{k: v for k, v in given.items() if v is not None})
    embedder = load_checkpoint(checkpoint, licence=licence)
    typer.echo(f"{checkpoint}: {embedder.source}; {embedder.preprocessing}")
    options = ExportOptions(
        precision=precision,
        photos=photos,
        calibration=calibration,
        int8_target=int8_target,
        limits=limits,
        index=index,
        labels=labels,
        max_batch=max_batch,
        explain=explain,
    )
    export_onnx(embedder, out, options)
    typer.echo(f"{out}: {precision}, {out.stat().st_size / 1e6:.1f} MB, embedder {embedder.identity}")
    if licence == "NOASSERTION":
        typer.echo("  Its licence is not stated: --licence SPDX writes it into the model, for whoever gets it.")
    typer.echo(f"  Index photos with it: geoinfer index build PHOTOS --engine {out} --output INDEX")
    typer.echo(f"  Compile it for this GPU: geoinfer engine build {out} --out {out.with_suffix('.trt')}")
