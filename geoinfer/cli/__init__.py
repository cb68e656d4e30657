"""The `geoinfer` command. One module a sub-command; each imports what is heavy only when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

import geoinfer
from geoinfer.cli import doctor, engine, evaluate, index, info, predict
from geoinfer.cli.console import say
from geoinfer.cli.interrupts import ignore_interrupts, interrupts_end_the_process
from geoinfer.errors import EXIT_INTERRUPTED, EXIT_OK, GeoInferError

EXIT_BUG = 70
"""An error that geoinfer did not foresee (EX_SOFTWARE of sysexits.h)."""

app = typer.Typer(
    name="geoinfer",
    help="Tell where photos were taken, from their pixels alone.",
    epilog="Start with: geoinfer predict ./photos",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"geoinfer {geoinfer.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("predict", short_help="Locate photos.")(predict.predict)
app.command("evaluate", short_help="Measure how far off predictions are.")(evaluate.evaluate)
app.command("info", short_help="Say what a bundle or an ONNX model is.")(info.info)
app.command("doctor", short_help="Say what is installed, what clashes and what is missing.")(doctor.doctor)
app.add_typer(index.app, name="index", short_help="Build, tune and look at reference indexes.")
app.add_typer(engine.app, name="engine")


def main() -> NoReturn:
    """Runs the command; every error becomes one or two lines and an exit code, never a traceback."""
    _open_closed_streams()
    # Names that are not UTF-8 must be printable, and must not end a run that is otherwise fine.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    interrupts_end_the_process()
    code = _run()
    # The work is done and its outcome known; dying of a signal while Python winds up would only hide it.
    ignore_interrupts()
    raise SystemExit(code)


def _run() -> int:
    """The exit code of the command, whatever happened, said on standard error where it went wrong."""
    try:
        app(prog_name="geoinfer")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_OK
    except GeoInferError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted", "")
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get("GEOINFER_DEBUG"):
            raise
        text = " ".join(str(error).split())[:500]
        _complain(
            f"unexpected {type(error).__name__}: {text}",
            "this is a fault of geoinfer: please report it with the output of GEOINFER_DEBUG=1 and this command",
        )
        return EXIT_BUG
    return EXIT_OK


def _open_closed_streams() -> None:
    """A parent may close any of the three standard streams: Python then has None in their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Kept open for as long as the process lives, and most likely under the very number that was closed.
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def _complain(message: str, hint: str) -> None:
    say(f"geoinfer: {_one_line(message)}")
    if hint:
        say(f"  {_one_line(hint)}")


def _one_line(text: str) -> str:
    """The same text with line ends and control characters, which file names may hold, spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
