"""What all losses over pairs share: full precision under autocast, bounded memory, speed at 4096 x 256."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import trainer.losses as losses  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

LEVELS = 4


def batch(count: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings in float64, labels of four nested levels, coordinates."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)
    leaves = torch.randint(2**20, (count,), generator=generator)
    uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    places = torch.stack([uniform[:, 0] * 20 + 40, uniform[:, 1] * 20], 1)
    return rows, torch.stack([leaves >> (18 - 2 * level) for level in range(LEVELS)], 1), places


def with_memory(
    loss: Callable[..., torch.Tensor], name: str, *args: object, **options: object
) -> Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]:
    """A loss of (embeddings, companions, anchors), the rows beyond the anchors in the memory."""

    def joined(rows: torch.Tensor, companions: torch.Tensor, anchors: int) -> torch.Tensor:
        memory = {"memory_embeddings": rows[anchors:], f"memory_{name}": companions[anchors:]}
        return loss(rows[:anchors], companions[:anchors], *args, **options, **memory)

    return joined


LOSSES = {
    "supcon": (1, with_memory(losses.supervised_contrastive_loss, "labels")),
    "supcon sharp": (1, with_memory(losses.supervised_contrastive_loss, "labels", temperature=0.01)),
    "hierarchical": (2, with_memory(losses.hierarchical_contrastive_loss, "labels", [0.8, 0.35, 0.15, 0.05])),
    "soft": (3, with_memory(losses.soft_contrastive_loss, "coordinates")),
    "soft sharp": (3, with_memory(losses.soft_contrastive_loss, "coordinates", temperature=0.01)),
    "farthest": (3, with_memory(losses.triplet_margin_loss, "coordinates", margin=1.0)),
    "semi-hard": (3, with_memory(losses.triplet_margin_loss, "coordinates", mining="semi_hard")),
}


def companions_of(name: str, labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return {1: labels[:, 1], 2: labels, 3: places}[LOSSES[name][0]]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_costs_no_precision(name: str, autocast: torch.dtype, given: torch.dtype) -> None:
    rows, labels, places = batch(48, 32)
    rows = rows.to(given)
    exact_rows, low_rows = rows.double().requires_grad_(), rows.clone().requires_grad_()
    companions, loss_of = companions_of(name, labels, places), LOSSES[name][1]
    exact = loss_of(exact_rows, companions, 40)
    with torch.autocast("cpu", dtype=autocast):
        low = loss_of(low_rows, companions, 40)
    exact.backward()
    low.backward()
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=3e-6)
    assert low_rows.grad.dtype == given
    torch.testing.assert_close(
        low_rows.grad.double(), exact_rows.grad, rtol=2e-5 if given == torch.float32 else 2e-2, atol=2e-4
    )


@pytest.mark.parametrize("name", LOSSES)
def test_float64_stays_float64_under_autocast(name: str) -> None:
    rows, labels, places = batch(20, 8)
    companions, loss_of = companions_of(name, labels, places), LOSSES[name][1]
    plain = loss_of(rows, companions, 15)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss_of(rows, companions, 15), plain)
    assert plain.dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_holds_pairs_times_dimensions(name: str) -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for part in result if isinstance(result, tuple | list) else [result]:
                if isinstance(part, torch.Tensor):
                    Largest.elements = max(Largest.elements, part.numel())
            return result

    anchors, candidates, dim = 64, 96, 24
    rows, labels, places = batch(candidates, dim)
    rows = rows.float().requires_grad_()
    with Largest():
        LOSSES[name][1](rows, companions_of(name, labels, places), anchors).backward()
    assert anchors * candidates <= Largest.elements < 2 * anchors * candidates


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_train(name: str) -> None:
    """Plain gradient descent on free embeddings lowers every loss."""
    rows, labels, places = batch(40, 16, seed=3)
    companions, loss_of = companions_of(name, labels, places), LOSSES[name][1]
    values = []
    for _ in range(30):
        rows = torch.nn.functional.normalize(rows.detach(), dim=1).requires_grad_()
        loss = loss_of(rows, companions, 40)
        (gradient,) = torch.autograd.grad(loss, rows)
        values.append(loss.item())
        rows = rows - 0.1 * gradient
    assert values[-1] < 0.9 * values[0]
