from __future__ import annotations

import errno
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("onnx")

from export import bundle as bundles
from export.bundle import (
    BundleParts,
    bundle_lock,
    check_bundle_output,
    leave_one_out_figures,
    read_attribution,
    write_bundle,
    write_locked_bundle,
)
from export.commands.bundle_command import bundle as bundle_command
from geoinfer import Geolocator
from geoinfer import bundle as runtime_bundle
from geoinfer.answer import Answer
from geoinfer.backends import open_embedder
from geoinfer.bundle import open_bundle
from geoinfer.cli import app
from geoinfer.engines.int8_beside import int8_beside
from geoinfer.errors import IndexFolderError, InputError, MismatchError, ModelError, OutputError, UsageError
from geoinfer.index import LeaveOneOut, References, open_index, write_index
from geoinfer.lock import OutputLock
from tests.engines.fakes import plan_bytes, put_engine
from tests.onnx_models import METADATA, SIZE, expected, make_model

COUNT = 40
MODEL_METADATA = METADATA | {
    "geoinfer.source": "mean colours, by hand",
    "geoinfer.licence": "MIT",
    "geoinfer.weights_sha256": "0123abcd",
    "geoinfer.parity": json.dumps({"min_cosine": 0.9999991, "photos": 10}),
}
INT8_METADATA = MODEL_METADATA | {
    "geoinfer.precision": "int8",
    "geoinfer.int8_target": "cpu",
    "geoinfer.parity": json.dumps({"min_cosine": 0.99, "photos": 7}),
}


def pictures(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """One-coloured pictures: whatever the resize does to them, their mean colour stays."""
    colours = np.random.default_rng(seed).integers(1, 256, (count, 1, 1, 3), dtype=np.uint8)
    return colours.repeat(SIZE, 1).repeat(SIZE, 2)


def make_index(folder: Path, model: Path, *, answer: Answer | None = None, **changes: object) -> Path:
    digests = np.random.default_rng(5).integers(0, 256, (2, COUNT, 32), dtype=np.uint8)
    places = np.random.default_rng(3).uniform([-80, -179], [80, 179], (COUNT, 2))
    fields = {
        "ids": [f"r{i}" for i in range(COUNT)],
        "coordinates": places,
        "sources": ["walks"] * 30 + ["drives"] * 10,
        "attributions": ["MIT, (c) Ada"] * 30 + ["CC-BY-4.0, Ben"] * 10,
        "content_sha256": digests[0],
        "perceptual_hashes": digests[1],
    } | changes
    with open_embedder(model, "cpu") as embedder:
        vectors = expected(pictures()).astype(np.float32)
        write_index(folder, vectors, References(**fields), embedder.identity, answer=answer)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny.onnx", metadata=MODEL_METADATA)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return make_index(tmp_path_factory.mktemp("index") / "forty", model)


@pytest.fixture
def parts(model: Path, index: Path) -> BundleParts:
    return BundleParts(model, index)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in listing(folder)}


def kilometres(a: np.ndarray, b: np.ndarray) -> float:
    """Great-circle distance by the spherical law of cosines."""
    (p, x), (q, y) = np.radians(a), np.radians(b)
    cosine = math.sin(p) * math.sin(q) + math.cos(p) * math.cos(q) * math.cos(x - y)
    return 6371.0 * math.acos(max(-1.0, min(1.0, cosine)))


class TestWhatIsWritten:
    def test_the_parts_and_nothing_else(self, parts: BundleParts, tmp_path: Path) -> None:
        (tmp_path / "note").write_text("beside it")
        written = write_bundle(parts, tmp_path / "out" / "mine")
        assert sorted(os.listdir(tmp_path)) == ["note", "out"]
        assert os.listdir(tmp_path / "out") == ["mine"]
        assert listing(tmp_path / "out" / "mine") == {
            "bundle.json", "model.onnx", "ATTRIBUTION.md", "index/manifest.json",
            *(f"index/{name}" for name in open_index(parts.index).manifest.files),
        }  # fmt: skip
        assert written.model_path.read_bytes() == parts.model.read_bytes()
        for name in os.listdir(parts.index):
            assert (written.index_path / name).read_bytes() == (parts.index / name).read_bytes()
        assert open_bundle(tmp_path / "out" / "mine", verify=True) == written

    def test_what_lies_in_the_index_besides_is_left_behind(self, model: Path, tmp_path: Path) -> None:
        index = make_index(tmp_path / "index", model)
        (index / "private.jpg").write_bytes(b"x")
        write_bundle(BundleParts(model, index), tmp_path / "out")
        assert not any("private" in name for name in listing(tmp_path / "out"))

    def test_it_locates_as_its_parts_do(self, parts: BundleParts, tmp_path: Path) -> None:
        write_bundle(parts, tmp_path / "out")
        queries = list(pictures(6, seed=9))
        with Geolocator.open(tmp_path / "out", device="cpu") as bundled:
            together = bundled.locate(queries)
        with Geolocator.open(parts.model, parts.index, device="cpu") as separate:
            assert together == separate.locate(queries)

    def test_words_made_of_what_the_parts_say(self, parts: BundleParts, tmp_path: Path) -> None:
        written = write_bundle(parts, tmp_path / "mine")
        assert written.name == "mine"
        assert written.description == "mean colours, by hand, with an index of 40 references"
        assert written.notice == ""
        assert written.licences["model.onnx"] == "MIT (mean colours, by hand)"
        assert "ATTRIBUTION.md" in written.licences["index"]
        text = (tmp_path / "mine" / "ATTRIBUTION.md").read_text()
        assert "mean colours, by hand" in text
        assert "0123abcd" in text
        assert "- 30 from walks: MIT, (c) Ada\n" in text
        assert "- 10 from drives: CC-BY-4.0, Ben\n" in text
        assert str(parts.index) not in text

    def test_words_given(self, parts: BundleParts, tmp_path: Path) -> None:
        given = BundleParts(
            parts.model, parts.index, name="n", description="d", notice="x", licences={"index": "mine"}, attribution="a"
        )
        written = write_bundle(given, tmp_path / "mine")
        assert (written.name, written.description, written.notice) == ("n", "d", "x")
        assert written.licences == {"model.onnx": "MIT (mean colours, by hand)", "index": "mine"}
        assert (tmp_path / "mine" / "ATTRIBUTION.md").read_text() == "a"

    def test_terms_that_nobody_states(self, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m.onnx", metadata=METADATA | {"geoinfer.licence": "NOASSERTION"})
        index = make_index(tmp_path / "index", model, sources=[""] * COUNT, attributions=[""] * COUNT)
        written = write_bundle(BundleParts(model, index), tmp_path / "out")
        assert written.licences == {
            "model.onnx": "licence not stated",
            "index": "embeddings and coordinates of references whose terms are not stated",
        }
        text = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
        assert "- 40 from a source that is not named: terms not stated" in text
        assert "NOASSERTION" not in text

    def test_one_attribution_for_all(self, model: Path, tmp_path: Path) -> None:
        index = make_index(tmp_path / "index", model, attributions=["CC0-1.0"] * COUNT)
        assert write_bundle(BundleParts(model, index), tmp_path / "out").licences["index"].endswith("under: CC0-1.0")

    def test_a_source_for_each_photo_does_not_fill_the_page(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bundles, "_MOST_SOURCES", 5)
        index = make_index(tmp_path / "index", model, sources=[f"s{i:02}" for i in range(COUNT)])
        write_bundle(BundleParts(model, index), tmp_path / "out")
        rows = [row for row in (tmp_path / "out" / "ATTRIBUTION.md").read_text().splitlines() if row.startswith("- ")]
        assert len(rows) == 6
        assert rows[-1] == "- and 35 more, which `references.arrow` names"

    def test_engines_come_with_their_sidecars(self, parts: BundleParts, tmp_path: Path) -> None:
        engine = put_engine(tmp_path / "tiny-fp16.trt")
        written = write_bundle(BundleParts(parts.model, parts.index, engines=(engine,)), tmp_path / "out")
        assert (tmp_path / "out" / "tiny-fp16.trt").read_bytes() == engine.read_bytes()
        assert {"tiny-fp16.trt", "tiny-fp16.trt.json"} <= set(written.files)
        assert written.licences["tiny-fp16.trt"] == "as model.onnx"

    def test_the_model_in_int8_too(self, parts: BundleParts, tmp_path: Path) -> None:
        int8 = make_model(tmp_path / "small.onnx", metadata=INT8_METADATA)
        written = write_bundle(BundleParts(parts.model, parts.index, int8=int8), tmp_path / "out")
        assert (tmp_path / "out" / "model.int8.onnx").read_bytes() == int8.read_bytes()
        assert int8_beside(written.model_path) == tmp_path / "out" / "model.int8.onnx"
        assert written.files["model.int8.onnx"]["bytes"] == int8.stat().st_size
        assert written.licences["model.int8.onnx"] == "as model.onnx"
        assert written.metrics["parity_int8"] == {"min_cosine": 0.99, "photos": 7}
        assert written.metrics["parity"] == {"min_cosine": 0.9999991, "photos": 10}
        again = BundleParts(parts.model, parts.index, int8=int8, licences={"model.int8.onnx": "mine"})
        assert write_bundle(again, tmp_path / "out", force=True).licences["model.int8.onnx"] == "mine"
        assert not (write_bundle(parts, tmp_path / "out", force=True).folder / "model.int8.onnx").exists()

    def test_damage_to_the_int8_model_is_found(self, parts: BundleParts, tmp_path: Path) -> None:
        int8 = make_model(tmp_path / "small.onnx", metadata=INT8_METADATA)
        write_bundle(BundleParts(parts.model, parts.index, int8=int8), tmp_path / "out")
        copy = tmp_path / "out" / "model.int8.onnx"
        copy.write_bytes(bytes([copy.read_bytes()[0] ^ 1]) + copy.read_bytes()[1:])
        with pytest.raises(ModelError, match=r"model\.int8\.onnx: the contents do not match"):
            open_bundle(tmp_path / "out")


class TestMetrics:
    def test_as_plain_loops_have_them(self, model: Path, tmp_path: Path) -> None:
        index = make_index(tmp_path / "index", model, answer=Answer(1, "top1"))
        metrics = write_bundle(BundleParts(model, index), tmp_path / "out").metrics
        vectors, places = expected(pictures()), open_index(index).references.coordinates
        errors = []
        for i in range(COUNT):
            best = max((j for j in range(COUNT) if j != i), key=lambda j: float(vectors[i] @ vectors[j]))
            errors.append(kilometres(places[i], places[best]))
        errors.sort()
        found = metrics["leave_one_out"]
        assert (found["count"], found["k"], found["aggregate"]) == (COUNT, 1, "top1")
        assert found["median_km"] == pytest.approx((errors[19] + errors[20]) / 2, abs=0.06)
        assert found["mean_km"] == pytest.approx(sum(errors) / COUNT, abs=0.06)
        assert found["geoscore"] == pytest.approx(sum(5000 * math.exp(-e / 1492.7) for e in errors) / COUNT, abs=0.51)
        for radius in (1, 25, 200, 750, 2500):
            share = 100 * sum(e < radius for e in errors) / COUNT
            assert found["within_percent"][str(radius)] == pytest.approx(share, abs=0.051)

    def test_of_index_and_parity(self, parts: BundleParts, tmp_path: Path) -> None:
        metrics = write_bundle(parts, tmp_path / "out").metrics
        manifest = open_index(parts.index).manifest
        assert metrics["index"] == {"kind": "flat", "size": 40, "geocells": manifest.geocells}
        assert metrics["parity"] == {"min_cosine": 0.9999991, "photos": 10}
        assert metrics["leave_one_out"]["aggregate"] == "density"

    def test_a_model_without_figures_and_an_index_that_is_not_calibrated(self, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m.onnx")
        with open_embedder(model, "cpu") as embedder:
            identity = embedder.identity
        places = np.random.default_rng(3).uniform([-80, -179], [80, 179], (COUNT, 2))
        digests = np.zeros((COUNT, 32), np.uint8)
        names = [str(i) for i in range(COUNT)]
        references = References(names, places, [""] * COUNT, [""] * COUNT, digests, digests)
        vectors = expected(pictures()).astype(np.float32)
        write_index(tmp_path / "index", vectors, references, identity, calibration=LeaveOneOut.empty())
        assert leave_one_out_figures(open_index(tmp_path / "index")) is None
        written = write_bundle(BundleParts(model, tmp_path / "index"), tmp_path / "out")
        assert set(written.metrics) == {"index"}

    def test_damaged_parity(self, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m.onnx", metadata=METADATA | {"geoinfer.parity": "{"})
        index = make_index(tmp_path / "index", model)
        with pytest.raises(ModelError, match=r"m\.onnx.*parity"):
            write_bundle(BundleParts(model, index), tmp_path / "out")
        assert sorted(os.listdir(tmp_path)) == ["index", "m.onnx"]


class TestWhatDoesNotFit:
    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path: Path) -> object:
        yield
        assert not (tmp_path / "out").exists()
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]

    def test_an_index_of_another_model(self, index: Path, tmp_path: Path) -> None:
        other = make_model(tmp_path / "other.onnx", metadata=METADATA | {"geoinfer.identity": "tiny:1"})
        with pytest.raises(MismatchError, match=r"tiny:0.*other\.onnx.*tiny:1") as caught:
            write_bundle(BundleParts(other, index), tmp_path / "out")
        assert "geoinfer index build" in caught.value.hint

    def test_an_engine_of_another_model(self, parts: BundleParts, tmp_path: Path) -> None:
        engine = put_engine(tmp_path / "a.trt", identity="tiny:1")
        with pytest.raises(MismatchError, match=r"a\.trt is of tiny:1"):
            write_bundle(BundleParts(parts.model, parts.index, engines=(engine,)), tmp_path / "out")

    def test_an_engine_that_is_cut_short_or_has_no_sidecar(self, parts: BundleParts, tmp_path: Path) -> None:
        engine = put_engine(tmp_path / "a.trt")
        engine.write_bytes(engine.read_bytes()[:-1])
        given = BundleParts(parts.model, parts.index, engines=(engine,))
        with pytest.raises(ModelError, match=r"a\.trt.*truncated"):
            write_bundle(given, tmp_path / "out")
        (tmp_path / "a.trt.json").unlink()
        with pytest.raises(ModelError, match="no sidecar"):
            write_bundle(given, tmp_path / "out")

    @pytest.mark.parametrize(
        ("changes", "error", "sentence"),
        [
            ({"metadata": METADATA}, ModelError, "the metadata say that it is fp32"),
            ({"metadata": METADATA | {"geoinfer.precision": "int9"}}, ModelError, "geoinfer.precision is 'int9'"),
        ],
        ids=["fp32", "no precision"],
    )
    def test_an_int8_model_that_is_none(
        self, parts: BundleParts, tmp_path: Path, changes: dict, error: type[Exception], sentence: str
    ) -> None:
        int8 = make_model(tmp_path / "small.onnx", **changes)
        with pytest.raises(error, match=rf"small\.onnx: {sentence}"):
            write_bundle(BundleParts(parts.model, parts.index, int8=int8), tmp_path / "out")

    def test_an_int8_model_of_another_embedder(self, parts: BundleParts, tmp_path: Path) -> None:
        int8 = make_model(tmp_path / "small.onnx", metadata=INT8_METADATA | {"geoinfer.identity": "tiny:1"})
        with pytest.raises(MismatchError, match=r"small\.onnx is tiny:1"):
            write_bundle(BundleParts(parts.model, parts.index, int8=int8), tmp_path / "out")

    def test_no_int8_model(self, parts: BundleParts, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"--int8 .*none\.onnx: there is no such model"):
            write_bundle(BundleParts(parts.model, parts.index, int8=tmp_path / "none.onnx"), tmp_path / "out")

    def test_an_int8_model_in_two_files(self, parts: BundleParts, tmp_path: Path) -> None:
        int8 = make_model(tmp_path / "two.onnx", metadata=INT8_METADATA, external=True)
        with pytest.raises(ModelError, match=r"two\.onnx: its weights lie in another file"):
            write_bundle(BundleParts(parts.model, parts.index, int8=int8), tmp_path / "out")

    def test_two_engines_of_one_name(self, parts: BundleParts, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        engines = (put_engine(tmp_path / "a.trt"), put_engine(tmp_path / "b" / "a.trt"))
        with pytest.raises(UsageError, match="another of this name"):
            write_bundle(BundleParts(parts.model, parts.index, engines=engines), tmp_path / "out")

    @pytest.mark.parametrize(
        ("name", "error"), [("none.onnx", InputError), ("a.trt", UsageError), ("text.onnx", ModelError)]
    )
    def test_no_model(self, index: Path, tmp_path: Path, name: str, error: type[Exception]) -> None:
        put_engine(tmp_path / "a.trt")
        (tmp_path / "text.onnx").write_text("text")
        with pytest.raises(error, match=name):
            write_bundle(BundleParts(tmp_path / name, index), tmp_path / "out")

    def test_a_model_that_does_not_say_what_it_is(self, index: Path, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m.onnx", metadata=None)
        with pytest.raises(ModelError, match="metadata") as caught:
            write_bundle(BundleParts(model, index), tmp_path / "out")
        assert "--preprocessing" not in caught.value.hint
        assert "python -m export" in caught.value.hint

    def test_a_model_in_two_files(self, index: Path, tmp_path: Path) -> None:
        model = make_model(tmp_path / "two.onnx", external=True)
        with pytest.raises(ModelError, match=r"two\.onnx: its weights lie in another file"):
            write_bundle(BundleParts(model, index), tmp_path / "out")

    def test_no_index(self, model: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such index"):
            write_bundle(BundleParts(model, tmp_path / "none"), tmp_path / "out")

    @pytest.mark.parametrize(
        "name", ["vectors.npy", "references.arrow", "coordinates.npy", "digests.npy", "manifest.json"]
    )
    def test_a_damaged_index_however_large(
        self, model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runtime_bundle, "HASHED_AT_OPEN", 0)
        index = make_index(tmp_path / "index", model)
        data = (index / name).read_bytes()
        (index / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if name != "manifest.json" else data[:-3])
        with pytest.raises(IndexFolderError, match=name.replace(".", r"\.")):
            write_bundle(BundleParts(model, index), tmp_path / "out")

    @pytest.mark.parametrize("text", ["two\nlines", "two\rlines"])
    @pytest.mark.parametrize("field", ["name", "description", "notice"])
    def test_several_lines(self, parts: BundleParts, tmp_path: Path, field: str, text: str) -> None:
        with pytest.raises(UsageError, match=f"--{field}"):
            write_bundle(BundleParts(parts.model, parts.index, **{field: text}), tmp_path / "out")

    def test_terms_of_a_part_that_is_not_there(self, parts: BundleParts, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="modle") as caught:
            write_bundle(BundleParts(parts.model, parts.index, licences={"modle": "MIT"}), tmp_path / "out")
        assert caught.value.hint == "its parts are index, model.onnx"

    def test_no_room(self, parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundles.shutil, "disk_usage", lambda _: _Usage)
        with pytest.raises(OutputError, match=r"takes 0 MB, and the disk has 0 MB left") as caught:
            write_bundle(parts, tmp_path / "out")
        assert "make room" in caught.value.hint

    @pytest.mark.parametrize("step", ["_copy", "_metrics", "write_bundle_manifest", "sync_file", "_exchange"])
    def test_the_disk_is_full_at_any_moment(
        self, parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(bundles, step, full)
        with pytest.raises(OutputError, match=r"out: the bundle cannot be written: no space left on device"):
            write_bundle(parts, tmp_path / "out")

    def test_a_part_that_cannot_be_read_is_not_called_unwritable(
        self, parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Torn:
            def __enter__(self) -> Torn:
                return self

            def __exit__(self, *_: object) -> None: ...

            def read(self, _: int) -> bytes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        whole = Path.open

        def torn(path: Path, mode: str = "r", *more: object, **named: object) -> object:
            copying = mode == "rb" and path == parts.model and (tmp_path / ".out.geoinfer-tmp" / "index").exists()
            return Torn() if copying else whole(path, mode, *more, **named)

        monkeypatch.setattr(Path, "open", torn)
        with pytest.raises(InputError, match=r"tiny\.onnx: cannot be read: input/output error"):
            write_bundle(parts, tmp_path / "out")

    def test_a_part_that_changes_while_it_is_copied(
        self, parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = bundles._copy

        def meddle(source: Path, target: Path) -> None:
            copy(source, target)
            if target.name == "references.arrow":
                data = target.read_bytes()
                target.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])

        monkeypatch.setattr(bundles, "_copy", meddle)
        with pytest.raises(InputError, match=r"references\.arrow: the copy differs"):
            write_bundle(parts, tmp_path / "out")


class _Usage:
    free = 10


class TestWhatIsThereAlready:
    def test_a_folder_that_is_no_bundle_stays(self, parts: BundleParts, tmp_path: Path) -> None:
        for name, files in {"empty": [], "photos": ["a.jpg"], "foreign": ["bundle.json"]}.items():
            folder = tmp_path / name
            folder.mkdir()
            for file in files:
                (folder / file).write_text('{"name": "a web page\'s bundle"}')
            before = contents(folder)
            with pytest.raises(OutputError, match="is not a bundle, so it is not replaced"):
                write_bundle(parts, folder, force=True)
            assert contents(folder) == before
        assert sorted(os.listdir(tmp_path)) == ["empty", "foreign", "photos"]

    def test_a_file_stays(self, parts: BundleParts, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match="not a bundle"):
            write_bundle(parts, tmp_path / "file", force=True)
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_bundle_only_when_forced(self, parts: BundleParts, tmp_path: Path) -> None:
        write_bundle(parts, tmp_path / "out")
        with pytest.raises(OutputError, match="exists already") as caught:
            write_bundle(parts, tmp_path / "out")
        assert "--force" in caught.value.hint
        new = BundleParts(parts.model, parts.index, notice="new")
        assert write_bundle(new, tmp_path / "out", force=True).notice == "new"
        assert os.listdir(tmp_path) == ["out"]

    @pytest.mark.parametrize(
        "name", ["notes.txt", "index/a.jpg", "sub/a.trt", ".a.trt.geoinfer-tmp", "a.trt.txt", "link"]
    )
    def test_files_that_are_no_part_of_it_are_not_lost(self, parts: BundleParts, tmp_path: Path, name: str) -> None:
        folder = write_bundle(parts, tmp_path / "out").folder
        (folder / "sub").mkdir()
        if name == "link":
            (folder / name).symlink_to(tmp_path / "nowhere")
        else:
            (folder / name).write_text("mine")
        with pytest.raises(OutputError, match=re.escape(f"no part of the bundle: {name}")) as caught:
            write_bundle(parts, folder, force=True)
        assert "move them" in caught.value.hint
        assert os.path.lexists(folder / name)

    def test_many_of_them_are_counted(self, parts: BundleParts, tmp_path: Path) -> None:
        folder = write_bundle(parts, tmp_path / "out").folder
        for number in range(9):
            (folder / f"{number}.jpg").touch()
        with pytest.raises(OutputError, match=r"0\.jpg, 1\.jpg, 2\.jpg, 3\.jpg, 4\.jpg and 4 more$"):
            write_bundle(parts, folder, force=True)

    def test_engines_that_were_built_into_it_are_kept_where_they_fit(self, parts: BundleParts, tmp_path: Path) -> None:
        folder = write_bundle(parts, tmp_path / "out").folder
        for name, changes in {"a.trt": {}, "b.trt": {"identity": "tiny:1"}, "c.trt": {}, "d.TRT": {}}.items():
            put_engine(folder / name, **changes)
            (folder / f"{name}.cache").write_bytes(name.encode())
        (folder / "c.trt.json").unlink()
        before = contents(folder)
        told: list[str] = []
        written = write_bundle(parts, folder, force=True, report=told.append)
        kept = {f"{name}{ending}" for name in ("a.trt", "d.TRT") for ending in ("", ".json", ".cache")}
        assert listing(folder) == {*written.files, "bundle.json", *kept}
        assert {name: contents(folder)[name] for name in kept} == {name: before[name] for name in kept}
        assert not kept & set(written.files)
        assert len(told) == 4
        assert told[0] == "the engine a.trt of the old bundle is kept"
        assert told[1].startswith("the engine b.trt of the old bundle is left out: the engine")
        assert "tiny:1" in told[1]
        assert told[2].startswith("the engine c.trt of the old bundle is left out: has no sidecar")
        assert os.listdir(tmp_path) == ["out"]

    def test_engines_of_the_manifest_too_unless_others_come_in_their_place(
        self, parts: BundleParts, tmp_path: Path
    ) -> None:
        (tmp_path / "new").mkdir()
        first, second = put_engine(tmp_path / "a.trt"), put_engine(tmp_path / "b.trt")
        folder = write_bundle(BundleParts(parts.model, parts.index, engines=(first, second)), tmp_path / "out").folder
        other = put_engine(tmp_path / "new" / "a.trt", plan_bytes(length=300))
        told: list[str] = []
        given = BundleParts(parts.model, parts.index, engines=(other,))
        written = write_bundle(given, folder, force=True, report=told.append)
        assert (folder / "a.trt").read_bytes() == other.read_bytes()
        assert (folder / "b.trt").read_bytes() == second.read_bytes()
        assert told == ["the engine b.trt of the old bundle is kept"]
        assert "a.trt" in written.files
        open_bundle(folder, verify=True)

    def test_where_files_cannot_have_two_names_engines_are_copied(
        self, parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        folder = write_bundle(parts, tmp_path / "out").folder
        plan = put_engine(folder / "a.trt").read_bytes()
        monkeypatch.setattr(os, "link", refused)
        write_bundle(parts, folder, force=True)
        assert (folder / "a.trt").read_bytes() == plan

    def test_a_damaged_bundle_can_be_replaced(self, parts: BundleParts, tmp_path: Path) -> None:
        write_bundle(parts, tmp_path / "out")
        (tmp_path / "out" / "model.onnx").unlink()
        write_bundle(parts, tmp_path / "out", force=True)
        assert open_bundle(tmp_path / "out", verify=True).name == "out"

    def test_made_anew_of_its_own_parts(self, parts: BundleParts, tmp_path: Path) -> None:
        out = write_bundle(parts, tmp_path / "out")
        again = write_bundle(BundleParts(out.model_path, out.index_path), out.folder, force=True)
        assert again.files == out.files

    @pytest.mark.parametrize("step", ["write_bundle_manifest", "sync_folder"])
    def test_a_failure_leaves_the_old_one_or_the_new_one_whole(
        self, parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        write_bundle(parts, tmp_path / "out")

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(bundles, step, full)
        with pytest.raises(OutputError):
            write_bundle(BundleParts(parts.model, parts.index, notice="new"), tmp_path / "out", force=True)
        found = open_bundle(tmp_path / "out", verify=True)
        assert found.notice == ("" if step == "write_bundle_manifest" else "new")

    def test_a_rename_that_fails_puts_the_old_one_back(
        self, parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_bundle(parts, tmp_path / "out")
        rename = Path.replace

        def fails(path: Path, target: Path) -> Path:
            if path.name == ".out.geoinfer-tmp":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", fails)
        with pytest.raises(OutputError, match="permission denied"):
            write_bundle(BundleParts(parts.model, parts.index, notice="new"), tmp_path / "out", force=True)
        assert open_bundle(tmp_path / "out", verify=True).notice == ""
        assert os.listdir(tmp_path) == ["out"]

    def test_a_kill_between_the_two_renames_is_mended(self, parts: BundleParts, tmp_path: Path) -> None:
        write_bundle(parts, tmp_path / "out").folder.rename(tmp_path / ".out.replaced")
        (tmp_path / ".out.geoinfer-tmp" / "index").mkdir(parents=True)
        with pytest.raises(OutputError, match="exists already"):
            write_bundle(parts, tmp_path / "out")
        assert open_bundle(tmp_path / "out", verify=True).name == "out"
        write_bundle(parts, tmp_path / "out", force=True)
        assert os.listdir(tmp_path) == ["out"]

    def test_a_link_is_followed(self, parts: BundleParts, tmp_path: Path) -> None:
        write_bundle(parts, tmp_path / "real")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        written = write_bundle(BundleParts(parts.model, parts.index, notice="new"), tmp_path / "link", force=True)
        assert written.folder == tmp_path / "real"
        assert (tmp_path / "link").is_symlink()
        assert open_bundle(tmp_path / "link").notice == "new"

    def test_another_process_writes_it(self, parts: BundleParts, tmp_path: Path) -> None:
        with (
            OutputLock(tmp_path / ".out.lock", tmp_path / "out"),
            pytest.raises(OutputError, match="is writing it") as caught,
        ):
            write_bundle(parts, tmp_path / "out")
        assert caught.value.hint == "wait for it, stop it, or choose another --out"

    def test_nor_is_its_work_removed(self, parts: BundleParts, tmp_path: Path) -> None:
        (tmp_path / ".out.geoinfer-tmp").mkdir()
        with OutputLock(tmp_path / ".out.lock", tmp_path / "out"), pytest.raises(OutputError):
            write_bundle(parts, tmp_path / "out")
        assert (tmp_path / ".out.geoinfer-tmp").exists()

    def test_parts_made_for_it_are_linked(self, model: Path, tmp_path: Path) -> None:
        own = tmp_path / "own.onnx"
        own.write_bytes(model.read_bytes())
        index = make_index(tmp_path / "index", own)
        with bundle_lock(tmp_path / "out"):
            written = write_locked_bundle(BundleParts(own, index), tmp_path / "out")
        assert written.model_path.samefile(own)
        assert (written.index_path / "vectors.npy").samefile(index / "vectors.npy")
        assert open_bundle(tmp_path / "out", verify=True) == written

    def test_no_name(self) -> None:
        with pytest.raises(UsageError, match="expected the name of a new folder"):
            check_bundle_output(Path("/"), force=True)

    def test_a_folder_that_cannot_be_made(self, parts: BundleParts, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot be written"):
            write_bundle(parts, tmp_path / "file" / "out")


class TestOtherCommands:
    def test_info_shows_what_was_measured(self, parts: BundleParts, tmp_path: Path) -> None:
        figures = write_bundle(parts, tmp_path / "out").metrics["leave_one_out"]
        shown = CliRunner().invoke(app, ["info", str(tmp_path / "out")]).output
        assert "cosine with torch at least 0.9999991, on 10 photos" in " ".join(shown.split())
        assert f"40 photos located by the index: median {figures['median_km']} km" in " ".join(shown.split())
        assert f"GeoScore {figures['geoscore']}" in shown

    @pytest.mark.parametrize(
        "metrics",
        [
            {"parity": 3, "leave_one_out": []},
            {"parity": {}, "leave_one_out": {"count": 3}},
            {"parity": {"min_cosine": "x", "photos": 3}, "leave_one_out": {"within_percent": 3}},
            {"later": {"than": "this"}},
        ],
    )
    def test_info_of_metrics_that_another_geoinfer_wrote(
        self, parts: BundleParts, tmp_path: Path, metrics: object
    ) -> None:
        write_bundle(parts, tmp_path / "out")
        manifest = json.loads((tmp_path / "out" / "bundle.json").read_bytes())
        (tmp_path / "out" / "bundle.json").write_text(json.dumps(manifest | {"metrics": metrics}))
        shown = CliRunner().invoke(app, ["info", str(tmp_path / "out")])
        assert shown.exit_code == 0
        assert "measured" not in shown.output
        assert "parity" not in shown.output

    def test_an_index_is_not_built_with_a_model_that_is_not_the_bundles(
        self, parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_photos: Path
    ) -> None:
        write_bundle(parts, tmp_path / "out")
        data = (tmp_path / "out" / "model.onnx").read_bytes()
        (tmp_path / "out" / "model.onnx").write_bytes(data.replace(b"tests", b"guest"))
        monkeypatch.setattr(runtime_bundle, "HASHED_AT_OPEN", 0)
        arguments = ["index", "build", example_photos, "--output", tmp_path / "new", "--engine", tmp_path / "out"]
        result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
        assert isinstance(result.exception, ModelError)
        assert "checksum" in str(result.exception)
        assert not (tmp_path / "new").exists()


class TestCommand:
    @staticmethod
    def run(*arguments: object) -> object:
        alone = typer.Typer()
        alone.command()(bundle_command)
        return CliRunner().invoke(alone, [str(argument) for argument in arguments])

    def test_makes_one_and_says_how_to_use_it(self, parts: BundleParts, tmp_path: Path) -> None:
        engine = put_engine(tmp_path / "a.trt")
        (tmp_path / "terms.md").write_text("# Terms\n")
        result = self.run(
            "--model", parts.model, "--index", parts.index, "--out", tmp_path / "out", "--engine", engine,
            "--licence", "index=CC-BY-4.0, see a=b", "--attribution", tmp_path / "terms.md", "--notice", "try it",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert f"geoinfer predict PHOTOS --engine {tmp_path / 'out'}" in result.output
        assert "40 photos located by the index" in result.output
        written = open_bundle(tmp_path / "out")
        assert written.licences["index"] == "CC-BY-4.0, see a=b"
        assert written.notice == "try it"
        assert (tmp_path / "out" / "ATTRIBUTION.md").read_text() == "# Terms\n"

    @pytest.mark.parametrize("text", ["MIT", "=MIT", "index=", " = "])
    def test_terms_that_are_none(self, parts: BundleParts, tmp_path: Path, text: str) -> None:
        result = self.run(
            "--model", parts.model, "--index", parts.index, "--out", tmp_path / "out", "--licence", text
        )  # fmt: skip
        assert isinstance(result.exception, UsageError)
        assert "PART=TEXT" in str(result.exception)

    def test_an_attribution_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            read_attribution(tmp_path / "none.md")
        (tmp_path / "binary.md").write_bytes(b"\xff\xfe")
        with pytest.raises(InputError, match="UTF-8"):
            read_attribution(tmp_path / "binary.md")
