"""Nothing is reported to anybody, and nothing kept for a report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

LOCATE = """
import sys
from geoinfer import Geolocator
with Geolocator.open() as geolocator:
    assert geolocator.locate(sys.argv[1:])[0].status == "ok"
"""


def left_behind(tmp_path: Path, code: str, *arguments: str) -> list[str]:
    """Files that a fresh process with a home and a temporary folder of its own leaves there."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    # ONNX Runtime keeps quiet on machines of continuous integration; a user's is none.
    quiet = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(home / ".cache")}
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, env=environment, cwd=CHECKOUT, timeout=120)
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())


def test_locating_a_photo_leaves_nothing(tmp_path: Path) -> None:
    photo = next((CHECKOUT / "examples" / "photos").glob("*.jpg"))
    assert left_behind(tmp_path, LOCATE, str(photo)) == []


@pytest.mark.slow
def test_exporting_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert left_behind(tmp_path, "import export.parity, onnxruntime") == []
