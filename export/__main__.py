"""`python -m export`: checkpoints and public weights become what the runtime loads."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from export.commands.backbone_command import backbone
from export.commands.bundle_command import bundle
from export.commands.geoclip_command import geoclip
from export.commands.onnx_command import onnx
from geoinfer.cli.engine import build as engine
from geoinfer.errors import GeoInferError

_CHECKOUT = Path(__file__).parents[1]

app = typer.Typer(
    name="export",
    help="Turn weights into ONNX models, engines and bundles. Runs from a checkout, with the extras train and export.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command("onnx", short_help="Turn a checkpoint into an ONNX model.")(onnx)
app.command("engine", short_help="Compile an ONNX model for an NVIDIA GPU.")(engine)
app.command("bundle", short_help="Put a model and its index into one folder.")(bundle)
app.command("geoclip", short_help="Make a bundle of GeoCLIP.")(geoclip)
app.command("backbone", short_help="Turn a published embedder into an ONNX model.")(backbone)


@app.command("efficientnet-lite", short_help="Turn EfficientNet-Lite into an ONNX model.")
def efficientnet_lite(
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.", show_default=False)],
    variant: Annotated[int, typer.Option("--variant", help="0, 1 or 2.")] = 2,
    photos: Annotated[Path | None, typer.Option("--photos", help="Photos that the parity gate compares on.")] = None,
) -> None:
    """Write EfficientNet-Lite with ImageNet weights, from its package, as an ONNX embedder.

    \b
    Example:
      python -m export efficientnet-lite --variant 0 --output lite0.onnx
    """
    from export.efficientnet_lite import export_efficientnet_lite

    export_efficientnet_lite(variant, output, photos=photos)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


@app.command("demo-bundle")
def demo_bundle(
    photos: Annotated[
        Path, typer.Option("--photos", help="Folder with photos.csv and the photos that it names.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.")] = _CHECKOUT
    / "geoinfer"
    / "bundles"
    / "demo",
) -> None:
    """Make the demonstration bundle that ships with geoinfer.

    \b
    Example:
      python -m export demo-bundle --photos ../shared/data/photos
    """
    from export.demo_bundle import make_demo_bundle

    summary = make_demo_bundle(photos, output)
    typer.echo(f"{output}: {summary.indexed} references")


def main() -> None:
    """Runs the command; an error that was foreseen is a sentence, not a traceback."""
    # Only our own parity figures: the exporter's libraries tell a great deal at this level.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        app()
    except GeoInferError as error:
        print(f"export: {error}", file=sys.stderr)  # noqa: T201
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
