"""What Ctrl-C and SIGTERM do: outside of a run they end the process at once, within one they are an exception.

Python's own way, an exception at whatever instruction comes next, is right only where somebody is prepared for it. In
the middle of an import it becomes an ImportError, or leaves an import lock behind that other threads wait for.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

from geoinfer.errors import EXIT_INTERRUPTED
from geoinfer.unfinished import undo_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_program = "geoinfer"


def interrupts_end_the_process(program: str | None = None) -> None:
    """From now on either signal prints one line and ends the process with 130: there is nothing to save.

    What is half written is removed first, see `geoinfer.unfinished`.

    Args:
        program: whose name the line begins with; as before if left out.
    """
    global _program
    _program = program or _program
    _handle_by(_end)


def ignore_interrupts() -> None:
    """From now on neither signal does anything."""
    _handle_by(signal.SIG_IGN)


@contextlib.contextmanager
def interrupts_raise() -> Iterator[None]:
    """Within the block, the first signal raises KeyboardInterrupt, and a second ends the process at once.

    What a run has made safe survives even that; an exception in the middle of winding up would not end well.
    """
    _handle_by(_raise_once)
    try:
        yield
    finally:
        interrupts_end_the_process()


def _handle_by(handler: Callable[[int, Any], Any] | signal.Handlers) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _raise_once(_number: int, _frame: Any) -> None:
    interrupts_end_the_process()
    raise KeyboardInterrupt


def _end(_number: int, _frame: Any) -> None:
    ignore_interrupts()  # a second one would stop the removal half-way
    undo_unfinished()
    with contextlib.suppress(OSError):
        os.write(2, f"{_program}: interrupted\n".encode())
    os._exit(EXIT_INTERRUPTED)
