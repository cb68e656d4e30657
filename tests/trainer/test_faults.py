"""What goes wrong in the middle of a run: it goes on rightly, or stops with a sentence and a whole checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.trainer.tiny_runs import stage, tiny_recipe

torch = pytest.importorskip("torch")

from geoinfer.errors import DeviceError, GeoInferError, InterruptedRunError  # noqa: E402
from trainer.checkpoint import load_model, load_training_state  # noqa: E402
from trainer.devices import is_out_of_memory  # noqa: E402
from trainer.errors import TrainingError  # noqa: E402
from trainer.fit import Run  # noqa: E402
from trainer.recorder import Recorder  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.trainer.tiny_runs import PhotoSet

pytestmark = pytest.mark.slow


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Run], None]], None]:
    """Does something to the run before a step's forward pass, once."""
    wanted: dict[int, Callable[[Run], None]] = {}
    plain = Run._step

    def step(self: Run, *args: Any) -> Any:
        wanted.pop(self._position.step + 1, lambda _: None)(self)
        return plain(self, *args)

    monkeypatch.setattr(Run, "_step", step)
    return wanted.__setitem__


def one_batch(*changes: str, **more: Any) -> Any:
    """A recipe of one batch an epoch, of all 26 photos."""
    return tiny_recipe("model.dropout=0.0", *changes, stages=[stage(batch_size=26, **more)])


@pytest.mark.parametrize("more", [{}, {"micro_batch": 5}, {"memory": 100}], ids=["whole", "parts", "memory"])
@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_bad_photos_cost_themselves_and_nothing_else(
    train: Any, photo_set: PhotoSet, tmp_path: Path, more: dict[str, Any], batch_norm: str
) -> None:
    if batch_norm == "train" and "micro_batch" in more:
        pytest.skip("refused")
    from trainer.data.examples import open_examples

    ids = photo_set.of_split("train")
    photo_set.spoil(ids[3])
    (photo_set.photos / f"{ids[10]}.jpg").unlink()
    photo_set.spoil(photo_set.of_split("validation")[2])
    run = train(one_batch(f"model.batch_norm={batch_norm}", **more))

    # The same without them.
    examples = open_examples(photo_set.prepared)
    spoiled = {ids[3], ids[10], photo_set.of_split("validation")[2]}
    examples.take([i for i, name in enumerate(photo_set.ids) if name not in spoiled]).write(tmp_path / "without")
    without = train(one_batch(f"model.batch_norm={batch_norm}", **more), "other", data=tmp_path / "without")

    for ours, theirs in zip(run.rows("step"), without.rows("step"), strict=True):
        # Photos come in another order, and Adam magnifies the last digits.
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=2e-4)
        assert (ours["images"], ours["bad_images"]) == ("24", "2")
        assert (theirs["images"], theirs["bad_images"]) == ("24", "0")
    for ours, theirs in zip(run.rows("epoch"), without.rows("epoch"), strict=True):
        assert float(ours["validation_loss"]) == pytest.approx(float(theirs["validation_loss"]), rel=1e-3)
        assert float(ours["median_km"]) == pytest.approx(float(theirs["median_km"]), rel=1e-3)
    assert sorted((row["id"], row["code"]) for row in run.bad()) == sorted(
        [(ids[3], "truncated"), (ids[10], "missing"), (photo_set.of_split("validation")[2], "truncated")]
    )
    assert "3 photos could not be read" in run.said
    assert "Traceback" not in run.said


def test_bad_photos_are_listed_once_over_an_interruption(train: Any, photo_set: PhotoSet, before_step: Any) -> None:
    photo_set.spoil(photo_set.ids[3])

    def stop(run: Run) -> None:
        photo_set.spoil(photo_set.ids[4])
        raise InterruptedRunError("stop")

    before_step(3, stop)
    assert train(one_batch("stages.0.epochs=4"), catch=InterruptedRunError).error is not None
    run = train(one_batch("stages.0.epochs=4"))
    assert run.position.finished
    assert sorted(row["id"] for row in run.bad()) == [photo_set.ids[3], photo_set.ids[4]]


def test_photos_that_went_away_stop_the_run(train: Any, photo_set: PhotoSet, before_step: Any) -> None:
    away = photo_set.photos.with_name("away")
    plain = Recorder.epoch_started
    started = []

    def epoch_started(self: Recorder, *args: Any, **more: Any) -> None:
        plain(self, *args, **more)
        started.append(args)
        if len(started) == 2:
            photo_set.photos.rename(away)

    Recorder.epoch_started = epoch_started  # type: ignore[method-assign]
    try:
        run = train(tiny_recipe("stages.0.epochs=3"), catch=TrainingError)
    finally:
        Recorder.epoch_started = plain  # type: ignore[method-assign]
    assert str(run.error).startswith("no photo of step ")
    assert "no such file" in str(run.error).lower() or "missing" in str(run.error).lower()
    away.rename(photo_set.photos)
    again = train(tiny_recipe("stages.0.epochs=3"))
    assert "going on after step 3" in again.said
    assert again.position.finished


def test_without_a_readable_validation_photo_it_goes_on(train: Any, photo_set: PhotoSet) -> None:
    for name in photo_set.of_split("validation"):
        photo_set.spoil(name)
    run = train(tiny_recipe())
    assert run.position.finished
    assert [row["median_km"] for row in run.rows("epoch")] == ["", ""]
    assert (run.folder / "checkpoints" / "best.safetensors").exists()


def assert_last_is_whole(run: Any, step: int) -> None:
    last = run.folder / "checkpoints" / "last.safetensors"
    assert load_training_state(last).progress["step"] == step
    model, _ = load_model(last)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert not list(run.folder.rglob("*.geoinfer-tmp"))


def test_a_loss_that_is_no_number_stops_the_run(train: Any, photo_set: PhotoSet, before_step: Any) -> None:
    def poison(run: Run) -> None:
        with torch.no_grad():
            run._raw.projection[0].weight[0, 0] = float("nan")

    before_step(4, poison)
    run = train(tiny_recipe("stages.0.images=24"), catch=TrainingError)
    assert str(run.error).startswith("the loss of step 4 is nan")
    assert run.error.exit_code == 5
    assert f"model.start_from={run.folder}/checkpoints/last.safetensors" in run.error.hint
    assert_last_is_whole(run, 3)
    # It names photos of the batch.
    named = str(run.error).partition("begins with ")[2].rstrip(")").split(", ")
    assert len(named) == 3
    assert set(named) <= set(photo_set.of_split("train"))

    # Before the first checkpoint there is nothing to start from.
    before_step(1, poison)
    other = train(tiny_recipe(), "other", catch=TrainingError)
    assert str(other.error).startswith("the loss of step 1 is nan")
    assert "start_from" not in other.error.hint


def test_the_photos_of_the_batch_are_named(train: Any, photo_set: PhotoSet, before_step: Any) -> None:
    from trainer.batches import taken_in_turn
    from trainer.data.examples import open_examples

    recipe = tiny_recipe(stages=[stage(images=5, batch_size=5)])
    training = open_examples(photo_set.prepared).of_split("train")
    drawn = set(taken_in_turn(training, 5, recipe.data.seed, 0).ids)

    def poison(run: Run) -> None:
        with torch.no_grad():
            run._raw.projection[0].weight[0, 0] = float("nan")

    before_step(1, poison)
    run = train(recipe, catch=TrainingError)
    assert set(str(run.error).partition("begins with ")[2].rstrip(")").split(", ")) <= drawn


def test_a_gradient_that_is_no_number_stops_the_run(train: Any, before_step: Any) -> None:
    def poison(run: Run) -> None:
        weight = run._raw.projection[0].weight
        weight.register_hook(lambda gradient: gradient * float("inf"))

    before_step(6, poison)  # the last of its epoch: nothing after it would tell
    run = train(tiny_recipe(), catch=TrainingError)
    assert str(run.error).startswith("the gradient of step 6 is no number")
    assert_last_is_whole(run, 3)


@pytest.mark.parametrize("minutes", [1000.0, 1e-9])
def test_weights_that_are_no_numbers_are_not_saved(train: Any, minutes: float) -> None:
    # One step an epoch, and a rate that spoils the weights at once.
    recipe = one_batch(
        "optimiser.lr_head=1e36", "optimiser.lr_backbone=1e36", "optimiser.warmup_steps=1",
        f"run.checkpoint_minutes={minutes}", epochs=4,
    )  # fmt: skip
    run = train(recipe, catch=TrainingError)
    assert isinstance(run.error, TrainingError)
    last = run.folder / "checkpoints" / "last.safetensors"
    if last.exists():
        assert_last_is_whole(run, load_training_state(last).progress["step"])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "cublas", "python"],
)
@pytest.mark.parametrize("where", ["forward", "backward", "optimizer", "validation"])
def test_out_of_memory_says_what_to_try(
    train: Any, before_step: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    def arrange(run: Run) -> None:
        if where == "forward":
            run._raw.backbone.register_forward_hook(fail)
        elif where == "backward":
            run._raw.projection[0].weight.register_hook(fail)
        elif where == "optimizer":
            monkeypatch.setattr(run._optimizer, "step", fail)
        else:
            monkeypatch.setattr(run._validator, "validate", fail)

    before_step(5, arrange)
    run = train(tiny_recipe(), catch=DeviceError)
    assert str(run.error) == "memory does not suffice for 8 photos at a time (contrast)"
    assert run.error.hint == "--set stages.0.micro_batch=4 needs less and learns the same, a little slower"
    assert_last_is_whole(run, 3)
    # What it says to try is taken by the same command.
    again = train(tiny_recipe("stages.0.micro_batch=4"))
    assert again.position.finished
    assert "going on after step 3" in again.said


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        (["stages.0.micro_batch=7"], "micro_batch=2"),
        (["stages.0.micro_batch=2"], "micro_batch=1"),
        (["stages.0.micro_batch=1"], "a smaller backbone"),
        (["model.batch_norm=train"], "--set stages.0.batch_size=4"),
        (["stages.0.batch_size=2", "model.batch_norm=train"], "--set stages.0.batch_size=2"),
    ],
)
def test_what_to_try_fits(train: Any, before_step: Any, changes: list[str], hint: str) -> None:
    def arrange(run: Run) -> None:
        raise MemoryError

    before_step(1, arrange)
    assert hint in train(tiny_recipe(*changes), catch=DeviceError).error.hint


def test_other_errors_are_not_taken_for_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(TrainingError("no photo of step 3 could be read"))


@pytest.mark.parametrize("where", ["checkpoint", "metrics", "events", "curves"])
def test_a_full_disk_keeps_the_checkpoint_before(
    train: Any, monkeypatch: pytest.MonkeyPatch, before_step: Any, where: str
) -> None:
    unbroken = train(tiny_recipe(), "unbroken")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:

        def arrange(run: Run) -> None:
            recorder = run._recorder
            if where == "checkpoint":
                patch.setattr("trainer.checkpoint.save_file", full)
            elif where == "metrics":
                patch.setattr(recorder._metrics, "_file", FullFile())
            elif where == "events":
                patch.setattr(recorder._events._writer, "flush", full)
            else:
                patch.setattr("trainer.recorder.draw_curves", full)

        before_step(5, arrange)
        run = train(tiny_recipe(), catch=GeoInferError)
        assert isinstance(run.error, InterruptedRunError)
        assert run.error.exit_code == 130
        assert "no space left on device" in str(run.error)
        assert "make room" in run.error.hint
        assert_last_is_whole(run, 3)
    again = train(tiny_recipe())
    assert again.position.finished
    assert again.without_timing() == unbroken.without_timing()
    ours, theirs = again.tensors(), unbroken.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class FullFile:
    """A file on a full disk."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        self.flush()


def test_a_photo_that_comes_back_is_read_again(train: Any, photo_set: PhotoSet) -> None:
    content = (photo_set.photos / "p003.jpg").read_bytes()
    photo_set.spoil("p003")
    train(one_batch("stages.0.epochs=1"), "a")
    (photo_set.photos / "p003.jpg").write_bytes(content)
    run = train(one_batch("stages.0.epochs=1"), "b")
    assert run.rows("step")[0]["images"] == "26"
    assert np.isfinite(float(run.rows("step")[0]["loss"]))
