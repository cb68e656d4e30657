"""The loss curves of a run, as the paper's Figure 2 draws them, with the error on validation photos below."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.integrity import atomic_file
from trainer.metrics import EPOCH, read_metrics

if TYPE_CHECKING:
    from pathlib import Path

_TRAINING: Final = "#2f6f9f"
_VALIDATION: Final = "#d1495b"
_ERROR: Final = "#3b3b3b"
_MOST_POINTS: Final = 2_000


@dataclass(slots=True)
class _Stage:
    name: str
    steps: list[tuple[float, float]] = field(default_factory=list)
    epochs: list[dict[str, str]] = field(default_factory=list)


def draw_curves(metrics: Path, path: Path) -> None:
    """Draws `metrics.csv` as a PNG: a column for each stage, over epochs. Nothing is drawn before the first epoch ends.

    Args:
        metrics: the file.
        path: of the picture.
    """
    stages = _read(metrics)
    if not stages:
        return
    # The object interface alone: pyplot keeps figures in a global list, and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.5, 4.2 * len(stages)), 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col", height_ratios=(3, 2))
    for column, stage in enumerate(stages):
        _draw_losses(axes[0, column], stage)
        _draw_errors(axes[1, column], stage)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("median error (km)")
    axes[0, 0].legend(frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_losses(axes: Any, stage: _Stage) -> None:
    if stage.steps:
        points = np.array(stage.steps)[:: max(1, len(stage.steps) // _MOST_POINTS)]
        axes.plot(points[:, 0], points[:, 1], color=_TRAINING, alpha=0.25, linewidth=0.8)
    ends = range(1, len(stage.epochs) + 1)
    axes.plot(ends, [float(row["loss"] or "nan") for row in stage.epochs], "o-", color=_TRAINING, label="training")
    losses = [float(row["validation_loss"] or "nan") for row in stage.epochs]
    if not np.isnan(losses).all():
        axes.plot(ends, losses, "s--", color=_VALIDATION, label="validation")
    axes.set_title(stage.name)
    _tidy(axes)


def _draw_errors(axes: Any, stage: _Stage) -> None:
    errors = [float(row["median_km"] or "nan") for row in stage.epochs]
    if not np.isnan(errors).all():
        axes.plot(range(1, len(errors) + 1), errors, "o-", color=_ERROR)
        axes.set_ylim(0, 1.08 * max(1.0, np.nanmax(errors)))
    axes.set_xlabel("epoch")
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _read(metrics: Path) -> list[_Stage]:
    """Rows by stage; the steps of an epoch are spread evenly over it, since only its end says how many there are."""
    stages: list[_Stage] = []
    waiting: list[float] = []
    for row in read_metrics(metrics):
        if not stages or stages[-1].name != row["stage"]:
            stages.append(_Stage(row["stage"]))
            waiting = []
        stage = stages[-1]
        if row["event"] != EPOCH:
            waiting.append(float(row["loss"] or "nan"))
            continue
        begin = len(stage.epochs)
        stage.steps += [(begin + (i + 1) / len(waiting), loss) for i, loss in enumerate(waiting)]
        stage.epochs.append(row)
        waiting = []
    return [stage for stage in stages if stage.epochs]
