from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from geoinfer import bundle as bundles
from geoinfer.bundle import SHIPPED, check_loaded, describe_files, is_bundle, open_bundle, write_bundle_manifest
from geoinfer.errors import GeoInferError, InputError, ModelError
from geoinfer.index import open_index


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A bundle whose files are stand-ins: nothing here looks into them."""
    folder = tmp_path / "mine"
    (folder / "index").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model " * 100)
    (folder / "index" / "manifest.json").write_bytes(b"{}")
    (folder / "index" / "vectors.npy").write_bytes(b"vectors")
    write_bundle_manifest(folder, name="mine", description="d", notice="n", licences={"model.onnx": "MIT"})
    return folder


def change(folder: Path, **values: object) -> None:
    path = folder / "bundle.json"
    manifest = json.loads(path.read_bytes()) | values
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not ...}))


class TestOpen:
    def test_what_was_written(self, mine: Path) -> None:
        opened = open_bundle(mine, verify=True)
        assert (opened.name, opened.description, opened.notice) == ("mine", "d", "n")
        assert opened.licences == {"model.onnx": "MIT"}
        assert opened.model_path == mine / "model.onnx"
        assert opened.index_path == mine / "index"
        assert opened.files == {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in (
                ("index/manifest.json", b"{}"), ("index/vectors.npy", b"vectors"), ("model.onnx", b"model " * 100)
            )
        }  # fmt: skip

    def test_is_bundle(self, mine: Path, tmp_path: Path) -> None:
        assert is_bundle(mine)
        assert not is_bundle(mine / "index")
        assert not is_bundle(mine / "model.onnx")
        assert not is_bundle(tmp_path / "none")

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such bundle"):
            open_bundle(tmp_path / "none")

    @pytest.mark.parametrize("name", ["model.onnx", "index/manifest.json", "index/vectors.npy"])
    @pytest.mark.parametrize("how", ["gone", "a folder", "longer", "one bit"])
    def test_each_file_is_checked(self, mine: Path, name: str, how: str) -> None:
        path = mine / name
        data = path.read_bytes()
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how != "gone":
            path.write_bytes(data + b"x" if how == "longer" else bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises(ModelError, match=re.escape(str(path))) as caught:
            open_bundle(mine)
        assert caught.value.exit_code == 3

    def test_large_files_are_hashed_only_when_asked(self, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundles, "HASHED_AT_OPEN", 50)
        (mine / "model.onnx").write_bytes(b"MODEL " * 100)
        assert open_bundle(mine).name == "mine"
        with pytest.raises(ModelError, match="checksum"):
            open_bundle(mine, verify=True)
        (mine / "index" / "vectors.npy").write_bytes(b"VECTORS")
        with pytest.raises(ModelError, match=r"vectors\.npy"):
            open_bundle(mine)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"format": ...}, "not the manifest of a geoinfer bundle"),
            ({"format": "geoinfer-index"}, "not the manifest of a geoinfer bundle"),
            ({"version": ...}, "version None; this geoinfer reads 1"),
            ({"version": 2}, "version 2; this geoinfer reads 1"),
            ({"version": "1"}, "version '1'; this geoinfer reads 1"),
            ({"files": ...}, "lists no files"),
            ({"files": []}, "lists no files"),
            ({"files": {"model.onnx": {"bytes": 600}}}, "lists no files"),
            ({"files": {"model.onnx": {"bytes": "600", "sha256": "x"}}}, "lists no files"),
            ({"files": {}}, "no model.onnx"),
            ({"licences": ["MIT"]}, "licences"),
            ({"licences": "MIT"}, "licences"),
            ({"licences": {"index": None}}, "licences"),
            ({"name": None}, "damaged: name is no text"),
            ({"description": 7}, "damaged: description is no text"),
            ({"notice": None}, "damaged: notice is no text"),
            ({"notice": ["a"]}, "damaged: notice is no text"),
            ({"metrics": None}, "damaged: metrics is no object"),
            ({"metrics": []}, "damaged: metrics is no object"),
            ({"metrics": "good"}, "damaged: metrics is no object"),
        ],
    )
    def test_a_manifest_that_is_wrong(self, mine: Path, values: dict, words: str) -> None:
        change(mine, **values)
        with pytest.raises(ModelError, match=re.escape(words)) as caught:
            open_bundle(mine)
        assert str(mine) in str(caught.value)

    @pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"null", b"[]", b"1", b"[" * 100_000])
    def test_a_manifest_that_is_none(self, mine: Path, text: bytes) -> None:
        (mine / "bundle.json").write_bytes(text)
        with pytest.raises(ModelError, match=r"bundle\.json"):
            open_bundle(mine)

    def test_what_may_be_missing(self, mine: Path) -> None:
        change(mine, name=..., description=..., notice=..., licences=...)
        opened = open_bundle(mine)
        assert (opened.name, opened.description, opened.notice, opened.licences) == ("mine", "", "", {})
        assert opened.metrics == {}

    def test_metrics(self, mine: Path) -> None:
        metrics = {"leave_one_out": {"median_km": 12.5}, "index": {"size": 3}}
        write_bundle_manifest(mine, name="x", description="", notice="", licences={}, metrics=metrics)
        assert open_bundle(mine).metrics == metrics

    @pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "index/../../secret", "link", "a\0b", "loop"])
    def test_a_file_outside_the_folder(self, mine: Path, name: str) -> None:
        (mine.parent / "secret").write_bytes(b"secret")
        (mine / "link").symlink_to(mine.parent / "secret")
        (mine / "loop").symlink_to(mine / "loop")
        secret = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
        change(mine, files=json.loads((mine / "bundle.json").read_bytes())["files"] | {name: secret})
        with pytest.raises(ModelError, match=r"outside the folder|cannot be read"):
            open_bundle(mine)

    def test_a_link_inside_the_folder_is_fine(self, mine: Path) -> None:
        (mine / "index" / "other.npy").symlink_to(mine / "index" / "vectors.npy")
        write_bundle_manifest(mine, name="x", description="", notice="", licences={})
        assert "index/other.npy" in open_bundle(mine).files

    def test_messages_have_one_line_and_a_hint(self, mine: Path, tmp_path: Path) -> None:
        (mine / "bundle.json").unlink()
        with pytest.raises(GeoInferError) as caught:
            open_bundle(mine)
        assert str(caught.value) == (
            f"{mine}: there is no bundle here: bundle.json cannot be read: no such file or directory"
        )
        assert "--engine" in caught.value.hint


class TestLoaded:
    """What was loaded whole is compared with the manifest, however large it is."""

    def test_the_same(self, mine: Path) -> None:
        bundle = open_bundle(mine)
        check_loaded(bundle, mine / "model.onnx", hashlib.sha256(b"model " * 100).hexdigest())

    def test_another(self, mine: Path) -> None:
        bundle = open_bundle(mine)
        with pytest.raises(ModelError, match=r"model\.onnx.*checksum") as caught:
            check_loaded(bundle, mine / "model.onnx", hashlib.sha256(b"MODEL " * 100).hexdigest())
        assert caught.value.exit_code == 3
        assert caught.value.hint

    def test_an_engine_that_the_manifest_lists(self, mine: Path) -> None:
        (mine / "vit.trt").write_bytes(b"plan")
        write_bundle_manifest(mine, name="x", description="", notice="", licences={})
        bundle = open_bundle(mine)
        check_loaded(bundle, mine / "vit.trt", hashlib.sha256(b"plan").hexdigest())
        with pytest.raises(ModelError, match=r"vit\.trt"):
            check_loaded(bundle, mine / "vit.trt", hashlib.sha256(b"PLAN").hexdigest())
        (mine / "vit.trt").write_bytes(b"PLAN")
        with pytest.raises(ModelError, match=r"vit\.trt.*checksum"):
            open_bundle(mine)

    def test_what_the_manifest_does_not_list_is_not_its_affair(self, mine: Path, tmp_path: Path) -> None:
        bundle = open_bundle(mine)
        check_loaded(bundle, mine / "built-later.trt", "0" * 64)
        check_loaded(bundle, tmp_path / "model.onnx", "0" * 64)


class TestShipped:
    def test_whole_and_small(self) -> None:
        assert open_bundle(SHIPPED, verify=True).name == "demo"
        files = [path for path in SHIPPED.rglob("*") if path.is_file()]
        assert {path.relative_to(SHIPPED).as_posix() for path in files} == {
            "bundle.json", "model.onnx", "model.int8.onnx", "ATTRIBUTION.md", "index/manifest.json",
            "index/vectors.npy", "index/references.arrow", "index/coordinates.npy", "index/digests.npy",
            "index/leave_one_out-ed7f9f78b5a34d51.npz",
        }  # fmt: skip
        assert sum(path.stat().st_size for path in files) < 30_000_000

    def test_its_manifest_says_that_it_is_a_demonstration_and_the_way_to_a_real_one(self) -> None:
        notice = open_bundle(SHIPPED).notice
        assert "demonstration" in notice
        assert "geoinfer index build" in notice
        assert "\n" not in notice

    @pytest.mark.parametrize("place", [b"/work", b"/home", b"/root", b"/tmp", b"/Users", b"site-packages"])
    def test_no_path_of_any_machine(self, place: bytes) -> None:
        for path in SHIPPED.rglob("*"):
            if path.is_file():
                assert place not in path.read_bytes(), path

    def test_the_references_name_no_path_either(self) -> None:
        references = open_index(SHIPPED / "index").references
        for text in {*references.ids, *references.sources, *references.attributions}:
            assert not os.path.isabs(text)
            assert ".." not in text

    def test_no_example_photo_is_its_own_reference(self, example_photos: Path) -> None:
        references = open_index(SHIPPED / "index").references
        stored = {row.tobytes() for row in references.content_sha256}
        assert len(stored) == len(references) == 335
        examples = {hashlib.sha256(path.read_bytes()).digest() for path in example_photos.glob("*.jpg")}
        assert len(examples) == 10
        assert stored & examples == set()

    def test_it_was_made_of_the_photos_it_says(self, shared_photos: Path, example_photos: Path) -> None:
        """Every reference is one of the shared photos, byte for byte; so the digests above mean what they say."""
        references = open_index(SHIPPED / "index").references
        photos = {
            hashlib.sha256(path.read_bytes()).digest() for path in shared_photos.rglob("*") if path.suffix == ".jpg"
        }
        stored = {row.tobytes() for row in references.content_sha256}
        assert stored <= photos
        assert {hashlib.sha256(path.read_bytes()).digest() for path in example_photos.glob("*.jpg")} <= photos

    def test_attribution_counts_every_reference(self) -> None:
        text = (SHIPPED / "ATTRIBUTION.md").read_text()
        assert sum(int(n) for n in re.findall(r"^- (\d+) photos of ", text, re.MULTILINE)) == 335
        assert "Apache-2.0" in text


def test_describe_files(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"bb")
    (tmp_path / "a").write_bytes(b"")
    described = describe_files(tmp_path, ["b", "a"])
    assert list(described) == ["a", "b"]
    assert described["b"] == {"bytes": 2, "sha256": hashlib.sha256(b"bb").hexdigest()}


def test_the_manifest_does_not_describe_itself(mine: Path) -> None:
    before = (mine / "bundle.json").read_bytes()
    write_bundle_manifest(mine, name="mine", description="d", notice="n", licences={"model.onnx": "MIT"})
    assert (mine / "bundle.json").read_bytes() == before


def test_a_moved_bundle_is_the_same(mine: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(mine, tmp_path / "moved"))
    assert open_bundle(moved, verify=True).folder == moved
