"""Whether predictions are in the right country, region, sub-region and city.

A prediction's areas are those of the city nearest to it, as OSV-5M asks the package reverse_geocoder
(`metrics/utils.py` of gastruc/osv5m); here GeoNames' cities come from `geoinfer.places`, a newer list. The truth is
what the label says, and an area counts as right if it and all larger ones that the label names are: OSV-5M compares
`Springfield_Greene County_Missouri_US` as a whole. Case, accents and punctuation do not matter.

Only photos whose label names an area are asked for it. OSV-5M means to do so, too, but looks for `nan` where its loader
has written `NaN` (`data/data.py`), so that it counts photos without a label as wrong; and as pandas takes `NA` for a
missing value, all of Namibia, whatever is predicted. To compare with its figures, multiply the share by the number of
photos asked and divide by that of all. Its repair of Namibia, the code `NMB`, is understood.

PIGEON draws borders instead: the prediction must lie in the polygon of the true place's country, so that it is wrong
at sea. That needs the authors' polygons, and is not computed here; near borders and coasts the two differ.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.errors import MissingPackageError
from geoinfer.places import Places, country_codes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from geoinfer.evaluate.outcomes import Outcomes

AREAS: Final = ("country", "region", "sub-region", "city")
"""From the largest to the smallest."""

LABELS, COORDINATES, BOTH = "labels", "coordinates", "labels and coordinates"

# What countries are also called, folded, where neither the code nor the name of the table says so.
_ALSO: Final = {
    "america": "US", "bolivia plurinational state of": "BO", "brunei darussalam": "BN", "burma": "MM",
    "cape verde": "CV", "congo": "CG", "czech republic": "CZ", "cote d ivoire": "CI", "east timor": "TL",
    "england": "GB", "great britain": "GB", "holland": "NL", "hong kong sar china": "HK",
    "iran islamic republic of": "IR", "ivory coast": "CI", "korea republic of": "KR", "korea": "KR",
    "lao people s democratic republic": "LA", "macedonia": "MK", "moldova republic of": "MD", "nmb": "NA",
    "northern ireland": "GB", "palestinian territory": "PS", "republic of korea": "KR", "republic of the congo": "CG",
    "russian federation": "RU", "scotland": "GB", "swaziland": "SZ", "syrian arab republic": "SY",
    "taiwan province of china": "TW", "tanzania united republic of": "TZ", "turkey": "TR", "turkiye": "TR",
    "uae": "AE", "uk": "GB", "united states of america": "US", "us": "US", "usa": "US",
    "venezuela bolivarian republic of": "VE", "viet nam": "VN", "wales": "GB",
}  # fmt: skip
_MISSING: Final = ("", "nan", "NaN")


def open_places() -> Places | None:
    """The names of places, None where the extra `places` is not installed.

    Raises:
        InputError: its list of cities is broken.
    """
    try:
        return Places.open()
    except MissingPackageError:
        return None


@functools.lru_cache(maxsize=1 << 18)
def folded(name: str) -> str:
    """A name without case, accents and punctuation: what counts when names are compared."""
    plain = unicodedata.normalize("NFKD", name.casefold().replace("&", " and "))
    return " ".join(re.findall(r"\w+", "".join(c for c in plain if not unicodedata.combining(c)).replace("_", " ")))


def country_code(name: str) -> str:
    """Two letters for a code or an English name, in any case; empty for what is not known.

    `NA` is Namibia and not a missing value.
    """
    return _by_name().get(folded(name), "") if name not in _MISSING else ""


@functools.cache
def _by_name() -> dict[str, str]:
    codes = country_codes()
    return _ALSO | {folded(name): code for code, name in codes.items()} | {folded(code): code for code in codes}


@dataclass(frozen=True, slots=True, eq=False)
class AreaNames:
    """Numbers that stand for names, the same for the same folded name; 0 where there is none.

    Attributes:
        numbers: `AREAS` to (n,) int64.
    """

    numbers: dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class AreaTruth:
    """In which areas n photos were taken.

    Attributes:
        names: the true ones; the country by coordinates where the label says nothing that is known.
        by_label: (n,) bool, whether the label names the country.
        warnings: what a reader should know.
    """

    names: AreaNames
    by_label: NDArray[np.bool_]
    warnings: list[str]

    def asked(self, area: str) -> NDArray[np.bool_]:
        """(n,) whether it is known where each photo is."""
        return self.names.numbers[area] > 0

    def truth_from(self, area: str, photos: NDArray[np.bool_]) -> str:
        """Where the truth of so many photos comes from, in words."""
        if area != AREAS[0]:
            return LABELS
        by_label = self.by_label[photos & self.asked(area)]
        return LABELS if by_label.all() else BOTH if by_label.any() else COORDINATES

    def right(
        self, predicted: AreaNames, rows: NDArray[np.int64], predicted_rows: NDArray[np.int64]
    ) -> dict[str, NDArray[np.bool_]]:
        """Whether predictions are in the right area; of photos that are not asked False.

        Args:
            predicted: names of p predictions.
            rows: (m,) of the photos.
            predicted_rows: (m,) of the predictions; -1 where there is none, which is in no area.

        Returns:
            For each of `AREAS`, (m,).
        """
        found = {}
        larger = np.ones(len(rows), bool)
        for area in AREAS:
            truth = self.names.numbers[area][rows]
            same = truth == np.append(predicted.numbers[area], -1)[predicted_rows]
            found[area] = larger & same & (truth > 0)
            # What the label does not name cannot be wrong, and a country told by coordinates is no label's.
            unnamed = ~self.by_label[rows] if area == AREAS[0] else truth == 0
            larger &= same | unnamed
        return found


class AreaNamer:
    """Gives names their numbers."""

    def __init__(self, places: Places) -> None:
        """`places`: what points are called."""
        self._places = places
        self._numbers: dict[str, int] = {"": 0}

    def of_points(self, coordinates: NDArray[np.float64]) -> AreaNames:
        """The areas of points (p, 2) in degrees, all of them valid."""
        places = self._places.names(coordinates)
        return self._numbered(
            [place.country_code for place in places],
            [place.region for place in places],
            self._places.sub_regions(coordinates),
            [place.city for place in places],
        )

    def of_truth(self, outcomes: Outcomes) -> AreaTruth:
        """The areas of labelled photos."""
        countries = [country_code(name) for name in outcomes.countries]
        by_label = np.array(list(map(bool, countries)), bool)
        strange = {name for name, code in zip(outcomes.countries, countries, strict=True) if not code}
        for row, place in zip(
            np.flatnonzero(~by_label).tolist(), self._places.names(outcomes.truth[~by_label]), strict=True
        ):
            countries[row] = place.country_code
        parts = {area: _own_names(area, texts) for area, texts in zip(AREAS[1:], _texts(outcomes), strict=True)}
        names = self._numbered(countries, parts["region"], parts["sub-region"], parts["city"])
        return AreaTruth(names, by_label, _strange(strange - set(_MISSING)))

    def _numbered(self, *texts: Iterable[str]) -> AreaNames:
        numbers = self._numbers
        return AreaNames(
            {
                area: np.array([numbers.setdefault(folded(text), len(numbers)) for text in column], np.int64)
                for area, column in zip(AREAS, texts, strict=True)
            }
        )


def _texts(outcomes: Outcomes) -> tuple[Sequence[str], ...]:
    return outcomes.regions, outcomes.sub_regions, outcomes.cities


def _own_names(area: str, texts: Sequence[str]) -> list[str]:
    """The area's own name, also of OSV-5M's `unique_` columns, which write the larger areas behind it.

    Those larger areas are in the labels' other columns.
    """
    underscores = AREAS.index(area)
    found = []
    for text in texts:
        parts = text.split("_")
        unique = len(parts) == underscores + 1 and bool(country_code(parts[-1]))
        found.append("" if text in _MISSING else parts[0] if unique else text)
    return found


def _strange(names: set[str]) -> list[str]:
    if not names:
        return []
    listed = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
    return [
        f"The labels name {len(names)} countries that are not known ({listed}); those of their photos are told by "
        "coordinates."
    ]
