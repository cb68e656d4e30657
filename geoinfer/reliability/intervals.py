"""How sure one is of a share that was counted on a sample."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Z: Final = 1.959963984540054
"""The 97.5% quantile of the normal distribution: intervals hold the truth with 95%."""


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95% score interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927).

    Args:
        share: that was found, 0 to 1.
        count: of independent trials, above 0; need not be whole.

    Returns:
        The ends, within [0, 1].
    """
    z2 = _Z * _Z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    # Rounding must not leave what was found outside.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def grouped_interval(inside: NDArray[np.bool_], groups: NDArray[np.int64]) -> tuple[float, float]:
    """The 95% interval of a share when photos of one group (a drive, a place) fare alike.

    Wilson's interval for as many photos as would be worth the same if they were independent: their number divided by
    the design effect, the variance of the share between groups over that of independent photos, and less still where
    that is known from few groups (E. L. Korn and B. I. Graubard, Survey Methodology 24, 1998). With groups of one it is
    Wilson's.

    Args:
        inside: (m,) whether each photo counts; m at least 1.
        groups: (m,) group of each.

    Returns:
        The ends, within [0, 1].
    """
    count, share = len(inside), float(inside.mean())
    _, member = np.unique(groups, return_inverse=True)
    number = int(member.max()) + 1
    if share in (0.0, 1.0) or number == 1:
        # Nothing varies from group to group, so nothing is known of how alike photos of one fare: each counts as one.
        return wilson(share, number)
    sums = np.bincount(member, weights=inside - share, minlength=number)
    between = float((sums**2).sum()) / count**2 * number / (number - 1)
    independent = share * (1 - share) / (count - 1)
    known = (_student(count - 1) / _student(number - 1)) ** 2
    return wilson(share, count / max(1.0, between / independent) * known)


def _student(freedom: int) -> float:
    """The 97.5% quantile of Student's distribution (M. Abramowitz and I. Stegun, Handbook, 26.7.5)."""
    if freedom <= 2:
        return (12.706205, 4.302653)[freedom - 1]  # so few that the expansion fails
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
