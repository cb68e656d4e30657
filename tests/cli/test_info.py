from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto

from geoinfer.backends import open_embedder
from geoinfer.bundle import SHIPPED, write_bundle_manifest
from geoinfer.engines import flavors
from geoinfer.engines import gpu as gpus
from geoinfer.engines import sidecar as sidecars
from geoinfer.errors import DeviceError
from geoinfer.index import References, write_index
from tests.backends.fake_tensorrt import pretend, write_engine
from tests.engines.fakes import FakeApi, put_engine
from tests.onnx_models import METADATA, SIZE, expected, make_model


def test_the_shipped_bundle(run) -> None:
    outcome = run("info")
    assert (outcome.code, outcome.err) == (0, "")
    assert "demo" in outcome.out
    assert "335 references" in outcome.out
    assert "efficientnet-lite2-imagenet:9656183eaeafe8cb (1280 dimensions; 260 px crop, bicubic" in outcome.out
    assert "Apache-2.0" in outcome.out
    assert "demonstration" in outcome.out


def test_as_json(run) -> None:
    by_name = json.loads(run("info", SHIPPED, "--json", "--verify").out)
    manifest = json.loads((SHIPPED / "bundle.json").read_bytes())
    assert by_name["notice"] == manifest["notice"]
    assert by_name["description"] == manifest["description"]
    assert by_name["licences"] == [f"{part}: {text}" for part, text in manifest["licences"].items()]
    assert f"{sum(f['bytes'] for f in manifest['files'].values()) / 1e6:.1f} MB" in by_name["bundle"]


def test_a_usable_model(run, tiny) -> None:
    outcome = run("info", tiny.model)
    assert outcome.code == 0
    lines = [line.split(maxsplit=1) for line in outcome.out.splitlines()]
    assert ["inputs:", "pixels tensor(uint8) ['batch', 8, 8, 3]"] in lines
    assert ["outputs:", "embeddings tensor(float) ['batch', 4]"] in lines
    assert lines[-1] == ["usable:", "yes: tiny:0 (4 dimensions; 8 px squash, bilinear, mean 0/0/0, std 1/1/1)"]
    assert "geoinfer.identity = tiny:0\n" in outcome.out


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"metadata": None}, "does not say which pixels"),
        ({"dtype": TensorProto.FLOAT}, "expected uint8"),
        ({"batch": 3}, "the batch is fixed at 3"),
        ({"normalise": False}, "expected 1 (L2 normalisation"),
    ],
    ids=["no metadata", "float", "fixed batch", "no L2 norm"],
)
def test_a_model_that_geoinfer_cannot_use_is_described_all_the_same(run, here: Path, how: dict, words: str) -> None:
    outcome = run("info", make_model(Path("m.onnx"), **how))
    assert outcome.code == 0
    usable = outcome.out.splitlines()[-1].split(maxsplit=1)
    assert usable[0] == "usable:"
    assert usable[1].startswith("no: ")
    assert words in usable[1]
    assert "inputs:" in outcome.out
    assert json.loads(run("info", "m.onnx", "--json").out)["usable"] == usable[1]


def test_an_engine(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    path = write_engine(tmp_path / "vit.trt")
    for more in ([], ["--json"]):
        outcome = run("info", path, *more)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out == run("engine", "info", path, *more).out
    assert "tiny:0" in outcome.out
    path.with_name("vit.trt.json").unlink()
    outcome = run("info", path)
    assert outcome.code == 3
    assert "has no sidecar" in outcome.err


@pytest.fixture
def with_engines(tmp_path: Path) -> Path:
    """A bundle whose folder holds engines that were built into it later."""
    model = make_model(tmp_path / "m.onnx")
    folder = tmp_path / "bundle"
    with open_embedder(model, "cpu") as embedder:
        vectors = expected(np.arange(1, 10, dtype=np.uint8).repeat(SIZE * SIZE * 3).reshape(9, SIZE, SIZE, 3))
        digests = np.zeros((9, 32), np.uint8)
        names = [str(number) for number in range(9)]
        references = References(names, np.zeros((9, 2)), names, names, digests, digests)
        folder.mkdir()
        write_index(folder / "index", vectors.astype(np.float32), references, embedder.identity)
    model.rename(folder / "model.onnx")
    write_bundle_manifest(folder, name="mine", description="", notice="", licences={})
    put_engine(folder / "a.trt")
    put_engine(folder / "b.trt", identity="tiny:1")
    put_engine(folder / "c.trt", compute_capabilities=["9.0"], gpu=None)
    put_engine(folder / "d.trt", flavor_version="10.0.0.0")
    put_engine(folder / "e.trt").with_name("e.trt.json").unlink()
    return folder


def engine_lines(run, folder: Path, *more: str) -> dict[str, str]:
    outcome = run("info", folder, "--json", *more)
    assert (outcome.code, outcome.err) == (0, "")
    lines = json.loads(outcome.out)["engines"]
    assert "engines:" in run("info", folder).out
    return dict(line.split(": ", 1) for line in lines)


def test_the_engines_of_a_bundle(run, with_engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "find_gpu", lambda _: gpus.Gpu(0, "NVIDIA A10", (8, 6), 24 << 30))
    monkeypatch.setattr(flavors, "load_flavor", lambda name: FakeApi(name).flavor)
    monkeypatch.setattr(sidecars, "this_platform", lambda: "linux-x86_64")
    lines = engine_lines(run, with_engines)
    assert lines["a.trt"].startswith(
        "fp16, for compute capability 8.6, linux-x86_64, TensorRT 10.13.3.9; fits NVIDIA A10"
    )
    assert lines["b.trt"].split("; ", 1)[1].startswith("not used: of another embedder, tiny:1 (4 dimensions")
    assert "for compute capability 9.0" in lines["c.trt"]
    assert "not used: built for compute capability 9.0, here is NVIDIA A10" in lines["c.trt"]
    assert "not used: built by TensorRT 10.0.0.0, here is 10.13.3.9" in lines["d.trt"]
    assert lines["e.trt"].startswith("not used: has no sidecar")


def test_the_engines_of_a_bundle_without_a_gpu(run, with_engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: int) -> None:
        raise DeviceError("no NVIDIA GPU was found")

    monkeypatch.setattr(gpus, "find_gpu", none)
    lines = engine_lines(run, with_engines)
    assert lines["a.trt"] == (
        "fp16, for compute capability 8.6, linux-x86_64, TensorRT 10.13.3.9; not used here: no NVIDIA GPU was found"
    )
    assert "of another embedder" in lines["b.trt"]
    engine = with_engines / "a.trt"
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    assert "not used here" in engine_lines(run, with_engines)["a.trt"]
    assert "checksum" in engine_lines(run, with_engines, "--verify")["a.trt"]


@pytest.mark.parametrize(
    "entry", [("format", "99"), ("dim", "0"), ("dim", "nan"), ("precision", "fp99"), ("identity", "")], ids=str
)
def test_metadata_that_engine_build_refuses_are_not_called_usable(run, tmp_path: Path, entry: tuple) -> None:
    path = make_model(tmp_path / "m.onnx", metadata=METADATA | {f"geoinfer.{entry[0]}": entry[1]})
    assert run("info", path).out.splitlines()[-1].startswith("usable:")
    assert json.loads(run("info", path, "--json").out)["usable"].startswith("no: ")
