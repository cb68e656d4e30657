"""Images a second of embedding in fp32, fp16 and int8, by batch, beside what the device could do at best.

    python benchmarks/bench_embed.py                         ONNX Runtime on this machine's CPU
    python benchmarks/bench_embed.py --device cuda           ONNX Runtime's two GPU providers, TensorRT engines
    python benchmarks/bench_embed.py --onnx vit.onnx --photos my/photos     a model of one's own, in fp32

Everything goes through geoinfer's own backends, from uint8 pixels to embeddings in the computer's memory. Rounds are
interleaved, so that a machine that slows down slows everything; ratios are taken within a round.

The roofline of a batch is the longer of two times: multiplying, counted from the graph, at the rate of a large matrix
product in the same precision on the same cores; and reading the weights once and the pixels, at the rate of a large
copy. Both rates are measured here. fp16 has no arithmetic of its own on these CPUs and is held to fp32's rate.

int8 is made by `export.int8`, for the CPU or for any device. It is recommended for a model where it is faster than
fp32 in every round and at every batch, and keeps to the parity gate on photos that calibration has not seen. ResNet50
and ViT-B/16 have random weights here: good for speed, and worth nothing for what int8 costs in accuracy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from common import CHECKOUT, machine, save, spread

from export.half import to_half
from export.int8 import to_int8
from export.layers import count_macs
from export.parity import default_limits
from geoinfer.backends import open_embedder
from geoinfer.errors import GeoInferError
from geoinfer.images import Preprocessing, load_pixels
from geoinfer.integrity import canonical_json
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = {
    "efficientnet_lite2": ("EfficientNet-Lite2, ImageNet", True),
    "resnet50": ("ResNet50, random weights", False),
    "vit_base_patch16_224": ("ViT-B/16, random weights", False),
    "vit_large_patch16_224": ("ViT-L/16, random weights", False),
}
USUAL = [name for name in MODELS if name != "vit_large_patch16_224"]  # which takes too long on a laptop
PRECISIONS = ("fp32", "fp16", "int8")
HALF = (0.5, 0.5, 0.5)
PICTURES = 128

# VmHWM and not ru_maxrss, in which the memory of the process that started this one lives on.
EMBED_ONLY = """
import json, sys
from pathlib import Path
import numpy as np
from geoinfer.backends import open_embedder

def free():
    if sys.argv[2] == "cpu":
        return 0
    from cuda.bindings import runtime
    return int(runtime.cudaMemGetInfo()[1])

before = free()
with open_embedder(Path(sys.argv[1]), sys.argv[2]) as embedder:
    side = embedder.identity.preprocessing.size
    for _ in range(3):
        embedder.embed(np.zeros((int(sys.argv[3]), side, side, 3), np.uint8))
    used = before - free()
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"peak_bytes": 1024 * int(peak.split()[1]), "device_bytes": used}))
"""


def main() -> None:
    options = parse()
    result: dict[str, Any] = {"machine": device_and_versions(options.device), "peaks": peaks(options.device)}
    result["options"] = {name: str(value) for name, value in vars(options).items() if name != "save"}
    result["models"] = []
    for name in options.models if options.onnx is None else [str(options.onnx)]:
        with tempfile.TemporaryDirectory() as folder:
            result["models"].append(bench(name, options, Path(folder), result["peaks"]))
    report = markdown(result)
    print(report)
    if options.save:
        save(options.save, result).with_suffix(".md").write_text(report + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=USUAL)
    parser.add_argument("--onnx", type=Path, help="an fp32 model of one's own instead of these")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batches", type=int, nargs="+", help="default 1 8 32, and 64 128 256 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--photos", type=Path, default=CHECKOUT / "examples" / "photos", help="to calibrate int8 on")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    options = parser.parse_args()
    options.batches = options.batches or ([1, 8, 32] if options.device == "cpu" else [1, 8, 32, 64, 128, 256])
    return options


@dataclass
class Contender:
    """A model in one precision on one provider."""

    provider: str
    precision: str
    path: Path
    device: str
    embedder: Any

    @property
    def title(self) -> str:
        return f"{self.provider}, {self.precision}"


def skip(title: str, why: str, skipped: dict[str, str]) -> None:
    """Notes that a contender is left out, and says so."""
    skipped[title] = " ".join(why.split())
    say(f"{title}: {skipped[title]}")


def bench(name: str, options: argparse.Namespace, folder: Path, limits: dict[str, float]) -> dict[str, Any]:
    say(f"{name}: making the models")
    model = make_model(name)
    title, trained = MODELS.get(name, (Path(name).name, True))
    photos, numbers = pictures(options.photos, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    made, quality = convert(model, photos, numbers % 4 == 0, options)
    paths = {}
    for precision, converted in made.items():
        paths[precision] = folder / f"{precision}.onnx"
        onnx.save(converted, str(paths[precision]))
    contenders, skipped = open_all(paths, folder, options)
    result: dict[str, Any] = {"name": name, "title": title, "trained": trained, "quality": quality, "skipped": skipped}
    macs, int8_macs = sum(count_macs(model).values()), quality.get("int8_macs", 0)
    result |= {"gflop": 2e-9 * macs, "int8_gflop": 2e-9 * int8_macs}
    rows: dict[tuple[int, int], dict[str, list]] = {}
    for number in range(options.rounds):
        # Again each round, for the best of a busy machine may come at any time.
        limits.update({key: max(limits[key], rate) for key, rate in peaks(options.device).items()})
        for batch in options.batches:
            for position, contender in enumerate(contenders):
                if contender.title in skipped:
                    continue
                row = rows.setdefault((position, batch), {"images_per_second": [], "latencies_ms": []})
                pixels = np.resize(photos, (batch, *photos.shape[1:]))
                try:
                    rate, latencies = measure(contender.embedder, pixels, options)
                except Exception as error:  # noqa: BLE001 - one that fails must not cost what the others showed
                    skip(contender.title, f"batch {batch}: {error}", skipped)
                    continue
                row["images_per_second"].append(rate)
                row["latencies_ms"] += latencies
        say(f"{name}: round {number + 1} of {options.rounds}")
    for contender in contenders:
        contender.embedder.close()
    rows = {key: row for key, row in rows.items() if contenders[key[0]].title not in skipped}
    result["rows"] = []
    for (position, batch), row in rows.items():
        contender = contenders[position]
        figures = {"provider": contender.provider, "precision": contender.precision, "batch": batch, **row}
        latencies = figures.pop("latencies_ms")
        figures |= {f"p{q}_ms": float(np.percentile(latencies, q)) for q in (50, 95, 99)}
        weights = sum(tensor.ByteSize() for tensor in made[contender.precision].graph.initializer)
        figures["roofline"] = roofline(
            limits, contender.precision, batch, macs, int8_macs, weights, int(np.prod(photos.shape[1:]))
        )
        figures["share"] = statistics.median(row["images_per_second"]) / figures["roofline"]
        figures |= memory_of(contender, batch) if batch == options.batches[-1] else {}
        result["rows"].append(figures)
    return result


def convert(
    model: onnx.ModelProto, photos: np.ndarray, judged: np.ndarray, options: argparse.Namespace
) -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """The model in each precision; and what int8 costs on the `judged` photos, which it was not calibrated on."""
    made = {"fp32": model}
    quality: dict[str, Any] = {}
    if "fp16" in options.precisions:
        made["fp16"] = to_half(model)
    if "int8" in options.precisions:
        target = "cpu" if options.device == "cpu" else "any"
        try:
            made["int8"], report = to_int8(model, photos[~judged], target=target, report=say)
        except GeoInferError as error:
            quality["int8_failed"] = str(error)
        else:
            from export.layers import embed, open_session

            cosines = np.einsum(
                "ij,ij->i",
                embed(open_session(model), photos[judged]),
                embed(open_session(made["int8"]), photos[judged]),
            )
            total = sum(count_macs(model).values())
            quality |= {
                "int8": report.as_dict(),
                "int8_macs": round((1 - report.float_macs_share) * total),
                "min_cosine": float(cosines.min()),
                "passes": bool(cosines.min() >= default_limits("int8").min_cosine),
            }
    return {precision: made[precision] for precision in PRECISIONS if precision in made}, quality


def make_model(name: str) -> onnx.ModelProto:
    if name not in MODELS:
        return onnx.load(name)
    import torch

    from export.graph import trace

    if name.startswith("efficientnet_lite"):
        from trainer.efficientnet_lite import load_efficientnet_lite

        preprocessing, network, dim = Preprocessing(size=260, mean=HALF, std=HALF), load_efficientnet_lite(2), 1280
    else:
        import timm

        torch.manual_seed(0)
        preprocessing, network = Preprocessing(), timm.create_model(name, pretrained=False, num_classes=0).eval()
        dim = int(network.num_features)
    metadata = {
        "geoinfer.format": "1",
        "geoinfer.identity": f"{name}:benchmark",
        "geoinfer.preprocessing": canonical_json(preprocessing.as_dict()),
        "geoinfer.dim": str(dim),
        "geoinfer.source": "benchmarks/bench_embed.py",
        "geoinfer.licence": "NOASSERTION",
        "geoinfer.weights_sha256": "0" * 64,
    }
    return trace(network, preprocessing, dim=dim, metadata=metadata).model


def pictures(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos of the folder, turned and mirrored while there are too few.

    Returns:
        (pixels (n, size, size, 3) uint8, number of the photo that each comes from (n,)).
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [found[i * len(found) // PICTURES] for i in range(PICTURES)] if len(found) > PICTURES else found
    loaded = [load_pixels(bytes(path), Preprocessing(size=size)) for path in chosen]
    turns = min(8, -(-PICTURES // len(loaded)))
    forms = [np.rot90(picture[:, :: -1 if turn > 3 else 1], turn % 4) for picture in loaded for turn in range(turns)]
    return np.ascontiguousarray(forms), np.repeat(np.arange(len(loaded)), turns)


def open_all(
    paths: dict[str, Path], folder: Path, options: argparse.Namespace
) -> tuple[list[Contender], dict[str, str]]:
    """Every precision on every provider of the device; what cannot be opened is told and left out."""
    contenders: list[Contender] = []
    skipped: dict[str, str] = {}

    def attempt(provider: str, precision: str, make: Callable[[], tuple[Path, str]]) -> None:
        if precision not in options.precisions:
            return
        try:
            path, device = make()
            contenders.append(Contender(provider, precision, path, device, open_embedder(path, device)))
        except GeoInferError as error:
            skip(f"{provider}, {precision}", str(error), skipped)

    for precision, path in paths.items():
        if options.device == "cpu":
            attempt("ONNX Runtime CPU", precision, lambda path=path: (path, "cpu"))
            continue
        attempt("ONNX Runtime CUDA", precision, lambda path=path: (path, "cuda"))
        attempt("ONNX Runtime TensorRT", precision, lambda path=path: (path, "tensorrt"))
        from geoinfer.engines.flavors import installed_flavors

        for flavor in installed_flavors():
            out = folder / f"{precision}-{flavor}.trt"
            attempt(
                f"{flavor} engine",
                precision,
                lambda path=path, out=out, f=flavor: (engine(path, out, f, options), "auto"),
            )
    return contenders, skipped


def engine(path: Path, out: Path, flavor: str, options: argparse.Namespace) -> Path:
    from geoinfer.engines.build import BuildOptions, build_engine

    batches = sorted(options.batches)
    tuned = batches[len(batches) // 2]
    build_engine(path, out, BuildOptions(flavor=flavor, opt_batch=tuned, max_batch=tuned), say)
    return out


def measure(embedder: Any, pixels: np.ndarray, options: argparse.Namespace) -> tuple[float, list[float]]:
    """(images a second, milliseconds of each call). Rates are with as many calls at once as the backend asks for."""
    embedder.embed(pixels)
    latencies: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < options.seconds or len(latencies) < 3:
        before = time.perf_counter()
        embedder.embed(pixels)
        latencies.append(1e3 * (time.perf_counter() - before))
    rate = len(pixels) * len(latencies) / (time.perf_counter() - started)
    at_once = int(getattr(embedder, "calls_at_once", 1) or 1)
    if options.device == "cpu" or at_once == 1:
        return rate, latencies
    calls = max(3 * at_once, len(latencies))
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda _: embedder.embed(pixels), range(at_once)))
        started = time.perf_counter()
        list(pool.map(lambda _: embedder.embed(pixels), range(calls)))
        together = len(pixels) * calls / (time.perf_counter() - started)
    return max(rate, together), latencies


def roofline(
    limits: dict[str, float], precision: str, batch: int, macs: int, int8_macs: int, weight_bytes: int, image_bytes: int
) -> float:
    """Images a second that the device could not exceed."""
    of_float = limits["fp16"] if precision == "fp16" else limits["fp32"]
    slow, fast = (macs - int8_macs, int8_macs) if precision == "int8" else (macs, 0)
    multiplying = batch * 2 * (slow / of_float + fast / limits["int8"])
    reading = (weight_bytes + batch * image_bytes) / limits["bytes"]
    return batch / max(multiplying, reading)


def peaks(device: str) -> dict[str, float]:
    """Operations a second of large matrix products in each precision, and bytes a second of a copy; the best seen."""
    return gpu_peaks() if device == "cuda" else cpu_peaks()


def cpu_peaks() -> dict[str, float]:
    from onnx import TensorProto, helper

    from export.layers import open_session

    side = 2048
    rng = np.random.default_rng(0)

    def product(operator: str, left: int, right: int, out: int) -> Any:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node(operator, ["a", "b"], ["c"])], "product",
            [value("a", left, [side, side]), value("b", right, [side, side])], [value("c", out, [side, side])],
        )  # fmt: skip
        return open_session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))

    floats = {name: rng.normal(size=(side, side)).astype(np.float32) for name in "ab"}
    bytes_ = {"a": rng.integers(0, 256, (side, side), np.uint8), "b": rng.integers(-127, 128, (side, side), np.int8)}
    in_float = product("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT)
    in_int8 = product("MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)
    works = {"fp32": [lambda: in_float.run(None, floats)], "int8": [lambda: in_int8.run(None, bytes_)]}
    moved = 1 << 28
    source, target = np.ones(moved, np.uint8), np.empty(moved, np.uint8)
    cores, part = available_cores(), moved // available_cores()
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(cores)
        left, right = (torch.from_numpy(floats[name]) for name in "ab")
        left8, right8 = torch.from_numpy(bytes_["b"]), torch.from_numpy(bytes_["b"])
        works["fp32"].append(lambda: left @ right)
        works["int8"].append(lambda: torch._int_mm(left8, right8))  # noqa: SLF001
    result = {name: 2 * side**3 / min(fastest(work) for work in tried) for name, tried in works.items()}
    with ThreadPoolExecutor(cores) as pool:

        def copy() -> None:
            list(pool.map(lambda i: np.copyto(target[i * part : (i + 1) * part], source[i * part : (i + 1) * part]),
                          range(cores)))  # fmt: skip

        result["bytes"] = 2 * moved / fastest(copy)
    return result | {"fp16": result["fp32"]}


def gpu_peaks() -> dict[str, float]:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True  # as ONNX Runtime does in fp32; engines of geoinfer's do not
    side = 8192
    single = torch.randn(side, side, device="cuda")
    half, byte = single.half(), torch.randint(-127, 128, (side, side), dtype=torch.int8, device="cuda")
    moved = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")

    def timed(work: Callable[[], object]) -> float:
        def whole() -> None:
            for _ in range(10):
                work()
            torch.cuda.synchronize()

        return fastest(whole) / 10

    products = {
        "fp32": lambda: single @ single,
        "fp16": lambda: half @ half,
        # Column-major on the right, as the kernels want it.
        "int8": lambda: torch._int_mm(byte, byte.t()),  # noqa: SLF001
    }
    result = {name: 2 * side**3 / timed(work) for name, work in products.items()}
    return result | {"bytes": 2 * moved.numel() / timed(moved.clone)}


def fastest(work: Callable[[], object], rounds: int = 7) -> float:
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def memory_of(contender: Contender, batch: int) -> dict[str, Any]:
    """Peak memory of a process that does nothing but embed, and what the GPU gave it beyond its own context."""
    argv = [sys.executable, "-c", EMBED_ONLY, str(contender.path), contender.device, str(batch)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        say(f"{contender.provider}, {contender.precision}: memory was not measured: {done.stderr.strip()[-200:]}")
        return {}
    return json.loads(done.stdout)


def device_and_versions(device: str) -> dict[str, Any]:
    result = machine()
    for name in ("onnx", "onnxruntime-gpu", "torch", "timm", "tensorrt", "tensorrt-rtx"):
        try:
            result["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    if device == "cuda":
        import torch

        result["gpu"] = torch.cuda.get_device_name()
    return result


def recommendation(result: dict[str, Any], device: str) -> str:
    """Whether int8 is worth it on this device: faster everywhere, and within the parity gate."""
    quality, title = result["quality"], result["title"]
    if "int8_failed" in quality:
        return f"int8 is **not recommended** for {title}: {quality['int8_failed']}."
    ratios: list[float] = []
    for row in result["rows"]:
        if row["precision"] != "int8":
            continue
        key = (row["provider"], row["batch"])
        for other in result["rows"]:
            if other["precision"] == "fp32" and (other["provider"], other["batch"]) == key:
                pairs = zip(row["images_per_second"], other["images_per_second"], strict=True)
                ratios += [mine / theirs for mine, theirs in pairs]
    if not ratios:
        return ""
    speed = f"{statistics.median(ratios):.2f} times as fast as fp32 ({min(ratios):.2f} to {max(ratios):.2f})"
    if not result["trained"]:
        return f"int8 for {title}: {speed}. Speed alone: random weights cannot show what int8 costs in accuracy."
    cosine = f"smallest cosine {quality['min_cosine']:.4f} on photos that calibration has not seen"
    good = quality["passes"] and min(ratios) > 1.0
    where = "this CPU" if device == "cpu" else "this GPU"
    return f"int8 is **{'' if good else 'not '}recommended** on {where} for {title}: {speed}; {cosine}."


def markdown(result: dict[str, Any]) -> str:
    peak, about = result["peaks"], result["machine"]
    device = result["options"]["device"]
    names = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in names if name in about["versions"])
    lines = [
        f"{about.get('gpu', about['cpu'])}, {about['cores']} cores; {versions}. Median of "
        f"{result['options']['rounds']} rounds (smallest to largest).",
        "",
        f"Measured limits: fp32 {peak['fp32'] / 1e12:.2f}, fp16 {peak['fp16'] / 1e12:.2f}, int8 "
        f"{peak['int8'] / 1e12:.2f} tera-operations a second, memory {peak['bytes'] / 1e9:.0f} GB/s.",
    ]
    for model in result["models"]:
        lines += [
            "",
            f"### {model['title']}, {model['gflop']:.2f} GFLOP an image",
            "",
            "| provider | precision | batch | images/s | roofline | share | p50, p95, p99 ms | peak memory |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in sorted(model["rows"], key=lambda r: (r["provider"], PRECISIONS.index(r["precision"]), r["batch"])):
            used = row.get("device_bytes") or row.get("peak_bytes")
            lines.append(
                f"| {row['provider']} | {row['precision']} | {row['batch']} | {spread(row['images_per_second'])} "
                f"| {row['roofline']:.0f} | {100 * row['share']:.0f} % "
                f"| {row['p50_ms']:.1f}, {row['p95_ms']:.1f}, {row['p99_ms']:.1f} "
                f"| {f'{used / 2**20:.0f} MiB' if used else ''} |"
            )
        if "int8" in model["quality"]:
            report = model["quality"]["int8"]
            floats = ", ".join(layer["name"] for layer in report["float_layers"]) or "none"
            share = 100 * (1 - report["float_macs_share"])
            lines += ["", f"int8: {share:.1f} % of the multiplications; layers left in float: {floats}."]
        lines += ["", recommendation(model, device)]
        lines += [f"- not run: {what}: {why}" for what, why in model["skipped"].items()]
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
