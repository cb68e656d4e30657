from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnx")

import geoinfer
from tests.backends.fake_tensorrt import pretend as pretend_gpu

if TYPE_CHECKING:
    from pathlib import Path

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["geoinfer", *sys.argv[1:]]
from geoinfer.cli import main
main()
"""


def without(package: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process where a package cannot be imported."""
    script = BLOCKED.format(name=package)
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd
    )


def pretend(folder: Path, *names: str) -> None:
    for name in names:
        metadata = folder / f"{name.replace('-', '_')}-9.9.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")


def test_healthy(run) -> None:
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"geoinfer {geoinfer.__version__}, Python {sys.version.split()[0]}")
    assert f"numpy {importlib.metadata.version('numpy')}" in outcome.out
    assert "CPUExecutionProvider" in outcome.out
    assert "demo, whole" in outcome.out
    assert outcome.out.splitlines()[-1] == "All well."


def test_as_json(run) -> None:
    report = json.loads(run("doctor", "--json").out)
    assert report["problems"] == []
    assert report["geoinfer"] == geoinfer.__version__
    for name, version in report["packages"].items():
        assert importlib.metadata.version(name) == version
    assert {"numpy", "onnxruntime", "faiss-cpu", "pillow"} <= set(report["packages"])


@pytest.mark.parametrize(
    ("both", "fakes"),
    [
        (["onnxruntime", "onnxruntime-gpu"], ["onnxruntime-gpu"]),
        (["faiss-cpu", "faiss-gpu"], ["faiss-gpu"]),
        (["faiss-cpu", "faiss-gpu-cu12"], ["faiss-gpu-cu12"]),
    ],
)
def test_clashing_packages(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: list[str], fakes: list[str]
) -> None:
    pretend(tmp_path, *fakes)
    monkeypatch.syspath_prepend(tmp_path)
    outcome = run("doctor")
    assert outcome.code == 1
    problem = next(line for line in outcome.out.splitlines() if line.startswith("problem:"))
    assert f"{' and '.join(both)} overwrite each other's files: pip uninstall {' '.join(both)}" in problem
    assert outcome.out.splitlines()[-1] == "1 problem."


def test_a_gpu_that_onnxruntime_cannot_use(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from geoinfer.cli import doctor

    monkeypatch.setattr(doctor, "_gpus", lambda: ["0: NVIDIA H200, 140 GiB"])
    monkeypatch.setattr(doctor, "_providers", lambda problems: ["CPUExecutionProvider"])
    outcome = run("doctor")
    assert outcome.code == 0
    assert "GPU:       0: NVIDIA H200, 140 GiB" in outcome.out
    advice = next(line for line in outcome.out.splitlines() if line.startswith("advice:"))
    assert "pip install 'geoinfer-toolkit[gpu]'" in advice


def test_engines(run, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = pretend_gpu(monkeypatch, gpus=2)
    outcome = run("doctor")
    assert outcome.code == 0
    assert "engines:   TensorRT 10.13.3.9\n" in outcome.out
    gpu = "NVIDIA Fake (compute capability 8.9)"
    assert f"CUDA:      the driver serves CUDA 13.0; cuda:0 {gpu}, cuda:1 {gpu}\n" in outcome.out
    assert json.loads(run("doctor", "--json").out)["engines"]["builds"] == "TensorRT 10.13.3.9"
    machine.cuda.gpus = 0
    assert "CUDA:      no driver; no GPU that it can use\n" in run("doctor").out


def test_engines_that_cannot_run(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from geoinfer.cli import doctor

    monkeypatch.setattr(doctor, "_gpus", lambda: ["0: NVIDIA H200, 140 GiB"])
    machine = pretend_gpu(monkeypatch, "tensorrt-rtx", gpus=0)
    assert "advice:    TensorRT engines cannot run: no NVIDIA GPU can be used here" in run("doctor").out
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    outcome = run("doctor")
    assert "CUDA:      not looked at: cuda-python is not installed" in outcome.out
    assert "advice:    TensorRT engines cannot run: pip install cuda-python" in outcome.out
    del machine.api.Builder
    assert "advice:    the Python package of TensorRT-RTX is broken: pip install" in run("doctor").out
    monkeypatch.setattr("geoinfer.engines.flavors.installed_flavors", list)
    assert "engine of the model for this very GPU is faster still: pip install" in run("doctor").out


@pytest.mark.parametrize(("package", "words"), [("onnxruntime", "ONNX Runtime"), ("faiss", "FAISS")])
def test_a_missing_library(package: str, words: str, tmp_path: Path, example_photos: Path) -> None:
    done = without(package, "doctor")
    assert done.returncode == 1
    assert done.stderr == ""
    problem = next(line for line in done.stdout.splitlines() if line.startswith("problem:"))
    assert f"{words} cannot be imported" in problem
    assert "pip install 'geoinfer-toolkit[cpu]'" in problem
    done = without(package, "predict", example_photos / "cannes-heidi.jpg", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"geoinfer: {words} cannot be imported" in done.stderr
    assert "geoinfer-toolkit[cpu]" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_heic() -> None:
    done = without("pi_heif", "doctor")
    assert done.returncode == 0
    assert "no HEIC" in done.stdout
    assert "advice:    HEIC photos (iPhones) cannot be read: pip install 'geoinfer-toolkit[heic]'" in done.stdout


def test_a_damaged_shipped_bundle(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geoinfer import bundle

    monkeypatch.setattr(bundle, "SHIPPED", tmp_path / "demo")
    outcome = run("doctor")
    assert outcome.code == 1
    assert "bundle:    damaged or missing" in outcome.out
