"""`search.faiss`: the file that an approximate kind of index searches, made from the mapped vectors and mapped again.

It is FAISS's own format, whole in itself: codes, lists or graph, no vectors; behind it stands a seal, see `seal`.
Building reads the vectors in blocks and holds one set of codes; training sees a sample. Both are seeded: the same
vectors on the same machine make the same file, but for the graph, whose order of insertion depends on the threads.

All kinds but the graph compare inner products. The graph compares distances: between unit vectors the order is the
same, and the graphs that FAISS builds by distance lose fewer neighbours.
"""

from __future__ import annotations

import math
import os
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import IndexFolderError
from geoinfer.index.approximate import DEFAULTS, ApproximateIndex, checked
from geoinfer.index.flat import import_faiss
from geoinfer.index.seal import check_seal, write_seal
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.index.base import Vectors
    from geoinfer.index_kinds import Kind

SEED: Final = 20

_MOST_LISTS: Final = 16384
_LEAST_IN_A_LIST: Final = 8
# Where nobody tunes it, so many lists are looked at that they hold about as many references.
_LOOKED_AT: Final = 25_000
# Points that k-means sees: so many a list, and no more than fit this.
_POINTS_A_LIST: Final = 64
_LEAST_SAMPLE: Final = 65536
_SAMPLE_BYTES: Final = 512 << 20
_CLUSTERING_ROUNDS: Final = 10
# Fast scan: the sums of more parts than these lose precision.
_MOST_SUBSPACES: Final = 256
# Product quantiser: bytes of a code, and the least dimensions that a byte describes.
_CODE_BYTES: Final = 64
_LEAST_SUBSPACE: Final = 4
_WORDS: Final = 256
_WORD_ROUNDS: Final = 12
_POINTS_A_WORD: Final = 64
# Links of a node of the graph (twice as many on the lowest level), and nodes in hand while one is inserted.
_LINKS: Final = 32
_CONSTRUCTION: Final = 80
_ADDED_VALUES: Final = 1 << 24
_ONE_THREAD_VALUES: Final = 1 << 21

_AGAIN: Final = "copy or build the index again"
# What every FAISS file begins with: form, dimensions, vectors, two numbers of no meaning, trained, metric (0 for inner
# products, 1 for distances). And the length before each array.
_HEADER: Final = struct.Struct("<4siqqqBi")
_LENGTH: Final = struct.Struct("<q")
_ID_BYTES: Final = 8


def build_search(
    kind: Kind,
    vectors: Vectors,
    path: Path,
    *,
    threads: int = 0,
    on_step: Callable[[str, float], None] | None = None,
) -> dict[str, float]:
    """Makes the file.

    Args:
        kind: one of the approximate kinds.
        vectors: (n, d) float32 or float16, unit rows; may be mapped.
        path: of the file, which is written in one go and may exist.
        threads: CPU threads to use; 0 for all cores.
        on_step: called with what is being done and how much of it is, 0 to 1.

    Returns:
        The run-time parameters to begin with.

    Raises:
        OSError, RuntimeError: it cannot be written.
        MissingPackageError: FAISS is not installed.
    """
    faiss = import_faiss()
    # Of few references, handing work to threads costs more than the work.
    alone = vectors.size < _ONE_THREAD_VALUES
    faiss.omp_set_num_threads(1 if alone else threads or available_cores())
    step = on_step or (lambda _step, _share: None)
    index = _untrained(faiss, kind, *vectors.shape)
    step("training", 0.0)
    index.train(_sample(vectors, getattr(index, "nlist", 0)))
    step("training", 1.0)
    _add(index, vectors, 0, step)
    _write(faiss, index, kind, path)
    parameters = dict(DEFAULTS[kind])
    if "nprobe" in parameters:
        share = min(1.0, _LOOKED_AT / len(vectors))
        parameters["nprobe"] = min(index.nlist, max(int(parameters["nprobe"]), math.ceil(share * index.nlist)))
    return parameters


def extend_search(
    old: Path,
    kind: Kind,
    vectors: Vectors,
    start: int,
    path: Path,
    *,
    threads: int = 0,
    on_step: Callable[[str, float], None] | None = None,
) -> None:
    """Adds references to what an earlier file learned.

    Args:
        old: the earlier file, of the rows before `start`.
        kind: of both.
        vectors: (n, d) all rows, the old ones first.
        start: how many rows the old file knows; may be n.
        path: of the new file.
        threads: CPU threads to use; 0 for all cores.
        on_step: called with what is being done and how much of it is, 0 to 1.

    Raises:
        IndexFolderError: the old file is damaged, or of other vectors.
        OSError, RuntimeError: the new one cannot be written.
        MissingPackageError: FAISS is not installed.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads or available_cores())
    index, _owner = _read(faiss, old, kind, start, int(vectors.shape[1]), flags=0)
    _add(index, vectors, start, on_step or (lambda _step, _share: None))
    _write(faiss, index, kind, path)


def open_search(path: Path, kind: Kind, vectors: Vectors, parameters: Mapping[str, float]) -> ApproximateIndex:
    """Opens the file, mapped where FAISS can: that is, not the codes of `ivf`, which are arranged for speed.

    Args:
        path: of the file.
        kind: that the manifest names.
        vectors: (n, d) as stored, mapped.
        parameters: of the search; what is left out has its default.

    Raises:
        IndexFolderError: it is damaged, of another kind or of other vectors, or a parameter makes no sense.
        MissingPackageError: FAISS is not installed.
    """
    faiss = import_faiss()
    try:
        known = checked(kind, parameters)
    except ValueError as error:
        raise IndexFolderError(f"{path.parent / 'manifest.json'}: {error}", hint="`geoinfer index tune`") from error
    contiguous = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
    flags = {"ivf": 0, "ivf-pq": faiss.IO_FLAG_MMAP}.get(kind, contiguous)
    index, owner = _read(faiss, path, kind, len(vectors), int(vectors.shape[1]), flags=flags)
    return ApproximateIndex(kind, index, vectors, known, owner=owner, path=path)


def list_count(size: int) -> int:
    """Inverted lists for so many references: about four times the square root, none of them nearly empty."""
    return max(1, min(int(4 * math.sqrt(size)), size // _LEAST_IN_A_LIST, _MOST_LISTS))


def code_bytes(dim: int) -> int:
    """Bytes of a product quantiser's code: the most that divide the dimensions evenly, 64 at most."""
    most = min(_CODE_BYTES, max(1, dim // _LEAST_SUBSPACE))
    return next(count for count in range(most, 0, -1) if dim % count == 0)


def subspaces(dim: int) -> int:
    """Parts of an embedding that get half a byte each: of two dimensions or fewer, as far as they divide evenly."""
    parts = [count for count in range(1, min(dim, 2 * _MOST_SUBSPACES) + 1) if dim % count == 0]
    enough = [count for count in parts if count >= min(dim / 2, _MOST_SUBSPACES)]
    return enough[0] if enough else parts[-1]


def _untrained(faiss: Any, kind: Kind, size: int, dim: int) -> Any:
    byte = faiss.ScalarQuantizer.QT_8bit
    if kind == "sq8":
        return faiss.IndexScalarQuantizer(dim, byte, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(dim, byte, _LINKS, faiss.METRIC_L2)
        index.hnsw.efConstruction = _CONSTRUCTION
        return index
    lists, quantizer = list_count(size), faiss.IndexFlatIP(dim)
    if kind == "ivf":
        index = faiss.IndexIVFPQFastScan(quantizer, dim, lists, subspaces(dim), 4, faiss.METRIC_INNER_PRODUCT)
    elif kind == "ivf-pq":
        index = faiss.IndexIVFPQ(quantizer, dim, lists, code_bytes(dim), 8, faiss.METRIC_INNER_PRODUCT)
    else:
        raise ValueError(f"an index of kind {kind} has no search.faiss")
    # Small sets are repeated until there are enough; FAISS would warn of them all the same.
    words = index.pq.cp
    words.min_points_per_centroid, words.max_points_per_centroid = 1, _POINTS_A_WORD
    words.seed, words.niter = SEED, _WORD_ROUNDS
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 1 << 20
    index.cp.seed, index.cp.niter = SEED, _CLUSTERING_ROUNDS
    return index


def _sample(vectors: Vectors, lists: int) -> NDArray[np.float32]:
    """Rows to train on, in their order, drawn without repetition."""
    size, dim = vectors.shape
    count = min(max(_POINTS_A_LIST * lists, _LEAST_SAMPLE), _SAMPLE_BYTES // (4 * dim), size)
    if count == size:
        sample = np.asarray(vectors, np.float32)
    else:
        rows = np.random.default_rng(SEED).choice(size, count, replace=False, shuffle=False)
        sample = np.asarray(vectors[np.sort(rows)], np.float32)
    # A product quantiser wants at least as many points as a byte has values.
    return np.ascontiguousarray(np.tile(sample, (math.ceil(_WORDS / count), 1)) if count < _WORDS else sample)


def _add(index: Any, vectors: Vectors, start: int, step: Callable[[str, float], None]) -> None:
    size, at_once = len(vectors), max(1, _ADDED_VALUES // vectors.shape[1])
    step("adding", start / size)
    for first in range(start, size, at_once):
        block = np.ascontiguousarray(vectors[first : first + at_once], np.float32)
        index.add(block)
        step("adding", (first + len(block)) / size)


def _write(faiss: Any, index: Any, kind: Kind, path: Path) -> None:
    with path.open("w+b") as file:  # FAISS itself opens only names that are UTF-8
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        write_seal(file, _bulk(index, kind, file))


def _bulk(index: Any, kind: Kind, file: Any) -> list[tuple[int, int]]:
    """Where in the file the codes are, and a graph's links: what need not be read to open it."""
    total = file.seek(0, os.SEEK_END)
    size, dim = index.ntotal, index.d
    if kind == "ivf":  # it is not mapped, but read as a whole
        return []
    if kind == "ivf-pq":
        return [(total - size * (index.code_size + _ID_BYTES), total)]
    codes = (total - size * dim, total)
    if kind == "sq8":
        return [codes]
    graph = index.hnsw
    start = _HEADER.size + _LENGTH.size * 5 + graph.assign_probas.size() * 8 + graph.cum_nneighbor_per_level.size() * 4
    start += size * 4 + (size + 1) * 8
    links = graph.neighbors.size()
    file.seek(start - _LENGTH.size)
    if _LENGTH.unpack(file.read(_LENGTH.size)) != (links,):  # another FAISS, which arranges it otherwise
        return [codes]
    return [(start, start + links * 4), codes]


def _read(faiss: Any, path: Path, kind: Kind, size: int, dim: int, *, flags: int) -> tuple[Any, Any]:
    """The index, and what owns it.

    Raises:
        IndexFolderError: it is damaged, or not what is expected.
    """
    try:
        with path.open("rb") as file:
            _check_header(path, file.read(_HEADER.size), kind, size, dim)
            check_seal(file, path)
            # The table would serve distances only, and take more memory than all codes.
            flags |= faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
            owner = faiss.read_index(_faiss_name(path, file.fileno()), flags)
    except OSError as error:
        raise IndexFolderError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (RuntimeError, MemoryError) as error:
        raise IndexFolderError(
            f"{path}: FAISS cannot read it: {(str(error).splitlines() or ['no memory'])[-1]}", hint=_AGAIN
        ) from error
    index = faiss.downcast_index(owner)
    if type(index).__name__ != _FORMS[kind][1]:
        raise IndexFolderError(f"{path}: a FAISS {type(index).__name__}; expected {_FORMS[kind][1]}", hint=_AGAIN)
    lists = faiss.downcast_InvertedLists(index.invlists) if kind == "ivf-pq" else None
    if isinstance(lists, faiss.OnDiskInvertedLists):
        # It would start as many threads in every search, to read what the system reads ahead anyway.
        lists.prefetch_nthread = 0
    return index, owner


# What FAISS's file begins with, and the class.
_FORMS: Final[dict[str, tuple[bytes, str]]] = {
    "sq8": (b"IxSQ", "IndexScalarQuantizer"),
    "hnsw": (b"IHNs", "IndexHNSWSQ"),
    "ivf": (b"IwPf", "IndexIVFPQFastScan"),
    "ivf-pq": (b"IwPQ", "IndexIVFPQ"),
}


def _check_header(path: Path, head: bytes, kind: Kind, size: int, dim: int) -> None:
    """What the file is of, in how many dimensions, of how many references."""
    if len(head) < _HEADER.size:
        raise IndexFolderError(f"{path}: cut short after {len(head)} bytes", hint=_AGAIN)
    form, dims, total, _, _, _trained, metric = _HEADER.unpack(head)
    if (form, metric) != (_FORMS[kind][0], 1 if kind == "hnsw" else 0):
        raise IndexFolderError(f"{path}: no FAISS index of kind {kind}", hint=_AGAIN)
    if (dims, total) != (dim, size):
        raise IndexFolderError(
            f"{path}: of {total} references of {dims} dimensions; expected {size} of {dim}", hint=_AGAIN
        )


def _faiss_name(path: Path, descriptor: int) -> str:
    """A name that FAISS can open: it wants UTF-8."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return f"/dev/fd/{descriptor}"
    return str(path)
