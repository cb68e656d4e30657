"""TensorRT's log: sent to Python's, and searched for what went wrong."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

_log = logging.getLogger(__name__)

# What every call says on a machine without a GPU, whatever went wrong; and where in TensorRT's sources.
_NOISE: Final = re.compile(r"^Invalid Node|catchCudaError|ModelImporter\.cpp:\d+: ---|Unexpected exception")
_PLACE: Final = re.compile(r"^\[[\w./:]+::\d+\] ")
_SOURCES: Final = re.compile(r"\s*\.?\s*In [\w:~<>]+ at /\S+\)?\s*$")


def make_logger(api: Any) -> Any:
    """TensorRT's log, sent to Python's; it is quiet, and remembers what went wrong.

    Args:
        api: `Flavor.api`.

    Returns:
        An `ILogger` with a method `fault()`: the first thing that went wrong, in one line, or empty.
    """

    class Logger(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.faults: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = {0: logging.ERROR, 1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO}.get(
                int(severity), logging.DEBUG
            )
            # Never above DEBUG: what matters to a reader is said in a sentence, once.
            _log.debug("%s: %s", logging.getLevelName(level), message)
            if level == logging.ERROR:
                self.faults.append(message)

        def fault(self) -> str:
            return tidied(self.faults)

    return Logger()


def tidied(messages: list[str]) -> str:
    """The first of TensorRT's messages that says something, in one line without places in its sources."""
    for message in messages:
        lines = [line for line in message.splitlines() if line.strip() and not _NOISE.search(line)]
        if lines:
            return _SOURCES.sub("", _PLACE.sub("", " ".join(lines[0].split())))[:300].rstrip(" (.")
    return ""
