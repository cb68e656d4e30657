from __future__ import annotations

import pytest

from geoinfer.answer import DEFAULT_ANSWER, METHODS, Answer
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


@pytest.mark.parametrize(("k", "aggregate"), [(0, None), (101, None), (-1, "mean"), (None, "mode"), (5, "")])
def test_what_makes_no_sense_is_refused(k, aggregate):
    with pytest.raises(UsageError, match=r"expected (1 to 100|one of top1, mean, density)"):
        DEFAULT_ANSWER.chosen(k, aggregate)


@pytest.mark.parametrize("aggregate", METHODS)
@pytest.mark.parametrize("k", [1, 10, 100])
def test_plain_values_and_back(k, aggregate):
    assert Answer(k, aggregate).as_dict() == {"k": k, "aggregate": aggregate}
    assert Answer.from_dict({"aggregate": aggregate, "k": k}) == Answer(k, aggregate)


@pytest.mark.parametrize(
    "values",
    [
        None, 3, [], "top1", {}, {"k": 1}, {"aggregate": "top1"}, {"k": 0, "aggregate": "top1"},
        {"k": 101, "aggregate": "top1"}, {"k": 1.0, "aggregate": "top1"}, {"k": True, "aggregate": "top1"},
        {"k": "1", "aggregate": "top1"}, {"k": None, "aggregate": "top1"}, {"k": 1, "aggregate": "best"},
        {"k": 1, "aggregate": None}, {"k": 1, "aggregate": ["top1"]}, {"k": 1, "aggregate": "top1", "more": 1},
    ],
)  # fmt: skip
def test_lies_are_refused(values):
    with pytest.raises((ValueError, TypeError)):
        Answer.from_dict(values)
