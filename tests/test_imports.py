from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer

import geoinfer
from geoinfer.batch import predict
from geoinfer.cli import app, main

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = ["GeoInferError", "Geolocator", "Prediction", "Preprocessing", "__version__", "open_embedder", "open_index"]


def fresh(script: str) -> str:
    """What a script prints in a new interpreter that treats warnings as errors."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_imports_nothing_but_the_standard_library() -> None:
    loaded = fresh(
        "import sys; before = set(sys.modules); import geoinfer; dir(geoinfer); "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    ).split()
    assert [name for name in loaded if name not in sys.stdlib_module_names] == ["geoinfer"]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_each_public_name_comes_when_it_is_used(name: str) -> None:
    assert fresh(f"from geoinfer import {name}; print({name}.__name__, {name}.__doc__ is not None)") == f"{name} True\n"


def test_names() -> None:
    assert sorted(dir(geoinfer)) == sorted(PUBLIC) == sorted(geoinfer.__all__)
    with pytest.raises(AttributeError, match="module 'geoinfer' has no attribute 'Nonsense'"):
        geoinfer.Nonsense  # noqa: B018
    scope: dict[str, object] = {}
    exec("from geoinfer import *", scope)
    assert set(PUBLIC) <= set(scope)


def test_errors_are_light() -> None:
    assert fresh("import sys; from geoinfer import GeoInferError; print('numpy' in sys.modules)") == "False\n"


@pytest.mark.parametrize("forbidden", [("torch", "timm", "onnx", "onnxscript", "safetensors", "torchvision")])
def test_no_module_of_the_runtime_imports_what_trains_or_exports(forbidden: tuple[str, ...]) -> None:
    script = f"""
import importlib, sys
from pathlib import Path

class Forbid:
    def find_spec(self, name, path=None, target=None):
        # Libraries may look whether torch is there; geoinfer may not ask.
        frame = sys._getframe(1)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if name.partition(".")[0] in {forbidden!r}:
            print("ASKED", name, frame.f_globals.get("__name__"))
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Forbid())
import geoinfer
root = Path(geoinfer.__file__).parent
names = []
for path in sorted(root.rglob("*.py")):
    parts = ("geoinfer", *path.relative_to(root).with_suffix("").parts)
    if parts[-1] != "__main__":
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        importlib.import_module(names[-1])
geoinfer.Geolocator.open(device="cpu").locate([])
print(len(names), *(name for name in {forbidden!r} if name in sys.modules))
"""
    lines = fresh(script).splitlines()
    assert int(lines[-1].split()[0]) > 30
    assert lines[-1].split()[1:] == []
    assert [line for line in lines if line.startswith("ASKED") and " geoinfer" in line] == []


def test_warnings_of_its_own_imports_are_none() -> None:
    """`fresh` makes them errors: a SyntaxWarning or DeprecationWarning of ours would end it."""
    assert fresh("import geoinfer.geolocator, geoinfer.batch.predict, geoinfer.batch.build; print('fine')") == "fine\n"


def test_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "geoinfer", "--version"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"geoinfer {geoinfer.__version__}\n")


def test_without_docstrings() -> None:
    """`python -OO` strips them, and the help is made of one."""
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "geoinfer", "predict", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "geoinfer predict ./photos" in done.stdout


def commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All commands and groups of commands, by what is typed."""
    found = [path]
    for name, command in sorted(getattr(group, "commands", {}).items()):
        found += commands(command, (*path, name))
    return found


COMMANDS = commands(typer.main.get_command(app))


def loaded_by(tmp_path: Path, *arguments: object) -> set[str]:
    """What the command has imported when it ends well."""
    script = (
        "import sys; from geoinfer.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: code = ended.code\n"
        "print('LOADED', code, *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    words = done.stderr.splitlines()[-1].split()
    assert words[:2] == ["LOADED", "0"], done.stderr
    return set(words[2:])


HEAVY = {
    "numpy", "onnxruntime", "faiss", "PIL", "pyarrow", "simplejpeg", "s2sphere", "matplotlib", "scipy", "geographiclib",
    "reverse_geocode", "pi_heif", "pynvml", "torch", "onnx", "tensorrt", "tensorrt_rtx", "cuda",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "geoinfer")
def test_the_help_of_every_command_imports_nothing_heavy(tmp_path: Path, command: tuple[str, ...]) -> None:
    loaded = loaded_by(tmp_path, *command, "--help")
    assert loaded & HEAVY == set()
    # A sub-command's parameters cost something to set up: those of the others are left alone.
    ours = {name.split(".")[2] for name in loaded if name.startswith("geoinfer.cli.")}
    if command:
        assert ours & ({path[0] for path in COMMANDS if path} - {command[0]}) == set()


def test_locating_one_photo_imports_only_what_it_uses(tmp_path: Path, example_photos: Path) -> None:
    photo = next(iter(sorted(example_photos.glob("*.jpg"))))
    loaded = loaded_by(tmp_path, "predict", photo, "-o", tmp_path / "o.csv", "--quiet")
    assert {"numpy", "onnxruntime", "faiss", "PIL", "simplejpeg"} <= loaded
    # Other formats' readers, drawing, tables, progress bars, GPUs, and what measures or makes things.
    unused = {
        "matplotlib", "scipy", "geographiclib", "reverse_geocode", "pi_heif", "rich", "s2sphere", "pynvml", "cuda",
        "pandas", "pyarrow.parquet", "PIL.TiffImagePlugin", "PIL.AvifImagePlugin", "multiprocessing.pool", "sqlite3",
        "geoinfer.evaluate", "geoinfer.maps", "geoinfer.tuning", "geoinfer.reliability", "geoinfer.benchmark",
        "geoinfer.self_tuning.measure", "geoinfer.labels", "geoinfer.batch.build",
    }  # fmt: skip
    assert loaded & unused == set()


def test_garbage_is_collected_once_a_command_works(
    tmp_path: Path, example_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not while imports are made; a run that forgot to say that they are over would keep all its garbage."""
    collects = []
    real = predict.run_predict
    monkeypatch.setattr(predict, "run_predict", lambda *a, **k: collects.append(gc.isenabled()) or real(*a, **k))
    photo = next(iter(sorted(example_photos.glob("*.jpg"))))
    monkeypatch.setattr(sys, "argv", ["geoinfer", "predict", str(photo), "-o", str(tmp_path / "o.csv"), "-q"])
    for name in ("ignore_interrupts", "interrupts_end_the_process"):
        monkeypatch.setattr(f"geoinfer.cli.{name}", lambda: None)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        gc.unfreeze()
    assert (ended.value.code, collects, gc.isenabled()) == (0, [True], True)


@pytest.mark.parametrize("arguments", [["info"], ["--version"], ["predict"], ["nonsense"]])
def test_garbage_is_collected_again_however_a_command_ends(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["geoinfer", *arguments])
    for name in ("ignore_interrupts", "interrupts_end_the_process"):
        monkeypatch.setattr(f"geoinfer.cli.{name}", lambda: None)
    try:
        with pytest.raises(SystemExit):
            main()
    finally:
        gc.unfreeze()
    assert gc.isenabled()
