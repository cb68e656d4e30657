"""`python -m export` as a process: signals, and environments that lack a package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from geoinfer.bundle import SHIPPED, open_bundle

CHECKOUT = Path(__file__).parents[2]
BUNDLE = ["bundle", "--model", str(SHIPPED / "model.onnx"), "--index", str(SHIPPED / "index"), "--out"]


def export(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, after some lines of Python that meddle with it."""
    program = (
        f"import os, signal, sys\nsys.argv[1:] = {list(map(str, arguments))!r}\n{before}\n"
        "from export.__main__ import main\nmain()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=CHECKOUT, env=environment)


# A library that swallows whatever is raised while it is imported, as pyarrow does while it looks for pandas.
WHILE_FAISS_IS_IMPORTED = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "faiss":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass
sys.meta_path.insert(0, Finder())
"""
WHILE_IT_COPIES = """
from export import bundle
copy = bundle._copy
def interrupted(source, target):
    copy(source, target)
    os.kill(os.getpid(), signal.SIGINT)
bundle._copy = interrupted
"""
BETWEEN_THE_RENAMES = """
from pathlib import Path
rename = Path.replace
def interrupted(path, target):
    if path.name == ".out.geoinfer-tmp":
        assert not target.exists()
        os.kill(os.getpid(), signal.SIGTERM)
    return rename(path, target)
Path.replace = interrupted
"""


class TestInterrupted:
    @pytest.mark.parametrize(
        "when", [WHILE_FAISS_IS_IMPORTED, WHILE_IT_COPIES, BETWEEN_THE_RENAMES], ids=["import", "copies", "renames"]
    )
    def test_a_bundle(self, tmp_path: Path, when: str) -> None:
        assert export(*BUNDLE, tmp_path / "out", "--notice", "old").returncode == 0
        ended = export(*BUNDLE, tmp_path / "out", "--force", "--notice", "new", before=when)
        assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "export: interrupted\n")
        assert os.listdir(tmp_path) == ["out"]
        assert open_bundle(tmp_path / "out", verify=True).notice == "old"

    def test_a_signal_that_the_parent_ignores_is_not_ignored(self, tmp_path: Path) -> None:
        """As of a shell's job in the background."""
        before = f"signal.signal(signal.SIGINT, signal.SIG_IGN)\n{WHILE_IT_COPIES}"
        assert export(*BUNDLE, tmp_path / "out", before=before).returncode == 130
        assert os.listdir(tmp_path) == []


class TestMissingPackages:
    @pytest.mark.parametrize("package", ["onnx", "torch"])
    def test_named_with_the_command_that_brings_it(self, tmp_path: Path, package: str) -> None:
        ended = export(
            "onnx", tmp_path / "x.safetensors", "--out", tmp_path / "x.onnx", before=f"sys.modules[{package!r}] = None"
        )
        assert ended.returncode == 2
        assert ended.stderr == (
            f"export: the package {package} is missing\n  pip install -e '.[train,export]' in the checkout\n"
        )

    def test_one_of_our_own_modules_is_a_fault_of_ours(self, tmp_path: Path) -> None:
        ended = export(*BUNDLE, tmp_path / "out", before="sys.modules['export.bundle'] = None")
        assert ended.returncode == 70
        assert "export: unexpected ModuleNotFoundError" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_errors_are_sentences_and_names_are_spelled_out(tmp_path: Path) -> None:
    ended = export(
        "bundle", "--model", tmp_path / "a\udcff\x1b.onnx", "--index", SHIPPED / "index", "--out", tmp_path / "o"
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("export: ")
    assert "\x1b" not in ended.stderr
    assert "Traceback" not in ended.stderr
