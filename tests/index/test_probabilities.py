from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.index import ExactIndex, FlatIndex, base

INDEXES = (ExactIndex, FlatIndex)


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def plain_softmax(vectors, query, scale) -> list[float]:
    """By plain Python: no array, sums without rounding."""
    exponents = [scale * math.fsum(a * b for a, b in zip(query, row, strict=True)) for row in vectors.tolist()]
    largest = max(exponents)
    weights = [math.exp(exponent - largest) for exponent in exponents]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize(("n", "d", "q"), [(1, 1, 1), (7, 3, 4), (60, 16, 9), (5, 2, 0)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 39.687, 1e6])
def test_is_the_softmax_over_all_references(kind, n, d, q, scale):
    rng = np.random.default_rng(n)
    vectors, queries = unit(rng, n, d), unit(rng, q, d)
    ids = rng.integers(0, n, (q, min(n, 3)))
    found = kind(vectors).probabilities(queries, ids, scale)
    expected = [
        [plain_softmax(vectors, query, scale)[i] for i in chosen]
        for query, chosen in zip(queries.tolist(), ids, strict=True)
    ]
    assert found.shape == ids.shape
    assert found.dtype == np.float64
    # An exponent of a million is known to ten digits after its six.
    assert found == pytest.approx(np.array(expected).reshape(ids.shape), rel=1e-9 * max(scale, 1), abs=1e-300)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 40),
    at_once=st.integers(1, 41),
    scale=st.floats(1e-6, 1e6),
    order=st.sampled_from(["rising", "falling", "as they come"]),
    seed=st.integers(0, 1000),
)
def test_whatever_the_blocks_it_sums_to_one(n, at_once, scale, order, seed):
    """The largest exponent may be in the first block, the last, or between."""
    rng = np.random.default_rng(seed)
    vectors, query = unit(rng, n, 5), unit(rng, 1, 5)
    rows = np.argsort(vectors @ query[0])
    vectors = vectors[{"rising": rows, "falling": rows[::-1], "as they come": np.arange(n)}[order]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_SUMMED_AT_ONCE", at_once)
        found = FlatIndex(vectors).probabilities(query, np.arange(n)[None], scale)
    assert np.isfinite(found).all()
    # An exponent as large as the scale is known to the scale's last bit, and no better.
    assert found.sum() == pytest.approx(1, abs=1e-12 + 4 * scale * 2.0**-53)
    assert found[0] == pytest.approx(plain_softmax(vectors, query[0].tolist(), scale), rel=1e-9 * max(scale, 1), abs=0)


def test_more_references_than_one_block():
    rng = np.random.default_rng(1)
    vectors, queries = unit(rng, 2 * base._SUMMED_AT_ONCE + 77, 6), unit(rng, 3, 6)
    ids = np.array([[0, len(vectors) - 1]] * 3)
    found = FlatIndex(vectors).probabilities(queries, ids, 20.0)
    assert found == pytest.approx(ExactIndex(vectors).probabilities(queries, ids, 20.0), rel=1e-12)
    for row, query in enumerate(queries.tolist()):
        expected = plain_softmax(vectors, query, 20.0)
        assert found[row] == pytest.approx([expected[0], expected[-1]], rel=1e-12)


def test_a_batch_answers_as_each_alone():
    rng = np.random.default_rng(2)
    index, queries = FlatIndex(unit(rng, 500, 32)), unit(rng, 40, 32)
    ids = index.search(queries, 5).ids
    together = index.probabilities(queries, ids, 39.7)
    alone = [index.probabilities(queries[i : i + 1], ids[i : i + 1], 39.7)[0] for i in range(40)]
    assert together == pytest.approx(np.array(alone), rel=1e-13)


@pytest.mark.parametrize("kind", INDEXES)
def test_of_equal_references_all_get_the_same(kind):
    vectors = np.tile(np.array([[0.6, 0.8]], np.float32), (8, 1))
    found = kind(vectors).probabilities(vectors[:1], np.arange(8)[None], 100.0)
    assert found == pytest.approx(np.full((1, 8), 1 / 8), rel=1e-12)


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("fault", ["dtype", "dim", "nan", "rows"])
def test_what_no_index_answers(kind, fault):
    vectors = unit(np.random.default_rng(0), 4, 3)
    queries, ids = vectors[:2].copy(), np.zeros((2, 1), np.int64)
    if fault == "dtype":
        queries = queries.astype(np.float64)
    elif fault == "dim":
        queries = queries[:, :2]
    elif fault == "nan":
        queries[1, 1] = math.nan
    else:
        ids = ids[:1]
    with pytest.raises(ValueError, match=r"queries|query|zip"):
        kind(vectors).probabilities(queries, ids, 1.0)
