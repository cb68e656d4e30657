"""Tables as GitHub's Markdown, aligned so that they read well as plain text, too."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from geoinfer.evaluate.tables.table import one_line, shared_notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geoinfer.evaluate.tables.table import Table

_ESCAPED = frozenset("\\`*_[]<>|~&$")
_NARROWEST = 4


def markdown(table: Table, *, heading: str = "###") -> str:
    """One table under its title, with its own note below, ending in a line end."""
    cells = [[escape_markdown(text) for text in table.columns]]
    for texts, bold in zip(table.rows, table.bold, strict=True):
        escaped = [escape_markdown(text) for text in texts]
        cells.append([f"**{text}**" if strong else text for text, strong in zip(escaped, bold, strict=True)])
    widths = [max(_NARROWEST, *(_width(row[column]) for row in cells)) for column in range(len(table.columns))]
    rule = [":" + "-" * (width - 1) if number == 0 else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    lines = [f"{heading} {escape_markdown(table.title)}", "", _line(cells[0], widths), _line(rule, widths)]
    lines += [_line(row, widths) for row in cells[1:]]
    if table.note:
        lines += ["", escape_markdown(table.note)]
    return "\n".join(lines) + "\n"


def markdown_tables(tables: Sequence[Table]) -> str:
    """All of them, one below the other, and at the end what is to be said of several."""
    return "\n".join([*(markdown(table) for table in tables), *markdown_notes(tables)])


def markdown_notes(tables: Sequence[Table], *, heading: str = "###") -> list[str]:
    """The part of a document that says once what its tables share; empty where they share nothing."""
    notes = shared_notes(tables)
    return [f"{heading} Notes\n\n" + "".join(f"- {escape_markdown(note)}\n" for note in notes)] if notes else []


def escape_markdown(text: str) -> str:
    """Text that is shown as it is: on one line, with a backslash before what Markdown would take for a sign."""
    return "".join(f"\\{letter}" if letter in _ESCAPED else letter for letter in one_line(text))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for number, (text, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - _width(text))
        padded.append(text + space if number == 0 else space + text)
    return f"| {' | '.join(padded)} |"


def _width(text: str) -> int:
    """Columns of a terminal that the text takes: two for the wide letters of East Asia, none for combining marks."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
