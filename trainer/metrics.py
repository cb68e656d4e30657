"""`metrics.csv`: what a run came to, step by step and epoch by epoch."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any, Final, Self

from geoinfer.errors import InterruptedRunError
from geoinfer.integrity import atomic_file
from geoinfer.metrics import RADII_KM as ALL_RADII_KM

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

RADII_KM: Final = ALL_RADII_KM[1:]
"""Without the street's: those of the founding paper."""

STEP, EPOCH = "step", "epoch"

_BEFORE: Final = ("event", "stage", "epoch", "step", "loss")
_AFTER: Final = (
    "lr_head", "lr_backbone", "gradient_norm", "images", "bad_images", "images_per_second", "waiting_share",
    "memory_mib", "validation_loss", "best_k", "median_km", "mean_km",
    *(f"accuracy_{radius}_km" for radius in RADII_KM), "geoscore",
)  # fmt: skip


class MetricsFile:
    """`metrics.csv`: rows of steps and epochs, numbers as Python writes them, so that they read back exactly."""

    def __init__(self, path: Path, losses: Iterable[str]) -> None:
        """`losses`: names of the losses of all stages, which have a column each."""
        self.columns = (*_BEFORE, *losses, *_AFTER)
        self._path = path
        self._file: io.TextIOWrapper | None = None

    def open(self, *, steps: int, epochs: int) -> Self:
        """Begins, or goes on after a checkpoint: of what a run wrote, the rows of so many steps and epochs are kept."""
        kept = list(self._rows(steps, epochs)) if steps else []
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        try:
            with atomic_file(self._path) as file:
                file.write(text.getvalue().encode())
            self._file = self._path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise unwritable(self._path, error) from error
        return self

    def _rows(self, steps: int, epochs: int) -> Iterator[dict[str, str]]:
        ended = 0
        for row in read_metrics(self._path):
            # A crash of the machine may have left a row cut short, or a stretch of nothing.
            if set(row) != set(self.columns) or None in row.values() or not row["step"].isdecimal():
                continue
            ended += row["event"] == EPOCH
            if int(row["step"]) <= steps and (row["event"] == STEP or ended <= epochs):
                yield row

    def write(self, values: dict[str, Any]) -> None:
        """Appends a row; columns that are left out stay empty, and so does what is no number."""
        assert self._file is not None
        cells = {key: "" if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}
        try:
            csv.DictWriter(self._file, self.columns, lineterminator="\n").writerow(cells)
            self._file.flush()
        except OSError as error:
            raise unwritable(self._path, error) from error

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, str]]:
    """Yields the rows of a `metrics.csv`; none where there is no file."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            yield from csv.DictReader(file)


def unwritable(path: Path, error: OSError) -> InterruptedRunError:
    """A file of a run that cannot be written: the run stops, and goes on when there is room."""
    return InterruptedRunError(
        f"{path}: cannot be written: {(error.strerror or str(error)).lower()}",
        hint="make room and run the same command again: it goes on from the last checkpoint",
    )
