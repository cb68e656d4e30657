"""Which prediction belongs to which labelled photo: by its id, or else by its path, as far as that is beyond doubt.

`rome/1.jpg` is never matched with `paris/1.jpg`. Where a name has folders, the other must have the same ones, as far as
both go: `photos/rome/1.jpg` and `rome/1.jpg` are the same photo if no other is called either.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.errors import LabelsError
from geoinfer.evaluate.coordinate_checks import Units, check_against_truth
from geoinfer.evaluate.outcomes import MISSING, Outcomes
from geoinfer.evaluate.path_index import (
    BY_ENDING,
    BY_FILE_NAME,
    RANKS,
    SEVERAL,
    Claim,
    PathIndex,
    enter,
    is_mixed,
    tidy,
)
from geoinfer.images.discover import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from geoinfer.evaluate.prediction_files import PredictionTable
    from geoinfer.evaluate.truth import Truth

_LONGEST_SHOWN: Final = 200  # characters of a name in a message
_SHOWN: Final = 3
_IMAGE_SUFFIX: Final = re.compile(
    "(?:" + "|".join(re.escape(suffix.decode()) for suffix in sorted(IMAGE_SUFFIXES)) + ")$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Matched:
    """Labelled photos with their predictions.

    Attributes:
        outcomes: every labelled photo in the labels' order; `missing` where there is no prediction.
        unmatched_labels: ids without a prediction.
        unmatched_predictions: ids that no label knows.
        how: by what they were matched, in words.
        warnings: sentences for the user.
    """

    outcomes: Outcomes
    unmatched_labels: list[str]
    unmatched_predictions: list[str]
    how: str
    warnings: list[str] = field(default_factory=list)


def match(truth: Truth, table: PredictionTable, *, units: Units = "degrees") -> Matched:
    """Finds the prediction of each labelled photo.

    Each rule is asked for what the ones before left over, and none answers where two photos could be meant: the same
    id; the same path; a path that ends with the other; the same file name; the same without an image's suffix; the same
    but for upper and lower case.

    Args:
        truth: the labels.
        table: the predictions.
        units: that they were said to be written in.

    Raises:
        LabelsError: labels and predictions are one file; nothing matches; or the predictions are much nearer to the
            truth with latitude and longitude exchanged, or as radians.
    """
    if truth.path.exists() and table.path.exists() and os.path.samefile(truth.path, table.path):
        raise LabelsError(
            f"{table.path}: labels and predictions are the same file",
            hint="--labels names the true places, --predictions the estimated ones",
        )
    matching = _Matching(truth, table)
    matching.run()
    found = matching.found
    rows = np.flatnonzero(found >= 0)
    if not len(rows):
        raise _no_match(truth, table, matching.ambiguous())
    predicted = np.full((len(truth), 2), np.nan)
    predicted[rows] = table.coordinates[found[rows]]
    unused = np.ones(len(table), bool)
    unused[found[rows]] = False
    unmatched_labels = [truth.ids[row] for row in np.flatnonzero(found < 0).tolist()]
    unmatched_predictions = [table.ids[row] for row in np.flatnonzero(unused).tolist()]
    warnings = check_against_truth(truth.coordinates, predicted, table.path, truth.path, units=units)
    warnings += _unmatched_words(truth, table, unmatched_labels, unmatched_predictions)
    ambiguous = matching.ambiguous()
    if ambiguous:
        warnings.append(
            f"{len(ambiguous):,} names fit several photos or several predictions, and are matched with none: "
            f"{_some(ambiguous)}"
        )
    return Matched(
        outcomes=_outcomes(truth, table, found.tolist(), predicted),
        unmatched_labels=unmatched_labels,
        unmatched_predictions=unmatched_predictions,
        how=matching.how(),
        warnings=warnings,
    )


class _Matching:
    """Rule by rule.

    Attributes:
        found: (labels,) int64, the prediction of each, -1 where there is none.
    """

    def __init__(self, truth: Truth, table: PredictionTable) -> None:
        self.found = np.full(len(truth), -1, np.int64)
        self._truth = truth
        self._table = table
        self._paths: list[str] = []
        self._free = np.ones(len(table), bool)
        self._counts: dict[str, int] = {}
        self._doubtful_labels: set[int] = set()
        self._doubtful_rows: set[int] = set()

    def run(self) -> None:
        """Asks all rules."""
        self._by_ids()
        if not (self.found >= 0).all():
            self._paths = [_path_of(self._table, row) for row in range(len(self._table))]
        for words, key in _KEYS:
            for others in (None, *self._table.other_names.values()):
                if (self.found >= 0).all() or not self._free.any():
                    return
                self._by_paths(words, key, self._paths if others is None else [tidy(name) for name in others])

    def how(self) -> str:
        """What matched, in words."""
        if len(self._counts) == 1:
            return next(iter(self._counts))
        return ", ".join(f"{words} ({count:,})" for words, count in self._counts.items())

    def ambiguous(self) -> list[str]:
        """Names left over that a rule could have meant several by, in their order."""
        labels = [self._truth.ids[at] for at in sorted(self._doubtful_labels) if self.found[at] < 0]
        rows = [self._table.ids[row] for row in sorted(self._doubtful_rows) if self._free[row]]
        return list(dict.fromkeys(labels + rows))

    def _take(self, words: str, at: int, row: int) -> None:
        self.found[at] = row
        self._free[row] = False
        self._counts[words] = self._counts.get(words, 0) + 1

    def _by_ids(self) -> None:
        """The same text in any columns that name photos; the pair of columns counts first that agrees most often."""
        truth, table = self._truth, self._table
        answers: list[list[tuple[int, int]]] = []
        for of_labels in (truth.ids, *truth.other_names.values()):
            index: dict[str, int] = {}
            for at, name in enumerate(of_labels):
                enter(index, name, at)
            for of_rows in (table.ids, *table.other_names.values()):
                claims: dict[int, int] = {}
                for row, name in enumerate(of_rows):
                    at = index.get(name, SEVERAL) if name else SEVERAL
                    # Names that only describe bytes are compared as such, below.
                    if at != SEVERAL and not (row in table.raw_paths and of_rows is table.ids):
                        claims[at] = SEVERAL if at in claims else row
                answers.append([(at, row) for at, row in claims.items() if row != SEVERAL])
        for pairs in sorted(answers, key=len, reverse=True):
            for at, row in pairs:
                if self.found[at] < 0 and self._free[row]:
                    self._take("by id", at, row)

    def _by_paths(self, words: str, key: Callable[[str], str], paths: list[str]) -> None:
        """Names that are the same path or end with each other, folder by folder."""
        index = PathIndex(self._truth, key)
        mixed = index.mixed, is_mixed(paths)
        claims, doubtful = self._claims(index, key, paths)
        prefix = _common_prefix(claims.values())
        if prefix is not None and (doubtful or any(mixed) or any(claim.row == SEVERAL for claim in claims.values())):
            claims, doubtful = self._claims(index, key, paths, prefix)
        self._doubtful_rows.update(doubtful)
        for at, claim in sorted(claims.items()):
            if claim.row == SEVERAL:
                self._doubtful_labels.add(at)
            # Among names with folders one without is at the top: it is not just any photo that is called so.
            elif claim.rank < BY_FILE_NAME or not mixed[claim.prefix[0]]:
                self._take(RANKS[claim.rank] + words, at, claim.row)

    def _claims(
        self, index: PathIndex, key: Callable[[str], str], paths: list[str], prefix: tuple[int, str] | None = None
    ) -> tuple[dict[int, Claim], list[int]]:
        """What fits each label best, and the rows that fit several labels."""
        claims: dict[int, Claim] = {}
        doubtful: list[int] = []
        for row in np.flatnonzero(self._free).tolist():
            claim = index.look_up(key(paths[row]), row, prefix)
            if claim is None:
                continue
            if claim.label == SEVERAL:
                doubtful.append(row)
            elif self.found[claim.label] < 0:
                before = claims.get(claim.label)
                if before is None or claim.rank < before.rank:
                    claims[claim.label] = claim
                elif claim.rank == before.rank:
                    claims[claim.label] = replace(claim, row=SEVERAL)
        return claims, doubtful


def _common_prefix(claims: Iterable[Claim]) -> tuple[int, str] | None:
    """The folders that most of the paths have in front of the others'; None if there are none such."""
    counts = Counter(claim.prefix for claim in claims if claim.rank == BY_ENDING and claim.row != SEVERAL)
    if not counts:
        return None
    ((prefix, count),) = counts.most_common(1)
    return prefix if 2 * count > counts.total() else None


def _path_of(table: PredictionTable, row: int) -> str:
    raw = table.raw_paths.get(row)
    return tidy(table.ids[row] if raw is None else os.fsdecode(raw))


def _without_suffix(path: str) -> str:
    return _IMAGE_SUFFIX.sub("", path)


_KEYS: Final[tuple[tuple[str, Callable[[str], str]], ...]] = (
    ("", lambda path: path),
    (" without suffix", _without_suffix),
    (" without suffix, in upper or lower case", lambda path: _without_suffix(path).casefold()),
)


def _outcomes(truth: Truth, table: PredictionTable, found: list[int], predicted: NDArray[np.float64]) -> Outcomes:
    missing = f"{table.path.name} has no prediction of it"
    rows = np.array(found, np.int64)
    known = rows >= 0

    def numbers(values: NDArray[np.float64]) -> NDArray[np.float64]:
        chosen = np.full(len(truth), np.nan)
        chosen[known] = values[rows[known]]
        return chosen

    return truth.outcomes(
        predicted,
        [MISSING if row < 0 else table.statuses[row] for row in found],
        [missing if row < 0 else table.reasons[row] for row in found],
        scores=numbers(table.scores),
        radii_km=numbers(table.radii_km),
        candidates=None if table.candidates is None else [() if row < 0 else table.candidates[row] for row in found],
    )


def _unmatched_words(truth: Truth, table: PredictionTable, labels: list[str], predictions: list[str]) -> list[str]:
    words = []
    if labels:
        has = "has" if len(labels) == 1 else "have"
        words.append(
            f"{len(labels):,} of {len(truth):,} labelled photos {has} no prediction in {table.path}: {_some(labels)}"
        )
    if predictions:
        words.append(
            f"{len(predictions):,} of {len(table):,} predictions are of photos that {truth.path} does not name: "
            f"{_some(predictions)}"
        )
    return words


def _no_match(truth: Truth, table: PredictionTable, ambiguous: list[str]) -> LabelsError:
    if ambiguous:
        return LabelsError(
            f"{table.path}: no prediction can be matched with a photo of {truth.path} beyond doubt; these names fit "
            f"several: {_some(ambiguous)}",
            hint="write paths with the folders that tell the photos apart, in both files",
        )
    return LabelsError(
        f"{table.path}: not one of its {len(table):,} predictions is of a photo that {truth.path} names: it has "
        f"{_some(table.ids)}; the labels have {_some(truth.ids)}",
        hint="both need the same ids, or paths that are the same from some folder on",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:_LONGEST_SHOWN]) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
