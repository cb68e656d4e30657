"""The choice, on timings that are placed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from geoinfer.backends.cpu_settings import CpuSettings
from geoinfer.self_tuning.choose import Trial, choose, hopeless, paired_ratio, surely_faster

EVEN = (100.0, 101.0, 99.0, 100.5, 99.5)


def trial(*factors: float, size: int = 2, same: bool | None = True, default: tuple[float, ...] = EVEN) -> Trial:
    """A candidate that is so many times as fast as the default, round by round."""
    rates = tuple(f * d for f, d in zip(factors, default, strict=False))
    return Trial(CpuSettings(batch_size=size), "fp32", rates, default[: len(factors)], same)


def test_the_ratio_and_its_interval_are_students() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 9, 31):
        default, rates = rng.uniform(50, 100, count), rng.uniform(50, 100, count)
        found = paired_ratio(rates.tolist(), default.tolist())
        logs = np.log(rates / default)
        low, high = stats.t.interval(0.995, count - 1, logs.mean(), stats.sem(logs))
        assert found.value == pytest.approx(stats.gmean(rates / default))
        assert (found.low, found.high) == (
            pytest.approx(math.exp(low), rel=2e-3),
            pytest.approx(math.exp(high), rel=2e-3),
        )


def test_of_many_rounds_the_interval_is_the_normal_one() -> None:
    logs = np.random.default_rng(1).normal(0.05, 0.1, 500)
    found = paired_ratio(np.exp(logs).tolist(), [1.0] * 500)
    assert math.log(found.low) == pytest.approx(logs.mean() - stats.norm.ppf(0.9975) * stats.sem(logs), abs=1e-4)


def test_too_few_rounds_tell_nothing() -> None:
    assert math.isnan(paired_ratio([], []).value)
    assert (paired_ratio([3.0], [1.0]).low, paired_ratio([3.0], [1.0]).high) == (0, math.inf)
    assert not surely_faster(trial(2.0, 2.0, 2.0))
    assert surely_faster(trial(2.0, 2.0, 2.0, 2.0))


def test_rates_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])


def test_what_is_surely_faster_is_chosen() -> None:
    fast = trial(1.10, 1.11, 1.09, 1.10, 1.10)
    assert choose([trial(0.9, 0.9, 0.9, 0.9, 0.9, size=4), fast]) is fast


def test_nothing_is_chosen_of_nothing() -> None:
    assert choose([]) is None


@pytest.mark.parametrize(
    "factors",
    [
        (1.02, 1.02, 1.02, 1.02, 1.02),  # sure, and not worth it
        (1.5, 0.8, 1.6, 0.9, 1.4),  # much faster on average, and might be noise
        (1.0, 1.0, 1.0, 1.0, 1.0),
        (1.2, 1.2, 1.2),  # too few rounds
        (0.5, 0.5, 0.5, 0.5, 0.5),
    ],
    ids=str,
)
def test_the_default_stays(factors: tuple[float, ...]) -> None:
    assert choose([trial(*factors)]) is None


def test_what_the_machine_does_besides_falls_on_both() -> None:
    """In some rounds the machine has half its speed: the ratio is as sharp as ever."""
    busy = (100.0, 50.0, 100.0, 40.0, 90.0)
    fast = trial(1.05, 1.06, 1.05, 1.06, 1.05, default=busy)
    assert choose([fast]) is fast


def test_noise_seldom_wins() -> None:
    """Ten candidates as fast as the default, noise of 10%: by Bonferroni at most one measurement in 40 has a winner."""
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(1000):
        default = rng.normal(0, 0.1, 5)
        trials = [
            Trial(
                CpuSettings(batch_size=n + 2),
                "fp32",
                tuple(np.exp(rng.normal(0, 0.1, 5))),
                tuple(np.exp(default)),
                True,
            )
            for n in range(10)
        ]
        false += choose(trials) is not None
    assert false <= 40


def test_the_fastest_wins_whatever_the_order() -> None:
    some, more = trial(1.1, 1.11, 1.1, 1.1, 1.1, size=4), trial(1.3, 1.31, 1.3, 1.3, 1.3, size=8)
    assert choose([some, more]) is more
    assert choose([more, some]) is more


def test_of_two_that_are_as_fast_the_first_wins() -> None:
    first, second = trial(1.2, 1.21, 1.2, 1.2, 1.2, size=2), trial(1.205, 1.21, 1.205, 1.2, 1.205, size=4)
    assert second.ratio.value > first.ratio.value
    assert choose([first, second]) is first
    assert choose([second, first]) is second


@pytest.mark.parametrize("same", [False, None])
def test_other_bits_never_win(same: bool | None) -> None:
    other = trial(3.0, 3.0, 3.0, 3.0, 3.0, size=8, same=same)
    slower = trial(1.1, 1.11, 1.1, 1.1, 1.1)
    assert choose([other]) is None
    assert choose([other, slower]) is slower


def test_hopeless() -> None:
    assert not hopeless(trial(0.5))
    assert hopeless(trial(0.5, 0.9))
    assert hopeless(trial(1.0, 1.0))
    assert not hopeless(trial(0.9, 1.1))
    assert hopeless(trial(1.01, 1.01, 1.011, 1.01, 1.01))  # never slower, and surely not by 3%
    assert not hopeless(trial(1.5, 0.8, 1.6, 0.9, 1.4))
