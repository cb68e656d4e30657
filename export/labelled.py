"""Embeddings of labelled photos: what an index of other things than photos is calibrated on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.errors import ImageError, InputError
from geoinfer.images import load_pixels
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


def embed_labelled(embedder: Embedder, labels: list[Label]) -> Labelled:
    """Embeds photos whose place is known; one that cannot be used costs nothing but itself.

    Raises:
        InputError: none of them can be used; the message quotes the first failure.
        ModelError: an embedding is not finite.
    """
    failures: Counter[str] = Counter()
    first = ""
    pixels: list[NDArray[np.uint8]] = []
    places: list[tuple[float, float]] = []
    blocks: list[NDArray[np.float32]] = []
    for label in labels:
        try:
            if label.problem is not None:
                raise label.problem
            pixels.append(load_pixels(label.path, embedder.identity.preprocessing))
            places.append((label.latitude, label.longitude))
        except ImageError as error:
            failures[error.code] += 1
            first = first or f"{label.id}: {error}"
        if len(pixels) == _BATCH:
            blocks.append(embedder.embed(np.stack(pixels)))
            pixels = []
    if pixels:
        blocks.append(embedder.embed(np.stack(pixels)))
    if not blocks:
        raise InputError(f"none of the {len(labels)} labelled photos can be used; the first: {first}")
    return Labelled(np.concatenate(blocks), np.array(places), dict(failures.most_common()))
