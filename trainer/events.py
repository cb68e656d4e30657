"""The metrics as TensorBoard events.

They are written and flushed as they come. TensorBoard's own writer does it later, in a thread: what a killed run had
saved a checkpoint of could then be missing, and a full disk would be that thread's error.
"""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any, Final

from trainer.metrics import unwritable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NOT_PLOTTED: Final = frozenset(("event", "stage", "epoch", "step", "images"))
_FILE_VERSION: Final = "brain.Event:2"


class EventWriter:
    """Writes rows of `metrics.csv` as scalars, by step: `train/…` for steps, `epoch/…` for epochs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def open(self, step: int) -> None:
        """Begins, or goes on after a step: what was written of later ones is hidden by TensorBoard.

        Raises:
            InterruptedRunError: the file cannot be made.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        try:
            self._folder.mkdir(exist_ok=True)
            # TensorBoard reads the files of a folder in the order of their names.
            number = next(n for n in itertools.count() if not any(self._folder.glob(f"events.out.tfevents.{n:06d}.*")))
            path = self._folder / f"events.out.tfevents.{number:06d}.trainer"
            self._writer = RecordWriter(path.open("wb"))
        except OSError as error:
            raise unwritable(self._folder, error) from error
        self._write(Event(file_version=_FILE_VERSION, wall_time=time.time()))
        if step:
            begun = SessionLog(status=SessionLog.START)
            self._write(Event(step=step + 1, session_log=begun, wall_time=time.time()))

    def step(self, row: Mapping[str, Any]) -> None:
        """A row of a step.

        Raises:
            InterruptedRunError: it cannot be written.
        """
        self._scalars("train", row)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A row of an epoch.

        Raises:
            InterruptedRunError: it cannot be written.
        """
        self._scalars("epoch", row)

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, group: str, row: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for name, value in row.items()
            if name not in _NOT_PLOTTED and not math.isnan(value)
        ]
        self._write(Event(step=row["step"], summary=Summary(value=values), wall_time=time.time()))

    def _write(self, event: Any) -> None:
        try:
            self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise unwritable(self._folder, error) from error
