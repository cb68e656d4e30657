"""Decodes photos in processes of their own, for formats whose decoders hold Python's lock or can end the process.

Pillow's JPEG 2000 decoder lets no other thread run meanwhile, and so does much of HEIC's; and a damaged HEIC can crash
the library that reads it. In a process of its own neither costs more than that one photo. Processes are started when
the first such photo comes and ended when none came for a while.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from geoinfer.errors import ImageError
from geoinfer.images.decode_worker import READY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.images.preprocessing import Preprocessing

ISOLATED_KINDS: Final = frozenset(("heif", "jpeg2000"))
"""Formats that are decoded in processes of their own, as `geoinfer.images.read.sniff` names them."""

DECODER_DIED: Final = "decoder_died"
"""Error code of a photo whose decoding ended the process that did it, or never ended."""

_CPU_SECONDS: Final = 120.0
"""Of one photo. The largest that is allowed takes some ten; a busy or stopped machine does not count against it."""

_SECONDS: Final = 600.0
"""Of one photo by the clock, for a decoder that waits for something that never comes."""

_IDLE_SECONDS: Final = 30.0
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 2.0
_STARTS_THAT_MAY_FAIL: Final = 3
_ATTEMPTS: Final = 2
_KEPT_BYTES: Final = 16 << 20

# The module search path is the parent's: what starts Python in the child may not be what started it here.
_PROGRAM: Final = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "from geoinfer.images.decode_worker import main; main(**given)"
)


class DecodePool:
    """Processes that decode photos; thread safe; a context manager.

    A process that dies takes nobody with it: its photo is given to another one, and fails when that dies too.
    """

    def __init__(
        self,
        workers: int,
        *,
        cpu_seconds: float = _CPU_SECONDS,
        seconds: float = _SECONDS,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        """Starts nothing yet.

        Args:
            workers: how many processes there may be.
            cpu_seconds: processor time that one photo may take.
            seconds: time by the clock that one photo may take.
            idle_seconds: after how long without a photo a process is ended.
        """
        self._most = workers
        self._limits = (cpu_seconds, seconds)
        self._idle_seconds = idle_seconds
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._condition = threading.Condition()
        self._idle: list[_Process] = []  # the one that was used last stands last
        self._busy: set[_Process] = set()
        self._starting = self._failed_starts = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes that are there now."""
        with self._condition:
            return sorted(process.pid for process in (*self._idle, *self._busy))

    def load(self, data: bytes, kind: str, preprocessing: Preprocessing, out: NDArray[np.uint8]) -> bool:
        """Decodes one photo into `out`; waits for a process where all are at work.

        Args:
            data: the whole file.
            kind: its format, one of `ISOLATED_KINDS`.
            preprocessing: what the model wants.
            out: (size, size, 3) uint8.

        Returns:
            False where the system starts no process or shares no memory with it; then nothing was done.

        Raises:
            ImageError: as `geoinfer.images.decode_pixels`, or stage `decode`, code `decoder_died`.
        """
        ended = ""
        for _ in range(_ATTEMPTS):
            process = self._take()
            if process is None:
                return False
            healthy = False
            try:
                process.decode(data, kind, preprocessing, out)
                healthy = True
            except ImageError as error:
                healthy = True
                error.size_bytes = len(data)
                raise
            except _DiedError as error:
                ended = str(error)
                if error.hopeless or self._closed:
                    break
            except OSError:  # no room in the shared memory
                return False
            else:
                return True
            finally:
                self._give_back(process, healthy=healthy)
        raise ImageError(
            "decode",
            DECODER_DIED,
            f"the decoder of this {kind.upper()} {ended}",
            hint="export the photo as JPEG",
            size_bytes=len(data),
        )

    def end_idle(self) -> None:
        """Ends the processes that had nothing to do for a while; costs nothing where there are none."""
        if not self._idle:
            return
        latest = time.monotonic() - self._idle_seconds
        with self._condition:
            old = [process for process in self._idle if process.idle_since < latest]
            self._idle = [process for process in self._idle if process.idle_since >= latest]
        for process in old:
            process.end()

    def close(self) -> None:
        """Ends all processes, those at work as well."""
        with self._condition:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = [*self._busy]
            self._condition.notify_all()
        for process in busy:
            process.stop()
        for process in idle:
            process.end()

    def _take(self) -> _Process | None:
        with self._condition:
            while True:
                if self._closed or self._failed_starts >= _STARTS_THAT_MAY_FAIL:
                    return None
                while self._idle:
                    process = self._idle.pop()
                    if process.alive:
                        self._busy.add(process)
                        return process
                    process.kill()
                if len(self._busy) + self._starting < self._most:
                    break
                self._condition.wait()
            self._starting += 1
        started: _Process | None = None
        try:
            started = _Process(self._cores, *self._limits)
            started.wait_until_ready()
        except (OSError, _DiedError):
            if started is not None:
                started.kill()
            started = None
        finally:
            with self._condition:
                self._starting -= 1
                self._failed_starts = self._failed_starts + 1 if started is None else 0
                if started is not None:
                    self._busy.add(started)
                self._condition.notify_all()
        return started

    def _give_back(self, process: _Process, *, healthy: bool) -> None:
        if not healthy:
            process.kill()
        with self._condition:
            self._busy.discard(process)
            keep = healthy and not self._closed
            if keep:
                process.idle_since = time.monotonic()
                self._idle.append(process)
            self._condition.notify_all()
        if healthy and not keep:
            process.end()


class _DiedError(Exception):
    """A process ended, or had to be, instead of answering; `hopeless`: another one would do the same."""

    def __init__(self, how: str, *, hopeless: bool = False) -> None:
        super().__init__(how)
        self.hopeless = hopeless


class _Process:
    """One process that decodes, and the memory that it shares with this one; used by one thread at a time."""

    def __init__(self, cores: list[int], cpu_seconds: float, seconds: float) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise _DiedError("there is no Python to start")
        self._cpu_seconds, self._seconds = cpu_seconds, seconds
        self._unread = b""
        self.idle_since = 0.0
        # Without a name, it is gone when the last of both processes is, whatever ends them.
        self._memory = _shared_memory()
        home = str(Path(__file__).parents[2])
        given = {
            "path": [*sys.path, home],
            "memory": self._memory,
            "cores": cores,
            "cpu_seconds": cpu_seconds,
            "seconds": seconds + _END_SECONDS,
        }
        try:
            self._process = subprocess.Popen(  # noqa: S603 - Python itself, on what this file says
                [sys.executable, "-I", "-S", "-c", _PROGRAM, json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pass_fds=(self._memory,),
                start_new_session=True,  # a Ctrl-C is the parent's to act upon
            )
        except BaseException:
            os.close(self._memory)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        if self._read_line(_START_SECONDS) != READY:
            raise _DiedError("did not start")

    def decode(self, data: bytes, kind: str, preprocessing: Preprocessing, out: NDArray[np.uint8]) -> None:
        """Raises ImageError of the photo, _DiedError of the process, or OSError where memory cannot be shared."""
        _write_whole(self._memory, data)
        request = {"kind": kind, "bytes": len(data), "preprocessing": preprocessing.as_dict()}
        with suppress(BrokenPipeError):  # then there is no answer either
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._read_line(self._seconds))
        if answer:
            raise ImageError(**answer)
        out[...] = np.frombuffer(os.pread(self._memory, out.nbytes, 0), np.uint8).reshape(out.shape)
        if len(data) > _KEPT_BYTES:
            os.ftruncate(self._memory, 0)

    def _read_line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        source = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(source, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise _DiedError(f"had not ended after {seconds:g} seconds", hopeless=True)
            more = os.read(source, 65536)
            if not more:
                raise self._died()
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line + b"\n"

    def _died(self) -> _DiedError:
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return _DiedError("closed its connection")
        if code == -signal.SIGPROF:
            return _DiedError(f"had not ended after {self._cpu_seconds:g} seconds of processor time", hopeless=True)
        if code < 0:
            return _DiedError(f"was ended by the system ({signal.Signals(-code).name}), and so was a second one")
        return _DiedError(f"ended with code {code}, and so did a second one")

    def end(self) -> None:
        """Lets it end by itself, and ends it where it does not."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self.kill()

    def stop(self) -> None:
        """Ends it at once; may be called while another thread waits for its answer, which then sees that it ended."""
        with suppress(OSError):
            self._process.kill()

    def kill(self) -> None:
        """Ends it at once and gives back what belongs to it; called by the thread that had it, or of an idle one."""
        self.stop()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it goes when that lets go of it
            self._process.wait(_END_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1


def _shared_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("geoinfer-photo")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write_whole(descriptor: int, data: bytes) -> None:
    rest, done = memoryview(data), 0
    while done < len(rest):
        done += os.pwrite(descriptor, rest[done:], done)
