from __future__ import annotations

import json

import numpy as np
import pytest

from geoinfer.index import tune as tuning
from geoinfer.index.approximate import DEFAULTS
from geoinfer.index.exact import ExactIndex
from geoinfer.index.search_file import build_search, open_search
from geoinfer.index.tune import Setting, choose, pareto, table_of, tried, tune

pytest.importorskip("faiss")


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def setting(nprobe, recall, speed):
    return Setting({"nprobe": nprobe}, {1: recall, 10: recall}, {1: speed / 10, 256: speed})


TABLE = [
    setting(1, 0.80, 9000),
    setting(2, 0.93, 5000),
    setting(3, 0.92, 4800),  # beaten by the one before
    setting(4, 0.97, 5000),  # as fast, and finds more
    setting(8, 0.99, 2000),
    setting(16, 0.995, 2100),  # measured to be faster
    setting(64, 0.995, 500),
]


class TestByHand:
    @pytest.mark.parametrize(
        ("target", "nprobe", "reached"),
        [(0.5, 1, True), (0.9, 4, True), (0.97, 4, True), (0.98, 16, True), (0.995, 16, True), (0.999, 16, False)],
    )
    def test_the_fastest_that_reaches_the_target(self, target, nprobe, reached):
        best, enough = choose(TABLE, target)
        assert (best.parameters["nprobe"], enough) == (nprobe, reached)

    def test_what_no_other_beats(self):
        assert [s.parameters["nprobe"] for s in pareto(TABLE)] == [1, 4, 16]
        assert pareto(TABLE[:1]) == TABLE[:1]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    folder, vectors = tmp_path_factory.mktemp("tune"), unit(np.random.default_rng(0), 2500, 16)
    found = {}
    for kind in ("ivf", "hnsw", "sq8", "ivf-pq"):
        stored = vectors.astype(np.float16) if kind in ("sq8", "ivf-pq") else vectors
        found[kind] = open_search(folder / kind, kind, stored, build_search(kind, stored, folder / kind))
    return found


@pytest.fixture
def _hasty(monkeypatch):
    monkeypatch.setattr(tuning, "_TIMED_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "_TIMED_QUERIES", 1)
    monkeypatch.setattr(tuning, "_MAX_QUERIES", 200)
    monkeypatch.setattr(tuning, "_REFINES", (1.0, 8.0))


class TestTried:
    def test_they_look_further_and_further(self, indexes):
        lists = indexes["ivf"].faiss_index.nlist
        assert lists == 200
        rows = tried(indexes["ivf"])
        assert [row[0] for row in rows] == [{"nprobe": 1, "refine": refine} for refine in (1, 2, 4, 8, 16)]
        row = rows[0]
        values = [parameters["nprobe"] for parameters in row]
        assert values == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 200]
        (row,) = tried(indexes["hnsw"])
        assert [parameters["efSearch"] for parameters in row][:4] == [16, 24, 32, 48]
        assert row[-1] == {"efSearch": 2048}
        assert [parameters["refine"] for parameters in tried(indexes["sq8"])[0]] == [1, 2, 4, 8, 16]
        rows = tried(indexes["ivf-pq"])
        assert [row[0] for row in rows] == [{"nprobe": 1, "refine": refine} for refine in (1, 2, 4, 8, 16)]

    @pytest.mark.parametrize("kind", list(DEFAULTS))
    def test_all_make_sense(self, indexes, kind):
        for row in tried(indexes[kind]):
            for parameters in row:
                indexes[kind].with_parameters(parameters)


@pytest.mark.usefixtures("_hasty")
class TestTune:
    @pytest.mark.parametrize("kind", list(DEFAULTS))
    def test_the_target_is_reached_and_judged_on_the_other_half(self, indexes, kind):
        steps = []
        index = indexes[kind]
        tuned = tune(index, 0.95, threads=1, on_step=lambda name, share: steps.append((name, share)))
        assert tuned.reached
        assert tuned.best.recall_at[10] >= 0.95
        assert tuned.report.queries == 100
        assert tuned.report.recall_at[10] > 0.9
        assert tuned.best in tuned.settings
        assert set(map(id, tuned.frontier)) <= set(map(id, tuned.settings))
        speeds = [s.queries_per_s[256] for s in tuned.settings]
        assert speeds == sorted(speeds, reverse=True)
        assert steps[-1] == ("trying settings", 1.0)
        assert all(0 <= share <= 1 for _, share in steps)
        assert set(tuned.best.parameters) == set(DEFAULTS[kind])

    def test_recall_of_a_setting_is_what_it_is(self, indexes):
        index = indexes["ivf"]
        queries = unit(np.random.default_rng(5), 60, 16)
        tuned = tune(index, 0.8, queries=queries, seed=3)
        # Both halves together are all queries: their mean is what a plain comparison finds.
        best = index.with_parameters(tuned.best.parameters).search(queries, 10)
        truth = ExactIndex(index.vectors).search(queries, 10)
        hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best.ids.tolist(), truth.ids.tolist(), strict=True)])
        assert (tuned.best.recall_at[10] + tuned.report.recall_at[10]) / 2 == pytest.approx(hits)

    def test_where_nothing_reaches_it(self, indexes, monkeypatch):
        monkeypatch.setattr(
            tuning, "tried", lambda _index: [[{"nprobe": 1, "refine": 1}, {"nprobe": 30, "refine": 10}]]
        )
        tuned = tune(indexes["ivf"], 1.0)
        assert not tuned.reached
        assert tuned.best.parameters == {"nprobe": 30, "refine": 10}

    def test_it_stops_where_nothing_more_is_found(self, indexes, monkeypatch):
        rows = [
            [{"nprobe": nprobe, "refine": 1} for nprobe in (1, 100, 150, 200, 201, 202)],
            [{"nprobe": 200, "refine": 16}],
        ]
        monkeypatch.setattr(tuning, "tried", lambda _index: rows)
        tuned = tune(indexes["ivf-pq"], 0.5)
        assert 4 < len(tuned.settings) < 7

    def test_one_query_is_too_few(self, indexes):
        with pytest.raises(ValueError, match="takes two"):
            tune(indexes["ivf"], 0.9, queries=unit(np.random.default_rng(0), 1, 16))

    def test_the_table_is_plain_values(self, indexes):
        tuned = tune(indexes["ivf"], 0.9)
        table = json.loads(json.dumps(table_of(tuned, 2500, 2500 * 24, 2500 * 100)))
        assert len(table) == len(tuned.settings)
        assert [row["parameters"] for row in table if row["chosen"]] == [tuned.best.parameters]
        assert sum(row["frontier"] for row in table) == len(tuned.frontier)
        assert {row["memory_bytes_per_reference"] for row in table} == {24.0}
        assert {row["disk_bytes_per_reference"] for row in table} == {100.0}
        assert all(set(row["queries_per_s"]) == {"1", "256"} for row in table)
