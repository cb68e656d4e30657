"""Labelled photos: where they come from, how they are split, and in which order they are trained on. No torch here."""

from trainer.data.examples import LEVELS, SPLITS, Examples, make_examples, open_examples
from trainer.data.sampling import CellBatches, RandomBatches, positive_share

__all__ = [
    "LEVELS",
    "SPLITS",
    "CellBatches",
    "Examples",
    "RandomBatches",
    "make_examples",
    "open_examples",
    "positive_share",
]
