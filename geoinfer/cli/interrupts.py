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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interrupts_end_the_process() -> Iterator[None]:
    """Within the block, either signal prints one line and ends the process with 130. There is nothing to save yet."""
    with _handled_by(_end):
        yield


@contextlib.contextmanager
def interrupts_raise() -> Iterator[None]:
    """Within the block, either signal raises KeyboardInterrupt."""
    with _handled_by(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    before = [(number, signal.signal(number, handler)) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)


def _end(_number: int, _frame: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"geoinfer: interrupted\n")
    os._exit(EXIT_INTERRUPTED)
