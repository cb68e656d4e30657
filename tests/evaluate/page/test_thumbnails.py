from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageOps

from geoinfer.evaluate.page import thumbnails as module
from geoinfer.evaluate.page.thumbnails import thumbnail, thumbnails

if TYPE_CHECKING:
    from pathlib import Path

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def quadrants(width: int = 600, height: int = 400) -> Image.Image:
    """Red, green / blue, yellow: shows which way it was turned."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, YELLOW
    return Image.fromarray(pixels)


def camera_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "A camera maker"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.0), 3: "E", 4: (2.0, 17.0, 40.0)})
    return exif


def opened(picture: bytes | None) -> Image.Image:
    assert picture is not None
    image = Image.open(io.BytesIO(picture))
    assert image.format == "JPEG"
    return image.convert("RGB")


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    width, height = image.size
    pixels = np.asarray(image)
    return [
        tuple(((pixels[y, x] > 127) * 255).tolist())
        for y, x in ((height // 4, width // 4), (height // 4, -width // 4), (-height // 4, width // 4),
                     (-height // 4, -width // 4))
    ]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "tiff", "png", "webp"])
def test_pictures_are_upright_whole_and_say_nothing_of_the_camera(tmp_path: Path, kind: str, orientation: int) -> None:
    path = tmp_path / f"photo.{kind}"
    quadrants().save(path, kind, exif=camera_exif(orientation))
    before = path.read_bytes()
    assert b"camera maker" in before
    picture = thumbnail(os.fsencode(path))
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image = opened(picture)
    assert image.size == ((160, 107) if orientation < 5 else (107, 160))
    assert corners(image) == corners(upright)
    assert picture is not None
    assert b"Exif" not in picture
    assert b"maker" not in picture
    assert not Image.open(io.BytesIO(picture)).getexif()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "jpeg"), ("L", "jpeg"), ("I;16", "png"), ("RGBA", "png"), ("P", "gif"), ("1", "tiff")]
)
def test_all_modes_become_a_picture(tmp_path: Path, mode: str, kind: str) -> None:
    source = Image.linear_gradient("L").resize((300, 200))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(source).astype(np.uint16) * 257)
    else:
        image = source.convert("RGB").convert(mode) if mode != "L" else source
    path = tmp_path / f"photo.{kind}"
    image.save(path, kind)
    pixels = np.asarray(opened(thumbnail(os.fsencode(path)))).astype(int)
    assert pixels.shape == (107, 160, 3)
    # Dark above, light below, whatever the mode makes of what is between.
    assert pixels[5].mean() < 40
    assert pixels[-5].mean() > 215


@pytest.mark.parametrize(("size", "expected"), [((90, 40), (90, 40)), ((1, 5000), (1, 160)), ((1, 1), (1, 1))])
def test_small_and_narrow_photos_keep_their_shape(tmp_path: Path, size, expected) -> None:
    for kind in ("png", "jpeg"):
        Image.new("RGB", size, (200, 30, 30)).save(tmp_path / f"photo.{kind}")
        assert opened(thumbnail(os.fsencode(tmp_path / f"photo.{kind}"))).size == expected


def test_real_photos_of_every_orientation(shared_formats: Path) -> None:
    paths = sorted((shared_formats / "orientation").iterdir())
    for path in paths:
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            continue
        upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        image = opened(thumbnail(os.fsencode(path)))
        off = np.asarray(image).astype(int) - np.asarray(upright.resize(image.size, Image.Resampling.BICUBIC))
        assert max(image.size) == min(160, max(upright.size))
        assert abs(off).mean() < 8


def test_what_is_no_photo_has_no_picture(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    quadrants().save(good)
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:900])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "raw.nef").write_bytes(good.read_bytes())
    os.mkfifo(tmp_path / "pipe.jpg")
    named = [*sorted(tmp_path.iterdir()), tmp_path, tmp_path / "missing.jpg"]
    made = thumbnails([*map(os.fsencode, named), b"", b"a\0b"])
    assert [picture is not None for picture in made] == [path == good for path in named] + [False, False]


def test_the_room_ends_at_the_same_picture_however_many_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    paths = []
    for number in range(150):
        path = tmp_path / f"{number:03}.png"
        shape = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
        paths.append(os.fsencode(path))
    alone = [thumbnail(path) for path in paths]
    sizes = np.cumsum([len(picture or b"") for picture in alone])
    total = int(sizes[100]) + 1
    expected = alone[:101] + [None] * 49
    for workers in (1, 3, 8):
        assert thumbnails(paths, total_bytes=total, workers=workers) == expected
    assert thumbnails([], workers=2) == []


def test_few_photos_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def counting(path: bytes, side: int) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.002)
        with lock:
            now -= 1
        return path

    monkeypatch.setattr(module, "thumbnail", counting)
    paths = [str(number).encode() for number in range(300)]
    assert thumbnails(paths, workers=64) == paths
    assert most <= 8
