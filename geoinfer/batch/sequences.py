"""Which photos were taken together: as the labels say, else by the time in their EXIF and their place.

Photos that follow one another within an hour and 50 km are of one sequence, whoever took them: better to leave out
a stranger as a photo's reference, when the index is calibrated, than a picture of the same scene.
"""

from __future__ import annotations

import math
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.geodesy import EARTH_RADIUS_KM, haversine_km

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NO_TIME: Final = int(np.iinfo(np.int64).min)
"""Stands for a time that is not known."""

_NAMED: Final = "taken together"
_EPOCH: Final = datetime(1970, 1, 1)
_SAME_OCCASION_SECONDS: Final = 3600
_SAME_OCCASION_KM: Final = 50.0
# Latitudes are cut into bands of this height: what is within 50 km lies in the same band or one beside it.
_BAND_DEG: Final = math.degrees(_SAME_OCCASION_KM / EARTH_RADIUS_KM) * 1.001


def as_seconds(taken_at: datetime | None) -> int:
    """Seconds from the start of 1970 by the camera's clock, or `NO_TIME`."""
    return NO_TIME if taken_at is None else round((taken_at - _EPOCH).total_seconds())


def sequence_numbers(taken_at: NDArray[np.int64], coordinates: NDArray[np.float64]) -> NDArray[np.int32]:
    """Numbers the occasions from 1, in the order in which they began.

    Args:
        taken_at: (n,) seconds, `NO_TIME` for a photo that belongs to no occasion.
        coordinates: (n, 2) degrees.

    Returns:
        (n,) int32; 0 where there is no time.
    """
    numbers = np.zeros(len(taken_at), np.int32)
    dated = np.flatnonzero(taken_at != NO_TIME)
    dated = dated[np.argsort(taken_at[dated], kind="stable")]
    # Several may go on at the same time, in several places: each is known by its latest photo, and is in that photo's
    # band, the one whose latest photo is the newest last.
    going_on: dict[int, deque[tuple[int, int, int]]] = {}
    count = 0
    for row in dated.tolist():
        taken = int(taken_at[row])
        band = math.floor(float(coordinates[row, 0]) / _BAND_DEG)
        found = _latest_near(going_on, band, taken, row, coordinates)
        if found is None:
            count += 1
            number = count
        else:
            of_band, occasion = found
            going_on[of_band].remove(occasion)
            number = occasion[2]
        numbers[row] = number
        going_on.setdefault(band, deque()).append((taken, row, number))
    return numbers


def _latest_near(
    going_on: dict[int, deque[tuple[int, int, int]]], band: int, taken: int, row: int, coordinates: NDArray[np.float64]
) -> tuple[int, tuple[int, int, int]] | None:
    """The occasion (and its band) whose latest photo, no more than an hour old and 50 km away, is the newest."""
    best: tuple[int, tuple[int, int, int]] | None = None
    for other in (band - 1, band, band + 1):
        occasions = going_on.get(other)
        if occasions is None:
            continue
        while occasions and taken - occasions[0][0] > _SAME_OCCASION_SECONDS:
            occasions.popleft()
        if not occasions:
            del going_on[other]
            continue
        distances = haversine_km(coordinates[[occasion[1] for occasion in occasions]], coordinates[row])
        near = np.flatnonzero(distances <= _SAME_OCCASION_KM)
        if len(near):
            occasion = occasions[int(near[-1])]
            # Time first; of photos of one second the one that was looked at last, which is the later row.
            if best is None or occasion[:2] > best[1][:2]:
                best = other, occasion
    return best


def named_sequences(known: Sequence[str], taken_at: NDArray[np.int64], coordinates: NDArray[np.float64]) -> list[str]:
    """A name for the sequence of each photo, empty where nothing says which.

    Args:
        known: sequences from the labels, empty where they do not say.
        taken_at: (n,) seconds, `NO_TIME` where the EXIF does not say.
        coordinates: (n, 2) degrees.
    """
    said = np.fromiter((bool(name) for name in known), bool, len(known))
    numbers = sequence_numbers(np.where(said, NO_TIME, taken_at), coordinates)
    return [name or occasion_name(number) for name, number in zip(known, numbers.tolist(), strict=True)]


def occasion_number(name: str) -> int:
    """The inverse of `occasion_name`; 0 for any other name."""
    start, _, digits = name.rpartition(" ")
    return int(digits) if start == _NAMED and digits.isascii() and digits.isdecimal() else 0


def occasion_name(number: int) -> str:
    """The name of an occasion of `sequence_numbers`; empty for 0."""
    return f"{_NAMED} {number}" if number else ""
