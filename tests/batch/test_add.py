"""References added to an index: it is then what one build of all of them had made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from geoinfer.answer import Answer
from geoinfer.batch import build_rows, labelled
from geoinfer.batch.add import run_add
from geoinfer.batch.build import BuildOptions, run_build
from geoinfer.batch.build_shards import BuildShards
from geoinfer.errors import InputError, InterruptedRunError, MismatchError, OutputError, UsageError
from geoinfer.index import References, held_out_photos, open_index, search_file, update_index, write_index

if TYPE_CHECKING:
    from pathlib import Path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def photos(folder: Path, numbers: range, kit) -> Path:
    folder.mkdir(exist_ok=True)
    lines = ["path,latitude,longitude,sequence"]
    for number in numbers:
        kit.colour_photo(folder / f"{number}.png", number)
        latitude, longitude = kit.place_of(number)
        lines.append(f"{number}.png,{latitude},{longitude},")
    path = folder / f"{numbers.start}-{numbers.stop}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def call(tmp_path, kit):
    def run(make, labels: Path, output: str = "idx", observer=None, embedder=None, **more):
        options = BuildOptions(labels=labels, output=tmp_path / output, errors=tmp_path / "e.csv", **more)
        return make(embedder or kit.ColourEmbedder(size=4), options, observer or kit.Quiet())

    return run


@pytest.fixture
def halves(tmp_path, kit) -> tuple[Path, Path, Path]:
    folder = tmp_path / "photos"
    return tuple(photos(folder, numbers, kit) for numbers in (range(60), range(60, 100), range(100)))


def test_it_is_what_one_build_of_all_makes(halves, call, tmp_path):
    first, second, both = halves
    call(run_build, both, "all", kind="flat")
    call(run_build, first, kind="flat")
    summary = call(run_add, second)
    assert files(tmp_path / "idx") == files(tmp_path / "all")
    assert (summary.before, summary.built.indexed, summary.built.size, summary.stale) == (60, 40, 100, False)
    assert sorted(os.listdir(tmp_path)) == ["all", "e.csv", "idx", "photos"]


def test_ready_embeddings_too(call, tmp_path, kit):
    embedder = kit.ColourEmbedder(size=4)
    colours = np.array([kit.colour_of(number) for number in range(100)], np.float64)
    np.save(tmp_path / "e.npy", colours / np.linalg.norm(colours, axis=1, keepdims=True))
    lines = ["id,lat,lon"] + ["{},{},{}".format(number, *kit.place_of(number)) for number in range(100)]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    np.save(tmp_path / "e2.npy", np.load(tmp_path / "e.npy")[60:])
    np.save(tmp_path / "e1.npy", np.load(tmp_path / "e.npy")[:60])
    (tmp_path / "l1.csv").write_text("\n".join(lines[:61]))
    (tmp_path / "l2.csv").write_text("\n".join(lines[:1] + lines[61:]))
    for output, names in (("all", ["l.csv", "e.npy"]), ("idx", ["l1.csv", "e1.npy"])):
        call(run_build, tmp_path / names[0], output, embedder=embedder, embeddings=tmp_path / names[1], kind="flat")
    call(run_add, tmp_path / "l2.csv", embedder=embedder, embeddings=tmp_path / "e2.npy")
    assert files(tmp_path / "idx") == files(tmp_path / "all")


def test_a_name_that_is_there_is_left_out(call, tmp_path, kit):
    folder = tmp_path / "photos"
    call(run_build, photos(folder, range(30), kit), kind="flat")
    summary = call(run_add, photos(folder, range(20, 40), kit))
    assert (summary.built.indexed, summary.built.error, summary.built.size) == (10, 10, 40)
    assert list(open_index(tmp_path / "idx").references.ids) == [f"{number}.png" for number in range(40)]
    assert {row["code"] for row in kit.table((tmp_path / "e.csv").read_bytes())} == {"duplicate_id"}


def test_what_was_chosen_for_it_is_kept(halves, call, tmp_path):
    first, second, _ = halves
    call(run_build, first, kind="flat-fp16")
    update_index(tmp_path / "idx", answer=Answer(3, "top1"))
    call(run_add, second)
    manifest = open_index(tmp_path / "idx").manifest
    assert (manifest.answer, manifest.kind, manifest.size) == (Answer(3, "top1"), "flat-fp16", 100)


@pytest.mark.parametrize("kind", ["sq8", "hnsw", "ivf", "ivf-pq"])
@pytest.mark.parametrize("more", [200, 700])
def test_approximate_kinds(call, tmp_path, monkeypatch, kind, more):
    """Less than twice as many are added to what was learned; of more, all is learned anew."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600 + more, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name, rows in (("a", range(600)), ("b", range(600, 600 + more))):
        np.save(tmp_path / f"{name}.npy", vectors[rows.start : rows.stop])
        lines = [f"{n},{n % 90},{n % 180}" for n in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,lat,lon", *lines]))
    call(run_build, tmp_path / "a.csv", embeddings=tmp_path / "a.npy", kind=kind)
    extended = []
    extend = search_file.extend_search
    monkeypatch.setattr(
        search_file, "extend_search", lambda *args, **more: extended.append(args[3]) or extend(*args, **more)
    )
    summary = call(run_add, tmp_path / "b.csv", embeddings=tmp_path / "b.npy")
    assert extended == ([600] if kind == "hnsw" or (kind != "sq8" and more == 200) else [])
    stored = open_index(tmp_path / "idx")
    assert (stored.manifest.kind, stored.manifest.size) == (kind, 600 + more)
    assert summary.built.recall is not None
    assert stored.manifest.recall == summary.built.recall
    queries = vectors[-50:].astype(np.float32)
    assert (stored.index.search(queries, 1).ids[:, 0] >= 600).mean() > 0.9


def test_another_kind_from_now_on(halves, call, tmp_path):
    first, second, _ = halves
    call(run_build, first, kind="flat")
    assert call(run_add, second, kind="flat-fp16").built.kind == "flat-fp16"
    assert open_index(tmp_path / "idx").index.vectors.dtype == np.float16


def test_what_labelled_photos_told_stays_and_is_called_stale(call, tmp_path, kit):
    embedder = kit.ColourEmbedder(size=4)
    colours = np.array([kit.colour_of(number) for number in range(90)], np.float32)
    vectors = colours / np.linalg.norm(colours, axis=1, keepdims=True)
    unknown = np.zeros((60, 32), np.uint8)
    references = References(
        [f"gallery {n}" for n in range(60)], np.array([kit.place_of(n) for n in range(60)]), [""] * 60, [""] * 60,
        unknown, unknown,
    )  # fmt: skip
    write_index(tmp_path / "bare", vectors[:60], references, embedder.identity)
    held_out = held_out_photos(
        open_index(tmp_path / "bare").index, vectors[60:], np.array([kit.place_of(n) for n in range(60, 90)])
    )
    write_index(tmp_path / "idx", vectors[:60], references, embedder.identity, calibration=held_out, logit_scale=7.0)
    summary = call(run_add, photos(tmp_path / "photos", range(90, 100), kit), embedder=embedder)
    stored = open_index(tmp_path / "idx")
    assert summary.stale
    assert stored.manifest.logit_scale == 7.0
    np.testing.assert_array_equal(stored.leave_one_out.ids, held_out.ids)
    np.testing.assert_array_equal(stored.leave_one_out.places, held_out.places)


def test_another_model_is_refused(halves, call, tmp_path, kit):
    first, second, _ = halves
    call(run_build, first, kind="flat")
    before = files(tmp_path / "idx")
    with pytest.raises(MismatchError, match=r"idx was made by fake .*, but --engine is fake") as caught:
        call(run_add, second, embedder=kit.ColourEmbedder(size=6))
    assert caught.value.exit_code == 3
    assert files(tmp_path / "idx") == before


@pytest.mark.parametrize("moment", ["embedding", "writing", "calibrating"])
def test_ctrl_c_leaves_the_index_and_the_next_goes_on(halves, call, tmp_path, kit, monkeypatch, moment):
    first, second, both = halves
    call(run_build, both, "all", kind="flat")
    call(run_build, first, kind="flat")
    before = files(tmp_path / "idx")

    class Stop(kit.Quiet):
        def progressed(self, inputs, failed):
            super().progressed(inputs, failed)
            if moment == "embedding" and self.done > 20:
                raise KeyboardInterrupt

        def step(self, name, done):
            if name == moment:
                raise KeyboardInterrupt

    monkeypatch.setattr(build_rows, "_COMMIT_ROWS", 5)
    monkeypatch.setattr(labelled, "_BLOCK", 5)
    with pytest.raises(InterruptedRunError, match="photos are embedded and safe"):
        call(run_add, second, observer=Stop())
    assert files(tmp_path / "idx") == before
    observer = kit.Quiet()
    call(run_add, second, observer=observer)
    assert observer.events[0][1] > 0
    assert files(tmp_path / "idx") == files(tmp_path / "all")
    assert sorted(os.listdir(tmp_path)) == ["all", "e.csv", "idx", "photos"]


@pytest.mark.parametrize("ready", [False, True])
def test_killed_when_all_was_done_but_clearing_away(halves, call, tmp_path, kit, monkeypatch, ready):
    """The references are there once, and the same command ends as the first would have."""
    first, second, _ = halves
    call(run_build, first, kind="flat")
    more = {}
    if ready:
        colours = np.array([kit.colour_of(number) for number in range(60, 100)], np.float64)
        np.save(tmp_path / "e.npy", colours / np.linalg.norm(colours, axis=1, keepdims=True))
        more = {"embeddings": tmp_path / "e.npy"}
        second.write_text(second.read_text().replace("61.png", "60.png"))

    class Died(BaseException):
        pass

    def die(self):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(BuildShards, "discard", die)
        call(run_add, second, **more)
    after = files(tmp_path / "idx")
    summary = call(run_add, second, **more)
    assert files(tmp_path / "idx") == after
    assert (summary.before, summary.built.size) == (60, 99 if ready else 100)
    assert (summary.built.inputs, summary.built.indexed, summary.built.error) == ((40, 39, 1) if ready else (40, 40, 0))
    assert not (tmp_path / "idx.building").exists()
    # And then it is a new run, of names that are all there.
    with pytest.raises(InputError, match=r"none of the 40 .* indexed"):
        call(run_add, second, **more)
    assert files(tmp_path / "idx") == after


def test_occasions_of_old_and_new_photos_are_not_taken_for_one(call, tmp_path, kit):
    def tagged(folder: Path, hour: int) -> Path:
        folder.mkdir()
        for number in range(2):
            exif = Image.Exif()
            gps = exif.get_ifd(0x8825)
            gps[1], gps[2], gps[3], gps[4] = "N", (10.0, 0.0, 0.0), "E", (20.0, 0.0, 0.0)
            exif.get_ifd(0x8769)[0x9003] = f"2024:05:01 {hour + 5 * number:02d}:00:00"
            picture = np.random.default_rng(hour + number).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(picture).save(folder / f"{hour} {number}.jpg", exif=exif)
        return folder

    call(run_build, tagged(tmp_path / "a", 1), kind="flat")
    call(run_add, tagged(tmp_path / "b", 12))
    sequences = list(open_index(tmp_path / "idx").references.sequences)
    assert sequences == [f"taken together {number}" for number in (1, 2, 3, 4)]


def test_arguments_that_make_no_sense(halves, call, tmp_path):
    first, second, _ = halves
    with pytest.raises(InputError, match="no such index"):
        call(run_add, first)
    call(run_build, first, kind="flat")
    with pytest.raises(UsageError, match="--kind tree"):
        call(run_add, second, kind="tree")
    with pytest.raises(InputError):
        call(run_add, tmp_path / "nowhere.csv")
    held = BuildShards(tmp_path / "idx", {})
    held.open()
    with pytest.raises(OutputError, match=f"process {os.getpid()} is writing it"):
        call(run_add, second)
    held.discard()
    call(run_add, second)
