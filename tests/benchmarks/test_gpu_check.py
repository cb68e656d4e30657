from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from geoinfer.engines.gpu import Gpu
from tests.conftest import CHECKOUT
from tests.engines.fakes import put_engine

H200 = Gpu(0, "NVIDIA H200", (9, 0), 140 << 30)
RTX = {"flavor": "tensorrt-rtx", "flavor_version": "1.7.1.116", "gpu": None, "portable": True,
       "compute_capabilities": ["8.0", "8.6", "12.1+"]}  # fmt: skip


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module("gpu_check")


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("", ""),
        ("warming up\ngeoinfer: no room\n  make some\n", "geoinfer: no room"),
        ("geoinfer: first\nexport: second\n  a hint\n", "export: second"),
        ("Traceback\n  File\nValueError: it is broken\n\n", "ValueError: it is broken"),
    ],
)
def test_the_reason_is_what_a_command_said_itself(gpu_check: Any, stderr: str, said: str) -> None:
    assert gpu_check.reason(stderr) == said


def test_answers_that_lie_far_off(gpu_check: Any) -> None:
    nan = float("nan")
    expected = np.array([(10, 10), (0, 180), (50, 5), (nan, nan), (1, 1), (nan, nan)], float)
    found = np.array([(10, 10), (0, -179.9), (50, 5.5), (nan, nan), (nan, nan), (2, 2)], float)
    # A tenth of a degree at the equator is 11 km, half a degree at 50 degrees north 36.
    assert gpu_check.departures(found, expected) == (4, 3)
    assert gpu_check.departures(expected, expected) == (0, 0)
    assert gpu_check.departures(found[:2], expected) == (6, 6)


def test_answers_are_read_as_they_were_written(gpu_check: Any, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('path,status,latitude,longitude\n"a,b.jpg",ok,1.5,-2\nc.jpg,error,,\n')
    np.testing.assert_array_equal(gpu_check.answers_of(tmp_path / "x.csv"), [(1.5, -2), (np.nan, np.nan)])
    (tmp_path / "x.csv").write_text("path,status,latitude,longitude\n")
    assert gpu_check.answers_of(tmp_path / "x.csv").shape == (0, 2)


@pytest.mark.parametrize("step", ["engines", "predict"])
def test_a_gpu_that_a_flavour_does_not_serve(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    done = SimpleNamespace(returncode=0, stdout="", stderr="")

    def geoinfer(*arguments: str, fails: bool = False) -> SimpleNamespace:
        if arguments[0] == "engine":
            put_engine(Path(arguments[arguments.index("--out") + 1]), **RTX)
            return done
        return SimpleNamespace(returncode=4, stdout="", stderr="geoinfer: no such device\n  doctor\n")

    monkeypatch.setattr(gpu_check, "geoinfer", geoinfer)
    monkeypatch.setattr(gpu_check, "installed_flavors", lambda: ["tensorrt-rtx"])
    monkeypatch.setattr(gpu_check, "vit_model", lambda check: tmp_path / "vit-fp16.onnx")
    monkeypatch.setattr(gpu_check, "make_photos", lambda *given: None)
    rows = list(gpu_check.STEPS[step](gpu_check.Check(tmp_path, H200, quick=True)))
    of_rtx = [row for row in rows if "tensorrt-rtx" in row[0]]
    assert [outcome for _, outcome, _ in of_rtx] == ["not run"] * (2 if step == "engines" else 1)
    assert "builds for compute capability 8.0, 8.6, 12.1 and later; this is NVIDIA H200" in of_rtx[0][2]
    others = [row for row in rows if row not in of_rtx]
    assert {row[1:] for row in others} <= {("FAILED", "geoinfer: no such device")}
    assert len(others) == (0 if step == "engines" else 2)


@pytest.mark.parametrize(("far", "outcome"), [(0, "ok"), (2, "ok"), (3, "FAILED")])
def test_answers_of_another_device_may_differ_a_little(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, far: int, outcome: str
) -> None:
    def geoinfer(*arguments: str, fails: bool = False) -> SimpleNamespace:
        given = dict(itertools.pairwise(arguments))
        moved = far if given["--device"] == "cuda" else 0
        lines = [f"{number}.jpg,ok,{1 + (number < moved)},2" for number in range(200)]
        Path(given["--output"]).write_text("\n".join(["path,status,latitude,longitude", *lines]) + "\n")
        Path(given["--summary-json"]).write_text('{"images_per_second": 7, "device": "cuda:0", "inputs": 200}')
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(gpu_check, "geoinfer", geoinfer)
    monkeypatch.setattr(gpu_check, "installed_flavors", list)
    monkeypatch.setattr(gpu_check, "make_photos", lambda *given: None)
    rows = list(gpu_check.predict(gpu_check.Check(tmp_path, H200, quick=False)))
    assert [row[1] for row in rows] == ["ok", outcome]
    assert f"of 200 answers {far} differ from the CPU's, {far} by more than 25 km" in rows[1][2]


def test_what_was_found_is_stored_before_the_next_step(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "results" / "gpu-check-nvidia-h200.md"

    def first(check: Any) -> Any:
        yield "one", "ok", "a | b"
        assert page.read_text().splitlines()[-1] == "| one | ok | a \\| b |"
        gpu_check.run("-c", "import sys; print('to out'); sys.exit('geoinfer: it broke')")

    def second(check: Any) -> Any:
        last = page.read_text().splitlines()[-1]
        assert last.startswith("| first | FAILED | -c import sys;")
        assert last.endswith(": geoinfer: it broke |")
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(gpu_check, "STEPS", {"first": first, "second": second})
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: H200)
    monkeypatch.setattr("common.RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--save", "--quick"])
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main()
    shown = capfd.readouterr()
    assert "to out\n" in shown.out
    assert "geoinfer: it broke\n" in shown.err
    assert "; --quick" in page.read_text()


@pytest.mark.parametrize(
    ("value", "package"), [("", ""), ("10", "tensorrt>=10.7,<11"), ("11", "tensorrt>=11"), ("1", None), ("12", None)]
)
def test_make_knows_two_tensorrts(tmp_path: Path, value: str, package: str | None) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "gpu-tests", f"VENV={tmp_path / 'env'}", f"TENSORRT={value}"], cwd=CHECKOUT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if package is None:
        assert done.returncode
        assert f"TENSORRT={value}: say TENSORRT=10 or TENSORRT=11" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    installs = [line for line in done.stdout.splitlines() if ".[gpu," in line and "pip install" in line]
    assert installs
    assert all(f'"{package}"' in line if package else "tensorrt>" not in line for line in installs)
