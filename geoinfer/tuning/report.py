"""The folder of a tuning report: the table as CSV and Markdown, the figure of the best k as PNG and SVG."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Final

from geoinfer.answer import METHODS, Method
from geoinfer.errors import OutputError
from geoinfer.integrity import atomic_file
from geoinfer.reliability.draw import check_drawing
from geoinfer.tuning.figure import draw_best_k
from geoinfer.tuning.objective import Objective

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.tuning.choose import Choice, Judged
    from geoinfer.tuning.sweep import Sweep

FILES: Final = ("tuning.csv", "tuning.md", "best_k.png", "best_k.svg")

_TITLE: Final = "# The way of answering\n"
_COLUMNS: Final = ("median", "mean", "geoscore", "acc@1", "acc@25", "acc@200", "acc@750", "acc@2500")


def check_tuning_folder(folder: Path) -> None:
    """Finds out, before minutes of work, what would keep a report from being written, or make it overwrite other files.

    Raises:
        OutputError: a file has the folder's name, or files of a report's names are there that are of no report.
        MissingPackageError: matplotlib is not installed.
    """
    check_drawing()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder}: is a file", hint="name a folder")
    there = [name for name in FILES if (folder / name).exists()]
    try:
        ours = (folder / "tuning.md").read_bytes().startswith(_TITLE.encode())
    except OSError:
        ours = False
    if there and not ours:
        raise OutputError(
            f"--out {folder}: holds {there[0]}, and no report of geoinfer's", hint="choose another folder"
        )


def write_tuning_report(
    tried: Sweep, choosing: NDArray[np.bool_], choice: Choice, folder: Path, how: str, outcome: str
) -> None:
    """Writes the table and the figure; files of an earlier report are replaced.

    Args:
        tried: every way.
        choosing: (m,) True for the photos of `tried` that chose.
        choice: what came of it.
        folder: made if it is not there.
        how: a sentence that says what was tried on what.
        outcome: a sentence that says what becomes of the winner.

    Raises:
        OutputError: the folder or a file cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # First what says whose folder it is, should the rest fail.
        _write(folder / "tuning.md", tuning_text(tried, choosing, choice, how, outcome))
        _write(folder / "tuning.csv", tuning_csv(tried, choosing))
        draw_best_k(
            best_by_k(tried, choosing, choice.objective), choice, (folder / "best_k.png", folder / "best_k.svg")
        )
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def write_tuning_text(
    tried: Sweep, choosing: NDArray[np.bool_], choice: Choice, folder: Path, how: str, outcome: str
) -> None:
    """The Markdown alone, once the outcome is another; as `write_tuning_report`."""
    _write(folder / "tuning.md", tuning_text(tried, choosing, choice, how, outcome))


def best_by_k(tried: Sweep, choosing: NDArray[np.bool_], objective: Objective) -> dict[Method, dict[int, float]]:
    """Of each method and each k the objective of its best temperature and bandwidth, on the photos that chose.

    Of one neighbour all methods make the same; it is `top1`, and where every method's line begins.
    """
    errors = tried.errors_km[: tried.candidates, choosing]
    values, costs = objective.values(errors), objective.costs(errors)
    best: dict[tuple[Method, int], int] = {}
    for row, way in enumerate(tried.ways[: tried.candidates]):
        key = (way.aggregate, way.k)
        if key not in best or costs[row] < costs[best[key]]:
            best[key] = row
    lines: dict[Method, dict[int, float]] = {}
    for method in METHODS:
        line = {k: float(values[row]) for (of, k), row in sorted(best.items()) if of == method}
        if line and ("top1", 1) in best:
            line = {1: float(values[best["top1", 1]])} | line
        if line:
            lines[method] = line
    return lines


def tuning_csv(tried: Sweep, choosing: NDArray[np.bool_]) -> str:
    """Every way with all figures on both parts of the photos, in a table with a header."""
    objectives = [Objective.parse(name) for name in _COLUMNS]
    names = [_column(objective) for objective in objectives]
    columns: list[NDArray[np.float64]] = []
    for part in (choosing, ~choosing):
        columns += [objective.values(tried.errors_km[:, part]) for objective in objectives]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["aggregate", "k", "temperature", "bandwidth_km"]
        + [f"{part}_{name}" for part in ("choosing", "judging") for name in names]
    )
    for row, way in enumerate(tried.ways):
        shown = way.resolved
        told = ["" if value is None else f"{value:g}" for value in (shown.temperature, shown.bandwidth_km)]
        writer.writerow([way.aggregate, way.k, *told, *(f"{column[row]:.6g}" for column in columns)])
    return text.getvalue()


def tuning_text(tried: Sweep, choosing: NDArray[np.bool_], choice: Choice, how: str, outcome: str) -> str:
    """The report as Markdown."""
    objective = choice.objective
    named = [("best", choice.winner), ("as the index answers now", choice.current), ("general default", choice.default)]
    return "\n".join(
        [
            _TITLE.strip(),
            "",
            how,
            "",
            f"{choice.photos[0]:,} photos of {choice.groups[0]:,} groups chose; the other {choice.photos[1]:,}, of "
            f"{choice.groups[1]:,} groups, judged what they chose. Only what these say is an estimate for new photos.",
            "",
            f"## {objective.label[0].upper()}{objective.label[1:]}",
            "",
            "| way | options | photos that chose | photos that judged | 95% interval |",
            "|---|---|---:|---:|---|",
            *(_judged_line(name, judged, objective) for name, judged in named),
            "",
            f"{better_sentence(choice)} {outcome}",
            "",
            "## Best of each method, by k",
            "",
            f"{objective.label[0].upper()}{objective.label[1:]} on the photos that chose, at the best temperature and "
            "bandwidth for each k.",
            "",
            *_best_lines(best_by_k(tried, choosing, objective), choice),
            "",
            "![best k](best_k.svg)",
            "",
        ]
    )


def better_sentence(choice: Choice) -> str:
    """How much better the winner is than what the index does now."""
    if choice.same:
        return "The index answers by the best way already."
    objective = choice.objective
    gain = abs(choice.winner.value - choice.current.value)
    word = "better" if choice.better else "worse" if gain > 0 else "better or worse"
    low, high = objective.difference(choice.better_low), objective.difference(choice.better_high)
    doubt = "" if choice.sure or not choice.better else ", so it may be luck"
    return (
        f"On the photos that judged, the best way is {objective.difference(gain)} {word} than the current one "
        f"(95% interval of how much better: {low} to {high}{doubt})."
    )


def _judged_line(name: str, judged: Judged, objective: Objective) -> str:
    written = [objective.written(v) for v in (judged.value_chosen_on, judged.value, judged.low, judged.high)]
    return f"| {name} | `{judged.answer.as_options()}` | {written[0]} | {written[1]} | {written[2]} to {written[3]} |"


def _best_lines(lines: dict[Method, dict[int, float]], choice: Choice) -> list[str]:
    ks = sorted({k for line in lines.values() for k in line})
    table = ["| method | " + " | ".join(f"k = {k}" for k in ks) + " |", "|---|" + "---:|" * len(ks)]
    won = choice.winner.answer
    for method, line in lines.items():
        cells = [choice.objective.written(line[k]) if k in line else "" for k in ks]
        if method == won.aggregate:
            cells[ks.index(won.k)] = f"**{cells[ks.index(won.k)]}**"
        table.append(f"| {method} | " + " | ".join(cells) + " |")
    return table


def _column(objective: Objective) -> str:
    if objective.name.startswith("acc@"):
        return f"within_{objective.radius_km:g}_km_percent"
    return objective.name if objective.larger_is_better else f"{objective.name}_km"


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
