"""What became of a folder of photos with a bad file in its middle."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# A photo whose copying was cut off, and what a server sends in place of one that is no longer there.
WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
BAD_FILES = ("cut off", "a web page")


def spoil(paths: list[Path], kind: str) -> Path:
    """Makes the photo in the middle a bad file, and returns which it is."""
    path = paths[len(paths) // 2]
    path.write_bytes(WEB_PAGE if kind == "a web page" else path.read_bytes()[: path.stat().st_size // 2])
    return path


@dataclass(frozen=True)
class Outcome:
    """What became of a folder of photos with a bad file in its middle.

    Attributes:
        inputs: files in the folder.
        rows: that the output holds.
        bad_file: `error row`, `no row`, `answered` or `answered as the next photo`.
        exit_code: of the program.
        last_words: of the program, on standard error.
    """

    inputs: int
    rows: int
    bad_file: str
    exit_code: int
    last_words: str

    @property
    def words(self) -> str:
        """For a table."""
        said = f"{self.rows} of {self.inputs} rows"
        if self.rows < self.inputs - 1:
            return f"stops, {said}"
        return {
            "error row": f"{said}, one an error row",
            "no row": f"{said}, nothing said of the bad one",
            "answered": f"{said}, the bad file is answered",
            "answered as the next photo": f"{said}, the bad file's is the next photo's answer",
        }[self.bad_file]


def read_rows(output: Path) -> list[dict[str, str]]:
    """Rows of a CSV; none where it was not written."""
    if not output.exists():
        return []
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def outcome(paths: list[Path], bad: Path, output: Path, exit_code: int, last_words: str) -> Outcome:
    """Reads a program's output and says what it made of the bad file."""
    rows = read_rows(output)
    answers = {row["path"].rpartition("/")[2]: row for row in rows}
    row = answers.get(bad.name)
    after = answers.get(paths[(paths.index(bad) + 1) % len(paths)].name)
    if row is None:
        became = "no row"
    elif not row["latitude"]:
        became = "error row"
    elif after is not None and {**row, "path": ""} == {**after, "path": ""}:
        became = "answered as the next photo"
    else:
        became = "answered"
    return Outcome(len(paths), len(rows), became, exit_code, last_words.strip())
