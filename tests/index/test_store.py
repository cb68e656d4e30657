from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s2sphere
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from geoinfer.backends.base import EmbedderIdentity
from geoinfer.errors import GeoInferError, IndexFolderError, InputError, OutputError
from geoinfer.images import Preprocessing
from geoinfer.index import (
    Answer,
    ExactIndex,
    FaissFlatIndex,
    LeaveOneOut,
    References,
    held_out_photos,
    open_index,
    read_index_manifest,
    write_index,
)
from geoinfer.index import store as store_module

FILES = ("leave_one_out.npz", "references.parquet", "vectors.faiss")
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


def rewrite(folder: Path, **changes) -> None:
    """Writes the manifest with changed values, and with the checksums of the files as they are now."""
    manifest = manifest_of(folder)
    for name in FILES:
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
        assert sorted(manifest.files) == sorted(FILES)
        for name in FILES:
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
        for name in FILES:
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


@contextmanager
def file_size_limit(limit: int):
    """The system itself refuses to write past `limit` bytes of a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize("limit", [10, 1000, 2000, 6000, 16000])
    def test_a_disk_that_fills_up(self, tmp_path, limit):
        with file_size_limit(limit), pytest.raises(OutputError, match=r"index: the index cannot be written: \w+"):
            write_index(tmp_path / "index", *contents(200), EMBEDDER)
        assert os.listdir(tmp_path) == []

    def test_the_limits_above_hit_every_file(self, tmp_path):
        write_index(tmp_path / "index", *contents(200), EMBEDDER)
        sizes = sorted((tmp_path / "index" / name).stat().st_size for name in FILES)
        assert sizes[0] > 6000
        assert sizes[-1] > 16000

    @pytest.mark.parametrize("parent", ["file/index", "x" * 300, "y" * 252, "/proc/index"])
    def test_where_nothing_can_be_written(self, tmp_path, parent):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OutputError, match="cannot be written"):
            write_index(tmp_path / parent, *contents(), EMBEDDER)
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize(
        "fault", [OSError(5, "Input/output error"), OSError(), RuntimeError(), KeyboardInterrupt()]
    )
    @pytest.mark.parametrize("step", ["_write_references", "leave_one_out", "write_json", "sync_file"])
    def test_a_fault_at_any_step(self, tmp_path, monkeypatch, step, fault):
        def fail(*_args, **_kwargs):
            assert (tmp_path / "index.tmp").is_dir()
            assert not (tmp_path / "index").exists()
            raise fault

        monkeypatch.setattr(store_module, step, fail)
        with pytest.raises(KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else OutputError):
            write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert os.listdir(tmp_path) == []

    def test_what_a_killed_run_left_is_no_hindrance(self, tmp_path):
        (tmp_path / "index.tmp").mkdir()
        (tmp_path / "index.tmp" / "vectors.faiss").write_bytes(b"half")
        write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert os.listdir(tmp_path) == ["index"]
        assert sorted(os.listdir(tmp_path / "index")) == sorted([*FILES, "manifest.json"])

    def test_a_folder_of_somebody_elses_is_not_taken_for_one(self, tmp_path):
        (tmp_path / "index.tmp").mkdir()
        (tmp_path / "index.tmp" / "thesis.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"index\.tmp: holds thesis\.txt"):
            write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert (tmp_path / "index.tmp" / "thesis.txt").read_text() == "mine"
        assert os.listdir(tmp_path) == ["index.tmp"]

    def test_nor_is_a_file(self, tmp_path):
        (tmp_path / "index.tmp").write_text("mine")
        with pytest.raises(OutputError, match="cannot be written"):
            write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert (tmp_path / "index.tmp").read_text() == "mine"

    @pytest.mark.parametrize("what", ["folder", "file", "link"])
    def test_nothing_is_overwritten(self, tmp_path, what):
        path = tmp_path / "index"
        if what == "folder":
            path.mkdir()
        elif what == "file":
            path.write_text("mine")
        else:
            path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(OutputError, match="exists already"):
            write_index(path, *contents(), EMBEDDER)
        assert os.listdir(tmp_path) == ["index"]

    def test_missing_parents_are_made(self, tmp_path):
        write_index(tmp_path / "a" / "b" / "index", *contents(), EMBEDDER)
        assert open_index(tmp_path / "a" / "b" / "index").index.size == N

    @pytest.mark.parametrize("fault", ["lengths", "empty", "nan", "dim", "coordinates", "ids", "surrogate"])
    def test_what_makes_no_index(self, tmp_path, fault):
        vectors, references = contents()
        coordinates, ids = references.coordinates.copy(), list(references.ids)
        embedder = EMBEDDER
        if fault == "lengths":
            vectors = vectors[1:]
        elif fault == "empty":
            vectors, references = contents(1)
            vectors, coordinates, ids = vectors[:0], coordinates[:0], []
        elif fault == "nan":
            vectors[3, 3] = math.nan
        elif fault == "dim":
            embedder = EmbedderIdentity("test@0123", DIM + 1, Preprocessing(size=64))
        elif fault == "coordinates":
            coordinates[3, 0] = math.nan
        elif fault == "ids":
            ids = ids[1:]
        else:
            ids[0] = "\udcff"
        changed = References(
            ids,
            coordinates,
            references.sources,
            references.attributions,
            references.content_sha256,
            references.perceptual_hashes,
        )
        with pytest.raises((ValueError, IndexError)):
            write_index(tmp_path / "index", vectors, changed, embedder)
        assert os.listdir(tmp_path) == []


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
        (folder / name).unlink()
        refused(folder, name)

    @pytest.mark.parametrize("name", FILES)
    def test_a_folder_in_its_place(self, folder, name):
        (folder / name).unlink()
        (folder / name).mkdir()
        refused(folder, name)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("keep", [0, 1, 100, -1])
    def test_truncated(self, folder, name, keep):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:keep])
        refused(folder, name, "damaged")

    @pytest.mark.parametrize("name", FILES)
    def test_longer(self, folder, name):
        with (folder / name).open("ab") as file:
            file.write(b"\0")
        refused(folder, name, "damaged")

    @pytest.mark.parametrize("name", FILES)
    def test_one_flipped_bit_anywhere(self, folder, name):
        data = (folder / name).read_bytes()
        for place in np.random.default_rng(len(data)).integers(0, len(data), 25).tolist():
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 8)
            (folder / name).write_bytes(changed)
            refused(folder, name, "checksum")

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("other", ["empty", "text", "truncated", "another"])
    def test_wrong_contents_under_a_right_checksum(self, folder, name, other):
        data = (folder / name).read_bytes()
        another = (folder / FILES[(FILES.index(name) + 1) % 3]).read_bytes()
        (folder / name).write_bytes(
            {"empty": b"", "text": b"hello\n" * 50, "truncated": data[: len(data) // 2], "another": another}[other]
        )
        rewrite(folder)
        refused(folder, name)


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

    @pytest.mark.parametrize("version", [0, 2, 99, "1", None])
    def test_another_version(self, folder, version):
        rewrite(folder, version=version)
        assert refused(folder, "manifest.json", f"version {version!r}", "this geoinfer reads 1").hint

    def test_another_format(self, folder):
        rewrite(folder, format="geoinfer-bundle")
        refused(folder, "manifest.json", "not the manifest of a geoinfer index")

    def test_another_kind(self, folder):
        rewrite(folder, kind="ivf")
        refused(folder, "manifest.json", "'ivf'")

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_not_listed(self, folder, name):
        files = manifest_of(folder)["files"]
        del files[name]
        rewrite_files(folder, files)
        refused(folder, "manifest.json", name)

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
        rewrite_files(folder, {**manifest_of(folder)["files"], name: entry})
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
        refused(folder, "manifest.json", f"{N + 1} references", f"holds {N} of {DIM}", f"the table {N}")

    def test_dimensions_that_disagree(self, folder):
        rewrite(folder, embedder={**EMBEDDER.as_dict(), "dim": DIM + 1})
        refused(folder, "manifest.json", f"{DIM + 1} dimensions")

    @pytest.mark.parametrize("name", ["vectors.faiss", "references.parquet"])
    def test_a_file_of_another_index(self, folder, tmp_path, name):
        write_index(tmp_path / "small", *contents(N - 1), EMBEDDER)
        shutil.copy(tmp_path / "small" / name, folder / name)
        rewrite(folder)
        refused(folder)

    def test_calibration_that_disagrees(self, folder):
        rewrite(folder, calibrated_on=N - 1)
        refused(folder, "leave_one_out.npz", f"holds {N} photos", f"manifest.json says {N - 1}")

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
    """Optional: an index without says nothing of it, and its bytes are as they always were."""

    def test_an_index_of_photos_says_nothing(self, good):
        manifest = read_index_manifest(good)
        assert (manifest.answer, manifest.logit_scale) == (None, None)
        assert sorted(manifest_of(good)) == [
            "calibrated_on", "embedder", "files", "format", "geocells", "kind", "size", "version",
        ]  # fmt: skip
        with np.load(good / "leave_one_out.npz") as arrays:
            assert sorted(arrays.files) == ["ids", "rows", "similarities"]
        # As it was before there were such things.
        digests = "".join(manifest.files[name]["sha256"] for name in sorted(FILES))
        assert manifest.fingerprint == hashlib.sha256(digests.encode()).hexdigest()
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
            calibration=held_out_photos(FaissFlatIndex(vectors), queries, places),
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
        np.savez(folder / "leave_one_out.npz", **self.arrays(**changes))
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
        refused(folder, "leave_one_out.npz", "does not belong to this index")


def rewrite_files(folder: Path, files: dict) -> None:
    manifest = manifest_of(folder)
    manifest["files"] = files
    (folder / "manifest.json").write_text(json.dumps(manifest))


class TestReferencesTable:
    COLUMNS = ("id", "latitude", "longitude", "source", "attribution", "content_sha256", "perceptual_hash")

    def put(self, folder, table):
        pq.write_table(table, folder / "references.parquet")
        rewrite(folder)

    @pytest.mark.parametrize("column", COLUMNS)
    def test_a_missing_column(self, folder, column):
        self.put(folder, pq.read_table(folder / "references.parquet").drop_columns([column]))
        refused(folder, "references.parquet", column)

    @pytest.mark.parametrize("column", COLUMNS)
    @pytest.mark.parametrize(
        "values",
        [
            pa.array([None] * N, pa.string()),
            pa.array(["x"] * N, pa.large_string()),
            pa.array([True] * N),
            pa.array([math.nan] * N),
            pa.array([[1.0]] * N),
            pa.array([b"x" * 31] * N, pa.binary(31)),
            pa.array([b"x"] * N, pa.binary()),
            pa.array([None, *[b"x" * 32] * (N - 1)], pa.binary(32)),
            pa.array([None, *[1.0] * (N - 1)], pa.float64()),
            pa.array([1000.0] * N),
        ],
        ids=lambda values: str(values.type),
    )
    def test_a_column_of_a_wrong_type(self, folder, column, values):
        table = pq.read_table(folder / "references.parquet")
        self.put(folder, table.set_column(table.column_names.index(column), column, values))
        refused(folder, "references.parquet")

    def test_further_columns_do_no_harm(self, folder):
        table = pq.read_table(folder / "references.parquet")
        self.put(folder, table.append_column("camera", pa.array(["x"] * N)))
        assert list(open_index(folder).references.ids) == list(contents()[1].ids)

    def test_no_rows(self, folder):
        self.put(folder, pq.read_table(folder / "references.parquet").slice(0, 0))
        refused(folder)


class TestLeaveOneOutFile:
    def arrays(self, folder):
        with np.load(folder / "leave_one_out.npz") as arrays:
            return dict(arrays)

    def put(self, folder, **arrays):
        np.savez(folder / "leave_one_out.npz", **arrays)
        rewrite(folder)
        refused(folder, "leave_one_out.npz")

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
        with (folder / "leave_one_out.npz").open("wb") as file:
            np.save(file, np.zeros(3))
        rewrite(folder)
        refused(folder, "leave_one_out.npz")

    def test_a_pickle_is_not_run(self, folder):
        class Trap:
            def __reduce__(self):
                return (os.mkdir, (str(folder / "sprung"),))

        self.put(folder, rows=np.array([Trap()], object), ids=np.zeros((1, 1)), similarities=np.zeros((1, 1)))
        assert not (folder / "sprung").exists()

    def test_flipped_bytes_under_a_right_checksum(self, folder):
        # What a file of more than 64 MiB would meet, whose checksum is not looked at when it is opened.
        data = (folder / "leave_one_out.npz").read_bytes()
        outcomes = set()
        rng = np.random.default_rng(0)
        ends = [*range(130), *range(len(data) - 330, len(data))]
        for place in [*ends, *rng.integers(0, len(data), 50).tolist()]:
            changed = bytearray(data)
            changed[place] ^= 0xFF if place % 2 else 0x01
            (folder / "leave_one_out.npz").write_bytes(changed)
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
    path = folder / name
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

    monkeypatch.setattr(bundle, "HASHED_AT_OPEN", 0)
    manifest = manifest_of(folder)
    manifest["files"][name]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert open_index(folder).index.size == N
    with pytest.raises(IndexFolderError, match=name):
        read_index_manifest(folder, verify=True)


def test_the_index_holds_after_its_files_are_gone(folder):
    stored = open_index(folder)
    assert isinstance(stored.index, FaissFlatIndex)
    shutil.rmtree(folder)
    assert stored.index.search(contents()[0][:1], 1).ids.tolist() == [[0]]
