"""The pictures that an exported model is held to: real photos, from one folder."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.errors import ImageError, InputError
from geoinfer.images import decode_pixels, discover, read_image_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoinfer.images import Preprocessing, Source

CHECKOUT_PHOTOS: Final = Path(__file__).parents[1] / "examples" / "photos"

MAX_PHOTOS: Final = 256
"""Photos of a large folder that are looked at: a minute or two of a ViT-B on two cores."""

MEASURED_PHOTOS: Final = 64
"""That float16 is measured on, one at a time."""

_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Pictures:
    """Photos as a model sees them, upright ones first, then turned copies where the folder holds too few.

    Attributes:
        names: of each, relative to the folder; of a copy, with what was done to it.
        pixels: (n, size, size, 3) uint8.
        folder: that they come from; None for pictures that come from no file, which is also when `files` is empty.
        files: paths of the upright ones, which are the first rows of `pixels`.
        content_sha256: (len(files), 32) uint8, of the files' bytes.
        unreadable: names of files that were to be among them and could not be decoded.
    """

    names: tuple[str, ...]
    pixels: NDArray[np.uint8]
    folder: Path | None = None
    files: tuple[bytes, ...] = ()
    content_sha256: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, _DIGEST_BYTES), np.uint8))
    unreadable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not belong together."""
        if not len(self.names) == len(self.pixels) >= len(self.files) == len(self.content_sha256):
            raise ValueError(
                f"{len(self.names)} names for {len(self.pixels)} pictures of {len(self.files)} files with "
                f"{len(self.content_sha256)} digests"
            )

    @property
    def photos(self) -> int:
        """How many are photos as they were taken, and no turned copies."""
        return len(self.files) if self.files else len(self.names)


def gather_pictures(
    folder: Path | None, preprocessing: Preprocessing, *, at_least: int, at_most: int = MAX_PHOTOS
) -> Pictures:
    """Photos spread evenly over a folder, turned by a quarter each time round when there are too few.

    A file that cannot be decoded costs itself alone: another takes its place, and its name is kept. Copies of a file
    count as one photo, for a second would say nothing new of a model.

    Args:
        folder: searched with all below it; the checkout's `examples/photos` if left out.
        preprocessing: of the model.
        at_least: pictures to return, at least 1.
        at_most: photos to decode; `at_least` where that is more.

    Raises:
        InputError: there is no such folder, it holds no photos, or none that can be decoded.
    """
    folder = CHECKOUT_PHOTOS if folder is None else folder
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder", hint="--photos names a folder with a few photos")
    # Absolute, because `discover` reads more into a name that begins with @ or is -.
    top = os.path.abspath(os.fsencode(folder))
    sources = [source for source in discover([os.fsdecode(top)]) if _is_candidate(source)]
    if not sources:
        raise InputError(
            f"{folder}: holds no photos to hold the exported model to",
            hint="--photos names a folder with a few JPEG or PNG photos",
        )
    wanted = max(at_least, at_most)
    names: list[str] = []
    files: list[bytes] = []
    decoded: list[NDArray[np.uint8]] = []
    digests: list[bytes] = []
    seen: set[bytes] = set()
    unreadable: dict[str, str] = {}
    for row in _spread(len(sources), wanted):
        path = sources[row].path
        name = _display(os.path.relpath(path, top))
        try:
            data, kind = read_image_file(path)
            digest = hashlib.sha256(data).digest()
            if digest in seen:
                continue
            pixels = decode_pixels(data, kind, preprocessing)
        except ImageError as error:
            unreadable[name] = str(error)
            continue
        names.append(name)
        files.append(path)
        decoded.append(pixels)
        digests.append(digest)
        seen.add(digest)
        if len(files) == wanted:
            break
    if not files:
        name, reason = next(iter(unreadable.items()))
        raise InputError(
            f"{folder}: none of its {len(unreadable)} photos can be decoded; {name}: {reason}",
            hint="--photos names a folder with a few JPEG or PNG photos",
        )
    for copy in range(len(files), at_least):
        turns, original = divmod(copy, len(files))
        names.append(f"{names[original]} turned by {90 * (turns % 4)}")
        decoded.append(np.rot90(decoded[original], k=turns % 4))
    return Pictures(
        names=tuple(names),
        pixels=np.stack(decoded),
        folder=Path(os.fsdecode(top)),
        files=tuple(files),
        content_sha256=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES),
        unreadable=tuple(unreadable),
    )


def for_ranges(pixels: NDArray[np.uint8], at_most: int = MEASURED_PHOTOS) -> NDArray[np.uint8]:
    """Pictures to measure activations on: some spread over the given ones, and what photos seldom hold.

    Args:
        pixels: (n, size, size, 3) uint8.
        at_most: of them.

    Returns:
        (min(n, at_most) + 4, size, size, 3) uint8, the last four black, white, noise, and stripes two pixels wide.
    """
    size = pixels.shape[1]
    stripes = np.broadcast_to((np.arange(size) // 2 % 2 * 255)[None, :, None], (size, size, 3))
    drawn = [
        np.zeros((size, size, 3)),
        np.full((size, size, 3), 255),
        np.random.default_rng(0).integers(0, 256, (size, size, 3)),
        stripes,
    ]
    chosen = _spread(len(pixels), at_most)[:at_most]
    return np.concatenate([pixels[chosen], np.stack(drawn).astype(np.uint8)])


def _is_candidate(source: Source) -> bool:
    """All but camera raw, which is left out on purpose, and folders that may not be looked into."""
    return source.problem is None


def _spread(count: int, wanted: int) -> list[int]:
    """Rows of a list: `wanted` of them evenly over it, then the others, to take the place of those that fail."""
    if count <= wanted:
        return list(range(count))
    first = [position * count // wanted for position in range(wanted)]
    return first + sorted(set(range(count)) - set(first))


def _display(name: bytes) -> str:
    """A file's name as text that can be printed and written, whatever its bytes."""
    return name.decode("utf-8", "backslashreplace")
