"""Which photos a benchmark runs on: some of the user's, spread evenly over all of them, and what they are."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from geoinfer.errors import ImageError, InputError
from geoinfer.images import check_sources, discover, read_image_file
from geoinfer.images.decode_pillow import open_lazily

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_MEGAPIXELS: Final = ((2, "below 2 MP"), (8, "2 to 8 MP"))
_LARGER: Final = "8 MP or more"
NOT_READABLE: Final = "not readable"
_NAMES: Final = {"webp": "WebP", "heif": "HEIC", "jpeg2000": "JPEG 2000"}


@dataclass(frozen=True, slots=True)
class Photos:
    """The photos of a benchmark.

    Attributes:
        paths: as the operating system takes them, in the order of a run.
        found: how many there were to choose from.
        total_bytes: of all these files.
        classes: how many of each kind and size, the most frequent first.
        digest: of their names and sizes; the same photos elsewhere have the same.
        generated: kind, count and seed, where geoinfer made them.
    """

    paths: tuple[bytes, ...]
    found: int
    total_bytes: int
    classes: dict[str, int]
    digest: str
    generated: dict[str, Any] | None = None

    def describe(self) -> str:
        """Such as `200 of 3512 photos, 3.4 MB each: 180 JPEG, 8 MP or more; 20 PNG, below 2 MP`."""
        kinds = "; ".join(f"{count} {name}" for name, count in self.classes.items())
        of = "" if self.found == len(self.paths) else f" of {self.found}"
        made = "" if self.generated is None else " generated"
        size = self.total_bytes / len(self.paths) / 1e6
        return f"{len(self.paths)}{of}{made} photos, {size:.2f} MB each: {kinds}"

    def as_dict(self) -> dict[str, Any]:
        """What a result says of them."""
        return {
            "description": self.describe(),
            "count": len(self.paths),
            "total_bytes": self.total_bytes,
            "mean_bytes": round(self.total_bytes / len(self.paths)),
            "classes": self.classes,
            "digest": self.digest,
            "generated": self.generated,
        }

    def write_list(self, path: Path) -> str:
        """Writes the paths as a list and returns the argument that names it, see `geoinfer.images.discover`."""
        path.write_bytes(b"".join(name + b"\0" for name in self.paths))
        return f"@{path}"


def choose_photos(sources: Sequence[str], count: int) -> Photos:
    """Takes up to `count` of what the sources name, evenly spread over them, and looks at each.

    Raises:
        InputError: a source names nothing, or there is no photo in them.
    """
    check_sources(sources)
    spread = EvenlySpread(count)
    for source in discover(sources):
        spread.add(source.path)
    if not spread.seen:
        raise InputError(
            f"no photos found in {', '.join(sources)}",
            hint="folders and patterns are searched for files with an image's suffix; --generate makes photos",
        )
    return look_at(spread.chosen(), found=spread.seen)


def look_at(paths: Iterable[bytes], *, found: int = 0, generated: dict[str, Any] | None = None) -> Photos:
    """What these files are, by their headers.

    Args:
        paths: at least one.
        found: how many they were chosen from, if more.
        generated: see `Photos`.
    """
    names = tuple(paths)
    classes: Counter[str] = Counter()
    digest = hashlib.sha256()
    total = 0
    for name in names:
        kind, size = _class_of(name)
        classes[kind] += 1
        total += size
        base = os.path.basename(name)
        digest.update(len(base).to_bytes(4, "big") + base + size.to_bytes(8, "big"))
    return Photos(names, max(found, len(names)), total, dict(classes.most_common()), digest.hexdigest(), generated)


def _class_of(path: bytes) -> tuple[str, int]:
    """The kind and size of a photo in words, and its bytes."""
    try:
        data, kind = read_image_file(path)
    except ImageError as error:
        return NOT_READABLE, max(error.size_bytes, 0)
    try:
        image = open_lazily(data, kind)
    except ImageError:
        return NOT_READABLE, len(data)
    megapixels = image.width * image.height / 1e6
    size = next((words for limit, words in _MEGAPIXELS if megapixels < limit), _LARGER)
    progressive = "progressive, " if kind == "jpeg" and image.info.get("progressive") else ""
    return f"{_NAMES.get(kind, kind.upper())}, {progressive}{size}", len(data)


class EvenlySpread:
    """Chooses `count` of a stream of unknown length, evenly spread over it, in memory for 2 `count`."""

    def __init__(self, count: int) -> None:
        self.seen = 0
        self._count = count
        self._every = 1
        self._kept: list[bytes] = []

    def add(self, item: bytes) -> None:
        """The next one."""
        if self.seen % self._every == 0:
            self._kept.append(item)
            if len(self._kept) == 2 * self._count:
                self._kept = self._kept[::2]
                self._every *= 2
        self.seen += 1

    def chosen(self) -> Iterator[bytes]:
        """`count` of those seen, or all if they are fewer; in their order."""
        kept, count = self._kept, min(self._count, len(self._kept))
        return (kept[position * len(kept) // count] for position in range(count))
