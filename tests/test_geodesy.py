from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from geoinfer.geodesy import (
    EARTH_RADIUS_KM,
    HALF_CIRCUMFERENCE_KM,
    as_coordinates,
    destination,
    from_unit_vectors,
    haversine_km,
    spherical_mean,
    to_unit_vectors,
)

latitudes = st.one_of(st.sampled_from([-90.0, 90.0, 0.0, 89.999999]), st.floats(-90, 90))
longitudes = st.one_of(st.sampled_from([-180.0, 180.0, 0.0, 179.999999, -179.999999]), st.floats(-180, 180))
places = st.tuples(latitudes, longitudes)


def vincenty_on_a_sphere_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The arc tangent form, exact at every distance: another formula than the haversine, in plain Python."""
    lat1, lon1, lat2, lon2 = (math.radians(v) for v in (*a, *b))
    dlon = lon2 - lon1
    across = math.cos(lat2) * math.sin(dlon)
    along = math.cos(lat1) * math.sin(lat2) - math.sin(lat1) * math.cos(lat2) * math.cos(dlon)
    dot = math.sin(lat1) * math.sin(lat2) + math.cos(lat1) * math.cos(lat2) * math.cos(dlon)
    return 6371.0 * math.atan2(math.hypot(across, along), dot)


class TestAsCoordinates:
    def test_one_pair_becomes_one_row(self):
        result = as_coordinates([38.7, -9.1])
        assert result.tolist() == [[38.7, -9.1]]
        assert result.dtype == np.float64

    def test_limits_belong_to_the_range(self):
        assert as_coordinates([(90, 180), (-90, -180)]).tolist() == [[90.0, 180.0], [-90.0, -180.0]]

    def test_no_rows_are_fine(self):
        assert as_coordinates(np.empty((0, 2))).shape == (0, 2)

    @pytest.mark.parametrize("shape", [(), (0,), (3,), (4,), (2, 3), (2, 1), (1, 2, 2)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"expected \(n, 2\)"):
            as_coordinates(np.zeros(shape))

    @pytest.mark.parametrize(
        "bad",
        [
            (math.nan, 0.0),
            (0.0, math.nan),
            (math.inf, 0.0),
            (0.0, -math.inf),
            (math.nextafter(90, 91), 0.0),
            (-90.5, 0.0),
            (0.0, math.nextafter(180, 181)),
            (0.0, -200.0),
        ],
    )
    @pytest.mark.parametrize("row", [0, 3, 4])
    def test_bad_values_are_refused_by_row(self, bad, row):
        values = [(1.0, 2.0)] * 5
        values[row] = bad
        with pytest.raises(ValueError, match=f"row {row} "):
            as_coordinates(values)

    def test_the_first_bad_row_is_named(self):
        with pytest.raises(ValueError, match=r"row 2 is \(100, 3\)"):
            as_coordinates([(0, 0), (1, 1), (100, 3), (0, 500)])


class TestHaversine:
    @pytest.mark.parametrize(
        ("a", "b", "km", "within_km"),
        [
            # Great-circle distances as published (Great Circle Mapper and Wikipedia's examples); spherical against
            # ellipsoidal differs by up to 0.5%.
            ((51.4775, -0.461389), (40.639751, -73.778925), 5541, 30),  # LHR to JFK
            ((-33.946111, 151.177222), (-33.393, -70.7858), 11346, 60),  # SYD to SCL
            ((36.12, -86.67), (33.94, -118.40), 2887.26 * 6371 / 6372.8, 0.01),  # BNA to LAX, Rosetta Code
            ((48.8567, 2.3508), (51.5074, -0.1278), 343.5, 1),  # Paris to London
            ((0, 0), (0, 1), 111.19492664455873, 1e-9),
            ((0, 0), (90, 0), 10007.543398010286, 1e-8),
        ],
    )
    def test_published_distances(self, a, b, km, within_km):
        assert float(haversine_km(a, b)) == pytest.approx(km, abs=within_km)

    def test_half_circumference(self):
        assert pytest.approx(20015.086796020572, abs=1e-9) == HALF_CIRCUMFERENCE_KM
        assert EARTH_RADIUS_KM == 6371.0

    @settings(deadline=None)
    @given(places, places)
    @example((10.0, 20.0), (-10.0, -160.0))
    @example((10.0, 20.0), (-10.0000001, -160.0000001))
    @example((90.0, 0.0), (90.0, 180.0))
    @example((0.0, 180.0), (0.0, -180.0))
    @example((45.0, 45.0), (45.0, 45.00000001))
    def test_equals_another_formula(self, a, b):
        # Near antipodes the haversine is good to about 15 cm.
        assert float(haversine_km(a, b)) == pytest.approx(vincenty_on_a_sphere_km(a, b), abs=5e-4, rel=1e-7)

    @settings(deadline=None)
    @given(places, places, places)
    def test_is_a_metric(self, a, b, c):
        ab, ba, bc, ac = (float(haversine_km(x, y)) for x, y in ((a, b), (b, a), (b, c), (a, c)))
        assert 0 <= ab <= HALF_CIRCUMFERENCE_KM
        assert ab == ba
        assert float(haversine_km(a, a)) == 0
        assert ac <= ab + bc + 1e-3

    @settings(deadline=None)
    @given(places)
    def test_antipodes_are_half_the_circumference_apart(self, place):
        latitude, longitude = place
        antipode = (-latitude, longitude - 180 if longitude > 0 else longitude + 180)
        assert float(haversine_km(place, antipode)) == pytest.approx(20015.0868, abs=1e-3)

    def test_antipodes_whose_haversine_rounds_above_one(self):
        # The square of the half chord comes out a bit above 1 for these.
        places = np.array([(19.2, 135.2), (-84.9, 148.6), (-2.5, 162.8), (-69.3, 45.2)])
        antipodes = np.stack([-places[:, 0], places[:, 1] - 180], axis=1)
        assert haversine_km(places, antipodes) == pytest.approx([20015.0868] * 4, abs=1e-3)

    def test_longitude_means_nothing_at_a_pole(self):
        assert haversine_km([(90, 0), (-90, 10)], [(90, 123), (-90, -170)]) == pytest.approx([0, 0], abs=1e-9)

    def test_a_metre_across_the_antimeridian(self):
        degree = 0.001 / 111.19492664455873
        km = float(haversine_km((0, 180 - degree / 2), (0, -180 + degree / 2)))
        assert km == pytest.approx(0.001, rel=1e-6)

    def test_broadcasts(self):
        a = np.array([(0, 0), (10, 10), (-60, 170)], float)
        b = np.array([(5, 5), (80, -170)], float)
        matrix = haversine_km(a[:, None], b[None])
        assert matrix.shape == (3, 2)
        for i in range(3):
            for j in range(2):
                assert matrix[i, j] == pytest.approx(vincenty_on_a_sphere_km(tuple(a[i]), tuple(b[j])), abs=1e-6)
        assert haversine_km(np.empty((0, 2)), (0, 0)).shape == (0,)

    def test_nan_stays_nan(self):
        assert np.isnan(haversine_km((math.nan, 0), (0, 0)))


class TestUnitVectors:
    @pytest.mark.parametrize(
        ("place", "vector"),
        [
            ((0, 0), (1, 0, 0)),
            ((0, 90), (0, 1, 0)),
            ((90, 33), (0, 0, 1)),
            ((-90, 0), (0, 0, -1)),
            ((0, 180), (-1, 0, 0)),
            ((0, -180), (-1, 0, 0)),
            ((45, 0), (math.sqrt(0.5), 0, math.sqrt(0.5))),
        ],
    )
    def test_hand_placed(self, place, vector):
        assert to_unit_vectors(place) == pytest.approx(vector, abs=1e-15)

    @settings(deadline=None)
    @given(places)
    def test_length_and_way_back(self, place):
        vector = to_unit_vectors(place)
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-15)
        back = from_unit_vectors(vector)
        assert vincenty_on_a_sphere_km(place, tuple(back)) < 1e-7
        assert abs(back[0]) <= 90
        assert abs(back[1]) <= 180
        if abs(place[0]) < 89 and abs(place[1]) < 180:
            assert back == pytest.approx(place, abs=1e-10)

    @settings(deadline=None)
    @given(places, st.floats(1e-6, 1e6))
    def test_length_of_the_vector_does_not_matter(self, place, length):
        far = from_unit_vectors(to_unit_vectors(place) * length)
        assert vincenty_on_a_sphere_km(place, tuple(far)) < 1e-7

    def test_nothing_points_nowhere_without_a_fault(self):
        assert from_unit_vectors([0.0, 0.0, 0.0]).tolist() == [0.0, 0.0]
        assert from_unit_vectors(np.empty((0, 3))).shape == (0, 2)


class TestSphericalMean:
    @pytest.mark.parametrize(
        ("points", "weights", "expected"),
        [
            ([(0, 179), (0, -179)], [1, 1], (0, 180)),
            ([(0, 179), (0, -177)], [1, 1], (0, -179)),
            ([(80, 0), (80, 180)], [1, 1], (90, None)),
            ([(-80, 0), (-80, 90), (-80, 180), (-80, -90)], [1, 1, 1, 1], (-90, None)),
            ([(0, 0), (0, 90)], [1, 1], (0, 45)),
            ([(0, 0), (0, 90)], [math.sqrt(3), 1], (0, 30)),
            ([(10, 20), (50, 60)], [1, 0], (10, 20)),
            ([(12, 34)], [0.3], (12, 34)),
            ([(90, 0), (90, 120), (90, -40)], [1, 2, 3], (90, None)),
        ],
    )
    def test_hand_placed(self, points, weights, expected):
        mean, defined = spherical_mean(np.array(points, float), np.array(weights, float))
        assert defined
        latitude, longitude = expected
        assert mean[0] == pytest.approx(latitude, abs=1e-9)
        if longitude is not None:
            assert abs(cmath.exp(1j * math.radians(mean[1])) - cmath.exp(1j * math.radians(longitude))) < 1e-12

    @pytest.mark.parametrize(
        ("points", "weights", "stand_in"),
        [
            ([(10, 20), (-10, -160)], [1, 1], (10, 20)),
            ([(90, 0), (-90, 0)], [2, 2], (90, 0)),
            ([(0, 0), (0, 120), (0, -120)], [1, 1, 1], (0, 0)),
            ([(0, 0), (0, 90), (0, 180), (0, -90)], [1, 2, 1, 2], (0, 90)),
            ([(10, 20), (-10, -160 + 1e-5)], [1, 1], (10, 20)),
            ([(3, 4), (5, 6)], [0, 0], (3, 4)),
        ],
    )
    def test_points_that_cancel_have_no_mean(self, points, weights, stand_in):
        mean, defined = spherical_mean(np.array(points, float), np.array(weights, float))
        assert not defined
        assert mean.tolist() == list(stand_in)

    def test_almost_antipodal_points_have_one(self):
        mean, defined = spherical_mean(np.array([(0, 0), (0, 179.99)]), np.array([1.0, 1.0]))
        assert defined
        assert mean == pytest.approx((0, 89.995), abs=1e-9)

    def test_size_of_the_weights_does_not_matter_to_defined(self):
        for size in (1e-12, 1.0, 1e12):
            assert not spherical_mean(np.array([(10.0, 20.0), (-10.0, -160.0)]), np.array([size, size]))[1]
            assert spherical_mean(np.array([(10.0, 20.0), (11.0, 21.0)]), np.array([size, size]))[1]

    def test_rows_do_not_mix(self):
        points = np.array([[(0, 179), (0, -179)], [(10, 20), (-10, -160)], [(5, 5), (5, 5)]], float)
        means, defined = spherical_mean(points, np.ones((3, 2)))
        assert defined.tolist() == [True, False, True]
        assert abs(means[0]) == pytest.approx((0, 180))
        assert means[1:].tolist() == [[10, 20], pytest.approx([5, 5])]

    def test_no_rows(self):
        means, defined = spherical_mean(np.empty((0, 3, 2)), np.empty((0, 3)))
        assert means.shape == (0, 2)
        assert defined.shape == (0,)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(latitudes, longitudes, st.floats(0.01, 1)), min_size=1, max_size=6))
    def test_equals_a_plain_loop(self, rows):
        x = math.fsum(w * math.cos(math.radians(a)) * math.cos(math.radians(o)) for a, o, w in rows)
        y = math.fsum(w * math.cos(math.radians(a)) * math.sin(math.radians(o)) for a, o, w in rows)
        z = math.fsum(w * math.sin(math.radians(a)) for a, o, w in rows)
        assume(math.hypot(x, y, z) > 1e-3)
        expected = (math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))
        mean, defined = spherical_mean([(a, o) for a, o, _ in rows], [w for _, _, w in rows])
        assert defined
        assert vincenty_on_a_sphere_km(tuple(mean), expected) < 1e-6


class TestDestination:
    @pytest.mark.parametrize(
        ("start", "bearing", "km", "expected"),
        [
            ((0, 0), 90, HALF_CIRCUMFERENCE_KM / 2, (0, 90)),
            ((0, 0), 0, HALF_CIRCUMFERENCE_KM / 4, (45, 0)),
            ((0, 179), 90, HALF_CIRCUMFERENCE_KM / 90, (0, -179)),
            ((80, 0), 0, HALF_CIRCUMFERENCE_KM / 9, (80, 180)),
            ((10, 20), 270, 0, (10, 20)),
            ((10, 20), 33, HALF_CIRCUMFERENCE_KM, (-10, -160)),
            # Chris Veness, "Calculate distance, bearing and more": 53 19 14 N 1 43 47 W, 96 01 18, 124.8 km
            ((53.320556, -1.729722), 96.021667, 124.8, (53.188269, 0.133333)),
        ],
    )
    def test_hand_placed(self, start, bearing, km, expected):
        assert vincenty_on_a_sphere_km(tuple(destination(start, bearing, km)), expected) < 0.05

    @settings(deadline=None)
    @given(places, st.floats(0, 360), st.floats(0, HALF_CIRCUMFERENCE_KM))
    def test_lies_as_far_away_as_one_went(self, start, bearing, km):
        there = tuple(destination(start, bearing, km))
        assert vincenty_on_a_sphere_km(start, there) == pytest.approx(km, abs=1e-6)
        assert abs(there[0]) <= 90
        assert abs(there[1]) <= 180

    @settings(deadline=None)
    @given(st.floats(-89, 89), longitudes, st.floats(0, 360), st.floats(1, 15000))
    def test_lies_in_the_direction_one_went(self, latitude, longitude, bearing, km):
        lat2, lon2 = (math.radians(v) for v in destination((latitude, longitude), bearing, km))
        lat1, lon1 = math.radians(latitude), math.radians(longitude)
        east = math.sin(lon2 - lon1) * math.cos(lat2)
        north = math.cos(lat1) * math.sin(lat2) - math.sin(lat1) * math.cos(lat2) * math.cos(lon2 - lon1)
        assert abs(math.remainder(math.degrees(math.atan2(east, north)) - bearing, 360)) < 1e-4

    def test_broadcasts(self):
        ring = destination((45.0, 179.5), np.arange(0, 360, 45.0), 100.0)
        assert ring.shape == (8, 2)
        for place in ring:
            assert vincenty_on_a_sphere_km((45.0, 179.5), tuple(place)) == pytest.approx(100, abs=1e-9)
