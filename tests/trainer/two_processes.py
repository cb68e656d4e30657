"""What test_distributed starts twice by torchrun: `python -m tests.trainer.two_processes FOLDER`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from geoinfer.errors import GeoInferError
from tests.trainer.step_cases import CASES, take_step
from tests.trainer.tiny_runs import distributed_recipes, tiny_recipe
from trainer.launch import FitOptions, fit
from trainer.recorder import Recorder


def main(folder: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
    fabric.launch()
    for name, case in CASES.items():
        result, gradients = take_step(fabric, case)
        torch.save(
            {"loss": result.loss, "parts": result.parts, "outputs": result.answers.outputs, "gradients": gradients},
            folder / f"{name}.{fabric.global_rank}.pt",
        )
    told = {}
    for name, recipe in distributed_recipes().items():
        _train(recipe, folder, name)
        # Once more, stopped in the middle of the second epoch by a signal to the second rank alone.
        plain, asked = Recorder.epoch_started, []

        def epoch_started(self: Recorder, *args: Any, asked: Any = asked, plain: Any = plain, **more: Any) -> None:
            plain(self, *args, **more)
            if args[1] == 2 and fabric.global_rank == 1 and not asked:
                asked.append(os.kill(os.getpid(), signal.SIGTERM))

        Recorder.epoch_started = epoch_started
        told[f"{name}, interrupted"] = _train(recipe, folder, f"{name}, interrupted")
        Recorder.epoch_started = plain
        told[f"{name}, on"] = _train(recipe, folder, f"{name}, interrupted")
    # A clock that runs on one rank alone must not hold up the others.
    recipe = tiny_every_step(fabric.global_rank)
    told["clocks"] = _train(recipe, folder, "clocks")
    told["batch norm"] = _train(tiny_recipe("model.batch_norm=train"), folder, "batch norm")
    (folder / f"told.{fabric.global_rank}.json").write_text(json.dumps(told))


def tiny_every_step(rank: int) -> Any:
    return distributed_recipes("run.checkpoint_minutes=" + ("1e-9" if rank else "1000.0"))["supcon"]


def _train(recipe: Any, folder: Path, name: str) -> str:
    options = FitOptions(data=folder / "set" / "prepared", out=folder / name, device="cpu", workers=1, quiet=True)
    try:
        fit(recipe, options)
    except GeoInferError as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
