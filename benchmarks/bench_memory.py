"""Peak memory of `geoinfer predict` over many inputs against few, which a bounded pipeline leaves alike.

    python benchmarks/bench_memory.py [--few 5000] [--many 100000] [--save NAME]

The inputs are symbolic links to the example photos, made small once, in one folder, with a corrupt file in every
hundred. The whole command runs in a process of its own; its peak resident memory is what the kernel says.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from common import CHECKOUT, machine, save
from PIL import Image


def make_links(folder: Path, count: int) -> None:
    small = folder.parent / "small"
    small.mkdir(exist_ok=True)
    for original in sorted((CHECKOUT / "examples" / "photos").glob("*.jpg")):
        picture = Image.open(original)
        picture.thumbnail((320, 320))
        picture.save(small / original.name, quality=85)
    targets = sorted(small.glob("*.jpg"))
    (folder.parent / "broken.jpg").write_bytes(targets[0].read_bytes()[:2000])
    folder.mkdir()
    for number in range(count):
        target = folder.parent / "broken.jpg" if number % 100 == 99 else targets[number % len(targets)]
        (folder / f"photo-{number:07d}.jpg").symlink_to(target)


def peak_bytes(photos: Path, output: Path) -> tuple[int, float]:
    """Peak resident memory of the whole command in bytes, and its seconds."""
    argv = [sys.executable, "-m", "geoinfer", "predict", str(photos), "-o", str(output), "--max-errors", "100%"]
    started = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [*argv, "--quiet"], os.environ)
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_maxrss * 1024, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=5_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    arguments = parser.parse_args()
    result: dict = {"machine": machine(), "runs": []}
    lines = ["| inputs | peak memory | time | photos/s |", "|---|---|---|---|"]
    for count in (arguments.few, arguments.many):
        with tempfile.TemporaryDirectory() as name:
            make_links(Path(name) / "photos", count)
            peak, seconds = peak_bytes(Path(name) / "photos", Path(name) / "out.csv")
        result["runs"].append({"inputs": count, "peak_bytes": peak, "seconds": round(seconds, 1)})
        lines.append(f"| {count} | {peak / 2**20:.0f} MiB | {seconds:.0f} s | {count / seconds:.1f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    few, many = (run["peak_bytes"] for run in result["runs"])
    lines += ["", f"{many / few - 1:+.1%} ({result['machine']['cpu']}, {result['machine']['cores']} cores)"]
    print("\n".join(lines))
    if arguments.save:
        save(arguments.save, result).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
