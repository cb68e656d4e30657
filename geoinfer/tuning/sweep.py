"""Every way of answering tried on photos whose place is known."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.aggregate import aggregate
from geoinfer.answer import METHODS, PARAMETERS, Answer, Method, check_answer
from geoinfer.errors import UsageError
from geoinfer.geodesy import haversine_km

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from geoinfer.index import LeaveOneOut

KS: Final = (1, 2, 3, 5, 10, 20, 50, 100)
TEMPERATURES: Final = (0.01, 0.02, 0.05, 0.1, 0.2)
BANDWIDTHS_KM: Final = (50.0, 100.0, 200.0, 400.0, 800.0)


@dataclass(frozen=True, slots=True)
class Grid:
    """What to try.

    Attributes:
        ks: numbers of neighbours, 1 to `geoinfer.answer.MAX_K`.
        methods: ways of making a place of them.
        temperatures: for the methods that know one; a mean is also tried without.
        bandwidths_km: likewise.
    """

    ks: tuple[int, ...] = KS
    methods: tuple[Method, ...] = METHODS
    temperatures: tuple[float, ...] = TEMPERATURES
    bandwidths_km: tuple[float, ...] = BANDWIDTHS_KM

    def ways(self, neighbors: int) -> list[Answer]:
        """All combinations that differ, simple ones first.

        Of one neighbour every method makes the same, so that is `top1`; and a method is tried with no value twice.

        Args:
            neighbors: how many there are; what asks for more is left out.

        Raises:
            UsageError: a value is out of range, or nothing is left to try.
        """
        self.check()
        ks = sorted({k for k in self.ks if k <= neighbors})
        found = []
        if "top1" in self.methods or 1 in ks:
            found.append(Answer(1, "top1"))
        found += [
            Answer(k, method, temperature, bandwidth)
            for method in METHODS
            if method in self.methods and method != "top1"
            for k in ks
            if k != 1
            for temperature in self._tried(method, "temperature", self.temperatures)
            for bandwidth in self._tried(method, "bandwidth_km", self.bandwidths_km)
        ]
        if not found:
            raise UsageError(f"--k {','.join(map(str, self.ks))}: there are only {neighbors} neighbours")
        return found

    def check(self) -> None:
        """Raises UsageError if a value is out of range."""
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise UsageError(f"--methods {unknown[0]}: expected some of {', '.join(METHODS)}")
        for k in self.ks:
            check_answer(k, None)
        for temperature in self.temperatures:
            check_answer(None, None, temperature)
        for bandwidth in self.bandwidths_km:
            check_answer(None, None, None, bandwidth)

    @staticmethod
    def _tried(method: Method, name: str, values: Sequence[float]) -> list[float | None]:
        if name not in PARAMETERS[method]:
            return [None]
        return [None, *values] if PARAMETERS[method][name] is None else list(values)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What came of it.

    Attributes:
        ways: that were tried: first those that may win, then those that they are compared with.
        errors_km: (ways, m) float64, great-circle distance from each photo's answer to its true place.
        candidates: how many of the ways may win; None for all.
    """

    ways: list[Answer]
    errors_km: NDArray[np.float64]
    candidates: int | None = None


def sweep(
    held_out: LeaveOneOut,
    coordinates: NDArray[np.float64],
    ways: Sequence[Answer],
    *,
    beside: Sequence[Answer] = (),
    on_progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> Sweep:
    """Answers for every photo in every way.

    A photo whose relatives leave it fewer neighbours than a way asks for is located by those that there are, as in
    calibration.

    Args:
        held_out: neighbours of m photos whose place is known, each with one at least.
        coordinates: (n, 2) degrees of all references.
        ways: what to try.
        beside: what to compare it with.
        on_progress: is told the share that is done, 0 to 1, in the caller's thread.
        threads: CPU threads; 0 for all cores.
    """
    candidates, ways = len(ways), [*ways, *beside]
    missing = held_out.ids < 0
    places = coordinates[np.where(missing, held_out.ids[:, :1], held_out.ids)]
    similarities = np.where(missing, np.float32(-np.inf), held_out.similarities)
    truth = held_out.true_places(coordinates)
    errors = np.empty((len(ways), len(truth)))

    def try_way(number: int) -> int:
        k = ways[number].k
        answers = aggregate(places[:, :k], similarities[:, :k], ways[number])
        errors[number] = haversine_km(answers, truth)
        return number

    costs = [way.k * (way.k + 20) for way in ways]
    done = 0
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="geoinfer-sweep") as pool:
        # The long ones first, so that all threads end at about the same time.
        order = sorted(range(len(ways)), key=lambda number: -costs[number])
        futures = [pool.submit(try_way, number) for number in order]
        try:
            for future in as_completed(futures):
                done += costs[future.result()]
                if on_progress is not None:
                    on_progress(done / sum(costs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Sweep(ways, errors, candidates)
