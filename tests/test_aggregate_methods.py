"""The geometric median, the best GeoScore, the cell vote and the density's parameters, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import s2sphere
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.aggregate import aggregate
from geoinfer.aggregate.cells import COARSEST_LEVEL, FINEST_LEVEL
from geoinfer.answer import Answer
from geoinfer.geodesy import destination

LISBON, SYDNEY, PORTO, MADRID = (38.72, -9.14), (-33.87, 151.21), (41.15, -8.61), (40.42, -3.70)


def arc_km(a, b) -> float:
    lat1, lon1, lat2, lon2 = (math.radians(float(v)) for v in (*a, *b))
    across = math.hypot(
        math.cos(lat2) * math.sin(lon2 - lon1),
        math.cos(lat1) * math.sin(lat2) - math.sin(lat1) * math.cos(lat2) * math.cos(lon2 - lon1),
    )
    along = math.sin(lat1) * math.sin(lat2) + math.cos(lat1) * math.cos(lat2) * math.cos(lon2 - lon1)
    return 6371.0 * math.atan2(across, along)


def weights_of(similarities, temperature=0.05):
    raw = [math.exp((s - max(similarities)) / temperature) for s in similarities]
    return [w / sum(raw) for w in raw]


def median_cost(place, places, weights) -> float:
    return math.fsum(w * arc_km(place, p) for p, w in zip(places, weights, strict=True))


def geoscore_cost(place, places, weights) -> float:
    return -math.fsum(w * math.exp(-arc_km(place, p) / 1492.7) for p, w in zip(places, weights, strict=True))


COSTS = {"median": median_cost, "geoscore": geoscore_cost}


def fibonacci(count):
    """Places spread evenly over the whole Earth."""
    golden = math.pi * (3 - math.sqrt(5))
    for i in range(count):
        z = 1 - (2 * i + 1) / count
        yield math.degrees(math.asin(z)), math.degrees(i * golden) % 360 - 180


def around(place, radius_km):
    for bearing in range(0, 360, 20):
        for share in (0.2, 0.6, 1.0):
            latitude, longitude = destination(place, bearing, share * radius_km)
            yield float(latitude), float(longitude)


def lowest(cost, places, weights):
    """The smallest cost by brute force: the whole Earth, then finer and finer around the best dozen."""
    candidates = [*places, *fibonacci(1500)]
    best = sorted(candidates, key=lambda place: cost(place, places, weights))[:12]
    for radius_km in (300.0, 100.0, 30.0, 8.0, 2.0, 0.5):
        best = sorted([*best, *(n for b in best[:4] for n in around(b, radius_km))],
                      key=lambda place: cost(place, places, weights))[:4]  # fmt: skip
    return cost(best[0], places, weights)


def one(places, similarities, method, **parameters):
    answer = Answer(aggregate=method, **parameters)
    return aggregate(np.array([places], np.float64), np.array([similarities], np.float32), answer)[0]


def scattered(rng, count, kind):
    if kind == "globe":
        return [(math.degrees(math.asin(rng.uniform(-1, 1))), rng.uniform(-180, 180)) for _ in range(count)]
    centres = {"pole": [(89.0, 20.0)], "antimeridian": [(-17.0, 179.8)], "two": [(50.0, 10.0), (-20.0, 130.0)]}[kind]
    chosen = [centres[int(rng.integers(len(centres)))] for _ in range(count)]
    return [tuple(destination(c, rng.uniform(0, 360), abs(rng.normal(0, 300))).tolist()) for c in chosen]


@pytest.mark.parametrize("method", ["median", "geoscore"])
class TestNearestToAll:
    @pytest.mark.parametrize("kind", ["globe", "pole", "antimeridian", "two"])
    def test_no_place_on_earth_is_better(self, method, kind):
        rng = np.random.default_rng(7)
        for count in (2, 3, 5, 8, 12):
            places = scattered(rng, count, kind)
            similarities = np.sort(rng.uniform(0.6, 0.75, count).astype(np.float32))[::-1].tolist()
            weights = weights_of(similarities)
            reached = COSTS[method](one(places, similarities, method), places, weights)
            assert reached <= lowest(COSTS[method], places, weights) + (1e-3 if method == "median" else 1e-7)

    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(
                st.one_of(st.sampled_from([-90.0, 0.0, 90.0]), st.floats(-90, 90)),
                st.one_of(st.sampled_from([-180.0, 0.0, 180.0]), st.floats(-180, 180)),
                st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32)),
            ),
            min_size=1,
            max_size=6,
        )
    )
    def test_never_worse_than_the_best_neighbor(self, method, rows):
        rows = sorted(rows, key=lambda row: -row[2])
        places, similarities = [row[:2] for row in rows], [row[2] for row in rows]
        weights, cost = weights_of(similarities), COSTS[method]
        reached = cost(one(places, similarities, method), places, weights)
        assert reached <= min(cost(place, places, weights) for place in places) + 1e-2

    def test_one_that_weighs_half_holds_it(self, method):
        # The others cannot pull it away, wherever they are.
        rng = np.random.default_rng(4)
        for _ in range(10):
            places = [LISBON, *scattered(rng, 5, "two")]
            assert arc_km(one(places, [0.9, 0.7, 0.7, 0.7, 0.7, 0.7], method, temperature=0.05), LISBON) < 1e-6

    def test_of_equals_the_more_similar_wins(self, method):
        assert arc_km(one([LISBON, SYDNEY], [0.5, 0.5], method), LISBON) < 1e-6
        assert arc_km(one([SYDNEY, LISBON], [0.5, 0.5], method), SYDNEY) < 1e-6

    def test_antipodes(self, method):
        assert arc_km(one([(10.0, 20.0), (-10.0, -160.0)], [0.5, 0.5], method), (10.0, 20.0)) < 1e-6
        assert arc_km(one([(90.0, 0.0), (-90.0, 0.0)], [0.5, 0.5], method), (90.0, 0.0)) < 1e-6

    def test_copies_add_up(self, method):
        places = [SYDNEY, LISBON, LISBON, LISBON, PORTO]
        assert arc_km(one(places, [0.5] * 5, method), LISBON) < 1e-6

    def test_a_square_around_the_pole(self, method):
        corners = [(80.0, longitude) for longitude in (0.0, 90.0, 180.0, -90.0)]
        answer = one(corners, [0.5] * 4, method)
        if method == "median":
            assert arc_km(answer, (90.0, 0.0)) < 1e-3


class TestMedian:
    def test_the_point_that_sees_three_corners_at_equal_angles(self):
        # The Fermat point of an equilateral triangle is its middle.
        corners = [tuple(destination((20.0, 180.0), bearing, 500.0).tolist()) for bearing in (0, 120, 240)]
        assert arc_km(one(corners, [0.5] * 3, "median"), (20.0, 180.0)) < 1e-3

    def test_a_stray_moves_it_less_than_the_mean(self):
        near = [tuple(destination(MADRID, bearing, 200.0).tolist()) for bearing in range(0, 360, 60)]
        median, mean = (one([*near, SYDNEY], [0.5] * 7, method, temperature=1.0) for method in ("median", "mean"))
        assert arc_km(median, MADRID) < 100 < arc_km(mean, MADRID)

    def test_on_a_line_it_is_the_middle_one(self):
        places = [(0.0, longitude) for longitude in (178.0, -179.0, 179.9, -170.0, -178.0)]
        assert arc_km(one(places, [0.5] * 5, "median"), (0.0, -179.0)) < 1e-6


class TestGeoscore:
    def test_two_of_three_are_not_left_for_the_middle(self):
        places = [SYDNEY, LISBON, PORTO]
        answer = one(places, [0.5] * 3, "geoscore")
        assert arc_km(answer, LISBON) + arc_km(answer, PORTO) == pytest.approx(arc_km(LISBON, PORTO), abs=1e-3)


def s2_cell(place, level):
    return s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(*place)).parent(level).id()


def voted(places, weights):
    """The rule in plain words and loops: (which neighbours stay, at which level)."""
    inside, won, reached = list(range(len(places))), None, None
    for level in range(2, 15):
        totals: dict[int, float] = {}
        for i in inside:
            totals[s2_cell(places[i], level)] = totals.get(s2_cell(places[i], level), 0.0) + weights[i]
        best = max(totals.values())
        cell = next(s2_cell(places[i], level) for i in inside if totals[s2_cell(places[i], level)] > best - 1e-11)
        if won is not None and totals[cell] < won / 2:
            break
        inside, won, reached = [i for i in inside if s2_cell(places[i], level) == cell], totals[cell], level
    return inside, reached


class TestCells:
    @pytest.mark.parametrize("kind", ["globe", "pole", "antimeridian", "two"])
    def test_equals_plain_loops(self, kind):
        rng = np.random.default_rng(12)
        levels = set()
        for count in (1, 2, 3, 5, 8, 20) * 5:
            places = scattered(rng, count, kind)
            similarities = np.sort(rng.uniform(0.6, 0.75, count).astype(np.float32))[::-1].tolist()
            weights = weights_of(similarities)
            inside, level = voted(places, weights)
            levels.add(level)
            total = np.zeros(3)
            for i in inside:
                latitude, longitude = np.deg2rad(places[i])
                total += weights[i] * np.array(
                    [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
                )
            expected = (
                math.degrees(math.atan2(total[2], math.hypot(*total[:2]))),
                math.degrees(math.atan2(total[1], total[0])),
            )
            assert arc_km(one(places, similarities, "cells"), expected) < 1e-5
        assert kind == "globe" or len(levels) > 1

    def test_the_levels_are_those_of_the_docs(self):
        assert (COARSEST_LEVEL, FINEST_LEVEL) == (2, 14)

    def test_agreement_goes_to_the_village_and_disagreement_stays_coarse(self):
        village = [tuple(destination(MADRID, bearing, 0.05).tolist()) for bearing in (0, 120, 240)]
        assert arc_km(one([*village, SYDNEY], [0.5] * 4, "cells"), MADRID) < 0.3
        # Four towns of one level-2 cell, none of which has half of the weight.
        cell = s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(*MADRID)).parent(2)
        children = [child.to_lat_lng() for child in cell.children()]
        towns = [(child.lat().degrees, child.lng().degrees) for child in children]
        middle = cell.to_lat_lng()
        answer = one(towns, [0.5] * 4, "cells")
        assert arc_km(answer, (middle.lat().degrees, middle.lng().degrees)) < 50

    def test_of_equal_cells_the_more_similar_neighbor_wins(self):
        assert arc_km(one([LISBON, SYDNEY], [0.5, 0.5], "cells"), LISBON) < 1e-6
        assert arc_km(one([SYDNEY, LISBON], [0.5, 0.5], "cells"), SYDNEY) < 1e-6


class TestDensityParameters:
    @pytest.mark.parametrize("bandwidth_km", [50.0, 400.0])
    def test_two_equal_neighbors_meet_in_the_middle_until_two_bandwidths_apart(self, bandwidth_km):
        degrees = 1.6 * bandwidth_km / (math.pi * 6371.0 / 180.0)
        together = one([(0, 0), (0, degrees)], [0.5, 0.5], "density", bandwidth_km=bandwidth_km)
        apart = one([(0, 0), (0, 2 * degrees)], [0.5, 0.5], "density", bandwidth_km=bandwidth_km)
        assert arc_km(together, (0, degrees / 2)) < 1
        assert arc_km(apart, (0, 0)) < 0.1 * bandwidth_km

    def test_the_smallest_and_the_largest_bandwidth(self):
        places = [LISBON, SYDNEY, PORTO]
        assert arc_km(one(places, [0.6, 0.5, 0.5], "density", bandwidth_km=1.0), LISBON) < 1e-6
        wide = one([LISBON, PORTO, MADRID], [0.5] * 3, "density", bandwidth_km=10_000.0)
        assert arc_km(wide, one([LISBON, PORTO, MADRID], [0.5] * 3, "mean")) < 1
