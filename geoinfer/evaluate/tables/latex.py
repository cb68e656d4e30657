r"""Tables as LaTeX: booktabs, to be read into a paper by `\input`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from geoinfer.evaluate.tables.table import DAGGER, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geoinfer.evaluate.tables.table import Table

_HEADER: Final = r"""% Needs \usepackage{booktabs} and \usepackage{graphicx}.
% Names in other scripts than Latin need XeLaTeX or LuaLaTeX and a font that holds them.
"""

_ESCAPES: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "#": r"\#",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "`": r"\textasciigrave{}",
    # A row that began with one of these would be taken for an argument of the line break before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    DAGGER: r"\textsuperscript{\dag}",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "°": r"\textdegree{}",
}

_WIDE: Final = 5
"""Columns from which on a table is scaled down to the width of the text."""


def latex(table: Table) -> str:
    """One floating table with caption, label and note, ending in a line end."""
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\label{{tab:{table.label}}}",
    ]
    wide = len(table.columns) >= _WIDE
    if wide:
        lines.append(r"\resizebox{\linewidth}{!}{%")
    lines += [
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        _row([escape_latex(text) for text in table.columns]),
        r"\midrule",
    ]
    for texts, bold in zip(table.rows, table.bold, strict=True):
        cells = [_bold(text) if strong else escape_latex(text) for text, strong in zip(texts, bold, strict=True)]
        lines.append(_row(cells))
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")]
    if table.whole_note:
        lines += [r"\par\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {escape_latex(table.whole_note)}}}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def latex_tables(tables: Sequence[Table]) -> str:
    """All of them, behind a comment that says which packages they need."""
    return "\n".join([_HEADER, *(latex(table) for table in tables)])


def escape_latex(text: str) -> str:
    """Text that is printed as it is: every letter that LaTeX takes for a command is written as one."""
    letters = one_line(text)
    # Two hyphens would be set as a dash.
    return "".join(
        "{}-" if letter == "-" and before == "-" else _ESCAPES.get(letter, letter)
        for before, letter in zip(f" {letters}", letters, strict=False)
    )


def _bold(text: str) -> str:
    """A winner in bold; its dagger is not."""
    number = text.removesuffix(DAGGER).rstrip()
    return rf"\textbf{{{escape_latex(number)}}}" + (escape_latex(DAGGER) if text.endswith(DAGGER) else "")


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
