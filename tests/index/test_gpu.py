from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.backends.base import EmbedderIdentity
from geoinfer.errors import DeviceError, MissingPackageError
from geoinfer.images import Preprocessing
from geoinfer.index import gpu, gpu_parts, open_index, write_index
from geoinfer.index.base import References
from geoinfer.index.exact import ExactIndex
from geoinfer.index.flat import FlatIndex
from geoinfer.index.leave_one_out import LeaveOneOut
from geoinfer.index_kinds import KINDS
from tests.index.fake_faiss_gpu import MOST, FakeCagra, FakeFaiss

if TYPE_CHECKING:
    from collections.abc import Iterator

faiss = pytest.importorskip("faiss")

DIM = 16


def unit(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(vectors: np.ndarray, kind: str = "flat", index: Any = None) -> Any:
    manifest = SimpleNamespace(kind=kind, size=len(vectors), embedder=SimpleNamespace(dim=vectors.shape[1]))
    return SimpleNamespace(folder=Path("shop"), manifest=manifest, index=index or FlatIndex(vectors))


def approximate(vectors: np.ndarray, kind: str, faiss_index: Any, nprobe: int = 3) -> Any:
    """What opens an index of such a kind, as far as a GPU is concerned; its own search is exact here."""
    exact = FlatIndex(vectors)
    made = SimpleNamespace(
        kind=kind, vectors=vectors, dim=vectors.shape[1], size=len(vectors), faiss_index=faiss_index, asked=[],
        probabilities=exact.probabilities, parameters={"nprobe": nprobe, "refine": 9},
    )  # fmt: skip

    def search(queries: np.ndarray, k: int, *, threads: int = 0) -> Any:
        made.asked.append(len(queries))
        return exact.search(queries, k, threads=threads)

    made.search = search
    return made


def ivf(vectors: np.ndarray, what: str = "IVF8,SQ8") -> Any:
    faiss.omp_set_num_threads(1)  # on a busy machine, threads wait for each other longer than they work
    index = faiss.index_factory(vectors.shape[1], what, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexIVFPQ):
        index.do_polysemous_training = False  # the factory turns it on, and it takes most of a minute
        index.pq.cp.niter, index.pq.cp.min_points_per_centroid = 4, 1
    index.train(vectors)
    index.add(vectors)
    return index


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a FAISS with GPUs in place of the installed one; call it for others."""
    monkeypatch.setattr(gpu_parts, "free_bytes", lambda device: None)

    def make(gpus: int = 1, *, cagra: bool = False) -> FakeFaiss:
        made = FakeFaiss(gpus, cagra=cagra)
        if cagra:
            made.GpuIndexCagra = FakeCagra(made)
        monkeypatch.setattr(gpu, "import_faiss", lambda: made)
        return made

    return make


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.similarities, expected.similarities)


@given(
    size=st.integers(1, 90), distinct=st.integers(1, 90), k=st.integers(1, 95), gpus=st.integers(1, 4),
    fp16=st.booleans(), half=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_the_answer_is_the_oracle_s(
    size: int, distinct: int, k: int, gpus: int, fp16: bool, half: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(distinct, seed)[rng.integers(distinct, size=size)].astype(np.float16 if half else np.float32)
    queries = np.concatenate([unit(3, seed + 1), vectors[:1].astype(np.float32)])
    made = FakeFaiss(gpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "import_faiss", lambda: made)
        patch.setattr(gpu_parts, "free_bytes", lambda device: None)
        patch.setattr(gpu_parts, "_CONVERTED_BYTES", 7 * 4 * DIM)
        with gpu.to_gpu(stored(vectors), fp16=fp16) as index:
            found = index.search(queries, k)
    assert_same(found, ExactIndex(vectors.astype(np.float32)).search(queries, k))
    assert not made.misuse


def test_near_duplicates_that_fp16_cannot_tell_apart(fake: Any) -> None:
    # 300 references within the rounding of fp16, in an order that only exact sums show.
    base, turn = unit(1)[0], unit(1, 1)[0]
    angles = np.random.default_rng(2).permutation(300) * 1e-5
    vectors = (base + angles[:, None] * turn).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = fake()
    with gpu.to_gpu(stored(vectors)) as index:
        found = index.search(base[None, :], 5)
    assert_same(found, ExactIndex(vectors).search(base[None, :], 5))
    assert len(made.searches) > 1  # it was not sure the first time


def test_more_copies_than_a_gpu_selects_come_in_order_of_their_ids(fake: Any) -> None:
    vectors = np.concatenate([unit(500, 3), np.repeat(unit(1), MOST + 500, axis=0), unit(500, 4)])
    made = fake(2)
    with gpu.to_gpu(stored(vectors)) as index:
        found = index.search(np.concatenate([unit(1), unit(1, 5)]), 4)
    np.testing.assert_array_equal(found.ids[0], np.arange(500, 504))
    assert_same(found, ExactIndex(vectors).search(np.concatenate([unit(1), unit(1, 5)]), 4))
    assert {k for _, _, k in made.searches} <= set(range(1, MOST + 1))


@pytest.mark.parametrize("k", [MOST - 40, MOST - 10, MOST, MOST + 1, 2400, 9000])
def test_more_neighbours_than_a_gpu_selects(fake: Any, k: int) -> None:
    fake()
    vectors, queries = unit(2500), unit(2, 1)
    with gpu.to_gpu(stored(vectors)) as index:
        assert_same(index.search(queries, k), ExactIndex(vectors).search(queries, k))


@pytest.mark.parametrize("half", [True, False])
def test_nothing_grows_on_the_gpu(fake: Any, monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    # An index that grows holds its rows twice for a moment; a GPU that they just fit into must do.
    monkeypatch.setattr(gpu_parts, "_CONVERTED_BYTES", 10 * 4 * DIM)
    made = fake(2)
    made.capacity_bytes = 50 * DIM * 2
    vectors = unit(100).astype(np.float16 if half else np.float32)
    with gpu.to_gpu(stored(vectors)):
        assert made.held_bytes == [50 * DIM * 2] * 2
        assert made.peak_bytes == made.capacity_bytes
    with pytest.raises(
        DeviceError, match="the 101 references of 16 dimensions of shop cannot be laid on the GPU: its "
    ):
        gpu.to_gpu(stored(unit(101)))


def test_room_is_looked_for_first(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fake(2)
    monkeypatch.setattr(gpu_parts, "free_bytes", lambda device: (5 - 3 * device) << 30)
    with pytest.raises(DeviceError, match=r"cuda:1: the 40 references of 16 dimensions of shop need 2\.0 GiB") as error:
        gpu.to_gpu(stored(unit(40)))
    assert "2.0 GiB are free" in str(error.value)
    assert "or search on the CPU" in error.value.hint
    assert made.held_bytes == [0, 0]
    gpu.to_gpu(stored(unit(40)), [0]).close()
    with pytest.raises(DeviceError, match="cuda:1"):
        gpu.to_gpu(stored(unit(99), "ivf", approximate(unit(99), "ivf", ivf(unit(99)))))


def test_free_memory_is_asked_of_cuda_and_the_device_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [3]
    runtime = SimpleNamespace(
        cudaGetDevice=lambda: (0, chosen[-1]),
        cudaSetDevice=lambda device: (chosen.append(device), (0 if device < 4 else 101,))[1],
        cudaMemGetInfo=lambda: (0, 7, 9),
    )
    monkeypatch.setattr(gpu_parts, "cuda_runtime", lambda: runtime)
    assert gpu_parts.free_bytes(1) == 7
    assert chosen == [3, 1, 3]
    assert gpu_parts.free_bytes(4) is None

    def missing() -> None:
        raise MissingPackageError("no cuda")

    monkeypatch.setattr(gpu_parts, "cuda_runtime", missing)
    assert gpu_parts.free_bytes(0) is None


def test_queries_are_halved_until_they_fit_and_stay_so(fake: Any) -> None:
    made = fake(2)
    made.most_queries = 30
    vectors, queries = unit(200), unit(100, 1)
    with gpu.to_gpu(stored(vectors)) as index:
        assert_same(index.search(queries, 3), ExactIndex(vectors).search(queries, 3))
        assert {count for _, count, _ in made.searches} == {100, 50, 25}
        made.searches.clear()
        assert_same(index.search(queries, 3), ExactIndex(vectors).search(queries, 3))
        assert {count for _, count, _ in made.searches} == {25}
        made.most_queries = 0
        with pytest.raises(DeviceError, match="the search on the GPU failed: its memory does not suffice"):
            index.search(queries, 3)
        made.most_queries = 30
        assert_same(index.search(queries, 3), ExactIndex(vectors).search(queries, 3))


def test_what_faiss_says_becomes_a_sentence(fake: Any) -> None:
    made = fake()
    made.failing = RuntimeError(
        "Error in void faiss::gpu::X(int, idx_t) at\n/x.cu:65: Error: 'a < b' failed:\nbad device"
    )
    with gpu.to_gpu(stored(unit(9))) as index, pytest.raises(DeviceError) as error:
        index.search(unit(1), 1)
    assert str(error.value) == "the search on the GPU failed: 'a < b' failed: bad device"


@pytest.mark.parametrize(("gpus", "fp16"), [(1, True), (1, False), (3, True), (2, False)])
def test_an_ivf_index_keeps_its_lists(fake: Any, monkeypatch: pytest.MonkeyPatch, gpus: int, fp16: bool) -> None:
    monkeypatch.setattr(gpu_parts, "_CONVERTED_BYTES", 700 * 4 * DIM)
    made = fake(gpus)
    vectors, queries = unit(3000), unit(20, 1)
    on_cpu = ivf(vectors, "IVF8,PQ8x4fs")
    lists = approximate(vectors, "ivf", on_cpu)
    with gpu.to_gpu(stored(vectors, "ivf", lists), fp16=fp16) as index:
        assert (index.searched_as, index.kind) == ("ivf-fp16" if fp16 else "ivf", "ivf")
        assert (index.size, index.dim) == (3000, DIM)
        found = index.search(queries, 5)
    assert {device for device, _, _ in made.searches} == set(range(gpus))
    assert not lists.asked
    assert on_cpu.nprobe == 1  # it is the CPU's, which sets it per call
    # The same lists are visited: of what they hold the best, whose similarities are exact.
    quantizer = faiss.downcast_index(on_cpu.quantizer)
    _, visited = quantizer.search(queries, 3)
    _, home = quantizer.search(vectors, 1)
    for row in range(20):
        reachable = np.flatnonzero(np.isin(home[:, 0], visited[row]))
        exact = ExactIndex(vectors[reachable]).search(queries[row : row + 1], 5)
        np.testing.assert_array_equal(found.ids[row], reachable[exact.ids[0]])
        np.testing.assert_array_equal(found.similarities[row], exact.similarities[0])


def test_an_ivf_index_that_finds_too_few_asks_the_cpu_for_those(fake: Any) -> None:
    fake()
    vectors, queries = unit(300), unit(40, 1)
    lists = approximate(vectors, "ivf", ivf(vectors), nprobe=1)
    with gpu.to_gpu(stored(vectors, "ivf", lists)) as index:
        found = index.search(queries, 38)
        everything = index.search(queries, 300)
    assert (found.ids >= 0).all()
    assert 0 < lists.asked[0] < 40
    assert_same(everything, ExactIndex(vectors).search(queries, 300))


@pytest.mark.parametrize(("gpus", "kept"), [(1, 8), (3, 4)])
def test_codes_of_a_product_quantiser_are_ranked_by_the_vectors(fake: Any, gpus: int, kept: int) -> None:
    made = fake(gpus)
    vectors, queries = unit(1200).astype(np.float16), unit(30, 1)
    on_cpu = ivf(vectors.astype(np.float32), f"IVF4,PQ{kept}")
    lists = approximate(vectors, "ivf-pq", on_cpu, nprobe=4)
    with gpu.to_gpu(stored(vectors, "ivf-pq", lists)) as index:
        assert index.searched_as == "ivf-pq"
        found = index.search(queries, 10)
        assert {k for _, _, k in made.searches} == {90}  # nine of each, as the index says
    exact = ExactIndex(vectors.astype(np.float32)).search(queries, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.ids, exact.ids, strict=True)]) > 0.9
    for query, ids, similarities in zip(queries, found.ids, found.similarities, strict=True):
        true = (vectors[ids].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(similarities, true)


@pytest.mark.parametrize("what", ["HNSW16", "SQ8"])
def test_what_faiss_has_no_gpu_code_for_is_searched_flat(fake: Any, what: str) -> None:
    made = fake()
    vectors = unit(2000)
    with pytest.raises(RuntimeError, match="not implemented on GPU"):
        made.index_cpu_to_gpu(None, 0, faiss.index_factory(DIM, "SQ8"), None)
    kind = {"HNSW16": "hnsw", "SQ8": "sq8"}[what]
    other = approximate(vectors, kind, faiss.index_factory(DIM, what))
    with gpu.to_gpu(stored(vectors, kind, other)) as index:
        assert (index.searched_as, index.kind) == ("flat-fp16", kind)
        assert_same(index.search(unit(5, 1), 7), ExactIndex(vectors).search(unit(5, 1), 7))


def test_hnsw_becomes_a_graph_where_faiss_has_it(fake: Any) -> None:
    made = fake(2, cagra=True)
    vectors = unit(1000)
    graph = approximate(vectors, "hnsw", None)
    with gpu.to_gpu(stored(vectors, "hnsw", graph)) as index:
        assert index.searched_as == "cagra"
        assert_same(index.search(unit(5, 1), 50), ExactIndex(vectors).search(unit(5, 1), 50))
    assert made.GpuIndexCagra.asked == [800, 800]
    assert not graph.asked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gpus", [1, 2])
def test_an_index_from_its_folder(fake: Any, tmp_path: Path, kind: Any, gpus: int) -> None:
    fake(gpus)
    vectors, queries = unit(400), unit(10, 1)
    digests = np.random.default_rng(0).integers(0, 256, (400, 32), np.uint8)
    references = References(
        ids=[f"{row}.jpg" for row in range(400)], coordinates=np.zeros((400, 2)), sources=["a"] * 400,
        attributions=["b"] * 400, content_sha256=digests, perceptual_hashes=digests,
    )  # fmt: skip
    embedder = EmbedderIdentity("none", DIM, Preprocessing())
    write_index(tmp_path / "index", vectors, references, embedder, kind=kind, calibration=LeaveOneOut.empty())
    opened = open_index(tmp_path / "index")
    with gpu.to_gpu(opened) as index:
        assert index.searched_as == {"ivf": "ivf-fp16", "ivf-pq": "ivf-pq"}.get(kind, "flat-fp16")
        found = index.search(queries, 5)
    expected = ExactIndex(np.asarray(opened.index.vectors, np.float32)).search(queries, 5)
    if index.searched_as == "flat-fp16":
        assert_same(found, expected)
    assert (found.similarities[:, 0] == expected.similarities[:, 0]).mean() >= 0.8
    np.testing.assert_array_equal(index.vectors, opened.index.vectors)


def test_threads_take_turns(fake: Any) -> None:
    made = fake(2)
    vectors, queries = unit(500), unit(64, 1)
    expected = ExactIndex(vectors).search(queries, 5)
    wrong: list[int] = []
    with gpu.to_gpu(stored(vectors)) as index:

        def work() -> None:
            for _ in range(5):
                if not np.array_equal(index.search(queries, 5).ids, expected.ids):
                    wrong.append(1)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert not made.misuse


def test_bad_questions_and_a_closed_index(fake: Any) -> None:
    fake()
    vectors = unit(20)
    index = gpu.to_gpu(stored(vectors), fp16=False)
    assert (index.searched_as, index.kind) == ("flat", "flat")
    assert index.vectors is not None
    with pytest.raises(ValueError, match="not finite"):
        index.search(np.full((1, DIM), np.nan, np.float32), 1)
    with pytest.raises(ValueError, match="expected at least 1"):
        index.search(unit(1), 0)
    with pytest.raises(ValueError, match="expected float32"):
        index.search(unit(1).astype(np.float64), 1)
    nothing = index.search(np.empty((0, DIM), np.float32), 3)
    assert nothing.ids.shape == nothing.similarities.shape == (0, 3)
    ids = np.arange(20)[None, :]
    np.testing.assert_allclose(index.probabilities(unit(1), ids, 20.0).sum(), 1)
    index.close()
    index.close()
    with pytest.raises(ValueError, match="closed"):
        index.search(unit(1), 1)


def test_gpus_that_are_not_there(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(2)
    assert gpu.gpu_count() == 2
    for devices, said in [
        ([2], "cuda:2: there is no such GPU; this machine has 2"),
        ([-1], "cuda:-1"),
        ([], "each GPU"),
        ([1, 1], "name each GPU once"),
    ]:
        with pytest.raises(DeviceError, match=said):
            gpu.to_gpu(stored(unit(5)), devices)
    fake(0)
    assert gpu.gpu_count() == 0
    with pytest.raises(DeviceError, match="FAISS finds no NVIDIA GPU here"):
        gpu.to_gpu(stored(unit(5)))
    monkeypatch.setattr(gpu, "import_faiss", lambda: SimpleNamespace(get_num_gpus=lambda: 0))
    assert gpu.gpu_count() == 0
    with pytest.raises(DeviceError, match="built without GPU support"):
        gpu.to_gpu(stored(unit(5)))

    def missing() -> None:
        raise MissingPackageError("no faiss")

    monkeypatch.setattr(gpu, "import_faiss", missing)
    assert gpu.gpu_count() == 0
    with pytest.raises(MissingPackageError):
        gpu.to_gpu(stored(unit(5)))


needs_gpu_build = pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="this FAISS is for CPUs")


@needs_gpu_build
def test_the_fake_has_the_real_names() -> None:
    """Needs no GPU, only a FAISS that knows them."""
    made = FakeFaiss(cagra=hasattr(faiss, "GpuIndexCagra"))
    for name in [name for name in (*vars(made), *vars(FakeFaiss)) if name[0].isupper() or name.startswith("index_")]:
        assert hasattr(faiss, name), name
    config = faiss.GpuIndexFlatConfig()
    config.device, config.useFloat16 = 1, True
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    options.useFloat16 = True
    for what, there in [("SQ8", False), ("HNSW16", False), ("IVF2,PQ8x4fs", False), ("IVF2,PQ8x8", True),
                        ("IVF2,SQfp16", True), ("IVF2,Flat", True)]:  # fmt: skip
        index = faiss.index_factory(DIM, what, faiss.METRIC_INNER_PRODUCT)
        assert faiss.isGpuIndexImplemented(index) is there
        assert gpu_parts.is_cloned(index) is (what == "IVF2,PQ8x8")
    if not faiss.get_num_gpus():
        with pytest.raises(RuntimeError, match="Invalid GPU device"):
            faiss.GpuIndexFlat(faiss.StandardGpuResources(), DIM, faiss.METRIC_INNER_PRODUCT, config)


@pytest.mark.gpu
@needs_gpu_build
@pytest.mark.parametrize("fp16", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_a_real_gpu_answers_as_the_oracle(fp16: bool, half: bool) -> None:
    vectors = np.concatenate([unit(20_000, dim=64), np.repeat(unit(1, dim=64), 3000, axis=0)])
    vectors = vectors.astype(np.float16 if half else np.float32)
    queries = np.concatenate([unit(50, 1, dim=64), unit(1, dim=64)])
    with gpu.to_gpu(stored(vectors), fp16=fp16) as index:
        for k in (1, 10, 100):
            assert_same(index.search(queries, k), ExactIndex(vectors.astype(np.float32)).search(queries, k))


@pytest.mark.gpu
@needs_gpu_build
@pytest.mark.parametrize("what", ["IVF64,PQ32x4fs", "IVF64,PQ64"])
def test_a_real_gpu_visits_the_same_lists(what: str) -> None:
    vectors, queries = unit(20_000, dim=64), unit(100, 1, dim=64)
    on_cpu = ivf(vectors, what)
    kind = "ivf" if what.endswith("fs") else "ivf-pq"
    with gpu.to_gpu(stored(vectors, kind, approximate(vectors, kind, on_cpu, nprobe=8))) as index:
        assert index.searched_as == ("ivf-fp16" if kind == "ivf" else kind)
        found = index.search(queries, 10)
    of_lists = faiss.IndexIVFFlat(on_cpu.quantizer, 64, 64, faiss.METRIC_INNER_PRODUCT)
    of_lists.add(vectors)
    of_lists.nprobe = 8
    _, ids = of_lists.search(queries, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.ids, ids, strict=True)]) > 0.95
