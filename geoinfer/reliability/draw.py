"""The pictures of a reliability report: radii against what they promise, and errors against the share that is kept."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import MissingPackageError
from geoinfer.maps.base import save_map
from geoinfer.reliability.table import ALL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.reliability.risk import RiskCoverage
    from geoinfer.reliability.table import Reliability, Row

_FOUND, _IDEAL, _NONE = "#2f6f9f", "#3b3b3b", "#9a9a9a"
_LEVELS: Final = ("#8fb8d8", "#5b93c0", "#2f6f9f", "#17405f")
_LINES: Final = "#c6c3b8"
_DPI: Final = 130
_MAX_GEOSCORE: Final = 5000


def draw_reliability(result: Reliability, paths: Iterable[Path]) -> None:
    """Draws the share that lies within its radius against the share promised, and beside it that of each region.

    Args:
        result: of at least one level.
        paths: one or more pictures, .png or .svg.

    Raises:
        MissingPackageError: matplotlib is not installed.
        UsageError: a name ends in neither .png nor .svg.
        OutputError: a picture cannot be written.
    """
    everywhere = [row for row in result.rows if row.region == ALL]
    regions: dict[str, list[Row]] = {}
    for row in result.rows:
        if row.region != ALL:
            regions.setdefault(row.region, []).append(row)
    figure = _figure((10.5 if regions else 5.2, 4.9))
    panels = figure.subplots(1, 2 if regions else 1, squeeze=False)[0]
    _draw_levels(panels[0], everywhere)
    if regions:
        _draw_regions(panels[1], everywhere, list(regions.values()))
    for path in paths:
        save_map(figure, path)


def draw_risk_coverage(result: RiskCoverage, paths: Iterable[Path]) -> None:
    """Draws mean GeoScore and median error of the best-scored share of predictions against the share.

    Arguments and errors as for `draw_reliability`.
    """
    figure = _figure((10.5, 4.6))
    from matplotlib.ticker import LogLocator, NullFormatter

    left, right = figure.subplots(1, 2)
    lines = (
        (f"true error, the best order there is (area {result.ideal.area:.3f})", result.ideal, _IDEAL, "--"),
        (f"score (area {result.scored.area:.3f})", result.scored, _FOUND, "-"),
        (f"no order (area {result.random.area:.3f})", result.random, _NONE, ":"),
    )
    for label, curve, colour, style in lines:
        left.plot(result.shares, curve.geoscore * _MAX_GEOSCORE, style, color=colour, label=label, linewidth=1.8)
        right.plot(result.shares, np.maximum(curve.median_km, 0.1), style, color=colour, label=label, linewidth=1.8)
    least = _MAX_GEOSCORE * float(min(curve.geoscore.min() for _, curve, _, _ in lines))
    # Below the lines there is room for the legend.
    bottom = max(0.0, least - 0.8 * (_MAX_GEOSCORE - least))
    left.set(ylabel="mean GeoScore of those kept", ylim=(bottom, _MAX_GEOSCORE + 0.02 * (_MAX_GEOSCORE - bottom)))
    right.set(ylabel="median error of those kept (km)", yscale="log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    left.legend(frameon=False, fontsize=9, title="kept in order of", title_fontsize=9, alignment="left")
    for axes in (left, right):
        axes.set(xlabel="share of photos kept", xlim=(0, 1))
        axes.xaxis.set_major_formatter(_percent)
        _tidy(axes)
    figure.suptitle(
        f"Does the score order predictions? It goes {result.gain:.0%} of the way from no order to the best",
        fontsize=11,
    )
    for path in paths:
        save_map(figure, path)


def _draw_levels(axes: Any, rows: Sequence[Row]) -> None:
    levels, found = np.array([row.level for row in rows]), np.array([row.coverage for row in rows])
    start = max(0.0, min(float(levels.min()), min(row.low for row in rows)) - 0.07)
    axes.plot([start, 1], [start, 1], color=_NONE, linewidth=1, linestyle="--", label="as promised")
    axes.errorbar(
        levels,
        found,
        yerr=_ends(rows),
        fmt="o",
        color=_FOUND,
        capsize=3,
        markersize=6,
        label="found, with 95% interval",
    )
    for row in rows:
        axes.annotate(
            f"{row.coverage:.1%}", (row.level, row.coverage), xytext=(8, -11), textcoords="offset points", fontsize=9
        )
    axes.set(
        xlim=(start, 1.04), ylim=(start, 1.02), xlabel="promised", ylabel="share of photos within the radius",
        title=f"All {rows[0].photos:,} photos", aspect="equal",
    )  # fmt: skip
    axes.set_xticks(levels)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    _tidy(axes)


def _draw_regions(axes: Any, everywhere: Sequence[Row], regions: Sequence[Sequence[Row]]) -> None:
    heights = np.arange(len(regions))[::-1]
    count = len(everywhere)
    for number in range(count):
        colour = _LEVELS[number % len(_LEVELS)]
        level = everywhere[number].level
        axes.axvline(level, color=colour, linewidth=1, linestyle="--", zorder=1)
        rows = [region[number] for region in regions]
        beside = (count - 1) / 2 * 0.17 - number * 0.17
        axes.errorbar(
            [row.coverage for row in rows], heights + beside, xerr=_ends(rows), fmt="o", color=colour, capsize=2,
            markersize=4.5, label=f"{level:.0%} promised", zorder=2,
        )  # fmt: skip
    axes.set_yticks(heights, [f"{region[0].region}\n{region[0].photos:,}" for region in regions])
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(regions) - 0.4), xlabel="share of photos within the radius",
             title="By continent, with the number of photos")  # fmt: skip
    axes.xaxis.set_major_formatter(_percent)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.12), fontsize=8, ncols=count)
    _tidy(axes)
    axes.tick_params(axis="y", length=0)


def _ends(rows: Sequence[Row]) -> NDArray[np.float64]:
    """(2, n) how far the interval's ends lie below and above what was found."""
    below = [max(0.0, row.coverage - row.low) for row in rows]
    above = [max(0.0, row.high - row.coverage) for row in rows]
    return np.array([below, above])


def _percent(value: float, _position: int) -> str:
    return f"{value:.0%}"


def _tidy(axes: Any) -> None:
    axes.grid(color=_LINES, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def check_drawing() -> None:
    """Raises MissingPackageError unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError(
            "drawing needs matplotlib, which is not installed", hint="pip install 'geoinfer-toolkit[report]'"
        )


def _figure(size: tuple[float, float]) -> Any:
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
