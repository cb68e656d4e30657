from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from geoinfer.bundle import SHIPPED, write_bundle_manifest
from geoinfer.cli.console import Console
from tests.backends.fake_tensorrt import pretend, write_engine
from tests.onnx_models import SIZE, make_model

COLUMNS = [
    "path", "status", "latitude", "longitude", "radius_km", "score", "top1_similarity", "unlike_references", "error"
]  # fmt: skip
PLACES = {"red": (48.86, 2.35), "green": (-33.87, 151.21), "blue": (64.15, -21.94)}
NOTICE = json.loads((SHIPPED / "bundle.json").read_bytes())["notice"]


def table(path: Path | str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def predict(run, here: Path, tiny):
    """With the tiny model and index."""

    def call(*arguments: object, stdin: bytes = b""):
        return run("predict", *arguments, "-e", tiny.model, "-i", tiny.index, "--aggregate", "top1", stdin=stdin)

    return call


class TestShippedBundle:
    def test_end_to_end(self, run, here: Path, example_photos: Path) -> None:
        outcome = run("predict", example_photos, "--summary-json", "s.json")
        assert outcome.code == 0
        assert outcome.err.splitlines()[0].startswith("device: ")
        assert outcome.err.splitlines()[-1] == f"note: {NOTICE}"
        assert outcome.out.startswith("Located 10 of 10 photos in ")
        assert "locations: predictions.csv" in outcome.out
        with open("predictions.csv") as file:
            assert file.readline().strip().split(",")[: len(COLUMNS)] == COLUMNS
        rows = table("predictions.csv")
        assert [row["path"] for row in rows] == sorted(str(path) for path in example_photos.glob("*.jpg"))
        for row in rows:
            assert row["status"] == "ok"
            assert row["error"] == ""
            assert -90 <= float(row["latitude"]) <= 90
            assert -180 <= float(row["longitude"]) <= 180
            assert 0 < float(row["radius_km"]) <= 20016
            assert 0 < float(row["score"]) < 1
            assert 0 < float(row["top1_similarity"]) < 1
            assert row["unlike_references"] in ("true", "false")
            assert row["location_type"] == "estimated"
        assert len({row["latitude"] for row in rows}) > 3
        summary = json.loads(Path("s.json").read_bytes())
        wanted = {
            "inputs": 10, "ok": 10, "error": 0, "skipped": 0, "resumed": 0, "already_finished": False, "exit_code": 0,
            "k": 10, "aggregate": "density", "temperature": 0.05, "bandwidth_km": 200, "min_score": None,
            "places": False, "abstained": 0, "notice": NOTICE, "location_type": "estimated",
            "output": str(here / "predictions.csv"), "errors": str(here / "predictions.errors.csv"),
            "engine": "efficientnet-lite2-imagenet:9656183eaeafe8cb", "calibrated": True,
        }  # fmt: skip
        assert {key: summary[key] for key in wanted} == wanted
        assert summary["index"].endswith("bundles/demo/index")
        assert summary["seconds"] > 0
        assert summary["images_per_second"] == pytest.approx(10 / summary["seconds"], rel=0.01)

    def test_quiet_still_shows_the_notice(self, run, here: Path, example_photos: Path) -> None:
        outcome = run("predict", example_photos / "cannes-heidi.jpg", "--quiet")
        assert (outcome.code, outcome.out, outcome.err) == (0, "", f"note: {NOTICE}\n")
        again = run("predict", example_photos / "cannes-heidi.jpg", "--quiet")
        assert (again.code, again.out, again.err) == (0, "", f"note: {NOTICE}\n")

    def test_the_bundles_own_index_by_another_name_shows_the_notice(
        self, run, here: Path, example_photos: Path
    ) -> None:
        (here / "link").symlink_to(SHIPPED / "index")
        outcome = run("predict", example_photos / "cannes-heidi.jpg", "--index", "link", "-q")
        assert NOTICE in outcome.err

    def test_an_index_of_ones_own_shows_no_notice(self, run, here: Path, example_photos: Path) -> None:
        (here / "labels.csv").write_text(f"path,latitude,longitude\n{example_photos}/cannes-heidi.jpg,43.55,7.01\n")
        assert run("index", "build", "labels.csv", "-o", "mine").code == 0
        outcome = run("predict", example_photos / "cannes-heidi.jpg", "--index", "mine")
        assert outcome.code == 0
        assert "demonstration" not in outcome.out + outcome.err
        assert "too few references" in outcome.out
        (row,) = table("predictions.csv")
        assert (float(row["latitude"]), float(row["longitude"])) == (43.55, 7.01)
        assert float(row["top1_similarity"]) == pytest.approx(1, abs=1e-5)
        assert float(row["radius_km"]) == pytest.approx(20015.1, abs=0.1)
        assert float(row["score"]) == 0

    @pytest.mark.gpu
    def test_on_a_gpu(self, run, here: Path, example_photos: Path) -> None:
        assert run("predict", example_photos, "--device", "cpu", "-o", "cpu.csv").code == 0
        outcome = run("predict", example_photos, "--device", "cuda", "-o", "cuda.csv")
        assert outcome.code == 0
        assert outcome.err.startswith("device: cuda:0 (as asked)\n")
        for one, other in zip(table("cpu.csv"), table("cuda.csv"), strict=True):
            assert one["path"] == other["path"]
            assert float(one["top1_similarity"]) == pytest.approx(float(other["top1_similarity"]), abs=1e-3)

    @pytest.mark.gpu
    def test_auto_says_that_it_took_the_gpu(self, run, here: Path, example_photos: Path) -> None:
        outcome = run("predict", example_photos)
        assert outcome.err.startswith("device: cuda:0 (an NVIDIA GPU was found)\n")


class TestModelAndIndex:
    def test_each_photo_finds_its_own_colour(self, predict, tiny) -> None:
        outcome = predict(tiny.photos)
        assert outcome.code == 0
        assert re.fullmatch(r"device: \S+ \(.+\)\n", outcome.err)
        rows = {Path(row["path"]).stem: row for row in table("predictions.csv")}
        assert set(rows) == {"red", "green", "blue", "grey"}
        for name, place in PLACES.items():
            assert (float(rows[name]["latitude"]), float(rows[name]["longitude"])) == place
            assert float(rows[name]["top1_similarity"]) == pytest.approx(1, abs=1e-4)

    def test_preprocessing_for_a_model_without_metadata(self, run, here: Path, tiny) -> None:
        make_model(here / "bare.onnx", metadata=None)
        pixels = ["--preprocessing", f"size={SIZE},resize=squash", "-e", "bare.onnx"]
        assert run("index", "build", tiny.labels, "-o", "idx", *pixels).code == 0
        assert run("predict", tiny.photos, "-i", "idx", *pixels, "--k", "1").code == 0
        rows = {Path(row["path"]).stem: row for row in table("predictions.csv")}
        assert float(rows["blue"]["latitude"]) == pytest.approx(64.15)
        other = ["--preprocessing", f"size={SIZE},resize=crop", "-e", "bare.onnx"]
        assert run("predict", tiny.photos, "-i", "idx", *other, "-o", "o.csv").code == 3

    def test_a_bundle_of_ones_own(self, run, here: Path, tiny) -> None:
        shutil.copytree(tiny.index, here / "mine" / "index")
        shutil.copy(tiny.model, here / "mine" / "model.onnx")
        write_bundle_manifest(here / "mine", name="mine", description="d", notice="mind the gap", licences={})
        outcome = run("predict", tiny.photos, "-e", "mine")
        assert outcome.code == 0
        assert outcome.err.splitlines()[-1] == "note: mind the gap"

    def test_an_engine(self, run, tiny, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(30):
            shutil.copy(tiny.photos / f"{list(PLACES)[number % 3]}.png", here / f"{number:02d}.png")
        on_cpu = ["--engine", tiny.model, "--index", tiny.index, "--device", "cpu", "-o", "cpu.csv"]
        assert run("predict", ".", *on_cpu).code == 0
        machine = pretend(monkeypatch)
        engine = write_engine(here / "vit.trt")
        arguments = ["predict", ".", "--engine", engine, "--index", tiny.index, "-o", "gpu.csv"]
        outcome = run(*arguments, "--summary-json", "s.json")
        assert outcome.code == 0
        assert outcome.err.startswith("device: cuda:0 (vit.trt, fp16, by TensorRT 10.13.3.9 on NVIDIA Fake)\n")
        assert json.loads((here / "s.json").read_bytes())["batch_size"] == 8
        # A try-out of both lanes, then whole batches alone: no shape but one.
        assert {len(pixels) for pixels in machine.behaviour.computed} == {8}
        assert len(machine.behaviour.computed) == 2 + 4
        for one, other in zip(table("cpu.csv"), table("gpu.csv"), strict=True):
            assert one["path"] == other["path"]
            for column in ("latitude", "longitude", "top1_similarity"):
                assert float(one[column]) == pytest.approx(float(other[column]), abs=2e-6)
        assert machine.cuda.held == []
        assert machine.cuda.misuse == []
        # Another file, or other batches, are another run.
        for field, more in (("engine file", ["--engine", write_engine(here / "other.trt", content=b"2")]),
                            ("--batch-size", ["--batch-size", "4"])):  # fmt: skip
            outcome = run(*arguments, *more)
            assert outcome.code == 2
            assert field in outcome.err

    def test_device_cpu_says_as_asked(self, predict, tiny) -> None:
        outcome = predict(tiny.photos / "red.png", "--device", "cpu", "--index-device", "cpu")
        assert outcome.err == "device: cpu (as asked)\n"


class TestConfidence:
    """The shipped bundle: three hundred references, enough for scores and to tell what is unlike all of them."""

    def test_answers_of_a_low_score_are_not_given(self, run, here: Path, example_photos: Path) -> None:
        assert run("predict", example_photos, "-o", "all.csv").code == 0
        scores = sorted(float(row["score"]) for row in table("all.csv"))
        limit = scores[4]
        outcome = run("predict", example_photos, "--min-score", f"{limit:.6f}", "--summary-json", "s.json")
        assert outcome.code == 0
        assert "0 errors, 4 skipped." in outcome.out
        assert f"  4 skipped for a score below {limit:g}." in outcome.out
        assert "errors:    predictions.errors.csv (4 low_score)" in outcome.out
        summary = json.loads(Path("s.json").read_bytes())
        assert (summary["ok"], summary["skipped"], summary["abstained"], summary["error"]) == (6, 4, 4, 0)
        assert (summary["min_score"], summary["failures"]) == (limit, {})
        for before, row in zip(table("all.csv"), table("predictions.csv"), strict=True):
            if float(before["score"]) >= limit:
                assert row == before
            else:
                assert (row["status"], row["latitude"], row["longitude"], row["radius_km"]) == ("skipped", "", "", "")
                assert (row["score"], row["top1_similarity"]) == (before["score"], before["top1_similarity"])
                assert row["error"] == f"the score {float(before['score']):.6g} is below {limit:g}"
        assert [row["code"] for row in table("predictions.errors.csv")] == ["low_score"] * 4
        again = run("predict", example_photos, "--min-score", f"{limit:.6f}")
        assert "Nothing to do" in again.out
        other = run("predict", example_photos)
        assert other.code == 2
        assert "another --min-score" in other.err

    @pytest.mark.parametrize("score", ["-0.1", "1.1", "nan", "inf"])
    def test_scores_that_nothing_has(self, predict, here: Path, tiny, score: str) -> None:
        outcome = predict(tiny.photos, f"--min-score={score}")
        assert outcome.code == 2
        assert f"--min-score {float(score):g}: expected 0 to 1" in outcome.err
        assert list(here.iterdir()) == []

    def test_an_index_that_is_not_calibrated_has_no_scores(self, predict, here: Path, tiny) -> None:
        outcome = predict(tiny.photos, "--min-score", "0.5")
        assert outcome.code == 2
        assert "--min-score 0.5: no answer has a score, as the index has too few references" in outcome.err
        assert list(here.iterdir()) == []

    def test_places(self, predict, here: Path, tiny) -> None:
        pytest.importorskip("reverse_geocode")
        (here / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
        assert predict(tiny.photos, "broken.jpg", "--places", "--max-errors", "1").code == 0
        rows = {Path(row["path"]).stem: row for row in table("predictions.csv")}
        assert [rows[name]["country"] for name in ("red", "green", "blue", "broken")] == [
            "France", "Australia", "Iceland", ""
        ]  # fmt: skip
        assert rows["red"]["region"] == "Île-de-France"
        assert rows["blue"]["city"] != ""
        assert float(rows["blue"]["city_km"]) < 10
        assert rows["broken"]["city_km"] == ""

    def test_places_need_a_package(self, predict, here: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
        import importlib.util

        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name == "reverse_geocode" else found(name, *more)
        )
        outcome = predict(tiny.photos, "--places")
        assert outcome.code == 2
        assert "geoinfer-toolkit[places]" in outcome.err
        assert list(here.iterdir()) == []

    def test_temperature_and_bandwidth(self, run, here: Path, tiny) -> None:
        arguments = ["predict", tiny.photos, "-e", tiny.model, "-i", tiny.index, "--summary-json", "s.json"]
        assert run(*arguments, "--temperature", "0.2", "--bandwidth-km", "55").code == 0
        summary = json.loads(Path("s.json").read_bytes())
        assert (summary["temperature"], summary["bandwidth_km"]) == (0.2, 55)
        outcome = run(*arguments, "--temperature", "0.2")
        assert outcome.code == 2
        assert "another --bandwidth-km (55.0; now 200.0)" in outcome.err
        outcome = run(*arguments, "--aggregate", "top1", "--temperature", "0.2", "--restart")
        assert outcome.code == 2
        assert "--temperature" in outcome.err

    def test_an_index_device_that_is_not_there(self, predict, here: Path, tiny) -> None:
        from geoinfer.index.gpu import gpu_count

        if gpu_count():
            pytest.skip("FAISS has a GPU here")
        outcome = predict(tiny.photos, "--index-device", "cuda")
        assert outcome.code == 4
        assert list(here.iterdir()) == []
        outcome = predict(tiny.photos, "--index-device", "gpu")
        assert outcome.code == 2
        assert "--index-device gpu: expected one of auto, cpu, cuda" in outcome.err


class TestFailedInputs:
    @pytest.fixture
    def mixed(self, here: Path, tiny) -> Path:
        shutil.copy(tiny.photos / "red.png", here / "red.png")
        (here / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
        return here

    def test_one_is_too_many_by_default(self, predict, mixed: Path) -> None:
        outcome = predict("red.png", "broken.jpg", "--summary-json", "s.json")
        assert outcome.code == 1
        assert "Located 1 of 2 photos" in outcome.out
        assert outcome.err.splitlines()[-1] == "geoinfer: 1 input failed, more than --max-errors 0"
        assert "errors:    predictions.errors.csv (1 truncated)" in outcome.out
        assert [row["status"] for row in table("predictions.csv")] == ["ok", "error"]
        (report,) = table("predictions.errors.csv")
        assert report["path"] == "broken.jpg"
        assert report["stage"] == "decode"
        assert report["size_bytes"] == "14"
        summary = json.loads((mixed / "s.json").read_bytes())
        assert (summary["ok"], summary["error"], summary["exit_code"]) == (1, 1, 1)
        assert summary["failures"] == {"truncated": 1}

    @pytest.mark.parametrize(("limit", "code"), [("1", 0), ("50%", 0), ("49.9%", 1), ("0%", 1), ("100%", 0)])
    def test_max_errors(self, predict, mixed: Path, limit: str, code: int) -> None:
        outcome = predict("red.png", "broken.jpg", "--max-errors", limit)
        assert outcome.code == code
        assert ("--max-errors" in outcome.err) == (code == 1)

    def test_quiet_says_only_that(self, predict, mixed: Path) -> None:
        outcome = predict("broken.jpg", "-q")
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == "geoinfer: 1 input failed, more than --max-errors 0\n"

    def test_a_report_by_another_name(self, predict, mixed: Path) -> None:
        predict("red.png", "broken.jpg", "--errors", "bad.csv")
        assert len(table("bad.csv")) == 1
        assert not (mixed / "predictions.errors.csv").exists()


class TestSources:
    @pytest.mark.parametrize("separator", [b"\n", b"\0", b"\r\n"])
    def test_standard_input(self, predict, tiny, separator: bytes) -> None:
        names = [str(tiny.photos / f"{name}.png") for name in ("green", "red")]
        assert predict("-", stdin=separator.join(map(os.fsencode, names))).code == 0
        assert [row["path"] for row in table("predictions.csv")] == names

    def test_a_list_a_pattern_and_a_file(self, predict, here: Path, tiny) -> None:
        (here / "list.txt").write_text(f"{tiny.photos}/blue.png\n\n{tiny.photos}/none.png\n")
        outcome = predict("@list.txt", tiny.photos / "g*.png", tiny.photos / "red.png")
        assert outcome.code == 1
        rows = [(Path(row["path"]).name, row["status"]) for row in table("predictions.csv")]
        assert rows == [
            ("blue.png", "ok"), ("none.png", "error"), ("green.png", "ok"), ("grey.png", "ok"), ("red.png", "ok")
        ]  # fmt: skip

    @pytest.mark.skipif(not Path("/dev/fd").exists() or shutil.which("bash") is None, reason="needs bash and /dev/fd")
    def test_a_list_that_is_a_pipe_is_read_by_nobody_else(self, here: Path, tiny) -> None:
        """Not by the thread that counts the inputs for the progress bar either."""
        command = f"{sys.executable} -m geoinfer predict @<(ls {tiny.photos}/*.png) -e {tiny.model} -i {tiny.index}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert len(table("predictions.csv")) == 4


class TestOutputs:
    def test_shards_have_names_of_their_own_and_share_everything(self, predict, here: Path, tiny) -> None:
        seen = []
        for number in (1, 2, 3):
            assert predict(tiny.photos, "--shard", f"{number}/3").code == 0
            seen += [row["path"] for row in table(f"predictions-{number}-of-3.csv")]
            assert (here / f"predictions-{number}-of-3.errors.csv").is_file()
        assert sorted(seen) == sorted(map(str, tiny.photos.glob("*.png")))

    @pytest.mark.parametrize("top", [0, 1, 2, 3, 5])
    def test_candidates_in_jsonl(self, predict, tiny, top: int) -> None:
        assert predict(tiny.photos, "-o", "o.jsonl", "--top", top).code == 0
        rows = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
        assert [len(row["candidates"]) for row in rows] == [min(top, 3)] * 4
        for row in rows:
            similarities = [candidate["similarity"] for candidate in row["candidates"]]
            assert similarities == sorted(similarities, reverse=True)
            for candidate in row["candidates"]:
                assert (candidate["latitude"], candidate["longitude"]) == PLACES[candidate["reference"]]

    def test_more_candidates_than_neighbours(self, predict, tiny) -> None:
        assert predict(tiny.photos / "red.png", "-o", "o.jsonl", "--top", 3, "--k", 1).code == 0
        assert len(json.loads(Path("o.jsonl").read_text())["candidates"]) == 3

    def test_folders_that_are_not_there_yet_are_made(self, predict, tiny) -> None:
        where = Path("new") / "folder"
        files = ["-o", where / "o.csv", "--summary-json", where / "s.json", "--errors", where / "e.csv"]
        assert predict(tiny.photos, *files).code == 0
        assert sorted(path.name for path in where.iterdir()) == ["e.csv", "o.csv", "o.csv.run.json", "s.json"]

    def test_again_has_nothing_to_do_and_restart_has(self, predict, tiny) -> None:
        assert "Located 4 of 4" in predict(tiny.photos).out
        assert "Nothing to do: predictions.csv holds all 4 inputs" in predict(tiny.photos).out
        assert "Located 4 of 4" in predict(tiny.photos, "--restart").out

    def test_another_option_is_named(self, predict, tiny) -> None:
        predict(tiny.photos)
        outcome = predict(tiny.photos, "--k", "2")
        assert outcome.code == 2
        assert "another --k (10; now 2)" in outcome.err
        assert "--restart" in outcome.err


class TestStreams:
    """Runs that nobody reads, or that are started with closed streams, do their work all the same."""

    def shell(self, redirect: str, tiny, before: str = "") -> subprocess.CompletedProcess[str]:
        command = (
            f"{before}{sys.executable} -m geoinfer predict {tiny.photos} -e {tiny.model} -i {tiny.index} {redirect}"
        )
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)

    @pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
    def test_closed(self, here: Path, tiny, redirect: str) -> None:
        done = self.shell(redirect, tiny)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "device:" not in done.stdout
        assert len(table("predictions.csv")) == 4

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_pipe_whose_reader_is_gone(self, here: Path, tiny, number: int) -> None:
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "geoinfer", "predict", tiny.photos, "-e", tiny.model, "-i", tiny.index],
                stdout=write if number == 1 else subprocess.PIPE, stderr=write if number == 2 else subprocess.PIPE,
                timeout=60,
            )  # fmt: skip
        finally:
            os.close(write)
        assert done.returncode == 0
        assert b"Broken" not in (done.stderr or b"") + (done.stdout or b"")
        assert len(table("predictions.csv")) == 4

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    def test_standard_output_on_a_full_disk(self, here: Path, tiny) -> None:
        done = self.shell(">/dev/full", tiny)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == "geoinfer: standard output: cannot be written: no space left on device"
        assert len(table("predictions.csv")) == 4

    def test_standard_input_that_is_closed(self, here: Path, tiny) -> None:
        command = f"{sys.executable} -m geoinfer predict - -e {tiny.model} -i {tiny.index} <&-"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "no photos found in -" in done.stderr


def test_a_bar_on_a_terminal(tmp_path: Path, tiny) -> None:
    """Standard error as a terminal gets a bar, standard output none of it."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "geoinfer", "predict", tiny.photos, "-e", tiny.model, "-i", tiny.index]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=child, timeout=60, cwd=tmp_path, env=environment)
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(parent)
    assert done.returncode == 0
    assert b"device: " in shown
    assert b"locating" in shown
    assert b"errors" in shown
    assert done.stdout.startswith(b"Located 4 of 4 photos")
    assert b"\x1b" not in done.stdout


def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from geoinfer.cli import console

    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Console(quiet=False) as shown:
        shown.started(10, 1)
        now[0] = 5
        shown.progressed(10, 0)
        now[0] = 20
        shown.progressed(20, 2)
    assert capsys.readouterr().err == "resuming after 10 inputs that are done\n40 photos, 1.5/s, 3 errors\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (42.4, "42 s"), (89.4, "89 s"), (180, "3 min"), (5400, "1 h 30 min"),
     (7500, "2 h 05 min")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    from geoinfer.cli.console import duration

    assert duration(seconds) == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_waits_for_standard_input(here: Path, tiny, number: int) -> None:
    """Python aborts (134, a core dump) when it ends while a thread holds the lock of standard input's buffer."""
    command = [sys.executable, "-m", "geoinfer", "predict", "-", "-e", tiny.model, "-i", tiny.index]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("device: ")
        deadline = time.monotonic() + 20
        while not (here / "predictions.csv.run" / "ledger.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        code, said = process.wait(timeout=20), process.stderr.read()
    assert "interrupted" in said
    assert "Fatal" not in said
    assert code == 130


def test_a_restart_that_fails_leaves_the_old_result(predict, here: Path, tiny) -> None:
    assert predict(tiny.photos).code == 0
    before = {name: (here / name).read_bytes() for name in ("predictions.csv", "predictions.csv.run.json")}
    (here / "empty").mkdir()
    outcome = predict("empty", "--restart")
    assert outcome.code == 2
    assert "no photos found" in outcome.err
    assert {name: (here / name).read_bytes() for name in before} == before
    assert not (here / "predictions.csv.run").exists()
    # And it is still the result of a finished run.
    assert "Nothing to do" in predict(tiny.photos).out


def test_a_finished_run_without_its_report_says_so(predict, here: Path, tiny) -> None:
    assert predict(tiny.photos).code == 0
    (here / "predictions.errors.csv").unlink()
    outcome = predict(tiny.photos)
    assert outcome.code == 2
    assert "predictions.errors.csv" in outcome.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_before_the_run_begins(here: Path, tiny, number: int) -> None:
    """Sent while NumPy is being imported: an exception there would come out as a package that is missing."""
    program = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy': os.kill(os.getpid(), int(sys.argv.pop()))\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from geoinfer.cli import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "predict", str(tiny.photos), str(int(number))],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.returncode, result.stderr, result.stdout) == (130, "geoinfer: interrupted\n", "")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("gap_ms", [0, 20, 100])
@pytest.mark.parametrize("command", ["predict", "index build"])
def test_a_second_interrupt_ends_it_at_once_and_cleanly(here: Path, tiny, command: str, gap_ms: int) -> None:
    """Python itself would abort (134) with threads at work in libraries, or die of the signal."""
    (here / "many").mkdir()
    for number in range(3000):
        (here / "many" / f"{number}.png").symlink_to(tiny.photos / "red.png")
    (here / "many.csv").write_text(
        "path,latitude,longitude\n" + "".join(f"many/{number}.png,1,2\n" for number in range(3000))
    )
    arguments = (
        ["predict", "many", "-i", tiny.index] if command == "predict" else ["index", "build", "many.csv", "-o", "i"]
    )
    with subprocess.Popen(
        [sys.executable, "-m", "geoinfer", *arguments, "-e", tiny.model, "--no-tune"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline().startswith("device: ")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(gap_ms / 1000)
        process.send_signal(signal.SIGINT)
        code, said = process.wait(timeout=30), process.stderr.read()
    assert code == 130
    assert "interrupted" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("content", ["precious", "[1]", '{"a": 1}'])
def test_a_summary_overwrites_nothing_but_a_summary(predict, here: Path, tiny, content: str) -> None:
    (here / "notes.json").write_text(content)
    outcome = predict(tiny.photos, "--summary-json", "notes.json")
    assert outcome.code == 2
    assert "notes.json: exists, and is no summary of a run" in outcome.err
    assert (here / "notes.json").read_text() == content
    assert predict(tiny.photos, "--summary-json", "s.json").code == 0
    assert predict(tiny.photos, "--summary-json", "s.json", "--restart").code == 0


def test_plain_lines_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Console(quiet=False) as console:
        console.started(0, 0)
        assert console._bar is None


def test_a_gpu_that_is_not_there_decodes_nothing(predict, tiny) -> None:
    outcome = predict(tiny.photos, "--decode", "nowhere")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--decode nowhere: expected auto, cpu or gpu" in outcome.err
    outcome = predict(tiny.photos, "--decode", "gpu")
    # Without the extra it is the package that is missing, with it the GPU.
    assert outcome.code == (4 if importlib.util.find_spec("cuda") else 2)
    assert "Traceback" not in outcome.err
    assert not Path("predictions.csv").exists()
    for where in ("auto", "cpu"):
        assert predict(tiny.photos, "--decode", where, "--output", f"{where}.csv").code == 0
    assert Path("auto.csv").read_bytes() == Path("cpu.csv").read_bytes()
