"""The folder that a run leaves: what was asked, on what, and what came of it.

recipe.toml         the recipe with every key
environment.json    machine, devices, versions
data/               the prepared set, where the run prepared it itself
metrics.csv         a row for each step and each epoch
tensorboard/        the same as events
loss.png            training and validation loss, and the validation error
bad_photos.csv      photos that could not be read
checkpoints/        last.safetensors (to go on from) and best.safetensors (weights alone)
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import torch

from geoinfer.errors import OutputError
from geoinfer.integrity import atomic_file, write_json
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.recipe import Recipe

_PACKAGES: Final = (
    "geoinfer-toolkit", "torch", "timm", "lightning-fabric", "numpy", "pyarrow", "pillow", "simplejpeg", "faiss-cpu",
    "faiss-gpu",
)  # fmt: skip
_BEFORE_RECIPE: Final = frozenset(("checkpoints", "data", ".lock", ".recipe.toml.geoinfer-tmp"))


class RunFolder:
    """Where everything of a run is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.environment = path / "environment.json"
        self.data = path / "data"
        self.metrics = path / "metrics.csv"
        self.tensorboard = path / "tensorboard"
        self.curves = path / "loss.png"
        self.bad_photos = path / "bad_photos.csv"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.safetensors"
        self.best = self.checkpoints / "best.safetensors"
        self.lock = path / ".lock"

    def best_of(self, stage: str) -> Path:
        """Where the best weights of a stage stay when the next one begins."""
        return self.checkpoints / f"best-{stage}.safetensors"

    def create(self) -> None:
        """Makes the folders.

        Raises:
            OutputError: they cannot be made, or the folder holds files and no run.
        """
        try:
            names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
            # Before its first step a run may have been stopped at any point; what is beside it then is not its own.
            begun = self.checkpoints.is_dir() and (names <= _BEFORE_RECIPE or self.recipe.is_file())
            if names and not begun:
                raise OutputError(
                    f"{self.path}: it holds files, and none of them is a run's", hint="choose another --out"
                )
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self.path}: cannot be made: {(error.strerror or str(error)).lower()}") from error

    def write_recipe(self, recipe: Recipe) -> None:
        """Writes the resolved recipe."""
        with atomic_file(self.recipe) as file:
            file.write(recipe.to_toml().encode())

    def write_environment(self, device: str, ranks: int, data: dict[str, Any]) -> None:
        """Writes what the run is computed on and with, and what it learns from."""
        versions = {}
        for name in _PACKAGES:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue
        write_json(
            self.environment,
            {
                "device": device,
                "data": data,
                "ranks": ranks,
                "cores": available_cores(),
                "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
                "system": f"{platform.system()} {platform.machine()}",
                "python": platform.python_version(),
                "cuda": torch.version.cuda if device.startswith("NVIDIA") else None,
                "versions": versions,
            },
        )
