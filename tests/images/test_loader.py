from __future__ import annotations

import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from geoinfer.errors import ImageError
from geoinfer.images import Preprocessing, load_pixels
from geoinfer.images import loader as loader_module
from geoinfer.images.loader import PhotoLoader

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Preprocessing(size=24)


def outcome(path: bytes, out: np.ndarray, loader: PhotoLoader | None) -> tuple[object, ...]:
    """What of a photo's loading can be seen, but for its pixels."""
    try:
        if loader is None:
            out[...] = load_pixels(path, SMALL)
        else:
            loader.load(path, out)
    except ImageError as error:
        return error.stage, error.code, str(error), error.size_bytes, error.status
    return ()


def saved(folder: Path, name: str, picture: Image.Image, kind: str) -> bytes:
    path = folder / name
    picture.save(path, kind)
    return bytes(path)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))


def test_every_kind_of_photo_and_of_failure_is_as_without_it(shared_formats: Path, example_photos: Path) -> None:
    """From many threads, each into its own slot of a batch; neighbours stay as they are."""
    paths = [bytes(path) for folder in (shared_formats, example_photos) for path in sorted(folder.iterdir())]
    paths += [b"/nowhere/photo.jpg", b"photo.cr2"]
    expected, found = (np.full((len(paths), 24, 24, 3), 7, np.uint8) for _ in range(2))
    with PhotoLoader(SMALL, 4) as loader, ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda i: outcome(paths[i], found[i], loader), range(len(paths))))
    assert results == [outcome(path, slot, None) for path, slot in zip(paths, expected, strict=True)]
    np.testing.assert_array_equal(found, expected)
    failed = [bool(result) for result in results]
    assert any(failed)
    assert not all(failed)
    assert (found[np.array(failed)] == 7).all()


def test_processes_are_for_those_kinds_alone(tmp_path: Path, picture: Image.Image) -> None:
    with PhotoLoader(SMALL, 2) as loader:
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            loader.load(saved(tmp_path, f"a.{kind}", picture, kind), np.empty((24, 24, 3), np.uint8))
        assert loader.pids == []
        loader.load(saved(tmp_path, "a.jp2", picture, "JPEG2000"), np.empty((24, 24, 3), np.uint8))
        assert len(loader.pids) == 1


def test_where_no_process_starts_this_one_decodes(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, "a.jp2", picture, "JPEG2000")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    out = np.empty((24, 24, 3), np.uint8)
    with PhotoLoader(SMALL, 2) as loader:
        loader.load(path, out)
        assert loader.pids == []
    np.testing.assert_array_equal(out, load_pixels(path, SMALL))


def test_killed_processes_cost_no_photo(tmp_path: Path, picture: Image.Image) -> None:
    path = saved(tmp_path, "a.jp2", picture, "JPEG2000")
    expected = load_pixels(path, SMALL)
    with PhotoLoader(SMALL, 1) as loader:
        for _ in range(3):
            out = np.empty((24, 24, 3), np.uint8)
            loader.load(path, out)
            np.testing.assert_array_equal(out, expected)
            os.kill(loader.pids[0], signal.SIGKILL)


def test_photo_without_room_is_an_error_with_its_size(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loader_module, "decode_pixels", no_memory)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with PhotoLoader(SMALL, 1) as loader, pytest.raises(ImageError) as caught:
        loader.decode(buffer.getvalue(), "png", np.empty((24, 24, 3), np.uint8))
    assert (caught.value.stage, caught.value.code) == ("decode", "not_enough_memory")
    assert caught.value.size_bytes == len(buffer.getvalue())
