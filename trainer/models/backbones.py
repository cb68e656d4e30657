"""Backbones by timm: any architecture it knows, with weights from the network, from a file or from a package."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import timm
import torch

from geoinfer.errors import InputError, ModelError, UsageError
from trainer.efficientnet_lite import load_efficientnet_lite

if TYPE_CHECKING:
    from collections.abc import Iterator

PRETRAINED: Final = "pretrained"
RANDOM: Final = "none"

_HOW_TO_SAVE: Final = (
    "save them from timm with safetensors.torch.save_file(model.state_dict(), FILE); a checkpoint of the trainer is "
    "given with --set model.start_from=FILE"
)
_EFFICIENTNET_LITE: Final = re.compile(r"tf_efficientnet_lite([012])(\.in1k)?")


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        module: (n, 3, size, size) normalised float -> (n, width) pooled activations.
        width: length of what it answers with.
        mean: per channel, that its weights were trained with.
        std: likewise.
        weights: where they come from, in words.
    """

    module: torch.nn.Module
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str


def create_backbone(name: str, weights: str = PRETRAINED, *, size: int = 224) -> Backbone:
    """Builds a backbone.

    Args:
        name: as timm knows it, with the tag of its weights (`resnet50.a1_in1k`) or without, for its default ones.
        weights: `pretrained` fetches timm's through its cache, so that a network is needed the first time only
            (EfficientNet-Lite's come from their package); `none` starts from random numbers; anything else is a file of
            timm's own format, safetensors or PyTorch.
        size: side of the pictures in pixels. Position embeddings of a transformer are resampled to fit.

    Raises:
        UsageError: timm does not know the name or its tag, or the architecture does not take pictures of this size.
        InputError: the weights cannot be fetched, or the file is not there.
        ModelError: the file's weights are not those of this architecture.
    """
    check_name(name)
    lite = _EFFICIENTNET_LITE.fullmatch(name)
    try:
        if weights == PRETRAINED and lite:
            module, origin = load_efficientnet_lite(int(lite[1])), "from their package"
        elif weights == RANDOM:
            module, origin = timm.create_model(name, pretrained=False, num_classes=0), "random"
        elif weights == PRETRAINED:
            module, origin = _fetched(name), "timm's"
        else:
            module, origin = _from_file(name, Path(weights)), f"from {Path(weights).name}"
    except RuntimeError as error:
        if isinstance(error, UsageError):
            raise
        raise ModelError(f"model.backbone {name}: {_first_line(error)}") from error
    configuration: dict[str, Any] = getattr(module, "pretrained_cfg", {})
    _set_size(module, name, size)
    return Backbone(
        module=module,
        width=_width(module, name, size),
        mean=tuple(configuration.get("mean", (0.5, 0.5, 0.5))),
        std=tuple(configuration.get("std", (0.5, 0.5, 0.5))),
        weights=origin,
    )


def normalisation_of(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std that the weights of a backbone were trained with, without building it.

    Raises:
        UsageError: timm does not know the name or its tag.
    """
    check_name(name)
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    (a, b, c), (d, e, f) = configuration.mean, configuration.std
    return (a, b, c), (d, e, f)


def check_name(name: str, called: str = "model.backbone") -> None:
    """Raises UsageError, with the nearest names, if timm does not know an architecture, or the tag of its weights.

    Args:
        name: with or without a tag.
        called: what the error calls it.
    """
    architecture, _, tag = name.partition(".")
    if timm.is_model(name):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
            raise UsageError(
                f"{called} is {name!r}: timm {timm.__version__} has no weights {tag!r} of {architecture}",
                hint=f"it has {', '.join(tags)}" if tags else "leave the tag out",
            ) from error
        return
    known = timm.list_models()
    near = difflib.get_close_matches(architecture, known, n=3)
    raise UsageError(
        f"{called} is {name!r}, which timm {timm.__version__} does not know",
        hint=f"near it are {', '.join(near)}" if near else "timm.list_models() names them all",
    )


def _fetched(name: str) -> torch.nn.Module:
    with _quiet_hub():
        try:
            return timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # what a network and its libraries raise is of many kinds
            raise InputError(
                f"the weights of {name} cannot be fetched: {_first_line(error)}",
                hint="give a file of them with --set model.weights=FILE, or start from random ones with "
                "--set model.weights=none",
            ) from error


def _from_file(name: str, path: Path) -> torch.nn.Module:
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such file of weights",
            hint=f"model.weights is {PRETRAINED}, {RANDOM} or a file of timm's weights",
        )
    weights = _read_weights(path)
    # timm drops the classifier of its own accord, but then takes any file at all: what is missing stays random. Without
    # a classifier in its configuration it is strict, and tells.
    configuration = timm.get_pretrained_cfg(name)
    classifiers = configuration.classifier if configuration else None
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers or ():
        for role in ("weight", "bias"):
            weights.pop(f"{classifier}.{role}", None)
    try:
        try:
            return _built_with(name, weights, strict=True)
        except RuntimeError as error:
            # More than the architecture has is no harm: a classifier of another name, a distillation head.
            if "Unexpected key" not in str(error) or _misfit(error):
                raise
            return _built_with(name, weights, strict=False)
    except Exception as error:  # what timm makes of a foreign file before it loads it may fail in any way
        raise ModelError(
            f"{path}: not weights of {name}: {_misfit(error) or _first_line(error)}", hint=_HOW_TO_SAVE
        ) from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles that it goes on to refuse
            weights = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch and safetensors raise nearly anything on a foreign file
        raise ModelError(
            f"{path}: no weights that can be read: damaged, of another format, or a pickle of more than tensors, whose "
            "code is not run",
            hint=_HOW_TO_SAVE,
        ) from error
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{path}: it holds something else than named tensors", hint=_HOW_TO_SAVE)
    return dict(weights)


def _built_with(name: str, weights: dict[str, torch.Tensor], *, strict: bool) -> torch.nn.Module:
    overlay = {"state_dict": dict(weights), "classifier": None, "custom_load": False}
    module: torch.nn.Module = timm.create_model(
        name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, pretrained_strict=strict
    )
    kept: Any = module.pretrained_cfg
    kept["state_dict"] = None  # otherwise the module would hold all weights twice
    return module


def _misfit(error: BaseException) -> str:
    """The first name or shape in which torch says that a file and an architecture differ; empty if it says none."""
    text = str(error)
    if missing := re.search(r'Missing key\(s\) in state_dict: "([^"]+)"', text):
        return f"it has no {missing[1]}"
    if shapes := re.search(r"size mismatch for (\S+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]", text):
        return f"{shapes[1]} is ({shapes[2]}) in the file, and ({shapes[3]}) in the architecture"
    return ""


def _set_size(module: torch.nn.Module, name: str, size: int) -> None:
    # Only architectures with something that depends on the size have the method; the others take any.
    set_input_size: Any = getattr(module, "set_input_size", None)
    if set_input_size is None:
        return
    try:
        set_input_size(img_size=size)
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        raise UsageError(f"{name} does not take pictures of {size} pixels: {_first_line(error)}") from error


def _width(module: torch.nn.Module, name: str, size: int) -> int:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            answer = module(torch.zeros(1, 3, size, size, device=next(module.parameters()).device))
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} does not take pictures of {size} pixels: {_first_line(error)}") from error
    finally:
        module.train(training)
    if answer.ndim != 2:
        raise UsageError(f"{name} answers with shape {tuple(answer.shape)[1:]}, not with one vector a picture")
    return int(answer.shape[1])


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    # Without a network it logs a dozen retries; our own error says it once.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
