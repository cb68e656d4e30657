from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.evaluate.page.sample import Reservoir, choose_pictures, choose_points, spread

ERRORS = st.lists(st.one_of(st.floats(0, 20_015), st.just(math.nan)), max_size=60).map(np.array)


def worst_of(errors: np.ndarray, count: int) -> list[int]:
    """By the rule itself: the largest, and of equal ones the first."""
    known = [(-error, place) for place, error in enumerate(errors.tolist()) if not math.isnan(error)]
    return [place for _, place in sorted(known)[:count]]


@given(ERRORS, st.integers(0, 70), st.integers(0, 70), st.integers(0, 5))
def test_points_are_the_worst_and_others_none_twice(errors, limit, worst, seed) -> None:
    chosen = choose_points(errors, limit, worst=worst, seed=seed).tolist()
    assert len(chosen) == min(len(errors), limit)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(errors)))
    if len(errors) > limit:
        assert set(worst_of(errors, min(worst, limit))) <= set(chosen)
    assert chosen == choose_points(errors, limit, worst=worst, seed=seed).tolist()


def test_every_other_point_has_the_same_chance_answered_or_not() -> None:
    errors = np.arange(20.0)
    errors[:5] = np.nan
    counts = np.zeros(20)
    for seed in range(4000):
        counts[choose_points(errors, 8, worst=3, seed=seed)] += 1
    assert counts[17:].tolist() == [4000] * 3
    # 5 of 17 each; the standard deviation of a count is 29.
    assert np.all(abs(counts[:17] - 4000 * 5 / 17) < 29 * 4.5)


@given(ERRORS, st.integers(0, 70))
def test_pictures_are_half_of_the_worst_and_spread_over_the_rest(errors, count) -> None:
    chosen = choose_pictures(errors, count).tolist()
    assert len(chosen) == len(set(chosen)) == min(count, len(errors))
    worst = worst_of(errors, (count + 1) // 2)
    assert chosen[: len(worst)] == worst
    rest = [place for place in range(len(errors)) if place not in worst]
    steps = np.diff([rest.index(place) for place in chosen[len(worst) :]])
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@given(st.integers(0, 50), st.integers(0, 50))
def test_spread(count, chosen) -> None:
    chosen = min(count, chosen)
    places = spread(count, chosen).tolist()
    assert places == [place * count // chosen for place in range(chosen)]
    assert len(set(places)) == chosen


def kept(stream: list[int], size: int, seed: int = 0) -> list[int]:
    reservoir: Reservoir[int] = Reservoir(size, seed=seed)
    for item in stream:
        slot = reservoir.place()
        if slot is not None:
            reservoir.put(slot, item)
    assert reservoir.seen == len(stream)
    return reservoir.items


@given(st.lists(st.integers(), max_size=80, unique=True), st.integers(1, 30), st.integers(0, 5))
def test_a_reservoir_keeps_the_streams_order_and_nothing_twice(stream, size, seed) -> None:
    items = kept(stream, size, seed)
    assert len(items) == min(size, len(stream))
    assert [item for item in stream if item in items] == items
    assert items == kept(stream, size, seed)


def test_in_a_reservoir_every_item_has_the_same_chance_and_so_has_every_pair() -> None:
    runs = 6000
    counts, pairs = np.zeros(10), np.zeros((10, 10))
    for seed in range(runs):
        items = kept([*range(10)], 4, seed)
        counts[items] += 1
        pairs[np.ix_(items, items)] += 1
    assert np.all(abs(counts - runs * 0.4) < 4.5 * math.sqrt(runs * 0.4 * 0.6))
    share = 4 * 3 / (10 * 9)
    off = abs(pairs - runs * share)[~np.eye(10, dtype=bool)]
    assert np.all(off < 4.5 * math.sqrt(runs * share * (1 - share)))
