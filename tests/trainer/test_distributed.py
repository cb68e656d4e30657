"""Two processes on the CPU by gloo against one that has the whole batch: steps, and whole runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CHECKOUT
from tests.trainer.tiny_runs import TrainedRun, distributed_recipes, make_photo_set

torch = pytest.importorskip("torch")

from lightning_fabric import Fabric  # noqa: E402

from tests.trainer.step_cases import CASES, make_batch, take_step  # noqa: E402
from trainer.launch import FitOptions, fit  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they found."""
    folder = tmp_path_factory.mktemp("two")
    photos = make_photo_set(folder / "set", train=27)
    photos.spoil(photos.ids[4])
    photos.spoil(photos.of_split("validation")[3])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.trainer.two_processes", str(folder)],
        cwd=CHECKOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_two_processes_is_that_of_one(name: str, two: Path) -> None:
    case = CASES[name]
    # One process has the photos that can be read, and nothing else.
    whole = make_batch(case.count)
    keep = torch.ones(case.count, dtype=torch.bool)
    keep[list(case.bad)] = False
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    result, gradients = take_step(fabric, case, whole.rows(keep))
    assert result.loss > 0
    assert any(gradient.abs().max() > 1e-6 for gradient in gradients.values())
    for rank in range(2):
        found = torch.load(two / f"{name}.{rank}.pt", weights_only=True)
        assert found["loss"] == pytest.approx(result.loss, rel=1e-12)
        assert found["parts"] == pytest.approx(result.parts, rel=1e-12)
        torch.testing.assert_close(found["outputs"], result.answers.outputs, rtol=1e-10, atol=1e-12)
        assert found["gradients"].keys() == gradients.keys()
        for weight, gradient in gradients.items():
            torch.testing.assert_close(found["gradients"][weight], gradient, rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def one(two: Path) -> dict[str, TrainedRun]:
    runs = {}
    # With one thread, as torchrun gives each of its processes: with more, sums differ in their last digits, and of two
    # neighbours as alike as each other the other one comes first, which moves a mean of ten errors by 0.4 %.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, recipe in distributed_recipes().items():
        folder = two / f"{name}, one process"
        fit(recipe, FitOptions(data=two / "set" / "prepared", out=folder, device="cpu", workers=1, quiet=True))
        runs[name] = TrainedRun(folder)
    torch.set_num_threads(threads)
    return runs


@pytest.mark.parametrize("name", distributed_recipes())
@pytest.mark.parametrize("how", ["", ", interrupted"], ids=["unbroken", "interrupted"])
def test_a_run_of_two_processes_is_that_of_one(name: str, how: str, two: Path, one: Any) -> None:
    run, expected = TrainedRun(two / f"{name}{how}"), one[name]
    told = [json.loads((two / f"told.{rank}.json").read_text()) for rank in range(2)]
    if how:
        for rank in told:
            # By a signal that the second rank alone was sent, both stop after the same step.
            assert rank[f"{name}, interrupted"].startswith(
                f"InterruptedRunError: interrupted after step {4 if name == 'supcon' else 3};"
            )
            assert rank[f"{name}, on"] == ""
    rows, others = run.without_timing(), expected.without_timing()
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for column, value in other.items():
            if column in ("event", "stage", "epoch", "step", "images", "bad_images", "best_k") or not value:
                assert row[column] == value, column
            else:
                # float32: sums over 2 x 4 photos and over 8 differ in the last digits, and Adam magnifies them.
                assert float(row[column]) == pytest.approx(float(value), rel=2e-3), column
    assert run.bad() == expected.bad()
    assert len(run.bad()) == 2


def test_two_processes_resume_to_the_bit(two: Path) -> None:
    for name in distributed_recipes():
        run, other = TrainedRun(two / name), TrainedRun(two / f"{name}, interrupted")
        assert run.without_timing() == other.without_timing()
        ours, theirs = run.tensors(), other.tensors()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_only_one_process_writes(two: Path) -> None:
    run = TrainedRun(two / "supcon")
    assert [row["step"] for row in run.rows("step")] == ["1", "2", "3", "4", "5", "6"]
    assert len(list((run.folder / "tensorboard").iterdir())) == 1
    assert json.loads((run.folder / "environment.json").read_text())["ranks"] == 2
    assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == ["best.safetensors", "last.safetensors"]


def test_clocks_of_processes_may_differ(two: Path) -> None:
    assert [json.loads((two / f"told.{rank}.json").read_text())["clocks"] for rank in range(2)] == ["", ""]
    assert TrainedRun(two / "clocks").without_timing() == TrainedRun(two / "supcon").without_timing()


def test_batch_norms_of_shares_are_refused(two: Path) -> None:
    for rank in range(2):
        told = json.loads((two / f"told.{rank}.json").read_text())["batch norm"]
        assert told.startswith("UsageError: model.batch_norm is train")
