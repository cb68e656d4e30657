"""What a run shows while it goes on: a live bar on a terminal, a plain line now and then elsewhere, on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

import typer

from geoinfer.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from geoinfer.backends import Embedder
    from geoinfer.index.device import IndexDevice

_PLAIN_SECONDS: Final = 10.0


def say(line: str) -> None:
    """One line on standard error. Nothing is lost, and no run ends, when nobody can read it any more."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def answer(line: str) -> None:
    """One line on standard output. A reader that went away, as `head` does, has what it wanted.

    Raises:
        OutputError: it cannot be written for another reason, such as a full disk.
    """
    try:
        typer.echo(line)
    except OSError as error:
        # What is left in its buffer must not fail again when Python closes it.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"standard output: cannot be written: {reason}") from error


class Console:
    """A `RunObserver` that renders. A context manager."""

    def __init__(self, *, quiet: bool, count: Callable[[], int] | None = None, doing: str = "locating") -> None:
        """`count` says how many inputs there are; it is called in a thread of its own, as it may take a while."""
        self._quiet = quiet
        self._doing = doing
        self._count = count
        self._lock = threading.Lock()
        self._total: int | None = None
        self._done = self._failed = self._resumed = 0
        self._began = self._last_line = time.monotonic()
        self._step = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_bar()

    def say(self, line: str) -> None:
        """One line, unless quiet."""
        if not self._quiet:
            say(line)

    def started(self, resumed: int, failed: int) -> None:
        """See `RunObserver`."""
        if resumed:
            self.say(f"resuming after {resumed} inputs that are done")
        self._done = self._resumed = resumed
        self._failed = failed
        self._began = self._last_line = time.monotonic()
        if self._quiet:
            return
        if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            self._start_bar()
        if self._count is not None:
            threading.Thread(target=self._count_inputs, daemon=True, name="geoinfer-count").start()

    def progressed(self, inputs: int, failed: int) -> None:
        """See `RunObserver`."""
        with self._lock:
            self._done += inputs
            self._failed += failed
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done, total=self._total, failed=self._failed)
            elif not self._quiet and time.monotonic() - self._last_line >= _PLAIN_SECONDS:
                self._last_line = time.monotonic()
                self.say(self._plain_line())

    def writing(self) -> None:
        """See `RunObserver`."""
        self._stop_bar()

    def step(self, name: str, done: float) -> None:
        """See `geoinfer.batch.build.BuildObserver`: a line when a step begins, and now and then while it takes long."""
        now = time.monotonic()
        if name != self._step:
            self._step, self._last_line = name, now
            self._stop_bar()
            self.say(name)
        elif now - self._last_line >= _PLAIN_SECONDS:
            self._last_line = now
            self.say(f"{name}, {done:.0%}")

    def _plain_line(self) -> str:
        rate = (self._done - self._resumed) / max(time.monotonic() - self._began, 1e-9)
        parts = [f"{self._done} photos" if self._total is None else f"{self._done} of {self._total} photos"]
        parts.append(f"{rate:.1f}/s")
        if self._total is not None and rate > 0:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        parts.append(f"{self._failed} errors")
        return ", ".join(parts)

    def _count_inputs(self) -> None:
        assert self._count is not None
        try:
            total = self._count()
        except Exception:  # noqa: BLE001 - only an estimate of the time left is lost; the run itself says what is wrong
            return
        with self._lock:
            self._total = total
            if self._bar is not None:
                self._bar.update(self._task, total=total)

    def _start_bar(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        began, resumed = self._began, self._resumed

        class Rate(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(f"{(task.completed - resumed) / max(time.monotonic() - began, 1e-9):.1f}/s")

        class Left(TimeRemainingColumn):
            def render(self, task: Any) -> Text:
                return Text("") if task.total is None else Text("left ") + super().render(task)

        self._bar = Progress(
            TextColumn(self._doing),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            Left(),
            TextColumn("{task.fields[failed]} errors"),
            console=RichConsole(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, completed=self._done, failed=self._failed)
        self._bar.start()

    def _stop_bar(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None


def device_line(console: Console, embedder: Embedder) -> None:
    """Which device, and why; said even when quiet where a GPU was passed over: that is never a silent switch."""
    line = f"device: {embedder.device} ({embedder.device_reason})"
    if embedder.fell_back:
        say(line)
    else:
        console.say(line)


def index_device_line(console: Console, device: IndexDevice) -> None:
    """Where the index is searched, and why; said even when quiet where a GPU was chosen and could not be used.

    Where there is no GPU, and where the user said, there is nothing to tell.
    """
    line = f"index on: {device.name} ({device.reason})"
    if device.fell_back:
        say(line)
    elif device.chosen:
        console.say(line)


def failed_line(count: int, limit: str) -> str:
    """Why the exit code is 1."""
    return f"geoinfer: {count} {'input' if count == 1 else 'inputs'} failed, more than --max-errors {limit}"


def error_line(report: Path, failures: dict[str, int]) -> str:
    """Where the error report is and what is in it: `predictions.errors.csv (3 truncated, 1 missing)`."""
    return f"{report} ({', '.join(f'{count} {code}' for code, count in failures.items()) or 'none'})"


def checksums(files: dict[str, dict[str, int]], *, verified: bool) -> str:
    """What is known of the files of an index or a bundle that opened without complaint."""
    from geoinfer.bundle import HASHED_AT_OPEN

    unread = sum(file["bytes"] > HASHED_AT_OPEN for file in files.values())
    if verified or not unread:
        return "good"
    return f"good, but of {unread} large {'file' if unread == 1 else 'files'} only the size; --verify reads all"


def kilometres(distance: float) -> str:
    """A distance for people: `0.4 km`, `83 km`, `7,112 km`."""
    return f"{distance:.1f} km" if distance < 10 else f"{distance:,.0f} km"


def duration(seconds: float) -> str:
    """A span of time for people: `0.8 s`, `42 s`, `3 min`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
