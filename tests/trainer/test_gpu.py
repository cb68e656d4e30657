"""Training on an NVIDIA GPU: the same losses as on the CPU, half precision, compiling, going on. `make gpu-check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from tests.trainer.tiny_runs import stage, tiny_recipe  # noqa: E402
from trainer.losses import (  # noqa: E402
    haversine_loss,
    hierarchical_contrastive_loss,
    soft_contrastive_loss,
    supervised_contrastive_loss,
    triplet_margin_loss,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


def losses_of(run: Any) -> np.ndarray:
    return np.array([float(row["loss"]) for row in run.rows("step")])


@pytest.fixture(autouse=True)
def exact_sums() -> Any:
    """TensorFloat-32 keeps three digits; a comparison with the CPU needs all."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_losses_and_gradients_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    cells = torch.randint(9, (64, 3), generator=generator)
    places = torch.rand(64, 2, generator=generator, dtype=torch.float64) * torch.tensor([170.0, 359.0]) - torch.tensor(
        [85.0, 179.0]
    )
    for loss in (
        lambda e, c, p: supervised_contrastive_loss(e, c[:, 0]),
        lambda e, c, p: hierarchical_contrastive_loss(e, c, [1.0, 0.3, 0.1]),
        lambda e, c, p: triplet_margin_loss(e, p),
        lambda e, c, p: triplet_margin_loss(e, p, mining="semi_hard"),
        lambda e, c, p: soft_contrastive_loss(e, p, scale_km=500.0),
        lambda e, c, p: haversine_loss(torch.nn.functional.normalize(e[:, :3], dim=1), p),
    ):
        found = []
        for device in ("cpu", "cuda"):
            leaf = rows.to(device).requires_grad_()
            value = loss(leaf, cells.to(device), places.to(device))
            (gradient,) = torch.autograd.grad(value, leaf)
            found.append((value.item(), gradient.cpu()))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["supcon", "hierarchical", "triplet", "soft_supcon"])
def test_a_run_has_the_losses_of_the_cpu(train: Callable[..., Any], kind: str) -> None:
    recipe = tiny_recipe("model.dropout=0.0", stages=[stage(kind=kind)])
    on_cpu, on_gpu = train(recipe, "cpu"), train(recipe, "gpu", device="cuda")
    np.testing.assert_allclose(losses_of(on_gpu), losses_of(on_cpu), rtol=2e-3)
    assert "NVIDIA" in on_gpu.said


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(train: Callable[..., Any], precision: str) -> None:
    plain = tiny_recipe("model.dropout=0.0")
    half = tiny_recipe("model.dropout=0.0", f"run.precision={precision}")
    expected, found = losses_of(train(plain, "fp32", device="cuda")), losses_of(train(half, "half", device="cuda"))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_parts_of_a_batch_take_less_memory_and_learn_the_same(train: Callable[..., Any]) -> None:
    whole = train(tiny_recipe("model.dropout=0.0"), "whole", device="cuda")
    parts = train(tiny_recipe("model.dropout=0.0", "stages.*.micro_batch=2"), "parts", device="cuda")
    np.testing.assert_allclose(losses_of(parts), losses_of(whole), rtol=2e-3)


@pytest.mark.parametrize("change", ["run.compile=true", "run.channels_last=true"])
def test_options_do_not_change_what_is_learnt(train: Callable[..., Any], change: str) -> None:
    plain = train(tiny_recipe("model.dropout=0.0"), "plain", device="cuda")
    other = train(tiny_recipe("model.dropout=0.0", change), "other", device="cuda")
    np.testing.assert_allclose(losses_of(other), losses_of(plain), rtol=5e-3)


def test_a_run_goes_on_with_its_moments_scaler_and_memory(train: Callable[..., Any], monkeypatch: Any) -> None:
    import trainer.fit

    recipe = tiny_recipe("run.precision=fp16", "stages.*.memory=12")
    unbroken = train(recipe, "unbroken", device="cuda")
    record = trainer.fit.Run._record

    def stop_after_two(self: Any, *arguments: Any) -> None:
        record(self, *arguments)
        if self._position.step == 2:
            self._interrupt()

    from geoinfer.errors import InterruptedRunError

    with monkeypatch.context() as patched:
        patched.setattr(trainer.fit.Run, "_record", stop_after_two)
        train(recipe, "broken", device="cuda", catch=InterruptedRunError)
    resumed = train(recipe, "broken", device="cuda")
    np.testing.assert_allclose(losses_of(resumed), losses_of(unbroken), rtol=1e-2)
