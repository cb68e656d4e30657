"""Training, validation and test: at random as in the paper, or by sequence or geocell, so that no neighbour leaks.

What falls where follows from a hash of each photo's id (or sequence, or geocell) and the seed, not from the order of
the rows: the same photos in another order are split the same way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from geoinfer.errors import UsageError
from geoinfer.geocells import parent_cells
from trainer.data.examples import SPLITS, keyed_hashes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SplitPolicy = Literal["random", "sequence", "geocell"]
DEFAULT_SPLIT_LEVEL: Final = 6
"""S2 level of the cells that `geocell_split` keeps whole: some 140 km wide."""

_VALIDATION, _TEST = SPLITS.index("validation"), SPLITS.index("test")


def random_split(ids: Sequence[str], *, validation: float = 0.2, test: float = 0.0, seed: int = 0) -> NDArray[np.int8]:
    """Splits photos one by one.

    Args:
        ids: n names.
        validation: share of the photos, from 0 to less than 1.
        test: likewise; both together less than 1.
        seed: another one draws other photos.

    Returns:
        (n,) int8, positions in `SPLITS`.

    Raises:
        UsageError: the shares make no sense.
    """
    return _split_groups(np.arange(len(ids)), keyed_hashes(ids, seed, purpose="split"), validation, test)


def sequence_split(
    ids: Sequence[str], sequences: Sequence[str | None], *, validation: float = 0.2, test: float = 0.0, seed: int = 0
) -> NDArray[np.int8]:
    """Splits drives and walks: no sequence is in two splits. A photo of no known sequence is one of its own.

    Args:
        ids: n names.
        sequences: n names, None or empty where not known.
        validation: share of the photos, hit as closely as whole sequences allow.
        test: likewise.
        seed: another one draws other sequences.

    Returns:
        (n,) int8, positions in `SPLITS`.

    Raises:
        UsageError: the shares make no sense.
    """
    # The letter keeps a photo called 7 apart from a sequence called 7.
    names = [f"s{sequence}" if sequence else f"p{name}" for name, sequence in zip(ids, sequences, strict=True)]
    positions: dict[str, int] = {}
    groups = np.fromiter((positions.setdefault(name, len(positions)) for name in names), np.int64, len(names))
    return _split_groups(groups, keyed_hashes(list(positions), seed, purpose="split"), validation, test)


def geocell_split(
    leaf_cells: NDArray[np.uint64],
    level: int = DEFAULT_SPLIT_LEVEL,
    *,
    validation: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
) -> NDArray[np.int8]:
    """Splits the Earth: no S2 cell of the level is in two splits, so only photos by a border have near neighbours.

    Args:
        leaf_cells: (n,) uint64, S2 cells of level 30.
        level: 0 to 30; the smaller, the farther apart, and the less alike, the splits are.
        validation: share of the photos, hit as closely as whole cells allow.
        test: likewise.
        seed: another one draws other cells.

    Returns:
        (n,) int8, positions in `SPLITS`.

    Raises:
        UsageError: the shares or the level make no sense.
    """
    try:
        cells, groups = np.unique(parent_cells(leaf_cells, level), return_inverse=True)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return _split_groups(groups, keyed_hashes([f"{cell:x}" for cell in cells.tolist()], seed, purpose="split"),
                         validation, test)  # fmt: skip


def _split_groups(
    groups: NDArray[np.int64], hashes: NDArray[np.uint64], validation: float, test: float
) -> NDArray[np.int8]:
    """Splits whole groups in the order of their hashes, test first; training keeps at least one group.

    Args:
        groups: (n,) group of each photo, below g.
        hashes: (g,) a number for each group.
        validation: share of the photos.
        test: likewise.
    """
    check_shares(validation, test)
    n, count = len(groups), len(hashes)
    sizes = np.bincount(groups, minlength=count)
    order = np.argsort(hashes, kind="stable")
    split_of_group = np.zeros(count, np.int8)
    for code, share in ((_TEST, test), (_VALIDATION, validation)):
        free = order[split_of_group[order] == 0]
        chosen = _fill(sizes[free], share * n)
        if len(chosen) == len(free) and len(free):
            chosen = chosen[:-1]
        split_of_group[free[chosen]] = code
    return split_of_group[groups]


def check_shares(validation: float, test: float) -> None:
    """Raises UsageError unless both are shares and leave something to train on."""
    for name, share in (("validation", validation), ("test", test)):
        if not (math.isfinite(share) and 0.0 <= share < 1.0):
            raise UsageError(f"a {name} share of {share:g} makes no sense; expected one from 0 to less than 1")
    if validation + test >= 1.0:
        raise UsageError(f"shares of {validation:g} and {test:g} for validation and test leave nothing to train on")


def _fill(sizes: NDArray[np.int64], target: float) -> NDArray[np.int64]:
    """Positions, ascending, of groups whose sizes sum to `target` as nearly as going through them once finds.

    Each group is taken if it still fits. At the end the smallest one left is taken too if that comes nearer.
    """
    if target <= 0:
        return np.empty(0, np.int64)
    taken: list[int] = []
    room = target
    for position, size in enumerate(sizes.tolist()):
        if size <= room:
            taken.append(position)
            room -= size
            if room < 1:
                break
    left = np.ones(len(sizes), bool)
    left[taken] = False
    rest = np.flatnonzero(left)
    if len(rest):
        smallest = rest[np.argmin(sizes[rest])]
        if abs(sizes[smallest] - room) < room:
            taken.append(int(smallest))
    return np.sort(np.array(taken, np.int64))
