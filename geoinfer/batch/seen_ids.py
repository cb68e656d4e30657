"""Which names came before, for fifty million of them: 16 bytes a name instead of a set of strings."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def id_hashes(ids: Sequence[str]) -> NDArray[np.uint64]:
    """(m,) uint64: 64 bits of the BLAKE2b of each name.

    Among fifty million different names the chance that any two share a hash is below one in ten thousand; whoever
    cannot live with that compares the names themselves.
    """
    digests = b"".join(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, np.uint64)


class SeenIds:
    """Where each name was seen first.

    Kept as sorted runs whose lengths at least halve from one to the next, so that adding costs a few merges (the
    logarithmic method of J. Bentley and J. Saxe) and looking up a few binary searches.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def add(self, hashes: NDArray[np.uint64], start: int) -> NDArray[np.int64]:
        """Enters names, and says which were there.

        Args:
            hashes: (m,) uint64, see `id_hashes`.
            start: position of the first of them; the others follow it.

        Returns:
            (m,) int64: the position at which the name was first seen, in an earlier call or earlier in this one; -1
            where it is new.
        """
        distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        known = np.full(len(distinct), -1, np.int64)
        for run, positions in self._runs:
            place = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            found = run[place] == distinct
            known[found] = positions[place[found]]
        new = known < 0
        if new.any():
            self._enter(distinct[new], first[new] + start)
        seen = known[inverse]
        here = np.where(new, first, -1)[inverse]
        again = (here >= 0) & (here != np.arange(len(hashes)))
        seen[again] = here[again] + start
        return seen

    def _enter(self, hashes: NDArray[np.uint64], positions: NDArray[np.int64]) -> None:
        self._runs.append((hashes, positions))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            later, earlier = self._runs.pop(), self._runs.pop()
            joined = np.concatenate([earlier[0], later[0]])
            order = np.argsort(joined, kind="stable")
            self._runs.append((joined[order], np.concatenate([earlier[1], later[1]])[order]))
