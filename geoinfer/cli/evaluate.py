"""`geoinfer evaluate`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from geoinfer.cli import options
from geoinfer.errors import EXIT_FAILED_INPUTS, EXIT_OK, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from geoinfer.batch.predict import ErrorLimit
    from geoinfer.evaluate.compare import Comparison
    from geoinfer.evaluate.measure import Evaluation
    from geoinfer.evaluate.run import Answered
    from geoinfer.evaluate.tables import Table
    from geoinfer.evaluate.truth import Truth

_GROUPINGS: Final = ("auto", "sequence", "source", "none")
_MOST_THUMBNAILS: Final = 10_000
_MOST_WARNINGS: Final = 12


def evaluate(
    targets: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[LABELS | RUN RUN...]",
            help="A CSV of photos and their places, or a folder of photos with GPS in their EXIF; with --compare, "
            "folders of reports.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.", show_default=False)] = ...,  # type: ignore[assignment]  # how typer spells a required option
    labels: Annotated[Path | None, typer.Option("--labels", help="LABELS, as an option.", show_default=False)] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder that the CSV's paths are relative to.", show_default="the CSV's own"),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="Measure this file's predictions instead of locating the photos: .csv, .jsonl, .parquet or .geojson "
            "with an id or path, latitude and longitude.",
            show_default=False,
        ),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option("--units", help="Of the predictions: degrees or radians.", show_default="degrees"),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put the runs whose report folders are given side by side.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Of --compare: the run that differences are from.", show_default="the first"),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="Of --compare: a run that is never printed bold; may be repeated."),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="What tables call this run.", show_default="the model's or the file's name")
    ] = "",
    notice: Annotated[
        str, typer.Option("--notice", help="A sentence for the top of the report.", show_default="the bundle's own")
    ] = "",
    convention: Annotated[
        str,
        typer.Option("--convention", help="How distances and scores are computed: osv5m, pigeon or geoclip."),
    ] = "osv5m",
    sets_by: Annotated[
        list[str] | None,
        typer.Option("--sets-by", help="A column of the labels: each of its values makes a set; may be repeated."),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            help="What belongs together when intervals are drawn: sequence, source, none, or auto: sequences where "
            "the labels name them.",
            show_default="auto",
        ),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option("--hold-out", help="source: answer each photo without the references of its own source."),
    ] = None,
    no_baselines: Annotated[
        bool, typer.Option("--no-baselines", help="Without the rows of a random reference and of a constant.")
    ] = False,
    engine: options.Engine = None,
    index: Annotated[
        Path | None,
        typer.Option("--index", "-i", help="Folder of a reference index.", show_default="the bundle's own"),
    ] = None,
    k: options.K = None,
    aggregate: options.Aggregate = None,
    temperature: options.Temperature = None,
    bandwidth_km: options.BandwidthKm = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            help="Give no answer whose score is lower, 0 to 1: such a photo is skipped.",
            metavar="SCORE",
            show_default="all are given",
        ),
    ] = None,
    device: options.Device = "auto",
    index_device: Annotated[
        str,
        typer.Option("--index-device", help="Where the index is searched: auto, cpu or cuda.", metavar="DEVICE"),
    ] = "auto",
    precision: options.Precision = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    preprocessing: options.Pixels = None,
    thumbnails: Annotated[
        int | None,
        typer.Option(
            "--thumbnails", help="Small pictures in report.html, 0 for none.", metavar="N", show_default="up to 1000"
        ),
    ] = None,
    no_svg: Annotated[
        bool, typer.Option("--no-svg", help="Maps as PNG only; as SVG they are megabytes of outlines.")
    ] = False,
    max_errors: options.MaxErrors = "0",
    force: Annotated[bool, typer.Option("--force", help="Replace another report in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how far off predictions are: metrics, tables, maps and a page.

    \b
    Examples:
      geoinfer evaluate test.csv --images ./test --index my-index --out report
      geoinfer evaluate --predictions predictions.csv --labels test.csv --out report
      geoinfer evaluate --compare report-a report-b --out comparison

    \b
    The folder holds metrics.json, errors.csv (every photo with its error and the
    references next to it), tables.md, .tex and .csv, maps/ and report.html.
    """
    from geoinfer.batch.predict import ErrorLimit
    from geoinfer.metrics import convention as convention_of

    # Everything that can be wrong with the arguments is found before a file is read or a model is opened.
    limit = ErrorLimit.parse(max_errors)
    measured_by = convention_of(convention)
    given = {
        "--engine": engine, "--k": k, "--aggregate": aggregate, "--temperature": temperature, "--hold-out": hold_out,
        "--bandwidth-km": bandwidth_km, "--min-score": min_score, "--batch-size": batch_size,
        "--preprocessing": preprocessing, "--precision": None if precision == "auto" else precision,
    }  # fmt: skip
    if compare:
        others = {
            "--labels": labels, "--images": images, "--predictions": predictions, "--units": units, "--index": index,
            "--sets-by": sets_by, "--group-by": group_by, "--name": name or None, "--notice": notice or None,
            "--thumbnails": thumbnails, "--no-baselines": no_baselines or None, "--no-svg": no_svg or None,
        }  # fmt: skip
        _refuse(given | others, "is not for --compare", "reports are compared as they were made")
        comparison, tables = _compared(targets or [], out, convention, against, baseline or [], force=force)
        _print_comparison(comparison, tables, out, as_json=as_json, quiet=quiet)
        raise typer.Exit(EXIT_OK)
    _refuse({"--against": against, "--baseline": baseline or None}, "is for --compare", "")
    labels = _labels_of(targets or [], labels)
    if predictions is not None:
        _refuse(given, "is for photos that are located, not for --predictions", "leave out the one or the other")
    elif units is not None:
        raise UsageError("--units is for --predictions", hint="labels are in degrees")
    if units not in (None, "degrees", "radians"):
        raise UsageError(f"--units {units}: expected degrees or radians")
    if group_by not in (None, *_GROUPINGS):
        raise UsageError(f"--group-by {group_by}: expected one of {', '.join(_GROUPINGS)}")
    if hold_out not in (None, "source"):
        raise UsageError(f"--hold-out {hold_out}: expected source")
    if thumbnails is not None and not 0 <= thumbnails <= _MOST_THUMBNAILS:
        raise UsageError(f"--thumbnails {thumbnails}: expected 0 to {_MOST_THUMBNAILS}")
    worker_count = options.checked_workers(workers)
    options.check_batch_size(batch_size)
    pixels = options.parsed_preprocessing(preprocessing)
    plan, device = options.planned(precision, device, quiet=quiet, pixels=pixels)

    from geoinfer.cli.console import Console, answer, device_line, failed_line, index_device_line, say
    from geoinfer.evaluate.folder import ReportFolder, check_report_folder
    from geoinfer.evaluate.page.data import THUMBNAILS
    from geoinfer.evaluate.run import (
        answer_from_file,
        answer_photos,
        check_group_by,
        check_packages,
        evaluate,
        write_report,
    )
    from geoinfer.evaluate.truth import read_truth
    from geoinfer.geolocator import Geolocator
    from geoinfer.index import open_index

    check_packages(measured_by)
    check_report_folder(out, force=force, photos=labels if labels.is_dir() else None)
    columns = list(dict.fromkeys(sets_by or []))
    truth = read_truth(labels, images, columns=columns, need_photos=predictions is None)
    check_group_by(truth, group_by or "auto")
    with Console(quiet=quiet, count=lambda: len(truth)) as console:
        console.say(f"labels: {labels}, {truth.layout}, {len(truth):,} photo{'s' * (len(truth) != 1)}")

        def finish(answered: Answered) -> tuple[Evaluation, dict[str, Any]]:
            if notice:
                answered.run.made_by["notice"] = notice
            console.writing()
            console.step("measuring", 0)
            evaluation = evaluate(
                answered, truth, measured_by, set_columns=columns, group_by=group_by or "auto",  # type: ignore[arg-type]  # checked
                baselines=not no_baselines,
            )  # fmt: skip
            console.step("writing the report", 0)
            values = write_report(
                evaluation, report, truth, matched=answered.matched, images=images,
                thumbnails=THUMBNAILS if thumbnails is None else thumbnails, workers=worker_count, svg=not no_svg,
            )  # fmt: skip
            return evaluation, values

        if predictions is not None:
            references = None if index is None else open_index(index).references
            with _interruptible(out), ReportFolder(out, force=force) as report:
                answered = answer_from_file(
                    predictions, truth, name=name, units=units or "degrees", references=references  # type: ignore[arg-type]  # checked
                )  # fmt: skip
                assert answered.matched is not None
                console.say(
                    f"predictions: {predictions}, {answered.run.made_by['layout']}, matched {answered.matched.how}"
                )
                evaluation, values = finish(answered)
        else:
            with Geolocator.open(
                engine,
                index,
                device=device,
                k=k,
                aggregate=aggregate,  # type: ignore[arg-type]  # checked by what it is given to
                temperature=temperature,
                bandwidth_km=bandwidth_km,
                min_score=min_score,
                index_device=index_device,
                preprocessing=pixels,
                threads=1,
                plan=plan,
            ) as geolocator:
                device_line(console, geolocator.embedder)
                index_device_line(console, geolocator.index_device)
                with _interruptible(out), ReportFolder(out, force=force) as report:
                    answered = answer_photos(
                        geolocator,
                        truth,
                        name=name,
                        batch_size=options.chosen_batch_size(batch_size, geolocator.embedder),
                        workers=worker_count,
                        observer=console,
                        hold_out=hold_out,  # type: ignore[arg-type]  # checked above
                    )
                    evaluation, values = finish(answered)
    if as_json:
        answer(json.dumps(values, indent=2, ensure_ascii=False))
    elif not quiet:
        for line in _lines(evaluation, values, truth, out):
            answer(line)
    for line in _warning_lines(evaluation.warnings, out):
        say(line)
    if evaluation.run.made_by.get("notice"):
        say(f"note: {evaluation.run.made_by['notice']}")
    code, failed = _exit_code(evaluation, limit)
    if code != EXIT_OK:
        say(failed_line(failed, max_errors))
    raise typer.Exit(code)


@contextlib.contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    """Ctrl-C within the block ends the command with a word, and without a report."""
    from geoinfer.cli.interrupts import interrupts_raise

    try:
        with interrupts_raise():
            yield
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; {out} holds no report of this run", hint="the same command begins anew"
        ) from None


def _labels_of(targets: list[Path], labels: Path | None) -> Path:
    given = [*targets, *([] if labels is None else [labels])]
    if not given:
        raise UsageError(
            "no labels are given", hint="geoinfer evaluate LABELS --out report; `geoinfer evaluate --help` tells more"
        )
    if len(given) > 1:
        raise UsageError(
            f"labels are given {len(given)} times: {', '.join(map(str, given))}",
            hint="name one file or folder; --compare takes several reports",
        )
    return given[0]


def _refuse(given: dict[str, Any], why: str, hint: str) -> None:
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} {why}", hint=hint)


def _compared(
    runs: list[Path], out: Path, convention: str, against: str | None, baselines: list[str], *, force: bool
) -> tuple[Comparison, list[Table]]:
    from geoinfer.evaluate.compare import compare
    from geoinfer.evaluate.compare_report import write_comparison
    from geoinfer.evaluate.folder import check_report_folder
    from geoinfer.evaluate.run import check_packages
    from geoinfer.metrics import convention as convention_of

    check_packages(convention_of(convention))
    if any(out.resolve() == run.resolve() for run in runs):
        raise UsageError(f"--out {out}: is one of the runs", hint="choose another folder")
    check_report_folder(out, force=force)
    comparison = compare(runs, convention=convention_of(convention), baselines=baselines, against=against)
    with _interruptible(out):
        return comparison, write_comparison(comparison, out, force=force)


def _print_comparison(comparison: Comparison, tables: list[Table], out: Path, *, as_json: bool, quiet: bool) -> None:
    from geoinfer.cli.console import answer, say
    from geoinfer.evaluate.sets import GLOBAL

    if as_json:
        answer((out / "metrics.json").read_text(encoding="utf-8").rstrip())
    elif not quiet:
        whole = comparison.evaluations[0].metrics[GLOBAL]
        answer(f"Compared {len(comparison.evaluations)} runs on {whole.labelled:,} photos, {len(tables)} tables.")
        for one in comparison.evaluations:
            found = one.metrics[GLOBAL]
            answer(
                f"  {one.run.name}: {found.count:,} answered, median {_km(found.median_km)}, "
                f"GeoScore {found.geoscore.value:,.0f}"
            )
        answer(f"  report: {out / 'report.md'}")
    for line in _warning_lines(comparison.warnings, out):
        say(line)


def _lines(evaluation: Evaluation, values: dict[str, Any], truth: Truth, out: Path) -> list[str]:
    from geoinfer.evaluate.sets import GLOBAL

    whole = evaluation.metrics[GLOBAL]
    parts = [("failed", whole.failed), ("skipped", whole.skipped), ("without a prediction", whole.missing)]
    unanswered = "".join(f", {number:,} {word}" for word, number in parts if number)
    lines = [
        f"{evaluation.run.name}: {whole.count:,} of {whole.labelled:,} photos answered{unanswered}; labels: "
        f"{truth.layout}.",
        f"  median error {_km(whole.median_km)} ({_km_range(whole.median_km)}), mean {_km(whole.mean_km)} "
        f"({_km_range(whole.mean_km)})",
        "  within "
        + ", ".join(f"{radius:g} km {share.value:.1f}%" for radius, share in whole.accuracy.items())
        + f"; GeoScore {whole.geoscore.value:,.0f} ({_range(whole.geoscore, '{:,.0f}'.format)})",
    ]
    for name, sets in evaluation.baselines.items():
        one = sets[GLOBAL]
        lines.append(f"  beside it, {name}: median {_km(one.median_km)}, GeoScore {one.geoscore.value:,.0f}")
    lines.append(f"  in brackets 95% intervals; {evaluation.convention.description}")
    if "unmatched.csv" in values["files"]:
        lines.append(f"  ids without a partner and labels of no use: {out / 'unmatched.csv'}")
    lines.append(f"  report: {out / 'report.html'}; errors: {out / 'errors.csv'}")
    return lines


def _km(figure: Any) -> str:
    from geoinfer.cli.console import kilometres

    return kilometres(figure.value)


def _km_range(figure: Any) -> str:
    from geoinfer.cli.console import kilometres

    return _range(figure, kilometres)


def _range(figure: Any, word: Callable[[float], str]) -> str:
    from math import isnan

    return "no interval" if isnan(figure.low) else f"{word(figure.low)} to {word(figure.high)}"


def _warning_lines(warnings: list[str], out: Path) -> list[str]:
    lines = [f"warning: {text}" for text in warnings[:_MOST_WARNINGS]]
    if len(warnings) > _MOST_WARNINGS:
        lines.append(f"warning: and {len(warnings) - _MOST_WARNINGS} more, see {out / 'metrics.json'}")
    return lines


def _exit_code(evaluation: Evaluation, limit: ErrorLimit) -> tuple[int, int]:
    """The exit code, and how many photos failed: those without a prediction among them."""
    from geoinfer.evaluate.sets import GLOBAL

    whole = evaluation.metrics[GLOBAL]
    failed = whole.failed + whole.missing
    return (EXIT_FAILED_INPUTS if limit.exceeded(failed, whole.labelled) else EXIT_OK), failed
