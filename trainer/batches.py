"""The batches that a stage of a recipe asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trainer.data.examples import keyed_hashes
from trainer.data.sampling import CellBatches, RandomBatches

if TYPE_CHECKING:
    from trainer.data.examples import Examples
    from trainer.recipe import StageTable


def drawn(examples: Examples, count: int, seed: int) -> Examples:
    """So many photos drawn at random, the same for the same seed; all of them for 0."""
    return examples.subset(count, seed) if count else examples


def taken_in_turn(examples: Examples, count: int, seed: int, before: int) -> Examples:
    """`count` photos in one random order of all, after the `before` that earlier stages took; all of them for 0.

    At its end the order begins anew. So stages share photos out as the paper's share out folders.
    """
    if not count or count >= len(examples):
        return examples
    order = np.argsort(keyed_hashes(examples.ids, seed, purpose="stages"), kind="stable")
    return examples.take(np.sort(order[(before + np.arange(count)) % len(examples)]))


def make_batches(
    examples: Examples, stage: StageTable, seed: int, *, smaller: bool = False
) -> RandomBatches | CellBatches:
    """The stage's sampler over some photos.

    Args:
        examples: the photos.
        stage: says how.
        seed: of the order.
        smaller: of fewer photos than a batch has, make one batch.

    Raises:
        UsageError: the photos do not allow batches of cells.
    """
    size = stage.batch_size
    if stage.sampler.kind == "cells":
        cells = examples.cells(stage.sampler.level)
        if smaller:
            _, place, counts = np.unique(cells, return_inverse=True, return_counts=True)
            size = min(size, int((counts[place] > 1).sum()))
        return CellBatches(cells, size, stage.sampler.images_per_cell, seed, sequences=examples.sequences)
    return RandomBatches(len(examples), size, seed)
