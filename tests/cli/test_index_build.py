"""`geoinfer index build`, in this process."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

pytest.importorskip("onnx")

from typing import TYPE_CHECKING

from geoinfer.index import open_index
from tests.onnx_models import expected

if TYPE_CHECKING:
    from pathlib import Path


def coordinates() -> list[list[float]]:
    places: list[list[float]] = np.load("idx/coordinates.npy").tolist()
    return places


@pytest.fixture
def build(run, here: Path, tiny):
    def call(*arguments: object):
        return run("index", "build", *arguments, "-e", tiny.model)

    return call


def test_build_writes_what_the_labels_say(build, here: Path, tiny) -> None:
    outcome = build(tiny.labels, "-o", "idx", "--source", "my album", "--attribution", "CC0, me")
    assert outcome.code == 0
    assert outcome.err.startswith("device: cpu")
    assert outcome.out.startswith("Indexed 3 of 3 photos (a CSV) in ")
    assert f"Use it: geoinfer predict PHOTOS --engine {tiny.model} --index idx" in outcome.out
    assert "Too few references" in outcome.out
    with open(tiny.labels, newline="") as file:
        labels = list(csv.DictReader(file))
    assert coordinates() == [[float(label["latitude"]), float(label["longitude"])] for label in labels]
    references = open_index(here / "idx").references
    assert {*references.sources} == {"my album"}
    assert {*references.attributions} == {"CC0, me"}


def test_build_stores_the_models_embeddings(build, tiny) -> None:
    from PIL import Image

    assert build(tiny.labels, "-o", "idx", "-q").code == 0
    stored = np.load("idx/vectors.npy")
    colours = [Image.open(tiny.photos / f"{name}.png").getpixel((0, 0)) for name in ("red", "green", "blue")]
    pixels = np.array(colours, np.uint8)[:, None, None, :].repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(stored, expected(pixels), atol=2e-6)


def test_quiet_build_says_nothing(build, tiny) -> None:
    outcome = build(tiny.labels, "-o", "idx", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_build_with_images_elsewhere(build, here: Path, tiny) -> None:
    (here / "l.csv").write_text("path,latitude,longitude\nred.png,1,2\n")
    assert build("l.csv", "--images", tiny.photos, "-o", "idx").code == 0
    assert coordinates() == [[1.0, 2.0]]


@pytest.mark.parametrize(("limit", "code"), [("0", 1), ("1", 0), ("50%", 0)])
def test_max_errors_of_a_build(build, here: Path, tiny, limit: str, code: int) -> None:
    (here / "bad.png").write_bytes(b"no photo at all")
    (here / "l.csv").write_text(f"path,latitude,longitude\n{tiny.photos}/red.png,1,2\nbad.png,3,4\n")
    outcome = build("l.csv", "-o", "idx", "--max-errors", limit)
    assert outcome.code == code
    assert "Indexed 1 of 2 photos" in outcome.out
    assert "errors: idx.errors.csv" in outcome.out
    assert ("geoinfer: 1 input failed, more than --max-errors" in outcome.err) == (code == 1)
    with open("idx.errors.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["code"], row["size_bytes"]) == ("not_an_image", "15")


def test_overwrite_replaces_an_index(build, here: Path, tiny) -> None:
    assert build(tiny.labels, "-o", "idx").code == 0
    (here / "l.csv").write_text(f"path,latitude,longitude\n{tiny.photos}/red.png,1,2\n")
    assert build("l.csv", "-o", "idx").code == 2
    assert len(coordinates()) == 3
    assert build("l.csv", "-o", "idx", "--overwrite").code == 0
    assert len(coordinates()) == 1
    assert not [path for path in here.iterdir() if path.suffix in (".tmp", ".old")]


def test_build_from_exif(run, here: Path, shared_exif: Path) -> None:
    """Somebody's own tagged photos; the positions are checked by tests/images."""
    from PIL import Image

    tagged = [path for path in sorted(shared_exif.rglob("*.jpg")) if Image.open(path).getexif().get_ifd(0x8825).get(2)]
    assert tagged
    (here / "mine").mkdir()
    for path in tagged[:2]:
        shutil.copy(path, here / "mine" / path.name)
    outcome = run("index", "build", "mine", "-o", "idx", "--kind", "flat")
    assert outcome.code == 0, outcome.err
    assert f"Indexed {len(tagged[:2])} of {len(tagged[:2])} photos (photos with GPS in their EXIF)" in outcome.out


def test_the_kind_is_said_once_and_why(build, tiny) -> None:
    outcome = build(tiny.labels, "-o", "idx")
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("kind:")]
    assert line.startswith("kind: flat (3 references ")
    assert "index:  idx (flat, 3 references)" in outcome.out
    outcome = build(tiny.labels, "-o", "idx", "--overwrite", "--kind", "sq8")
    assert "kind:" not in outcome.err
    assert "index:  idx (sq8, 3 references)" in outcome.out
    assert "recall: @1 1.000" in outcome.out


def test_steps_are_said(build, tiny) -> None:
    outcome = build(tiny.labels, "-o", "idx", "--kind", "ivf")
    lines = outcome.err.splitlines()
    steps = ["writing", "training", "adding", "calibrating", "measuring recall"]
    assert [line for line in lines if line in steps] == steps


@pytest.fixture
def ready(here: Path, tiny) -> list[object]:
    """Arguments for 40 embeddings of the tiny model's length."""
    vectors = np.random.default_rng(0).normal(size=(40, 4))
    np.save(here / "e.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    rows = [f"{number},{number},{-number}" for number in range(40)]
    (here / "l.csv").write_text("\n".join(["id,lat,lon", *rows]))
    return ["l.csv", "--embeddings", "e.npy", "-o", "idx"]


def test_ready_embeddings(build, ready, here: Path) -> None:
    outcome = build(*ready)
    assert outcome.code == 0
    assert outcome.out.startswith("Indexed 40 of 40 embeddings (a CSV and e.npy) in ")
    assert "device:" not in outcome.err
    np.testing.assert_array_equal(np.load("idx/vectors.npy"), np.load("e.npy").astype(np.float32))
    assert coordinates() == [[number, -number] for number in range(40)]
    assert sorted(path.name for path in here.iterdir()) == ["e.npy", "idx", "idx.errors.csv", "l.csv"]


def test_ready_embeddings_need_their_model(run, ready) -> None:
    outcome = run("index", "build", *ready)
    assert outcome.code == 2
    assert "--engine is needed with ready embeddings" in outcome.err


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("shorter", 2, "l.csv has 40 rows, but e.npy has 39 embeddings"),
        ("other model", 3, "embeddings of 5 numbers, but --engine is tiny:0"),
        ("pickle", 2, "pickled Python objects, which are never loaded"),
        ("long", 2, "row 3, counted from 0 (3), has length 2; expected 1"),
        ("cut", 2, "cut short"),
    ],
)
def test_bad_embeddings_are_one_sentence_and_the_old_index_stays(build, ready, here: Path, how, code, words) -> None:
    assert build(*ready).code == 0
    before = (here / "idx" / "manifest.json").read_bytes()
    vectors = np.load("e.npy")
    if how == "shorter":
        vectors = vectors[:-1]
    elif how == "other model":
        vectors = np.eye(40, 5)
    elif how == "long":
        vectors[3] *= 2
    np.save("e.npy", vectors.astype(object) if how == "pickle" else vectors, allow_pickle=True)
    if how == "cut":
        (here / "e.npy").write_bytes((here / "e.npy").read_bytes()[:-9])
    outcome = build(*ready, "--overwrite")
    assert outcome.code == code
    assert words in outcome.err
    assert len(outcome.err.splitlines()) <= 3
    assert (here / "idx" / "manifest.json").read_bytes() == before


def test_parquet(build, ready, here: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = np.load("e.npy").astype(np.float32)
    columns = {"path": [f"{n}.jpg" for n in range(40)], "lat": [1.0] * 40, "lon": [2.0] * 40}
    pq.write_table(pa.table(columns | {"embedding": list(vectors)}), "e.parquet")
    outcome = build("e.parquet", "-o", "idx")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Indexed 40 of 40 embeddings (a Parquet file) in ")
    assert list(open_index(here / "idx").references.ids) == columns["path"]
