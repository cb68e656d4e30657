"""What a page shows, as plain values ready for JSON: made here, shown by the page's own code, see `build.build_page`.

Summary and tables are always of all photos. Of more points than a browser draws smoothly, the worst and a uniform
sample of the rest are shown, and the page says so. Numbers are rounded to what a reader can use (coordinates to a
metre), as they make most of the page's size.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import geoinfer
from geoinfer import maps
from geoinfer.evaluate.bands import BANDS, Band
from geoinfer.evaluate.outcomes import OK
from geoinfer.evaluate.page.sample import choose_pictures, choose_points
from geoinfer.evaluate.page.thumbnails import as_data_uri, thumbnails
from geoinfer.evaluate.sets import GLOBAL
from geoinfer.evaluate.tables.table import shared_notes
from geoinfer.metrics import RADII_KM
from geoinfer.places.places import country_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from geoinfer.evaluate.bootstrap import Interval
    from geoinfer.evaluate.figures import Figure
    from geoinfer.evaluate.measure import Evaluation, SetMetrics
    from geoinfer.evaluate.outcomes import Outcomes
    from geoinfer.evaluate.tables import Table
    from geoinfer.prediction import Candidate

LIMIT: Final = 20_000
"""Points that a page shows, where nobody says otherwise."""
WORST: Final = 1_000
"""How many of them, at most, are the worst, where not all are shown."""
THUMBNAILS: Final = 1_000
CANDIDATES: Final = 5
"""Of each photo; more are left to the result's own file."""

_LAND: Final = Path(maps.__file__).with_name("countries-50m.json")
_DEGREES, _SCORES = 5, 4
_EDGES_KM: Final = (*RADII_KM, *(band.upto_km for band in BANDS if math.isfinite(band.upto_km)))
_COLUMNS: Final = (
    "id",
    "path",
    "status",
    "lat",
    "lon",
    "true_lat",
    "true_lon",
    "error_km",
    "score",
    "radius_km",
    "place",
    "reason",
    "sets",
    "thumb",
    "candidates",
)
"""Of a page's points; each is a list with one value a point."""


def evaluation_data(
    evaluation: Evaluation,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    *,
    images: Path | None = None,
    thumbnails: int = THUMBNAILS,
    limit: int = LIMIT,
    workers: int | None = None,
) -> dict[str, Any]:
    """The page of an evaluation.

    Args:
        evaluation: what was measured.
        tables: to show, as they are printed.
        figures: to show; those that were written as PNG.
        images: folder of the photos: paths below it are shown without it, and photos whose path leads nowhere as it
            stands are looked for in it.
        thumbnails: pictures at most: half of them of the worst photos shown, the others spread over the rest.
        limit: points at most.
        workers: threads that make pictures; as many as there are cores where nobody says.

    Returns:
        Plain values: numbers are finite or None, text can be written as UTF-8.

    Raises:
        OSError: a figure cannot be read. A photo that cannot be costs its picture only.
    """
    outcomes = evaluation.outcomes
    shown = choose_points(evaluation.distances_km, limit, worst=min(WORST, limit // 2))
    points = _evaluated_points(evaluation, shown, images)
    wanted = choose_pictures(evaluation.distances_km[shown], thumbnails)
    paths = [_found(outcomes.paths[shown[place]], images) for place in wanted.tolist()]
    points["thumb"], pictures = place_pictures(len(shown), wanted, paths, workers=workers)
    return {
        "kind": "evaluation",
        "title": f"Errors of {text(evaluation.run.name)}",
        "subtitle": _evaluated_subtitle(evaluation, len(shown), limit),
        "notice": sentence(str(evaluation.run.made_by.get("notice") or "")),
        "version": geoinfer.__version__,
        "warnings": [text(warning) for warning in evaluation.warnings],
        "summary": _evaluated_summary(evaluation.metrics[GLOBAL]),
        "tables": [_table(table) for table in tables],
        "table_notes": [text(note) for note in shared_notes(tables)],
        "sets": [text(name) for name in evaluation.sets],
        "bands": bands_data(BANDS),
        "convention": {"name": evaluation.convention.name, "inclusive": evaluation.convention.inclusive},
        "points": points,
        "thumbs": pictures,
        "shown": len(shown),
        "of": len(outcomes),
        "figures": _figures(figures),
        "land": land(),
    }


def place_pictures(
    count: int, wanted: NDArray[np.int64], paths: Sequence[bytes], *, workers: int | None = None
) -> tuple[list[int], list[str]]:
    """The pictures of some of a page's points.

    Args:
        count: n, of points.
        wanted: (m,) int64, the points that may have a picture, the most important first.
        paths: m, of their photos; a photo that two points share is there once.
        workers: threads.

    Returns:
        (thumb, thumbs): for each of the n points the number of its picture, or -1; the pictures.
    """
    unique = list(dict.fromkeys(path for path in paths if path))
    made = thumbnails(unique, workers=workers)
    numbers: dict[bytes, int] = {}
    pictures: list[str] = []
    for path, picture in zip(unique, made, strict=True):
        if picture is not None:
            numbers[path] = len(pictures)
            pictures.append(as_data_uri(picture))
    thumb = [-1] * count
    for point, path in zip(wanted.tolist(), paths, strict=True):
        thumb[point] = numbers.get(path, -1)
    return thumb, pictures


def shown_words(shown: int, of: int, how: str) -> str:
    """How many of all points the map shows; empty where it is all of them."""
    return "" if shown == of else f"{shown:,} of {of:,} shown: {how}."


def bands_data(bands: Iterable[Band]) -> list[dict[str, Any]]:
    """Colours of points for the page, the last band without an upper edge."""
    return [
        {
            "upto_km": None if math.isinf(band.upto_km) else band.upto_km,
            "colour_light": band.colour_light,
            "colour_dark": band.colour_dark,
            "label": band.label,
        }
        for band in bands
    ]


def land() -> Any:
    """Outlines of the countries, as TopoJSON."""
    return json.loads(_LAND.read_bytes())


def degrees(values: ArrayLike) -> list[float | None]:
    """Degrees to five decimals, a metre; None for NaN."""
    return _rounded(values, _DEGREES)


def shares(values: ArrayLike) -> list[float | None]:
    """Scores and similarities to four decimals; None for NaN."""
    return _rounded(values, _SCORES)


def kilometres(values: ArrayLike) -> list[float | None]:
    """Distances to a metre below 10 km, to a hundred from there on; None for NaN.

    One that rounding would put on an edge, of a band or of what is counted as near, stays as it is: the page would
    count it on the wrong side.
    """
    array = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        rounded = np.where(array < 10.0, np.round(array, 3), np.round(array, 1))
    return _plain(np.where(np.isin(rounded, _EDGES_KM), array, rounded))


def text(value: str) -> str:
    """Text that can be written as UTF-8: bytes of a file's name that are not stand as `\\xe9`."""
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return value.encode("utf-8", "backslashreplace").decode()


def sentence(clause: str) -> str:
    """A clause with a capital in front, as a bundle's notice stands by itself on a page."""
    return text(clause[:1].upper() + clause[1:])


def kilometre_words(value: float) -> str:
    """A distance as a sentence has it: 0.52 km, 8.4 km, 1,234 km."""
    if math.isnan(value):
        return "not known"
    decimals = 2 if value < 1 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f} km"


def _evaluated_points(evaluation: Evaluation, shown: NDArray[np.int64], images: Path | None) -> dict[str, list[Any]]:
    outcomes = evaluation.outcomes
    rows = shown.tolist()
    masks = np.array([mask[shown] for mask in evaluation.sets.values()]).reshape(-1, len(rows))
    predicted = outcomes.predicted[shown]
    candidates = outcomes.candidates
    columns: dict[str, list[Any]] = {
        "id": [text(outcomes.ids[row]) for row in rows],
        "path": [_below(outcomes.paths[row], images).decode("utf-8", "backslashreplace") for row in rows],
        "status": [outcomes.statuses[row] for row in rows],
        "lat": degrees(predicted[:, 0]),
        "lon": degrees(predicted[:, 1]),
        "true_lat": degrees(outcomes.truth[shown, 0]),
        "true_lon": degrees(outcomes.truth[shown, 1]),
        "error_km": kilometres(evaluation.distances_km[shown]),
        "score": shares(outcomes.scores[shown]),
        "radius_km": kilometres(outcomes.radii_km[shown]),
        "place": [_true_place(outcomes, row) for row in rows],
        "reason": [text(outcomes.reasons[row]) for row in rows],
        "sets": [np.flatnonzero(column).tolist() for column in masks.T],
        "thumb": [-1] * len(rows),
        "candidates": [[] if candidates is None else _candidates(candidates[row]) for row in rows],
    }
    assert tuple(columns) == _COLUMNS
    return columns


def _true_place(outcomes: Outcomes, row: int) -> str:
    country = outcomes.countries[row]
    names = (
        outcomes.cities[row],
        outcomes.regions[row],
        country_name(country.upper()) if len(country) == 2 else country,
    )
    return text(", ".join(dict.fromkeys(name for name in names if name)))


def _candidates(candidates: Sequence[Candidate]) -> list[list[Any]]:
    return [
        [text(one.reference), *degrees([one.latitude, one.longitude]), *shares([one.similarity])]
        for one in candidates[:CANDIDATES]
    ]


def _below(path: bytes, images: Path | None) -> bytes:
    """A path as it is called within the folder of photos: where that lies on a disk is nobody else's business."""
    folder = b"" if images is None else os.fsencode(images).rstrip(b"/") + b"/"
    return path.removeprefix(folder)


def _found(path: bytes, images: Path | None) -> bytes:
    if images is None or not path or os.path.exists(path):
        return path
    return os.path.join(os.fsencode(images), path)


def _evaluated_subtitle(evaluation: Evaluation, shown: int, limit: int) -> str:
    outcomes = evaluation.outcomes
    answered = sum(status == OK for status in outcomes.statuses)
    worst = min(WORST, limit // 2, answered)
    words = [
        f"{len(outcomes):,} labelled photos, {answered:,} answered. Distances and scores as "
        f"{evaluation.convention.name} defines them.",
        shown_words(shown, len(outcomes), f"the {worst:,} worst and a random sample of the rest"),
    ]
    return " ".join(word for word in words if word)


def _evaluated_summary(metrics: SetMetrics) -> list[dict[str, str]]:
    def km(interval: Interval) -> tuple[str, str]:
        return kilometre_words(interval.value), _between(interval, kilometre_words)

    def percent(interval: Interval) -> tuple[str, str]:
        return f"{interval.value:.1f}%", _between(interval, "{:.1f}%".format)

    unanswered = metrics.labelled - metrics.count
    parts = (("failed", metrics.failed), ("skipped", metrics.skipped), ("without a prediction", metrics.missing))
    items = [
        ("Photos", f"{metrics.count:,}", f"answered, of {metrics.labelled:,} labelled"),
        (
            "Unanswered",
            f"{unanswered:,}",
            ", ".join(f"{number:,} {word}" for word, number in parts if number) or "every photo has an answer",
        ),
    ]
    if metrics.count:
        items += [
            ("Median error", *km(metrics.median_km)),
            ("Mean error", *km(metrics.mean_km)),
            ("GeoScore, of 5,000", f"{metrics.geoscore.value:,.0f}", _between(metrics.geoscore, "{:,.0f}".format)),
            *((f"Within {radius:,g} km", *percent(share)) for radius, share in metrics.accuracy.items()),
            *(
                (f"Right {name}", *percent(area.percent))
                for name, area in metrics.areas.items()
                if area.count and not math.isnan(area.percent.value)
            ),
        ]
    return [{"label": label, "value": value, "detail": detail} for label, value, detail in items]


def _between(interval: Interval, word: Callable[[float], str]) -> str:
    if math.isnan(interval.low) or math.isnan(interval.high):
        return ""
    return f"95% interval {word(interval.low)} to {word(interval.high)}"


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": text(table.title),
        "columns": [text(column) for column in table.columns],
        "rows": [[text(cell) for cell in row] for row in table.rows],
        "bold": [[bool(cell) for cell in row] for row in table.bold],
        "note": text(table.note),
        "set": text(table.set_name),
    }


def _figures(figures: Sequence[Figure]) -> list[dict[str, str]]:
    found = []
    for figure in figures:
        path = next((path for path in figure.paths if path.suffix.lower() == ".png"), None)
        if path is not None:
            found.append({"title": text(figure.title), "png": as_data_uri(path.read_bytes(), "png")})
    return found


def _rounded(values: ArrayLike, decimals: int) -> list[float | None]:
    # Anybody's file may hold a score of 1e308, which overflows on the way.
    with np.errstate(over="ignore"):
        return _plain(np.asarray(np.round(np.asarray(values, np.float64), decimals), np.float64))


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    """Floats for JSON: None where a value is not finite, and whole numbers without the `.0`."""
    return [
        None if not math.isfinite(value) else int(value) if value.is_integer() else value for value in values.tolist()
    ]
