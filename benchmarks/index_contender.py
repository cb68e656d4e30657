"""One contender of `bench_index.py`, in a process of its own: builds its index, answers, or says what memory it takes.

FAISS's settings hold for a whole process and geoinfer changes them, so FAISS with its defaults must not share one.

    python benchmarks/index_contender.py build|serve|memory '{"who": "geoinfer", "kind": "ivf", ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

K = 10
SHARD = 65536
SETTLED = 64
"""Queries at a time while memory is looked at."""


@dataclass(frozen=True)
class Contender:
    """Who searches what.

    Attributes:
        who: `geoinfer`, or `faiss` with its defaults.
        kind: of geoinfer's index, or a class of FAISS.
        place: folder or file of the built index.
        references: (n, d) float32, a .npy file.
        queries: (m, d) float32, likewise.
        tuning: (t, d) float32, likewise; settings are chosen on these.
        target: recall@10 that the settings are chosen for.
    """

    who: str
    kind: str
    place: str
    references: str
    queries: str
    tuning: str
    target: float

    @property
    def title(self) -> str:
        return self.kind if self.who == "geoinfer" else f"FAISS {self.kind}, defaults"

    def spec(self) -> str:
        return json.dumps(asdict(self))


def build(contender: Contender) -> dict[str, Any]:
    """Builds from the mapped file; seconds of it, and what it came to."""
    vectors = np.load(contender.references, mmap_mode="r")
    started = time.perf_counter()
    result = (build_ours if contender.who == "geoinfer" else build_faiss)(contender, vectors)
    result["seconds"] = round(time.perf_counter() - started - result.get("tune_seconds", 0.0), 2)
    result["peak_bytes"] = status()["VmHWM"]
    result["disk_bytes"] = disk_bytes(Path(contender.place))
    return result


def build_faiss(contender: Contender, vectors: np.ndarray) -> dict[str, Any]:
    import faiss

    rows, dim = vectors.shape
    if contender.kind == "IndexFlatIP":
        index = faiss.IndexFlatIP(dim)
    elif contender.kind == "IndexHNSWFlat":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)  # 32 is its default, named to reach the metric
    else:
        # The number of lists has no default; the root of the number of references is what FAISS's wiki begins with.
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, max(1, round(rows**0.5)), faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(vectors))
    index.add(np.ascontiguousarray(vectors))
    faiss.write_index(index, contender.place)
    return {"parameters": {}}


def build_ours(contender: Contender, vectors: np.ndarray) -> dict[str, Any]:
    steps: dict[str, list[float]] = {}
    parameters = write_ours(contender, vectors, steps)
    started = time.perf_counter()
    if parameters:
        parameters = tuned(Path(contender.place), np.load(contender.tuning), contender.target)
    return {
        "parameters": parameters,
        "tune_seconds": round(time.perf_counter() - started, 2),
        "steps": {name: round(last - first, 2) for name, (first, last) in steps.items()},
    }


def write_ours(contender: Contender, vectors: np.ndarray, steps: dict[str, list[float]]) -> dict[str, float]:
    """Writes an index as `geoinfer index build` does, a shard at a time; its settings before any tuning.

    When each step of finishing began and was last heard of goes into `steps`.
    """
    from geoinfer.backends.base import EmbedderIdentity
    from geoinfer.images import Preprocessing
    from geoinfer.index.writer import IndexWriter

    embedder = EmbedderIdentity("benchmark", vectors.shape[1], Preprocessing())
    target = Path(contender.place)

    def on_step(name: str, _share: float) -> None:
        steps.setdefault(name, [time.perf_counter(), 0.0])[1] = time.perf_counter()

    with IndexWriter(target, embedder, kind=contender.kind, overwrite=True, on_step=on_step) as writer:
        for start in range(0, len(vectors), SHARD):
            rows = np.asarray(vectors[start : start + SHARD])
            writer.add(rows, made_up_references(start, len(rows)))
        return dict(writer.finish().parameters)


def made_up_references(start: int, count: int) -> Any:
    """A table such as a collection of photos has; what it says does not matter here."""
    from geoinfer.index.base import References

    rng = np.random.default_rng(start)
    return References(
        ids=[f"{row:09d}.jpg" for row in range(start, start + count)],
        coordinates=np.stack([rng.uniform(-90, 90, count), rng.uniform(-180, 180, count)], axis=1),
        sources=["made up"] * count,
        attributions=["nobody, CC0"] * count,
        content_sha256=rng.integers(0, 256, (count, 32), np.uint8),
        perceptual_hashes=rng.integers(0, 256, (count, 32), np.uint8),
        sequences=[""] * count,
    )


def opened(contender: Contender) -> Callable[[np.ndarray], np.ndarray]:
    """A function from queries to the ids of the most similar references, (q, K)."""
    if contender.who == "geoinfer":
        from geoinfer.index.store import open_index

        index = open_index(Path(contender.place)).index
        return lambda queries: index.search(queries, K).ids
    import faiss

    theirs = faiss.read_index(contender.place)
    return lambda queries: theirs.search(queries, K)[1]


def serve(contender: Contender) -> None:
    """Answers a line of JSON with another: `{"answer": FILE, "count": n}` or `{"batch": b, "seconds": s}`."""
    search, queries = opened(contender), np.load(contender.queries)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "answer" in asked:
            np.save(asked["answer"], search(queries[: asked["count"]]))
            reply: dict[str, Any] = {}
        else:
            reply = {"queries_per_s": rate(search, queries, asked["batch"], asked["seconds"])}
        print(json.dumps(reply), flush=True)


def rate(search: Callable[[np.ndarray], object], queries: np.ndarray, batch: int, seconds: float) -> float:
    """Queries a second in batches of a size, for so long; at least one batch."""
    done, start = 0, 0
    began = time.perf_counter()
    while True:
        if start + batch > len(queries):
            start = 0
        search(queries[start : start + batch])
        start += batch
        done += batch
        passed = time.perf_counter() - began
        if passed >= seconds:
            return done / passed


def memory(contender: Contender) -> dict[str, Any]:
    """Resident memory of this process: with its libraries, when the index is open, and after many searches."""
    if contender.who == "geoinfer":
        import geoinfer.index.store  # noqa: F401
        from geoinfer.index.flat import import_faiss

        import_faiss()
    else:
        import faiss  # noqa: F401
    queries = np.load(contender.queries)
    result = {"libraries": status()["VmRSS"]}
    search = opened(contender)
    search(queries[:1])
    result["one_query"] = status()["VmRSS"]
    for start in range(0, min(len(queries), 1024), SETTLED):
        search(queries[start : start + SETTLED])
    after = status()
    return result | {
        "resident": after["VmRSS"], "peak": after["VmHWM"], "private": private_bytes(),
    }  # fmt: skip


def status() -> dict[str, int]:
    """VmRSS and VmHWM in bytes. Not ru_maxrss, in which the memory of the process that started this one lives on."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: 1024 * int(words[1]) for words in lines if words[0] in ("VmRSS:", "VmHWM:")}


def private_bytes() -> int:
    """Pages that no other process could share: not those of mapped files."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(1024 * int(words[1]) for words in lines if words[0] == "Anonymous:")


def disk_bytes(place: Path) -> int:
    if place.is_file():
        return place.stat().st_size
    return sum(entry.stat().st_size for entry in os.scandir(place))


def tuned(folder: Path, queries: np.ndarray, target: float) -> dict[str, float]:
    """Chooses the run-time settings, as `geoinfer index tune` does, and stores them."""
    from geoinfer.index import open_index, update_index
    from geoinfer.index.tune import tune

    # A tenth of what may be lost is kept in hand: other queries are to reach the target too.
    chosen = tune(open_index(folder).index, target + 0.1 * (1 - target), queries=queries)
    update_index(folder, parameters=chosen.best.parameters, recall=chosen.report.as_dict())
    return chosen.best.parameters


def main() -> None:
    work, contender = sys.argv[1], Contender(**json.loads(sys.argv[2]))
    if work == "serve":
        serve(contender)
    else:
        print(json.dumps({"build": build, "memory": memory}[work](contender)))


if __name__ == "__main__":
    main()
