"""The paper's recipes on real photos, small: from labels to embeddings by the commands that a user gives."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pyarrow.parquet as pq  # noqa: E402

from trainer.__main__ import main  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SMALL = ("model.weights=none", "preprocessing.size=64", "stages.*.batch_size=64", "optimiser.lr_head=1e-3",
         "optimiser.lr_backbone=1e-3", "stages.*.train.backbone=all", "run.channels_last=true")  # fmt: skip
RECIPES = {
    "vit_two_stage": ("model.backbone=vit_tiny_patch16_224", "stages.0.losses.0.levels=[4]", "stages.*.epochs=3"),
    "resnet50": ("model.backbone=resnet10t", "model.batch_norm=train", "stages.0.losses.0.levels=[3]",
                 "stages.*.epochs=4"),
    "resnet50_regression": ("model.backbone=resnet10t", "model.batch_norm=train", "stages.*.epochs=4"),
}  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (None, 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_from_real_photos(
    recipe: str, shared_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, folder = tmp_path / "prepared", tmp_path / "run"
    run(monkeypatch, "prepare", shared_photos, "--out", prepared, "--split", "geocell", "--split-level", 3)
    assert (prepared / "split.png").stat().st_size > 10_000
    changes = [part for change in (*SMALL, *RECIPES[recipe]) for part in ("--set", change)]
    run(monkeypatch, "fit", recipe, "--data", prepared, "--out", folder, "--device", "cpu", "-q", *changes)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [row for row in rows if row["event"] == "epoch"]
    first = [float(row["loss"]) for row in epochs if row["stage"] == epochs[0]["stage"]]
    assert first[-1] < first[0]
    assert all(0 < float(row["median_km"]) < 20_016 for row in epochs)
    if recipe == "resnet50_regression":
        assert {row["best_k"] for row in epochs} == {"0"}
        return
    assert {int(row["best_k"]) for row in epochs} <= {1, 3, 5, 10, 20, 50}
    out = tmp_path / "embeddings"
    best = folder / "checkpoints" / "best.safetensors"
    run(monkeypatch, "embed", best, "--data", prepared, "--out", out, "--device", "cpu", "-q")
    table = pq.read_table(out / "embeddings.parquet")
    assert table.num_rows == 345
    embeddings = np.array(table["embedding"].to_pylist())
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
