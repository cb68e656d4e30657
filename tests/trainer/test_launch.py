"""What is checked before the first step: photos, folder, recipe, device."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.trainer.tiny_runs import make_photo_set, stage, tiny_recipe

torch = pytest.importorskip("torch")

from geoinfer.errors import DeviceError, InputError, InterruptedRunError, OutputError, UsageError  # noqa: E402
from geoinfer.lock import OutputLock  # noqa: E402
from trainer.checkpoint import load_model  # noqa: E402
from trainer.devices import make_fabric  # noqa: E402
from trainer.fit import Run  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trainer.tiny_runs import PhotoSet

pytestmark = pytest.mark.slow


def write_csv(photo_set: PhotoSet, path: Path) -> Path:
    rows = zip(photo_set.ids, photo_set.coordinates.tolist(), strict=True)
    lines = [f"{name}.jpg,{lat!r},{lon!r}" for name, (lat, lon) in rows]
    path.write_text("\n".join(["path,latitude,longitude", *lines]) + "\n")
    return path


def test_a_source_is_prepared_first(train: Any, photo_set: PhotoSet, tmp_path: Path) -> None:
    source = write_csv(photo_set, tmp_path / "photos.csv")
    recipe = tiny_recipe("data.validation=0.25", "data.seed=3")
    run = train(recipe, data=source, images=photo_set.photos)
    assert run.position.finished
    assert "photos: 27 train, 9 validation" in run.said
    assert (run.folder / "data" / "examples.parquet").is_file()
    again = train(recipe, data=source, images=photo_set.photos)
    assert "nothing is left to do" in again.said
    other = write_csv(photo_set, tmp_path / "other.csv")
    refused = train(recipe, data=other, images=photo_set.photos, catch=UsageError)
    assert str(refused.error) == f"--data: {run.folder} was begun with {source}, not with {other}"
    # Begun anew, the source may be another.
    anew = train(recipe, data=other, images=photo_set.photos, restart=True)
    assert anew.position.finished


def test_what_was_prepared_and_never_trained_is_prepared_as_asked(
    train: Any, photo_set: PhotoSet, tmp_path: Path
) -> None:
    source = write_csv(photo_set, tmp_path / "photos.csv")

    def begin(*changes: str, **options: Any) -> str:
        return train(tiny_recipe("stages.0.epochs=1", *changes), data=source, images=photo_set.photos, **options).said

    begin("stages.0.train.backbone=nonsense", "data.validation=0.5", catch=UsageError)
    assert "photos: 27 train, 9 validation" in begin("data.validation=0.25")


def test_a_prepared_set_knows_its_photos(train: Any, photo_set: PhotoSet) -> None:
    assert "--images" in str(train(tiny_recipe(), images=photo_set.photos, catch=UsageError).error)


def test_missing_data_and_then_the_right_one(train: Any, photo_set: PhotoSet, tmp_path: Path) -> None:
    missing = train(tiny_recipe(), data=tmp_path / "nowhere", catch=InputError)
    assert str(tmp_path / "nowhere") in str(missing.error)
    # The folder that the failed attempt left is no obstacle.
    assert train(tiny_recipe()).position.finished


def test_moved_photos(train: Any, photo_set: PhotoSet) -> None:
    photo_set.photos.rename(photo_set.photos.with_name("elsewhere"))
    from trainer.errors import TrainingError

    assert str(train(tiny_recipe(), catch=TrainingError).error).startswith("no photo of step 1 could be read; p0")


def test_no_photo_to_train_on(train: Any, tmp_path: Path) -> None:
    data = make_photo_set(tmp_path / "none", train=0, validation=4).prepared
    assert "no training photos" in str(train(tiny_recipe(), data=data, catch=InputError).error)


def test_cells_of_one_photo_each(train: Any, tmp_path: Path) -> None:
    data = make_photo_set(tmp_path / "alone", train=9, validation=2, towns=9).prepared
    cells = {"kind": "cells", "level": 5, "images_per_cell": 2}
    run = train(tiny_recipe(stages=[stage(sampler=cells)]), data=data, catch=UsageError)
    assert "alone in its geocell" in str(run.error)
    assert run.error.hint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("run.seed=1", "run.seed was 0 when the run was begun, and is 1 now"),
        ("stages.0.losses.0.levels=[6]", "stages.0.losses.0.levels.0 was 5 when the run was begun, and is 6 now"),
        ("model.dim=8", "model.dim was 16 when the run was begun, and is 8 now"),
        ("run.precision=bf16", "run.precision was 'fp32' when the run was begun, and is 'bf16' now"),
        ("optimiser.clip_norm=1.0", "optimiser.clip_norm was 0.0 when the run was begun, and is 1.0 now"),
    ],
)
def test_a_checkpoint_of_another_recipe(train: Any, change: str, says: str) -> None:
    run = train(tiny_recipe("stages.0.epochs=1"))
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    refused = train(tiny_recipe("stages.0.epochs=1", change), catch=UsageError)
    assert str(refused.error) == f"{run.folder}: {says}"
    assert "--restart" in refused.error.hint
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before


def test_a_checkpoint_of_other_photos(train: Any, tmp_path: Path) -> None:
    train(tiny_recipe("stages.0.epochs=1"))
    other = make_photo_set(tmp_path / "other", train=25).prepared
    refused = train(tiny_recipe("stages.0.epochs=1"), data=other, catch=UsageError)
    assert "begun with other photos" in str(refused.error)


def test_weights_alone_are_no_checkpoint_to_go_on_from(train: Any) -> None:
    from geoinfer.errors import ModelError

    run = train(tiny_recipe("stages.0.epochs=1"))
    checkpoints = run.folder / "checkpoints"
    (checkpoints / "best.safetensors").replace(checkpoints / "last.safetensors")
    assert "weights alone" in str(train(tiny_recipe("stages.0.epochs=1"), catch=ModelError).error)
    (checkpoints / "last.safetensors").write_bytes(b"no checkpoint at all")
    assert "last.safetensors" in str(train(tiny_recipe("stages.0.epochs=1"), catch=ModelError).error)


@pytest.mark.parametrize("change", ["run.checkpoint_minutes=1.0", "stages.0.micro_batch=4", "summary=Other."])
def test_what_may_change(train: Any, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Run._end_of_epoch

    def stop(self: Run, *args: Any) -> None:
        plain(self, *args)
        monkeypatch.setattr(Run, "_end_of_epoch", plain)
        raise InterruptedRunError("stop")

    monkeypatch.setattr(Run, "_end_of_epoch", stop)
    train(tiny_recipe(), catch=InterruptedRunError)
    run = train(tiny_recipe(change))
    assert run.position.step == 6
    assert tiny_recipe(change).to_toml() == (run.folder / "recipe.toml").read_text()


@pytest.mark.parametrize(
    "names",
    [["notes.txt"], ["recipe.toml"], ["data/photo.jpg"], ["checkpoints/x.bin", "notes.txt"], ["recipe.toml", "data/a"]],
)
@pytest.mark.parametrize("restart", [False, True])
def test_folders_with_something_else(train: Any, tmp_path: Path, names: list[str], restart: bool) -> None:
    for name in names:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("precious")
    refused = train(tiny_recipe(), restart=restart, catch=OutputError)
    assert "none of them is a run's" in str(refused.error)
    assert [(tmp_path / "run" / name).read_text() for name in names] == ["precious"] * len(names)


def test_a_file_where_the_folder_should_be(train: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert str(tmp_path / "run") in str(train(tiny_recipe(), catch=OutputError).error)


def test_restart_begins_anew(train: Any, photo_set: PhotoSet) -> None:
    photo_set.spoil("p003")
    first = train(tiny_recipe("run.seed=4", "stages.0.epochs=3"))
    (first.folder / "my notes.txt").write_text("precious")
    fresh = train(tiny_recipe(), "fresh")
    again = train(tiny_recipe(), restart=True)
    assert again.without_timing() == fresh.without_timing()
    ours, theirs = again.tensors(), fresh.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(list((again.folder / "tensorboard").iterdir())) == 1
    assert [row["id"] for row in again.bad()] == ["p003"]
    assert (first.folder / "my notes.txt").read_text() == "precious"


def test_restart_leaves_the_photos_alone(train: Any, photo_set: PhotoSet, tmp_path: Path) -> None:
    run = train(tiny_recipe("stages.0.epochs=1"))
    # A user's own folder of that name, put into the run's; and the set that the run is to be trained on.
    own = run.folder / "data"
    own.mkdir()
    (own / "holiday.jpg").write_text("precious")
    train(tiny_recipe("stages.0.epochs=1"), restart=True)
    assert (own / "holiday.jpg").read_text() == "precious"
    (own / "holiday.jpg").unlink()
    for path in photo_set.prepared.iterdir():
        path.rename(own / path.name)
    assert train(tiny_recipe("stages.0.epochs=1"), data=own, restart=True).position.finished


def test_two_processes_on_one_folder(train: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with OutputLock(folder.lock, folder.path):
        refused = train(tiny_recipe(), catch=OutputError)
    assert "is writing it" in str(refused.error)
    assert train(tiny_recipe()).position.finished


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="torch sees no GPU") as caught:
        make_fabric(device, "fp32")
    assert caught.value.exit_code == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="there are 1 GPUs"):
        make_fabric("cuda:7", "fp32")


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:", "cuda:x", "auto:1", ""])
def test_devices_that_nobody_has(device: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        make_fabric(device, "fp32")


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        make_fabric("cpu", "fp16")


def test_start_from_another_run(train: Any) -> None:
    first = train(tiny_recipe(), "first")
    checkpoint = first.folder / "checkpoints" / "best.safetensors"
    recipe = tiny_recipe(
        f"model.start_from={checkpoint}", "model.coordinates=embedding",
        stages=[stage("head", kind="haversine", train={"backbone": "none", "heads": ["coordinates"]})],
    )  # fmt: skip
    second = train(recipe, "second")
    assert f"weights of {checkpoint}, new coordinate head" in second.said
    ours, _ = load_model(second.folder / "checkpoints" / "last.safetensors")
    theirs, _ = load_model(checkpoint)
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name].numpy(), value.numpy())
    # The checkpoint is not asked for again when the run goes on.
    checkpoint.unlink()
    assert "nothing is left to do" in train(recipe, "second").said


def test_a_head_of_another_width_is_not_built_upon_while_it_is_random(train: Any) -> None:
    checkpoint = train(tiny_recipe(), "first").folder / "checkpoints" / "best.safetensors"
    changes = (f"model.start_from={checkpoint}", "model.coordinates=embedding", "model.dim=24")
    frozen = {"backbone": "none", "heads": ["coordinates"]}
    refused = train(
        tiny_recipe(*changes, stages=[stage("head", kind="haversine", train=frozen)]), "second", catch=UsageError
    )
    assert f"{checkpoint}: it has no projection that fits" in str(refused.error)
    assert train(tiny_recipe(*changes, stages=[stage("head", kind="haversine")]), "third").position.finished


def test_threads_end_with_the_run(train: Any) -> None:
    train(tiny_recipe())
    before = threading.active_count()
    train(tiny_recipe(), "again")
    assert threading.active_count() == before
