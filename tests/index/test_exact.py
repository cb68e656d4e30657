from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.index import ExactIndex


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def plain_search(vectors, queries, k):
    """(ids, similarities) by plain Python: sorted by similarity as float32, then by id."""
    ids, similarities = [], []
    for query in queries.tolist():
        products = [math.fsum(a * b for a, b in zip(query, vector, strict=True)) for vector in vectors.tolist()]
        rounded = [float(np.float32(product)) for product in products]
        order = sorted(range(len(rounded)), key=lambda i: (-rounded[i], i))[:k]
        ids.append(order)
        similarities.append([rounded[i] for i in order])
    return ids, similarities


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (1, 5, 3), (7, 3, 7), (40, 8, 5), (30, 64, 100)])
def test_equals_plain_python(n, d, k):
    rng = np.random.default_rng(n + d)
    vectors, queries = unit(rng, n, d), unit(rng, 6, d)
    found = ExactIndex(vectors).search(queries, k)
    ids, similarities = plain_search(vectors, queries, k)
    assert found.ids.tolist() == ids
    assert found.similarities == pytest.approx(np.array(similarities), abs=1e-7)
    assert found.ids.dtype == np.int64
    assert found.similarities.dtype == np.float32
    assert found.ids.shape == (6, min(n, k))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=3, max_size=3), min_size=1, max_size=12),
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=3, max_size=3),
    st.integers(1, 15),
)
def test_ties_are_ordered_by_id(vectors, query, k):
    # Sums of these few values are exact, so that ties are many and certain; signed zeros are ties too.
    array, queries = np.array(vectors, np.float32), np.array([query], np.float32)
    found = ExactIndex(array).search(queries, k)
    ids, similarities = plain_search(array, queries, k)
    assert found.ids.tolist() == ids
    assert found.similarities.tolist() == similarities


def test_a_photo_finds_itself():
    vectors = unit(np.random.default_rng(1), 20, 16)
    found = ExactIndex(vectors).search(vectors, 1)
    assert found.ids[:, 0].tolist() == list(range(20))
    assert found.similarities[:, 0] == pytest.approx(np.ones(20), abs=1e-6)


def test_size_and_dim():
    index = ExactIndex(np.ones((3, 5), np.float32))
    assert (index.size, index.dim) == (3, 5)


def test_no_queries():
    found = ExactIndex(np.ones((3, 5), np.float32)).search(np.empty((0, 5), np.float32), 2)
    assert found.ids.shape == found.similarities.shape == (0, 2)
    assert (found.ids.dtype, found.similarities.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((2, 4), np.float32), 1, r"queries have shape \(2, 4\); expected \(q, 5\)"),
        (np.ones(5, np.float32), 1, r"queries have shape \(5,\)"),
        (np.ones((2, 5), np.float64), 1, "queries are float64"),
        (np.ones((2, 5), np.float16), 1, "queries are float16"),
        (np.ones((2, 5), np.float32), 0, "k is 0"),
        (np.ones((2, 5), np.float32), -1, "k is -1"),
        (np.array([[1, 1, 1, 1, math.nan]], np.float32), 1, "not finite"),
        (np.array([[1, 1, 1, 1, -math.inf]], np.float32), 1, "not finite"),
    ],
)
def test_bad_queries_are_refused(queries, k, message):
    with pytest.raises(ValueError, match=message):
        ExactIndex(np.ones((3, 5), np.float32)).search(queries, k)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones(5), "shape"),
        (np.ones((0, 5)), "shape"),
        (np.ones((5, 0)), "shape"),
        (np.ones((2, 2, 2)), "shape"),
        (np.array([[1.0, math.nan]]), "not finite"),
        (np.array([[1.0, math.inf]]), "not finite"),
    ],
)
def test_bad_references_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        ExactIndex(vectors)
