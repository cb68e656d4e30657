"""Which weights learn: policies by name, and what stays as it was when they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn

from geoinfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trainer.models.embedder import GeoModel

Head = Literal["projection", "coordinates"]

# What timm's families call the sequence of their blocks.
_BLOCKS: Final = ("blocks", "stages", "layers")
_RESNET: Final = ("layer1", "layer2", "layer3", "layer4")


def freeze(model: GeoModel, backbone: str, heads: Sequence[Head] = ("projection", "coordinates")) -> None:
    """Lets a part of a model learn, and nothing else.

    Args:
        model: changed in place: `requires_grad` of every parameter is set.
        backbone: `all`, `none`, `last:n` (the last n blocks and what follows them, such as a final norm), or names of
            its modules joined by `+`, as in `layer3+layer4`.
        heads: those that learn, of the ones that the model has.

    Raises:
        UsageError: the policy names something that this backbone does not have; the message says what it has. Or
            nothing at all would learn.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    modules: list[nn.Module] = list(_policy(model.backbone, backbone))
    if "projection" in heads and model.projection is not None:
        modules.append(model.projection)
    if "coordinates" in heads and model.coordinate_head is not None:
        modules.append(model.coordinate_head)
    for module in modules:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"train.backbone is {backbone!r} and train.heads {list(heads)}: nothing would learn")


def training_mode(model: GeoModel, *, batch_norm: bool) -> None:
    """Switches dropout on where something learns, and batch norms to what is wanted.

    Frozen blocks answer as they would in use: without dropout, by the statistics that their weights were trained with.

    Args:
        model: changed in place, after `freeze`.
        batch_norm: whether the batch norms among what learns take their statistics from the batch. Otherwise all keep
            those of pretraining, which makes an embedding independent of what else is in the batch.
    """
    for module in model.modules():
        own = list(module.parameters())
        module.training = not own or any(parameter.requires_grad for parameter in own)
        # timm has norms of its own that keep statistics like torch's and share no base with them.
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            module.training = module.training and batch_norm
    # A module without parameters (dropout, stochastic depth) goes with the block that it stands in.
    for module in model.modules():
        if not module.training:
            for child in module.modules():
                child.training = False


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of a backbone, first to last; empty where none of timm's usual names is there."""
    if all(hasattr(backbone, name) for name in _RESNET):
        return [getattr(backbone, name) for name in _RESNET]
    for name in _BLOCKS:
        container = getattr(backbone, name, None)
        if isinstance(container, (nn.Sequential, nn.ModuleList)):
            return list(container)
    return []


def count_parameters(modules: nn.Module, *, learnable: bool = False) -> int:
    """How many numbers a module holds, or learns."""
    return sum(p.numel() for p in modules.parameters() if p.requires_grad or not learnable)


def _policy(backbone: nn.Module, policy: str) -> Iterable[nn.Module]:
    if policy == "all":
        return [backbone]
    if policy == "none":
        return []
    if policy.startswith("last:"):
        return _last_blocks(backbone, policy)
    names = [name.strip() for name in policy.split("+")]
    known = dict(backbone.named_modules())
    for name in names:
        if not name or name not in known:
            children = ", ".join(child for child, _ in backbone.named_children())
            raise UsageError(
                f"train.backbone is {policy!r}: this backbone has no {name!r}; it has {children}",
                hint="say all, none, last:N, or names of modules joined by +",
            )
    return [known[name] for name in names]


def _last_blocks(backbone: nn.Module, policy: str) -> list[nn.Module]:
    blocks = blocks_of(backbone)
    wanted = policy.removeprefix("last:")
    if not blocks:
        children = ", ".join(child for child, _ in backbone.named_children())
        raise UsageError(
            f"train.backbone is {policy!r}: where this backbone's blocks are is not known",
            hint=f"name its modules instead, joined by +; it has {children}",
        )
    if not wanted.isdecimal() or not 1 <= int(wanted) <= len(blocks):
        raise UsageError(f"train.backbone is {policy!r}: this backbone has {len(blocks)} blocks, so 1 to {len(blocks)}")
    # What comes after the blocks is told by order, which is that of the forward pass in every one of timm's families.
    inside = {id(module) for block in blocks for module in block.modules()}
    after: list[nn.Module] = []
    for _, child in backbone.named_children():
        if any(id(module) in inside for module in child.modules()):
            after = []
        else:
            after.append(child)
    return [*blocks[-int(wanted) :], *after]
