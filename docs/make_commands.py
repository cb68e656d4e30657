"""Writes docs/commands.md: the help of every command, as the command prints it. A test holds the page to it.

python docs/make_commands.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    (),
    ("predict",),
    ("evaluate",),
    ("tune",),
    ("index", "build"),
    ("index", "add"),
    ("index", "merge"),
    ("index", "info"),
    ("index", "tune"),
    ("index", "tune-answer"),
    ("index", "reliability"),
    ("engine", "build"),
    ("engine", "info"),
    ("info",),
    ("doctor",),
)
PAGE = Path(__file__).parent / "commands.md"


def help_of(command: tuple[str, ...]) -> str:
    """What `geoinfer COMMAND --help` prints on a terminal of 100 columns."""
    result = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "geoinfer", *command, "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"},
    )
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


def page() -> str:
    """The whole page."""
    parts = ["# Commands", "", "Made by `python docs/make_commands.py` from the commands themselves.", ""]
    for command in COMMANDS:
        parts += [f"## {' '.join(('geoinfer', *command))}", "", "```text", help_of(command), "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
