from __future__ import annotations

import sys
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("timm")
pytest.importorskip("pydantic")

from export.__main__ import main  # noqa: E402
from geoinfer.backends import open_embedder  # noqa: E402
from geoinfer.images import Preprocessing  # noqa: E402
from trainer.checkpoint import save_checkpoint  # noqa: E402
from trainer.models import create_model  # noqa: E402
from trainer.recipe import load_recipe  # noqa: E402

pytestmark = pytest.mark.slow

PHOTOS = Path(__file__).parents[3] / "examples" / "photos"


def checkpoint(folder: Path, recipe: str = "vit_single_stage", backbone: str = "test_vit", size: int = 32) -> Path:
    resolved = load_recipe(recipe, [f"model.backbone={backbone}", "model.weights=none"])
    torch.manual_seed(5)
    settings = resolved.model
    model = create_model(
        backbone, Preprocessing(size=size), weights="none", dim=settings.dim, coordinates=settings.coordinates
    )
    path = folder / "best.safetensors"
    save_checkpoint(path, model, resolved)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["export", "onnx", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code or 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checkpoint_becomes_a_model_that_the_runtime_opens(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = checkpoint(tmp_path), tmp_path / "vit.onnx"

    code = run(monkeypatch, path, "--out", out, "--precision", precision, "--photos", PHOTOS, "--max-batch", "4")

    shown = capsys.readouterr().out
    assert code == 0
    assert f"{path}: test_vit trained by recipe vit_single_stage; 32 px crop" in shown
    assert f"{out}: {precision}, " in shown
    assert "--licence SPDX" in shown
    assert f"geoinfer index build PHOTOS --engine {out}" in shown
    assert f"geoinfer engine build {out} --out {out.with_suffix('.trt')}" in shown
    with open_embedder(out, "cpu", threads=1) as embedder:
        assert embedder.identity.name.startswith("test_vit-vit_single_stage:")
        assert embedder.identity.dim == 256


def test_a_licence_is_written_into_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = checkpoint(tmp_path), tmp_path / "vit.onnx"
    assert run(monkeypatch, path, "--out", out, "--licence", "CC-BY-NC-4.0", "--max-batch", "2") == 0
    assert "--licence" not in capsys.readouterr().out
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert metadata["geoinfer.licence"] == "CC-BY-NC-4.0"


def test_a_limit_that_nothing_keeps_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = checkpoint(tmp_path), tmp_path / "vit.onnx"
    code = run(
        monkeypatch, path, "--out", out, "--precision", "fp16", "--max-batch", "2", "--min-cosine", "1", "--explain"
    )
    assert code == 3
    complaint = capsys.readouterr().err
    assert "failed the parity gate" in complaint
    assert "nothing was written" in complaint
    assert "own error" in complaint
    assert "at least 1 is asked for" in complaint
    assert "--explain" not in complaint
    assert "Traceback" not in complaint
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_but_a_model_is_ever_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path)
    before = path.read_bytes()
    assert run(monkeypatch, path, "--out", path) == 2
    assert "--out best.onnx" in capsys.readouterr().err
    assert path.read_bytes() == before
    # Before any weights are looked for.
    thesis = tmp_path / "thesis.docx"
    thesis.write_bytes(b"a year's work")
    assert run(monkeypatch, tmp_path / "absent.safetensors", "--out", thesis) == 2
    assert "--out thesis.onnx" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["export", "backbone", "no_such_network", "--out", str(thesis)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "--out thesis.onnx" in capsys.readouterr().err
    assert thesis.read_bytes() == b"a year's work"


@pytest.mark.parametrize("command", ["onnx", "backbone"])
def test_the_largest_batch_has_a_limit(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["export", command, "x", "--out", str(tmp_path / "a.onnx"), "--max-batch", "4097"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    complaint = capsys.readouterr().err
    assert "--max-batch" in complaint
    assert "4096" in complaint


def test_limits_that_are_given_are_taken_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, given = checkpoint(tmp_path), []
    monkeypatch.setattr("export.onnx_model.export_onnx", lambda _, out, chosen: (given.append(chosen), out.touch()))
    assert run(monkeypatch, path, "--out", tmp_path / "a.onnx", "--max-shift", "0.02", "--min-agreement", "0.9") == 0
    assert run(monkeypatch, path, "--out", tmp_path / "a.onnx", "--min-cosine", "0.9") == 0
    assert [(each.limits.free_photos, each.limits.shift_floor_km) for each in given] == [(0, 0.0), (1, 25.0)]
    assert (given[0].limits.max_shift, given[0].limits.min_agreement) == (0.02, 0.9)
    assert given[1].limits.min_cosine == 0.9


def test_a_model_of_coordinates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path, "resnet50_regression", "test_resnet")
    assert run(monkeypatch, path, "--out", tmp_path / "a.onnx") == 3
    assert "answers with coordinates" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "absent.safetensors", "--out", tmp_path / "a.onnx") == 2
    assert "absent.safetensors: there is no such checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "backbone", "millions"),
    [("resnet50", "resnet50", 25), ("vit_two_stage", "vit_base_patch16_224", 86)],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_papers_networks_in_their_true_size(
    recipe: str,
    backbone: str,
    millions: int,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = checkpoint(tmp_path, recipe, backbone, 224), tmp_path / "model.onnx"
    assert run(monkeypatch, path, "--out", out, "--precision", precision, "--photos", PHOTOS) == 0
    assert "nothing was written" not in capsys.readouterr().err
    assert out.stat().st_size > millions * 1e6 * (4 if precision == "fp32" else 2)
