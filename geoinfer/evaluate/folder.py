"""The folder of a report: what may be in it already, and how a new report takes its place.

A report is made aside, in a hidden folder within its own, and moved into place at the end, `metrics.json` last: where
that file is, the report is whole. A kill before leaves an earlier report as it was; a kill while files are moved leaves
the hidden folder, by which the next run knows whose the other files are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any, Final, Self

from geoinfer.bundle import is_bundle
from geoinfer.errors import InputError, OutputError
from geoinfer.index import is_index
from geoinfer.integrity import sha256_of, sync_folder, write_json
from geoinfer.lock import OutputLock
from geoinfer.unfinished import undone_at_the_end

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = "geoinfer-evaluation"
VERSION: Final = 1
METRICS, ERRORS, UNMATCHED, PAGE, MAPS = "metrics.json", "errors.csv", "unmatched.csv", "report.html", "maps"

FILES: Final = (
    METRICS,
    ERRORS,
    UNMATCHED,
    PAGE,
    "tables.md",
    "tables.tex",
    "tables.csv",
    "differences.csv",
    "report.md",
)
"""What may lie in a report's folder beside `maps/`."""

_MAP_SUFFIXES: Final = (".png", ".svg")
_STAGE: Final = ".geoinfer-report"
_OWNED: Final = "files.json"
_LOCK: Final = "lock"


def check_report_folder(folder: Path, *, force: bool, photos: Path | None = None) -> None:
    """Finds out, before hours of work, what would keep a report from being written, or make it overwrite other files.

    Args:
        folder: where the report is to be.
        force: whether another report may be replaced.
        photos: a folder in which every picture is taken for a photo to be tested on.

    Raises:
        OutputError: it is a file, an index or a bundle or in one, lies in `photos`, holds another report and `force`
            is not set, cannot be written, or holds files of a report's names that are of no report: those are not
            replaced, `force` or not.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder}: is a file", hint="name a folder")
    if is_index(folder) or is_bundle(folder):
        raise OutputError(f"--out {folder}: is a reference index or a bundle", hint="choose another folder")
    for parent in folder.resolve().parents:
        if is_index(parent) or is_bundle(parent):
            raise OutputError(
                f"--out {folder}: is in {parent}, a reference index or a bundle", hint="choose a folder outside"
            )
    if photos is not None and folder.resolve().is_relative_to(photos.resolve()):
        raise OutputError(
            f"--out {folder}: is in {photos}, where every picture counts as a photo: the report's maps would",
            hint="choose a folder outside",
        )
    metrics = read_report_metrics(folder)
    if metrics is not None and not force:
        name = metrics.get("name")
        of_whom = f" (of {name})" if isinstance(name, str) and name else ""
        raise OutputError(
            f"--out {folder}: holds another report{of_whom}",
            hint="choose another folder, or say --force to replace it",
        )
    owned = _owned(folder, metrics)
    there = [name for name in FILES if os.path.lexists(folder / name)]
    with contextlib.suppress(OSError):
        there += [f"{MAPS}/{name}" for name in sorted(os.listdir(folder / MAPS)) if _is_report_name(f"{MAPS}/{name}")]
    if os.path.lexists(folder / MAPS) and not (folder / MAPS).is_dir():
        there.append(MAPS)
    foreign = [name for name in there if name not in owned]
    if foreign:
        raise OutputError(
            f"--out {folder}: holds {foreign[0]}, which is of no report that geoinfer wrote there",
            hint="choose another folder; --force replaces reports and no other files",
        )
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"--out {folder}: {parent} is a file", hint="choose another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"--out {folder}: cannot be written: permission denied", hint="choose another folder")


def read_report_metrics(folder: Path) -> dict[str, Any] | None:
    """What `metrics.json` of a report says; None where there is none, or one of another make."""
    try:
        values = json.loads((folder / METRICS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and values.get("format") == FORMAT else None


def check_report(folder: Path) -> dict[str, Any]:
    """What `metrics.json` of a report says.

    Raises:
        InputError: there is no such folder, or it holds no whole report of a photo set.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: there is no such folder", hint="--compare takes folders that `geoinfer evaluate` wrote"
        )
    values = read_report_metrics(folder)
    if values is None:
        raise InputError(
            f"{folder}: holds no report: there is no {METRICS} of geoinfer's",
            hint="--compare takes folders that `geoinfer evaluate` wrote",
        )
    if values.get("version") != VERSION:
        raise InputError(
            f"{folder / METRICS}: report format version {values.get('version')!r}; this geoinfer reads {VERSION}",
            hint="make the report again",
        )
    if not (folder / ERRORS).is_file():
        raise InputError(
            f"{folder}: holds no {ERRORS}, from which runs are compared",
            hint="a comparison cannot itself be compared; give the reports it was made of",
        )
    return values


class ReportFolder:
    """A folder that a report is being made for; a context manager. Left without `commit`, it is as it was before."""

    def __init__(self, folder: Path, *, force: bool) -> None:
        """Nothing is made yet; `check_report_folder` says whether it may be."""
        self._folder, self._force = folder, force
        self._made: list[Path] = []
        self._stack = contextlib.ExitStack()
        self._moving = False

    @property
    def stage(self) -> Path:
        """Where the files of the report are to be written."""
        return self._folder / _STAGE / "new"

    def __enter__(self) -> Self:
        """Makes the folder, and keeps other runs out.

        Raises:
            OutputError: another run writes there, or it cannot be written.
        """
        lock = OutputLock(self._folder / _STAGE / _LOCK, self._folder, option="--out")
        try:
            self._make_folder()
            lock.take()
        except OSError as error:
            self._remove_made()
            raise _unwritten(self._folder, error) from error
        self._stack.callback(lock.release)
        self._stack.enter_context(undone_at_the_end(self._undo))
        try:
            # Of a run that was killed nothing is kept but the list of the files that it was replacing.
            shutil.rmtree(self.stage, ignore_errors=True)
            self.stage.mkdir()
        except OSError as error:
            self.__exit__()
            raise _unwritten(self._folder, error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo()
        self._stack.close()

    def commit(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Moves the report into place, and removes what only an earlier one had; returns what `metrics.json` says.

        Args:
            metrics: what `metrics.json` says, but for what this adds: `format`, `version` and `files`.

        Raises:
            OutputError: a file cannot be written, or one of a report's names has appeared meanwhile.
        """
        folder, stage = self._folder, self.stage
        check_report_folder(folder, force=self._force)
        new = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())
        if strangers := [name for name in new if not _is_report_name(name)]:
            raise ValueError(f"{strangers[0]} is no file of a report")
        new = [name for name in new if name != METRICS]
        try:
            files = {name: {"bytes": (stage / name).stat().st_size, "sha256": sha256_of(stage / name)} for name in new}
            written = metrics | {"format": FORMAT, "version": VERSION, "files": files}
            write_json(stage / METRICS, written)
            owned = sorted({*new, METRICS} | _owned(folder, read_report_metrics(folder)))
            write_json(folder / _STAGE / _OWNED, owned)
            # From here until all are moved, that list says whose the files are.
            self._moving = True
            for name in [METRICS, *(name for name in owned if name not in new)]:
                (folder / name).unlink(missing_ok=True)
            if any("/" in name for name in new):
                (folder / MAPS).mkdir(exist_ok=True)
            for name in [*new, METRICS]:
                (stage / name).replace(folder / name)
            sync_folder(folder)
        except OSError as error:
            raise _unwritten(folder, error) from error
        self._moving = False
        self._made.clear()
        with contextlib.suppress(OSError):
            (folder / MAPS).rmdir()  # only if this report has none, and nobody else's are there
        return written

    def _make_folder(self) -> None:
        missing, parent = [], self._folder
        while not parent.exists():
            missing.append(parent)
            parent = parent.parent
        for path in reversed(missing):
            path.mkdir()
            self._made.insert(0, path)

    def _undo(self) -> None:
        if self._moving:
            return
        shutil.rmtree(self._folder / _STAGE, ignore_errors=True)
        self._remove_made()

    def _remove_made(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._made:
                path.rmdir()


def _owned(folder: Path, metrics: dict[str, Any] | None) -> set[str]:
    """Names of the files that geoinfer wrote there: as `metrics.json` has them, or a run that was killed."""
    names: set[Any] = set()
    if metrics is not None:
        names.add(METRICS)
        files = metrics.get("files")
        names |= set(files) if isinstance(files, dict) else set()
    with contextlib.suppress(OSError, ValueError, TypeError):
        names |= set(json.loads((folder / _STAGE / _OWNED).read_bytes()))
    return {name for name in names if isinstance(name, str) and _is_report_name(name)}


def _is_report_name(name: str) -> bool:
    if name in FILES:
        return True
    folder, _, file = name.partition("/")
    return folder == MAPS and "/" not in file and "\\" not in file and file.endswith(_MAP_SUFFIXES)


def _unwritten(folder: Path, error: OSError) -> OutputError:
    if isinstance(error, OutputError):
        return error
    return OutputError(
        f"{folder}: cannot be written: {(error.strerror or str(error)).lower()}",
        hint="see to space on the disk and to who may write there, or choose another folder",
    )
