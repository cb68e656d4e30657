from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pydantic")

from export.torch_embedder import load_checkpoint  # noqa: E402
from geoinfer.errors import InputError, ModelError  # noqa: E402
from geoinfer.images import Preprocessing  # noqa: E402
from tests.export.networks import drawn  # noqa: E402
from trainer.checkpoint import TrainingState, save_checkpoint  # noqa: E402
from trainer.models import create_model  # noqa: E402
from trainer.recipe import load_recipe  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.models import GeoModel

pytestmark = pytest.mark.slow

PREPROCESSING = Preprocessing(size=32, resize="squash")


def saved(path: Path, *changes: str, recipe: str = "vit_two_stage", state: TrainingState | None = None) -> GeoModel:
    resolved = load_recipe(recipe, ["model.backbone=test_vit", "model.weights=none", *changes])
    torch.manual_seed(3)
    model = create_model(
        "test_vit",
        PREPROCESSING,
        weights="none",
        dim=resolved.model.dim,
        coordinates=resolved.model.coordinates,
    )
    save_checkpoint(path, model, resolved, state)
    return model.eval()


def test_the_network_is_what_the_model_normalises(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model = saved(path)

    embedder = load_checkpoint(path, licence="CC-BY-4.0")

    pixels = torch.from_numpy(drawn(32))
    planes = (pixels.permute(0, 3, 1, 2) / 255.0 - torch.tensor(PREPROCESSING.mean).view(1, 3, 1, 1)) / torch.tensor(
        PREPROCESSING.std
    ).view(1, 3, 1, 1)
    with torch.inference_mode():
        outputs = embedder.network(planes)
        expected = model(pixels)
    assert not embedder.network.training
    assert outputs.shape == (6, 256)
    lengths = outputs.norm(dim=1, keepdim=True)
    assert not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3)
    np.testing.assert_allclose((outputs / lengths).numpy(), expected.numpy(), atol=1e-5)


def test_it_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    saved(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    embedder = load_checkpoint(path)

    assert embedder.weights_sha256 == sha256
    assert embedder.identity == f"test_vit-vit_two_stage:{sha256[:16]}"
    assert embedder.source == "test_vit trained by recipe vit_two_stage"
    assert embedder.licence == "NOASSERTION"
    assert embedder.preprocessing == PREPROCESSING


def test_it_says_how_far_training_was(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    state = TrainingState(
        optimizer={"state": {}, "param_groups": []}, memory={}, progress={"stage": 1, "epoch": 2, "step": 1234}
    )
    saved(path, state=state)
    assert load_checkpoint(path).source == "test_vit trained by recipe vit_two_stage, stage triplet, step 1,234"


def test_a_coordinate_head_stays_behind(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    saved(path, "model.coordinates=embedding", recipe="embedding_regression")
    with torch.inference_mode():
        assert load_checkpoint(path).network(torch.zeros(1, 3, 32, 32)).shape == (1, 256)


def test_a_model_of_coordinates_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    saved(path, recipe="resnet50_regression")
    with pytest.raises(ModelError, match=r"best\.safetensors: .* coordinates, and has no embedding") as caught:
        load_checkpoint(path)
    assert "model.dim" in caught.value.hint


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "absent.safetensors")
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"not weights at all")
    with pytest.raises(ModelError, match=r"text\.safetensors"):
        load_checkpoint(path)
