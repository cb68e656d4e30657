from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import IndexFolderError
from geoinfer.index import approximate, search_file
from geoinfer.index.approximate import DEFAULTS, ApproximateIndex, checked
from geoinfer.index.exact import ExactIndex
from geoinfer.index.search_file import build_search, code_bytes, extend_search, list_count, open_search, subspaces

faiss = pytest.importorskip("faiss")

KINDS = tuple(DEFAULTS)
HALF = ("sq8", "ivf-pq")
ALL = {
    "sq8": {"refine": 16},
    "hnsw": {"efSearch": 2000},
    "ivf": {"nprobe": 1000, "refine": 30},
    "ivf-pq": {"nprobe": 1000, "refine": 30},
}


@pytest.fixture(autouse=True)
def _cheap_codes(monkeypatch):
    """A product quantiser of few words: what is tested is not how good it is."""
    monkeypatch.setattr(search_file, "_WORD_ROUNDS", 2)


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(seed, n, d):
    """Like embeddings: around a hundred centres."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng, 100, d)[rng.integers(0, 100, n)] + rng.normal(0, 0.5 / math.sqrt(d), (n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def stored(kind, vectors):
    return vectors.astype(np.float16) if kind in HALF else vectors


def built(kind, vectors, folder, parameters=None):
    vectors = stored(kind, vectors)
    found = build_search(kind, vectors, folder / "search.faiss")
    return open_search(folder / "search.faiss", kind, vectors, found if parameters is None else parameters)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Fifteen hundred references with copies among them, an index of every kind, and queries."""
    vectors, queries = clustered(1, 1500, 32), clustered(1, 1540, 32)[1500:]
    vectors[100:140] = vectors[7]
    queries[5] = vectors[7]
    indexes = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        indexes[kind] = built(kind, vectors, folder, ALL[kind])
    return vectors, queries, indexes


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    @pytest.mark.parametrize("k", [1, 9])
    def test_told_to_look_everywhere_it_answers_exactly(self, case, kind, k):
        vectors, queries, indexes = case
        found = indexes[kind].search(queries, k)
        expected = ExactIndex(stored(kind, vectors).astype(np.float32)).search(queries, k)
        # Of forty copies, FAISS finds some; which of them is not decided by id before they are found.
        alone = [row for row in range(40) if row != 5]
        assert found.ids[alone].tolist() == expected.ids[alone].tolist()
        assert found.similarities.tobytes() == expected.similarities.tobytes()
        assert (found.ids.dtype, found.similarities.dtype) == (np.int64, np.float32)
        assert set(found.ids[5].tolist()) <= {7, *range(100, 140)}
        assert found.ids[5].tolist() == sorted(set(found.ids[5].tolist()))

    @pytest.mark.parametrize("k", [400, 1500, 10_000])
    def test_many_neighbours_are_all_there_and_exact(self, case, kind, k):
        vectors, queries, indexes = case
        found = indexes[kind].with_parameters({}).search(queries[:3], k)
        expected = ExactIndex(stored(kind, vectors).astype(np.float32)).search(queries[:3], k)
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.similarities.tobytes() == expected.similarities.tobytes()

    @pytest.mark.parametrize(("batch", "threads"), [(1, 0), (1, 1), (7, 1), (7, 2), (40, 0), (40, 1)])
    def test_the_same_whatever_the_batch_and_the_threads(self, case, kind, batch, threads):
        _, queries, indexes = case
        whole = indexes[kind].search(queries, 9)
        parts = [indexes[kind].search(queries[i : i + batch], 9, threads=threads) for i in range(0, 40, batch)]
        assert np.concatenate([p.similarities for p in parts]).tobytes() == whole.similarities.tobytes()
        assert np.concatenate([p.ids for p in parts]).tolist() == whole.ids.tolist()

    def test_whatever_the_layout(self, case, kind):
        _, queries, indexes = case
        whole = indexes[kind].search(queries, 9)
        assert indexes[kind].search(np.asfortranarray(queries), 9).ids.tolist() == whole.ids.tolist()
        assert indexes[kind].search(np.repeat(queries, 2, axis=0)[::2], 9).ids.tolist() == whole.ids.tolist()

    def test_from_several_threads_with_different_parameters(self, case, kind):
        _, queries, indexes = case
        few = indexes[kind].with_parameters(dict.fromkeys(DEFAULTS[kind], 1))
        both = [indexes[kind], few]
        expected = [index.search(queries, 9).ids.tolist() for index in both]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda i: both[i % 2].search(queries, 9, threads=1).ids.tolist(), range(12))
        assert list(found) == expected * 6

    def test_what_it_says_of_itself(self, case, kind):
        vectors, _, indexes = case
        index = indexes[kind]
        assert (index.kind, index.size, index.dim) == (kind, 1500, 32)
        assert index.vectors.tobytes() == stored(kind, vectors).tobytes()
        assert set(index.parameters) == set(DEFAULTS[kind])
        assert index.faiss_index.ntotal == 1500

    def test_no_queries(self, case, kind):
        found = case[2][kind].search(np.empty((0, 32), np.float32), 4)
        assert found.ids.shape == found.similarities.shape == (0, 4)

    @pytest.mark.parametrize(
        ("queries", "k", "message"),
        [
            (np.ones((2, 4), np.float32), 1, r"expected \(q, 32\)"),
            (np.ones((2, 32), np.float64), 1, "queries are float64"),
            (np.ones((2, 32), np.float32), 0, "k is 0"),
            (np.full((2, 32), np.nan, np.float32), 1, "not finite"),
        ],
    )
    def test_bad_queries_are_refused(self, case, kind, queries, k, message):
        with pytest.raises(ValueError, match=message):
            case[2][kind].search(queries, k)

    def test_probabilities_are_over_all(self, case, kind):
        vectors, queries, indexes = case
        ids = indexes[kind].search(queries[:4], 6).ids
        found = indexes[kind].probabilities(queries[:4], ids, 20.0)
        expected = ExactIndex(stored(kind, vectors).astype(np.float32)).probabilities(queries[:4], ids, 20.0)
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    @pytest.mark.parametrize("size", [1, 2, 3, 15, 40, 335])
    def test_few_references(self, kind, size, tmp_path, capfd):
        vectors, queries = unit(np.random.default_rng(size), size, 8), unit(np.random.default_rng(9), 5, 8)
        index = built(kind, vectors, tmp_path)
        for k in (1, 4, 1000):
            found = index.search(queries, k)
            assert found.ids.shape == (5, min(k, size))
            assert found.ids.min() >= 0
            assert all(len(set(row)) == len(row) for row in found.ids.tolist())
            expected = ExactIndex(stored(kind, vectors).astype(np.float32)).search(queries, k)
            assert (found.similarities <= expected.similarities).all()
            if k == 1000 or size < 60:
                assert found.ids.tolist() == expected.ids.tolist()
        assert capfd.readouterr() == ("", "")  # FAISS warns of few training points on the terminal

    @pytest.mark.parametrize("dim", [1, 2, 3, 7, 33])
    def test_odd_dimensions(self, kind, dim, tmp_path):
        vectors = unit(np.random.default_rng(dim), 400, dim)
        found = built(kind, vectors, tmp_path, ALL[kind]).search(vectors[:5], 3)
        expected = ExactIndex(stored(kind, vectors).astype(np.float32)).search(vectors[:5], 3)
        assert found.similarities.tobytes() == expected.similarities.tobytes()

    def test_nothing_but_copies(self, kind, tmp_path):
        vectors = np.tile(unit(np.random.default_rng(0), 1, 16), (600, 1))
        found = built(kind, vectors, tmp_path).search(vectors[:3], 7)
        assert found.ids.shape == (3, 7)
        assert all(row == sorted(set(row)) for row in found.ids.tolist())
        assert np.ptp(found.similarities) == 0

    def test_finds_nearly_all_by_default(self, kind, tmp_path):
        vectors, queries = clustered(3, 4000, 24), clustered(3, 4100, 24)[4000:]
        found = built(kind, vectors, tmp_path).search(queries, 10)
        expected = ExactIndex(stored(kind, vectors).astype(np.float32)).search(queries, 10)
        assert (found.similarities >= expected.similarities[:, -1:]).mean() > 0.97


class TestFoundTooFew:
    def test_lists_are_widened(self):
        # Two lists far apart: one of three references, one of many. Near the three, more are asked for.
        near, far = np.eye(4, dtype=np.float32)[:1], -np.eye(4, dtype=np.float32)[:1]
        vectors = np.concatenate([near.repeat(3, 0), far.repeat(997, 0)])
        vectors += np.random.default_rng(0).normal(0, 1e-2, vectors.shape).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(4), 4, 2, faiss.METRIC_INNER_PRODUCT)
        lists.quantizer.add(np.concatenate([near, far]))
        lists.train(vectors)
        lists.add(vectors)
        raw = lists.search(near, 10, params=faiss.SearchParametersIVF(nprobe=1))[1]
        assert sorted(raw[0, :3].tolist()) == [0, 1, 2]
        assert (raw[0, 3:] == -1).all()
        found = ApproximateIndex("ivf", lists, vectors, {"nprobe": 1}).search(near, 10)
        expected = ExactIndex(vectors).search(near, 10)
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.similarities.tobytes() == expected.similarities.tobytes()

    def test_in_the_end_all_are_compared(self):
        class Blind:
            """Finds one reference for even queries and plenty for odd ones, however far it looks."""

            nlist = 4

            def __init__(self):
                self.nprobes = []

            def search(self, queries, found, params):
                self.nprobes.append(params.nprobe)
                ids = np.full((len(queries), found), -1)
                ids[:, 0] = 3
                ids[queries[:, 1] > 0.5] = np.arange(100, 100 + found)
                return None, ids

        vectors = unit(np.random.default_rng(0), 500, 4)
        blind = Blind()
        index = ApproximateIndex("ivf", blind, vectors, {"nprobe": 2, "refine": 1})
        queries = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], np.float32)
        found = index.search(queries, 5)
        expected = ExactIndex(vectors).search(queries, 5)
        assert found.ids[[0, 2]].tolist() == expected.ids[[0, 2]].tolist()
        order = np.argsort(-(vectors[100:121] @ queries[1]))[:5] + 100
        assert found.ids[1].tolist() == order.tolist()
        assert blind.nprobes == [2, 4]

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 120), st.integers(1, 140), st.integers(0, 5), st.integers(0, 2**32))
    def test_ids_are_always_rows(self, n, k, q, seed):
        rng = np.random.default_rng(seed)
        vectors = unit(rng, n, 4)
        index = faiss.index_factory(4, "IVF3,SQ8", faiss.METRIC_INNER_PRODUCT)
        index.quantizer.add(np.eye(4, dtype=np.float32)[:3])
        index.cp.min_points_per_centroid = 1
        index.train(np.tile(vectors, (3, 1)))
        index.add(vectors)
        found = ApproximateIndex("ivf", index, vectors, {"nprobe": 1}).search(unit(rng, q, 4), k)
        assert found.ids.shape == (q, min(k, n))
        for row in found.ids.tolist():
            assert len(set(row)) == len(row)
            assert set(row) <= set(range(n))


class TestParameters:
    def test_what_is_left_out_has_its_default(self):
        assert checked("ivf-pq", {"nprobe": 3}) == {"nprobe": 3, "refine": DEFAULTS["ivf-pq"]["refine"]}
        assert checked("sq8", {"refine": 1.5}) == {"refine": 1.5}

    @pytest.mark.parametrize(
        ("kind", "parameters", "message"),
        [
            ("ivf", {"efSearch": 4}, "no parameter 'efSearch'; it has nprobe, refine"),
            ("ivf", {"nprobe": 0}, "nprobe is 0; expected a whole number from 1"),
            ("ivf", {"nprobe": 2.5}, r"nprobe is 2\.5"),
            ("hnsw", {"efSearch": 1e9}, "efSearch is 1000000000"),
            ("hnsw", {"efSearch": math.nan}, "efSearch is nan"),
            ("sq8", {"refine": 0.5}, "refine is 0.5"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, kind, parameters, message, case):
        with pytest.raises(ValueError, match=message):
            checked(kind, parameters)
        index = case[2][kind]
        with pytest.raises(ValueError, match=message):
            index.with_parameters(parameters)

    def test_of_the_manifest_are_refused_with_its_name(self, case, tmp_path):
        path = case[2]["ivf"]._path
        with pytest.raises(IndexFolderError, match=r"manifest\.json: nprobe is 0"):
            open_search(path, "ivf", case[0], {"nprobe": 0})

    def test_looking_further_finds_more(self, tmp_path):
        vectors, queries = unit(np.random.default_rng(0), 3000, 16), unit(np.random.default_rng(1), 100, 16)
        index = built("ivf", vectors, tmp_path)
        truth = ExactIndex(vectors).search(queries, 5).similarities[:, -1:]

        def found(nprobe):
            return (
                index.with_parameters({"nprobe": nprobe, "refine": 50}).search(queries, 5).similarities >= truth
            ).mean()

        few, some, every = found(1), found(8), found(1000)
        assert few < some < every == 1.0


class TestBuild:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_file_is_faiss_own(self, case, kind):
        path = case[2][kind]._path
        plain = faiss.read_index(str(path))
        assert (plain.ntotal, plain.d) == (1500, 32)

    @pytest.mark.parametrize("kind", ["sq8", "ivf", "ivf-pq"])
    def test_the_same_vectors_make_the_same_file(self, kind, tmp_path):
        vectors = stored(kind, clustered(5, 700, 16))
        build_search(kind, vectors, tmp_path / "a", threads=1)
        build_search(kind, vectors, tmp_path / "b", threads=1)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_steps_are_told_and_blocks_are_small(self, tmp_path, monkeypatch):
        monkeypatch.setattr(search_file, "_ADDED_VALUES", 16 * 100)
        steps = []
        vectors = clustered(5, 250, 16)
        build_search("ivf", vectors, tmp_path / "s", on_step=lambda name, share: steps.append((name, share)))
        assert steps == [("training", 0.0), ("training", 1.0), ("adding", 0.0), ("adding", 0.4), ("adding", 0.8),
                         ("adding", 1.0)]  # fmt: skip

    def test_training_sees_a_bounded_sample(self, monkeypatch):
        monkeypatch.setattr(search_file, "_SAMPLE_BYTES", 4 * 8 * 300)
        vectors = clustered(5, 900, 8)
        sample = search_file._sample(vectors, 30)
        assert sample.shape == (300, 8)
        rows = [int(np.flatnonzero((vectors == row).all(axis=1))[0]) for row in sample]
        assert rows == sorted(set(rows))
        assert rows == [
            int(np.flatnonzero((vectors == row).all(axis=1))[0]) for row in search_file._sample(vectors, 30)
        ]

    def test_few_points_are_repeated(self):
        assert search_file._sample(np.eye(3, dtype=np.float16), 1).shape == (258, 3)

    def test_exact_kinds_have_no_such_file(self, tmp_path):
        with pytest.raises(ValueError, match="kind flat has no"):
            build_search("flat", np.eye(4, dtype=np.float32), tmp_path / "s")

    @pytest.mark.parametrize(("size", "lists"), [(1, 1), (7, 1), (16, 2), (335, 41), (1_000_000, 4000), (10**8, 16384)])
    def test_numbers_of_lists(self, size, lists):
        assert list_count(size) == lists

    @pytest.mark.parametrize(
        ("dim", "count"),
        [(1, 1), (2, 1), (3, 3), (7, 7), (9, 9), (16, 8), (256, 128), (384, 192), (512, 256), (768, 256), (521, 1)],
    )
    def test_parts_of_an_embedding(self, dim, count):
        assert subspaces(dim) == count

    @pytest.mark.parametrize(
        ("dim", "count"), [(1, 1), (3, 1), (7, 1), (16, 4), (256, 64), (384, 64), (512, 64), (770, 55)]
    )
    def test_bytes_of_a_code(self, dim, count):
        assert code_bytes(dim) == count
        assert dim % count == 0

    def test_a_name_that_is_not_utf8(self, tmp_path):
        try:
            folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
            folder.mkdir()
        except OSError:
            pytest.skip("this file system takes only UTF-8")
        vectors = clustered(5, 400, 8)
        for kind in KINDS:
            index = built(kind, vectors, folder, ALL[kind])
            assert index.search(vectors[:1], 1).similarities == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
class TestExtend:
    def test_the_new_ones_are_found(self, kind, tmp_path):
        vectors, queries = stored(kind, clustered(6, 900, 16)), clustered(6, 950, 16)[900:]
        build_search(kind, vectors[:600], tmp_path / "old")
        before = (tmp_path / "old").read_bytes()
        steps = []
        extend_search(
            tmp_path / "old",
            kind,
            vectors,
            600,
            tmp_path / "new",
            on_step=lambda name, share: steps.append((name, share)),
        )
        assert steps == [("adding", 600 / 900), ("adding", 1.0)]
        assert (tmp_path / "old").read_bytes() == before
        index = open_search(tmp_path / "new", kind, vectors, ALL[kind])
        expected = ExactIndex(vectors.astype(np.float32)).search(queries, 5)
        found = index.search(queries, 5)
        assert (found.similarities >= expected.similarities[:, -1:]).mean() > 0.99
        assert (expected.ids >= 600).any()

    def test_by_nothing(self, kind, tmp_path):
        vectors = stored(kind, clustered(6, 300, 8))
        build_search(kind, vectors, tmp_path / "old")
        extend_search(tmp_path / "old", kind, vectors, 300, tmp_path / "new")
        assert (tmp_path / "new").read_bytes() == (tmp_path / "old").read_bytes()

    def test_of_other_vectors_is_refused(self, kind, tmp_path):
        vectors = stored(kind, clustered(6, 300, 8))
        build_search(kind, vectors, tmp_path / "old")
        with pytest.raises(IndexFolderError, match="of 300 references of 8 dimensions; expected 200 of 8"):
            extend_search(tmp_path / "old", kind, vectors, 200, tmp_path / "new")


def test_the_defaults_look_at_some_thousands(tmp_path, monkeypatch):
    monkeypatch.setattr(search_file, "_LOOKED_AT", 500)
    vectors = clustered(2, 2000, 8)
    parameters = build_search("ivf", vectors, tmp_path / "s")
    assert parameters == {"nprobe": max(64, math.ceil(list_count(2000) / 4)), "refine": 12}
    assert build_search("ivf", vectors[:100], tmp_path / "s")["nprobe"] == list_count(100)
    assert approximate.DEFAULTS["ivf"]["nprobe"] == 64
