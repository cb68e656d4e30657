from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto  # noqa: E402

from geoinfer.engines.embedder_model import read_embedder_model  # noqa: E402
from geoinfer.errors import InputError, ModelError  # noqa: E402
from tests.onnx_models import METADATA, PREPROCESSING, make_model  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_that_is_right(tmp_path: Path) -> None:
    metadata = METADATA | {
        "geoinfer.precision": "fp16", "geoinfer.source": "s", "geoinfer.licence": "MIT",
        "geoinfer.weights_sha256": "ab", "geoinfer.parity": '{"min_cosine": 0.9995}',
    }  # fmt: skip
    path = make_model(tmp_path / "tiny.onnx", metadata=metadata, out_dtype=TensorProto.FLOAT16)
    model = read_embedder_model(path)
    data = path.read_bytes()
    assert (model.size_bytes, model.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (model.input.shape, model.output.shape) == ((-1, 8, 8, 3), (-1, 4))
    assert (model.input.dtype, model.output.dtype) == ("uint8", "float16")
    assert (model.identity, model.dim, model.preprocessing) == ("tiny:0", 4, PREPROCESSING)
    assert (model.precision, model.source, model.licence, model.weights_sha256) == ("fp16", "s", "MIT", "ab")
    assert model.parity == {"min_cosine": 0.9995}


def test_what_older_models_leave_out(tmp_path: Path) -> None:
    metadata = {key: value for key, value in METADATA.items() if key not in ("geoinfer.dim", "geoinfer.format")}
    model = read_embedder_model(make_model(tmp_path / "tiny.onnx", metadata=metadata | {"geoinfer.parity": "broken"}))
    assert (model.precision, model.dim, model.parity, model.source) == ("fp32", 4, None, "")


def test_a_length_that_the_metadata_alone_know(tmp_path: Path) -> None:
    assert read_embedder_model(make_model(tmp_path / "tiny.onnx", declared=["batch", "dim"])).output.shape == (-1, 4)


def without(key: str) -> dict[str, str]:
    return {k: v for k, v in METADATA.items() if k != key}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"metadata": None}, "the metadata do not say which embedder this is"),
        ({"metadata": without("geoinfer.identity")}, "geoinfer.identity or geoinfer.preprocessing is missing"),
        ({"metadata": without("geoinfer.preprocessing")}, "geoinfer.preprocessing is missing"),
        ({"metadata": METADATA | {"geoinfer.format": "2"}}, "metadata of format 2; this geoinfer reads 1"),
        ({"metadata": METADATA | {"geoinfer.preprocessing": "{"}}, "preprocessing of the metadata is damaged"),
        ({"metadata": METADATA | {"geoinfer.preprocessing": '{"size": -1}'}}, "is damaged: preprocessing size is -1"),
        ({"metadata": METADATA | {"geoinfer.precision": "fp8"}}, "geoinfer.precision is 'fp8'"),
        (
            {"metadata": METADATA | {"geoinfer.precision": "int8", "geoinfer.int8_target": "cpu"}},
            "in a form that TensorRT does not take",
        ),
        ({"metadata": METADATA | {"geoinfer.dim": "5"}}, "how long an embedding is: 4 and 5"),
        ({"metadata": METADATA | {"geoinfer.dim": "-3"}, "declared": ["b", "d"]}, "dynamic and -3"),
        ({"metadata": without("geoinfer.dim"), "declared": ["b", "d"]}, "dynamic and nothing"),
        ({"metadata": METADATA | {"geoinfer.preprocessing": json.dumps(PREPROCESSING | {"size": 9})}}, "8 x 8 pixels"),
        ({"batch": 2}, "the batch is fixed at 2"),
        ({"extra_input": True}, "2 inputs and 1 outputs"),
        ({"dtype": TensorProto.FLOAT}, r"the input is pixels float32 \(batch, 8, 8, 3\)"),
        ({"shape": ["batch", 3, 8, 8]}, r"the input is pixels uint8 \(batch, 3, 8, 8\)"),
        ({"out_dtype": TensorProto.DOUBLE}, "the output is embeddings float64"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_what_mends_it(tmp_path: Path, wrong: dict, sentence: str) -> None:
    path = make_model(tmp_path / "tiny.onnx", **wrong)
    with pytest.raises(ModelError, match=sentence) as caught:
        read_embedder_model(path)
    assert str(path) in str(caught.value)
    assert "export" in caught.value.hint


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such model"):
        read_embedder_model(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is a folder and no bundle"):
        read_embedder_model(tmp_path)
