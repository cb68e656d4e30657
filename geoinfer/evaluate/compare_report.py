"""The folder of a comparison: tables, differences, the cumulative errors of all runs and a summary to read."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

from geoinfer.evaluate.bootstrap import FIGURES as COMPARED
from geoinfer.evaluate.bootstrap import REPLICATES
from geoinfer.evaluate.compare_figure import draw_comparison
from geoinfer.evaluate.folder import MAPS, ReportFolder
from geoinfer.evaluate.sets import GLOBAL
from geoinfer.evaluate.tables.build import set_title
from geoinfer.evaluate.tables.long_csv import number_text
from geoinfer.evaluate.tables.markdown import escape_markdown, markdown, markdown_notes
from geoinfer.evaluate.tables.metrics import FIGURES
from geoinfer.evaluate.tables.models import excludes_zero
from geoinfer.evaluate.tables.table import Table
from geoinfer.evaluate.tables.winners import printed
from geoinfer.evaluate.tables.write import write_tables, write_text
from geoinfer.reliability.draw import check_drawing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from geoinfer.evaluate.bootstrap import Interval
    from geoinfer.evaluate.compare import Comparison, Difference
    from geoinfer.evaluate.tables.metrics import Metric

KIND: Final = "comparison"
DIFFERENCES, REPORT = "differences.csv", "report.md"
COLUMNS: Final = ("set", "run", "against", "metric", "difference", "low", "high", "count")
_PICTURES: Final = ("cumulative.png", "cumulative.svg")


def write_comparison(comparison: Comparison, out: Path, *, force: bool = False) -> list[Table]:
    """Writes `tables.*`, `differences.csv`, `report.md`, `maps/cumulative.*` and, last, `metrics.json`.

    Args:
        comparison: of at least two runs.
        out: made if it is not there.
        force: whether another report there may be replaced.

    Returns:
        The tables, those of differences included.

    Raises:
        OutputError: the folder holds another report or files of other make, or cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    check_drawing()
    with ReportFolder(out, force=force) as report:
        stage = report.stage
        tables = write_tables(
            comparison.evaluations,
            stage,
            baselines=comparison.baselines,
            margins=comparison.margins,
            further=difference_tables(comparison),
        )
        write_text(stage / DIFFERENCES, differences_csv(comparison))
        write_text(stage / REPORT, report_text(comparison, tables))
        (stage / MAPS).mkdir(exist_ok=True)
        draw_comparison(comparison, [stage / MAPS / name for name in _PICTURES])
        report.commit(comparison_metrics(comparison))
    return tables


def comparison_metrics(comparison: Comparison) -> dict[str, Any]:
    """What `metrics.json` says of a comparison."""
    convention = comparison.evaluations[0].convention
    return {
        "kind": KIND,
        "name": f"comparison of {', '.join(comparison.names)}",
        "convention": convention.name,
        "definitions": convention.description,
        "against": comparison.names[comparison.against],
        "baselines": sorted(comparison.baselines),
        "runs": [
            {
                "name": one.run.name,
                "folder": folder.resolve().name,
                "k": one.run.k,
                "made_by": one.run.made_by,
                "sets": {name: metrics.as_dict() for name, metrics in one.metrics.items()},
            }
            for folder, one in zip(comparison.folders, comparison.evaluations, strict=True)
        ],
        "computed_baselines": {
            name: {set_name: metrics.as_dict() for set_name, metrics in sets.items()}
            for one in comparison.evaluations
            for name, sets in one.baselines.items()
        },
        "differences": [
            {
                "set": one.set_name,
                "run": one.run,
                "against": one.against,
                "count": one.count,
                "nearer": one.nearer,
                "farther": one.farther,
                "same": one.same,
                **{name: one.figures[name].as_dict() for name in COMPARED},
            }
            for one in comparison.differences
        ],
        "warnings": comparison.warnings,
    }


def differences_csv(comparison: Comparison) -> str:
    """Every difference, one a line, unrounded; `count` is the number of photos that both answered."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in comparison.differences:
        writer.writerows((one.set_name, one.run, one.against, *line, str(one.count)) for line in _lines(one))
    return file.getvalue()


def _lines(one: Difference) -> Iterator[tuple[str, ...]]:
    for name in COMPARED:
        found = one.figures[name]
        yield name, number_text(found.value), number_text(found.low), number_text(found.high)
    for name, number in (("nearer", one.nearer), ("farther", one.farther), ("same", one.same)):
        yield f"{name}_percent", number_text(_percent(number, one.count)), "", ""


def _percent(number: int, count: int) -> float:
    return 100.0 * number / count if count else float("nan")


def difference_tables(comparison: Comparison) -> list[Table]:
    """For each set one, with a column a run; bold where the interval does not hold 0."""
    base = comparison.names[comparison.against]
    tables = []
    for number, set_name in enumerate(dict.fromkeys(one.set_name for one in comparison.differences)):
        of_set = [one for one in comparison.differences if one.set_name == set_name]
        rows = [["Photos answered by both", *(f"{one.count:,}" for one in of_set)]]
        for word, name in (("Nearer", "nearer"), ("Farther", "farther"), ("Equally far", "same")):
            rows.append([f"{word} (% of them)", *(printed(_percent(getattr(one, name), one.count)) for one in of_set)])
        bold = [[False] * (1 + len(of_set)) for _ in rows]
        for metric in FIGURES:
            rows.append([_heading(metric), *(signed(one.figures[metric.name]) for one in of_set)])
            bold.append([False, *(excludes_zero(one.figures[metric.name]) for one in of_set)])
        note = (
            f"Each run's figure minus that of {base}, on the photos that both answered, with the 95% interval of the "
            f"difference ({REPLICATES:,} paired bootstrap samples; photos of one sequence are drawn together); bold "
            "where it does not hold 0."
        )
        shared = (f"{comparison.evaluations[0].convention.description}.",)
        title = f"{set_title(set_name)}: Differences from {base}"
        columns = ["Difference", *(one.run for one in of_set)]
        label = f"differences-{number + 1}"
        tables.append(Table(title, columns, rows, bold, "", label, (note, *shared), set_name))
    return tables


def _heading(metric: Metric) -> str:
    better = "less" if metric.lower_is_better else "more"
    return f"{metric.heading.replace('(%)', '(points)')}, {better} is better"


def signed(difference: Interval) -> str:
    """A difference with its sign, and its interval in brackets as far as it is known."""
    if printed(difference.value) == "N/A":
        return "N/A"
    if "N/A" in (printed(difference.low), printed(difference.high)):
        return _sign(difference.value)
    return f"{_sign(difference.value)} ({_sign(difference.low)} to {_sign(difference.high)})"


def _sign(value: float) -> str:
    text = printed(value)
    if text == "0.00":
        return text
    return f"+{text}" if value > 0 else text.replace("-", "−")


def report_text(comparison: Comparison, tables: list[Table]) -> str:
    """The comparison as Markdown."""
    runs = Table(
        "Runs",
        ["Model", "Best k", "Report"],
        [
            [one.run.name, "N/A" if one.run.k is None else str(one.run.k), folder.resolve().name]
            for folder, one in zip(comparison.folders, comparison.evaluations, strict=True)
        ],
        [[False] * 3 for _ in comparison.evaluations],
        f"All are measured on the same {comparison.evaluations[0].metrics[GLOBAL].labelled:,} photos; sets by "
        f"{comparison.evaluations[0].sets_from}.",
    )
    parts = [f"# {escape_markdown('Comparison of ' + ', '.join(comparison.names))}\n", markdown(runs, heading="##")]
    if comparison.warnings:
        listed = [f"- {escape_markdown(text)}" for text in comparison.warnings]
        parts.append("\n".join(["## What to know before believing a figure", "", *listed]) + "\n")
    parts.append(f"![cumulative error]({MAPS}/{_PICTURES[1]})\n")
    parts += [markdown(table, heading="##") for table in tables]
    return "\n".join([*parts, *markdown_notes(tables, heading="##")])
