"""Which columns of a table hold a place, and whether it is the true one or a predicted one, told by their names.

Tables that hold both are common (`lat,lon,pred_lat,pred_lon`), and the one taken for the other makes every prediction
perfect. So a name is taken apart into words, and only what is understood to the last word counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Meaning = Literal["true", "predicted", "plain"]
Unit = Literal["degrees", "radians", ""]

_MOST_SHOWN: Final = 20
_LONGEST_SHOWN: Final = 60

_LATITUDE: Final = frozenset(("latitude", "lat"))
_LONGITUDE: Final = frozenset(("longitude", "lon", "lng", "long"))
_PREDICTED: Final = frozenset(
    (
        "predicted",
        "prediction",
        "predictions",
        "preds",
        "pred",
        "estimated",
        "estimate",
        "est",
        "hat",
        "output",
        "model",
    )
)
_TRUE: Final = frozenset(
    ("groundtruth", "ground", "truth", "true", "gt", "gold", "label", "labels", "target", "actual", "real")
)
_UNITS: Final[dict[str, Unit]] = {
    "radians": "radians",
    "radian": "radians",
    "rad": "radians",
    "degrees": "degrees",
    "degree": "degrees",
    "deg": "degrees",
}
_OTHER: Final = frozenset(("gps", "geo", "decimal", "wgs84", "top1", "geometry", "location", "coordinates", "position"))
_WORDS: Final = sorted(_LATITUDE | _LONGITUDE | _PREDICTED | _TRUE | set(_UNITS) | _OTHER, key=len, reverse=True)
_RUN_TOGETHER: Final = re.compile("(?:" + "|".join(_WORDS) + ")+")
_ONE_WORD: Final = re.compile("|".join(_WORDS))


@dataclass(frozen=True, slots=True)
class CoordinateColumns:
    """A latitude and its longitude.

    Attributes:
        latitude: position of the column.
        longitude: likewise.
        meaning: `plain` where the names say no more than that it is a place.
        unit: empty where the names do not say.
    """

    latitude: int
    longitude: int
    meaning: Meaning
    unit: Unit


def normalised(name: str) -> str:
    """A column's name without what people write differently: case, spaces, hyphens."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def coordinate_columns(header: Sequence[str]) -> list[CoordinateColumns]:
    """All pairs of a latitude and a longitude, in the order of the latitudes.

    Args:
        header: names of the columns, such as `pred_lat`, `latitude_pred`, `trueLongitude`, `GPSLatitude`, `lon_rad`.

    Two columns are a pair if their names differ by the word for latitude or longitude alone, or at least not in meaning
    and unit where there is just one of each. Of columns of the same name the first counts.
    """
    latitudes: dict[tuple[str, ...], tuple[int, Meaning, Unit]] = {}
    longitudes: dict[tuple[str, ...], tuple[int, Meaning, Unit]] = {}
    for position, name in enumerate(header):
        words = _words_of(name)
        for axis, found in ((_LATITUDE, latitudes), (_LONGITUDE, longitudes)):
            named = [word for word in words if word in axis]
            rest = tuple(word for word in words if word not in axis)
            if len(named) == 1 and not _LATITUDE.union(_LONGITUDE).intersection(rest):
                style = "full" if len(named[0]) > 4 else "short"  # `lat,lon` beside `latitude,longitude` are two pairs
                found.setdefault((style, *rest), (position, _meaning(rest), _unit(rest)))
    pairs: list[CoordinateColumns] = []
    for key, (latitude, meaning, unit) in latitudes.items():
        partner = longitudes.get(key)
        if partner is None:
            same = [other for other in longitudes.values() if other[1:] == (meaning, unit)]
            alone = sum(other[1:] == (meaning, unit) for other in latitudes.values()) == 1
            partner = same[0] if len(same) == 1 and alone else None
        if partner is not None:
            pairs.append(CoordinateColumns(latitude, partner[0], meaning, unit))
    return pairs


def _words_of(name: str) -> list[str]:
    """The words of a name; none if one of them is unknown."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip())
    words: list[str] = []
    for part in re.split(r"[^0-9a-z]+", apart.lower()):
        if not part:
            continue
        if not _RUN_TOGETHER.fullmatch(part):
            return []
        words += _ONE_WORD.findall(part)
    return words


def _meaning(words: Sequence[str]) -> Meaning:
    if not _PREDICTED.isdisjoint(words):
        return "predicted"
    return "plain" if _TRUE.isdisjoint(words) else "true"


def _unit(words: Sequence[str]) -> Unit:
    return next((_UNITS[word] for word in words if word in _UNITS), "")


def listed(header: Sequence[str]) -> str:
    """The names of a table's columns, for a message: not more than one can read."""
    names = [name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}…" for name in header[:_MOST_SHOWN]]
    more = len(header) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "") or "no header"
