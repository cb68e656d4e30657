from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from geoinfer.backends.cpu_settings import CpuSettings
from geoinfer.self_tuning import cache, plan
from geoinfer.self_tuning import tune as tuning
from geoinfer.self_tuning.cache import CacheKey, Int8Kept, Kept
from geoinfer.self_tuning.choose import Trial
from geoinfer.self_tuning.plan import sha256
from geoinfer.self_tuning.precision import Verdict
from geoinfer.self_tuning.tune import Tuned

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run, Tiny

FAST, OTHER = CpuSettings(batch_size=4), CpuSettings(graph="extended")
RATES, DEFAULT_RATES = (150.0, 152.0, 148.0, 150.0), (100.0, 101.0, 99.0, 100.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`tune` measures nothing; what it was given is in `calls`."""
    made: dict[str, Any] = {"calls": [], "int8_why_not": ""}

    def tune(model: Path, *, int8: Path | None = None, **named: Any) -> Tuned:
        made["calls"].append((model, int8, named))
        trials = [
            Trial(CpuSettings(), "fp32", DEFAULT_RATES, DEFAULT_RATES, True),
            Trial(FAST, "fp32", RATES, DEFAULT_RATES, True),
            Trial(OTHER, "fp32", RATES, DEFAULT_RATES, False),
            Trial(CpuSettings(arena=False), left_out="no time was left for it"),
        ]
        eight = None if int8 is None else Trial(CpuSettings(), "int8", (230.0,) * 4, (100.0,) * 4)
        verdict = None if int8 is None else Verdict(0.9912, 16, True, "close")
        why_not = "there is no int8 sibling" if int8 is None else made["int8_why_not"]
        return Tuned(trials, FAST, eight, verdict, why_not, 20.04)

    monkeypatch.setattr(tuning, "tune", tune)
    return made


def test_the_table(run: Run, tiny: Tiny, played: dict[str, Any], own_cache: Path) -> None:
    outcome = run("tune", "--engine", tiny.model)
    assert outcome.code == 0
    key = CacheKey.here(sha256(tiny.model))
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"tiny.onnx on {key.processor}; {key.cores} core")
    assert lines[0].endswith("; 4 rounds on 16 drawn pictures, 20 s.")
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "",
        "settings images/s, range beside the default embeddings",
        "default 100.0, 99.0 to 101.0 the same",
        "batches of 4 150.0, 148.0 to 152.0 1.50 (1.48 to 1.52) the same",
        "graph extended 150.0, 148.0 to 152.0 1.50 (1.48 to 1.52) other last digits, not used",
        "no arena no time was left for it",
        "",
        "chosen: batches of 4: 1.50 times as fast as the default",
        f"kept in {key.path}",
        "",
    ]
    assert cache.load(key) == (Kept(FAST, 1.5), "")
    assert key.path.is_relative_to(own_cache)
    ((_, _, named),) = played["calls"]
    assert (named["seconds"], named["all_rounds"], named["pixels"]) == (20.0, True, None)


def test_the_shipped_bundle_and_its_int8(run: Run, played: dict[str, Any]) -> None:
    outcome = run("tune", "--seconds", "5")
    assert outcome.code == 0
    assert [(model.name, int8 and int8.name) for model, int8, _ in played["calls"]] == [
        ("model.onnx", "model.int8.onnx"),
        ("model.int8.onnx", None),
    ]
    assert "int8, default 230.0, 230.0 to 230.0 2.30 (2.30 to 2.30) smallest" in " ".join(outcome.out.split())
    assert "smallest cosine with fp32 0.9912" in outcome.out
    assert "chosen: int8, 2.3 times as fast as fp32" in outcome.out
    assert {named["seconds"] for *_, named in played["calls"]} == {5.0}


def test_an_int8_that_loses_is_not_measured_further(run: Run, played: dict[str, Any]) -> None:
    played["int8_why_not"] = "it is slower"
    outcome = run("tune")
    assert len(played["calls"]) == 1
    assert "int8 is not used: it is slower" in outcome.out


@pytest.mark.parametrize(
    ("precision", "measured"),
    [("fp32", [("model.onnx", None)]), ("int8", [("model.int8.onnx", None)])],
)
def test_of_one_precision(run: Run, played: dict[str, Any], precision: str, measured: list) -> None:
    assert run("tune", "--precision", precision).code == 0
    assert [(model.name, int8 and int8.name) for model, int8, _ in played["calls"]] == measured


def test_json(run: Run, tiny: Tiny, played: dict[str, Any]) -> None:
    outcome = run("tune", "--engine", tiny.model, "--json")
    (found,) = json.loads(outcome.out)["models"]
    key = CacheKey.here(sha256(tiny.model))
    assert (found["settings"], found["gain"], found["int8"]) == (FAST.as_dict(), 1.5, None)
    assert found["machine"] == key.as_dict()
    assert (found["kept"], found["complaint"]) == (str(key.path), "")
    assert found["trials"][1] == {
        "precision": "fp32", "settings": FAST.as_dict(), "images_per_second": list(RATES),
        "default_images_per_second": list(DEFAULT_RATES), "ratio": 1.5, "ratio_low": pytest.approx(1.48, abs=0.01),
        "ratio_high": pytest.approx(1.52, abs=0.01), "same_bits": True, "left_out": "",
    }  # fmt: skip
    assert found["trials"][3]["ratio"] is None
    assert outcome.err == ""


def test_photos_are_compared_on(run: Run, tiny: Tiny, played: dict[str, Any], tmp_path: Path) -> None:
    outcome = run("tune", "--engine", tiny.model, "--photos", tiny.photos)
    assert outcome.code == 0
    assert f"4 rounds on pictures of {tiny.photos}" in outcome.out
    pixels = played["calls"][0][2]["pixels"]
    assert pixels.shape == (16, 8, 8, 3)
    assert {tuple(picture[0, 0]) for picture in pixels} >= {(200, 20, 20), (20, 200, 20)}
    outcome = run("tune", "--engine", tiny.model, "--photos", tmp_path)
    assert outcome.code != 0
    assert "there are no photos here" in outcome.err


def test_forgetting(run: Run, tiny: Tiny) -> None:
    key = CacheKey.here(sha256(tiny.model))
    cache.store(key, Kept(FAST, 1.5))
    assert run("tune", "--engine", tiny.model, "--forget").out == "Forgotten.\n"
    assert not key.path.exists()
    again = run("tune", "--engine", tiny.model, "--forget")
    assert (again.code, again.out) == (0, "Nothing was kept of this model on this machine.\n")
    cache.store(key, Kept(FAST, 1.5))
    assert json.loads(run("tune", "-e", tiny.model, "--forget", "--json").out) == {"forgotten": [str(key.path)]}


def test_a_cache_that_cannot_be_written(run: Run, tiny: Tiny, played: dict[str, Any], own_cache: Path) -> None:
    own_cache.write_text("a file")
    outcome = run("tune", "--engine", tiny.model)
    assert outcome.code == 0
    assert "cannot be written: not a directory; the next run measures again" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--precision", "fp16"], 2, "--precision fp16: expected auto, fp32 or int8"),
        (["--seconds", "0"], 2, "--seconds 0: expected 1 to 3600"),
        (["--seconds", "nan"], 2, "--seconds nan: expected 1 to 3600"),
        (["--engine", "no.onnx"], 2, "no.onnx: there is no such model"),
        (["--engine", "some.trt"], 2, "some.trt is a TensorRT engine, which runs on a GPU alone"),
    ],
)
def test_what_is_wrong_is_said(run: Run, here: Path, arguments: list[str], code: int, words: str) -> None:
    outcome = run("tune", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err


def test_int8_that_is_not_there(run: Run, tiny: Tiny) -> None:
    outcome = run("tune", "--engine", tiny.model, "--precision", "int8")
    assert outcome.code != 0
    assert "has no int8 sibling" in outcome.err


def test_for_real_with_a_model_that_takes_no_time(run: Run, tiny: Tiny) -> None:
    outcome = run("tune", "--engine", tiny.model, "--seconds", "1", "--json")
    assert outcome.code == 0
    (found,) = json.loads(outcome.out)["models"]
    assert found["trials"][0]["images_per_second"]
    assert cache.load(CacheKey.here(sha256(tiny.model)))[0] is not None


# How predict, index build and evaluate use it.


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WORTH_MEASURING", 4)


def _photos(tiny: Tiny, folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").symlink_to(tiny.photos / "red.png")
    return folder


def test_a_long_run_measures_once(run: Run, tiny: Tiny, here: Path, played: dict[str, Any]) -> None:
    """The real limit: 255 photos are not worth it, 256 are."""
    few, many = _photos(tiny, here / "few", 255), _photos(tiny, here / "many", 256)
    known = ["--engine", tiny.model, "--index", tiny.index]
    outcome = run("predict", few, *known, "-o", "a.csv")
    assert (outcome.code, played["calls"]) == (0, [])
    assert "Measuring" not in outcome.err
    outcome = run("predict", few, many, *known, "-o", "b.csv", "--no-tune")
    assert (outcome.code, played["calls"]) == (0, [])
    outcome = run("predict", many, *known, "-o", "c.csv", "--summary-json", "c.json")
    assert outcome.code == 0
    assert outcome.err.splitlines()[:3] == [
        "Measuring how this model runs fastest here (once)…",
        "  batches of 4: 1.50 times as fast as the default; measured in 20.0 s",
        "device: cpu (this ONNX Runtime has no CUDA provider)",
    ]
    assert json.loads((here / "c.json").read_bytes())["batch_size"] == 4
    # Another long run measures no more; a short one uses what is kept; and what the user says comes first.
    outcome = run("predict", many, *known, "-o", "d.csv")
    assert "Measuring" not in outcome.err
    run("predict", few, *known, "-o", "e.csv", "--summary-json", "e.json")
    assert json.loads((here / "e.json").read_bytes())["batch_size"] == 4
    run("predict", few, *known, "-o", "f.csv", "--summary-json", "f.json", "--batch-size", "3")
    assert json.loads((here / "f.json").read_bytes())["batch_size"] == 3
    run("predict", few, *known, "-o", "g.csv", "--summary-json", "g.json", "--no-tune")
    assert json.loads((here / "g.json").read_bytes())["batch_size"] == 1
    assert len(played["calls"]) == 1
    # What is computed is the same however it is computed.
    assert (here / "a.csv").read_bytes() == (here / "e.csv").read_bytes() == (here / "g.csv").read_bytes()


def test_quiet_is_quiet(run: Run, tiny: Tiny, here: Path, played: dict[str, Any], few_are_many: None) -> None:
    many = _photos(tiny, here / "many", 4)
    outcome = run("predict", many, "--engine", tiny.model, "--index", tiny.index, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert len(played["calls"]) == 1


def test_a_share_counts_its_own(run: Run, tiny: Tiny, here: Path, played: dict[str, Any], few_are_many: None) -> None:
    many = _photos(tiny, here / "many", 6)
    known = ["--engine", tiny.model, "--index", tiny.index]
    for number in (1, 2, 3, 4, 5):
        assert run("predict", many, *known, "--shard", f"{number}/5").code == 0
    assert played["calls"] == []


@pytest.mark.parametrize("through", ["stdin", "pipe"])
def test_inputs_that_can_be_read_once_are_not_used_up(
    run: Run, tiny: Tiny, here: Path, played: dict[str, Any], few_are_many: None, through: str
) -> None:
    names = b"".join(os.fsencode(path) + b"\n" for path in sorted(_photos(tiny, here / "many", 8).iterdir()))
    known = ["--engine", tiny.model, "--index", tiny.index]
    if through == "stdin":
        outcome = run("predict", "-", *known, "-o", "a.csv", stdin=names)
    else:
        reader, writer = os.pipe()
        os.write(writer, names)
        os.close(writer)
        outcome = run("predict", f"@/dev/fd/{reader}", *known, "-o", "a.csv")
        os.close(reader)
    assert outcome.code == 0
    assert "Located 8 of 8 photos" in outcome.out
    assert played["calls"] == []


def test_a_finished_run_measures_nothing(
    run: Run, tiny: Tiny, here: Path, played: dict[str, Any], few_are_many: None
) -> None:
    many = _photos(tiny, here / "many", 4)
    known = ["--engine", tiny.model, "--index", tiny.index, "-o", "a.csv"]
    run("predict", many, *known, "--no-tune")
    outcome = run("predict", many, *known)
    assert "Nothing to do" in outcome.out
    assert played["calls"] == []
    assert run("predict", many, *known, "--restart").code == 0
    assert len(played["calls"]) == 1


def test_nothing_is_measured_before_arguments_and_index_are_known_to_be_well(
    run: Run, tiny: Tiny, here: Path, played: dict[str, Any], few_are_many: None
) -> None:
    many = _photos(tiny, here / "many", 4)
    assert run("predict", many, "--engine", tiny.model, "--index", "nowhere").code != 0
    assert run("predict", many, "--engine", tiny.model, "--index", tiny.index, "--k", "0").code == 2
    assert played["calls"] == []


def test_index_build_measures_and_its_references_are_fp32(
    run: Run, tiny: Tiny, here: Path, played: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is kept prefers int8, which an index is not made by unless somebody says so.
    monkeypatch.setattr(plan, "WORTH_MEASURING", 3)
    outcome = run("index", "build", tiny.labels, "-e", tiny.model, "-o", "one", "--max-errors", "3")
    assert outcome.code == 0, outcome.err
    assert len(played["calls"]) == 1
    assert "Measuring how this model runs fastest here (once)…" in outcome.err
    for number, option in enumerate((["--precision", "auto"], ["--precision", "fp32"], ["--no-tune"])):
        outcome = run("index", "build", tiny.labels, "-e", tiny.model, "-o", f"again-{number}", *option)
        assert outcome.code == 0
        assert "Measuring" not in outcome.err
        assert (here / f"again-{number}" / "vectors.npy").read_bytes() == (here / "one" / "vectors.npy").read_bytes()
    monkeypatch.setattr(plan, "WORTH_MEASURING", 4)
    cache.forget(CacheKey.here(sha256(tiny.model)))
    assert run("index", "build", tiny.labels, "-e", tiny.model, "-o", "two").code == 0
    assert len(played["calls"]) == 1


def test_int8_is_asked_for_on_a_cpu(run: Run, tiny: Tiny, here: Path) -> None:
    many = _photos(tiny, here / "many", 2)
    for command in (
        ["predict", many],
        ["index", "build", tiny.labels, "-o", "i"],
        ["evaluate", tiny.labels, "-o", "e"],
    ):
        outcome = run(*command, "--engine", tiny.model, "--precision", "int8", "--device", "cuda")
        assert (outcome.code, outcome.out) == (2, "")
        assert "--precision int8 is for a CPU, and --device is cuda" in outcome.err
        outcome = run(*command, "--engine", tiny.model, "--precision", "half")
        assert outcome.code == 2
        assert "--precision half: expected auto, fp32 or int8" in outcome.err


def test_the_shipped_int8_is_said_and_a_run_goes_on_with_the_file_it_was_begun_with(
    run: Run, here: Path, example_photos: Path
) -> None:
    from geoinfer.bundle import SHIPPED

    model, sibling = SHIPPED / "model.onnx", SHIPPED / "model.int8.onnx"
    key = CacheKey.here(sha256(model))
    photos = sorted(example_photos.iterdir())[:2]
    outcome = run("predict", *photos, "-o", "a.csv")
    assert "device: cpu (this ONNX Runtime has no CUDA provider)\n" in outcome.err
    cache.store(key, Kept(CpuSettings(), 1.0, Int8Kept(sha256(sibling), 2.31, "")))
    outcome = run("predict", *photos, "-o", "b.csv", "--summary-json", "b.json")
    reason = "this ONNX Runtime has no CUDA provider; int8 (2.3 times as fast as fp32 here)"
    assert f"device: cpu ({reason})\n" in outcome.err
    summary = json.loads((here / "b.json").read_bytes())
    assert (summary["device_reason"], summary["engine_file"]) == (reason, sha256(sibling))
    assert (here / "a.csv").read_bytes() != (here / "b.csv").read_bytes()
    outcome = run("predict", *photos, "-o", "c.csv", "--precision", "int8")
    assert "device: cpu (as asked; int8, as asked)\n" in outcome.err
    assert (here / "b.csv").read_bytes() == (here / "c.csv").read_bytes()
    # Each is found finished, and not said to be made with another file.
    for name in ("a.csv", "b.csv"):
        assert "Nothing to do" in run("predict", *photos, "-o", name).out
    cache.forget(key)
    for name in ("a.csv", "b.csv"):
        assert "Nothing to do" in run("predict", *photos, "-o", name).out
    refused = run("predict", *photos, "-o", "b.csv", "--precision", "fp32")
    assert refused.code == 2
    assert "engine file" in refused.err
