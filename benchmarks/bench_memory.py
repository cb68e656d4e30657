"""Memory of `geoinfer predict` while it goes through a million inputs, and through photos of ever other sizes.

    python benchmarks/bench_memory.py [--many 1000000] [--varied 6000] [--save NAME]

Two runs of the whole command, each a process of its own whose resident memory is looked at every second:

- a million symbolic links to a few small photos, one of a hundred broken, in folders of a thousand. The model is a tiny
  one that is made on the spot, so that a million take minutes; pipeline, ledger and writers are the real ones;
- the shipped model over photos of 60 sizes from 160 to 4000 pixels, JPEG (progressive ones too), PNG and WebP.

The growth is the slope of a line through the means of twenty stretches after the first tenth of a run, with its 95%
interval, times the inputs. Memory of the process alone is what counts (RssAnon); mapped files are the system's to drop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import CHECKOUT, RESULTS, machine, save
from PIL import Image

from geoinfer.backends.base import EmbedderIdentity
from geoinfer.images import Preprocessing
from geoinfer.index import References, write_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER_SIZE = 1000
MIB = 2**20
STRETCHES = 20
WARMING_UP = 0.1
T_95 = 2.101  # Student's t of 18 degrees of freedom, two-sided
TINY_SIZE, TINY_DIM = 32, 48


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment: seconds since the start, inputs that were safe, bytes."""

    seconds: float
    done: int
    anonymous: int
    resident: int


def make_tiny_model(folder: Path) -> tuple[Path, Path]:
    """A model that averages squares of a picture, and an index of random directions that fits it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    preprocessing = Preprocessing(size=TINY_SIZE, resize="squash", interpolation="bilinear")
    metadata = {
        "geoinfer.format": "1",
        "geoinfer.identity": "squares:0",
        "geoinfer.preprocessing": json.dumps(preprocessing.as_dict()),
        "geoinfer.dim": str(TINY_DIM),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("AveragePool", ["planes"], ["squares"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Flatten", ["squares"], ["flat"]),
            helper.make_node("Sub", ["flat", "grey"], ["centred"]),
            helper.make_node("LpNormalization", ["centred"], ["embeddings"], axis=1, p=2),
        ],
        "squares",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", TINY_SIZE, TINY_SIZE, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", TINY_DIM])],
        [numpy_helper.from_array(np.array(127.3, np.float32), "grey")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.save(model, folder / "tiny.onnx")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, TINY_DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"reference-{number}" for number in range(len(vectors))]
    references = References(
        ids=names,
        coordinates=np.stack([rng.uniform(-60, 60, len(names)), rng.uniform(-180, 180, len(names))], axis=1),
        sources=[""] * len(names),
        attributions=[""] * len(names),
        content_sha256=rng.integers(0, 256, (len(names), 32), dtype=np.uint8),
        perceptual_hashes=rng.integers(0, 256, (len(names), 32), dtype=np.uint8),
    )
    write_index(folder / "tiny-index", vectors, references, EmbedderIdentity("squares:0", TINY_DIM, preprocessing))
    return folder / "tiny.onnx", folder / "tiny-index"


def originals() -> list[Image.Image]:
    """The example photos."""
    return [Image.open(path).convert("RGB") for path in sorted((CHECKOUT / "examples" / "photos").glob("*.jpg"))]


def make_small(folder: Path) -> list[Path]:
    """Small photos, and a broken one, the last."""
    folder.mkdir()
    paths = []
    for number, picture in enumerate(originals()):
        picture.thumbnail((64 + 8 * number, 64 + 8 * number))
        paths.append(folder / f"{number}.jpg")
        picture.save(paths[-1], quality=80)
    paths.append(folder / "broken.jpg")
    paths[-1].write_bytes(paths[0].read_bytes()[:700])
    return paths


def make_varied(folder: Path) -> list[Path]:
    """Photos of sixty sizes and several formats, and a broken one, the last."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures, paths = originals(), []
    for number, side in enumerate(np.geomspace(160, 4000, 60).astype(int).tolist()):
        picture = pictures[number % len(pictures)].resize((side, int(side * rng.uniform(0.5, 1.0))))
        suffix = ("jpg", "jpg", "webp", "jpg", "png")[number % 5] if side <= 2000 else "jpg"
        paths.append(folder / f"{number:02d}.{suffix}")
        picture.save(paths[-1], progressive=number % 5 == 1)
    paths.append(folder / "broken.jpg")
    paths[-1].write_bytes(paths[0].read_bytes()[:700])
    return paths


def make_links(folder: Path, targets: Sequence[Path], count: int) -> None:
    """Links to all but the last of the targets in turn, and one of a hundred to the last."""
    order = np.random.default_rng(1).integers(0, len(targets) - 1, count).tolist()
    for number, chosen in enumerate(order):
        if number % FOLDER_SIZE == 0:
            within = folder / f"{number // FOLDER_SIZE:04d}"
            within.mkdir(parents=True)
        target = targets[-1] if number % 100 == 99 else targets[chosen]
        os.symlink(target, f"{within}/{number:07d}{target.suffix}")


def inputs_done(ledger: Path) -> int:
    """Inputs that a run's ledger says are safe."""
    try:
        lines = ledger.read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    return sum(json.loads(line).get("inputs", 0) for line in lines if line.startswith(b"{") and line.endswith(b"}"))


def memory_of(pid: int) -> tuple[int, int]:
    """Bytes of a process: its own, and resident altogether."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return tuple(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))  # type: ignore[return-value]


def watched(argv: list[str], output: Path, count: int) -> tuple[list[Sample], dict[str, Any]]:
    """Runs the command and looks at it every second."""
    environment = os.environ | {"GEOINFER_CACHE": str(output.parent / "cache")}
    started = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environment)
    samples: list[Sample] = []
    ledger = output.with_name(f"{output.name}.run") / "ledger.jsonl"
    done = 0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        anonymous, resident = memory_of(pid)
        # The ledger goes at the end, while the result is put together: all inputs were done by then.
        done = max(done, inputs_done(ledger), count if samples and done > 0 and not ledger.exists() else 0)
        samples.append(Sample(time.perf_counter() - started, done, anonymous, resident))
        time.sleep(1.0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(argv)}: ended with {os.waitstatus_to_exitcode(status)}")
    rows = output.read_bytes().count(b"\n") - 1
    if rows != count:
        raise SystemExit(f"{output}: {rows} rows for {count} inputs")
    return samples, {"inputs": count, "seconds": round(seconds, 1), "peak_bytes": usage.ru_maxrss * 1024}


def growth(samples: list[Sample]) -> tuple[float, float, float]:
    """Bytes more for each further input, with a 95% interval, by ordinary least squares over means of stretches."""
    last = samples[-1].done
    seen = [sample for sample in samples if WARMING_UP * last <= sample.done < last]
    parts = [part for part in np.array_split(np.arange(len(seen)), STRETCHES) if len(part)]
    if len(parts) < STRETCHES:
        return float("nan"), float("nan"), float("nan")
    x = np.array([np.mean([seen[i].done for i in part]) for part in parts])
    y = np.array([np.mean([seen[i].anonymous for i in part]) for part in parts])
    deviation = x - x.mean()
    slope = float(deviation @ (y - y.mean()) / (deviation @ deviation))
    residuals = y - y.mean() - slope * deviation
    error = float(np.sqrt(residuals @ residuals / (len(x) - 2) / (deviation @ deviation)))
    return slope, slope - T_95 * error, slope + T_95 * error


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Memory against inputs done, a panel a run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(runs), figsize=(10, 3.6), layout="constrained")
    for panel, (title, run) in zip(panels, runs.items(), strict=True):
        done, anonymous, resident = (np.array(run[name]) for name in ("done", "anonymous", "resident"))
        unit, word = (1e6, "million inputs done") if run["inputs"] >= 500_000 else (1e3, "thousand inputs done")
        panel.plot(done / unit, resident / MIB, color="#9ecae1", linewidth=1.2, label="resident, mapped files with it")
        panel.plot(done / unit, anonymous / MIB, color="#08519c", linewidth=1.2, label="of the process itself")
        panel.set(title=title, xlabel=word, ylabel="MiB", ylim=(0, max(resident) / MIB * 1.25))
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def runs_of(arguments: argparse.Namespace, work: Path) -> Iterator[tuple[str, list[Sample], dict[str, Any]]]:
    """Both runs, one after the other."""
    common = ["--max-errors", "100%", "--quiet", "--no-tune", "--precision", "fp32", "--device", "cpu"]
    command = [sys.executable, "-m", "geoinfer", "predict"]
    model, index = make_tiny_model(work)
    make_links(work / "many", make_small(work / "small"), arguments.many)
    argv = [*command, str(work / "many"), "-o", str(work / "many.csv"), "--engine", str(model), "--index", str(index)]
    argv += ["--batch-size", "32"]
    yield "tiny model, small photos", *watched([*argv, *common], work / "many.csv", arguments.many)
    make_links(work / "varied", make_varied(work / "sizes"), arguments.varied)
    argv = [*command, str(work / "varied"), "-o", str(work / "varied.csv")]
    yield "shipped model, 160 to 4000 pixels", *watched([*argv, *common], work / "varied.csv", arguments.varied)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--varied", type=int, default=6_000)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json, .md and .png")
    arguments = parser.parse_args()
    where = machine()
    lines = ["| run | inputs | peak memory | at 10% of the inputs | at the end | growth over the run | inputs/s |"]
    lines.append("|---|---|---|---|---|---|---|")
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for title, samples, run in runs_of(arguments, Path(name)):
            slope, low, high = growth(samples)
            tenth = next(s for s in samples if s.done >= WARMING_UP * samples[-1].done)
            last = [s for s in samples if s.done < samples[-1].done][-1:] or samples[-1:]
            run |= {"growth_bytes_per_input": [slope, low, high]}
            run |= {f: [getattr(s, f) for s in samples] for f in ("seconds", "done", "anonymous", "resident")} | {
                "run_seconds": run["seconds"]
            }
            runs[title] = run
            grown, least, most = (each * run["inputs"] / MIB for each in (slope, low, high))
            words = [
                title,
                str(run["inputs"]),
                f"{run['peak_bytes'] / MIB:.0f} MiB",
                f"{tenth.anonymous / MIB:.0f} MiB",
            ]
            words += [f"{last[0].anonymous / MIB:.0f} MiB", f"{grown:+.1f} MiB ({least:+.1f} to {most:+.1f})"]
            lines.append(f"| {' | '.join(words)} | {run['inputs'] / run['run_seconds']:.0f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    lines += [
        "",
        f"{where['cpu']}, {where['cores']} cores; growth with its 95% interval; memory of the process itself.",
    ]
    print("\n".join(lines))
    if arguments.save:
        save(arguments.save, {"machine": where, "runs": runs}).with_suffix(".md").write_text("\n".join(lines) + "\n")
        draw(runs, RESULTS / f"{arguments.save}.png")


if __name__ == "__main__":
    main()
