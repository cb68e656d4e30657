"""`geoinfer engine`: with a stand-in for TensorRT, and at the end with the real TensorRT-RTX."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

import geoinfer.engine_check
import geoinfer.engines.build
import geoinfer.engines.flavors
from geoinfer.bundle import SHIPPED
from geoinfer.cli.engine import parsed_size
from geoinfer.engines import gpu as gpu_module
from geoinfer.errors import ModelError, UsageError
from tests.conftest import CHECKOUT
from tests.engines.fakes import FakeApi, FakeRuntime, plan_bytes, put_engine
from tests.onnx_models import make_model


class Machine:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.apis = {name: FakeApi(name) for name in ("tensorrt", "tensorrt-rtx")}
        self.runtime = FakeRuntime(("NVIDIA A10", 8, 6), ("NVIDIA H100", 9, 0))
        self.checks: list[dict[str, Any]] = []
        self.found: Any = None

        def check(engine: Path, sidecar: Any, onnx: Path, **options: Any) -> Any:
            self.checks.append({"onnx": onnx, **options})
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

        for module in (geoinfer.engines.build, geoinfer.engines.flavors):
            monkeypatch.setattr(module, "load_flavor", lambda name: self.apis[name].flavor)
            monkeypatch.setattr(module, "default_flavor", lambda: self.apis["tensorrt"].flavor)
        monkeypatch.setattr(geoinfer.engines.build, "cuda_runtime", lambda: self.runtime)
        monkeypatch.setattr(gpu_module, "cuda_runtime", lambda: self.runtime)
        monkeypatch.setattr(geoinfer.engine_check, "check_engine", check)
        monkeypatch.setattr("geoinfer.engines.sidecar.this_platform", lambda: "linux-x86_64")
        monkeypatch.setattr("geoinfer.engines.build.this_platform", lambda: "linux-x86_64")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def model(here: Path) -> Path:
    return make_model(here / "vit.onnx")


def test_builds_and_says_how_to_use_it(run, machine: Machine, model: Path, here: Path) -> None:
    outcome = run("engine", "build", "vit.onnx")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in here.iterdir()) == ["vit.onnx", "vit.trt", "vit.trt.json"]
    assert outcome.out.startswith("Built vit.trt (0.0 MB) in ")
    assert "geoinfer predict PHOTOS --engine vit.trt" in outcome.out
    assert (
        "building with TensorRT 10.13.3.9 for NVIDIA A10 (compute capability 8.6), fp32: this takes minutes"
        in outcome.err
    )
    assert machine.checks[0] | {"report": None} == {
        "onnx": Path("vit.onnx"),
        "photos": None,
        "device": 0,
        "report": None,
    }


def test_quiet_prints_nothing(run, machine: Machine, model: Path) -> None:
    outcome = run("engine", "build", "vit.onnx", "--out", "other.trt", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert Path("other.trt.json").exists()


def test_all_options_arrive(run, machine: Machine, model: Path, here: Path) -> None:
    (here / "photos").mkdir()
    outcome = run(
        "engine", "build", model, "-o", "x.trt", "--flavor", "tensorrt", "--min-batch", 2, "--opt-batch", 4,
        "--max-batch", 8, "--workspace", "4GiB", "--portable", "--timing-cache", "t.cache", "--device", "cuda:1",
        "--photos", "photos",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    said = machine.apis["tensorrt"].said
    assert said["profile"] == ("pixels", (2, 8, 8, 3), (4, 8, 8, 3), (8, 8, 8, 3))
    assert (said["workspace"][1], said["hardware"]) == (4 << 30, 1)
    assert machine.runtime.used == [1]
    assert machine.checks[0]["photos"] == Path("photos")
    assert machine.checks[0]["device"] == 1
    assert (here / "t.cache").exists()
    values = json.loads((here / "x.trt.json").read_text())
    assert values["gpu"]["name"] == "NVIDIA H100"
    assert values["compute_capabilities"] == ["8.0+"]


@pytest.mark.parametrize(
    ("arguments", "profile"),
    [
        ([], (1, 64, 64)),
        (["--max-batch", 16], (1, 16, 16)),
        (["--max-batch", 256], (1, 64, 256)),
        (["--opt-batch", 512], (1, 512, 512)),
        (["--min-batch", 100], (100, 100, 100)),
        (["--opt-batch", 8], (1, 8, 8)),
        (["--min-batch", 4, "--max-batch", 8], (4, 8, 8)),
    ],
)
def test_batches_that_are_left_out_give_way(run, machine: Machine, model: Path, arguments, profile) -> None:
    assert run("engine", "build", model, *arguments).code == 0
    stored = json.loads(Path("vit.trt.json").read_text())["profile"]
    assert (stored["min"], stored["opt"], stored["max"]) == profile


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["none.onnx"], 2, "none.onnx: there is no such model"),
        (["."], 2, "is a folder and no bundle"),
        (["vit.onnx", "--out", "vit.engine"], 2, "an engine is called *.trt"),
        (["vit.onnx", "--out", "no/vit.trt"], 2, "there is no folder no"),
        (["vit.onnx", "--flavor", "trt"], 2, "--flavor trt: expected tensorrt or tensorrt-rtx"),
        (["vit.onnx", "--workspace", "much"], 2, "--workspace much: expected a size, as in 4GiB or 512MiB"),
        (["vit.onnx", "--workspace", "1KiB"], 2, "expected 1MiB to 1024GiB"),
        (["vit.onnx", "--workspace", "999999999GiB"], 2, "expected 1MiB to 1024GiB"),
        (["vit.onnx", "--device", "cpu"], 2, "--device cpu: expected cuda or cuda:N"),
        (["vit.onnx", "--device", "cuda:7"], 4, "cuda:7: there is no such GPU"),
        (["vit.onnx", "--photos", "none"], 2, "--photos none: there is no such folder"),
        (["vit.onnx", "--min-batch", "0"], 2, "--min-batch 0"),
        (["vit.onnx", "--compute-capability", "8.9"], 2, "TensorRT builds for the GPU in this machine"),
        (["vit.onnx", "--flavor", "tensorrt-rtx", "--compute-capability", "9.0"], 2, "builds for 7.5, 8.0, 8.9, 12.0"),
        (["letter.onnx"], 3, "letter.onnx: not an ONNX model"),
        (["fixed.onnx"], 3, "the batch is fixed at 2"),
        (["foreign.onnx"], 3, "the metadata do not say which embedder this is"),
        (["vit.onnx", "--out", "letter.trt"], 2, "letter.trt: exists, and is no engine of TensorRT"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run, machine: Machine, model: Path, here: Path, arguments, code, sentence
) -> None:
    (here / "letter.onnx").write_text("Dear all,")
    (here / "letter.trt").write_text("Dear all,")
    make_model(here / "fixed.onnx", batch=2)
    make_model(here / "foreign.onnx", metadata=None)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    outcome = run("engine", "build", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("geoinfer: ")]) == 1
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_an_engine_that_fails_its_check_is_not_written(run, machine: Machine, model: Path, here: Path) -> None:
    machine.found = ModelError("the engine of vit.onnx failed its check")
    outcome = run("engine", "build", model)
    assert outcome.code == 3
    assert sorted(path.name for path in here.iterdir()) == ["vit.onnx"]
    machine.found = {"min_cosine": 0.9999, "pictures": 16, "against": "onnxruntime 1.20, cpu"}
    assert run("engine", "build", model).code == 0
    assert (
        "smallest cosine 0.9999 on 16 pictures, against onnxruntime 1.20, cpu" in run("engine", "info", "vit.trt").out
    )


@pytest.fixture
def bundle(here: Path) -> Path:
    shutil.copytree(SHIPPED, here / "demo")
    return here / "demo"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "model.tensorrt-10.13.3.9-sm86-fp32.trt"),
        (["--device", "cuda:1"], "model.tensorrt-10.13.3.9-sm90-fp32.trt"),
        (["--portable"], "model.tensorrt-10.13.3.9-portable-fp32.trt"),
        (["--flavor", "tensorrt-rtx"], "model.tensorrt-rtx-10.13.3.9-portable-fp32.trt"),
        (["--flavor", "tensorrt-rtx", "--compute-capability", "7.5", "--compute-capability", "8.9"],
         "model.tensorrt-rtx-10.13.3.9-sm75-sm89-fp32.trt"),
    ],
)  # fmt: skip
def test_a_bundles_engine_lies_in_the_bundle(run, machine: Machine, bundle: Path, arguments, name: str) -> None:
    outcome = run("engine", "build", bundle, *arguments)
    assert outcome.code == 0, outcome.err
    assert (bundle / name).exists()
    assert f"geoinfer predict PHOTOS --engine {bundle}" in outcome.out
    # The bundle is still whole: an engine beside the model is no part of it.
    assert run("info", bundle, "--verify").code == 0


def test_info_says_everything(run, machine: Machine, here: Path) -> None:
    put_engine(here / "vit.trt")
    outcome = run("engine", "info", "vit.trt")
    assert (outcome.code, outcome.err) == (0, "")
    for part in (
        "vit.trt: an engine of TensorRT 10.13.3.9, 0.0 MB, checksum good",
        "compute capability 8.6; linux-x86_64; TensorRT 10.13.3.9 only",
        "NVIDIA A10, by geoinfer 0.1.0, in 4.7 s", "fp16", "1 to 256, tuned for 64", "no limit",
        "pixels uint8 (batch, 8, 8, 3)", "embeddings float32 (batch, 4)", "tiny:0 (4 dimensions; 8 px squash",
        "vit.onnx, 0.0 MB, sha256 0000000000000000", "somewhere", "MIT", "sha256 1111111111111111",
        "smallest cosine 0.9999", "not checked against its model", "runs here:", "yes: on NVIDIA A10",
    ):  # fmt: skip
        assert part in outcome.out, part


def test_info_as_json(run, machine: Machine, here: Path) -> None:
    put_engine(here / "vit.trt")
    values = json.loads(run("engine", "info", "vit.trt", "--json").out)
    stored = json.loads((here / "vit.trt.json").read_text())
    assert {key: values[key] for key in stored} == stored
    assert (values["runs_here"], values["file"], values["hint"]) == (True, "vit.trt", "")


@pytest.mark.parametrize(
    ("changes", "arguments", "reason", "hint"),
    [
        ({}, ["--device", "cuda:1"], "built for NVIDIA A10 (compute capability 8.6), here is NVIDIA H100", "build"),
        ({"flavor_version": "10.0.0.1"}, [], "built by TensorRT 10.0.0.1, here is 10.13.3.9", "engine build"),
        ({"platform": "linux-aarch64"}, [], "built on linux-aarch64", "engine build"),
        ({}, ["--device", "cuda:5"], "cuda:5: there is no such GPU", "doctor"),
    ],
)  # fmt: skip
def test_info_says_why_it_does_not_run_here(
    run, machine: Machine, here: Path, changes, arguments, reason, hint
) -> None:
    put_engine(here / "vit.trt", **changes)
    outcome = run("engine", "info", "vit.trt", *arguments)
    assert outcome.code == 0
    assert f"no: {reason}" in outcome.out
    assert hint in outcome.out
    values = json.loads(run("engine", "info", "vit.trt", "--json", *arguments).out)
    assert values["runs_here"] is False
    assert reason in values["reason"]


@pytest.mark.parametrize("fault", ["truncated", "foreign", "no sidecar", "no JSON", "version 2", "none"])
def test_info_of_what_is_broken(run, machine: Machine, here: Path, fault: str) -> None:
    engine = put_engine(here / "vit.trt", **({"version": 2} if fault == "version 2" else {}))
    if fault == "truncated":
        engine.write_bytes(plan_bytes()[:-1])
    elif fault == "foreign":
        engine.write_bytes(b"\x7fELF" + bytes(196))
    elif fault == "no sidecar":
        (here / "vit.trt.json").unlink()
    elif fault == "no JSON":
        (here / "vit.trt.json").write_text("{")
    elif fault == "none":
        engine.unlink()
    outcome = run("engine", "info", "vit.trt")
    assert outcome.code == (2 if fault == "none" else 3)
    assert outcome.out == ""
    assert "geoinfer engine build vit.onnx --out vit.trt" in outcome.err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("512 MiB", 512 << 20),
        ("1.5gib", 3 << 29),
        ("2GB", 2 * 10**9),
        ("1048576", 1 << 20),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parsed_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4TiB4", "4 G B", "1e9", "٤GiB x", "9" * 16])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--workspace"):
        parsed_size(text)


@pytest.mark.parametrize("moment", ["atomic_file", "sha256_of", "write_sidecar", "sync_folder"])
def test_an_interrupt_while_files_are_written_leaves_none(here: Path, moment: str) -> None:
    """The real command in a process of its own, which interrupts itself before it comes to this function."""
    make_model(here / "vit.onnx")
    script = f"""
import os, signal, sys, time
import geoinfer.engine_check, geoinfer.engines.build as build, geoinfer.engines.flavors as flavors
from geoinfer.engines import gpu
from tests.engines.fakes import FakeApi, FakeRuntime
for module in (build, flavors):
    module.load_flavor = lambda name: FakeApi(name).flavor
for module in (build, gpu):
    module.cuda_runtime = lambda: FakeRuntime(("NVIDIA A10", 8, 6))
geoinfer.engine_check.check_engine = lambda *a, **b: None
real = build.{moment}
def interrupted(path, *rest):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
    return real(path, *rest)
build.{moment} = interrupted
sys.argv = ["geoinfer", "engine", "build", "vit.onnx", "--flavor", "tensorrt"]
from geoinfer.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "geoinfer: interrupted"
    left = sorted(path.name for path in here.iterdir())
    # Once both have their places the engine is there; what lies aside never stays.
    assert left == (["vit.onnx", "vit.trt", "vit.trt.json"] if moment == "sync_folder" else ["vit.onnx"])


REAL = [sys.executable, "-m", "geoinfer", "engine"]


@pytest.mark.slow
def test_for_real_as_a_user_does(here: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = subprocess.run(
        [*REAL, "build", str(SHIPPED / "model.onnx"), "--out", "x.trt", "--flavor", "tensorrt-rtx"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "this takes seconds" in done.stderr
    assert "TRT" not in done.stdout
    info = subprocess.run([*REAL, "info", "x.trt", "--json"], capture_output=True, text=True, timeout=60, check=True)
    values = json.loads(info.stdout)
    assert (values["flavor"], values["portable"], values["precision"]) == ("tensorrt-rtx", True, "fp32")
    if values["gpu"] is None:
        assert "not checked: no NVIDIA GPU can be used here" in done.stderr
        assert values["parity"]["engine"] is None
        assert values["runs_here"] is False


@pytest.mark.slow
def test_an_interrupt_ends_a_build(here: Path) -> None:
    """TensorRT itself heeds no signal: the main thread must be free to."""
    pytest.importorskip("tensorrt_rtx")
    waits = (
        "import sys, time; import geoinfer.engines.build as b; "
        "b._build = lambda *a: (print('building', flush=True), time.sleep(60)); "
        "sys.argv = ['geoinfer', 'engine', 'build', sys.argv[1], '--flavor', 'tensorrt-rtx', '--out', 'x.trt']; "
        "from geoinfer.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", waits, str(SHIPPED / "model.onnx")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in error
    assert time.monotonic() - began < 10
    assert list(here.iterdir()) == []
