"""`geoinfer predict` beside what people use otherwise, in one run, on the same photos: the README's table.

    python benchmarks/compare_peers.py [--kinds 12MP web] [--rounds 5] [--save]

- a plain torch loop with Pillow, as it comes with a paper: one photo after another;
- the way of timm's `inference.py`: its dataset and its loader with a worker process a core, batches of 64;
- the GeoCLIP package's own `predict`, with its own model, on few photos (`--geoclip-photos 0` leaves it out);
- `geoinfer predict` in fp32, and in int8 where the shipped bundle has such a model.

All but GeoCLIP have the same model, EfficientNet-Lite2, and the same references; that they find about the same
similarities is checked. Each is a program of its own with all cores, told nothing but its photos and its output; their
rounds take turns, so that a machine that slows down slows all, and ratios are taken within a round. A first round,
untimed, fills the page cache and looks at memory. Then each is given 21 photos with a bad file in their middle.

The bound is that of `geoinfer benchmark`, run once a round on the same photos: the rate at which all cores would be
busy all the time if nothing ever waited for anything. Programs are timed from the first photo to the last row, and
as a whole, with their start. `geoinfer tune` chooses geoinfer's settings once at the beginning, as its first use does.

With --save: benchmarks/results/peers.json, peers.md and peers-detail.md, and the pages that show them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import CHECKOUT, RESULTS, machine, make_photos, save, spread
from fill_pages import fill
from peers.outcome import BAD_FILES, outcome, read_rows, spoil
from peers.process import run

from geoinfer.benchmark.result import read_result
from geoinfer.bundle import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers.process import Done

PLAIN, TIMM, GEOCLIP, OURS, INT8 = "plain", "timm", "geoclip", "geoinfer", "geoinfer int8"
TITLES = {
    PLAIN: "plain torch loop",
    TIMM: "timm's way: DataLoader, batches",
    GEOCLIP: "GeoCLIP package (its own ViT-L/14)",
    OURS: "**geoinfer predict**",
    INT8: "**geoinfer predict, int8**",
}
WORDS = {"12MP": "12 megapixels", "web": "web size"}
COUNTS = {"12MP": 200, "web": 400}
AIMS = {"12MP": 8.0, "web": 4.0}
"""How often `geoinfer predict` is to go into the plain loop."""
AIMED_SHARE = 0.95
SPOILT = 21
FARTHEST = 0.05
"""By how much the best similarities of two programs may differ: they shrink large photos in different ways."""


@dataclass(frozen=True)
class Program:
    """What is run on a folder of photos.

    Attributes:
        key: of `TITLES`.
        argv: for Python; the photos, the output and a summary are filled in.
        few: whether it is so slow that it gets a few photos only.
    """

    key: str
    argv: tuple[str, ...]
    few: bool = False

    def command(self, photos: Path, output: Path) -> list[str]:
        names = {"photos": photos, "output": output, "summary": output.with_suffix(".summary")}
        return [part.format(**names) for part in self.argv]


def programs(clip: Path | None) -> list[Program]:
    """Those that can run here."""
    ours = ("-m", "geoinfer", "predict", "{photos}", "-o", "{output}", "--summary-json", "{summary}", "--device", "cpu")
    ours += ("--restart", "--quiet", "--precision")
    peer = ("--photos", "{photos}", "--output", "{output}")
    result = [
        Program(PLAIN, ("-m", "peers.plain_torch", *peer)),
        Program(TIMM, ("-m", "peers.timm_loader", *peer)),
        Program(OURS, (*ours, "fp32")),
    ]
    if (SHIPPED / "model.int8.onnx").exists():
        result.append(Program(INT8, (*ours, "int8")))
    if clip is not None:
        result.append(Program(GEOCLIP, ("-m", "peers.geoclip_package", *peer, "--clip", str(clip)), few=True))
    return result


def timed(program: Program, photos: Path, count: int, output: Path, environment: dict[str, str]) -> dict[str, float]:
    """Photos a second, without the start and with it."""
    done = checked(program, run(program.command(photos, output), environment=environment))
    return {"rate": count / loop_seconds(program, done, output), "with_start": count / done.seconds}


def loop_seconds(program: Program, done: Done, output: Path) -> float:
    if program.key in (OURS, INT8):
        return json.loads(output.with_suffix(".summary").read_text())["seconds"]
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def checked(program: Program, done: Done) -> Done:
    if done.exit_code:
        raise SystemExit(f"{TITLES[program.key]}: exit code {done.exit_code}: {done.last_words}")
    return done


def bound(photos: Path, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What `geoinfer benchmark` says of one round: every stage alone, and the bound that they set, in photos/s."""
    path = folder / "benchmark.json"
    argv = ["-m", "geoinfer", "benchmark", str(photos), "--device", "cpu", "--precision", "fp32"]
    done = run([*argv, "--repeat", "1", "--json", str(path), "--quiet"], environment=environment)
    if done.exit_code:
        raise SystemExit(f"geoinfer benchmark: exit code {done.exit_code}: {done.last_words}")
    result = read_result(path)
    return {"stages": {stage.name: stage.rates[0] for stage in result.stages}, "bound": result.bounds[0]}


def check_agreement(outputs: dict[str, Path]) -> dict[str, float]:
    """By how much each program's best similarities differ from geoinfer's in fp32, at most.

    Raises:
        SystemExit: they are not the same model's.
    """

    def similarities(output: Path) -> dict[str, float]:
        return {
            Path(row["path"]).name: float(row.get("similarity") or row["top1_similarity"]) for row in read_rows(output)
        }

    ours = similarities(outputs[OURS])
    result = {}
    for key in (PLAIN, TIMM):
        theirs = similarities(outputs[key])
        if set(theirs) != set(ours):
            raise SystemExit(f"{TITLES[key]}: answered {len(theirs)} photos, geoinfer {len(ours)}")
        result[key] = max(abs(theirs[name] - ours[name]) for name in ours)
        if result[key] > FARTHEST:
            raise SystemExit(f"{TITLES[key]}: its similarities differ from geoinfer's by up to {result[key]:.3f}")
    return result


def measure_kind(
    kind: str, count: int, options: argparse.Namespace, running: list[Program], folder: Path, environment: dict
) -> dict[str, Any]:
    """One size of photos: memory, rounds, and what becomes of a bad file."""
    paths = make_photos(folder / kind, kind, count)
    few = make_photos(folder / f"{kind}-few", kind, max(1, options.geoclip_photos))
    outputs = {program.key: folder / f"{kind}-{program.key}.csv" for program in running}

    def photos(program: Program) -> tuple[Path, int]:
        return (few[0].parent, len(few)) if program.few else (paths[0].parent, count)

    peaks = {}
    for program in running:
        command = program.command(photos(program)[0], outputs[program.key])
        peaks[program.key] = checked(program, run(command, environment=environment, measure_memory=True)).peak_bytes
        say(f"{kind}, {program.key}: {peaks[program.key] / 2**20:.0f} MiB")
    agreement = check_agreement(outputs)
    rounds = []
    for number in range(options.rounds):
        figures: dict[str, Any] = {"bound": bound(paths[0].parent, folder, environment)}
        for program in running:
            figures[program.key] = timed(program, *photos(program), outputs[program.key], environment)
        rounds.append(figures)
        rates = ", ".join(f"{program.key} {figures[program.key]['rate']:.1f}" for program in running)
        say(f"{kind}, round {number + 1}: {rates} photos/s, bound {figures['bound']['bound']:.1f}")
    return {
        "count": count,
        "few": len(few),
        "mean_file_bytes": round(statistics.mean(path.stat().st_size for path in paths)),
        "peak_bytes": peaks,
        "similarities_differ_by": agreement,
        "rounds": rounds,
    }


def bad_files(running: list[Program], folder: Path, environment: dict[str, str]) -> dict[str, dict[str, Any]]:
    """By kind of bad file and program: what becomes of 21 photos (3, of a slow program) with one in their middle."""
    result: dict[str, dict[str, Any]] = {}
    for bad_file in BAD_FILES:
        found = result.setdefault(bad_file, {})
        for program in running:
            count = 3 if program.few else SPOILT
            paths = make_photos(folder / f"{bad_file}-{count}".replace(" ", "-"), "web", count)
            bad = spoil(paths, bad_file)
            output = folder / f"spoilt-{program.key}-{bad_file}.csv".replace(" ", "-")
            done = run(program.command(bad.parent, output), environment=environment)
            last_words = done.last_words.replace(str(folder), "PHOTOS")
            became = outcome(paths, bad, output, done.exit_code, last_words)
            found[program.key] = asdict(became) | {"words": became.words}
            say(f"{bad_file}, {program.key}: {became.words}")
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Settings that an earlier run chose, perhaps on a busy machine, are not what a first use would have.
        environment = {"GEOINFER_CACHE": str(folder / "cache")}
        tuned = run(["-m", "geoinfer", "tune", "--json"], environment=environment)
        if tuned.exit_code:
            raise SystemExit(f"geoinfer tune: exit code {tuned.exit_code}: {tuned.last_words}")
        running = programs(clip_weights(options, folder, environment))
        kinds = {
            kind: measure_kind(kind, count, options, running, folder, environment)
            for kind, count in zip(options.kinds, options.counts, strict=True)
        }
        spoilt = bad_files(running, folder, environment)
    about = machine()
    for package in ("torch", "timm", "torchvision", "geoclip", "transformers"):
        try:
            about["versions"][package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "machine": about,
        "programs": [program.key for program in running],
        "kinds": kinds,
        "bad_files": spoilt,
        "tuned": json.loads(tuned.stdout.replace(f"{CHECKOUT}/", "")),
    }


def clip_weights(options: argparse.Namespace, folder: Path, environment: dict[str, str]) -> Path | None:
    if options.geoclip_photos == 0:
        return None
    if options.clip is not None:
        return options.clip
    if find_spec("geoclip") is None:
        say("the package geoclip is not installed, and left out")
        return None
    made = run(["-m", "peers.geoclip_package", "--make-weights", str(folder / "clip")], environment=environment)
    if made.exit_code:
        raise SystemExit(f"weights for GeoCLIP: {made.last_words}")
    return folder / "clip"


def column(kind: dict[str, Any], get: Callable[[dict[str, Any]], float]) -> list[float]:
    return [get(figures) for figures in kind["rounds"]]


def rates(kind: dict[str, Any], key: str, figure: str = "rate") -> list[float]:
    return column(kind, lambda figures: figures[key][figure])


def shares(kind: dict[str, Any], key: str = OURS) -> list[float]:
    return column(kind, lambda figures: figures[key]["rate"] / figures["bound"]["bound"])


def times_plain(kind: dict[str, Any], key: str) -> list[float]:
    return column(kind, lambda figures: figures[key]["rate"] / figures[PLAIN]["rate"])


def heading(result: dict[str, Any]) -> str:
    sets = " and ".join(
        f"{kind['count']} JPEGs of {WORDS[name]} ({kind['mean_file_bytes'] / 1e6:.2f} MB each)"
        for name, kind in result["kinds"].items()
    )
    about = result["machine"]
    number = len(next(iter(result["kinds"].values()))["rounds"])
    return f"{sets}; {about['cpu']}, {about['cores']} cores; median of {number} rounds (range)"


def table(result: dict[str, Any]) -> str:
    """What the README shows."""
    kinds = result["kinds"]
    titles = [f"{WORDS[name]}, photos/s" for name in kinds]
    lines = [
        heading(result),
        "",
        f"| | {' | '.join(titles)} | peak memory | a photo in the middle is cut off | it is a web page |",
        "|---" * (len(kinds) + 4) + "|",
    ]
    for key in result["programs"]:
        cells = [spread(rates(kind, key)) for kind in kinds.values()]
        cells.append(f"{max(kind['peak_bytes'][key] for kind in kinds.values()) / 2**20:.0f} MiB")
        cells += [result["bad_files"][bad][key]["words"] for bad in BAD_FILES]
        lines.append(f"| {TITLES[key]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *aims(result)])


def aims(result: dict[str, Any]) -> list[str]:
    """What was aimed at, beside what came of it; each its own line of a list."""
    lines = []
    for name, kind in result["kinds"].items():
        ratios, share = times_plain(kind, OURS), [100 * value for value in shares(kind)]
        lines += [
            f"- {WORDS[name]}: {spread(ratios)} times the plain loop; "
            f"{reached(statistics.median(ratios), AIMS[name], f'{AIMS[name]:g} times')}.",
            f"- {WORDS[name]}: {spread(share)} % of the work-conserving bound; "
            f"{reached(statistics.median(share), 100 * AIMED_SHARE, f'{AIMED_SHARE:.0%}')}.",
        ]
    return lines


def reached(value: float, least: float, words: str) -> str:
    return f"the aim of {words} is {'' if value >= least else 'not '}reached"


def details(result: dict[str, Any]) -> str:
    """What the page on speed shows: the start, ratios, and the stages that set the bound."""
    lines = [heading(result)]
    for name, kind in result["kinds"].items():
        lines += [
            "",
            f"{WORDS[name].capitalize()}:",
            "",
            "| program | photos/s | with its start | times the plain loop | peak memory |",
            "|---|---|---|---|---|",
        ]
        for key in result["programs"]:
            lines.append(
                f"| {TITLES[key]} | {spread(rates(kind, key))} | {spread(rates(kind, key, 'with_start'))} "
                f"| {spread(times_plain(kind, key))} | {kind['peak_bytes'][key] / 2**20:.0f} MiB |"
            )
        lines += ["", "| stage of geoinfer, alone, on all cores | photos/s |", "|---|---|"]
        for stage in kind["rounds"][0]["bound"]["stages"]:
            values = column(kind, lambda figures, stage=stage: figures["bound"]["stages"][stage])
            lines.append(f"| {stage} | {spread(values)} |")
        lines.append(f"| work-conserving bound | {spread(column(kind, lambda figures: figures['bound']['bound']))} |")
        differ = max(kind["similarities_differ_by"].values())
        lines += ["", f"The best similarities of plain loop, timm and geoinfer differ by {differ:.4f} at most."]
    few = next(iter(result["kinds"].values()))["few"]
    if GEOCLIP in result["programs"]:
        lines += [
            "",
            f"GeoCLIP was given {few} photos a round, and 3 with a bad one among them; its weights are random.",
        ]
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(WORDS), default=list(WORDS), help="sizes of photos")
    parser.add_argument("--counts", nargs="+", type=int, help="photos of each; default 200 and 400")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--geoclip-photos", type=int, default=2, help="that GeoCLIP gets; 0 leaves it out")
    parser.add_argument("--clip", type=Path, help="folder with weights of CLIP and its processor; default random ones")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/peers.*, and bring pages up to date"
    )
    options = parser.parse_args()
    options.counts = options.counts or [COUNTS[kind] for kind in options.kinds]
    if len(options.counts) != len(options.kinds) or min(options.counts) < 1 or options.rounds < 1:
        parser.error("expected a count of photos for each of --kinds, and a round or more")
    return options


def main() -> None:
    options = parse()
    result = measure(options)
    print(table(result) + "\n\n" + details(result))
    if options.save:
        save("peers", result)
        (RESULTS / "peers.md").write_text(table(result) + "\n")
        (RESULTS / "peers-detail.md").write_text(details(result) + "\n")
        for page in fill(CHECKOUT):
            say(f"{page.name}: up to date")


if __name__ == "__main__":
    main()
