from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnx")

from onnx import TensorProto

from geoinfer.bundle import SHIPPED
from geoinfer.engines.int8_beside import int8_beside, int8_path, require_int8
from geoinfer.errors import InputError, MismatchError, ModelError
from tests.onnx_models import METADATA, PREPROCESSING, make_model

if TYPE_CHECKING:
    from pathlib import Path

INT8 = METADATA | {"geoinfer.precision": "int8", "geoinfer.int8_target": "cpu"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "vit.onnx")


def without(key: str) -> dict[str, str]:
    return {name: value for name, value in INT8.items() if name != key}


def test_its_name() -> None:
    assert int8_path(SHIPPED / "model.onnx") == SHIPPED / "model.int8.onnx"


def test_found(model: Path) -> None:
    sibling = make_model(model.parent / "vit.int8.onnx", metadata=INT8)
    assert int8_beside(model) == sibling
    assert require_int8(model) == sibling


def test_the_shipped_bundle_has_one() -> None:
    assert int8_beside(SHIPPED / "model.onnx") == SHIPPED / "model.int8.onnx"


def test_keys_in_another_order_are_the_same_preprocessing(model: Path) -> None:
    stored = json.dumps(dict(reversed(PREPROCESSING.items())), indent=1)
    sibling = make_model(model.parent / "vit.int8.onnx", metadata=INT8 | {"geoinfer.preprocessing": stored})
    assert int8_beside(model) == sibling


def test_a_length_that_the_graph_alone_knows(model: Path) -> None:
    sibling = make_model(model.parent / "vit.int8.onnx", metadata=without("geoinfer.dim"))
    assert int8_beside(model) == sibling


@pytest.mark.parametrize("name", ["model.int8.onnx", "vit.onnx.int8.onnx", "vit.int8.trt", "vit-int8.onnx"])
def test_none(model: Path, name: str) -> None:
    make_model(model.parent / name, metadata=INT8)
    assert int8_beside(model) is None
    with pytest.raises(InputError, match=r"vit\.onnx: has no int8 sibling: vit\.int8\.onnx") as caught:
        require_int8(model)
    assert "--out vit.int8.onnx" in caught.value.hint


def test_a_folder_of_that_name_is_none(model: Path) -> None:
    (model.parent / "vit.int8.onnx").mkdir()
    assert int8_beside(model) is None


def test_an_engine_has_none(tmp_path: Path) -> None:
    make_model(tmp_path / "vit.int8.onnx", metadata=INT8)
    (tmp_path / "vit.trt").write_bytes(b"plan")
    assert int8_beside(tmp_path / "vit.trt") is None
    with pytest.raises(InputError, match=r"vit\.trt: has no int8 sibling"):
        require_int8(tmp_path / "vit.trt")


def test_a_model_that_is_int8_itself(tmp_path: Path) -> None:
    model = make_model(tmp_path / "vit.onnx", metadata=INT8)
    make_model(tmp_path / "vit.int8.onnx", metadata=INT8)
    assert int8_beside(model) is None
    assert require_int8(model) == model


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"metadata": INT8 | {"geoinfer.identity": "tiny:1"}}, "the embedder is tiny:1, the model's is tiny:0"),
        ({"metadata": INT8 | {"geoinfer.dim": "5"}, "dim": 5}, "the length of an embedding is 5, the model's is 4"),
        (
            {"metadata": INT8 | {"geoinfer.preprocessing": json.dumps(PREPROCESSING | {"mean": [0.5, 0.5, 0.5]})}},
            "the preprocessing is ",
        ),
    ],
    ids=["identity", "dim", "preprocessing"],
)
def test_of_another_embedder(model: Path, wrong: dict, sentence: str) -> None:
    make_model(model.parent / "vit.int8.onnx", **wrong)
    for call in (int8_beside, require_int8):
        with pytest.raises(MismatchError, match=f"vit.int8.onnx: lies beside vit.onnx and is not of it: {sentence}"):
            call(model)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"metadata": METADATA}, "is called int8, and its metadata say that it is fp32"),
        ({"metadata": METADATA | {"geoinfer.precision": "fp16"}, "out_dtype": TensorProto.FLOAT16}, "that it is fp16"),
        ({"metadata": None}, "the metadata do not say which embedder this is: geoinfer.preprocessing is missing"),
        ({"metadata": without("geoinfer.identity")}, "geoinfer.identity is missing"),
        ({"metadata": INT8 | {"geoinfer.preprocessing": "{"}}, "geoinfer.preprocessing of the metadata is damaged"),
        ({"metadata": INT8 | {"geoinfer.preprocessing": "[]"}}, "geoinfer.preprocessing of the metadata is damaged"),
        ({"metadata": INT8 | {"geoinfer.format": "2"}}, "metadata of format 2"),
        ({"metadata": INT8 | {"geoinfer.precision": "int4"}}, "geoinfer.precision is 'int4'"),
        ({"metadata": INT8 | {"geoinfer.dim": "7"}}, "do not agree on how long an embedding is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_int8_model_of_ours(model: Path, wrong: dict, sentence: str) -> None:
    make_model(model.parent / "vit.int8.onnx", **wrong)
    with pytest.raises(ModelError, match=sentence) as caught:
        int8_beside(model)
    assert "vit.int8.onnx" in str(caught.value)
    assert caught.value.hint


def test_damaged(model: Path) -> None:
    (model.parent / "vit.int8.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"vit\.int8\.onnx: not an ONNX model"):
        int8_beside(model)


def test_a_model_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    model = make_model(tmp_path / "vit.onnx", metadata=None)
    make_model(tmp_path / "vit.int8.onnx", metadata=INT8)
    with pytest.raises(ModelError, match=r"vit\.onnx: the metadata do not say which embedder this is"):
        int8_beside(model)
