"""What a signal that ends the process leaves behind: nothing. Each process is a real one that signals itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from geoinfer.unfinished import undo_unfinished, undone_at_the_end

if TYPE_CHECKING:
    from pathlib import Path


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    start = (
        "import os, signal\nfrom pathlib import Path\n"
        "from geoinfer.cli.interrupts import interrupts_end_the_process\n"
        "from geoinfer.integrity import atomic_file\n"
        "from geoinfer.unfinished import undone_at_the_end\n"
        "interrupts_end_the_process('export')\n"
    )
    command = [sys.executable, "-c", start + program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=environment)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_file_that_is_half_written(tmp_path: Path, number: str) -> None:
    (tmp_path / "m.onnx").write_text("the old one")
    ended = run(
        "with atomic_file(Path('m.onnx')) as file:\n"
        "    file.write(b'half')\n"
        "    assert len(os.listdir()) == 2\n"
        f"    os.kill(os.getpid(), signal.{number})\n",
        tmp_path,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "export: interrupted\n")
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "the old one"


def test_it_is_of_no_use_to_swallow_exceptions_and_a_second_signal_comes_too_late(tmp_path: Path) -> None:
    ended = run(
        "def undo():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    Path('undone').touch()\n"
        "with undone_at_the_end(undo):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except BaseException:\n"
        "        Path('swallowed').touch()\n",
        tmp_path,
    )
    assert (ended.returncode, ended.stderr) == (130, "export: interrupted\n")
    assert os.listdir(tmp_path) == ["undone"]


def test_what_is_finished_is_not_undone_and_the_last_comes_first() -> None:
    calls: list[str] = []

    def fails() -> None:
        calls.append("fails")
        raise OSError

    with undone_at_the_end(lambda: calls.append("outer")):
        with undone_at_the_end(lambda: calls.append("finished")):
            pass
        with undone_at_the_end(fails):
            undo_unfinished()
    assert calls == ["fails", "outer"]
    undo_unfinished()
    assert calls == ["fails", "outer"]
