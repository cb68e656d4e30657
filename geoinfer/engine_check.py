"""Whether an engine gives the embeddings of the ONNX model that it was built from, on the GPU it was built on."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.engines.flavors import load_flavor
from geoinfer.engines.gpu import find_gpu
from geoinfer.engines.sidecar import check_fits
from geoinfer.errors import DeviceError, ImageError, InputError, MismatchError, MissingPackageError, ModelError
from geoinfer.images import Preprocessing, load_pixels
from geoinfer.images.discover import IMAGE_SUFFIXES
from geoinfer.model_metadata import INT8_MIN_COSINE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.engines.sidecar import Sidecar

MIN_COSINE: Final = {"fp32": 0.999, "fp16": 0.999, "int8": INT8_MIN_COSINE}
"""No picture's embedding may turn further than this, by precision of the model."""

PICTURES: Final = 16
_SEED: Final = 20240


def check_engine(
    engine: Path, sidecar: Sidecar, onnx: Path, *, photos: Path | None, device: int, report: Callable[[str], None]
) -> dict[str, Any] | None:
    """Runs engine and model on the same pictures, and compares what they give.

    The model runs on the CPU by ONNX Runtime. Through the engine go batches of 1, 2, 3 and all the rest, and then, as
    `predict` does it, a call that fills the best batch twice and leaves one picture over: the pictures again and again.

    Args:
        engine: the plan.
        sidecar: its sidecar.
        onnx: the model that it was built from.
        photos: folder with photos; pictures are drawn when it is left out.
        device: N of `cuda:N`.
        report: takes lines for a reader.

    Returns:
        `min_cosine`, `pictures` and `against`, or None where it could not be compared; the reason is reported.

    Raises:
        InputError: no photos in the folder.
        ModelError: the engine fails, or turns an embedding further than `MIN_COSINE`.
        DeviceError: the GPU fails.
    """
    from geoinfer.backends import open_embedder
    from geoinfer.backends.onnx_runtime import import_onnxruntime

    # First, because a folder without photos is a mistake whether there is a GPU or not.
    preprocessing = Preprocessing.from_dict(sidecar.preprocessing)
    pixels = drawn_pictures(preprocessing.size) if photos is None else photos_of(photos, preprocessing)
    try:
        gpu = find_gpu(device)
        check_fits(engine, sidecar, load_flavor(sidecar.flavor).version, gpu)
        runtime = import_onnxruntime()
    except (DeviceError, MismatchError, MissingPackageError) as error:
        report(f"not checked: {error}")
        return None
    with open_embedder(onnx, "cpu") as embedder:
        expected = embedder.embed(pixels)
    with open_embedder(engine, f"cuda:{device}") as embedder:
        many = 2 * (embedder.best_batch or 1) + 1
        found = [_in_batches(embedder, pixels), embedder.embed(np.resize(pixels, (many, *pixels.shape[1:])))]
    # np.resize begins again where the pictures end, in both.
    cosines = row_cosines(np.concatenate(found), np.resize(expected, (len(pixels) + many, expected.shape[1])))
    worst = int(np.argmin(cosines))
    limit = MIN_COSINE[sidecar.precision]
    if not cosines[worst] >= limit:
        raise ModelError(
            f"the engine of {onnx} failed its check: on picture {worst % len(pixels) + 1} of {len(pixels)}, "
            f"{'in a small batch' if worst < len(pixels) else f'in a call of {many}'}, its embedding has a cosine of "
            f"{cosines[worst]:.6f} with the model's, less than {limit}; nothing was written",
            hint="an fp32 model gives the most exact engine; `python -m export onnx` makes one",
        )
    kind = "drawn pictures" if photos is None else "photos"
    report(f"checked on {gpu.name}: {len(pixels)} {kind}, smallest cosine {cosines[worst]:.6f} with ONNX Runtime's")
    return {
        "min_cosine": round(float(cosines[worst]), 7),
        "pictures": len(pixels),
        "against": f"onnxruntime {runtime.__version__}, cpu",
    }


def row_cosines(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row of one with the same row of the other, (n,) in float64.

    A picture that one of the two has no embedding for (NaN) counts as -1, unless neither has.
    """
    a, b = found.astype(np.float64), expected.astype(np.float64)
    absent_a, absent_b = ~np.isfinite(a).all(axis=1), ~np.isfinite(b).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    cosines[absent_a | absent_b] = -1.0
    cosines[absent_a & absent_b] = 1.0
    return np.asarray(cosines)


def drawn_pictures(size: int) -> NDArray[np.uint8]:
    """(16, size, size, 3) uint8, the same each time: waves of all lengths and directions, noise on some."""
    rng = np.random.default_rng(_SEED)
    y, x = np.mgrid[0:size, 0:size] / size
    pictures = np.empty((PICTURES, size, size, 3), np.uint8)
    for number in range(PICTURES):
        channels = np.zeros((size, size, 3))
        for _ in range(8):
            length, angle, phase = rng.uniform(1, 40), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 3)
            wave = 2 * np.pi * length * (np.cos(angle) * x + np.sin(angle) * y)
            channels += np.sin(wave[..., None] + phase) / length**0.5
        channels += rng.normal(0, 0.2 * (number % 4), channels.shape)
        spread = channels - channels.min()
        pictures[number] = np.round(spread * (255 / spread.max()))
    return pictures


def photos_of(folder: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Up to 16 photos spread evenly over a folder, (n, size, size, 3) uint8; those that cannot be read are left out.

    Raises:
        InputError: there are none.
    """
    names = sorted(
        os.path.join(root, name)
        for root, _, files in os.walk(os.fsencode(folder))
        for name in files
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )
    pictures: list[NDArray[np.uint8]] = []
    for name in names[:: max(1, len(names) // PICTURES)]:
        try:
            pictures.append(load_pixels(name, preprocessing))
        except ImageError:
            continue
        if len(pictures) == PICTURES:
            break
    if not pictures:
        raise InputError(
            f"--photos {folder}: there are no photos here to check the engine with",
            hint="name a folder with a few photos, or leave it out",
        )
    return np.stack(pictures)


def _in_batches(embedder: Embedder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    starts = [0, 1, 3, 6, len(pixels)]
    return np.concatenate([embedder.embed(pixels[a:b]) for a, b in itertools.pairwise(starts) if pixels[a:b].size])
