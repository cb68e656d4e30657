"""Embedding many rows: the model's own answers, in order, and the model as it was afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lightning_fabric import Fabric  # noqa: E402

from geoinfer.images import load_pixels  # noqa: E402
from tests.trainer.step_cases import StepCase, make_model  # noqa: E402
from trainer.data.examples import open_examples  # noqa: E402
from trainer.data.loader import BatchLoader  # noqa: E402
from trainer.embedding import answering, embed_batches, embed_rows  # noqa: E402

if TYPE_CHECKING:
    from tests.trainer.tiny_runs import PhotoSet

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["supcon", "haversine"])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_answers_are_the_models(photo_set: PhotoSet, kind: str, batch_size: int) -> None:
    photo_set.spoil("p004")
    model = make_model(StepCase(kind, dropout=0.5))
    fabric = Fabric(accelerator="cpu", devices=1)
    rows = np.array([9, 4, 2, 30, 2, 11, 0])
    with BatchLoader(open_examples(photo_set.prepared), model.preprocessing, workers=2) as loader:
        outputs, valid, bad = embed_rows(fabric, model, loader, rows, batch_size)
    assert outputs.dtype == np.float32
    assert valid.tolist() == [True, False, True, True, True, True, True]
    assert [photo.id for photo in bad] == ["p004"]
    assert not outputs[1].any()
    model.eval()
    for row, answer in zip(rows[valid], outputs[valid], strict=True):
        path = bytes(photo_set.photos / f"{photo_set.ids[row]}.jpg")
        pixels = torch.from_numpy(load_pixels(path, model.preprocessing)[None])
        with torch.no_grad():
            np.testing.assert_allclose(answer, model(pixels)[0].numpy(), atol=2e-6)


def test_no_rows(photo_set: PhotoSet) -> None:
    model = make_model(StepCase("haversine"))
    fabric = Fabric(accelerator="cpu", devices=1)
    with BatchLoader(open_examples(photo_set.prepared), model.preprocessing, workers=1) as loader:
        outputs, valid, bad = embed_rows(fabric, model, loader, np.empty(0, np.int64), 4)
    assert outputs.shape == (0, 11)
    assert valid.shape == (0,)
    assert bad == []


def test_every_module_gets_its_mode_back(photo_set: PhotoSet) -> None:
    model = make_model(StepCase(dropout=0.5))
    model.projection.train()
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    with answering(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == modes
    with pytest.raises(ZeroDivisionError), answering(model):
        raise ZeroDivisionError
    assert {name: module.training for name, module in model.named_modules()} == modes

    # Who uses the generator keeps gradients, and ending it early gives the modes back as well.
    fabric = Fabric(accelerator="cpu", devices=1)
    with BatchLoader(open_examples(photo_set.prepared), model.preprocessing, workers=1) as loader:
        batches = embed_batches(fabric, model, loader, np.arange(20), 4)
        next(batches)
        assert torch.is_grad_enabled()
        batches.close()
    assert {name: module.training for name, module in model.named_modules()} == modes
