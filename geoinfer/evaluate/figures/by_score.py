"""Error against score: whether a photo that scores high is located well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.evaluate.figures.style import GRID, RASTERISED_FROM, kilometres, photos, plot, run_title

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.evaluate.measure import Evaluation

_LEAST_KM: Final = 0.1
_MOST_KM: Final = 20_050.0
_HEXAGONS_FROM: Final = 2000
_PHOTOS_A_STEP: Final = 25
_MOST_STEPS: Final = 24
_FEWEST_STEPS: Final = 3
_POINT, _MEDIAN = "#4f7ea8", "#b0301c"


def error_by_score(evaluation: Evaluation) -> Any:
    """Draws each photo's error against its score, of many photos how densely they lie, and the median along the score.

    Returns:
        Matplotlib's figure; None unless photos have scores that differ.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    known = np.isfinite(evaluation.distances_km) & np.isfinite(evaluation.outcomes.scores)
    scores, distances = evaluation.outcomes.scores[known], evaluation.distances_km[known]
    if len(scores) < 2 or scores.min() == scores.max():
        return None
    figure, axes = plot((8.4, 5.4))
    axes.set_yscale("log")
    shown = np.maximum(distances, _LEAST_KM)
    if len(scores) < _HEXAGONS_FROM:
        axes.scatter(scores, shown, s=np.clip(6000 / len(scores), 7, 30), c=_POINT, alpha=0.6, linewidths=0,
                     rasterized=len(scores) > RASTERISED_FROM, gid="photos")  # fmt: skip
    else:
        _hexagons(figure, axes, scores, shown)
    x, y = running_median(scores, distances)
    if len(x) >= _FEWEST_STEPS:
        axes.plot(
            x, np.maximum(y, _LEAST_KM), color=_MEDIAN, linewidth=2, marker="o", markersize=4, label="running median",
            markeredgecolor="white", markeredgewidth=0.6, zorder=4, gid="median",
        )  # fmt: skip
        axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9, loc="lower left")
    axes.set(ylim=(max(_LEAST_KM / 1.3, float(shown.min()) / 2), _MOST_KM * 1.3), xlabel="score", ylabel="error (km)")
    axes.yaxis.set_major_formatter(kilometres)
    axes.grid(axis="y", color=GRID, linewidth=0.4)
    axes.set_title(f"Error against score, {photos(len(scores))}: {run_title(evaluation.run)}", fontsize=11, loc="left")
    return figure


def running_median(
    scores: NDArray[np.float64], distances_km: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median score and median error of equally many photos each, in order of their scores.

    Args:
        scores: (n,) finite.
        distances_km: (n,) finite.

    Returns:
        (m,) and (m,), m at most `_MOST_STEPS`; `_PHOTOS_A_STEP` photos or more in each.
    """
    count = min(_MOST_STEPS, len(scores) // _PHOTOS_A_STEP)
    parts = np.array_split(np.argsort(scores, kind="stable"), count) if count else []
    return (
        np.array([np.median(scores[part]) for part in parts]),
        np.array([np.median(distances_km[part]) for part in parts]),
    )


def _hexagons(figure: Any, axes: Any, scores: NDArray[np.float64], distances_km: NDArray[np.float64]) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    # Without its palest end, which would be lost on white.
    colours = ListedColormap(colormaps["Blues"](np.linspace(0.2, 1.0, 256)))
    drawn = axes.hexbin(
        scores, distances_km, yscale="log", gridsize=(50, 28), bins="log", mincnt=1, cmap=colours, linewidths=0.1,
        gid="photos",
    )  # fmt: skip
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(kilometres)
    bar.set_label("photos", fontsize=9)
