from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import geoinfer

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, made by the build backend from a copy, so that nothing is written into the checkout."""
    pytest.importorskip("hatchling", reason="hatchling is not installed; it is in the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", ".*", "dist", "build")
    for name in ("geoinfer", "trainer", "export", "tests", "examples"):
        shutil.copytree(CHECKOUT / name, folder / "src" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "NOTICE.md"):
        shutil.copy(CHECKOUT / name, folder / "src" / name)
    script = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, folder], cwd=folder / "src", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / done.stdout.split()[-1])


def test_the_wheel_holds_the_runtime_alone(wheel: zipfile.ZipFile) -> None:
    info = f"geoinfer_toolkit-{geoinfer.__version__}.dist-info"
    package = CHECKOUT / "geoinfer"
    wanted = {
        f"geoinfer/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "geoinfer/py.typed" in wanted
    assert "geoinfer/bundles/demo/model.onnx" in wanted
    assert {
        "geoinfer/maps/land-110m.json",
        "geoinfer/maps/countries-50m.json",
        "geoinfer/places/countries.csv",
    } <= wanted
    assert {"geoinfer/evaluate/page/page.html", "geoinfer/evaluate/page/page.css"} <= wanted
    metadata = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    licences = {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE.md", "geoinfer/NOTICE.md"}
    assert set(wheel.namelist()) == wanted | metadata | licences


def test_the_wheel_is_small_and_for_every_platform(wheel: zipfile.ZipFile) -> None:
    assert Path(wheel.filename).name == f"geoinfer_toolkit-{geoinfer.__version__}-py3-none-any.whl"
    assert os.path.getsize(wheel.filename) < 30_000_000


def test_the_wheel_has_the_command_and_the_checkouts_bundle(wheel: zipfile.ZipFile) -> None:
    info = f"geoinfer_toolkit-{geoinfer.__version__}.dist-info"
    assert "geoinfer = geoinfer.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    name = "geoinfer/bundles/demo/model.onnx"
    assert wheel.read(name) == (CHECKOUT / name).read_bytes()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


def test_the_wheel_runs_from_where_it_lies(wheel: zipfile.ZipFile, tmp_path: Path, example_photos: Path) -> None:
    """Unpacked beside the libraries, and not the checkout: what the wheel lacks shows."""
    wheel.extractall(tmp_path / "site")
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from geoinfer.cli import main; import geoinfer; "
    script += "print(geoinfer.__file__, file=sys.stderr); main()"
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "site", "predict", example_photos / "cannes-heidi.jpg"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr.startswith(str(tmp_path / "site" / "geoinfer"))
    assert done.returncode == 0, done.stderr
    assert "Located 1 of 1" in done.stdout


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=!~;]", requirement)[0] for requirement in requirements}


def test_base_dependencies_are_the_houses() -> None:
    # Beside the house's own: platformdirs, which says where a cache belongs.
    wanted = {"numpy", "typer", "rich", "pillow", "platformdirs", "simplejpeg", "pyarrow"}
    assert names(PROJECT["project"]["dependencies"]) == wanted


def test_extras_are_the_houses() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    # Not in the table: `heic`, whose package house.md names in its prose, and `places`, `report` and `browser` (tests).
    ours = {"heic", "places", "report", "browser"}
    assert set(extras) == {"cpu", "gpu", "tensorrt", "rtx", "train", "export", "dev"} | ours
    assert names(extras["cpu"]) == {"onnxruntime", "faiss-cpu"}
    gpu = {re.sub(r"-cu\d+$", "", name) for name in names(extras["gpu"])}
    # The house's own, and the compiler of our CUDA kernel.
    house = {"onnxruntime-gpu", "faiss-gpu", "nvidia-nvimgcodec", "nvidia-ml-py", "cuda-python"}
    assert house | {"nvidia-cuda-nvrtc"} == gpu
    # cuda-python beside the house's own: an engine runs without the rest of `gpu`, on a Jetson for one.
    assert names(extras["tensorrt"]) == {"tensorrt", "cuda-python"}
    assert names(extras["rtx"]) == {"tensorrt-rtx", "cuda-python"}
    assert names(extras["heic"]) == {"pi-heif"}
    assert {"torch", "timm"} <= names(extras["train"])
    assert {"onnx", "onnxscript"} <= names(extras["export"])
    wanted = {"pytest", "hypothesis", "ruff", "mypy", "import-linter", "pytest-xdist", "hatchling"}
    assert wanted <= names(extras["dev"])


def test_no_extra_asks_for_two_wheels_of_the_same_files() -> None:
    for name, requirements in PROJECT["project"]["optional-dependencies"].items():
        assert len({"onnxruntime", "onnxruntime-gpu"} & names(requirements)) <= 1, name
        assert len({"faiss-cpu", "faiss-gpu"} & names(requirements)) <= 1, name


def test_make_help_lists_every_target() -> None:
    text = (CHECKOUT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    for target in phony:
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shown = subprocess.run(
        ["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=True
    ).stdout
    for target in ("demo", "test", "check", "test-slow", "gpu-check", "bench", "bundle"):
        assert f"make {target} " in shown


def test_ci_runs_make_check_test() -> None:
    script = CHECKOUT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^(exec )?make check test$", script.read_text(), re.MULTILINE)
