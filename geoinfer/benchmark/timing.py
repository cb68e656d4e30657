"""How long the items of a stage take, on some threads that have nothing else to do, and what follows for the whole."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from geoinfer.benchmark.result import EMBED, EMBED_TOGETHER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SHORTEST_SECONDS: Final = 0.3
"""A stage is repeated until it took at least this long."""
LONGEST_SECONDS: Final = 20.0
"""After this no further item is begun, so that a slow model does not take hours; every thread does one at least."""


@dataclass(slots=True)
class Timings:
    """One stage in one round.

    Attributes:
        seconds: of each item.
        photos: in all items together.
        threads: how many did them side by side.
        share: of the inputs, those that come to this stage: a photo that cannot be decoded is never embedded.
        batch: photos in an item.
        device: `cpu`, or the GPU that does it.
    """

    seconds: list[float] = field(default_factory=list)
    photos: int = 0
    threads: int = 1
    share: float = 1.0
    batch: int = 1
    device: str = "cpu"

    @property
    def rate(self) -> float:
        """Photos a second on all cores."""
        return self.photos * self.threads / max(sum(self.seconds), 1e-9)


def bound(stages: Mapping[str, Timings]) -> float:
    """Photos a second if nothing ever waited for anything: every device busy all the time with its own stages.

    Of the two ways to embed, the faster counts.

    Args:
        stages: by name, of one round.

    Returns:
        The smallest, over the devices, of 1 / (the sum of share / rate over its stages).
    """
    counted = dict(stages)
    together = counted.pop(EMBED_TOGETHER, None)
    if together is not None and together.rate > counted[EMBED].rate:
        counted[EMBED] = together
    cost: defaultdict[str, float] = defaultdict(float)
    for timings in counted.values():
        cost[timings.device] += timings.share / timings.rate
    return 1 / max(cost.values())


def on_threads(
    work: Callable[[int], None],
    count: int,
    threads: int,
    *,
    shortest: float = SHORTEST_SECONDS,
    longest: float = LONGEST_SECONDS,
    pinned: bool = False,
) -> None:
    """Does items 0 to count - 1 on some threads, and again from the first until it took long enough.

    Args:
        work: does one item; called from all threads at once, at least once from each.
        count: at least 1.
        threads: how many.
        shortest: no thread ends sooner, seconds.
        longest: no item after each thread's first is begun later, seconds.
        pinned: keep each thread on a core of its own, where there are as many.
    """
    numbers = itertools.count()
    cores = sorted(os.sched_getaffinity(0)) if pinned and hasattr(os, "sched_setaffinity") else []
    if threads != len(cores):
        cores = []
    start = threading.Barrier(threads)

    def loop(number: int) -> None:
        if cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {cores[number]})
        start.wait()
        began = time.perf_counter()
        first = True
        while True:
            item = next(numbers)
            elapsed = time.perf_counter() - began
            if not first and ((item >= count and elapsed >= shortest) or elapsed >= longest):
                return
            work(item % count)
            first = False

    with ThreadPoolExecutor(threads, thread_name_prefix="geoinfer-stage") as pool:
        for done in [pool.submit(loop, number) for number in range(threads)]:
            done.result()
