"""Countries, regions and cities: names, what is asked, what is right."""

from __future__ import annotations

import numpy as np
import pytest

from geoinfer.evaluate.areas import AREAS, AreaNamer, AreaTruth, country_code, folded, open_places
from geoinfer.evaluate.outcomes import Outcomes
from geoinfer.places import Places, country_codes

SPRINGFIELD_MO, SPRINGFIELD_IL = (37.2153, -93.2982), (39.8017, -89.6437)
PARIS, LILLE, WINDHOEK, LUANDA = (48.8534, 2.3488), (50.633, 3.0586), (-22.5594, 17.0832), (-8.8368, 13.2343)


@pytest.fixture(scope="module")
def places() -> Places:
    pytest.importorskip("reverse_geocode")
    found = open_places()
    assert found is not None
    return found


def labelled(truth: list, **columns: list[str]) -> Outcomes:
    count = len(truth)
    empty = [""] * count
    nothing = np.full(count, np.nan)
    return Outcomes(
        [str(row) for row in range(count)], [b""] * count, np.array(truth, float).reshape(-1, 2),
        np.full((count, 2), np.nan), ["ok"] * count, empty, nothing, nothing,
        columns.get("countries", empty), columns.get("regions", empty), columns.get("sub_regions", empty),
        columns.get("cities", empty), empty, empty,
    )  # fmt: skip


def judged(places: Places, truth: list, predicted: list, **columns: list[str]) -> tuple[AreaTruth, dict]:
    namer = AreaNamer(places)
    known = namer.of_truth(labelled(truth, **columns))
    every = np.arange(len(truth))
    right = known.right(namer.of_points(np.array(predicted, float)), every, every)
    return known, {area: right[area].tolist() for area in AREAS}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("FR", "FR"), ("fr", "FR"), ("France", "FR"), ("FRANCE", "FR"), ("NA", "NA"), ("na", "NA"), ("Namibia", "NA"),
        ("NMB", "NA"), ("Côte d'Ivoire", "CI"), ("Cote d’Ivoire", "CI"), ("Ivory Coast", "CI"), ("Curacao", "CW"),
        ("Åland Islands", "AX"), ("aland islands", "AX"), ("São Tomé & Príncipe", "ST"), ("Turkey", "TR"),
        ("Türkiye", "TR"), ("United States of America", "US"), ("USA", "US"), ("UK", "GB"), ("Czech Republic", "CZ"),
        ("Guinea-Bissau", "GW"), ("XK", "XK"), (" Japan ", "JP"), ("Bonaire, Saint Eustatius and Saba", ""),
        ("", ""), ("nan", ""), ("NaN", ""), ("Neverland", ""), ("ZZ", ""),
    ],
)  # fmt: skip
def test_countries_by_code_and_name(name: str, code: str) -> None:
    if name.startswith("Bonaire"):
        code = country_code(country_codes()["BQ"])
        assert code == "BQ"
    else:
        assert country_code(name) == code


def test_every_country_is_known_by_code_and_name() -> None:
    for code, name in country_codes().items():
        assert country_code(code) == country_code(code.lower()) == country_code(name) == code


def test_folding() -> None:
    assert folded("Île-de-France") == folded("ile de FRANCE") == "ile de france"
    assert folded("St. John's") == "st john s"
    assert folded("A_B") == folded("A B")
    assert folded("東京") == "東京"
    assert folded("…") == ""


def test_countries_from_labels_and_from_coordinates(places: Places) -> None:
    truth, right = judged(
        places, [PARIS, LILLE, WINDHOEK, LUANDA], [LILLE, WINDHOEK, WINDHOEK, WINDHOEK],
        countries=["France", "", "NA", ""],
    )  # fmt: skip
    assert right["country"] == [True, False, True, False]
    assert truth.by_label.tolist() == [True, False, True, False]
    assert truth.asked("country").all()
    everybody = np.ones(4, bool)
    assert truth.truth_from("country", everybody) == "labels and coordinates"
    assert truth.truth_from("country", truth.by_label) == "labels"
    assert truth.truth_from("country", ~truth.by_label) == "coordinates"
    assert truth.truth_from("city", everybody) == "labels"
    for area in AREAS[1:]:
        assert not truth.asked(area).any()
        assert not any(right[area])


def test_the_label_is_the_truth_and_not_the_coordinates(places: Places) -> None:
    # Just over a border the nearest city is the neighbour's: the label decides.
    _, right = judged(places, [LILLE], [LILLE], countries=["BE"])
    assert right["country"] == [False]


def test_larger_areas_must_be_right_too(places: Places) -> None:
    here, there = places.names([SPRINGFIELD_MO, SPRINGFIELD_IL])
    assert (here.city, here.region, there.city, there.region) == ("Springfield", "Missouri", "Springfield", "Illinois")
    cities = ["springfield"] * 2
    with_regions = judged(places, [SPRINGFIELD_MO] * 2, [SPRINGFIELD_MO, SPRINGFIELD_IL],
                          countries=["US"] * 2, regions=["MISSOURI"] * 2, cities=cities)[1]  # fmt: skip
    assert with_regions == {
        "country": [True, True], "region": [True, False], "sub-region": [False, False], "city": [True, False],
    }  # fmt: skip
    # A label that says no more than the city's name asks for no more.
    alone = judged(places, [SPRINGFIELD_MO] * 2, [SPRINGFIELD_MO, SPRINGFIELD_IL], cities=cities)[1]
    assert alone["city"] == [True, True]
    # A country that was told by coordinates does not stand in the way of what the label says.
    elsewhere = judged(places, [LILLE, LILLE], [SPRINGFIELD_MO] * 2, cities=cities, countries=["", "FR"])[1]
    assert elsewhere["city"] == [True, False]


def test_the_unique_columns_of_osv5m(places: Places) -> None:
    county = places.sub_regions([SPRINGFIELD_MO])[0]
    assert county == "Greene County"
    truth, right = judged(
        places, [SPRINGFIELD_MO] * 3, [SPRINGFIELD_MO, SPRINGFIELD_IL, SPRINGFIELD_MO],
        countries=["US"] * 3,
        regions=["Missouri_US", "Missouri_US", ""],
        sub_regions=["Greene County_Missouri_US", "Greene County_Missouri_US", "_Missouri_US"],
        cities=["Springfield_Greene County_Missouri_US"] * 3,
    )  # fmt: skip
    assert right == {
        "country": [True, True, True],
        "region": [True, False, False],
        "sub-region": [True, False, False],
        "city": [True, False, True],
    }
    assert truth.asked("region").tolist() == [True, True, False]
    assert truth.asked("sub-region").tolist() == [True, True, False]


def test_what_counts_as_no_label(places: Places) -> None:
    truth, _ = judged(
        places, [PARIS] * 4, [PARIS] * 4, regions=["nan", "NaN", "", "Nan"], cities=["", "nan", "NA", "Paris"]
    )
    assert truth.asked("region").tolist() == [False, False, False, True]  # a province of Thailand
    assert truth.asked("city").tolist() == [False, False, True, True]


def test_names_that_are_no_countries_are_said(places: Places) -> None:
    truth, right = judged(places, [PARIS] * 3, [PARIS] * 3, countries=["Neverland", "FRA", "nan"])
    assert right["country"] == [True] * 3
    assert not truth.by_label.any()
    assert truth.warnings == [
        "The labels name 2 countries that are not known (FRA, Neverland); those of their photos are told by "
        "coordinates."
    ]


def test_nobody(places: Places) -> None:
    namer = AreaNamer(places)
    truth = namer.of_truth(labelled([]))
    none = np.empty(0, np.int64)
    right = truth.right(namer.of_points(np.empty((0, 2))), none, none)
    assert all(len(right[area]) == 0 for area in AREAS)
    assert not truth.asked("country").any()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert open_places() is None
