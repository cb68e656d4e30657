"""Search on NVIDIA GPUs by FAISS: the GPU finds candidates, the CPU ranks them exactly.

So the answer is the CPU's: the same similarities, summed in float64 over the stored vectors, ties by id. What the GPU
cannot decide, such as more neighbours than its kernels select or thousands of copies of one photo at the cut, the CPU
is asked.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import DeviceError, MissingPackageError
from geoinfer.index.base import Neighbors, check_queries
from geoinfer.index.flat import FlatIndex, import_faiss
from geoinfer.index.gpu_parts import MOST_FOUND, Parts, cloned_parts, flat_parts, graph_parts, is_cloned, listed_parts
from geoinfer.index.rerank import Reranker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from geoinfer.index.base import ReferenceIndex, Vectors
    from geoinfer.index.store import StoredIndex
    from geoinfer.index_kinds import Kind

# Found beyond the k asked for, so that what fp16 misorders at the cut comes out right.
_SPARE: Final = 32
# An approximate index sees its codes, not the vectors: of at least so many times k the best are kept.
_REFINE: Final = 4.0
# The GPU's sums are off by no more than so many times the largest error among those that were summed again.
_ERROR_FACTOR: Final = 3.0
_LEAST_ERROR: Final = 1e-6


def gpu_count() -> int:
    """How many GPUs FAISS can search on; 0 where it is missing, was built for CPUs, or finds no driver."""
    try:
        faiss = import_faiss()
    except MissingPackageError:
        return 0
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def to_gpu(stored: StoredIndex, devices: Sequence[int] | None = None, *, fp16: bool = True) -> GpuIndex:
    """Lays an index on GPUs.

    ivf-pq is copied; ivf, whose codes are made for CPUs, keeps its lists, with the vectors themselves in them; hnsw
    becomes a CAGRA graph where FAISS has it, else exact search, as do flat, flat-fp16 and sq8.

    Args:
        stored: an open index; it must stay open.
        devices: ordinals of `cuda:N`; None for all. Several share the references between them.
        fp16: hold vectors in float16: half the memory. Exact search answers the same.

    Raises:
        DeviceError: there is no such GPU, FAISS was built without GPUs, or there is no room.
        MissingPackageError: FAISS is not installed.
    """
    faiss = import_faiss()
    chosen = _checked_devices(faiss, devices)
    manifest, vectors = stored.manifest, stored.index.vectors
    what = f"the {manifest.size:,} references of {manifest.embedder.dim} dimensions of {stored.folder}"
    lists = getattr(stored.index, "faiss_index", None)
    parameters = getattr(stored.index, "parameters", {})
    try:
        if manifest.kind == "ivf-pq" and is_cloned(lists):
            parts = cloned_parts(faiss, lists, int(parameters["nprobe"]), chosen, what)
            refine = max(_REFINE, parameters.get("refine", 0.0))
            return GpuIndex(stored.index, parts, refine=refine, searched_as="ivf-pq")
        if manifest.kind in ("ivf", "ivf-pq"):
            parts = listed_parts(faiss, lists, vectors, int(parameters["nprobe"]), chosen, fp16=fp16, what=what)
            return GpuIndex(stored.index, parts, refine=_REFINE, searched_as="ivf-fp16" if fp16 else "ivf")
        if manifest.kind == "hnsw" and hasattr(faiss, "GpuIndexCagra"):
            parts = graph_parts(faiss, vectors, chosen, what)
            return GpuIndex(stored.index, parts, refine=_REFINE, searched_as="cagra")
        parts = flat_parts(faiss, vectors, chosen, fp16=fp16, what=what)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, DeviceError):
            raise
        raise _device_error(error, f"{what} cannot be laid on the GPU") from error
    return GpuIndex(stored.index, parts, refine=None, searched_as="flat-fp16" if fp16 else "flat")


class GpuIndex:
    """An index whose candidates come from GPUs. See `ReferenceIndex` for the contract.

    Searches of several threads take turns on the GPUs: FAISS's resources serve one at a time.

    Attributes:
        searched_as: what the GPUs hold: `flat`, `flat-fp16`, `ivf`, `ivf-fp16`, `ivf-pq` or `cagra`.
    """

    def __init__(self, on_cpu: ReferenceIndex, parts: Parts, *, refine: float | None, searched_as: str) -> None:
        """Takes over what was laid on the GPUs.

        Args:
            on_cpu: the index itself.
            parts: on the GPUs.
            refine: how many candidates are ranked for each neighbour; None where the GPUs compare with all references.
            searched_as: see the class.
        """
        self._on_cpu, self._refine, self.searched_as = on_cpu, refine, searched_as
        self._reranker = Reranker(on_cpu.vectors, lean=on_cpu.kind == "ivf-pq")
        self._parts: Parts | None = parts
        self._lock = threading.Lock()
        self._at_once: int | None = None  # queries that went through together, once more of them did not

    @property
    def kind(self) -> Kind:
        """Of the index in its folder."""
        return self._on_cpu.kind

    @property
    def vectors(self) -> Vectors:
        """The reference embeddings, (size, dim), as they are stored."""
        return self._on_cpu.vectors

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self._on_cpu.dim

    @property
    def size(self) -> int:
        """Number of references."""
        return self._on_cpu.size

    def search(self, queries: NDArray[np.float32], k: int, *, threads: int = 0) -> Neighbors:
        """See `ReferenceIndex.search`; `threads` is for what the CPU is asked.

        Raises:
            DeviceError: FAISS failed on the GPU, or there is not even memory for one query.
            ValueError: see the contract; or the index is closed.
        """
        check_queries(queries, self.dim, k)
        k = min(k, self.size)
        result = Neighbors(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32))
        if len(queries) == 0:
            return result
        if min(k + _SPARE, self.size) > MOST_FOUND:
            return self._ask_cpu(queries, k, threads)
        queries = np.ascontiguousarray(queries)
        found = min(max(k + _SPARE, math.ceil(k * (self._refine or 1.0))), self.size, MOST_FOUND)
        similarities, candidates = self._candidates(queries, found)
        if self._refine is None:
            return self._ranked_exactly(queries, k, similarities, candidates, threads)
        lacking = (candidates >= 0).sum(axis=1) < k
        _put(result, ~lacking, self._reranker.best(queries[~lacking], candidates[~lacking], k))
        if lacking.any():
            _put(result, lacking, self._ask_cpu(queries[lacking], k, threads))
        return result

    def probabilities(self, queries: NDArray[np.float32], ids: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
        """See `ReferenceIndex.probabilities`; computed on the CPU."""
        return self._on_cpu.probabilities(queries, ids, scale)

    def close(self) -> None:
        """Frees the GPUs' memory; the index it was made of stays open. A second call does nothing."""
        with self._lock:
            parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    def __enter__(self) -> GpuIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _candidates(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What the GPUs find; fewer queries at a time, from then on, when their memory does not suffice."""
        found: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
        with self._lock:
            if self._parts is None:
                raise ValueError("the index on the GPU is closed")
            start = 0
            while start < len(queries):
                some = queries[start : start + (self._at_once or len(queries))]
                try:
                    found.append(self._parts.search(some, count))
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error) or len(some) == 1:
                        raise _device_error(error, "the search on the GPU failed") from error
                    self._at_once = len(some) // 2
                    continue
                start += len(some)
        return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])

    def _ranked_exactly(
        self,
        queries: NDArray[np.float32],
        k: int,
        similarities: NDArray[np.float32],
        candidates: NDArray[np.int64],
        threads: int,
    ) -> Neighbors:
        """The k best of all references, found wider where the GPU's rounding leaves them in doubt."""
        found = candidates.shape[1]
        ranked = self._reranker.best(queries, candidates, found)
        result = Neighbors(ranked.ids[:, :k].copy(), ranked.similarities[:, :k].copy())
        if found == self.size:
            return result
        # By how much the GPU was off, on these very candidates; what it left out is at best as similar as its last one.
        summed = np.take_along_axis(similarities, np.argsort(candidates, axis=1), axis=1)
        exact = np.take_along_axis(ranked.similarities, np.argsort(ranked.ids, axis=1), axis=1)
        error = _LEAST_ERROR + _ERROR_FACTOR * np.abs(summed - exact).max(axis=1)
        doubtful = ranked.similarities[:, k - 1] - similarities[:, -1] <= error
        if not doubtful.any():
            return result
        rows, wider = queries[doubtful], min(4 * found, MOST_FOUND, self.size)
        if wider > found:
            _put(result, doubtful, self._ranked_exactly(rows, k, *self._candidates(rows, wider), threads))
        else:
            _put(result, doubtful, self._ask_cpu(rows, k, threads))
        return result

    def _ask_cpu(self, queries: NDArray[np.float32], k: int, threads: int) -> Neighbors:
        on_cpu = FlatIndex(self.vectors, checked=True) if self._refine is None else self._on_cpu
        return on_cpu.search(queries, k, threads=threads)


def _put(result: Neighbors, rows: NDArray[np.bool_], found: Neighbors) -> None:
    result.ids[rows], result.similarities[rows] = found.ids, found.similarities


def _checked_devices(faiss: Any, devices: Sequence[int] | None) -> list[int]:
    if not hasattr(faiss, "StandardGpuResources"):
        raise DeviceError(
            "this FAISS was built without GPU support",
            hint="pip uninstall faiss-cpu; pip install 'geoinfer-toolkit[gpu]'; `geoinfer doctor` tells more",
        )
    count = int(faiss.get_num_gpus())
    if not count:
        raise DeviceError(
            "FAISS finds no NVIDIA GPU here", hint="a GPU needs its driver; `geoinfer doctor` shows what is there"
        )
    chosen = list(range(count)) if devices is None else list(devices)
    for device in chosen:
        if not 0 <= device < count:
            raise DeviceError(
                f"cuda:{device}: there is no such GPU; this machine has {count}, from cuda:0",
                hint="`geoinfer doctor` shows them",
            )
    if not chosen or len(set(chosen)) != len(chosen):
        raise DeviceError(f"devices {chosen}: name each GPU once", hint="leave them out to use all")
    return chosen


def _is_out_of_memory(error: BaseException) -> bool:
    # FAISS says "alloc fail", CUDA "out of memory"; none of them has a class of its own.
    text = str(error).lower()
    return isinstance(error, MemoryError) or "alloc fail" in text or "out of memory" in text


def _device_error(error: BaseException, what: str) -> DeviceError:
    if _is_out_of_memory(error):
        return DeviceError(
            f"{what}: its memory does not suffice",
            hint="free memory on the GPU, use fp16, share the index between more GPUs, or search on the CPU",
        )
    # FAISS puts the function's whole signature before what went wrong.
    reason = " ".join(str(error).split()).rpartition(" Error: ")[2]
    return DeviceError(
        f"{what}: {reason}", hint="`geoinfer doctor` shows driver and GPU; --device cpu searches without it"
    )
