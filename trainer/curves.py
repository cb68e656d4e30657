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

    def column(self, name: str) -> list[float]:
        """A figure of each epoch, NaN where there is none."""
        return [float(row[name] or "nan") for row in self.epochs]


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

    worst_km = max(
        (error for stage in stages for error in stage.column("median_km") if not np.isnan(error)), default=None
    )
    rows = 1 if worst_km is None else 2
    figure = Figure(figsize=(max(6.5, 4.2 * len(stages)), 1.0 + 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(stages), squeeze=False, sharex="col", height_ratios=(3, 2)[:rows])
    for column, stage in enumerate(stages):
        _draw_losses(axes[0, column], stage)
        if worst_km is not None:
            _draw_errors(axes[1, column], stage, worst_km)
            axes[1, 0].set_ylabel("median error (km)")
        axes[-1, column].set_xlabel("epoch")
    axes[0, 0].set_ylabel("loss")
    axes[0, 0].legend(frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_losses(axes: Any, stage: _Stage) -> None:
    if stage.steps:
        points = np.array(stage.steps)[:: max(1, len(stage.steps) // _MOST_POINTS)]
        axes.plot(points[:, 0], points[:, 1], color=_TRAINING, alpha=0.25, linewidth=0.8)
    ends = range(1, len(stage.epochs) + 1)
    axes.plot(ends, stage.column("loss"), "o-", color=_TRAINING, label="training")
    losses = stage.column("validation_loss")
    if not np.isnan(losses).all():
        axes.plot(ends, losses, "s--", color=_VALIDATION, label="validation")
    axes.set_title(stage.name)
    _tidy(axes, stage)


def _draw_errors(axes: Any, stage: _Stage, worst_km: float) -> None:
    axes.plot(range(1, len(stage.epochs) + 1), stage.column("median_km"), "o-", color=_ERROR)
    axes.set_ylim(0, 1.08 * max(1.0, worst_km))  # the same for all stages, which go on from one another
    _tidy(axes, stage)


def _tidy(axes: Any, stage: _Stage) -> None:
    axes.set_xlim(0, 1.04 * len(stage.epochs))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
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
