"""Whether a bundle's int8 model answers as well as its fp32 one: both asked for the same photos, differences paired.

    python benchmarks/int8_answers.py --photos FOLDER-WITH-PHOTOS.CSV [--bundle BUNDLE] [--save int8-answers]

The references are the bundle's own, embedded in fp32, as `geoinfer index build` makes them. Each photo is answered
twice: without the references of its own source, which is `geoinfer evaluate --hold-out source`; and without itself
alone. Intervals are 95 % bootstrap intervals of the paired difference, photos drawn with replacement.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import machine, save

from geoinfer.aggregate import aggregate
from geoinfer.answer import DEFAULT_ANSWER, Answer
from geoinfer.backends import open_embedder
from geoinfer.bundle import SHIPPED
from geoinfer.engine_check import row_cosines
from geoinfer.engines.int8_beside import require_int8
from geoinfer.geodesy import haversine_km
from geoinfer.images import load_pixels
from geoinfer.index import open_index
from geoinfer.metrics import OSV5M, geoscores

if TYPE_CHECKING:
    from geoinfer.index import StoredIndex

DRAWS = 10_000
AT_ONCE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with photos.csv: path, latitude, longitude")
    parser.add_argument("--bundle", type=Path, default=SHIPPED)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    options = parser.parse_args()
    result = {"machine": machine()} | measured(options.photos, options.bundle)
    report = markdown(result)
    print(report)
    if options.save:
        save(options.save, result).with_suffix(".md").write_text(report + "\n")


def measured(photos: Path, bundle: Path) -> dict[str, Any]:
    with (photos / "photos.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [photos / row["path"] for row in rows]
    truth = np.array([[float(row["latitude"]), float(row["longitude"])] for row in rows])
    sources = np.array([row["source"] for row in rows])
    model = bundle / "model.onnx"
    fp32, int8 = (embedded(path, paths) for path in (model, require_int8(model)))
    cosines = row_cosines(int8, fp32)
    stored = open_index(bundle / "index")
    of_source = sources[:, None] == np.array(stored.references.sources)[None, :]
    digests = np.array([list(hashlib.sha256(path.read_bytes()).digest()) for path in paths], np.uint8)
    itself = (digests[:, None, :] == stored.references.content_sha256[None, :, :]).all(axis=2)
    usual = stored.manifest.answer or DEFAULT_ANSWER
    asked = []
    for without, hidden in (("the references of its source", of_source), ("itself", itself)):
        for answer in (usual, Answer(1, "top1")):
            ours, theirs = (located(some, stored, hidden, answer, truth) for some in (fp32, int8))
            asked.append({"without": without, "answer": str(answer.aggregate)} | compared(ours, theirs))
    return {
        "photos": len(rows),
        "references": len(stored.references),
        "min_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "asked": asked,
    }


def embedded(model: Path, paths: list[Path]) -> np.ndarray:
    with open_embedder(model, "cpu") as embedder:
        found = []
        for start in range(0, len(paths), AT_ONCE):
            some = [
                load_pixels(bytes(path), embedder.identity.preprocessing) for path in paths[start : start + AT_ONCE]
            ]
            found.append(embedder.embed(np.stack(some)))
    return np.concatenate(found)


def located(
    queries: np.ndarray, stored: StoredIndex, hidden: np.ndarray, answer: Answer, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each query the most similar reference that is not hidden from it, and how many km off its answer is."""
    similarities = queries @ np.asarray(stored.index.vectors, np.float32).T
    similarities[hidden] = -2.0
    near = np.argsort(-similarities, axis=1, kind="stable")[:, : answer.k]
    places = aggregate(stored.references.coordinates[near], np.take_along_axis(similarities, near, axis=1), answer)
    return near[:, 0], haversine_km(places, truth)


def compared(fp32: tuple[np.ndarray, np.ndarray], int8: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Figures of both, and the differences int8 - fp32 with their intervals: [value, low, high]."""
    (first, before), (second, after) = fp32, int8
    scores = geoscores(before, OSV5M), geoscores(after, OSV5M)
    drawn = np.random.default_rng(0).integers(len(before), size=(DRAWS, len(before)))
    figures: dict[str, Any] = {"same_nearest": float((first == second).mean())}
    for name, statistic, (a, b) in (
        ("median_km", np.median, (before, after)),
        ("mean_km", np.mean, (before, after)),
        ("geoscore", np.mean, scores),
    ):
        low, high = np.percentile(statistic(b[drawn], axis=1) - statistic(a[drawn], axis=1), (2.5, 97.5))
        difference = float(statistic(b) - statistic(a))
        figures[name] = {"fp32": float(statistic(a)), "int8": float(statistic(b))}
        figures[f"{name}_difference"] = [difference, float(low), float(high)]
    return figures


def markdown(result: dict[str, Any]) -> str:
    def shown(entry: dict[str, Any], name: str) -> str:
        value, low, high = entry[f"{name}_difference"]
        return f"{value:+.0f} ({low:+.0f} to {high:+.0f})"

    cosines = f"smallest {result['min_cosine']:.4f}, mean {result['mean_cosine']:.4f}"
    about = result["machine"]
    lines = [
        f"{result['photos']} photos, {result['references']} references; cosine of a photo's two embeddings: {cosines}. "
        "Differences are int8 less fp32, with their 95 % intervals. "
        f"{about['cpu']}; onnxruntime {about['versions']['onnxruntime']}.",
        "",
        "| answered without | by | same nearest reference | mean km, fp32 | difference | median km, fp32 | difference "
        "| GeoScore, fp32 | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in result["asked"]:
        figures = " | ".join(
            f"{entry[name]['fp32']:.0f} | {shown(entry, name)}" for name in ("mean_km", "median_km", "geoscore")
        )
        lines.append(f"| {entry['without']} | {entry['answer']} | {100 * entry['same_nearest']:.0f} % | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
