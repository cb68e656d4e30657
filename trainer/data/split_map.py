"""The map of a split: where training, validation and test photos lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.lines import Line2D

from geoinfer.maps import base_map, map_window, save_map
from geoinfer.maps.base import caption
from trainer.data.examples import SPLITS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.data.examples import Examples

_COLOURS: Final = {"train": "#5b7c99", "validation": "#f28e1c", "test": "#d62728"}
_DRAWN: Final = 80_000
"""About so many points are drawn; more would only cover each other."""
_DRAWN_AT_LEAST: Final = 5_000


def draw_split_map(examples: Examples, path: Path, seed: int = 0) -> None:
    """Draws the photos of each split over the land into a PNG or, by its name, an SVG.

    The map shows the whole world, or the part of it that holds the photos, stretched so that shapes at its middle
    latitude look right. Of more than 80,000 photos about as many, drawn at random from each split in proportion, stand
    for all, which the caption says.

    Args:
        examples: n photos; none is an empty map.
        path: of the picture, .png or .svg.
        seed: of the photos drawn.

    Raises:
        UsageError: the name ends in neither .png nor .svg.
        OutputError: the picture cannot be written.
    """
    window = map_window(examples.coordinates)
    figure, axes = base_map(window)
    counts = np.bincount(examples.splits, minlength=len(SPLITS)).tolist()
    generator = np.random.default_rng(seed)
    drawn: list[NDArray[np.int64]] = []
    for code, count in enumerate(counts):
        rows = np.flatnonzero(examples.splits == code)
        most = max(_DRAWN_AT_LEAST, _DRAWN * count // max(_DRAWN, len(examples)))
        drawn.append(generator.choice(rows, most, replace=False) if count > most else rows)
    rows = generator.permutation(np.concatenate(drawn))
    # All splits in one shuffled layer: none hides the others where they mix. The rare ones are a little larger.
    side = float(np.clip(90.0 / np.sqrt(max(1, len(rows))), 1.3, 7.0))
    colours = np.array([_COLOURS[name] for name in SPLITS])
    sizes = np.array([1.0, 1.25, 1.25]) * side**2
    splits = examples.splits[rows]
    axes.scatter(
        window.turned(examples.coordinates[rows, 1]), examples.coordinates[rows, 0], s=sizes[splits], c=colours[splits],
        linewidths=0.3 if side > 3 else 0.0, edgecolors="white", zorder=3,
    )  # fmt: skip
    present = [(name, count) for name, count in zip(SPLITS, counts, strict=True) if count]
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=8, color=_COLOURS[name], label=f"{name}  {count:,}")
        for name, count in present
    ]
    if handles:
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.1, ncols=len(handles),
            frameon=False, fontsize=12, handletextpad=0.2, columnspacing=1.6,
        )  # fmt: skip
    caption(axes, _caption(len(examples), drawn))
    save_map(figure, path)


def _caption(total: int, drawn: list[NDArray[np.int64]]) -> str:
    text = f"{total:,} photo{'s' * (total != 1)}"
    if sum(map(len, drawn)) < total:
        shown = [f"{len(rows):,} {name}" for name, rows in zip(SPLITS, drawn, strict=True) if len(rows)]
        text += f"; the points are {', '.join(shown)}, chosen at random"
    return text
