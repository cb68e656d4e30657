from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.conftest import CHECKOUT

TWO = [50.0, 51.0, 49.0, 50.0, 50.0]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module("bench_workers")


def test_the_verdict(bench: Any) -> None:
    same = {"2": TWO, "3": [rate * 1.01 for rate in TWO], "4": [40.0, 70.0, 45.0, 66.0, 50.0]}
    assert bench.verdict(same, [2, 3, 4]) == "No number of threads is surely faster than one a core."
    faster = same | {"3": [rate * 1.2 for rate in TWO]}
    assert bench.verdict(faster, [2, 3, 4]) == "Surely faster by 3% or more than one thread a core: 3 threads."


def test_the_table(bench: Any) -> None:
    result = {
        "kind": "web", "count": 9, "rounds": 5, "precision": "fp32", "megabytes_each": 0.184, "workers": [2, 3],
        "rates": {"2": TWO, "3": [rate * 1.2 for rate in TWO]}, "verdict": "So it is.",
        "machine": {"cpu": "A CPU", "cores": 2},
    }  # fmt: skip
    assert bench.markdown(result).splitlines() == [
        "9 JPEGs, web, 0.18 MB each, not in memory; A CPU, 2 cores; fp32; median of 5 rounds (range)",
        "",
        "| threads | photos/s | beside 2 (99.5% interval) |",
        "|---|---|---|",
        "| 2 | 50.0 (49.0 to 51.0) |  |",
        "| 3 | 60.0 (58.8 to 61.2) | 1.200 (1.200 to 1.200) |",
        "",
        "So it is.",
    ]


def test_a_run_for_real(bench: Any, tmp_path: Any) -> None:
    photos = bench.make_photos(tmp_path / "photos", "web", 2)
    assert len(photos) == 2
    assert bench.rate(tmp_path / "photos", 2, "fp32", tmp_path) > 0
