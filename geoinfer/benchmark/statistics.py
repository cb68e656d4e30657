"""What a handful of rounds says of a rate: its middle, how sure one is of it, and whether the machine was calm.

Rounds are few, so no shape of their scatter is taken for granted and nothing is drawn at random: intervals are made
from ranks, which hold for any continuous distribution (M. Hollander, D. A. Wolfe and E. Chicken, "Nonparametric
Statistical Methods", 3rd edition, 2014: sections 3.6 and 4.3). A bootstrap of fewer than five rounds is too narrow: of
ten comparisons of like with like at three rounds one comes out as a difference.

Rounds of one command share its circumstances, and no interval made of them knows how much the next start differs.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVEL: Final = 0.95
UNSTABLE_SHARE: Final = 0.10
"""An interval of the median wider than this share of it makes a figure unstable."""

_DRIFT_ROUNDS: Final = 5  # in order by chance once in 60
_DRIFT_SHARE: Final = 0.05
_EXACT: Final = 30  # rounds; from there on a normal distribution serves
_DEVIATIONS: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % interval.

    Attributes:
        value: the figure.
        low: lower end; NaN where there are too few rounds for one.
        high: upper end, likewise.
    """

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there were rounds enough for an interval."""
        return not math.isnan(self.low)


def median_interval(values: Sequence[float]) -> Interval:
    """The median, and the interval of its distribution by the sign test.

    Args:
        values: at least one; independent of each other.

    Returns:
        From the k-th smallest to the k-th largest, the largest k that covers 95 %. Five values have none such: theirs
        is the whole range, which covers 94 %, four values' 88 %, three values' 75 %, two values' 50 %. Of one value
        the ends are NaN.
    """
    ordered = sorted(values)
    count = len(ordered)
    if count == 1:
        return Interval(ordered[0], math.nan, math.nan)
    tail, k = 2.0**-count, 0
    while tail <= (1 - LEVEL) / 2:
        k += 1
        tail += math.comb(count, k) * 2.0**-count
    k = max(0, k - 1)
    return Interval(statistics.median(ordered), ordered[k], ordered[-1 - k])


def ratio_interval(new: Sequence[float], old: Sequence[float]) -> Interval:
    """How many times the old values the new ones are, by the Mann-Whitney test turned round.

    Args:
        new: positive, at least one.
        old: likewise, of another run: nothing pairs them.

    Returns:
        The ratio of the medians; the ends are the k-th smallest and k-th largest ratio of any new to any old value,
        the largest k that covers 95 %, and NaN where even the smallest and the largest cover less: three and three
        values, two and seven, one and thirty-eight.
    """
    value = statistics.median(new) / statistics.median(old)
    k = _rank(*sorted((len(new), len(old))))
    if k == 0:
        return Interval(value, math.nan, math.nan)
    ratios = sorted(a / b for a in new for b in old)
    # Medians of few values may lie outside; an interval without its own figure would only confuse.
    return Interval(value, min(value, ratios[k - 1]), max(value, ratios[-k]))


@cache
def _rank(fewer: int, more: int) -> int:
    """Which smallest and largest of the ratios are the ends; 0 if there is none."""
    if fewer > _EXACT:
        products = fewer * more
        return math.floor(products / 2 - _DEVIATIONS * math.sqrt(products * (fewer + more + 1) / 12))
    # How many orders of all values have so many pairs with the new one in front; counted by which value comes last.
    orders = _orders(fewer, more)
    allowed = (1 - LEVEL) / 2 * math.comb(fewer + more, fewer)
    tail = k = 0
    for count in orders:
        tail += count
        if tail > allowed:
            break
        k += 1
    return k


def _orders(fewer: int, more: int) -> list[int]:
    """Coefficients of the Gaussian binomial: product of (1 - x^(more + i)) / (1 - x^i), i from 1 to `fewer`."""
    found = [1] + [0] * (fewer * more)
    for i in range(1, fewer + 1):
        for at in range(len(found) - 1, more + i - 1, -1):
            found[at] -= found[at - more - i]
        for at in range(i, len(found)):
            found[at] += found[at - i]
    return found


def spread(values: Sequence[float]) -> str:
    """The median, with the smallest and the largest: `104 (98.1 to 107)`."""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    """Three digits, all of those before the point, and commas by thousands."""
    if not math.isfinite(value):
        return "-"
    decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 4)}f}"


def unstable(rates: Sequence[float]) -> str:
    """What is wrong with the rounds of a figure, for a sentence that begins with its name; empty if nothing is.

    A figure is unstable if the interval of its median (`median_interval`) is wider than 10 % of the median, or if five
    rounds or more are each slower than the one before, 5 % or more in all.
    """
    if len(rates) < 2:
        return ""
    middle = median_interval(rates)
    falling = all(after < before for before, after in itertools.pairwise(rates))
    if len(rates) >= _DRIFT_ROUNDS and falling and 1 - rates[-1] / rates[0] >= _DRIFT_SHARE:
        return f"falls from round to round, {' '.join(map(number, rates))}: the machine grows hotter, or busier"
    width = (middle.high - middle.low) / middle.value
    if width <= UNSTABLE_SHARE:
        return ""
    return (
        f"varies between {number(middle.low)} and {number(middle.high)}, {width:.0%} of its median: smaller "
        "differences cannot be seen"
    )
