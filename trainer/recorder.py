"""Everything that a run tells of itself while it goes on, in one place: files, events, curves and the terminal."""

from __future__ import annotations

import contextlib
import csv
from typing import TYPE_CHECKING, Any, Self

from trainer.curves import draw_curves
from trainer.events import EventWriter
from trainer.metrics import EPOCH, STEP, MetricsFile, unwritable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trainer.data.loader import BadPhoto
    from trainer.progress import Progress
    from trainer.recipe import Recipe
    from trainer.run_folder import RunFolder


class Recorder:
    """Writes and shows the rows of a run. A context manager; does nothing on ranks that do not write."""

    def __init__(self, recipe: Recipe, folder: RunFolder, progress: Progress, *, writing: bool) -> None:
        labels = dict.fromkeys(loss.label for stage in recipe.stages for loss in stage.losses)
        self._epochs = {stage.name: stage.epochs for stage in recipe.stages}
        self._metrics = MetricsFile(folder.metrics, labels)
        self._events = EventWriter(folder.tensorboard)
        self._bad = BadPhotos(folder.bad_photos)
        self._folder = folder
        self._progress = progress
        self._writing = writing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        # Each row was written when it came: what a full disk refuses now was refused, and said, before.
        for file in (self._metrics, self._events):
            with contextlib.suppress(OSError):
                file.close()

    @property
    def bad_photos(self) -> int:
        """How many photos could not be read so far, each counted once."""
        return len(self._bad)

    def open(self, *, steps: int, epochs: int) -> None:
        """Begins, or goes on after a checkpoint of so many steps and epochs.

        Raises:
            InterruptedRunError: a file cannot be written.
        """
        if self._writing:
            self._metrics.open(steps=steps, epochs=epochs)
            self._events.open(steps)

    def epoch_started(self, stage: str, epoch: int, *, steps: int, done: int) -> None:
        """Of an epoch, from 1, `done` of `steps` were taken before."""
        self._progress.epoch_started(f"{stage}, epoch {epoch} of {self._epochs[stage]}", steps, done)

    def step(self, row: dict[str, Any], bad: Iterable[BadPhoto]) -> None:
        """After a step: columns of `metrics.csv`, and the photos of its batch that could not be read.

        Raises:
            InterruptedRunError: a file cannot be written.
        """
        if not self._writing:
            return
        self._add(bad)
        self._metrics.write({"event": STEP} | row)
        self._events.step(row)
        self._progress.stepped(row["loss"], row["images"], row["bad_images"], row["memory_mib"])

    def epoch(self, row: dict[str, Any], bad: Iterable[BadPhoto], *, best: bool) -> None:
        """After an epoch and its validation.

        Raises:
            InterruptedRunError: a file cannot be written.
        """
        if not self._writing:
            return
        self._add(bad)
        self._metrics.write({"event": EPOCH} | row)
        self._events.epoch(row)
        self._progress.epoch_ended(row, best=best, bad=len(self._bad))
        try:
            draw_curves(self._folder.metrics, self._folder.curves)
        except OSError as error:
            raise unwritable(self._folder.curves, error) from error

    def _add(self, bad: Iterable[BadPhoto]) -> None:
        photos = list(bad)
        if photos and not len(self._bad):
            # At once, and once: whether it is one photo or a disk that is gone, the user wants to know early.
            self._progress.say(f"{photos[0].id} cannot be read: {photos[0].message}; it is left out, as others will be")
        self._bad.add(photos)


class BadPhotos:
    """`bad_photos.csv`: each photo once, however often it was met."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[str] = set()
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                self._seen.update(row["id"] for row in csv.DictReader(file))

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, photos: Iterable[BadPhoto]) -> None:
        """Writes those that are new."""
        new = {photo.id: photo for photo in photos if photo.id not in self._seen}
        if not new:
            return
        try:
            begun = self._path.exists()
            with self._path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if not begun:
                    writer.writerow(("id", "code", "message"))
                writer.writerows((photo.id, photo.code, photo.message) for photo in new.values())
        except OSError as error:
            raise unwritable(self._path, error) from error
        self._seen.update(new)
