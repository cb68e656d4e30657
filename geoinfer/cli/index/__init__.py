"""`geoinfer index`: one module a command."""

from __future__ import annotations

import typer

from geoinfer.cli.index.build import build
from geoinfer.cli.index.info import info

app = typer.Typer(
    name="index",
    help="Build and look at reference indexes: photos whose place is known.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Start with: geoinfer index build ./tagged --output my-index",
)

app.command("build", short_help="Make an index of photos whose place is known.")(build)
app.command("info", short_help="Say what is in an index.")(info)
