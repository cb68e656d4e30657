from __future__ import annotations

import shutil
from collections import namedtuple
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geoinfer.benchmark import generate
from geoinfer.benchmark.generate import draw_picture, generate_photos
from geoinfer.errors import ImageError, OutputError
from geoinfer.images import load_pixels
from geoinfer.images.preprocessing import Preprocessing

SMALL = Preprocessing(size=32)


def test_the_same_seed_gives_the_same_files_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate_photos(tmp_path / name, "web", 3, seed)
    files = [[path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in "abc"]
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert len(set(files[0])) == 3


def test_web_photos_are_as_large_as_real_ones(tmp_path: Path) -> None:
    found = generate_photos(tmp_path / "p", "web", 13, 0)
    assert found.classes == {"JPEG, below 2 MP": 13}
    assert found.generated == {"kind": "web", "count": 13, "seed": 0}
    assert 120_000 < found.total_bytes / 13 < 350_000
    # Each is a file of its own, and after ten they show the same again.
    inodes = {path.stat().st_ino for path in (tmp_path / "p").iterdir()}
    assert len(inodes) == 13
    data = [Path(path.decode()).read_bytes() for path in found.paths]
    assert data[10] == data[0]
    assert len(set(data)) == 10


def test_large_photos_are_as_large_as_a_cameras() -> None:
    data = generate._CLASSES["12MP"](np.random.default_rng(0))
    assert 2_000_000 < len(data) < 4_500_000
    with Image.open(BytesIO(data)) as picture:
        assert picture.size == (4032, 3024)


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_LARGE", (160, 120))
    monkeypatch.setattr(generate, "_WEB", (80, 60))


def test_a_mixture_has_everything(tmp_path: Path, small_pictures: None) -> None:
    found = generate_photos(tmp_path / "p", "mixed", 200, 1)
    kinds, orientations, modes, damaged = set(), set(), set(), []
    for number, path in enumerate(found.paths):
        with Image.open(path.decode()) as picture:
            kinds.add((picture.format, bool(picture.info.get("progressive"))))
            orientations.add(picture.getexif().get(0x0112, 1))
            modes.add(picture.mode)
        try:
            load_pixels(path, SMALL)
        except ImageError:
            damaged.append(number)
    assert kinds == {("JPEG", False), ("JPEG", True), ("PNG", False), ("WEBP", False)}
    assert orientations == {1, 6}
    assert modes == {"RGB", "L"}
    assert damaged == [50, 150]


def test_the_spectrum_falls_like_that_of_photos() -> None:
    grey = np.asarray(draw_picture((512, 512), np.random.default_rng(5)).convert("L"), np.float64)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None, :])
    bands = [(0.008, 0.016), (0.016, 0.032), (0.032, 0.064), (0.064, 0.128)]
    means = [power[(frequency >= low) & (frequency < high)].mean() for low, high in bands]
    slope = np.polyfit(np.log([low for low, _ in bands]), np.log(means), 1)[0]
    assert -3.2 < slope < -1.3  # of power; photos have about -2 (Field, 1987)


def test_no_room_is_said_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(OutputError, match=r"up to 1\.0 GB are needed in .*, and 0\.0 GB are free") as raised:
        generate_photos(tmp_path / "p", "12MP", 200, 0)
    assert "TMPDIR" in raised.value.hint
    assert list((tmp_path / "p").iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="photos cannot be made here"):
        generate_photos(tmp_path / "file", "web", 1, 0)
