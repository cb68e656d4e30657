"""Whether columns hold what they are called: latitude and not longitude, degrees and not radians, places on Earth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from geoinfer.errors import LabelsError
from geoinfer.geodesy import haversine_km
from geoinfer.maps import is_land

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Units = Literal["degrees", "radians"]
UNITS: Final = ("degrees", "radians")

# So few rows say nothing of their columns; so many of a sample are looked at.
_FEWEST_ROWS: Final = 50
_SAMPLED_ROWS: Final = 20_000
# What share of the rows must be possible places on land as exchanged, and how much smaller the share must be as they
# stand. Of the shared photos, all or those of Europe or America alone, 0.90 to 0.98 are on land as they are and 0.59 to
# 0.65 exchanged: much of Europe falls on Arabia.
_LAND_EXCHANGED: Final = 0.75
_LAND_RATIO: Final = 0.8
# Or, whatever the map says: so many rows are out of range, and so many of them not if exchanged.
_OUT_OF_RANGE: Final = 0.2
_MENDED: Final = 0.9

# Of predictions or labels, more rows than this out of range are no slips of single rows. Of photos from all over the
# world a fifth to two fifths have a longitude beyond 90; of Europe's, none.
_TOLERATED: Final = 0.01

# Read otherwise, predictions must be nearer to the truth in this share of the rows, and their median error this much
# smaller: a bad model alone does not become good by exchanging its columns. Few rows must say it more clearly.
_NEARER: Final = 0.8
_SMALLER: Final = 0.5
_SMALLER_OF_FEW: Final = 0.1
_FEWEST_PLACES: Final = 4
"""A constant says nothing of its columns, and what is nearly one nearly nothing."""

_SAME_PLACE_KM: Final = 1e-3
_ROUNDING: Final = 1e-6


@dataclass(frozen=True, slots=True)
class LandShares:
    """What speaks for latitude and longitude being exchanged.

    Attributes:
        as_given: share of the rows that are possible places on land as they stand.
        exchanged: the same share with latitude and longitude exchanged.
    """

    as_given: float
    exchanged: float


@dataclass(frozen=True, slots=True)
class CheckedCoordinates:
    """Coordinates that can be used, and why the others cannot.

    Attributes:
        degrees: (n, 2) float64, NaN where a row holds no place.
        problems: row to the reason why it holds none; rows that are NaN already are not among them.
        warnings: sentences for the user.
    """

    degrees: NDArray[np.float64]
    problems: dict[int, str]
    warnings: list[str]


def look_swapped(written: NDArray[np.float64]) -> LandShares | None:
    """Whether most rows make more sense with latitude and longitude exchanged, by what is land; None if not.

    Args:
        written: (n, 2), as the columns stand, possible or not; rows that are not finite do not count. Fewer than 50
            are never said to be swapped.
    """
    rows = written[np.isfinite(written).all(axis=1)]
    if len(rows) < _FEWEST_ROWS:
        return None
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED_ROWS)).astype(np.int64)]
    possible, exchanged = _possible(rows), _possible(rows[:, ::-1])
    shares = LandShares(_land_share(rows, possible), _land_share(rows[:, ::-1], exchanged))
    outside = ~possible
    by_range = (
        outside.mean() >= _OUT_OF_RANGE and exchanged[outside].mean() >= _MENDED and shares.exchanged >= shares.as_given
    )
    by_land = shares.exchanged >= _LAND_EXCHANGED and shares.as_given <= _LAND_RATIO * shares.exchanged
    return shares if by_range or by_land else None


def check_coordinates(
    written: NDArray[np.float64], table: Path, columns: tuple[str, str], *, units: Units = "degrees"
) -> CheckedCoordinates:
    """Turns columns as they are written into degrees.

    Single rows that are no place become NaN with a reason. Longitudes from 0 to 360 are brought to [-180, 180].

    Args:
        written: (n, 2), latitude and longitude; NaN where there is no number.
        table: the file, for messages.
        columns: names of the two columns, likewise.
        units: of what is written.

    Raises:
        LabelsError: so many rows are out of range that the columns are not what they are called: exchanged, in other
            units, or a projection's metres.
    """
    half_turn = 180.0 if units == "degrees" else math.pi
    infinite = np.isinf(written[:, 0]) | np.isinf(written[:, 1])
    known = np.isfinite(written[:, 0]) & np.isfinite(written[:, 1])
    values = np.where(known[:, None], written, np.nan)
    warnings: list[str] = []
    beyond_pole = np.abs(values[:, 0]) > half_turn / 2 + _ROUNDING * half_turn
    beyond_turn = np.abs(values[:, 1]) > half_turn * (1 + _ROUNDING)
    outside = beyond_pole | beyond_turn
    count = int(np.count_nonzero(known))
    if outside.any():
        by_turns = _counts_from_zero(values, half_turn, beyond_pole)
        if by_turns and beyond_turn.any():
            values[:, 1] -= np.where(values[:, 1] > half_turn, 2 * half_turn, 0.0)
            warnings.append(
                f"{table}: the longitudes run from 0 to {360 if units == 'degrees' else '2 pi'}: "
                f"{np.count_nonzero(beyond_turn):,} of {count:,} are taken for western ones"
            )
            outside = beyond_pole
        if np.count_nonzero(outside) > _TOLERATED * count:
            raise _out_of_range(values[known], outside[known], beyond_pole[known], table, columns, units)
        if beyond_pole.any():
            warnings.append(f"{table}: {_beyond_pole_words(beyond_pole, units)}; those rows cannot be used")
        elif outside.any():
            warnings.append(
                f"{table}: longitude beyond {_limit(units, 1)} in {_rows(outside)}; those rows cannot be used"
            )
    problems = {
        int(row): f"latitude, longitude are {written[row, 0]:g}, {written[row, 1]:g}; expected {_expected(units)}"
        for row in np.flatnonzero(outside | infinite)
    }
    values[outside] = np.nan
    if units == "radians":
        values = np.rad2deg(values)
    # Rounding in radians may carry a pole or the date line a hair too far.
    return CheckedCoordinates(np.clip(values, (-90.0, -180.0), (90.0, 180.0)), problems, warnings)


def may_be_radians(degrees: NDArray[np.float64]) -> bool:
    """Whether all of several different places, (n, 2), are as small as radians are."""
    places = degrees[np.isfinite(degrees).all(axis=1)]
    small = (np.abs(places) <= (math.pi / 2 + _ROUNDING, math.pi + _ROUNDING)).all()
    return bool(small) and len(np.unique(places, axis=0)) >= _FEWEST_PLACES


def check_against_truth(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], table: Path, labels: Path, *, units: Units = "degrees"
) -> list[str]:
    """Looks whether predictions make more sense read otherwise, now that their true places are known.

    Args:
        truth: (n, 2) float64 degrees.
        predicted: (n, 2) float64 degrees, NaN where there is none.
        table: the predictions, for messages.
        labels: where the truth is from, likewise.
        units: that the predictions were said to be written in.

    Returns:
        Warnings.

    Raises:
        LabelsError: most predictions are nearer to the truth with latitude and longitude exchanged, or if the ones or
            the other are radians, and very much so.
    """
    answered = np.isfinite(predicted).all(axis=1)
    true, given = truth[answered], predicted[answered]
    if len(np.unique(given, axis=0)) < _FEWEST_PLACES:
        return []
    as_given = haversine_km(true, given)
    if units == "degrees" and may_be_radians(given):
        in_degrees = np.clip(np.rad2deg(given), (-90.0, -180.0), (90.0, 180.0))
        if not may_be_radians(true) and _much_nearer(as_given, haversine_km(true, in_degrees)):
            raise LabelsError(
                f"{table}: the places look like radians: no latitude is beyond 1.571, no longitude beyond 3.142, and "
                f"taken for radians {_nearer_words(as_given, haversine_km(true, in_degrees))}",
                hint="say so: --units radians",
            )
    if may_be_radians(true) and not may_be_radians(given):
        true_degrees = np.clip(np.rad2deg(true), (-90.0, -180.0), (90.0, 180.0))
        if _much_nearer(as_given, haversine_km(true_degrees, given)):
            raise LabelsError(
                f"{labels}: the places look like radians: no latitude is beyond 1.571, no longitude beyond 3.142, and "
                f"taken for radians {_nearer_words(as_given, haversine_km(true_degrees, given))}",
                hint="labels must be in degrees: multiply their latitudes and longitudes by 180 / pi",
            )
    exchanged = given[:, ::-1]
    possible = _possible(exchanged)
    # A place that is none when exchanged speaks against it.
    swapped = np.full(len(given), np.inf)
    swapped[possible] = haversine_km(true[possible], exchanged[possible])
    if _much_nearer(as_given, swapped):
        raise LabelsError(
            f"latitude and longitude look swapped in {table} or in {labels}: exchanged, "
            f"{_nearer_words(as_given, swapped)}",
            hint="exchange the names of the two columns in the first line of the file that is wrong",
        )
    same = as_given < _SAME_PLACE_KM
    if 2 * np.count_nonzero(same) >= len(same):
        return [
            f"{table}: {np.count_nonzero(same):,} of {len(same):,} predictions are the true place itself, to the "
            "metre: are they labels, or were they made from them?"
        ]
    return []


def _possible(pairs: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (np.abs(pairs[:, 0]) <= 90.0) & (np.abs(pairs[:, 1]) <= 180.0)


def _land_share(pairs: NDArray[np.float64], possible: NDArray[np.bool_]) -> float:
    """Share of all rows that are possible and on land."""
    return float(np.count_nonzero(is_land(pairs[possible]))) / len(pairs)


def _counts_from_zero(values: NDArray[np.float64], half_turn: float, beyond_pole: NDArray[np.bool_]) -> bool:
    """Whether longitudes run eastwards from 0 all around the Earth."""
    longitudes = values[~(beyond_pole | np.isnan(values[:, 1])), 1]
    return bool(
        len(longitudes) and longitudes.min() >= 0.0 and half_turn < longitudes.max() <= 2 * half_turn * (1 + _ROUNDING)
    )


def _out_of_range(
    values: NDArray[np.float64],
    outside: NDArray[np.bool_],
    beyond_pole: NDArray[np.bool_],
    table: Path,
    columns: tuple[str, str],
    units: Units,
) -> LabelsError:
    """What (m, 2) finite values are that no degrees or radians can be."""
    latitude, longitude = columns
    limit = 180.0 if units == "degrees" else math.pi
    shown = f"{table}: {_beyond_pole_words(beyond_pole, units)}" if beyond_pole.any() else f"{table}"
    if units == "radians" and _possible(values).mean() >= _MENDED:
        return LabelsError(f"{shown}: these are degrees, not radians", hint="leave --units radians out")
    mended = (np.abs(values[outside]) <= (limit, limit / 2)).all(axis=1)
    if beyond_pole.any() and mended.mean() >= _MENDED:
        return LabelsError(
            f"{shown}; are the columns swapped?",
            hint=f"exchange {latitude!r} and {longitude!r} in the first line; if they are right, mend those rows or "
            "leave their places empty",
        )
    row = int(np.flatnonzero(outside)[0])
    largest = float(np.abs(values).max())
    what = shown if beyond_pole.any() else f"{table}: longitude beyond {_limit(units, 1)} in {_rows(outside)}"
    guess = " The numbers are as large as the metres of a projection, or degrees times a power of ten." * (
        largest > 1000.0
    )
    return LabelsError(
        f"{what}, such as {values[row, 0]:g}, {values[row, 1]:g}; expected {_expected(units)}",
        hint=f"the columns {latitude!r} and {longitude!r} must hold {units} (WGS 84).{guess}",
    )


def _beyond_pole_words(beyond_pole: NDArray[np.bool_], units: Units) -> str:
    return f"latitude beyond {_limit(units, 0)} in {_rows(beyond_pole)}"


def _rows(mask: NDArray[np.bool_]) -> str:
    count = int(np.count_nonzero(mask))
    return "1 row" if count == 1 else f"{count} rows"


def _limit(units: Units, axis: int) -> str:
    return (("90", "180") if units == "degrees" else ("pi/2", "pi"))[axis]


def _expected(units: Units) -> str:
    if units == "degrees":
        return "degrees within [-90, 90] and [-180, 180]"
    return "radians within [-pi/2, pi/2] and [-pi, pi]"


def _much_nearer(as_given: NDArray[np.float64], otherwise: NDArray[np.float64]) -> bool:
    smaller = _SMALLER if len(as_given) >= _FEWEST_ROWS else _SMALLER_OF_FEW
    return bool(np.mean(otherwise < as_given) >= _NEARER and np.median(otherwise) <= smaller * np.median(as_given))


def _nearer_words(as_given: NDArray[np.float64], otherwise: NDArray[np.float64]) -> str:
    return (
        f"{np.mean(otherwise < as_given):.0%} of the predictions are nearer to the truth, their median error "
        f"{np.median(otherwise):,.0f} km instead of {np.median(as_given):,.0f} km"
    )
