from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.aggregate import METHODS, aggregate
from geoinfer.answer import Answer
from geoinfer.calibration import (
    Calibration,
    calibrate,
    leave_one_out_errors_km,
    neighbor_spread_km,
    why_not_calibrated,
)
from geoinfer.index import LeaveOneOut, References, held_out_photos
from geoinfer.index.flat import FlatIndex
from geoinfer.index.leave_one_out import leave_one_out

HALF_CIRCUMFERENCE_KM = math.pi * 6371


def arc_km(a, b) -> float:
    lat1, lon1, lat2, lon2 = (math.radians(float(v)) for v in (*a, *b))
    across = math.hypot(
        math.cos(lat2) * math.sin(lon2 - lon1),
        math.cos(lat1) * math.sin(lat2) - math.sin(lat1) * math.cos(lat2) * math.cos(lon2 - lon1),
    )
    along = math.sin(lat1) * math.sin(lat2) + math.cos(lat1) * math.cos(lat2) * math.cos(lon2 - lon1)
    return 6371.0 * math.atan2(across, along)


class World:
    """Towns on a sphere. A photo's embedding tells its town, more or less: some towns look like others."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        z, longitude = self.rng.uniform(-1, 1, 50), self.rng.uniform(-180, 180, 50)
        self.towns = np.stack([np.degrees(np.arcsin(z)), longitude], axis=1)
        self.looks = self.rng.normal(size=(50, 16))
        self.looks[1::2] = self.looks[::2] + 0.5 * self.looks[1::2]
        self.noise = self.rng.uniform(0.1, 1.2, 50)

    def photos(self, count: int):
        town = self.rng.integers(0, 50, count)
        offset = self.rng.normal(0, 0.6, (count, 2))
        places = self.towns[town] + offset
        places[:, 0] = places[:, 0].clip(-90, 90)
        places[:, 1] = (places[:, 1] + 180) % 360 - 180
        looks = self.looks[town] + self.noise[town][:, None] * self.rng.normal(size=(count, 16))
        looks[:, :2] += offset
        vectors = (looks / np.linalg.norm(looks, axis=1, keepdims=True)).astype(np.float32)
        return places, vectors


def references_of(places, seed: int = 0) -> References:
    n = len(places)
    rng = np.random.default_rng(seed)
    digests = b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(n))
    return References(
        ids=[f"{i}.jpg" for i in range(n)],
        coordinates=np.asarray(places, np.float64),
        sources=[""] * n,
        attributions=[""] * n,
        content_sha256=np.frombuffer(digests, np.uint8).reshape(n, 32),
        perceptual_hashes=rng.integers(0, 256, (n, 32), dtype=np.uint8),
    )


LEVELS = (0.5, 0.8, 0.9, 0.95)


def calibrated_answers(index, held_out, coordinates, queries, method, k):
    """(answers, radii by level, scores) of fresh queries, as the geolocator makes them."""
    calibration = calibrate(held_out, coordinates, Answer(k, method))
    found = index.search(queries, max(k, 10))
    places = coordinates[found.ids]
    answers = aggregate(places[:, :k], found.similarities[:, :k], Answer(k, method))
    spread, top1 = neighbor_spread_km(answers, places), found.similarities[:, 0].astype(np.float64)
    radii = {level: calibration.radius_km(spread, top1, level) for level in LEVELS}
    assert (calibration.radius_km(spread, top1) == radii[0.9]).all()
    return answers, radii, calibration.score(spread, top1)


@pytest.fixture(scope="module")
def worlds():
    built = []
    for seed in range(4):
        world = World(seed)
        places, vectors = world.photos(600)
        index = FlatIndex(vectors)
        built.append((index, leave_one_out(index, references_of(places)), places, *world.photos(500)))
    return built


class TestCoverage:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("k", [1, 3, 10, 40])
    def test_fresh_photos_lie_within_their_radius(self, worlds, method, k):
        inside, scores, errors = {level: [] for level in LEVELS}, [], []
        for index, held_out, coordinates, truths, queries in worlds:
            answers, radii, score = calibrated_answers(index, held_out, coordinates, queries, method, k)
            assert np.isfinite(answers).all()
            assert np.isfinite(score).all()
            off = [arc_km(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
            for level in LEVELS:
                assert np.isfinite(radii[level]).all()
                inside[level] += [o <= r for o, r in zip(off, radii[level], strict=True)]
            scores += score.tolist()
            errors += off
        for level in LEVELS:
            # Each of the 4 worlds has 300 scores to take its quantile of and 500 photos to test it with.
            deviation = math.sqrt(level * (1 - level) * (1 / 300 + 1 / 500) / 4)
            share = sum(inside[level]) / len(inside[level])
            assert share >= level - 3 * deviation
            # Nor by promising nothing (the whole Earth would hold all of them).
            assert share <= level + 1 / 301 + 4 * deviation
        # The score orders photos by their error: the better half by score is better.
        better = np.array(scores) > np.median(scores)
        assert np.median(np.array(errors)[better]) < np.median(np.array(errors)[~better])

    def test_the_score_is_the_expected_geoscore(self, worlds):
        expected, true = [], []
        for index, held_out, coordinates, truths, queries in worlds:
            answers, _, scores = calibrated_answers(index, held_out, coordinates, queries, "density", 10)
            expected += scores.tolist()
            true += [math.exp(-arc_km(a, t) / 1492.7) for a, t in zip(answers, truths, strict=True)]
        assert np.mean(expected) == pytest.approx(np.mean(true), abs=0.06)
        assert np.corrcoef(expected, true)[0, 1] > 0.3

    @pytest.mark.parametrize("method", METHODS)
    def test_the_order_of_the_references_hardly_matters(self, method):
        world = World(9)
        places, vectors = world.photos(600)
        _, queries = world.photos(100)
        order = np.random.default_rng(1).permutation(600)
        medians = []
        for rows in (np.arange(600), order):
            index = FlatIndex(vectors[rows])
            held_out = leave_one_out(index, references_of(places[rows]))
            answers, radii, _ = calibrated_answers(index, held_out, places[rows], queries, method, 10)
            medians.append((np.median(radii[0.9]), answers))
        assert medians[0][1] == pytest.approx(medians[1][1], abs=1e-6)
        assert medians[0][0] == pytest.approx(medians[1][0], rel=0.35)


def calibration_of(ratios) -> Calibration:
    """Foretells spread + 0.1 km whatever the similarity."""
    return Calibration(np.array([0.0, 1.0, 0.0]), np.sort(np.asarray(ratios, np.float64)), np.empty(0))


class TestQuantile:
    @pytest.mark.parametrize(
        ("count", "rank"),
        # ceil(0.9 (n + 1)), by hand
        [(9, 9), (10, 10), (11, 11), (18, 18), (19, 18), (20, 19), (28, 27), (29, 27), (99, 90), (100, 91), (999, 900)],
    )
    def test_rank(self, count, rank):
        ratios = np.arange(1, count + 1, dtype=np.float64)
        calibration = calibration_of(ratios)
        assert calibration.usable
        assert calibration.radius_km(np.array([9.9]), np.array([0.5])) == pytest.approx(min(10.0 * rank, 20015.0868))

    @pytest.mark.parametrize(
        ("count", "coverage", "rank"),
        # ceil(coverage (n + 1)), by hand; None where that is more than n
        [(1, 0.5, 1), (2, 0.5, 2), (3, 0.5, 2), (10, 0.5, 6), (99, 0.5, 50), (3, 0.8, None), (4, 0.8, 4), (9, 0.8, 8),
         (10, 0.8, 9), (18, 0.95, None), (19, 0.95, 19), (39, 0.95, 38), (99, 0.95, 95), (99, 0.001, 1)],
    )  # fmt: skip
    def test_rank_at_other_levels(self, count, coverage, rank):
        calibration = calibration_of(np.arange(1, count + 1, dtype=np.float64))
        assert calibration.promises(coverage) is (rank is not None)
        wanted = 20015.0868 if rank is None else 10.0 * rank
        assert calibration.radius_km(np.array([9.9]), np.array([0.5]), coverage) == pytest.approx(wanted)

    @pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5, 1.5, math.nan])
    def test_a_coverage_that_nobody_can_promise(self, coverage):
        with pytest.raises(ValueError, match="coverage is"):
            calibration_of(np.ones(50)).radius_km(np.array([9.9]), np.array([0.5]), coverage)

    @pytest.mark.parametrize("count", [0, 1, 2, 8])
    def test_too_few_promise_nothing(self, count):
        calibration = calibration_of(np.ones(count))
        assert not calibration.usable
        assert calibration.radius_km(np.array([0.0, 5.0]), np.array([1.0, 0.1])) == pytest.approx([20015.0868] * 2)
        assert calibration.score(np.array([0.0, 5.0]), np.array([1.0, 0.1])).tolist() == [0, 0]

    def test_no_queries(self):
        for count in (0, 30):
            calibration = calibration_of(np.ones(count))
            assert calibration.radius_km(np.empty(0), np.empty(0)).shape == (0,)
            assert calibration.score(np.empty(0), np.empty(0)).shape == (0,)


class TestRadiusAndScore:
    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.floats(-50, 50), min_size=3, max_size=3),
        st.lists(st.floats(0, 1e7), min_size=0, max_size=30),
        st.lists(st.tuples(st.floats(0, HALF_CIRCUMFERENCE_KM), st.floats(-1.0001, 1.0001)), min_size=1, max_size=10),
    )
    def test_never_leave_their_ranges(self, coefficients, ratios, queries):
        calibration = Calibration(np.array(coefficients), np.sort(np.array(ratios, np.float64)), np.empty(0))
        spread, top1 = np.array([q[0] for q in queries]), np.array([q[1] for q in queries])
        radii, scores = calibration.radius_km(spread, top1), calibration.score(spread, top1)
        assert all(0 <= radius <= HALF_CIRCUMFERENCE_KM for radius in radii.tolist())
        assert all(0 <= score <= 1 for score in scores.tolist())

    @settings(deadline=None)
    @given(st.lists(st.floats(0.001, 100), min_size=9, max_size=40), st.floats(0, 15000), st.floats(0.01, 5000))
    def test_a_larger_foretold_error_is_a_larger_radius_and_a_lower_score(self, ratios, spread, more):
        calibration = calibration_of(ratios)
        near, far = calibration.radius_km(np.array([spread, spread + more]), np.array([0.5, 0.5]))
        # The same only at the ends: no radius is under a tenth of a kilometre, none past the Earth's end.
        assert near < far or near == far == 0.1 or far == pytest.approx(HALF_CIRCUMFERENCE_KM)
        high, low = calibration.score(np.array([spread, spread + more]), np.array([0.5, 0.5]))
        # Only where every error is past the Earth's end are both the same.
        assert low < high or high == pytest.approx(math.exp(-HALF_CIRCUMFERENCE_KM / 1492.7))

    def test_score_by_hand(self):
        calibration = calibration_of([1.0] * 5 + [2.0] * 5)
        assert calibration.score(np.array([99.9]), np.array([0.0])) == pytest.approx(
            (math.exp(-100 / 1492.7) + math.exp(-200 / 1492.7)) / 2
        )

    def test_coefficients_are_of_one_log_spread_and_similarity(self):
        calibration = Calibration(np.array([1.0, 0.5, -2.0]), np.ones(9), np.empty(0))
        expected = math.exp(1.0 + 0.5 * math.log(400.0) - 2.0 * 0.7)
        assert calibration.radius_km(np.array([399.9]), np.array([0.7])) == pytest.approx(expected)


def unlike_by_hand(learnt, similarity) -> bool:
    as_far = sum(1 for one in learnt if one <= similarity)
    return len(learnt) >= 99 and 100 * (1 + as_far) <= len(learnt) + 1


class TestUnlikeReferences:
    @settings(deadline=None)
    @given(
        st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0]), min_size=90, max_size=320),
        st.lists(st.floats(-1, 1) | st.sampled_from([-0.5, 0.0, 0.25]), max_size=5),
    )
    def test_p_values_by_loops(self, learnt, similarities):
        calibration = Calibration(np.zeros(3), np.ones(50), np.sort(np.array(learnt)))
        found = calibration.unlike_references(np.array(similarities, np.float64))
        assert found.tolist() == [unlike_by_hand(learnt, one) for one in similarities]
        assert calibration.tells_unlike is (len(learnt) >= 99)

    @pytest.mark.parametrize(("count", "flagged"), [(0, False), (98, False), (99, True), (100, True)])
    def test_ninety_nine_are_needed(self, count, flagged):
        calibration = Calibration(np.zeros(3), np.ones(50), np.linspace(0.5, 0.9, count))
        assert calibration.unlike_references(np.array([0.4])).tolist() == [flagged]
        assert not calibration.unlike_references(np.array([0.5, 0.7, 1.0])).any()

    def test_all_photos_learnt_from_count_and_few_of_their_like_are_flagged(self):
        flagged, photos = 0, 0
        for seed in range(10):
            world = World(seed)
            places, vectors = world.photos(500)
            index = FlatIndex(vectors)
            held_out = leave_one_out(index, references_of(places))
            calibration = calibrate(held_out, places, Answer(10, "top1"))
            assert sorted(calibration.top1) == sorted(held_out.similarities[:, 0].astype(float))
            _, queries = world.photos(1000)
            top1 = index.search(queries, 1).similarities[:, 0].astype(np.float64)
            flagged += int(calibration.unlike_references(top1).sum())
            photos += len(queries)
            # Photos of nothing that was ever learnt: each in a direction of its own.
            strange = np.random.default_rng(seed).normal(size=(300, 16))
            strange[:, :] -= strange @ world.looks[:1].T @ world.looks[:1] / (world.looks[0] @ world.looks[0])
            strange = (strange / np.linalg.norm(strange, axis=1, keepdims=True)).astype(np.float32)
            far = index.search(strange, 1).similarities[:, 0].astype(np.float64)
            assert calibration.unlike_references(far).mean() > 5 * calibration.unlike_references(top1).mean()
        # At most 1% of them, give or take what 10 calibrations on 500 and 10,000 photos leave to chance.
        assert flagged / photos <= 0.01 + 3 * math.sqrt(0.0099 * (1 / 5000 + 1 / 10000))


class TestSpread:
    def test_is_the_mean_distance_to_ten(self):
        rng = np.random.default_rng(2)
        answers = np.stack([rng.uniform(-90, 90, 4), rng.uniform(-180, 180, 4)], axis=1)
        places = np.stack([rng.uniform(-90, 90, (4, 13)), rng.uniform(-180, 180, (4, 13))], axis=2)
        expected = [sum(arc_km(a, p) for p in row[:10]) / 10 for a, row in zip(answers, places, strict=True)]
        assert neighbor_spread_km(answers, places) == pytest.approx(expected)
        expected = [sum(arc_km(a, p) for p in row[:3]) / 3 for a, row in zip(answers, places, strict=True)]
        assert neighbor_spread_km(answers, places[:, :3]) == pytest.approx(expected)


def held_out_of(ids, similarities=None) -> LeaveOneOut:
    ids = np.array(ids, np.int64)
    if similarities is None:
        similarities = np.where(ids >= 0, np.linspace(0.9, 0.5, ids.shape[1])[None], 0)
    return LeaveOneOut(np.arange(len(ids), dtype=np.int64), ids, np.asarray(similarities, np.float32))


class TestHeldOut:
    def test_errors_are_of_the_sampled_rows(self):
        coordinates = np.array([(0, 0), (0, 1), (0, 3), (50, 50)], float)
        held_out = LeaveOneOut(
            np.array([2, 0]), np.array([[1, 0, 3], [1, 2, 3]]), np.array([[0.9, 0.8, 0.1]] * 2, np.float32)
        )
        degree = math.pi * 6371 / 180
        assert leave_one_out_errors_km(held_out, coordinates, Answer(1, "top1")) == pytest.approx([2 * degree, degree])

    def test_rows_without_enough_neighbors_are_left_out(self):
        coordinates = np.array([(0, 0), (0, 1), (0, 3), (50, 50)], float)
        held_out = held_out_of([[1, 2, 3], [0, 2, -1], [1, -1, -1], [-1, -1, -1]])
        errors = leave_one_out_errors_km(held_out, coordinates, Answer(1, "top1"))
        assert errors == pytest.approx([math.pi * 6371 / 180])

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("size", range(12))
    def test_few_references(self, method, size):
        rng = np.random.default_rng(size)
        coordinates = np.stack([rng.uniform(-90, 90, size), rng.uniform(-180, 180, size)], axis=1)
        ids = [[j for j in range(size) if j != i] for i in range(size)]
        held_out = LeaveOneOut(
            np.arange(size),
            np.array(ids, np.int64).reshape(size, max(size - 1, 0)),
            np.full((size, max(size - 1, 0)), 0.5, np.float32),
        )
        calibration = calibrate(held_out, coordinates, Answer(10, method))
        assert not calibration.usable  # 9 scores are needed, and only half of the references give one
        assert calibration.radius_km(np.array([3.0]), np.array([0.5])) == pytest.approx([20015.0868])

    @pytest.mark.parametrize("method", METHODS)
    def test_seventeen_references_are_enough(self, method):
        rng = np.random.default_rng(0)
        for size, usable in ((17, True), (18, True), (16, False)):
            places = np.stack([rng.uniform(40, 50, size), rng.uniform(0, 10, size)], axis=1)
            vectors = rng.normal(size=(size, 4)).astype(np.float32)
            held_out = leave_one_out(FlatIndex(vectors), references_of(places))
            assert calibrate(held_out, places, Answer(10, method)).usable is usable

    @pytest.mark.parametrize("method", METHODS)
    def test_all_references_in_one_place(self, method):
        places = np.tile([[48.85, 2.35]], (60, 1))
        vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        # On sixty occasions. Were the occasions not known, one scene would be all there is, and nothing to be learnt.
        references = dataclasses.replace(references_of(places), sequences=[str(i) for i in range(60)])
        held_out = leave_one_out(FlatIndex(vectors), references)
        unknown = leave_one_out(FlatIndex(vectors), references_of(places))
        assert not calibrate(unknown, places, Answer(10, method)).usable
        calibration = calibrate(held_out, places, Answer(10, method))
        radius = calibration.radius_km(np.array([0.0]), np.array([0.5]))
        assert np.isfinite(radius).all()
        assert radius[0] < 0.2
        assert 0.99 < calibration.score(np.array([0.0]), np.array([0.5]))[0] <= 1

    @pytest.mark.parametrize("method", METHODS)
    def test_identical_embeddings_and_antipodal_places(self, method):
        places = np.array([(90.0, 0.0), (-90.0, 0.0), (0.0, 180.0), (0.0, 0.0)] * 15)
        held_out = leave_one_out(FlatIndex(np.tile([[1.0, 0.0]], (60, 1))), references_of(places))
        calibration = calibrate(held_out, places, Answer(10, method))
        assert np.isfinite(calibration.coefficients).all()
        assert np.isfinite(calibration.ratios).all()
        assert (np.diff(calibration.ratios) >= 0).all()

    def test_the_fit_finds_a_law_that_is_there(self):
        """Errors are made exp(1) * spread^0.5 by placing each truth that far from its neighbour."""
        rng = np.random.default_rng(4)
        n = 400
        coordinates, ids = [], []
        for i in range(n):
            # Eleven places along a meridian; the answer of top1 is the first, the truth lies to its north.
            latitude, longitude, step = -20.0, float(i) * 360 / n - 180, float(rng.uniform(0.01, 3))
            spread = step * 4.5 * math.pi * 6371 / 180
            error = math.e * math.sqrt(spread + 0.1) - 0.1
            base = len(coordinates)
            coordinates.append((latitude + error / (math.pi * 6371 / 180), longitude))
            coordinates += [(latitude + step * j, longitude) for j in range(10)]
            ids.append(list(range(base + 1, base + 11)))
        held_out = LeaveOneOut(
            np.arange(n) * 11, np.array(ids), rng.uniform(0.2, 0.9, (n, 1)).astype(np.float32) * np.ones((1, 10), "f4")
        )
        calibration = calibrate(held_out, np.array(coordinates), Answer(1, "top1"))
        assert calibration.coefficients == pytest.approx([1.0, 0.5, 0.0], abs=0.02)
        assert calibration.ratios == pytest.approx(np.ones(n // 2), abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [50, 100])
def test_relatives_that_are_left_out_do_not_make_an_index_useless(method, k):
    # Sixty references in pairs of one sequence: nobody has 59 neighbours left, and everybody 58.
    world = World(3)
    places, vectors = world.photos(60)
    index = FlatIndex(vectors)
    references = dataclasses.replace(references_of(places), sequences=[str(i // 2) for i in range(60)])
    held_out = leave_one_out(index, references)
    calibration = calibrate(held_out, places, Answer(k, method))
    assert calibration.usable
    assert np.isfinite(calibration.ratios).all()
    # What is missing has no vote: the same answer as with the 58 alone.
    first, similarities = held_out.ids[0, :58], held_out.similarities[0, :58]
    alone = aggregate(places[first][None, :k], similarities[None, :k], Answer(k, method))[0]
    errors = leave_one_out_errors_km(held_out, places, Answer(k, method))
    assert errors[0] == pytest.approx(arc_km(alone, places[0]), rel=1e-6, abs=1e-6)


class TestPhotosOutsideTheIndex:
    def test_errors_are_from_where_they_were_taken(self):
        gallery = np.array([(0, 0), (0, 10), (0, 20)], float)
        # The first stands on a gallery place, the second a degree north of one, the third across the antimeridian.
        held_out = LeaveOneOut(
            np.full(3, -1),
            np.array([[1, 0, 2], [2, 1, 0], [0, 1, 2]]),
            np.array([[0.9, 0.8, 0.1]] * 3, np.float32),
            np.array([(0, 10), (1, 20), (0, -179)], float),
        )
        degree = math.pi * 6371 / 180
        errors = leave_one_out_errors_km(held_out, gallery, Answer(1, "top1"))
        assert errors == pytest.approx([0, degree, 179 * degree], abs=1e-6)

    @pytest.mark.parametrize("method", METHODS)
    def test_coverage_of_a_gallery(self, method):
        """Nine of ten fresh photos lie within the radius that other photos, not the gallery, were the measure of."""
        world = World(11)
        gallery, vectors = world.photos(600)
        # A gallery is no sample of photos: its own places locate one another far better than photos are located.
        index = FlatIndex(vectors)
        photos = world.photos(400)
        noisy = photos[1] + 0.25 * world.rng.normal(size=photos[1].shape)
        queries = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
        held_out = held_out_photos(index, queries[:200], photos[0][:200])
        answers, radii, _ = calibrated_answers(index, held_out, gallery, queries[200:], method, 10)
        distances = [arc_km(a, b) for a, b in zip(answers, photos[0][200:], strict=True)]
        inside = sum(d <= r for d, r in zip(distances, radii[0.9], strict=True)) / 200
        assert 0.83 <= inside <= 0.97

    def test_a_photo_with_too_few_neighbours_costs_the_others_nothing(self):
        """It comes first: those after it keep their own true places."""
        gallery = np.array([(0, float(i)) for i in range(12)])
        ids = np.array([[i, *[j for j in range(12) if j != i][:9]] for i in (3, 5, 7)])
        ids[0, 5:] = -1
        held_out = LeaveOneOut(
            np.full(3, -1), ids, np.tile(np.linspace(0.9, 0.1, 10, dtype=np.float32), (3, 1)),
            np.array([(60, 60), (2, 5), (0, 8)], float),
        )  # fmt: skip
        degree = math.pi * 6371 / 180
        errors = leave_one_out_errors_km(held_out, gallery, Answer(1, "top1"))
        assert errors == pytest.approx([2 * degree, degree], rel=1e-6)

    def test_nothing_to_learn_from(self):
        calibration = calibrate(LeaveOneOut.empty(), np.array([(1.0, 2.0), (3.0, 4.0)]), Answer(1, "top1"))
        assert not calibration.usable
        assert calibration.radius_km(np.array([3.0]), np.array([0.5])) == pytest.approx([20015.0868])
        assert calibration.score(np.array([3.0]), np.array([0.5])).tolist() == [0]
        assert len(leave_one_out_errors_km(LeaveOneOut.empty(), np.zeros((2, 2)), Answer(10, "density"))) == 0


def test_why_an_index_is_not_calibrated():
    few = LeaveOneOut(np.zeros(3, int), np.zeros((3, 1), int), np.zeros((3, 1), np.float32))
    assert why_not_calibrated(few) == "the index has too few references, or of too few occasions"
    assert "not calibrated: give labelled photos" in why_not_calibrated(LeaveOneOut.empty())
    assert "3 labelled photos" in why_not_calibrated(dataclasses.replace(few, places=np.zeros((3, 2))))
