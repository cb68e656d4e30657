"""What single cells of a table say: numbers, text, candidates, or why they hold no place."""

from __future__ import annotations

import math
from typing import Any, Final

from geoinfer.labels import as_number
from geoinfer.prediction import Candidate

CANDIDATES_KEPT: Final = 10
"""Of each answer."""

NOT_A_NUMBER: Final = "latitude, longitude are "
"""How `no_place` begins where something is written that is no number."""


def no_place(latitude: Any, longitude: Any) -> str:
    """Why a row has no place, of which at least one cell is no number."""
    texts = text(latitude), text(longitude)
    if not any(texts):
        return "the row has no latitude and longitude"
    return NOT_A_NUMBER + ", ".join(map(repr, texts))


def number(value: Any, delimiter: str) -> float:
    """A cell as a number, NaN if it is none; `delimiter` separates the cells of a CSV."""
    if isinstance(value, str):
        return as_number(value.strip(), delimiter)
    if value is None or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def text(value: Any) -> str:
    """A cell as text; whole numbers without a decimal point, as ids that a program took for numbers."""
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace").strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def candidates_of(value: Any) -> tuple[Candidate, ...]:
    """What `geoinfer predict` writes of the most similar references; others' candidates are left out."""
    if not isinstance(value, list):
        return ()
    found = []
    for one in value[:CANDIDATES_KEPT]:
        if not (isinstance(one, dict) and {"reference", "latitude", "longitude"} <= one.keys()):
            return ()
        probability = number(one.get("probability"), "")
        found.append(
            Candidate(
                reference=text(one["reference"]),
                latitude=number(one["latitude"], ""),
                longitude=number(one["longitude"], ""),
                similarity=number(one.get("similarity"), ""),
                source=text(one.get("source")),
                probability=None if math.isnan(probability) else probability,
            )
        )
    return tuple(found)
