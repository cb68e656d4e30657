from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from geoinfer.engines import choose
from geoinfer.engines.choose import Picked, engines_beside, pick_engine
from geoinfer.engines.flavors import Flavor
from geoinfer.engines.gpu import Gpu
from geoinfer.errors import DeviceError, MissingPackageError
from tests.engines.fakes import IDENTITY, PREPROCESSING, plan_bytes, put_engine

if TYPE_CHECKING:
    from pathlib import Path

RTX = {"flavor": "tensorrt-rtx", "flavor_version": "1.7.1.116", "compute_capabilities": ["8.0", "8.6", "12.1+"],
       "portable": True, "gpu": None}  # fmt: skip


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch):
    """An A10 with both flavours; `machine(gpu=None)` takes it away."""

    def make(*, gpu: Gpu | None = None, missing: tuple[str, ...] = (), no_gpu: bool = False) -> None:
        versions = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116"}

        def load(name: str) -> Flavor:
            if name in missing:
                raise MissingPackageError(f"{name} is not installed")
            return Flavor(name, versions[name], None, b"")

        def find(ordinal: int = 0) -> Gpu:
            if no_gpu:
                raise DeviceError("no NVIDIA GPU can be used here: none")
            return gpu or Gpu(ordinal, "NVIDIA A10", (8, 6), 24 << 30)

        monkeypatch.setattr(choose, "load_flavor", load)
        monkeypatch.setattr(choose, "find_gpu", find)
        monkeypatch.setattr("geoinfer.engines.sidecar.this_platform", lambda: "linux-x86_64")

    make()
    return make


def test_no_engines_and_no_folder(tmp_path: Path) -> None:
    assert pick_engine(tmp_path, IDENTITY) == Picked(None, "")
    assert pick_engine(tmp_path / "none", IDENTITY) == Picked(None, "")


def test_engines_are_files_of_that_name(tmp_path: Path) -> None:
    for name in ("b.trt", "a.TRT", ".a.geoinfer-tmp.trt", "model.onnx", "b.trt.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.trt").mkdir()
    assert [path.name for path in engines_beside(tmp_path)] == ["a.TRT", "b.trt"]


def test_fp16_before_int8_before_fp32(tmp_path: Path) -> None:
    order = ["fp16", "int8", "fp32"]
    for precision in reversed(order):
        put_engine(tmp_path / f"{precision}.trt", precision=precision)
    for precision in order:
        picked = pick_engine(tmp_path, IDENTITY)
        assert picked.engine == tmp_path / f"{precision}.trt"
        assert picked.reason == f"{precision}.trt beside the model fits: {precision}, TensorRT 10.13.3.9"
        (tmp_path / f"{precision}.trt").unlink()


def test_then_the_flavour_then_the_name(tmp_path: Path) -> None:
    for name, changes in {"a.trt": RTX, "c.trt": {}, "b.trt": {}}.items():
        put_engine(tmp_path / name, **changes)
    assert pick_engine(tmp_path, IDENTITY).engine == tmp_path / "b.trt"
    put_engine(tmp_path / "a.trt", **(RTX | {"precision": "int8"}))
    assert pick_engine(tmp_path, IDENTITY).engine == tmp_path / "b.trt"


def test_a_remark_is_passed_on(tmp_path: Path, machine) -> None:
    machine(gpu=Gpu(0, "NVIDIA A40", (8, 6), 1))
    put_engine(tmp_path / "a.trt")
    assert "built on NVIDIA A10, here is NVIDIA A40" in pick_engine(tmp_path, IDENTITY).reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"identity": "vit:1"}, "the embedder is vit:1, the model's tiny:0"),
        ({"dim": 5, "output": {"name": "e", "dtype": "float32", "shape": [-1, 5]}}, "the dimension is 5, the"),
        ({"preprocessing": PREPROCESSING | {"resize": "crop"}}, "the preprocessing is"),
        ({"flavor_version": "10.13.3.8"}, "built by TensorRT 10.13.3.8, here is 10.13.3.9"),
        ({"compute_capabilities": ["9.0"]}, "here is NVIDIA A10"),
        ({"platform": "linux-aarch64"}, "built on linux-aarch64"),
        ({"engine": {"bytes": 9, "sha256": ""}}, "200 bytes where its sidecar says 9"),
        ({"version": 2}, "sidecar of version 2"),
    ],
)  # fmt: skip
def test_why_none_fits(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    put_engine(tmp_path / "vit.trt", plan_bytes(), **changes)
    picked = pick_engine(tmp_path, IDENTITY)
    assert picked.engine is None
    assert picked.reason.startswith("an engine lies beside the model, none fits: vit.trt")
    assert reason in picked.reason


def test_every_reason_is_given(tmp_path: Path) -> None:
    put_engine(tmp_path / "a.trt", identity="other:0")
    (tmp_path / "b.trt").write_bytes(plan_bytes())
    picked = pick_engine(tmp_path, IDENTITY)
    assert picked.reason.startswith("2 engines lie beside the model, none fits: a.trt: the embedder")
    assert "b.trt: has no sidecar" in picked.reason


def test_one_that_fits_among_those_that_do_not(tmp_path: Path) -> None:
    put_engine(tmp_path / "a.trt", identity="other:0")
    (tmp_path / "b.trt").write_bytes(plan_bytes())
    put_engine(tmp_path / "c.trt", precision="fp32")
    assert pick_engine(tmp_path, IDENTITY).engine == tmp_path / "c.trt"


def test_a_flavour_that_is_not_installed(tmp_path: Path, machine) -> None:
    machine(missing=("tensorrt",))
    put_engine(tmp_path / "a.trt")
    assert "which is not installed here" in pick_engine(tmp_path, IDENTITY).reason
    put_engine(tmp_path / "b.trt", **RTX)
    assert pick_engine(tmp_path, IDENTITY).engine == tmp_path / "b.trt"


def test_no_gpu(tmp_path: Path, machine) -> None:
    machine(no_gpu=True)
    put_engine(tmp_path / "a.trt")
    assert pick_engine(tmp_path, IDENTITY) == Picked(
        None, "an engine lies beside the model, but no NVIDIA GPU can be used here: none"
    )
