"""Photos to measure on where there are none: made by rule from a seed, as large and as hard to decode as real ones.

A picture is a scene of overlapping leaves with sizes by a power law, whose spectrum falls with frequency as that of
photos does (the dead leaves of Lee, Mumford and Huang, "Occlusion models for natural images", 2001), with fine texture
of a 1/f spectrum and a sensor's noise on it. What it shows tells nothing of a place: answers are worth nothing.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from geoinfer.benchmark.photos import Photos, look_at
from geoinfer.errors import OutputError
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

Kind = Literal["12MP", "web", "mixed"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)

_LARGE: Final = (4032, 3024)
_WEB: Final = (1024, 768)
_DISTINCT: Final = 10
_CORRUPT_EVERY: Final = 100
# A picture of 12 megapixels takes half a gigabyte while it is drawn.
_DRAWN_AT_ONCE: Final = 4
_ORIENTATION_TAG: Final = 0x0112
# Bytes that one photo takes at most, for the question whether there is room.
_LARGEST_BYTES: Final = {"12MP": 5_000_000, "web": 500_000, "mixed": 4_000_000}

# What stands in a mixed set, by how many in twenty. Large and web-sized JPEGs are most of what people have.
_MIXTURE: Final = (
    *("12MP",) * 6,
    *("web",) * 6,
    *("rotated",) * 2,
    *("progressive",) * 2,
    "png",
    "webp",
    "grey",
    "large progressive",
)


def generate_photos(folder: Path, kind: Kind, count: int, seed: int) -> Photos:
    """Fills a folder with photos; the same arguments give the same pictures.

    Ten pictures of each class are drawn and copied, so that each photo is a file of its own for the page cache.

    Args:
        folder: made if it is not there.
        kind: `12MP` and `web` are JPEGs of one size; `mixed` has both, progressive ones, turned ones, grey ones, PNG
            and WebP, and one in a hundred that ends early.
        count: how many.
        seed: of what they show.

    Raises:
        OutputError: there is no room for them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        needed = _LARGEST_BYTES[kind] * count
        if needed > (free := shutil.disk_usage(folder).free):
            raise OutputError(
                f"--generate {kind} --count {count}: up to {needed / 1e9:.1f} GB are needed in {folder.parent}, and "
                f"{free / 1e9:.1f} GB are free",
                hint="make room, set TMPDIR to a larger disk, or ask for fewer",
            )
        paths = _write(folder, kind, count, seed)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: photos cannot be made here: {(error.strerror or str(error)).lower()}") from error
    return look_at(paths, generated={"kind": kind, "count": count, "seed": seed})


def _write(folder: Path, kind: Kind, count: int, seed: int) -> list[bytes]:
    order = np.random.default_rng(seed).permutation(len(_MIXTURE)).tolist()
    seen: Counter[str] = Counter()
    wanted: list[tuple[str, int]] = []
    for number in range(count):
        name = kind if kind != "mixed" else _MIXTURE[order[number % len(_MIXTURE)]]
        wanted.append((name, seen[name] % _DISTINCT))
        seen[name] += 1

    def draw(key: tuple[str, int]) -> bytes:
        return _CLASSES[key[0]](np.random.default_rng((seed, list(_CLASSES).index(key[0]), key[1])))

    distinct = list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(min(_DRAWN_AT_ONCE, available_cores())) as pool:
        made = dict(zip(distinct, pool.map(draw, distinct), strict=True))
    paths = []
    for number, key in enumerate(wanted):
        data = made[key]
        if kind == "mixed" and number % _CORRUPT_EVERY == _CORRUPT_EVERY // 2:
            data = data[: len(data) // 2]
        path = folder / f"photo-{number:05d}{_SUFFIXES.get(key[0], '.jpg')}"
        path.write_bytes(data)
        paths.append(bytes(path))
    return paths


def draw_picture(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """An RGB picture of (width, height) pixels, see the module."""
    width, height = size
    picture = _leaves(size, rng)
    pixels = np.asarray(picture, dtype=np.float32)
    # At half the resolution, as a sensor's colour filter and a camera's noise reduction leave it.
    texture = _texture((width // 2, height // 2), rng)
    fine = np.asarray(Image.fromarray(texture).resize(size, Image.Resampling.BICUBIC))
    # Sensors are noisier where there is less light.
    noise = rng.standard_normal((height, width), dtype=np.float32) * (2.5 + (255 - pixels.mean(axis=2)) / 80)
    pixels += (fine + noise)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def _leaves(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width, height = size
    count = 1500
    picture = Image.new("RGB", size, tuple(rng.integers(60, 200, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    # Radii with density r^-3 between 1/150 and 1/3 of the height, by inversion; the large ones lie behind.
    smallest, largest = height / 150, height / 3
    radii = np.sort((smallest**-2 - rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5)[::-1]
    centres = rng.random((count, 2)) * (width, height)
    hues = rng.integers(0, 256, (12, 3))
    colours = np.clip(hues[rng.integers(0, 12, count)] + rng.normal(0, 20, (count, 3)), 0, 255).astype(int)
    for radius, (x, y), colour, corners in zip(
        radii.tolist(), centres.tolist(), colours.tolist(), rng.integers(2, 9, count).tolist(), strict=True
    ):
        if corners == 2:
            draw.ellipse((x - radius, y - 0.7 * radius, x + radius, y + 0.7 * radius), fill=tuple(colour))
        else:
            angles = np.sort(rng.random(max(corners, 3)) * 2 * np.pi)
            outline = zip((x + radius * np.cos(angles)).tolist(), (y + radius * np.sin(angles)).tolist(), strict=True)
            draw.polygon(list(outline), fill=tuple(colour))
    return picture


def _texture(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of (height, width) whose amplitude falls with 1/frequency; mean 0, standard deviation 12."""
    width, height = size
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    texture = np.fft.irfft2(spectrum / frequency, (height, width))
    return np.asarray(texture * (12 / texture.std()), dtype=np.float32)


def _jpeg(picture: Image.Image, *, quality: int = 88, progressive: bool = False, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    if orientation != 1:
        exif[_ORIENTATION_TAG] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, progressive=progressive, exif=exif)
    return file.getvalue()


def _other(picture: Image.Image, name: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, name)
    return file.getvalue()


_CLASSES: Final[dict[str, Callable[[np.random.Generator], bytes]]] = {
    "12MP": lambda rng: _jpeg(draw_picture(_LARGE, rng)),
    "web": lambda rng: _jpeg(draw_picture(_WEB, rng), quality=80),
    "rotated": lambda rng: _jpeg(draw_picture(_LARGE, rng), orientation=6),
    "progressive": lambda rng: _jpeg(draw_picture(_WEB, rng), quality=80, progressive=True),
    "large progressive": lambda rng: _jpeg(draw_picture(_LARGE, rng), progressive=True),
    "png": lambda rng: _other(draw_picture(_WEB, rng), "PNG"),
    "webp": lambda rng: _other(draw_picture(_WEB, rng), "WEBP"),
    "grey": lambda rng: _jpeg(draw_picture(_WEB, rng).convert("L"), quality=80),
}
_SUFFIXES: Final = {"png": ".png", "webp": ".webp"}
