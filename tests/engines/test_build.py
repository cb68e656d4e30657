"""What building does around TensorRT, with a stand-in for it; the real one is in test_build_real.py."""

from __future__ import annotations

import errno
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

import geoinfer  # noqa: E402
from geoinfer.engines import build, gpu  # noqa: E402
from geoinfer.engines.build import BuildOptions, build_engine  # noqa: E402
from geoinfer.engines.log import tidied  # noqa: E402
from geoinfer.engines.sidecar import check_engine_file, read_sidecar, sidecar_path  # noqa: E402
from geoinfer.errors import (  # noqa: E402
    DeviceError,
    GeoInferError,
    InputError,
    MissingPackageError,
    ModelError,
    OutputError,
    UsageError,
)
from geoinfer.lock import OutputLock  # noqa: E402
from tests.engines.fakes import FakeApi, FakeRuntime, plan_bytes, put_engine  # noqa: E402
from tests.onnx_models import METADATA, make_model  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Machine:
    """One with a GPU and both flavours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.apis = {name: FakeApi(name) for name in ("tensorrt", "tensorrt-rtx")}
        self.runtime = FakeRuntime(("NVIDIA A10", 8, 6), ("NVIDIA H100", 9, 0))
        self.lines: list[str] = []
        monkeypatch.setattr(build, "load_flavor", lambda name: self.apis[name].flavor)
        monkeypatch.setattr(build, "default_flavor", lambda: self.apis["tensorrt"].flavor)
        monkeypatch.setattr(build, "cuda_runtime", lambda: self.runtime)
        monkeypatch.setattr(gpu, "cuda_runtime", lambda: self.runtime)

    @property
    def said(self) -> dict[str, Any]:
        return self.apis["tensorrt"].said

    def build(self, model: Path, out: Path | None = None, check: Any = None, **options: Any) -> Any:
        return build_engine(model, out or model.with_suffix(".trt"), BuildOptions(**options), self.lines.append, check)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "vit.onnx")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_tensorrt_is_told(machine: Machine, model: Path) -> None:
    machine.build(model, device=1, min_batch=2, opt_batch=3, max_batch=5, workspace_bytes=1 << 30)
    assert machine.said == {
        "network_flags": 1 << 1,
        "parsed": model.read_bytes(),
        "parsed_path": str(model),
        "profile": ("pixels", (2, 8, 8, 3), (3, 8, 8, 3), (5, 8, 8, 3)),
        "workspace": (0, 1 << 30),
        "hardware": 0,
        "flags_on": set(),
    }
    assert machine.runtime.used == [1]
    assert machine.lines == [
        "building with TensorRT 10.13.3.9 for NVIDIA H100 (compute capability 9.0), fp32: this takes minutes"
    ]


def test_the_sidecar_says_all(machine: Machine, tmp_path: Path) -> None:
    metadata = METADATA | {"geoinfer.precision": "fp16", "geoinfer.licence": "MIT", "geoinfer.parity": '{"a": 1}'}
    model = make_model(tmp_path / "vit.onnx", metadata=metadata)
    sidecar = machine.build(model, tmp_path / "other.trt", workspace_bytes=1 << 20)
    engine = tmp_path / "other.trt"
    assert read_sidecar(engine) == sidecar
    check_engine_file(engine, sidecar)
    assert engine.read_bytes() == plan_bytes()
    assert (sidecar.geoinfer, sidecar.flavor, sidecar.flavor_version) == (geoinfer.__version__, "tensorrt", "10.13.3.9")
    assert sidecar.gpu is not None
    assert (sidecar.gpu.name, sidecar.gpu.compute_capability) == ("NVIDIA A10", "8.6")
    assert (sidecar.portable, sidecar.compute_capabilities) == (False, ("8.6",))
    assert (sidecar.precision, sidecar.licence, sidecar.workspace_bytes) == ("fp16", "MIT", 1 << 20)
    assert (sidecar.profile.min, sidecar.profile.opt, sidecar.profile.max) == (1, 64, 64)
    assert (sidecar.onnx.name, sidecar.onnx.bytes) == ("vit.onnx", model.stat().st_size)
    assert (sidecar.identity, sidecar.dim) == ("tiny:0", 4)
    assert (sidecar.parity.onnx, sidecar.parity.engine) == ({"a": 1}, None)
    assert names(tmp_path) == ["other.trt", "other.trt.json", "vit.onnx"]


def test_portable(machine: Machine, model: Path) -> None:
    sidecar = machine.build(model, portable=True)
    assert machine.said["hardware"] == FakeApi.HardwareCompatibilityLevel.AMPERE_PLUS
    assert (sidecar.portable, sidecar.compute_capabilities) == (True, ("8.0+",))
    sidecar = machine.build(model, portable=True, flavor="tensorrt-rtx")
    assert machine.apis["tensorrt-rtx"].said["hardware"] == 0
    assert sidecar.portable


def test_rtx_by_default_and_for_named_gpus(machine: Machine, model: Path) -> None:
    machine.runtime.gpus = ()
    sidecar = machine.build(model, flavor="tensorrt-rtx")
    assert (sidecar.gpu, sidecar.portable) == (None, True)
    assert sidecar.compute_capabilities == ("8.0", "8.9", "12.0+")
    assert "capabilities" not in machine.apis["tensorrt-rtx"].said
    assert machine.runtime.used == []
    assert "for compute capability 8.0, 8.9, 12.0 and later, fp32: this takes seconds" in machine.lines[0]
    sidecar = machine.build(model, flavor="tensorrt-rtx", compute_capabilities=("12.0", "7.5", "12.0"))
    assert machine.apis["tensorrt-rtx"].said["capabilities"] == {0: "SM75", 1: "SM120"}
    assert (sidecar.portable, sidecar.compute_capabilities) == (False, ("7.5", "12.0"))


def test_bytes_are_cast_first(machine: Machine, tmp_path: Path) -> None:
    model = onnx.load(str(make_model(tmp_path / "vit.onnx")))
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 1, 2, 3]),
        helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
        *model.graph.node[1:],
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(tmp_path / "vit.onnx"))
    machine.build(tmp_path / "vit.onnx")
    parsed = onnx.load_model_from_string(machine.said["parsed"])
    assert [node.op_type for node in parsed.graph.node][:2] == ["Cast", "Transpose"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_batch": 0}, "--min-batch 0"),
        ({"min_batch": 65}, "--min-batch 65, --opt-batch 64"),
        ({"max_batch": 63}, "--opt-batch 64, --max-batch 63"),
        ({"max_batch": 4097}, "from 1 to 4096"),
        ({"workspace_bytes": 1023}, "expected 1MiB to 1024GiB"),
        ({"workspace_bytes": 1 << 50}, "expected 1MiB to 1024GiB"),
        ({"portable": True, "compute_capabilities": ("8.9",)}, "exclude one another"),
        ({"compute_capabilities": ("nine",)}, "compute capability 'nine'"),
        ({"flavor": "trt"}, "--flavor trt: expected tensorrt or tensorrt-rtx"),
        ({"compute_capabilities": ("8.6",)}, "TensorRT builds for the GPU in this machine"),
        ({"flavor": "tensorrt-rtx", "compute_capabilities": ("9.0",)}, "builds for 7.5, 8.0, 8.9, 12.0"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(machine: Machine, model: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        machine.build(model, **options)
    assert sentence in str(caught.value)
    assert names(model.parent) == ["vit.onnx"]
    assert machine.said == {}


def test_rtx_times_nothing(machine: Machine, model: Path) -> None:
    with pytest.raises(UsageError, match="TensorRT-RTX times nothing") as caught:
        machine.build(model, flavor="tensorrt-rtx", timing_cache=model.with_name("t"))
    assert "--flavor tensorrt" in caught.value.hint


def test_the_timing_cache_is_read_and_added_to(machine: Machine, model: Path) -> None:
    cache = model.with_name("timings")
    machine.build(model, timing_cache=cache)
    assert machine.said["timing_cache"] == (b"", False)
    assert cache.read_bytes() == b"timings, more of them"
    machine.build(model, timing_cache=cache)
    assert machine.said["timing_cache"] == (b"timings, more of them", False)
    assert [line for line in machine.lines if "cache" in line] == [
        f"timing cache: {cache}, new", f"timing cache: {cache}, read and added to",
    ]  # fmt: skip


def test_a_file_that_is_no_timing_cache_is_left_alone(machine: Machine, model: Path) -> None:
    with pytest.raises(UsageError, match=r"no timings of TensorRT 10\.13\.3\.9 on this GPU"):
        machine.build(model, timing_cache=model)
    assert make_model(model.with_name("same.onnx")).read_bytes() == model.read_bytes()


def test_timings_that_cannot_be_kept_cost_nothing(machine: Machine, model: Path) -> None:
    machine.build(model, timing_cache=model.with_name("no") / "timings")
    assert "cannot be written" in machine.lines[-1]
    assert model.with_suffix(".trt").exists()


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("vit.engine", "an engine is called *.trt"),
        ("no/vit.trt", "there is no folder"),
        ("folder.trt", "is a folder"),
    ],
)
def test_where_it_cannot_go(machine: Machine, model: Path, out: str, sentence: str) -> None:
    (model.parent / "folder.trt").mkdir()
    with pytest.raises(GeoInferError) as caught:
        machine.build(model, model.parent / out)
    assert sentence in str(caught.value)
    assert isinstance(caught.value, (UsageError, OutputError))


def test_a_folder_that_cannot_be_written_to(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot be written: permission denied"):
        machine.build(model)
    assert machine.said == {}


def test_only_engines_are_overwritten_unless_forced(machine: Machine, model: Path) -> None:
    out = model.with_suffix(".trt")
    out.write_text("a letter")
    with pytest.raises(OutputError, match="is no engine of TensorRT") as caught:
        machine.build(model)
    assert "--force" in caught.value.hint
    assert out.read_text() == "a letter"
    out.unlink()
    sidecar_path(out).write_text("a shopping list")
    with pytest.raises(OutputError, match="is no sidecar"):
        machine.build(model)
    machine.build(model, force=True)
    put_engine(out, plan_bytes("tensorrt-rtx", (1, 7, 1, 116)), flavor="tensorrt-rtx")
    machine.build(model)
    assert read_sidecar(out).flavor == "tensorrt"
    # How the plans of a later TensorRT begin is not known; a sidecar that fits says that this is one.
    put_engine(out, b"anything")
    machine.build(model)
    put_engine(out, b"anything")
    out.write_bytes(b"a letter")
    with pytest.raises(OutputError, match="is no engine of TensorRT"):
        machine.build(model)


def test_the_model_is_never_overwritten(machine: Machine, model: Path) -> None:
    link = model.with_name("vit.trt")
    link.symlink_to(model)
    with pytest.raises(UsageError, match="is the model itself"):
        machine.build(model, force=True)


def test_two_do_not_write_one_engine(machine: Machine, model: Path) -> None:
    out = model.with_suffix(".trt")
    with OutputLock(out.with_name(f".{out.name}.lock"), out), pytest.raises(OutputError, match="is writing it"):
        machine.build(model)
    assert names(model.parent) == ["vit.onnx"]
    machine.build(model)
    assert names(model.parent) == ["vit.onnx", "vit.trt", "vit.trt.json"]


def test_no_gpu(machine: Machine, model: Path) -> None:
    machine.runtime.gpus = ()
    with pytest.raises(DeviceError, match="TensorRT builds an engine on the GPU that is to run it") as caught:
        machine.build(model)
    assert "--flavor tensorrt-rtx" in caught.value.hint
    assert caught.value.exit_code == 4


def test_no_such_gpu(machine: Machine, model: Path) -> None:
    with pytest.raises(DeviceError, match="cuda:2: there is no such GPU"):
        machine.build(model, device=2)


def test_cuda_that_does_not_work(machine: Machine, model: Path) -> None:
    machine.apis["tensorrt"].no_cuda = True
    with pytest.raises(DeviceError, match="cannot start: CUDA initialization failure with error: 35"):
        machine.build(model)


def test_rtx_without_cuda_python(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(ordinal: int = 0) -> None:
        raise MissingPackageError("no cuda-python")

    monkeypatch.setattr(build, "find_gpu", find)
    assert machine.build(model, flavor="tensorrt-rtx").gpu is None
    with pytest.raises(MissingPackageError):
        machine.build(model)


def test_operators_that_it_does_not_know_are_named(machine: Machine, model: Path) -> None:
    machine.apis["tensorrt"].refuses = ("GridSample", "DeformConv", "GridSample", "Transpose")
    with pytest.raises(ModelError, match=r"does not know the ONNX operators DeformConv, GridSample$") as caught:
        machine.build(model)
    assert "--device cuda" in caught.value.hint
    machine.apis["tensorrt"].refuses = ("Transpose",)
    with pytest.raises(ModelError, match="cannot read the model at Transpose: no plugin for Transpose"):
        machine.build(model)
    assert names(model.parent) == ["vit.onnx"]


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (["[x.cpp::catchCudaError::250] noise", "Error Code 2: no layer for it In build at /_src/a.cpp:3)"],
         "cannot build an engine: Error Code 2: no layer for it"),
        (["Error Code 2: OutOfMemory (Requested size was 20 bytes.)"], "ran out of memory: Error Code 2"),
        (["[x.cpp::catchCudaError::250] noise"], "it gives no reason"),
    ],
)  # fmt: skip
def test_a_build_that_fails(machine: Machine, model: Path, messages: list[str], sentence: str) -> None:
    machine.apis["tensorrt"].fails = messages
    with pytest.raises(ModelError) as caught:
        machine.build(model)
    assert sentence in str(caught.value)
    assert "/_src" not in str(caught.value)
    assert caught.value.hint
    assert names(model.parent) == ["vit.onnx"]


def test_messages_become_one_line() -> None:
    assert tidied([]) == ""
    assert (
        tidied(["Invalid Node - x\nError Code 4: first input has type UInt8"])
        == "Error Code 4: first input has type UInt8"
    )
    assert tidied(["a\n  b"]) == "a"
    assert tidied(["--- ModelImporter.cpp:142: --- Begin", "bad\tnode  In f at /_src/x.cpp:1)"]) == "bad node"
    assert tidied(["[localCheckMacros.cpp::getErrorStr::132] Error Code 2: OutOfMemory"]) == "Error Code 2: OutOfMemory"
    assert len(tidied(["x" * 1000])) == 300


def test_a_check_is_kept_and_sees_the_pair(machine: Machine, model: Path) -> None:
    def check(engine: Path, sidecar: Any) -> dict[str, Any]:
        assert read_sidecar(engine) == sidecar
        check_engine_file(engine, sidecar)
        assert engine.parent == model.parent
        return {"min_cosine": 0.9999, "pictures": 16, "against": "x"}

    sidecar = machine.build(model, check=check)
    assert sidecar.parity.engine == {"min_cosine": 0.9999, "pictures": 16, "against": "x"}
    assert read_sidecar(model.with_suffix(".trt")) == sidecar


@pytest.mark.parametrize("fault", [ModelError("{} failed", hint="look at {}"), KeyboardInterrupt()], ids=repr)
def test_a_check_that_fails_leaves_what_was_there(machine: Machine, model: Path, fault: BaseException) -> None:
    out = put_engine(model.with_suffix(".trt"), plan_bytes(length=150))
    before = {path.name: path.read_bytes() for path in model.parent.iterdir()}

    def check(engine: Path, sidecar: Any) -> None:
        if isinstance(fault, ModelError):
            raise ModelError(f"{engine} failed", hint=f"look at {engine}")
        raise fault

    with pytest.raises(type(fault)) as caught:
        machine.build(model, check=check)
    assert {path.name: path.read_bytes() for path in model.parent.iterdir()} == before
    if isinstance(caught.value, ModelError):
        assert (str(caught.value), caught.value.hint) == (f"{out} failed", f"look at {out}")


def test_all_that_is_written_is_written_within_one_context(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[bool] = [False]
    seen: list[str] = []

    @contextmanager
    def writing() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    def watched(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            assert inside[0], name
            return real(*arguments, **options)

        return call

    for name in ("atomic_file", "write_sidecar", "sync_folder", "sha256_of"):
        monkeypatch.setattr(build, name, watched(name, getattr(build, name)))
    native = build._build
    monkeypatch.setattr(build, "_build", lambda *given: (seen.append(f"TensorRT {inside[0]}"), native(*given))[1])
    options = BuildOptions(timing_cache=model.with_name("timings"))
    build_engine(model, model.with_suffix(".trt"), options, machine.lines.append, lambda *_: {}, writing=writing)
    assert seen == ["TensorRT False", "atomic_file", "atomic_file", "sha256_of", "write_sidecar", "write_sidecar",
                    "sync_folder"]  # fmt: skip
    assert not inside[0]


@pytest.mark.parametrize("dies_at", ["unlink", "engine", "sidecar"])
def test_no_moment_has_a_sidecar_beside_an_engine_that_it_does_not_describe(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    """The three steps by which a new pair takes the place of an old one, ended before each."""
    out = put_engine(model.with_suffix(".trt"), plan_bytes(length=150))
    kind = type(model)
    replace, unlink = kind.replace, kind.unlink

    def dying(path: Path, target: Any) -> Any:
        names = {"engine": ".vit.geoinfer-tmp.trt", "sidecar": ".vit.geoinfer-tmp.trt.json"}
        if path.name == names.get(dies_at):
            raise SystemExit
        return replace(path, target)

    def maybe_unlink(path: Path, **options: Any) -> None:
        if dies_at == "unlink" and path == sidecar_path(out):
            raise SystemExit
        unlink(path, **options)

    monkeypatch.setattr(kind, "replace", dying)
    monkeypatch.setattr(kind, "unlink", maybe_unlink)
    with pytest.raises(SystemExit):
        machine.build(model)
    monkeypatch.undo()
    if sidecar_path(out).exists():
        check_engine_file(out, read_sidecar(out))
    assert names(model.parent) in (["vit.onnx", "vit.trt", "vit.trt.json"], ["vit.onnx", "vit.trt"])


def test_a_full_disk(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="cannot be written: no space left on device"):
        machine.build(model)
    monkeypatch.undo()
    assert names(model.parent) == ["vit.onnx"]


def test_models_that_are_refused_never_reach_tensorrt(machine: Machine, tmp_path: Path) -> None:
    for wrong in ({"metadata": None}, {"batch": 1}, {"extra_input": True}, {"dtype": TensorProto.FLOAT}):
        with pytest.raises(ModelError):
            machine.build(make_model(tmp_path / "bad.onnx", **wrong))
    with pytest.raises(InputError, match="there is no such model"):
        machine.build(tmp_path / "none.onnx")
    assert machine.said == {}


def test_the_sidecar_is_plain_json(machine: Machine, model: Path) -> None:
    machine.build(model)
    values = json.loads(sidecar_path(model.with_suffix(".trt")).read_text())
    assert values["format"] == "geoinfer-engine"
    assert values["input"] == {"name": "pixels", "dtype": "uint8", "shape": [-1, 8, 8, 3]}
    assert set(values["engine"]) == {"bytes", "sha256"}
