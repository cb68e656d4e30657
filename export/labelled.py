"""Embeddings of labelled photos: what an index of other things than photos is calibrated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.batch.labelled import LabelledSource, Labels, embed_sources
from geoinfer.errors import InputError
from geoinfer.labels import count_rows, open_labels, read_labels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.labels import Label

_BATCH: Final = 4


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled photos, embedded; row i of all belongs to one photo.

    Attributes:
        embeddings: (m, dim) float32, unit rows.
        places: (m, 2) float64 degrees.
        failures: how many rows of the labels could not be used, by error code.
    """

    embeddings: NDArray[np.float32]
    places: NDArray[np.float64]
    failures: dict[str, int]


def chosen_labels(labels: Path, images: Path | None, most: int) -> list[Label]:
    """At most so many rows of a labels CSV, drawn with a fixed seed, in their order.

    Args:
        labels: a CSV that `geoinfer index build` takes.
        images: folder that its names are relative to; its own if left out.
        most: how many at most.

    Raises:
        InputError: the CSV or the folder is missing, or there are no rows.
        LabelsError: a column is missing, or it is no CSV.
    """
    opened = open_labels(labels, images)
    count = count_rows(opened)
    if count == 0:
        raise InputError(f"{labels}: has no rows, and a calibration needs photos")
    # Drawn before they are read: a table of millions need not fit into memory.
    drawn = set(np.random.default_rng(0).choice(count, min(count, most), replace=False).tolist())
    return [label for row, label in enumerate(read_labels(opened)) if row in drawn]


def embed_labelled(embedder: Embedder, labels: list[Label], path: Path) -> Labelled:
    """Embeds photos whose place is known; one that cannot be used costs nothing but itself.

    Args:
        embedder: of the index.
        labels: from `chosen_labels`.
        path: the CSV that they are of, for messages.

    Raises:
        InputError: none of them can be used; the hint quotes the first failure.
        ModelError: the model fails.
    """
    # One worker: the model, opened for it, has all cores to itself.
    sources = (LabelledSource(label.path, label.problem, label) for label in labels)
    found = embed_sources(embedder, Labels(path, None), sources, batch_size=_BATCH, workers=1)
    return Labelled(found.embeddings, found.references.coordinates, found.failures)
