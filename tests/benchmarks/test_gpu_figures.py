from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from geoinfer.benchmark.result import EMBED_TOGETHER, Percentiles, Result, Run, Stage
from tests.conftest import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module("gpu_figures")


@pytest.mark.parametrize(
    ("found", "outcome", "words"),
    [
        ([], "not measured", "at least 60%"),
        ([(0.59, "a")], "not reached", "59% of at least 60%; a"),
        ([(0.4, "a"), (0.61, "b")], "reached", "61% of at least 60%; b"),
        ([(0.6, "a")], "reached", "60% of at least 60%; a"),
    ],
)
def test_an_aim(figures: Any, found: list[tuple[float, str]], outcome: str, words: str) -> None:
    assert figures.ROOFLINE.row(found) == ("aim: ViT-B/16 in fp16, share of the roofline", outcome, words)


def test_the_aims_are_the_projects(figures: Any) -> None:
    assert (figures.ROOFLINE.least, figures.END_TO_END.least, figures.SEARCH.least) == (0.6, 0.9, 100_000)


def row(provider: str, precision: str, batch: int, rates: list[float], share: float) -> dict[str, Any]:
    return {"provider": provider, "precision": precision, "batch": batch, "images_per_second": rates, "share": share,
            "roofline": 5000.0}  # fmt: skip


def test_the_best_batch_of_each_provider(figures: Any) -> None:
    result = {
        "models": [
            {
                "title": "ViT-B/16",
                "rows": [
                    row("engine", "fp16", 1, [100.0, 900.0, 90.0], 0.02),
                    row("engine", "fp16", 64, [3100.0, 3000.0, 3300.0], 0.62),
                    row("CUDA", "fp16", 64, [2000.0], 0.4),
                    row("engine", "int8", 64, [9000.0], 0.9),
                ],
                "skipped": {"rtx engine, fp16": "not for this GPU", "rtx engine, int8": "neither"},
            }
        ]
    }
    assert list(figures.embed_rows(result, "fp16")) == [
        (
            ("embed, ViT-B/16, engine, fp16", "ok",
             "3100 images/s (3000 to 3300) in batches of 64, 62% of the roofline's 5000"),
            0.62,
        ),
        (("embed, ViT-B/16, CUDA, fp16", "ok",
          "2000 images/s (2000 to 2000) in batches of 64, 40% of the roofline's 5000"), 0.4),
        (("embed, ViT-B/16, rtx engine, fp16", "not run", "not for this GPU"), None),
    ]  # fmt: skip


def benchmarked(**changes: Any) -> dict[str, Any]:
    """What `geoinfer benchmark --json` would write, through the class that writes it."""

    def stage(name: str, *rates: float) -> Stage:
        return Stage(name, list(rates), Percentiles(1, 1, 1, 1, 1, 9))

    def run(kind: Any, number: int, speed: float) -> Run:
        return Run(kind, number, 100 / speed, 100, 100, 0, speed, 0.5, gpu_use=0.25, gpu_watts=300.0)

    values: dict[str, Any] = {
        "stages": [stage("read", 9000, 9000), stage("decode", 1000, 500), stage("embed", 4000, 4100),
                   stage(EMBED_TOGETHER, 10, 10)],
        "runs": [run("cold", 0, 10.0), run("warm", 0, 900.0), run("warm", 1, 480.0)],
        "bounds": [1000.0, 600.0],
        "verdict": "Decoding holds it back.",
    } | changes  # fmt: skip
    return Result(settings={}, machine={}, **values).as_dict()["result"]


def test_end_to_end_by_the_stage_of_the_same_round(figures: Any) -> None:
    text, share = figures.end_to_end(benchmarked())
    # 900 / 1000 and 480 / 500; of the bounds 900 / 1000 and 480 / 600.
    assert share == pytest.approx(0.93)
    assert text == (
        "690 photos/s (480 to 900); 93% of the slowest stage (decode, 750 photos/s); 85% of what all cores and the GPU "
        "could do together; GPU busy 25%; 300 W; Decoding holds it back."
    )


def test_end_to_end_where_less_is_known(figures: Any) -> None:
    runs = [Run("warm", 0, 1.0, 100, 100, 0, 950.0, 0.5)]
    text, share = figures.end_to_end(benchmarked(runs=runs, bounds=[], verdict="x"))
    assert share == pytest.approx(0.95)
    assert text == "950 photos/s (950 to 950); 95% of the slowest stage (decode, 750 photos/s); x"


def test_decoding_by_class(figures: Any) -> None:
    measured = {"original": ((100.0, 110.0, 90.0), (400.0, 330.0, 450.0)), "web": ((1000.0,), (500.0,))}
    assert list(figures.decode_rows(measured, {"original"})) == [
        ("decode, original", "ok", "GPU 400 photos/s, all cores 100, 4.0 times; auto takes the GPU"),
        ("decode, web", "ok", "GPU 500 photos/s, all cores 1000, 0.5 times; auto takes the CPU"),
    ]


def test_the_steps_that_read_results(figures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the commands are asked, and what becomes of the one that fails, without a GPU."""
    import json
    from pathlib import Path

    from geoinfer.engines.gpu import Gpu

    gpu_check: Any = importlib.import_module("gpu_check")
    asked: list[tuple[str, ...]] = []

    def geoinfer(*arguments: str, fails: bool = False) -> SimpleNamespace:
        asked.append(arguments)
        if "12MP" in arguments:
            return SimpleNamespace(returncode=2, stdout="", stderr="geoinfer: no room\n")
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps({"result": benchmarked()}))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    def run(*arguments: str, fails: bool = False) -> SimpleNamespace:
        name = arguments[arguments.index("--save") + 1]
        title = arguments[arguments.index("--models") + 1]
        share = 0.7 if title == gpu_check.VIT_LARGE else 0.5
        model = {"title": title, "rows": [row("engine", "fp16", 64, [9.0], share)], "skipped": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"models": [model]}))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(gpu_check, "geoinfer", geoinfer)
    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_check, "installed_flavors", list)
    monkeypatch.setattr(gpu_check, "vit_model", lambda check: tmp_path / "vit.onnx")
    monkeypatch.setattr(gpu_check, "vit_index", lambda check, model: tmp_path / "index")
    check = gpu_check.Check(tmp_path, Gpu(0, "NVIDIA H200", (9, 0), 140 << 30), quick=True)
    rows = list(gpu_check.benchmark(check))
    assert [outcome for _, outcome, _ in rows] == ["ok", "ok", "FAILED", "reached"]
    assert rows[2][2] == "geoinfer: no room"
    assert all(arguments[:2] == ("benchmark", "--generate") for arguments in asked)
    rows = list(gpu_check.embed(check))
    # The larger model's share is no answer to what is aimed at for the smaller.
    assert rows[-1] == ("aim: ViT-B/16 in fp16, share of the roofline", "not reached",
                        f"50% of at least 60%; {gpu_check.VIT}, engine, fp16")  # fmt: skip


def test_an_index_for_the_vit(figures: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from geoinfer.backends import open_embedder
    from geoinfer.engines.gpu import Gpu
    from geoinfer.geolocator import check_match
    from geoinfer.index import open_index
    from tests.onnx_models import make_model

    gpu_check: Any = importlib.import_module("gpu_check")
    model = make_model(tmp_path / "vit.onnx")
    check = gpu_check.Check(tmp_path, Gpu(0, "NVIDIA H200", (9, 0), 140 << 30), quick=True)
    stored = open_index(gpu_check.vit_index(check, model))
    assert len(stored.references) == 1000
    with open_embedder(model, "cpu") as embedder:
        check_match(embedder, stored)


def test_decoding_without_nvidias_packages(figures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from geoinfer.engines.gpu import Gpu
    from geoinfer.errors import DeviceError, MissingPackageError

    gpu_check: Any = importlib.import_module("gpu_check")
    check = gpu_check.Check(tmp_path, Gpu(0, "NVIDIA H200", (9, 0), 140 << 30), quick=True)
    for error, outcome in ((MissingPackageError("no nvImageCodec"), "not run"), (DeviceError("it broke"), "FAILED")):

        def broken(*given: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("geoinfer.batch.device_decoding.open_decoder", broken)
        assert list(gpu_check.decode(check)) == [("decode on the GPU", outcome, str(error))]
