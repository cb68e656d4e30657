"""A lock on an output: two processes that write the same one would spoil it for both."""

from __future__ import annotations

import contextlib
import os
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
            self._file.write(f"process {os.getpid()}\n".encode())

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
            holder = file.read(64).decode(errors="replace").strip() or "another process"
            self.release()
            raise OutputError(
                f"{self._output}: {holder} is writing it",
                hint=f"wait for it, stop it, or choose another {self._option}",
            ) from error
        except OSError:
            return  # a file system without locks: two runs on one output are then the user's own affair
