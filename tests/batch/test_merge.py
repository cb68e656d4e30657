"""Merged indexes against one build of everything."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geoinfer.answer import Answer
from geoinfer.backends.base import EmbedderIdentity
from geoinfer.batch import add, merge
from geoinfer.batch.merge import MergeOptions, run_merge
from geoinfer.errors import IndexFolderError, InputError, InterruptedRunError, MismatchError, OutputError, UsageError
from geoinfer.images import Preprocessing
from geoinfer.index import LeaveOneOut, References, open_index, update_index, write_index

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = EmbedderIdentity("fake", 4, Preprocessing(size=2))
COUNT = 120


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(count: int = COUNT) -> tuple[np.ndarray, References]:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    references = References(
        ids=[f"photo {n}" for n in range(count)],
        coordinates=np.stack([rng.uniform(-90, 90, count), rng.uniform(-180, 180, count)], axis=1),
        sources=[f"source {n % 3}" for n in range(count)],
        attributions=["CC0"] * count,
        content_sha256=rng.integers(0, 256, (count, 32), np.uint8),
        perceptual_hashes=rng.integers(0, 256, (count, 32), np.uint8),
        sequences=[f"drive {n // 4}" if n % 5 else "" for n in range(count)],
    )
    return vectors, references


def index(folder: Path, start: int, stop: int, *, identity=IDENTITY, change=None, **more) -> Path:
    vectors, references = everything()
    vectors, references = vectors[start:stop].copy(), references.part(start, stop)
    if change is not None:
        vectors, references = change(vectors, references)
    write_index(folder, vectors, references, identity, **more)
    return folder


@pytest.fixture
def call(tmp_path, kit):
    def run(*folders: Path, output: str = "c", observer=None, **more):
        options = MergeOptions(folders=folders, output=tmp_path / output, **{"kind": "flat"} | more)
        return run_merge(options, observer or kit.Quiet())

    return run


@pytest.mark.parametrize("block", [8192, 7])
def test_it_is_what_one_build_of_all_makes(call, tmp_path, monkeypatch, block):
    monkeypatch.setattr(add, "READ_AT_ONCE", block)
    whole = index(tmp_path / "all", 0, COUNT)
    parts = [index(tmp_path / name, *ends) for name, ends in (("a", (0, 50)), ("b", (50, 51)), ("d", (51, COUNT)))]
    summary = call(*parts)
    assert files(tmp_path / "c") == files(whole)
    assert (summary.sizes, summary.size, summary.same, summary.dropped) == ([50, 1, 69], COUNT, 0, 0)
    assert summary.left_out == []


@pytest.mark.parametrize("kind", ["flat", "flat-fp16"])
def test_what_several_hold_is_taken_once(call, tmp_path, kind):
    index(tmp_path / "all", 0, COUNT)
    a, b = index(tmp_path / "a", 0, 80), index(tmp_path / "b", 40, COUNT, kind=kind)
    summary = call(a, b)
    assert (summary.size, summary.same, summary.dropped) == (COUNT, 40, 0)
    if kind == "flat":
        assert files(tmp_path / "c") == files(tmp_path / "all")
    assert list(open_index(tmp_path / "c").references.ids) == [f"photo {n}" for n in range(COUNT)]


def without_photos(vectors, references):
    unknown = np.zeros((len(vectors), 32), np.uint8)
    return vectors, dataclasses.replace(references, content_sha256=unknown, perceptual_hashes=unknown)


def other_vector(vectors, references):
    vectors[5] = np.roll(vectors[5], 1)
    return without_photos(vectors, references)


def other_place(vectors, references):
    coordinates = references.coordinates.copy()
    coordinates[5] = (1, 2)
    return vectors, dataclasses.replace(references, coordinates=coordinates)


def other_content(vectors, references):
    digests = references.content_sha256.copy()
    digests[5] ^= 1
    return vectors, dataclasses.replace(references, content_sha256=digests)


@pytest.mark.parametrize(
    ("change", "of_first", "what"),
    [
        (other_place, None, "place"), (other_content, None, "content"), (other_vector, None, "embedding"),
        (other_vector, without_photos, "embedding"),
    ],
)  # fmt: skip
def test_a_name_that_stands_for_something_else(call, tmp_path, change, of_first, what):
    a, b = index(tmp_path / "a", 0, 80, change=of_first), index(tmp_path / "b", 40, COUNT, change=change)
    with pytest.raises(InputError) as caught:
        call(a, b)
    assert str(caught.value) == f"photo 45 is in {a} and in {b}, with another {what}"
    assert "--keep first" in caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    summary = call(a, b, keep_first=True)
    assert (summary.size, summary.same, summary.dropped) == (COUNT, 39, 1)
    first = open_index(a)
    merged = open_index(tmp_path / "c")
    np.testing.assert_array_equal(merged.index.vectors[45], first.index.vectors[45])
    assert merged.references.coordinates[45].tolist() == first.references.coordinates[45].tolist()


def test_references_without_photos_that_agree(call, tmp_path):
    a = index(tmp_path / "a", 0, 80, change=without_photos)
    b = index(tmp_path / "b", 40, COUNT, change=without_photos, kind="flat-fp16")
    assert call(a, b).same == 40


def test_names_whose_hashes_meet_by_chance_are_two_names(call, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "id_hashes", lambda ids: np.array([len(name) for name in ids], np.uint64))
    a, b = index(tmp_path / "a", 0, 5), index(tmp_path / "b", 5, 9)
    assert call(a, b).size == 9


@pytest.mark.parametrize(
    "other", [EmbedderIdentity("fak", 4, Preprocessing(size=2)), EmbedderIdentity("fake", 4, Preprocessing(size=3))]
)
def test_of_two_models(call, tmp_path, other):
    a, b = index(tmp_path / "a", 0, 50), index(tmp_path / "b", 50, COUNT, identity=other)
    with pytest.raises(MismatchError) as caught:
        call(a, b)
    assert str(caught.value) == f"{a} was made by {IDENTITY}, but {b} by {other}"
    assert caught.value.exit_code == 3
    assert not (tmp_path / "c").exists()


def test_what_the_indexes_agree_on_is_kept_and_the_rest_said(call, tmp_path):
    more = {"answer": Answer(4, "mean"), "logit_scale": 3.0}
    a, b = index(tmp_path / "a", 0, 50, **more), index(tmp_path / "b", 50, COUNT, **more)
    assert call(a, b).left_out == []
    manifest = open_index(tmp_path / "c").manifest
    assert (manifest.answer, manifest.logit_scale) == (Answer(4, "mean"), 3.0)
    update_index(b, answer=Answer(5, "mean"))
    summary = call(a, b, overwrite=True)
    assert [sentence.split(" is left out")[0] for sentence in summary.left_out] == ["the way of answering"]
    manifest = open_index(tmp_path / "c").manifest
    assert (manifest.answer, manifest.logit_scale) == (None, 3.0)


def test_of_an_index_that_was_not_calibrated_on_its_references(call, tmp_path):
    a, b = index(tmp_path / "a", 0, 50), index(tmp_path / "b", 50, COUNT, calibration=LeaveOneOut.empty())
    summary = call(a, b)
    assert summary.calibrated_on == 0
    assert len(summary.left_out) == 1
    assert "calibration is left out" in summary.left_out[0]


def test_occasions_of_two_indexes_are_not_taken_for_one(call, tmp_path):
    def named(vectors, references):
        return vectors, dataclasses.replace(
            references, sequences=[f"taken together {1 + n // 20}" for n in range(len(vectors))]
        )

    a, b = index(tmp_path / "a", 0, 40, change=named), index(tmp_path / "b", 40, 80, change=named)
    call(a, b)
    numbers = [1] * 20 + [2] * 20 + [3] * 20 + [4] * 20
    assert list(open_index(tmp_path / "c").references.sequences) == [f"taken together {n}" for n in numbers]


def test_arguments_that_make_no_sense(call, tmp_path):
    a, b = index(tmp_path / "a", 0, 50), index(tmp_path / "b", 50, COUNT)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("precious")
    (tmp_path / "link").symlink_to(a)
    before = files(a)
    for arguments, more, error in [
        ((a,), {}, UsageError), ((a, a), {}, UsageError), ((a, tmp_path / "link"), {}, UsageError),
        ((a, b), {"output": "a", "overwrite": True}, UsageError), ((a, b), {"output": "b"}, UsageError),
        ((a, b), {"output": "letters"}, OutputError), ((a, b), {"output": "letters", "overwrite": True}, OutputError),
        ((a, b), {"kind": "tree"}, UsageError), ((a, tmp_path / "nowhere"), {}, InputError),
        ((a, tmp_path / "letters"), {}, IndexFolderError),
    ]:  # fmt: skip
        with pytest.raises(error):
            call(*arguments, **more)
    assert files(a) == before
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_leaves_what_was_there(call, tmp_path, kit, there):
    a, b = index(tmp_path / "a", 0, 50), index(tmp_path / "b", 50, COUNT)
    before = None
    if there:
        before = files(index(tmp_path / "c", 0, 9))

    class Stop(kit.Quiet):
        def step(self, name, done):
            if name == "calibrating":
                raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        call(a, b, overwrite=there, observer=Stop())
    assert files(tmp_path / "c") == before if there else not (tmp_path / "c").exists()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"][: 3 if there else 2]
