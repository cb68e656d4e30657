"""`python -m export`: checkpoints and public weights become what the runtime loads."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from export.commands.backbone_command import backbone
from export.commands.bundle_command import bundle
from export.commands.geoclip_command import geoclip
from export.commands.onnx_command import onnx
from geoinfer.cli import EXIT_BUG
from geoinfer.cli.engine import build as engine
from geoinfer.cli.interrupts import ignore_interrupts, interrupts_end_the_process
from geoinfer.errors import EXIT_OK, EXIT_USAGE, GeoInferError

_CHECKOUT = Path(__file__).parents[1]
_INSTALL: Final = "pip install -e '.[train,export]'"

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


def main() -> NoReturn:
    """Runs the command; every error becomes one or two lines and an exit code, never a traceback."""
    # Names that are not UTF-8 must be printable, and must not end a run that is otherwise fine.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Only our own parity figures: the exporter's libraries tell a great deal at this level.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    interrupts_end_the_process("export")
    code = _run()
    ignore_interrupts()  # the outcome is known, and dying while Python winds up would hide it
    raise SystemExit(code)


def _run() -> int:
    """The exit code of the command, whatever happened, said on standard error where it went wrong."""
    try:
        app(prog_name="python -m export")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_OK
    except GeoInferError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    except Exception as error:
        package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
        if package and package not in ("export", "geoinfer"):
            what = "is missing" if isinstance(error, ModuleNotFoundError) else f"cannot be imported: {error}"
            _complain(f"the package {package} {what}", f"{_INSTALL} in the checkout")
            return EXIT_USAGE
        if os.environ.get("GEOINFER_DEBUG"):
            raise
        _complain(
            f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:500]}",
            "this is a fault of the export: please report it with the output of GEOINFER_DEBUG=1 and this command",
        )
        return EXIT_BUG
    return EXIT_OK


def _complain(message: str, hint: str) -> None:
    for line in (f"export: {message}", *(f"  {part}" for part in hint.splitlines())):
        # A message may have several lines; control characters come from file names.
        text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in line)
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
