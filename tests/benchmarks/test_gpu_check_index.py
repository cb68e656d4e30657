from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from geoinfer.engines.gpu import Gpu
from geoinfer.errors import DeviceError
from geoinfer.index import gpu, gpu_parts
from geoinfer.index.flat import FlatIndex
from tests.conftest import CHECKOUT
from tests.index.fake_faiss_gpu import FakeFaiss

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("faiss")

H200 = Gpu(0, "NVIDIA H200", (9, 0), 140 << 30)


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    module = importlib.import_module("gpu_check")
    monkeypatch.setattr(module, "REFERENCES", 3000)
    monkeypatch.setattr(module, "DIM", 16)

    def index_of(kind: str, data: Any, folder: Path) -> Any:
        index = FlatIndex(np.asarray(data.references))
        kind = "sq8" if kind.startswith("ivf") else kind  # it has no lists here
        manifest = SimpleNamespace(kind=kind, size=index.size, embedder=SimpleNamespace(dim=16))
        return SimpleNamespace(folder=folder, manifest=manifest, index=index)

    monkeypatch.setattr(module, "index_of", index_of)
    monkeypatch.setattr(module, "rates", lambda index, queries, batches: {1: 10.0, 64: 200.0})
    return module


def run(gpu_check: Any, tmp_path: Path) -> list[tuple[str, str, str]]:
    return list(gpu_check.faiss(gpu_check.Check(tmp_path, H200, quick=False)))


def test_every_kind_is_held_against_the_cpu(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "import_faiss", lambda: FakeFaiss(2))
    free = iter(range(100 << 30, 0, -(1 << 28)))
    monkeypatch.setattr(gpu_parts, "free_bytes", lambda device: next(free))
    *rows, aim = run(gpu_check, tmp_path)
    assert aim == ("aim: search of 1,000,000 references, queries a second", "not measured", "at least 100,000")
    assert [row[0] for row in rows] == [
        "FAISS flat, fp16, 3,000 x 16, one GPU", "FAISS flat, 3,000 x 16, one GPU",
        "FAISS flat, fp16, 3,000 x 16, 2 GPUs",
        "FAISS ivf, 3,000 x 16, one GPU", "FAISS ivf, 3,000 x 16, 2 GPUs",
        "FAISS ivf-pq, 3,000 x 16, one GPU", "FAISS ivf-pq, 3,000 x 16, 2 GPUs",
        "FAISS hnsw, 3,000 x 16, one GPU", "FAISS hnsw, 3,000 x 16, 2 GPUs",
    ]  # fmt: skip
    assert {row[1] for row in rows} == {"ok"}
    for part in ("ids as on the CPU in 100.00 %", "recall@10 1.0000 (CPU 1.0000)", "GPU memory",
                 "searched as flat-fp16", "batches of 64: GPU 200 queries/s, CPU 200"):  # fmt: skip
        assert part in rows[0][2]


def test_another_answer_fails_and_costs_no_other_row(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Wrong(FakeFaiss):
        def GpuIndexFlat(self, resources: Any, dim: int, metric: int, config: Any) -> Any:  # noqa: N802
            made = super().GpuIndexFlat(resources, dim, metric, config)
            search = made.search

            def all_but_the_nearest(queries: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
                return tuple(found[:, 1:] for found in search(queries, k + 1))

            if config.useFloat16:
                made.search = all_but_the_nearest
            return made

    monkeypatch.setattr(gpu, "import_faiss", Wrong)
    monkeypatch.setattr(gpu_parts, "free_bytes", lambda device: None)
    *rows, _ = run(gpu_check, tmp_path)
    assert [row[1] for row in rows] == ["FAILED", "ok", "FAILED", "FAILED", "FAILED"]

    def full(*given: Any, **named: Any) -> None:
        raise DeviceError("no room")

    monkeypatch.setattr(gpu, "to_gpu", full)
    *rows, _ = run(gpu_check, tmp_path)
    assert {row[1:] for row in rows} == {("FAILED", "no room")}


@pytest.mark.parametrize(("per_second", "outcome"), [(250_000.0, "reached"), (90_000.0, "not reached")])
def test_the_aim_is_for_a_million_references(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, per_second: float, outcome: str
) -> None:
    class Many:
        """As long as a million; what is searched is small."""

        def __init__(self, rows: np.ndarray) -> None:
            self.rows = rows

        def __array__(self, *given: Any, **named: Any) -> np.ndarray:
            return self.rows

        def __getitem__(self, rows: Any) -> np.ndarray:
            return self.rows[rows]

        def __len__(self) -> int:
            return 1_000_000

    clustered = gpu_check.clustered

    def many(*given: Any, **named: Any) -> Any:
        data = clustered(*given, **named)
        return SimpleNamespace(references=Many(np.asarray(data.references)), queries=data.queries)

    monkeypatch.setattr(gpu_check, "clustered", many)
    monkeypatch.setattr(gpu, "import_faiss", lambda: FakeFaiss(1))
    monkeypatch.setattr(gpu_check, "rates", lambda index, queries, batches: {1: 7.0, 4096: per_second})
    aim = run(gpu_check, tmp_path)[-1]
    assert aim[1] == outcome
    assert aim[2] == f"{per_second:,.0f} of at least 100,000; ivf-pq, batches of 4096"


def test_queries_are_enough_for_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    module: Any = importlib.import_module("gpu_check")
    seen: list[int] = []
    index = SimpleNamespace(search=lambda queries, k: seen.append(len(queries)))
    monkeypatch.setattr(module, "rate", lambda search, queries, batch, seconds: search(queries[:batch]) or 1.0)
    found = module.rates(index, np.zeros((10, 2), np.float32), (1, 64))
    assert found == {1: 1.0, 64: 1.0}
    assert seen == [1, 1, 64, 64]


def test_without_a_gpu_it_is_said(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "import_faiss", lambda: FakeFaiss(0))
    [row] = run(gpu_check, tmp_path)
    assert row[1] == "not run"
