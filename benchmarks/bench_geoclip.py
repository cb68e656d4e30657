"""Time per photo of the GeoCLIP package's own `predict` and of `geoinfer predict` with its bundle, in one run.

    python benchmarks/bench_geoclip.py [--photos 16] [--package-photos 2] [--rounds 3] [--kind web|12MP] [--save NAME]
    python benchmarks/bench_geoclip.py --clip FOLDER      weights of CLIP instead of random ones

Both have the same weights (CLIP ViT-L/14 of random numbers unless --clip names others: time does not depend on them),
the same photos and all cores. Rounds are interleaved, so that a machine that slows down slows everything; ratios are
taken within a round.

- the package: `GeoCLIP.predict`, a photo at a time, as its README shows; loaded and warmed up before. It embeds its
  gallery of 100,000 coordinates on each call.
- the package, gallery embedded once: the same with the location encoder's output kept: what a careful user could make
  of it in a few lines, and what is left then is the image tower.
- geoinfer predict: the whole command, in a process of its own, on two sets of photos, a large and a small one. The
  difference of the two times over the difference of the two counts is the time of one more photo, free of the start;
  the large one over its count is what a user waits, with Python's start and the opening of 1.4 GB.

That both answer the same is checked first: the same first coordinates for every photo that the package is asked.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import machine, make_photos, save, spread
from peers.geoclip_package import load_package, random_clip

from export.geoclip import GeoClipOptions, export_geoclip

if TYPE_CHECKING:
    from collections.abc import Callable

TOP = 5
FIGURES = {
    "package": "GeoCLIP.predict, the package",
    "remembered": "the package, gallery embedded once",
    "more": "**geoinfer predict, one more photo**",
    "command": "geoinfer predict, the whole command over its photos",
}


class Remembered(torch.nn.Module):
    """Embeds the same coordinates once."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.kept: torch.Tensor | None = None

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.encoder(coordinates)
        return self.kept


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def command(bundle: Path, photos: Path, output: Path, workers: int | None) -> float:
    argv = [sys.executable, "-m", "geoinfer", "predict", str(photos), "--engine", str(bundle), "-o", str(output)]
    argv += ["--device", "cpu", "--restart", "--quiet"]
    argv += [] if workers is None else ["--workers", str(workers)]
    return seconds(lambda: subprocess.run(argv, check=True, stderr=subprocess.DEVNULL))


def check_same_answers(package: torch.nn.Module, bundle: Path, photos: list[Path], folder: Path) -> None:
    command(bundle, photos[0].parent, folder / "check.jsonl", None)
    rows = [json.loads(line) for line in (folder / "check.jsonl").read_text().splitlines()]
    ours = {row["path"]: (row["latitude"], row["longitude"]) for row in rows}
    for photo in photos:
        places, _ = package.predict(str(photo), TOP)
        theirs = places[0].tolist()
        if max(abs(a - b) for a, b in zip(ours[str(photo)], theirs, strict=True)) > 1e-5:
            raise SystemExit(f"{photo.name}: the package says {theirs}, geoinfer {ours[str(photo)]}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = options.clip or random_clip(folder / "clip")
        bundle = options.bundle or folder / "bundle"
        if options.bundle is None:
            export_geoclip(bundle, GeoClipOptions(clip=clip), lambda line: print(line, file=sys.stderr))
        gc.collect()
        many = make_photos(folder / "many", options.kind, options.photos)
        few = make_photos(folder / "few", options.kind, options.few)
        asked = many[: options.package_photos]
        package = load_package(clip)
        encoder = package.location_encoder
        remembered = Remembered(encoder)
        package.location_encoder = remembered
        # Warms up both, and fills the cache of files.
        check_same_answers(package, bundle, asked, folder)
        for number in range(options.rounds):
            package.location_encoder = encoder
            plain = seconds(lambda: [package.predict(str(photo), TOP) for photo in asked]) / len(asked)
            package.location_encoder = remembered
            once = seconds(lambda: [package.predict(str(photo), TOP) for photo in asked]) / len(asked)
            large = command(bundle, many[0].parent, folder / "many.csv", options.workers)
            small = command(bundle, few[0].parent, folder / "few.csv", options.workers)
            figures = {
                "package": plain,
                "remembered": once,
                "more": (large - small) / (len(many) - len(few)),
                "command": large / len(many),
            }
            rounds.append(figures)
            print(f"round {number + 1}: {plain / figures['more']:.1f} times", file=sys.stderr)
    result = {
        "kind": options.kind,
        "photos": options.photos,
        "few": options.few,
        "package_photos": options.package_photos,
        "weights": "random weights" if options.clip is None else f"weights of {options.clip.name}",
        "rounds": rounds,
        "machine": machine(),
        "threads_of_torch": torch.get_num_threads(),
    }
    result["machine"]["versions"] |= {name: version(name) for name in ("torch", "transformers", "geoclip")}
    return result


def table(result: dict[str, Any]) -> str:
    rounds = result["rounds"]

    def ratios(name: str, over: str) -> str:
        return spread([figures[name] / figures[over] for figures in rounds])

    lines = [
        f"GeoCLIP, {result['weights']}, on {result['machine']['cpu']}, {result['machine']['cores']} cores; JPEGs, "
        f"{result['kind']}; median of {len(rounds)} rounds (range)",
        "",
        "| what | seconds a photo | times |",
        "|---|---|---|",
    ]
    for name, words in FIGURES.items():
        values = [figures[name] for figures in rounds]
        middle = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        lines.append(f"| {words} | {middle} | {ratios('package', name)} |")
    lines += [
        "",
        f"Times: how often it goes into the package's own `predict`. The command had {result['photos']} photos, and "
        f"{result['few']} to take its start off; the package {result['package_photos']} a round. Its gallery embedded "
        f"once, the package takes {ratios('remembered', 'more')} times as long as one more photo of ours.",
    ]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=16, help="that the command is given")
    parser.add_argument("--few", type=int, default=2, help="that it is given the other time")
    parser.add_argument("--package-photos", type=int, default=2, help="that the package is asked each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=["12MP", "web"], default="web", help="size of the photos")
    parser.add_argument("--workers", type=int, help="CPU threads of the command; default all cores")
    parser.add_argument("--clip", type=Path, help="folder with weights of CLIP and its processor; default random ones")
    parser.add_argument("--bundle", type=Path, help="made of the same weights already")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    options = parser.parse_args()
    if not 0 < options.few < options.photos or not 0 < options.package_photos <= options.photos:
        parser.error("expected 0 < --few < --photos and 0 < --package-photos <= --photos")
    if options.bundle is not None and options.clip is None:
        parser.error("--bundle needs the --clip that it was made of")
    return options


def main() -> None:
    options = parse()
    result = measure(options)
    text = table(result)
    print(text)
    if options.save:
        save(options.save, result).with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
