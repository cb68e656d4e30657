"""FAISS's GPU classes over its CPU ones, with what sets a GPU apart: rounding, limits, memory, one search at a time.

`test_gpu.py` holds the names used here against the real ones where a FAISS with GPU support is installed.
"""

# ruff: noqa: N802 - called as FAISS calls them

from __future__ import annotations

import threading
import time
import types
from typing import Any

import faiss
import numpy as np

OUT_OF_MEMORY = (
    "Error in virtual void* faiss::gpu::StandardGpuResourcesImpl::allocMemory(const faiss::gpu::AllocRequest&) at "
    "/project/faiss/gpu/StandardGpuResources.cpp:518: Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc "
    "fail type TemporaryMemoryOverflow dev 0 space Device stream 0x1 size 9 bytes (cudaMalloc error out of memory [2])"
)
NOT_ON_GPU = (
    "Error in virtual faiss::Index* faiss::gpu::ToGpuCloner::clone_Index(const faiss::Index*) at "
    "/project/faiss/gpu/GpuCloner.cpp:253: This index type is not implemented on GPU."
)
MOST = 2047


class FakeFaiss(types.SimpleNamespace):
    """A module `faiss` with GPUs.

    Attributes:
        most_queries: of one search; more of them find no memory.
        capacity_bytes: of each GPU.
        held_bytes: on each GPU.
        peak_bytes: that was held at any time.
        searches: (device, queries, k) of every search.
        misuse: searches that met another one on the same GPU.
        failing: what a search raises.
    """

    def __init__(self, gpus: int = 1, *, cagra: bool = False) -> None:
        super().__init__(
            most_queries=1 << 30, capacity_bytes=1 << 60, held_bytes=[0] * gpus, peak_bytes=0, searches=[], misuse=[],
            failing=None,
        )  # fmt: skip
        self.METRIC_INNER_PRODUCT = faiss.METRIC_INNER_PRODUCT
        self.ScalarQuantizer, self.IndexIVFFlat = faiss.ScalarQuantizer, faiss.IndexIVFFlat
        self.IndexIVFScalarQuantizer = faiss.IndexIVFScalarQuantizer
        self.StandardGpuResources = lambda: types.SimpleNamespace(lock=threading.Lock())
        self.GpuIndexFlatConfig = lambda: types.SimpleNamespace(device=0, useFloat16=False)
        self.GpuMultipleClonerOptions = lambda: types.SimpleNamespace(shard=False, useFloat16=False)
        self.GpuParameterSpace = lambda: types.SimpleNamespace(set_index_parameter=set_index_parameter)
        self.get_num_gpus = lambda: gpus
        if cagra:
            self.GpuIndexCagraConfig = self.SearchParametersCagra = types.SimpleNamespace

    def GpuIndexFlat(self, resources: Any, dim: int, metric: int, config: Any) -> OnGpu:
        assert metric == faiss.METRIC_INNER_PRODUCT
        return OnGpu(self, resources, config.device, faiss.IndexFlatIP(dim), half=config.useFloat16)

    def index_cpu_to_gpu(self, resources: Any, device: int, index: Any, options: Any) -> OnGpu:
        if type(index) not in (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ):
            raise RuntimeError(NOT_ON_GPU)
        assert options.useFloat16 or not isinstance(index, faiss.IndexIVFPQ)
        assert not options.shard
        return OnGpu(self, resources, device, share_of(index, faiss.InvertedLists.SUBSET_TYPE_ID_MOD, 1, 0))

    def index_cpu_to_gpu_multiple_py(self, resources: list[Any], index: Any, options: Any, gpus: list[int]) -> OnGpu:
        assert options.shard
        shards = faiss.IndexShards(index.d, False, False)
        for number in range(len(gpus)):
            shards.add_shard(share_of(index, faiss.InvertedLists.SUBSET_TYPE_ID_MOD, len(gpus), number))
        return OnGpu(self, resources[0], gpus[0], shards)


def share_of(index: Any, kind: int, first: int, second: int) -> Any:
    """Some of an IVF index's references in one of its kind; its lists may be mapped, which FAISS does not clone.

    It uses the quantizer of the index, which must outlive it.
    """
    quantizer, shape = faiss.downcast_index(index.quantizer), (index.d, index.nlist)
    if isinstance(index, faiss.IndexIVFPQ):
        share = faiss.IndexIVFPQ(quantizer, *shape, index.pq.M, index.pq.nbits, index.metric_type)
        share.pq = index.pq
    elif isinstance(index, faiss.IndexIVFScalarQuantizer):
        share = faiss.IndexIVFScalarQuantizer(quantizer, *shape, index.sq.qtype, index.metric_type, index.by_residual)
        share.sq = index.sq
    else:
        share = faiss.IndexIVFFlat(quantizer, *shape, index.metric_type)
    share.is_trained = True
    index.copy_subset_to(share, kind, first, second)
    return share


def set_index_parameter(index: OnGpu, name: str, value: float) -> None:
    assert (name, value <= MOST) == ("nprobe", True)
    faiss.ParameterSpace().set_index_parameter(index._index, name, value)


class OnGpu:
    """An index of FAISS on a GPU of the fake."""

    def __init__(self, fake: FakeFaiss, resources: Any, device: int, index: Any, *, half: bool = False) -> None:
        self._fake, self._resources, self._device, self._index, self._half = fake, resources, device, index, half

    @property
    def ntotal(self) -> int:
        return self._index.ntotal

    def add(self, rows: np.ndarray) -> None:
        assert rows.dtype == np.float32
        had, size = self._index.ntotal * self._row_bytes, len(rows) * self._row_bytes
        # What grows is copied: for a moment the old one is there too.
        held = self._fake.held_bytes[self._device] + size + had
        if held > self._fake.capacity_bytes:
            raise RuntimeError(OUT_OF_MEMORY)
        self._fake.peak_bytes = max(self._fake.peak_bytes, held)
        self._fake.held_bytes[self._device] += size
        self._index.add(self._rounded(rows))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if not self._resources.lock.acquire(blocking=False):
            self._fake.misuse.append(self._device)
        try:
            time.sleep(0.001)
            self._fake.searches.append((self._device, len(queries), k))
            if self._fake.failing is not None:
                raise self._fake.failing
            if len(queries) > self._fake.most_queries:
                raise RuntimeError(OUT_OF_MEMORY)
            if k > MOST:
                raise RuntimeError(f"GPU index only supports min/max-K selection up to {MOST} (requested {k})")
            return self._index.search(self._rounded(queries), k)
        finally:
            self._resources.lock.release()

    @property
    def _row_bytes(self) -> int:
        return self._index.d * (2 if self._half else 4)

    def _rounded(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.float16).astype(np.float32) if self._half else rows


class FakeCagra:
    """A graph that finds what exact search finds; it takes its rows once, and answers to parameters."""

    def __init__(self, fake: FakeFaiss) -> None:
        self.fake, self.asked = fake, []

    def __call__(self, resources: Any, dim: int, metric: int, config: Any) -> FakeCagra:
        assert metric == faiss.METRIC_INNER_PRODUCT
        made = FakeCagra(self.fake)
        made.asked = self.asked
        made.index = OnGpu(self.fake, resources, config.device, faiss.IndexFlatIP(dim))
        return made

    @property
    def ntotal(self) -> int:
        return self.index.ntotal

    def train(self, rows: np.ndarray) -> None:
        assert not self.ntotal
        self.index.add(rows)

    def search(self, queries: np.ndarray, k: int, *, params: Any) -> tuple[np.ndarray, np.ndarray]:
        assert params.itopk_size >= k
        assert params.itopk_size % 32 == 0
        self.asked.append(params.itopk_size)
        return self.index.search(queries, k)
