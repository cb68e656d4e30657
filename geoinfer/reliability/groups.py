"""Photos that belong together, and folds that never split them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from geoinfer.errors import UsageError
from geoinfer.geocells import cell_ids

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

SplitBy = Literal["sequence", "source", "geocell"]
SPLITS: Final[tuple[SplitBy, ...]] = get_args(SplitBy)

CELL_LEVEL: Final = 6
"""S2 level of the geocells that photos are grouped by: cells of about 150 km."""

FOLDS: Final = 5


def group_photos(
    by: SplitBy, places: NDArray[np.float64], sequences: Sequence[str], sources: Sequence[str]
) -> NDArray[np.int64]:
    """Numbers photos by what they belong to.

    Args:
        by: `sequence` (photos of which none is known go by their geocell), `source` or `geocell`.
        places: (m, 2) degrees.
        sequences: m names, empty where unknown; or none at all.
        sources: likewise.

    Returns:
        (m,) int64, the same for two photos if and only if they belong together.

    Raises:
        UsageError: `by` is another word.
    """
    if by not in SPLITS:
        raise UsageError(f"--split-by {by}: expected one of {', '.join(SPLITS)}")
    keys: list[Hashable]
    if by == "source":
        keys = list(sources) or [""] * len(places)
    else:
        keys = cell_ids(places, CELL_LEVEL).tolist()
        if by == "sequence":
            keys = [name or cell for name, cell in zip(sequences or [""] * len(places), keys, strict=True)]
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def group_folds(groups: NDArray[np.int64], folds: int = FOLDS, seed: int = 0) -> NDArray[np.int64]:
    """Deals whole groups out to folds of about as many photos each.

    The largest group first, each to the fold that has the fewest photos so far; a seed decides between equals.

    Args:
        groups: (m,) int64.
        folds: at least 2; no more are made than there are groups.
        seed: of the order of groups of one size.

    Returns:
        (m,) int64, the fold of each photo, from 0.

    Raises:
        UsageError: all photos are of one group, so that nothing can be held back.
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise UsageError(
            f"all {len(groups)} photos belong together, so none can be held back to test on",
            hint=f"choose another --split-by ({', '.join(SPLITS)})",
        )
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    dealt = np.empty(len(sizes), np.int64)
    filled = np.zeros(min(folds, len(sizes)), np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")].tolist():
        dealt[group] = filled.argmin()
        filled[dealt[group]] += sizes[group]
    return dealt[member]
