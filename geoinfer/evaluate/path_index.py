"""Paths that end alike: which of the labels' paths a prediction's path can be."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from geoinfer.evaluate.truth import Truth

SEVERAL: Final = -1
"""Stands for a position where several could be meant."""

_FOLDERS: Final = 6
"""So many parts of a path that the labels do not give themselves are compared."""

RANKS: Final = ("by path", "by file name", "by path", "by path", "by file name")
"""How two paths fit, the best first: the same; the same and no folders; the same but for the folders that most differ
by; one ends with the other; it does, and is a name alone."""

_SAME_PATH, _SAME_NAME, _BY_PREFIX, BY_ENDING, BY_FILE_NAME = range(5)

_UNTIDY: Final = re.compile(r"\\|//|^/|(?:^|/)\.\.?/")


@dataclass(frozen=True, slots=True)
class Claim:
    """A prediction that fits a label.

    Attributes:
        label: position; `SEVERAL` if it fits several.
        row: of the prediction; `SEVERAL` if several fit.
        rank: position in `RANKS`, the smaller the better.
        prefix: 0 or 1, whether the label or the prediction is shorter, and the folders that the other has in front.
    """

    label: int
    row: int
    rank: int
    prefix: tuple[int, str] = (0, "")


class PathIndex:
    """Labels' paths, and what those end with, to the label.

    All labels are in it, those already matched too: what two of them share is not beyond doubt.
    """

    def __init__(self, truth: Truth, key: Callable[[str], str]) -> None:
        self._whole: dict[str, int] = {}
        self._endings: dict[str, int] = {}
        self._names: list[str] = []
        for at, text in enumerate(truth.ids):
            located = os.fsdecode(truth.paths[at])
            # Of photos without labels the ids only describe what may not be UTF-8.
            name = os.path.relpath(located, truth.path) if truth.layout == "EXIF" else text
            own = key(tidy(name))
            self._names.append(own)
            enter(self._whole, own, at)
            for ending in _endings(own):
                enter(self._endings, ending, at)
            if not located.endswith(name):  # found in a folder that the labels do not name
                for ending in [*_endings(key(tidy(located)))][-_FOLDERS:]:
                    enter(self._endings, ending, at)
        for others in truth.other_names.values():
            for at, text in enumerate(others):
                other = key(tidy(text))
                enter(self._whole, other, at)
                for ending in _endings(other):
                    enter(self._endings, ending, at)
        self.mixed = is_mixed(self._names)

    def look_up(self, name: str, row: int, prefix: tuple[int, str] | None = None) -> Claim | None:
        """What a prediction's path fits, None if nothing; `prefix` is what most others differ by."""
        if name.rpartition("/")[2] not in self._endings:
            return None
        at = self._whole.get(name)
        if at is not None:
            return Claim(at, row, _SAME_PATH if "/" in name else _SAME_NAME)
        if prefix is not None:
            longer, folders = prefix
            at = self._whole.get(folders + name) if longer else None
            if not longer and name.startswith(folders):
                at = self._whole.get(name.removeprefix(folders))
            if at is not None:
                return Claim(at, row, _BY_PREFIX, prefix)
        at = self._endings.get(name)
        if at is not None:
            before = "" if at == SEVERAL else self._names[at].removesuffix(name)
            return Claim(at, row, BY_ENDING if "/" in name else BY_FILE_NAME, (1, before))
        for ending in itertools.islice(_endings(name), 1, None):
            at = self._whole.get(ending)
            if at is not None:
                rank = BY_ENDING if "/" in ending else BY_FILE_NAME
                return Claim(at, row, rank, (0, name.removesuffix(ending)))
        return None


def is_mixed(names: list[str]) -> bool:
    """Whether some have folders and some have none."""
    with_folder = sum("/" in name for name in names)
    return 0 < with_folder < len(names)


def enter(index: dict[str, int], name: str, at: int) -> None:
    """Notes a name; one that another position has already stands for `SEVERAL`."""
    if name:
        index[name] = at if index.get(name, at) == at else SEVERAL


def _endings(path: str) -> Iterator[str]:
    """`a/b/c`, `b/c`, `c`."""
    while path:
        yield path
        path = path.partition("/")[2]


def tidy(path: str) -> str:
    """A path with slashes alone, without `.`, and without the root or `..` that it begins with."""
    if not _UNTIDY.search(path):
        return path
    tidy = posixpath.normpath("/" + path.replace("\\", "/"))
    return tidy.lstrip("/")
