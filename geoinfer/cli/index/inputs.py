"""What `index build` and `index add` share: where references come from, the embedder, and what is said at the end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoinfer.errors import EXIT_FAILED_INPUTS, EXIT_OK, UsageError
from geoinfer.index_kinds import AUTO, KINDS

_LITTLE_RECALL = 0.95
"""An index that finds fewer of the ten nearest gets a hint."""

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geoinfer.backends import Embedder
    from geoinfer.backends.cpu_settings import Planner
    from geoinfer.batch.build import BuildOptions, BuildSummary
    from geoinfer.batch.predict import ErrorLimit
    from geoinfer.images import Preprocessing

Labels = Annotated[
    Path,
    typer.Argument(
        metavar="LABELS",
        help="A CSV with path (or id), latitude and longitude; a folder of photos with GPS in their EXIF; a Parquet "
        "file with a column embedding besides; or a folder that `python -m trainer embed` wrote.",
        show_default=False,
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Folder that the CSV's paths are relative to.", show_default="the CSV's own"),
]
Embeddings = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        help="A .npy file whose row i is the embedding of the CSV's row i, made by --engine; no photos are read.",
        metavar="NPY",
        show_default=False,
    ),
]
Normalize = Annotated[bool, typer.Option("--normalize", help="Divide ready embeddings by their lengths.")]
KIND_WORDS = "|".join((AUTO, *KINDS))
Source = Annotated[str, typer.Option("--source", help="Where the photos come from, for rows that do not say.")]
Attribution = Annotated[str, typer.Option("--attribution", help="Licence and author, for rows that do not say.")]


@contextlib.contextmanager
def opened_embedder(
    engine: Path | None, device: str, pixels: Preprocessing | None, *, ready: bool, plan: Planner | None = None
) -> Iterator[Embedder]:
    """The embedder that references are made with.

    Args:
        engine: bundle, model or engine; the shipped demonstration if left out.
        device: as for `open_embedder`.
        pixels: likewise.
        ready: the embeddings are there, and somebody must say whose they are.
        plan: is asked how a model runs on a CPU.

    Raises:
        UsageError: they are there and nobody says.
        GeoInferError: the model cannot be opened.
    """
    from geoinfer.backends.beside import open_beside, open_planned
    from geoinfer.bundle import SHIPPED, check_loaded, is_bundle, open_bundle
    from geoinfer.index import read_index_manifest

    if ready and engine is None:
        raise UsageError(
            "--engine is needed with ready embeddings",
            hint="it names the model that made them: photos are later embedded by it too",
        )
    path = engine or SHIPPED
    if engine is not None and not is_bundle(path):
        embedder, _ = open_planned(path, device, preprocessing=pixels, threads=1, plan=plan)
        with embedder:
            yield embedder
        return
    bundle = open_bundle(path)
    made_by = read_index_manifest(bundle.index_path).embedder
    embedder, opened = open_beside(bundle.model_path, made_by, device, preprocessing=pixels, threads=1, plan=plan)
    with embedder:
        check_loaded(bundle, opened, embedder.fingerprint)
        yield embedder


def summary_lines(run: BuildOptions, summary: BuildSummary, engine: Path | None) -> list[str]:
    """What is said of the index at the end, after the first line."""
    from geoinfer.cli.console import error_line, kilometres

    lines = [f"  index:  {run.output} ({summary.kind}, {summary.size} references)"]
    if summary.recall is not None:
        lines.append(f"  recall: {recall_words(summary.recall)}")
        found = summary.recall.get("recall_at")
        if isinstance(found, dict) and float(found.get("10", 1)) < _LITTLE_RECALL:
            lines.append(f"  It misses neighbours: geoinfer index tune {run.output}, or --kind flat")
    lines.append(f"  errors: {error_line(run.errors, summary.failures)}")
    if summary.median_error_km is not None:
        lines.append(
            f"  Located by one another, half of the references come out within {kilometres(summary.median_error_km)}."
        )
    if not summary.calibrated:
        lines.append(
            "  Too few references, or of too few occasions, to know how far off an answer is: radius_km will be the "
            "whole Earth."
        )
    model = f" --engine {engine}" if engine is not None else ""
    lines.append(f"  Use it: geoinfer predict PHOTOS{model} --index {run.output}")
    return lines


def what_was_read(summary: BuildSummary, *, ready: bool) -> str:
    """`3 of 4 photos (a CSV)`."""
    named = {"EXIF": "photos with GPS in their EXIF", "CSV": "a CSV"}.get(summary.layout, summary.layout)
    if not ready and named == summary.layout:
        named = f"a CSV in {summary.layout}'s layout"
    return f"{summary.indexed} of {summary.inputs} {'embeddings' if ready else 'photos'} ({named})"


def recall_words(recall: dict[str, object]) -> str:
    """What is known of an approximate index against exact search: `@1 0.991, @10 0.987, 5,210 queries/s`."""
    at = recall.get("recall_at")
    parts = [f"@{k} {value:.3f}" for k, value in at.items()] if isinstance(at, dict) else []
    speed = recall.get("queries_per_s")
    if isinstance(speed, (int, float)):
        parts.append(f"{speed:,.0f} queries/s")
    return ", ".join(parts) + " (against exact search)"


def end(limit: ErrorLimit, max_errors: str, errors: int, inputs: int) -> None:
    """Ends the command with the exit code that so many failures deserve."""
    from geoinfer.cli.console import failed_line, say

    if limit.exceeded(errors, inputs):
        say(failed_line(errors, max_errors))
        raise typer.Exit(EXIT_FAILED_INPUTS)
    raise typer.Exit(EXIT_OK)
