"""Ready embeddings: what is indexed is what the files say, and every way of being wrong is a sentence."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geoinfer.batch import ready_embeddings
from geoinfer.batch.build import BuildOptions, run_build
from geoinfer.errors import GeoInferError, InputError, LabelsError, MismatchError, OutputError, UsageError
from geoinfer.index import open_index

if TYPE_CHECKING:
    from pathlib import Path

DIM = 3


def unit(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def places(count: int) -> list[tuple[float, float]]:
    return [(-45.0 + number * 0.5, 170.0 - number) for number in range(count)]


def table(path: Path, count: int, extra: str = "") -> Path:
    header = "id,latitude,longitude" + (",source,attribution,sequence" if extra else "")
    rows = [f"photo {n},{lat},{lon}{extra}" for n, (lat, lon) in enumerate(places(count))]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def parquet(path: Path, vectors: np.ndarray, *, kind: pa.DataType | None = None, **more) -> Path:
    where = places(len(vectors))
    columns = {
        "id": [f"photo {n}" for n in range(len(vectors))],
        "latitude": [lat for lat, _ in where],
        "longitude": [lon for _, lon in where],
        "embedding": pa.array(vectors.tolist(), kind or pa.list_(pa.float32(), vectors.shape[1])),
    } | more
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), path)
    return path


@pytest.fixture
def build(tmp_path, kit):
    def call(labels: Path, embeddings: Path | None = None, observer=None, **more):
        run = BuildOptions(
            labels=labels, embeddings=embeddings, output=tmp_path / "idx", errors=tmp_path / "e.csv",
            **{"kind": "flat"} | more,
        )  # fmt: skip
        return run_build(kit.ColourEmbedder(size=4), run, observer or kit.Quiet())

    return call


def stored(tmp_path):
    return open_index(tmp_path / "idx")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ">f4"])
def test_a_csv_and_a_npy(build, tmp_path, dtype):
    vectors = unit(40).astype(dtype)
    np.save(tmp_path / "e.npy", vectors)
    labels = table(tmp_path / "l.csv", 40, ",mine,CC0,drive 7")
    summary = build(labels, tmp_path / "e.npy", source="other")
    index = stored(tmp_path)
    np.testing.assert_array_equal(index.index.vectors, vectors.astype(np.float32))
    assert list(index.references.ids) == [f"photo {n}" for n in range(40)]
    assert index.references.coordinates.tolist() == [list(place) for place in places(40)]
    assert {*index.references.sources} == {"mine"}
    assert {*index.references.sequences} == {"drive 7"}
    assert (summary.inputs, summary.indexed, summary.error, summary.skipped) == (40, 40, 0, 0)
    assert sorted(os.listdir(tmp_path)) == ["e.csv", "e.npy", "idx", "l.csv"]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32(), DIM), pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), DIM)],
    ids=str,
)
def test_a_parquet(build, tmp_path, kind):
    vectors = unit(40).astype(np.float16 if "half" in str(kind) else np.float32)
    path = parquet(tmp_path / "e.parquet", vectors, kind=kind, sequence=["a"] * 20 + [None] * 20)
    build(path, source="mine")
    index = stored(tmp_path)
    np.testing.assert_array_equal(index.index.vectors, vectors.astype(np.float32))
    assert list(index.references.ids) == [f"photo {n}" for n in range(40)]
    assert index.references.coordinates.tolist() == [list(place) for place in places(40)]
    assert list(index.references.sequences) == ["a"] * 20 + [""] * 20
    assert {*index.references.sources} == {"mine"}


def test_blocks_and_row_groups_do_not_show(build, tmp_path, monkeypatch):
    monkeypatch.setattr(ready_embeddings, "BLOCK_ROWS", 7)
    vectors = unit(50).astype(np.float32)
    path = parquet(tmp_path / "e.parquet", vectors)
    pq.write_table(pq.read_table(path), path, row_group_size=11)
    np.save(tmp_path / "e.npy", vectors)
    build(path)
    first = {file.name: file.read_bytes() for file in (tmp_path / "idx").iterdir()}
    monkeypatch.undo()
    build(table(tmp_path / "l.csv", 50), tmp_path / "e.npy", overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "idx").iterdir()} == first


def test_references_without_photos_are_not_copies_of_one_another(build, tmp_path):
    """Their contents are not known; were they all taken for the same file, none could be located by another."""
    np.save(tmp_path / "e.npy", unit(40))
    summary = build(table(tmp_path / "l.csv", 40), tmp_path / "e.npy")
    index = stored(tmp_path)
    assert not np.asarray(index.references.content_sha256).any()
    similarities = unit(40) @ unit(40).T
    np.fill_diagonal(similarities, -np.inf)
    assert index.leave_one_out.ids[:, 0].tolist() == similarities.argmax(axis=1).tolist()
    assert summary.calibrated


def test_bad_rows_cost_only_themselves(build, tmp_path, kit):
    vectors = unit(12)
    vectors[1] = 0
    vectors[2, 1] = np.nan
    vectors[3, 0] = np.inf
    np.save(tmp_path / "e.npy", vectors)
    lines = table(tmp_path / "l.csv", 12).read_text().splitlines()
    lines[5] = "photo 4,91,3"
    lines[6] = "photo 5,x,3"
    lines[8] = "photo 0,1,1"
    lines[9] = ",1,1"
    (tmp_path / "l.csv").write_text("\n".join(lines))
    observer = kit.Quiet()
    summary = build(tmp_path / "l.csv", tmp_path / "e.npy", observer)
    good = [0, 6, 9, 10, 11]
    assert list(stored(tmp_path).references.ids) == [f"photo {n}" for n in good]
    np.testing.assert_array_equal(stored(tmp_path).index.vectors, vectors[good].astype(np.float32))
    report = kit.table((tmp_path / "e.csv").read_bytes())
    assert [(row["path"], row["stage"], row["code"]) for row in report] == [
        ("photo 1", "embed", "zero_embedding"), ("photo 2", "embed", "not_finite"), ("photo 3", "embed", "not_finite"),
        ("photo 4", "labels", "bad_coordinates"), ("photo 5", "labels", "bad_coordinates"),
        ("photo 0", "labels", "duplicate_id"), ("", "labels", "no_name"),
    ]  # fmt: skip
    assert (summary.inputs, summary.indexed, summary.error) == (12, 5, 7)
    assert (observer.done, observer.failed) == (12, 7)


def test_rows_of_a_parquet_without_an_embedding_of_the_length(build, tmp_path, kit):
    rows = unit(6).tolist()
    rows[2], rows[3], rows[4][1] = None, [1.0], None
    path = parquet(
        tmp_path / "e.parquet", unit(6), embedding=pa.array(rows, pa.list_(pa.float32())),
        latitude=[1.0, None, 3.0, 4.0, 5.0, 6.0], location_type=["", "", "", "", "", "estimated"],
    )  # fmt: skip
    build(path)
    assert list(stored(tmp_path).references.ids) == ["photo 0"]
    report = kit.table((tmp_path / "e.csv").read_bytes())
    assert [(row["path"], row["code"]) for row in report] == [
        ("photo 1", "bad_coordinates"), ("photo 2", "wrong_dimension"), ("photo 3", "wrong_dimension"),
        ("photo 4", "not_finite"), ("photo 5", "estimated"),
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [0.5, 1e-30, 1e25])
def test_lengths(build, tmp_path, scale):
    vectors = unit(20).astype(np.float64)
    vectors[7] *= scale
    np.save(tmp_path / "e.npy", vectors)
    with pytest.raises(InputError, match=r"row 7, counted from 0 \(photo 7\), has length .*; expected 1") as caught:
        build(table(tmp_path / "l.csv", 20), tmp_path / "e.npy")
    assert "--normalize" in caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["e.npy", "l.csv"]
    build(tmp_path / "l.csv", tmp_path / "e.npy", normalize=True)
    np.testing.assert_allclose(stored(tmp_path).index.vectors, unit(20), atol=1e-7)


def written(path: Path, how: str) -> Path:
    """A `.npy` that is wrong in one way."""
    vectors = unit(10).astype(np.float32)
    if how == "pickle":
        np.save(path, np.array([{"a": 1}] * 10, object), allow_pickle=True)
    elif how == "bare pickle":
        path.write_bytes(pickle.dumps(vectors))
    elif how == "fortran":
        np.save(path, np.asfortranarray(vectors))
    elif how == "one dimension":
        np.save(path, vectors.ravel())
    elif how == "three dimensions":
        np.save(path, vectors[:, None, :])
    elif how == "integers":
        np.save(path, np.ones((10, DIM), np.int64))
    elif how == "complex":
        np.save(path, vectors.astype(np.complex64))
    elif how == "no rows":
        np.save(path, vectors[:0])
    elif how == "no columns":
        np.save(path, vectors[:, :0])
    elif how == "npz":
        with path.open("wb") as file:
            np.savez(file, vectors)
    elif how == "longer":
        np.save(path, vectors)
        path.write_bytes(path.read_bytes() + b"x")
    elif how == "cut short":
        np.save(path, vectors)
        path.write_bytes(path.read_bytes()[:-5])
    elif how == "header cut short":
        np.save(path, vectors)
        path.write_bytes(path.read_bytes()[:40])
    elif how == "empty":
        path.touch()
    elif how == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", "cannot be read: no such file"), ("pickle", "pickled Python objects, which are never loaded"),
        ("bare pickle", "not a .npy file"), ("fortran", "Fortran order"), ("one dimension", "two dimensions"),
        ("three dimensions", "two dimensions"), ("integers", "holds int64; expected float32"),
        ("complex", "holds complex64"), ("no rows", "there are no embeddings"),
        ("no columns", "there are no embeddings"), ("npz", "not a .npy file"), ("longer", "followed by something else"),
        ("cut short", "cut short: 243 bytes, where 10 x 3 float32 take 248"), ("header cut short", "not a .npy file"),
        ("empty", "not a .npy file"), ("folder", "cannot be read: is a directory"),
    ],
)  # fmt: skip
def test_a_npy_that_makes_no_sense(build, tmp_path, how, sentence):
    written(tmp_path / "e.npy", how)
    with pytest.raises(InputError) as caught:
        build(table(tmp_path / "l.csv", 10), tmp_path / "e.npy")
    assert sentence in str(caught.value)
    assert str(tmp_path / "e.npy") in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "idx").exists()


@pytest.mark.parametrize("count", [9, 11, 0])
def test_as_many_embeddings_as_rows(build, tmp_path, count):
    np.save(tmp_path / "e.npy", unit(10))
    with pytest.raises(InputError, match=rf"has {count} rows, but .*e.npy has 10 embeddings"):
        build(table(tmp_path / "l.csv", count), tmp_path / "e.npy")


def test_another_length_than_the_models(build, tmp_path):
    np.save(tmp_path / "e.npy", unit(10, dim=5))
    parquet(tmp_path / "e.parquet", unit(10, dim=5))
    parquet(tmp_path / "l.parquet", unit(10, dim=5), kind=pa.list_(pa.float32()))
    for arguments in [
        (table(tmp_path / "l.csv", 10), tmp_path / "e.npy"), (tmp_path / "e.parquet",), (tmp_path / "l.parquet",),
    ]:  # fmt: skip
        with pytest.raises(MismatchError, match=r"embeddings of 5 numbers, but --engine is fake \(3 dimensions"):
            build(*arguments)
    assert not (tmp_path / "idx").exists()


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("empty file", InputError, "not a Parquet file"), ("text", InputError, "not a Parquet file"),
        ("cut short", InputError, "not a Parquet file"), ("no rows", InputError, "has no rows"),
        ("no embedding", LabelsError, "no column for the embedding"),
        ("no latitude", LabelsError, "no column for the latitude"),
        ("text latitude", LabelsError, "column latitude is string; expected numbers"),
        ("integers", LabelsError, "expected lists of float32"), ("flat", LabelsError, "expected lists of float32"),
        ("float id", LabelsError, "column id is double; expected text"),
        ("all bad", InputError, "none of the 4 embeddings can be indexed"),
    ],
)  # fmt: skip
def test_a_parquet_that_makes_no_sense(build, tmp_path, how, error, sentence):
    path, vectors = tmp_path / "e.parquet", unit(4)
    if how == "empty file":
        path.touch()
    elif how == "text":
        path.write_text("not a table at all, only words\n" * 20)
    elif how == "cut short":
        parquet(path, vectors)
        path.write_bytes(path.read_bytes()[:-20])
    else:
        parquet(path, *{"no rows": [vectors[:0]]}.get(how, [vectors]), **{
            "no embedding": {"embedding": None}, "no latitude": {"latitude": None},
            "text latitude": {"latitude": ["1"] * 4},
            "integers": {"embedding": pa.array([[1, 0, 0]] * 4)}, "flat": {"embedding": [1.0] * 4},
            "float id": {"id": [1.5] * 4}, "all bad": {"embedding": pa.array([None] * 4, pa.list_(pa.float32(), 3))},
        }.get(how, {}))  # fmt: skip
    with pytest.raises(error) as caught:
        build(path)
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "idx").exists()
    assert not (tmp_path / "idx.building").exists()


def trainer_folder(folder: Path, vectors: np.ndarray, *, digest: str, backbone: str, preprocessing: dict) -> Path:
    folder.mkdir()
    parquet(folder / "embeddings.parquet", vectors)
    (folder / "embeddings.json").write_text(
        json.dumps({
            "format": 1, "checkpoint_sha256": digest, "model": {"backbone": backbone, "dim": DIM},
            "preprocessing": preprocessing, "precision": "32-true", "embedded": len(vectors), "bad": 0,
        })
    )  # fmt: skip
    return folder


class TestTrainer:
    DIGEST = "0123456789abcdef" * 4

    @pytest.fixture
    def embedder(self, kit):
        from geoinfer.backends.base import EmbedderIdentity

        embedder = kit.ColourEmbedder(size=4)
        preprocessing = embedder.identity.preprocessing
        embedder.identity = EmbedderIdentity(f"vit-single:{self.DIGEST[:16]}", DIM, preprocessing)
        return embedder

    def run(self, kit, embedder, folder, tmp_path):
        run = BuildOptions(labels=folder, output=tmp_path / "idx", errors=tmp_path / "e.csv", kind="flat")
        return run_build(embedder, run, kit.Quiet())

    def folder(self, tmp_path, embedder, **more):
        values = {
            "digest": self.DIGEST, "backbone": "vit", "preprocessing": embedder.identity.preprocessing.as_dict(),
        } | more  # fmt: skip
        return trainer_folder(tmp_path / "made", unit(9), **values)

    def test_of_the_exported_checkpoint(self, kit, embedder, tmp_path):
        summary = self.run(kit, embedder, self.folder(tmp_path, embedder), tmp_path)
        assert (summary.layout, summary.indexed) == ("the trainer's embeddings", 9)

    @pytest.mark.parametrize(
        ("more", "sentence"),
        [
            ({"digest": "f" * 64}, "are of the checkpoint vit:ffffffffffffffff of 3 dimensions, but --engine is vit-s"),
            ({"backbone": "resnet"}, "are of the checkpoint resnet:0123456789abcdef"),
            ({"preprocessing": {"size": 7}}, "were made with other pixels"),
        ],
    )
    def test_of_another(self, kit, embedder, tmp_path, more, sentence):
        with pytest.raises(MismatchError) as caught:
            self.run(kit, embedder, self.folder(tmp_path, embedder, **more), tmp_path)
        assert sentence in str(caught.value)
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize("how", ["missing", "broken", "list", "format"])
    def test_that_is_not_whole(self, kit, embedder, tmp_path, how):
        path = self.folder(tmp_path, embedder) / "embeddings.json"
        if how == "missing":
            path.unlink()
        else:
            path.write_text({
                "broken": "{", "list": "[]", "format": json.dumps(json.loads(path.read_text()) | {"format": 2}),
            }[how])  # fmt: skip
        with pytest.raises(InputError, match=r"embeddings\.json: (is missing|cannot be read|of format 2)"):
            self.run(kit, embedder, tmp_path / "made", tmp_path)


def test_arguments_that_make_no_sense(build, tmp_path):
    np.save(tmp_path / "e.npy", unit(4))
    parquet(tmp_path / "e.parquet", unit(4))
    labels = table(tmp_path / "l.csv", 4)
    for arguments, more, error in [
        ((tmp_path / "e.parquet", tmp_path / "e.npy"), {}, UsageError),
        ((tmp_path, tmp_path / "e.npy"), {}, UsageError),
        ((labels, tmp_path / "e.npy"), {"images": tmp_path}, UsageError),
        ((labels, tmp_path / "e.npy"), {"kind": "tree"}, UsageError),
        ((labels,), {"normalize": True}, UsageError),
        ((tmp_path / "nowhere.parquet",), {}, InputError),
        ((tmp_path / "nowhere.csv", tmp_path / "e.npy"), {}, InputError),
    ]:
        with pytest.raises(error):
            build(*arguments, **more)
    assert not (tmp_path / "idx").exists()


def test_an_index_that_is_there_stays_when_the_new_one_fails(build, tmp_path):
    np.save(tmp_path / "e.npy", unit(10))
    labels = table(tmp_path / "l.csv", 10)
    build(labels, tmp_path / "e.npy")
    before = {file.name: file.read_bytes() for file in (tmp_path / "idx").iterdir()}
    with pytest.raises(OutputError, match="exists already"):
        build(labels, tmp_path / "e.npy")
    np.save(tmp_path / "e.npy", unit(10) * 2)
    with pytest.raises(GeoInferError):
        build(labels, tmp_path / "e.npy", overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "idx").iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["e.csv", "e.npy", "idx", "l.csv"]
