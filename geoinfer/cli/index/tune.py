"""`geoinfer index tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from geoinfer.cli import options
from geoinfer.errors import EXIT_FAILED_INPUTS, EXIT_OK, IndexFolderError, InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.index.tune import Setting, Tuned

_LENGTH_TOLERANCE: Final = 1e-2


def tune(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.", show_default=False)],
    target_recall: Annotated[
        float, typer.Option("--target-recall", help="Share of the ten nearest references to be found.")
    ] = 0.99,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            help="Embeddings of other photos, a .npy of shape (n, dim).",
            show_default="references, each left out of its own answers",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the index as it is.")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Where nothing reaches the target, store what finds most.")
    ] = False,
    workers: options.Workers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all that was tried.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the fastest search of an approximate index that still finds enough, and store it.

    \b
    Examples:
      geoinfer index tune my-index
      geoinfer index tune my-index --target-recall 0.95 --dry-run
      geoinfer index tune my-index --queries held-out.npy --json

    Each setting is compared with exact search on one half of the queries; the other half judges the chosen one. If none
    reaches the target, the index stays as it was and the exit code is 1.
    """
    from geoinfer.cli.console import Console, answer, say
    from geoinfer.cli.interrupts import interrupts_raise
    from geoinfer.index import open_index, read_index_manifest, update_index
    from geoinfer.index.approximate import ApproximateIndex
    from geoinfer.index.tune import table_of
    from geoinfer.index.tune import tune as tuned_index

    if not 0 < target_recall <= 1:  # NaN compares false
        raise UsageError(f"--target-recall {target_recall:g}: expected a number above 0, at most 1")
    if dry_run and best:
        raise UsageError("--dry-run stores nothing, and --best says what to store; give one of them")
    threads = options.checked_workers(workers)
    stored = open_index(folder)
    index, manifest = stored.index, stored.manifest
    if not isinstance(index, ApproximateIndex):
        _tell_exact(folder, manifest.kind, as_json=as_json, quiet=quiet)
        raise typer.Exit(EXIT_OK)
    given = None if queries is None else _read_queries(queries, index.dim)
    if given is None and index.size < 3:  # two halves, and somebody to be found
        raise UsageError(f"{folder}: {index.size} references are too few to tune by", hint="give --queries")
    with Console(quiet=quiet) as console, interrupts_raise():
        tuned = tuned_index(index, target_recall, queries=given, threads=threads, on_step=console.step)
    disk = sum(file["bytes"] for file in manifest.files.values())
    table = table_of(tuned, index.size, manifest.files["search.faiss"]["bytes"], disk)
    stores = (tuned.reached or best) and not dry_run
    if stores:
        if read_index_manifest(folder).fingerprint != manifest.fingerprint:
            raise IndexFolderError(f"{folder}: was changed meanwhile; nothing was stored", hint="run this again")
        update_index(folder, parameters=tuned.best.parameters, recall=tuned.report.as_dict(), tuning=table)
    outcome = _outcome(tuned, target_recall, stores=stores)
    if as_json:
        values = {
            "kind": manifest.kind,
            "exact": False,
            "target_recall": target_recall,
            "reached": tuned.reached,
            "stored": stores,
            "parameters": tuned.best.parameters,
            "recall": tuned.report.as_dict(),
            "tuning": table,
        }
        answer(json.dumps(values, indent=2))
    elif not quiet:
        for line in _lines(tuned, table, outcome, target_recall):
            answer(line)
    if not tuned.reached and not stores:
        say(f"geoinfer: {outcome}")
        raise typer.Exit(EXIT_FAILED_INPUTS)
    raise typer.Exit(EXIT_OK)


def _tell_exact(folder: Path, kind: str, *, as_json: bool, quiet: bool) -> None:
    from geoinfer.cli.console import answer

    if as_json:
        answer(json.dumps({"kind": kind, "exact": True}, indent=2))
    elif not quiet:
        answer(f"{folder}: an index of kind {kind} compares a query with every reference: nothing to tune.")


def _read_queries(path: Path, dim: int) -> NDArray[np.float32]:
    """Embeddings from a .npy file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    import numpy as np

    from geoinfer.batch.npy_file import open_npy

    file = open_npy(path)
    if file.dim != dim:
        raise InputError(f"{path}: embeddings of {file.dim} dimensions; the index has {dim}")
    if file.rows < 2:
        raise InputError(f"{path}: one query; one half chooses and the other judges, which takes two")
    values = np.concatenate([block.astype(np.float32) for block in file.blocks(8192)])
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))  # NaN compares false
    if len(wrong):
        raise InputError(f"{path}: row {wrong[0]} is not of unit length: {lengths[wrong[0]]:.4g}")
    return values


def _outcome(tuned: Tuned, target: float, *, stores: bool) -> str:
    stored = "stored" if stores else "the index is as it was"
    if tuned.reached:
        return f"{_words(tuned.best)} is the fastest that reaches recall@10 {target:g}; {stored}"
    most = tuned.best.recall_at[10]
    return f"nothing reaches recall@10 {target:g}: the most is {most:.4f}, by {_words(tuned.best)}; {stored}"


def _words(setting: Setting) -> str:
    return " ".join(f"{name} {value:g}" for name, value in setting.parameters.items())


def _lines(tuned: Tuned, table: list[dict[str, Any]], outcome: str, target: float) -> list[str]:
    """The settings that no other beats, the fastest first; the chosen one is marked."""
    report = tuned.report
    of = "references, each left out of its own answers" if report.left_out else "given queries"
    rows = [("", "parameters", "recall@1", "recall@10", "q/s, 1 at once", "q/s, 256 at once")]
    for setting in tuned.frontier:
        recall, speed = setting.recall_at, setting.queries_per_s
        rows.append(
            (
                "*" if setting is tuned.best else "",
                _words(setting),
                f"{recall[1]:.4f}",
                f"{recall[10]:.4f}",
                f"{speed[1]:,.0f}",
                f"{speed[256]:,.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    short = "; less than the target: aim higher to be on the safe side" if report.recall_at[10] < target else ""
    shares = ", ".join(f"recall@{k} {value:.4f}" for k, value in report.recall_at.items())
    return [
        *lines,
        f"{len(tuned.settings)} settings were tried; bytes a reference: {table[0]['memory_bytes_per_reference']:g} "
        f"searched, {table[0]['disk_bytes_per_reference']:g} on the disk",
        f"{outcome[0].upper()}{outcome[1:]}.",
        f"On {report.queries:,} other {of}: {shares}{short}.",
    ]
