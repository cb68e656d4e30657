from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import s2sphere
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import UsageError
from geoinfer.geocells import leaf_cells
from trainer.data.splits import geocell_split, random_split, sequence_split

shares = st.tuples(st.floats(0, 0.6), st.floats(0, 0.39))


@given(n=st.integers(1, 300), shares=shares, seed=st.integers(0, 9))
def test_random_split_hits_the_shares(n: int, shares: tuple[float, float], seed: int) -> None:
    validation, test = shares
    splits = random_split([f"{i}" for i in range(n)], validation=validation, test=test, seed=seed)
    assert splits.dtype == np.int8
    counts = np.bincount(splits, minlength=3)
    assert counts[0] >= 1
    assert abs(counts[1] - validation * n) <= 1
    assert abs(counts[2] - test * n) <= 1


@settings(deadline=None)
@given(
    names=st.lists(st.one_of(st.none(), st.just(""), st.integers(0, 12).map(str)), min_size=1, max_size=120),
    shares=shares,
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_no_sequence_is_in_two_splits(
    names: list[str | None], shares: tuple[float, float], seed: int, data: st.DataObject
) -> None:
    ids = [f"{i}" for i in range(len(names))]
    validation, test = shares
    splits = sequence_split(ids, names, validation=validation, test=test, seed=seed)
    of_sequence = defaultdict(set)
    for i, (name, split) in enumerate(zip(names, splits.tolist(), strict=True)):
        of_sequence[name or f"photo {i}"].add(split)
    assert all(len(found) == 1 for found in of_sequence.values())
    counts = np.bincount(splits, minlength=3)
    assert counts[0] >= 1
    # No sequence left in training would bring validation nearer to its share, but for the one that training keeps.
    sizes = Counter(name or f"photo {i}" for i, name in enumerate(names))
    if sum(found == {0} for found in of_sequence.values()) > 1:
        wanted = validation * len(names)
        for name, found in of_sequence.items():
            if found == {0}:
                assert abs(counts[1] + sizes[name] - wanted) >= abs(counts[1] - wanted) - 1e-9
    # The order of the rows does not matter.
    order = data.draw(st.permutations(range(len(names))))
    shuffled = sequence_split(
        [ids[i] for i in order], [names[i] for i in order], validation=validation, test=test, seed=seed
    )
    assert shuffled.tolist() == splits[order].tolist()


@settings(deadline=None, max_examples=50)
@given(
    coordinates=st.lists(
        st.tuples(
            st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 0.0, 90.0])),
            st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, 0.0, 180.0])),
        ),
        min_size=1,
        max_size=60,
    ),
    level=st.integers(0, 30),
    shares=shares,
)
def test_no_geocell_is_in_two_splits(
    coordinates: list[tuple[float, float]], level: int, shares: tuple[float, float]
) -> None:
    splits = geocell_split(leaf_cells(coordinates), level, validation=shares[0], test=shares[1])
    of_cell = defaultdict(set)
    for (latitude, longitude), split in zip(coordinates, splits.tolist(), strict=True):
        point = s2sphere.LatLng.from_degrees(latitude, longitude)
        of_cell[s2sphere.CellId.from_lat_lng(point).parent(level).id()].add(split)
    assert all(len(found) == 1 for found in of_cell.values())
    assert 0 in splits


def test_many_cells_hit_the_shares_closely() -> None:
    generator = np.random.default_rng(0)
    centres = np.stack([generator.uniform(-60, 70, 300), generator.uniform(-180, 180, 300)], axis=1)
    points = np.repeat(centres, (generator.pareto(2.0, 300) * 5 + 1).astype(int), axis=0)
    splits = geocell_split(leaf_cells(points), 5, validation=0.2, test=0.1)
    counts = np.bincount(splits, minlength=3)
    assert counts[1] == pytest.approx(0.2 * len(points), abs=2)
    assert counts[2] == pytest.approx(0.1 * len(points), abs=2)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_always_leaves_something_to_train_on(n: int) -> None:
    ids = [f"{i}" for i in range(n)]
    for share in (0.1, 0.5, 0.9, 0.99):
        for splits in (
            random_split(ids, validation=share),
            random_split(ids, validation=share / 2, test=share / 2),
            sequence_split(ids, ["a"] * n, validation=share),
            geocell_split(np.full(n, 1 << 40 | 1, np.uint64), 6, validation=share),
        ):
            assert 0 in splits


def test_nothing_is_split_into_nothing() -> None:
    assert len(random_split([])) == len(sequence_split([], [])) == len(geocell_split(np.empty(0, np.uint64))) == 0


def test_seeds_and_rows_added() -> None:
    ids = [f"{i}" for i in range(2000)]
    first = random_split(ids, seed=0)
    assert np.array_equal(first, random_split(ids, seed=0))
    assert 0.6 < np.mean(first == random_split(ids, seed=1)) < 0.76  # 0.8^2 + 0.2^2 by chance
    # A photo more moves hardly any other.
    assert np.mean(random_split([*ids, "new"])[:-1] == first) > 0.99


@pytest.mark.parametrize(("validation", "test"), [(1.0, 0.0), (-0.1, 0.0), (0.5, 0.5), (float("nan"), 0.0), (0.2, 1.5)])
def test_shares_that_make_no_sense(validation: float, test: float) -> None:
    with pytest.raises(UsageError):
        random_split(["a"], validation=validation, test=test)


def test_level_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="31"):
        geocell_split(np.ones(3, np.uint64), 31)
