"""Optimisers with a rate for the heads and one for the backbone, and how the rates change over a stage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trainer.models import GeoModel
    from trainer.recipe import OptimiserTable


def make_optimizer(model: GeoModel, table: OptimiserTable) -> torch.optim.Optimizer:
    """The optimizer of a stage over what learns in it.

    Its parameter groups carry `base_lr`, which `set_rates` scales. Norms and biases are not decayed, nor what timm
    names for an architecture, such as position embeddings: as is usual for transformers.
    """
    named: Any = getattr(model.backbone, "no_weight_decay", set)
    spared = {f"backbone.{name}" for name in named()}
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if name.startswith("backbone.") else "head"
            groups.setdefault((part, parameter.ndim > 1 and name not in spared), []).append(parameter)
    rates = {"head": table.lr_head, "backbone": table.lr_backbone}
    listed: list[dict[str, Any]] = [
        {
            "params": parameters,
            "part": part,
            "base_lr": rates[part],
            "lr": rates[part],
            "weight_decay": table.weight_decay if decayed else 0.0,
        }
        for (part, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    kind = torch.optim.Adam if table.name == "adam" else torch.optim.AdamW
    return kind(listed)


def set_rates(optimizer: torch.optim.Optimizer, table: OptimiserTable, step: int, steps: int) -> dict[str, float]:
    """Sets the rates for one step; they depend on nothing but the step, so that a resumed run has the same.

    Args:
        optimizer: of `make_optimizer`.
        table: its recipe.
        step: of the stage, from 0.
        steps: of the stage.

    Returns:
        The rate of each part, `head` and `backbone`.
    """
    factor = rate_factor(table, step, steps)
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        rates[group["part"]] = group["lr"]
    return rates


def rate_factor(table: OptimiserTable, step: int, steps: int) -> float:
    """What a rate is multiplied by: a linear rise over `warmup_steps`, then 1, or half a cosine down to 0."""
    if step < table.warmup_steps:
        return (step + 1) / table.warmup_steps
    if table.schedule == "constant":
        return 1.0
    after, length = step - table.warmup_steps, max(1, steps - table.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, after / length)))
