"""Each convention against numbers worked out by hand, published geodesics and the projects' formulas in plain loops."""

from __future__ import annotations

import builtins
import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.errors import MissingPackageError, UsageError
from geoinfer.geodesy import haversine_km
from geoinfer.metrics import (
    CONVENTIONS,
    GEOCLIP,
    OSV5M,
    PIGEON,
    RADII_KM,
    accuracy_percent,
    convention,
    distances_km,
    geoscores,
    within,
)

PARIS, LONDON = (48.8566, 2.3522), (51.5074, -0.1278)

places = st.tuples(st.floats(-90, 90), st.floats(-180, 180))
few_places = st.lists(places, max_size=5)


def between(a: tuple[float, float], b: tuple[float, float], name: str) -> float:
    return float(distances_km([a], [b], CONVENTIONS[name])[0])


# Arcs of a sphere by hand: a share of 2 pi R.
@pytest.mark.parametrize(
    ("a", "b", "share"),
    [
        ((0, 0), (0, 0), 0.0),
        ((0, 0), (1, 0), 1 / 360),
        ((0, 0), (0, 1), 1 / 360),
        ((0, 179.5), (0, -179.5), 1 / 360),  # across the antimeridian
        ((0, 180), (0, -180), 0.0),
        ((90, 0), (90, 120), 0.0),  # a pole has every longitude
        ((89, 0), (89, 180), 2 / 360),  # over the pole
        ((90, 0), (-90, 45), 1 / 2),
        ((0, 0), (0, 180), 1 / 2),
        ((30, 40), (-30, -140), 1 / 2),  # antipodes
        ((0, 0), (90, 0), 1 / 4),
        ((60, 0), (60, 180), 60 / 360),
    ],
)
@pytest.mark.parametrize(("name", "radius"), [("osv5m", 6371.0), ("pigeon", 6378.137)])
def test_arcs_of_the_sphere(name: str, radius: float, a: tuple, b: tuple, share: float) -> None:
    assert between(a, b, name) == pytest.approx(2 * math.pi * radius * share, rel=1e-9, abs=1e-9)


def test_one_degree_by_hand() -> None:
    # pi R / 180 to ten digits; the ellipsoid's degree of the equator is that of PIGEON's sphere.
    assert between((0, 0), (1, 0), "osv5m") == pytest.approx(111.1949266446, abs=1e-9)
    assert between((0, 0), (1, 0), "pigeon") == pytest.approx(111.3194907933, abs=1e-9)
    assert between((0, 0), (0, 1), "geoclip") == pytest.approx(111.3194907933, abs=1e-9)
    # Snyder, "Map Projections - A Working Manual", table 3: a degree of latitude on the ellipsoid at the equator.
    assert between((-0.5, 0), (0.5, 0), "geoclip") == pytest.approx(110.574, abs=6e-4)


@pytest.mark.parametrize(
    ("a", "b", "metres"),
    [
        # T. Vincenty's test line on the Australian ellipsoid of 1984, as Geoscience Australia publishes it for GRS80,
        # which is WGS84 to a tenth of a millimetre: Flinders Peak to Buninyong.
        ((-(37 + 57 / 60 + 3.72030 / 3600), 144 + 25 / 60 + 29.52440 / 3600),
         (-(37 + 39 / 60 + 10.15610 / 3600), 143 + 55 / 60 + 35.38390 / 3600), 54972.271),
        # C. F. F. Karney, test set for geodesics (doi 10.5281/zenodo.32156), its first line.
        ((36.530042355041, 0.0), (-48.164270779097768864, 5.762344694676510456), 9398502.0434687),
        # GeographicLib's documentation: Wellington to Salamanca, JFK to LHR; its own test cases.
        ((-41.32, 174.81), (40.96, -5.50), 19959679.267),
        ((40.6, -73.8), (51.6, -0.5), 5551759.400),
        ((35.60777, -139.44815), (-11.17491, -69.95921), 8935244.5604818305),
        ((55.52454, 106.05087), (77.03196, 197.18234 - 360), 4105086.1713924406),
        # Karney, "Algorithms for geodesics", table 5: nearly antipodal, where Vincenty's method does not converge.
        ((-30.0, 0.0), (29.9, 179.8), 19989832.82761),
        # Half a meridian and its half.
        ((90.0, 0.0), (-90.0, 0.0), 20003931.4586),
        ((0.0, 0.0), (0.0, 180.0), 20003931.4586),
        ((0.0, 20.0), (90.0, 0.0), 10001965.7293),
    ],
)  # fmt: skip
def test_published_geodesics(a: tuple, b: tuple, metres: float) -> None:
    assert between(a, b, "geoclip") * 1000 == pytest.approx(metres, abs=6e-4)


def vincenty_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """T. Vincenty, Survey Review 23, 1975; not for nearly antipodal points."""
    major, f = 6378.137, 1 / 298.257223563
    minor = major * (1 - f)
    u1, u2 = (math.atan((1 - f) * math.tan(math.radians(p[0]))) for p in (a, b))
    longitude = lam = math.radians(b[1] - a[1])
    for _ in range(200):
        sin_sigma = math.hypot(
            math.cos(u2) * math.sin(lam),
            math.cos(u1) * math.sin(u2) - math.sin(u1) * math.cos(u2) * math.cos(lam),
        )
        if sin_sigma == 0:
            return 0.0
        cos_sigma = math.sin(u1) * math.sin(u2) + math.cos(u1) * math.cos(u2) * math.cos(lam)
        sigma = math.atan2(sin_sigma, cos_sigma)
        sin_alpha = math.cos(u1) * math.cos(u2) * math.sin(lam) / sin_sigma
        cos2 = 1 - sin_alpha**2
        mid = cos_sigma - 2 * math.sin(u1) * math.sin(u2) / cos2 if cos2 > 1e-15 else 0.0
        c = f / 16 * cos2 * (4 + f * (4 - 3 * cos2))
        before = lam
        lam = longitude + (1 - c) * f * sin_alpha * (sigma + c * sin_sigma * (mid + c * cos_sigma * (2 * mid**2 - 1)))
        if abs(lam - before) < 1e-13:
            break
    u = cos2 * (major**2 - minor**2) / minor**2
    big_a = 1 + u / 16384 * (4096 + u * (-768 + u * (320 - 175 * u)))
    big_b = u / 1024 * (256 + u * (-128 + u * (74 - 47 * u)))
    delta = big_b * sin_sigma * (
        mid + big_b / 4 * (
            cos_sigma * (2 * mid**2 - 1) - big_b / 6 * mid * (4 * sin_sigma**2 - 3) * (4 * mid**2 - 3)
        )
    )  # fmt: skip
    return minor * big_a * (sigma - delta)


@given(st.floats(-89, 89), st.floats(-180, 180), st.floats(-89, 89), st.floats(-150, 150))
def test_geodesics_like_vincentys(lat: float, lon: float, other: float, turned: float) -> None:
    a, b = (lat, lon), (other, (lon + turned + 180) % 360 - 180)
    if between(a, b, "osv5m") < 18000:
        assert between(a, b, "geoclip") == pytest.approx(vincenty_km(a, b), abs=1e-6)


def test_as_geopy_measures() -> None:
    distance = pytest.importorskip("geopy.distance")
    random = np.random.default_rng(5)
    points = np.column_stack([random.uniform(-90, 90, 40), random.uniform(-180, 180, 40)])
    expected = [distance.geodesic(a, b).km for a, b in itertools.pairwise(points)]
    assert distances_km(points[:-1], points[1:], GEOCLIP).tolist() == expected


@given(few_places, few_places)
def test_the_projects_formulas_in_plain_loops(one: list, other: list) -> None:
    count = min(len(one), len(other))
    truth, predicted = np.array(one[:count]).reshape(-1, 2), np.array(other[:count]).reshape(-1, 2)
    for row in range(count):
        (lat1, lon1), (lat2, lon2) = np.radians(truth[row]), np.radians(predicted[row])
        a = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
        if a <= 1:
            osv5m = 6371 * 2 * math.atan2(math.sqrt(a), math.sqrt(1 - a))
            assert distances_km(truth, predicted, OSV5M)[row] == pytest.approx(osv5m, rel=1e-12, abs=1e-12)
            pigeon = 6378137.0 * 2 * math.asin(math.sqrt(a)) / 1000
            assert distances_km(truth, predicted, PIGEON)[row] == pytest.approx(pigeon, rel=1e-12, abs=1e-12)


@given(places, places)
def test_every_convention_is_a_distance(a: tuple, b: tuple) -> None:
    for known in CONVENTIONS.values():
        there, back = between(a, b, known.name), between(b, a, known.name)
        assert 0 <= there <= known.farthest_km + 1e-6
        assert there == pytest.approx(back, rel=1e-12, abs=1e-9)
        # The sphere of 6371 km is within 0.6% of the ellipsoid.
        assert there == pytest.approx(float(haversine_km(a, b)), rel=0.0065, abs=1e-6)
        assert between(a, a, known.name) == 0


def test_antipodes_are_half_the_way_around_where_rounding_exceeds_one() -> None:
    random = np.random.default_rng(1)
    points = np.column_stack([random.uniform(-90, 90, 20_000), random.uniform(-180, 180, 20_000)])
    opposite = np.column_stack([-points[:, 0], np.where(points[:, 1] > 0, points[:, 1] - 180, points[:, 1] + 180)])
    for known in (OSV5M, PIGEON):
        assert np.allclose(distances_km(points, opposite, known), known.farthest_km, atol=1e-3)


def test_float32_of_osv5m_is_off_by_metres() -> None:
    random = np.random.default_rng(2)
    truth = np.column_stack([random.uniform(-60, 75, 50_000), random.uniform(-180, 180, 50_000)])
    predicted = np.clip(truth + random.normal(0, 5, truth.shape), [-90, -180], [90, 180])
    one, two = np.radians(truth).astype(np.float32), np.radians(predicted).astype(np.float32)
    a = np.sin((two - one)[:, 0] / 2) ** 2
    a += np.cos(one[:, 0]) * np.cos(two[:, 0]) * np.sin((two - one)[:, 1] / 2) ** 2
    theirs = 6371 * 2 * np.arctan2(np.sqrt(a), np.sqrt(1 - a))
    assert a.dtype == theirs.dtype == np.float32
    off = np.abs(theirs - distances_km(truth, predicted, OSV5M))
    assert 0.0005 < off.max() < 0.004


def test_nan_stays_and_costs_nobody_else() -> None:
    truth = np.array([[1.0, 2.0], [3.0, 4.0], [np.nan, 0.0]])
    predicted = np.array([[1.0, 2.0], [np.nan, np.nan], [0.0, 0.0]])
    for known in CONVENTIONS.values():
        found = distances_km(truth, predicted, known)
        assert found[0] == 0
        assert np.isnan(found[1:]).all()
        assert accuracy_percent(found, 1, known) == pytest.approx(100 / 3)
        assert np.isnan(geoscores(found, known)).tolist() == [False, True, True]


def test_none_and_one_for_all() -> None:
    for known in CONVENTIONS.values():
        assert distances_km(np.empty((0, 2)), np.empty((0, 2)), known).shape == (0,)
        assert math.isnan(accuracy_percent(np.empty(0), 25, known))
        spread = distances_km([PARIS, LONDON], PARIS, known)
        assert spread.tolist() == [0.0, between(LONDON, PARIS, known.name)]


@pytest.mark.parametrize("radius", RADII_KM)
def test_exactly_at_the_radius(radius: int) -> None:
    below, above = np.nextafter(radius, 0), np.nextafter(radius, np.inf)
    distances = np.array([below, radius, above])
    assert within(distances, radius, OSV5M).tolist() == [True, False, False]
    assert within(distances, radius, PIGEON).tolist() == [True, False, False]
    assert within(distances, radius, GEOCLIP).tolist() == [True, True, False]
    assert accuracy_percent(distances, radius, OSV5M) == pytest.approx(100 / 3)
    assert accuracy_percent(distances, radius, GEOCLIP) == pytest.approx(200 / 3)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_place_exactly_at_the_radius(name: str) -> None:
    known = CONVENTIONS[name]
    low, high = 1.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if between((0, 0), (middle, 0), name) < 200 else (low, middle)
    # Of latitudes an ulp apart one comes out at 200 km to the last bit.
    tried = low + np.arange(-200, 200) * np.spacing(low)
    distances = distances_km(np.zeros((len(tried), 2)), np.column_stack([tried, np.zeros(len(tried))]), known)
    exact = distances[distances == 200.0]
    assert len(exact)
    assert accuracy_percent(exact, 200, known) == (0.0 if name in ("osv5m", "pigeon") else 100.0)


def test_radii_and_conventions_separate_where_they_should() -> None:
    # 0.2247 degrees of latitude: below 25 km on the smaller sphere and along the ellipsoid, above on the larger sphere.
    a, b = (0.0, 0.0), (0.2247, 0.0)
    found = {name: between(a, b, name) for name in CONVENTIONS}
    assert found["geoclip"] < found["osv5m"] < 25 < found["pigeon"]
    # The same in degrees of longitude on the equator, where the ellipsoid is the larger sphere.
    assert between((0, 0), (0, 0.2247), "geoclip") == pytest.approx(found["pigeon"], rel=1e-12)


def points_by_decimal(distance: str) -> Decimal:
    return 5000 * (-Decimal(distance) / Decimal("1492.7")).exp()


@pytest.mark.parametrize("distance", ["0", "1", "25", "99.95", "200", "750", "1492.7", "2500", "10000", "20015.08"])
def test_scores(distance: str) -> None:
    expected = points_by_decimal(distance)
    assert geoscores(float(distance), OSV5M) == pytest.approx(float(expected), rel=1e-12)
    assert geoscores(float(distance), GEOCLIP) == geoscores(float(distance), OSV5M)
    assert geoscores(float(distance), PIGEON) == float(round(expected))


def test_scores_by_hand() -> None:
    # 5000 / e = 1839.397 at 1492.7 km; rounding comes before the mean: (5000 + 1839 + 0) / 3.
    distances = np.array([0.0, 1492.7, 20000.0])
    assert geoscores(distances, OSV5M).mean() == pytest.approx((5000 + 1839.3972058572117 + 0.0076) / 3, abs=1e-4)
    assert geoscores(distances, PIGEON).tolist() == [5000.0, 1839.0, 0.0]


def test_halves_are_rounded_to_even() -> None:
    # Distances whose score is a half to the last bit, found by trying neighbours; not every half has one.
    seen = set()
    for whole in range(2000, 2040):
        distance = -1492.7 * math.log((whole + 0.5) / 5000)
        tried = distance + np.arange(-50, 50) * np.spacing(distance)
        exact = tried[geoscores(tried, OSV5M) == whole + 0.5]
        assert set(geoscores(exact, PIGEON).tolist()) <= {float(whole + whole % 2)}
        seen |= {whole % 2} if len(exact) else set()
    assert seen == {0, 1}


def test_any_shape() -> None:
    errors = np.arange(12.0).reshape(3, 4) * 100
    assert geoscores(errors, OSV5M).shape == within(errors, 200, OSV5M).shape == (3, 4)
    assert distances_km(np.zeros((3, 4, 2)), np.ones((3, 4, 2)), OSV5M).shape == (3, 4)
    assert distances_km(np.zeros((3, 4, 2)), np.ones((3, 4, 2)), GEOCLIP).shape == (3, 4)


def test_known_and_unknown_names() -> None:
    assert [convention(name).name for name in CONVENTIONS] == ["osv5m", "pigeon", "geoclip"]
    with pytest.raises(UsageError, match="--convention geoestimation: expected one of osv5m, pigeon, geoclip"):
        convention("geoestimation")


def test_descriptions() -> None:
    assert OSV5M.description == (
        "OSV-5M's definitions: great-circle distances on a sphere of 6371 km, within R km is d < R, "
        "GeoScore 5000 exp(-d / 1492.7 km)"
    )
    assert "6378.137 km" in PIGEON.description
    assert "rounded photo by photo" in PIGEON.description
    assert "WGS84" in GEOCLIP.description
    assert "d ≤ R" in GEOCLIP.description


def test_without_geographiclib(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: object, **more: object) -> object:
        if name.startswith("geographiclib"):
            raise ImportError(name)
        return imported(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingPackageError, match="geographiclib") as caught:
        distances_km([PARIS], [LONDON], GEOCLIP)
    assert "geoinfer-toolkit[report]" in caught.value.hint
    assert distances_km([PARIS], [LONDON], OSV5M) == pytest.approx(343.556, abs=1e-3)
