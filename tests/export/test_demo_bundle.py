from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from export.demo_bundle import _link_photos
from export.pictures import gather_pictures
from geoinfer.images import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def test_int8_is_calibrated_on_the_photos_that_are_named(example_photos: Path, tmp_path: Path) -> None:
    """Two folders may have photos of one name, a path may leave the folder, and what is not named stays out."""
    names = sorted(path.name for path in example_photos.iterdir())
    for folder, name in (("a", names[0]), ("b", names[1]), (".", names[2])):
        (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / folder / "same.jpg").write_bytes((example_photos / name).read_bytes())
    elsewhere = example_photos / names[3]
    rows = [{"path": "b/same.jpg"}, {"path": "a/same.jpg"}, {"path": str(elsewhere)}, {"path": "a/../b/same.jpg"}]
    _link_photos(rows, tmp_path / "photos", tmp_path / "linked")
    found = gather_pictures(tmp_path / "linked", Preprocessing(), at_least=1)
    # The last is the first once more, and a copy says nothing new.
    assert list(found.names) == ["00000-same.jpg", "00001-same.jpg", f"00002-{names[3]}"]
    assert not found.unreadable
