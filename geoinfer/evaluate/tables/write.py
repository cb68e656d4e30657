"""Writes all tables of a report to its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from geoinfer.errors import OutputError
from geoinfer.evaluate.tables.build import make_tables
from geoinfer.evaluate.tables.latex import latex_tables
from geoinfer.evaluate.tables.long_csv import long_csv
from geoinfer.evaluate.tables.markdown import markdown_tables
from geoinfer.integrity import atomic_file

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from geoinfer.evaluate.measure import Evaluation
    from geoinfer.evaluate.tables.models import Margins
    from geoinfer.evaluate.tables.table import Table

FILES: Final = ("tables.md", "tables.tex", "tables.csv")


def write_tables(
    evaluations: Sequence[Evaluation],
    folder: Path,
    *,
    baselines: Collection[str] = (),
    margins: Margins | None = None,
    further: Sequence[Table] = (),
) -> list[Table]:
    """Writes `FILES` into a folder that is there, each replacing an earlier one.

    Args:
        evaluations: one a run, of one convention and the same photos, in the order of the rows; their names differ.
        folder: where to.
        baselines: names of runs that only stand there to be compared with, and are never bold.
        margins: of these evaluations, where some are computed already.
        further: tables to put below these, in Markdown and LaTeX.

    Returns:
        The tables, as `make_tables` makes them, and the further ones.

    Raises:
        OutputError: a file cannot be written.
    """
    tables = [*make_tables(evaluations, baselines=baselines, margins=margins), *further]
    texts = (markdown_tables(tables), latex_tables(tables), long_csv(evaluations))
    for name, text in zip(FILES, texts, strict=True):
        write_text(folder / name, text)
    return tables


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with atomic_file(path) as file:
            # Names may hold bytes that are no UTF-8, as lone surrogates.
            file.write(text.encode("utf-8", "backslashreplace"))
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {(error.strerror or str(error)).lower()}",
            hint="see to space on the disk and to who may write there, or choose another folder",
        ) from error
