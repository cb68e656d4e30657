"""Tries a GPU out as a decoder before a run trusts it: on drawn pictures whose right pixels the CPU knows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from geoinfer.errors import DeviceError
from geoinfer.images.device.frame import Frame
from geoinfer.images.device.nvimagecodec import Picture
from geoinfer.images.device.plan import plan_resize
from geoinfer.images.resize import Decoded, resize_decoded

if TYPE_CHECKING:
    from geoinfer.images.device.decoder import DeviceDecoder
    from geoinfer.images.preprocessing import Preprocessing

MOST_DIFFERENCE: Final = 2.0
"""Of 255 on average: what the CPU's own decoder is held to against decoding the whole picture with Pillow."""

_HINT: Final = "--decode cpu decodes photos on the CPU"
_SIZES: Final = ((640, 480), (300, 700))
_ORIENTATIONS: Final = (1, 6)


def check(decoder: DeviceDecoder) -> None:
    """Resizes known pixels, which must come out as Pillow's bit by bit, and decodes JPEGs, which must come close.

    Raises:
        DeviceError: they do not, or the GPU fails.
    """
    pictures = [drawn(width, height, seed) for seed, (width, height) in enumerate(_SIZES)]
    jobs = [
        (Picture(decoder.upload(np.asarray(picture)), *picture.size, 3 * picture.width, None),
         plan_resize(Frame(*picture.size, orientation, "web"), decoder.preprocessing))
        for picture, orientation in zip(pictures, _ORIENTATIONS, strict=True)
    ]  # fmt: skip
    resized = decoder.resize(jobs)
    for picture, orientation, found in zip(pictures, _ORIENTATIONS, resized, strict=True):
        if not np.array_equal(found, _expected(picture, orientation, decoder.preprocessing)):
            raise DeviceError("photos cannot be decoded on this GPU: it resizes otherwise than the CPU", hint=_HINT)

    side = decoder.preprocessing.size
    files = [as_jpeg(picture, orientation) for picture, orientation in zip(pictures, _ORIENTATIONS, strict=True)]
    outs = np.zeros((len(files), side, side, 3), np.uint8)
    if not all(decoder.decode([(data, "jpeg", out) for data, out in zip(files, outs, strict=True)])):
        raise DeviceError(
            f"photos cannot be decoded on this GPU: {decoder.title} decodes no JPEG here",
            hint=f"it needs the package nvidia-nvjpeg, which the extra gpu of geoinfer-toolkit brings; {_HINT}",
        )
    for data, orientation, out in zip(files, _ORIENTATIONS, outs, strict=True):
        expected = _expected(Image.open(io.BytesIO(data)).convert("RGB"), orientation, decoder.preprocessing)
        difference = float(np.abs(out.astype(np.int16) - expected).mean())
        if difference > MOST_DIFFERENCE:
            raise DeviceError(
                f"photos cannot be decoded on this GPU: its pixels differ from the CPU's by {difference:.1f} of 255 on "
                f"average; {MOST_DIFFERENCE:g} are allowed",
                hint=_HINT,
            )


def drawn(width: int, height: int, seed: int) -> Image.Image:
    """An RGB picture with large shapes, small ones, and a sensor's noise, as photos have them; always the same."""
    rng = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), 128.0, np.float32)
    for across in (4, 16, 64):
        coarse = rng.integers(0, 256, (max(across * height // width, 2), across, 3), dtype=np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        canvas += (np.asarray(layer, np.float32) - 128.0) * (2.0 / across**0.5)
    canvas += rng.normal(0.0, 4.0, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def as_jpeg(picture: Image.Image, orientation: int = 1, *, progressive: bool = False) -> bytes:
    """A file as cameras write it: quality 88, colour at half the size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88, progressive=progressive, exif=exif)
    return file.getvalue()


def _expected(picture: Image.Image, orientation: int, preprocessing: Preprocessing) -> np.ndarray:
    return resize_decoded(Decoded(picture, orientation, picture.size), preprocessing)
