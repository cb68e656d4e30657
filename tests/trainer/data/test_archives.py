from __future__ import annotations

import pickle
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from geoinfer.errors import ImageError, InputError
from trainer.data.archives import ArchiveReader, Member, list_members

if TYPE_CHECKING:
    from pathlib import Path


def make(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def members(path: Path) -> list[Member]:
    return list(list_members(bytes(path)))


def problem(reader: ArchiveReader, member: Member) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        reader.read(member)
    return caught.value.stage, caught.value.code


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_member_reads_as_zipfile_reads_it(tmp_path: Path, method: int) -> None:
    generator = random.Random(0)
    contents = {f"00/{i}.jpg": generator.randbytes(generator.randrange(1, 9000)) for i in range(200)}
    contents |= {"empty.jpg": b"", "00/日本 é.jpg": b"x" * 5000, "a" * 300 + ".jpg": b"long"}
    path = make(tmp_path / "a.zip", contents, method)
    reader = ArchiveReader()
    listed = members(path)
    assert [member.name.decode() for member in listed] == list(contents)
    with zipfile.ZipFile(path) as archive:
        for member in listed:
            assert reader.read(member) == archive.read(member.name.decode())


def test_sizes_that_stand_behind_the_data_and_something_before_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "streamed.zip"

    class Pipe:
        """Cannot seek, as standard output cannot, so that the local headers know no sizes."""

        def __init__(self, file: object) -> None:
            self.write, self.flush = file.write, file.flush

    with path.open("wb") as file, zipfile.ZipFile(Pipe(file), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.jpg", b"one" * 1000)
        archive.writestr("2.jpg", b"two" * 1000)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert [ArchiveReader().read(member) for member in members(path)] == [b"one" * 1000, b"two" * 1000]


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    generator = random.Random(1)
    paths, expected = [], []
    for i in range(6):
        contents = {f"{j}.jpg": generator.randbytes(3000) for j in range(100)}
        paths.append(make(tmp_path / f"{i}.zip", contents, zipfile.ZIP_DEFLATED))
        expected += contents.values()
    listed = [member for path in paths for member in members(path)]
    order = generator.choices(range(len(listed)), k=5000)
    reader = ArchiveReader()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda i: reader.read(listed[i]), order)) == [expected[i] for i in order]


def test_more_archives_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.archives._KEPT_OPEN", 2)
    paths = [make(tmp_path / f"{i}.zip", {"x.jpg": b"%d" % i}) for i in range(5)]
    reader = ArchiveReader()
    for _ in range(3):
        assert [reader.read(members(path)[0]) for path in paths] == [b"%d" % i for i in range(5)]
    assert len(reader._descriptors) == 2


def test_folders_are_no_members(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"00/": b"", "00/1.jpg": b"x"})
    assert [member.name for member in members(path)] == [b"00/1.jpg"]


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"not an archive at all")
    with pytest.raises(InputError, match="not a whole ZIP"):
        members(tmp_path / "a.zip")
    whole = make(tmp_path / "b.zip", {"1.jpg": b"x" * 1000}).read_bytes()
    (tmp_path / "c.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole ZIP"):
        members(tmp_path / "c.zip")
    with pytest.raises(InputError, match="cannot be read"):
        members(tmp_path / "none.zip")


def test_archives_that_changed_are_damaged_or_gone(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"1.jpg": b"abc" * 500, "2.jpg": b"xyz" * 500}, zipfile.ZIP_DEFLATED)
    first, second = members(path)
    data = bytearray(path.read_bytes())
    assert problem(ArchiveReader(), replace(second, offset_bytes=second.offset_bytes + 3)) == ("read", "unreadable")
    assert problem(ArchiveReader(), replace(second, name=b"3.jpg")) == ("read", "unreadable")
    assert problem(ArchiveReader(), replace(second, offset_bytes=10**9)) == ("read", "unreadable")
    assert problem(ArchiveReader(), replace(second, stored_bytes=2)) == ("read", "unreadable")
    data[second.offset_bytes + 30 + 5 + 4] ^= 0xFF
    path.write_bytes(data)
    reader = ArchiveReader()
    assert reader.read(first) == b"abc" * 500
    assert problem(reader, second) == ("read", "unreadable")
    path.write_bytes(data[: second.offset_bytes + 36])
    assert problem(ArchiveReader(), second) == ("read", "unreadable")
    path.unlink()
    assert problem(ArchiveReader(), first) == ("read", "missing")


def test_stored_bytes_are_checked_too(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"1.jpg": b"abc" * 500})
    (member,) = members(path)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert problem(ArchiveReader(), member) == ("read", "unreadable")


def test_methods_and_encryption_that_are_not_read(tmp_path: Path) -> None:
    (member,) = members(make(tmp_path / "a.zip", {"1.jpg": b"abc" * 500}, zipfile.ZIP_LZMA))
    with pytest.raises(ImageError, match="method 14"):
        ArchiveReader().read(member)
    path = make(tmp_path / "b.zip", {"1.jpg": b"abc"})
    (member,) = members(path)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="encrypted"):
        ArchiveReader().read(member)


def test_files_too_large_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.archives.MAX_FILE_BYTES", 1000)
    (stored,) = members(make(tmp_path / "a.zip", {"1.jpg": b"x" * 1001}))
    (bomb,) = members(make(tmp_path / "b.zip", {"1.jpg": b"x" * 100_000}, zipfile.ZIP_DEFLATED))
    for member in (stored, bomb):
        assert problem(ArchiveReader(), member) == ("read", "too_many_bytes")


def test_a_reader_travels_to_another_process(tmp_path: Path) -> None:
    (member,) = members(make(tmp_path / "a.zip", {"1.jpg": b"abc"}))
    reader = ArchiveReader()
    reader.read(member)
    assert pickle.loads(pickle.dumps(reader)).read(member) == b"abc"


def test_a_file_of_exactly_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.archives.MAX_FILE_BYTES", 1000)
    (member,) = members(make(tmp_path / "a.zip", {"1.jpg": b"x" * 1000}, zipfile.ZIP_DEFLATED))
    assert ArchiveReader().read(member) == b"x" * 1000
