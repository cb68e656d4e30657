"""From labelled photos of any layout to a prepared set: checked, split, with its S2 cells, and a report of all that."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
import pyarrow as pa

from geoinfer.errors import ImageError, InputError, LabelsError, OutputError, UsageError
from geoinfer.evaluate.coordinate_checks import look_swapped
from geoinfer.geocells import MAX_LEVEL, leaf_cells
from geoinfer.images import Preprocessing
from geoinfer.integrity import atomic_file
from trainer.data.examples import SPLITS, Column, Examples, check_output
from trainer.data.gather import Columns, Dropped, Gathered
from trainer.data.report import DropReason, PreparationReport, describe_cells, measure_leak
from trainer.data.sources import PhotoSource, Row, read_rows, recognise
from trainer.data.splits import (
    DEFAULT_SPLIT_LEVEL,
    SplitPolicy,
    check_shares,
    geocell_split,
    random_split,
    sequence_split,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

DROPPED: Final = "dropped.csv"
_ROWS_AT_ONCE: Final = 1 << 16
_TEST: Final = SPLITS.index("test")


def prepare(
    source: Path,
    out: Path,
    *,
    images: Path | None = None,
    split: SplitPolicy = "random",
    validation: float = 0.2,
    test: float = 0.0,
    split_level: int = DEFAULT_SPLIT_LEVEL,
    seed: int = 0,
    subset: int = 0,
    check_files: bool = True,
    check_swapped: bool = True,
    verify: bool = False,
    threads: int = 8,
    progress: Callable[[str, int], None] | None = None,
) -> PreparationReport:
    """Reads a source, drops what cannot be used, splits the rest, and writes a prepared set and `dropped.csv`.

    Args:
        source: as `trainer.data.sources.recognise` takes it.
        out: folder to write; a prepared set that is there is replaced.
        images: folder that the names in a CSV are relative to.
        split: how training, validation and test are parted.
        validation: share of the photos; of those that the source does not set apart for testing itself.
        test: likewise.
        split_level: S2 level of the cells that `split="geocell"` keeps whole.
        seed: of the split and the subset.
        subset: so many photos, drawn at random, and at most as many of the source's own test photos; 0 for all.
        check_files: look whether the files are there.
        check_swapped: stop if latitude and longitude look exchanged.
        verify: decode every photo and drop those that fail; takes as long as an epoch of training.
        threads: for `verify`, and for reading photos that carry their own labels.
        progress: told what is being done, and how many photos are through with it.

    Raises:
        UsageError: shares, level, seed or subset make no sense, or the source has test photos and a test share is
            asked for as well.
        InputError: the source is missing or holds no photo that can be used.
        LabelsError: a CSV lacks columns or is damaged, or its columns look swapped.
        OutputError: `out` holds something else or cannot be written.
    """
    _check_arguments(split, validation, test, split_level, seed, subset)
    check_output(out)
    tell = progress or (lambda _stage, _done: None)
    found = recognise(source, images)
    columns = Columns(found.root)
    for row in _counted(read_rows(found, check_files=check_files, threads=threads), tell):
        columns.add(row)
    if check_swapped and found.tables:
        _check_swapped(found, columns.written())
    gathered, dropped = columns.finish(), columns.dropped
    if verify:
        gathered = _verify(gathered, dropped, threads, tell)
    usable = len(gathered.examples)
    if not usable:
        raise _nothing(source, dropped)
    own_test = int(np.count_nonzero(gathered.is_test))
    if own_test and test:
        raise UsageError(
            f"{source}: has {own_test} test photos of its own, so a test share of {test:g} is one too many",
            hint="leave the test share out",
        )
    if split == "sequence" and not (gathered.examples.sequences >= 0).any():
        raise UsageError(
            f"{source}: no photo's sequence is known, so nothing can be split by it",
            hint="split by geocell, which keeps neighbours together too; or give the labels a column `sequence`",
        )
    if subset:
        gathered = _subset(gathered, subset, seed)
    examples = _with_cells(gathered.examples, tell)
    splits = np.full(len(examples), _TEST, np.int8)
    ours = ~gathered.is_test
    splits[ours] = _split(examples.take(ours), split, validation, test, split_level, seed)
    examples = examples.with_splits(splits)
    policy = {
        "policy": split,
        "level": split_level if split == "geocell" else None,
        "validation": validation,
        "test": "of the source" if own_test else test,
        "seed": seed,
    }
    tell("writing", 0)
    details = {
        "source": os.path.abspath(source),
        "kind": found.kind,
        "split": policy,
        "subset": subset,
        "read": columns.count,
    }
    examples.write(out, details)
    _write_dropped(out / DROPPED, dropped)
    tell("measuring", 0)
    return PreparationReport(
        source=os.fspath(source),
        kind=found.kind,
        notes=found.notes,
        out=out,
        examples=examples,
        read=columns.count,
        usable=usable,
        dropped=_summary(dropped),
        split=policy,
        cells=describe_cells(examples.of_split("train")),
        leaks=tuple(filter(None, (measure_leak(examples, name, seed) for name in SPLITS[1:]))),
    )


def _nothing(source: Path, dropped: list[Dropped]) -> InputError:
    reasons = ", ".join(f"{reason.count} {reason.code}" for reason in _summary(dropped)) or "it is empty"
    example = f", such as {dropped[0].id!r}: {dropped[0].message}" if dropped else ""
    return InputError(
        f"{source}: not one photo can be used: {reasons}{example}",
        hint="check the path, and --images if the labels are a CSV; without a CSV photos need GPS in their EXIF",
    )


def _summary(dropped: list[Dropped]) -> tuple[DropReason, ...]:
    """Reasons, the most frequent first, each with its first case."""
    counts = Counter(drop.code for drop in dropped)
    first = {drop.code: drop for drop in reversed(dropped)}
    return tuple(
        DropReason(code, count, first[code].line, first[code].id, first[code].message)
        for code, count in counts.most_common()
    )


def _check_arguments(split: str, validation: float, test: float, level: int, seed: int, subset: int) -> None:
    if split not in get_args(SplitPolicy):
        raise UsageError(f"there is no split {split!r}; expected one of {', '.join(get_args(SplitPolicy))}")
    check_shares(validation, test)
    if not 0 <= level <= MAX_LEVEL:
        raise UsageError(f"S2 level {level} of the split is outside 0 to {MAX_LEVEL}")
    if seed < 0 or subset < 0:
        raise UsageError(f"{'seed' if seed < 0 else 'subset'} {min(seed, subset)} is negative")


def _check_swapped(found: PhotoSource, written: NDArray[np.float64]) -> None:
    """Raises LabelsError if most rows make more sense with latitude and longitude exchanged."""
    shares = look_swapped(written)
    if shares is None:
        return
    labels = found.tables[0].labels
    latitude, longitude = (labels.header[labels.positions[role]] for role in ("latitude", "longitude"))
    raise LabelsError(
        f"{labels.path}: the columns {latitude!r} and {longitude!r} look swapped: {shares.as_given:.0%} of the rows "
        f"are possible places on land as they stand, {shares.exchanged:.0%} the other way round",
        hint=f"exchange {latitude!r} and {longitude!r} in the first line; if they are right, "
        "python -m trainer prepare --assume-order takes them as they are",
    )


def _verify(gathered: Gathered, dropped: list[Dropped], threads: int, tell: Callable[[str, int], None]) -> Gathered:
    examples = gathered.examples
    preprocessing = Preprocessing()

    def problem_of(row: int) -> ImageError | None:
        try:
            examples.load_pixels(row, preprocessing)
        except ImageError as error:
            return error
        return None

    good = np.ones(len(examples), bool)
    rows = iter(range(len(examples)))
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(rows, 1024)):
            for row, problem in zip(batch, pool.map(problem_of, batch), strict=True):
                if problem is not None:
                    good[row] = False
                    line = int(gathered.lines[row])
                    dropped.append(Dropped(line, examples.ids[row], problem.code, str(problem)))
            tell("photos decoded", batch[-1] + 1)
    return gathered if good.all() else gathered.take(np.flatnonzero(good))


def _subset(gathered: Gathered, count: int, seed: int) -> Gathered:
    """`count` photos, and at most as many that the source sets apart for testing, in their order."""
    kept = [
        rows[gathered.examples.take(rows).subset_rows(count, seed)]
        for rows in (np.flatnonzero(~gathered.is_test), np.flatnonzero(gathered.is_test))
    ]
    return gathered.take(np.sort(np.concatenate(kept)))


def _with_cells(examples: Examples, tell: Callable[[str, int], None]) -> Examples:
    cells = np.empty(len(examples), np.uint64)
    for start in range(0, len(examples), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        cells[part] = leaf_cells(examples.coordinates[part])
        tell("geocells found", min(start + _ROWS_AT_ONCE, len(examples)))
    return replace(examples, leaf_cells=cells)


def _split(
    examples: Examples, policy: SplitPolicy, validation: float, test: float, level: int, seed: int
) -> NDArray[np.int8]:
    if policy == "random":
        return random_split(examples.ids, validation=validation, test=test, seed=seed)
    if policy == "geocell":
        return geocell_split(examples.leaf_cells, level, validation=validation, test=test, seed=seed)
    names = examples.sequence_names.array.take(pa.array(examples.sequences, mask=examples.sequences < 0))
    return sequence_split(examples.ids, Column(names), validation=validation, test=test, seed=seed)


def _counted(rows: Iterator[Row], tell: Callable[[str, int], None]) -> Iterator[Row]:
    for count, row in enumerate(rows, start=1):
        yield row
        if count % _ROWS_AT_ONCE == 0:
            tell("labels read", count)


def _write_dropped(path: Path, dropped: list[Dropped]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["line", "id", "code", "message"])
    writer.writerows((drop.line or "", drop.id, drop.code, drop.message) for drop in dropped)
    try:
        with atomic_file(path) as file:
            file.write(text.getvalue().encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error
