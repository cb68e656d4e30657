"""Countries against capitals and areas that anybody can look up."""

from __future__ import annotations

import numpy as np
import pytest

from geoinfer.geodesy import EARTH_RADIUS_KM
from geoinfer.maps import border_lines, coast_lines, country_polygons

CAPITALS = {
    "France": (48.86, 2.35), "Germany": (52.52, 13.40), "Spain": (40.42, -3.70), "Poland": (52.23, 21.01),
    "United Kingdom": (51.51, -0.30), "Austria": (48.21, 16.20), "Switzerland": (46.95, 7.45),
    "Ukraine": (50.45, 30.52),
    "Russia": (55.75, 37.62), "China": (39.90, 116.40), "India": (28.61, 77.21), "Mongolia": (47.92, 106.92),
    "Kazakhstan": (51.17, 71.45), "Iran": (35.69, 51.39), "Saudi Arabia": (24.71, 46.68), "Turkey": (39.93, 32.86),
    "Ethiopia": (9.03, 38.74), "Kenya": (-1.29, 36.82), "Nigeria": (9.06, 7.49), "South Africa": (-25.75, 28.19),
    "Lesotho": (-29.31, 27.60), "Egypt": (30.00, 31.24), "Canada": (45.42, -75.90), "Mexico": (19.43, -99.13),
    "United States of America": (38.85, -77.25), "Brazil": (-15.79, -47.88), "Bolivia": (-16.50, -68.15),
    "Colombia": (4.71, -74.07), "Australia": (-35.28, 149.13), "Nepal": (27.71, 85.32), "Bhutan": (27.47, 89.64),
    "Uzbekistan": (41.30, 69.24), "Kyrgyzstan": (42.87, 74.59), "Slovakia": (48.35, 17.20), "Hungary": (47.50, 19.04),
}  # fmt: skip
"""Some moved a little inland, where the city lies on a border or on the water."""

ELSEWHERE = {
    "Russia": [(66.90, -178.00), (68.05, 166.44), (54.71, 20.51)],  # beyond 180, Chukotka, Kaliningrad
    "United States of America": [(64.84, -147.72), (19.60, -155.50)],
    "Fiji": [(-17.80, 178.00), (-16.80, -179.95)],
    "Antarctica": [(-85.0, 0.0), (-89.9, 120.0), (-87.0, 179.9), (-87.0, -179.9)],
    "Greenland": [(72.0, -40.0)],
    "New Zealand": [(-44.0, 170.5)],
}

AREAS_KM2 = {  # round figures of any encyclopaedia; land and inland waters
    "Russia": 17.1e6, "Canada": 9.98e6, "China": 9.6e6, "United States of America": 9.5e6, "Brazil": 8.5e6,
    "Australia": 7.69e6, "India": 3.29e6, "Argentina": 2.78e6, "Kazakhstan": 2.72e6, "Greenland": 2.17e6,
    "Mexico": 1.97e6, "South Africa": 1.22e6, "Egypt": 1.0e6, "France": 0.64e6, "Spain": 0.506e6,
    "Germany": 0.357e6, "Poland": 0.313e6, "Italy": 0.301e6, "Switzerland": 0.0413e6, "Lesotho": 0.0304e6,
    "Fiji": 0.0183e6, "Antarctica": 12.3e6,  # without its ice shelves
}  # fmt: skip


@pytest.fixture(scope="module")
def countries() -> dict[str, list[np.ndarray]]:
    return country_polygons()


def countries_at(point: tuple[float, float], polygons: dict[str, list[np.ndarray]]) -> list[str]:
    """The even-odd rule, one country after the other."""
    found = []
    for name, parts in polygons.items():
        inside = False
        for part in parts:
            y0, x0 = part.T
            y1, x1 = np.roll(part, -1, axis=0).T
            crosses = (y0 > point[0]) != (y1 > point[0])
            x = x0[crosses] + (point[0] - y0[crosses]) / (y1 - y0)[crosses] * (x1 - x0)[crosses]
            inside ^= bool((point[1] < x).sum() % 2)
        if inside:
            found.append(name)
    return found


@pytest.mark.parametrize("name", CAPITALS)
def test_a_capital_is_in_its_country_and_no_other(countries, name):
    assert countries_at(CAPITALS[name], countries) == [name]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_far_parts_of_countries(countries, name):
    for point in ELSEWHERE[name]:
        assert countries_at(point, countries) == [name]


@pytest.mark.parametrize(
    "point", [(30.0, -40.0), (0.0, 179.9), (0.0, -179.9), (58.0, 179.9), (41.5, 51.0), (43.0, 34.0), (89.0, 0.0)]
)
def test_no_country_is_at_sea(countries, point):
    assert countries_at(point, countries) == []


@pytest.mark.parametrize("name", AREAS_KM2)
def test_areas_are_those_of_the_encyclopaedia(countries, name):
    assert sum(area_km2(part) for part in countries[name]) == pytest.approx(AREAS_KM2[name], rel=0.08)


def area_km2(polygon: np.ndarray) -> float:
    """In Lambert's equal-area projection of the cylinder, the shoelace formula (edges are short)."""
    x, y = np.deg2rad(polygon[:, 1]), np.sin(np.deg2rad(polygon[:, 0]))
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) * EARTH_RADIUS_KM**2


@pytest.mark.parametrize("west", [-360.0, -180.0, -10.0, 0.0, 33.3, 180.0])
def test_a_map_that_begins_elsewhere_shows_as_much(countries, west):
    turned = country_polygons(west)
    assert turned.keys() == countries.keys()
    for name in ("Russia", "Fiji", "France", "Antarctica"):
        longitudes = np.concatenate([part[:, 1] for part in turned[name]])
        assert west <= longitudes.min()
        assert longitudes.max() <= west + 360.0
        whole, before = (sum(map(area_km2, polygons[name])) for polygons in (turned, countries))
        assert whole == pytest.approx(before, rel=1e-6)  # a cut edge is straight in degrees, not in km


def test_russia_is_cut_at_180_and_nowhere_else(countries):
    sides = sorted(
        (round(part[:, 1].min()), round(part[:, 1].max())) for part in countries["Russia"] if len(part) > 1000
    )
    assert sides == [(27, 180)]
    beyond = [part for part in countries["Russia"] if part[:, 1].max() < -168.0]
    assert {round(part[:, 1].min()) for part in beyond} >= {-180}
    around = [part for part in country_polygons(0.0)["Russia"] if len(part) > 1000]
    assert [(round(part[:, 1].min()), round(part[:, 1].max())) for part in around] == [(27, 190)]


@pytest.mark.parametrize("west", [-180.0, 0.0, 12.5])
def test_no_line_runs_along_the_antimeridian_or_jumps(west):
    for lines in (coast_lines(west), border_lines(west)):
        assert len(lines) > 300
        for line in lines:
            assert len(line) > 1
            assert west <= line[:, 1].min()
            assert line[:, 1].max() <= west + 360.0
            assert np.abs(np.diff(line[:, 1])).max() < 10.0
            at_180 = np.abs(np.abs((line[:, 1] + 180.0) % 360.0 - 180.0) - 180.0) < 1e-6
            assert not (at_180[1:] & at_180[:-1]).any()


def nearest_deg(point: tuple[float, float], lines: list[np.ndarray]) -> float:
    points = np.concatenate(lines)
    return float(np.hypot(points[:, 0] - point[0], (points[:, 1] - point[1]) * np.cos(np.deg2rad(point[0]))).min())


def test_coasts_are_at_the_sea_and_borders_between_countries():
    coasts, borders = coast_lines(), border_lines()
    for point in ((50.0, 14.4), (21.0, 78.0), (47.0, 8.0), (39.7, -105.0)):  # Prague, India, the Alps, Denver
        assert nearest_deg(point, coasts) > 2.0
    for border in ((48.97, 8.2), (32.54, -117.0), (-29.6, 27.1), (46.5, 6.2)):  # Rhine, Tijuana, Lesotho, Jura
        assert nearest_deg(border, borders) < 0.4
    assert nearest_deg((50.72, -1.5), coasts) < 0.3  # the English Channel
    assert nearest_deg((50.72, -1.5), borders) > 2.0
    assert nearest_deg((-25.0, 135.0), borders) > 10.0  # Australia has none


def test_lines_and_polygons_are_the_callers_own(countries):
    country_polygons()["France"][0][:] = 0.0
    border_lines()[0][:] = 0.0
    assert np.ptp(country_polygons()["France"][0]) > 0.0
    assert np.ptp(border_lines()[0]) > 0.0
