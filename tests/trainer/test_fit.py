"""Whole runs in this process: what they leave, and going on after an interruption at any point."""

from __future__ import annotations

import json
import math
import os
import signal
import tomllib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.trainer.tiny_runs import TrainedRun, make_photo_set, stage, tiny_recipe

torch = pytest.importorskip("torch")

from geoinfer.errors import InterruptedRunError  # noqa: E402
from geoinfer.geocells import cell_ids  # noqa: E402
from trainer.recorder import Recorder  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.trainer.tiny_runs import PhotoSet

pytestmark = pytest.mark.slow


class KilledError(BaseException):
    """Ends a run as SIGKILL does: nothing is saved on the way out."""


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Callable[[], None]]]:
    """What to do when a step of the run was recorded."""
    wanted: dict[int, Callable[[], None]] = {}
    plain = Recorder.step

    def step(self: Recorder, row: dict[str, Any], bad: Any) -> None:
        plain(self, row, bad)
        wanted.pop(row["step"], lambda: None)()

    monkeypatch.setattr(Recorder, "step", step)
    return wanted


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill() -> None:
    raise KilledError


CELLS = {"kind": "cells", "level": 5, "images_per_cell": 2}
RECIPES = {
    "random batches, dropout, warm-up and clipping": tiny_recipe(
        "optimiser.schedule=cosine", "optimiser.warmup_steps=2", "optimiser.clip_norm=0.5"
    ),
    "cells and memory": tiny_recipe(
        stages=[stage(kind="hierarchical", sampler=CELLS, memory=13, memory_after=1, micro_batch=3, epochs=3)]
    ),
    "two stages": tiny_recipe(
        "model.coordinates=embedding",
        stages=[
            stage("first", kind="supcon", epochs=1),
            stage("second", kind="triplet", batch_size=12, train={"backbone": "none"}),
            stage("third", kind="haversine", train={"backbone": "none", "heads": ["coordinates"]}, epochs=1, images=17),
        ],
    ),
    "batch norms that learn": tiny_recipe("model.batch_norm=train", stages=[stage(kind="soft_supcon")]),
}


def assert_same_run(run: TrainedRun, unbroken: TrainedRun) -> None:
    assert run.without_timing() == unbroken.without_timing()
    for name in ("last", "best"):
        ours, theirs = run.tensors(name), unbroken.tensors(name)
        assert ours.keys() == theirs.keys()
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("name", RECIPES)
def test_going_on_is_as_if_it_had_never_stopped(name: str, train: Any, after_step: Any) -> None:
    recipe = RECIPES[name]
    unbroken = train(recipe, "unbroken")
    assert unbroken.position.finished
    steps = unbroken.position.step
    assert steps >= 6

    # Ctrl-C in the middle of an epoch, at its end, and in the last step.
    for step in (2, 3, steps - 1, steps):
        after_step[step] = ask_to_stop
    count = 0
    while (asked := train(recipe, "asked", catch=InterruptedRunError)).error is not None:
        count += 1
        assert f"interrupted after step {asked.rows('step')[-1]['step']}" in str(asked.error)
        assert "the same command" in asked.error.hint
    assert count == 4
    assert_same_run(asked, unbroken)

    # Killed where the last checkpoint is that of the step before, and where it is that of the epoch before.
    for often in (True, False):
        frequent = recipe.model_copy(update={"run": recipe.run.model_copy(update={"checkpoint_minutes": 1e-9})})
        after_step[2] = after_step[steps - 1] = kill
        for _ in range(2):
            killed = train(frequent if often else recipe, f"killed {often}", catch=KilledError)
            assert isinstance(killed.error, KilledError)
            assert killed.rows("step")[-1]["step"] in ("2", str(steps - 1))
        assert_same_run(train(recipe, f"killed {often}"), unbroken)


def test_killed_between_the_epoch_and_its_checkpoint(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe()
    unbroken = train(recipe, "unbroken")
    plain = Recorder.epoch

    def epoch(self: Recorder, row: dict[str, Any], bad: Any, *, best: bool) -> None:
        plain(self, row, bad, best=best)
        if row["epoch"] == 2:
            monkeypatch.setattr(Recorder, "epoch", plain)
            raise KilledError

    monkeypatch.setattr(Recorder, "epoch", epoch)
    killed = train(recipe, catch=KilledError)
    assert len(killed.rows("epoch")) == 2
    again = train(recipe)
    assert again.position.finished
    assert_same_run(again, unbroken)
    assert events_of(again) == events_of(unbroken)


def test_a_finished_run_is_left_alone(train: Any) -> None:
    first = train(tiny_recipe())
    before = {path: path.read_bytes() for path in first.folder.rglob("*.safetensors")} | {
        first.folder / "metrics.csv": (first.folder / "metrics.csv").read_bytes()
    }
    again = train(tiny_recipe())
    assert "nothing is left to do" in again.said
    assert {path: path.read_bytes() for path in before} == before
    assert again.position == first.position


def events_of(run: TrainedRun) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
        if not tag.endswith(("images_per_second", "waiting_share", "memory_mib"))
    }


def test_what_a_run_leaves(train: Any, photo_set: PhotoSet, after_step: Any) -> None:
    recipe = tiny_recipe("stages.0.losses=[{kind='supcon', levels=[5]}, {kind='triplet', weight=0.5}]")
    after_step[4] = ask_to_stop
    train(recipe, catch=InterruptedRunError)
    run = train(recipe)

    assert tomllib.loads((run.folder / "recipe.toml").read_text()) == recipe.as_dict()
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["ranks"] == 1
    assert environment["device"] == "CPU (as asked)"
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]

    steps, epochs = run.rows("step"), run.rows("epoch")
    assert [(row["epoch"], row["step"]) for row in steps] == [
        ("1", "1"), ("1", "2"), ("1", "3"), ("2", "4"), ("2", "5"), ("2", "6"),
    ]  # fmt: skip
    assert [(row["event"], row["epoch"]) for row in run.rows()] == [
        ("step", "1"), ("step", "1"), ("step", "1"), ("epoch", "1"),
        ("step", "2"), ("step", "2"), ("step", "2"), ("epoch", "2"),
    ]  # fmt: skip
    for row in steps:
        assert float(row["loss"]) == pytest.approx(float(row["supcon_l5"]) + 0.5 * float(row["triplet"]), rel=1e-6)
        assert float(row["gradient_norm"]) > 0
        assert float(row["memory_mib"]) > 50
        assert row["images"] == "8"
    for number, row in enumerate(epochs):
        mean = np.mean([float(step["loss"]) for step in steps[3 * number : 3 * number + 3]])
        assert float(row["loss"]) == pytest.approx(mean, rel=1e-12)
        assert 0 <= float(row["accuracy_25_km"]) <= float(row["accuracy_2500_km"]) <= 100
        assert float(row["median_km"]) > 0

    events = events_of(run)
    for group, rows in (("train", steps), ("epoch", epochs)):
        for name in rows[0]:
            written = {int(row["step"]): float(row[name]) for row in rows if name in ("loss",) and row[name]}
            if written:
                assert events[f"{group}/{name}"] == pytest.approx(written, rel=1e-6)
    assert events["epoch/median_km"] == pytest.approx({int(r["step"]): float(r["median_km"]) for r in epochs}, rel=1e-6)
    assert set(events["train/gradient_norm"]) == set(range(1, 7))

    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == ["best.safetensors", "last.safetensors"]
    assert not (run.folder / "bad_photos.csv").exists()
    assert not (run.folder / ".lock").exists()
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "checkpoints", "environment.json", "loss.png", "metrics.csv", "recipe.toml", "tensorboard",
    ]  # fmt: skip
    best = min(float(row["median_km"]) for row in epochs)
    assert run.position.best_median_km == best


def test_best_is_of_the_epoch_with_the_smallest_median(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.validation import Validator

    medians = iter([900.0, 300.0, 500.0])
    plain = Validator.validate
    weights = []

    def validate(self: Validator, *args: Any) -> Any:
        row, bad = plain(self, *args)
        weights.append({name: value.clone() for name, value in self._model.state_dict().items()})
        return row | {"median_km": next(medians)}, bad

    monkeypatch.setattr(Validator, "validate", validate)
    run = train(tiny_recipe("stages.0.epochs=3"))
    best = run.tensors("best")
    assert all(torch.equal(best[f"model.{name}"], value) for name, value in weights[1].items())
    assert not all(torch.equal(best[f"model.{name}"], value) for name, value in weights[2].items())


def test_the_loss_falls(train: Any) -> None:
    run = train(tiny_recipe("model.dropout=0.0", stages=[stage(epochs=15, batch_size=24)]))
    losses = [float(row["loss"]) for row in run.rows("epoch")]
    assert losses[-1] < 0.7 * losses[0]


def test_rates_follow_the_schedule(train: Any) -> None:
    run = train(tiny_recipe("optimiser.schedule=cosine", "optimiser.warmup_steps=2", "optimiser.lr_head=0.5e-3"))
    factors = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4))]
    assert [float(row["lr_head"]) for row in run.rows("step")] == pytest.approx([0.5e-3 * f for f in factors])
    assert [float(row["lr_backbone"]) for row in run.rows("step")] == pytest.approx([1e-3 * f for f in factors])


def test_what_is_frozen_does_not_change(train: Any) -> None:
    before = train(tiny_recipe("stages.0.epochs=1"), "a").tensors("last")
    # The same beginning, and a second stage that learns the head alone.
    two = tiny_recipe(stages=[stage(epochs=1), stage("head", kind="triplet", train={"backbone": "none"}, epochs=1)])
    after = train(two, "b").tensors("last")
    changed = {n for n in before if n.startswith("model.") and not torch.equal(before[n], after[n])}
    assert changed == {f"model.projection.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("train_photos", "validation"), [(1, 0), (1, 1), (5, 2), (9, 0)], ids=["one", "one each", "few", "no validation"]
)
@pytest.mark.parametrize("kind", ["supcon", "triplet", "soft_supcon", "haversine", "hierarchical"])
def test_small_sets(tmp_path: Path, train: Any, train_photos: int, validation: int, kind: str) -> None:
    data = make_photo_set(tmp_path / "small", train=train_photos, validation=validation, towns=3).prepared
    more = ["model.coordinates=backbone"] if kind == "haversine" else []
    run = train(tiny_recipe("stages.0.epochs=1", *more, stages=[stage(kind=kind)]), data=data)
    assert run.position.finished
    assert len(run.rows("step")) == 1
    assert run.rows("step")[0]["images"] == str(min(8, train_photos))
    assert (run.folder / "checkpoints" / "best.safetensors").exists()
    said = "there are no validation photos" in run.said
    assert said == (validation == 0)


@pytest.mark.parametrize("option", ["channels_last", "compile"])
def test_how_it_is_computed_changes_nothing(train: Any, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if option == "compile":
        # The default backend needs a compiler; this one takes the same way through torch.compile and Fabric.
        plain = torch.compile
        monkeypatch.setattr(torch, "compile", lambda module, **_: plain(module, backend="aot_eager"))
    changes = ("model.dropout=0.0", "stages.0.epochs=1", "stages.0.micro_batch=3")
    run, other = train(tiny_recipe(*changes), "plain"), train(tiny_recipe(*changes, f"run.{option}=true"), "other")
    for ours, theirs in zip(other.rows(), run.rows(), strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-4)
    again = train(tiny_recipe(*changes), "other")  # it may be switched off in a run that goes on
    assert "nothing is left to do" in again.said


def test_bf16_is_near(train: Any) -> None:
    changes = ("model.dropout=0.0", "stages.0.epochs=1", "optimiser.lr_head=1e-5", "optimiser.lr_backbone=1e-5")
    run, half = train(tiny_recipe(*changes), "full"), train(tiny_recipe(*changes, "run.precision=bf16"), "half")
    losses = [[float(row["loss"]) for row in r.rows("step")] for r in (run, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert losses[0] != losses[1]
    assert {t.dtype for n, t in half.tensors().items() if n.startswith("model.") and t.is_floating_point()} == {
        torch.float32
    }


def test_each_stage_has_a_best_of_its_own(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.validation import Validator

    # The second stage is worse throughout: its best is its own all the same.
    medians = iter([300.0, 200.0, 800.0, 900.0])
    plain = Validator.validate
    weights = []

    def validate(self: Validator, *args: Any) -> Any:
        row, bad = plain(self, *args)
        weights.append({name: value.clone() for name, value in self._model.state_dict().items()})
        return row | {"median_km": next(medians)}, bad

    monkeypatch.setattr(Validator, "validate", validate)
    run = train(tiny_recipe(stages=[stage("first"), stage("second", kind="triplet")]))
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {
        "best-first.safetensors", "best.safetensors", "last.safetensors",
    }  # fmt: skip
    assert run.position.best_median_km == 800.0
    for file, epoch in (("best-first", 1), ("best", 2)):
        kept = run.tensors(file)
        assert all(torch.equal(kept[f"model.{name}"], value) for name, value in weights[epoch].items())


def test_the_memory_begins_each_epoch_empty(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer.fit

    seen = []

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(len(options["memory"]))
        return backward(*arguments, **options)

    backward = trainer.fit.backward
    monkeypatch.setattr(trainer.fit, "backward", spy)
    train(tiny_recipe("stages.*.memory=12"))
    assert seen == [0, 8, 12, 0, 8, 12]


def test_what_is_wrong_with_a_later_stage_is_said_before_the_first_begins(train: Any) -> None:
    from geoinfer.errors import UsageError

    recipe = tiny_recipe(stages=[stage("first"), stage("second", train={"backbone": "last:99"})])
    run = train(recipe, catch=UsageError)
    assert str(run.error).startswith("stages.1.train.backbone is 'last:99'")
    assert not (run.folder / "metrics.csv").exists()


def test_what_cannot_be_drawn_or_read_is_said(train: Any, photo_set: Any) -> None:
    cells = {"kind": "cells", "level": 9, "images_per_cell": 2}
    lone = train(tiny_recipe(stages=[stage(sampler=cells, batch_size=4)]), "lone")
    counts = Counter(cell_ids(photo_set.coordinates[photo_set.splits == 0], 9).tolist())
    alone = sum(count == 1 for count in counts.values())
    assert 0 < alone < 26
    assert f"{alone} of them are alone in their S2 cell of level 9 and are not drawn" in lone.said
    spoilt = photo_set.of_split("train")[0]
    photo_set.spoil(spoilt)
    run = train(tiny_recipe("stages.*.batch_size=2"))
    assert run.said.count(f"{spoilt} cannot be read: ") == 1
    assert "1 photo could not be read and had to be left out" in run.said
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["data"]["photos"] == {"train": 26, "validation": 10, "test": 0}
