"""The `geoinfer` command. One module a sub-command; each imports what is heavy only when it runs."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

import geoinfer
from geoinfer.cli.console import say
from geoinfer.cli.interrupts import ignore_interrupts, interrupts_end_the_process
from geoinfer.cli.start import started, starting
from geoinfer.errors import EXIT_INTERRUPTED, EXIT_OK, GeoInferError

if TYPE_CHECKING:
    from collections.abc import Iterable

EXIT_BUG = 70
"""An error that geoinfer did not foresee (EX_SOFTWARE of sysexits.h)."""

_COMMANDS: Final[dict[str, str]] = {
    "predict": "Locate photos.",
    "evaluate": "Measure how far off predictions are.",
    "tune": "Find out how a model runs fastest on this CPU.",
    "info": "Say what a bundle or an ONNX model is.",
    "doctor": "Say what is installed, what clashes and what is missing.",
    "index": "Build, tune and look at reference indexes.",
    "engine": "Build and look at TensorRT engines, for NVIDIA GPUs.",
}
"""Each has a module of its name with a function, or a group called `app`, and is listed with these words."""

_SAY_WHEN_STARTED: Final = ("predict",)
"""Commands that say themselves when their imports are over and all is open."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"geoinfer {geoinfer.__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in _SAY_WHEN_STARTED:
        started()


def _app(names: Iterable[str]) -> typer.Typer:
    """The command with these sub-commands; to look at the parameters of all takes as long as importing NumPy."""
    made = typer.Typer(
        name="geoinfer",
        help="Tell where photos were taken, from their pixels alone.",
        epilog="Start with: geoinfer predict ./photos",
        no_args_is_help=True,
        add_completion=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    made.callback()(_root)
    for name in names:
        module = importlib.import_module(f"geoinfer.cli.{name}")
        if hasattr(module, "app"):
            made.add_typer(module.app, name=name, short_help=_COMMANDS[name])
        else:
            made.command(name, short_help=_COMMANDS[name])(getattr(module, name))
    return made


def __getattr__(name: str) -> Any:
    if name == "app":  # the whole of it, for those who look at it
        return _app(_COMMANDS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _wanted() -> Iterable[str]:
    """The sub-command that is asked for; all where it is the list of them that is, or what a shell may complete."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    return (first,) if first in _COMMANDS and "_GEOINFER_COMPLETE" not in os.environ else _COMMANDS


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
    starting()
    try:
        _app(_wanted())(prog_name="geoinfer")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_OK
    except GeoInferError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted", "")
        return EXIT_INTERRUPTED
    except Exception as error:
        if _out_of_memory(error):
            _complain("there is not enough memory", "end other programs, or use a machine or a limit with more")
            return EXIT_INTERRUPTED
        if os.environ.get("GEOINFER_DEBUG"):
            raise
        text = " ".join(str(error).split())[:500]
        _complain(
            f"unexpected {type(error).__name__}: {text}",
            "this is a fault of geoinfer: please report it with the output of GEOINFER_DEBUG=1 and this command",
        )
        return EXIT_BUG
    finally:
        started()
    return EXIT_OK


def _out_of_memory(error: Exception) -> bool:
    """Whether that is what it means; a library that could not be mapped and a thread that could not start say other."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("failed to map segment from shared object", "can't start new thread", "cannot allocate memory")
    return isinstance(error, (ImportError, RuntimeError)) and any(word in str(error).lower() for word in words)


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
