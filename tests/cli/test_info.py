from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from onnx import TensorProto

from geoinfer.bundle import SHIPPED
from tests.backends.fake_tensorrt import pretend, write_engine
from tests.onnx_models import make_model


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
