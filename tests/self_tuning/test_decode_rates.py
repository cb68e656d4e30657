"""Kept rates: what was kept comes back, and anything else measures again."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from geoinfer.self_tuning.decode_rates import load_rates, store_rates

if TYPE_CHECKING:
    from pathlib import Path

KEY = {"gpu": "A GPU", "workers": 4}
RATES = {"web": {"cpu": [1.0, 2.0], "gpu": [3.0, 4.0]}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoding"


def test_what_was_kept_comes_back_for_its_key_alone(folder: Path) -> None:
    assert load_rates(KEY) is None
    assert store_rates(KEY, RATES) == ""
    assert load_rates(dict(KEY)) == RATES
    assert load_rates(KEY | {"workers": 5}) is None
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"key": 1}', '{"key": {}, "rates": 3}', "\xff"])
def test_a_damaged_file_is_none(folder: Path, content: str) -> None:
    store_rates(KEY, RATES)
    (file,) = folder.iterdir()
    file.write_text(content, encoding="latin-1")
    assert load_rates(KEY) is None


def test_a_file_of_another_machine_is_none(folder: Path) -> None:
    store_rates(KEY, RATES)
    (file,) = folder.iterdir()
    values = json.loads(file.read_text())
    values["key"]["machine"]["cores"] += 1
    file.write_text(json.dumps(values))
    assert load_rates(KEY) is None


def test_a_folder_that_cannot_be_made_costs_a_sentence(folder: Path) -> None:
    folder.parent.write_text("a file where the folder should be")
    assert "the next run measures again" in store_rates(KEY, RATES)
    assert load_rates(KEY) is None
    assert os.path.isfile(folder.parent)
