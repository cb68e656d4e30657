"""Where a photo's own metadata says it was taken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from geoinfer.images.decode import open_lazily

if TYPE_CHECKING:
    from collections.abc import Mapping

_GPS_IFD: Final = 0x8825
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4


def gps_coordinates(data: bytes, kind: str) -> tuple[float, float] | None:
    """Latitude and longitude in degrees from the EXIF of a photo's bytes, None when it carries none that can be true.

    Args:
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.

    Left out besides missing ones: values that are not finite or out of range, and exactly (0, 0), which is what
    cameras write before they have a fix.
    """
    try:
        tags = open_lazily(data, kind).getexif().get_ifd(_GPS_IFD)
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything on damaged metadata; it then holds no position
        return None
    return _coordinates(tags)


def _coordinates(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    latitude = _degrees(tags.get(_LATITUDE), tags.get(_LATITUDE_REF), "S", 90.0)
    longitude = _degrees(tags.get(_LONGITUDE), tags.get(_LONGITUDE_REF), "W", 180.0)
    if latitude is None or longitude is None or (latitude == 0.0 and longitude == 0.0):
        return None
    return latitude, longitude


def _degrees(value: Any, reference: Any, negative: str, limit: float) -> float | None:
    """Degrees, minutes, seconds (EXIF 2.32, 4.6.6) to signed degrees; some writers give one decimal number instead."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not 1 <= len(numbers) <= 3 or not all(math.isfinite(number) for number in numbers):
        return None
    degrees = sum(number / 60**power for power, number in enumerate(numbers))
    letter = reference.decode("ascii", "ignore") if isinstance(reference, bytes) else str(reference or "")
    if letter.strip("\0 ").upper().startswith(negative):
        degrees = -abs(degrees)
    return degrees if abs(degrees) <= limit else None
