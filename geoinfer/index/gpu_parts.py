"""What is laid on the GPUs: FAISS indexes over ranges of the references, and whether there is room for them.

FAISS 1.15 searches on the GPU: flat (fp32, fp16), IVF flat, IVF with scalar quantisation, IVF-PQ of 8 bits in codes of
some lengths; and, in builds with cuVS alone (`faiss-gpu-cuvs`, not `faiss-gpu`), the graph CAGRA. It refuses HNSW, flat
scalar quantisation and PQ of 4 bits ("fast scan").
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.engines.gpu import cuda_runtime
from geoinfer.errors import DeviceError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.index.base import Vectors

_PQ_CODE_BYTES: Final = frozenset((1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96))

MOST_FOUND: Final = 2047
"""FAISS's GPU kernels select no more neighbours, and visit no more inverted lists, than this."""

# Rows that are converted to float32 in host memory at a time, where the stored ones are float16.
_CONVERTED_BYTES: Final = 1 << 30
# Temporary memory that FAISS takes of every GPU (1.5 GiB), CUDA's context and cuBLAS.
_WORKING_BYTES: Final = 2 << 30
_GRAPH_DEGREE: Final = 64
_IVF_GROUP: Final = 32  # an inverted list is stored in groups of so many
_GROWTH: Final = 2  # a list that rows are added to takes up to so many times its size


@dataclass
class Part:
    """An index on one GPU; the ids it answers are rows from `start` on."""

    index: Any
    start: int
    parameters: Any = None


@dataclass
class OnDevice:
    """What one GPU holds. FAISS's resources serve one search at a time."""

    resources: Any
    parts: list[Part] = field(default_factory=list)

    def search(self, queries: NDArray[np.float32], count: int) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Similarities and rows of each part, (q, <= count), descending; row -1 where a part found fewer."""
        found = []
        for part in self.parts:
            most = min(count, int(part.index.ntotal))
            options = {} if part.parameters is None else {"params": part.parameters(most)}
            similarities, ids = part.index.search(queries, most, **options)
            found.append((similarities, np.where(ids < 0, -1, ids + part.start)))
        return found


class Parts:
    """All that was laid on the GPUs, searched at once."""

    def __init__(self, on_devices: list[OnDevice]) -> None:
        self._on_devices = on_devices
        self._threads = ThreadPoolExecutor(len(on_devices), thread_name_prefix="gpu-search")

    def search(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The `count` best of all parts: similarities as FAISS computed them, and rows, -1 where there are fewer.

        Raises:
            RuntimeError, MemoryError: what FAISS raised.
        """
        running = [self._threads.submit(device.search, queries, count) for device in self._on_devices]
        wait(running)  # all of them: a second search must not begin while a GPU is still at the first
        found = [part for run in running for part in run.result()]
        similarities = np.concatenate([part[0] for part in found], axis=1)
        ids = np.concatenate([part[1] for part in found], axis=1)
        if len(found) > 1:
            best = np.argsort(np.where(ids < 0, -np.inf, similarities) * -1, axis=1, kind="stable")[:, :count]
            similarities, ids = np.take_along_axis(similarities, best, axis=1), np.take_along_axis(ids, best, axis=1)
        return similarities, ids

    def close(self) -> None:
        """Frees the GPUs' memory."""
        self._threads.shutdown()
        for device in self._on_devices:
            device.parts.clear()
            device.resources = None


def flat_parts(faiss: Any, vectors: Vectors, devices: Sequence[int], *, fp16: bool, what: str) -> Parts:
    """Exact search, the rows in as many equal ranges as there are GPUs.

    Rows of float32 go from the mapped file to the GPU; those of float16 pass through a block in float32, and each block
    is an index of its own, because an index that grows needs twice its memory while it does.

    Raises:
        DeviceError: there is no room.
    """
    dim = vectors.shape[1]
    row_bytes = dim * (2 if fp16 else 4) + 4  # and its length, which FAISS keeps beside it
    ranges = _ranges(len(vectors), len(devices))
    for device, (start, stop) in zip(devices, ranges, strict=True):
        _check_room(device, (stop - start) * row_bytes, what)
    block = max(1, _CONVERTED_BYTES // (4 * dim)) if vectors.dtype == np.float16 else len(vectors)
    on_devices = []
    for device, (start, stop) in zip(devices, ranges, strict=True):
        on_device = OnDevice(faiss.StandardGpuResources())
        config = faiss.GpuIndexFlatConfig()
        config.device, config.useFloat16 = device, fp16
        for first in range(start, stop, block):
            index = faiss.GpuIndexFlat(on_device.resources, dim, faiss.METRIC_INNER_PRODUCT, config)
            index.add(np.asarray(vectors[first : min(first + block, stop)], np.float32))
            on_device.parts.append(Part(index, first))
        on_devices.append(on_device)
    return Parts(on_devices)


def is_cloned(index: Any) -> bool:
    """Whether it is an IVF-PQ index of which FAISS makes a copy on the GPU; subclasses are others to it."""
    return type(index).__name__ == "IndexIVFPQ" and index.pq.nbits == 8 and int(index.code_size) in _PQ_CODE_BYTES


def cloned_parts(faiss: Any, index: Any, nprobe: int, devices: Sequence[int], what: str) -> Parts:
    """FAISS's copy of an IVF-PQ index, its references dealt out to the GPUs in turn.

    With several GPUs FAISS makes the shares in host memory first, so the codes are there twice for that time.

    Args:
        faiss: the module.
        index: of FAISS, on the CPU; it is not changed.
        nprobe: inverted lists to visit.
        devices: ordinals.
        what: is laid there, for errors.

    Raises:
        DeviceError: there is no room.
    """
    lists_bytes = (index.ntotal + index.nlist * _IVF_GROUP) * (index.code_size + 8)
    for device in devices:
        _check_room(device, lists_bytes // len(devices) + index.nlist * index.d * 4, what)
    resources = [faiss.StandardGpuResources() for _ in devices]
    options = faiss.GpuMultipleClonerOptions()
    # The lookup tables of long PQ codes have room beside a GPU's processors in fp16 alone.
    options.shard, options.useFloat16 = len(devices) > 1, True
    if len(devices) == 1:
        copy = faiss.index_cpu_to_gpu(resources[0], devices[0], index, options)
    else:
        copy = faiss.index_cpu_to_gpu_multiple_py(resources, index, options, list(devices))
    faiss.GpuParameterSpace().set_index_parameter(copy, "nprobe", min(nprobe, index.nlist, MOST_FOUND))
    return Parts([OnDevice(resources, [Part(copy, 0)])])


def listed_parts(
    faiss: Any, index: Any, vectors: Vectors, nprobe: int, devices: Sequence[int], *, fp16: bool, what: str
) -> Parts:
    """The inverted lists of an IVF index, with the vectors themselves in them instead of its codes; equal ranges a GPU.

    Args:
        faiss: the module.
        index: of FAISS, on the CPU: what its quantizer learned is used, and nothing else.
        vectors: (n, d) float32 or float16.
        nprobe: inverted lists to visit.
        devices: ordinals.
        fp16: whether vectors are held as float16.
        what: is laid there, for errors.

    Raises:
        DeviceError: there is no room.
    """
    dim, lists = vectors.shape[1], int(index.nlist)
    ranges = _ranges(len(vectors), len(devices))
    for device, (start, stop) in zip(devices, ranges, strict=True):
        _check_room(device, _GROWTH * (stop - start) * (dim * (2 if fp16 else 4) + 8) + lists * dim * 4, what)
    kind = faiss.ScalarQuantizer.QT_fp16
    empty: Any
    if fp16:
        empty = faiss.IndexIVFScalarQuantizer(index.quantizer, dim, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    else:
        empty = faiss.IndexIVFFlat(index.quantizer, dim, lists, faiss.METRIC_INNER_PRODUCT)
    empty.is_trained = True  # neither form has anything to learn beyond the quantizer
    block = max(1, _CONVERTED_BYTES // (4 * dim))
    on_devices = []
    for device, (start, stop) in zip(devices, ranges, strict=True):
        resources = faiss.StandardGpuResources()
        copy = faiss.index_cpu_to_gpu(resources, device, empty, faiss.GpuMultipleClonerOptions())
        for first in range(start, stop, block):
            copy.add(np.asarray(vectors[first : min(first + block, stop)], np.float32))
        faiss.GpuParameterSpace().set_index_parameter(copy, "nprobe", min(nprobe, lists, MOST_FOUND))
        on_devices.append(OnDevice(resources, [Part(copy, start)]))
    return Parts(on_devices)


def graph_parts(faiss: Any, vectors: Vectors, devices: Sequence[int], what: str) -> Parts:
    """A CAGRA graph on each GPU, over equal ranges; built anew from float32 rows.

    Raises:
        DeviceError: there is no room.
    """
    dim = vectors.shape[1]
    ranges = _ranges(len(vectors), len(devices))
    for device, (start, stop) in zip(devices, ranges, strict=True):
        # The rows, the graph of twice the degree that it is thinned from, and as much again to build it.
        _check_room(device, (stop - start) * 2 * 4 * (dim + 3 * _GRAPH_DEGREE), what)
    on_devices = []
    for device, (start, stop) in zip(devices, ranges, strict=True):
        resources = faiss.StandardGpuResources()
        config = faiss.GpuIndexCagraConfig()
        config.device, config.graph_degree, config.intermediate_graph_degree = device, _GRAPH_DEGREE, 2 * _GRAPH_DEGREE
        index = faiss.GpuIndexCagra(resources, dim, faiss.METRIC_INNER_PRODUCT, config)
        index.train(np.asarray(vectors[start:stop], np.float32))
        on_devices.append(OnDevice(resources, [Part(index, start, _graph_parameters(faiss))]))
    return Parts(on_devices)


def _graph_parameters(faiss: Any) -> Any:
    def parameters(count: int) -> Any:
        chosen = faiss.SearchParametersCagra()
        # The walk keeps this many candidates, in groups of 32; it must keep at least what it returns.
        chosen.itopk_size = -(-max(4 * count, 128) // 32) * 32
        return chosen

    return parameters


def _ranges(count: int, parts: int) -> list[tuple[int, int]]:
    bounds = [count * number // parts for number in range(parts + 1)]
    return [(bounds[number], bounds[number + 1]) for number in range(parts)]


def _check_room(device: int, needed_bytes: int, what: str) -> None:
    free = free_bytes(device)
    if free is not None and free < needed_bytes + _WORKING_BYTES:
        raise DeviceError(
            f"cuda:{device}: {what} need {(needed_bytes + _WORKING_BYTES) / 2**30:.1f} GiB there, of which "
            f"{_WORKING_BYTES >> 30} GiB are working memory; {free / 2**30:.1f} GiB are free",
            hint="free memory on the GPU, use fp16, share the index between more GPUs, build it as kind ivf, or search "
            "on the CPU",
        )


def free_bytes(device: int) -> int | None:
    """Free memory of a GPU; None where CUDA does not tell, and FAISS's own error must serve."""
    try:
        runtime = cuda_runtime()
    except MissingPackageError:
        return None
    _, before = runtime.cudaGetDevice()
    error, *_ = runtime.cudaSetDevice(device)
    if int(error):
        return None
    try:
        error, free, _ = runtime.cudaMemGetInfo()
    finally:
        runtime.cudaSetDevice(before)
    return None if int(error) else int(free)
