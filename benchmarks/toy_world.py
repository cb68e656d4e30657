"""Does training on places teach an embedding something? The paper's recipes and ours on the toy world, in one table.

    python benchmarks/toy_world.py --work /tmp/toy --save toy_world

Renders the toy world (seeded), splits it by geocell so that no query has a neighbour of its own cell among the
references, trains each variant for as many epochs with the same small backbone (EfficientNet-Lite0 as trained on
ImageNet, its last blocks learning), takes the weights that each run ends with, chooses k on the validation part, and
prints errors on the test part, which nothing else looks at. Intervals are 95 % bootstrap intervals over the cells that
the split holds out, since photos of one cell err together; they say nothing of how training itself varies, as each
variant is trained once. Rates, levels and distances were set by hand beforehand. Runs that were interrupted go on.

A figure from here says something of the losses and samplers, and nothing of the accuracy on real photos.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import machine, save

from geoinfer.geodesy import haversine_km
from geoinfer.images import Preprocessing
from geoinfer.machine import available_cores
from trainer.checkpoint import load_model
from trainer.data.examples import Examples, open_examples
from trainer.data.loader import BatchLoader
from trainer.data.report import nearest_km
from trainer.devices import make_fabric
from trainer.embedding import embed_rows
from trainer.metrics import RADII_KM
from trainer.models import create_backbone
from trainer.models.embedder import unit_rows
from trainer.validation import GeolocationErrors, best_of, neighbor_errors, place_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKBONE = "tf_efficientnet_lite0"
SPLIT_LEVEL = 5
KS = [1, 3, 5, 10, 20, 50, 100]
RESAMPLES = 2000


@dataclass(frozen=True)
class Variant:
    """A row of the table: a recipe of the trainer's, and what is changed in it besides what all share."""

    name: str
    title: str
    recipe: str
    changes: tuple[str, ...]


SUPCON = 'stages.*.losses=[{kind="supcon", levels=[4]}]'
HIERARCHICAL = 'stages.*.losses=[{kind="hierarchical", levels=[3,4,5], level_weights=[0.3,1.0,0.3]}]'
OURS = (
    'stages.*.losses=[{kind="hierarchical", levels=[3,4,5], level_weights=[0.3,1.0,0.3]}, '
    '{kind="soft_supcon", scale_km=250.0, max_positive_km=1000.0}]'
)
RANDOM = 'sampler={kind="random"}'
CELLS = 'sampler={kind="cells", level=4, images_per_cell=4}'
EVERY = "stages.*."

VARIANTS = (
    Variant("regression", "coordinate regression (haversine)", "resnet50_regression", (EVERY + RANDOM,)),
    Variant(
        "head-random", "single stage, head alone on the frozen backbone, random batches", "vit_single_stage",
        (SUPCON, EVERY + RANDOM, EVERY + "train.backbone=none"),
    ),
    Variant("single-random", "single stage, random batches", "vit_single_stage", (SUPCON, EVERY + RANDOM)),
    Variant("single-cells", "single stage, P x K", "vit_single_stage", (SUPCON, EVERY + CELLS)),
    Variant("two-stage-random", "two-stage, random batches", "vit_two_stage", ()),
    Variant("two-stage-cells", "two-stage, P x K then random", "vit_two_stage", ("stages.0." + CELLS,)),
    Variant("hierarchical-random", "hierarchical, random batches", "vit_single_stage", (HIERARCHICAL, EVERY + RANDOM)),
    Variant("hierarchical-cells", "hierarchical, P x K", "vit_single_stage", (HIERARCHICAL, EVERY + CELLS)),
    Variant("ours-random", "ours (hierarchical + soft), random batches", "vit_geocontrast", (OURS, EVERY + RANDOM)),
    Variant("ours-cells", "ours (hierarchical + soft), P x K", "vit_geocontrast", (OURS, EVERY + CELLS)),
)  # fmt: skip
PAIRS = (
    ("single-random", "head-random"),
    ("single-cells", "single-random"),
    ("two-stage-random", "single-random"),
    ("two-stage-cells", "single-cells"),
    ("hierarchical-cells", "hierarchical-random"),
    ("hierarchical-cells", "single-cells"),
    ("ours-cells", "ours-random"),
    ("ours-cells", "single-cells"),
    ("ours-cells", "hierarchical-cells"),
    ("ours-cells", "single-random"),
)


def main() -> None:
    options = parse()
    work = Path(options.work)
    world, prepared = work / "world", work / "prepared"
    asked = {key: getattr(options, key) for key in ("count", "size", "seed", "epochs", "batch_size")}
    made = work / "options.json"
    if made.exists() and json.loads(made.read_text()) != asked:
        sys.exit(f"{work} was made with {json.loads(made.read_text())}, not {asked}: name another folder")
    work.mkdir(parents=True, exist_ok=True)
    made.write_text(json.dumps(asked))
    if not (world / "train.csv").exists():
        trainer("toy-world", "--out", world, "--count", options.count, "--size", options.size, "--seed", options.seed)
    if not (prepared / "manifest.json").exists():
        trainer(
            "prepare", world, "--out", prepared, "--split", "geocell", "--split-level", SPLIT_LEVEL,
            "--validation", 0.1, "--test", 0.2, "--seed", options.seed,
        )  # fmt: skip
    examples = open_examples(prepared)
    table = Table(examples)
    table.add_bounds(options.seed)
    table.add_frozen(options.size)
    for variant in VARIANTS:
        if options.only and variant.name not in options.only:
            continue
        trainer("fit", variant.recipe, "--data", prepared, "--out", work / variant.name, *settings(variant, options))
        table.add_trained(variant, work / variant.name)
    result = table.result(options)
    report = markdown(result)
    print(report)
    if options.save:
        save(options.save, result).with_suffix(".md").write_text(report + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder for the world and the runs")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--save", help="name under benchmarks/results")
    return parser.parse_args()


def settings(variant: Variant, options: argparse.Namespace) -> list[str]:
    """What all variants share, and what is its own, as arguments of `fit`."""
    epochs = options.epochs
    two = variant.recipe == "vit_two_stage"
    shared = [
        f"model.backbone={BACKBONE}", f"preprocessing.size={options.size}", "preprocessing.mean=pretrained",
        "preprocessing.std=pretrained", "run.channels_last=true", f"run.seed={options.seed}", "run.precision=fp32",
        "validation.references=5000", "validation.queries=0",
        f"stages.*.batch_size={options.batch_size}", "stages.*.micro_batch=0", "stages.*.train.backbone=last:3",
        # Far fewer photos than the recipes are made for: higher rates, the same for all.
        'optimiser={name="adamw", lr_head=1e-3, lr_backbone=2e-4, schedule="cosine", warmup_steps=50}',
    ]  # fmt: skip
    # The same number of epochs in all; of two stages the second has a quarter.
    lengths = [f"stages.0.epochs={epochs - epochs // 4}", f"stages.1.epochs={epochs // 4}"] if two else []
    lengths = lengths or [f"stages.0.epochs={epochs}"]
    own = ["stages.0.losses.0.levels=[4]", *variant.changes] if two else list(variant.changes)
    return [argument for change in [*shared, *lengths, *own] for argument in ("--set", change)]


def trainer(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "trainer", *map(str, arguments)], check=True)


class Frozen(torch.nn.Module):
    """A backbone's own activations at unit length: what is known before any training on places."""

    coordinate_head = None

    def __init__(self, size: int) -> None:
        super().__init__()
        backbone = create_backbone(BACKBONE, size=size)
        self.backbone, self.dim = backbone.module.to(memory_format=torch.channels_last), backbone.width
        self.preprocessing = Preprocessing(size=size, mean=backbone.mean, std=backbone.std)
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return unit_rows(self.backbone((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std))


class Table:
    """Collects rows over one prepared set."""

    def __init__(self, examples: Examples) -> None:
        self.references = examples.of_split("train")
        self.validation = examples.of_split("validation")
        self.test = examples.of_split("test")
        self.fabric = make_fabric("auto", "fp32")
        self.rows: list[dict[str, Any]] = []
        self.frozen: np.ndarray | None = None
        self.distances: dict[str, np.ndarray] = {}
        self.resamples = list(resampled(self.test.cells(SPLIT_LEVEL)))

    def add_bounds(self, seed: int) -> None:
        """A reference drawn at random, and the nearest one there is: what chance gives, and what an oracle would."""
        drawn = np.random.default_rng(seed).integers(len(self.references), size=len(self.test))
        distances = haversine_km(self.references.coordinates[drawn], self.test.coordinates)
        self._add("a reference at random", GeolocationErrors(1, distances))
        nearest = nearest_km(self.test.coordinates, self.references.coordinates)
        self._add("the nearest reference on the Earth (an oracle's top-1)", GeolocationErrors(1, nearest))

    def add_frozen(self, size: int) -> None:
        model = Frozen(size).eval()
        self.frozen = self._add("frozen ImageNet embedding", self._judge(model, model.dim))

    def add_trained(self, variant: Variant, run: Path) -> None:
        model, _ = load_model(run / "checkpoints" / "last.safetensors")
        model.use_channels_last()
        with (run / "metrics.csv").open(newline="") as file:
            steps = [row for row in csv.DictReader(file) if row["event"] == "step"]
        self.distances[variant.name] = self._add(variant.title, self._judge(model, model.dim))
        self.rows[-1] |= {"steps": len(steps), "photos_seen": sum(int(row["images"]) for row in steps)}

    def compare(self) -> list[dict[str, Any]]:
        """Ratios of median errors on the same test photos, resampled together."""
        titles = {variant.name: variant.title for variant in VARIANTS}
        found = []
        for one, other in PAIRS:
            if one in self.distances and other in self.distances:
                a, b = self.distances[one], self.distances[other]
                ratio = self._interval(lambda rows, a=a, b=b: float(np.median(a[rows]) / np.median(b[rows])))
                found.append({"one": titles[one], "other": titles[other], "median_ratio": ratio})
        return found

    def _judge(self, model: Any, dim: int) -> GeolocationErrors:
        test = self._embed(model, self.test)
        if not dim:
            return place_errors(test, self.test.coordinates)
        references = self._embed(model, self.references)[:, :dim]
        places = self.references.coordinates
        chosen = best_of(
            neighbor_errors(
                self._embed(model, self.validation)[:, :dim], self.validation.coordinates, references, places, KS
            )
        )
        return neighbor_errors(test[:, :dim], self.test.coordinates, references, places, [chosen.k])[0]

    def _embed(self, model: Any, examples: Examples) -> np.ndarray:
        with BatchLoader(examples, model.preprocessing, workers=available_cores()) as loader:
            outputs, valid, _ = embed_rows(self.fabric, model, loader, np.arange(len(examples)), 256)
        assert valid.all()
        return outputs

    def _add(self, title: str, errors: GeolocationErrors) -> np.ndarray:
        d = errors.distances_km
        row: dict[str, Any] = {"title": title, "k": errors.k, "mean_km": float(d.mean())}
        row["median_km"] = self._interval(lambda rows: float(np.median(d[rows])))
        for radius in RADII_KM:
            row[f"accuracy_{radius}_km"] = self._interval(lambda rows, r=radius: float(100 * (d[rows] < r).mean()))
        if self.frozen is not None:
            frozen = self.frozen
            row["median_ratio_to_frozen"] = self._interval(
                lambda rows: float(np.median(d[rows]) / np.median(frozen[rows]))
            )
        self.rows.append(row)
        print(f"{title}: {row}", file=sys.stderr)
        return d

    def _interval(self, statistic: Any) -> list[float]:
        """Value, and the 2.5th and 97.5th percentile over resampled cells; the same resamples for every row."""
        low, high = np.percentile([statistic(rows) for rows in self.resamples], (2.5, 97.5))
        return [statistic(np.arange(len(self.test))), float(low), float(high)]

    def result(self, options: argparse.Namespace) -> dict[str, Any]:
        where = machine()
        where["versions"] |= {name: version(name) for name in ("torch", "timm", "lightning-fabric")}
        where["device"] = str(self.fabric.device)
        return {
            "machine": where,
            "options": {key: value for key, value in vars(options).items() if key not in ("work", "save")},
            "photos": {
                "references": len(self.references),
                "validation": len(self.validation),
                "test": len(self.test),
                "test_drives": len(np.unique(self.test.sequences)),
                "test_cells": len(np.unique(self.test.cells(SPLIT_LEVEL))),
            },
            "split_level": SPLIT_LEVEL,
            "rows": self.rows,
            "pairs": self.compare(),
        }


def resampled(cells: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of as many cells as there are, drawn with replacement, again and again."""
    order = np.argsort(cells, kind="stable")
    members = np.split(order, np.flatnonzero(cells[order][1:] != cells[order][:-1]) + 1)
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])


def markdown(result: dict[str, Any]) -> str:
    photos, options, where = result["photos"], result["options"], result["machine"]
    lines = [
        f"Toy world of {options['count']:,} photos of {options['size']} pixels, seed {options['seed']}, split by S2 "
        f"cells of level {result['split_level']}: {photos['references']:,} references, {photos['validation']:,} photos "
        f"to choose k on, {photos['test']:,} of {photos['test_drives']:,} drives in {photos['test_cells']} cells to "
        f"test on. {BACKBONE}, last 3 blocks and head learning, batches of {options['batch_size']}, "
        f"{options['epochs']} epochs each. {where['cpu']}, "
        f"{where['cores']} {'core' if where['cores'] == 1 else 'cores'}, torch {where['versions']['torch']}.",
        "",
        "| | k | median km | mean km | "
        + " | ".join(f"< {radius} km, %" for radius in RADII_KM)
        + " | median / frozen | photos seen |",
        "|---|---|---|---|" + "---|" * (len(RADII_KM) + 2),
    ]
    for row in result["rows"]:
        accuracies = " | ".join(brackets(row[f"accuracy_{radius}_km"], "{:.1f}") for radius in RADII_KM)
        ratio = brackets(row["median_ratio_to_frozen"], "{:.2f}") if "median_ratio_to_frozen" in row else ""
        seen = f"{row['photos_seen']:,}" if "photos_seen" in row else ""
        lines.append(
            f"| {row['title']} | {row['k'] or ''} | {brackets(row['median_km'], '{:,.0f}')} | {row['mean_km']:,.0f} | "
            f"{accuracies} | {ratio} | {seen} |"
        )
    lines += [
        "",
        "In brackets 95 % bootstrap intervals over cells. Ratios of median errors on the same photos:",
        "",
    ]
    lines += ["| | against | ratio of medians |", "|---|---|---|"]
    lines += [f"| {p['one']} | {p['other']} | {brackets(p['median_ratio'], '{:.2f}')} |" for p in result["pairs"]]
    return "\n".join(lines)


def brackets(values: list[float], shape: str) -> str:
    value, low, high = (shape.format(v) for v in values)
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
