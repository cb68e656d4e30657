"""Images per second of training, beside the plain loop that the paper's text describes, in one run.

    python benchmarks/bench_training.py                      on this machine's CPU
    python benchmarks/bench_training.py --device cuda --backbone vit_base_patch16_224 --train last:4 --batch-size 400

The plain loop: Pillow decodes in full and resizes in DataLoader workers, batches travel as normalised float32, the
model runs eagerly in float32, the loss is written as its formula. Ours: the trainer's own loader, model and step. Same
photos, same architecture and frozen part, same loss and kind of optimiser; the two take turns, so that a busy machine
slows both. Each begins with as many unmeasured steps as its loader has batches ready, and neither runs out of photos.

Also printed: the share of a step that waits for data, the contrastive loss at 4096 x 256 against the step it belongs
to, and the memory of a step by batch size, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import machine, make_photos, save, spread
from PIL import Image

from geoinfer.images import Preprocessing
from geoinfer.machine import available_cores
from trainer.data.examples import make_examples
from trainer.data.loader import BatchLoader
from trainer.data.sampling import RandomBatches
from trainer.devices import make_fabric
from trainer.losses import supervised_contrastive_loss
from trainer.models import create_model, freeze
from trainer.models.backbones import RANDOM
from trainer.models.freezing import training_mode
from trainer.objective import Objective
from trainer.optimisation import make_optimizer
from trainer.recipe import LossTable, OptimiserTable
from trainer.step import DeviceBatch, backward

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVEL = 6


def main() -> None:
    options = parse()
    if options.measure_memory:
        print(json.dumps(step_memory(options, options.measure_memory)))
        return
    result: dict[str, Any] = {
        "options": {k: v for k, v in vars(options).items() if k not in ("save", "measure_memory")}
    }
    result["machine"] = machine()
    result["machine"]["versions"] |= {name: version(name) for name in ("torch", "timm", "lightning-fabric")}
    if options.device == "cuda":
        result["machine"]["device"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), options.photos, options.count)
        plain, ours = Plain(options, photos), Ours(options, photos)
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        waits: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(options.rounds):
            for name, loop in (("plain", plain), ("ours", ours)):
                rate, waited = loop.measure(options.steps)
                rates[name].append(rate)
                waits[name].append(waited)
        result["decoding_images_per_second"] = {
            name: [loop.decode() for _ in range(options.rounds)] for name, loop in (("plain", plain), ("ours", ours))
        }
    ratios = [b / a for a, b in zip(rates["plain"], rates["ours"], strict=True)]
    result |= {"images_per_second": rates, "waiting_share": waits, "ratio": ratios}
    result["loss_4096_seconds"] = contrastive_seconds(options.device)
    result["step_4096_seconds"] = 4096 / statistics.median(rates["ours"])
    result["memory_mib"] = {str(size): memory_of(size) for size in options.memory_batches}
    report = markdown(result)
    print(report)
    if options.save:
        path = save(options.save, result)
        path.with_suffix(".md").write_text(report + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--train", default="last:3", help="freezing policy")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default=None, help="of ours; bf16 on a GPU, else fp32")
    parser.add_argument("--photos", choices=("web", "12MP"), default="web")
    parser.add_argument("--count", type=int, default=256, help="photos to train on")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--memory-batches", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("--save", help="name under benchmarks/results")
    parser.add_argument("--measure-memory", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "fp32")
    return options


def labels(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Made-up places, many to a cell, and their leaf cells."""
    rng = np.random.default_rng(0)
    coordinates = np.stack([rng.uniform(40, 50, count), rng.uniform(0, 15, count)], axis=1)
    from geoinfer.geocells import leaf_cells

    return coordinates, leaf_cells(coordinates)


class Ours:
    """The trainer's own parts."""

    unmeasured = 4

    def __init__(self, options: argparse.Namespace, photos: list[Path]) -> None:
        self.options = options
        coordinates, leaves = labels(len(photos))
        self.examples = make_examples(
            [path.stem for path in photos], [str(path).encode() for path in photos], coordinates, leaf_cells=leaves
        )
        self.fabric = make_fabric(options.device, options.precision)
        self.model, self.wrapped, self.optimizer = our_model(options, self.fabric)
        self.objective = Objective([LossTable(kind="supcon", levels=[LEVEL])], self.model)
        self.batches = RandomBatches(len(photos), options.batch_size, 0)

    def measure(self, steps: int) -> tuple[float, float]:
        options = self.options
        device = self.fabric.device
        pinned = device.type == "cuda"
        waited = began = 0.0
        with BatchLoader(self.examples, self.model.preprocessing, workers=options.workers, pinned=pinned) as loader:
            for number, batch in enumerate(loader.batches(endless(self.batches))):
                if number == self.unmeasured:
                    synchronise(options.device)
                    began = time.perf_counter()
                if number >= self.unmeasured:
                    waited += batch.waited_seconds
                on_device = DeviceBatch(
                    batch.pixels.to(device, non_blocking=True),
                    batch.valid.to(device),
                    torch.from_numpy(self.examples.leaf_cells[batch.rows].view(np.int64)).to(device),
                    torch.from_numpy(self.examples.coordinates[batch.rows]).to(device),
                )
                backward(self.fabric, self.wrapped, self.objective, on_device, seed=number)
                self.optimizer.step()
                self.optimizer.zero_grad()
                if number == steps + self.unmeasured - 1:
                    break
        synchronise(options.device)
        seconds = time.perf_counter() - began
        return steps * options.batch_size / seconds, waited / seconds

    def decode(self) -> float:
        """Images a second of the loader alone."""
        with BatchLoader(self.examples, self.model.preprocessing, workers=self.options.workers) as loader:
            batches = loader.batches(self.batches.epoch(0))
            next(batches)
            began = time.perf_counter()
            photos = sum(len(batch.rows) for batch in batches)
            return photos / (time.perf_counter() - began)


def our_model(options: argparse.Namespace, fabric: Any) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = create_model(options.backbone, preprocessing(options), weights=RANDOM)
    freeze(model, options.train)
    model.use_channels_last()
    training_mode(model, batch_norm=False)
    wrapped, optimizer = fabric.setup(model, make_optimizer(model, OptimiserTable()))
    return model, wrapped, optimizer


def preprocessing(options: argparse.Namespace) -> Preprocessing:
    return Preprocessing(size=options.size, resize="squash", interpolation="bilinear")


class PlainPhotos(torch.utils.data.Dataset):
    """Pillow, one photo after another."""

    def __init__(self, photos: list[Path], size: int) -> None:
        self.photos, self.size = photos, size
        _, leaves = labels(len(photos))
        from geoinfer.geocells import parent_cells

        self.cells = parent_cells(leaves, LEVEL).view(np.int64)
        self.mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
        self.std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        picture = Image.open(self.photos[row]).convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        return (tensor - self.mean) / self.std, int(self.cells[row])


class Plain:
    """What the paper's text describes, as one would write it down."""

    def __init__(self, options: argparse.Namespace, photos: list[Path]) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.photos = PlainPhotos(photos, options.size)
        torch.manual_seed(0)
        model = create_model(options.backbone, preprocessing(options), weights=RANDOM)
        freeze(model, options.train)
        training_mode(model, batch_norm=False)
        self.model = model.to(self.device)
        learning = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=1e-5)

    def measure(self, steps: int) -> tuple[float, float]:
        options = self.options
        # Its workers take whole batches each and two ahead: one long epoch keeps all of them busy.
        unmeasured = max(4, 2 * options.workers)
        forever = torch.utils.data.RandomSampler(
            self.photos, replacement=True, num_samples=(steps + 2 * unmeasured) * options.batch_size
        )
        loader = torch.utils.data.DataLoader(
            self.photos, batch_size=options.batch_size, sampler=forever, num_workers=options.workers,
            pin_memory=options.device == "cuda",
        )  # fmt: skip
        source = iter(loader)
        waited = began = 0.0
        for number in range(steps + unmeasured):
            if number == unmeasured:
                synchronise(options.device)
                began = time.perf_counter()
            asked = time.perf_counter()
            pictures, cells = next(source)
            if number >= unmeasured:
                waited += time.perf_counter() - asked
            loss = plain_supcon(self._embed(pictures.to(self.device)), cells.to(self.device), 0.07)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
        synchronise(options.device)
        seconds = time.perf_counter() - began
        return steps * options.batch_size / seconds, waited / seconds

    def decode(self) -> float:
        """Images a second of the loader alone."""
        loader = torch.utils.data.DataLoader(
            self.photos, batch_size=self.options.batch_size, drop_last=True, num_workers=self.options.workers
        )
        batches = iter(loader)
        next(batches)
        began = time.perf_counter()
        return sum(len(cells) for _, cells in batches) / (time.perf_counter() - began)

    def _embed(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.model.projection(self.model.backbone(pictures)), dim=1)


def plain_supcon(embeddings: torch.Tensor, cells: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. 1 as a formula."""
    logits = embeddings @ embeddings.T / temperature
    others = ~torch.eye(len(cells), dtype=torch.bool, device=cells.device)
    positive = (cells[:, None] == cells[None, :]) & others
    exponentials = torch.exp(logits - logits.max(1, keepdim=True).values.detach()) * others
    log_share = logits - logits.max(1, keepdim=True).values.detach() - torch.log(exponentials.sum(1, keepdim=True))
    anchors = positive.any(1)
    return -((log_share * positive).sum(1)[anchors] / positive.sum(1)[anchors]).mean()


def endless(batches: RandomBatches) -> Iterator[np.ndarray]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def contrastive_seconds(device: str) -> float:
    """Forward and backward of the contrastive loss alone, 4096 x 256, the median of five."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(4096, 256, generator=generator), dim=1).to(device).requires_grad_()
    cells = torch.randint(1000, (4096,), generator=generator).to(device)
    times = []
    for _ in range(6):
        synchronise(device)
        began = time.perf_counter()
        supervised_contrastive_loss(rows, cells).backward()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def memory_of(batch_size: int) -> float:
    """Peak memory of a step in MiB, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure-memory", str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def step_memory(options: argparse.Namespace, batch_size: int) -> float:
    fabric = make_fabric(options.device, options.precision)
    model, wrapped, optimizer = our_model(options, fabric)
    objective = Objective([LossTable(kind="supcon", levels=[LEVEL])], model)
    coordinates, leaves = labels(batch_size)
    for number in range(2):
        batch = DeviceBatch(
            torch.zeros(batch_size, options.size, options.size, 3, dtype=torch.uint8, device=fabric.device),
            torch.ones(batch_size, dtype=torch.bool, device=fabric.device),
            torch.from_numpy(leaves.view(np.int64)).to(fabric.device),
            torch.from_numpy(coordinates).to(fabric.device),
        )
        backward(fabric, wrapped, objective, batch, seed=number)
        optimizer.step()
        optimizer.zero_grad()
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: what it calls the peak of a child begins with its parent's.
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) / 1024


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def markdown(result: dict[str, Any]) -> str:
    options, where = result["options"], result["machine"]
    rates, waits = result["images_per_second"], result["waiting_share"]
    loss, step = result["loss_4096_seconds"], result["step_4096_seconds"]
    lines = [
        f"{options['backbone']} at {options['size']} px, {options['train']} learning, batches of "
        f"{options['batch_size']}, {options['photos']} photos, {options['workers']} decoding workers; ours in "
        f"{options['precision']}, the plain loop in fp32. {where.get('device', where['cpu'])}, {where['cores']} cores, "
        f"torch {where['versions']['torch']}.",
        "",
        "| | training, images/s | of a step waits for data | loading alone, images/s |",
        "|---|---|---|---|",
        *(
            f"| {title} | {spread(rates[name])} | {100 * statistics.median(waits[name]):.1f} % | "
            f"{spread(result['decoding_images_per_second'][name])} |"
            for title, name in (("plain loop", "plain"), ("trainer", "ours"))
        ),
        "",
        f"Medians of {options['rounds']} rounds of {options['steps']} steps, smallest and largest in brackets. The "
        f"trainer is {statistics.median(result['ratio']):.2f} times as fast ({min(result['ratio']):.2f} to "
        f"{max(result['ratio']):.2f}).",
        "",
        f"The contrastive loss at 4096 x 256, forward and backward: {loss * 1000:.0f} ms, "
        f"{100 * loss / step:.1f} % of the {step:.1f} s that 4096 photos take to train on at the rate above.",
        "",
        f"| batch | peak memory{' of the process, libraries included' if options['device'] == 'cpu' else ''} |",
        "|---|---|",
        *(f"| {size} | {mib / 1024:.2f} GiB |" for size, mib in result["memory_mib"].items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
