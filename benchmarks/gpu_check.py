"""Everything that only a GPU can show, in one run, as one table: `make gpu-check`.

    python benchmarks/gpu_check.py [--only tests embed benchmark faiss …] [--quick] [--save]

- tests: those marked `gpu`.
- embed: ViT-B/16 and ViT-L/16 in fp16 by ONNX Runtime's CUDA and TensorRT providers and TensorRT engines, by batch
  size, with the roofline (`bench_embed.py`).
- benchmark: `geoinfer benchmark` from JPEGs to rows: the shipped model and a ViT-B/16 in fp16, by ONNX Runtime's CUDA
  provider and each engine, held against the slowest stage.
- decode: JPEGs by nvImageCodec and by all cores, by class.
- engines: for every flavour of TensorRT that is installed, `geoinfer engine build` of the shipped model and of a
  ViT-B/16 in fp16 (random weights), with the parity that the command finds on the device.
- faiss: a million references, flat in fp16 and fp32, ivf, ivf-pq, and hnsw (CAGRA where FAISS has it) on one GPU
  and on all of them, beside the CPU: the same ids, recall, queries a second by batch, memory.
- predict: `geoinfer predict` from JPEGs to the CSV, by the CPU, ONNX Runtime's CUDA provider and each engine.
- training: a step of the ViT-B/16 and ViT-L/16 recipes and of ResNet50, beside the plain loop, and its memory
  (`bench_training.py`).
- models: the other models and precisions by provider and batch (`bench_embed.py`).

Rows that begin with `aim` say of what should be reached whether it was. Not to reach one is no failure.
What fails or cannot run takes its own line of the table and nothing else; each line is printed and stored as soon as
it is known. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bench_index import recall, similarities_of
from common import CHECKOUT, RESULTS, machine, make_photos, save
from gpu_figures import END_TO_END, ROOFLINE, SEARCH, Row, decode_rows, embed_rows, end_to_end
from index_contender import Contender, made_up_references, rate, write_ours
from index_data import clustered

from geoinfer.bundle import SHIPPED
from geoinfer.engines.flavors import installed_flavors
from geoinfer.engines.gpu import Gpu, find_gpu
from geoinfer.engines.sidecar import read_sidecar
from geoinfer.errors import GeoInferError
from geoinfer.geodesy import haversine_km

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from index_data import Data

    from geoinfer.index.base import Neighbors, ReferenceIndex
    from geoinfer.index.store import StoredIndex

VIT, VIT_LARGE = "vit_base_patch16_224", "vit_large_patch16_224"
REFERENCES, DIM, QUERIES = 1_000_000, 256, 2048
BATCHES_ON_CPU, BATCHES_ON_GPU = (1, 64, 1024, 4096), (1, 64, 1024, 4096, 16384)
FAR_KM, FAR_SHARE = 25.0, 0.01
"""So few answers may lie so far from the CPU's: neighbours about as similar change places when figures round."""


@dataclass
class Check:
    """Where the steps work, and what they have in common."""

    folder: Path
    gpu: Gpu
    quick: bool
    """Whether to show that everything works, and leave measuring it well for another time."""

    @property
    def slug(self) -> str:
        """Name of the device, as part of a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.gpu.name.lower()).strip("-")

    def result(self, name: str) -> str:
        return f"{name}-{self.slug}"


def main() -> None:
    options = parse()
    try:
        gpu = find_gpu()
    except GeoInferError as error:
        print(f"gpu_check: {error}\n  {error.hint}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    rows: list[Row] = []
    table = ""
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), gpu, options.quick)
        for name in options.only:
            print(f"== {name}", flush=True)
            began = time.perf_counter()
            for row in rows_of(name, check):
                rows.append(row)
                print(f"== {' | '.join(row)}", flush=True)
                # Stored at once: what is known must survive a machine that is taken away.
                table = as_table(check, rows)
                if options.save:
                    about = {"machine": machine(), "device": gpu.name, "versions": versions(), "quick": options.quick}
                    path = save(f"gpu-check-{check.slug}", about | {"rows": rows})
                    path.with_suffix(".md").write_text(table + "\n")
            print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n{table}")
    if any(outcome == "FAILED" for _, outcome, _ in rows):
        raise SystemExit(1)


def rows_of(name: str, check: Check) -> Iterator[Row]:
    try:
        yield from STEPS[name](check)
    except Exception as error:  # noqa: BLE001 - one step that breaks must not cost the others
        traceback.print_exc()
        yield name, "FAILED", reason(str(error))


def as_table(check: Check, rows: list[Row]) -> str:
    gpu, about = check.gpu, machine()
    major, minor = gpu.compute_capability
    head = f"{gpu.name}, compute capability {major}.{minor}, {gpu.memory_bytes / 2**30:.0f} GiB; {about['cpu']}, "
    head += f"{about['cores']} cores; " + ", ".join(f"{n} {v}" for n, v in versions().items())
    head += "; --quick" if check.quick else ""
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "\n".join([head, "", "| check | outcome | figures |", "|---|---|---|", *(f"| {row} |" for row in cells)])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--quick", action="store_true", help="show that everything works; figures are rough")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/gpu-check-DEVICE.{json,md}")
    return parser.parse_args()


def versions() -> dict[str, str]:
    """Of what decides GPU figures."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "faiss-gpu", "cuda-python"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def tests(check: Check) -> Iterator[Row]:
    report = check.folder / "tests.xml"
    done = run("-m", "pytest", "-m", "gpu", "-q", "-rs", f"--junitxml={report}", fails=True)
    counts = ET.parse(report).getroot().find("testsuite").attrib  # type: ignore[union-attr]
    bad = int(counts["failures"]) + int(counts["errors"])
    skipped = int(counts["skipped"])
    passed = int(counts["tests"]) - bad - skipped
    outcome = "FAILED" if bad or done.returncode not in (0, 5) or not passed else "ok"
    yield "tests marked gpu", outcome, f"{passed} passed, {bad} failed, {skipped} skipped"


def training(check: Check) -> Iterator[Row]:
    # Backbone, frozen part and batch are those of vit_single_stage, of the second stage of vit_large_multistage, and of
    # resnet50; the loss is the contrastive one in all of them.
    for backbone, train, batch, memory in (
        (VIT, "last:4", 400, ("400", "64", "128", "256")),
        (VIT_LARGE, "last:12", 128, ("128", "64")),
        ("resnet50", "layer3+layer4", 128, ("128", "64", "256")),
    ):
        name = check.result(f"training-{backbone}")
        what = f"training, {backbone}, {train}, batches of {batch}"
        count, steps, rounds = ("800", "4", "1") if check.quick else ("2000", "20", "3")
        done = run(
            "benchmarks/bench_training.py", "--device", "cuda", "--backbone", backbone, "--train", train,
            "--batch-size", str(batch), "--count", count, "--steps", steps, "--rounds", rounds,
            "--memory-batches", *(memory[:1] if check.quick else memory), "--save", name, fails=True,
        )  # fmt: skip
        if done.returncode:
            yield what, "FAILED", reason(done.stderr)
            continue
        result = json.loads((RESULTS / f"{name}.json").read_text())
        ours, waiting = (float(np.median(result[key]["ours"])) for key in ("images_per_second", "waiting_share"))
        ratio = float(np.median(result["ratio"]))
        memory_gib = result["memory_mib"][str(batch)] / 1024
        yield (
            what,
            "ok",
            f"{ours:.0f} images/s, {ratio:.2f} times the plain loop, {100 * waiting:.1f} % waiting for data, "
            f"{memory_gib:.1f} GiB for a step",
        )


def embed(check: Check) -> Iterator[Row]:
    shares = []
    for model in (VIT, VIT_LARGE):
        name = check.result(f"embed-{model}")
        how = ("1", "1", "1", "64") if check.quick else ("3", "2", "1", "32", "64", "128")
        rounds, seconds, *batches = how
        of = ("--models", model, "--precisions", "fp16")
        run(
            "benchmarks/bench_embed.py", "--device", "cuda", *of, "--rounds", rounds, "--seconds", seconds,
            "--save", name, "--batches", *batches,
        )  # fmt: skip
        for row, share in embed_rows(json.loads((RESULTS / f"{name}.json").read_text()), "fp16"):
            yield row
            if share is not None and model == VIT:
                shares.append((share, row[0].removeprefix("embed, ")))
    yield ROOFLINE.row(shares)


def models(check: Check) -> Iterator[Row]:
    name = check.result("embed")
    few = ("--rounds", "1", "--seconds", "1", "--batches", "1", "64") if check.quick else ()
    run("benchmarks/bench_embed.py", "--device", "cuda", "--save", name, *few)
    yield "embedding by model, precision, provider and batch", "ok", f"benchmarks/results/{name}.md"


def benchmark(check: Check) -> Iterator[Row]:
    """`geoinfer benchmark` of each model, the shipped one on web-sized photos, the ViT on those and on originals."""
    shares = []
    vit = vit_model(check)
    web, originals = ("200", "60") if check.quick else ("4000", "600")
    for model, index, kinds in (
        (SHIPPED / "model.onnx", SHIPPED / "index", (("web", web),)),
        (vit, vit_index(check, vit), (("web", web), ("12MP", originals))),
    ):
        engines, missing = engines_of(check, model)
        yield from ((f"end to end, {model.stem}, {what}", outcome, why) for what, outcome, why in missing)
        for name, engine, device in [("ONNX Runtime, CUDA", model, "cuda"), *engines]:
            for kind, count in kinds:
                what = f"end to end, {model.stem}, {kind} photos, {name}"
                result = check.folder / "benchmark.json"
                result.unlink(missing_ok=True)
                done = geoinfer(
                    "benchmark", "--generate", kind, "--count", count, "--engine", str(engine), "--index", str(index),
                    "--device", device, "--repeat", "1" if check.quick else "3", "--json", str(result), fails=True,
                )  # fmt: skip
                if done.returncode:
                    yield what, "FAILED", reason(done.stderr)
                    continue
                figures, share = end_to_end(json.loads(result.read_text())["result"])
                shares.append((share, what.removeprefix("end to end, ")))
                yield what, "ok", figures
    # The least of them: every way should come so close to what holds it back.
    yield END_TO_END.row([min(shares)] if shares else [])


def engines_of(check: Check, model: Path) -> tuple[list[tuple[str, Path, str]], list[Row]]:
    """Name, file and device of an engine of the model by each flavour; and rows for those that there are none of."""
    made, missing = [], []
    for flavor in installed_flavors():
        engine = check.folder / f"{model.stem}-{flavor}.trt"
        if not engine.is_file():
            done = geoinfer("engine", "build", str(model), "--out", str(engine), "--flavor", flavor, fails=True)
            if done.returncode:
                missing.append((f"engine, {flavor}", "FAILED", reason(done.stderr)))
                continue
        if unserved(engine, check.gpu):
            missing.append((f"engine, {flavor}", "not run", unserved(engine, check.gpu)))
            continue
        made.append((f"engine, {flavor}", engine, "auto"))
    return made, missing


def vit_index(check: Check, model: Path) -> Path:
    """An index of made-up embeddings that the ViT could have made: what it answers does not matter here."""
    from geoinfer.backends.base import EmbedderIdentity
    from geoinfer.engines.embedder_model import read_embedder_model
    from geoinfer.images import Preprocessing
    from geoinfer.index import write_index

    target = check.folder / "index-vit"
    if not target.is_dir():
        about = read_embedder_model(model)
        identity = EmbedderIdentity(about.identity, about.dim, Preprocessing.from_dict(about.preprocessing))
        vectors = (
            np.random.default_rng(0).normal(size=(1_000 if check.quick else 100_000, about.dim)).astype(np.float32)
        )
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        write_index(target, vectors, made_up_references(0, len(vectors)), identity)
    return target


def decode(check: Check) -> Iterator[Row]:
    from geoinfer.batch.device_decoding import open_decoder
    from geoinfer.errors import DeviceError, MissingPackageError
    from geoinfer.images import Preprocessing
    from geoinfer.images.device.choose import choose, measure
    from geoinfer.machine import available_cores

    try:
        decoder = open_decoder(Preprocessing(), 0)
    except MissingPackageError as error:
        yield "decode on the GPU", "not run", str(error)
        return
    except DeviceError as error:
        yield "decode on the GPU", "FAILED", str(error)
        return
    with decoder:
        found = measure(decoder, workers=available_cores(), seconds=0.5 if check.quick else 3.0)
        yield from decode_rows({name: (rates.cpu, rates.gpu) for name, rates in found.items()}, choose(found))


def engines(check: Check) -> Iterator[Row]:
    for flavor, model, engine in engine_jobs(check):
        what = f"engine build, {flavor}, {model.stem}"
        done = geoinfer("engine", "build", str(model), "--out", str(engine), "--flavor", flavor, fails=True)
        if done.returncode:
            yield what, "FAILED", reason(done.stderr)
            continue
        if unserved(engine, check.gpu):
            yield what, "not run", unserved(engine, check.gpu)
            continue
        sidecar = json.loads(engine.with_name(f"{engine.name}.json").read_text())
        parity = (sidecar["parity"] or {}).get("engine") or {}
        yield (
            what,
            "ok" if parity else "FAILED",
            f"{sidecar['build_seconds']:.1f} s, {sidecar['engine']['bytes'] / 1e6:.0f} MB, min cosine with the CPU "
            f"{parity.get('min_cosine', 'not measured')}",
        )
    if not installed_flavors():
        yield "engine build", "not run", "neither tensorrt nor tensorrt-rtx is installed"


def unserved(engine: Path, gpu: Gpu) -> str:
    """Why an engine that was built without a fault is none for this GPU; empty if it is one."""
    sidecar = read_sidecar(engine)
    if sidecar.runs_on(gpu.compute_capability):
        return ""
    capabilities = ", ".join(entry.replace("+", " and later") for entry in sidecar.compute_capabilities)
    return f"{sidecar.title} builds for compute capability {capabilities}; this is {gpu}"


def engine_jobs(check: Check) -> Iterator[tuple[str, Path, Path]]:
    """Each flavour that is installed, with each model and the engine that it becomes."""
    for flavor in installed_flavors():
        for model in (SHIPPED / "model.onnx", vit_model(check)):
            yield flavor, model, check.folder / f"{model.stem}-{flavor}.trt"


def vit_model(check: Check) -> Path:
    """A ViT-B/16 in fp16 with random weights; made once."""
    path = check.folder / "vit-fp16.onnx"
    if not path.is_file():
        run("-m", "export", "backbone", VIT, "--weights", "none", "--precision", "fp16", "--out", str(path))
    return path


def faiss(check: Check) -> Iterator[Row]:
    from geoinfer.index.gpu import gpu_count

    gpus = gpu_count()
    if not gpus:
        yield "FAISS on the GPU", "not run", "this FAISS was built without GPU support, or finds no driver"
        return
    data = clustered(check.folder, 100_000 if check.quick else REFERENCES, DIM, QUERIES, tuning=1)
    truth: np.ndarray | None = None
    speeds: list[tuple[float, str]] = []
    for kind in ("flat", "ivf", "ivf-pq", "hnsw"):
        try:
            stored = index_of(kind, data, check.folder)
            on_cpu = stored.index.search(data.queries, 10)
            truth = on_cpu.similarities if truth is None else truth
            cpu = rates(stored.index, data.queries, BATCHES_ON_CPU)
        except (GeoInferError, RuntimeError) as error:
            yield f"FAISS {kind} on the CPU", "FAILED", reason(str(error))
            continue
        for devices, fp16 in placements(kind, gpus):
            what = f"FAISS {kind}{', fp16' if fp16 and kind == 'flat' else ''}, {len(data.references):,} x {DIM}, "
            what += "one GPU" if devices is None or len(devices) == 1 else f"{len(devices)} GPUs"
            try:
                outcome, figures, speed = on_gpu(
                    stored, devices, fp16=fp16, data=data, on_cpu=on_cpu, truth=truth, cpu=cpu
                )
            except (GeoInferError, RuntimeError) as error:
                yield what, "FAILED", reason(str(error))
                continue
            yield what, outcome, figures
            if outcome == "ok" and len(devices) == 1 and len(data.references) >= 1_000_000:
                batch = max(speed, key=lambda size: speed[size])
                speeds.append((speed[batch], f"{kind}, batches of {batch}"))
    yield SEARCH.row(speeds)


def placements(kind: str, gpus: int) -> list[tuple[list[int], bool]]:
    """On which GPUs an index is laid, and whether as fp16."""
    places = [([0], True), ([0], False)] if kind == "flat" else [([0], True)]
    return places + [(list(range(gpus)), True)] * (gpus > 1)


def index_of(kind: str, data: Data, folder: Path) -> StoredIndex:
    """An index of the data, built and opened as a user's is."""
    from geoinfer.index.store import open_index

    target = folder / f"index-{kind}"
    given = dict.fromkeys(("references", "queries", "tuning"), "")
    write_ours(Contender("geoinfer", kind, str(target), **given, target=0.99), data.references, {})
    return open_index(target)


def on_gpu(
    stored: StoredIndex, devices: list[int], *, fp16: bool, data: Data, on_cpu: Neighbors, truth: np.ndarray,
    cpu: dict[int, float],
) -> tuple[str, str, dict[int, float]]:  # fmt: skip
    """Outcome, figures, and queries a second by batch, of an index laid on GPUs, beside the same one on the CPU."""
    from geoinfer.index.gpu import to_gpu
    from geoinfer.index.gpu_parts import free_bytes

    before = [free_bytes(device) for device in devices]
    began = time.perf_counter()
    with to_gpu(stored, devices, fp16=fp16) as index:
        found = index.search(data.queries, 10)
        laid = time.perf_counter() - began
        after = [free_bytes(device) for device in devices]
        gpu = rates(index, data.queries, BATCHES_ON_GPU)
        searched_as = index.searched_as
    same = float((found.ids == on_cpu.ids).mean())
    on_cpu_recall, recalled = (recall(similarities_of(data, ids), truth, 10) for ids in (on_cpu.ids, found.ids))
    exact = searched_as.startswith("flat")
    # Exact answers are the same bit by bit; an approximate index may find a little less than on the CPU.
    good = recalled == 1.0 if exact else recalled >= on_cpu_recall - 0.01
    if stored.manifest.kind == "flat":
        good = bool((found.ids == on_cpu.ids).all() and (found.similarities == on_cpu.similarities).all())
    used = [f"{(b - a) / 2**30:.1f}" for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    figures = [
        f"searched as {searched_as}",
        f"ids as on the CPU in {100 * same:.2f} %",
        f"recall@10 {recalled:.4f} (CPU {on_cpu_recall:.4f})",
        *(
            f"batches of {batch}: GPU {gpu[batch]:.0f} queries/s" + (f", CPU {cpu[batch]:.0f}" if batch in cpu else "")
            for batch in gpu
        ),
        f"laid there and first searched in {laid:.1f} s",
        f"GPU memory {', '.join(used)} GiB" if used else "GPU memory unknown",
    ]
    return "ok" if good else "FAILED", "; ".join(figures), gpu


def rates(index: ReferenceIndex, queries: np.ndarray, batches: tuple[int, ...]) -> dict[int, float]:
    """Queries a second by batch; after one batch to warm up."""
    found = {}
    queries = np.resize(queries, (max(len(queries), *batches), queries.shape[1]))
    for batch in batches:
        index.search(queries[:batch], 10)
        found[batch] = rate(lambda some: index.search(some, 10), queries, batch, 2.0)
    return found


def predict(check: Check) -> Iterator[Row]:
    photos = check.folder / "photos"
    if not photos.is_dir():
        make_photos(photos, "web", 400 if check.quick else 4000)
    index = str(SHIPPED / "index")
    model = SHIPPED / "model.onnx"
    engines, missing = engines_of(check, model)
    yield from ((f"geoinfer predict, web photos, {what}", outcome, why) for what, outcome, why in missing)
    of_cpu: np.ndarray | None = None
    for name, engine, device in [("CPU", model, "cpu"), ("ONNX Runtime, CUDA", model, "cuda"), *engines]:
        output, summary = check.folder / f"{name}.csv", check.folder / f"{name}.json"
        done = geoinfer(
            "predict", str(photos), "--engine", str(engine), "--index", index, "--device", device, "--output",
            str(output), "--summary-json", str(summary), "--restart", fails=True,
        )  # fmt: skip
        what = f"geoinfer predict, web photos, {name}"
        if done.returncode:
            yield what, "FAILED", reason(done.stderr)
            continue
        figures = json.loads(summary.read_text())
        speed = f"{figures['images_per_second']:.0f} photos/s on {figures['device']}"
        found = answers_of(output)
        if name == "CPU":
            of_cpu = found
        if of_cpu is None:
            yield what, "ok", f"{speed}; there are no answers of the CPU to compare with"
            continue
        differ, far = departures(found, of_cpu)
        yield (
            what,
            "FAILED" if far > FAR_SHARE * len(found) else "ok",
            f"{speed}; of {len(found)} answers {differ} differ from the CPU's, {far} by more than {FAR_KM:g} km",
        )


def answers_of(output: Path) -> np.ndarray:
    """(n, 2) degrees, as a run wrote them; NaN for a photo that failed."""
    with output.open(newline="") as file:
        rows = [(row["latitude"] or "nan", row["longitude"] or "nan") for row in csv.DictReader(file)]
    return np.array(rows, np.float64).reshape(-1, 2)


def departures(found: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    """How many answers are others at all, and how many lie far off; a photo that only one located is far off."""
    if found.shape != expected.shape:
        return max(len(found), len(expected)), max(len(found), len(expected))
    differ = ((found != expected) & ~(np.isnan(found) & np.isnan(expected))).any(axis=1)
    near = haversine_km(found, expected) <= FAR_KM
    return int(differ.sum()), int((differ & ~near).sum())


STEPS: dict[str, Callable[[Check], Iterator[Row]]] = {
    "tests": tests,
    "embed": embed,
    "engines": engines,
    "benchmark": benchmark,
    "decode": decode,
    "faiss": faiss,
    "predict": predict,
    "training": training,
    "models": models,
}


def geoinfer(*arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    return run("-m", "geoinfer", *arguments, fails=fails)


def run(*arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Python in the checkout, its output shown as it comes; raises unless it may fail."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    heard: dict[str, list[str]] = {"stdout": [], "stderr": []}

    def pass_on(name: str) -> None:
        for line in getattr(process, name):
            heard[name].append(line)
            print(line, end="", file=getattr(sys, name), flush=True)

    threads = [threading.Thread(target=pass_on, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = subprocess.CompletedProcess(arguments, process.wait(), *("".join(lines) for lines in heard.values()))
    if done.returncode and not fails:
        raise RuntimeError(f"{' '.join(arguments[:3])}: {reason(done.stderr) or f'exit {done.returncode}'}")
    return done


def reason(stderr: str) -> str:
    """Why a command failed: what it said last as its own error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(("geoinfer: ", "export: "))]
    return (own or lines or [""])[-1]


if __name__ == "__main__":
    main()
