from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnx")

from geoinfer.backends import EmbedderIdentity
from geoinfer.backends.beside import open_beside
from geoinfer.errors import UsageError
from geoinfer.images import Preprocessing
from tests.backends.fake_tensorrt import pretend, write_engine
from tests.onnx_models import DIM, PREPROCESSING, make_model

if TYPE_CHECKING:
    from pathlib import Path

OWN = Preprocessing.from_dict(PREPROCESSING)
IDENTITY = EmbedderIdentity("tiny:0", DIM, OWN)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pretend(monkeypatch)
    write_engine(tmp_path / "tiny.trt")
    return make_model(tmp_path / "tiny.onnx")


def test_the_engine_is_opened(model: Path) -> None:
    for given in (None, OWN):
        embedder, opened = open_beside(model, IDENTITY, preprocessing=given)
        with embedder:
            assert opened == model.with_suffix(".trt")
            assert embedder.device == "cuda:0"
            assert not embedder.fell_back


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_another_preprocessing_is_refused_by_either(model: Path, device: str) -> None:
    with pytest.raises(UsageError, match="was made for"):
        open_beside(model, IDENTITY, device, preprocessing=replace(OWN, mean=(0.5, 0.5, 0.5)))


def test_the_model_itself_on_the_cpu(model: Path) -> None:
    embedder, opened = open_beside(model, IDENTITY, "cpu", preprocessing=OWN)
    with embedder:
        assert (opened, embedder.device, embedder.device_reason) == (model, "cpu", "as asked")


def test_an_engine_that_cannot_be_read_costs_its_speed_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = pretend(monkeypatch)
    machine.behaviour.fail_at = 1
    embedder, opened = open_beside(model, IDENTITY)
    with embedder:
        assert opened == model
        assert embedder.fell_back
        assert "tiny.trt beside the model was chosen, but: " in embedder.device_reason
