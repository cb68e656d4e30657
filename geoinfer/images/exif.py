"""Where and when a photo's own metadata says it was taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from geoinfer.errors import ImageError
from geoinfer.images.decode_pillow import open_lazily
from geoinfer.images.read import read_image_file

if TYPE_CHECKING:
    from collections.abc import Mapping

_GPS_IFD: Final = 0x8825
_PHOTO_IFD: Final = 0x8769
_TAKEN_AT: Final = 0x9003
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class PhotoMetadata:
    """What a photo's EXIF says of its taking.

    Attributes:
        coordinates: latitude and longitude in degrees; None when it has none that can be true.
        taken_at: by the camera's clock, whose time zone nobody knows; None when it does not say.
    """

    coordinates: tuple[float, float] | None
    taken_at: datetime | None


def read_metadata(data: bytes, kind: str) -> PhotoMetadata:
    """Reads place and time from the EXIF of a photo's bytes.

    Args:
        data: the whole file.
        kind: its format, as `geoinfer.images.read.sniff` names it.

    Left out besides missing ones: coordinates that are not finite, out of range or without a hemisphere, and exactly
    (0, 0), which is what cameras write before they have a fix.

    Raises:
        ImageError: stage `decode`: the file cannot even be opened, so what it holds is not known.
    """
    image = open_lazily(data, kind)
    try:
        exif = image.getexif()
        gps, photo = exif.get_ifd(_GPS_IFD), exif.get_ifd(_PHOTO_IFD)
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything on damaged metadata; it then says nothing
        return PhotoMetadata(None, None)
    return PhotoMetadata(_coordinates(gps), _time(photo.get(_TAKEN_AT)))


def own_location(path: bytes, problem: ImageError | None) -> tuple[float, float] | ImageError:
    """Where a photo's own EXIF says it was taken, (latitude, longitude) in degrees, or why that is not known.

    Args:
        path: the photo.
        problem: what is known to be wrong with it already, which is then the answer.
    """
    if problem is not None:
        return problem
    try:
        coordinates = read_metadata(*read_image_file(path)).coordinates
    except ImageError as error:
        return error
    return coordinates or ImageError("labels", "no_gps", "the photo's EXIF holds no position")


def _time(value: Any) -> datetime | None:
    try:
        return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _coordinates(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    latitude = _degrees(tags.get(_LATITUDE), tags.get(_LATITUDE_REF), "N", "S", 90.0)
    longitude = _degrees(tags.get(_LONGITUDE), tags.get(_LONGITUDE_REF), "E", "W", 180.0)
    if latitude is None or longitude is None or (latitude == 0.0 and longitude == 0.0):
        return None
    return latitude, longitude


def _degrees(value: Any, reference: Any, positive: str, negative: str, limit: float) -> float | None:
    """Degrees, minutes, seconds (EXIF 2.32, 4.6.6) to signed degrees; some writers give one decimal number instead."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not 1 <= len(numbers) <= 3 or not all(math.isfinite(number) for number in numbers):
        return None
    degrees = sum(abs(number) / 60**power for power, number in enumerate(numbers))
    if any(number < 0 for number in numbers):  # EXIF has no signs; where one is written it is of the whole
        degrees = -degrees
    letter = reference.decode("ascii", "ignore") if isinstance(reference, bytes) else str(reference or "")
    hemisphere = letter.strip("\0 ").upper()[:1]
    if hemisphere == negative:
        degrees = -abs(degrees)
    elif hemisphere != positive and degrees >= 0:
        # Half of the Earth would be a guess, and a wrong reference misleads every photo that looks like it.
        return None
    return degrees if abs(degrees) <= limit else None
