"""Which photos figures are of: all, each continent's, and those that a column of the labels tells apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from geoinfer.errors import LabelsError
from geoinfer.evaluate.areas import country_code
from geoinfer.places import CONTINENTS, Places, continent_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.evaluate.outcomes import Outcomes

GLOBAL: Final = "Global"
MOST_VALUES: Final = 50
"""Of a column of more values than this, the most frequent make sets."""


class Sets(NamedTuple):
    """Photos by set; a photo may be in several.

    Attributes:
        masks: name to (n,) bool; `Global` first, then continents that have photos, then sets of columns.
        made_from: how the continents were told, in words.
        warnings: what a reader should know.
    """

    masks: dict[str, NDArray[np.bool_]]
    made_from: str
    warnings: list[str]


def make_sets(outcomes: Outcomes, *, columns: Sequence[str] = (), places: Places | None = None) -> Sets:
    """Makes the sets.

    A photo's continent is that of its country by the labels (a code or an English name); where they give none that is
    known, that of the nearest city, if there are `places` to ask. A country is on one continent whole, see
    `geoinfer.places.CONTINENTS`.

    Args:
        outcomes: n photos.
        columns: of the labels; each value of one makes a set `COLUMN=value`, photos without a value none.
        places: the extra `places`, where it is installed.

    Raises:
        LabelsError: the labels lack a column.
    """
    continents = [continent_of(country_code(name)) for name in outcomes.countries]
    by_label = sum(map(bool, continents))
    unknown = [row for row, continent in enumerate(continents) if not continent]
    if places is not None and unknown:
        for row, place in zip(unknown, places.names(outcomes.truth[unknown]), strict=True):
            continents[row] = place.continent
    masks = {GLOBAL: np.ones(len(outcomes), bool)}
    for continent in ("Europe", "North America", *CONTINENTS):  # the founding paper's two first
        mask = np.array([one == continent for one in continents], bool)
        if mask.any():
            masks[continent] = mask
    warnings: list[str] = []
    for column in columns:
        masks |= _column_sets(outcomes, column, warnings)
    return Sets(masks, _made_from(len(outcomes), by_label, sum(map(bool, continents))), warnings)


def _column_sets(outcomes: Outcomes, column: str, warnings: list[str]) -> dict[str, NDArray[np.bool_]]:
    if column not in outcomes.columns:
        known = ", ".join(outcomes.columns) or "none"
        raise LabelsError(
            f"the labels have no column {column}, by which sets were asked for", hint=f"there is: {known}"
        )
    values = np.array(outcomes.columns[column])
    found, counts = np.unique(values[values != ""], return_counts=True)
    if len(found) > MOST_VALUES:
        kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_VALUES])
        warnings.append(
            f"The column {column} has {len(found)} different values; the {MOST_VALUES} most frequent make sets."
        )
        found = found[kept]
    return {f"{column}={value}": values == value for value in found.tolist()}


def _made_from(count: int, by_label: int, known: int) -> str:
    if known == 0:
        return "no continents: the labels name no countries, and the extra places is not installed"
    parts = []
    if by_label:
        parts.append(f"the labels' countries ({by_label} of {count} photos)")
    if known > by_label:
        parts.append(f"the city nearest to the true place ({known - by_label} of {count} photos)")
    told = "continents by " + " and by ".join(parts)
    return told if known == count else f"{told}; of {count - known} photos the continent is not known"
