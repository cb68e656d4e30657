"""Which photos a stage takes, and the batches it makes of them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("tomli_w")

from tests.trainer.tiny_runs import stage, tiny_recipe
from trainer.batches import make_batches, taken_in_turn
from trainer.data.examples import Examples, make_examples
from trainer.data.sampling import CellBatches, RandomBatches

pytestmark = pytest.mark.slow


def photos(count: int, cells: int) -> Examples:
    places = np.stack([np.linspace(-60, 60, cells), np.linspace(-170, 170, cells)], axis=1)
    return make_examples(
        [f"p{i}" for i in range(count)], [b"x.jpg"] * count, places[np.arange(count) % cells], splits=[0] * count
    )


def test_stages_share_out_all_photos_before_any_comes_twice() -> None:
    examples = photos(100, 10)
    taken = [set(taken_in_turn(examples, count, 3, before).ids) for count, before in ((30, 0), (50, 30), (20, 80))]
    assert [len(ids) for ids in taken] == [30, 50, 20]
    assert set.union(*taken) == set(examples.ids)
    # The next one begins again with those that were the first.
    assert set(taken_in_turn(examples, 30, 3, 100).ids) == taken[0]
    assert set(taken_in_turn(examples, 40, 3, 80).ids) > taken[2]
    assert set(taken_in_turn(examples, 30, 4, 0).ids) != taken[0]


def test_all_are_taken_for_zero_or_more_than_there_are() -> None:
    examples = photos(10, 2)
    assert taken_in_turn(examples, 0, 0, 5) is examples
    assert taken_in_turn(examples, 11, 0, 5) is examples


def test_batches_for_validation_may_be_smaller() -> None:
    cells = {"kind": "cells", "level": 5, "images_per_cell": 2}
    table = tiny_recipe(stages=[stage(batch_size=16, sampler=cells)]).stages[0]
    # Ten photos in five cells, of which four hold two each and two hold one.
    examples = photos(10, 6)
    batches = make_batches(examples, table, 0, smaller=True)
    assert isinstance(batches, CellBatches)
    assert [len(rows) for rows in batches.epoch(0)] == [8]
    assert isinstance(make_batches(examples, tiny_recipe().stages[0], 0), RandomBatches)
