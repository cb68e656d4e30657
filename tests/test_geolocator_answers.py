"""What an index says of its answers: defaults, probabilities, and calibration on photos that are not in it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("onnx")

from geoinfer import Geolocator
from geoinfer.backends import open_embedder
from geoinfer.batch.predict import PredictOptions, run_predict
from geoinfer.index import (
    Answer,
    FlatIndex,
    LeaveOneOut,
    References,
    held_out_photos,
    read_index_manifest,
    write_index,
)
from tests.onnx_models import SIZE, expected, make_model

if TYPE_CHECKING:
    from pathlib import Path

GALLERY = 30
SCALE = 25.0


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """One-coloured pictures: whatever the resize does to them, their mean colour stays."""
    colours = np.random.default_rng(seed).integers(1, 256, (count, 1, 1, 3), dtype=np.uint8)
    return colours.repeat(SIZE, 1).repeat(SIZE, 2)


def places(count: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-80, -179], [80, 179], (count, 2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


def gallery(folder: Path, model: Path, labelled: int | None, **said) -> Path:
    """An index of made-up references without a file, calibrated on so many labelled pictures; None on none."""
    vectors = expected(pictures(GALLERY)).astype(np.float32)
    nothing = np.zeros((GALLERY, 32), np.uint8)
    calibration = LeaveOneOut.empty()
    if labelled is not None:
        embeddings = expected(pictures(labelled, seed=7)).astype(np.float32)
        calibration = held_out_photos(FlatIndex(vectors), embeddings, places(labelled, seed=7))
    with open_embedder(model, "cpu") as embedder:
        write_index(
            folder,
            vectors,
            References(
                [f"gallery {i}" for i in range(GALLERY)], places(GALLERY), ["made up"] * GALLERY, [""] * GALLERY,
                nothing, nothing,
            ),
            embedder.identity,
            calibration=calibration,
            **said,
        )  # fmt: skip
    return folder


class TestDefaults:
    @pytest.mark.parametrize(
        ("said", "given", "chosen"),
        [
            (None, {}, (10, "density")),
            (Answer(1, "top1"), {}, (1, "top1")),
            (Answer(1, "top1"), {"k": 7}, (7, "top1")),
            (Answer(1, "top1"), {"aggregate": "mean"}, (10, "mean")),
            (Answer(3, "mean"), {"k": 2, "aggregate": "density"}, (2, "density")),
        ],
    )
    def test_the_index_says_unless_the_user_does(self, tmp_path: Path, model: Path, said, given, chosen) -> None:
        folder = gallery(tmp_path / "i", model, None, answer=said)
        assert read_index_manifest(folder).answer == said
        with Geolocator.open(model, folder, **given) as geolocator:
            assert (geolocator.k, geolocator.method) == chosen

    def test_the_command_likewise(self, tmp_path: Path, model: Path, run_command) -> None:
        gallery(tmp_path / "i", model, None, answer=Answer(1, "top1"))
        Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
        for given, chosen in (([], (1, "top1")), (["--k", "4"], (4, "top1")), (["--aggregate", "mean"], (10, "mean"))):
            summary = run_command(model, tmp_path / "i", *given)
            assert (summary["k"], summary["aggregate"]) == chosen


@pytest.fixture
def run_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(model: Path, index: Path, *more: str) -> dict:
        from geoinfer.cli import main

        arguments = ["predict", str(tmp_path / "a.png"), "-e", str(model), "-i", str(index), "--restart"]
        arguments += ["-o", str(tmp_path / "o.jsonl"), "--summary-json", str(tmp_path / "s.json"), *more]
        monkeypatch.setattr("sys.argv", ["geoinfer", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return json.loads((tmp_path / "s.json").read_bytes()) | {"out": capsys.readouterr().out}

    return run


class TestProbabilities:
    def softmax(self, query: np.ndarray) -> list[float]:
        exponents = [SCALE * float(np.dot(row, query)) for row in expected(pictures(GALLERY))]
        total = math.fsum(math.exp(e) for e in exponents)
        return [math.exp(e) / total for e in exponents]

    @pytest.fixture
    def index(self, tmp_path: Path, model: Path) -> Path:
        return gallery(tmp_path / "scaled", model, None, answer=Answer(1, "top1"), logit_scale=SCALE)

    def test_candidates_carry_them(self, model: Path, index: Path) -> None:
        queries = pictures(5, seed=9)
        with Geolocator.open(model, index) as geolocator:
            predictions = geolocator.locate(queries, top=GALLERY)
            some = geolocator.locate(queries, top=2)
        for query, prediction, short in zip(expected(queries), predictions, some, strict=True):
            wanted = self.softmax(query)
            for candidate in prediction.candidates:
                row = int(candidate.reference.removeprefix("gallery "))
                assert candidate.probability == pytest.approx(wanted[row], rel=1e-4)
            # Of a few they are those of all, not shares among the few.
            assert short.candidates == prediction.candidates[:2]
            assert math.fsum(c.probability for c in prediction.candidates) == pytest.approx(1, abs=1e-9)

    def test_nobody_asks_nobody_computes(self, model: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FlatIndex, "probabilities", lambda *_: pytest.fail("computed in vain"))
        with Geolocator.open(model, index) as geolocator:
            (prediction,) = geolocator.locate(pictures(1), top=0)
            assert prediction.candidates == ()
            assert geolocator.locate_embeddings(expected(pictures(1)).astype(np.float32)).probabilities is None

    def test_without_a_scale_there_are_none(self, tmp_path: Path, model: Path) -> None:
        with Geolocator.open(model, gallery(tmp_path / "i", model, None)) as geolocator:
            (prediction,) = geolocator.locate(pictures(1), top=3)
        assert [candidate.probability for candidate in prediction.candidates] == [None] * 3

    @pytest.mark.parametrize("scale", [None, SCALE])
    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_files_hold_them(self, tmp_path: Path, model: Path, scale: float | None, suffix: str) -> None:
        index = gallery(tmp_path / "i", model, None, logit_scale=scale)
        (tmp_path / "photos").mkdir()
        for number, picture in enumerate(pictures(3, seed=9)):
            Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
        output = tmp_path / f"o.{suffix}"
        with Geolocator.open(model, index) as geolocator:
            options = PredictOptions((str(tmp_path / "photos"),), output, tmp_path / "e.csv", 1, 1, top=4)
            run_predict(geolocator, options, _Silent())
        if suffix == "jsonl":
            rows = [json.loads(line, parse_constant=pytest.fail) for line in output.read_text().splitlines()]
        else:
            rows = pq.read_table(output).to_pylist()
        for row, query in zip(rows, expected(pictures(3, seed=9)), strict=True):
            wanted = sorted(self.softmax(query), reverse=True)[:4]
            found = [candidate["probability"] for candidate in row["candidates"]]
            assert found == ([None] * 4 if scale is None else pytest.approx(wanted, rel=1e-4))

    def test_a_run_with_another_scale_is_another_run(self, tmp_path: Path, model: Path) -> None:
        fingerprints = {
            read_index_manifest(gallery(tmp_path / f"{scale}", model, None, logit_scale=scale)).fingerprint
            for scale in (None, 1.0, SCALE)
        }
        assert len(fingerprints) == 3


class _Silent:
    def started(self, resumed: int, failed: int) -> None: ...

    def progressed(self, inputs: int, failed: int) -> None: ...

    def writing(self) -> None: ...


class TestCalibration:
    @pytest.mark.parametrize(
        ("labelled", "sentence"),
        [
            (None, "The index was not calibrated: give labelled photos when it is made."),
            (5, "The index was calibrated on 5 labelled photos, which are too few."),
            (60, None),
        ],
    )
    def test_the_command_says_where_it_stands(
        self, tmp_path: Path, model: Path, run_command, labelled: int | None, sentence: str | None
    ) -> None:
        index = gallery(tmp_path / "i", model, labelled, answer=Answer(1, "top1"))
        Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
        summary = run_command(model, index)
        assert summary["calibrated"] == (sentence is None)
        row = json.loads((tmp_path / "o.jsonl").read_text())
        if sentence is None:
            assert "whole Earth" not in summary["out"]
            assert 0 < row["radius_km"] <= 20015.1
            assert row["score"] > 0
        else:
            assert sentence in summary["out"]
            assert "radius_km is the whole Earth" in summary["out"]
            assert (row["radius_km"], row["score"]) == (pytest.approx(20015.087, abs=0.01), 0)

    @pytest.mark.parametrize(
        ("labelled", "line"),
        [
            (None, "calibrated: no; give labelled photos when it is made"),
            (5, "calibrated: no, 5 labelled photos are too few"),
            (60, "calibrated: on 60 labelled photos: half within"),
        ],
    )
    def test_index_info(
        self, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch, labelled, line
    ) -> None:
        from geoinfer.cli import main

        index = gallery(tmp_path / "i", model, labelled, answer=Answer(1, "top1"), logit_scale=SCALE)
        shown = {}
        for option in ([], ["--json"]):
            monkeypatch.setattr("sys.argv", ["geoinfer", "index", "info", str(index), *option])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0
            shown[bool(option)] = capsys.readouterr().out
        assert line in shown[False]
        assert "answers by: --aggregate top1 --k 1" in shown[False]
        assert "softmax of 25 times the similarity" in shown[False]
        values = json.loads(shown[True])
        assert (values["answer"], values["logit_scale"]) == ({"k": 1, "aggregate": "top1"}, SCALE)
        assert (values["calibrated"], values["calibrated_on"]) == (labelled == 60, labelled or 0)
        assert values["calibrated_by"] == ("references" if labelled is None else "labelled photos")
