"""How fast `geoinfer predict` is, beside its stages, the bound that they set, and a plain loop; all in one run.

    python benchmarks/bench_pipeline.py [--kind 12MP|web] [--count 200] [--repeat 3] [--save NAME]

- each stage alone: read, decode (with resizing), embed, search with aggregation, write; on all cores.
- the work-conserving bound: the rate at which all cores would be busy all the time, had nothing ever to wait for
  anything: 1 / (1/read + 1/decode + 1/embed + 1/search + 1/write), with each stage at its fastest. Where embedding
  with one session on all cores is faster than one single-threaded call a core, it is that which counts.
- the plain loop: Pillow decodes and resizes, ONNX Runtime embeds one photo at a time, FAISS searches as it comes.

Rounds are interleaved, so that a machine that slows down slows everything; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import machine, make_photos, save, spread

from geoinfer.backends import open_embedder
from geoinfer.batch.predict import CPU_BATCH, PredictOptions, run_predict
from geoinfer.batch.rows import ok_row
from geoinfer.batch.writers import write_rows
from geoinfer.bundle import SHIPPED
from geoinfer.geolocator import Geolocator
from geoinfer.images import decode_pixels, read_image_file
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CORES = available_cores()


class Silent:
    def started(self, resumed: int, failed: int) -> None: ...

    def progressed(self, inputs: int, failed: int) -> None: ...

    def writing(self) -> None: ...


def rate(count: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def on_all_cores(function: Callable, items: Sequence) -> list:
    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(function, items))


def stages(paths: list[Path], geolocator: Geolocator, all_cores, folder: Path) -> dict[str, float]:
    """Images a second of each stage alone, on all cores."""
    count = len(paths)
    names = [bytes(path) for path in paths]
    preprocessing = geolocator.embedder.identity.preprocessing
    result = {"read": rate(count, lambda: on_all_cores(read_image_file, names))}
    data = [read_image_file(name) for name in names]
    result["decode"] = rate(count, lambda: on_all_cores(lambda item: decode_pixels(*item, preprocessing), data))
    pixels = [decode_pixels(*item, preprocessing)[None] for item in data]
    one_each = rate(count, lambda: on_all_cores(geolocator.embedder.embed, pixels))
    together = max(
        rate(
            count,
            lambda size=size: [all_cores.embed(np.concatenate(pixels[i : i + size])) for i in range(0, count, size)],
        )
        for size in (1, 8)
    )
    result["embed, one thread a core"] = one_each
    result["embed, one session on all cores"] = together
    result["embed"] = max(one_each, together)
    embeddings = np.concatenate([geolocator.embedder.embed(p) for p in pixels])
    blocks = [embeddings[i : i + 32] for i in range(0, count, 32)]
    result["search"] = rate(count, lambda: on_all_cores(lambda b: geolocator.locate_embeddings(b, threads=1), blocks))
    row = ok_row(names[0], latitude=1.5, longitude=2.5, radius_km=3.5, score=0.5, top1_similarity=0.5)
    result["write"] = rate(count, lambda: write_rows(folder / "stage.csv", [row] * count))
    return result


def bound(stage: dict[str, float]) -> float:
    return 1 / sum(1 / stage[name] for name in ("read", "decode", "embed", "search", "write"))


def pipeline(paths: list[Path], geolocator: Geolocator, folder: Path) -> float:
    options = PredictOptions(
        sources=(str(paths[0].parent),),
        output=folder / "predictions.csv",
        errors=folder / "errors.csv",
        batch_size=CPU_BATCH,
        workers=CORES,
        restart=True,
    )
    summary = run_predict(geolocator, options, Silent())
    assert summary.ok == len(paths)
    return summary.images_per_second


def command(paths: list[Path], folder: Path) -> float:
    """The whole command, with Python's start, imports and the opening of the model."""
    argv = [sys.executable, "-m", "geoinfer", "predict", str(paths[0].parent), "-o", str(folder / "c.csv"), "--restart"]
    return rate(len(paths), lambda: subprocess.run([*argv, "--quiet"], check=True, stderr=subprocess.DEVNULL))


def plain(paths: list[Path], folder: Path) -> float:
    """In a process of its own, so that FAISS and ONNX Runtime are as they come."""
    argv = [sys.executable, __file__, "--plain-loop", str(paths[0].parent), "--plain-output", str(folder / "plain.csv")]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def plain_loop(photos: Path, output: Path) -> float:
    """What one would write first: one photo after another, everything with its defaults."""
    import faiss
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(str(SHIPPED / "model.onnx"), providers=["CPUExecutionProvider"])
    vectors = np.load(SHIPPED / "index" / "vectors.npy")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    size, _ = session.get_inputs()[0].shape[1:3]
    paths = sorted(photos.glob("*.jpg"))
    session.run(None, {"pixels": np.zeros((1, size, size, 3), np.uint8)})
    started = time.perf_counter()
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        for path in paths:
            picture = Image.open(path).convert("RGB")
            scale = size / min(picture.size)
            picture = picture.resize(
                (max(size, round(picture.width * scale)), max(size, round(picture.height * scale))),
                Image.Resampling.BICUBIC,
            )
            left, top = (picture.width - size) // 2, (picture.height - size) // 2
            pixels = np.asarray(picture.crop((left, top, left + size, top + size)))
            embedding = session.run(None, {"pixels": pixels[None]})[0]
            similarities, ids = index.search(embedding, 10)
            writer.writerow([path.name, ids[0, 0], similarities[0, 0]])
    return len(paths) / (time.perf_counter() - started)


def measure(kind: str, count: int, repeat: int) -> dict:
    rounds = []
    with (
        tempfile.TemporaryDirectory() as name,
        Geolocator.open(device="cpu", threads=1) as geolocator,
        open_embedder(SHIPPED / "model.onnx", "cpu") as all_cores,
    ):
        folder = Path(name)
        paths = make_photos(folder / "photos", kind, count)
        size = statistics.mean(path.stat().st_size for path in paths)
        pipeline(paths[:], geolocator, folder)  # warms the page cache and the allocators
        for number in range(repeat):
            stage = stages(paths, geolocator, all_cores, folder)
            figures = {
                "stages": stage,
                "bound": bound(stage),
                "geoinfer predict": pipeline(paths, geolocator, folder),
                "whole command": command(paths, folder),
                "plain loop": plain(paths, folder),
            }
            rounds.append(figures)
            print(f"round {number + 1}: {figures['geoinfer predict']:.1f} photos/s", file=sys.stderr)
    return {"kind": kind, "count": count, "mean_file_bytes": round(size), "rounds": rounds, "machine": machine()}


def table(result: dict) -> str:
    rounds = result["rounds"]

    def column(get: Callable[[dict], float]) -> list[float]:
        return [get(figures) for figures in rounds]

    lines = [
        f"{result['count']} JPEGs, {result['kind']}, {result['mean_file_bytes'] / 1e6:.2f} MB each; "
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores; median of {len(rounds)} rounds (range)",
        "",
        "| what | photos/s |",
        "|---|---|",
    ]
    for name in rounds[0]["stages"]:
        if name != "embed":
            lines.append(f"| {name}, alone | {spread(column(lambda f, n=name: f['stages'][n]))} |")
    lines += [
        f"| work-conserving bound | {spread(column(lambda f: f['bound']))} |",
        f"| **geoinfer predict** | **{spread(column(lambda f: f['geoinfer predict']))}** |",
        f"| the whole command, with its start | {spread(column(lambda f: f['whole command']))} |",
        f"| plain loop | {spread(column(lambda f: f['plain loop']))} |",
        "",
        f"Share of the bound: {spread(column(lambda f: 100 * f['geoinfer predict'] / f['bound']))} %. "
        f"Times the plain loop: {spread(column(lambda f: f['geoinfer predict'] / f['plain loop']))}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["12MP", "web"], action="append", help="size of the photos; default both")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME-KIND.json and .md")
    parser.add_argument("--plain-loop", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain-output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain_loop:
        print(plain_loop(arguments.plain_loop, arguments.plain_output))
        return
    for kind in arguments.kind or ["12MP", "web"]:
        result = measure(kind, arguments.count, arguments.repeat)
        text = table(result)
        print(text + "\n")
        if arguments.save:
            save(f"{arguments.save}-{kind}", result).with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
