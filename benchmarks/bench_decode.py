"""How fast photos become pixels, by kind of photo: on one core, and on all of them against one.

    python benchmarks/bench_decode.py [--rounds 5] [--seconds 1] [--size 260]

For each kind, in every round one after another: in one thread; in as many threads as there are cores, sharing this
process; and as a run does it (`PhotoLoader`: HEIC and JPEG 2000 in processes of their own). Beside them Pillow, which
decodes in full, turns upright, resizes and cuts. A ratio of 1.0 between all cores and one means that the decoder lets
nobody else run. Everything is read before; nothing here waits for a disk.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parent))
from common import CHECKOUT, RESULTS, machine, make_photos, save, spread

from geoinfer.images import Preprocessing, decode_pixels
from geoinfer.images.loader import PhotoLoader
from geoinfer.images.read import sniff
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

HEIC = CHECKOUT.parent / "shared" / "data" / "formats" / "heic-iphone.heic"
WAYS = ("one thread", "threads", "as a run", "Pillow")


def make_kinds(folder: Path) -> dict[str, list[bytes]]:
    """Photos of each kind: JPEGs of two sizes, and the smaller ones saved again."""
    kinds = {
        f"JPEG {size}": [path.read_bytes() for path in make_photos(folder / size, size, 10)] for size in ("12MP", "web")
    }
    originals = {size: [Image.open(io.BytesIO(data)) for data in kinds[f"JPEG {size}"]] for size in ("12MP", "web")}
    for name, size, kind, options in (
        ("progressive JPEG 12MP", "12MP", "JPEG", {"quality": 88, "progressive": True}),
        ("progressive JPEG web", "web", "JPEG", {"quality": 88, "progressive": True}),
        ("PNG web", "web", "PNG", {}),
        ("WebP web", "web", "WEBP", {"quality": 85}),
        ("TIFF web", "web", "TIFF", {"compression": "tiff_lzw"}),
        ("AVIF web", "web", "AVIF", {"quality": 75}),
        ("JPEG 2000 web", "web", "JPEG2000", {"quality_mode": "rates", "quality_layers": [12]}),
    ):
        kinds[name] = [_saved(picture, kind, options) for picture in originals[size][:4]]
    if HEIC.exists():  # nothing here can write one
        kinds["HEIC 12MP"] = [HEIC.read_bytes()]
    return kinds


def _saved(picture: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes, size: int) -> NDArray[np.uint8]:
    """What the paper's code does: all of the picture, then less of it."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC))


def rate(decode: Callable[[bytes], object], photos: list[bytes], threads: int, seconds: float) -> float:
    """Photos a second of so many threads, each at least `seconds` long and to the end of its last photo."""
    done = [0] * threads
    begin = threading.Barrier(threads)
    ended = [0.0] * threads
    started = [0.0] * threads

    def work(number: int) -> None:
        begin.wait()
        started[number] = time.perf_counter()
        while time.perf_counter() - started[number] < seconds:
            decode(photos[(number + done[number]) % len(photos)])
            done[number] += 1
        ended[number] = time.perf_counter()

    crowd = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    return sum(count / (end - start) for count, start, end in zip(done, started, ended, strict=True))


def measure(
    kinds: dict[str, list[bytes]], preprocessing: Preprocessing, rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Photos a second by kind and way, one number a round; the rounds are interleaved."""
    cores = available_cores()
    local = threading.local()
    rates: dict[str, dict[str, list[float]]] = {name: {way: [] for way in WAYS} for name in kinds}
    with PhotoLoader(preprocessing, cores) as loader:

        def slot() -> NDArray[np.uint8]:
            if not hasattr(local, "slot"):
                local.slot = np.empty((preprocessing.size, preprocessing.size, 3), np.uint8)
            return local.slot

        for number in range(rounds + 1):  # the first is to warm up
            for name, photos in kinds.items():
                found = sniff(photos[0][:512])
                assert found is not None
                kind = found[0]

                def alone(data: bytes, kind: str = kind) -> None:
                    decode_pixels(data, kind, preprocessing, slot())

                def as_a_run(data: bytes, kind: str = kind) -> None:
                    loader.decode(data, kind, slot())

                figures = {
                    "one thread": rate(alone, photos, 1, seconds),
                    "threads": rate(alone, photos, cores, seconds),
                    "as a run": rate(as_a_run, photos, cores, seconds),
                    "Pillow": rate(lambda data: by_pillow(data, preprocessing.size), photos, 1, seconds),
                }
                for way in WAYS if number else ():
                    rates[name][way].append(figures[way])
    return rates


def table(rates: dict[str, dict[str, list[float]]], sizes: dict[str, float], cores: int) -> str:
    """The figures in Markdown: medians, with the smallest and largest of the rounds, and ratios within rounds."""
    lines = [
        f"| photos | MB | photos/s, one core | against Pillow | {cores} threads against 1 | as a run against 1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, ways in rates.items():
        one = ways["one thread"]
        ratios = [
            spread([a / b for a, b in zip(ours, theirs, strict=True)])
            for ours, theirs in ((one, ways["Pillow"]), (ways["threads"], one), (ways["as a run"], one))
        ]
        lines.append(f"| {name} | {sizes[name]:.2f} | {spread(one)} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table and writes `results/decode.json` and `.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement at least")
    parser.add_argument("--size", type=int, default=260, help="side that the model takes")
    parser.add_argument("--photos", type=Path, default=Path("/tmp/geoinfer-bench-decode"), help="where to make them")
    given = parser.parse_args()
    kinds = make_kinds(given.photos)
    rates = measure(kinds, Preprocessing(given.size), given.rounds, given.seconds)
    sizes = {name: statistics.mean(map(len, photos)) / 1e6 for name, photos in kinds.items()}
    text = table(rates, sizes, available_cores())
    print(text)
    path = save("decode", {"machine": machine(), "size": given.size, "rates": rates, "megabytes": sizes})
    (RESULTS / "decode.md").write_text(
        f"{machine()['cpu']}, {available_cores()} cores; to {given.size} px; {given.rounds} rounds, median "
        f"(smallest to largest); `python benchmarks/bench_decode.py`\n\n{text}\n"
    )
    print(f"written to {os.path.relpath(path)} and .md")


if __name__ == "__main__":
    main()
