"""Which numbers of a column are bold, and which of those no one should lean on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def winners(
    values: Sequence[float],
    contending: Sequence[bool],
    *,
    lower_is_better: bool,
    proven: Callable[[int, int], bool] | None = None,
) -> tuple[list[bool], list[bool]]:
    """The best of a column as a reader sees it, to two decimals; those that print alike win together.

    Args:
        values: of n rows; NaN where a row has none.
        contending: whether each row may win: baselines may not.
        lower_is_better: as for errors.
        proven: whether the row of the first number is shown to be better than that of the second; None to ask nobody.

    Returns:
        n times whether a row wins, and n times whether it wins without being shown to be better than the runner-up.
        Nobody wins where fewer than two contend, nor with a score or share of 0.
    """
    bold, doubtful = [False] * len(values), [False] * len(values)
    rows = [row for row, value in enumerate(values) if contending[row] and math.isfinite(value)]
    if len(rows) < 2:
        return bold, doubtful
    best = min(values[row] for row in rows) if lower_is_better else max(values[row] for row in rows)
    first = [row for row in rows if printed(values[row]) == printed(best)]
    others = [row for row in rows if row not in first]
    if not lower_is_better and printed(best) == printed(0.0):
        return bold, doubtful
    runners_up = []
    if others:
        second = min(values[row] for row in others) if lower_is_better else max(values[row] for row in others)
        runners_up = [row for row in others if printed(values[row]) == printed(second)]
    for row in first:
        bold[row] = True
        doubtful[row] = proven is not None and (len(first) > 1 or not all(proven(row, other) for other in runners_up))
    return bold, doubtful


def printed(value: float) -> str:
    """A number as every table prints it: two decimals, as the paper's; `N/A` for none."""
    if not math.isfinite(value):
        return "N/A"
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text
