"""`metrics.csv` reads back exactly, and is cut to where a checkpoint stands."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import InterruptedRunError
from trainer.metrics import EPOCH, STEP, MetricsFile, read_metrics, unwritable

if TYPE_CHECKING:
    from pathlib import Path


def step(number: int, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"event": STEP, "stage": "one", "epoch": 1, "step": number, "loss": loss, "supcon_l5": loss / 2} | more


def epoch(number: int, at: int, **more: Any) -> dict[str, Any]:
    return {"event": EPOCH, "stage": "one", "epoch": number, "step": at, "loss": 0.5, "median_km": 100.0} | more


def written(path: Path, *rows: dict[str, Any], steps: int = 0, epochs: int = 0) -> list[tuple[str, int]]:
    """What the file holds, after `rows` were added to what so many steps and epochs had left: kinds and numbers."""
    file = MetricsFile(path, ["supcon_l5"]).open(steps=steps, epochs=epochs)
    for row in rows:
        file.write(row)
    file.close()
    return kinds(path)


def kinds(path: Path) -> list[tuple[str, int]]:
    return [(row["event"], int(row["step" if row["event"] == STEP else "epoch"])) for row in read_metrics(path)]


def two_epochs() -> list[dict[str, Any]]:
    return [step(1), step(2), epoch(1, 2), step(3), step(4), epoch(2, 4), step(5), step(6)]


def test_columns(tmp_path: Path) -> None:
    written(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text().splitlines() == [
        "event,stage,epoch,step,loss,supcon_l5,lr_head,lr_backbone,gradient_norm,images,bad_images,images_per_second,"
        "waiting_share,memory_mib,validation_loss,best_k,median_km,mean_km,accuracy_25_km,accuracy_200_km,"
        "accuracy_750_km,accuracy_2500_km,geoscore"
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=8))
def test_numbers_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, losses: list[float]) -> None:
    path = tmp_path_factory.mktemp("metrics") / "m.csv"
    written(path, *(step(i + 1, loss) for i, loss in enumerate(losses)))
    rows = list(read_metrics(path))
    assert [float(row["loss"]) for row in rows] == losses
    assert [math.copysign(1, float(row["loss"])) for row in rows] == [math.copysign(1, loss) for loss in losses]
    assert [float(row["supcon_l5"]) for row in rows] == [loss / 2 for loss in losses]


def test_what_is_left_out_or_no_number_is_empty(tmp_path: Path) -> None:
    written(tmp_path / "m.csv", step(1, math.nan))
    (row,) = read_metrics(tmp_path / "m.csv")
    assert (row["loss"], row["median_km"], row["step"]) == ("", "", "1")


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.csv", ["supcon_l5"]).open(steps=0, epochs=0)
    file.write(step(1))
    assert kinds(tmp_path / "m.csv") == [(STEP, 1)]
    file.close()


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path / "m.csv")) == []


@pytest.mark.parametrize(
    ("steps", "epochs", "kept"),
    [
        (6, 2, [(STEP, 1), (STEP, 2), (EPOCH, 1), (STEP, 3), (STEP, 4), (EPOCH, 2), (STEP, 5), (STEP, 6)]),
        (5, 2, [(STEP, 1), (STEP, 2), (EPOCH, 1), (STEP, 3), (STEP, 4), (EPOCH, 2), (STEP, 5)]),
        (4, 2, [(STEP, 1), (STEP, 2), (EPOCH, 1), (STEP, 3), (STEP, 4), (EPOCH, 2)]),
        # The epoch's row was written, and the checkpoint of its end was not: it is validated and written again.
        (4, 1, [(STEP, 1), (STEP, 2), (EPOCH, 1), (STEP, 3), (STEP, 4)]),
        (1, 0, [(STEP, 1)]),
        (0, 0, []),
    ],
)
def test_what_a_checkpoint_does_not_know_is_dropped(
    tmp_path: Path, steps: int, epochs: int, kept: list[tuple[str, int]]
) -> None:
    path = tmp_path / "m.csv"
    written(path, *two_epochs())
    before = path.read_text().splitlines()
    assert written(path, steps=steps, epochs=epochs) == kept
    after = path.read_text().splitlines()
    assert after == [line for line in before if line in after]  # to the letter
    assert written(path, step(7), steps=steps, epochs=epochs) == [*kept, (STEP, 7)]


@pytest.mark.parametrize("tail", ["step,one,1,1", "step,one,1,12,0.7,,,", "ep", "step,one,1,,,\n", "\x00" * 40])
def test_a_row_cut_short_is_dropped(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "m.csv"
    written(path, step(1), step(2))
    with path.open("a") as file:
        file.write(tail)
    assert written(path, step(3), steps=20, epochs=3) == [(STEP, 1), (STEP, 2), (STEP, 3)]


def test_bytes_that_are_no_text_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    written(path, step(1))
    with path.open("ab") as file:
        file.write(b"step,one,1,\xff\xfe")
    assert written(path, step(2), steps=20, epochs=3) == [(STEP, 1), (STEP, 2)]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError, match=r"m.csv: cannot be written: no such file or directory"):
        MetricsFile(tmp_path / "no" / "m.csv", []).open(steps=0, epochs=0)
    error = unwritable(tmp_path / "m.csv", OSError(28, "No space left on device"))
    assert str(error) == f"{tmp_path / 'm.csv'}: cannot be written: no space left on device"
    assert error.exit_code == 130
    assert "goes on from the last checkpoint" in error.hint


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.csv", ["supcon_l5"]).open(steps=0, epochs=0)
    file.close()
    file._file = open("/dev/full", "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    with pytest.raises(InterruptedRunError, match="no space left on device"):
        file.write(step(1))
    with pytest.raises(OSError):
        file.close()
