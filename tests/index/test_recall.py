from __future__ import annotations

import json

import numpy as np
import pytest

from geoinfer.index.base import Neighbors
from geoinfer.index.recall import ground_truth, measure_recall, recall_against

pytest.importorskip("faiss")


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Told:
    """An index that answers what it is told to."""

    def __init__(self, vectors, answers):
        self.vectors, self.answers = vectors, answers
        self.kind, self.size, self.dim = "ivf", *vectors.shape

    def search(self, queries, k, *, threads=0):
        ids = np.array([self.answers(query, k) for query in queries])
        similarities = np.einsum("qd,qkd->qk", queries, self.vectors[ids])
        order = np.argsort(-similarities, axis=1, kind="stable")
        return Neighbors(np.take_along_axis(ids, order, 1), np.take_along_axis(similarities, order, 1))


def circle(count):
    """Points whose neighbours are those beside them, and all similarities differ."""
    angles = np.cumsum(np.linspace(0.02, 0.04, count) * min(1, 60 / count))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class TestAgainstMissesByHand:
    def test_given_queries(self):
        vectors = circle(50)
        queries = vectors[[5, 20]]  # not taken for references
        # Query 5 gets all but two of its ten, and not the first; query 20 gets all.

        def answers(query, k):
            row = int(np.argmax(vectors @ query))
            nearest = np.argsort(-(vectors @ query), kind="stable").tolist()
            return ([*nearest[1:9], 40, 49] if row == 5 else nearest[:10])[:k]

        report = measure_recall(Told(vectors, answers), queries=queries)
        assert report.recall_at == {1: 0.5, 10: pytest.approx((8 + 10) / 20)}
        assert report.queries == 2
        assert not report.left_out
        assert report.queries_per_s > 0

    def test_references_are_left_out_of_both_answers(self):
        vectors = circle(30)

        def nearest(query, k):
            return np.argsort(-(vectors @ query), kind="stable")[:k]

        report = measure_recall(Told(vectors, nearest))
        assert report.recall_at == {1: 1.0, 10: 1.0}
        assert (report.queries, report.left_out) == (30, True)

        def all_but_the_second(query, k):
            order = np.argsort(-(vectors @ query), kind="stable")
            return np.delete(order, 1)[:k]

        report = measure_recall(Told(vectors, all_but_the_second))
        assert report.recall_at == {1: 0.0, 10: pytest.approx(0.9)}

    def test_one_that_does_not_find_the_query_itself_has_no_place_more(self):
        vectors = circle(30)

        def others(query, k):
            return np.argsort(-(vectors @ query), kind="stable")[1 : k + 1]

        assert measure_recall(Told(vectors, others)).recall_at == {1: 1.0, 10: 1.0}

    def test_ties_are_no_misses(self):
        vectors = np.repeat(circle(4), 20, axis=0)  # twenty copies of each

        def last_of_the_copies(query, k):
            similarities = vectors @ query
            return np.lexsort((-np.arange(80), -similarities))[:k]

        report = measure_recall(Told(vectors, last_of_the_copies), queries=vectors[[0, 79]])
        assert report.recall_at == {1: 1.0, 10: 1.0}


class TestTruth:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_as_plain_loops(self, dtype):
        vectors = unit(np.random.default_rng(0), 80, 6).astype(dtype)
        truth = ground_truth(vectors, 7, max_queries=20, seed=4)
        assert len(set(truth.rows.tolist())) == 20
        for row, query, found in zip(truth.rows, truth.queries, truth.similarities, strict=True):
            products = [
                sum(float(a) * float(b) for a, b in zip(query, other, strict=True))
                for index, other in enumerate(vectors)
                if index != row
            ]
            assert found == pytest.approx(sorted(products, reverse=True)[:7], abs=1e-7)

    def test_the_seed_decides(self):
        vectors = unit(np.random.default_rng(0), 300, 4)
        draws = [ground_truth(vectors, 1, max_queries=30, seed=seed).rows.tolist() for seed in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]

    def test_few_are_asked_of_very_many(self, monkeypatch):
        monkeypatch.setattr("geoinfer.index.recall._MOST_PRODUCTS", 300 * 4 * 150)
        vectors = unit(np.random.default_rng(0), 300, 4)
        assert len(ground_truth(vectors, 1).queries) == 150
        assert len(ground_truth(vectors, 1, queries=vectors[:200]).queries) == 150
        monkeypatch.setattr("geoinfer.index.recall._MOST_PRODUCTS", 1)
        assert len(ground_truth(vectors, 1).queries) == 100

    def test_steps_are_told(self, monkeypatch):
        monkeypatch.setattr("geoinfer.index.recall._AT_ONCE", 256)
        steps = []
        ground_truth(circle(600), 3, on_step=lambda name, share: steps.append((name, share)))
        assert {name for name, _ in steps} == {"measuring recall"}
        assert [share for _, share in steps] == [256 / 600, 512 / 600, 1.0]

    def test_a_part(self):
        truth = ground_truth(circle(40), 3)
        part = truth.part(np.array([4, 2]))
        assert part.rows.tolist() == [4, 2]
        assert part.similarities.tolist() == truth.similarities[[4, 2]].tolist()


def test_of_one_reference_nothing_can_be_missed():
    vectors = np.ones((1, 1), np.float32)
    report = measure_recall(Told(vectors, lambda _query, _k: [0]))
    assert report.recall_at == {1: 1.0, 10: 1.0}
    assert report.queries == 0


def test_fewer_references_than_k():
    vectors = circle(4)
    told = Told(vectors, lambda query, k: np.argsort(-(vectors @ query), kind="stable")[:k])
    assert recall_against(told, ground_truth(vectors, 10)).recall_at == {1: 1.0, 10: 1.0}


def test_plain_values():
    report = measure_recall(Told(circle(20), lambda query, k: np.argsort(-(circle(20) @ query))[:k]))
    values = json.loads(json.dumps(report.as_dict()))
    assert values["recall_at"] == {"1": 1.0, "10": 1.0}
    assert values["queries"] == 20
    assert values["of"] == "references, each left out"
