"""The tables of the founding paper and the fuller ones below them, as Markdown, LaTeX and CSV."""

from geoinfer.evaluate.tables.build import make_tables
from geoinfer.evaluate.tables.table import Table
from geoinfer.evaluate.tables.write import FILES, write_tables

__all__ = ["FILES", "Table", "make_tables", "write_tables"]
