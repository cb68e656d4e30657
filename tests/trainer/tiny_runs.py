"""A prepared set of a few dozen little photos, recipes that learn from it in a second, and what runs leave."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

TIMING = ("images_per_second", "waiting_share", "memory_mib")
"""Columns of `metrics.csv` that no two runs agree in."""


def write_photo(path: Path, number: int, latitude: float, longitude: float) -> None:
    """A photo whose colours follow from where it was taken, and from its number."""
    generator = np.random.default_rng(number)
    picture = generator.integers(0, 60, (40, 48, 3))
    picture[..., 0] += int(90 + latitude)
    picture[..., 1] += int((180 + longitude) / 2)
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    path.write_bytes(file.getvalue())


@dataclass
class PhotoSet:
    """Photos in a folder, and the prepared set of them."""

    photos: Path
    prepared: Path
    ids: list[str]
    coordinates: np.ndarray
    splits: np.ndarray

    def of_split(self, name: str) -> list[str]:
        code = ("train", "validation", "test").index(name)
        return [i for i, split in zip(self.ids, self.splits, strict=True) if split == code]

    def spoil(self, name: str) -> None:
        """Keeps the head of a photo's file, so that it looks like one and does not decode."""
        path = self.photos / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:120])


def make_photo_set(folder: Path, *, train: int = 26, validation: int = 10, towns: int = 6) -> PhotoSet:
    """`towns` places far from one another, photos within a few kilometres of them in turn; every town in both parts."""
    from trainer.data.examples import make_examples

    photos, prepared = folder / "photos", folder / "prepared"
    photos.mkdir(parents=True)
    generator = np.random.default_rng(5)
    count = train + validation
    centres = np.stack([np.linspace(-50, 60, towns), np.linspace(-150, 160, towns)], axis=1)
    coordinates = centres[np.arange(count) % towns] + generator.uniform(-0.2, 0.2, (count, 2))
    ids = [f"p{i:03d}" for i in range(count)]
    for i, name in enumerate(ids):
        write_photo(photos / f"{name}.jpg", i, *coordinates[i])
    splits = np.where(np.arange(count) < train, 0, 1).astype(np.int8)
    examples = make_examples(
        ids, [f"{name}.jpg".encode() for name in ids], coordinates, root=str(photos).encode(), splits=splits
    )
    examples.write(prepared, {"source": str(photos)})
    return PhotoSet(photos, prepared, ids, coordinates, splits)


def tiny_recipe(*changes: str, stages: list[dict[str, Any]] | None = None) -> Any:
    """Two epochs of three batches of eight with a network of 0.1 million weights, and `--set` changes to it."""
    from trainer.recipe import _apply, parse_recipe

    values: dict[str, Any] = {
        "name": "tiny",
        "summary": "For tests.",
        "model": {"backbone": "test_efficientnet", "weights": "none", "dim": 16, "hidden": 32, "dropout": 0.3},
        "preprocessing": {"size": 32},
        "optimiser": {"lr_head": 1e-3, "lr_backbone": 1e-3},
        "validation": {"k": [1, 3]},
        "stages": stages or [stage()],
    }
    for change in changes:
        _apply(values, change)
    return parse_recipe(values, "tiny")


def stage(name: str = "contrast", *, kind: str = "supcon", **more: Any) -> dict[str, Any]:
    """One of `stages`."""
    losses: dict[str, dict[str, Any]] = {
        "supcon": {"kind": "supcon", "levels": [5]},
        "hierarchical": {"kind": "hierarchical", "levels": [3, 5, 8], "level_weights": [0.2, 0.5, 1.0]},
        "triplet": {"kind": "triplet"},
        "soft_supcon": {"kind": "soft_supcon"},
        "haversine": {"kind": "haversine"},
    }
    return {"name": name, "epochs": 2, "batch_size": 8, "losses": [losses[kind]], **more}


@dataclass
class TrainedRun:
    """What a run left."""

    folder: Path
    position: Any = None
    error: BaseException | None = None
    said: str = ""

    def rows(self, event: str | None = None) -> list[dict[str, str]]:
        with (self.folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if event in (None, row["event"])]

    def without_timing(self) -> list[dict[str, str]]:
        return [{key: value for key, value in row.items() if key not in TIMING} for row in self.rows()]

    def tensors(self, name: str = "last") -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.folder / "checkpoints" / f"{name}.safetensors")

    def bad(self) -> list[dict[str, str]]:
        with (self.folder / "bad_photos.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def distributed_recipes(*changes: str) -> dict[str, Any]:
    """What two processes train: batches that do not divide (27 photos of which one is bad), no dropout."""
    cells = {"kind": "cells", "level": 5, "images_per_cell": 2}
    common = ("model.dropout=0.0", *changes)
    return {
        "supcon": tiny_recipe(*common, stages=[stage()]),
        "two stages": tiny_recipe(
            *common,
            "optimiser.clip_norm=0.5",
            stages=[
                stage("first", kind="hierarchical", micro_batch=4, memory=11, sampler=cells),
                stage("second", kind="triplet", batch_size=40, train={"backbone": "none"}),
            ],
        ),
    }
