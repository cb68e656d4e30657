from __future__ import annotations

import pytest

from geoinfer.index.choose import choose_kind
from geoinfer.index_kinds import KINDS

GB = 10**9


@pytest.mark.parametrize(
    ("size", "dim", "memory", "gpu", "kind"),
    [
        (1, 256, 8 * GB, False, "flat"),
        (335, 256, 8 * GB, False, "flat"),
        (100_000, 512, 8 * GB, False, "flat"),  # GeoCLIP's gallery
        (250_000, 256, 8 * GB, False, "flat"),
        (250_001, 256, 8 * GB, False, "ivf"),
        (1_000_000, 256, 8 * GB, False, "ivf"),
        (50_000_000, 256, 256 * GB, False, "ivf"),
        (50_000_000, 256, 64 * GB, False, "ivf-pq"),
        (1_000_000, 256, 400_000_000, False, "ivf-pq"),
        (100_000, 256, 8 * GB, True, "flat"),
        (1_000_000, 256, 8 * GB, True, "flat"),
        (10_000_000, 256, 64 * GB, True, "flat-fp16"),
        (50_000_000, 256, 256 * GB, True, "ivf"),
    ],
)
def test_by_size_device_and_memory(size, dim, memory, gpu, kind):
    choice = choose_kind(size, dim, memory_bytes=memory, gpu=gpu)
    assert choice.kind == kind
    assert choice.kind in KINDS
    assert f"{size:,} references" in choice.why
    assert not choice.why.endswith(".")


def test_why():
    assert choose_kind(335, 256).why == "335 references are searched exactly in well under a millisecond"
    assert choose_kind(100_000, 256).why == "100,000 references are searched exactly in under a millisecond"
    why = choose_kind(1_000_000, 256, memory_bytes=8 * GB).why
    assert why.startswith("comparing a query with all 1,000,000 references would take about 7.68 ms")
    assert why.endswith("and 1.1 GB of embeddings and codes fit into memory")
    assert "would crowd 0.4 GB of memory" in choose_kind(1_000_000, 256, memory_bytes=400_000_000).why


def test_this_machine_is_asked_for_its_memory(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    assert choose_kind(1_000_000, 256).kind == "ivf-pq"

    def unknown(_name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("os.sysconf", unknown)
    assert choose_kind(1_000_000, 256).kind == "ivf"
