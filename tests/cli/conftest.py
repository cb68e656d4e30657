"""Runs the command in this process, through the same `main` as the console script."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "grey": (120, 130, 125)}
PLACES = {"red": (48.86, 2.35), "green": (-33.87, 151.21), "blue": (64.15, -21.94)}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("predict", path, stdin=b"...")`: exit code, standard output and standard error."""
    from geoinfer.cli import main

    def call(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["geoinfer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, captured.out, captured.err)

    return call


@dataclass(frozen=True)
class Tiny:
    """A model of mean colours, an index of three one-coloured photos, and four photos to locate."""

    model: Path
    index: Path
    photos: Path
    labels: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    pytest.importorskip("onnx")
    from geoinfer.backends import open_embedder
    from geoinfer.index import References, write_index
    from tests.onnx_models import expected, make_model

    folder = tmp_path_factory.mktemp("tiny")
    model = make_model(folder / "tiny.onnx")
    photos = folder / "photos"
    photos.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 16), colour).save(photos / f"{name}.png")
    labels = folder / "labels.csv"
    rows = [f"photos/{name}.png,{latitude},{longitude}" for name, (latitude, longitude) in PLACES.items()]
    labels.write_text("path,latitude,longitude\n" + "\n".join(rows) + "\n")
    pixels = np.array([COLOURS[name] for name in PLACES], np.uint8)[:, None, None, :].repeat(8, 1).repeat(8, 2)
    with open_embedder(model, "cpu") as embedder:
        write_index(
            folder / "index",
            expected(pixels).astype(np.float32),
            References(
                ids=list(PLACES),
                coordinates=np.array(list(PLACES.values())),
                sources=["somewhere"] * 3,
                attributions=[""] * 3,
                content_sha256=np.arange(96, dtype=np.uint8).reshape(3, 32),
                perceptual_hashes=np.arange(96, dtype=np.uint8).reshape(3, 32) * 83,
            ),
            embedder.identity,
        )
    return Tiny(model, folder / "index", photos, labels)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
