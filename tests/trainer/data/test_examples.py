from __future__ import annotations

import json
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import s2sphere
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.errors import ImageError, InputError, OutputError, UsageError
from geoinfer.images import Preprocessing, load_pixels
from trainer.data.archives import list_members
from trainer.data.examples import LEVELS, Examples, make_examples, open_examples, read_manifest

if TYPE_CHECKING:
    from pathlib import Path


def some(n: int = 6) -> Examples:
    return make_examples(
        [f"id{i}" for i in range(n)],
        [b"%d.jpg" % i for i in range(n)],
        [[i - 3.0, 4.0 * i] for i in range(n)],
        sequences=[("b", "", "a", "b", "", "c")[i % 6] for i in range(n)],
        countries=[("NA", "", "DE")[i % 3] for i in range(n)],
        splits=[i % 3 for i in range(n)],
        root=b"/photos",
    )


def zipped(folder: Path, archive: Path, files: list[Path]) -> Examples:
    """The files, every one from the archive."""
    with zipfile.ZipFile(archive, "w") as target:
        for i, file in enumerate(files):
            target.write(file, f"{i:02d}/{file.name}", zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED)
    members = list(list_members(bytes(archive)))
    return make_examples(
        [f"{i}" for i in range(len(files))],
        [member.name for member in members],
        np.zeros((len(files), 2)),
        root=bytes(folder),
        archives=[os.fsencode(archive.name)],
        archive_codes=np.zeros(len(files)),
        spans=[(member.offset_bytes, member.stored_bytes) for member in members],
    )


def in_folder(folder: Path, files: list[Path]) -> Examples:
    paths = [os.fsencode(file.relative_to(folder)) for file in files]
    return make_examples([f"{i}" for i in range(len(files))], paths, np.zeros((len(files), 2)), root=bytes(folder))


def assert_same(a: Examples, b: Examples) -> None:
    assert list(a.ids) == list(b.ids)
    assert list(a.paths) == list(b.paths)
    assert list(a.countries) == list(b.countries)
    assert names_of(a) == names_of(b)
    for name in ("coordinates", "leaf_cells", "splits"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype


def names_of(examples: Examples) -> list[str]:
    return [examples.sequence_names[code] if code >= 0 else "" for code in examples.sequences.tolist()]


def test_columns() -> None:
    examples = some()
    assert len(examples) == 6
    assert (examples.ids[2], examples.ids[-1], list(examples.ids[1:3])) == ("id2", "id5", ["id1", "id2"])
    assert list(examples.countries) == ["NA", "", "DE"] * 2
    assert names_of(examples) == ["b", "", "a", "b", "", "c"]
    assert examples.sequences.tolist() == [0, -1, 1, 0, -1, 2]
    assert examples.path(3) == b"/photos/3.jpg"
    assert list(examples.paths) == [b"/photos/%d.jpg" % i for i in range(6)]
    with pytest.raises(IndexError):
        examples.ids[6]


def test_nothing_can_be_changed() -> None:
    examples = some()
    for column in (examples.coordinates, examples.splits, examples.sequences, examples.take([1, 2]).leaf_cells):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1
    with pytest.raises(AttributeError):
        examples.splits = np.zeros(6, np.int8)


def test_cells_are_those_of_s2() -> None:
    examples = some()
    for level in LEVELS:
        cells = [
            s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(*pair)).parent(level).id()
            for pair in examples.coordinates.tolist()
        ]
        assert examples.cells(level).tolist() == cells
    for level in (2, 15):
        with pytest.raises(UsageError, match="3 to 14"):
            examples.cells(level)


def test_take_and_splits() -> None:
    examples = some()
    taken = examples.take([4, 0, 4])
    assert list(taken.ids) == ["id4", "id0", "id4"]
    assert names_of(taken) == ["", "b", ""]
    assert list(examples.take(examples.splits == 1).ids) == ["id1", "id4"]
    assert list(examples.of_split("validation").ids) == ["id1", "id4"]
    assert list(examples.of_split("test").ids) == ["id2", "id5"]
    assert len(examples.take([])) == 0
    assert list(examples.with_splits([2] * 6).of_split("test").ids) == list(examples.ids)
    assert examples.splits[0] == 0
    with pytest.raises(UsageError, match="train, validation, test"):
        examples.of_split("val")


@given(small=st.integers(0, 40), large=st.integers(0, 40), seed=st.integers(0, 50), data=st.data())
def test_subsets_are_nested_and_do_not_depend_on_the_order(
    small: int, large: int, seed: int, data: st.DataObject
) -> None:
    small, large = sorted((small, large))
    examples = some(30)
    few, many = examples.subset(small, seed), examples.subset(large, seed)
    assert (len(few), len(many)) == (min(small, 30), min(large, 30))
    assert set(few.ids) <= set(many.ids)
    assert list(few.ids) == [name for name in examples.ids if name in set(few.ids)]
    order = data.draw(st.permutations(range(30)))
    assert set(examples.take(order).subset(small, seed).ids) == set(few.ids)


def test_subsets_of_other_seeds_are_others_and_all_are_as_likely() -> None:
    examples = some(40)
    times = np.zeros(40)
    for seed in range(400):
        times[[int(name[2:]) for name in examples.subset(10, seed).ids]] += 1
    assert times.min() > 60  # 100 on average, 8.7 the standard deviation
    assert times.max() < 140
    with pytest.raises(UsageError):
        examples.subset(-1)


@pytest.mark.parametrize("size", [224, 64])
def test_pixels_are_geoinfers_own(
    tmp_path: Path, shared_photos: Path, shared_formats: Path, shared_exif: Path, size: int
) -> None:
    photos = sorted(shared_photos.rglob("*.jpg"))[:: 4 if size == 64 else 12]
    others = [file for folder in (shared_formats, shared_exif) for file in sorted(folder.rglob("*")) if file.is_file()]
    preprocessing = Preprocessing(size=size)
    outcomes = []
    for files, top in ((photos, shared_photos), (others, shared_formats.parent)):
        plain = in_folder(top, files)
        packed = zipped(tmp_path, tmp_path / f"{top.name}.zip", files)

        def outcome(examples: Examples, row: int) -> object:
            try:
                return examples.load_pixels(row, preprocessing)
            except ImageError as error:
                return error.stage, error.code

        for row, file in enumerate(files):
            try:
                expected: object = load_pixels(bytes(file), preprocessing)
            except ImageError as error:
                expected = error.stage, error.code
            for examples in (plain, packed):
                assert np.array_equal(outcome(examples, row), expected), file
            outcomes.append(expected)
    assert sum(isinstance(outcome, np.ndarray) for outcome in outcomes) > 60
    assert sum(isinstance(outcome, tuple) for outcome in outcomes) >= 1  # not all are photos


def test_bytes_of_files_and_members(tmp_path: Path, example_photos: Path) -> None:
    files = sorted(example_photos.rglob("*.jpg"))
    plain, packed = in_folder(example_photos, files), zipped(tmp_path, tmp_path / "a.zip", files)
    assert packed.path(0) == bytes(tmp_path / "a.zip") + b"/00/" + os.fsencode(files[0].name)
    order = list(range(len(files))) * 20
    with ThreadPoolExecutor(8) as pool:
        for examples in (plain, packed, packed.take(order[: len(files)]), pickle.loads(pickle.dumps(packed))):
            assert list(pool.map(examples.read_bytes, order)) == [files[row].read_bytes() for row in order]


def test_bytes_that_are_no_photo_have_the_codes_of_files(tmp_path: Path) -> None:
    contents = {"empty.jpg": b"", "text.jpg": b"hello there", "page.jpg": b"<!doctype html><p>404", "raw.cr2": b"II*\0"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    files = [tmp_path / name for name in contents]
    codes = []
    for examples in (in_folder(tmp_path, files), zipped(tmp_path, tmp_path / "a.zip", files)):
        for row in range(4):
            with pytest.raises(ImageError) as caught:
                examples.load_pixels(row, Preprocessing())
            codes.append((caught.value.stage, caught.value.code, caught.value.status))
    assert codes[:4] == codes[4:]
    assert [code for _, code, _ in codes[:4]] == ["empty_file", "not_an_image", "wrong_type", "camera_raw"]
    gone = make_examples(["a"], [b"gone.jpg"], [[0, 0]], root=bytes(tmp_path))
    with pytest.raises(ImageError) as caught:
        gone.read_bytes(0)
    assert (caught.value.stage, caught.value.code) == ("read", "missing")


def test_what_is_written_is_opened_again(tmp_path: Path) -> None:
    examples = some()
    examples.write(tmp_path / "set", {"source": "here", "split": {"policy": "random", "seed": 3}})
    assert_same(open_examples(tmp_path / "set"), examples)
    manifest = read_manifest(tmp_path / "set")
    assert manifest["splits"] == {"train": 2, "validation": 2, "test": 2}
    assert (manifest["count"], manifest["source"], manifest["split"]["seed"]) == (6, "here", 3)
    table = pq.read_table(tmp_path / "set" / "examples.parquet")
    assert table.column_names[:2] == ["id", "path"]
    assert table["country"].to_pylist() == ["NA", "", "DE"] * 2
    assert table["sequence"].to_pylist() == ["b", None, "a", "b", None, "c"]
    for level in LEVELS:
        assert table[f"s2_{level:02d}"].to_pylist() == examples.cells(level).tolist()
    assert table["s2_leaf"].to_pylist() == examples.leaf_cells.tolist()
    # Written over, and written from what was opened, it is the same.
    open_examples(tmp_path / "set").write(tmp_path / "set", {"source": "here"})
    assert_same(open_examples(tmp_path / "set"), examples)


def test_archives_and_odd_names_survive(tmp_path: Path, example_photos: Path) -> None:
    files = sorted(example_photos.rglob("*.jpg"))
    packed = zipped(tmp_path, tmp_path / "a.zip", files)
    packed.write(tmp_path / "set")
    again = open_examples(tmp_path / "set")
    assert_same(again, packed)
    assert [again.read_bytes(row) for row in range(len(files))] == [file.read_bytes() for file in files]
    odd = make_examples(["日本", ""], [b"caf\xe9.jpg", "日本.jpg".encode()], [[90, 180], [-90, -180]])
    odd.write(tmp_path / "odd")
    assert_same(open_examples(tmp_path / "odd"), odd)


def test_mixed_files_and_members(tmp_path: Path, example_photos: Path) -> None:
    files = sorted(example_photos.rglob("*.jpg"))[:2]
    packed = zipped(tmp_path, tmp_path / "a.zip", files)
    mixed = make_examples(
        ["in", "out"], [packed.members[0], bytes(files[1])], np.zeros((2, 2)),
        root=bytes(tmp_path), archives=[b"a.zip"], archive_codes=[0, -1], spans=[packed.spans[0], (-1, -1)],
    )  # fmt: skip
    mixed.write(tmp_path / "set")
    for examples in (mixed, open_examples(tmp_path / "set"), mixed.take([1, 0]).take([1, 0])):
        assert [examples.read_bytes(row) for row in (0, 1)] == [file.read_bytes() for file in files]


def test_an_empty_set(tmp_path: Path) -> None:
    empty = some().take([])
    empty.write(tmp_path / "set")
    assert len(open_examples(tmp_path / "set")) == 0
    assert len(empty.cells(5)) == len(empty.subset(3)) == 0


def test_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.examples._ROWS_AT_ONCE", 7)
    examples = some(40)
    examples.write(tmp_path / "set")
    assert_same(open_examples(tmp_path / "set"), examples)
    assert examples.subset(20, 1).ids[:] is not None
    few = list(examples.subset(20, 1).ids)
    monkeypatch.undo()
    assert list(examples.subset(20, 1).ids) == few


def test_broken_and_foreign_folders(tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(InputError) as caught:
            open_examples(folder)
        assert caught.value.hint
        return str(caught.value)

    assert "no such folder" in message(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "not a prepared set" in message(tmp_path / "empty")
    folder = tmp_path / "set"
    some().write(folder)
    manifest, table = (folder / "manifest.json").read_text(), (folder / "examples.parquet").read_bytes()
    (folder / "examples.parquet").write_bytes(table[:-1])
    assert "not the file" in message(folder)
    (folder / "examples.parquet").unlink()
    assert "examples.parquet is missing" in message(folder)
    (folder / "examples.parquet").write_bytes(table)
    for broken, words in (
        ("{", "not JSON"),
        ("[]", "something else"),
        ('{"format": "geoinfer-index"}', "something else"),
        (json.dumps({**json.loads(manifest), "version": 2}), "version 2"),
        (json.dumps({**json.loads(manifest), "root": 1}), "missing"),
    ):
        (folder / "manifest.json").write_text(broken)
        assert words in message(folder)
    (folder / "manifest.json").unlink()
    assert "cut short" in message(folder)
    some().write(folder)  # which mends it
    assert len(open_examples(folder)) == 6


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        some().write(tmp_path)
    with pytest.raises(OutputError, match="not a folder"):
        some().write(tmp_path / "thesis.tex")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_a_clear_error_and_no_half_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    some().write(tmp_path / "set")
    monkeypatch.setattr("trainer.data.examples.write_json", full)
    with pytest.raises(OutputError, match="no space left"):
        some().write(tmp_path / "set")
    with pytest.raises(InputError, match="cut short"):
        open_examples(tmp_path / "set")


def test_columns_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match="length"):
        make_examples(["a"], [b"a", b"b"], [[0, 0], [1, 1]])
    with pytest.raises(ValueError, match="latitude"):
        make_examples(["a"], [b"a"], [[91, 0]])


def test_what_a_killed_writer_left_does_not_stop_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / ".examples.parquet.geoinfer-tmp").write_bytes(b"half a table")
    make_examples(["a"], [b"a.jpg"], [[1.0, 2.0]]).write(folder)
    assert list(open_examples(folder).ids) == ["a"]
    (folder / "manifest.json").unlink()
    (folder / "examples.parquet").unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt and is no prepared set"):
        make_examples(["a"], [b"a.jpg"], [[1.0, 2.0]]).write(folder)
