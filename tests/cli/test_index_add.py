"""`geoinfer index add`, in this process."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnx")

from geoinfer.index import open_index
from tests.onnx_models import METADATA, make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def index(here: Path, tiny) -> Path:
    shutil.copytree(tiny.index, here / "idx")
    return here / "idx"


def test_photos_are_added(run, index: Path, here: Path, tiny) -> None:
    (here / "l.csv").write_text(f"path,lat,lon\n{tiny.photos}/grey.png,1,2\n")
    outcome = run("index", "add", "idx/", "l.csv", "-e", tiny.model)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Added 1 of 1 photos (a CSV) to the 3 references that were there, in ")
    assert "index:  idx (flat, 4 references)" in outcome.out
    assert f"Use it: geoinfer predict PHOTOS --engine {tiny.model} --index idx" in outcome.out
    references = open_index(index).references
    assert list(references.ids) == ["red", "green", "blue", f"{tiny.photos}/grey.png"]
    assert references.coordinates[3].tolist() == [1, 2]
    assert sorted(path.name for path in here.iterdir()) == ["idx", "idx.errors.csv", "l.csv"]


def test_a_name_that_is_there_and_the_exit_code(run, index: Path, here: Path, tiny) -> None:
    (here / "l.csv").write_text(f"id,lat,lon\nred,1,2\n{tiny.photos}/grey.png,1,2\n")
    shutil.copy(tiny.photos / "red.png", here / "red.png")
    command = ("index", "add", "idx", "l.csv", "-e", tiny.model)
    outcome = run(*command)
    assert outcome.code == 1
    assert "idx.errors.csv (1 duplicate_id)" in outcome.out
    assert "1 input failed, more than --max-errors 0" in outcome.err
    outcome = run(*command)
    assert outcome.code == 2
    assert "none of the 2 photos could be indexed" in outcome.err
    assert len(open_index(index).references) == 4


def test_ready_embeddings(run, index: Path, here: Path, tiny) -> None:
    np.save("e.npy", np.eye(4))
    (here / "l.csv").write_text("id,lat,lon\n" + "".join(f"new {n},{n},{n}\n" for n in range(4)))
    outcome = run("index", "add", "idx", "l.csv", "--embeddings", "e.npy", "-e", tiny.model, "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    np.testing.assert_array_equal(open_index(index).index.vectors[3:], np.eye(4))


def test_another_model(run, index: Path, here: Path, tiny) -> None:
    model = make_model(here / "other.onnx", metadata=METADATA | {"geoinfer.identity": "other:1"})
    before = (index / "manifest.json").read_bytes()
    outcome = run("index", "add", "idx", tiny.labels, "-e", model)
    assert outcome.code == 3
    assert "idx was made by tiny:0" in outcome.err
    assert "but --engine is other:1" in outcome.err
    assert (index / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("folder", ["nowhere", "photos"])
def test_no_index(run, here: Path, tiny, folder: str) -> None:
    (here / "photos").mkdir()
    outcome = run("index", "add", folder, tiny.labels, "-e", tiny.model)
    assert outcome.code in (2, 3)
    assert folder in outcome.err
    assert sorted(path.name for path in here.iterdir()) == ["photos"]
