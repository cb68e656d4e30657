"""The page of a `geoinfer predict` run: where its photos are thought to be, without labels to compare with.

The run's rows are seen once, one by one, and only counts and a sample of bounded size are kept: the page of ten million
photos costs no more memory than that of twenty thousand.
"""

from __future__ import annotations

import bisect
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import geoinfer
from geoinfer.batch.rows import path_of
from geoinfer.errors import OutputError, UsageError
from geoinfer.evaluate.bands import BANDS, Band
from geoinfer.evaluate.page.build import build_page
from geoinfer.evaluate.page.data import (
    CANDIDATES,
    LIMIT,
    THUMBNAILS,
    bands_data,
    degrees,
    kilometres,
    land,
    place_pictures,
    sentence,
    shares,
    shown_words,
    text,
)
from geoinfer.evaluate.page.sample import Reservoir, spread
from geoinfer.integrity import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Row = dict[str, Any]

SUFFIX: Final = ".html"

_EDGES_KM: Final = (200.0, 750.0, 2500.0, math.inf)
"""Of the radius, coarser ones than a city's: a region, a country and a continent of the metrics."""
_LABELS: Final = ("≤ 200 km", "200–750 km", "750–2500 km", "> 2500 km")
RADIUS_BANDS: Final = tuple(
    Band(edge, band.name, label, band.colour_light, band.colour_dark)
    for edge, label, band in zip(_EDGES_KM, _LABELS, BANDS, strict=True)
)

_FAILURES_PER_POINT: Final = 0.05
_COUNTRIES: Final = 20
_MARK: Final = b'<meta name="generator" content="geoinfer'
_MARK_WITHIN: Final = 4096


class PredictionSample:
    """What a page needs to know of a run's rows, each of which is shown to it once.

    The same rows in the same order always leave the same, whether a run was interrupted on the way or not.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        """Keeps at most `limit` located photos, and a twentieth as many of those without an answer."""
        self.statuses: Counter[str] = Counter()
        self.abstained = 0
        self.unlike = 0
        self.bands = [0] * len(RADIUS_BANDS)
        self.countries: Counter[str] = Counter()
        self.places = False
        # As bytes of JSON: a tenth of the memory of the rows themselves.
        self._located: Reservoir[bytes] = Reservoir(limit)
        self._others: Reservoir[bytes] = Reservoir(max(round(limit * _FAILURES_PER_POINT), 1), seed=1)

    def add(self, row: Row) -> None:
        """Sees one row of a result, see `geoinfer.batch.rows`."""
        number = self.total
        self.statuses[row["status"]] += 1
        located = row["status"] == "ok"
        if located:
            self.bands[bisect.bisect_left(_EDGES_KM, row["radius_km"])] += 1
            if row.get("country"):
                self.countries[row["country"]] += 1
            self.places = self.places or "country" in row
            self.unlike += row["unlike_references"] in (True, "true")
        elif row["status"] == "skipped" and row["score"] is not None:
            self.abstained += 1
        reservoir = self._located if located else self._others
        slot = reservoir.place()
        if slot is not None:
            reservoir.put(slot, json.dumps([number, _kept(row)]).encode())

    @property
    def total(self) -> int:
        """Rows seen."""
        return self.statuses.total()

    @property
    def rows(self) -> list[Row]:
        """Those kept, in the order of the run, with what a page shows of them."""
        numbered = [json.loads(packed) for packed in (*self._located.items, *self._others.items)]
        return [row for _, row in sorted(numbered, key=lambda entry: entry[0])]


def check_page(path: Path, option: str = "--map") -> None:
    """Makes sure, before hours of work, that a page has a page's name and that no other file is lost to it.

    Args:
        path: of the page.
        option: that named it.

    Raises:
        UsageError: another suffix than .html.
        OutputError: a file is there that is no page of geoinfer.
    """
    if path.suffix.lower() != SUFFIX:
        raise UsageError(
            f"{option} {path}: the suffix {path.suffix or '(none)'} is not that of a page", hint=f"use {SUFFIX}"
        )
    try:
        with path.open("rb") as file:
            start = file.read(_MARK_WITHIN)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"{option} {path}: cannot be looked at: {(error.strerror or str(error)).lower()}",
            hint="choose another file",
        ) from error
    if start and _MARK not in start:
        raise OutputError(f"{option} {path}: exists already, and is no page of geoinfer", hint="choose another file")


def is_page_of(path: Path, made_of: str) -> bool:
    """Whether the page there shows just this, see `prediction_data`; False where there is none."""
    try:
        return f'"made_of":"{made_of}"'.encode() in path.read_bytes()
    except OSError:
        return False


def prediction_data(
    sample: PredictionSample,
    *,
    title: str,
    made_of: str = "",
    made_by: str = "",
    notice: str = "",
    warnings: Iterable[str] = (),
    thumbnails: int = THUMBNAILS,
    workers: int | None = None,
) -> dict[str, Any]:
    """The page of predictions without labels, as plain values; see `geoinfer.evaluate.page.data`.

    Args:
        sample: of the run's rows.
        title: of the page.
        made_of: hexadecimal digits that name what is shown, by which the page is known again.
        made_by: a sentence for below the title.
        notice: of the bundle, to be shown with every answer.
        warnings: sentences.
        thumbnails: pictures at most, spread evenly over the photos shown.
        workers: threads that make pictures.
    """
    rows = sample.rows
    located = np.flatnonzero([row["status"] == "ok" for row in rows])
    points = _points(rows)
    wanted = located[spread(len(located), min(thumbnails, len(located)))]
    paths = [path_of(rows[place]) for place in wanted.tolist()]
    points["thumb"], pictures = place_pictures(len(rows), wanted, paths, workers=workers)
    sampled = shown_words(len(rows), sample.total, "a random sample")
    return {
        "kind": "predictions",
        "made_of": made_of,
        "title": text(title),
        "subtitle": " ".join(word for word in (text(made_by), _MEANING, sampled) if word),
        "notice": sentence(notice),
        "version": geoinfer.__version__,
        "warnings": [text(warning) for warning in warnings],
        "summary": _summary(sample),
        "tables": _tables(sample),
        "sets": ["Global"],
        "bands": bands_data(RADIUS_BANDS),
        "points": points,
        "thumbs": pictures,
        "shown": len(rows),
        "of": sample.total,
        "figures": [],
        "land": land(),
    }


_MEANING: Final = "Places are estimates: of 90 photos in 100 the true one is within the radius."


def write_prediction_page(sample: PredictionSample, path: Path, **words: Any) -> None:
    """Writes the page of a run; whatever was there before stays until the new one is whole.

    Args:
        sample: of the run's rows.
        path: of the page, see `check_page`.
        words: see `prediction_data`.

    Raises:
        OutputError: it cannot be written.
    """
    page = build_page(prediction_data(sample, **words))
    try:
        with atomic_file(path) as file:
            file.write(page)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path}: the map cannot be written: {(error.strerror or str(error)).lower()}") from error


def _kept(row: Row) -> Row:
    """What a page shows of a row."""
    kept = {name: row[name] for name in _FIELDS if row.get(name) not in (None, "")}
    kept["candidates"] = [
        [one["reference"], one["latitude"], one["longitude"], one["similarity"]]
        for one in (row.get("candidates") or ())[:CANDIDATES]
    ]
    return kept


_FIELDS: Final = (
    "path",
    "path_bytes",
    "status",
    "latitude",
    "longitude",
    "radius_km",
    "score",
    "country",
    "region",
    "city",
    "error",
)


def _points(rows: list[Row]) -> dict[str, list[Any]]:
    def numbers(name: str) -> list[float]:
        return [row.get(name, math.nan) for row in rows]

    nothing: list[Any] = [None] * len(rows)
    paths = [text(row["path"]) for row in rows]
    return {
        "id": [path.rpartition("/")[2] for path in paths],
        "path": paths,
        "status": [row["status"] for row in rows],
        "lat": degrees(numbers("latitude")),
        "lon": degrees(numbers("longitude")),
        "true_lat": nothing,
        "true_lon": nothing,
        "error_km": nothing,
        "score": shares(numbers("score")),
        "radius_km": kilometres(numbers("radius_km")),
        "place": [text(", ".join(dict.fromkeys(row[name] for name in _PLACE if name in row))) for row in rows],
        "reason": [text(row.get("error", "")) for row in rows],
        "sets": [[0] for _ in rows],
        "thumb": [-1] * len(rows),
        "candidates": [
            [
                [text(name), *degrees([latitude, longitude]), *shares([similarity])]
                for name, latitude, longitude, similarity in row["candidates"]
            ]
            for row in rows
        ],
    }


_PLACE: Final = ("city", "region", "country")


def _summary(sample: PredictionSample) -> list[dict[str, str]]:
    located = sample.statuses["ok"]
    skipped = sample.statuses["skipped"]
    below = f"{sample.abstained:,} of them for a low score" if sample.abstained else ""
    items = [
        ("Located", f"{located:,}", f"of {sample.total:,} photos"),
        ("Errors", f"{sample.statuses['error']:,}", "see the error report" if sample.statuses["error"] else ""),
        ("Skipped", f"{skipped:,}", below),
        ("Unlike the references", f"{sample.unlike:,}", "answers on thin ground" if sample.unlike else ""),
    ]
    if sample.places:
        items.append(("Countries", f"{len(sample.countries):,}", "of the nearest cities"))
    return [{"label": label, "value": value, "detail": detail} for label, value, detail in items]


def _tables(sample: PredictionSample) -> list[dict[str, Any]]:
    located = sample.statuses["ok"]
    tables = [_counted("Radius", "Radius", zip(_LABELS, sample.bands, strict=True), located, "")]
    if sample.places:
        ranked = sorted(sample.countries.items(), key=lambda entry: (-entry[1], entry[0]))
        left = sum(count for _, count in ranked[_COUNTRIES:])
        note = f"{len(ranked) - _COUNTRIES} more countries have {left:,} photos together." if left else ""
        tables.append(_counted("Countries", "Country", ranked[:_COUNTRIES], located, note))
    return tables


def _counted(title: str, what: str, counts: Iterable[tuple[str, int]], of: int, note: str) -> dict[str, Any]:
    rows = [[text(name), f"{count:,}", f"{100 * count / max(of, 1):.1f}%"] for name, count in counts]
    return {
        "title": title,
        "columns": [what, "Photos", "Share"],
        "rows": rows,
        "bold": [[False] * 3 for _ in rows],
        "note": note,
    }
