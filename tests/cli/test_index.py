from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("onnx")

from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from geoinfer.bundle import SHIPPED
from geoinfer.geodesy import haversine_km
from geoinfer.index import open_index
from tests.onnx_models import PREPROCESSING, expected

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def build(run, here: Path, tiny):
    def call(*arguments: object):
        return run("index", "build", *arguments, "-e", tiny.model)

    return call


def test_build_writes_what_the_labels_say(build, tiny) -> None:
    outcome = build(tiny.labels, "-o", "idx", "--source", "my album", "--attribution", "CC0, me")
    assert outcome.code == 0
    assert outcome.err.startswith("device: cpu")
    assert outcome.out.startswith("Indexed 3 of 3 photos (a CSV) in ")
    assert f"Use it: geoinfer predict PHOTOS --engine {tiny.model} --index idx" in outcome.out
    assert "Too few references" in outcome.out
    with open(tiny.labels, newline="") as file:
        labels = list(csv.DictReader(file))
    stored = pq.read_table("idx/references.parquet").to_pylist()
    assert [(row["latitude"], row["longitude"]) for row in stored] == [
        (float(label["latitude"]), float(label["longitude"])) for label in labels
    ]
    assert {(row["source"], row["attribution"]) for row in stored} == {("my album", "CC0, me")}


def test_build_stores_the_models_embeddings(build, tiny) -> None:
    import faiss
    from PIL import Image

    assert build(tiny.labels, "-o", "idx", "-q").code == 0
    index = faiss.read_index("idx/vectors.faiss")
    stored = index.reconstruct_n(0, index.ntotal)
    colours = [Image.open(tiny.photos / f"{name}.png").getpixel((0, 0)) for name in ("red", "green", "blue")]
    pixels = np.array(colours, np.uint8)[:, None, None, :].repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(stored, expected(pixels), atol=2e-6)


def test_quiet_build_says_nothing(build, tiny) -> None:
    outcome = build(tiny.labels, "-o", "idx", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_build_with_images_elsewhere(build, here: Path, tiny) -> None:
    (here / "l.csv").write_text("path,latitude,longitude\nred.png,1,2\n")
    assert build("l.csv", "--images", tiny.photos, "-o", "idx").code == 0
    assert pq.read_table("idx/references.parquet")["latitude"].to_pylist() == [1.0]


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
    assert pq.read_table("idx/references.parquet").num_rows == 3
    assert build("l.csv", "-o", "idx", "--overwrite").code == 0
    assert pq.read_table("idx/references.parquet").num_rows == 1
    assert not [path for path in here.iterdir() if path.suffix in (".tmp", ".old")]


def test_build_from_exif(run, here: Path, shared_exif: Path) -> None:
    """Somebody's own tagged photos; the positions are checked by tests/images."""
    from PIL import Image

    tagged = [path for path in sorted(shared_exif.rglob("*.jpg")) if Image.open(path).getexif().get_ifd(0x8825).get(2)]
    assert tagged
    (here / "mine").mkdir()
    for path in tagged[:2]:
        shutil.copy(path, here / "mine" / path.name)
    outcome = run("index", "build", "mine", "-o", "idx")
    assert outcome.code == 0, outcome.err
    assert f"Indexed {len(tagged[:2])} of {len(tagged[:2])} photos (photos with GPS in their EXIF)" in outcome.out


def test_info(run, tiny) -> None:
    outcome = run("index", "info", tiny.index)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    size = sum(path.stat().st_size for path in tiny.index.iterdir() if path.name != "manifest.json")
    assert lines[0] == f"{tiny.index}: a flat index of 3 references, {size / 1e6:.1f} MB"
    assert lines[1].endswith("tiny:0 (4 dimensions; 8 px squash, bilinear, mean 0/0/0, std 1/1/1)")
    assert "3 geocells (S2 level 6), latitude -33.87 to 64.15, longitude -21.94 to 151.21" in lines[2]
    assert lines[3] == "  calibrated: no, 3 references that others can locate are too few"
    assert lines[-1].split() == ["checksums:", "good"]


def test_info_of_a_calibrated_index(run) -> None:
    outcome = run("index", "info", SHIPPED / "index")
    stored = open_index(SHIPPED / "index")
    places = stored.references.coordinates
    # The most similar other reference alone cannot be far better or worse than ten of them.
    distances = sorted(haversine_km(places, places[stored.leave_one_out.ids[:, 0]]).tolist())
    found = re.search(
        r"calibrated: on 335 references, .*: half within ([\d,]+) km, 90% within ([\d,]+) km", outcome.out
    )
    assert found is not None
    half, most = (float(text.replace(",", "")) for text in found.groups())
    assert 0.5 * distances[167] < half < 2 * distances[167]
    assert 0.5 * distances[301] < most < 2 * distances[301]


def test_info_as_json(run, tiny) -> None:
    outcome = run("index", "info", tiny.index, "--json", "--verify")
    assert outcome.code == 0
    values = json.loads(outcome.out)
    assert values["size"] == 3
    assert values["embedder"] == {"name": "tiny:0", "dim": 4, "preprocessing": PREPROCESSING}
    assert values["extent"] == [-33.87, -21.94, 64.15, 151.21]
    assert set(values["files"]) == {"vectors.faiss", "references.parquet", "leave_one_out.npz"}


def test_verify_hashes_what_opening_does_not(run, here: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file changed in place, its size unchanged, is only found by --verify."""
    from geoinfer import bundle

    shutil.copytree(tiny.index, here / "idx")
    data = bytearray((here / "idx" / "references.parquet").read_bytes())
    data[5] ^= 1
    (here / "idx" / "references.parquet").write_bytes(data)
    monkeypatch.setattr(bundle, "HASHED_AT_OPEN", 10)
    assert "good, but of 3 large files only the size; --verify reads all" in run("index", "info", tiny.index).out
    assert run("index", "info", tiny.index, "--verify").out.splitlines()[-1].split() == ["checksums:", "good"]
    assert "checksum" not in run("index", "info", "idx").err
    outcome = run("index", "info", "idx", "--verify")
    assert outcome.code == 3
    assert "references.parquet: the contents do not match" in outcome.err
