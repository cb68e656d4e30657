"""A lock on an output: two processes that write the same one would spoil it for both."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Final

from geoinfer.errors import OutputError

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs on one output are then the user's own affair
    fcntl = None  # type: ignore[assignment]
_LOCKS: Final = fcntl is not None

_ATTEMPTS: Final = 10
_HOLDER_BYTES: Final = 4096
_COMMAND_CHARACTERS: Final = 200


class OutputLock:
    """A file that one process at a time holds; a context manager that takes it, and takes it away when it ends."""

    def __init__(self, path: Path, output: Path, *, option: str = "--output") -> None:
        """Nothing is taken yet.

        Args:
            path: the lock's file, in a folder that is made if need be.
            output: what it is for.
            option: of the command line, by which another output is named.
        """
        self._path, self._output, self._option = path, output, option
        self._file: FileIO | None = None

    def take(self) -> None:
        """Takes the lock.

        Raises:
            OutputError: another process holds it; the message names it.
            OSError: the file cannot be made.
        """
        for attempt in range(_ATTEMPTS):
            self._path.parent.mkdir(exist_ok=True)
            try:
                self._file = self._path.open("a+b", buffering=0)
                self._lock(self._file)
                if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                    break
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
            # Who held it ended between our steps and took the file away, and with it what we locked: once more.
            self.release()
        assert self._file is not None
        with contextlib.suppress(OSError):  # who holds it is good to know, no more
            self._file.truncate(0)
            self._file.write(_this_process())

    def release(self) -> None:
        """Gives the lock back; its file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> OutputLock:
        self.take()
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Gives the lock back and takes its file away."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        self.release()

    def _lock(self, file: FileIO) -> None:
        if not _LOCKS:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder, more = _named(file.read(_HOLDER_BYTES))
            self.release()
            raise OutputError(
                f"{self._output}: {holder} is writing it{more}",
                hint=f"wait for it, stop it, or choose another {self._option}",
            ) from error
        except OSError:
            return  # a file system without locks: two runs on one output are then the user's own affair


def _this_process() -> bytes:
    """One line of JSON: who holds the lock, since when, and what for."""
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    if program == "__main__.py":  # python -m NAME
        program = os.path.basename(os.path.dirname(os.path.abspath(sys.argv[0])))
    command = shlex.join([program, *sys.argv[1:]]) if program else ""
    if len(command) > _COMMAND_CHARACTERS:
        command = command[: _COMMAND_CHARACTERS - 3] + "..."
    holder = {
        "process": os.getpid(),
        "host": os.uname().nodename if hasattr(os, "uname") else "this machine",
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": command,
    }
    return (json.dumps(holder) + "\n").encode()


def _named(content: bytes) -> tuple[str, str]:
    """Words for the holder and a clause with the rest; who has just taken the lock may not have said yet."""
    try:
        holder = json.loads(content)
        name = f"process {int(holder['process'])}"
        more = f" on {holder['host']} since {holder['since']}" + (f": {holder['command']}" if holder["command"] else "")
    except (ValueError, KeyError, TypeError):
        return "another process", ""
    return name, more
