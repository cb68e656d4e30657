"""The figure of the best k: error against the number of neighbours, one line a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from geoinfer.maps.base import save_map
from geoinfer.reliability.draw import check_drawing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from geoinfer.answer import Method
    from geoinfer.tuning.choose import Choice

# Told apart also by those who see fewer colours (M. Okabe, K. Ito, "Color Universal Design"), and by their marks.
_LOOKS: Final[dict[str, tuple[str, str]]] = {
    "top1": ("#3b3b3b", "D"),
    "mean": ("#e69f00", "s"),
    "median": ("#009e73", "^"),
    "density": ("#0072b2", "o"),
    "cells": ("#cc79a7", "v"),
    "geoscore": ("#d55e00", "P"),
}
_GRID: Final = "#c6c3b8"
_DPI: Final = 130
_STEEP: Final = 6.0


def draw_best_k(lines: Mapping[Method, Mapping[int, float]], choice: Choice, paths: Iterable[Path]) -> None:
    """Draws the lines on the photos that chose, and the winner on those that judged.

    Args:
        lines: of each method the objective at each k.
        choice: the winner is marked, and what others make of it.
        paths: one or more pictures, .png or .svg.

    Raises:
        MissingPackageError: matplotlib is not installed.
        UsageError: a name ends in neither .png nor .svg.
        OutputError: a picture cannot be written.
    """
    figure, axes = _figure()
    objective, winner = choice.objective, choice.winner
    ks = sorted({k for line in lines.values() for k in line})
    places = {k: float(i) for i, k in enumerate(ks)}
    for method, line in lines.items():
        colour, mark = _LOOKS[method]
        xs, ys = [places[k] for k in line], list(line.values())
        if method == "top1":
            # One neighbour however many there are: a level to compare the others with.
            axes.axhline(ys[0], color=colour, linewidth=1.2, linestyle=":", label=method, zorder=2)
        else:
            axes.plot(xs, ys, marker=mark, markersize=5, color=colour, linewidth=1.6, label=method, zorder=3)
    colour, _ = _LOOKS[winner.answer.aggregate]
    x = places[winner.answer.k]
    axes.plot(
        [x], [winner.value_chosen_on], marker="*", markersize=17, color=colour, markeredgecolor="black", zorder=5,
        linestyle="", label="the best",
    )  # fmt: skip
    judged = [("best", winner, colour)]
    if not choice.same:
        judged.append(("now", choice.current, "#7a7a7a"))
    # To the right of the lines, as they are of other photos.
    for number, (name, one, shade) in enumerate(judged):
        at = len(ks) - 1 + 0.8 + 0.65 * number
        ends = [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]]
        axes.errorbar(
            [at], [one.value], yerr=ends, fmt="*" if number == 0 else "o", color=shade, markersize=13 - 6 * number,
            markeredgecolor="black", markeredgewidth=0.6, capsize=4, linewidth=1.6, zorder=4,
        )  # fmt: skip
        axes.annotate(name, (at, one.high), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8)
    end = len(ks) - 1 + 0.8 + 0.65 * (len(judged) - 1) + 0.5
    axes.axvspan(len(ks) - 1 + 0.4, end, color="#f2f0ea", zorder=0)
    axes.set_xticks([*places.values(), len(ks) - 1 + 0.8 + 0.65 * (len(judged) - 1) / 2])
    axes.set_xticklabels([*map(str, ks), "the other\nphotos, 95%"])
    axes.set(xlim=(-0.4, end), ylabel=objective.label)
    axes.set_xlabel("k, the number of neighbours", loc="center")
    values = [v for line in lines.values() for v in line.values()] + [
        v for _, one, _ in judged for v in (one.low, one.high)
    ]
    if min(values) > 0 and max(values) / min(values) > _STEEP and not objective.larger_is_better:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:,.10g}")
    axes.set_title(f"Best: {_in_words(choice)}", fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes.grid(axis="y", color=_GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for path in paths:
        save_map(figure, path)


def _in_words(choice: Choice) -> str:
    way = choice.winner.answer.resolved
    words = [f"{way.aggregate} of {way.k} neighbour{'' if way.k == 1 else 's'}"]
    if way.temperature is not None:
        words.append(f"temperature {way.temperature:g}")
    if way.bandwidth_km is not None:
        words.append(f"bandwidth {way.bandwidth_km:g} km")
    return ", ".join(words)


def _figure() -> tuple[Any, Any]:
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()
