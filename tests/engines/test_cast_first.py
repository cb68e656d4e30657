"""The one rewriting of a graph: checked by the onnx package, and run by ONNX Runtime before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from geoinfer.bundle import SHIPPED  # noqa: E402
from geoinfer.engines.cast_first import with_cast_first  # noqa: E402


def make(
    *, second_reader: bool = False, between_is_output: bool = False, branch: bool = False, notes: bool = False,
    long_name: str = "", order: str = "transpose first",
) -> onnx.ModelProto:  # fmt: skip
    transpose = helper.make_node("Transpose", ["pixels"], ["t" + long_name], perm=[0, 3, 1, 2], name="the transpose")
    cast = helper.make_node("Cast", ["t" + long_name], ["c"], to=TensorProto.FLOAT, name="the cast")
    if order == "cast first":
        transpose = helper.make_node("Cast", ["pixels"], ["t"], to=TensorProto.FLOAT)
        cast = helper.make_node("Transpose", ["t"], ["c"], perm=[0, 3, 1, 2])
    nodes = [transpose, cast, helper.make_node("ReduceMean", ["c"], ["embeddings"], axes=[2, 3], keepdims=0)]
    outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", 3])]
    between = helper.make_tensor_value_info("t" + long_name, TensorProto.UINT8, ["batch", 3, 4, 5])
    if second_reader:
        nodes.append(helper.make_node("Shape", ["t"], ["shape"]))
    if between_is_output:
        outputs.append(between)
    if branch:
        inner = helper.make_graph(
            [helper.make_node("Identity", ["pixels"], ["inner"])], "b", [],
            [helper.make_tensor_value_info("inner", TensorProto.UINT8, None)],
        )  # fmt: skip
        nodes.append(
            helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("v", TensorProto.BOOL, [], [1]))
        )
        nodes.append(helper.make_node("If", ["yes"], ["branched"], then_branch=inner, else_branch=inner))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 5, 3])], outputs,
        value_info=[between] if notes else [],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"before": "x" * 200, "after": "y"})
    return model


def run(data: bytes, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})[0])


@pytest.mark.parametrize("settings", [{}, {"notes": True}, {"long_name": "x" * 300}], ids=["plain", "notes", "long"])
def test_changes_places_and_nothing_else(settings: dict[str, Any]) -> None:
    model = make(**settings)
    data = model.SerializeToString()
    changed = with_cast_first(data, "pixels")
    assert changed is not None
    after = onnx.load_model_from_string(changed)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == ["Cast", "Transpose", "ReduceMean"]
    assert after.graph.node[0].input == ["pixels"]
    assert after.graph.node[1].output == ["c"]
    # Undone by hand it is the model that it was, but for the note of a shape that no longer holds.
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(after.graph.node[0])
    second.CopyFrom(after.graph.node[1])
    wiring = [(list(n.input), list(n.output)) for n in (first, second)]
    for node, content, (inputs, outputs) in zip(after.graph.node, (second, first), wiring, strict=False):
        node.CopyFrom(content)
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
    del model.graph.value_info[:]
    assert after == model
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    np.testing.assert_array_equal(run(changed, pixels), run(data, pixels))


@pytest.mark.parametrize(
    "settings",
    [{"second_reader": True}, {"between_is_output": True}, {"branch": True}, {"order": "cast first"}],
    ids=str,
)
def test_leaves_alone_what_it_does_not_know(settings: dict[str, Any]) -> None:
    assert with_cast_first(make(**settings).SerializeToString(), "pixels") is None


def test_another_input_is_not_touched() -> None:
    assert with_cast_first(make().SerializeToString(), "other") is None


def test_the_shipped_model_gives_the_same_bits() -> None:
    data = (SHIPPED / "model.onnx").read_bytes()
    changed = with_cast_first(data, "pixels")
    if changed is None:  # exported with the cast first
        assert onnx.load_model_from_string(data).graph.node[0].op_type == "Cast"
        return
    assert onnx.load_model_from_string(changed).graph.node[0].op_type == "Cast"
    pixels = np.random.default_rng(1).integers(0, 256, (2, 260, 260, 3), np.uint8)
    np.testing.assert_array_equal(run(changed, pixels), run(data, pixels))


def test_others_may_read_the_pixels() -> None:
    """Their number, say: what they see stays as it is."""
    model = make()
    model.graph.node.insert(0, helper.make_node("Shape", ["pixels"], ["shape"]))
    changed = with_cast_first(model.SerializeToString(), "pixels")
    assert changed is not None
    after = onnx.load_model_from_string(changed)
    assert [node.op_type for node in after.graph.node] == ["Shape", "Cast", "Transpose", "ReduceMean"]
    onnx.checker.check_model(after, full_check=True)
