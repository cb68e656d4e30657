"""Whatever is wrong: one or two lines that say what, where and what to do, the exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")

import onnxruntime
from onnx import TensorProto

from geoinfer.bundle import SHIPPED, write_bundle_manifest
from tests.onnx_models import METADATA, PREPROCESSING, make_model

DAMAGED_PREPROCESSING = METADATA | {"geoinfer.preprocessing": "[1, 2"}


def left_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.fixture
def refused(run, here: Path):
    """`refused(code, arguments, *words)`: checks everything that holds for every refusal."""

    def check(code: int, arguments: list[object], *words: str, stdin: bytes = b"", usage: bool = False) -> str:
        before = left_in(here)
        outcome = run(*arguments, stdin=stdin)
        lines = outcome.err.splitlines()
        assert outcome.code == code, outcome.err
        assert outcome.out == ""
        # Which device was chosen is said as soon as it is known.
        lines = [line for line in lines if not line.startswith("device: ")]
        assert 1 <= len(lines) <= (4 if usage else 2), outcome.err
        assert usage or lines[0].startswith("geoinfer: ")
        assert "Traceback" not in outcome.err
        assert "fault of geoinfer" not in outcome.err
        for word in words:
            assert word in outcome.err, outcome.err
        after = left_in(here)
        assert after == before
        return outcome.err

    return check


@pytest.fixture
def photo(here: Path, tiny) -> str:
    shutil.copy(tiny.photos / "red.png", here / "red.png")
    return "red.png"


# What is typed after `geoinfer predict red.png`, the exit code, and what the message must say.
ARGUMENTS = [
    (["--device", "gpu"], 2, ["--device gpu", "cuda:N"]),
    (["--device", ""], 2, ["--device", "expected auto"]),
    (["--device", "cuda"], 4, ["--device cuda", "CUDAExecutionProvider", "[gpu]"]),
    (["--device", "cuda:1"], 4, ["--device cuda:1", "CUDAExecutionProvider"]),
    (["--device", "tensorrt"], 4, ["--device tensorrt", "TensorrtExecutionProvider"]),
    (["--k", "0"], 2, ["--k 0", "1 to 100"]),
    (["--k", "-1"], 2, ["--k -1", "1 to 100"]),
    (["--k", "101"], 2, ["--k 101", "1 to 100"]),
    (["--batch-size", "0"], 2, ["--batch-size 0", "1 to 4096"]),
    (["--batch-size", "4097"], 2, ["--batch-size 4097", "1 to 4096"]),
    (["--workers", "0"], 2, ["--workers 0", "1 to 1024"]),
    (["--workers", "-3"], 2, ["--workers -3", "1 to 1024"]),
    (["--top", "-1"], 2, ["--top -1", "0 to 100"]),
    (["--top", "101"], 2, ["--top 101", "0 to 100"]),
    (["--aggregate", "foo"], 2, ["--aggregate foo", "top1, mean, median, density, cells, geoscore"]),
    (["--aggregate", ""], 2, ["--aggregate", "top1, mean, median, density, cells, geoscore"]),
    (["--shard", "0/4"], 2, ["--shard 0/4", "I/N"]),
    (["--shard", "5/4"], 2, ["--shard 5/4", "I/N"]),
    (["--shard", "x"], 2, ["--shard x", "I/N"]),
    (["--shard", ""], 2, ["--shard", "I/N"]),
    (["--shard", "1/0"], 2, ["--shard 1/0", "I/N"]),
    (["--shard", "-1/4"], 2, ["--shard -1/4", "I/N"]),
    (["--max-errors", "-1"], 2, ["--max-errors -1", "percentage"]),
    (["--max-errors", "abc"], 2, ["--max-errors abc", "percentage"]),
    (["--max-errors", "101%"], 2, ["--max-errors 101%", "percentage"]),
    (["--max-errors", "0.5"], 2, ["--max-errors 0.5", "percentage"]),
    (["--max-errors", ""], 2, ["--max-errors", "percentage"]),
    (["--output", "answers"], 2, ["--output answers", ".parquet"]),
    (["--output", "answers.txt"], 2, [".txt", ".parquet"]),
    (["--output", ""], 2, ["--output", ".parquet"]),
    (["--output", "folder.csv"], 2, ["folder.csv", "is a folder"]),
    (["--output", "red.png/o.csv"], 2, ["red.png/o.csv"]),
    (["--output", "a.csv", "--errors", "a.csv"], 2, ["--errors a.csv", "--output"]),
    (["--output", "a.csv", "--errors", "folder.csv/../a.csv"], 2, ["--errors", "--output"]),
    (["--errors", ""], 2, ["--errors", "is a folder"]),
    (["--errors", "folder.csv"], 2, ["--errors folder.csv", "is a folder"]),
    (["--errors", "none/e.csv"], 2, ["--errors none/e.csv", "no folder none"]),
    (["--errors", "red.png"], 2, ["--errors red.png", "photo"]),
    (["--summary-json", ""], 2, ["--summary-json", "is a folder"]),
    (["--summary-json", "none/s.json"], 2, ["--summary-json none/s.json", "no folder none"]),
    (["--summary-json", "red.png/s.json"], 2, ["--summary-json red.png/s.json", "no folder"]),
    (["--summary-json", "red.png"], 2, ["--summary-json red.png", "photo"]),
    (["--output", "a.csv", "--summary-json", "a.csv"], 2, ["--summary-json a.csv", "--output"]),
    (["--output", "a.csv", "--summary-json", "a.errors.csv"], 2, ["--summary-json a.errors.csv", "--errors"]),
    (["--output", "a.csv", "--summary-json", "a.csv.run.json"], 2, ["--summary-json a.csv.run.json", "record"]),
    (["--errors", "x.csv", "--summary-json", "x.csv"], 2, ["--summary-json x.csv", "--errors"]),
    (["--preprocessing", "nonsense"], 2, ["'nonsense'", "key=value"]),
    (["--preprocessing", ""], 2, ["key=value"]),
    (["--preprocessing", "size=0"], 2, ["size", "4096"]),
    (["--preprocessing", "size=224,mode=x"], 2, ["unknown mode"]),
    (["--preprocessing", "size=224"], 2, ["--preprocessing says", "leave --preprocessing out"]),
    (["--engine", ""], 3, ["bundle.json"]),
    (["--engine", "none"], 2, ["none: there is no such", "--engine takes"]),
    (["--engine", "folder.csv"], 3, ["folder.csv", "bundle.json"]),
    (["--engine", "vit.trt"], 2, ["vit.trt is a model without an index", "--index"]),
    (
        ["--engine", "vit.trt", "--index", str(SHIPPED / "index")],
        3,
        ["vit.trt: has no sidecar", "geoinfer engine build"],
    ),
    (["--engine", "red.png"], 3, ["red.png", "not an .onnx model or a .trt engine", "--engine takes"]),
    (["--index", ""], 3, ["manifest.json", "index build"]),
    (["--index", "none"], 2, ["none: there is no such index", "index build"]),
    (["--index", "folder.csv"], 3, ["folder.csv", "manifest.json", "index build"]),
    (["--index", "red.png"], 2, ["red.png", "index build"]),
]


@pytest.mark.parametrize(
    ("more", "code", "words"), ARGUMENTS, ids=[" ".join(word or "''" for word in row[0]) for row in ARGUMENTS]
)
def test_arguments(more: list[str], code: int, words: list[str], refused, here: Path, photo: str) -> None:
    (here / "folder.csv").mkdir()
    (here / "vit.trt").write_bytes(b"plan")
    if code == 4 and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    refused(code, ["predict", photo, *more], *words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "a.jpg", "--k", "many"],
        ["predict", "a.jpg", "--nonsense"],
        ["predict", "a.jpg", "--output"],
        ["nonsense"],
        ["index", "nonsense"],
        ["index", "build", "a.csv"],
        ["index", "info"],
        ["info", "a", "b"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_usage(arguments: list[str], refused) -> None:
    refused(2, arguments, "Error: ", usage=True)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["none.jpg"], ["none.jpg", "no such file"]),
        ([""], ["empty string"]),
        (["none/*.jpg"], ["none/*.jpg", "no file matches"]),
        (["@none.txt"], ["@none.txt", "cannot be read"]),
        (["@"], ["@", "cannot be read"]),
        (["empty"], ["no photos found in empty", "suffix"]),
        (["texts"], ["no photos found in texts"]),
        (["-"], ["no photos found in -"]),
        (["@empty.txt"], ["no photos found in @empty.txt"]),
        (["two\nlines.jpg"], ["two\\nlines.jpg"]),
        (["\x1b[31m.jpg"], ["\\x1b[31m.jpg"]),
    ],
    ids=repr,
)
def test_sources(sources: list[str], words: list[str], refused, here: Path, tiny) -> None:
    (here / "empty").mkdir()
    (here / "texts").mkdir()
    (here / "texts" / "notes.txt").write_text("no photo")
    (here / "empty.txt").write_text("")
    refused(2, ["predict", *sources, "--engine", tiny.model, "--index", tiny.index], *words)


def test_a_file_that_must_not_be_written(refused, here: Path, photo: str) -> None:
    (here / "list.csv").write_text("red.png\n")
    (here / "labels.csv").write_text("path,latitude,longitude\nred.png,1,2\n")
    refused(2, ["predict", "@list.csv", "--output", "list.csv", "--restart"], "list.csv", "is an input")
    refused(2, ["predict", "@list.csv", "--errors", "./list.csv"], "list.csv", "is an input")
    # Without a failure the build removes the report of an earlier one: the labels must not be taken for it.
    refused(2, ["index", "build", "labels.csv", "-o", "idx", "--errors", "labels.csv"], "labels.csv", "choose another")
    (here / "mine.csv").write_text("my own work\n")
    refused(2, ["predict", photo, "--output", "mine.csv"], "mine.csv", "exists already", "--restart")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_an_unreadable_folder(refused, here: Path) -> None:
    (here / "secret").mkdir(mode=0)
    refused(2, ["predict", "secret"], "secret", "permission denied")


MODELS = [
    ("float pixels", {"dtype": TensorProto.FLOAT}, ["tensor(float)", "expected uint8", "export"]),
    ("channels first", {"shape": ["batch", 3, 8, 8]}, ["[", "expected uint8 (batch, size, size, 3)"]),
    ("fixed batch", {"batch": 2}, ["fixed at 2", "dynamic batch"]),
    ("two inputs", {"extra_input": True}, ["2 inputs", "expected one"]),
    ("no metadata", {"metadata": None}, ["metadata", "--preprocessing size="]),
    ("damaged metadata", {"metadata": DAMAGED_PREPROCESSING}, ["metadata is damaged"]),
    ("no L2 norm", {"normalise": False}, ["expected 1", "L2 normalisation"]),
    ("integers out", {"out_dtype": TensorProto.INT64}, ["expected float"]),
]


@pytest.mark.parametrize(("how", "words"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_models(how: dict, words: list[str], refused, here: Path, photo: str, tiny) -> None:
    make_model(here / "wrong.onnx", **how)
    refused(3, ["predict", photo, "--engine", "wrong.onnx", "--index", tiny.index], "wrong.onnx", *words)
    refused(3, ["index", "build", tiny.labels, "--engine", "wrong.onnx", "-o", "idx"], "wrong.onnx", *words)


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "external data gone", "a folder"])
def test_files_that_are_no_model(kind: str, refused, here: Path, photo: str, tiny) -> None:
    path = make_model(here / "wrong.onnx", external=kind == "external data gone")
    whole = path.read_bytes()
    path.unlink()
    (here / "wrong.onnx.data").unlink(missing_ok=True)
    if kind == "a folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "text": b"hello\n", "truncated": whole[:250]}.get(kind, whole))
    refused(3, ["predict", photo, "--engine", "wrong.onnx", "--index", tiny.index], "wrong.onnx")
    refused(3, ["info", "wrong.onnx"], "wrong.onnx")


def test_a_model_that_gives_no_numbers_costs_each_photo_its_row(run, here: Path, tiny) -> None:
    """Not the run: which photos a model fails on shows only one by one."""
    from PIL import Image

    make_model(here / "nan.onnx", nan=True)
    Image.new("RGB", (9, 9)).save(here / "black.png")
    outcome = run(
        "predict", "black.png", tiny.photos / "red.png", "-e", "nan.onnx", "-i", tiny.index, "-o", "o.csv"
    )  # fmt: skip
    assert outcome.code == 1
    rows = (here / "o.csv").read_text().splitlines()
    assert rows[1].startswith("black.png,error,")
    assert "not finite" in rows[1]
    assert ",ok," in rows[2]


def test_a_model_without_an_index(refused, photo: str, tiny) -> None:
    refused(2, ["predict", photo, "--engine", tiny.model], "without an index", "--index")


def test_an_index_of_another_embedder_names_both(refused, here: Path, photo: str, tiny) -> None:
    other = make_model(here / "other.onnx", metadata=METADATA | {"geoinfer.identity": "other:1"})
    refused(3, ["predict", photo, "-e", other, "-i", tiny.index], "tiny:0", "other:1", "index build")
    refused(3, ["predict", photo, "-i", tiny.index], "tiny:0", "efficientnet-lite2-imagenet")


def test_an_index_of_another_preprocessing_names_both(refused, here: Path, photo: str, tiny) -> None:
    changed = json.dumps(PREPROCESSING | {"resize": "crop"})
    other = make_model(here / "other.onnx", metadata=METADATA | {"geoinfer.preprocessing": changed})
    refused(3, ["predict", photo, "-e", other, "-i", tiny.index], "8 px squash", "8 px crop")


@pytest.fixture
def index(here: Path, tiny) -> Path:
    return Path(shutil.copytree(tiny.index, here / "index"))


@pytest.mark.parametrize(
    "name", ["vectors.npy", "references.arrow", "coordinates.npy", "digests.npy", "leave_one_out-*.npz"]
)
@pytest.mark.parametrize("how", ["gone", "shorter", "one bit"])
def test_a_corrupt_index(name: str, how: str, refused, index: Path, photo: str, tiny) -> None:
    (path,) = index.glob(name)
    damage(path, how)
    refused(3, ["predict", photo, "-e", tiny.model, "-i", "index"], f"index/{path.name}")
    refused(3, ["index", "info", "index"], f"index/{path.name}")


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(data[:-1] if how == "shorter" else data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: "{", ["not JSON", "build it again"]),
        (lambda m: b"\xff\xfe{", ["not JSON"]),
        (lambda m: [], ["not the manifest"]),
        (lambda m: m | {"format": "geoinfer-bundle"}, ["not the manifest of a geoinfer index"]),
        (lambda m: m | {"version": 1}, ["version 1", "reads 2", "build the index again"]),
        (lambda m: {k: v for k, v in m.items() if k != "version"}, ["version None"]),
        (lambda m: {k: v for k, v in m.items() if k != "embedder"}, ["damaged", "embedder"]),
        (lambda m: {k: v for k, v in m.items() if k != "files"}, ["lists no files"]),
        (lambda m: m | {"files": {}}, ["does not list"]),
        (lambda m: m | {"size": "many"}, ["damaged"]),
        (lambda m: m | {"size": 4}, ["vectors.npy: holds 3 x 4 float32; manifest.json speaks of 4 x 4 float32"]),
        (lambda m: m | {"files": m["files"] | {"../x": {"bytes": 1, "sha256": ""}}}, ["../x", "no part of an index"]),
        (lambda m: m | {"files": m["files"] | {"a\0b": {"bytes": 1, "sha256": ""}}}, ["no part of an index"]),
    ],
)
def test_a_corrupt_index_manifest(change, words: list[str], refused, index: Path, photo: str, tiny) -> None:
    path = index / "manifest.json"
    new = change(json.loads(path.read_bytes()))
    path.write_bytes(new if isinstance(new, bytes) else (new if isinstance(new, str) else json.dumps(new)).encode())
    refused(3, ["predict", photo, "-e", tiny.model, "-i", "index"], "index", *words)


def test_a_broken_bundle(refused, here: Path, photo: str, tiny) -> None:
    bundle = here / "mine"
    shutil.copytree(tiny.index, bundle / "index")
    shutil.copy(tiny.model, bundle / "model.onnx")
    refused(3, ["predict", photo, "--engine", "mine"], "mine", "bundle.json")
    refused(3, ["info", "mine"], "mine", "bundle.json", "no such file")
    write_bundle_manifest(bundle, name="mine", description="", notice="", licences={})
    damage(bundle / "model.onnx", "one bit")
    refused(3, ["predict", photo, "--engine", "mine"], "mine/model.onnx", "checksum", "copy or build it again")
    refused(3, ["info", "mine"], "mine/model.onnx", "checksum")
    refused(3, ["index", "build", tiny.labels, "--engine", "mine", "-o", "idx"], "mine/model.onnx", "checksum")


def test_info_of_what_is_neither(refused, here: Path, photo: str, tiny) -> None:
    refused(2, ["info", "none"], "none: there is no such")
    refused(3, ["info", photo], photo, "not a model")
    refused(3, ["info", tiny.index], "this is an index", f"geoinfer index info {tiny.index}")
    refused(2, ["index", "info", "none"], "none: there is no such index")
    refused(3, ["index", "info", SHIPPED], "this is a bundle", str(SHIPPED / "index"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.csv", "-o", "idx"], ["none.csv", "no such file"]),
        (["labels.csv", "-o", ""], ["--output"]),
        (["labels.csv", "-o", "."], ["--output"]),
        (["labels.csv", "-o", "taken"], ["taken", "exists already", "--overwrite"]),
        (["labels.csv", "-o", "taken", "--overwrite"], ["taken", "not an index"]),
        (["labels.csv", "-o", "labels.csv/idx"], ["labels.csv/idx"]),
        (["photos", "-o", "idx", "--images", "photos"], ["--images"]),
        (["columns.csv", "-o", "idx"], ["columns.csv", "latitude"]),
        (["empty.csv", "-o", "idx"], ["empty.csv"]),
        (["labels.csv", "-o", "idx", "--errors", "none/e.csv"], ["none/e.csv", "no folder"]),
        (["labels.csv", "-o", "idx", "--max-errors", "x"], ["--max-errors x"]),
        (["labels.csv", "-o", "idx", "--workers", "0"], ["--workers 0"]),
        (["labels.csv", "-o", "idx", "--batch-size", "0"], ["--batch-size 0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else None,
)
def test_index_build(arguments: list[str], words: list[str], refused, here: Path, photo: str, tiny) -> None:
    (here / "labels.csv").write_text("path,latitude,longitude\nred.png,1,2\n")
    (here / "columns.csv").write_text("path,colour\nred.png,red\n")
    (here / "empty.csv").write_text("")
    (here / "taken").mkdir()
    (here / "photos").mkdir()
    shutil.move(here / photo, here / "photos" / photo)
    refused(2, ["index", "build", *arguments, "--engine", tiny.model], *words)


def test_an_index_of_photos_that_all_fail_leaves_only_the_report(run, here: Path, tiny) -> None:
    (here / "bad.jpg").write_bytes(b"no photo")
    (here / "labels.csv").write_text("path,latitude,longitude\nbad.jpg,1,2\n")
    outcome = run("index", "build", "labels.csv", "-o", "idx", "-e", tiny.model)
    assert outcome.code == 2
    assert "bad.jpg" in outcome.err
    assert sorted(left_in(here)) == ["bad.jpg", "idx.errors.csv", "labels.csv"]
    outcome = run("index", "build", tiny.photos, "-o", "idx2", "-e", tiny.model)
    assert outcome.code == 2
    assert "none of the 4 photos has a position" in outcome.err
    assert not (here / "idx2").exists()


def test_missing_library(run, here: Path, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("onnxruntime", "faiss"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            outcome = run("predict", photo)
        assert outcome.code == 2
        assert "geoinfer-toolkit[cpu]" in outcome.err
        assert len(outcome.err.splitlines()) == 2
        assert not list(here.glob("predictions*"))


def test_a_fault_of_geoinfer_itself(run, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import geoinfer.geolocator

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(geoinfer.geolocator.Geolocator, "open", fail)
    outcome = run("predict", photo)
    assert outcome.code == 70
    assert outcome.err.splitlines()[0] == "geoinfer: unexpected ZeroDivisionError: a b"
    assert "GEOINFER_DEBUG" in outcome.err
    monkeypatch.setenv("GEOINFER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("predict", photo)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["predict", "none.jpg"], 2), (["info", "none"], 2), (["index", "info", "."], 3), (["nonsense"], 2)],
)
def test_as_a_process(arguments: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "geoinfer", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "geoinfer", "predict", b"caf\xe9.jpg"], capture_output=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2
    assert b"caf\\udce9.jpg: there is no such file" in done.stderr


def test_the_tiny_index_is_usable_at_all(run, here: Path, photo: str, tiny) -> None:
    """Otherwise every refusal above could be for another reason than the one it is about."""
    outcome = run("predict", photo, "-e", tiny.model, "-i", tiny.index)
    assert outcome.code == 0
    assert (here / "predictions.csv").read_text().splitlines()[1].startswith("red.png,ok,")
