"""What the pictures have in common: how names are written, and plots that are no maps."""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from geoinfer.reliability.draw import check_drawing

if TYPE_CHECKING:
    from geoinfer.evaluate.outcomes import Run

GRID: Final = "#c6c3b8"
TEXT: Final = "#3b3b3b"
RASTERISED_FROM: Final = 3000
"""More points than this are one picture within an SVG, whose size would otherwise grow with them."""
LONGEST_NAME: Final = 44

_DPI: Final = 130
_PAD_INCHES: Final = 0.14
_FONT: Final = "DejaVu Sans"
_UNKNOWN: Final = "□"


def plain(name: str, longest: int = LONGEST_NAME) -> str:
    """A name as it can be drawn: on one line, not too long, and no formula.

    Matplotlib's own font has Latin, Greek, Cyrillic, Arabic, Hebrew and more letters; those that it lacks are squares.
    """
    shown = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in name)
    shown = " ".join(shown.split())
    shown = "".join(c if _has(c) else _UNKNOWN for c in shown)
    if len(shown) > longest:
        shown = shown[: longest - 1].rstrip() + "…"
    # Matplotlib leaves labels that begin with an underscore out of legends.
    return (" " + shown if shown.startswith("_") else shown).replace("$", r"\$")


def run_title(run: Run) -> str:
    """The run's name and k, for the end of a title."""
    return plain(run.name) + ("" if run.k is None else f", k = {run.k}")


def plot(size_inches: tuple[float, float]) -> tuple[Any, Any]:
    """Matplotlib's figure and axes.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_inches, dpi=_DPI, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=_PAD_INCHES, h_pad=_PAD_INCHES)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def photos(count: int, total: int | None = None) -> str:
    """A number of photos, and of how many, in words."""
    of = "" if total is None or total == count else f" of {total:,}"
    return f"{count:,}{of} photo{'' if (total or count) == 1 else 's'}"


def kilometres(value: float, _position: int = 0) -> str:
    """A tick of a logarithmic scale of distances."""
    return f"{value:,.10g}"


@functools.cache
def _has(character: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    return character == " " or bool(get_font(findfont(_FONT)).get_char_index(ord(character)))
