"""From neighbours of labelled photos to the best way of answering, and what the index is calibrated on afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.answer import DEFAULT_ANSWER
from geoinfer.calibration import calibrate
from geoinfer.errors import UsageError
from geoinfer.index import LeaveOneOut
from geoinfer.tuning.choose import choose, split
from geoinfer.tuning.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from geoinfer.answer import Answer
    from geoinfer.tuning.choose import Choice
    from geoinfer.tuning.objective import Objective
    from geoinfer.tuning.sweep import Grid, Sweep

MAX_PHOTOS: Final = 4000
"""More photos than these would take long and change little; so many of them are drawn, with a fixed seed."""

LEAST_CALIBRATING: Final = 200
"""So many photos may replace a calibration on more; on fewer, radii vary by several percent of coverage."""

_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning found.

    Attributes:
        tried: every way, on the photos that were used.
        choosing: (m,) bool, which of these chose.
        choice: the winner.
        judging: neighbours of the photos that chose nothing: what the index may be calibrated on.
        judging_groups: what each of these belongs to.
        calibrates: whether they are enough for that.
    """

    tried: Sweep
    choosing: NDArray[np.bool_]
    choice: Choice
    judging: LeaveOneOut
    judging_groups: NDArray[np.int64]
    calibrates: bool


def tune(
    held_out: LeaveOneOut,
    coordinates: NDArray[np.float64],
    groups: NDArray[np.int64],
    by: str,
    current: Answer,
    *,
    already: int = 0,
    grid: Grid,
    objective: Objective,
    on_progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> Tuned:
    """Tries every way of a grid on one part of the photos, and judges the best of them on the other.

    Args:
        held_out: neighbours of m photos whose place is known; those that have none left are not used.
        coordinates: (n, 2) degrees of all references.
        groups: (m,) of each photo; no group is in both parts.
        by: what they are grouped by, for a message.
        current: how the index answers now.
        already: how many photos the index is calibrated on now.
        grid: what to try.
        objective: what is best.
        on_progress: is told the share that is done.
        threads: CPU threads; 0 for all cores.

    Raises:
        UsageError: photos or groups are too few, or the grid makes no sense.
    """
    if held_out.ids.shape[1] == 0:
        raise UsageError("there are no references to be located by", hint="build the index of more photos")
    ways = grid.ways(held_out.ids.shape[1])
    rows = np.flatnonzero(held_out.ids[:, 0] >= 0)
    if len(rows) > MAX_PHOTOS:
        rows = np.sort(np.random.default_rng(_SEED).choice(rows, MAX_PHOTOS, replace=False))
    photos, groups = taken(held_out, rows), groups[rows]
    choosing = split(groups, by)
    known = {way.resolved for way in ways}
    beside = [way for way in dict.fromkeys((current, DEFAULT_ANSWER)) if way.resolved not in known]
    tried = sweep(photos, coordinates, ways, beside=beside, on_progress=on_progress, threads=threads)
    choice = choose(tried, groups, choosing, objective, current, DEFAULT_ANSWER)
    judging = taken(photos, np.flatnonzero(~choosing))
    # A calibration on few photos is right on average and far off for one index: it replaces only a smaller one.
    usable = len(judging.rows) >= min(LEAST_CALIBRATING, already)
    usable = usable and calibrate(judging, coordinates, choice.winner.answer).usable
    return Tuned(tried, choosing, choice, judging, groups[~choosing], usable)


def taken(held_out: LeaveOneOut, rows: NDArray[np.int64]) -> LeaveOneOut:
    """Some of the photos."""
    return LeaveOneOut(
        held_out.rows[rows],
        held_out.ids[rows],
        held_out.similarities[rows],
        None if held_out.places is None else held_out.places[rows],
    )
