"""The cluster bootstrap against a plain loop over resampled arrays, and its intervals against many samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import UsageError
from geoinfer.evaluate.bootstrap import (
    FIGURES,
    Interval,
    Sample,
    as_groups,
    drawn_counts,
    figure_columns,
    group_numbers,
    intervals,
    paired_differences,
    resample,
    widened,
)
from geoinfer.metrics import CONVENTIONS, GEOCLIP, OSV5M, accuracy_percent, geoscores

COLUMNS = len(FIGURES) - 1


def sample_of(distances: np.ndarray, groups: np.ndarray, known: object = OSV5M) -> Sample:
    return Sample(distances, groups, figure_columns(distances, known), [None] * COLUMNS)


def by_hand(distances: np.ndarray, known: object = OSV5M) -> list[float]:
    scores = float(geoscores(distances, known).mean())
    shares = [accuracy_percent(distances, radius, known) for radius in (1, 25, 200, 750, 2500)]
    return [float(np.median(distances)), float(distances.mean()), scores, *shares]


def plain_loop(distances: np.ndarray, groups: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """The same draws, but every replicate written out photo by photo."""
    found = []
    for block in drawn_counts(int(groups.max()) + 1, replicates, seed):
        for counts in block:
            drawn = [row for row, group in enumerate(groups) for _ in range(int(counts[group]))]
            found.append(by_hand(distances[drawn]))
    return np.array(found)


@pytest.mark.parametrize("photos_a_group", [1, 2, 5, 40])
@pytest.mark.parametrize("ties", [False, True])
def test_like_a_plain_loop(photos_a_group: int, ties: bool) -> None:
    random = np.random.default_rng(photos_a_group)
    groups = np.arange(120) // photos_a_group
    # Photos of a group are alike, so that medians jump from one group's to another's.
    distances = np.exp(random.normal(5, 2, int(groups.max()) + 1))[groups] * np.exp(random.normal(0, 0.3, 120))
    if ties:
        distances = np.round(distances, -2)
    (found,) = resample([sample_of(distances, groups)], replicates=60, seed=3)
    expected = plain_loop(distances, groups, 60, 3)
    assert np.array_equal(found[:, 0], expected[:, 0])  # medians to the last bit
    assert np.allclose(found, expected, rtol=1e-12)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 20000), st.integers(0, 6)), min_size=1, max_size=40), st.integers(0, 99))
def test_any_groups_like_a_plain_loop(photos: list, seed: int) -> None:
    distances = np.array([distance for distance, _ in photos])
    _, groups = np.unique([group for _, group in photos], return_inverse=True)
    (found,) = resample([sample_of(distances, groups)], replicates=15, seed=seed)
    assert np.allclose(found, plain_loop(distances, groups, 15, seed), rtol=1e-9, atol=1e-9)


def test_medians_that_leave_the_window() -> None:
    # One group holds nearly all photos: how often it is drawn decides where the median lies.
    groups = np.concatenate([np.zeros(500, int), np.arange(1, 10)])
    distances = np.concatenate([np.linspace(1, 2, 500), np.linspace(9000, 10000, 9)])
    (found,) = resample([sample_of(distances, groups)], replicates=400, seed=1)
    expected = plain_loop(distances, groups, 400, 1)
    assert np.array_equal(found[:, 0], expected[:, 0])
    assert found[:, 0].min() < 3 < 9000 < found[:, 0].max()


def test_ratios_with_denominators() -> None:
    distances = np.arange(6.0)
    groups = np.array([0, 0, 1, 2, 3, 3])
    right, asked = np.array([1, 0, 1, 0, 0, 1]), np.array([1, 1, 1, 0, 0, 1])
    sample = Sample(distances, groups, [100.0 * right], [asked])
    assert sample.values().tolist() == [2.5, 75.0]
    (found,) = resample([sample], replicates=200, seed=0)
    counts = np.concatenate(list(drawn_counts(4, 200, 0)))[:, groups]
    with np.errstate(invalid="ignore"):
        expected = 100 * (counts @ right) / (counts @ asked)
    assert np.allclose(found[:, 1], expected, equal_nan=True)
    assert np.isnan(found[:, 1]).any()  # only photos that are not asked were drawn
    (figures,) = intervals([sample], replicates=200)
    assert 0 <= figures[1].low <= 75 <= figures[1].high <= 100


def test_groups_without_photos_in_a_sample() -> None:
    # Two of six photos are answered: in some draws neither, in some only one of them.
    distances, groups = np.array([5.0, 9.0]), np.array([1, 4])
    everybody = sample_of(np.arange(6.0), np.arange(6))
    answered, _ = resample([sample_of(distances, groups), everybody], replicates=300, seed=2)
    counts = np.concatenate(list(drawn_counts(6, 300, 2)))[:, groups].astype(int)
    for row, (fives, nines) in zip(answered, counts, strict=True):
        drawn = [5.0] * fives + [9.0] * nines
        if drawn:
            assert row == pytest.approx(by_hand(np.array(drawn)))
        else:
            assert np.isnan(row).all()
    assert np.isnan(answered[:, 0]).any()
    (figures, _) = intervals([sample_of(distances, groups), everybody], replicates=300, seed=2)
    assert (figures[0].low, figures[0].value, figures[0].high) == (5, 7, 9)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(drawn_counts(50, 30, 4)))
    monkeypatch.setattr("geoinfer.evaluate.bootstrap._BLOCK_BYTES", 8 * 50 * 7)
    blocks = list(drawn_counts(50, 30, 4))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 2]
    assert np.array_equal(np.concatenate(blocks), whole)
    assert (whole.sum(axis=1) == 50).all()


def test_seeded() -> None:
    distances = np.random.default_rng(0).exponential(500, 80)
    sample = sample_of(distances, np.arange(80))
    assert intervals([sample]) == intervals([sample])
    assert intervals([sample]) != intervals([sample], seed=1)


def test_samples_are_drawn_together() -> None:
    distances = np.random.default_rng(0).exponential(500, 80)
    one, two = resample([sample_of(distances, np.arange(80)), sample_of(distances + 3, np.arange(80))])
    assert np.allclose(two[:, :2] - one[:, :2], 3)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_values_are_the_plain_figures(count: int) -> None:
    distances = np.array([0.0, 25.0, 200.0, 24.999, 750.0, 3000.0, 1.0])[:count]
    for known in CONVENTIONS.values():
        (figures,) = intervals([sample_of(distances, np.arange(count), known)], replicates=20)
        assert [one.value for one in figures] == pytest.approx(by_hand(distances, known), rel=1e-14)
    assert sample_of(distances, np.arange(count), GEOCLIP).values()[0] == np.median(distances)


def test_one_group_says_nothing_of_another() -> None:
    (figures,) = intervals([sample_of(np.array([1.0, 5.0, 9.0]), np.zeros(3, int))])
    assert figures[0].value == 5
    assert all(math.isnan(one.low) and math.isnan(one.high) for one in figures)
    assert figures[0].as_dict() == {"value": 5.0, "low": None, "high": None}


def test_alike_photos_of_a_group_widen_the_interval() -> None:
    random = np.random.default_rng(6)
    groups = np.repeat(np.arange(50), 20)
    distances = np.exp(random.normal(5, 1, 50))[groups] * np.exp(random.normal(0, 0.05, 1000))
    (by_photo,), (by_group,) = (intervals([sample_of(distances, g)]) for g in (np.arange(1000), groups))
    for photo, group in zip(by_photo[:3], by_group[:3], strict=True):
        assert group.value == photo.value
        assert group.high - group.low > 3 * (photo.high - photo.low)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # 400 samples of 60 drives of 1 to 6 photos; photos of a drive fare alike.
    random = np.random.default_rng(11)
    # Errors are exp of a normal number of standard deviation sqrt(1 + 0.5^2) about 5: median e^5, mean e^(5 + 0.625).
    truth = {"median_km": math.exp(5), "mean_km": math.exp(5 + 0.625)}
    held = dict.fromkeys(truth, 0)
    for _ in range(400):
        groups = np.repeat(np.arange(60), random.integers(1, 7, 60))
        distances = np.exp(5 + random.normal(0, 1, 60)[groups] + random.normal(0, 0.5, len(groups)))
        (figures,) = intervals([sample_of(distances, groups)], replicates=200, seed=int(random.integers(1 << 30)))
        for name, figure in zip(FIGURES, figures, strict=True):
            if name in truth:
                held[name] += figure.low <= truth[name] <= figure.high
    assert 0.91 <= held["median_km"] / 400 <= 0.98
    assert 0.88 <= held["mean_km"] / 400 <= 0.97  # percentile intervals of a skewed mean are a little too narrow


def test_shares_of_none_or_all_are_not_certain() -> None:
    # Wilson's for 20 trials: z^2 / (20 + z^2) = 16.11%.
    assert widened(Interval(0.0, 0.0, 0.0), 20).high == pytest.approx(16.113, abs=1e-3)
    assert widened(Interval(100.0, 100.0, 100.0), 20).low == pytest.approx(83.887, abs=1e-3)
    assert widened(Interval(50.0, 40.0, 60.0), 20) == Interval(50.0, 40.0, 60.0)
    alone = widened(Interval(0.0, math.nan, math.nan), 1)
    assert math.isnan(alone.high)


def test_differences_are_paired() -> None:
    random = np.random.default_rng(3)
    a = random.exponential(800, 300)
    b = a * 0.9
    b[:5] = np.nan
    a[5:9] = np.nan
    names = [f"drive {row // 3}" for row in range(300)]
    found = paired_differences(a, b, names, OSV5M)
    both = slice(9, 300)
    assert list(found) == list(FIGURES)
    assert found["median_km"].value == pytest.approx(np.median(a[both]) - np.median(b[both]))
    expected = by_hand(a[both])[2] - by_hand(b[both])[2]
    assert found["geoscore"].value == pytest.approx(expected)
    # Two runs that differ little differ surely: far narrower than either's own interval.
    assert 0 < found["mean_km"].low < found["mean_km"].high
    (own,) = intervals([sample_of(a[both], np.arange(291))])
    assert found["mean_km"].high - found["mean_km"].low < 0.25 * (own[1].high - own[1].low)
    assert found["geoscore"].high < 0
    same = paired_differences(a, a, names, OSV5M)
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in same.values())


def test_differences_of_nothing_in_common() -> None:
    a, b = np.array([1.0, np.nan]), np.array([np.nan, 2.0])
    found = paired_differences(a, b, ["", ""], OSV5M)
    assert all(math.isnan(one.value) for one in found.values())


def test_groups() -> None:
    assert group_numbers(["a", "", "b", "a", ""]).tolist() == [0, 1, 2, 0, 3]
    assert group_numbers([]).tolist() == []
    # A name that is a number is a name.
    assert group_numbers(["1", "", "1"]).tolist() == [0, 1, 0]
    assert as_groups(np.array([4, 4]), 2).tolist() == [4, 4]
    with pytest.raises(UsageError, match="1 groups for 2 photos"):
        as_groups(["a"], 2)
    with pytest.raises(UsageError, match="at least 2"):
        intervals([sample_of(np.ones(3), np.arange(3))], replicates=1)
