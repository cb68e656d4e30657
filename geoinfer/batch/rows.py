"""The rows of a result: one for each input, whatever happened to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from geoinfer.prediction import SCORE_DECIMALS

if TYPE_CHECKING:
    from geoinfer.errors import ImageError
    from geoinfer.places import Place
    from geoinfer.prediction import Candidate

COLUMNS: Final = (
    "path",
    "status",
    "latitude",
    "longitude",
    "radius_km",
    "score",
    "top1_similarity",
    "unlike_references",
    "error",
    "location_type",
    "path_bytes",
)
"""Columns of a result, in this order."""

PLACE_COLUMNS: Final = ("country", "region", "city", "city_km")
"""What `--places` puts before `error`."""

ERROR_COLUMNS: Final = ("path", "stage", "code", "message", "size_bytes", "path_bytes")
"""Columns of an error report, in this order."""

LOW_SCORE: Final = "low_score"
"""Error code of a photo whose score is below `--min-score`: skipped, and in the error report all the same."""

ESTIMATED: Final = "estimated"
"""`location_type` of every location that geoinfer writes, so that none is ever taken for a measured one."""


def columns(*, places: bool) -> tuple[str, ...]:
    """The columns of a result with or without the names of places, in this order."""
    if not places:
        return COLUMNS
    before = COLUMNS.index("error")
    return COLUMNS[:before] + PLACE_COLUMNS + COLUMNS[before:]


def path_fields(path: bytes) -> dict[str, str]:
    """A path as text that any reader takes, and a way back to its bytes where they are not UTF-8.

    Returns:
        `path`: the path itself, or with `\\xe9` where a byte is not UTF-8; `path_bytes`: empty, or the bytes
        percent-encoded, from which `path_of` makes the path again.
    """
    try:
        return {"path": path.decode(), "path_bytes": ""}
    except UnicodeDecodeError:
        return {"path": path.decode(errors="backslashreplace"), "path_bytes": quote_from_bytes(path, safe="/")}


def path_of(row: dict[str, Any]) -> bytes:
    """The path that a row of a result speaks of; the inverse of `path_fields`."""
    return unquote_to_bytes(row["path_bytes"]) if row.get("path_bytes") else row["path"].encode()


def ok_row(
    path: bytes,
    *,
    latitude: float,
    longitude: float,
    radius_km: float,
    score: float,
    top1_similarity: float,
    unlike_references: bool | None = None,
    place: Place | None = None,
    candidates: tuple[Candidate, ...] = (),
) -> dict[str, Any]:
    """The row of a located photo. Rounded here, once, so that every format shows the same numbers."""
    row: dict[str, Any] = path_fields(path) | {
        "status": "ok",
        "latitude": _degrees(latitude),
        "longitude": _degrees(longitude),
        "radius_km": round(radius_km, 3),
        "score": _share(score),
        "top1_similarity": min(_share(top1_similarity), 1.0),
        "unlike_references": unlike_references,
        "error": "",
        "location_type": ESTIMATED,
    }
    if place is not None:
        row |= {
            "country": place.country,
            "region": place.region,
            "city": place.city,
            "city_km": round(place.city_km, 3),
        }
    if candidates:
        row["candidates"] = [
            {
                "reference": candidate.reference,
                "latitude": _degrees(candidate.latitude),
                "longitude": _degrees(candidate.longitude),
                "similarity": round(candidate.similarity, 6),
                "source": candidate.source,
                "probability": _probability(candidate.probability),
            }
            for candidate in candidates
        ]
    return row


def failed_row(path: bytes, failure: ImageError) -> dict[str, Any]:
    """The row of an input that was not located; `_failure` is for the error report."""
    return path_fields(path) | {
        "status": failure.status,
        "latitude": None,
        "longitude": None,
        "radius_km": None,
        "score": None,
        "top1_similarity": None,
        "unlike_references": None,
        "error": _text(str(failure)),
        "location_type": "",
        "_failure": {"stage": failure.stage, "code": failure.code, "size_bytes": failure.size_bytes},
    }


def abstained_row(
    path: bytes, failure: ImageError, *, score: float, top1_similarity: float, unlike_references: bool | None
) -> dict[str, Any]:
    """The row of a photo whose score is below `--min-score`: no location, but why there is none."""
    return failed_row(path, failure) | {
        "score": _share(score),
        "top1_similarity": min(_share(top1_similarity), 1.0),
        "unlike_references": unlike_references,
    }


def error_report_row(row: dict[str, Any]) -> dict[str, Any]:
    """A failed row as the error report shows it."""
    failure = row["_failure"]
    return {
        "path": row["path"],
        "stage": failure["stage"],
        "code": failure["code"],
        "message": row["error"],
        "size_bytes": "" if failure["size_bytes"] < 0 else failure["size_bytes"],
        "path_bytes": row["path_bytes"],
    }


def _text(message: str) -> str:
    # A library's message may quote bytes that are not UTF-8; one such row must not keep all others from the disk.
    return message.encode(errors="backslashreplace").decode()


def _probability(value: float | None) -> float | None:
    # Six significant digits, not decimals: of a hundred thousand references most have less than a millionth.
    return None if value is None else float(f"{value:.6g}")


def _share(value: float) -> float:
    return round(value, SCORE_DECIMALS) + 0.0


def _degrees(value: float) -> float:
    # Six decimals are a tenth of a metre; adding zero turns -0.0 into 0.0.
    return round(value, 6) + 0.0
