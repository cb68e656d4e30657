"""What the benchmarks share: photos to measure on, and what the figures were measured with."""

from __future__ import annotations

import json
import os
import platform
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECKOUT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SIZES = {"12MP": (4032, 3024), "web": (1024, 768)}


def make_photos(folder: Path, kind: str, count: int) -> list[Path]:
    """Fills `folder` with `count` JPEGs of a size, made from the example photos; every one is a file of its own.

    Enlarged pictures have no fine detail, which would make their JPEGs small and quick to decode; seeded noise like a
    sensor's brings them to the 3 to 5 MB of a camera's own at 12 megapixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    originals = sorted((CHECKOUT / "examples" / "photos").glob("*.jpg"))
    rng = np.random.default_rng(0)
    encoded: list[bytes] = []
    for original in originals:
        picture = Image.open(original).convert("RGB")
        width, height = SIZES[kind]
        if picture.width < picture.height:
            width, height = height, width
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), dtype=np.int16)
        noise = rng.normal(0, 4, (height, width, 1)).astype(np.int16)
        made = folder / f".{original.stem}.jpg"
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(made, quality=88)
        encoded.append(made.read_bytes())
        made.unlink()
    paths = []
    for number in range(count):
        path = folder / f"photo-{number:05d}.jpg"
        path.write_bytes(encoded[number % len(encoded)])
        paths.append(path)
    return paths


def machine() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    names = ("geoinfer-toolkit", "numpy", "onnxruntime", "faiss-cpu", "pillow", "simplejpeg", "pyarrow")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def spread(values: Sequence[float]) -> str:
    """Median, with the smallest and largest."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes a result under `benchmarks/results/` and returns where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    return path
