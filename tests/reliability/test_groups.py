from __future__ import annotations

import numpy as np
import pytest
import s2sphere
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.errors import UsageError
from geoinfer.reliability import SPLITS, group_folds, group_photos

PLACES = np.array([(48.85, 2.35), (48.8501, 2.3501), (-33.86, 151.2), (0.0, 0.0), (-33.8605, 151.2003)])


def same(groups) -> list[list[int]]:
    """Which photos are together, in words that do not depend on numbers."""
    return sorted(np.flatnonzero(groups == one).tolist() for one in set(groups.tolist()))


def test_by_geocell():
    assert same(group_photos("geocell", PLACES, [], [])) == [[0, 1], [2, 4], [3]]
    many = np.random.default_rng(0).uniform([-90, -180], [90, 180], (500, 2))
    cells = [
        s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(*place)).parent(6).id() for place in many.tolist()
    ]
    groups = group_photos("geocell", many, [], [])
    assert len({*zip(cells, groups.tolist(), strict=True)}) == len({*cells}) == len({*groups.tolist()})


def test_by_sequence_and_those_without_one_by_their_geocell():
    assert same(group_photos("sequence", PLACES, ["a", "b", "a", "", "b"], [])) == [[0, 2], [1, 4], [3]]
    assert same(group_photos("sequence", PLACES, ["a", "", "", "", ""], [])) == [[0], [1], [2, 4], [3]]
    assert same(group_photos("sequence", PLACES, [], [])) == [[0, 1], [2, 4], [3]]


def test_a_sequence_called_like_a_cell_is_no_cell():
    cell = s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(0.0, 0.0)).parent(6).id()
    assert same(group_photos("sequence", PLACES, ["", "", "", "", str(cell)], [])) == [[0, 1], [2], [3], [4]]


def test_by_source():
    assert same(group_photos("source", PLACES, [], ["x", "y", "", "", "x"])) == [[0, 4], [1], [2, 3]]
    assert same(group_photos("source", PLACES, [], [])) == [[0, 1, 2, 3, 4]]


def test_another_word_names_those_known():
    with pytest.raises(UsageError, match="sequence, source, geocell"):
        group_photos("country", PLACES, [], [])
    assert SPLITS == ("sequence", "source", "geocell")


@given(
    st.lists(st.integers(-5, 12), min_size=2, max_size=120).filter(lambda groups: len({*groups}) > 1),
    st.integers(2, 8),
    st.integers(0, 3),
)
def test_no_group_is_ever_split(groups, folds, seed):
    fold_of = group_folds(np.array(groups), folds, seed)
    assert len(fold_of) == len(groups)
    for one in {*groups}:
        assert len({fold for fold, group in zip(fold_of.tolist(), groups, strict=True) if group == one}) == 1
    # Every fold has something to test on and something to learn from.
    assert {*fold_of.tolist()} == {*range(min(folds, len({*groups})))}
    sizes = np.bincount(fold_of)
    largest = max(groups.count(one) for one in {*groups})
    assert sizes.max() - sizes.min() <= largest
    assert (fold_of == group_folds(np.array(groups), folds, seed)).all()


def test_single_photos_are_dealt_evenly_and_in_no_order():
    fold_of = group_folds(np.arange(103), 5)
    assert sorted(np.bincount(fold_of).tolist()) == [20, 20, 21, 21, 21]
    assert (np.diff(fold_of) != 1).any()
    assert (group_folds(np.arange(103), 5, seed=1) != fold_of).any()


@pytest.mark.parametrize("groups", [[3], [3, 3, 3]])
def test_one_group_cannot_be_held_back(groups):
    with pytest.raises(UsageError, match=f"all {len(groups)} photos belong together"):
        group_folds(np.array(groups))
