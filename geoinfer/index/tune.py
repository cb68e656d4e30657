"""Finds the run-time parameters of an approximate index: the fastest that lose no more than is allowed.

Every setting is measured against exact search on one half of the queries; the other half, which chose nothing, says
how good the chosen one is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.index.recall import ground_truth, recall_against

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from geoinfer.index.approximate import ApproximateIndex
    from geoinfer.index.recall import GroundTruth, RecallReport

AIM: Final = 10
"""The k whose recall is aimed at."""

KS: Final = (1, AIM)
BATCHES: Final = (1, 256)

_MAX_QUERIES: Final = 2000
# Settings to try: these times powers of two.
_STEPS: Final = (1.0, 1.5)
_LEAST_EF, _MOST_EF = 16, 2048
_REFINES: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
# What finds this much is not asked to look further; nor what has reached the target a few times, or hardly finds more
# for looking at twice as many: to look at everything takes as long as exact search.
_ENOUGH: Final = 0.9999
_REACHED: Final = 3
_HARDLY_MORE: Final = 5e-4
# A speed is measured for so long, and on so many queries at least.
_TIMED_SECONDS: Final = 0.3
_TIMED_QUERIES: Final = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """Parameters, and what they do on the half of the queries that chooses.

    Attributes:
        parameters: of the search.
        recall_at: see `RecallReport`.
        queries_per_s: by the number of queries that are asked together.
    """

    parameters: dict[str, float]
    recall_at: dict[int, float]
    queries_per_s: dict[int, float]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came out.

    Attributes:
        settings: all that were tried, the fastest first.
        frontier: those of them that no other beats in both speed and recall.
        best: the fastest that reaches the target; without one, that which finds most.
        reached: whether it reaches the target.
        report: of the best, on the half of the queries that did not choose.
    """

    settings: list[Setting]
    frontier: list[Setting]
    best: Setting
    reached: bool
    report: RecallReport


def tune(
    index: ApproximateIndex,
    target: float,
    *,
    queries: NDArray[np.float32] | None = None,
    seed: int = 0,
    threads: int = 0,
    on_step: Callable[[str, float], None] | None = None,
) -> Tuned:
    """Tries settings.

    Args:
        index: to be tuned; it is not changed.
        target: recall@10 to reach, above 0 and at most 1.
        queries: (m, dim) float32 unit rows that are no references; without them, a sample of the references, each left
            out of its own answers.
        seed: of the sample, and of the halves.
        threads: CPU threads to use; 0 for all cores.
        on_step: called with what is being done and how much of it is, 0 to 1.

    Raises:
        ValueError: there are fewer than two queries, or they do not fit.
    """
    truth = ground_truth(
        index.vectors, AIM, queries=queries, max_queries=_MAX_QUERIES, seed=seed, threads=threads, on_step=on_step
    )
    if len(truth.queries) < 2 or not truth.similarities.shape[1]:
        raise ValueError("to choose by one half of the queries and to judge by the other takes two of them")
    order = np.random.default_rng(seed + 1).permutation(len(truth.queries))
    choosing, judging = truth.part(order[::2]), truth.part(order[1::2])
    settings = _measured(index, choosing, target, threads, on_step)
    settings.sort(key=lambda setting: -setting.queries_per_s[BATCHES[-1]])
    best, reached = choose(settings, target)
    report = recall_against(index.with_parameters(best.parameters), judging, KS, threads=threads)
    return Tuned(settings, pareto(settings), best, reached, report)


def choose(settings: Sequence[Setting], target: float) -> tuple[Setting, bool]:
    """The fastest setting, in large batches, that reaches the target, or that which finds most; and whether it does."""
    enough = [setting for setting in settings if setting.recall_at[AIM] >= target]
    if enough:
        return max(enough, key=lambda setting: (setting.queries_per_s[BATCHES[-1]], setting.recall_at[AIM])), True
    return max(settings, key=lambda setting: (setting.recall_at[AIM], setting.queries_per_s[BATCHES[-1]])), False


def pareto(settings: Sequence[Setting]) -> list[Setting]:
    """The settings that no other beats in both recall and speed, the fastest first."""
    kept: list[Setting] = []
    for setting in sorted(settings, key=lambda s: (-s.queries_per_s[BATCHES[-1]], -s.recall_at[AIM])):
        if not kept or setting.recall_at[AIM] > kept[-1].recall_at[AIM]:
            kept.append(setting)
    return kept


def tried(index: ApproximateIndex) -> list[list[dict[str, float]]]:
    """Settings to try, in rows: along a row a search looks further and further."""
    wide = [{"refine": refine} for refine in _REFINES]
    if index.kind == "sq8":
        return [wide]
    name = "efSearch" if index.kind == "hnsw" else "nprobe"
    least, most = (_LEAST_EF, _MOST_EF) if index.kind == "hnsw" else (1, int(index.faiss_index.nlist))
    values = sorted({int(step * 2**power) for power, step in product(range(21), _STEPS)})
    looks = [{name: float(value)} for value in values if least <= value < most] + [{name: float(most)}]
    if index.kind != "hnsw":
        return [[look | refine for look in looks] for refine in wide]
    return [looks]


def _measured(
    index: ApproximateIndex,
    truth: GroundTruth,
    target: float,
    threads: int,
    on_step: Callable[[str, float], None] | None,
) -> list[Setting]:
    rows = tried(index)
    settings = []
    for done, row in enumerate(rows):
        along: list[float] = []
        for step, parameters in enumerate(row):
            if on_step is not None:
                on_step("trying settings", (done + step / len(row)) / len(rows))
            candidate = index.with_parameters(parameters)
            report = recall_against(candidate, truth, KS, threads=threads)
            speeds = {batch: _speed(candidate, truth, batch, threads) for batch in BATCHES}
            settings.append(Setting(candidate.parameters, report.recall_at, speeds))
            along.append(report.recall_at[AIM])
            if along[-1] >= _ENOUGH or sum(found >= target for found in along) >= _REACHED:
                break
            # Of a product quantiser's few candidates no more come out right, however many lists it looks at.
            if len(rows) > 1 and step > max(1, len(row) // 4) and along[-1] - along[-3] < _HARDLY_MORE:
                break
    if on_step is not None:
        on_step("trying settings", 1.0)
    return settings


def _speed(index: ApproximateIndex, truth: GroundTruth, batch: int, threads: int) -> float:
    """Queries a second, asked so many at a time."""
    queries = truth.queries
    if len(queries) < batch:
        queries = np.tile(queries, (-(-batch // len(queries)), 1))
    asked, begin = 0, time.perf_counter()
    while True:
        start = asked % (len(queries) - batch + 1)
        index.search(queries[start : start + batch], AIM, threads=threads)
        asked += batch
        seconds = time.perf_counter() - begin
        if seconds >= _TIMED_SECONDS and asked >= _TIMED_QUERIES:
            return asked / seconds


def table_of(tuned: Tuned, size: int, search_bytes: int, disk_bytes: int) -> list[dict[str, Any]]:
    """All settings as plain values, for a manifest or JSON.

    Args:
        tuned: what came out.
        size: number of references.
        search_bytes: of what FAISS searches, the part of an index that wants to be in memory.
        disk_bytes: of the whole index.
    """
    return [
        {
            "parameters": setting.parameters,
            "recall_at": {str(k): round(value, 6) for k, value in setting.recall_at.items()},
            "queries_per_s": {str(batch): round(speed, 1) for batch, speed in setting.queries_per_s.items()},
            "memory_bytes_per_reference": round(search_bytes / size, 2),
            "disk_bytes_per_reference": round(disk_bytes / size, 2),
            "frontier": setting in tuned.frontier,
            "chosen": setting is tuned.best,
        }
        for setting in tuned.settings
    ]
