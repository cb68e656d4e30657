from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

from tests.conftest import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module("compare_peers")


def test_the_programs_run_the_same_model_and_do_with_bad_files_what_the_page_says(peers: Any, tmp_path: Path) -> None:
    running = [program for program in peers.programs(None) if program.key != peers.INT8]
    environment = {"GEOINFER_CACHE": str(tmp_path / "cache")}
    paths = peers.make_photos(tmp_path / "photos", "web", 10)
    outputs = {program.key: tmp_path / f"{program.key}.csv" for program in running}
    for program in running:
        rates = peers.timed(program, paths[0].parent, len(paths), outputs[program.key], environment)
        assert 0 < rates["with_start"] < rates["rate"]
    assert max(peers.check_agreement(outputs).values()) < 0.03
    became = peers.bad_files(running, tmp_path, environment)
    for bad_file in ("cut off", "a web page"):
        assert became[bad_file][peers.PLAIN]["words"] == "stops, 10 of 21 rows"
        assert became[bad_file][peers.PLAIN]["exit_code"] == 1
        assert became[bad_file][peers.TIMM]["bad_file"] == "answered as the next photo"
        assert became[bad_file][peers.OURS]["words"] == "21 of 21 rows, one an error row"
