"""Ctrl-C and SIGTERM ask a run to stop after the step it is in, when everything fits together and can be saved."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any, Final, Self

from geoinfer.errors import EXIT_INTERRUPTED

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context manager within which the first signal sets `requested`, and a second ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: Any) -> None:
        if self.requested:
            with contextlib.suppress(OSError):
                os.write(2, b"trainer: stopped at once; the last checkpoint is whole\n")
            os._exit(EXIT_INTERRUPTED)
        self.requested = True
        with contextlib.suppress(OSError):
            os.write(2, b"trainer: stopping after this step (once more to stop at once)\n")
