"""A table of text, as every writer and the report's page show it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        note: what stands below it and is of this table alone, plain text.
        label: what refers to it, of letters, digits and hyphens.
        shared: sentences that belong below it and below others, which a document of several tables says once.
        set_name: of the photos that it is of; empty where it is of no one set.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    bold: list[list[bool]]
    note: str = ""
    label: str = field(default="")
    shared: tuple[str, ...] = ()
    set_name: str = ""

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.bold)
        assert all(len(cells) == len(self.columns) for cells in self.rows)
        assert all(len(cells) == len(self.columns) for cells in self.bold)

    @property
    def whole_note(self) -> str:
        """All that belongs below it where it stands by itself."""
        return " ".join(text for text in (self.note, *self.shared) if text)


def shared_notes(tables: Iterable[Table]) -> list[str]:
    """What several tables have to say, each sentence once, in the order of the tables."""
    return list(dict.fromkeys(text for table in tables for text in table.shared))


def one_line(text: str) -> str:
    """The text on one line: a line end, a tab or another control character becomes a space.

    Marks that turn the direction of writing are dropped: in a table they would change the order of its columns.
    """
    return "".join(
        " " if unicodedata.category(letter) in {"Cc", "Zl", "Zp"} else letter
        for letter in text
        if not (unicodedata.category(letter) == "Cf" and unicodedata.bidirectional(letter) != "BN")
    ).strip()
