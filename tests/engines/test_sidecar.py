from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geoinfer.engines.description import parsed_sidecar
from geoinfer.engines.gpu import Gpu
from geoinfer.engines.sidecar import (
    check_engine_file,
    check_fits,
    parsed_capability,
    plan_flavor,
    read_sidecar,
    rebuild_command,
    sidecar_path,
    this_platform,
    write_sidecar,
)
from geoinfer.errors import InputError, MismatchError, ModelError, OutputError, UsageError
from tests.engines.fakes import plan_bytes, put_engine, sidecar_values

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
A10 = Gpu(0, "NVIDIA A10", (8, 6), 24 << 30)
H100 = Gpu(0, "NVIDIA H100 PCIe", (9, 0), 80 << 30)
RTX = {"flavor": "tensorrt-rtx", "flavor_version": "1.7.1.116", "gpu": None, "portable": True,
       "compute_capabilities": ["8.0", "8.6", "8.9", "12.0", "12.1+"]}  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("geoinfer.engines.sidecar.this_platform", lambda: "linux-x86_64")
    return put_engine(tmp_path / "vit.trt")


def test_lies_beside_its_engine() -> None:
    assert sidecar_path(Path("a/vit.trt")) == Path("a/vit.trt.json")


def test_what_is_written_is_what_is_read(engine: Path) -> None:
    sidecar = read_sidecar(engine)
    assert sidecar.as_dict() == sidecar_values(plan_bytes())
    write_sidecar(engine, sidecar)
    assert json.loads(sidecar_path(engine).read_text()) == sidecar_values(plan_bytes())
    assert read_sidecar(engine) == sidecar
    check_engine_file(engine, sidecar)
    assert check_fits(engine, sidecar, "10.13.3.9", A10) == ""


@quick
@given(
    profile=st.lists(st.integers(1, 4096), min_size=3, max_size=3).map(sorted),
    workspace=st.none() | st.integers(1, 2**60),
    seconds=st.floats(0, 1e6),
    texts=st.lists(st.text(max_size=30), min_size=3, max_size=3),
    parity=st.none() | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
)
def test_round_trip_of_any_values(engine: Path, profile, workspace, seconds, texts, parity) -> None:
    put_engine(
        engine, profile=dict(zip(("min", "opt", "max"), profile, strict=True)), workspace_bytes=workspace,
        build_seconds=seconds, identity=texts[0], source=texts[1], licence=texts[2],
        parity={"onnx": parity, "engine": parity},
    )  # fmt: skip
    sidecar = read_sidecar(engine)
    stored = json.loads(sidecar_path(engine).read_text())
    assert sidecar.as_dict() == stored
    write_sidecar(engine, sidecar)
    assert read_sidecar(engine) == sidecar


def test_no_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such engine") as caught:
        read_sidecar(tmp_path / "vit.trt")
    assert f"geoinfer engine build {tmp_path}/vit.onnx --out {tmp_path}/vit.trt" in caught.value.hint
    with pytest.raises(InputError, match="is a folder"):
        read_sidecar(tmp_path)


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (plan_bytes(), "an engine of TensorRT 10.13.3"),
        (plan_bytes("tensorrt-rtx", (1, 7, 1, 116)), "an engine of TensorRT-RTX 1.7.1"),
        (b"anything", "no engine of a TensorRT known to geoinfer"),
        (b"ftrt", "no engine of a TensorRT known to geoinfer"),
    ],
)
def test_no_sidecar(tmp_path: Path, content: bytes, looks: str) -> None:
    engine = tmp_path / "vit.trt"
    engine.write_bytes(content)
    with pytest.raises(ModelError, match=r"has no sidecar: vit\.trt\.json should lie beside it") as caught:
        read_sidecar(engine)
    assert looks in str(caught.value)
    assert f"geoinfer engine build {tmp_path}/vit.onnx --out {engine}" in caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON; the sidecar is damaged"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not the sidecar of a geoinfer engine"),
        ('{"format": "geoinfer-bundle", "version": 1}', "not the sidecar of a geoinfer engine"),
        ('{"format": "geoinfer-engine", "version": 2}', "sidecar of version 2; this geoinfer reads 1"),
        ('{"format": "geoinfer-engine"}', "sidecar of version None"),
        ('{"format": "geoinfer-engine", "version": 1}', "'engine' is missing"),
    ],
)
def test_another_file_in_its_place(engine: Path, text: str, sentence: str) -> None:
    sidecar_path(engine).write_text(text)
    with pytest.raises(ModelError, match=sentence) as caught:
        read_sidecar(engine)
    assert "geoinfer engine build" in caught.value.hint
    assert caught.value.exit_code == 3


def test_not_utf8(engine: Path) -> None:
    sidecar_path(engine).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match="not JSON"):
        read_sidecar(engine)


def paths(values: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in values.items():
        found.append((*before, key))
        if isinstance(value, dict) and key not in ("preprocessing",):
            found += paths(value, (*before, key))
    return found


ALL = [p for p in paths(sidecar_values(b"")) if p not in {("parity", "onnx", "min_cosine")}]
ONLY_TOP = {("format",), ("version",)}


def may_be(where: tuple[str, ...], was: object, value: object) -> bool:
    """Whether the format allows this value there."""
    if value is None:
        return where in {("gpu",), ("workspace_bytes",), ("parity", "onnx"), ("parity", "engine")}
    if where == ("build_seconds",):
        return value is not True and value in (3, 1.5)
    if where == ("workspace_bytes",):
        return value == 3
    if where[0] == "parity" and len(where) == 2:
        return isinstance(value, dict)
    return type(value) is type(was)


@pytest.mark.parametrize("where", [p for p in ALL if p not in ONLY_TOP], ids=".".join)
def test_every_field_is_needed_and_of_its_type(engine: Path, where: tuple[str, ...]) -> None:
    for replaced in ("nothing at all", [], {"a": 1}, 3, -1, 1.5, True, "text", None):
        values = sidecar_values(plan_bytes())
        holder = values
        for key in where[:-1]:
            holder = holder[key]
        if replaced == "nothing at all":
            del holder[where[-1]]
        elif may_be(where, holder[where[-1]], replaced):
            continue
        else:
            holder[where[-1]] = replaced
        sidecar_path(engine).write_text(json.dumps(values))
        with pytest.raises(ModelError, match="damaged") as caught:
            read_sidecar(engine)
        assert str(sidecar_path(engine)) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flavor": "openvino"}, "flavor is 'openvino'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"profile": {"min": 4, "opt": 2, "max": 8}}, "batches are 4, 2 and 8"),
        ({"profile": {"min": 0, "opt": 2, "max": 8}}, "min is 0"),
        ({"compute_capabilities": []}, "compute_capabilities"),
        ({"compute_capabilities": ["nine"]}, "compute capability 'nine'"),
        ({"preprocessing": {"size": 8, "colour": "bgr"}}, "preprocessing colour"),
        ({"preprocessing": {"size": 9}}, "the preprocessing gives 9 pixels"),
        ({"dim": 5}, "an embedding has 5 numbers"),
        ({"output": {"name": "e", "dtype": "int8", "shape": [-1, 4]}}, "the output is e int8"),
        ({"input": {"name": "p", "dtype": "uint8", "shape": [4, 8, 8, 3]}}, "the input is p uint8"),
        ({"onnx": {"name": "../vit.onnx", "bytes": 1, "sha256": ""}}, "no name of a file"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense(engine: Path, changes: dict[str, Any], sentence: str) -> None:
    put_engine(engine, plan_bytes(), **changes)
    with pytest.raises(ModelError, match=sentence):
        read_sidecar(engine)


@quick
@given(at=st.integers(0, 5000), mask=st.integers(1, 255), cut=st.none() | st.integers(0, 5000))
def test_a_damaged_sidecar_is_said_or_harmless(engine: Path, at: int, mask: int, cut: int | None) -> None:
    data = bytearray(json.dumps(sidecar_values(plan_bytes())).encode())
    data[at % len(data)] ^= mask
    sidecar_path(engine).write_bytes(data if cut is None else data[: cut % len(data)])
    with contextlib.suppress(ModelError):
        check_engine_file(engine, read_sidecar(engine))


@quick
@given(at=st.integers(0, 199), mask=st.integers(1, 255))
def test_one_bit_of_the_engine(engine: Path, at: int, mask: int) -> None:
    data = bytearray(plan_bytes())
    data[at] ^= mask
    engine.write_bytes(data)
    with pytest.raises(ModelError, match="does not match the checksum") as caught:
        check_engine_file(engine, read_sidecar(engine))
    assert ("; it looks like no engine" in str(caught.value)) == (at < 4)
    check_engine_file(engine, read_sidecar(engine), contents=False)


def test_first_bytes_alone_condemn_no_engine(engine: Path) -> None:
    put_engine(engine, b"plan of a TensorRT to come")
    check_engine_file(engine, read_sidecar(engine))
    check_engine_file(engine, read_sidecar(engine), contents=False)


def test_a_truncated_engine_and_a_longer_one(engine: Path) -> None:
    sidecar = read_sidecar(engine)
    for length in range(200):
        engine.write_bytes(plan_bytes()[:length])
        with pytest.raises(ModelError, match="the file is truncated") as caught:
            check_engine_file(engine, sidecar, contents=False)
        assert "geoinfer engine build" in caught.value.hint
    engine.write_bytes(plan_bytes() + b"x")
    with pytest.raises(ModelError, match="201 bytes where its sidecar says 200: the file is damaged"):
        check_engine_file(engine, sidecar)


def test_an_engine_of_the_other_flavour(engine: Path) -> None:
    engine.write_bytes(plan_bytes("tensorrt-rtx", (1, 7, 1, 116)))
    with pytest.raises(ModelError, match=r"another engine; it looks like an engine of TensorRT-RTX 1\.7\.1"):
        check_engine_file(engine, read_sidecar(engine))


def test_the_engine_is_gone(engine: Path) -> None:
    sidecar = read_sidecar(engine)
    engine.unlink()
    with pytest.raises(ModelError, match="cannot be read: no such file"):
        check_engine_file(engine, sidecar)


def fits(engine: Path, version: str | None, here: Gpu, **changes: Any) -> str:
    put_engine(engine, **changes)
    return check_fits(engine, read_sidecar(engine), version, here)


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "sentence", "hint"),
    [
        ({}, None, A10, "built by TensorRT 10.13.3.9, which is not installed here", "geoinfer-toolkit[tensorrt]"),
        (RTX, None, A10, "built by TensorRT-RTX 1.7.1.116, which is not installed here", "geoinfer-toolkit[rtx]"),
        ({}, "10.13.3.10", A10, "built by TensorRT 10.13.3.9, here is 10.13.3.10", "geoinfer engine build"),
        ({"platform": "linux-aarch64"}, "10.13.3.9", A10, "built on linux-aarch64, this is linux-x86_64", "build"),
        ({"platform": "win32-x86_64"}, "10.13.3.9", A10, "built on win32-x86_64", "engine build"),
        (RTX | {"platform": "linux-aarch64"}, "1.7.1.116", A10, "built on linux-aarch64", "--flavor tensorrt-rtx"),
        ({}, "10.13.3.9", H100,
         "built for NVIDIA A10 (compute capability 8.6), here is NVIDIA H100 PCIe (compute capability 9.0)",
         "geoinfer engine build"),
        (RTX, "1.7.1.116", H100, "8.9, 12.0, 12.1 and later, here is NVIDIA H100 PCIe", "build with TensorRT: pip"),
        (RTX | {"portable": False, "compute_capabilities": ["8.9"]}, "1.7.1.116", A10,
         "built for compute capability 8.9, here is", "--compute-capability 8.6"),
        ({"portable": True, "compute_capabilities": ["8.0+"]}, "10.13.3.9", Gpu(0, "NVIDIA T4", (7, 5), 1),
         "compute capability 8.0 and later, here is NVIDIA T4", "engine build"),
    ],
)  # fmt: skip
def test_what_does_not_fit(engine: Path, changes, version, gpu, sentence: str, hint: str) -> None:
    with pytest.raises(MismatchError) as caught:
        fits(engine, version, gpu, **changes)
    assert sentence in str(caught.value)
    assert str(engine) in str(caught.value)
    assert hint in caught.value.hint
    assert "geoinfer engine build" in caught.value.hint
    assert caught.value.exit_code == 3


def test_what_fits(engine: Path) -> None:
    assert fits(engine, "1.7.1.116", A10, **RTX) == ""
    assert fits(engine, "1.7.1.116", A10, **RTX, platform="win32-x86_64") == ""
    assert fits(engine, "10.13.3.9", H100, portable=True, compute_capabilities=["8.0+"]) == ""
    remark = fits(engine, "10.13.3.9", Gpu(0, "NVIDIA A40", (8, 6), 1))
    assert remark == "built on NVIDIA A10, here is NVIDIA A40: it runs, perhaps slower than one built here"


@given(
    entries=st.lists(st.tuples(st.integers(7, 13), st.integers(0, 9), st.booleans()), min_size=1, max_size=4),
    major=st.integers(6, 14),
    minor=st.integers(0, 9),
)
def test_runs_on_by_counting(entries: list[tuple[int, int, bool]], major: int, minor: int) -> None:
    parsed = parsed_sidecar(
        sidecar_values(b"x", compute_capabilities=[f"{a}.{b}{'+' if later else ''}" for a, b, later in entries])
    )
    number = major * 10 + minor
    expected = any(number == a * 10 + b or (later and number > a * 10 + b) for a, b, later in entries)
    assert parsed.runs_on((major, minor)) is expected


@pytest.mark.parametrize("text", ["", "9", "8.", ".9", "8.9.1", "a.b", "-8.9", "8,9", "8.9+", "1000000.0", "²."])
def test_what_is_no_compute_capability(text: str) -> None:
    with pytest.raises(UsageError, match="compute capability"):
        parsed_capability(text)


def test_the_command_can_be_pasted(tmp_path: Path) -> None:
    engine = put_engine(
        tmp_path / "it's a vit.trt", onnx={"name": "the model.onnx", "bytes": 1, "sha256": ""},
        profile={"min": 2, "opt": 4, "max": 8}, **RTX,
    )  # fmt: skip
    assert shlex.split(rebuild_command(engine, read_sidecar(engine))) == [
        "geoinfer", "engine", "build", f"{tmp_path}/the model.onnx", "--out", f"{tmp_path}/it's a vit.trt",
        "--flavor", "tensorrt-rtx", "--min-batch", "2", "--opt-batch", "4", "--max-batch", "8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, ["--min-batch", "1", "--opt-batch", "64", "--max-batch", "256"]),
        ({"portable": True, "profile": {"min": 1, "opt": 64, "max": 64}}, ["--portable"]),
        ({"workspace_bytes": 1 << 30, "profile": {"min": 1, "opt": 64, "max": 64}}, ["--workspace", "1073741824"]),
        (RTX | {"profile": {"min": 1, "opt": 64, "max": 64}}, ["--flavor", "tensorrt-rtx"]),
        (RTX | {"portable": False, "compute_capabilities": ["7.5", "8.9"], "profile": {"min": 1, "opt": 64, "max": 64}},
         ["--flavor", "tensorrt-rtx", "--compute-capability", "7.5", "--compute-capability", "8.9"]),
    ],
)  # fmt: skip
def test_the_command_builds_the_same_again(tmp_path: Path, changes: dict[str, Any], more: list[str]) -> None:
    engine = put_engine(tmp_path / "vit.trt", **changes)
    words = ["geoinfer", "engine", "build", f"{tmp_path}/vit.onnx", "--out", f"{tmp_path}/vit.trt", *more]
    assert shlex.split(rebuild_command(engine, read_sidecar(engine))) == words


def test_for_another_gpu_the_command_names_no_gpu(engine: Path) -> None:
    turing = Gpu(0, "NVIDIA T4", (7, 5), 1)
    for changes in ({"portable": True, "compute_capabilities": ["8.0+"]},
                    RTX | {"portable": False, "compute_capabilities": ["8.9"]}):  # fmt: skip
        with pytest.raises(MismatchError) as caught:
            fits(engine, {"tensorrt": "10.13.3.9"}.get(str(changes.get("flavor", "tensorrt")), "1.7.1.116"), turing,
                 **changes)  # fmt: skip
        assert "--portable" not in caught.value.hint
        assert "8.9" not in caught.value.hint
    # Nor does one for the flavour that is installed instead.
    with pytest.raises(MismatchError) as caught:
        fits(engine, None, A10, **RTX | {"portable": False, "compute_capabilities": ["8.6"]})
    assert "--compute-capability" not in caught.value.hint


def test_plans_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.trt"
    path.write_bytes(plan_bytes("tensorrt-rtx", (1, 7, 1, 116)))
    assert plan_flavor(path) == ("tensorrt-rtx", "1.7.1")
    path.write_bytes(plan_bytes()[:31])
    assert plan_flavor(path) is None
    assert plan_flavor(tmp_path / "none") is None


def test_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert this_platform().endswith("-x86_64")


def test_cannot_be_written(engine: Path) -> None:
    sidecar = read_sidecar(engine)
    with pytest.raises(OutputError, match="cannot be written"):
        write_sidecar(engine.parent / "no" / "vit.trt", sidecar)
