"""`geoinfer index tune-answer`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from geoinfer.cli import options
from geoinfer.errors import IndexFolderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.index import LeaveOneOut, References, StoredIndex
    from geoinfer.tuning.choose import Choice, Judged
    from geoinfer.tuning.tune import Tuned

_PLAIN_SECONDS: Final = 10.0
_SPLITS: Final = ("auto", "source", "sequence", "geocell")


def tune_answer(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.", show_default=False)],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Validation photos, never those of a test: a CSV, or a folder of photos with GPS in their EXIF.",
            show_default="the references, each located by the others",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder that the CSV's paths are relative to.", show_default="the CSV's own"),
    ] = None,
    engine: options.Engine = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the table and the figure.", show_default="<INDEX>.tuning"),
    ] = None,
    split_by: Annotated[
        str,
        typer.Option(
            "--split-by",
            help="What is never split between choosing and judging: source, sequence, geocell, or auto: sequences if "
            "they are known, else geocells.",
        ),
    ] = "auto",
    ks: Annotated[
        str, typer.Option("--k", help="Numbers of neighbours to try.", metavar="N,N...")
    ] = "1,2,3,5,10,20,50,100",
    methods: Annotated[
        str, typer.Option("--methods", help="Ways of making a place of them to try.", metavar="METHOD,METHOD...")
    ] = "top1,mean,median,density,cells,geoscore",
    temperatures: Annotated[
        str, typer.Option("--temperatures", help="Temperatures to try.", metavar="T,T...")
    ] = "0.01,0.02,0.05,0.1,0.2",
    bandwidths: Annotated[
        str, typer.Option("--bandwidths-km", help="Bandwidths of the density to try.", metavar="KM,KM...")
    ] = "50,100,200,400,800",
    objective: Annotated[
        str, typer.Option("--objective", help="What is best: median, mean, geoscore, or acc@25 for any radius in km.")
    ] = "median",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the index as it is.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Store the best also if it is no better than what the index does now.")
    ] = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the best way of making a place of neighbours, and have the index answer so.

    \b
    Examples:
      geoinfer index tune-answer my-index --labels val.csv --images ./val
      geoinfer index tune-answer my-index --objective geoscore --dry-run

    Every method is tried with every k, temperature and bandwidth. Half of the photos choose; the other half, which
    shares no sequence, source or geocell with it, says how good the choice is. The index keeps the winner if it is
    surely better there than what it did before (its 95% interval says so), and is then calibrated on the half that
    chose nothing, if that is enough.
    """
    from geoinfer.answer import DEFAULT_ANSWER
    from geoinfer.cli.console import answer, say
    from geoinfer.index import read_index_manifest, update_index
    from geoinfer.reliability.report import check_report_folder
    from geoinfer.tuning.objective import Objective
    from geoinfer.tuning.report import check_tuning_folder, write_tuning_report, write_tuning_text
    from geoinfer.tuning.sweep import Grid
    from geoinfer.tuning.tune import tune

    if split_by not in _SPLITS:
        raise UsageError(f"--split-by {split_by}: expected one of {', '.join(_SPLITS)}")
    if labels is None and (images is not None or engine is not None):
        raise UsageError("--images and --engine are for --labels", hint="give the validation photos, too")
    if dry_run and force:
        raise UsageError("--dry-run stores nothing, and --force insists on storing; give one of them")
    options.check_batch_size(batch_size)
    worker_count = options.checked_workers(workers)
    goal = Objective.parse(objective)
    grid = Grid(
        tuple(_numbers("--k", ks, int)),
        tuple(methods.split(",")),  # type: ignore[arg-type]  # checked by the grid
        tuple(_numbers("--temperatures", temperatures, float)),
        tuple(_numbers("--bandwidths-km", bandwidths, float)),
    )
    grid.check()
    report = folder.with_name(f"{folder.resolve().name}.tuning") if out is None else out
    check_tuning_folder(report)
    check_report_folder(report)
    if labels is None:
        stored, held_out, known = _own(folder)
    else:
        stored, held_out, known = _new(folder, labels, images, engine, device, batch_size, worker_count, quiet)
    by, groups = _groups(split_by, held_out, stored, known)
    current = stored.manifest.answer or DEFAULT_ANSWER
    with _Progress(quiet=quiet) as progress:
        tuned = tune(
            held_out, stored.references.coordinates, groups, by, current,
            already=len(stored.leave_one_out.rows), grid=grid, objective=goal, on_progress=progress.report,
            threads=worker_count,
        )  # fmt: skip
    choice = tuned.choice
    stores, outcome = _outcome(tuned, dry_run=dry_run, force=force, own=labels is None)
    of = "references, each located by the others" if labels is None else f"photos of {labels.name}"
    how = (
        f"{len(tuned.tried.ways):,} ways of answering, tried on {tuned.tried.errors_km.shape[1]:,} {of}, by the index "
        f"{folder.resolve().name}; photos of one {by} are never split."
    )
    first = "Nothing is stored yet." if stores else outcome
    write_tuning_report(tuned.tried, tuned.choosing, choice, report, how, first)
    reliable = _reliability(tuned, stored.references.coordinates, report, by)
    if stores:
        if read_index_manifest(folder).fingerprint != stored.manifest.fingerprint:
            raise IndexFolderError(f"{folder}: was changed meanwhile; nothing was stored", hint="run this again")
        kept: dict[str, Any] = {"calibration": tuned.judging} if tuned.calibrates else {}
        update_index(folder, answer=choice.winner.answer, **kept)
        write_tuning_text(tuned.tried, tuned.choosing, choice, report, how, outcome)
    if as_json:
        answer(json.dumps(_values(tuned, by, report, outcome, stored=stores), indent=2, ensure_ascii=False))
    elif not quiet:
        for line in _lines(choice, how, outcome, report, reliable=reliable):
            answer(line)
    elif not stores and not dry_run and not choice.same:
        say(outcome)


def _own(folder: Path) -> tuple[StoredIndex, LeaveOneOut, References | None]:
    from geoinfer.index import open_index
    from geoinfer.index.leave_one_out import leave_one_out

    stored = open_index(folder)
    # Afresh, as what is stored may be of other photos, or of some of them only.
    if not stored.manifest.of_photos:
        raise UsageError(
            f"{folder}: its references are places and no photos, so they cannot be located by one another",
            hint="give validation photos: --labels",
        )
    return stored, leave_one_out(stored.index, stored.references), None


def _new(
    folder: Path,
    labels: Path,
    images: Path | None,
    engine: Path | None,
    device: str,
    batch_size: int | None,
    workers: int,
    quiet: bool,
) -> tuple[StoredIndex, LeaveOneOut, References | None]:
    from geoinfer.batch.labelled import embed_labelled, open_labelled
    from geoinfer.cli.console import Console, device_line, say
    from geoinfer.cli.interrupts import interrupts_raise
    from geoinfer.geolocator import Geolocator
    from geoinfer.tuning.held_out import find_neighbors

    opened = open_labelled(labels, images)
    with (
        Geolocator.open(engine, folder, device=device, threads=1) as geolocator,
        Console(quiet=quiet, doing="embedding", count=opened.count) as console,
    ):
        embedder, stored = geolocator.embedder, geolocator.index
        device_line(console, embedder)
        with interrupts_raise():
            photos = embed_labelled(
                embedder, labels, images, batch_size=options.chosen_batch_size(batch_size, embedder),
                workers=workers, observer=console,
            )  # fmt: skip
            console.writing()
            console.say(f"searching for {len(photos.embeddings)} photos among {stored.index.size} references")
            held_out = find_neighbors(
                stored.index,
                stored.references,
                photos.embeddings,
                photos.references,
                of_photos=stored.manifest.of_photos,
                threads=workers,
            )
    if photos.failures:
        say("left out: " + ", ".join(f"{count} {code}" for code, count in photos.failures.items()))
    return stored, held_out, photos.references


def _groups(
    split_by: str, held_out: LeaveOneOut, stored: StoredIndex, photos: References | None
) -> tuple[str, NDArray[np.int64]]:
    """What photos are grouped by, and the group of each."""
    import numpy as np

    from geoinfer.reliability.groups import group_photos

    references = stored.references
    if photos is not None:
        sequences, sources = list(photos.sequences), list(photos.sources)
    else:
        rows = held_out.rows.tolist()
        sequences = [references.sequences[row] for row in rows] if len(references.sequences) else []
        sources = [references.sources[row] for row in rows]
    by = ("sequence" if any(sequences) else "geocell") if split_by == "auto" else split_by
    places = np.asarray(held_out.true_places(references.coordinates), np.float64)
    return by, group_photos(by, places, sequences, sources)  # type: ignore[arg-type]  # checked


def _outcome(tuned: Tuned, *, dry_run: bool, force: bool, own: bool) -> tuple[bool, str]:
    """Whether to store the winner, and a sentence that says what becomes of it."""
    choice = tuned.choice
    if dry_run:
        return False, "Nothing was stored: a dry run."
    if choice.same:
        return False, "Nothing was stored."
    if not choice.sure and not force:
        return False, "Nothing was stored; --force would store the best all the same."
    kind = "references" if own else "photos"
    count = len(tuned.judging.rows)
    calibrated = (
        f"and is calibrated on the {count:,} {kind} that chose nothing"
        if tuned.calibrates
        else f"and keeps the photos of its calibration, as the {count:,} {kind} that chose nothing are too few for one"
    )
    return True, f"The index now answers so, {calibrated}."


def _lines(choice: Choice, how: str, outcome: str, report: Path, *, reliable: bool) -> list[str]:
    from geoinfer.tuning.report import better_sentence

    objective = choice.objective

    def line(name: str, judged: Judged) -> str:
        written = [objective.written(value) for value in (judged.value, judged.low, judged.high)]
        return f"  {name:<8} {written[0]} (95% interval {written[1]} to {written[2]})  {judged.answer.as_options()}"

    return [
        how,
        f"{objective.label[0].upper()}{objective.label[1:]} on the {choice.photos[1]:,} photos that chose nothing:",
        line("best:", choice.winner),
        line("now:", choice.current),
        line("default:", choice.default),
        f"{better_sentence(choice)} {outcome}",
        f"  report: {report / 'tuning.md'}" + (f"; its radii: {report / 'report.md'}" if reliable else ""),
    ]


def _reliability(tuned: Tuned, coordinates: NDArray[np.float64], report: Path, by: str) -> bool:
    """Adds the reliability of the winner's radii, on the photos that chose nothing; False if they are too few."""
    from geoinfer.reliability import reliability
    from geoinfer.reliability.report import write_report

    way = tuned.choice.winner.answer
    try:
        result = reliability(tuned.judging, coordinates, way, tuned.judging_groups)
    except UsageError:
        return False
    how = (
        f"{len(result.judged):,} photos that chose nothing, answered by {way.as_options()}; each tested on what "
        f"those of another {by} teach."
    )
    write_report(result, report, how)
    return True


def _values(tuned: Tuned, by: str, report: Path, outcome: str, *, stored: bool) -> dict[str, Any]:
    from geoinfer.tuning.report import FILES

    choice = tuned.choice

    def values(judged: Judged) -> dict[str, Any]:
        return dataclasses.asdict(judged) | {"answer": judged.answer.as_dict()}

    return {
        "objective": choice.objective.name,
        "ways": len(tuned.tried.ways),
        "split_by": by,
        "photos": {"choosing": choice.photos[0], "judging": choice.photos[1]},
        "groups": {"choosing": choice.groups[0], "judging": choice.groups[1]},
        "best": values(choice.winner),
        "now": values(choice.current),
        "default": values(choice.default),
        "better_by": {"low": choice.better_low, "high": choice.better_high},
        "better": choice.better,
        "stored": stored,
        "calibrated_on": len(tuned.judging.rows) if stored and tuned.calibrates else None,
        "outcome": outcome,
        "files": [str(report / name) for name in FILES],
    }


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers joined by commas") from None


class _Progress:
    """The share that is done, on standard error: a line that is written over on a terminal, else now and then one."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._last = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live and not self._quiet:
            print("\r\033[K", end="", file=sys.stderr, flush=True)  # noqa: T201

    def report(self, share: float) -> None:
        from geoinfer.cli.console import say

        if self._quiet:
            return
        if self._live:
            print(f"\rtrying ways of answering: {share:.0%}", end="", file=sys.stderr, flush=True)  # noqa: T201
        elif time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            say(f"trying ways of answering: {share:.0%}")
