"""`geoinfer index`: one module a command."""

from __future__ import annotations

import typer

from geoinfer.cli.index.add import add
from geoinfer.cli.index.build import build
from geoinfer.cli.index.info import info
from geoinfer.cli.index.merge import merge
from geoinfer.cli.index.reliability import reliability
from geoinfer.cli.index.tune import tune
from geoinfer.cli.index.tune_answer import tune_answer

app = typer.Typer(
    name="index",
    help="Build, tune and look at reference indexes: photos whose place is known.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Start with: geoinfer index build ./tagged --output my-index",
)

app.command("build", short_help="Make an index of photos whose place is known.")(build)
app.command("add", short_help="Add references to an index.")(add)
app.command("merge", short_help="Make one index of several.")(merge)
app.command("info", short_help="Say what is in an index, and draw it.")(info)
app.command("tune", short_help="Find the fastest search that misses nothing.")(tune)
app.command("tune-answer", short_help="Find the best way of answering, on validation photos.")(tune_answer)
app.command("reliability", short_help="Test the radius and the score on photos whose place is known.")(reliability)
