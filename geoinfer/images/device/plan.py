"""How one picture is resized: its two passes, and the memory that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.images.device.resample import Taps, rows_first, taps
from geoinfer.images.resize import Decoded, kept_box

if TYPE_CHECKING:
    from geoinfer.images.device.frame import Frame
    from geoinfer.images.preprocessing import Preprocessing

CHANNELS: Final = 3

PASS: Final = np.dtype(
    [
        ("source", np.uint64),
        ("target", np.uint64),
        ("first", np.uint64),
        ("count", np.uint64),
        ("weights", np.uint64),
        ("source_pitch", np.int64),
        ("target_pitch", np.int64),
        ("size", np.int32),
        ("lines", np.int32),
        ("orientation", np.int32),
        ("unused", np.int32),
    ]
)
"""`Pass` of resample.cu, as it lies in memory."""


@dataclass(frozen=True, slots=True)
class Resize:
    """What becomes of a decoded picture.

    Attributes:
        frame: the picture.
        size: side of the result, in pixels.
        across: what the pixels of a row are made of.
        down: what those of a column are made of.
        rows_first: whether rows are resampled before columns.
    """

    frame: Frame
    size: int
    across: Taps
    down: Taps
    rows_first: bool

    @property
    def between(self) -> tuple[int, int]:
        """First and end of the rows (columns, if those come first) of the source that the second pass needs."""
        return (self.down if self.rows_first else self.across).reach

    @property
    def between_pitch(self) -> int:
        """Bytes of a row between the passes."""
        begin, end = self.between
        return CHANNELS * (self.size if self.rows_first else end - begin)

    @property
    def between_bytes(self) -> int:
        """Of the picture between the passes."""
        begin, end = self.between
        return self.between_pitch * (end - begin if self.rows_first else self.size)

    def passes(
        self, source: int, pitch: int, between: int, target: int, tables: tuple[Table, Table]
    ) -> tuple[Pass, Pass]:
        """The two passes.

        Args:
            source: address of the decoded picture.
            pitch: bytes from one of its rows to the next.
            between: address of `between_bytes` bytes.
            target: address of the upright (size, size, 3) result.
            tables: where `across` and `down` lie.
        """
        begin, end = self.between
        across, down = tables
        middle, result, turned = self.between_pitch, CHANNELS * self.size, self.frame.orientation
        # What lies between begins with row (or column) `begin` of the source, by whose numbers the tables go.
        if self.rows_first:
            first = (source + begin * pitch, between, *across, pitch, middle, self.size, end - begin, 1, 0)
            second = (between - begin * middle, target, *down, middle, result, self.size, result, turned, 0)
        else:
            first = (source + begin * CHANNELS, between, *down, pitch, middle, self.size, middle, 1, 0)
            second = (between - begin * CHANNELS, target, *across, middle, result, self.size, self.size, turned, 0)
        return first, second


Table = tuple[int, int, int]
"""Addresses of `first`, `count` and `weights` of a `Taps`."""

Pass = tuple[int, int, int, int, int, int, int, int, int, int, int]
"""The values of a record of `PASS`, in their order."""


@dataclass(frozen=True, slots=True)
class _Size:
    width: int
    height: int


def plan_resize(frame: Frame, preprocessing: Preprocessing) -> Resize:
    """Works out what the model sees of a picture that is decoded whole, and what each of its pixels is made of."""
    whole = (frame.width, frame.height)
    left, top, right, bottom = kept_box(Decoded(_Size(*whole), frame.orientation, whole), preprocessing)  # type: ignore[arg-type]
    size, how = preprocessing.size, preprocessing.interpolation
    return Resize(
        frame,
        size,
        taps(frame.width, left, right, size, how),
        taps(frame.height, top, bottom, size, how),
        rows_first(frame.width, frame.height, size),
    )
