"""Rates of heads and backbone, what is decayed, and the schedule at steps worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pydantic")

from geoinfer.images import Preprocessing  # noqa: E402
from trainer.models import create_model, freeze  # noqa: E402
from trainer.optimisation import make_optimizer, rate_factor, set_rates  # noqa: E402
from trainer.recipe import OptimiserTable  # noqa: E402

pytestmark = pytest.mark.slow


def model(policy: str = "last:2", **options: Any) -> Any:
    made = create_model("test_vit", Preprocessing(32), weights="none", dim=8, hidden=16, **options)
    freeze(made, policy)
    return made


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_each_parameter_has_its_rate_and_decay(name: Any, kind: type) -> None:
    made = model(coordinates="embedding")
    optimizer = make_optimizer(made, OptimiserTable(name=name, lr_head=1e-4, lr_backbone=1e-5, weight_decay=0.05))
    assert type(optimizer) is kind
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(of)
    for parameter_name, parameter in made.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in of
            continue
        group = of[id(parameter)]
        assert group["lr"] == (1e-5 if parameter_name.startswith("backbone.") else 1e-4), parameter_name
        plain = parameter_name.endswith(".bias") or "norm" in parameter_name
        assert group["weight_decay"] == (0.0 if plain else 0.05), parameter_name


def test_only_heads() -> None:
    optimizer = make_optimizer(model("none"), OptimiserTable())
    assert {group["part"] for group in optimizer.param_groups} == {"head"}
    assert set_rates(optimizer, OptimiserTable(lr_head=0.5), 0, 10) == {"head": 1e-4}


def test_decay_shrinks_matrices_and_not_norms() -> None:
    made = model("all")
    table = OptimiserTable(name="adamw", lr_head=0.1, lr_backbone=0.01, weight_decay=0.5)
    optimizer = make_optimizer(made, table)
    before = {n: p.detach().clone() for n, p in made.named_parameters()}
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in made.named_parameters():
        rate = 0.01 if name.startswith("backbone.") else 0.1
        decays = parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))
        factor = 1 - rate * 0.5 if decays else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_constant() -> None:
    table = OptimiserTable()
    assert [rate_factor(table, step, 100) for step in (0, 1, 50, 99)] == [1.0] * 4


def test_warm_up_rises_in_equal_steps() -> None:
    table = OptimiserTable(warmup_steps=4)
    assert [rate_factor(table, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_by_hand() -> None:
    table = OptimiserTable(schedule="cosine", warmup_steps=2)
    # 10 steps, 8 of them on the cosine: full at its begin, half in its middle, about to vanish at its end.
    assert rate_factor(table, 0, 10) == 0.5
    assert rate_factor(table, 1, 10) == 1.0
    assert rate_factor(table, 2, 10) == 1.0
    assert rate_factor(table, 4, 10) == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-15)
    assert rate_factor(table, 6, 10) == pytest.approx(0.5, rel=1e-15)
    assert rate_factor(table, 8, 10) == pytest.approx((1 - math.sqrt(0.5)) / 2, rel=1e-15)
    assert 0 < rate_factor(table, 9, 10) < 0.04
    assert rate_factor(table, 10, 10) == pytest.approx(0, abs=1e-15)
    assert rate_factor(table, 1000, 10) == pytest.approx(0, abs=1e-15)


def test_more_warm_up_than_steps() -> None:
    table = OptimiserTable(schedule="cosine", warmup_steps=50)
    assert [rate_factor(table, step, 10) for step in (0, 9)] == [0.02, 0.2]


def test_rates_follow_from_the_step_alone() -> None:
    table = OptimiserTable(lr_head=1e-3, lr_backbone=1e-5, schedule="cosine", warmup_steps=2)
    optimizer = make_optimizer(model(), table)
    assert set_rates(optimizer, table, 0, 10) == {"head": 5e-4, "backbone": 5e-6}
    forward = [set_rates(optimizer, table, step, 10) for step in range(10)]
    backward = [set_rates(optimizer, table, step, 10) for step in reversed(range(10))]
    assert forward == backward[::-1]
    rates = set_rates(optimizer, table, 6, 10)
    assert rates == pytest.approx({"head": 5e-4, "backbone": 5e-6})
    assert {group["part"]: group["lr"] for group in optimizer.param_groups} == rates
