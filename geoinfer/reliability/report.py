"""The folder of a reliability report: tables as CSV and Markdown, pictures as PNG and SVG."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import OutputError
from geoinfer.integrity import atomic_file
from geoinfer.reliability.draw import check_drawing, draw_reliability, draw_risk_coverage
from geoinfer.reliability.risk import risk_coverage
from geoinfer.reliability.table import Row

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.reliability.risk import RiskCoverage
    from geoinfer.reliability.table import Reliability

FILES: Final = (
    "reliability.csv",
    "risk_coverage.csv",
    "report.md",
    "reliability.png",
    "reliability.svg",
    "risk_coverage.png",
    "risk_coverage.svg",
)

_TITLE: Final = "# Reliability\n"
_SHARES: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def check_report_folder(folder: Path) -> None:
    """Finds out, before hours of work, what would keep a report from being written, or make it overwrite other files.

    Raises:
        OutputError: a file has the folder's name, or files of a report's names are there that are of no report.
        MissingPackageError: matplotlib is not installed.
    """
    check_drawing()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder}: is a file", hint="name a folder")
    there = [name for name in FILES if (folder / name).exists()]
    try:
        ours = (folder / "report.md").read_bytes().startswith(_TITLE.encode())
    except OSError:
        ours = False
    if there and not ours:
        raise OutputError(
            f"--out {folder}: holds {there[0]}, and no report of geoinfer's", hint="choose another folder"
        )


def write_report(result: Reliability, folder: Path, how: str) -> RiskCoverage:
    """Writes the tables and pictures of a result; files of an earlier report are replaced.

    Args:
        result: of at least one photo.
        folder: made if it is not there.
        how: a sentence that says what was tested on what.

    Returns:
        The risk-coverage curve, which is made on the way.

    Raises:
        OutputError: the folder or a file cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    risk = risk_coverage(result.judged.scores, result.judged.errors_km)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "reliability.csv", reliability_csv(result))
        _write(folder / "risk_coverage.csv", risk_csv(risk))
        draw_reliability(result, (folder / "reliability.png", folder / "reliability.svg"))
        draw_risk_coverage(risk, (folder / "risk_coverage.png", folder / "risk_coverage.svg"))
        _write(folder / "report.md", report_text(result, risk, how))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    return risk


def reliability_csv(result: Reliability) -> str:
    """The table with a header, one line a region and level."""
    names = [field.name for field in dataclasses.fields(Row)]
    return _csv(names, [[_rounded(getattr(row, name)) for name in names] for row in result.rows])


def risk_csv(risk: RiskCoverage) -> str:
    """The risk-coverage curve with a header, one line a share."""
    names = ["share", "min_score"]
    columns: list[Any] = [risk.shares, risk.limits]
    for name, curve in (("score", risk.scored), ("ideal", risk.ideal), ("random", risk.random)):
        names += [f"{name}_geoscore", f"{name}_median_km"]
        columns += [curve.geoscore, curve.median_km]
    return _csv(names, [[_rounded(float(value)) for value in values] for values in zip(*columns, strict=True)])


def report_text(result: Reliability, risk: RiskCoverage, how: str) -> str:
    """The report as Markdown."""
    unlike = float(result.judged.unlike.mean())
    return "\n".join(
        [
            _TITLE.strip(),
            "",
            how,
            "",
            "## Radii: the share of photos that lie within theirs",
            "",
            *reliability_lines(result),
            "",
            f"{unlike:.1%} of the photos are called unlike all references; of photos like those learnt from, 1% at "
            "most are, on average.",
            "",
            "![promised and found](reliability.svg)",
            "",
            "## Score: the best-scored share of the photos",
            "",
            *risk_lines(risk),
            "",
            f"Mean of the mean GeoScore (0 to 1) over all shares: {risk.scored.area:.3f} by score, "
            f"{risk.ideal.area:.3f} by true error, {risk.random.area:.3f} in no order: {risk.gain:.0%} of the way.",
            "",
            "![best-scored share](risk_coverage.svg)",
            "",
        ]
    )


def reliability_lines(result: Reliability) -> list[str]:
    """The reliability table as lines of Markdown."""
    lines = [
        "| region | photos | groups | promised | found | 95% interval | median radius | mean radius |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    return lines + [
        f"| {row.region} | {row.photos:,} | {row.groups:,} | {row.level:.0%} | {row.coverage:.1%} | "
        f"{row.low:.1%} to {row.high:.1%} | {row.median_radius_km:,.0f} km | {row.mean_radius_km:,.0f} km |"
        for row in result.rows
    ]


def risk_lines(risk: RiskCoverage) -> list[str]:
    """Some shares of the risk-coverage curve as lines of Markdown."""
    lines = [
        "| share kept | `--min-score` | mean GeoScore | median error | median error in no order |",
        "|---:|---:|---:|---:|---:|",
    ]
    for share in _SHARES:
        point = int(np.searchsorted(risk.shares, share - 1e-9))
        lines.append(
            f"| {risk.shares[point]:.0%} | {_kept_from(float(risk.limits[point]))} | "
            f"{5000 * risk.scored.geoscore[point]:,.0f} | "
            f"{risk.scored.median_km[point]:,.0f} km | {risk.random.median_km[point]:,.0f} km |"
        )
    return lines


def _kept_from(limit: float) -> str:
    """A score as `--min-score` takes it: rounded down, so that the photo that has it stays."""
    return f"{math.floor(limit * 1e6) / 1e6:.6f}"


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
