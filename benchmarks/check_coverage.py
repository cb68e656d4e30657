"""How often radii hold the truth: new photos of a made-up world, with ever more shots of a scene in the index.

    python benchmarks/check_coverage.py [--save NAME]

Each scene is a place on the Earth and a direction in embedding space, both drawn around those of one of 40 regions;
its shots differ from it by a little noise, as photos of one afternoon do (they are no near-duplicates), and are some
metres or a kilometre apart. Queries are shots of new scenes. A radius is promised for photos that are to the references
as the references are to one another. Where the index knows which photos belong together, or they are within 100 m,
they are not counted as each other's references, and the promise holds; else it holds for one shot a scene, and ever
less for more.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from common import machine, save

from geoinfer.aggregate import aggregate
from geoinfer.answer import METHODS, Answer
from geoinfer.calibration import SPREAD_K, calibrate, neighbor_spread_km
from geoinfer.geodesy import destination, from_unit_vectors, haversine_km
from geoinfer.index import FlatIndex, References
from geoinfer.index.leave_one_out import leave_one_out
from geoinfer.reliability import LEVELS

DIM, REGIONS, SCENES, QUERIES, K = 64, 40, 400, 400, 10
WORLDS, WORLDS_OF_MANY_SHOTS = 40, 10


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def coverage(shots: int, seed: int, *, known: bool, apart_km: float) -> dict[str, list[float]]:
    """Of each method, the share of queries within the radius of each of `LEVELS`."""
    rng = np.random.default_rng(seed)
    centres = from_unit_vectors(unit(rng.normal(size=(REGIONS, 3))))
    looks = unit(rng.normal(size=(REGIONS, DIM)))

    def scenes(count: int) -> tuple[np.ndarray, np.ndarray]:
        region = rng.integers(REGIONS, size=count)
        places = destination(centres[region], rng.uniform(0, 360, count), np.abs(rng.normal(0, 150, count)))
        return places, unit(looks[region] + rng.normal(0, 0.12, (count, DIM)))

    def shoot(looks_of: np.ndarray) -> np.ndarray:
        return unit(looks_of + rng.normal(0, 0.02, looks_of.shape)).astype(np.float32)

    places, appearance = scenes(SCENES)
    places, appearance = np.repeat(places, shots, axis=0), np.repeat(appearance, shots, axis=0)
    places = destination(places, rng.uniform(0, 360, len(places)), np.abs(rng.normal(0, apart_km, len(places))))
    references = References(
        ids=[str(number) for number in range(len(places))],
        coordinates=places,
        sources=[""] * len(places),
        attributions=[""] * len(places),
        content_sha256=rng.integers(0, 256, (len(places), 32), dtype=np.uint8),
        perceptual_hashes=rng.integers(0, 256, (len(places), 32), dtype=np.uint8),
        sequences=[f"scene {number // shots}" if known else "" for number in range(len(places))],
    )
    truth, query_appearance = scenes(QUERIES)
    index = FlatIndex(shoot(appearance))
    held_out = leave_one_out(index, references)
    found = index.search(shoot(query_appearance), max(K, SPREAD_K))
    near = places[found.ids]
    top1 = found.similarities[:, 0].astype(np.float64)
    result = {}
    for method in METHODS:
        way = Answer(K, method)
        answers = aggregate(near[:, :K], found.similarities[:, :K], way)
        calibration = calibrate(held_out, places, way)
        errors, spread = haversine_km(answers, truth), neighbor_spread_km(answers, near)
        result[method] = [float((errors <= calibration.radius_km(spread, top1, level)).mean()) for level in LEVELS]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    arguments = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    promised: list[str] = []
    lines = [f"| shots of each scene | apart (1 s.d.) | which belong together | {' | '.join(METHODS)} |"]
    lines.append("|---:|---|---|" + "---:|" * len(METHODS))
    cases = [(1, 0.0, False), *itertools.product((2, 5), (0.01, 1.0), (True, False))]
    for shots, apart_km, known in cases:
        worlds_made = WORLDS if shots == 1 else WORLDS_OF_MANY_SHOTS
        worlds = [coverage(shots, seed, known=known, apart_km=apart_km) for seed in range(worlds_made)]
        means = {method: np.mean([world[method] for world in worlds], axis=0) for method in METHODS}
        which = "known" if known else "unknown"
        apart = f"{apart_km * 1000:.0f} m"
        table[f"{shots} shots {apart} apart, sequences {which}"] = {
            method: {f"{level:.0%}": round(float(mean), 4) for level, mean in zip(LEVELS, means[method], strict=True)}
            for method in METHODS
        }
        if shots == 1:
            for number, level in enumerate(LEVELS):
                cells = " | ".join(f"{means[method][number]:.1%}" for method in METHODS)
                promised.append(f"| {level:.0%} | {cells} |")
            continue
        cells = " | ".join(f"{means[method][LEVELS.index(0.9)]:.0%}" for method in METHODS)
        lines.append(f"| {shots} | {apart} | {which} | {cells} |")
    lines = [
        f"New scenes within their radius, k = {K}: mean of {WORLDS} seeded worlds of {SCENES} scenes and {QUERIES} new "
        "ones.",
        "",
        f"| promised | {' | '.join(METHODS)} |",
        "|---:|" + "---:|" * len(METHODS),
        *promised,
        "",
        f"The same at 90%, where the index holds several shots of each scene; mean of {WORLDS_OF_MANY_SHOTS} worlds:",
        "",
        *lines,
    ]
    print("\n".join(lines))
    if arguments.save:
        save(arguments.save, {"coverage": table, "machine": machine()}).with_suffix(".md").write_text(
            "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
