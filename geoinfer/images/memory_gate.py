"""Huge photos wait for each other, so that several at once do not take more memory than there is.

What decoding takes is worked out from a photo's header. One that fits beside those under way goes ahead, the others
wait for their turn, and one that would not fit alone costs its own row instead of the whole run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from geoinfer.errors import ImageError
from geoinfer.images.headers import picture_header
from geoinfer.images.problems import MAX_PIXELS, NOT_ENOUGH_MEMORY
from geoinfer.machine import free_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from geoinfer.images.headers import PictureHeader
    from geoinfer.images.preprocessing import Preprocessing

_SHARE: Final = 0.75
"""Of the free memory that decoding may take: the rest of the program, and others, take some as well."""

_SMALL_BYTES: Final = 64 << 20
"""Less than this is not worth asking the system how much is free now."""

_PATIENCE_SECONDS: Final = 10.0
_SHORT_OF_MEMORY_SECONDS: Final = 60.0
_LOOK_AGAIN_SECONDS: Final = 0.25


class MemoryGate:
    """Lets decoding begin where there is room for it; for any number of threads."""

    def __init__(
        self, free_bytes: Callable[[], int] = free_memory_bytes, *, patience_seconds: float = _PATIENCE_SECONDS
    ) -> None:
        """Nothing is measured before the first photo.

        Args:
            free_bytes: how much memory is left on the machine.
            patience_seconds: how long a photo that does not fit though nothing else is decoded waits for others on the
                machine to give memory back. After one that waited in vain, none does for a minute.
        """
        self._free_bytes = free_bytes
        self._patience_seconds = patience_seconds
        self._condition = threading.Condition()
        self._queue: deque[object] = deque()
        self._taken = self._inside = self._budget = 0
        self._short_until = float("-inf")

    @contextlib.contextmanager
    def room(self, needed_bytes: int) -> Iterator[None]:
        """Waits until there is room, in the order of arrival, and keeps it while the block runs.

        Args:
            needed_bytes: what the block will take at most, see `decode_bytes`.

        Raises:
            ImageError: stage `decode`, code `not_enough_memory`: it does not fit even alone, or the block itself ended
                in a MemoryError.
        """
        self._enter(needed_bytes)
        try:
            yield
        except MemoryError as error:
            raise ImageError("decode", NOT_ENOUGH_MEMORY, "decoding it takes more memory than there is") from error
        finally:
            with self._condition:
                self._taken -= needed_bytes
                self._inside -= 1
                self._condition.notify_all()

    def _enter(self, needed: int) -> None:
        turn = object()
        with self._condition:
            self._queue.append(turn)
            try:
                waited_from: float | None = None
                while self._queue[0] is not turn or not self._fits(needed):
                    if self._queue[0] is turn and self._inside == 0:
                        now = time.monotonic()
                        waited_from = now if waited_from is None else waited_from
                        in_vain = now - waited_from >= self._patience_seconds
                        if in_vain:
                            self._short_until = now + _SHORT_OF_MEMORY_SECONDS
                        if in_vain or now < self._short_until:
                            raise ImageError("decode", NOT_ENOUGH_MEMORY, _too_much(needed, self._free_bytes()))
                    # Nobody tells when another process gives memory back.
                    self._condition.wait(_LOOK_AGAIN_SECONDS if self._queue[0] is turn else None)
                self._taken += needed
                self._inside += 1
            finally:
                self._queue.remove(turn)
                self._condition.notify_all()

    def _fits(self, needed: int) -> bool:
        """Two questions: what is promised to those inside may not be taken yet, and others may have taken memory."""
        if self._inside == 0:
            if needed >= _SMALL_BYTES or self._budget == 0:
                self._budget = int(self._free_bytes() * _SHARE)
            return needed <= self._budget or needed < _SMALL_BYTES
        if self._taken + needed > self._budget:
            return False
        return needed < _SMALL_BYTES or needed <= self._free_bytes() * _SHARE


def _too_much(needed: int, free: int) -> str:
    return f"decoding it takes about {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"


def decode_bytes(data: bytes, kind: str, preprocessing: Preprocessing) -> int:
    """Memory that decoding and resizing a photo takes at most, without its file's own bytes.

    By the bytes a pixel that were measured of each kind, rounded up; a slow test measures them again.

    Args:
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.
        preprocessing: what the model wants; a JPEG is decoded no larger than that needs.
    """
    header = picture_header(data, kind)
    if header is None or header.pixels > MAX_PIXELS:  # which the decoder refuses
        return _FIXED_BYTES
    return _FIXED_BYTES + _picture_bytes(header, kind, preprocessing.size)


_FIXED_BYTES: Final = 8 << 20
"""Tables of a decoder, and the rows that resampling is at."""

# A coefficient of a JPEG is a short; Pillow's pixels are four bytes, and simplejpeg's three are copied to them.
_COEFFICIENT_BYTES: Final = 2
_SCALED_JPEG_BYTES: Final = 7
_WHOLE_JPEG_BYTES: Final = 8.5
_PLAIN_BYTES: Final = 5.5
_TIFF_STRIP_BYTES: Final = 4
# A copy in four channels, a white canvas below it, and the two laid together.
_TRANSPARENT_BYTES: Final = 16.5
# Grey of more than 8 bits goes through 64-bit floats.
_WIDE_BYTES: Final = {16: 26.5, 32: 36.5}
_KIND_BYTES: Final = {"webp": 17.0, "jpeg2000": 20.0, "avif": 9.5, "heif": 9.5}


def _picture_bytes(header: PictureHeader, kind: str, size: int) -> int:
    if kind == "jpeg":
        return _jpeg_bytes(header, size)
    wide = header.channels == 1 and header.bits > 8
    each = _WIDE_BYTES[16 if header.bits <= 16 else 32] if wide else _PLAIN_BYTES
    if header.channels in (2, 4):
        each = _TRANSPARENT_BYTES
    if kind in _KIND_BYTES:
        own = _KIND_BYTES[kind] * (2 if header.bits > 8 else 1)
        # The decoder's own memory is given back before the picture is converted, but for one copy.
        each = max(own, each + 4)
    elif kind == "tiff":
        each += _TIFF_STRIP_BYTES
    return int(header.pixels * each)


def _jpeg_bytes(header: PictureHeader, size: int) -> int:
    coefficients = _COEFFICIENT_BYTES * header.samples_per_pixel * header.pixels if header.progressive else 0.0
    if header.channels == 4:
        return int(_WHOLE_JPEG_BYTES * header.pixels + coefficients)
    # As the decoder chooses: the smallest eighths, up to four, that are twice the side needed; else the whole.
    least = min(2 * size, header.width, header.height)
    eighths = next((n for n in (1, 2, 3, 4) if -(-min(header.width, header.height) * n // 8) >= least), 8)
    return int(_SCALED_JPEG_BYTES * header.pixels * (eighths / 8) ** 2 + 1.1 * coefficients)
