"""Whether more threads than cores gain anything on files that are not in memory: `geoinfer predict --workers N`.

    python benchmarks/bench_workers.py [--kind 12MP|web] [--count 200] [--rounds 8] [--precision fp32] [--save NAME]

Each round runs the command with as many threads as cores, one more, and twice as many, in an order that turns from
round to round, each on files that were dropped from the page cache. The rate is the command's own: from its first
photo to its last row. Ratios are of one round, with their intervals as `geoinfer.self_tuning.choose` has them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, machine, make_photos, save, spread

from geoinfer.benchmark.cold import drop_from_cache
from geoinfer.machine import available_cores
from geoinfer.self_tuning.choose import LEAST_GAIN, paired_ratio


def rate(folder: Path, workers: int, precision: str, into: Path) -> float:
    """Photos a second of one run."""
    summary = into / "summary.json"
    command = [
        sys.executable, "-m", "geoinfer", "predict", str(folder), "--output", str(into / "out.csv"), "--restart",
        "--quiet", "--no-tune", "--device", "cpu", "--precision", precision, "--workers", str(workers),
        "--summary-json", str(summary),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return float(json.loads(summary.read_bytes())["images_per_second"])


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    first = result["workers"][0]
    lines = [
        f"{result['count']} JPEGs, {result['kind']}, {result['megabytes_each']:.2f} MB each, not in memory; "
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores; {result['precision']}; median of "
        f"{result['rounds']} rounds (range)",
        "",
        f"| threads | photos/s | beside {first} (99.5% interval) |",
        "|---|---|---|",
    ]
    for workers in result["workers"]:
        rates = result["rates"][str(workers)]
        ratio = paired_ratio(rates, result["rates"][str(first)])
        beside = "" if workers == first else f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        lines.append(f"| {workers} | {spread(rates)} | {beside} |")
    return "\n".join([*lines, "", result["verdict"], ""])


def verdict(rates: dict[str, list[float]], workers: list[int]) -> str:
    """What follows for the default."""
    gains = [n for n in workers[1:] if _surely(rates[str(n)], rates[str(workers[0])])]
    if not gains:
        return "No number of threads is surely faster than one a core."
    return f"Surely faster by 3% or more than one thread a core: {', '.join(map(str, gains))} threads."


def _surely(rates: list[float], default: list[float]) -> bool:
    ratio = paired_ratio(rates, default)
    return ratio.value >= LEAST_GAIN and ratio.low > 1


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=("12MP", "web"), default="web")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--save", metavar="NAME")
    options = parser.parse_args()
    cores = available_cores()
    workers = sorted({cores, cores + 1, 2 * cores})
    rates: dict[str, list[float]] = {str(n): [] for n in workers}
    with tempfile.TemporaryDirectory() as name:
        folder, into = Path(name) / "photos", Path(name)
        photos = make_photos(folder, options.kind, options.count)
        size = sum(path.stat().st_size for path in photos) / len(photos) / 1e6
        for number in range(options.rounds):
            turned = number % len(workers)
            for n in workers[turned:] + workers[:turned]:
                if why_not := drop_from_cache([os.fsencode(path) for path in photos]):
                    raise SystemExit(f"the files cannot be made cold: {why_not}")
                rates[str(n)].append(rate(folder, n, options.precision, into))
    result = {
        "kind": options.kind, "count": options.count, "rounds": options.rounds, "precision": options.precision,
        "megabytes_each": size, "workers": workers, "rates": rates, "verdict": verdict(rates, workers),
        "machine": machine(),
    }  # fmt: skip
    print(markdown(result))
    if options.save:
        save(options.save, result)
        (RESULTS / f"{options.save}.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
