from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geoinfer.backends.base import EmbedderIdentity
from geoinfer.bundle import write_bundle_manifest
from geoinfer.errors import IndexFolderError, MissingPackageError, OutputError
from geoinfer.images import Preprocessing
from geoinfer.index import (
    Answer,
    IndexWriter,
    LeaveOneOut,
    References,
    exchange,
    open_index,
    read_index_manifest,
    recover_index,
    references_table,
    update_index,
    write_index,
    writer,
)
from geoinfer.unfinished import undo_unfinished

N, DIM = 40, 8
EMBEDDER = EmbedderIdentity("test@0123", DIM, Preprocessing(size=64))


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def contents(n=N, seed=0):
    """(vectors, references)"""
    rng = np.random.default_rng(seed)
    return unit(rng, n, DIM), References(
        ids=[f"東京 {seed} {i}.jpg" for i in range(n)],
        coordinates=np.stack([rng.uniform(-90, 90, n), rng.uniform(-180, 180, n)], axis=1),
        sources=["" if i % 3 else "Wikimedia Commons – ©" for i in range(n)],
        attributions=[f"by {i % 4}" for i in range(n)],
        content_sha256=rng.integers(0, 256, (n, 32), dtype=np.uint8),
        perceptual_hashes=rng.integers(0, 256, (n, 32), dtype=np.uint8),
        sequences=["walk" if i % 5 else "" for i in range(n)],
    )


def shards(vectors, references, cuts):
    bounds = [0, *sorted(cuts), len(vectors)]
    return [(vectors[a:b], references.part(a, b)) for a, b in itertools.pairwise(bounds)]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def file_size_limit(limit: int):
    """The system itself refuses to write past `limit` bytes of a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestShards:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        n=st.integers(1, 30),
        cuts=st.lists(st.integers(0, 30), max_size=5),
        rows=st.one_of(st.none(), st.integers(0, 40)),
        kind=st.sampled_from(["flat", "flat-fp16"]),
        batch=st.integers(1, 40),
    )
    def test_however_they_are_cut_the_bytes_are_the_same(self, tmp_path_factory, n, cuts, rows, kind, batch):
        folder = tmp_path_factory.mktemp("shards")
        vectors, references = contents(n)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(references_table, "_BATCH_ROWS", batch)
            whole = write_index(folder / "whole", vectors, references, EMBEDDER, kind=kind)
            with IndexWriter(folder / "cut", EMBEDDER, kind=kind, rows=rows) as into:
                for shard in shards(vectors, references, [min(cut, n) for cut in cuts]):
                    into.add(*shard)
                cut = into.finish()
        assert cut == whole
        assert bytes_of(folder / "cut") == bytes_of(folder / "whole")
        read_index_manifest(folder / "cut", verify=True)
        stored = open_index(folder / "cut")
        dtype = np.float32 if kind == "flat" else np.float16
        assert np.load(folder / "cut" / "vectors.npy").tobytes() == vectors.astype(dtype).tobytes()
        assert list(stored.references.ids) == list(references.ids)
        assert list(stored.references.sequences) == list(references.sequences)
        assert stored.references.coordinates.tobytes() == references.coordinates.tobytes()
        assert (stored.references.content_sha256 == references.content_sha256).all()
        assert (stored.references.perceptual_hashes == references.perceptual_hashes).all()

    def test_the_vectors_begin_where_processors_like_them_to(self, tmp_path):
        write_index(tmp_path / "i", *contents(), EMBEDDER)
        assert (tmp_path / "i" / "vectors.npy").stat().st_size - N * DIM * 4 == 128

    def test_what_is_mapped_can_be_written_again(self, tmp_path):
        write_index(tmp_path / "a", *contents(), EMBEDDER)
        stored = open_index(tmp_path / "a")
        with IndexWriter(tmp_path / "b", EMBEDDER) as into:
            for start in range(0, N, 7):
                into.add(stored.index.vectors[start : start + 7], stored.references.part(start, start + 7))
            into.finish()
        assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")

    def test_without_finish_nothing_appears(self, tmp_path):
        with IndexWriter(tmp_path / "i", EMBEDDER) as into:
            into.add(*contents())
        assert os.listdir(tmp_path) == []

    def test_steps_are_told(self, tmp_path):
        steps = []
        with IndexWriter(tmp_path / "i", EMBEDDER, on_step=lambda step, share: steps.append((step, share))) as into:
            into.add(*contents())
            into.finish()
        assert steps == [("calibrating", 0.0), ("calibrating", 1.0)]

    def test_a_signal_that_ends_the_process_leaves_nothing(self, tmp_path):
        with IndexWriter(tmp_path / "i", EMBEDDER) as into:
            into.add(*contents())
            assert os.listdir(tmp_path) == [".i.new"]
            undo_unfinished()
            assert os.listdir(tmp_path) == []

    def test_a_lone_float64_is_taken(self, tmp_path):
        vectors, references = contents()
        write_index(tmp_path / "i", vectors.astype(np.float64), references, EMBEDDER)
        assert open_index(tmp_path / "i").index.vectors.tobytes() == vectors.tobytes()


class TestWhatMakesNoIndex:
    def refused(self, tmp_path, match, vectors=None, first=0, **changes):
        good, references = contents()
        into = IndexWriter(tmp_path / "i", EMBEDDER)
        with into, pytest.raises(ValueError, match=match):
            if first:
                into.add(*contents(first, seed=9))
            into.add(good if vectors is None else vectors, replace(references, **changes))
            into.finish()
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("first", [0, 10])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (math.nan, "has a value that is not finite"), (math.inf, "has a value that is not finite"),
            (0, "is all zeros"), (0.1, r"has length 0\.\d+; expected 1"), (3, r"has length 8\.48\d?; expected 1"),
        ],
    )  # fmt: skip
    def test_a_row(self, tmp_path, first, dtype, value, words):
        vectors, _ = contents()
        vectors[7:9] = value
        self.refused(tmp_path, f"^embedding {7 + first} {words}", vectors.astype(dtype), first)

    @pytest.mark.parametrize("length", [0.995, 1.005])
    def test_what_float16_graphs_make_is_taken(self, tmp_path, length):
        vectors, references = contents()
        write_index(tmp_path / "i", vectors * np.float32(length), references, EMBEDDER)

    def test_lengths(self, tmp_path):
        vectors, references = contents()
        self.refused(tmp_path, "39 embeddings for 40 references", vectors[1:])
        self.refused(tmp_path, "40 embeddings for 39 references", coordinates=references.coordinates[1:])
        for name in ("ids", "sources", "attributions", "sequences"):
            self.refused(tmp_path, "39 values of", **{name: ["x"] * 39})
        for name in ("content_sha256", "perceptual_hashes"):
            for wrong in (np.zeros((39, 32), np.uint8), np.zeros((40, 31), np.uint8), np.zeros((40, 32), np.int8)):
                self.refused(tmp_path, f"{name} is ", **{name: wrong})

    @pytest.mark.parametrize(
        "vectors",
        [np.ones((N, DIM + 1)), np.ones(N), np.ones((N, 2, 4)), np.ones((N, DIM), int), np.full((N, DIM), "a")],
    )
    def test_shapes(self, tmp_path, vectors):
        self.refused(tmp_path, "embeddings ", vectors)

    @pytest.mark.parametrize("text", ["\udcff", None, 3])
    @pytest.mark.parametrize("name", ["ids", "sources", "attributions", "sequences"])
    def test_texts(self, tmp_path, name, text):
        self.refused(tmp_path, "cannot be written|expected a text", **{name: [text, *["x"] * 39]})

    @pytest.mark.parametrize("place", [(90.1, 0), (0, 180.5), (math.nan, 0)])
    def test_coordinates(self, tmp_path, place):
        self.refused(tmp_path, "coordinates row 0", coordinates=np.array([place, *[(0, 0)] * 39], float))

    def test_nothing(self, tmp_path):
        with IndexWriter(tmp_path / "i", EMBEDDER) as into, pytest.raises(ValueError, match="nothing to index"):
            into.add(*contents(0))
            into.finish()
        assert os.listdir(tmp_path) == []

    def test_the_same_id_twice(self, tmp_path):
        ids = [f"{i}.jpg" for i in range(N)]
        ids[31] = ids[4]
        self.refused(tmp_path, "references 4 and 31 have the same id, '4.jpg'", ids=ids)

    def test_the_same_id_in_two_shards(self, tmp_path):
        with IndexWriter(tmp_path / "i", EMBEDDER) as into, pytest.raises(ValueError, match="references 0 and 40 have"):
            into.add(*contents())
            into.add(*contents())
            into.finish()

    def test_a_bad_shard_may_be_mended(self, tmp_path):
        vectors, references = contents()
        with IndexWriter(tmp_path / "i", EMBEDDER) as into:
            for changes in ({"attributions": [None] * N}, {"sequences": ["\udcff"] * N}, {"ids": ["x"]}):
                with pytest.raises(ValueError, match=r"reference's|values of"):
                    into.add(vectors, replace(references, **changes))
            with pytest.raises(ValueError, match="embedding 0 is all zeros"):
                into.add(vectors * 0, references)
            into.add(vectors, references)
            into.finish()
        write_index(tmp_path / "plain", vectors, references, EMBEDDER)
        assert bytes_of(tmp_path / "i") == bytes_of(tmp_path / "plain")


def test_hashes_that_collide_are_no_duplicates(monkeypatch):
    monkeypatch.setattr(writer, "hash", lambda name: len(name), raising=False)
    assert writer.first_duplicate(["a", "b", "cc", "d", "ee", "cc"]) == (2, 5)
    assert writer.first_duplicate(["a", "b", "cc", "d", "ee"]) is None
    assert writer.first_duplicate([]) is None


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize("limit", [10, 1000, 3000, 6400, 12900, 20000])
    def test_a_disk_that_fills_up(self, tmp_path, limit):
        with file_size_limit(limit), pytest.raises(OutputError, match=r"index: the index cannot be written: \w+"):
            write_index(tmp_path / "index", *contents(200), EMBEDDER)
        assert os.listdir(tmp_path) == []

    def test_the_limits_above_hit_every_file(self, tmp_path):
        write_index(tmp_path / "index", *contents(200), EMBEDDER)
        sizes = sorted(path.stat().st_size for path in (tmp_path / "index").iterdir())
        for limit in (1000, 3000, 6400, 12900, 20000):
            assert sizes[-1] > limit
        assert sizes[0] > 1000

    @pytest.mark.parametrize("parent", ["file/index", "x" * 300, "y" * 252, "/proc/index"])
    def test_where_nothing_can_be_written(self, tmp_path, parent):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OutputError, match="cannot be written"):
            write_index(tmp_path / parent, *contents(), EMBEDDER)
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize(
        "fault", [OSError(5, "Input/output error"), OSError(), RuntimeError(), KeyboardInterrupt()]
    )
    @pytest.mark.parametrize("step", ["leave_one_out", "write_json", "sync_folder", "put_in_place"])
    def test_a_fault_at_any_step(self, tmp_path, monkeypatch, step, fault):
        def fail(*_args, **_kwargs):
            assert (tmp_path / ".index.new").is_dir()
            assert not (tmp_path / "index").exists()
            raise fault

        monkeypatch.setattr(writer, step, fail)
        with pytest.raises(KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else OutputError):
            write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert os.listdir(tmp_path) == []

    def test_what_a_killed_run_left_is_no_hindrance(self, tmp_path):
        (tmp_path / ".index.new").mkdir()
        (tmp_path / ".index.new" / "vectors.npy").write_bytes(b"half")
        write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert os.listdir(tmp_path) == ["index"]
        assert len(os.listdir(tmp_path / "index")) == 6

    def test_a_folder_of_somebody_elses_is_not_taken_for_one(self, tmp_path):
        (tmp_path / ".index.new").mkdir()
        (tmp_path / ".index.new" / "thesis.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"\.index\.new: holds thesis\.txt"):
            write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert (tmp_path / ".index.new" / "thesis.txt").read_text() == "mine"
        assert os.listdir(tmp_path) == [".index.new"]

    def test_nor_is_a_file(self, tmp_path):
        (tmp_path / ".index.new").write_text("mine")
        with pytest.raises(OutputError, match="cannot be written"):
            write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert (tmp_path / ".index.new").read_text() == "mine"

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

    @pytest.mark.parametrize("fault", [OSError(24, "Too many open files"), KeyboardInterrupt()])
    def test_a_fault_before_the_first_shard(self, tmp_path, monkeypatch, fault):
        def fail(*_args):
            assert (tmp_path / ".index.new").is_dir()
            raise fault

        monkeypatch.setattr(writer, "ArrayWriter", fail)
        with pytest.raises(KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else OutputError):
            write_index(tmp_path / "index", *contents(), EMBEDDER)
        assert os.listdir(tmp_path) == []
        undo_unfinished()

    def test_without_faiss_nothing_is_begun(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(MissingPackageError), IndexWriter(tmp_path / "i", EMBEDDER):
            pytest.fail("embedded in vain")
        assert os.listdir(tmp_path) == []

    def test_missing_parents_are_made(self, tmp_path):
        write_index(tmp_path / "a" / "b" / "index", *contents(), EMBEDDER)
        assert open_index(tmp_path / "a" / "b" / "index").index.size == N


@pytest.fixture
def old(tmp_path):
    """An index that is to be replaced, and the digest of its contents."""
    write_index(tmp_path / "index", *contents(seed=1), EMBEDDER)
    return tmp_path / "index"


def write_new(folder, **options):
    with IndexWriter(folder, EMBEDDER, overwrite=True, **options) as into:
        into.add(*contents(60, seed=2))
        return into.finish()


class TestOverwriting:
    def test_the_new_one_takes_the_place(self, old):
        write_new(old)
        assert len(open_index(old).references) == 60
        assert os.listdir(old.parent) == ["index"]

    def test_where_nothing_is(self, tmp_path):
        write_new(tmp_path / "a" / "index")
        assert len(open_index(tmp_path / "a" / "index").references) == 60

    def test_who_has_it_open_keeps_it(self, old):
        stored = open_index(old)
        write_new(old)
        assert stored.index.search(contents(seed=1)[0][:1], 1).ids.tolist() == [[0]]
        assert list(stored.references.ids) == list(contents(seed=1)[1].ids)

    @pytest.mark.parametrize("limit", [10, 1000, 3000])
    def test_a_disk_that_fills_up_leaves_the_old_one(self, old, limit):
        before = bytes_of(old)
        with file_size_limit(limit), pytest.raises(OutputError, match="the index cannot be written") as caught:
            write_new(old)
        assert "as it was" in caught.value.hint
        assert bytes_of(old) == before
        assert os.listdir(old.parent) == ["index"]

    @pytest.mark.parametrize("what", ["empty", "file", "other", "bundle"])
    def test_what_is_no_index_stays(self, tmp_path, what):
        path = tmp_path / "index"
        if what == "file":
            path.write_text("mine")
        else:
            path.mkdir()
        if what == "other":
            (path / "manifest.json").write_text(json.dumps({"format": "mine"}))
        elif what == "bundle":
            write_bundle_manifest(path, name="x", description="", notice="", licences={})
        with pytest.raises(OutputError, match="exists and is not an index"):
            write_new(path)
        assert os.listdir(tmp_path) == ["index"]

    def test_files_of_somebody_elses_in_it_are_not_lost(self, old):
        (old / "thesis.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"holds thesis\.txt, which is no part of an index"):
            write_new(old)
        assert (old / "thesis.txt").read_text() == "mine"

    def test_an_index_of_the_former_version_is_replaced(self, tmp_path):
        (tmp_path / "index").mkdir()
        for name in ("vectors.faiss", "references.parquet", "leave_one_out.npz"):
            (tmp_path / "index" / name).write_bytes(b"x")
        (tmp_path / "index" / "manifest.json").write_text(json.dumps({"format": "geoinfer-index", "version": 1}))
        write_new(tmp_path / "index")
        assert len(open_index(tmp_path / "index").references) == 60

    def test_a_link_stays_a_link(self, old):
        link = old.parent / "link"
        link.symlink_to(old)
        write_new(link)
        assert link.is_symlink()
        assert len(open_index(old).references) == 60
        assert sorted(os.listdir(old.parent)) == ["index", "link"]

    def test_a_folder_whose_name_is_not_utf8(self, tmp_path):
        try:
            folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
            folder.mkdir()
        except OSError:
            pytest.skip("this file system takes only UTF-8")
        for kind in ("flat", "flat-fp16"):
            write_new(folder / "i", kind=kind)
            assert len(open_index(folder / "i").references) == 60
        update_index(folder / "i", answer=Answer(3, "mean"), calibration=LeaveOneOut.empty())
        assert open_index(folder / "i").references.ids[59].endswith("59.jpg")


class Killed(BaseException):
    """Stands for SIGKILL: nothing runs after it."""


@contextmanager
def killed_at(step: int | None):
    """The process dies before its `step`-th change of the disk: that one and all after it are not done.

    Yields a list that ends up as long as there were changes.
    """
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:

        def wrap(module, name):
            real = getattr(module, name)

            def call(*args, **kwargs):
                if step is not None and len(done) >= step:
                    raise Killed
                done.append(name)
                return real(*args, **kwargs)

            patch.setattr(module, name, call)

        for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir"):
            wrap(os, name)
        wrap(shutil, "rmtree")
        yield done


def state(folder: Path) -> dict[str, bytes]:
    """What a reader finds, which may have to mend it, verified."""
    read_index_manifest(folder, verify=True)
    open_index(folder)
    return bytes_of(folder)


class TestKills:
    def every_kill(self, folder, change):
        """Kills `change` before each of its steps; returns the two states and how often each was found."""
        keep = folder.with_name("keep")
        shutil.copytree(folder, keep)
        before = bytes_of(folder)
        with killed_at(None) as done:
            change()
        after = bytes_of(folder)
        assert before != after
        found = []
        for step in range(len(done)):
            for name in os.listdir(folder.parent):
                if name != "keep":
                    shutil.rmtree(folder.parent / name, ignore_errors=True)
                    (folder.parent / name).unlink(missing_ok=True) if (folder.parent / name).is_file() else None
            shutil.copytree(keep, folder)
            with pytest.raises(Killed), killed_at(step):
                change()
            now = state(folder)
            names = set(now) - set(before) - set(after)
            assert all("geoinfer-tmp" in name for name in names)
            whole = {name: data for name, data in now.items() if name in json.loads(now["manifest.json"])["files"]}
            versions = [{name: v[name] for name in json.loads(v["manifest.json"])["files"]} for v in (before, after)]
            assert whole in versions
            found.append(versions.index(whole))
            # And the same again, killed no more, comes to its end and leaves nothing.
            change()
            assert bytes_of(folder) == after
            assert sorted(os.listdir(folder.parent)) == ["index", "keep"]
        return found

    def test_while_an_index_is_replaced(self, old):
        found = self.every_kill(old, lambda: write_new(old))
        # First the old one, and from some step on the new one.
        assert found == sorted(found)
        assert set(found) == {0, 1}

    def test_while_an_index_is_changed(self, old):
        def change():
            update_index(old, answer=Answer(3, "mean"), calibration=LeaveOneOut.empty())

        found = self.every_kill(old, change)
        assert found == sorted(found)
        assert set(found) == {0, 1}

    def test_while_a_first_index_is_written(self, tmp_path):
        folder = tmp_path / "index"
        with killed_at(None) as done:
            write_index(folder, *contents(), EMBEDDER)
        after = bytes_of(folder)
        for step in range(len(done)):
            shutil.rmtree(folder, ignore_errors=True)
            with pytest.raises(Killed), killed_at(step):
                write_index(folder, *contents(), EMBEDDER)
            assert not folder.exists() or bytes_of(folder) == after
            if not folder.exists():
                write_index(folder, *contents(), EMBEDDER)
            assert bytes_of(folder) == after
            assert os.listdir(tmp_path) == ["index"]


class TestRecovery:
    def test_between_the_renames_the_new_one_is_completed(self, old):
        shutil.copytree(old, exchange.replaced_folder(old))
        write_new(old)
        expected = bytes_of(old)
        shutil.copytree(old, exchange.replaced_folder(old), dirs_exist_ok=True)
        old.rename(exchange.new_folder(old))
        assert len(open_index(old).references) == 60
        assert bytes_of(old) == expected
        assert os.listdir(old.parent) == ["index"]

    def test_without_a_new_one_the_old_one_comes_back(self, old):
        old.rename(exchange.replaced_folder(old))
        exchange.new_folder(old).mkdir()
        assert len(open_index(old).references) == N

    def test_what_has_the_name_by_chance_stays(self, old):
        theirs = exchange.replaced_folder(old)
        theirs.mkdir()
        (theirs / "thesis.txt").write_text("mine")
        recover_index(old)
        shutil.rmtree(old)
        recover_index(old)
        assert not old.exists()
        assert (theirs / "thesis.txt").read_text() == "mine"

    def test_nothing_is_mended_while_another_process_writes(self, old):
        old.rename(exchange.replaced_folder(old))
        with exchange.index_lock(old):
            assert not exchange.recover_unattended(old)
        assert exchange.recover_unattended(old)

    def test_an_exchange_that_fails_puts_the_old_one_back(self, old, monkeypatch):
        before, real, calls = bytes_of(old), os.replace, []

        def fail_once(source, target):
            if Path(target) == old and not calls:
                calls.append(source)
                raise OSError(16, "Device or resource busy")
            real(source, target)

        monkeypatch.setattr(os, "replace", fail_once)
        with pytest.raises(OutputError, match="Device or resource busy"):
            write_new(old)
        assert calls
        assert bytes_of(old) == before
        assert os.listdir(old.parent) == ["index"]


class TestKindsThatAreSearchedByAFile:
    KINDS = ("sq8", "hnsw", "ivf", "ivf-pq")

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_written(self, tmp_path, kind):
        vectors, references = contents(300)
        steps = set()
        with IndexWriter(tmp_path / "i", EMBEDDER, kind=kind, on_step=lambda step, _: steps.add(step)) as into:
            into.add(vectors, references)
            manifest = into.finish()
        assert "search.faiss" in manifest.files
        assert {"adding", "calibrating", "measuring recall"} <= steps
        assert manifest.recall["recall_at"]
        assert read_index_manifest(tmp_path / "i", verify=True).parameters == manifest.parameters
        stored = open_index(tmp_path / "i")
        assert stored.index.kind == kind
        assert stored.index.vectors.dtype == (np.float32 if kind in ("hnsw", "ivf") else np.float16)
        assert (stored.index.search(vectors[:40], 1).ids[:, 0] == np.arange(40)).mean() > 0.9
        held_out = stored.leave_one_out
        assert (held_out.ids != held_out.rows[:, None]).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_an_earlier_one_learned_is_kept(self, tmp_path, kind):
        vectors, references = contents(300)
        write_index(tmp_path / "old", vectors[:200], references.part(0, 200), EMBEDDER, kind=kind)
        update_index(tmp_path / "old", parameters=read_index_manifest(tmp_path / "old").parameters)
        with IndexWriter(tmp_path / "old", EMBEDDER, kind=kind, overwrite=True) as into:
            into.add(vectors, references)
            manifest = into.finish(search_from=tmp_path / "old")
        assert manifest.size == 300
        assert os.listdir(tmp_path) == ["old"]
        found = open_index(tmp_path / "old").index.search(vectors[200:], 1).ids[:, 0]
        assert (found == np.arange(200, 300)).mean() > 0.9

    @pytest.mark.parametrize("fault", ["other vectors", "another kind", "more"])
    def test_what_is_no_beginning(self, tmp_path, fault):
        vectors, references = contents(300)
        first = contents(200, seed=5) if fault == "other vectors" else (vectors[:200], references.part(0, 200))
        write_index(tmp_path / "old", *first, EMBEDDER, kind="ivf" if fault == "another kind" else "sq8")
        keep = 150 if fault == "more" else 300
        with (
            IndexWriter(tmp_path / "new", EMBEDDER, kind="sq8") as into,
            pytest.raises(ValueError, match="search_from"),
        ):
            into.add(vectors[:keep], references.part(0, keep))
            into.finish(search_from=tmp_path / "old")
        assert os.listdir(tmp_path) == ["old"]

    @pytest.mark.parametrize("keep", [0, 1, 100, -1])
    def test_a_file_cut_short(self, tmp_path, keep):
        write_index(tmp_path / "i", *contents(300), EMBEDDER, kind="sq8")
        data = (tmp_path / "i" / "search.faiss").read_bytes()
        (tmp_path / "i" / "search.faiss").write_bytes(data[:keep])
        with pytest.raises(IndexFolderError, match=r"search\.faiss"):
            open_index(tmp_path / "i")
