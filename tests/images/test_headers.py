"""Sizes in headers, against what Pillow says of the same files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoinfer.images.headers import picture_header
from geoinfer.images.read import sniff

if TYPE_CHECKING:
    from pathlib import Path

SAVED = [
    ("jpeg", "RGB", {"subsampling": 0}, (3, 8, False, 3.0)),
    ("jpeg", "RGB", {"subsampling": 2, "progressive": True}, (3, 8, True, 1.5)),
    ("jpeg", "RGB", {"subsampling": 1}, (3, 8, False, 2.0)),
    ("jpeg", "L", {}, (1, 8, False, 1.0)),
    ("jpeg", "CMYK", {}, (4, 8, False, 4.0)),
    ("png", "RGB", {}, (3, 8)),
    ("png", "RGB", {"transparency": (1, 2, 3)}, (4, 8)),
    ("png", "RGBA", {}, (4, 8)),
    ("png", "LA", {}, (2, 8)),
    ("png", "L", {}, (1, 8)),
    ("png", "1", {}, (1, 1)),
    ("png", "I;16", {}, (1, 16)),
    ("png", "P", {}, (3, 8)),
    ("png", "P", {"transparency": 0}, (4, 8)),
    ("gif", "P", {}, (4, 8)),
    ("webp", "RGB", {"quality": 50}, (3, 8)),
    ("webp", "RGB", {"lossless": True}, (3, 8)),
    ("webp", "RGBA", {"lossless": True}, (4, 8)),
    ("webp", "RGBA", {"quality": 50}, (4, 8)),
    ("webp", "RGB", {"exif": b"Exif\0\0"}, (3, 8)),
    ("bmp", "RGB", {}, (3, 8)),
    ("bmp", "RGBA", {}, (4, 8)),
    ("tiff", "RGB", {}, (3, 8)),
    ("tiff", "RGB", {"compression": "tiff_lzw"}, (3, 8)),
    ("tiff", "RGBA", {"big_tiff": True}, (4, 8)),
    ("tiff", "I;16", {}, (1, 16)),
    ("tiff", "F", {}, (1, 32)),
    ("jpeg2000", "RGB", {}, (3, 8)),
    ("jpeg2000", "RGBA", {}, (4, 8)),
    ("jpeg2000", "I;16", {}, (1, 16)),
    ("jpeg2000", "RGB", {"no_jp2": True}, (3, 8)),
    ("avif", "RGB", {"quality": 50, "speed": 10}, (3, 8)),
    ("avif", "RGBA", {"quality": 50, "speed": 10}, (4, 8)),
]


def saved(kind: str, mode: str, options: dict[str, Any], size: tuple[int, int]) -> bytes:
    """A picture with something to see in it: the transparency of one that is all opaque would be left out."""
    picture = Image.effect_noise(size, 90)
    if mode.endswith("A") and mode != "PA":
        picture = picture.convert(mode.removesuffix("A"))
        picture.putalpha(Image.effect_noise(size, 50))
    elif mode == "I;16":
        picture = picture.convert("I").convert("I;16")
    else:
        picture = picture.convert("RGB").convert(mode)
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode", "options", "expected"), SAVED, ids=[f"{s[0]}-{s[1]}-{'-'.join(s[2])}" for s in SAVED]
)
def test_what_pillow_writes(kind: str, mode: str, options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    data = saved(kind, mode, options, (70, 45))
    header = picture_header(data, kind)
    assert header is not None
    assert (header.width, header.height) == (70, 45) == Image.open(io.BytesIO(data)).size
    found = (header.channels, header.bits, header.progressive, header.samples_per_pixel)
    assert found[: len(expected)] == expected
    assert header.indexed == (mode == "P")
    assert header.pixels == 70 * 45


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "bmp", "jpeg2000"])
@given(width=st.integers(1, 300), height=st.integers(1, 300))
@settings(max_examples=15, deadline=None)
def test_any_size(kind: str, width: int, height: int) -> None:
    data = saved(kind, "RGB", {"lossless": True} if kind == "webp" else {}, (width, height))
    header = picture_header(data, kind)
    assert header is not None
    assert (header.width, header.height) == (width, height)


def test_real_files_of_every_kind(shared_formats: Path) -> None:
    pi_heif = pytest.importorskip("pi_heif")
    seen = set()
    for path in sorted(shared_formats.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        found = sniff(data[:512])
        if found is None or not found[1]:
            continue
        try:
            if found[0] == "heif":
                # As stored: `size` has the rotation applied already.
                stored = pi_heif.open_heif(io.BytesIO(data)).size
            else:
                stored = Image.open(io.BytesIO(data)).size
        except Exception:  # a broken file: what its header says is of no interest
            continue
        header = picture_header(data, found[0])
        assert header is not None, path.name
        # Pillow and libheif turn some upright; a HEIC's picture may be a whole number of tiles that is then cut.
        assert header.pixels >= stored[0] * stored[1] * 0.99, path.name
        assert header.pixels <= stored[0] * stored[1] * 1.1, path.name
        seen.add(found[0])
    assert {"jpeg", "png", "tiff", "heif", "avif", "jpeg2000"} <= seen


@pytest.mark.parametrize("kind", sorted({row[0] for row in SAVED} | {"heif"}))
@given(garbage=st.binary(max_size=80), cut=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_damage_raises_nothing(kind: str, garbage: bytes, cut: int) -> None:
    data = saved(kind, "RGB", {}, (9, 7)) if kind not in ("heif", "avif") else b"\0\0\0\x18ftypavif" + garbage + b"ispe"
    for damaged in (b"", garbage, data[:cut], data[:cut] + garbage, data[:cut] + garbage + data[cut + len(garbage) :]):
        header = picture_header(damaged, kind)
        assert header is None or header.pixels > 0
