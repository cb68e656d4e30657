"""Which of many points a page shows: the worst of them and a fair sample of the rest."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = TypeVar("Item")


def choose_points(errors_km: NDArray[np.float64], limit: int, *, worst: int, seed: int = 0) -> NDArray[np.int64]:
    """Chooses points: the largest errors, and of all others, those without an error too, a uniform sample.

    Args:
        errors_km: (n,), NaN where a photo has no answer. Of equal errors the first come first.
        limit: points in all.
        worst: how many of them, at most, are the worst.
        seed: of the sample; the same arguments always choose the same points.

    Returns:
        (min(n, limit),) int64, ascending.
    """
    count = len(errors_km)
    if count <= limit:
        return np.arange(count)
    order = np.argsort(-errors_km, kind="stable")  # NaN goes last
    known = int(np.count_nonzero(~np.isnan(errors_km)))
    worst = min(worst, limit, known)
    sampled = np.random.default_rng(seed).choice(order[worst:], limit - worst, replace=False, shuffle=False)
    return np.sort(np.concatenate([order[:worst], sampled]))


def choose_pictures(errors_km: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Which of n points have a picture: half of `count` are the worst, the others are spread evenly over the rest.

    Args:
        errors_km: (n,), NaN where a photo has no answer.
        count: pictures in all.

    Returns:
        (min(n, count),) int64; the worst come first, worst of all first.
    """
    order = np.argsort(-errors_km, kind="stable")
    known = int(np.count_nonzero(~np.isnan(errors_km)))
    worst = order[: min((count + 1) // 2, known)]
    rest = np.setdiff1d(np.arange(len(errors_km)), worst)
    left = min(count - len(worst), len(rest))
    return np.concatenate([worst, rest[spread(len(rest), left)]])


def spread(count: int, chosen: int) -> NDArray[np.int64]:
    """`chosen` of `count` places at even distances, ascending; `chosen` is at most `count`."""
    return np.arange(chosen, dtype=np.int64) * count // max(chosen, 1)


class Reservoir(Generic[Item]):
    """A uniform sample of a stream whose length nobody knows, each item seen once.

    Algorithm R: J. S. Vitter, "Random Sampling with a Reservoir", ACM Transactions on Mathematical Software 11, 1985.
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        """Keeps `size` items; the same stream and seed always leave the same."""
        self.size = size
        self.seen = 0
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._kept: list[tuple[int, Item]] = []

    def place(self) -> int | None:
        """Counts one more item and says where it goes in the reservoir; None where it is not kept.

        Apart from `put`, so that an item that is not kept need not be made.
        """
        self.seen += 1
        if self.seen <= self.size:
            return self.seen - 1
        slot = int(self._random.random() * self.seen)
        return slot if slot < self.size else None

    def put(self, slot: int, item: Item) -> None:
        """Keeps the item that `place` was just called for."""
        entry = (self.seen, item)
        if slot == len(self._kept):
            self._kept.append(entry)
        else:
            self._kept[slot] = entry

    @property
    def items(self) -> list[Item]:
        """Those kept, in the order of the stream."""
        return [item for _, item in sorted(self._kept, key=lambda entry: entry[0])]
