from __future__ import annotations

import math

import pytest

from geoinfer.answer import DEFAULT_ANSWER, METHODS, PARAMETERS, Answer, check_answer
from geoinfer.errors import UsageError


@pytest.mark.parametrize(
    ("default", "k", "aggregate", "expected"),
    [
        (DEFAULT_ANSWER, None, None, (10, "density")),
        (DEFAULT_ANSWER, 3, None, (3, "density")),
        (DEFAULT_ANSWER, None, "mean", (10, "mean")),
        (Answer(1, "top1"), None, None, (1, "top1")),
        (Answer(1, "top1"), 5, None, (5, "top1")),
        (Answer(1, "top1"), None, "top1", (1, "top1")),
        # One neighbour was chosen for top1; a density of one would be top1 under another name.
        (Answer(1, "top1"), None, "density", (10, "density")),
        (Answer(1, "top1"), 4, "mean", (4, "mean")),
        (Answer(50, "mean"), None, "mean", (50, "mean")),
        (Answer(50, "mean"), 1, "mean", (1, "mean")),
    ],
)
def test_what_the_user_says_wins(default, k, aggregate, expected):
    chosen = default.chosen(k, aggregate)
    assert (chosen.k, chosen.aggregate) == expected


def test_what_was_tuned_stays_with_its_method():
    tuned = Answer(20, "density", temperature=0.1, bandwidth_km=50.0)
    assert tuned.chosen() == tuned
    assert tuned.chosen(5) == Answer(5, "density", 0.1, 50.0)
    assert tuned.chosen(aggregate="density", temperature=0.2) == Answer(20, "density", 0.2, 50.0)
    assert tuned.chosen(bandwidth_km=400.0) == Answer(20, "density", 0.1, 400.0)
    assert tuned.chosen(aggregate="median") == Answer(10, "median")
    assert tuned.chosen(aggregate="median", temperature=0.2) == Answer(10, "median", 0.2)


@pytest.mark.parametrize(
    "asked",
    [(0, None), (101, None), (-1, "mean"), (None, "mode"), (5, ""), (None, None, 0.0), (None, None, math.nan),
     (None, None, math.inf), (None, None, 101.0), (None, None, None, 0.5), (None, None, None, 20_000.0),
     (None, None, None, math.nan), (None, None, -0.05, None)],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(asked):
    with pytest.raises(UsageError, match=r"expected (1 to 100|one of top1, mean, median|0.0001 to 100|1 to 10000)"):
        DEFAULT_ANSWER.chosen(*asked)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_refuses_what_it_does_not_know(method):
    for name, value, option in (("temperature", 0.1, "--temperature 0.1"), ("bandwidth_km", 50.0, "--bandwidth-km 50")):
        if name in PARAMETERS[method]:
            assert getattr(Answer(5, method, **{name: value}).resolved, name) == value
            continue
        for refused in (
            lambda name=name, value=value: Answer(5, method, **{name: value}),
            lambda name=name, value=value: Answer(5, method).chosen(**{name: value}),
            lambda name=name, value=value: check_answer(None, method, **{name: value}),
            lambda name=name, value=value: Answer.from_dict({"k": 5, "aggregate": method, name: value}),
        ):
            with pytest.raises(UsageError, match=f"{option}: --aggregate {method} has no such setting"):
                refused()


def test_defaults():
    assert (DEFAULT_ANSWER.k, DEFAULT_ANSWER.aggregate) == (10, "density")
    assert (DEFAULT_ANSWER.used_temperature, DEFAULT_ANSWER.used_bandwidth_km) == (0.05, 200.0)
    assert DEFAULT_ANSWER.resolved == Answer(10, "density", 0.05, 200.0)
    assert Answer(5, "mean").used_temperature is None
    assert Answer(5, "top1").resolved == Answer(5, "top1")
    assert set(PARAMETERS) == set(METHODS)


@pytest.mark.parametrize("aggregate", METHODS)
@pytest.mark.parametrize("k", [1, 10, 100])
def test_plain_values_and_back(k, aggregate):
    assert Answer(k, aggregate).as_dict() == {"k": k, "aggregate": aggregate}
    assert Answer.from_dict({"aggregate": aggregate, "k": k}) == Answer(k, aggregate)
    told = dict.fromkeys(PARAMETERS[aggregate], 2.5)
    assert Answer(k, aggregate, **told).as_dict() == {"k": k, "aggregate": aggregate, **told}
    assert Answer.from_dict(Answer(k, aggregate, **told).as_dict()) == Answer(k, aggregate, **told)


def test_options_as_one_types_them():
    assert DEFAULT_ANSWER.as_options() == "--aggregate density --k 10"
    told = Answer(50, "density", 0.02, 400.0)
    assert told.as_options() == "--aggregate density --k 50 --temperature 0.02 --bandwidth-km 400"


@pytest.mark.parametrize(
    "values",
    [
        None, 3, [], "top1", {}, {"k": 1}, {"aggregate": "top1"}, {"k": 0, "aggregate": "top1"},
        {"k": 101, "aggregate": "top1"}, {"k": 1.0, "aggregate": "top1"}, {"k": True, "aggregate": "top1"},
        {"k": "1", "aggregate": "top1"}, {"k": None, "aggregate": "top1"}, {"k": 1, "aggregate": "best"},
        {"k": 1, "aggregate": None}, {"k": 1, "aggregate": ["top1"]}, {"k": 1, "aggregate": "top1", "more": 1},
        {"k": 1, "aggregate": "mean", "temperature": None}, {"k": 1, "aggregate": "mean", "temperature": True},
        {"k": 1, "aggregate": "mean", "temperature": "0.1"}, {"k": 1, "aggregate": "mean", "temperature": 0},
        {"k": 1, "aggregate": "density", "bandwidth_km": [50]}, {"k": 1, "aggregate": "density", "bandwidth_km": 1e9},
        {"k": 1, "aggregate": "mean", "bandwidth_km": 50},
    ],
)  # fmt: skip
def test_lies_are_refused(values):
    with pytest.raises((ValueError, TypeError)):
        Answer.from_dict(values)
