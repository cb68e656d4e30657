from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import s2sphere
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from geoinfer.backends.base import EmbedderIdentity
from geoinfer.bundle import SHIPPED, open_bundle
from geoinfer.errors import GeoInferError, IndexFolderError, InputError, OutputError
from geoinfer.images import Preprocessing
from geoinfer.index import (
    Answer,
    ExactIndex,
    FlatIndex,
    LeaveOneOut,
    References,
    held_out_photos,
    index_lock,
    open_index,
    read_index_manifest,
    update_index,
    write_index,
)
from geoinfer.index.writer import check_replaceable

FILES = ("coordinates.npy", "digests.npy", "leave_one_out.npz", "references.arrow", "vectors.npy")
N, DIM = 40, 8
EMBEDDER = EmbedderIdentity("test@0123", DIM, Preprocessing(size=64))


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def contents(n=N, seed=0):
    """(vectors, references)"""
    rng = np.random.default_rng(seed)
    names = ["東京.jpg", "a b,c\n\"d'.png", "é/ñ.heic", "e\u0301", "🗺", " ", "nul\0l", "\u202e"]
    return unit(rng, n, DIM), References(
        ids=[f"{names[i % len(names)]}{i}" for i in range(n)],
        coordinates=np.stack([rng.uniform(-90, 90, n), rng.uniform(-180, 180, n)], axis=1),
        sources=["" if i % 3 else "Wikimedia Commons – ©" for i in range(n)],
        attributions=[""] * n,
        content_sha256=np.stack(
            [np.frombuffer(hashlib.sha256(f"{seed} {i}".encode()).digest(), np.uint8) for i in range(n)]
        ),
        perceptual_hashes=rng.integers(0, 256, (n, 32), dtype=np.uint8),
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good index folder, not to be changed."""
    folder = tmp_path_factory.mktemp("store") / "index"
    write_index(folder, *contents(), EMBEDDER)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A copy of the good index."""
    shutil.copytree(good, tmp_path / "index")
    return tmp_path / "index"


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_bytes())


def name_of(folder: Path, name: str) -> str:
    """The name of one of FILES in a folder: one of them is named by its contents."""
    return next(n for n in manifest_of(folder)["files"] if n.startswith("leave_one_out-")) if "_out" in name else name


def path_of(folder: Path, name: str) -> Path:
    return folder / name_of(folder, name)


def rewrite(folder: Path, **changes) -> None:
    """Writes the manifest with changed values, and with the checksums of the files as they are now."""
    manifest = manifest_of(folder)
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for key, value in changes.items():
        if value is ...:
            del manifest[key]
        else:
            manifest[key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refused(folder: Path, *words: str) -> IndexFolderError:
    with pytest.raises(IndexFolderError) as caught:
        open_index(folder)
    assert caught.value.exit_code == 3
    for word in words:
        assert word in str(caught.value)
    return caught.value


class TestRoundTrip:
    def test_everything_comes_back(self, good):
        vectors, references = contents()
        stored = open_index(good)
        assert stored.folder == good
        assert stored.index.vectors.tobytes() == vectors.tobytes()
        assert list(stored.references.ids) == list(references.ids)
        assert stored.references.coordinates.tobytes() == references.coordinates.tobytes()
        assert list(stored.references.sources) == list(references.sources)
        assert list(stored.references.attributions) == list(references.attributions)
        assert stored.references.content_sha256.tobytes() == references.content_sha256.tobytes()
        assert stored.references.perceptual_hashes.tobytes() == references.perceptual_hashes.tobytes()
        assert len(stored.references) == N
        queries = unit(np.random.default_rng(5), 9, DIM)
        found, expected = stored.index.search(queries, 4), ExactIndex(vectors).search(queries, 4)
        assert found.ids.tolist() == expected.ids.tolist()

    def test_the_manifest_says_what_is_there(self, good):
        _, references = contents()
        manifest = read_index_manifest(good, verify=True)
        cells = {
            s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(*place)).parent(6).id()
            for place in references.coordinates.tolist()
        }
        assert (manifest.kind, manifest.size, manifest.embedder) == ("flat", N, EMBEDDER)
        assert (manifest.geocells, manifest.calibrated_on) == (len(cells), N)
        assert sorted(manifest.files) == sorted(name_of(good, name) for name in FILES)
        for name in manifest.files:
            data = (good / name).read_bytes()
            assert manifest.files[name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def test_leave_one_out_comes_back(self, good):
        vectors, _ = contents()
        held_out = open_index(good).leave_one_out
        assert held_out.rows.tolist() == list(range(N))
        assert (held_out.rows.dtype, held_out.ids.dtype) == (np.int64, np.int64)
        products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
        np.fill_diagonal(products, -9)
        assert held_out.ids[:, 0].tolist() == products.argmax(axis=1).tolist()
        assert held_out.similarities[:, 0] == pytest.approx(products.max(axis=1), abs=1e-6)

    @pytest.mark.parametrize("n", [1, 2])
    def test_small(self, tmp_path, n):
        write_index(tmp_path / "i", *contents(n), EMBEDDER)
        stored = open_index(tmp_path / "i")
        assert (stored.index.size, stored.leave_one_out.ids.shape) == (n, (n, n - 1))

    def test_the_fingerprint_is_of_the_contents(self, good, tmp_path):
        write_index(tmp_path / "same", *contents(), EMBEDDER)
        write_index(tmp_path / "other", *contents(seed=1), EMBEDDER)
        fingerprint = read_index_manifest(good).fingerprint
        assert read_index_manifest(tmp_path / "same").fingerprint == fingerprint
        assert read_index_manifest(tmp_path / "other").fingerprint != fingerprint
        for name in [*manifest_of(good)["files"], "manifest.json"]:
            assert (tmp_path / "same" / name).read_bytes() == (good / name).read_bytes()

    def test_a_folder_whose_name_is_not_utf8(self, good, tmp_path):
        try:
            folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
            folder.mkdir()
        except OSError:
            pytest.skip("this file system takes only UTF-8")
        write_index(folder / "i", *contents(), EMBEDDER)
        assert open_index(folder / "i").manifest.fingerprint == read_index_manifest(good).fingerprint

    def test_it_can_be_moved(self, folder, tmp_path):
        folder.rename(tmp_path / "elsewhere")
        assert open_index(tmp_path / "elsewhere").index.size == N

    def test_other_files_in_the_folder_do_no_harm(self, folder):
        (folder / "README").write_text("mine")
        assert open_index(folder).index.size == N


class TestNotAnIndex:
    @pytest.mark.parametrize("name", ["gone", "a/b/c", "x" * 300, "nul\0"])
    def test_no_such_folder(self, tmp_path, name):
        with pytest.raises(InputError, match="there is no such index") as caught:
            open_index(tmp_path / name)
        assert caught.value.exit_code == 2
        assert "geoinfer index build" in caught.value.hint

    def test_a_file(self, tmp_path):
        (tmp_path / "f").write_text("{}")
        with pytest.raises(InputError, match="there is no such index"):
            open_index(tmp_path / "f")

    def test_an_empty_folder(self, tmp_path):
        refused(tmp_path, "manifest.json")

    def test_a_folder_for_a_manifest(self, tmp_path):
        (tmp_path / "manifest.json").mkdir()
        refused(tmp_path, "manifest.json")


class TestDamagedFiles:
    @pytest.mark.parametrize("name", FILES)
    def test_missing(self, folder, name):
        path_of(folder, name).unlink()
        refused(folder, name.split(".")[0])

    @pytest.mark.parametrize("name", FILES)
    def test_a_folder_in_its_place(self, folder, name):
        path_of(folder, name).unlink()
        path_of(folder, name).mkdir()
        refused(folder, name.split(".")[0])

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("keep", [0, 1, 100, -1])
    def test_truncated(self, folder, name, keep):
        data = path_of(folder, name).read_bytes()
        path_of(folder, name).write_bytes(data[:keep])
        refused(folder, name.split(".")[0], "damaged")

    @pytest.mark.parametrize("name", FILES)
    def test_longer(self, folder, name):
        with path_of(folder, name).open("ab") as file:
            file.write(b"\0")
        refused(folder, name.split(".")[0], "damaged")

    @pytest.mark.parametrize("name", FILES)
    def test_one_flipped_bit_anywhere(self, folder, name):
        data = path_of(folder, name).read_bytes()
        for place in np.random.default_rng(len(data)).integers(0, len(data), 25).tolist():
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 8)
            path_of(folder, name).write_bytes(changed)
            refused(folder, name.split(".")[0], "checksum")

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("other", ["empty", "text", "truncated", "another"])
    def test_wrong_contents_under_a_right_checksum(self, folder, name, other):
        data = path_of(folder, name).read_bytes()
        another = path_of(folder, FILES[(FILES.index(name) + 1) % len(FILES)]).read_bytes()
        path_of(folder, name).write_bytes(
            {"empty": b"", "text": b"hello\n" * 50, "truncated": data[: len(data) // 2], "another": another}[other]
        )
        rewrite(folder)
        refused(folder, name.split(".")[0])


class TestManifest:
    @pytest.mark.parametrize(
        "data", [b"", b"{", b"not json", b"\xff\xfe", b"[]", b"null", b"3", b'"x"', b"{}", b"\x00", b"[" * 100_000]
    )
    def test_not_a_manifest(self, folder, data):
        (folder / "manifest.json").write_bytes(data)
        refused(folder, "manifest.json")

    @pytest.mark.parametrize(
        "key", ["format", "version", "kind", "size", "embedder", "geocells", "calibrated_on", "files"]
    )
    @pytest.mark.parametrize("value", [..., None, [], {}, "x", [[1]], 1e400, math.nan])
    def test_missing_or_of_a_wrong_type(self, folder, key, value):
        rewrite(folder, **{key: value})
        refused(folder, "manifest.json")

    @pytest.mark.parametrize("version", [0, 1, 99, "2", None])
    def test_another_version(self, folder, version):
        rewrite(folder, version=version)
        assert refused(
            folder,
            "manifest.json",
            f"version {version!r}",
            "this geoinfer reads 2",
        ).hint

    def test_another_format(self, folder):
        rewrite(folder, format="geoinfer-bundle")
        refused(folder, "manifest.json", "not the manifest of a geoinfer index")

    def test_another_kind(self, folder):
        rewrite(folder, kind="lsh")
        refused(folder, "manifest.json", "'lsh'", "flat, flat-fp16")

    @pytest.mark.parametrize("kind", ["ivf", "sq8", "hnsw", "ivf-pq"])
    def test_a_kind_whose_search_is_not_there(self, folder, kind):
        rewrite(folder, kind=kind)
        refused(folder, "manifest.json", "does not list search.faiss")

    def test_a_kind_whose_vectors_are_of_another_precision(self, folder):
        rewrite(folder, kind="flat-fp16")
        refused(folder, "vectors.npy", "float32", "float16")

    @pytest.mark.parametrize("name", ["search.faiss", "README", "vectors.faiss", "leave_one_out-0123456789abcdef.npz"])
    def test_a_file_that_is_no_part_of_it(self, folder, name):
        (folder / name).write_bytes(b"x")
        files = manifest_of(folder)["files"] | {name: {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
        rewrite_files(folder, files)
        refused(folder, "manifest.json", "no part of an index of kind flat")

    @pytest.mark.parametrize(
        "parameters", [None, 1, [], "nprobe", {"nprobe": "8"}, {"nprobe": True}, {"nprobe": math.nan}, {"nprobe": None}]
    )
    def test_parameters_that_make_no_sense(self, folder, parameters):
        rewrite(folder, parameters=parameters)
        refused(folder, "manifest.json", "damaged", "expected")

    @pytest.mark.parametrize(("key", "value"), [("recall", []), ("recall", 1), ("tuning", {}), ("tuning", [1])])
    def test_figures_that_make_no_sense(self, folder, key, value):
        rewrite(folder, **{key: value})
        refused(folder, "manifest.json", key)

    @pytest.mark.parametrize("key", ["size", "geocells", "calibrated_on"])
    @pytest.mark.parametrize("value", [-1, True, "40", 40.0, 10**30])
    def test_a_number_that_is_none(self, folder, key, value):
        rewrite(folder, **{key: value})
        if (key, value) != ("geocells", 10**30):
            refused(folder)

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_not_listed(self, folder, name):
        files = manifest_of(folder)["files"]
        del files[name_of(folder, name)]
        rewrite_files(folder, files)
        refused(folder, "manifest.json", name.split(".")[0])

    @pytest.mark.parametrize(
        "name",
        ["../outside", "/etc/passwd", "a/../../outside", "link", "nul\0", "\ud800", "loop/x", "gone", "x" * 300, "."],
    )
    def test_a_file_that_is_not_in_the_folder(self, folder, name):
        (folder.parent / "outside").write_text("secret")
        (folder / "link").symlink_to(folder.parent / "outside")
        (folder / "loop").symlink_to("loop")
        digest = hashlib.sha256(b"secret").hexdigest()
        rewrite_files(folder, {**manifest_of(folder)["files"], name: {"bytes": 6, "sha256": digest}})
        refused(folder)

    @pytest.mark.parametrize(
        "entry",
        [None, 3, "x", [], {}, {"bytes": 1}, {"sha256": "x"}, {"bytes": "1", "sha256": "x"}, {"bytes": 1, "sha256": 2}],
    )
    @pytest.mark.parametrize("name", FILES)
    def test_entries_of_a_wrong_type(self, folder, name, entry):
        rewrite_files(folder, {**manifest_of(folder)["files"], name_of(folder, name): entry})
        refused(folder, "manifest.json")

    @pytest.mark.parametrize(
        "embedder",
        [
            {"name": "x"},
            {"name": "x", "dim": DIM},
            {"name": "x", "dim": "many", "preprocessing": {"size": 64}},
            {"name": "x", "dim": 1e400, "preprocessing": {"size": 64}},
            {"name": "x", "dim": DIM, "preprocessing": {}},
            {"name": "x", "dim": DIM, "preprocessing": [64]},
            {"name": "x", "dim": DIM, "preprocessing": {"size": "large"}},
            {"name": "x", "dim": DIM, "preprocessing": {"size": 64, "mean": ["a", "b", "c"]}},
            {"name": "x", "dim": DIM, "preprocessing": {"size": 64, "std": [1, 2]}},
            {"name": "x", "dim": DIM, "preprocessing": {"size": 64, "resize": ["crop"]}},
            {"name": "x", "dim": DIM, "preprocessing": {"size": 64, "interpolation": {}}},
            {"name": "x", "dim": DIM, "preprocessing": {"size": 64, "colour": None}},
            {"name": "x", "dim": DIM, "preprocessing": {"size": 64, "new": 1}},
        ],
    )
    def test_an_embedder_that_makes_no_sense(self, folder, embedder):
        rewrite(folder, embedder=embedder)
        refused(folder, "manifest.json")

    def test_sizes_that_disagree(self, folder, tmp_path):
        rewrite(folder, size=N + 1)
        refused(folder, "vectors.npy", f"holds {N} x {DIM} float32", f"manifest.json speaks of {N + 1} x {DIM} float32")

    def test_dimensions_that_disagree(self, folder):
        rewrite(folder, embedder={**EMBEDDER.as_dict(), "dim": DIM + 1})
        refused(folder, "vectors.npy", f"holds {N} x {DIM} float32", f"manifest.json speaks of {N} x {DIM + 1} float32")

    @pytest.mark.parametrize("name", ["vectors.npy", "references.arrow", "coordinates.npy", "digests.npy"])
    def test_a_file_of_another_index(self, folder, tmp_path, name):
        write_index(tmp_path / "small", *contents(N - 1), EMBEDDER)
        shutil.copy(tmp_path / "small" / name, folder / name)
        rewrite(folder)
        refused(folder)

    def test_calibration_that_disagrees(self, folder):
        rewrite(folder, calibrated_on=N - 1)
        refused(folder, "leave_one_out-", f"holds {N} photos", f"manifest.json says {N - 1}")

    @pytest.mark.parametrize("answer", [None, 1, "top1", [], {}, {"k": 1}, {"k": 0, "aggregate": "top1"},
                                        {"k": 101, "aggregate": "top1"}, {"k": "1", "aggregate": "top1"},
                                        {"k": 1, "aggregate": "best"}, {"k": 1, "aggregate": ["top1"]}])  # fmt: skip
    def test_an_answer_that_makes_no_sense(self, folder, answer):
        rewrite(folder, answer=answer)
        refused(folder, "manifest.json", "damaged", "expected")

    @pytest.mark.parametrize("scale", [None, "1", True, [], 0, 0.0, -1, -1e-9, 1.1e6, 10**400, 1e400, -1e400, math.nan])
    def test_a_scale_that_makes_no_sense(self, folder, scale):
        rewrite(folder, logit_scale=scale)
        refused(folder, "manifest.json", "logit_scale")

    @pytest.mark.parametrize("scale", [1, 1e-9, 39.687, 1_000_000])
    def test_a_scale_that_does(self, folder, scale):
        rewrite(folder, logit_scale=scale, answer={"k": 1, "aggregate": "top1"})
        manifest = open_index(folder).manifest
        assert (manifest.logit_scale, manifest.answer) == (scale, Answer(1, "top1"))
        assert isinstance(manifest.logit_scale, float)


class TestWhatAnIndexMaySay:
    """Optional: an index without says nothing of it."""

    def test_an_index_of_photos_says_nothing(self, good):
        manifest = read_index_manifest(good)
        assert (manifest.answer, manifest.logit_scale) == (None, None)
        assert sorted(manifest_of(good)) == [
            "calibrated_on", "embedder", "files", "format", "geocells", "kind", "size", "version",
        ]  # fmt: skip
        with np.load(path_of(good, "leave_one_out.npz")) as arrays:
            assert sorted(arrays.files) == ["ids", "rows", "similarities"]
        assert open_index(good).leave_one_out.places is None

    def test_what_is_said_comes_back(self, tmp_path):
        manifest = write_index(tmp_path / "i", *contents(), EMBEDDER, answer=Answer(7, "mean"), logit_scale=12.5)
        assert (manifest.answer, manifest.logit_scale) == (Answer(7, "mean"), 12.5)
        assert manifest_of(tmp_path / "i")["answer"] == {"aggregate": "mean", "k": 7}
        # It says nothing of the calibration, which is that of photos.
        assert manifest.calibrated_on == N

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 2e6])
    def test_what_makes_no_sense_is_not_written(self, tmp_path, scale):
        with pytest.raises(ValueError, match="logit_scale"):
            write_index(tmp_path / "i", *contents(), EMBEDDER, logit_scale=scale)
        assert os.listdir(tmp_path) == []

    def test_labelled_photos_outside_the_index(self, tmp_path):
        vectors, references = contents()
        rng = np.random.default_rng(8)
        queries, places = unit(rng, 6, DIM), rng.uniform([-90, -180], [90, 180], (6, 2))
        places[0], places[1] = (90, 180), (-90, -180)
        write_index(
            tmp_path / "i", vectors, references, EMBEDDER,
            calibration=held_out_photos(FlatIndex(vectors), queries, places),
        )  # fmt: skip
        stored = open_index(tmp_path / "i")
        held_out = stored.leave_one_out
        assert stored.manifest.calibrated_on == 6
        assert held_out.rows.tolist() == [-1] * 6
        assert held_out.places.tobytes() == places.tobytes()
        assert held_out.true_places(references.coordinates) is held_out.places
        wanted = ExactIndex(vectors).search(queries, N)
        assert held_out.ids.tolist() == wanted.ids.tolist()
        assert held_out.similarities.tolist() == wanted.similarities.tolist()

    def test_no_calibration_at_all(self, tmp_path):
        manifest = write_index(tmp_path / "i", *contents(), EMBEDDER, calibration=LeaveOneOut.empty())
        assert manifest.calibrated_on == 0
        assert len(open_index(tmp_path / "i").leave_one_out.rows) == 0

    def arrays(self, **changes) -> dict:
        arrays = {
            "rows": np.full(3, -1, np.int32),
            "ids": np.zeros((3, 2), np.int32),
            "similarities": np.zeros((3, 2), np.float32),
            "places": np.array([(1.0, 2.0), (90.0, -180.0), (-90.0, 180.0)]),
        }
        return {name: value for name, value in {**arrays, **changes}.items() if value is not None}

    def put(self, folder, **changes):
        np.savez(path_of(folder, "leave_one_out.npz"), **self.arrays(**changes))
        rewrite(folder, calibrated_on=3)

    def test_places_that_fit(self, folder):
        self.put(folder)
        assert open_index(folder).leave_one_out.places.tolist() == [[1, 2], [90, -180], [-90, 180]]
        self.put(folder, rows=np.array([-1, 0, N - 1], np.int32))
        assert open_index(folder).leave_one_out.rows.tolist() == [-1, 0, N - 1]

    @pytest.mark.parametrize(
        "changes",
        [
            {"places": None},  # of photos outside the index nothing else says where they were taken
            {"places": np.zeros((2, 2))},
            {"places": np.zeros((3, 3))},
            {"places": np.zeros(3)},
            {"places": np.zeros((3, 2), np.float32)},
            {"places": np.full((3, 2), math.nan)},
            {"places": np.array([(1.0, 2.0), (90.1, 0.0), (0.0, 0.0)])},
            {"places": np.array([(1.0, 2.0), (0.0, 0.0), (0.0, -180.1)])},
            {"places": np.array([["a", "b"]] * 3)},
            {"rows": np.full(3, -2, np.int32)},
            {"rows": np.full(3, N, np.int32)},
        ],
    )
    def test_places_that_do_not(self, folder, changes):
        self.put(folder, **changes)
        refused(folder, "leave_one_out-", "does not belong to this index")


def rewrite_files(folder: Path, files: dict) -> None:
    manifest = manifest_of(folder)
    manifest["files"] = files
    (folder / "manifest.json").write_text(json.dumps(manifest))


class TestReferencesTable:
    COLUMNS = ("id", "source", "attribution", "sequence")

    def put(self, folder, table):
        with pa.OSFile(str(folder / "references.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        rewrite(folder)

    def table(self, folder):
        with pa.OSFile(str(folder / "references.arrow")) as file:
            return pa.ipc.open_file(file).read_all()

    def test_any_arrow_reader_reads_it(self, folder):
        _, references = contents()
        assert self.table(folder).to_pydict() == {
            "id": references.ids, "source": references.sources, "attribution": references.attributions,
            "sequence": [""] * N,
        }  # fmt: skip

    @pytest.mark.parametrize("column", COLUMNS)
    def test_a_missing_column(self, folder, column):
        self.put(folder, self.table(folder).drop_columns([column]))
        refused(folder, "references.arrow", column)

    @pytest.mark.parametrize("column", COLUMNS)
    @pytest.mark.parametrize(
        "values",
        [
            pa.array([None] * N, pa.string()),
            pa.array([None, *["x"] * (N - 1)], pa.string()),
            pa.array(["x"] * N, pa.large_string()),
            pa.array(["x"] * N).dictionary_encode(),
            pa.array([True] * N),
            pa.array([math.nan] * N),
            pa.array([[1.0]] * N),
            pa.array([b"x" * 32] * N, pa.binary(32)),
        ],
        ids=lambda values: str(values.type),
    )
    def test_a_column_of_a_wrong_type(self, folder, column, values):
        table = self.table(folder)
        self.put(folder, table.set_column(table.column_names.index(column), column, values))
        refused(folder, "references.arrow")

    def test_further_columns_do_no_harm(self, folder):
        self.put(folder, self.table(folder).append_column("camera", pa.array(["x"] * N)))
        assert list(open_index(folder).references.ids) == list(contents()[1].ids)

    @pytest.mark.parametrize("rows", [0, 1, N - 1])
    def test_other_rows(self, folder, rows):
        self.put(folder, self.table(folder).slice(0, rows))
        refused(folder, "references.arrow", f"holds {rows} references")


class TestArrays:
    """Under a right checksum: what a large file, of which it is not looked at, may hold."""

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((N, DIM), np.float64), np.zeros((N, DIM), ">f4"), np.zeros((N, DIM + 1), np.float32),
            np.zeros((N - 1, DIM), np.float32), np.zeros(N * DIM, np.float32), np.zeros((0, DIM), np.float32),
            np.zeros((DIM, N), np.float32).T, np.full((N, DIM), "x"), np.full((N, DIM), None, object),
            np.full((N, DIM), math.nan, np.float32),
        ],
        ids=lambda a: f"{a.shape} {a.dtype}",
    )  # fmt: skip
    def test_vectors(self, folder, array):
        np.save(folder / "vectors.npy", array)
        rewrite(folder)
        refused(folder, "vectors.npy")

    @pytest.mark.parametrize("value", [math.nan, 90.1, -math.inf])
    def test_coordinates(self, folder, value):
        places = contents()[1].coordinates.copy()
        places[7, 0] = value
        np.save(folder / "coordinates.npy", places)
        rewrite(folder)
        refused(folder, "coordinates.npy", "row 7")

    @pytest.mark.parametrize("name", ["vectors.npy", "coordinates.npy", "digests.npy"])
    def test_an_archive(self, folder, name):
        with (folder / name).open("wb") as file:
            np.savez(file, x=np.zeros(3))
        rewrite(folder)
        refused(folder, name)

    @pytest.mark.parametrize("name", ["vectors.npy", "coordinates.npy", "digests.npy"])
    def test_any_header_is_refused_or_harmless(self, folder, name):
        data = (folder / name).read_bytes()
        assert len(data) % 64 == {"vectors.npy": 0, "coordinates.npy": 0, "digests.npy": 0}[name]
        for place in range(128):
            for mask in (1, 0x10, 0xFF):
                changed = bytearray(data)
                changed[place] ^= mask
                (folder / name).write_bytes(changed)
                rewrite(folder)
                with suppress(IndexFolderError):
                    open_index(folder).index.search(contents()[0][:3], 5)


class TestLeaveOneOutFile:
    def arrays(self, folder):
        with np.load(path_of(folder, "leave_one_out.npz")) as arrays:
            return dict(arrays)

    def put(self, folder, **arrays):
        np.savez(path_of(folder, "leave_one_out.npz"), **arrays)
        rewrite(folder)
        refused(folder, "leave_one_out-")

    @pytest.mark.parametrize("name", ["rows", "ids", "similarities"])
    def test_a_missing_array(self, folder, name):
        arrays = self.arrays(folder)
        del arrays[name]
        self.put(folder, **arrays)

    @pytest.mark.parametrize("name", ["rows", "ids", "similarities"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda a: a[:-1],
            lambda a: a[None],
            lambda a: a.ravel()[0],
            lambda a: a.astype(np.complex64),
            lambda a: a.astype(str),
            lambda a: np.full(a.shape, np.nan),
            lambda a: a.astype(np.float64) + 0.5,
            lambda a: a.astype(bool),
            lambda a: np.array([{}], object),
        ],
    )
    def test_an_array_of_a_wrong_shape_or_type(self, folder, name, change):
        arrays = self.arrays(folder)
        arrays[name] = change(arrays[name])
        self.put(folder, **arrays)

    @pytest.mark.parametrize(("name", "value"), [("rows", N), ("rows", -1), ("ids", N), ("ids", -2)])
    def test_rows_that_the_index_has_not(self, folder, name, value):
        arrays = self.arrays(folder)
        arrays[name].flat[5] = value
        self.put(folder, **arrays)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_similarities_that_are_not_finite(self, folder, value):
        arrays = self.arrays(folder)
        arrays["similarities"][3, 3] = value
        self.put(folder, **arrays)

    def test_a_plain_array(self, folder):
        with path_of(folder, "leave_one_out.npz").open("wb") as file:
            np.save(file, np.zeros(3))
        rewrite(folder)
        refused(folder, "leave_one_out-")

    def test_a_pickle_is_not_run(self, folder):
        class Trap:
            def __reduce__(self):
                return (os.mkdir, (str(folder / "sprung"),))

        self.put(folder, rows=np.array([Trap()], object), ids=np.zeros((1, 1)), similarities=np.zeros((1, 1)))
        assert not (folder / "sprung").exists()

    def test_flipped_bytes_under_a_right_checksum(self, folder):
        # What a file of more than 64 MiB would meet, whose checksum is not looked at when it is opened.
        data = path_of(folder, "leave_one_out.npz").read_bytes()
        outcomes = set()
        rng = np.random.default_rng(0)
        ends = [*range(130), *range(len(data) - 330, len(data))]
        for place in [*ends, *rng.integers(0, len(data), 50).tolist()]:
            changed = bytearray(data)
            changed[place] ^= 0xFF if place % 2 else 0x01
            path_of(folder, "leave_one_out.npz").write_bytes(changed)
            rewrite(folder)
            try:
                held_out = open_index(folder).leave_one_out
            except GeoInferError:
                outcomes.add("refused")
            else:
                outcomes.add("opened")
                assert -1 <= held_out.ids.min() <= held_out.ids.max() < N
        assert "refused" in outcomes


changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*FILES, "manifest.json", "manifest.json", "manifest.json"]), changes)
@example("manifest.json", [(0.0, 1)])
def test_flipped_bytes_never_give_anything_but_an_error_of_ours_or_a_working_index(folder, name, flips):
    path = folder / name if name == "manifest.json" else path_of(folder, name)
    data = path.read_bytes()
    changed = bytearray(data)
    for place, mask in flips:
        changed[int(place * len(data))] ^= mask
    path.write_bytes(changed)
    try:
        stored = open_index(folder)
    except GeoInferError as error:
        stored, fault = None, error
    finally:
        path.write_bytes(data)
    if stored is None:
        assert fault.exit_code == 3
        assert str(folder) in str(fault)
    else:
        # What the manifest says beside the point, such as its count of geocells, may change and the index still work.
        assert name == "manifest.json" or bytes(changed) == data
        vectors, references = contents()
        assert stored.index.search(vectors[7:8], 1).ids.tolist() == [[7]]
        assert list(stored.references.ids) == list(references.ids)


@pytest.mark.parametrize("name", FILES)
def test_a_large_file_is_hashed_only_when_asked(folder, name, monkeypatch):
    from geoinfer import bundle
    from geoinfer.index import store

    monkeypatch.setattr(bundle, "HASHED_AT_OPEN", 0)
    monkeypatch.setattr(store, "HASHED_AT_OPEN", 0)
    manifest = manifest_of(folder)
    manifest["files"][name_of(folder, name)]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert open_index(folder).index.size == N
    with pytest.raises(IndexFolderError, match=name.split(".")[0]):
        read_index_manifest(folder, verify=True)


def test_the_index_holds_after_its_files_are_gone(folder):
    stored = open_index(folder)
    assert isinstance(stored.index, FlatIndex)
    shutil.rmtree(folder)
    assert stored.index.search(contents()[0][:1], 1).ids.tolist() == [[0]]


class TestUpdate:
    def test_what_is_left_out_stays(self, folder, good):
        before = read_index_manifest(good)
        assert update_index(folder) == before
        update_index(folder, answer=Answer(3, "mean"))
        update_index(folder, recall={"recall_at": {"1": 1.0}}, tuning=[{"k": 1}])
        after = update_index(folder, calibration=LeaveOneOut.empty())
        assert (after.answer, after.recall, after.tuning) == (
            Answer(3, "mean"), {"recall_at": {"1": 1.0}}, [{"k": 1}],
        )  # fmt: skip
        assert (after.calibrated_on, len(open_index(folder).leave_one_out.rows)) == (0, 0)
        assert read_index_manifest(folder) == after
        # The former calibration is gone, and nothing else came.
        assert sorted(os.listdir(folder)) == sorted([*after.files, "manifest.json"])
        assert os.listdir(folder.parent) == ["index"]
        update_index(folder, answer=None, recall=None, tuning=None, calibration=open_index(good).leave_one_out)
        assert read_index_manifest(folder) == before

    def test_the_large_files_are_not_touched(self, folder):
        names = [name for name in FILES if "_out" not in name]
        before = [(folder / name).stat() for name in names]
        update_index(folder, answer=Answer(3, "mean"), calibration=LeaveOneOut.empty())
        for name, was in zip(names, before, strict=True):
            now = (folder / name).stat()
            assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)

    def test_the_fingerprint_covers_what_changes_answers(self, folder):
        prints = [read_index_manifest(folder).fingerprint]
        prints.append(update_index(folder, answer=Answer(3, "mean")).fingerprint)
        assert prints[0] == prints[1]  # a run says itself how it answers
        prints.append(update_index(folder, parameters={"nprobe": 8}).fingerprint)
        prints.append(update_index(folder, parameters={"nprobe": 9}).fingerprint)
        prints.append(update_index(folder, calibration=LeaveOneOut.empty()).fingerprint)
        assert len(set(prints)) == 4

    def test_what_makes_no_sense(self, folder):
        before = (folder / "manifest.json").read_bytes()
        with pytest.raises(ValueError, match="nprobe"):
            update_index(folder, parameters={"nprobe": math.nan})
        assert (folder / "manifest.json").read_bytes() == before

    def test_of_a_relative_name(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        assert update_index(Path(), answer=Answer(2, "mean")).answer == Answer(2, "mean")

    def test_no_index(self, tmp_path):
        with pytest.raises(InputError, match="there is no such index"):
            update_index(tmp_path / "gone")
        assert os.listdir(tmp_path) == []

    def test_while_another_process_writes_it(self, folder):
        with index_lock(folder), pytest.raises(OutputError, match=f"process {os.getpid()} is writing it"):
            update_index(folder, answer=None)
        assert read_index_manifest(folder).answer is None


def test_an_index_inside_a_bundle_is_not_changed(tmp_path: Path) -> None:
    """The bundle's manifest lists its files, and would refuse the bundle from then on."""
    bundle = tmp_path / "bundle"
    shutil.copytree(SHIPPED, bundle)
    with pytest.raises(OutputError, match="belongs to the bundle"):
        update_index(bundle / "index", answer=Answer(3, "top1"))
    with pytest.raises(OutputError, match="belongs to the bundle"):
        check_replaceable(bundle / "index", overwrite=True)
    assert open_bundle(bundle, verify=True).name
