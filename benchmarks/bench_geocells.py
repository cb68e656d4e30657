"""S2 labels of many points at levels 3 to 14, beside s2sphere point by point on a sample of them.

    python benchmarks/bench_geocells.py [--points 5000000] [--sample 100000] [--repeat 5] [--save NAME]

Both on one core, in turn, and in seconds of its time, which a machine busy with other things does not stretch as it
does those of the clock. The labels of the sample must be s2sphere's; they are compared at every level.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time

import numpy as np
import s2sphere
from common import machine, save, spread

from geoinfer.geocells import leaf_cells, parent_cells

LEVELS = range(3, 15)


def make_points(count: int) -> np.ndarray:
    """(count, 2) degrees, even over the sphere."""
    rng = np.random.default_rng(0)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, count))), rng.uniform(-180, 180, count)], axis=1)


def label_all(points: np.ndarray) -> tuple[float, float]:
    """Seconds of the leaf cells alone, and with the labels of all levels."""
    started = time.process_time()
    leaves = leaf_cells(points)
    leaves_s = time.process_time() - started
    for level in LEVELS:
        parent_cells(leaves, level)
    return leaves_s, time.process_time() - started


def label_by_s2sphere(points: np.ndarray) -> tuple[float, list[list[int]]]:
    """Seconds, and the labels by level."""
    started = time.process_time()
    leaves = [s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(*point)) for point in points.tolist()]
    labels = [[leaf.parent(level).id() for leaf in leaves] for level in LEVELS]
    return time.process_time() - started, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=5_000_000)
    parser.add_argument("--sample", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    arguments = parser.parse_args()
    points = make_points(arguments.points)
    sample = points[: arguments.sample]
    label_all(points)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    runs, loops = [], []
    for number in range(arguments.repeat):
        runs.append(label_all(points))
        seconds, expected = label_by_s2sphere(sample)
        loops.append(seconds)
        print(f"{number + 1}: {runs[-1][1]:.2f} s, s2sphere {seconds:.2f} s", file=sys.stderr, flush=True)
    leaves = leaf_cells(sample)
    differing = sum(
        int((parent_cells(leaves, level) != np.array(labels, np.uint64)).sum())
        for level, labels in zip(LEVELS, expected, strict=True)
    )
    result = {
        "machine": machine(),
        "points": arguments.points,
        "levels": list(LEVELS),
        "leaf_cells_s": [round(leaves_s, 3) for leaves_s, _ in runs],
        "labels_s": [round(labels_s, 3) for _, labels_s in runs],
        "peak_bytes": peak_bytes,
        "s2sphere": {
            "points": len(sample),
            "seconds": [round(seconds, 3) for seconds in loops],
            "labels_that_differ": differing,
        },
    }
    each = statistics.median(loops) / len(sample)
    ours = statistics.median(labels_s for _, labels_s in runs) / arguments.points
    lines = [
        "| | points | processor time | a point |",
        "|---|---|---|---|",
        f"| geoinfer | {arguments.points:,} | {spread([labels_s for _, labels_s in runs])} s | {ours * 1e6:.2f} µs |",
        f"| s2sphere, point by point | {len(sample):,} | {spread(loops)} s | {each * 1e6:.1f} µs |",
        "",
        f"Labels at levels {LEVELS.start} to {LEVELS.stop - 1}: {each / ours:.0f} times s2sphere's speed, {differing} "
        f"of the sample's {len(sample) * len(LEVELS):,} labels differ, {peak_bytes / 2**20:.0f} MiB at the peak with "
        f"the points ({result['machine']['cpu']}, one of {result['machine']['cores']} cores).",
    ]
    print("\n".join(lines))
    if arguments.save:
        save(arguments.save, result).with_suffix(".md").write_text("\n".join(lines) + "\n")
    if differing:
        raise SystemExit("labels differ from s2sphere's")


if __name__ == "__main__":
    main()
