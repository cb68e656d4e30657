"""Small ONNX models for tests: what they compute can be written in one line of NumPy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

SIZE, DIM = 8, 4

PREPROCESSING = {
    "size": SIZE,
    "resize": "squash",
    "interpolation": "bilinear",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "colour": "rgb",
}
METADATA = {
    "geoinfer.format": "1",
    "geoinfer.identity": "tiny:0",
    "geoinfer.preprocessing": json.dumps(PREPROCESSING),
    "geoinfer.dim": str(DIM),
}


def weights(seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, dim)).astype(np.float32)


def expected(pixels: np.ndarray, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """What the model gives, in float64: mean colour, times the weights, of unit length."""
    raw = pixels.astype(np.float64).mean(axis=(1, 2)) @ weights(seed, dim).astype(np.float64)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def make_model(
    path: Path,
    *,
    seed: int = 0,
    dim: int = DIM,
    batch: Any = "batch",
    shape: list[Any] | None = None,
    dtype: int = TensorProto.UINT8,
    out_dtype: int = TensorProto.FLOAT,
    declared: list[Any] | None = None,
    normalise: bool = True,
    nan: bool = False,
    extra_input: bool = False,
    metadata: dict[str, str] | None = METADATA,
    external: bool = False,
) -> Path:
    """Writes a model of mean colours; every argument is one way to be wrong."""
    constants = [numpy_helper.from_array(weights(seed, dim), "weights")]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node(
            "ReduceMean", ["float"], ["colour"], axes=[2, 3] if shape and shape[1] == 3 else [1, 2], keepdims=0
        ),
        helper.make_node("MatMul", ["colour", "weights"], ["raw"]),
        helper.make_node("ReduceL2", ["raw"], ["length"], axes=[1], keepdims=1),
    ]
    # A black picture has no direction: 0 / 0 is NaN unless the length is kept from nothing, as exported models do.
    constants.append(numpy_helper.from_array(np.array(0.0 if nan else 1e-12, np.float32), "least"))
    nodes.append(helper.make_node("Max", ["length", "least"], ["safe"]))
    nodes.append(helper.make_node("Div", ["raw", "safe"], ["unit"]) if normalise else _same("raw", "unit"))
    source = "unit"
    if declared:
        # How many of the columns are kept is only known at run time, so the length declared is not inferred anew.
        constants.append(numpy_helper.from_array(np.ones(dim, bool), "all"))
        nodes.append(helper.make_node("Compress", ["unit", "all"], ["kept"], axis=1))
        source = "kept"
    nodes.append(helper.make_node("Cast", [source], ["embeddings"], to=out_dtype))
    inputs = [helper.make_tensor_value_info("pixels", dtype, shape or [batch, SIZE, SIZE, 3])]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info("embeddings", out_dtype, declared or [batch, dim])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="tests")
    if metadata is not None:
        helper.set_model_props(model, metadata)
    if external:
        onnx.save_model(
            model, str(path), save_as_external_data=True, all_tensors_to_one_file=True,
            location=path.name + ".data", size_threshold=0,
        )  # fmt: skip
    else:
        path.write_bytes(model.SerializeToString())
    return path


def _same(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Identity", [source], [target])
