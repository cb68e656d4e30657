from __future__ import annotations

import hashlib
import io
import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import IndexFolderError
from geoinfer.index import References, references_table
from geoinfer.index.array_file import ArrayWriter, open_array
from geoinfer.index.references_table import COLUMNS, TableWriter, Texts, open_table

texts = st.text(max_size=6) | st.sampled_from(["", "é", "🗺", "nul\0l", "\u202e"])


def references_of(rows) -> References:
    nothing = np.zeros((len(rows), 32), np.uint8)
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    return References(columns[0], np.zeros((len(rows), 2)), columns[1], columns[2], nothing, nothing, columns[3])


def written(path, rows, *, at_once=1000, batch=1 << 16):
    with pytest.MonkeyPatch.context() as patch, path.open("wb") as file:
        patch.setattr(references_table, "_BATCH_ROWS", batch)
        writer = TableWriter(file)
        for start in range(0, len(rows), at_once):
            writer.add(references_of(rows[start : start + at_once]))
        writer.finish()
    return path


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(texts, texts, texts, texts), max_size=25),
    at_once=st.integers(1, 26),
    batch=st.integers(1, 26),
    data=st.data(),
)
def test_a_column_is_the_list_that_was_written(tmp_path_factory, rows, at_once, batch, data):
    path = written(tmp_path_factory.mktemp("table") / "t.arrow", rows, at_once=at_once, batch=batch)
    table = open_table(path, checked=True)
    for name, expected in zip(COLUMNS, [list(c) for c in zip(*rows, strict=True)] or [[]] * 4, strict=True):
        column = table[name]
        assert len(column) == len(expected)
        assert list(column) == expected
        assert [column[i] for i in range(-len(rows), len(rows))] == expected * 2
        start, stop = data.draw(st.integers(-30, 30)), data.draw(st.integers(-30, 30) | st.none())
        part = column[start:stop]
        assert isinstance(part, Texts)
        assert list(part) == expected[start:stop]
        assert [part[i] for i in range(len(part))] == expected[start:stop]
        assert list(part[1:3]) == expected[start:stop][1:3]
        for outside in (len(rows), -len(rows) - 1):
            with pytest.raises(IndexError):
                column[outside]
    # Any reader of Arrow sees the same.
    with pa.OSFile(str(path)) as file:
        plain = pa.ipc.open_file(file).read_all()
    assert [tuple(row.values()) for row in plain.to_pylist()] == rows


def test_batches_are_of_one_size(tmp_path):
    rows = [(str(i), "", "", "") for i in range(23)]
    for at_once in (1, 5, 9, 23):
        path = written(tmp_path / f"{at_once}.arrow", rows, at_once=at_once, batch=5)
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [5, 5, 5, 5, 3]
        assert path.read_bytes() == (tmp_path / "1.arrow").read_bytes()


def test_only_consecutive_rows_are_taken(tmp_path):
    column = open_table(written(tmp_path / "t", [("a", "b", "c", "d")] * 3), checked=True)["id"]
    with pytest.raises(ValueError, match="step of 2"):
        column[::2]


def test_a_row_costs_no_more_than_itself(tmp_path):
    """A hundred thousand rows in as many as twenty thousand batches are found by a handful of comparisons."""
    rows = [(str(i), "", "", "") for i in range(100_000)]
    column = open_table(written(tmp_path / "t", rows, at_once=100_000, batch=5), checked=False)["id"]
    looked = []

    class Counting(list):
        def __getitem__(self, place):
            looked.append(place)
            return super().__getitem__(place)

    column._starts = Counting(column._starts)
    assert column[77_777] == "77777"
    assert len(looked) <= 20


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path):
        return written(tmp_path / "t.arrow", [(f"é{i}", "s" * i, "", "q") for i in range(40)], batch=15)

    def read_all(self, path, *, checked):
        for column in open_table(path, checked=checked).values():
            for row in range(len(column)):
                assert isinstance(column[row], str)
            assert all(isinstance(text, str) for text in column)

    @pytest.mark.parametrize("checked", [True, False])
    def test_flipped_bytes_are_refused_or_harmless(self, path, checked):
        # The offsets of a large file are met unchecked: none may lead out of it.
        data = path.read_bytes()
        refused = 0
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 0xFF if place % 3 else 0x81
            path.write_bytes(changed)
            try:
                self.read_all(path, checked=checked)
            except IndexFolderError:
                refused += 1
        assert refused > 100

    @pytest.mark.parametrize("checked", [True, False])
    def test_every_truncation_is_refused(self, path, checked):
        data = path.read_bytes()
        for length in range(0, len(data), 7):
            path.write_bytes(data[:length])
            with pytest.raises(IndexFolderError, match=r"t\.arrow"):
                self.read_all(path, checked=checked)

    def test_what_passes_the_check_can_be_read_and_nothing_else(self, tmp_path):
        data = memoryview("aé🗺b".encode())
        for offsets in itertools.product(range(-1, len(data) + 2), repeat=3):
            column = Texts([(np.array(offsets, np.int32), data)], tmp_path / "t.arrow")
            try:
                good = list(column) == [data[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)]
            except IndexFolderError:
                good = False
            if good:
                column.check()
            else:
                with pytest.raises(IndexFolderError, match=r"t\.arrow: damaged"):
                    column.check()

    def test_missing(self, tmp_path):
        with pytest.raises(IndexFolderError, match="gone"):
            open_table(tmp_path / "gone", checked=False)


class TestArrayFile:
    @pytest.mark.parametrize("expected", [None, 0, 3, 7, 12, 10**12])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.uint8])
    def test_is_what_numpy_writes(self, tmp_path, expected, dtype):
        values = np.arange(84).reshape(7, 12).astype(dtype)
        with (tmp_path / "a.npy").open("w+b") as file:
            writer = ArrayWriter(file, dtype, 12, expected)
            for start in range(0, 7, 3):
                writer.add(values[start : start + 3])
                writer.add(values[:0])
            digest = writer.finish()
        buffer = io.BytesIO()
        np.save(buffer, values)
        assert (tmp_path / "a.npy").read_bytes() == buffer.getvalue()
        assert digest == hashlib.sha256(buffer.getvalue()).hexdigest()
        mapped = open_array(tmp_path / "a.npy", dtype, 12, 7)
        assert mapped.tobytes() == values.tobytes()
        assert type(mapped) is np.ndarray
        assert not mapped.flags.writeable

    def test_converts(self, tmp_path):
        with (tmp_path / "a.npy").open("w+b") as file:
            writer = ArrayWriter(file, np.float16, 2, None)
            writer.add(np.array([[math.pi, 1], [2, 3]], np.float64).T)
            writer.finish()
        assert np.load(tmp_path / "a.npy").tolist() == [[float(np.float16(math.pi)), 2], [1, 3]]
