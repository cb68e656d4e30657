from __future__ import annotations

import gc
import math
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import IndexFolderError, MissingPackageError
from geoinfer.index import ExactIndex, FlatIndex, base, flat
from geoinfer.index.flat import import_faiss

faiss = pytest.importorskip("faiss")


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def assert_same(found, expected):
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.similarities.tobytes() == expected.similarities.tobytes()
    assert (found.ids.dtype, found.similarities.dtype) == (np.int64, np.float32)


class TestAgainstExact:
    @pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (17, 4), (300, 8), (500, 64), (200, 257)])
    @pytest.mark.parametrize("k", [1, 5, 100, 1000])
    def test_random(self, n, d, k):
        rng = np.random.default_rng(n * 1000 + d)
        vectors, queries = unit(rng, n, d), unit(rng, 30, d)
        found = FlatIndex(vectors).search(queries, k)
        assert found.ids.shape == (30, min(n, k))
        assert_same(found, ExactIndex(vectors).search(queries, k))

    def test_vectors_that_are_almost_alike(self):
        # Differences as small as float32 can tell: FAISS's own sums misorder these.
        rng = np.random.default_rng(7)
        base = unit(rng, 1, 128)
        vectors = (base + rng.normal(0, 3e-7, (400, 128))).astype(np.float32)
        queries = np.concatenate([base, unit(rng, 3, 128)])
        for k in (1, 3, 20):
            assert_same(FlatIndex(vectors).search(queries, k), ExactIndex(vectors).search(queries, k))

    @pytest.mark.parametrize("copies", [2, 16, 17, 18, 40, 200])
    @pytest.mark.parametrize("k", [1, 3, 10])
    def test_copies_come_by_id(self, copies, k):
        # More than k + 16 identical vectors: FAISS keeps whichever it met, the contract wants the lowest ids.
        rng = np.random.default_rng(copies)
        vectors = unit(rng, 300, 16)
        rows = np.sort(rng.choice(300, copies, replace=False))
        vectors[rows] = vectors[rows[0]]
        query = vectors[rows[:1]]
        found = FlatIndex(vectors).search(query, k)
        assert found.ids[0, : min(k, copies)].tolist() == rows[: min(k, copies)].tolist()
        assert_same(found, ExactIndex(vectors).search(query, k))

    def test_nothing_but_copies(self):
        vectors = np.tile(unit(np.random.default_rng(0), 1, 32), (500, 1))
        found = FlatIndex(vectors).search(vectors[:3], 7)
        assert found.ids.tolist() == [list(range(7))] * 3

    def test_copies_behind_the_best(self):
        # The tie is at the cut and not at the top.
        vectors = np.zeros((200, 3), np.float32)
        vectors[:, 1] = 1.0
        vectors[150] = (1, 0, 0)
        vectors[80:90] = (0, 0, 1)
        query = np.array([[0.8, 0.6, 0.0]], np.float32)
        assert FlatIndex(vectors).search(query, 4).ids.tolist() == [[150, 0, 1, 2]]

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), min_size=2, max_size=2), min_size=1, max_size=60),
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=2, max_size=2),
        st.integers(1, 70),
    )
    def test_many_ties(self, vectors, query, k):
        array, queries = np.array(vectors, np.float32), np.array([query], np.float32)
        found = FlatIndex(array).search(queries, k)
        products = [float(np.float32(a * query[0] + b * query[1])) for a, b in vectors]
        assert found.ids[0].tolist() == sorted(range(len(vectors)), key=lambda i: (-products[i], i))[:k]


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(21)
    vectors, queries = unit(rng, 1500, 48), unit(rng, 64, 48)
    vectors[100:140] = vectors[7]
    queries[5] = vectors[7]
    return vectors, queries, ExactIndex(vectors).search(queries, 9)


class TestSameAnswer:
    @pytest.mark.parametrize("batch", [1, 7, 64])
    @pytest.mark.parametrize("threads", [0, 1, 2])
    def test_whatever_the_batch_and_the_threads(self, case, batch, threads):
        vectors, queries, expected = case
        index = FlatIndex(vectors)
        parts = [index.search(queries[i : i + batch], 9, threads=threads) for i in range(0, 64, batch)]
        assert np.concatenate([p.ids for p in parts]).tolist() == expected.ids.tolist()
        assert np.concatenate([p.similarities for p in parts]).tobytes() == expected.similarities.tobytes()

    def test_whatever_the_layout(self, case):
        vectors, queries, expected = case
        index = FlatIndex(vectors)
        assert_same(index.search(np.asfortranarray(queries), 9), expected)
        assert_same(index.search(np.repeat(queries, 2, axis=0)[::2], 9), expected)

    def test_from_several_threads_at_once(self, case):
        vectors, queries, expected = case
        index = FlatIndex(vectors)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: index.search(queries, 9, threads=1), range(8)):
                assert_same(found, expected)

    def test_the_array_itself_is_searched(self):
        vectors = np.eye(4, dtype=np.float32)
        vectors.flags.writeable = False
        assert np.shares_memory(FlatIndex(vectors).vectors, vectors)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_over_a_mapped_file(self, case, tmp_path, dtype):
        vectors, queries, _ = case
        np.save(tmp_path / "v.npy", vectors.astype(dtype))
        mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
        index = FlatIndex(mapped)
        assert np.shares_memory(index.vectors, mapped)
        assert_same(index.search(queries, 9), ExactIndex(vectors.astype(dtype)).search(queries, 9))


class TestHalf:
    """Vectors in float16: exact inner products with what is stored."""

    @pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (17, 4), (300, 8), (500, 64), (200, 257)])
    @pytest.mark.parametrize("k", [1, 5, 100, 1000])
    def test_random(self, n, d, k, monkeypatch):
        monkeypatch.setattr(base, "_BLOCK_VALUES", 37 * d)
        rng = np.random.default_rng(n * 1000 + d)
        vectors, queries = unit(rng, n, d).astype(np.float16), unit(rng, 30, d)
        index = FlatIndex(vectors)
        assert (index.kind, FlatIndex(vectors.astype(np.float32)).kind) == ("flat-fp16", "flat")
        found = index.search(queries, k)
        assert found.ids.shape == (30, min(n, k))
        assert_same(found, ExactIndex(vectors.astype(np.float32)).search(queries, k))

    @pytest.mark.parametrize("batch", [1, 7, 64])
    def test_whatever_the_batch_and_the_block(self, case, batch, monkeypatch):
        vectors, queries, _ = case
        halves = vectors.astype(np.float16)
        expected = ExactIndex(halves).search(queries, 9)
        for rows in (100, 1499, 10_000):
            monkeypatch.setattr(base, "_BLOCK_VALUES", rows * 48)
            index = FlatIndex(halves)
            parts = [index.search(queries[i : i + batch], 9) for i in range(0, 64, batch)]
            assert np.concatenate([p.ids for p in parts]).tolist() == expected.ids.tolist()


class TestAgainstExactAnywhere:
    @settings(max_examples=150, deadline=None)
    @given(
        n=st.integers(1, 120),
        d=st.integers(1, 9),
        q=st.integers(0, 5),
        k=st.integers(1, 150),
        dtype=st.sampled_from([np.float32, np.float16]),
        distinct=st.integers(1, 30),
        rows=st.integers(1, 130),
        settled=st.integers(1, 40),
        at_once=st.integers(1, 9),
        seed=st.integers(0, 2**32),
    )
    def test_many_copies(self, n, d, q, k, dtype, distinct, rows, settled, at_once, seed):
        """Of few different vectors there are many copies, in blocks of any length."""
        rng = np.random.default_rng(seed)
        vectors = unit(rng, distinct, d)[rng.integers(0, distinct, n)].astype(dtype)
        queries = np.concatenate([unit(rng, q, d), vectors[: q // 2].astype(np.float32)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "_BLOCK_VALUES", rows * d)
            patch.setattr(flat, "_SETTLED_AT", settled)
            patch.setattr(flat, "_QUERIES_AT_ONCE", at_once)
            found = FlatIndex(vectors).search(queries, k)
        assert_same(found, ExactIndex(vectors).search(queries, k))


class TestDamage:
    """What a large file, of which the checksum is not looked at when it is opened, may hold."""

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("batch", [1, 30])
    def test_nothing_but_rows_and_finite_numbers_comes_out(self, dtype, value, batch):
        vectors = unit(np.random.default_rng(0), 20, 4).astype(dtype)
        vectors[3, 2] = value
        index = FlatIndex(vectors, checked=True)
        queries = unit(np.random.default_rng(1), batch, 4)
        with pytest.raises(IndexFolderError, match="not finite") as caught:
            index.search(queries, 20)
        assert "--verify" in caught.value.hint
        try:
            found = index.search(queries, 2)
        except IndexFolderError:
            return
        assert np.isfinite(found.similarities).all()
        assert 3 not in found.ids

    def test_the_constructor_looks(self):
        with pytest.raises(ValueError, match="not finite"):
            FlatIndex(np.array([[1.0, math.nan]], np.float16))


class TestEdges:
    def test_no_queries(self):
        found = FlatIndex(np.ones((30, 5), np.float32)).search(np.empty((0, 5), np.float32), 2)
        assert found.ids.shape == found.similarities.shape == (0, 2)
        assert (found.ids.dtype, found.similarities.dtype) == (np.int64, np.float32)

    @pytest.mark.parametrize(
        ("queries", "k", "message"),
        [
            (np.ones((2, 4), np.float32), 1, r"queries have shape \(2, 4\); expected \(q, 5\)"),
            (np.ones(5, np.float32), 1, r"queries have shape \(5,\)"),
            (np.ones((0, 4), np.float32), 1, r"queries have shape \(0, 4\)"),
            (np.ones((2, 5), np.float64), 1, "queries are float64"),
            (np.ones((2, 5), np.float32), 0, "k is 0"),
            (np.array([[1, 1, 1, 1, math.nan]], np.float32), 1, "not finite"),
            (np.array([[1, 1, 1, 1, math.inf]], np.float32), 1, "not finite"),
        ],
    )
    def test_bad_queries_are_refused(self, queries, k, message):
        with pytest.raises(ValueError, match=message):
            FlatIndex(np.ones((3, 5), np.float32)).search(queries, k)

    @pytest.mark.parametrize("vectors", [np.ones(5), np.ones((0, 5)), np.ones((5, 0)), np.array([[1.0, math.nan]])])
    def test_bad_references_are_refused(self, vectors):
        with pytest.raises(ValueError, match=r"shape|finite"):
            FlatIndex(vectors)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5), st.integers(0, 2**32))
    def test_ids_are_always_rows(self, n, k, q, seed):
        rng = np.random.default_rng(seed)
        found = FlatIndex(unit(rng, n, 3)).search(unit(rng, q, 3), k)
        assert found.ids.shape == (q, min(k, n))
        for row in found.ids.tolist():
            assert len(set(row)) == len(row)
            assert set(row) <= set(range(n))


def test_vectors_outlive_their_index(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(64, dtype=np.float32))
    kept = FlatIndex(np.load(tmp_path / "x.npy", mmap_mode="r")).vectors
    gc.collect()
    # Freed memory would be handed out again here.
    filling = [np.full((64, 64), 7.0, np.float32) for _ in range(50)]
    assert (kept == np.eye(64)).all()
    assert len(filling) == 50


def test_other_threads_run_meanwhile():
    """FAISS gives up the interpreter's lock: a pipeline reads photos while it searches."""
    vectors = unit(np.random.default_rng(0), 20_000, 128)
    index, counted, done = FlatIndex(vectors), 0, threading.Event()
    index.search(vectors[:1], 5, threads=1)

    def search():
        index.search(vectors[:2000], 5, threads=1)
        done.set()

    thread = threading.Thread(target=search)
    thread.start()
    while not done.wait(0.001):
        counted += 1
    thread.join()
    assert counted > 3


def test_half_a_faiss_is_named_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", types.ModuleType("faiss"))
    with pytest.raises(MissingPackageError) as caught:
        import_faiss()
    assert "geoinfer-toolkit[cpu]" in caught.value.hint
