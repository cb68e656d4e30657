"""Files that are damaged, foreign or of something else: a sentence, and never a crash."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest

from geoinfer.errors import IndexFolderError
from geoinfer.index import search_file
from geoinfer.index.approximate import DEFAULTS
from geoinfer.index.search_file import build_search, open_search

faiss = pytest.importorskip("faiss")

KINDS = tuple(DEFAULTS)
SIZE, DIM = 300, 8


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(np.random.default_rng(0), SIZE, DIM)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rounds, search_file._WORD_ROUNDS = search_file._WORD_ROUNDS, 2
    for kind in KINDS:
        build_search(kind, VECTORS, folder / kind)
    search_file._WORD_ROUNDS = rounds
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
class TestRefused:
    def test_every_other_kind(self, files, kind, tmp_path):
        for other in set(KINDS) - {kind}:
            (tmp_path / "s").write_bytes(files[other])
            with pytest.raises(IndexFolderError, match=f"no FAISS index of kind {kind}"):
                open_search(tmp_path / "s", kind, VECTORS, {})

    def test_other_numbers_than_the_vectors(self, files, kind, tmp_path):
        (tmp_path / "s").write_bytes(files[kind])
        with pytest.raises(IndexFolderError, match="of 300 references of 8 dimensions; expected 299 of 8"):
            open_search(tmp_path / "s", kind, VECTORS[:-1], {})
        with pytest.raises(IndexFolderError, match="of 300 references of 8 dimensions; expected 300 of 7"):
            open_search(tmp_path / "s", kind, np.ascontiguousarray(VECTORS[:, :7]), {})

    def test_a_missing_file(self, kind, tmp_path):
        with pytest.raises(IndexFolderError, match=r"gone\.faiss: cannot be read: no such file"):
            open_search(tmp_path / "gone.faiss", kind, VECTORS, {})

    def test_truncations(self, files, kind, tmp_path):
        data = files[kind]
        for length in {*range(0, 80, 7), *np.linspace(80, len(data) - 1, 40).astype(int).tolist()}:
            (tmp_path / "s").write_bytes(data[:length])
            with pytest.raises(IndexFolderError, match="s: "):
                open_search(tmp_path / "s", kind, VECTORS, {})

    @pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"PK\x03\x04" + b"x" * 5000, b"\xff" * 5000])
    def test_foreign_files(self, kind, tmp_path, content):
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(IndexFolderError, match="s: "):
            open_search(tmp_path / "s", kind, VECTORS, {})


def seal_and_bulk(data):
    """Where the seal begins, and the ranges of bytes that are bulk."""
    _, total, *edges, _ = struct.unpack("<8sq4q32s", data[-80:])
    return total, [(edges[0], edges[1]), (edges[2], edges[3])]


@pytest.mark.parametrize("kind", KINDS)
class TestSeal:
    def test_what_faiss_wrote_alone_is_refused(self, files, kind, tmp_path):
        total, _ = seal_and_bulk(files[kind])
        (tmp_path / "s").write_bytes(files[kind][:total])
        assert faiss.read_index(str(tmp_path / "s")).ntotal == SIZE
        with pytest.raises(IndexFolderError, match="cut short, or not written by geoinfer"):
            open_search(tmp_path / "s", kind, VECTORS, {})

    def test_the_bulk_is_what_grows(self, files, kind):
        total, bulk = seal_and_bulk(files[kind])
        expected = {"sq8": DIM, "ivf": 0, "ivf-pq": 2 + 8, "hnsw": DIM}[kind] * SIZE
        if kind == "hnsw":
            links = bulk.pop(0)
            numbers = np.frombuffer(files[kind][slice(*links)], np.int32)
            assert -1 <= numbers.min() < numbers.max() == SIZE - 1
            assert len(numbers) >= 64 * SIZE
            assert np.frombuffer(files[kind][links[0] - 8 : links[0]], np.int64) == len(numbers)
        assert bulk[0] == (total - expected, total)

    def test_every_flipped_bit_of_the_structure_is_found(self, files, kind, tmp_path):
        data = files[kind]
        total, bulk = seal_and_bulk(data)
        outside = [place for place in range(len(data)) if not any(first <= place < after for first, after in bulk)]
        near = [place for place in outside if place < 120 or place >= total]
        for place in near + outside[:: max(1, len(outside) // 60)]:
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            (tmp_path / "s").write_bytes(changed)
            with pytest.raises(IndexFolderError, match="s: "):
                open_search(tmp_path / "s", kind, VECTORS, {})

    def test_a_file_that_grew_is_refused(self, files, kind, tmp_path):
        for data in (files[kind] + b"x", files[kind][:-80] + b"x" + files[kind][-80:]):
            (tmp_path / "s").write_bytes(data)
            with pytest.raises(IndexFolderError, match="s: "):
                open_search(tmp_path / "s", kind, VECTORS, {})

    def test_damage_of_codes_and_lists_is_survived(self, files, kind, tmp_path):
        data = files[kind]
        bulk = seal_and_bulk(data)[1]
        first, after = bulk[1] if kind == "hnsw" else bulk[0]
        if kind == "ivf":
            assert first == after  # nothing is mapped, so all is checked
            return
        for place in range(first, after, (after - first) // 12):
            changed = bytearray(data)
            changed[place] ^= 0xFF
            (tmp_path / "s").write_bytes(changed)
            opened = open_search(tmp_path / "s", kind, VECTORS, dict.fromkeys(DEFAULTS[kind], 1000))
            with contextlib.suppress(IndexFolderError):
                ids = opened.with_parameters({}).search(VECTORS[:20], 5).ids
                assert ids.min() >= 0
                assert ids.max() < SIZE


def test_ranges_that_make_no_sense(files, tmp_path):
    data = files["ivf-pq"]
    total, bulk = seal_and_bulk(data)
    for edges in ((-5, 4, total, total), (9, 4, total, total), (bulk[0][0], total + 9, total + 9, total + 9)):
        (tmp_path / "s").write_bytes(data[:-80] + struct.pack("<8sq4q32s", b"geoinfer", total, *edges, data[-32:]))
        with pytest.raises(IndexFolderError, match="damaged at its end"):
            open_search(tmp_path / "s", "ivf-pq", VECTORS, {})


def test_references_that_there_are_not(files, tmp_path):
    data = bytearray(files["ivf-pq"])
    after = seal_and_bulk(data)[1][0][1]
    ids = np.frombuffer(bytes(data[after - 8 : after]), np.int64)  # of the last list
    assert 0 <= ids[0] < SIZE
    data[after - 8 : after] = np.int64(10**9).tobytes()
    (tmp_path / "s").write_bytes(data)
    opened = open_search(tmp_path / "s", "ivf-pq", VECTORS, {"nprobe": 1000})
    with pytest.raises(IndexFolderError, match="s: names references that there are not"):
        opened.search(VECTORS, 5)


def test_what_faiss_refuses(files, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise MemoryError("std::bad_alloc")

    (tmp_path / "s").write_bytes(files["ivf"])
    monkeypatch.setattr(faiss, "read_index", fail)
    with pytest.raises(IndexFolderError, match="s: FAISS cannot read it: std::bad_alloc"):
        open_search(tmp_path / "s", "ivf", VECTORS, {})
