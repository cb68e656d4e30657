"""A table of text, as every writer and the report's page show it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

DAGGER = "†"
"""Behind a winner that is not shown to be better than the runner-up."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table; the first column is words, the others are numbers.

    Attributes:
        title: what stands above it.
        columns: m headings.
        rows: n lists of m cells, as they are printed, nothing escaped.
        bold: n lists of m, which cells are printed bold.
        note: what stands below it, plain text.
        label: what refers to it, of letters, digits and hyphens.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    bold: list[list[bool]]
    note: str = ""
    label: str = field(default="")

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.bold)
        assert all(len(cells) == len(self.columns) for cells in self.rows)
        assert all(len(cells) == len(self.columns) for cells in self.bold)


def one_line(text: str) -> str:
    """The text on one line: a line end, a tab or another control character becomes a space.

    Marks that turn the direction of writing are dropped: in a table they would change the order of its columns.
    """
    return "".join(
        " " if unicodedata.category(letter) in {"Cc", "Zl", "Zp"} else letter
        for letter in text
        if not (unicodedata.category(letter) == "Cf" and unicodedata.bidirectional(letter) != "BN")
    ).strip()
