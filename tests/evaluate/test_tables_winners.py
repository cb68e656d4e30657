from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.evaluate.bootstrap import Interval
from geoinfer.evaluate.tables.build import labels_of, set_title, with_interval
from geoinfer.evaluate.tables.winners import printed, winners


def won(values, contending=None, *, lower=True, proven=None):
    return winners(values, contending or [True] * len(values), lower_is_better=lower, proven=proven)


def test_the_lowest_error_and_the_highest_share_win():
    assert won([3.0, 1.0, 2.0])[0] == [False, True, False]
    assert won([3.0, 1.0, 2.0], lower=False)[0] == [True, False, False]


def test_a_baseline_never_wins_and_nothing_is_not_a_number_that_wins():
    assert won([3.0, 1.0, 2.0], [True, False, True])[0] == [False, False, True]
    assert won([math.nan, 1.0, 2.0])[0] == [False, True, False]


def test_one_alone_wins_nothing():
    assert won([1.0])[0] == [False]
    assert won([1.0, 2.0], [True, False])[0] == [False, False]
    assert won([1.0, math.nan])[0] == [False, False]
    assert won([])[0] == []


def test_what_prints_alike_wins_together_and_is_not_proven():
    bold, doubtful = won([1.001, 1.0, 2.0], proven=lambda _first, _second: True)
    assert bold == [True, True, False]
    assert doubtful == [True, True, False]


def test_a_share_of_zero_wins_nothing_and_an_error_of_zero_does():
    assert won([0.0, 0.0], lower=False)[0] == [False, False]
    assert won([0.0, 1.0])[0] == [True, False]


def test_the_winner_is_asked_against_the_runner_up_and_nobody_else():
    asked = []

    def proven(first, second):
        asked.append((first, second))
        return second != 2

    assert won([1.0, 9.0, 2.0], proven=proven)[1] == [True, False, False]
    assert asked == [(0, 2)]
    assert won([1.0, 9.0, 2.0], [True, True, False], proven=proven)[1] == [False, False, False]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_somebody_wins_and_no_one_is_better(values):
    bold, _ = won(values)
    assert any(bold)
    best = [value for value, wins in zip(values, bold, strict=True) if wins]
    assert min(values) in best
    assert all(f"{value:.2f}" == f"{min(values):.2f}" for value in best)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.005, "1.00"), (16.6, "16.60"), (-0.001, "0.00"), (math.nan, "N/A"), (12345.678, "12345.68")],
)
def test_two_decimals(value, text):
    assert printed(value) == text


def test_an_interval_is_printed_as_far_as_it_is_known():
    assert with_interval(Interval(2.0, 1.0, 3.456)) == "2.00 (1.00 to 3.46)"
    assert with_interval(Interval(2.0, math.nan, math.nan)) == "2.00"
    assert with_interval(Interval(math.nan, math.nan, math.nan)) == "N/A"
    assert with_interval(None) == "N/A"


def test_titles_are_the_papers():
    assert set_title("Global") == "Global Test Set"
    assert set_title("North America") == "North America-Only Test Set"
    assert set_title("season=winter") == "season=winter Test Set"


def test_labels_differ():
    names = ["Global", "North America", "a=é", "a=e", "a=E!", "中=国", "日=本", "a=e-2"]
    labels = labels_of(names)
    assert labels[:3] == ["global", "north-america", "a-e"]
    assert len(set(labels)) == len(names)
    assert all(label.isascii() and label.replace("-", "").isalnum() for label in labels)
