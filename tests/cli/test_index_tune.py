from __future__ import annotations

import json

import numpy as np
import pytest

from geoinfer.backends.base import EmbedderIdentity
from geoinfer.errors import EXIT_FAILED_INPUTS, EXIT_USAGE
from geoinfer.images import Preprocessing
from geoinfer.index import LeaveOneOut, References, open_index, read_index_manifest, write_index
from geoinfer.index import tune as tuning

pytest.importorskip("faiss")

DIM, SIZE = 12, 900


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(tuning, "_TIMED_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "_TIMED_QUERIES", 1)
    monkeypatch.setattr(tuning, "_MAX_QUERIES", 120)
    monkeypatch.setattr(tuning, "_REFINES", (1.0, 4.0))


def made(folder, kind="ivf", size=SIZE):
    rng = np.random.default_rng(0)
    references = References(
        ids=[f"r{row}" for row in range(size)],
        coordinates=np.stack([rng.uniform(-80, 80, size), rng.uniform(-179, 179, size)], axis=1),
        sources=[""] * size,
        attributions=[""] * size,
        content_sha256=np.zeros((size, 32), np.uint8),
        perceptual_hashes=np.zeros((size, 32), np.uint8),
    )
    identity = EmbedderIdentity("test@0123", DIM, Preprocessing(size=64))
    write_index(folder, unit(rng, size, DIM), references, identity, kind=kind, calibration=LeaveOneOut.empty())
    return folder


@pytest.fixture
def index(tmp_path):
    return made(tmp_path / "index")


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestStores:
    def test_the_choice_its_recall_and_the_table(self, run, index):
        before = read_index_manifest(index)
        assert before.recall["recall_at"]["10"] > 0.99  # of so few references all lists are looked at by default
        found = run("index", "tune", index, "--target-recall", "0.9")
        assert found.code == 0, found.err
        after = read_index_manifest(index)
        assert set(after.parameters) == {"nprobe", "refine"}
        assert after.recall["queries"] == 60
        assert after.recall["of"] == "references, each left out"
        (chosen,) = [row for row in after.tuning if row["chosen"]]
        assert chosen["parameters"] == after.parameters
        assert chosen["recall_at"]["10"] >= 0.9
        assert chosen["memory_bytes_per_reference"] == pytest.approx(
            before.files["search.faiss"]["bytes"] / SIZE, abs=0.01
        )
        assert open_index(index).index.parameters == after.parameters
        lines = found.out.splitlines()
        assert lines[0].split() == [
            "parameters",
            "recall@1",
            "recall@10",
            "q/s,",
            "1",
            "at",
            "once",
            "q/s,",
            "256",
            "at",
            "once",
        ]
        assert sum(line.startswith("*  nprobe ") for line in lines) == 1
        words = "Nprobe {nprobe:g} refine {refine:g}".format(**after.parameters)
        assert f"{words} is the fastest that reaches recall@10 0.9; stored." in lines
        assert lines[-1].startswith("On 60 other references, each left out of its own answers: recall@1 ")
        assert "trying settings" in found.err

    def test_json(self, run, index):
        found = run("index", "tune", index, "--json", "--quiet", "--target-recall", "0.5")
        values = json.loads(found.out)
        assert (found.code, found.err) == (0, "")
        manifest = read_index_manifest(index)
        assert (values["kind"], values["exact"], values["reached"], values["stored"]) == ("ivf", False, True, True)
        assert values["parameters"] == manifest.parameters
        assert values["tuning"] == manifest.tuning
        assert values["recall"] == manifest.recall

    def test_a_dry_run_stores_nothing(self, run, index):
        before = everything(index)
        found = run("index", "tune", index, "--dry-run", "--target-recall", "0.5")
        assert found.code == 0
        assert "; the index is as it was." in found.out
        assert everything(index) == before

    def test_given_queries(self, run, index, tmp_path):
        np.save(tmp_path / "q.npy", unit(np.random.default_rng(3), 50, DIM).astype(np.float64))
        found = run("index", "tune", index, "--queries", tmp_path / "q.npy", "--target-recall", "0.5")
        assert found.code == 0, found.err
        assert "On 25 other given queries: recall@1 " in found.out
        assert read_index_manifest(index).recall["of"] == "given queries"

    @pytest.mark.parametrize("kind", ["hnsw", "sq8", "ivf-pq"])
    def test_the_other_kinds(self, run, tmp_path, kind):
        folder = made(tmp_path / kind, kind)
        assert run("index", "tune", folder, "--target-recall", "0.5", "--quiet", "--workers", "1").code == 0
        manifest = read_index_manifest(folder)
        assert manifest.tuning
        assert manifest.parameters == open_index(folder).index.parameters


class TestNothingReachesIt:
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        monkeypatch.setattr(tuning, "tried", lambda _index: [[{"nprobe": 20}, {"nprobe": 24}]])

    def test_the_index_stays_as_it_was(self, run, index):
        before = everything(index)
        found = run("index", "tune", index)
        assert found.code == EXIT_FAILED_INPUTS
        assert "nothing reaches recall@10 0.99: the most is 0." in found.err
        assert "by nprobe 24 refine 12; the index is as it was" in found.err
        assert everything(index) == before

    def test_unless_the_best_is_wanted(self, run, index):
        found = run("index", "tune", index, "--best")
        assert found.code == 0
        assert "Nothing reaches recall@10 0.99" in found.out
        assert read_index_manifest(index).parameters == {"nprobe": 24, "refine": 12}


@pytest.mark.parametrize("kind", ["flat", "flat-fp16"])
def test_exact_kinds_have_nothing_to_tune(run, tmp_path, kind):
    folder = made(tmp_path / "index", kind, 20)
    before = everything(folder)
    found = run("index", "tune", folder)
    assert found.code == 0
    assert found.out == f"{folder}: an index of kind {kind} compares a query with every reference: nothing to tune.\n"
    assert json.loads(run("index", "tune", folder, "--json").out) == {"kind": kind, "exact": True}
    assert everything(folder) == before


class TestBadInput:
    @pytest.mark.parametrize("target", ["0", "-1", "1.01", "nan", "99"])
    def test_a_target_that_is_no_share(self, run, index, target):
        found = run("index", "tune", index, "--target-recall", target)
        assert found.code == EXIT_USAGE
        assert "expected a number above 0, at most 1" in found.err

    def test_storing_nothing_and_the_best(self, run, index):
        found = run("index", "tune", index, "--dry-run", "--best")
        assert found.code == EXIT_USAGE
        assert "give one of them" in found.err

    def test_no_index(self, run, tmp_path):
        assert run("index", "tune", tmp_path / "gone").code == EXIT_USAGE

    @pytest.mark.parametrize(
        ("queries", "message"),
        [
            (np.ones((4, 5), np.float32), "embeddings of 5 dimensions; the index has 12"),
            (np.eye(12, dtype=np.float32)[:1], "one query; one half chooses"),
            (np.eye(12, dtype=np.float32) * 2, "row 0 is not of unit length: 2"),
            (np.full((3, 12), np.nan, np.float32), "row 0 is not of unit length: nan"),
            (np.ones(12, np.float32), "expected two dimensions"),
        ],
    )
    def test_queries_that_do_not_fit(self, run, index, tmp_path, queries, message):
        np.save(tmp_path / "q.npy", queries)
        found = run("index", "tune", index, "--queries", tmp_path / "q.npy")
        assert found.code == EXIT_USAGE
        assert message in found.err

    @pytest.mark.parametrize("size", [1, 2])
    def test_too_few_references(self, run, tmp_path, size):
        folder = made(tmp_path / "index", "ivf", size)
        found = run("index", "tune", folder)
        assert found.code == EXIT_USAGE
        assert "references are too few to tune by" in found.err
