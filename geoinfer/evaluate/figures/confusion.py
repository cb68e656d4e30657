"""Which countries are taken for which: the most frequent ones, true against predicted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.evaluate.areas import country_code, open_places
from geoinfer.evaluate.figures.style import photos, plain, plot, run_title
from geoinfer.places import country_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.evaluate.measure import Evaluation
    from geoinfer.places import Places

MOST_COUNTRIES: Final = 15
OTHER: Final = "all others"

_LONGEST: Final = 24
_DARK: Final = 0.55
_RIGHT: Final = "#d55e00"


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Photos by true and by predicted country.

    Attributes:
        names: m of countries, those of the most photos first; the last is `OTHER` where there are more.
        counts: (m, m) int64, true in rows, predicted in columns.
    """

    names: list[str]
    counts: NDArray[np.int64]


def confusion_figure(evaluation: Evaluation, places: Places | None = None) -> Any:
    """Draws the confusion of countries, as percentages of each true country's photos.

    Args:
        evaluation: of some photos.
        places: None to open them.

    Returns:
        Matplotlib's figure; None where the extra `places` is not installed, or the answered photos are of fewer than
        two countries, true and predicted.

    Raises:
        MissingPackageError: matplotlib is not installed.
        InputError: the list of cities is broken.
    """
    places = places or open_places()
    answered = np.flatnonzero(np.isfinite(evaluation.distances_km))
    if places is None or not len(answered):
        return None
    outcomes = evaluation.outcomes
    predicted = [place.country_code for place in places.names(outcomes.predicted[answered])]
    true = [country_code(outcomes.countries[row]) for row in answered]
    unknown = [i for i, code in enumerate(true) if not code]
    for i, place in zip(unknown, places.names(outcomes.truth[answered[unknown]]), strict=True):
        true[i] = place.country_code
    table = confuse(true, predicted)
    if len(table.names) < 2:
        return None
    return _draw(table, f"Countries taken for one another, {photos(len(answered))}: {run_title(evaluation.run)}")


def confuse(true: Sequence[str], predicted: Sequence[str]) -> Confusion:
    """Counts photos.

    Args:
        true: n codes of countries; those of the most photos have rows of their own.
        predicted: n codes. Countries that no photo was taken in are among the others.
    """
    counted = sorted(Counter(true).items(), key=lambda pair: (-pair[1], pair[0]))
    codes = [code for code, _ in counted[:MOST_COUNTRIES]]
    number = {code: i for i, code in enumerate(codes)}
    others = len(codes)
    counts = np.zeros((others + 1, others + 1), np.int64)
    np.add.at(
        counts, ([number.get(code, others) for code in true], [number.get(code, others) for code in predicted]), 1
    )
    names = [country_name(code) for code in codes]
    if counts[others].any() or counts[:, others].any():
        return Confusion([*names, OTHER], counts)
    return Confusion(names, counts[:others, :others])


def _draw(table: Confusion, title: str) -> Any:
    size = len(table.names)
    side = 2.6 + 0.46 * size
    figure, axes = plot((max(7.5, side + 1.4), max(4.2, side)))
    totals = table.counts.sum(axis=1)
    shares = table.counts / np.maximum(totals, 1)[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal", gid="shares")
    for (row, column), share in np.ndenumerate(shares):
        if table.counts[row, column]:
            axes.text(
                column, row, _percent(float(share)), ha="center", va="center", fontsize=8,
                color="white" if share > _DARK else "#333333", gid="share",
            )  # fmt: skip
    _frame_what_is_right(axes, table.names)
    names = [plain(name, _LONGEST) for name in table.names]
    axes.set_xticks(range(size), names, rotation=50, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(size), [f"{name} ({total:,})" for name, total in zip(names, totals, strict=True)], fontsize=9)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted country", ylabel="true country (photos)")
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    note = "Cells are percentages of a row; framed are those of the right country."
    if OTHER in table.names:
        note += f" “{OTHER}” are many countries: their own cell does not say how many are right."
    figure.supxlabel(note, fontsize=8.5, color="#777777", x=0.02, ha="left")
    return figure


def _frame_what_is_right(axes: Any, names: list[str]) -> None:
    """Marks the diagonal, but for `OTHER`, whose own cell holds countries that are taken for one another too."""
    from matplotlib.patches import Rectangle

    for i in (i for i, name in enumerate(names) if name != OTHER):
        axes.add_patch(
            Rectangle((i - 0.5, i - 0.5), 1.0, 1.0, fill=False, edgecolor=_RIGHT, linewidth=1.3, zorder=3, gid="right")
        )


def _percent(share: float) -> str:
    return "<1" if share < 0.01 else f"{100 * share:.0f}"
