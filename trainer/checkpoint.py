"""Checkpoints: safetensors with everything in one file, so that saving is one rename and nothing is ever pickled.

`model.*` are the weights. The metadata says which model they belong to (backbone, heads, preprocessing), so a
checkpoint needs no other file to be used. A checkpoint that a run resumes from also holds `optimizer.*` and `memory.*`,
and where the run stood.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from geoinfer.errors import GeoInferError, InputError, InterruptedRunError, ModelError, UsageError
from geoinfer.images import Preprocessing
from geoinfer.integrity import canonical_json, sync_file, sync_folder, temporary_name
from trainer.models import create_model
from trainer.models.backbones import RANDOM

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trainer.models import GeoModel
    from trainer.recipe import Recipe

FORMAT: Final = 1
_KEY: Final = "geoinfer"
_MODEL, _OPTIMIZER, _MEMORY = "model.", "optimizer.", "memory."


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        model: backbone, dim, hidden, dropout and coordinates, as `create_model` takes them.
        preprocessing: that the model was trained with.
        recipe: the resolved recipe, plain values.
        progress: where the run stood, plain values; empty for weights alone.
    """

    model: dict[str, Any]
    preprocessing: Preprocessing
    recipe: dict[str, Any]
    progress: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a run needs besides weights to go on as if it had never stopped.

    Attributes:
        optimizer: torch's own state dict of the optimizer.
        memory: of the cross-batch memory; empty without one.
        progress: plain values, such as stage, epoch and step.
    """

    optimizer: dict[str, Any]
    memory: dict[str, torch.Tensor]
    progress: dict[str, Any]


def save_checkpoint(path: Path, model: GeoModel, recipe: Recipe, state: TrainingState | None = None) -> None:
    """Writes a checkpoint that is whole or not there: what was at `path` before survives any failure.

    Raises:
        InterruptedRunError: it cannot be written, for instance because the disk is full.
    """
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    about: dict[str, Any] = {
        "format": FORMAT,
        "model": {
            "backbone": recipe.model.backbone,
            "dim": recipe.model.dim,
            "hidden": recipe.model.hidden,
            "dropout": recipe.model.dropout,
            "coordinates": recipe.model.coordinates,
        },
        "preprocessing": model.preprocessing.as_dict(),
        "recipe": recipe.as_dict(),
        "progress": {},
    }
    if state is not None:
        about["progress"] = state.progress
        moments, about["optimizer"] = _flatten(state.optimizer)
        tensors |= {_OPTIMIZER + name: tensor for name, tensor in moments.items()}
        tensors |= {_MEMORY + name: tensor for name, tensor in state.memory.items()}
    temporary = temporary_name(path)
    try:
        save_file(_plain(tensors), temporary, metadata={_KEY: canonical_json(about)})
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _system_words(str(error))
        kept = "the one before it is whole" if path.exists() else "there is none before it"
        raise InterruptedRunError(
            f"{path}: the checkpoint cannot be written: {reason.lower()}; {kept}",
            hint="make room and run the same command again: it goes on from the last checkpoint",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_checkpoint_info(path: Path) -> CheckpointInfo:
    """Reads what a checkpoint says of itself, without its tensors.

    Raises:
        InputError: it is not there or cannot be read.
        ModelError: it is no checkpoint of the trainer's.
    """
    about = _about(path)
    try:
        return CheckpointInfo(
            model={key: about["model"][key] for key in ("backbone", "dim", "hidden", "dropout", "coordinates")},
            preprocessing=Preprocessing.from_dict(about["preprocessing"]),
            recipe=about["recipe"],
            progress=about["progress"],
        )
    except KeyError as error:
        raise ModelError(f"{path}: its metadata is damaged: it has no {error}") from error
    except (TypeError, GeoInferError) as error:
        raise ModelError(f"{path}: its metadata is damaged: {error}") from error


def load_model(path: Path) -> tuple[GeoModel, CheckpointInfo]:
    """Builds the model that a checkpoint describes, with its weights, in eval mode on the CPU.

    Raises:
        InputError: it is not there or cannot be read.
        ModelError: it is no checkpoint of the trainer's, or its weights are not those of the model it names.
    """
    info = read_checkpoint_info(path)
    try:
        model = create_model(preprocessing=info.preprocessing, weights=RANDOM, **info.model)
    except UsageError as error:
        raise ModelError(f"{path}: the model that it describes cannot be built: {error}", hint=error.hint) from error
    load_weights(path, model)
    return model.eval(), info


def load_weights(path: Path, model: GeoModel) -> None:
    """Loads a checkpoint's weights into a model of the same make.

    Raises:
        InputError: it is not there or cannot be read.
        ModelError: names or shapes differ; the first difference is named.
    """
    weights = _tensors(path, _MODEL)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights:
            raise ModelError(f"{path}: it has no {name}, which this model has")
        if tuple(weights[name].shape) != shape:
            raise ModelError(f"{path}: {name} is {tuple(weights[name].shape)}, and {shape} in this model")
    foreign = sorted(set(weights) - set(expected))
    if foreign:
        raise ModelError(f"{path}: it has {foreign[0]}, which this model has not")
    model.load_state_dict(weights)


def start_from(path: Path, model: GeoModel) -> list[str]:
    """Begins with another run's weights, and returns the names of those that stay as they were.

    The backbone must be the same. A head is taken if names and shapes of all its weights agree, and otherwise left
    whole: half of one head is no use to the other half.

    Raises:
        InputError: it is not there or cannot be read.
        ModelError: it is no checkpoint of the trainer's, or its backbone or preprocessing is another.
    """
    info = read_checkpoint_info(path)
    theirs, ours = info.preprocessing.as_dict(), model.preprocessing.as_dict()
    for key in ours:
        if theirs[key] != ours[key]:
            raise ModelError(
                f"{path}: it was trained with preprocessing {key} {theirs[key]}, and this model has {ours[key]}",
                hint=f"--set 'preprocessing.{key}={json.dumps(theirs[key])}'",
            )
    weights = _tensors(path, _MODEL)
    own = model.state_dict()
    fitting = {name: t for name, t in weights.items() if name in own and own[name].shape == t.shape}
    incomplete = {_part(name): name for name in reversed(own) if name not in fitting}
    if "backbone" in incomplete:
        raise ModelError(
            f"{path}: its backbone is {info.model['backbone']}, and {incomplete['backbone']} of this model is another",
            hint=f"--set model.backbone={info.model['backbone']}",
        )
    model.load_state_dict({name: t for name, t in fitting.items() if _part(name) not in incomplete}, strict=False)
    return [name for name in own if _part(name) in incomplete]


def load_training_state(path: Path) -> TrainingState:
    """Reads what a run goes on from.

    Raises:
        InputError: it is not there or cannot be read.
        ModelError: it is no checkpoint of the trainer's, or holds weights alone.
    """
    about = _about(path)
    if not about.get("progress") or "optimizer" not in about:
        raise ModelError(f"{path}: it holds weights alone, and a run cannot go on from them")
    try:
        optimizer = _unflatten(_tensors(path, _OPTIMIZER), about["optimizer"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: what it says of the optimizer is damaged") from error
    return TrainingState(optimizer=optimizer, memory=_tensors(path, _MEMORY), progress=about["progress"])


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors takes them: on the CPU, in rows (channels-last ones are not), none sharing memory."""
    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # Some of timm's architectures use one weight in two places, under two names.
        place = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if value.numel() and place in seen else value
        seen.add(place)
    return plain


def _part(name: str) -> str:
    return name.partition(".")[0]


def _system_words(message: str) -> str:
    # safetensors wraps them: "Error while serializing: I/O error: No space left on device (os error 28)".
    return message.partition(" (os error")[0].rpartition(": ")[2]


def _umask() -> int:
    # There is no way to ask for it but to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint", hint="a run keeps its own in RUN/checkpoints")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except SafetensorError as error:
        raise ModelError(
            f"{path}: not a whole safetensors file: {error}",
            hint="copy it again, or take the other checkpoint of its run",
        ) from error
    if text is None:
        raise ModelError(f"{path}: a safetensors file, but no checkpoint of the trainer's")
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise ModelError(f"{path}: its metadata is damaged: it is no JSON object")
    if about.get("format") != FORMAT:
        raise ModelError(f"{path}: its format is {about.get('format')}, and this trainer reads {FORMAT}")
    return about


def _tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: damaged: {error}") from error


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and plain values."""
    tensors, plain = {}, {}
    for number, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{key}"] = value
            else:
                plain[f"{number}.{key}"] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def _unflatten(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *about["plain"].items()]:
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    return {"state": state, "param_groups": about["param_groups"]}
