"""The best way of answering, chosen on some photos and judged on others.

What wins among hundreds of ways wins partly by luck, so its error on the photos that chose it is too good to be true.
The photos are therefore dealt out in two parts, by whole groups (a drive, a source, a geocell), as photos of one group
are easy or hard together. One part chooses; the other says how good the choice is, and calibrates the index afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.errors import UsageError
from geoinfer.reliability.groups import group_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.answer import Answer
    from geoinfer.tuning.objective import Objective
    from geoinfer.tuning.sweep import Sweep

LEAST_PHOTOS: Final = 20
"""Fewer photos in a part say nothing that could be told from luck."""

LEAST_GROUPS: Final = 5
"""Likewise groups: an interval over fewer is none."""

_RESAMPLES: Final = 2000
_LEVELS: Final = (0.025, 0.975)
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """One way of answering on the photos that chose nothing.

    Attributes:
        answer: the way.
        value: the objective there.
        low: the lower end of its 95% interval, by resampling groups.
        high: the upper end.
        value_chosen_on: the objective on the part that chose.
    """

    answer: Answer
    value: float
    low: float
    high: float
    value_chosen_on: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and how it fares.

    Attributes:
        objective: by which.
        winner: the best way on the part that chose.
        current: how the index answers now.
        default: how geoinfer answers where nobody says otherwise.
        better_low: the lower end of the 95% interval of how much better the winner is than the current way, above 0
            where better, in the objective's unit.
        better_high: the upper end.
        photos: (2,) how many chose, how many judged.
        groups: likewise.
    """

    objective: Objective
    winner: Judged
    current: Judged
    default: Judged
    better_low: float
    better_high: float
    photos: tuple[int, int]
    groups: tuple[int, int]

    @property
    def same(self) -> bool:
        """Whether the index answers like that already."""
        return self.winner.answer.resolved == self.current.answer.resolved

    @property
    def better(self) -> bool:
        """Whether the winner is better than the current way on the photos that chose nothing."""
        gain = self.current.value - self.winner.value
        return (-gain if self.objective.larger_is_better else gain) > 0

    @property
    def sure(self) -> bool:
        """Whether the interval of how much better it is leaves out that it is not."""
        return self.better_low > 0


def split(groups: NDArray[np.int64], by: str, *, seed: int = _SEED) -> NDArray[np.bool_]:
    """Deals groups out in two parts of about as many photos each.

    Args:
        groups: (m,) of each photo.
        by: what they are grouped by, for a message.
        seed: decides between groups of one size.

    Returns:
        (m,) bool: True for the photos that choose.

    Raises:
        UsageError: there are too few photos or groups.
    """
    count = len(np.unique(groups))
    hint = "label more photos, or choose another --split-by"
    if len(groups) < 2 * LEAST_PHOTOS:
        raise UsageError(
            f"{len(groups)} photos are too few to tune on; it takes at least {2 * LEAST_PHOTOS}", hint=hint
        )
    if count < 2 * LEAST_GROUPS:
        raise UsageError(
            f"the {len(groups)} photos are of {count} {by}{'' if count == 1 else 's'} only; it takes at least "
            f"{2 * LEAST_GROUPS}, as one part of them chooses and the other judges",
            hint=hint,
        )
    choosing = group_folds(groups, 2, seed) == 0
    for part in (choosing, ~choosing):
        if part.sum() < LEAST_PHOTOS or len(np.unique(groups[part])) < LEAST_GROUPS:
            raise UsageError(f"most of the {len(groups)} photos are of one {by}, so they cannot be parted", hint=hint)
    return choosing


def choose(
    tried: Sweep,
    groups: NDArray[np.int64],
    choosing: NDArray[np.bool_],
    objective: Objective,
    current: Answer,
    default: Answer,
) -> Choice:
    """Chooses on one part of the photos and judges on the other.

    Args:
        tried: with `current` and `default` among its ways.
        groups: (m,) of each photo of `tried`.
        choosing: (m,) True for the photos that choose.
        objective: by what.
        current: how the index answers now.
        default: how geoinfer answers where nobody says otherwise.
    """
    costs = objective.costs(tried.errors_km[: tried.candidates, choosing])
    # Rounding must not decide between ways that answer alike: the first, which is the simpler, does.
    best = int(np.argmin(np.round(costs, 6)))
    resolved = [way.resolved for way in tried.ways]
    rows = [best, resolved.index(current.resolved), resolved.index(default.resolved)]
    errors = tried.errors_km[rows][:, ~choosing]
    resampled = _resampled(errors, groups[~choosing], objective)
    chosen_on = objective.values(tried.errors_km[rows][:, choosing])
    gains = (resampled[1] - resampled[0]) * (-1 if objective.larger_is_better else 1)

    def judged(row: int, answer: Answer) -> Judged:
        low, high = np.quantile(resampled[row], _LEVELS).tolist()
        return Judged(answer, float(objective.values(errors[row])), low, high, float(chosen_on[row]))

    winner, now, general = (judged(row, way) for row, way in enumerate((tried.ways[best], current, default)))
    low, high = np.quantile(gains, _LEVELS).tolist()
    return Choice(
        objective, winner, now, general, low, high,
        (int(choosing.sum()), int((~choosing).sum())),
        (len(np.unique(groups[choosing])), len(np.unique(groups[~choosing]))),
    )  # fmt: skip


def _resampled(errors_km: NDArray[np.float64], groups: NDArray[np.int64], objective: Objective) -> NDArray[np.float64]:
    """The objective of ways (w, m) on photos of groups drawn with replacement: (w, draws).

    All ways see the same draws, so that their differences are known better than they are (B. Efron, R. J. Tibshirani,
    "An Introduction to the Bootstrap", 1993; of clusters, A. C. Davison, D. V. Hinkley, 1997, section 3.8).
    """
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    random = np.random.default_rng(_SEED)
    values = np.empty((len(errors_km), _RESAMPLES))
    for draw in range(_RESAMPLES):
        photos = np.concatenate([members[group] for group in random.integers(0, len(members), len(members))])
        values[:, draw] = objective.values(errors_km[:, photos])
    return values
