from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.evaluate.nearest import NearestOnEarth
from geoinfer.geodesy import haversine_km

pytest.importorskip("scipy")

PLACE = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@settings(deadline=None)  # SciPy is imported on the first call
@given(st.lists(PLACE, min_size=1, max_size=30), st.lists(PLACE, max_size=10))
def test_no_place_is_nearer(places: list[tuple[float, float]], photos: list[tuple[float, float]]) -> None:
    references, queries = np.array(places), np.array(photos, float).reshape(-1, 2)
    rows, distances = NearestOnEarth(references).find(queries)
    assert rows.shape == distances.shape == (len(queries),)
    for query, row, distance in zip(queries, rows, distances, strict=True):
        everyone = haversine_km(references, query)
        # Unit vectors know a place to about a ten-millionth of a metre, but antipodes to metres only.
        assert distance == everyone[row]
        assert distance <= everyone.min() + 0.1


def test_across_the_antimeridian_and_at_the_pole() -> None:
    places = np.array([[0.0, 170.0], [0.0, -179.0], [89.0, 0.0]])
    rows, distances = NearestOnEarth(places).find(np.array([[0.0, 179.5], [90.0, 123.0], [0.0, 171.0]]))
    assert rows.tolist() == [1, 2, 0]
    assert distances == pytest.approx([1.5 * 111.1949, 111.1949, 111.1949], abs=0.01)
