"""The batches that a stage of a recipe asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geoinfer.errors import UsageError
from trainer.data.sampling import CellBatches, RandomBatches

if TYPE_CHECKING:
    from trainer.data.examples import Examples
    from trainer.recipe import StageTable


def drawn(examples: Examples, count: int, seed: int) -> Examples:
    """So many photos drawn at random, the same for the same seed; all of them for 0."""
    return examples.subset(count, seed) if count else examples


def make_batches(
    examples: Examples, stage: StageTable, seed: int, *, fall_back: bool = False
) -> RandomBatches | CellBatches:
    """The stage's sampler over some photos.

    Args:
        examples: the photos.
        stage: says how.
        seed: of the order.
        fall_back: draw at random where the photos do not allow batches of cells.

    Raises:
        UsageError: the photos do not allow batches of cells.
    """
    size = stage.batch_size
    if stage.sampler.kind == "cells":
        try:
            return CellBatches(
                examples.cells(stage.sampler.level),
                min(size, len(examples)) if fall_back else size,
                stage.sampler.images_per_cell,
                seed,
                sequences=examples.sequences,
            )
        except UsageError:
            if not fall_back:
                raise
    return RandomBatches(len(examples), size, seed)
