"""Names seen before, against a plain dictionary."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.batch.seen_ids import SeenIds, id_hashes


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=25))
def test_it_is_a_dictionary(blocks):
    seen, plain, position = SeenIds(), {}, 0
    for block in blocks:
        expected = []
        for offset, value in enumerate(block):
            expected.append(plain.get(value, -1))
            plain.setdefault(value, position + offset)
        assert seen.add(np.array(block, np.uint64), position).tolist() == expected
        position += len(block)


def test_hashes_are_of_the_names():
    names = ["", "a", "Ærø/1.jpg", "NA", "na"]
    digests = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") for name in names]
    assert id_hashes(names).tolist() == digests
    assert len(id_hashes([])) == 0


def test_a_lot_of_names_cost_16_bytes_each():
    seen, rng = SeenIds(), np.random.default_rng(0)
    for block in range(60):
        assert (seen.add(rng.integers(0, 2**63, 8192).astype(np.uint64), block * 8192) < 0).all()
    runs = [len(hashes) for hashes, _ in seen._runs]
    assert sum(runs) == 60 * 8192
    assert len(runs) <= 8
    assert all(earlier >= 2 * later for earlier, later in itertools.pairwise(runs))
    assert {(hashes.dtype, positions.dtype) for hashes, positions in seen._runs} == {
        (np.dtype(np.uint64), np.dtype(np.int64))
    }
