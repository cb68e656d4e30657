"""The cumulative distribution of errors: the share of photos within each distance, one line a set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.evaluate.figures.style import GRID, photos, plain, plot, run_title
from geoinfer.evaluate.sets import GLOBAL
from geoinfer.metrics import RADII_KM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.evaluate.measure import Evaluation, SetMetrics

MOST_SETS: Final = 8
MOST_STEPS: Final = 2000
"""Of more photos a line has this many points."""

_LONGEST: Final = 24
_NEAREST_KM, _FARTHEST_KM = 0.5, 20_050.0
# Okabe and Ito's colours, which those who see few colours tell apart; the line styles do it without any.
_COLOURS: Final = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c00")
_STYLES: Final = ("-", "-", "-", "-.", "-.", "-.", ":", ":")
_BASELINE_MARKS: Final = ("s", "D", "^", "v")
_BASELINE: Final = "#7d7d7d"


def cumulative(evaluation: Evaluation) -> Any:
    """Draws the sets with the most answers, `Global` among them, and the baselines of `Global`, dashed.

    The shares are of the answered photos, as in the tables. Of baselines they are known at the tables' radii and at the
    median.

    Returns:
        Matplotlib's figure; None where no photo is answered.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    answered = {
        name: evaluation.distances_km[mask & np.isfinite(evaluation.distances_km)]
        for name, mask in evaluation.sets.items()
    }
    chosen = [name for name, distances in answered.items() if len(distances)]
    chosen.sort(key=lambda name: (name != GLOBAL, -len(answered[name])))
    if not chosen:
        return None
    figure, axes = plot((9.6, 5.6))
    handles, labels = [], []
    for number, name in enumerate(chosen[:MOST_SETS]):
        x, y = steps(answered[name])
        handles += axes.step(
            x, y, where="post", color=_COLOURS[number], linestyle=_STYLES[number],
            linewidth=2.2 if name == GLOBAL else 1.5, zorder=4 if name == GLOBAL else 3, gid="set",
        )  # fmt: skip
        count, total = len(answered[name]), int(evaluation.sets[name].sum())
        labels.append(f"{plain(name, _LONGEST)} ({photos(count, total)})")
    for number, (name, by_set) in enumerate(evaluation.baselines.items()):
        if GLOBAL in by_set:
            known, shares = _known_shares(by_set[GLOBAL])
            handles += axes.plot(
                known, shares, linestyle="--", color=_BASELINE, linewidth=1.2, markersize=5, markerfacecolor="white",
                zorder=2, marker=_BASELINE_MARKS[number % len(_BASELINE_MARKS)], gid="baseline", clip_on=False,
            )  # fmt: skip
            labels.append(f"{plain(name, _LONGEST)} (Global)")
    _dress(axes)
    left_out = len(chosen) - MOST_SETS
    axes.set_title(f"Cumulative error: {run_title(evaluation.run)}", fontsize=11, loc="left")
    axes.legend(
        handles, labels, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), alignment="left",
        title=None if left_out <= 0 else f"and {left_out} smaller sets, not drawn", title_fontsize=9,
    )  # fmt: skip
    return figure


def steps(distances_km: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The corners of a line that steps up at each error.

    Args:
        distances_km: (n,) finite km, n at least 1.

    Returns:
        x: km, from the left edge of the plot to the right; y: percentages within x. Of more than `MOST_STEPS` errors
        evenly spaced ones, the largest among them.
    """
    ordered = np.sort(distances_km)
    ranks = np.arange(1, len(ordered) + 1)
    if len(ordered) > MOST_STEPS:
        ranks = np.arange(1, MOST_STEPS + 1) * len(ordered) // MOST_STEPS
    x, y = ordered[ranks - 1], 100.0 * ranks / len(ordered)
    start = 100.0 * float(np.searchsorted(ordered, _NEAREST_KM, side="right")) / len(ordered)
    beyond = x > _NEAREST_KM
    return (
        np.concatenate([[_NEAREST_KM], x[beyond], [_FARTHEST_KM]]),
        np.concatenate([[start], y[beyond], [100.0]]),
    )


def _known_shares(metrics: SetMetrics) -> tuple[list[float], list[float]]:
    known = {radius: share.value for radius, share in metrics.accuracy.items()} | {metrics.median_km.value: 50.0}
    shown = sorted((x, y) for x, y in known.items() if np.isfinite(y) and x >= _NEAREST_KM)
    return [x for x, _ in shown], [y for _, y in shown]


def _dress(axes: Any) -> None:
    for radius in RADII_KM:
        axes.axvline(radius, color=GRID, linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(_NEAREST_KM, _FARTHEST_KM)
    axes.set_xticks([*RADII_KM, 20_000], [*(f"{radius:,}" for radius in RADII_KM), "20,000"])
    axes.minorticks_off()
    axes.set(ylim=(0, 100), xlabel="error (km)", ylabel="answered photos within (%)")
    axes.grid(axis="y", color=GRID, linewidth=0.4)
