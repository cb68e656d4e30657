"""The reader of ONNX files against the onnx package itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from geoinfer.bundle import SHIPPED  # noqa: E402
from geoinfer.engines.onnx_metadata import OnnxFile, TensorSpec, read_onnx  # noqa: E402
from geoinfer.errors import ModelError  # noqa: E402
from tests.onnx_models import METADATA, make_model  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64", 16: "bfloat16"}
quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def by_onnx(path: Path) -> OnnxFile:
    model = onnx.load(str(path), load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}

    def specs(values) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                value.name,
                NAMES[value.type.tensor_type.elem_type],
                tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim),
            )
            for value in values
            if value.name not in constants
        )

    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxFile(metadata, specs(model.graph.input), specs(model.graph.output))


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"batch": 3}, {"dtype": TensorProto.FLOAT}, {"extra_input": True}, {"metadata": None}, {"external": True},
        {"out_dtype": TensorProto.FLOAT16}, {"declared": ["batch", "dim"]},
    ],
    ids=str,
)  # fmt: skip
def test_says_what_onnx_says(tmp_path: Path, wrong: dict) -> None:
    path = make_model(tmp_path / "tiny.onnx", **wrong)
    assert read_onnx(path) == by_onnx(path)


def test_the_shipped_model() -> None:
    found = read_onnx(SHIPPED / "model.onnx")
    assert found == by_onnx(SHIPPED / "model.onnx")
    assert found.inputs == (TensorSpec("pixels", "uint8", (-1, 260, 260, 3)),)
    assert found.metadata["geoinfer.dim"] == "1280"


def test_constants_that_are_listed_as_inputs_are_none(tmp_path: Path) -> None:
    model = onnx.load(str(make_model(tmp_path / "tiny.onnx")))
    model.graph.input.append(helper.make_tensor_value_info("weights", TensorProto.FLOAT, [3, 4]))
    onnx.save(model, str(tmp_path / "old.onnx"))
    assert [i.name for i in read_onnx(tmp_path / "old.onnx").inputs] == ["pixels"]


@quick
@given(
    metadata=st.dictionaries(st.text(max_size=20), st.text(max_size=300), max_size=8),
    kind=st.sampled_from(sorted(NAMES)),
    shape=st.lists(st.one_of(st.integers(0, 2**62), st.text("abc", min_size=1)), max_size=5),
    name=st.text(min_size=1, max_size=40),
)
def test_any_names_shapes_and_metadata(tmp_path: Path, metadata, kind, shape, name) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["out"])],
        "g",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info("out", kind, shape)],
        [numpy_helper.from_array(np.zeros(70, np.float32), "constant")],
        doc_string="x" * 200,
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, metadata)
    path = tmp_path / "any.onnx"
    path.write_bytes(model.SerializeToString())
    assert read_onnx(path) == by_onnx(path)


@quick
@given(cut=st.integers(0, 10**6), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4))
def test_damage_is_said_or_harmless(tmp_path: Path, cut: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(make_model(tmp_path / "tiny.onnx").read_bytes())
    for at, mask in flips:
        data[at % len(data)] ^= mask
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data[: cut % (len(data) + 1)])
    with contextlib.suppress(ModelError):
        read_onnx(path)


def test_every_truncation_but_within_the_metadata_is_said(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "tiny.onnx")
    data, expected = whole.read_bytes(), by_onnx(whole)
    path = tmp_path / "cut.onnx"
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        try:
            found = read_onnx(path)
        except ModelError:
            continue
        # A cut between two fields of the model leaves a model: what is lost is metadata, and that is checked later.
        assert found.inputs == expected.inputs
        assert set(found.metadata) < set(METADATA) or found.metadata == METADATA


@quick
@given(data=st.binary(max_size=400))
def test_any_bytes_are_a_model_or_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"not an ONNX model"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\x08", "in the middle of a number"),
        (b"\x3a\x80", "in the middle of a number"),
        (b"\x3a\x7fabc", "in the middle of a field"),
        (b"\x0b", "unknown type 3"),
        (b"\x00\x01", "number 0"),
        (b"\x08\x0a", "holds no graph"),
        (b"\x3a\x00", "no version"),
        (b"\x08" + b"\xff" * 11, "does not end"),
        (b"\x08\x0a\x72\x03\x0a\x01\xff\x3a\x00", "invalid start byte"),
        (b"PNG and more of it", "not an ONNX model"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        read_onnx(path)
    assert caught.value.exit_code == 3


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: is a directory"):
        read_onnx(tmp_path)
