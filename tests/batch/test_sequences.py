"""Occasions, against a plain loop over all earlier photos."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.batch.sequences import NO_TIME, as_seconds, occasion_name, occasion_number, sequence_numbers
from geoinfer.geodesy import haversine_km


def plain(times: list[int], places: list[tuple[float, float]]) -> list[int]:
    """Each photo joins the going-on occasion whose latest photo is the newest within an hour and 50 km."""
    numbers, occasions = [0] * len(times), []
    for time, row in sorted((time, row) for row, time in enumerate(times) if time != NO_TIME):
        near = [
            one
            for one in occasions
            if time - times[one[-1]] <= 3600 and haversine_km(places[one[-1]], places[row]) <= 50
        ]
        if near:
            chosen = max(near, key=lambda one: (times[one[-1]], one[-1]))
        else:
            chosen = []
            occasions.append(chosen)
        chosen.append(row)
        numbers[row] = next(number for number, one in enumerate(occasions, 1) if one is chosen)
    return numbers


PLACE = st.one_of(
    st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    st.tuples(st.floats(89.5, 90), st.floats(-180, 180)),
    st.tuples(st.floats(-1, 1), st.sampled_from([-180.0, -179.8, 179.8, 180.0])),
    st.tuples(st.floats(-90, 90), st.floats(-180, 180)),
)
TIME = st.one_of(st.just(NO_TIME), st.integers(-9000, 9000), st.sampled_from([0, 3600, 3601, 7200]))


@settings(max_examples=300)
@given(st.lists(st.tuples(TIME, PLACE), max_size=14))
def test_against_a_plain_loop(photos):
    times, places = [time for time, _ in photos], [place for _, place in photos]
    found = sequence_numbers(np.array(times, np.int64), np.array(places, np.float64).reshape(-1, 2))
    assert found.tolist() == plain(times, places)


@pytest.mark.parametrize("number", [1, 7, 12345])
def test_names_and_numbers(number):
    assert occasion_number(occasion_name(number)) == number
    assert occasion_name(0) == ""
    for name in ("", "drive 5", "taken together", "taken together x", "taken together \u00b2", "5"):
        assert occasion_number(name) == 0


def test_seconds():
    assert as_seconds(None) == NO_TIME
    assert as_seconds(datetime(1970, 1, 2, 0, 0, 1)) == 86401
    assert as_seconds(datetime(1960, 1, 1)) < 0
