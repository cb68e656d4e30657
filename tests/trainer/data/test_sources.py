from __future__ import annotations

import os
import zipfile
from typing import TYPE_CHECKING

import pytest

from geoinfer.errors import InputError, LabelsError
from geoinfer.images import read_image_file, read_metadata
from trainer.data.sources import PhotoIndex, Place, Row, read_rows, recognise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def rows_of(source: Path, images: Path | None = None) -> list[Row]:
    return list(read_rows(recognise(source, images)))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_csv_of_the_shared_photos(shared_photos: Path) -> None:
    rows = rows_of(shared_photos / "photos.csv")
    assert len(rows) == 345
    assert all(row.problem is None and row.place is not None for row in rows)
    assert [row.place.path for row in rows] == [os.fsencode(row.id) for row in rows]
    assert (rows[0].country, rows[0].line, rows[0].coordinates) == ("GH", 2, (5.603717, -0.186964))
    assert rows_of(shared_photos) == rows


def test_csv_beside_its_photos(tmp_path: Path) -> None:
    touch(tmp_path / "photos", "a/1.jpg", "2.jpg")
    (tmp_path / "labels.csv").write_text("name,lat,lon\na/1.jpg,1,2\n2,3,4\n3,5,6\nb/1.jpg,7,8\n")
    source = recognise(tmp_path / "labels.csv", tmp_path / "photos")
    assert (source.kind, source.root) == ("CSV labels", bytes(tmp_path / "photos"))
    rows = list(read_rows(source))
    assert [row.place and row.place.path for row in rows] == [b"a/1.jpg", b"2.jpg", None, None]
    assert [row.problem and row.problem.code for row in rows] == [None, None, "missing", "missing"]
    unchecked = list(read_rows(source, check_files=False))
    assert [row.place and row.place.path for row in unchecked] == [b"a/1.jpg", b"2.jpg", None, b"b/1.jpg"]


@pytest.mark.parametrize("zipped", [False, True])
def test_osv5m(make_osv: Callable[..., object], zipped: bool) -> None:
    osv = make_osv(zipped=zipped)
    source = recognise(osv.root)
    assert source.kind == "OSV-5M folder (train.csv and test.csv)"
    rows = list(read_rows(source))
    assert [row.id for row in rows] == [*osv.train, *osv.test]
    assert [row.is_test for row in rows] == [False] * len(osv.train) + [True] * len(osv.test)
    for row in rows:
        photo, *expected = {**osv.train, **osv.test}[row.id]
        assert [*row.coordinates, row.country, row.sequence] == expected
        assert row.problem is None
        path = os.path.join(source.root, row.place.archive or row.place.path)
        if zipped:
            assert path.endswith(b".zip")
            with zipfile.ZipFile(os.fsdecode(path)) as archive:
                data = archive.read(row.place.path.decode())
        else:
            with open(path, "rb") as file:
                data = file.read()
        assert data == photo.read_bytes()


def test_osv5m_with_one_table_or_photos_elsewhere(make_osv: Callable[..., object], tmp_path: Path) -> None:
    osv = make_osv(test=0)
    source = recognise(osv.root)
    assert (source.kind, source.notes) == ("OSV-5M folder (train.csv)", ())
    (osv.root / "images").rename(tmp_path / "elsewhere")
    assert all(row.problem is None for row in rows_of(osv.root, tmp_path / "elsewhere"))
    assert {row.problem.code for row in rows_of(osv.root)} == {"missing"}
    (osv.root / "train.csv").rename(osv.root / "test.csv")
    (tmp_path / "elsewhere" / "train").rename(tmp_path / "elsewhere" / "test")
    alone = recognise(osv.root, tmp_path / "elsewhere")
    assert "no train.csv" in alone.notes[0]
    rows = list(read_rows(alone))
    assert len(rows) == 60
    assert not any(row.is_test or row.problem for row in rows)


def test_photos_with_gps(shared_exif: Path) -> None:
    source = recognise(shared_exif)
    assert source.kind == "folder of photos with GPS"
    rows = list(read_rows(source, threads=3))
    assert [row.id for row in rows] == sorted(file.name for file in shared_exif.glob("*.jpg"))
    located = 0
    for row in rows:
        expected = read_metadata(*read_image_file(bytes(shared_exif / row.id))).coordinates
        if expected is None:
            assert row.problem.code == "no_gps"
        else:
            assert (row.coordinates, row.problem, row.place) == (expected, None, Place(os.fsencode(row.id)))
            located += 1
    assert located >= 10


def test_photos_that_are_none_and_names_that_are_not_utf8(tmp_path: Path, shared_exif: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with open(os.path.join(bytes(tmp_path), b"caf\xe9.jpg"), "wb") as file:
        file.write((shared_exif / "DSCN0010.jpg").read_bytes())
    (tmp_path / "notes.csv").write_text("day,weather\n1,rain\n")
    source = recognise(tmp_path)
    assert "notes.csv" in source.notes[0]
    broken, located = read_rows(source)
    assert broken.problem.code == "not_an_image"
    assert (located.id, located.place.path, located.problem) == ("caf\\xe9.jpg", b"caf\xe9.jpg", None)


def test_a_root_that_is_not_utf8_stays_in_the_paths(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    touch(folder, "1.jpg")
    (folder / "labels.csv").write_text("id,lat,lon\n1,2,3\n")
    source = recognise(folder)
    (row,) = read_rows(source)
    assert (source.root, row.place.path) == (b"", bytes(folder / "1.jpg"))


def test_what_cannot_be_recognised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        recognise(tmp_path / "none")
    with pytest.raises(InputError, match="no such folder"):
        recognise(tmp_path, tmp_path / "none")
    (tmp_path / "a.csv").write_text("id,lat,lon\n")
    (tmp_path / "b.csv").write_text("id,lat,lon\n")
    with pytest.raises(LabelsError, match=r"several labels CSVs: a\.csv, b\.csv"):
        recognise(tmp_path)
    (tmp_path / "train.csv").write_text("weather\n")
    with pytest.raises(LabelsError, match=r"train\.csv: no column"):
        recognise(tmp_path)


def found(index: PhotoIndex, *names: str) -> list[object]:
    answers = []
    for name in names:
        place, problem = index.find(name)
        answers.append(problem.code if problem else (os.path.basename(place.archive), place.path))
    return answers


def test_names_are_found_as_geoinfer_finds_them(tmp_path: Path) -> None:
    touch(tmp_path, "paris/1.jpg", "rome/1.jpg", "rome/2.jpg", "2.jpg", "3.jpg", "3.png", "00/12.jpg", "01/12.5.jpg",
          "01/456.JPEG", "03/readme.txt", "odd.bin")  # fmt: skip
    here = bytes(tmp_path) + b"/"
    assert found(
        PhotoIndex(bytes(tmp_path)), "1.jpg", "1", "2.jpg", "3", "3.png", "12", "12.5", "12.7", "456", "456.jpg",
        "readme", "odd.bin", "rome/1.jpg", "berlin/1.jpg", "a\0b",
    ) == [
        "ambiguous_name", "ambiguous_name", (b"", here + b"2.jpg"), "ambiguous_name", (b"", here + b"3.png"),
        (b"", here + b"00/12.jpg"), (b"", here + b"01/12.5.jpg"), "missing", (b"", here + b"01/456.JPEG"),
        (b"", here + b"01/456.JPEG"), "missing", (b"", here + b"odd.bin"), (b"", here + b"rome/1.jpg"), "missing",
        "missing",
    ]  # fmt: skip


def test_names_in_archives(tmp_path: Path) -> None:
    touch(tmp_path, "x/5.jpg")
    for archive, names in (("a.zip", ["00/1.jpg", "00/2.jpg", "__MACOSX/00/._1.jpg", "5.jpg"]), ("b.zip", ["1.png"])):
        with zipfile.ZipFile(tmp_path / archive, "w") as file:
            for name in names:
                file.writestr(name, b"x")
    assert found(PhotoIndex(bytes(tmp_path)), "1", "1.jpg", "2", "5", "00/2.jpg", "2.png", "7", "01/2.jpg") == [
        "ambiguous_name", (b"a.zip", b"00/1.jpg"), (b"a.zip", b"00/2.jpg"), (b"", bytes(tmp_path) + b"/x/5.jpg"),
        (b"a.zip", b"00/2.jpg"), (b"a.zip", b"00/2.jpg"), "missing", "missing",
    ]  # fmt: skip


def test_links_to_other_disks_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "disk/00/1.jpg", "images/2.jpg")
    (tmp_path / "images" / "00").symlink_to(tmp_path / "disk" / "00")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    images = bytes(tmp_path / "images")
    assert found(PhotoIndex(images), "1", "2") == [(b"", images + b"/00/1.jpg"), (b"", images + b"/2.jpg")]


def test_a_broken_archive_stops_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "00.zip").write_bytes(b"half an archive")
    with pytest.raises(InputError, match=r"00\.zip: not a whole ZIP"):
        PhotoIndex(bytes(tmp_path)).find("1")
