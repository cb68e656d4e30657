from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.reliability import risk_coverage


def goodness(error: float) -> float:
    return math.exp(-error / 1492.7)


def test_by_hand():
    errors = [100.0, 5000.0, 10.0, 900.0]
    risk = risk_coverage(np.array([0.9, 0.8, 0.4, 0.6]), np.array(errors))
    assert risk.shares.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.limits.tolist() == [0.9, 0.8, 0.6, 0.4]
    kept = [[100.0], [100.0, 5000.0], [100.0, 5000.0, 900.0], [100.0, 5000.0, 900.0, 10.0]]
    means = [statistics.mean(map(goodness, some)) for some in kept]
    assert risk.scored.geoscore == pytest.approx(means)
    assert risk.scored.area == pytest.approx(statistics.mean(means))
    assert risk.scored.median_km == pytest.approx([100, 2550, 900, 500])
    best = [[10.0], [10.0, 100.0], [10.0, 100.0, 900.0], [10.0, 100.0, 900.0, 5000.0]]
    assert risk.ideal.geoscore == pytest.approx([statistics.mean(map(goodness, some)) for some in best])
    assert risk.ideal.median_km == pytest.approx([10, 55, 100, 500])
    assert risk.random.geoscore == pytest.approx([means[-1]] * 4)
    assert risk.random.median_km == pytest.approx([500] * 4)
    assert risk.random.area == pytest.approx(means[-1])
    wanted = (risk.scored.area - means[-1]) / (risk.ideal.area - means[-1])
    assert risk.gain == pytest.approx(wanted)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7]), st.floats(0, 20015)), min_size=1, max_size=6))
def test_equal_scores_count_as_if_in_any_order(photos):
    risk = risk_coverage(np.array([p[0] for p in photos]), np.array([p[1] for p in photos]))
    # The mean over all orders that the scores allow.
    orders = [
        [p[1] for p in order]
        for order in itertools.permutations(photos)
        if all(a[0] >= b[0] for a, b in itertools.pairwise(order))
    ]
    for kept, share in enumerate(risk.shares.tolist(), 1):
        assert share == pytest.approx(kept / len(photos))
        mean = statistics.mean(statistics.mean(map(goodness, order[:kept])) for order in orders)
        assert risk.scored.geoscore[kept - 1] == pytest.approx(mean)
        least = sorted((p[0] for p in photos), reverse=True)[kept - 1]
        assert risk.limits[kept - 1] == least
        assert risk.scored.median_km[kept - 1] == pytest.approx(statistics.median(e for s, e in photos if s >= least))


@pytest.mark.parametrize("count", [1, 199, 200, 201, 5000])
def test_shares_end_with_all_and_are_two_hundred_at_most(count):
    rng = np.random.default_rng(count)
    risk = risk_coverage(rng.random(count), rng.uniform(0, 9000, count))
    assert risk.shares[-1] == 1
    assert len(risk.shares) == min(count, 200)
    assert (np.diff(risk.shares) > 0).all()
    assert risk.random.area - 0.05 <= risk.scored.area <= risk.ideal.area + 1e-12


def test_the_gain_of_the_best_order_of_none_and_of_the_worst():
    errors = np.linspace(0, 9000, 400)
    assert risk_coverage(-errors, errors).gain == pytest.approx(1)
    assert risk_coverage(np.zeros(400), errors).gain == pytest.approx(0)
    assert risk_coverage(errors, errors).gain < -0.5
    # Where all are equally good, any order is the best.
    assert risk_coverage(np.arange(5.0), np.full(5, 70.0)).gain == 1
