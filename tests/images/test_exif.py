from __future__ import annotations

import io
import math
import struct
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoinfer.errors import ImageError
from geoinfer.images import read_image_file, read_metadata

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

# Degrees, minutes, seconds as the makers of the samples publish them, or as `exiftool` shows them.
KNOWN = {
    "DSCN0010.jpg": ((43, 28, 2.814, "N"), (11, 53, 6.456, "E")),
    "DSCN0042.jpg": ((43, 27, 52.038, "N"), (11, 52, 53.322, "E")),
    "HMD_Nokia_8.3_5G.jpg": ((60, 8, 48.14, "N"), (24, 54, 24.38, "E")),
    "IMG_20180725_163423.jpg": ((50, 17, 58.57, "N"), (14, 49, 13.06, "E")),
    "IMG_5910.jpg": ((37, 52.2656, 0, "N"), (122, 15.4068, 0, "W")),
    "berlin-01.jpg": ((52, 31, 8.1, "N"), (13, 24, 1.06, "E")),
    "berlin-02.jpg": ((52, 31, 8.13, "N"), (13, 24, 1.4, "E")),
    "iphone_hdr_YES.jpg": ((40, 26, 49.1, "N"), (3, 43, 29.11, "W")),
    "issue-exifr-3.jpg": ((40, 22, 39.0052, "N"), (74, 29, 23.6881, "W")),
    "issue-metadata-extractor-152.jpg": ((49, 11, 11.5704, "N"), (1, 39, 19.8474, "E")),
    "lund-01.jpg": ((55, 41, 53.4, "N"), (13, 11, 43.4, "E")),
    "lund-10.jpg": ((55, 41, 54.87, "N"), (13, 11, 42.18, "E")),
    "lund-20.jpg": ((55, 41, 56.98, "N"), (13, 11, 40.92, "E")),
}
KNOWN_FORMATS = {
    "IMG_5195.HEIC": ((39, 3, 4.84, "N"), (94, 17, 19.58, "W")),
    "heic-iphone.heic": ((7, 49, 53.15, "N"), (98, 17, 47.95, "E")),
    "heic-iphone7.heic": ((38, 2, 47.91, "N"), (12, 59, 39.88, "E")),
    "heic-maybebroken.HEIC": ((23, 10, 40.5, "N"), (113, 23, 39.54, "E")),
    "issue-exif-js-124.tiff": ((23, 55, 11.6976, "N"), (71, 12, 47.86363, "E")),
    "png_with_exif_and_gps.png": ((50, 17, 58.57, "N"), (14, 49, 13.06, "E")),
    "47102787.jp2": None,
    "Arbitro.tiff": None,
    "Irvine_CA.avif": None,
    "broken1.jpg": None,
    "heic-empty.heic": None,
    "noexif.jpg": None,
}


def degrees(parts: tuple[float, float, float, str]) -> float:
    value = parts[0] + parts[1] / 60 + parts[2] / 3600
    return -value if parts[3] in "SW" else value


def position(path: Path) -> tuple[float, float] | None:
    return read_metadata(*read_image_file(bytes(path))).coordinates


def parsed_by_hand(data: bytes) -> tuple[float, float]:
    """The GPS directory of a JPEG by `struct` alone."""
    start = data.index(b"Exif\0\0") + 6
    tiff = data[start:]
    order = "<" if tiff[:2] == b"II" else ">"

    def directory(offset: int) -> dict[int, tuple[int, int, int]]:
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        rows = [struct.unpack_from(order + "HHI", tiff, offset + 2 + 12 * i) for i in range(count)]
        return {tag: (kind, n, offset + 2 + 12 * i + 8) for i, (tag, kind, n) in enumerate(rows)}

    def angle(tag: int, reference: int) -> float:
        (at,) = struct.unpack_from(order + "I", tiff, gps[tag][2])
        numbers = struct.unpack_from(order + "6I", tiff, at)
        value = sum(numbers[2 * i] / (numbers[2 * i + 1] * 60**i) for i in range(3))
        return -value if tiff[gps[reference][2] : gps[reference][2] + 1] in b"SW" else value

    first = directory(struct.unpack_from(order + "I", tiff, 4)[0])
    gps = directory(struct.unpack_from(order + "I", tiff, first[0x8825][2])[0])
    return angle(2, 1), angle(4, 3)


def test_every_shared_original_has_the_known_position(shared_exif: Path) -> None:
    paths = sorted(shared_exif.glob("*.jpg"))
    assert {path.name for path in paths} == set(KNOWN)
    for path in paths:
        expected = tuple(degrees(parts) for parts in KNOWN[path.name])
        assert position(path) == pytest.approx(expected, abs=1e-6), path.name
        assert position(path) == pytest.approx(parsed_by_hand(path.read_bytes()), abs=1e-9), path.name


def test_heic_tiff_png_and_those_without(shared_formats: Path) -> None:
    for name, parts in KNOWN_FORMATS.items():
        found = position(shared_formats / name)
        if parts is None:
            assert found is None, name
        else:
            assert found == pytest.approx(tuple(degrees(part) for part in parts), abs=1e-6), name


def exif(entries: list[tuple[int, int, int, bytes]], order: str = "<") -> bytes:
    """A TIFF header, a first directory that holds only the GPS pointer, and the GPS directory, written by hand.

    Args:
        entries: of the GPS directory: tag, type, count, value bytes.
        order: byte order, as `struct` names it.
    """
    gps_at = 8 + 2 + 12 + 4
    values_at = gps_at + 2 + 12 * len(entries) + 4
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    head += struct.pack(order + "HHHIII", 1, 0x8825, 4, 1, gps_at, 0)
    directory, values = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in sorted(entries):
        directory += struct.pack(order + "HHI", tag, kind, count)
        if len(value) > 4:
            directory += struct.pack(order + "I", values_at + len(values))
            values += value
        else:
            directory += value.ljust(4, b"\0")
    return b"Exif\0\0" + head + directory + b"\0" * 4 + values


def rationals(*pairs: tuple[int, int], order: str = "<", signed: bool = False) -> tuple[int, int, bytes]:
    packed = b"".join(struct.pack(order + ("ii" if signed else "II"), *pair) for pair in pairs)
    return (10 if signed else 5), len(pairs), packed


def text(value: bytes) -> tuple[int, int, bytes]:
    return 2, len(value) + 1, value + b"\0"


def photo(metadata: bytes, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind, exif=metadata)
    return buffer.getvalue()


def placed(latitude: object, longitude: object, refs: tuple[bytes | None, bytes | None] = (b"N", b"E")) -> object:
    entries = [(2, *latitude), (4, *longitude)]  # type: ignore[misc]
    for tag, ref in ((1, refs[0]), (3, refs[1])):
        if ref is not None:
            entries.append((tag, *text(ref)))
    return read_metadata(photo(exif(entries)), "jpeg").coordinates


dms = st.tuples(st.integers(0, 89), st.integers(0, 59), st.integers(0, 59_999))


@settings(max_examples=100, deadline=None)
@given(dms, dms, st.sampled_from("NS"), st.sampled_from("EW"), st.sampled_from("<>"))
def test_hemispheres_and_byte_orders(
    latitude: tuple[int, int, int], longitude: tuple[int, int, int], north: str, east: str, order: str
) -> None:
    def packed(parts: tuple[int, int, int]) -> tuple[int, int, bytes]:
        return rationals((parts[0], 1), (parts[1], 1), (parts[2], 1000), order=order)

    def expected(parts: tuple[int, int, int], sign: int) -> float:
        return sign * (parts[0] + parts[1] / 60 + parts[2] / 1000 / 3600)

    entries = [(1, *text(north.encode())), (2, *packed(latitude)), (3, *text(east.encode())), (4, *packed(longitude))]
    found = read_metadata(photo(exif(entries, order)), "jpeg").coordinates
    if latitude == longitude == (0, 0, 0):
        assert found is None
    else:
        wanted = (expected(latitude, 1 if north == "N" else -1), expected(longitude, 1 if east == "E" else -1))
        assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "MPO"])
def test_same_position_from_every_container(kind: str) -> None:
    sydney = [(1, *text(b"S")), (2, *rationals((33, 1), (51, 1), (25, 1)))]
    sydney += [(3, *text(b"E")), (4, *rationals((151, 1), (12, 1), (54, 1)))]
    name = {"MPO": "jpeg"}.get(kind, kind.lower())
    found = read_metadata(photo(exif(sydney), kind), name).coordinates
    assert found == pytest.approx((-(33 + 51 / 60 + 25 / 3600), 151 + 12 / 60 + 54 / 3600), abs=1e-9)


def test_one_decimal_number_instead_of_three() -> None:
    one = placed(rationals((33_856_944, 1_000_000)), rationals((151_215, 1000)), (b"S", b"E"))
    assert one == pytest.approx((-33.856944, 151.215), abs=1e-9)
    two = placed(rationals((33, 1), (5142, 100)), rationals((151, 1), (129, 10)), (b"S", b"E"))
    assert two == pytest.approx((-(33 + 51.42 / 60), 151 + 12.9 / 60), abs=1e-9)
    zeros = placed(rationals((33_856_944, 1_000_000), (0, 1), (0, 1)), rationals((151_215, 1000), (0, 1), (0, 1)))
    assert zeros == pytest.approx((33.856944, 151.215), abs=1e-9)


@pytest.mark.parametrize("reference", [b"S", b"N", None])
def test_written_sign_is_of_the_whole_value(reference: bytes | None) -> None:
    # Against the standard, and seen in the wild: -33 degrees 30 minutes is 33.5 south, not 32.5.
    latitude = rationals((-33, 1), (30, 1), (0, 1), signed=True)
    found = placed(latitude, rationals((151, 1), (0, 1), (0, 1)), (reference, b"E"))
    assert found == pytest.approx((-33.5, 151.0))


@pytest.mark.parametrize("reference", [b"W", b"w", b"West", b" W"])
def test_references_as_writers_give_them(reference: bytes) -> None:
    found = placed(rationals((10, 1), (0, 1), (0, 1)), rationals((20, 1), (0, 1), (0, 1)), (b"N", reference))
    assert found == pytest.approx((10.0, -20.0))


def test_exactly_on_one_axis_or_at_the_poles_is_a_position() -> None:
    def whole(value: int) -> tuple[int, int, bytes]:
        return rationals((value, 1), (0, 1), (0, 1))

    assert placed(whole(0), whole(20)) == (0.0, 20.0)
    assert placed(whole(20), whole(0)) == (20.0, 0.0)
    assert placed(whole(90), whole(180), (b"S", b"W")) == (-90.0, -180.0)


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        ((0, 1), (0, 1)),
        ((0, 0), (20, 1)),
        ((10, 0), (20, 1)),
        ((10, 1), (20, 0)),
        ((91, 1), (20, 1)),
        ((10, 1), (181, 1)),
        ((4294967295, 1), (20, 1)),
    ],
)
def test_what_cannot_be_true_is_no_position(latitude: tuple[int, int], longitude: tuple[int, int]) -> None:
    zero = (0, 1)
    assert placed(rationals(latitude, zero, zero), rationals(longitude, zero, zero)) is None


def test_zero_denominator_in_minutes_or_seconds_is_no_position() -> None:
    good = rationals((20, 1), (0, 1), (0, 1))
    assert placed(rationals((10, 1), (5, 0), (0, 1)), good) is None
    assert placed(rationals((10, 1), (5, 1), (0, 0)), good) is None


def test_half_a_position_or_another_type_is_none() -> None:
    good = rationals((20, 1), (0, 1), (0, 1))
    assert read_metadata(photo(exif([(2, *good)])), "jpeg").coordinates is None
    assert read_metadata(photo(exif([(4, *good)])), "jpeg").coordinates is None
    assert read_metadata(photo(exif([])), "jpeg").coordinates is None
    assert placed(text(b"north of here"), good) is None
    assert placed((5, 4, rationals((1, 1), (1, 1), (1, 1), (1, 1))[2]), good) is None
    assert placed((12, 1, struct.pack("<d", math.nan)), good) is None
    assert placed((12, 1, struct.pack("<d", math.inf)), good) is None
    assert placed((12, 1, struct.pack("<d", 12.5)), good) == (12.5, 20.0)


SYDNEY = photo(
    exif(
        [
            (1, *text(b"S")),
            (2, *rationals((33, 1), (51, 1), (25, 1))),
            (3, *text(b"E")),
            (4, *rationals((151, 1), (12, 1), (54, 1))),
        ]
    )
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 240), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_metadata_gives_a_position_that_is_one_or_none(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SYDNEY)
    for place, value in flips:
        data[place] = value
    try:
        found = read_metadata(bytes(data), "jpeg").coordinates
    except ImageError:
        return
    if found is not None:
        assert abs(found[0]) <= 90
        assert abs(found[1]) <= 180


def test_cyclic_directories_end() -> None:
    data = bytearray(exif([(2, *rationals((1, 1), (0, 1), (0, 1)))]))
    data[6 + 8 + 2 + 8 : 6 + 8 + 2 + 12] = struct.pack("<I", 8)  # the GPS directory is the first one itself
    assert read_metadata(photo(bytes(data)), "jpeg").coordinates is None


def test_file_that_cannot_be_opened_is_an_error_and_not_a_photo_without_position() -> None:
    with pytest.raises(ImageError) as caught:
        read_metadata(b"\x89PNG\r\n\x1a\n" + b"junk" * 20, "png")
    assert caught.value.code in ("corrupt", "truncated")


def test_heic_without_its_package_is_an_error(shared_formats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(ImageError) as caught:
        position(shared_formats / "heic-iphone7.heic")
    assert caught.value.code == "heic_support_missing"


class TestTime:
    def taken(self, value: bytes | None) -> datetime | None:
        picture, buffer = Image.new("RGB", (8, 8)), io.BytesIO()
        tags = Image.Exif()
        if value is not None:
            tags.get_ifd(0x8769)[0x9003] = value.decode("latin-1")
        picture.save(buffer, "JPEG", exif=tags)
        return read_metadata(buffer.getvalue(), "jpeg").taken_at

    def test_by_hand(self) -> None:
        assert self.taken(b"2018:07:25 16:34:23") == datetime(2018, 7, 25, 16, 34, 23)

    @pytest.mark.parametrize(
        "value", [None, b"", b"    :  :     :  :  ", b"0000:00:00 00:00:00", b"2018-07-25", b"\xff\xfe"]
    )
    def test_none_that_is_one(self, value: bytes | None) -> None:
        assert self.taken(value) is None

    def test_a_real_photo(self, shared_exif: Path) -> None:
        # Its camera put the time into the file's name as well.
        found = read_metadata(*read_image_file(bytes(shared_exif / "IMG_20180725_163423.jpg")))
        assert found.taken_at is not None
        assert abs((found.taken_at - datetime(2018, 7, 25, 16, 34, 23)).total_seconds()) <= 2


def test_without_a_hemisphere_there_is_no_position() -> None:
    sydney = rationals((33, 1), (51, 1), (25, 1)), rationals((151, 1), (12, 1), (54, 1))
    assert placed(*sydney, (None, b"E")) is None
    assert placed(*sydney, (b"S", None)) is None
    assert placed(*sydney, (b"?", b"E")) is None
