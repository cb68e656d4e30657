"""The index build, with the shipped model: what is indexed is what a plain loop would have made."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geoinfer.backends import open_embedder
from geoinfer.batch import build, build_rows, labelled
from geoinfer.batch.build import BuildOptions, run_build
from geoinfer.batch.sequences import as_seconds, named_sequences
from geoinfer.bundle import SHIPPED, open_bundle
from geoinfer.errors import InputError, InterruptedRunError, LabelsError, OutputError, UsageError
from geoinfer.geolocator import Geolocator
from geoinfer.images import load_pixels
from geoinfer.index import open_index
from geoinfer.lock import OutputLock

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def embedder():
    with open_embedder(open_bundle(SHIPPED).model_path, "cpu", threads=1) as opened:
        yield opened


def options(labels: Path, output: Path, **more) -> BuildOptions:
    values = {
        "images": None,
        "kind": "flat",
        "errors": output.with_name("errors.csv"),
        "batch_size": 3,
        "workers": 2,
    } | more
    return BuildOptions(labels=labels, output=output, **values)


@pytest.fixture
def labels(tmp_path) -> Path:
    """Examples with broken rows between them: a missing photo, a broken one, one without coordinates, a raw one."""
    photos = sorted((EXAMPLES / "photos").iterdir())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.jpg").write_bytes(photos[0].read_bytes()[:700])
    Image.new("RGB", (40, 30), (90, 9, 9)).save(tmp_path / "in" / "thumbnail.nef", "TIFF")
    lines = ["latitude,path,note,longitude,source"]
    for number, photo in enumerate(photos):
        (tmp_path / "in" / photo.name).symlink_to(photo)
        lines.append(f"{number - 40.125},{photo.name},x,{100.5 + number},{'mine' if number == 2 else ''}")
        if number % 3 == 0:
            lines.append(
                ["1,nowhere.jpg,x,2,", "1,broken.jpg,x,2,", "91,broken.jpg,x,2,", "1,thumbnail.nef,x,2,"][number // 3]
            )
    (tmp_path / "in" / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "in" / "labels.csv"


def plain_loop(embedder, photos):
    preprocessing = embedder.identity.preprocessing
    return np.concatenate([embedder.embed(load_pixels(os.fsencode(p), preprocessing)[None]) for p in photos])


def test_an_index_is_what_a_plain_loop_makes(labels, tmp_path, kit, embedder):
    photos = sorted((EXAMPLES / "photos").iterdir())
    observer = kit.Quiet()
    run = options(labels, tmp_path / "idx", source="default", attribution="CC0")
    summary = run_build(embedder, run, observer)
    stored = open_index(tmp_path / "idx")
    assert list(stored.references.ids) == [photo.name for photo in photos]
    assert stored.references.coordinates.tolist() == [[n - 40.125, 100.5 + n] for n in range(10)]
    np.testing.assert_allclose(stored.index.vectors, plain_loop(embedder, photos), atol=1e-5)
    assert [d.tobytes().hex() for d in stored.references.content_sha256] == [
        hashlib.sha256(photo.read_bytes()).hexdigest() for photo in photos
    ]
    assert list(stored.references.sources) == ["default", "default", "mine"] + ["default"] * 7
    assert {*stored.references.attributions} == {"CC0"}
    assert stored.manifest.embedder == embedder.identity
    # Failures cost only themselves, and each is accounted for.
    assert (summary.inputs, summary.indexed, summary.error, summary.skipped) == (14, 10, 3, 1)
    report = kit.table((tmp_path / "errors.csv").read_bytes())
    assert [(Path(row["path"]).name, row["stage"]) for row in report] == [
        ("nowhere.jpg", "read"), ("broken.jpg", "decode"), ("broken.jpg", "labels"),
        ("thumbnail.nef", "discover"),
    ]  # fmt: skip
    assert summary.layout == "CSV"
    assert observer.done == 14


def test_a_photo_locates_itself(labels, tmp_path, kit, embedder):
    run_build(embedder, options(labels, tmp_path / "idx"), kit.Quiet())
    photos = sorted((EXAMPLES / "photos").iterdir())
    with Geolocator.open(SHIPPED, tmp_path / "idx", device="cpu", k=1, aggregate="top1", threads=1) as geolocator:
        for number, answer in enumerate(geolocator.locate(photos)):
            assert (answer.latitude, answer.longitude) == pytest.approx((number - 40.125, 100.5 + number), abs=1e-9)
            assert answer.top1_similarity == pytest.approx(1, abs=1e-5)
            assert answer.candidates[0].reference == photos[number].name


@pytest.mark.parametrize("variant", [{"workers": 1}, {"workers": 4, "batch_size": 3}])
def test_an_index_does_not_depend_on_threads(labels, tmp_path, kit, embedder, variant):
    run_build(embedder, options(labels, tmp_path / "a"), kit.Quiet())
    run_build(embedder, options(labels, tmp_path / "b", **variant), kit.Quiet())
    assert open_index(tmp_path / "a").manifest.fingerprint == open_index(tmp_path / "b").manifest.fingerprint


def with_gps(path: Path, number: int, latitude: float | None, longitude: float = 0.0) -> None:
    """A photo whose EXIF Pillow writes: degrees, minutes, seconds as rationals, and N, S, E, W."""
    exif = Image.Exif()
    if latitude is not None:
        gps = exif.get_ifd(0x8825)
        for tag, value, letters in ((1, latitude, "NS"), (3, longitude, "EW")):
            whole = abs(value)
            gps[tag] = letters[value < 0]
            gps[tag + 1] = (float(int(whole)), float(int(whole % 1 * 60)), 0.0)
    noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).resize((96, 96)).save(path, "JPEG", exif=exif)


def test_a_folder_of_photos_with_gps(tmp_path, kit, embedder):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    with_gps(folder / "a.jpg", 1, 12.5, -33.25)
    with_gps(folder / "b none.jpg", 2, None)
    with_gps(folder / "c zero.jpg", 3, 0.0, 0.0)
    (folder / "d broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (folder / "e.nef").write_bytes(b"II*\0")
    with_gps(folder / "sub" / "f.jpg", 4, -45.75, 170.5)
    (folder / "g words.txt").write_text("not even listed")
    with_gps(Path(os.fsdecode(os.fsencode(folder) + b"/z caf\xe9.jpg")), 5, 1.5, 2.5)
    summary = run_build(embedder, options(folder, tmp_path / "idx"), kit.Quiet())
    stored = open_index(tmp_path / "idx")
    assert list(stored.references.ids) == ["a.jpg", "sub/f.jpg", "z caf\\xe9.jpg"]
    assert stored.references.coordinates.tolist() == [[12.5, -33.25], [-45.75, 170.5], [1.5, 2.5]]
    assert (summary.inputs, summary.indexed, summary.error, summary.skipped) == (7, 3, 1, 3)
    assert summary.layout == "EXIF"
    report = kit.table((tmp_path / "errors.csv").read_bytes())
    assert [(os.path.relpath(line["path"], folder), line["code"]) for line in report] == [
        ("b none.jpg", "no_gps"), ("c zero.jpg", "no_gps"), ("d broken.jpg", "truncated"), ("e.nef", "camera_raw"),
    ]  # fmt: skip


def test_camera_originals(shared_exif, tmp_path, kit, embedder):
    """Two of a well-known set, taken in Arezzo: 43 deg 28 min north, 11 deg 53 min east."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("DSCN0010.jpg", "DSCN0042.jpg"):
        (folder / name).symlink_to(shared_exif / name)
    run_build(embedder, options(folder, tmp_path / "idx"), kit.Quiet())
    coordinates = open_index(tmp_path / "idx").references.coordinates
    np.testing.assert_allclose(coordinates, [[43.467, 11.885], [43.467, 11.882]], atol=0.01)


@pytest.mark.parametrize("kind", ["no photos", "no gps", "all broken", "csv without rows", "csv of missing photos"])
def test_nothing_indexed_is_an_error_and_leaves_no_folder(tmp_path, kit, embedder, kind):
    where = tmp_path / "in"
    where.mkdir()
    labels = where
    if kind == "no gps":
        with_gps(where / "a.jpg", 1, None)
    elif kind == "all broken":
        (where / "a.jpg").write_bytes(b"\xff\xd8\xff")
    elif kind.startswith("csv"):
        labels = where / "labels.csv"
        labels.write_text("path,lat,lon\n" + ("a.jpg,1,2\n" if "missing" in kind else ""))
    with pytest.raises(InputError) as caught:
        run_build(embedder, options(labels, tmp_path / "idx"), kit.Quiet())
    assert caught.value.exit_code == 2
    expected = {
        "no photos": "no photos in this folder", "no gps": "none of the 1 photos has a position",
        "all broken": "none of the 1 photos could be indexed",
        "csv without rows": "the CSV has no rows", "csv of missing photos": "none of the 1 photos could be indexed",
    }[kind]  # fmt: skip
    assert expected in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["errors.csv", "in"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("moment", ["embedding", "writing"])
@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_leaves_what_was_there_and_the_next_goes_on(labels, tmp_path, kit, embedder, moment, there, monkeypatch):
    output, other = tmp_path / "out" / "idx", tmp_path / "unbroken" / "idx"
    run_build(embedder, options(labels, other, errors=tmp_path / "e.csv", source="new"), kit.Quiet())
    before = None
    if there:
        run_build(embedder, options(labels, output, errors=tmp_path / "e.csv"), kit.Quiet())
        before = files(output)

    class Stop(kit.Quiet):
        def progressed(self, inputs, failed):
            super().progressed(inputs, failed)
            if moment == "embedding" and self.done > 5:
                raise KeyboardInterrupt

        def step(self, name, done):
            if moment == "writing" and name == "calibrating":
                raise KeyboardInterrupt

    monkeypatch.setattr(build_rows, "_COMMIT_ROWS", 3)
    monkeypatch.setattr(labelled, "_BLOCK", 3)
    run = options(labels, output, overwrite=there, errors=tmp_path / "e.csv", source="new", workers=1)
    with pytest.raises(InterruptedRunError, match=r"^interrupted; [1-9]\d* photos are embedded and safe") as caught:
        run_build(embedder, run, Stop())
    assert caught.value.exit_code == 130
    assert "goes on from there" in caught.value.hint
    assert sorted(os.listdir(output.parent)) == ["idx", "idx.building"][0 if there else 1 :]
    assert not there or files(output) == before
    observer = kit.Quiet()
    summary = run_build(embedder, run, observer)
    resumed = observer.events[0][1]
    assert 0 < resumed <= 14
    assert (summary.inputs, summary.indexed, summary.error, summary.skipped) == (14, 10, 3, 1)
    assert files(output) == files(other)
    assert os.listdir(output.parent) == ["idx"]


def fail_at(monkeypatch, name: str) -> None:
    """The disk refuses one rename or write of the new index."""
    replace = os.replace

    def refusing(source, target):
        if (Path(source).name, Path(target).name) == {
            "exchange": (".idx.new", "idx"), "aside": ("idx", ".idx.replaced"),
        }.get(name):  # fmt: skip
            raise OSError(28, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    if name == "write":
        import geoinfer.index.writer as writer

        def refused(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writer, "write_json", refused)


@pytest.mark.parametrize("name", ["write", "aside", "exchange"])
def test_overwrite_keeps_the_old_index_when_the_new_one_fails(labels, tmp_path, kit, embedder, name, monkeypatch):
    output = tmp_path / "out" / "idx"
    run_build(embedder, options(labels, output), kit.Quiet())
    before = files(output)
    with (
        monkeypatch.context() as patch,
        pytest.raises(InterruptedRunError, match=r"(?i)no space left.*; 14 photos are embedded"),
    ):
        fail_at(patch, name)
        run_build(embedder, options(labels, output, overwrite=True, source="new"), kit.Quiet())
    assert files(output) == before
    assert sorted(os.listdir(output.parent)) == ["errors.csv", "idx", "idx.building"]
    observer = kit.Quiet()
    run_build(embedder, options(labels, output, overwrite=True, source="new"), observer)
    assert observer.done == 0
    assert open_index(output).references.sources[0] == "new"
    assert sorted(os.listdir(output.parent)) == ["errors.csv", "idx"]


def test_a_kill_in_the_exchange_is_mended_by_the_next_build(labels, tmp_path, kit, embedder):
    """Between the two renames nothing has the index's name: the old one goes back before anything else."""
    output = tmp_path / "idx"
    run_build(embedder, options(labels, output), kit.Quiet())
    output.rename(tmp_path / ".idx.replaced")
    with pytest.raises(OutputError, match="exists already"):
        build.check_build(options(labels, output))
    assert len(open_index(output).references) == 10
    assert not (tmp_path / ".idx.replaced").exists()


@pytest.mark.parametrize("left", [".idx.new", ".idx.replaced"])
def test_what_a_killed_build_left_does_not_stop_the_next(labels, tmp_path, kit, embedder, left):
    output = tmp_path / "idx"
    run_build(embedder, options(labels, output), kit.Quiet())
    shutil.copytree(output, tmp_path / left)
    (tmp_path / left / ("manifest.json" if left == ".idx.new" else "vectors.npy")).unlink()
    run_build(embedder, options(labels, output, overwrite=True, source="new"), kit.Quiet())
    assert open_index(output).references.sources[0] == "new"
    assert sorted(os.listdir(tmp_path)) == ["errors.csv", "idx", "in"]


def unfinished(labels, output, kit, embedder, monkeypatch, **more) -> None:
    """A build that was killed when all was embedded."""

    class Died(BaseException):
        pass

    def die(*_):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(build, "reported", die)
        run_build(embedder, options(labels, output, **more), kit.Quiet())
    assert (output.with_name("idx.building") / "ledger.jsonl").exists()


def test_another_build_is_refused_and_names_what_differs(labels, tmp_path, kit, embedder, monkeypatch):
    output = tmp_path / "idx"
    unfinished(labels, output, kit, embedder, monkeypatch)
    changed = labels.with_name("changed.csv")
    changed.write_text(labels.read_text().replace("100.5", "100.25"))
    np.save(tmp_path / "e.npy", np.eye(14, embedder.dim))
    for run, field in [
        (options(labels, output, source="mine"), "--source"),
        (options(labels, output, attribution="me"), "--attribution"),
        (options(labels, output, images=labels.parent), "--images"),
        (options(changed, output), "labels"),
        (options(labels.parent, output), "labels"),
        (options(labels, output, embeddings=tmp_path / "e.npy"), "--batch-size|--embeddings|device"),
    ]:
        with pytest.raises(UsageError, match=rf"idx: an unfinished build is there, made with another ({field}) \("):
            run_build(embedder, run, kit.Quiet())
    run = options(labels, output, source="mine", restart=True)
    observer = kit.Quiet()
    run_build(embedder, run, observer)
    assert observer.done == 14
    assert open_index(output).references.sources[0] == "mine"
    assert sorted(os.listdir(tmp_path)) == ["e.npy", "errors.csv", "idx", "in"]


def test_a_kind_may_change_when_a_build_goes_on(labels, tmp_path, kit, embedder, monkeypatch):
    """One that ran out of memory in training goes on as another kind."""
    unfinished(labels, tmp_path / "idx", kit, embedder, monkeypatch)
    observer = kit.Quiet()
    run_build(embedder, options(labels, tmp_path / "idx", kind="sq8"), observer)
    assert observer.done == 0
    assert open_index(tmp_path / "idx").manifest.kind == "sq8"


def test_photos_that_came_meanwhile_are_noticed(tmp_path, kit, embedder, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        with_gps(folder / f"{number}.jpg", number, 1.0, 2.0)
    unfinished(folder, tmp_path / "idx", kit, embedder, monkeypatch)
    with_gps(folder / "0a.jpg", 9, 3.0, 4.0)
    with pytest.raises(UsageError, match="made with other photos"):
        run_build(embedder, options(folder, tmp_path / "idx"), kit.Quiet())
    assert run_build(embedder, options(folder, tmp_path / "idx", restart=True), kit.Quiet()).indexed == 4


def test_a_damaged_shard(labels, tmp_path, kit, embedder, monkeypatch):
    unfinished(labels, tmp_path / "idx", kit, embedder, monkeypatch)
    shard = tmp_path / "idx.building" / "shard-000000.arrow"
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(InputError, match=r"shard-000000\.arrow: damaged") as caught:
        run_build(embedder, options(labels, tmp_path / "idx"), kit.Quiet())
    assert "--restart" in caught.value.hint
    assert shard.exists()


def test_a_name_that_comes_twice(labels, tmp_path, kit, embedder):
    photos = sorted((EXAMPLES / "photos").iterdir())
    first = photos[0].name
    labels.write_text(f"path,lat,lon\n{first},1,2\nnowhere.jpg,1,2\n{first},3,4\n{photos[1].name},5,6\n{first},7,8\n")
    observer = kit.Quiet()
    summary = run_build(embedder, options(labels, tmp_path / "idx"), observer)
    assert open_index(tmp_path / "idx").references.coordinates.tolist() == [[1, 2], [5, 6]]
    assert (summary.indexed, summary.error, observer.done, observer.failed) == (2, 3, 5, 3)
    report = kit.table((tmp_path / "errors.csv").read_bytes())
    assert [(Path(row["path"]).name, row["code"]) for row in report] == [
        ("nowhere.jpg", "missing"), (first, "duplicate_id"), (first, "duplicate_id"),
    ]  # fmt: skip


def test_only_an_index_is_overwritten(labels, tmp_path, kit, embedder):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text(json.dumps({"format": "geoinfer-bundle", "version": 1}))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "letter.txt").write_text("precious")
    for output in (bundle, folder):
        before = sorted(os.listdir(output))
        with pytest.raises(OutputError, match="is not an index"):
            run_build(embedder, options(labels, output, overwrite=True), kit.Quiet())
        with pytest.raises(OutputError, match="exists already"):
            run_build(embedder, options(labels, output), kit.Quiet())
        assert sorted(os.listdir(output)) == before


def test_no_file_of_the_user_is_lost_to_the_error_report(labels, tmp_path, kit, embedder):
    (tmp_path / "notes.csv").write_text("precious")
    before = labels.read_bytes()
    for errors, error in ((labels, UsageError), (tmp_path / "notes.csv", OutputError), (tmp_path / "in", OutputError)):
        with pytest.raises(error):
            run_build(embedder, options(labels, tmp_path / "idx", errors=errors), kit.Quiet())
    assert (labels.read_bytes(), (tmp_path / "notes.csv").read_text()) == (before, "precious")
    assert not (tmp_path / "idx").exists()


def test_arguments_that_make_no_sense(labels, tmp_path, kit, embedder):
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "file").touch()
    for run, error in [
        (options(tmp_path / "nowhere.csv", tmp_path / "idx"), InputError),
        (options(labels.parent, tmp_path / "idx", images=labels.parent), InputError),
        (options(labels, tmp_path / "idx", images=tmp_path / "nowhere"), InputError),
        (options(tmp_path / "bad.csv", tmp_path / "idx"), LabelsError),
        (options(labels, tmp_path / "file" / "idx", errors=tmp_path / "e.csv"), OutputError),
        (options(labels, Path("/proc/idx"), errors=tmp_path / "e.csv"), OutputError),
    ]:
        with pytest.raises(error) as caught:
            run_build(embedder, run, kit.Quiet())
        assert caught.value.exit_code == 2
    assert sorted(os.listdir(tmp_path)) == ["bad.csv", "file", "in"]


@pytest.mark.parametrize("count", [16, 17, 18])
def test_the_summary_and_the_geolocator_agree_on_what_is_calibrated(shared_photos, tmp_path, kit, embedder, count):
    """Nine of seventeen are the fewest whose 90% quantile exists: ceil(0.9 (9 + 1)) = 9."""
    photos = sorted((shared_photos / "travel").glob("*.jpg"))[:count]
    lines = [f"{photo},{n},{n}" for n, photo in enumerate(photos)]
    (tmp_path / "l.csv").write_text("path,lat,lon\n" + "\n".join(lines) + "\n")
    summary = run_build(embedder, options(tmp_path / "l.csv", tmp_path / "idx"), kit.Quiet())
    assert summary.indexed == count
    assert summary.calibrated == (count >= 17)
    with Geolocator.open(SHIPPED, tmp_path / "idx", device="cpu", threads=1) as geolocator:
        assert geolocator.calibrated == (count >= 17)


def test_two_builds_of_one_index_do_not_meet(labels, tmp_path, kit, embedder):
    held = OutputLock(tmp_path / "idx.building" / "lock", tmp_path / "idx")
    with held, pytest.raises(OutputError, match=f"idx: process {os.getpid()} is writing it"):
        run_build(embedder, options(labels, tmp_path / "idx"), kit.Quiet())
    assert not (tmp_path / "idx").exists()
    run_build(embedder, options(labels, tmp_path / "idx"), kit.Quiet())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.csv", "idx", "in"]


def test_the_report_lists_what_has_no_position(tmp_path, embedder):
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(sorted((EXAMPLES / "photos").iterdir())[:3]):
        (tmp_path / "photos" / photo.name).symlink_to(photo)
        if number == 0:
            tags = Image.Exif()
            gps = tags.get_ifd(0x8825)
            gps[1], gps[2], gps[3], gps[4] = "N", (10.0, 0.0, 0.0), "E", (20.0, 0.0, 0.0)
            Image.open(photo).save(tmp_path / "photos" / "tagged.jpg", exif=tags)
    summary = run_build(embedder, options(tmp_path / "photos", tmp_path / "index"), Nobody())
    assert (summary.indexed, summary.error, summary.skipped, summary.failures) == (1, 0, 3, {"no_gps": 3})
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["code"] for row in rows] == ["no_gps"] * 3
    assert sorted(os.path.basename(row["path"]) for row in rows) == sorted(
        photo.name for photo in sorted((EXAMPLES / "photos").iterdir())[:3]
    )


class TestSequences:
    NOON = datetime(2024, 5, 1, 12, 0)

    def named(self, known: list[str], minutes: list[float | None], east: list[float] | None = None) -> list[str]:
        times = [None if m is None else self.NOON + timedelta(minutes=m) for m in minutes]
        places = np.array([(0.0, degrees) for degrees in east or [0.0] * len(known)])
        return named_sequences(known, np.array([as_seconds(time) for time in times]), places)

    def test_photos_that_follow_within_an_hour_are_together(self):
        # 0, 59 and 118 follow one another; 179 comes 61 minutes later; the order in the index does not matter.
        names = self.named([""] * 5, [118, 0, 179, 59, 180])
        assert names[0] == names[1] == names[3] != ""
        assert names[2] == names[4] not in ("", names[0])

    def test_several_occasions_go_on_at_once_in_several_places(self):
        # On the equator a degree is 111 km. Two people photograph ten degrees apart, a quarter of an hour in turn.
        minutes, east = [0, 15, 30, 45, 60, 75], [0.0, 10.0, 0.3, 10.3, 0.6, 10.6]
        names = self.named([""] * 6, minutes, east)
        assert names[0] == names[2] == names[4]
        assert names[1] == names[3] == names[5] != names[0]

    def test_what_labels_say_comes_first_and_nothing_is_made_up(self):
        names = self.named(["drive", "", "", "drive"], [0, 1, None, 9000])
        assert (names[0], names[3]) == ("drive", "drive")
        assert names[1] not in ("", "drive")
        assert names[2] == ""

    def test_an_exif_folder_is_calibrated_by_occasions(self, tmp_path, embedder):
        for number in range(6):
            tags = Image.Exif()
            gps = tags.get_ifd(0x8825)
            gps[1], gps[2], gps[3], gps[4] = "N", (10.0 + number / 10, 0.0, 0.0), "E", (20.0, 0.0, 0.0)
            # Three in one quarter of an hour, then one a day.
            day, minute = (1, 5 * number) if number < 3 else (number, 0)
            tags.get_ifd(0x8769)[0x9003] = f"2024:05:{day:02d} 12:{minute:02d}:00"
            rng = np.random.default_rng(number)
            picture = Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8))
            (tmp_path / "photos").mkdir(exist_ok=True)
            picture.save(tmp_path / "photos" / f"{number}.jpg", exif=tags)
        run_build(embedder, options(tmp_path / "photos", tmp_path / "index"), Nobody())
        stored = open_index(tmp_path / "index")
        assert len(set(stored.references.sequences)) == 4
        neighbors = {row: set(ids) - {-1} for row, ids in enumerate(stored.leave_one_out.ids.tolist())}
        assert neighbors[0] == neighbors[1] == neighbors[2] == {3, 4, 5}
        assert neighbors[4] == {0, 1, 2, 3, 5}

    def test_a_column_of_the_labels(self, tmp_path, embedder):
        rows = ["id,latitude,longitude,sequence"]
        for number, photo in enumerate(sorted((EXAMPLES / "photos").iterdir())[:4]):
            (tmp_path / photo.name).symlink_to(photo)
            rows.append(f"{photo.stem},{number},{number},{'a' if number < 3 else 'b'}")
        (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
        summary = run_build(embedder, options(tmp_path / "labels.csv", tmp_path / "index"), Nobody())
        assert summary.layout == "OSV-5M"
        stored = open_index(tmp_path / "index")
        assert list(stored.references.sequences) == ["a", "a", "a", "b"]
        assert stored.leave_one_out.ids.tolist() == [[3, -1, -1]] * 3 + [stored.leave_one_out.ids[3].tolist()]
        assert sorted(stored.leave_one_out.ids[3].tolist()) == [0, 1, 2]


class Nobody:
    def started(self, resumed, failed):
        pass

    def progressed(self, inputs, failed):
        pass

    def writing(self):
        pass

    def say(self, line):
        pass

    def step(self, name, done):
        pass
