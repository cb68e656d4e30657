"""Checkpoints: to the bit and back, without pickle, whole on a full disk, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pydantic")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from geoinfer.errors import InputError, InterruptedRunError, ModelError  # noqa: E402
from trainer.checkpoint import (  # noqa: E402
    TrainingState,
    load_model,
    load_training_state,
    load_weights,
    read_checkpoint_info,
    save_checkpoint,
    start_from,
)
from trainer.losses import CrossBatchMemory  # noqa: E402
from trainer.models import create_model, freeze  # noqa: E402
from trainer.optimisation import make_optimizer, set_rates  # noqa: E402
from trainer.recipe import OptimiserTable, parse_recipe  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SMALL = {"backbone": "test_resnet", "weights": "none", "dim": 8, "hidden": 16}


def recipe_of(size: int = 32, **model: Any) -> Any:
    loss = {"kind": "supcon", "levels": [5]}
    return parse_recipe(
        {
            "name": "small",
            "summary": "For tests.",
            "model": SMALL | model,
            "preprocessing": {"size": size},
            "stages": [{"name": "one", "epochs": 1, "batch_size": 4, "losses": [loss]}],
        },
        "small",
    )


def model_of(recipe: Any, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    table = recipe.model
    return create_model(
        table.backbone, recipe.make_preprocessing(), weights="none", dim=table.dim, hidden=table.hidden,
        dropout=table.dropout, coordinates=table.coordinates,
    )  # fmt: skip


def pixels(seed: int = 0, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8, generator=generator)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_weights_come_back_to_the_bit(tmp_path: Path, backbone: str, channels_last: bool) -> None:
    recipe = recipe_of(backbone=backbone, coordinates="embedding")
    model = model_of(recipe)
    if channels_last:
        model.use_channels_last()
    save_checkpoint(tmp_path / "a.safetensors", model, recipe)
    loaded, info = load_model(tmp_path / "a.safetensors")
    assert same(loaded.state_dict(), model.state_dict())
    assert not loaded.training
    assert info.recipe == recipe.as_dict()
    assert info.preprocessing == recipe.make_preprocessing()
    assert info.progress == {}
    if channels_last:
        loaded.use_channels_last()
    with torch.no_grad():
        assert torch.equal(loaded(pixels()), model.eval()(pixels()))


def test_nothing_but_safetensors_is_needed(tmp_path: Path) -> None:
    recipe = recipe_of()
    model = model_of(recipe)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model, recipe)
    script = (
        "import json, sys\n"
        "from safetensors import safe_open\n"
        "with safe_open(sys.argv[1], framework='numpy') as file:\n"
        "    print(json.loads(file.metadata()['geoinfer'])['model']['backbone'], len(file.keys()))\n"
        "assert not {'torch', 'trainer', 'timm'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["test_resnet", str(len(model.state_dict()))]


def test_a_checkpoint_is_readable_as_other_files_are(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a.safetensors", model_of(recipe_of()), recipe_of())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_one_weight_in_two_places(tmp_path: Path) -> None:
    recipe = recipe_of()
    model = model_of(recipe)
    model.backbone.layer4[0].bn2.weight = model.backbone.layer4[0].bn1.weight
    save_checkpoint(tmp_path / "a.safetensors", model, recipe)
    tensors = load_file(tmp_path / "a.safetensors")
    assert same({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, model.state_dict())


def train(model: Any, optimizer: Any, memory: CrossBatchMemory, steps: range) -> list[float]:
    table = OptimiserTable(schedule="cosine", warmup_steps=2, lr_head=1e-2, lr_backbone=1e-3)
    losses = []
    for step in steps:
        set_rates(optimizer, table, step, 12)
        answers = model(pixels(step))
        target = memory.embeddings.sum(dim=0) if len(memory) else torch.ones(answers.shape[1])
        loss = (answers @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memory.add(answers.detach(), torch.arange(4), torch.zeros(4, 2, dtype=torch.float64))
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_training_goes_on_to_the_bit(tmp_path: Path, name: Any, channels_last: bool) -> None:
    recipe, table = recipe_of(), OptimiserTable(name=name, weight_decay=0.1)

    def begin(seed: int) -> tuple[Any, Any, CrossBatchMemory]:
        model = model_of(recipe, seed).eval()
        if channels_last:
            model.use_channels_last()
        freeze(model, "last:2")
        return model, make_optimizer(model, table), CrossBatchMemory(6, 8)

    model, optimizer, memory = begin(1)
    train(model, optimizer, memory, range(5))
    progress = {"step": 5, "loss_sum": 0.1 + 0.2, "best": None, "nested": {"a": [1, 2.5]}}
    state = TrainingState(optimizer.state_dict(), memory.state_dict(), progress)
    save_checkpoint(tmp_path / "last.safetensors", model, recipe, state)
    unbroken = train(model, optimizer, memory, range(5, 12))

    again, fresh, remembered = begin(2)
    load_weights(tmp_path / "last.safetensors", again)
    loaded = load_training_state(tmp_path / "last.safetensors")
    assert loaded.progress == progress
    fresh.load_state_dict(loaded.optimizer)
    remembered.load_state_dict(loaded.memory)
    assert train(again, fresh, remembered, range(5, 12)) == unbroken
    assert same(again.state_dict(), model.state_dict())
    for ours, theirs in zip(fresh.param_groups, optimizer.param_groups, strict=True):
        assert {key: value for key, value in ours.items() if key not in ("params", "betas")} == {
            key: value for key, value in theirs.items() if key not in ("params", "betas")
        }
        assert tuple(ours["betas"]) == tuple(theirs["betas"])


def test_an_optimizer_that_took_no_step_yet(tmp_path: Path) -> None:
    recipe = recipe_of()
    model = model_of(recipe)
    optimizer = make_optimizer(model, OptimiserTable())
    save_checkpoint(tmp_path / "a.safetensors", model, recipe, TrainingState(optimizer.state_dict(), {}, {"step": 0}))
    loaded = load_training_state(tmp_path / "a.safetensors")
    assert loaded.optimizer["state"] == {}
    assert loaded.memory == {}
    optimizer.load_state_dict(loaded.optimizer)


def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.safetensors", model_of(recipe_of()), recipe_of())
    with pytest.raises(ModelError, match=r"best.safetensors: it holds weights alone"):
        load_training_state(tmp_path / "best.safetensors")


def full_by_limit(path: Path) -> Iterator[Path]:
    """A folder in which no file may grow beyond a few kilobytes."""
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        yield path
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_file_that_may_not_grow_leaves_the_checkpoint_before_it_whole(tmp_path: Path) -> None:
    recipe, path = recipe_of(), tmp_path / "last.safetensors"
    save_checkpoint(path, model_of(recipe, 1), recipe)
    before = path.read_bytes()
    with contextlib.contextmanager(full_by_limit)(tmp_path), pytest.raises(InterruptedRunError) as caught:
        save_checkpoint(path, model_of(recipe, 2), recipe)
    assert str(caught.value) == (
        f"{path}: the checkpoint cannot be written: file too large; the one before it is whole"
    )
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(small_disk: Path) -> None:
    recipe, path = recipe_of(), small_disk / "last.safetensors"
    model = model_of(recipe)
    save_checkpoint(path, model, recipe)
    before = path.read_bytes()
    (small_disk / "filler").write_bytes(bytes(2**22 - len(before) - 100_000))
    with pytest.raises(InterruptedRunError) as caught:
        save_checkpoint(path, model_of(recipe, 2), recipe)
    assert "no space left on device; the one before it is whole" in str(caught.value)
    assert "run the same command again" in caught.value.hint
    assert caught.value.exit_code == 130
    assert path.read_bytes() == before
    assert {found.name for found in small_disk.iterdir()} == {"filler", "last.safetensors"}
    (small_disk / "filler").unlink()
    save_checkpoint(path, model_of(recipe, 2), recipe)
    assert path.read_bytes() != before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError, match=r"the checkpoint cannot be written: .*; there is none before it"):
        save_checkpoint(tmp_path / "no" / "last.safetensors", model_of(recipe_of()), recipe_of())


READERS: list[Callable[[Any], Any]] = [
    read_checkpoint_info, load_model, load_training_state, lambda path: start_from(path, model_of(recipe_of())),
]  # fmt: skip


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, read: Callable[[Any], Any]) -> None:
    path = tmp_path / "a.safetensors"

    def refused(message: str, kind: type = ModelError, exit_code: int = 3) -> None:
        with pytest.raises(kind, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == exit_code

    refused("there is no such checkpoint", InputError, 2)
    path.mkdir()
    refused("there is no such checkpoint", InputError, 2)
    path.rmdir()
    path.write_bytes(b"")
    refused("not a whole safetensors file")
    path.write_text("a letter home")
    refused("not a whole safetensors file")
    torch.save({"model": torch.ones(3)}, path)
    refused("not a whole safetensors file")
    save_file({"a": torch.ones(3)}, path)
    refused("a safetensors file, but no checkpoint of the trainer's")
    save_file({"a": torch.ones(3)}, path, metadata={"format": "pt"})
    refused("a safetensors file, but no checkpoint of the trainer's")
    for text in ("{", "[1]", "7", "null"):
        save_file({"a": torch.ones(3)}, path, metadata={"geoinfer": text})
        refused("its metadata is damaged")
    save_file({"a": torch.ones(3)}, path, metadata={"geoinfer": '{"format": 99}'})
    refused("its format is 99, and this trainer reads 1")


@pytest.mark.parametrize("missing", ["model", "preprocessing", "recipe", "progress"])
def test_metadata_without_a_part_is_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model_of(recipe_of()), recipe_of())
    rewrite(path, lambda about: about.pop(missing))
    with pytest.raises(ModelError, match=f"its metadata is damaged: it has no '{missing}'"):
        read_checkpoint_info(path)


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["geoinfer"])
    change(about)
    save_file(load_file(path), path, metadata={"geoinfer": json.dumps(about)})


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model_of(recipe_of()), recipe_of())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_model(path)


def test_a_backbone_that_this_timm_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model_of(recipe_of()), recipe_of())
    rewrite(path, lambda about: about["model"].update(backbone="resnet_of_tomorrow"))
    with pytest.raises(ModelError, match=r"a.safetensors: the model that it describes cannot be built: .*tomorrow"):
        load_model(path)


def test_damaged_words_about_the_optimizer(tmp_path: Path) -> None:
    path, recipe = tmp_path / "a.safetensors", recipe_of()
    model = model_of(recipe)
    state = make_optimizer(model, OptimiserTable()).state_dict()
    save_checkpoint(path, model, recipe, TrainingState(state, {}, {"step": 1}))
    for value in (3, {}, {"plain": {"x.y": 1}, "param_groups": []}):
        rewrite(path, lambda about, value=value: about.update(optimizer=value))
        with pytest.raises(ModelError, match="what it says of the optimizer is damaged"):
            load_training_state(path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dim": 4}, r"projection.3.weight is \(8, 16\), and \(4, 16\) in this model"),
        ({"coordinates": "backbone"}, r"it has no coordinate_head.0.weight, which this model has"),
        ({"backbone": "test_vit"}, r"it has no backbone.cls_token, which this model has"),
        ({"dim": 0, "coordinates": "backbone"}, r"it has no coordinate_head.0.weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model_of(recipe_of()), recipe_of())
    model = make(other)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        load_weights(path, model)
    assert same(model.state_dict(), before)


def test_a_checkpoint_with_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, make({"coordinates": "backbone"}), recipe_of(coordinates="backbone"))
    with pytest.raises(ModelError, match=r"it has coordinate_head.0.bias, which this model has not"):
        load_weights(path, make({}))


def make(other: dict[str, Any], seed: int = 3) -> Any:
    torch.manual_seed(seed)
    options = {key: value for key, value in (SMALL | other).items() if key not in ("backbone", "weights")}
    return create_model(
        other.get("backbone", "test_resnet"), recipe_of().make_preprocessing(), weights="none", **options
    )


def part(model: Any, name: str) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if key.startswith(name)}


def test_another_runs_weights_where_they_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    first = model_of(recipe_of(), 1)
    save_checkpoint(path, first, recipe_of())
    model = make({"coordinates": "embedding"})
    new = part(model, "coordinate_head")
    assert start_from(path, model) == list(new)
    for name in ("backbone", "projection"):
        assert same(part(model, name), part(first, name))
    assert same(part(model, "coordinate_head"), new)
    assert start_from(path, make({})) == []


@pytest.mark.parametrize("other", [{"dim": 4}, {"hidden": 12}])
def test_a_head_is_taken_whole_or_not_at_all(tmp_path: Path, other: dict[str, Any]) -> None:
    # With another dim the first of its two layers would fit, with another hidden the last bias.
    path = tmp_path / "a.safetensors"
    first = model_of(recipe_of(), 1)
    save_checkpoint(path, first, recipe_of())
    model = make(other)
    before = part(model, "projection")
    assert start_from(path, model) == list(before)
    assert same(part(model, "projection"), before)
    assert same(part(model, "backbone"), part(first, "backbone"))


def test_another_backbone_or_other_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model_of(recipe_of()), recipe_of())
    with pytest.raises(ModelError, match=r"its backbone is test_resnet, and backbone\.\S+ of this model is") as caught:
        start_from(path, make({"backbone": "test_vit"}))
    assert caught.value.hint == "--set model.backbone=test_resnet"
    with pytest.raises(ModelError, match="trained with preprocessing size 32, and this model has 48") as caught:
        start_from(path, model_of(recipe_of(48)))
    assert caught.value.hint == "--set 'preprocessing.size=32'"
