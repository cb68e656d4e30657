"""Several runs on the same photos, side by side: figures by one convention, and paired differences.

Everything is computed anew from each report's `errors.csv`. Rows of a table are comparable only if they are of the same
photos: photos that not all of the runs have are left out, and a warning counts them. Labels that differ are the first
run's; true places that differ are an error, because then ids do not mean the same photos.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import InputError, UsageError
from geoinfer.evaluate.errors_file import read_errors
from geoinfer.evaluate.folder import ERRORS, check_report
from geoinfer.evaluate.measure import Evaluation, measure
from geoinfer.evaluate.outcomes import GROUPINGS, Run
from geoinfer.evaluate.tables.models import Margins
from geoinfer.geodesy import haversine_km
from geoinfer.integrity import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from geoinfer.evaluate.bootstrap import Interval
    from geoinfer.evaluate.outcomes import Grouping, Outcomes
    from geoinfer.metrics import Convention

SAME_PLACE_KM: Final = 0.01
"""True places nearer than this are one: labels that were rounded to four decimals differ by up to 8 m."""

_TEXTS: Final = ("countries", "regions", "sub_regions", "cities", "sources", "sequences")


@dataclass(frozen=True, slots=True)
class Difference:
    """How one run's figures differ from another's on the photos of a set that both answered.

    Attributes:
        set_name: of the set.
        run: name of the run.
        against: name of the other one.
        count: photos that both answered.
        figures: for each of `bootstrap.FIGURES`, the run's minus the other's, with 95% interval; shares in points.
        nearer: photos at which the run was nearer to the truth.
        farther: photos at which the other was.
    """

    set_name: str
    run: str
    against: str
    count: int
    figures: dict[str, Interval]
    nearer: int
    farther: int

    @property
    def same(self) -> int:
        """Photos at which both were equally far off."""
        return self.count - self.nearer - self.farther


@dataclass(slots=True, eq=False)
class Comparison:
    """What runs come to, side by side.

    Attributes:
        folders: of the reports, in the order of the rows.
        evaluations: one a run, all of the same photos in the same order; their names differ.
        against: number of the run that the others are compared with.
        baselines: names of runs that are never bold.
        differences: by set, then by run.
        margins: the differences between any two, as far as they were computed.
        warnings: what a reader should know before believing a figure.
    """

    folders: list[Path]
    evaluations: list[Evaluation]
    against: int
    baselines: frozenset[str]
    differences: list[Difference]
    margins: Margins
    warnings: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Of the runs, in the order of the rows."""
        return [one.run.name for one in self.evaluations]


@dataclass(frozen=True, slots=True, eq=False)
class _Report:
    folder: Path
    run: Run
    convention: str
    grouped_by: Grouping | None
    outcomes: Outcomes
    warnings: list[str]


def compare(
    folders: Sequence[Path], *, convention: Convention, baselines: Sequence[str] = (), against: str | None = None
) -> Comparison:
    """Reads reports and puts them side by side.

    Args:
        folders: of reports, at least two.
        convention: how all of them are measured, whatever they were made with.
        baselines: names of runs that only stand there to be compared with, and are never bold.
        against: name of the run that differences are from; None for the first.

    Raises:
        InputError: a folder holds no report, one of another version, or a damaged one; runs have no photo in common, or
            the true place of one differs.
        UsageError: fewer than two folders, one of them twice, or a name of no run.
        MissingPackageError: the convention needs geographiclib.
    """
    _check_folders(folders)
    reports = _with_different_names([_read(folder) for folder in folders])
    names = [report.run.name for report in reports]
    for option, name in [("--baseline", name) for name in baselines] + ([("--against", against)] if against else []):
        if name not in names:
            raise UsageError(f"{option} {name}: no run has that name", hint=f"there are: {', '.join(names)}")
    outcomes, warnings = _same_photos(reports)
    number = names.index(against) if against else 0
    group_by = _common_grouping(reports, outcomes[0], warnings)
    evaluations = []
    for row, (report, photos) in enumerate(zip(reports, outcomes, strict=True)):
        if report.convention != convention.name:
            own = report.convention or "no convention that it names"
            warnings.append(
                f"{report.run.name}: its own report is by {own}; here all are measured by {convention.name}."
            )
        # A constant is of the photos that were answered: runs that answered the same ones share it.
        another = not any(np.array_equal(photos.answered, other.answered) for other in outcomes[:row])
        one = measure(
            photos, report.run, convention, set_columns=tuple(photos.columns), group_by=group_by, baselines=another
        )
        evaluations.append(one)
    margins = Margins(evaluations)
    warnings += _of_runs([(report, one) for report, one in zip(reports, evaluations, strict=True)])
    warnings += _twins(evaluations)
    return Comparison(
        list(folders), evaluations, number, frozenset(baselines),
        _differences(evaluations, number, margins), margins, warnings,
    )  # fmt: skip


def _check_folders(folders: Sequence[Path]) -> None:
    if len(folders) < 2:
        raise UsageError(
            f"--compare: {len(folders)} folder{'s' * (len(folders) != 1)}; a comparison needs at least two",
            hint="name folders that `geoinfer evaluate` wrote",
        )
    seen: dict[str, Path] = {}
    for folder in folders:
        key = os.path.realpath(folder)
        if key in seen:
            raise UsageError(f"--compare: {folder} and {seen[key]} are one folder", hint="name each run once")
        seen[key] = folder


def _read(folder: Path) -> _Report:
    metrics = check_report(folder)
    path = folder / ERRORS
    outcomes, _ = read_errors(path)
    if not len(outcomes):
        raise InputError(f"{path}: holds no photos", hint="make the report again")
    seen: set[str] = set()
    for photo in outcomes.ids:
        if photo in seen:
            raise InputError(f"{path}: holds the photo {photo} twice", hint="make the report again")
        seen.add(photo)
    name, k, made_by, warnings = (metrics.get(key) for key in ("name", "k", "made_by", "warnings"))
    run = Run(
        name if isinstance(name, str) and name else folder.resolve().name,
        k if isinstance(k, int) else None,
        made_by if isinstance(made_by, dict) else {},
    )
    notes = [text for text in warnings if isinstance(text, str)] if isinstance(warnings, list) else []
    written = _entry(_entry(metrics, "files"), ERRORS).get("sha256")
    if written is not None and written != sha256_of(path):
        notes.append(f"{ERRORS} has been changed since the report was made.")
    grouped_by = next((by for by in GROUPINGS if by == _entry(metrics, "intervals").get("grouped_by")), None)
    return _Report(folder, run, _convention_name(metrics), grouped_by, outcomes, notes)


def _entry(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _convention_name(metrics: dict[str, Any]) -> str:
    found = metrics.get("convention")
    name = found.get("name") if isinstance(found, dict) else found
    return name if isinstance(name, str) else ""


def _with_different_names(reports: list[_Report]) -> list[_Report]:
    """Runs of one name are told apart by the names of their folders, and if those agree, too, by their paths."""
    for label in (lambda folder: folder.resolve().name, str):
        names = [report.run.name for report in reports]
        reports = [
            dataclasses.replace(
                report, run=dataclasses.replace(report.run, name=f"{report.run.name} ({label(report.folder)})")
            )
            if names.count(report.run.name) > 1
            else report
            for report in reports
        ]
    return reports


def _common_grouping(reports: list[_Report], labelled: Outcomes, warnings: list[str]) -> Grouping:
    """What the reports' own intervals are grouped by; where they differ the largest groups, which promise least."""
    own = [report.grouped_by or labelled.grouping() for report in reports]
    largest = max(own, key=GROUPINGS.index)
    if len(set(own)) > 1:
        said = ", ".join(f"{report.run.name} by {by}" for report, by in zip(reports, own, strict=True))
        warnings.append(f"The reports' intervals are grouped differently ({said}); here all are by {largest}.")
    return largest


def _same_photos(reports: list[_Report]) -> tuple[list[Outcomes], list[str]]:
    """Each run's outcomes of the photos that all have, in the first one's order and with one set of labels."""
    rows = [{name: row for row, name in enumerate(report.outcomes.ids)} for report in reports]
    common = [name for name in reports[0].outcomes.ids if all(name in there for there in rows)]
    first = reports[0]
    if not common:
        examples = "; ".join(f"{report.run.name}: {', '.join(report.outcomes.ids[:3])}" for report in reports)
        raise InputError(
            f"the runs have no photo in common ({examples})", hint="compare runs that were made with the same labels"
        )
    taken = [
        _taken(report.outcomes, [there[name] for name in common]) for report, there in zip(reports, rows, strict=True)
    ]
    for report, outcomes in zip(reports[1:], taken[1:], strict=True):
        off_km = haversine_km(taken[0].truth, outcomes.truth)
        worst = int(off_km.argmax())
        if off_km[worst] > SAME_PLACE_KM:
            differing = int((off_km > SAME_PLACE_KM).sum())
            raise InputError(
                f"{first.run.name} and {report.run.name} are not of the same labels: the true places of the photo "
                f"{common[worst]} are {off_km[worst]:,.2f} km apart, and {differing:,} of {len(common):,} differ",
                hint="compare runs that were made with the same labels",
            )
    warnings = []
    for report in reports:
        left = len(report.outcomes) - len(common)
        if left:
            warnings.append(
                f"{report.run.name}: {left:,} of its {len(report.outcomes):,} photos are not in every run; they are "
                "left out here."
            )
    return _one_labelling(taken, [report.run.name for report in reports], warnings), warnings


def _taken(outcomes: Outcomes, rows: list[int]) -> Outcomes:
    """The rows of those numbers, in that order, without references and candidates, which no figure is of."""
    index = np.array(rows, np.int64)

    def texts(values: list[str]) -> list[str]:
        return [values[row] for row in rows]

    return dataclasses.replace(
        outcomes,
        ids=texts(outcomes.ids),
        paths=[outcomes.paths[row] for row in rows],
        truth=outcomes.truth[index],
        predicted=outcomes.predicted[index],
        statuses=texts(outcomes.statuses),
        reasons=texts(outcomes.reasons),
        scores=outcomes.scores[index],
        radii_km=outcomes.radii_km[index],
        columns={name: texts(values) for name, values in outcomes.columns.items()},
        references=None,
        candidates=None,
        **{name: texts(getattr(outcomes, name)) for name in _TEXTS},
    )


def _one_labelling(taken: list[Outcomes], names: list[str], warnings: list[str]) -> list[Outcomes]:
    """All with the labels of the first that says something; what others say otherwise is a warning."""
    texts = {name: [getattr(one, name) for one in taken] for name in _TEXTS}
    columns = dict.fromkeys(name for one in taken for name in one.columns)
    nothing = [""] * len(taken[0])
    extra = {name: [one.columns.get(name, nothing) for one in taken] for name in columns}
    merged = {name: _merged(name, given, taken[0].ids, names, warnings) for name, given in (texts | extra).items()}
    fields: dict[str, Any] = {name: merged[name] for name in _TEXTS}
    return [
        dataclasses.replace(one, truth=taken[0].truth, columns={name: merged[name] for name in columns}, **fields)
        for one in taken
    ]


def _merged(label: str, given: list[list[str]], ids: list[str], names: list[str], warnings: list[str]) -> list[str]:
    merged = list(given[0])
    for run, values in zip(names[1:], given[1:], strict=True):
        differing = [row for row, value in enumerate(values) if value and merged[row] and value != merged[row]]
        if differing:
            row = differing[0]
            warnings.append(
                f"{run}: {len(differing):,} photos have other {label.replace('_', '-')} in its labels than in those of "
                f"the runs before it ({ids[row]}: {values[row]} and {merged[row]}); those of the first are used."
            )
        merged = [mine or theirs for mine, theirs in zip(merged, values, strict=True)]
    return merged


def _of_runs(runs: list[tuple[_Report, Evaluation]]) -> list[str]:
    """What each report warned of, and what measuring it again does; once where it is said of all."""
    said: dict[str, list[str]] = {}
    for report, one in runs:
        for text in dict.fromkeys([*report.warnings, *one.warnings]):
            said.setdefault(text, []).append(report.run.name)
    return [text if len(names) == len(runs) else f"{', '.join(names)}: {text}" for text, names in said.items()]


def _twins(evaluations: list[Evaluation]) -> list[str]:
    """Runs whose answers are the same, as a copy's are."""
    found = []
    for row, one in enumerate(evaluations):
        for other in evaluations[:row]:
            if np.array_equal(one.outcomes.predicted, other.outcomes.predicted, equal_nan=True):
                found.append(f"{one.run.name} and {other.run.name} have the same answer to every photo.")
                break
    return found


def _differences(evaluations: list[Evaluation], against: int, margins: Margins) -> list[Difference]:
    found = []
    base = evaluations[against].run.name
    for set_name in evaluations[against].sets:
        for row, one in enumerate(evaluations):
            if row == against:
                continue
            own_km, other_km = margins.pairs(set_name, row, against)
            found.append(
                Difference(
                    set_name,
                    one.run.name,
                    base,
                    len(own_km),
                    margins.differences(set_name, row, against),
                    int((own_km < other_km).sum()),
                    int((own_km > other_km).sum()),
                )
            )
    return found
