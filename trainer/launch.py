"""From a recipe, photos and a folder to a run that is set up: what `fit` does before the first step."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from geoinfer.errors import InputError, ModelError, OutputError, UsageError
from geoinfer.lock import OutputLock
from geoinfer.machine import available_cores
from trainer.batches import drawn
from trainer.checkpoint import read_checkpoint_info, start_from
from trainer.data.examples import open_examples, read_manifest
from trainer.data.prepare import prepare
from trainer.devices import describe, make_fabric
from trainer.fit import Position, Run
from trainer.metrics import unwritable
from trainer.models import create_model
from trainer.models.backbones import PRETRAINED
from trainer.progress import Progress
from trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_fabric import Fabric

    from trainer.data.examples import Examples
    from trainer.models import GeoModel
    from trainer.recipe import DataTable, Recipe

_MOST_WORKERS: Final = 32
# What a run that goes on may be told anew: none of it changes what is learnt, but for rounding and what dropout draws.
_CHANGEABLE: Final = frozenset(("checkpoint_minutes", "compile", "channels_last", "micro_batch", "summary"))


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What is asked for besides the recipe.

    Attributes:
        data: a prepared set, or a source that `prepare` takes.
        out: folder of the run.
        images: folder that the names in a CSV are relative to.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: decoding threads of each process; None for what its share of the cores allows.
        restart: begin anew where there is a run.
        quiet: say nothing but errors.
    """

    data: Path
    out: Path
    images: Path | None = None
    device: str = "auto"
    workers: int | None = None
    restart: bool = False
    quiet: bool = False


def fit(recipe: Recipe, options: FitOptions) -> Position:
    """Trains a recipe, or goes on with a run of it.

    Raises:
        GeoInferError: one of its kinds, each a sentence; see `Run.go` and what this module checks before.
    """
    fabric = make_fabric(options.device, recipe.run.precision)
    first = fabric.global_rank == 0
    folder = RunFolder(options.out)
    with Progress(quiet=options.quiet or not first) as progress:
        if not first:
            fabric.barrier()  # the first makes the folder and the data
            return _train(recipe, options, folder, fabric, progress)
        folder.create()
        with _locked(folder):
            if options.restart:
                _clear(folder, options.data)
            _prepare_if_needed(recipe, options, folder, progress, ranks=fabric.world_size)
            fabric.barrier()
            return _train(recipe, options, folder, fabric, progress)


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    lock = OutputLock(folder.lock, folder.path)
    try:
        lock.take()
    except OutputError as error:
        raise OutputError(str(error), hint="wait for it, stop it, or choose another --out") from error
    except OSError as error:
        raise OutputError(f"{folder.lock}: cannot be made: {(error.strerror or str(error)).lower()}") from error
    with contextlib.ExitStack() as stack:
        stack.push(lock)
        yield


def _train(recipe: Recipe, options: FitOptions, folder: RunFolder, fabric: Fabric, progress: Progress) -> Position:
    first = fabric.global_rank == 0
    data = options.data if is_prepared(options.data) else folder.data
    fingerprint = {"recipe": recipe.as_dict(), "data": read_manifest(data)["sha256"]}
    resumed = folder.last.exists()
    if resumed:
        before = read_checkpoint_info(folder.last).progress.get("fingerprint")
        if before is None:
            raise ModelError(
                f"{folder.last}: it holds weights alone, and a run cannot go on from them",
                hint="another --out, or --restart",
            )
        _check_same(before, fingerprint, folder)
    examples = drawn(open_examples(data), recipe.data.images, recipe.data.seed)
    _check_photos(examples, data)
    torch.manual_seed(recipe.run.seed)
    model = _make_model(recipe, progress, resumed=resumed)
    device = describe(fabric, options.device)
    progress.say(f"device: {device}, {recipe.run.precision}")
    counts = {name: len(examples.of_split(name)) for name in ("train", "validation", "test")}
    manifest = read_manifest(data)
    progress.say(
        "photos: " + ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) + _split(manifest)
    )
    if not counts["validation"]:
        progress.say(
            "there are no validation photos: nothing says how good the model is, and its last weights are kept"
        )
    fabric.barrier()
    if first:
        try:
            folder.write_recipe(recipe)
            folder.write_environment(device, fabric.world_size, _about_data(data, manifest, counts))
        except OSError as error:
            raise unwritable(folder.path, error) from error
    run = Run(
        recipe,
        model,
        examples,
        folder,
        fabric,
        progress,
        fingerprint=fingerprint,
        workers=options.workers or min(_MOST_WORKERS, max(1, available_cores() // _local_ranks(fabric))),
    )
    position = run.go()
    if first:
        _conclude(run, position, folder, progress)
    return position


def _split(manifest: dict[str, Any]) -> str:
    split = manifest.get("split")
    if not isinstance(split, dict):
        return ""
    level = f", S2 level {split['level']}" if split.get("level") else ""
    how = "at random" if split["policy"] == "random" else f"by {split['policy']}"
    return f"; split {how}{level}, seed {split['seed']}, when it was prepared"


def _about_data(data: Path, manifest: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
    """What a run was trained on, for its environment: the recipe's `[data]` is about sources only."""
    return {
        "prepared": str(data.absolute()),
        "sha256": manifest["sha256"],
        "source": manifest.get("source"),
        "split": manifest.get("split"),
        "photos": counts,
    }


def photos(count: int) -> str:
    """`1 photo`, `12 photos`."""
    return f"{count:,} {'photo' if count == 1 else 'photos'}"


def _conclude(run: Run, position: Position, folder: RunFolder, progress: Progress) -> None:
    if run.bad_photos:
        progress.say(f"{photos(run.bad_photos)} could not be read and had to be left out: {folder.bad_photos}")
    best = "" if position.best_median_km == float("inf") else f", median error {position.best_median_km:,.0f} km"
    progress.say(f"{position.step:,} steps done; best weights{best}: {folder.best}")
    progress.say(f"curves: {folder.curves}, figures: {folder.metrics}")


def _make_model(recipe: Recipe, progress: Progress, *, resumed: bool) -> GeoModel:
    table = recipe.model
    # The checkpoint has all weights: nothing needs fetching.
    weights = "none" if resumed or table.start_from else table.weights
    if weights == PRETRAINED:
        # Before, not after: without a network it is a minute and more until timm gives up.
        progress.say(f"taking the weights of {table.backbone} from where they are, or fetching them")
    model = create_model(
        table.backbone,
        recipe.make_preprocessing(),
        weights=weights,
        dim=table.dim,
        hidden=table.hidden,
        dropout=table.dropout,
        coordinates=table.coordinates,
    )
    origin = "random weights" if weights == "none" else f"{table.weights} weights"
    if resumed:
        origin = "weights of the run's last checkpoint"
    elif table.start_from:
        new = _parts(start_from(Path(table.start_from), model))
        _check_learnt(recipe, new)
        origin = f"weights of {table.start_from}" + (f", new {', '.join(sorted(new.values()))}" if new else "")
    progress.say(f"model: {table.backbone}, {origin}; {model.preprocessing}")
    if recipe.run.channels_last:
        model.use_channels_last()
    return model


def _parts(names: list[str]) -> dict[str, str]:
    """The parts of a model that some weights belong to: as `train.heads` calls them, and in words."""
    words = {"projection": "projection", "coordinate_head": "coordinate head"}
    keys = {"projection": "projection", "coordinate_head": "coordinates"}
    return {keys[part]: words[part] for part in {name.partition(".")[0] for name in names}}


def _check_learnt(recipe: Recipe, new: dict[str, str]) -> None:
    """Refuses to build on random numbers: a new head that stays frozen from the first stage on."""
    for head, words in new.items():
        if head not in recipe.stages[0].train.heads:
            raise UsageError(
                f"{recipe.model.start_from}: it has no {words} that fits, and stages.0.train.heads leaves a new one "
                "as it is, random",
                hint="set model.dim, model.hidden and model.coordinates as that run had them",
            )


def _prepare_if_needed(
    recipe: Recipe, options: FitOptions, folder: RunFolder, progress: Progress, *, ranks: int
) -> None:
    if is_prepared(options.data):
        if options.images is not None:
            raise UsageError(f"--images: {options.data} is prepared, and knows where its photos are")
        return
    if ranks > 1:
        raise UsageError(
            f"--data: {options.data} is not prepared, and {ranks} processes would wait for one to do it",
            hint=f"python -m trainer prepare {options.data} --out FOLDER, then --data FOLDER",
        )
    table = recipe.data
    if is_prepared(folder.data):
        made = read_manifest(folder.data)
        same = Path(made["source"]).resolve() == options.data.resolve()
        if folder.last.exists():
            if same:
                return
            raise UsageError(
                f"--data: {folder.path} was begun with {made['source']}, not with {options.data}",
                hint="give the same source, another --out, or --restart",
            )
        if same and _split_as(made, table):
            return  # stopped before the first checkpoint
    progress.say(f"preparing {options.data}")
    report = prepare(
        options.data,
        folder.data,
        images=options.images,
        split=table.split,
        validation=table.validation,
        test=table.test,
        split_level=table.split_level,
        seed=table.seed,
        subset=table.images,
    )
    for line in report.lines():
        progress.say(f"  {line}" if line else line)


def _split_as(made: dict[str, Any], table: DataTable) -> bool:
    """Whether a set was prepared as `[data]` asks for."""
    split = made["split"]
    return (
        split["policy"] == table.split
        and split["level"] in (None, table.split_level)
        and split["validation"] == table.validation
        and split["test"] in ("of the source", table.test)
        and split["seed"] == table.seed
        and made["subset"] == table.images
    )


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a set that `prepare` wrote, so far as its names tell."""
    return (folder / "manifest.json").is_file() and (folder / "examples.parquet").is_file()


def _check_photos(examples: Examples, data: Path) -> None:
    if len(examples.of_split("train")) == 0:
        raise InputError(f"{data}: it has no training photos", hint="prepare it with smaller shares of the others")


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: RunFolder) -> None:
    """Refuses to go on with another recipe or other photos, and names the first key that differs."""
    hint = "give what the run was begun with, another --out, or --restart"
    if before["data"] != now["data"]:
        raise UsageError(f"{folder.path}: the run was begun with other photos, or another split of them", hint=hint)
    for key, (old, new) in _differences(before["recipe"], now["recipe"], "").items():
        raise UsageError(f"{folder.path}: {key} was {old!r} when the run was begun, and is {new!r} now", hint=hint)


def _differences(old: Any, new: Any, place: str) -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = {key: (old.get(key), new.get(key)) for key in [*old, *(k for k in new if k not in old)]}
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = {str(i): pair for i, pair in enumerate(zip(old, new, strict=True))}
    else:
        return {} if old == new else {place: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key, (a, b) in pairs.items():
        if key not in _CHANGEABLE:
            found |= _differences(a, b, f"{place}.{key}" if place else key)
    return found


def _clear(folder: RunFolder, data: Path) -> None:
    folders = [folder.tensorboard, folder.checkpoints]
    # Only what the run prepared itself, and not where that is what was asked for.
    if is_prepared(folder.data) and data.resolve() != folder.data.resolve():
        folders.append(folder.data)
    try:
        for name in folders:
            shutil.rmtree(name, ignore_errors=not name.exists())
        for name in (folder.metrics, folder.bad_photos, folder.curves, folder.environment):
            name.unlink(missing_ok=True)
        folder.checkpoints.mkdir()
    except OSError as error:
        raise OutputError(f"{folder.path}: cannot be cleared: {(error.strerror or str(error)).lower()}") from error


def _local_ranks(fabric: Fabric) -> int:
    return max(1, fabric.world_size // max(1, getattr(fabric.strategy, "num_nodes", 1) or 1))
