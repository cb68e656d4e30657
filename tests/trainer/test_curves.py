"""The picture of the losses: drawn for one stage and for several, with gaps, and without validation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from trainer.curves import _read, draw_curves
from trainer.metrics import EPOCH, STEP, MetricsFile

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # matplotlib comes with the training libraries


def write_run(path: Path, stages: list[tuple[str, int, int]], *, validated: bool = True, gaps: bool = False) -> None:
    """Of stages (name, epochs, steps an epoch), with losses that fall."""
    generator = np.random.default_rng(1)
    file = MetricsFile(path, []).open(steps=0, epochs=0)
    number = 0
    for stage, epochs, steps in stages:
        for epoch in range(1, epochs + 1):
            losses = []
            for i in range(steps):
                number += 1
                losses.append(3 * math.exp(-(epoch + i / steps) / 3) + generator.uniform(0.8, 1.2))
                bad = gaps and i % 7 == 0
                file.write({"event": STEP, "stage": stage, "epoch": epoch, "step": number,
                            "loss": math.nan if bad else losses[-1]})  # fmt: skip
            row: dict[str, Any] = {"event": EPOCH, "stage": stage, "epoch": epoch, "step": number,
                                   "loss": math.nan if gaps and epoch == 2 else sum(losses) / steps}  # fmt: skip
            if validated:
                row["validation_loss"] = math.nan if gaps and epoch == 1 else row["loss"] + 0.1 * epoch
                row["median_km"] = math.nan if gaps and epoch == 3 else 3000 / epoch
            file.write(row)
    file.close()


FOUR = [("warm-up", 3, 40), ("top-12", 6, 30), ("top-7", 2, 20), ("top-1", 1, 10)]


@pytest.mark.parametrize("stages", [[("contrast", 20, 60)], FOUR, [("short", 1, 1)]], ids=["one", "four", "short"])
@pytest.mark.parametrize(("validated", "gaps"), [(True, False), (True, True), (False, False), (False, True)])
def test_a_picture_is_drawn(tmp_path: Path, stages: list[tuple[str, int, int]], validated: bool, gaps: bool) -> None:
    write_run(tmp_path / "m.csv", stages, validated=validated, gaps=gaps)
    draw_curves(tmp_path / "m.csv", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] >= 600 * min(2, len(stages))
    validation = np.abs(pixels - (0xD1, 0x49, 0x5B)).sum(axis=2) < 12
    training = np.abs(pixels - (0x2F, 0x6F, 0x9F)).sum(axis=2) < 12
    assert training.any()
    assert validation.any() == (validated and not (gaps and len(stages) == 1 and stages[0][1] == 1))
    assert [found.name for found in sorted(tmp_path.iterdir())] == ["loss.png", "m.csv"]


def test_nothing_is_drawn_before_the_first_epoch_ends(tmp_path: Path) -> None:
    draw_curves(tmp_path / "m.csv", tmp_path / "loss.png")
    file = MetricsFile(tmp_path / "m.csv", []).open(steps=0, epochs=0)
    file.write({"event": STEP, "stage": "one", "epoch": 1, "step": 1, "loss": 1.0})
    file.close()
    draw_curves(tmp_path / "m.csv", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_steps_are_spread_over_their_epoch(tmp_path: Path) -> None:
    write_run(tmp_path / "m.csv", [("a", 2, 4), ("b", 1, 2)])
    first, second = _read(tmp_path / "m.csv")
    assert [x for x, _ in first.steps] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert [x for x, _ in second.steps] == [0.5, 1.0]
    assert [len(first.epochs), len(second.epochs)] == [2, 1]
