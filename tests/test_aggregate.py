from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.aggregate import METHODS, aggregate
from geoinfer.aggregate.weights import neighbor_weights, similarity_weights
from geoinfer.answer import Answer

LISBON, SYDNEY, PORTO = (38.72, -9.14), (-33.87, 151.21), (41.15, -8.61)


def arc_km(a, b) -> float:
    lat1, lon1, lat2, lon2 = (math.radians(float(v)) for v in (*a, *b))
    across = math.hypot(
        math.cos(lat2) * math.sin(lon2 - lon1),
        math.cos(lat1) * math.sin(lat2) - math.sin(lat1) * math.cos(lat2) * math.cos(lon2 - lon1),
    )
    along = math.sin(lat1) * math.sin(lat2) + math.cos(lat1) * math.cos(lat2) * math.cos(lon2 - lon1)
    return 6371.0 * math.atan2(across, along)


def density(place, neighbors, similarities, temperature=0.05, bandwidth_km=200.0) -> float:
    """The von Mises-Fisher density at a place, up to a factor."""
    kappa = (6371.0 / bandwidth_km) ** 2
    weights = [math.exp((s - max(similarities)) / temperature) for s in similarities]
    return math.fsum(
        weight * math.exp(kappa * (math.cos(arc_km(place, neighbor) / 6371.0) - 1))
        for neighbor, weight in zip(neighbors, weights, strict=True)
    )


def step(place, north_km, east_km):
    """A small step: good enough to search with, away from the poles."""
    latitude, longitude = place
    latitude += north_km / 111.195
    longitude += east_km / 111.195 / max(math.cos(math.radians(latitude)), 1e-6)
    return latitude, (longitude + 180) % 360 - 180


def highest_place(neighbors, similarities):
    """The maximum of the density by grids that get finer, around every neighbour."""
    best = max(neighbors, key=lambda place: density(place, neighbors, similarities))
    centres = list(neighbors)
    for spacing_km in (60.0, 15.0, 4.0, 1.0, 0.3):
        grid = [
            step(c, north * spacing_km, east * spacing_km)
            for c in centres
            for north in range(-4, 5)
            for east in range(-4, 5)
        ]
        best = max([best, *grid], key=lambda place: density(place, neighbors, similarities))
        centres = [best]
    return best


def one(places, similarities, method, **parameters):
    coordinates = np.array([places], np.float64)
    answer = Answer(aggregate=method, **parameters)
    return aggregate(coordinates, np.array([similarities], np.float32), answer)[0]


class TestEveryMethod:
    @pytest.mark.parametrize("method", METHODS)
    def test_one_neighbor_is_the_answer(self, method):
        for place in [LISBON, (90.0, 0.0), (-90.0, 0.0), (0.0, 180.0), (0.0, -180.0), (0.0, 0.0)]:
            assert arc_km(one([place], [0.4], method), place) < 1e-6

    @pytest.mark.parametrize("method", METHODS)
    def test_neighbors_in_one_place_are_the_answer(self, method):
        assert arc_km(one([SYDNEY] * 7, [0.9, 0.8, 0.7, 0.1, 0.0, -0.1, -1.0], method), SYDNEY) < 1e-6

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("k", [1, 10])
    def test_no_queries(self, method, k):
        answers = aggregate(np.empty((0, k, 2)), np.empty((0, k), np.float32), Answer(aggregate=method))
        assert answers.shape == (0, 2)
        assert answers.dtype == np.float64

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("scale_deg", [0.5, 3.0, 40.0])
    def test_an_answer_does_not_depend_on_its_batch(self, method, scale_deg):
        rng = np.random.default_rng(5)
        coordinates = rng.normal(0, scale_deg, (40, 12, 2)).clip(-90, 90)
        similarities = np.sort(rng.uniform(-0.2, 1, (40, 12)).astype(np.float32))[:, ::-1].copy()
        way = Answer(aggregate=method)
        together = aggregate(coordinates, similarities, way)
        alone = [aggregate(coordinates[i : i + 1], similarities[i : i + 1], way)[0] for i in range(40)]
        backwards = aggregate(coordinates[::-1].copy(), similarities[::-1].copy(), way)[::-1]
        # Bit by bit: a resumed run must write the same bytes whatever its batches were.
        assert together.tobytes() == np.stack(alone).tobytes()
        assert together.tobytes() == backwards.tobytes()

    @pytest.mark.parametrize("method", METHODS)
    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(
                st.one_of(st.sampled_from([-90.0, 90.0]), st.floats(-90, 90)),
                st.one_of(st.sampled_from([-180.0, 180.0]), st.floats(-180, 180)),
                st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1, 1, width=32)),
            ),
            min_size=1,
            max_size=8,
        )
    )
    def test_the_answer_is_on_the_earth(self, method, rows):
        rows = sorted(rows, key=lambda row: -row[2])
        latitude, longitude = one([r[:2] for r in rows], [r[2] for r in rows], method)
        assert abs(latitude) <= 90
        assert abs(longitude) <= 180

    @pytest.mark.parametrize("method", METHODS)
    def test_the_inputs_are_left_alone(self, method):
        coordinates, similarities = np.array([[LISBON, SYDNEY]]), np.array([[0.5, -0.25]], np.float32)
        answer = aggregate(coordinates, similarities, Answer(aggregate=method))
        answer[:] = 0
        assert coordinates.tolist() == [[list(LISBON), list(SYDNEY)]]
        assert similarities.tolist() == [[0.5, -0.25]]

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("scale_deg", [2.0, 60.0])
    def test_what_is_padded_with_minus_infinity_does_not_count(self, method, scale_deg):
        # As calibration pads the rows of photos that have fewer neighbours: with the place of the first.
        rng = np.random.default_rng(3)
        for _ in range(20):
            places = [tuple(p) for p in rng.normal(0, scale_deg, (6, 2)).clip(-90, 90).tolist()]
            similarities = np.sort(rng.uniform(-0.9, 0.9, 6).astype(np.float32))[::-1].tolist()
            padded = one([*places, *places[:1] * 4], [*similarities, *[-np.inf] * 4], method)
            assert arc_km(padded, one(places, similarities, method)) < 1e-3

    def test_a_padded_mean_of_nothing_positive_is_even_over_what_counts(self):
        places = [(0.0, 0.0), (0.0, 60.0), (0.0, 0.0), (0.0, 0.0)]
        assert arc_km(one(places, [-0.1, -0.9, -np.inf, -np.inf], "mean"), (0.0, 30.0)) < 1e-6

    @pytest.mark.parametrize("method", [method for method in METHODS if method != "top1"])
    def test_a_small_temperature_leaves_the_most_similar_alone(self, method):
        assert arc_km(one([LISBON, SYDNEY, PORTO], [0.9, 0.89, 0.88], method, temperature=0.0001), LISBON) < 1e-3

    @pytest.mark.parametrize("method", ["mean", "median", "density", "cells", "geoscore"])
    def test_a_large_temperature_counts_heads(self, method):
        places = [LISBON, SYDNEY, SYDNEY, SYDNEY]
        if method == "mean":
            expected = one(places, [0.5] * 4, "mean")
            assert arc_km(one(places, [0.9, 0.2, 0.1, 0.0], method, temperature=100.0), expected) < 60
        else:
            assert arc_km(one(places, [0.9, 0.2, 0.1, 0.0], method, temperature=100.0), SYDNEY) < 1e-6


class TestWeights:
    def test_by_hand(self):
        weights = similarity_weights(np.array([[0.75, 0.25, 0.0, -0.5], [-0.1, -0.2, -0.3, -0.4]], np.float32))
        assert weights.tolist() == [[0.75, 0.25, 0, 0], [0.25] * 4]
        assert weights.dtype == np.float64

    def test_zeros_weigh_evenly(self):
        assert similarity_weights(np.zeros((1, 5), np.float32)).tolist() == [[0.2] * 5]

    def test_tiny_similarities_are_still_in_proportion(self):
        weights = similarity_weights(np.array([[3e-38, 1e-38]], np.float32))
        assert weights[0] == pytest.approx([0.75, 0.25], rel=1e-6)

    def test_exponential_by_hand(self):
        weights = neighbor_weights(np.array([[0.5, 0.4, -np.inf]], np.float32), 0.1)
        assert weights[0] == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e), 0.0], rel=1e-6)

    @pytest.mark.parametrize("temperature", [0.0001, 0.05, 100.0])
    def test_only_differences_count(self, temperature):
        similarities = np.array([[1.0, 0.5, -0.25]], np.float32)
        assert neighbor_weights(similarities, temperature) == pytest.approx(
            neighbor_weights(similarities - np.float32(0.75), temperature)
        )


class TestTop1:
    def test_is_the_first(self):
        assert one([SYDNEY, LISBON, PORTO], [0.5, 0.5, 0.4], "top1").tolist() == list(SYDNEY)
        assert one([SYDNEY, LISBON], [-0.5, -0.6], "top1").tolist() == list(SYDNEY)


class TestMean:
    def test_equals_a_plain_loop(self):
        rng = np.random.default_rng(8)
        for _ in range(50):
            k = int(rng.integers(1, 8))
            places = [(float(rng.uniform(-90, 90)), float(rng.uniform(-180, 180))) for _ in range(k)]
            similarities = np.sort(rng.uniform(-0.3, 1, k).astype(np.float32))[::-1].tolist()
            weights = [max(s, 0.0) for s in similarities]
            if sum(weights) == 0:
                weights = [1.0] * k
            x = y = z = 0.0
            for (latitude, longitude), weight in zip(places, weights, strict=True):
                x += weight * math.cos(math.radians(latitude)) * math.cos(math.radians(longitude))
                y += weight * math.cos(math.radians(latitude)) * math.sin(math.radians(longitude))
                z += weight * math.sin(math.radians(latitude))
            expected = math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x))
            assert arc_km(one(places, similarities, "mean"), expected) < 1e-5

    def test_across_the_antimeridian(self):
        latitude, longitude = one([(0, 178), (0, -176)], [0.5, 0.5], "mean")
        assert (latitude, longitude) == (pytest.approx(0, abs=1e-9), pytest.approx(-179))

    def test_antipodes_leave_the_more_similar(self):
        assert one([(10, 20), (-10, -160)], [0.5, 0.5], "mean").tolist() == [10, 20]

    def test_negative_similarities_weigh_nothing(self):
        assert arc_km(one([LISBON, SYDNEY], [0.1, -0.9], "mean"), LISBON) < 1e-6
        assert arc_km(one([(0, 0), (0, 60)], [-0.1, -0.9], "mean"), (0, 30)) < 1e-6


class TestDensity:
    def test_is_the_highest_place_of_clusters(self):
        rng = np.random.default_rng(11)
        for _ in range(12):
            centres = [(-50, 179.5), (0, -179.9), (62, 10), (20, 100)]
            # Tight against the kernel, so that the densest neighbour stands on the highest hill.
            places = [step(centres[int(rng.integers(4))], *rng.uniform(-90, 90, 2)) for _ in range(7)]
            similarities = np.sort(rng.uniform(0.6, 0.75, 7).astype(np.float32))[::-1].tolist()
            expected = highest_place(places, similarities)
            assert arc_km(one(places, similarities, "density"), expected) < 1.0

    @pytest.mark.parametrize("scale_km", [150.0, 300.0, 500.0])
    def test_is_the_highest_place_of_scattered_neighbors(self, scale_km):
        # Here the densest neighbour often stands on a lower hill than the highest.
        rng = np.random.default_rng(int(scale_km))
        for _ in range(20):
            places = [step((48.0, 179.0), *rng.normal(0, scale_km, 2).clip(-3000, 3000)) for _ in range(10)]
            similarities = np.sort(rng.uniform(0.7, 0.75, 10).astype(np.float32))[::-1].tolist()
            answer = density(one(places, similarities, "density"), places, similarities)
            grid = [step((48.0, 179.0), east, north) for east in range(-900, 901, 60) for north in range(-900, 901, 60)]
            assert answer >= max(density(place, places, similarities) for place in grid)

    @pytest.mark.parametrize("scale_km", [100.0, 300.0, 600.0, 2000.0])
    def test_is_a_peak_at_least_as_high_as_every_neighbor(self, scale_km):
        rng = np.random.default_rng(int(scale_km))
        for _ in range(15):
            places = [step((48.0, 179.0), *rng.normal(0, scale_km, 2).clip(-3500, 3500)) for _ in range(10)]
            similarities = np.sort(rng.uniform(0.6, 0.75, 10).astype(np.float32))[::-1].tolist()
            answer = one(places, similarities, "density")
            here = density(answer, places, similarities)
            assert here >= max(density(place, places, similarities) for place in places) * (1 - 1e-9)
            for angle in range(0, 360, 30):
                radians = math.radians(angle)
                around = step(answer, 3 * math.cos(radians), 3 * math.sin(radians))
                assert density(around, places, similarities) < here

    def test_two_equal_neighbors_a_bandwidth_apart_meet_in_the_middle(self):
        # The density of two equal kernels has one peak, between them, until they are two bandwidths apart.
        degrees = 300.0 / (math.pi * 6371.0 / 180.0)
        assert arc_km(one([(0, 0), (0, degrees)], [0.5, 0.5], "density"), (0, degrees / 2)) < 0.5

    def test_the_mean_of_lisbon_and_sydney_is_no_answer(self):
        # Two that are nearly as similar outvote one; one that stands out decides alone.
        assert arc_km(one([LISBON, SYDNEY, SYDNEY], [0.60, 0.58, 0.57], "density"), SYDNEY) < 1e-6
        assert arc_km(one([LISBON, SYDNEY, SYDNEY], [0.99, 0.58, 0.57], "density"), LISBON) < 1e-6
        assert min(arc_km(one([LISBON, SYDNEY, SYDNEY], [0.9, 0.5, 0.5], "mean"), p) for p in (LISBON, SYDNEY)) > 2000

    def test_of_equal_peaks_the_more_similar_neighbor_wins(self):
        assert arc_km(one([LISBON, SYDNEY], [0.5, 0.5], "density"), LISBON) < 1e-6
        assert arc_km(one([SYDNEY, LISBON], [0.5, 0.5], "density"), SYDNEY) < 1e-6
        assert arc_km(one([SYDNEY, LISBON, LISBON, SYDNEY], [0.5] * 4, "density"), SYDNEY) < 1e-6

    def test_peaks_that_differ_by_rounding_are_equal(self):
        # The same pair of places at different longitudes: equal densities, but for the last bit of a sum.
        for longitude in range(7, 170, 3):
            east, west = [(50, longitude), (50, longitude + 1)], [(50, -0.7 * longitude), (50, -0.7 * longitude - 1)]
            assert one([*east, *west], [0.5] * 4, "density")[1] > 0
            assert one([*west, *east], [0.5] * 4, "density")[1] < 0

    def test_two_clusters_across_the_antimeridian_are_one(self):
        # Fiji lies on both sides of 180 degrees; together its halves outweigh the third place.
        places = [(0.0, 100.0), (-17.0, 179.7), (-17.0, -179.7)]
        answer = one(places, [0.6, 0.59, 0.59], "density")
        assert arc_km(answer, (-17.0, 180.0)) < 1.0

    def test_around_a_pole(self):
        places = [(89.8, float(longitude)) for longitude in (0, 90, 180, -90)]
        assert arc_km(one([(0.0, 0.0), *places], [0.55, 0.5, 0.5, 0.5, 0.5], "density"), (90.0, 0.0)) < 0.1

    def test_only_differences_of_similarity_count(self):
        for level in (0.9, 0.0, -0.7):
            assert arc_km(one([LISBON, SYDNEY, SYDNEY], [level, level - 0.02, level - 0.03], "density"), SYDNEY) < 1e-6
            assert arc_km(one([LISBON, SYDNEY, SYDNEY], [level, level - 0.2, level - 0.3], "density"), LISBON) < 1e-6
