"""Steps in parts against steps of the whole batch: loss, gradients, what dropout draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lightning_fabric import Fabric  # noqa: E402

from tests.trainer.step_cases import (  # noqa: E402
    StepCase,
    answers_as_wide_as_the_model,
    make_batch,
    make_memory,
    make_model,
    share_of,
    take_step,
)
from tests.trainer.tiny_runs import stage, tiny_recipe  # noqa: E402
from trainer.objective import Answers, Objective  # noqa: E402
from trainer.step import DeviceBatch, backward  # noqa: E402

pytestmark = pytest.mark.slow

KINDS = ["supcon", "hierarchical", "triplet", "soft_supcon", "haversine"]


def exact_fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1, precision="64-true")


def by_hand(case: StepCase, batch: DeviceBatch, masks: list[Any] | None = None) -> tuple[float, dict[str, Any]]:
    """The plain way: forward, loss, backward, of the photos that can be read."""
    model = make_model(case).double()
    if masks is not None:
        model.projection[2] = Masks(masks)
    objective = Objective(
        tiny_recipe("model.coordinates=embedding", stages=[stage(kind=case.kind)]).stages[0].losses, model
    )
    batch = batch.rows(batch.valid)
    answers = Answers(model(batch.pixels), batch.leaf_cells, batch.coordinates)
    loss, _ = objective(answers, make_memory() if case.memory else None)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


class Masks(torch.nn.Module):
    """Dropout by masks that are given, or drawn and kept."""

    def __init__(self, masks: list[Any] | None = None) -> None:
        super().__init__()
        self.given = list(masks) if masks is not None else None
        self.drawn: list[Any] = []

    def forward(self, x: Any) -> Any:
        if self.given is not None:
            return x * self.given.pop(0)
        self.drawn.append(torch.nn.functional.dropout(torch.ones_like(x), 0.3))
        return x * self.drawn[-1]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch", [0, 1, 4, 5, 12, 50])
def test_parts_learn_what_the_whole_batch_does(kind: str, micro_batch: int) -> None:
    case = StepCase(kind, micro_batch)
    loss, gradients = by_hand(case, make_batch(case.count))
    result, found = take_step(exact_fabric(), case)
    assert result.loss == pytest.approx(loss, rel=1e-12)
    assert_same(found, gradients)


@pytest.mark.parametrize("kind", ["supcon", "triplet", "soft_supcon"])
@pytest.mark.parametrize("micro_batch", [0, 5])
@pytest.mark.parametrize("bad", [(), (0, 7)])
def test_parts_with_memory_and_bad_photos(kind: str, micro_batch: int, bad: tuple[int, ...]) -> None:
    case = StepCase(kind, micro_batch, bad=bad, memory=True)
    batch = share_of(make_batch(case.count), 0, 1, bad)
    loss, gradients = by_hand(case, batch)
    result, found = take_step(exact_fabric(), case)
    assert result.loss == pytest.approx(loss, rel=1e-12)
    assert result.loss != pytest.approx(take_step(exact_fabric(), replace(case, memory=False))[0].loss, rel=1e-6)
    assert len(result.answers) == case.count - len(bad)
    assert not result.answers.outputs.requires_grad
    assert_same(found, gradients)


@pytest.mark.parametrize("bad", [(), (0, 7)])
def test_both_passes_over_a_part_drop_the_same(bad: tuple[int, ...]) -> None:
    case = StepCase("supcon", 5, bad=bad)
    batch = share_of(make_batch(case.count), 0, 1, bad)
    model = make_model(case)
    model.projection[2] = masks = Masks()
    fabric = exact_fabric()
    wrapped, _ = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
    objective = Objective(tiny_recipe().stages[0].losses, model)

    def step(seed: int) -> tuple[float, list[Any]]:
        masks.drawn.clear()
        model.zero_grad()
        with answers_as_wide_as_the_model(model):
            result = backward(fabric, wrapped, objective, batch, seed=seed, micro_batch=5)
        return result.loss, list(masks.drawn)

    _, other = step(8)
    found, drawn = step(9)
    assert len(drawn) == 6
    for first, second in zip(drawn[:3], drawn[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(drawn[0], drawn[1])  # each part another
    assert not torch.equal(drawn[0], other[0])  # each step another
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(drawn, step(9)[1], strict=True))  # whatever was drawn before
    # The gradient is that of the whole batch with just these masks.
    loss, gradients = by_hand(case, batch, [torch.cat(drawn[:3])[batch.valid]])
    assert found == pytest.approx(loss, rel=1e-12)
    assert_same({name: p.grad for name, p in model.named_parameters()}, gradients)


def test_in_bf16_parts_are_near_the_whole_batch() -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    whole, gradients = take_step(fabric, StepCase("supcon"))
    parts, found = take_step(fabric, StepCase("supcon", 4))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    for name in ("projection.0.weight", "projection.3.weight"):
        torch.testing.assert_close(found[name], gradients[name], rtol=0.05, atol=1e-3)


def test_nothing_flows_back_when_the_check_refuses() -> None:
    case = StepCase("supcon", 4, bad=(2,))
    model = make_model(case)
    fabric = exact_fabric()
    wrapped, _ = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
    seen = []

    def check(loss: float, photos: int) -> None:
        seen.append((loss, photos))
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        backward(
            fabric, wrapped, Objective(tiny_recipe().stages[0].losses, model),
            share_of(make_batch(12), 0, 1, (2,)), seed=1, micro_batch=4, check=check,
        )  # fmt: skip
    assert [photos for _, photos in seen] == [11]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_one_photo(kind: str) -> None:
    result, gradients = take_step(exact_fabric(), StepCase(kind, count=1))
    assert result.loss >= 0
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
