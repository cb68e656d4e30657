"""Photos to train on, and runs in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.trainer.tiny_runs import PhotoSet, TrainedRun, make_photo_set

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def photo_set(tmp_path: Path) -> PhotoSet:
    """26 photos to train on and 10 to validate on, in six towns; the test's own, to spoil as it likes."""
    return make_photo_set(tmp_path / "set")


@pytest.fixture
def train(tmp_path: Path, photo_set: PhotoSet, capfd: pytest.CaptureFixture[str]) -> Callable[..., TrainedRun]:
    """Trains a recipe in this process; what was raised is in the answer. `catch` says what may be."""

    def run(recipe: Any, out: str = "run", *, data: Path | None = None, catch: Any = (), **options: Any) -> TrainedRun:
        from trainer.launch import FitOptions, fit

        folder = tmp_path / out
        trained = TrainedRun(folder)
        capfd.readouterr()
        options = {"device": "cpu", "workers": 2} | options
        try:
            trained.position = fit(recipe, FitOptions(data=data or photo_set.prepared, out=folder, **options))
        except catch as error:
            trained.error = error
        trained.said = capfd.readouterr().err
        return trained

    return run
