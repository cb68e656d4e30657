from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import IndexFolderError
from geoinfer.index.base import rank
from geoinfer.index.rerank import MappedFile, Reranker

pytest.importorskip("faiss")


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_hand(query, vectors, candidates, k):
    products = {
        int(i): np.float32(sum(float(a) * float(b) for a, b in zip(query, vectors[i], strict=True)))
        for i in candidates
        if i >= 0
    }
    return sorted(products, key=lambda i: (-products[i], i))[:k], products


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (7, 7), (40, 3), (40, 33), (40, 34), (40, 40)])
def test_as_plain_loops(dtype, lean, count, k):
    rng = np.random.default_rng(count * 100 + k)
    vectors, queries = unit(rng, 60, 12).astype(dtype), unit(rng, 9, 12)
    candidates = np.stack([rng.permutation(60)[:count] for _ in queries])
    found = Reranker(vectors, lean=lean).best(queries, candidates, k)
    for row, query in enumerate(queries):
        ids, products = by_hand(query, vectors, candidates[row], k)
        assert found.ids[row].tolist() == ids
        assert found.similarities[row].tolist() == [products[i] for i in ids]
    assert (found.ids.dtype, found.similarities.dtype) == (np.int64, np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), min_size=2, max_size=2), min_size=1, max_size=60),
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=2, max_size=2),
    st.integers(1, 60),
    st.randoms(),
    st.booleans(),
)
def test_ties_come_by_id(vectors, query, k, random, half):
    array = np.array(vectors, np.float16 if half else np.float32)
    k = min(k, len(array))
    order = list(range(len(array)))
    random.shuffle(order)
    found = Reranker(array).best(np.array([query], np.float32), np.array([order]), k)
    assert found.ids[0].tolist() == by_hand(query, array, order, k)[0]


def test_what_float32_sums_misorder():
    rng = np.random.default_rng(7)
    base = unit(rng, 1, 128)
    vectors = (base + rng.normal(0, 3e-7, (300, 128))).astype(np.float32)
    everyone = np.arange(300)[None]
    for k in (1, 5, 100):
        found, expected = Reranker(vectors).best(base, everyone, k), rank(base, vectors, everyone, k)
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.similarities.tobytes() == expected.similarities.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_missing_candidates_are_nobody(dtype):
    vectors = -np.eye(30, dtype=dtype)  # all similarities are 0 or below
    candidates = np.full((2, 20), -1)
    candidates[0, [3, 9, 12]] = (4, 0, 7)
    candidates[1, :12] = np.arange(12)
    queries = np.eye(30, dtype=np.float32)[[0, 5]]
    found = Reranker(vectors).best(queries, candidates, 3)
    assert found.ids.tolist() == [[4, 7, 0], [0, 1, 2]]
    assert found.similarities[0].tolist() == [0, 0, -1]


def test_many_queries_and_few_at_once():
    rng = np.random.default_rng(3)
    vectors, queries = unit(rng, 5000, 8), unit(rng, 700, 8)
    candidates = np.stack([rng.choice(5000, 50, replace=False) for _ in queries])
    plain, lean = (Reranker(vectors, lean=lean).best(queries, candidates, 9) for lean in (False, True))
    expected = rank(queries, vectors, candidates, 9)
    for found in (plain, lean):
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.similarities.tobytes() == expected.similarities.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_embedding_is_named(dtype, value):
    vectors = np.eye(20, dtype=dtype)
    vectors[3, 3] = value
    with pytest.raises(IndexFolderError, match="not finite"):
        Reranker(vectors).best(np.eye(20, dtype=np.float32)[:2], np.arange(20)[None].repeat(2, 0), 2)


class TestLean:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_a_mapped_file_is_let_go_of(self, tmp_path, dtype):
        rng = np.random.default_rng(1)
        vectors = unit(rng, 40_000, 64).astype(dtype)
        np.save(tmp_path / "v.npy", vectors)
        mapped = np.asarray(np.load(tmp_path / "v.npy", mmap_mode="r"))
        queries = unit(rng, 200, 64)
        candidates = np.stack([rng.choice(40_000, 50, replace=False) for _ in queries])

        def resident_kb():
            """Of the mapped file, as the system counts it."""
            with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
                text = file.read()
            part = text[text.index(str(tmp_path / "v.npy")) :]
            return int(part.split("Rss:")[1].split()[0])

        lean = Reranker(mapped, lean=True)
        before = resident_kb()
        found = lean.best(queries, candidates, 5)
        assert resident_kb() == before
        expected = Reranker(mapped).best(queries, candidates, 5)
        assert resident_kb() > before + 1000
        lean.release()
        assert resident_kb() <= before
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.similarities.tobytes() == expected.similarities.tobytes()

    def test_the_file_is_found(self, tmp_path):
        vectors = np.arange(40, dtype=np.float32).reshape(10, 4)
        np.save(tmp_path / "v.npy", vectors)
        mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
        for view, expected in ((mapped, vectors), (np.asarray(mapped), vectors), (np.asarray(mapped)[3:], vectors[3:]),
                               (mapped[3:][1:], vectors[4:])):  # fmt: skip
            read = MappedFile.of(view).rows(np.array([0, 2, 5]), view)
            assert read.tolist() == expected[[0, 2, 5]].tolist()
        assert MappedFile.of(vectors) is None

    def test_a_file_that_became_shorter(self, tmp_path):
        np.save(tmp_path / "v.npy", np.eye(40, dtype=np.float32))
        mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
        reranker = Reranker(mapped, lean=True)
        with (tmp_path / "v.npy").open("r+b") as file:
            file.truncate(2000)
        with pytest.raises(IndexFolderError, match=r"v\.npy: was cut short while it was read"):
            reranker.best(np.eye(40, dtype=np.float32)[:1], np.arange(40)[None], 3)
