from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoinfer.errors import ImageError
from geoinfer.images import Preprocessing, load_pixels, read_image_file
from geoinfer.images import read as read_module
from geoinfer.images.read import RAW_SUFFIXES, sniff

if TYPE_CHECKING:
    from pathlib import Path


def picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 100, 50)).save(buffer, kind)
    return buffer.getvalue()


def failure(path: Path | bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image_file(os.fsencode(path))
    assert caught.value.stage == "read"
    assert caught.value.status == "error"
    return caught.value


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("saved_as", "kind"),
    [
        ("JPEG", "jpeg"),
        ("PNG", "png"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("TIFF", "tiff"),
        ("BMP", "bmp"),
        ("JPEG2000", "jpeg2000"),
        ("AVIF", "avif"),
        ("MPO", "jpeg"),
    ],
)
def test_what_pillow_writes_is_recognised_by_content_whatever_its_name(
    tmp_path: Path, saved_as: str, kind: str
) -> None:
    data = picture(saved_as)
    assert read_image_file(os.fsencode(write(tmp_path, "x.txt", data))) == (data, kind)


def test_shared_formats_are_recognised(shared_formats: Path) -> None:
    expected = {
        "47102787.jp2": "jpeg2000",
        "Arbitro.tiff": "tiff",
        "IMG_5195.HEIC": "heif",
        "Irvine_CA.avif": "avif",
        "heic-empty.heic": "heif",
        "png_with_exif_and_gps.png": "png",
        "samplefilehub.heif": "heif",
        "noexif.jpg": "jpeg",
    }
    found = {name: read_image_file(os.fsencode(shared_formats / name))[1] for name in expected}
    assert found == expected


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41", "MP4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "QuickTime"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "raw"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"PK\x03\x04\x14\0\0\0", "ZIP"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"RIFF\x24\0\0\0AVI LIST", "AVI"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", "web page"),
        (b"<?xml version='1.0'?><svg/>", "XML"),
        (b"<svg xmlns=''/>", "SVG"),
        (b"\x00\x05\x16\x07\0\x02\0\0Mac OS X", "resource fork"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"\x1aE\xdf\xa3\x01", "Matroska"),
    ],
)
def test_another_kind_of_file_called_jpg_is_named(tmp_path: Path, head: bytes, says: str) -> None:
    error = failure(write(tmp_path, "x.jpg", head + b"\0" * 600))
    assert error.code == "wrong_type"
    assert says in str(error)
    assert error.size_bytes == len(head) + 600


@pytest.mark.parametrize(
    "data",
    [b"\0", b"\xff\xd8", b"hello", b"BM", b"BMW prices are high today.\n" * 9, b"\0" * 4096, b"\0\0\0\x18ftyq"],
    ids=repr,
)
def test_bytes_of_no_image_format(tmp_path: Path, data: bytes) -> None:
    error = failure(write(tmp_path, "x.jpg", data))
    assert (error.code, error.size_bytes) == ("not_an_image", len(data))


@given(st.binary(max_size=600))
def test_sniffing_takes_any_bytes(data: bytes) -> None:
    found = sniff(data[:512])
    assert found is None or (isinstance(found[0], str) and isinstance(found[1], bool))


@given(st.sampled_from([b"\0\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\0\0\0\x1c"]), st.binary(max_size=500))
def test_sniffing_takes_any_box_length(length: bytes, rest: bytes) -> None:
    assert sniff((length + b"ftyp" + rest)[:512]) is not None


def test_generic_major_brand_is_decided_by_the_compatible_ones() -> None:
    for brand, kind in ((b"avif", "avif"), (b"heic", "heif"), (b"heix", "heif")):
        box = struct.pack(">I", 24) + b"ftypmif1\0\0\0\0" + b"miaf" + brand
        assert sniff(box) == (kind, True)
    # What lies behind the box is not one of its brands.
    outside = struct.pack(">I", 20) + b"ftypisom\0\0\0\0" + b"isom" + b"heic"
    assert sniff(outside) == ("an MP4 or QuickTime video", False)


def test_png_called_jpg_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jpg", picture("PNG"))
    pixels = load_pixels(os.fsencode(path), Preprocessing(size=2))
    assert pixels.tolist() == [[[200, 100, 50]] * 2] * 2


def test_zero_bytes(tmp_path: Path) -> None:
    error = failure(write(tmp_path, "x.jpg", b""))
    assert (error.code, error.size_bytes) == ("empty_file", 0)


def test_missing_in_each_way(tmp_path: Path) -> None:
    write(tmp_path, "file.jpg", picture())
    assert failure(tmp_path / "no.jpg").code == "missing"
    assert failure(tmp_path / "file.jpg" / "below.jpg").code == "missing"
    assert failure(b"").code == "missing"
    assert failure(b"a\0b.jpg").code == "missing"
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    dangling = failure(tmp_path / "dangling.jpg")
    assert dangling.code == "missing"
    assert "symbolic link" in str(dangling)
    assert dangling.size_bytes == -1


def test_link_to_itself_and_name_too_long_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert failure(tmp_path / "loop.jpg").code == "unreadable"
    assert failure(os.fsencode(tmp_path) + b"/" + b"a" * 300 + b".jpg").code == "unreadable"


def test_link_to_a_photo_is_followed(tmp_path: Path) -> None:
    data = picture()
    write(tmp_path, "real.png", data)
    (tmp_path / "link.png").symlink_to("real.png")
    assert read_image_file(os.fsencode(tmp_path / "link.png")) == (data, "png")


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    errors: list[ImageError] = []
    thread = threading.Thread(target=lambda: errors.append(failure(tmp_path / "pipe.jpg")), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "reading a named pipe waits for ever"
    assert errors[0].code == "not_a_file"
    folder = failure(tmp_path)
    assert folder.code == "not_a_file"
    assert "folder" in str(folder)
    assert failure(b"/dev/null").code == "not_a_file"


def test_socket_is_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may be 108 bytes only
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jpg")
        assert failure(b"s.jpg").code == "not_a_file"


def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jpg", picture())
    path.chmod(0)
    tmp_path.chmod(0o755)
    # Root may read anything, so the reading is done by somebody who may not.
    program = (
        "import os, sys\n"
        "from geoinfer.images.read import read_image_file\n"
        "from geoinfer.errors import ImageError\n"
        "if os.geteuid() == 0:\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    read_image_file(os.fsencode(sys.argv[1]))\n"
        "except ImageError as error:\n"
        "    print(error.stage, error.code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "read unreadable permission denied"


def test_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, "x.png", picture())
    with path.open("r+b") as file:
        file.truncate(read_module.MAX_FILE_BYTES + 1)  # sparse: takes no room
    error = failure(path)
    assert (error.code, error.size_bytes) == ("too_many_bytes", read_module.MAX_FILE_BYTES + 1)


def test_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    data = picture()
    for name in (b"caf\xe9.png", b'a,"b"\n.png', b" ", b"-", b"\xff", b"a\\b.png", "日本.png".encode()):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as file:
            file.write(data)
        assert read_image_file(path) == (data, "png")


def test_raw_suffixes_are_lower_case_with_a_dot() -> None:
    assert {b".cr2", b".nef", b".arw", b".dng", b".raf", b".orf"} <= RAW_SUFFIXES
    assert all(suffix == suffix.lower() and suffix[:1] == b"." for suffix in RAW_SUFFIXES)
