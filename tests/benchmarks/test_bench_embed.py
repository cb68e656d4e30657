from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

from tests.conftest import CHECKOUT  # noqa: E402
from tests.onnx_models import SIZE, make_model  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


class Embedder:
    calls_at_once = 1

    def __init__(self, most: int) -> None:
        self.most, self.closed = most, False

    def embed(self, pixels: np.ndarray) -> None:
        if len(pixels) > self.most:
            raise RuntimeError("no room\nfor this")

    def close(self) -> None:
        self.closed = True


def test_a_contender_that_fails_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    bench_embed: Any = importlib.import_module("bench_embed")
    model = onnx.load(str(make_model(tmp_path / "tiny.onnx")))
    good, bad = Embedder(100), Embedder(4)
    contenders = [
        bench_embed.Contender(provider, "fp32", tmp_path / "x", "cpu", embedder)
        for provider, embedder in (("bad", bad), ("good", good))
    ]
    pixels = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    limits = dict.fromkeys(("fp32", "fp16", "int8", "bytes"), 1e9)
    monkeypatch.setattr(bench_embed, "make_model", lambda name: model)
    monkeypatch.setattr(bench_embed, "pictures", lambda *given: (pixels, np.arange(4)))
    monkeypatch.setattr(bench_embed, "convert", lambda *given: ({"fp32": model}, {}))
    monkeypatch.setattr(bench_embed, "open_all", lambda *given: (contenders, {}))
    monkeypatch.setattr(bench_embed, "memory_of", lambda *given: {})
    monkeypatch.setattr(bench_embed, "peaks", lambda device: limits)
    options = SimpleNamespace(photos=tmp_path, rounds=2, batches=[1, 8], device="cpu", seconds=0.01)
    result = bench_embed.bench("tiny", options, tmp_path, dict(limits))
    assert result["skipped"] == {"bad, fp32": "batch 8: no room for this"}
    assert {(row["provider"], row["batch"]) for row in result["rows"]} == {("good", 1), ("good", 8)}
    assert all(len(row["images_per_second"]) == 2 for row in result["rows"])
    assert good.closed
    assert bad.closed
