"""The picture of a comparison: the share of photos within each distance, one line a run."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.evaluate.sets import GLOBAL
from geoinfer.maps.base import save_map
from geoinfer.metrics import RADII_KM
from geoinfer.reliability.draw import check_drawing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.evaluate.compare import Comparison

# Okabe and Ito's colours, which those who see few colours tell apart; the line styles do it without any.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES: Final = ("-", "--", "-.", ":")
_GRID: Final = "#c6c3b8"
_DPI: Final = 130
_NEAREST_KM, _FARTHEST_KM = 1.0, 20050.0
_LONGEST_NAME: Final = 60
_MOST_STEPS: Final = 4000


def draw_comparison(comparison: Comparison, paths: Iterable[Path]) -> None:
    """Draws the cumulative error of all runs: of all photos, those without an answer as never within any distance.

    Args:
        comparison: of runs on the same photos.
        paths: one or more pictures, .png or .svg.

    Raises:
        MissingPackageError: matplotlib is not installed.
        UsageError: a name ends in neither .png nor .svg.
        OutputError: a picture cannot be written.
    """
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, one in enumerate(comparison.evaluations):
        _draw_run(axes, one.run.name, one.distances_km, number)
    for radius in RADII_KM:
        axes.axvline(radius, color=_GRID, linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(_NEAREST_KM, _FARTHEST_KM)
    axes.set_xticks(RADII_KM, [f"{radius:,}" for radius in RADII_KM])
    axes.minorticks_off()
    axes.set(ylim=(0, 101), xlabel="error (km)", ylabel="photos within (%)")
    axes.grid(axis="y", color=_GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    count = comparison.evaluations[0].metrics[GLOBAL].labelled
    axes.set_title(f"Share of {count:,} photos within each distance of the truth", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the tables have it.
        warnings.filterwarnings("ignore", message="Glyph ")
        for path in paths:
            save_map(figure, path)


def _draw_run(axes: Any, name: str, distances_km: NDArray[np.float64], number: int) -> None:
    """A step up at each photo's error, of as many photos as there are, answered or not."""
    found = np.sort(distances_km[np.isfinite(distances_km)])
    # Of very many photos every so manieth is enough: a pixel is wider than that.
    steps = found if len(found) <= _MOST_STEPS else np.quantile(found, np.linspace(0, 1, _MOST_STEPS))
    x = np.concatenate([[_NEAREST_KM], steps[steps > _NEAREST_KM], [_FARTHEST_KM]])
    y = 100.0 * np.searchsorted(found, x, side="right") / len(distances_km)
    shown = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    axes.step(
        x,
        y,
        where="post",
        color=_COLOURS[number % len(_COLOURS)],
        linestyle=_STYLES[number % len(_STYLES)],
        linewidth=1.6,
        # A name is no formula, and matplotlib leaves out labels that begin with an underscore.
        label=(" " + shown if shown.startswith("_") else shown).replace("$", r"\$"),
    )
