from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.reliability import grouped_interval, wilson
from geoinfer.reliability.intervals import _student


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I: the score method without continuity correction
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(count, of, low, high):
    assert wilson(count / of, of) == pytest.approx((low, high), abs=5e-5)
    # And of the complement.
    assert wilson(1 - count / of, of) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_are_where_the_score_test_just_rejects(case):
    count, of = case
    low, high = wilson(count / of, of)
    assert 0 <= low <= count / of <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            z = (count / of - end) / math.sqrt(end * (1 - end) / of)
            assert abs(z) == pytest.approx(1.959964, abs=1e-4)


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_with_groups_of_one_it_is_wilsons(inside):
    found = grouped_interval(np.array(inside), np.arange(len(inside)) * 7)
    assert found == pytest.approx(wilson(sum(inside) / len(inside), len(inside)), abs=1e-9)


def test_groups_that_fare_alike_count_once_each():
    # Two pairs, one in and one out: by hand, the variance between groups is 2 (1 / 16 + 1 / 16), that of four
    # independent photos 0.25 / 3, so they are worth 4 / 3 of a photo; and of two groups next to nothing is known.
    pairs = grouped_interval(np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    assert pairs == pytest.approx(wilson(0.5, 4 / 3 * (3.182 / 12.706) ** 2), abs=1e-3)
    # Many of them: as if there were one photo a group, but for what few groups leave open.
    groups = np.repeat(np.arange(400), 5)
    inside = np.repeat(np.arange(400) % 4 > 0, 5)
    assert grouped_interval(inside, groups) == pytest.approx(wilson(0.75, 400), abs=2e-4)


@pytest.mark.parametrize("value", [True, False])
def test_where_nothing_varies_a_group_counts_once(value):
    assert grouped_interval(np.full(12, value), np.repeat([0, 1, 2], 4)) == wilson(float(value), 3)
    assert grouped_interval(np.array([True, False]), np.array([5, 5])) == wilson(0.5, 1)


def test_groups_that_fare_more_unlike_than_chance_are_no_more_sure():
    inside = np.array([True, False] * 50)
    found = grouped_interval(inside, np.repeat(np.arange(50), 2))
    assert found == pytest.approx(wilson(0.5, 100 * (1.9842 / 2.0096) ** 2), abs=1e-4)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    # from any table of Student's t
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_students_quantiles(freedom, quantile):
    assert _student(freedom) == pytest.approx(quantile, abs=4e-3)


def test_it_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    held = {"grouped": 0, "plain": 0}
    tries = 600
    for _ in range(tries):
        sizes = rng.integers(1, 12, 60)
        groups = np.repeat(np.arange(60), sizes)
        # Photos of a group share their fate three times in four.
        shared, own = rng.random(60) < 0.8, rng.random(len(groups)) < 0.8
        inside = np.where(rng.random(len(groups)) < 0.75, shared[groups], own)
        low, high = grouped_interval(inside, groups)
        held["grouped"] += low <= 0.8 <= high
        low, high = wilson(float(inside.mean()), len(groups))
        held["plain"] += low <= 0.8 <= high
    assert 0.92 <= held["grouped"] / tries <= 0.98
    assert held["plain"] / tries < 0.8
