"""`embed`: the model's own answers for a whole set, in Parquet, whole or not there."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.trainer.tiny_runs import stage, tiny_recipe

torch = pytest.importorskip("torch")

from geoinfer.errors import InputError, ModelError, OutputError  # noqa: E402
from geoinfer.images import load_pixels  # noqa: E402
from geoinfer.integrity import sha256_of  # noqa: E402
from trainer.checkpoint import load_model, save_checkpoint  # noqa: E402
from trainer.data.examples import open_examples  # noqa: E402
from trainer.devices import make_fabric  # noqa: E402
from trainer.embed import embed  # noqa: E402
from trainer.embed_command import run_embed  # noqa: E402
from trainer.models import create_model  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trainer.tiny_runs import PhotoSet

pytestmark = pytest.mark.slow


def make_checkpoint(path: Path, *changes: str, **more: Any) -> Path:
    recipe = tiny_recipe(*changes, **more)
    torch.manual_seed(6)
    model = create_model(
        recipe.model.backbone, recipe.make_preprocessing(), weights="none", dim=recipe.model.dim,
        hidden=recipe.model.hidden, dropout=recipe.model.dropout, coordinates=recipe.model.coordinates,
    )  # fmt: skip
    save_checkpoint(path, model, recipe)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model.safetensors", "model.coordinates=embedding")


def options(**more: Any) -> dict[str, Any]:
    return {
        "images": None, "split": "all", "batch_size": 7, "precision": "fp32", "channels_last": False, "device": "cpu",
        "workers": 2, "quiet": True,
    } | more  # fmt: skip


def read_embeddings(out: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(out / "embeddings.parquet")
    return table["id"].to_pylist(), np.stack(table["embedding"].to_numpy())


def test_embeddings_are_the_models(photo_set: PhotoSet, checkpoint: Path, tmp_path: Path) -> None:
    photo_set.spoil("p005")
    (photo_set.photos / "p021.jpg").unlink()
    run_embed(checkpoint, photo_set.prepared, tmp_path / "out", **options())
    table = pq.read_table(tmp_path / "out" / "embeddings.parquet")
    assert table.column_names == [
        "id", "path", "latitude", "longitude", "country", "sequence", "split", "embedding",
    ]  # fmt: skip
    kept = [i for i, name in enumerate(photo_set.ids) if name not in ("p005", "p021")]
    assert table["id"].to_pylist() == [photo_set.ids[i] for i in kept]
    assert table["latitude"].to_pylist() == photo_set.coordinates[kept, 0].tolist()
    assert table["longitude"].to_pylist() == photo_set.coordinates[kept, 1].tolist()
    assert table["split"].to_pylist() == [("train", "validation")[photo_set.splits[i]] for i in kept]
    assert table["path"].to_pylist() == [str(photo_set.photos / f"{photo_set.ids[i]}.jpg") for i in kept]
    model, info = load_model(checkpoint)
    _, found = read_embeddings(tmp_path / "out")
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    for i, row in zip(kept, found, strict=True):
        pixels = torch.from_numpy(load_pixels(bytes(photo_set.photos / f"{photo_set.ids[i]}.jpg"), info.preprocessing))
        with torch.no_grad():
            np.testing.assert_allclose(row, model(pixels[None])[0, :16].numpy(), atol=2e-6)
    with (tmp_path / "out" / "bad_photos.csv").open() as file:
        bad = list(csv.DictReader(file))
    assert [(row["id"], row["code"]) for row in bad] == [("p005", "truncated"), ("p021", "missing")]
    manifest = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert manifest["checkpoint_sha256"] == sha256_of(checkpoint)
    assert (manifest["embedded"], manifest["bad"]) == (len(kept), 2)
    assert manifest["preprocessing"] == info.preprocessing.as_dict()


@pytest.mark.parametrize("more", [{"batch_size": 1}, {"batch_size": 500}, {"channels_last": True}, {"workers": 1}])
def test_how_it_is_computed_changes_nothing(
    photo_set: PhotoSet, checkpoint: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    run_embed(checkpoint, photo_set.prepared, tmp_path / "a", **options())
    run_embed(checkpoint, photo_set.prepared, tmp_path / "b", **options(**more))
    (ids, ours), (others, theirs) = read_embeddings(tmp_path / "a"), read_embeddings(tmp_path / "b")
    assert ids == others
    np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_bf16_points_the_same_way(photo_set: PhotoSet, checkpoint: Path, tmp_path: Path) -> None:
    run_embed(checkpoint, photo_set.prepared, tmp_path / "a", **options())
    run_embed(checkpoint, photo_set.prepared, tmp_path / "b", **options(precision="bf16"))
    (_, full), (_, half) = read_embeddings(tmp_path / "a"), read_embeddings(tmp_path / "b")
    assert not np.array_equal(full, half)
    assert (full * half).sum(axis=1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)
    assert json.loads((tmp_path / "b" / "embeddings.json").read_text())["precision"] == "bf16-mixed"


def test_one_split(photo_set: PhotoSet, checkpoint: Path, tmp_path: Path) -> None:
    run_embed(checkpoint, photo_set.prepared, tmp_path / "out", **options(split="validation"))
    assert read_embeddings(tmp_path / "out")[0] == photo_set.of_split("validation")
    with pytest.raises(InputError, match="no photos of the split test"):
        run_embed(checkpoint, photo_set.prepared, tmp_path / "none", **options(split="test"))


def test_a_source_is_prepared_first(photo_set: PhotoSet, checkpoint: Path, tmp_path: Path) -> None:
    rows = zip(photo_set.ids, photo_set.coordinates.tolist(), strict=True)
    lines = [f"{name}.jpg,{lat!r},{lon!r}" for name, (lat, lon) in rows]
    (tmp_path / "photos.csv").write_text("\n".join(["path,lat,lon", *lines]) + "\n")
    for _ in range(2):
        run_embed(checkpoint, tmp_path / "photos.csv", tmp_path / "out", **options(images=photo_set.photos))
        assert len(read_embeddings(tmp_path / "out")[0]) == len(photo_set.ids)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_cut_short_it_leaves_nothing_under_its_name(
    photo_set: PhotoSet, checkpoint: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    def stop(done: int, bad: int) -> None:
        if done > 10:
            raise error

    out = tmp_path / "out"
    fabric = make_fabric("cpu", "fp32")
    with pytest.raises(error):
        embed(checkpoint, open_examples(photo_set.prepared), out, fabric, batch_size=4, workers=1, progress=stop)
    assert sorted(path.name for path in out.iterdir()) == ["bad_photos.csv"]
    # What was there before stays, and without its manifest it is known not to belong to what came after.
    embed(checkpoint, open_examples(photo_set.prepared), out, fabric, batch_size=4, workers=1)
    before = (out / "embeddings.parquet").read_bytes()
    with pytest.raises(error):
        embed(checkpoint, open_examples(photo_set.prepared), out, fabric, batch_size=4, workers=1, progress=stop)
    assert (out / "embeddings.parquet").read_bytes() == before
    assert not (out / "embeddings.json").exists()


def test_what_cannot_embed(photo_set: PhotoSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        run_embed(tmp_path / "nothing", photo_set.prepared, tmp_path / "out", **options())
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError):
        run_embed(tmp_path / "text", photo_set.prepared, tmp_path / "out", **options())
    regressor = make_checkpoint(
        tmp_path / "regressor", "model.dim=0", "model.coordinates=backbone", stages=[stage(kind="haversine")]
    )
    with pytest.raises(ModelError, match="no embedding"):
        run_embed(regressor, photo_set.prepared, tmp_path / "out", **options())
    assert not (tmp_path / "out" / "embeddings.parquet").exists()


def test_a_model_that_answers_with_no_numbers(photo_set: PhotoSet, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = create_model("test_efficientnet", recipe.make_preprocessing(), weights="none", dim=16, hidden=32)
    with torch.no_grad():
        model.projection[0].weight.fill_(float("inf"))
    save_checkpoint(tmp_path / "broken", model, recipe)
    with pytest.raises(ModelError, match="no numbers"):
        run_embed(tmp_path / "broken", photo_set.prepared, tmp_path / "out", **options())
    assert not (tmp_path / "out" / "embeddings.parquet").exists()


def test_out_that_cannot_be_written(photo_set: PhotoSet, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        run_embed(checkpoint, photo_set.prepared, tmp_path / "file", **options())


def test_what_another_wrote_is_not_touched(photo_set: PhotoSet, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "bad_photos.csv").write_text("id,code,message\nmine,missing,gone\n")
    (out / "metrics.csv").write_text("event\n")
    with pytest.raises(OutputError, match=r"run: holds metrics\.csv, which embed did not write"):
        run_embed(checkpoint, photo_set.prepared, out, **options())
    assert "mine" in (out / "bad_photos.csv").read_text()
    (out / "metrics.csv").unlink()
    run_embed(checkpoint, photo_set.prepared, out, **options())
    run_embed(checkpoint, photo_set.prepared, out, **options())  # its own files are replaced


def test_a_set_of_which_nothing_can_be_read_is_an_error(photo_set: PhotoSet, checkpoint: Path, tmp_path: Path) -> None:
    for name in photo_set.ids:
        photo_set.spoil(name)
    with pytest.raises(InputError, match=r"none of the 36 photos could be read"):
        run_embed(checkpoint, photo_set.prepared, tmp_path / "out", **options())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bad_photos.csv"}
    assert len((tmp_path / "out" / "bad_photos.csv").read_text().splitlines()) == 37


def test_a_checkpoint_without_embedding_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    regressor = make_checkpoint(
        tmp_path / "r.safetensors", "model.dim=0", "model.coordinates=backbone", stages=[stage(kind="haversine")]
    )
    with pytest.raises(ModelError, match="has no embedding"):
        run_embed(regressor, tmp_path / "nowhere", tmp_path / "out", **options())
    assert not (tmp_path / "out").exists()
