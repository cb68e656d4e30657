"""What a training run shows: a live bar on a terminal, a plain line now and then elsewhere, on stderr."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Self

from geoinfer.cli.console import duration, kilometres, say

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN_SECONDS: Final = 30.0
_SMOOTHING: Final = 0.98
_BAR_FROM_COLUMNS: Final = 110


class Progress:
    """Renders a run; a context manager. Silent on all ranks but the first."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._began = self._last_line = time.monotonic()
        self._total = self._done = self._images = self._bad = 0
        self._loss = math.nan
        self._name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def say(self, line: str) -> None:
        """One line, above the bar where there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            say(line)

    def epoch_started(self, name: str, steps: int, done: int) -> None:
        """`name` as `contrast, epoch 2 of 15`; `done` of its `steps` were taken before."""
        self._stop()
        self._name, self._total, self._done = name, steps, done
        self._images = self._bad = 0
        self._loss = math.nan
        self._began = self._last_line = time.monotonic()
        if not self._quiet and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            self._start(done)

    def stepped(self, loss: float, images: int, bad: int, memory_mib: float) -> None:
        """After each step."""
        self._done += 1
        self._images += images
        self._bad += bad
        self._loss = loss if math.isnan(self._loss) else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        seconds = max(time.monotonic() - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=self._done,
                loss=f"loss {self._loss:.4f}",
                rate=f"{self._images / seconds:.0f}/s",
                memory=_mib(memory_mib),
                bad=f"{self._bad} bad" if self._bad else "",
            )
        elif not self._quiet and time.monotonic() - self._last_line >= _PLAIN_SECONDS:
            self._last_line = time.monotonic()
            left = seconds / self._images * (self._total - self._done) * images if self._images else 0.0
            say(
                f"{self._name}: step {self._done} of {self._total}, loss {self._loss:.4f}, "
                f"{self._images / seconds:.0f} images/s, {duration(left)} left, {_mib(memory_mib)}"
                + (f", {self._bad} bad" if self._bad else "")
            )

    def epoch_ended(self, row: Mapping[str, Any], *, best: bool, bad: int = 0) -> None:
        """One line of what an epoch came to; `bad` photos of the run could not be read so far."""
        self._stop()
        unread = f"; {bad:,} unread so far" if bad else ""
        self.say(f"{self._name}: {epoch_text(row)}{', the best so far' if best else ''}{unread}")

    def _start(self, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        console = Console(stderr=True)
        fields = [TextColumn("{task.fields[" + name + "]}") for name in ("loss", "rate", "memory", "bad")]
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            # Numbers say more than a bar, and rich cuts columns off where there is no room for all.
            *([BarColumn(bar_width=20)] if console.width >= _BAR_FROM_COLUMNS else []),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            *fields,
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(
            self._name, total=self._total, completed=done, loss="", rate="", memory="", bad=""
        )
        self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def epoch_text(row: Mapping[str, Any]) -> str:
    """`loss 3.81, validation 3.95; median 812 km (k 5), 2.1/14.0/48.2/77.5 % within 25/200/750/2500 km`."""
    text = f"loss {row['loss']:.4f}"
    if "median_km" not in row:
        return text
    if not math.isnan(row["validation_loss"]):
        text += f", validation {row['validation_loss']:.4f}"
    how = f" (k {row['best_k']})" if row["best_k"] else ""
    radii = [key.split("_")[1] for key in row if key.startswith("accuracy_")]
    shares = "/".join(f"{row[f'accuracy_{radius}_km']:.1f}" for radius in radii)
    return f"{text}; median {kilometres(row['median_km'])}{how}, {shares} % within {'/'.join(radii)} km"


def _mib(memory: float) -> str:
    return f"{memory / 1024:.1f} GiB" if memory >= 1024 else f"{memory:.0f} MiB"
