"""What `geoinfer` takes before and beside the work: the command next to a bare script that imports and opens the same.

    python benchmarks/bench_startup.py [--rounds 15] [--save NAME]

The bare script imports NumPy, ONNX Runtime and FAISS and opens the shipped model, as any program of this kind must.
All run in turn, each in a process of its own, with compiled modules in a cache of their own, as an installed package
has them. Then `python -X importtime` says which packages the command imports, and how long each takes by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import CHECKOUT, machine, save

from geoinfer.bundle import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Mapping

BARE = """
import numpy, onnxruntime, faiss
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession({model!r}, options, providers=["CPUExecutionProvider"])
"""
ALLOWED_SECONDS = 0.3
LIBRARIES = ("numpy", "onnxruntime", "faiss")
IMPORT_ROUNDS = 5


def timed(argv: list[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds that a process took, by the clock and of the CPU."""
    nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    started = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=nowhere)
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(argv)}: ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def import_seconds(argv: list[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds that each package's own modules took to import, without what they import in turn; the least of some."""
    rounds = []
    for _ in range(IMPORT_ROUNDS):
        done = subprocess.run(
            [argv[0], "-X", "importtime", *argv[1:]], env=environment, capture_output=True, text=True, check=True
        )
        seconds: dict[str, float] = defaultdict(float)
        for found in re.finditer(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", done.stderr, re.MULTILINE):
            seconds[found[2].partition(".")[0]] += int(found[1]) / 1e6
        rounds.append(seconds)
    return {name: min(found[name] for found in rounds) for name in rounds[0]}


def measure(rounds: int, work: Path) -> dict[str, Any]:
    """Times of every variant in each round, how long the photo itself took, and the imports."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(work / "cache"), "GEOINFER_CACHE": str(work / "tuning")}
    photo = sorted((CHECKOUT / "examples" / "photos").glob("*.jpg"))[0]
    summary = work / "summary.json"
    predict = [sys.executable, "-m", "geoinfer", "predict", str(photo), "-o", str(work / "out.csv"), "--restart", "-q"]
    predict += ["--summary-json", str(summary)]
    variants = {
        "bare": [sys.executable, "-c", BARE.format(model=str(SHIPPED / "model.onnx"))],
        "help": [sys.executable, "-m", "geoinfer", "--help"],
        "predict --help": [sys.executable, "-m", "geoinfer", "predict", "--help"],
        "predict one.jpg": predict,
    }
    for argv in variants.values():  # compiles what is not compiled yet, and reads the files
        timed(argv, environment)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    photo_seconds = []
    for _ in range(rounds):
        for name, argv in variants.items():
            times[name].append(timed(argv, environment))
        photo_seconds.append(json.loads(summary.read_bytes())["seconds"])
    return {
        "wall_seconds": {name: [round(wall, 4) for wall, _ in each] for name, each in times.items()},
        "cpu_seconds": {name: [round(cpu, 4) for _, cpu in each] for name, each in times.items()},
        "photo_seconds": photo_seconds,
        "import_seconds": import_seconds(predict, environment),
    }


def spread(values: list[float]) -> str:
    """Median and range in milliseconds."""
    return f"{statistics.median(values) * 1e3:.0f} ({min(values) * 1e3:.0f} to {max(values) * 1e3:.0f})"


def table(result: dict[str, Any]) -> list[str]:
    """Markdown: the variants, what is geoinfer's own, and the imports."""
    walls, cpus = result["wall_seconds"], result["cpu_seconds"]
    lines = ["| | by the clock, ms | of the CPU, ms |", "|---|---|---|"]
    words = {
        "bare": "import NumPy, ONNX Runtime and FAISS, open the model",
        "help": "`geoinfer --help`",
        "predict --help": "`geoinfer predict --help`",
        "predict one.jpg": "`geoinfer predict one.jpg`",
    }
    lines += [f"| {words[name]} | {spread(walls[name])} | {spread(cpus[name])} |" for name in words]
    photo = result["photo_seconds"]
    lines.append(f"| of that: decode, embed, search and write the photo | {spread(photo)} | |")
    # In pairs: what the machine did at the time is in both of a round.
    beyond = [a - b for a, b in zip(walls["predict one.jpg"], walls["bare"], strict=True)]
    own = [a - b for a, b in zip(beyond, photo, strict=True)]
    lines.append(f"| **beyond the bare script** | **{spread(beyond)}** | |")
    lines.append(f"| **beyond it and the photo itself** | **{spread(own)}** | |")
    verdict = "reached" if statistics.median(own) < ALLOWED_SECONDS else "NOT reached"
    lines += ["", f"Aim: less than {ALLOWED_SECONDS * 1e3:.0f} ms of our own; {verdict}.", ""]
    lines += ["| package | its own imports, ms |", "|---|---|"]
    imports = sorted(result["import_seconds"].items(), key=lambda item: -item[1])
    lines += [
        f"| {name}{' (the bare script, too)' if name in LIBRARIES else ''} | {seconds * 1e3:.1f} |"
        for name, seconds in imports[:15]
    ]
    lines.append(f"| all others, {len(imports) - 15} | {sum(s for _, s in imports[15:]) * 1e3:.1f} |")
    where = result["machine"]
    lines += ["", f"Medians and ranges of {len(photo)} rounds; {where['cpu']}, {where['cores']} cores."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = {"machine": machine()} | measure(arguments.rounds, Path(name))
    lines = table(result)
    print("\n".join(lines))
    if arguments.save:
        save(arguments.save, result).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
