"""Whoever reads a model refuses the same metadata: ONNX Runtime's backend, and the builder of engines."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnx")

from geoinfer.backends import open_embedder
from geoinfer.backends.onnx_runtime import model_metadata
from geoinfer.engines.embedder_model import read_embedder_model
from geoinfer.errors import ModelError
from tests.onnx_models import DIM, METADATA, SIZE, expected, make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("changes", "declared", "words"),
    [
        ({"geoinfer.format": "99"}, None, "metadata of format 99"),
        ({"geoinfer.format": ""}, None, "metadata of format "),
        ({"geoinfer.identity": ""}, None, "geoinfer.identity is empty"),
        ({"geoinfer.identity": " \t"}, None, "geoinfer.identity is empty"),
        ({"geoinfer.precision": "fp99"}, None, "geoinfer.precision is 'fp99'"),
        ({"geoinfer.dim": "5"}, None, "how long an embedding is: 4 and 5"),
        ({"geoinfer.dim": "nan"}, None, "how long an embedding is: 4 and nan"),
        ({"geoinfer.dim": "0"}, ["b", "d"], "how long an embedding is: dynamic and 0"),
        ({"geoinfer.dim": "-4"}, ["b", "d"], "how long an embedding is: dynamic and -4"),
        ({"geoinfer.dim": "nan"}, ["b", "d"], "how long an embedding is: dynamic and nan"),
        ({"geoinfer.dim": "४"}, ["b", "d"], "how long an embedding is"),
        ({"geoinfer.dim": "4" * 5000}, ["b", "d"], "how long an embedding is"),
    ],
)
def test_refused_by_both(tmp_path: Path, changes: dict[str, str], declared: list | None, words: str) -> None:
    path = make_model(tmp_path / "m.onnx", metadata=METADATA | changes, declared=declared)
    for read in (lambda: open_embedder(path, "cpu"), lambda: read_embedder_model(path)):
        with pytest.raises(ModelError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: ")
        assert words in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize("changes", [{}, {"geoinfer.dim": ""}, {"geoinfer.precision": "int8"}], ids=str)
def test_taken_by_both(tmp_path: Path, changes: dict[str, str]) -> None:
    path = make_model(tmp_path / "m.onnx", metadata=METADATA | changes)
    with open_embedder(path, "cpu") as embedder:
        assert (embedder.identity.name, embedder.dim) == ("tiny:0", DIM)
    model = read_embedder_model(path)
    assert (model.identity, model.dim) == ("tiny:0", DIM)
    assert json.loads(METADATA["geoinfer.preprocessing"]) == model.preprocessing


@pytest.mark.skipif(os.name != "posix", reason="names are text there")
def test_a_name_that_is_not_utf8_is_no_damage(tmp_path: Path) -> None:
    try:
        path = make_model(tmp_path / "m.onnx").rename(tmp_path / "caf\udce9.onnx")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    with open_embedder(path, "cpu") as embedder:
        np.testing.assert_allclose(embedder.embed(pixels), expected(pixels), atol=1e-6)
    assert model_metadata(path)["metadata"] == METADATA
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match="not a model that ONNX Runtime can open"):
        open_embedder(path, "cpu")
