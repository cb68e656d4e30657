from __future__ import annotations

import gc
import math
import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import GeoInferError, IndexFolderError, MissingPackageError
from geoinfer.index import ExactIndex, FaissFlatIndex
from geoinfer.index.faiss_index import import_faiss

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
        found = FaissFlatIndex(vectors).search(queries, k)
        assert found.ids.shape == (30, min(n, k))
        assert_same(found, ExactIndex(vectors).search(queries, k))

    def test_vectors_that_are_almost_alike(self):
        # Differences as small as float32 can tell: FAISS's own sums misorder these.
        rng = np.random.default_rng(7)
        base = unit(rng, 1, 128)
        vectors = (base + rng.normal(0, 3e-7, (400, 128))).astype(np.float32)
        queries = np.concatenate([base, unit(rng, 3, 128)])
        for k in (1, 3, 20):
            assert_same(FaissFlatIndex(vectors).search(queries, k), ExactIndex(vectors).search(queries, k))

    @pytest.mark.parametrize("copies", [2, 16, 17, 18, 40, 200])
    @pytest.mark.parametrize("k", [1, 3, 10])
    def test_copies_come_by_id(self, copies, k):
        # More than k + 16 identical vectors: FAISS keeps whichever it met, the contract wants the lowest ids.
        rng = np.random.default_rng(copies)
        vectors = unit(rng, 300, 16)
        rows = np.sort(rng.choice(300, copies, replace=False))
        vectors[rows] = vectors[rows[0]]
        query = vectors[rows[:1]]
        found = FaissFlatIndex(vectors).search(query, k)
        assert found.ids[0, : min(k, copies)].tolist() == rows[: min(k, copies)].tolist()
        assert_same(found, ExactIndex(vectors).search(query, k))

    def test_nothing_but_copies(self):
        vectors = np.tile(unit(np.random.default_rng(0), 1, 32), (500, 1))
        found = FaissFlatIndex(vectors).search(vectors[:3], 7)
        assert found.ids.tolist() == [list(range(7))] * 3

    def test_copies_behind_the_best(self):
        # The tie is at the cut and not at the top.
        vectors = np.zeros((200, 3), np.float32)
        vectors[:, 1] = 1.0
        vectors[150] = (1, 0, 0)
        vectors[80:90] = (0, 0, 1)
        query = np.array([[0.8, 0.6, 0.0]], np.float32)
        assert FaissFlatIndex(vectors).search(query, 4).ids.tolist() == [[150, 0, 1, 2]]

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), min_size=2, max_size=2), min_size=1, max_size=60),
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=2, max_size=2),
        st.integers(1, 70),
    )
    def test_many_ties(self, vectors, query, k):
        array, queries = np.array(vectors, np.float32), np.array([query], np.float32)
        found = FaissFlatIndex(array).search(queries, k)
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
        index = FaissFlatIndex(vectors)
        parts = [index.search(queries[i : i + batch], 9, threads=threads) for i in range(0, 64, batch)]
        assert np.concatenate([p.ids for p in parts]).tolist() == expected.ids.tolist()
        assert np.concatenate([p.similarities for p in parts]).tobytes() == expected.similarities.tobytes()

    def test_whatever_the_layout(self, case):
        vectors, queries, expected = case
        index = FaissFlatIndex(vectors)
        assert_same(index.search(np.asfortranarray(queries), 9), expected)
        assert_same(index.search(np.repeat(queries, 2, axis=0)[::2], 9), expected)

    def test_from_several_threads_at_once(self, case):
        vectors, queries, expected = case
        index = FaissFlatIndex(vectors)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: index.search(queries, 9, threads=1), range(8)):
                assert_same(found, expected)

    def test_after_a_round_trip(self, case, tmp_path):
        vectors, queries, expected = case
        FaissFlatIndex(vectors).write(tmp_path / "v.faiss")
        index = FaissFlatIndex.read(tmp_path / "v.faiss")
        assert (index.size, index.dim) == (1500, 48)
        assert index.vectors.tobytes() == vectors.tobytes()
        assert_same(index.search(queries, 9), expected)

    def test_the_references_are_copied(self):
        vectors = np.eye(4, dtype=np.float32)
        index = FaissFlatIndex(vectors)
        vectors[:] = 7
        assert index.vectors.tolist() == np.eye(4).tolist()


class TestEdges:
    def test_no_queries(self):
        found = FaissFlatIndex(np.ones((30, 5), np.float32)).search(np.empty((0, 5), np.float32), 2)
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
            FaissFlatIndex(np.ones((3, 5), np.float32)).search(queries, k)

    @pytest.mark.parametrize("vectors", [np.ones(5), np.ones((0, 5)), np.ones((5, 0)), np.array([[1.0, math.nan]])])
    def test_bad_references_are_refused(self, vectors):
        with pytest.raises(ValueError, match=r"shape|finite"):
            FaissFlatIndex(vectors)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5), st.integers(0, 2**32))
    def test_ids_are_always_rows(self, n, k, q, seed):
        rng = np.random.default_rng(seed)
        found = FaissFlatIndex(unit(rng, n, 3)).search(unit(rng, q, 3), k)
        assert found.ids.shape == (q, min(k, n))
        for row in found.ids.tolist():
            assert len(set(row)) == len(row)
            assert set(row) <= set(range(n))


def write_raw(path: Path, index) -> Path:
    faiss.write_index(index, str(path))
    return path


class TestRead:
    @pytest.mark.parametrize(
        "factory",
        ["L2norm,Flat", "IVF2,Flat", "HNSW8", "SQ8", "PQ2x4"],
    )
    def test_other_kinds_are_refused(self, tmp_path, factory):
        index = faiss.index_factory(4, factory, faiss.METRIC_INNER_PRODUCT)
        vectors = unit(np.random.default_rng(0), 40, 4)
        index.train(vectors)
        index.add(vectors)
        path = write_raw(tmp_path / "other.faiss", index)
        with pytest.raises(IndexFolderError, match=r"other\.faiss: a FAISS Index\w+; expected a flat index"):
            FaissFlatIndex.read(path)

    def test_another_metric_is_refused(self, tmp_path):
        index = faiss.IndexFlatL2(4)
        index.add(np.eye(4, dtype=np.float32))
        with pytest.raises(IndexFolderError, match=r"l2\.faiss: a FAISS IndexFlatL2"):
            FaissFlatIndex.read(write_raw(tmp_path / "l2.faiss", index))

    @pytest.mark.skipif(not hasattr(faiss, "IndexFlatIPPanorama"), reason="this FAISS has no such index")
    def test_a_flat_index_of_another_layout_is_refused(self, tmp_path):
        index = faiss.IndexFlatIPPanorama(8, 2)
        index.add(np.eye(8, dtype=np.float32))
        try:
            path = write_raw(tmp_path / "p.faiss", index)
        except RuntimeError:
            pytest.skip("this FAISS cannot write one")
        with pytest.raises(IndexFolderError, match=r"p\.faiss: "):
            FaissFlatIndex.read(path)

    @pytest.mark.parametrize(("n", "d"), [(0, 4), (3, 0)])
    def test_an_empty_index_is_refused(self, tmp_path, n, d):
        index = faiss.IndexFlatIP(d)
        index.ntotal = n
        with pytest.raises(IndexFolderError, match=r"e\.faiss: the index is empty"):
            FaissFlatIndex.read(write_raw(tmp_path / "e.faiss", index))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_values_that_are_not_finite_are_refused(self, tmp_path, value):
        # FAISS would answer -1 for them.
        index = faiss.IndexFlatIP(3)
        vectors = np.eye(3, dtype=np.float32)
        vectors[1, 2] = value
        index.add(vectors)
        with pytest.raises(IndexFolderError, match=r"n\.faiss: holds a value that is not finite"):
            FaissFlatIndex.read(write_raw(tmp_path / "n.faiss", index))

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(IndexFolderError, match=r"gone\.faiss: cannot be read: no such file"):
            FaissFlatIndex.read(tmp_path / "gone.faiss")

    def test_a_name_that_is_not_utf8(self, tmp_path):
        try:
            folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
            folder.mkdir()
        except OSError:
            pytest.skip("this file system takes only UTF-8")
        FaissFlatIndex(np.eye(4, dtype=np.float32)).write(folder / "v.faiss")
        assert FaissFlatIndex.read(folder / "v.faiss").vectors.tolist() == np.eye(4).tolist()

    def test_the_file_is_faiss_own(self, tmp_path):
        vectors = unit(np.random.default_rng(3), 9, 5)
        FaissFlatIndex(vectors).write(tmp_path / "v.faiss")
        plain = faiss.read_index(str(tmp_path / "v.faiss"))
        assert plain.metric_type == faiss.METRIC_INNER_PRODUCT
        assert plain.reconstruct_n(0, 9).tobytes() == vectors.tobytes()

    def test_every_truncation_is_refused(self, tmp_path):
        path = tmp_path / "v.faiss"
        FaissFlatIndex(unit(np.random.default_rng(3), 6, 4)).write(path)
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(IndexFolderError, match=r"v\.faiss: "):
                FaissFlatIndex.read(path)

    def test_a_length_that_asks_for_too_much_memory(self, tmp_path, monkeypatch):
        # A damaged length does this on a machine with less memory than it asks for; elsewhere it would be granted.
        def fail(_reader):
            raise MemoryError("std::bad_alloc")

        FaissFlatIndex(np.eye(4, dtype=np.float32)).write(tmp_path / "v.faiss")
        monkeypatch.setattr(faiss, "read_index", fail)
        with pytest.raises(IndexFolderError, match=r"v\.faiss: FAISS cannot read it; the file is damaged"):
            FaissFlatIndex.read(tmp_path / "v.faiss")

    def test_flipped_bytes_are_refused_or_harmless(self, tmp_path):
        # Of large files the checksum is not looked at when they are opened, so FAISS itself meets these.
        path = tmp_path / "v.faiss"
        FaissFlatIndex(unit(np.random.default_rng(3), 6, 4)).write(path)
        data = path.read_bytes()
        # The middle bytes of the length before the 6 x 4 floats are left alone: FAISS would ask for gigabytes.
        length = len(data) - 6 * 4 * 4 - 8
        refused = 0
        for place in set(range(len(data))) - set(range(length + 2, length + 6)):
            for bit in range(0, 8, 1 if place < 64 else 7):
                changed = bytearray(data)
                changed[place] ^= 1 << bit
                path.write_bytes(changed)
                try:
                    index = FaissFlatIndex.read(path)
                except GeoInferError:
                    refused += 1
                    continue
                ids = index.search(np.full((1, index.dim), 0.5, np.float32), 5).ids
                assert ids.min() >= 0
                assert ids.max() < index.size
        assert refused > 100


def test_vectors_outlive_their_index(tmp_path):
    vectors = np.eye(64, dtype=np.float32)
    FaissFlatIndex(vectors).write(tmp_path / "x.faiss")
    kept = FaissFlatIndex.read(tmp_path / "x.faiss").vectors
    built = FaissFlatIndex(vectors).vectors
    gc.collect()
    # Freed memory would be handed out again here.
    filling = [np.full((64, 64), 7.0, np.float32) for _ in range(50)]
    assert (kept == vectors).all()
    assert (built == vectors).all()
    assert len(filling) == 50


def test_half_a_faiss_is_named_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", types.ModuleType("faiss"))
    with pytest.raises(MissingPackageError) as caught:
        import_faiss()
    assert "geoinfer-toolkit[cpu]" in caught.value.hint
