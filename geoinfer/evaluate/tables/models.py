"""The models of a table: runs first, then the baselines that were computed beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geoinfer.evaluate.bootstrap import Interval, paired_differences

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from geoinfer.evaluate.measure import Evaluation
    from geoinfer.evaluate.set_metrics import SetMetrics


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One row of the paper's tables.

    Attributes:
        name: as it is printed.
        k: neighbours that answers were made of; None for N/A.
        metrics: of the set that the table is of.
        contends: whether it may be bold: baselines may not.
        run: number of the evaluation; None for a baseline that was computed.
    """

    name: str
    k: int | None
    metrics: SetMetrics
    contends: bool
    run: int | None


def models_of(evaluations: Sequence[Evaluation], set_name: str, baselines: Collection[str]) -> list[Model]:
    """Runs in their order, then baselines; one that several runs have in common is there once.

    Args:
        evaluations: one a run.
        set_name: of a set; runs without it are left out.
        baselines: names of runs that are never bold.
    """
    models = [
        Model(one.run.name, one.run.k, one.metrics[set_name], one.run.name not in baselines, number)
        for number, one in enumerate(evaluations)
        if set_name in one.metrics
    ]
    taken = {model.name for model in models}
    for name in dict.fromkeys(name for one in evaluations for name in one.baselines):
        different: list[tuple[str, SetMetrics]] = []
        for one in evaluations:
            metrics = one.baselines.get(name, {}).get(set_name)
            if metrics is not None and not any(_same(metrics, other) for _, other in different):
                different.append((one.run.name, metrics))
        for run_name, metrics in different:
            shown = name if len(different) == 1 else f"{name} (photos of {run_name})"
            models.append(Model(_free(shown, taken), None, metrics, False, None))
    return models


def _same(one: SetMetrics, other: SetMetrics) -> bool:
    # As text, because no two NaN are equal.
    return repr(one.as_dict()) == repr(other.as_dict())


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += " (baseline)"
    taken.add(name)
    return name


class Margins:
    """Paired differences between runs; each pair's are computed once."""

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        """`evaluations`: one a run, of one convention."""
        self._evaluations = evaluations
        self._rows: dict[int, dict[str, int]] = {}
        self._found: dict[tuple[str, int, int], dict[str, Interval]] = {}

    def pairs(self, set_name: str, first: int, second: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(m,) km each: both runs' errors on the photos of the set that both answered, row by row the same photo."""
        one, other = self._evaluations[first], self._evaluations[second]
        rows, there = self._pairs(set_name, first, second)
        first_km, second_km = one.distances_km[rows], other.distances_km[there]
        both = np.isfinite(first_km) & np.isfinite(second_km)
        return first_km[both], second_km[both]

    def differences(self, set_name: str, first: int, second: int) -> dict[str, Interval]:
        """What the first run's figures are above the second's, on the photos of the set that both answered."""
        if first > second:
            opposite = self.differences(set_name, second, first)
            return {name: Interval(-one.value, -one.high, -one.low) for name, one in opposite.items()}
        key = (set_name, first, second)
        if key not in self._found:
            one, other = self._evaluations[first], self._evaluations[second]
            rows, there = self._pairs(set_name, first, second)
            names = one.outcomes.group_names(one.grouped_by)
            self._found[key] = paired_differences(
                one.distances_km[rows],
                other.distances_km[there],
                [names[row] for row in rows.tolist()],
                one.convention,
            )
        return self._found[key]

    def proven(self, set_name: str, metric: str, first: int, second: int) -> bool:
        """Whether the interval of the difference does not hold 0."""
        return excludes_zero(self.differences(set_name, first, second)[metric])

    def _pairs(self, set_name: str, first: int, second: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of both runs that are of one photo, of those in the first one's set."""
        if second not in self._rows:
            self._rows[second] = {name: row for row, name in enumerate(self._evaluations[second].outcomes.ids)}
        there, one = self._rows[second], self._evaluations[first]
        rows = np.flatnonzero(one.sets[set_name]).tolist()
        pairs = [(row, there[one.outcomes.ids[row]]) for row in rows if one.outcomes.ids[row] in there]
        found = np.array(pairs, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]


def excludes_zero(difference: Interval) -> bool:
    """Whether the interval is known and lies to one side of 0."""
    return difference.low > 0 or difference.high < 0


def apart(one: Interval | None, other: Interval | None) -> bool:
    """Whether two intervals are known and do not overlap."""
    return one is not None and other is not None and (one.low > other.high or other.low > one.high)


def value(interval: Interval | None) -> float:
    """The figure, NaN where there is none."""
    return math.nan if interval is None else interval.value
