from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoinfer.benchmark.photos import NOT_READABLE, EvenlySpread, choose_photos, look_at
from geoinfer.errors import InputError
from geoinfer.images import discover

if TYPE_CHECKING:
    from pathlib import Path


@given(seen=st.integers(0, 700), count=st.integers(1, 40))
def test_what_is_chosen_is_spread_evenly(seen: int, count: int) -> None:
    spread = EvenlySpread(count)
    for number in range(seen):
        spread.add(b"%d" % number)
        assert len(spread._kept) < 2 * count + 1
    chosen = [int(item) for item in spread.chosen()]
    assert len(chosen) == min(seen, count)
    assert spread.seen == seen
    assert chosen == sorted(set(chosen))
    if seen <= count:
        assert chosen == list(range(seen))
    else:
        # No gap, and neither end, is more than four times what perfect spacing would leave.
        gaps = [b - a for a, b in zip([-1, *chosen], [*chosen, seen], strict=True)]
        assert max(gaps) <= 4 * seen / count + 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (2000, 1500), "red").save(folder / "a.jpg")
    Image.new("RGB", (100, 80), "red").save(folder / "b.jpg", progressive=True)
    Image.new("RGB", (100, 80), "red").save(folder / "c.png")
    Image.new("RGB", (4000, 3000), "red").save(folder / "d.jpg")
    (folder / "e.jpg").write_bytes(b"nothing")
    (folder / "f.cr2").write_bytes(b"II*\0")
    return folder


def test_what_they_are(photos: Path) -> None:
    found = choose_photos([str(photos)], 200)
    assert found.classes == {
        "JPEG, 2 to 8 MP": 1,
        "JPEG, progressive, below 2 MP": 1,
        "PNG, below 2 MP": 1,
        "JPEG, 8 MP or more": 1,
        NOT_READABLE: 2,
    }
    assert found.total_bytes == sum(path.stat().st_size for path in photos.iterdir())
    assert [os.path.basename(path) for path in found.paths] == [
        b"a.jpg",
        b"b.jpg",
        b"c.png",
        b"d.jpg",
        b"e.jpg",
        b"f.cr2",
    ]
    assert found.as_dict()["count"] == 6
    assert found.describe().startswith("6 photos, ")
    assert choose_photos([str(photos)], 2).describe().startswith("2 of 6 photos, ")


def test_the_digest_tells_other_photos_and_not_other_folders(photos: Path, tmp_path: Path) -> None:
    before = choose_photos([str(photos)], 200).digest
    photos.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert choose_photos([str(moved)], 200).digest == before
    (moved / "e.jpg").write_bytes(b"nothing!")
    assert choose_photos([str(moved)], 200).digest != before


def test_they_are_found_again_by_their_list(tmp_path: Path) -> None:
    names = [b"plain.jpg", b"new\nline.jpg", b"not-\xff-utf8.jpg", b"@at.jpg", b" space .jpg"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    found = look_at([os.path.join(os.fsencode(tmp_path), name) for name in names])
    argument = found.write_list(tmp_path / "photos.list")
    assert [source.path for source in discover([argument])] == list(found.paths)


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no photos found") as raised:
        choose_photos([str(tmp_path)], 5)
    assert "--generate" in raised.value.hint
    with pytest.raises(InputError, match="no such file"):
        choose_photos([str(tmp_path / "none")], 5)
