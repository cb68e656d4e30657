"""Labelled photos located: against `Geolocator.locate`, and without their own source against an index that lacks it."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("scipy")

from typing import TYPE_CHECKING

from geoinfer.answer import Answer
from geoinfer.backends import open_embedder
from geoinfer.errors import UsageError
from geoinfer.evaluate.locate import LocatedTruth, locate_truth
from geoinfer.evaluate.truth import Truth, read_truth
from geoinfer.geodesy import haversine_km
from geoinfer.geolocator import Geolocator
from geoinfer.images import read_image_file
from geoinfer.images.near_duplicates import perceptual_hash
from geoinfer.index import References, open_index, write_index
from tests.onnx_models import SIZE, expected, make_model

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = ("north", "south", "north", "")
COUNT = 160


def pictures(count: int, seed: int) -> np.ndarray:
    """Pictures in four quarters, so that each has a perceptual hash of its own; mean colours decide of their places."""
    random = np.random.default_rng(seed)
    return np.concatenate(
        [
            np.concatenate(
                [random.integers(1, 256, (count, 1, 1, 3), dtype=np.uint8).repeat(SIZE // 2, 1) for _ in "ab"], 1
            )
            for _ in "cd"
        ],
        2,
    ).repeat(SIZE // 2, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 160 references of two sources and of none, and photos, some of which are references."""
    folder = tmp_path_factory.mktemp("locate")
    make_model(folder / "tiny.onnx")
    random = np.random.default_rng(0)
    pixels = pictures(COUNT, 1)
    places = np.stack([random.uniform(-80, 80, COUNT), random.uniform(-180, 180, COUNT)], 1)
    (folder / "photos").mkdir()
    for number, picture in enumerate(pixels[:3]):
        Image.fromarray(picture).save(folder / "photos" / f"old{number}.png")
    for number, picture in enumerate(pictures(20, 9)):
        Image.fromarray(picture).save(folder / "photos" / f"new{number}.png")
    (folder / "photos" / "broken.png").write_bytes(b"no picture")
    digests = random.integers(1, 256, (COUNT, 32), dtype=np.uint8)
    data, _ = read_image_file(bytes(folder / "photos" / "old0.png"))
    digests[0] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    hashes = random.integers(0, 256, (COUNT, 32), dtype=np.uint8)
    hashes[1] = perceptual_hash(pixels[1])
    sources = [("north", "south", "")[row % 3] for row in range(COUNT)]
    with open_embedder(folder / "tiny.onnx", "cpu") as embedder:
        whole = References(
            [f"r{row}" for row in range(COUNT)], places, sources, [""] * COUNT, digests, hashes,
            [f"drive {row // 4}" for row in range(COUNT)],
        )  # fmt: skip
        embeddings = expected(pixels).astype(np.float32)
        write_index(folder / "index", embeddings, whole, embedder.identity)
        for left_out in ("north", "south"):
            kept = [row for row in range(COUNT) if sources[row] != left_out]
            part = References(
                [whole.ids[row] for row in kept], places[kept], [sources[row] for row in kept], [""] * len(kept),
                digests[kept], hashes[kept], [whole.sequences[row] for row in kept],
            )  # fmt: skip
            write_index(folder / f"without-{left_out}", embeddings[kept], part, embedder.identity)
    lines = ["path,latitude,longitude,source,sequence"]
    for number in range(20):
        lines.append(f"photos/new{number}.png,{number},{-number},{SOURCES[number % 4]},walk")
        if number == 7:
            lines += ["photos/broken.png,1,1,south,walk", "photos/missing.png,1,2,north,walk"]
    lines += [f"photos/old{number}.png,{places[number, 0]},{places[number, 1]},," for number in range(3)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def truth(made: Path) -> Truth:
    return read_truth(made / "labels.csv", need_photos=True)


def located(made: Path, truth: Truth, **options: object) -> LocatedTruth:
    with Geolocator.open(made / "tiny.onnx", made / "index", k=5) as geolocator:
        return locate_truth(geolocator, truth, **({"batch_size": 3, "workers": 2} | options))


def test_one_row_a_label_as_the_geolocator_answers(made: Path, truth: Truth) -> None:
    outcomes = located(made, truth, top=2).outcomes
    assert outcomes.ids == truth.ids
    assert len(outcomes) == 25
    with Geolocator.open(made / "tiny.onnx", made / "index", k=5) as geolocator:
        answers = geolocator.locate(truth.paths, top=2)
    for row, answer in enumerate(answers):
        assert outcomes.statuses[row] == answer.status
        assert outcomes.predicted[row] == pytest.approx([answer.latitude, answer.longitude], nan_ok=True)
        assert outcomes.radii_km[row] == pytest.approx(answer.radius_km, nan_ok=True)
        assert outcomes.scores[row] == pytest.approx(answer.score, nan_ok=True)
        assert [one.reference for one in outcomes.candidates[row]] == [one.reference for one in answer.candidates]
    bad = {outcomes.ids[row]: outcomes.reasons[row] for row in np.flatnonzero(~outcomes.answered)}
    assert list(bad) == ["photos/broken.png", "photos/missing.png"]
    assert all(bad.values())


def test_references_beside_each_photo(made: Path, truth: Truth) -> None:
    outcomes = located(made, truth).outcomes
    known = outcomes.references
    places = open_index(made / "index").references.coordinates
    for row in range(len(outcomes)):
        if outcomes.statuses[row] != "ok":
            assert (known.similar_ids[row], known.nearest_ids[row]) == ("", "")
            assert np.isnan([known.similarities[row], known.similar_km[row], known.nearest_km[row]]).all()
            continue
        distances = haversine_km(places, outcomes.truth[row])
        assert known.nearest_ids[row] == f"r{distances.argmin()}"
        assert known.nearest_km[row] == pytest.approx(distances.min(), abs=1e-6)
        similar = int(known.similar_ids[row][1:])
        assert known.similar_km[row] == pytest.approx(distances[similar])
        assert known.nearest_sources[row] == ("north", "south", "")[int(known.nearest_ids[row][1:]) % 3]
    assert known.relations[-3:] == ["same file", "near-duplicate", ""]
    assert known.similarities[-3:] == pytest.approx(1, abs=1e-5)
    assert known.nearest_km[-3:] == pytest.approx(0, abs=1e-6)


def test_the_whole_does_not_depend_on_batches_or_workers(made: Path, truth: Truth) -> None:
    one, other = (
        located(made, truth, batch_size=b, workers=w, hold_out="source").outcomes for b, w in ((1, 1), (8, 3))
    )
    assert one.statuses == other.statuses
    np.testing.assert_allclose(one.predicted, other.predicted, atol=1e-6)
    assert one.references.similar_ids == other.references.similar_ids


def test_a_held_out_source_is_neither_answered_nor_calibrated_by(made: Path, truth: Truth) -> None:
    found = located(made, truth, hold_out="source")
    assert sorted(found.held_out) == ["north", "south"]
    outcomes = found.outcomes
    for source, index in (("north", "without-north"), ("south", "without-south"), ("", "index")):
        rows = [row for row in range(len(truth)) if truth.sources[row] == source]
        # An index that was built without them from the start: answers and radii must be its own.
        with Geolocator.open(made / "tiny.onnx", made / index, k=5) as geolocator:
            assert geolocator.calibrated
            answers = geolocator.locate([truth.paths[row] for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            assert outcomes.statuses[row] == answer.status
            assert outcomes.predicted[row] == pytest.approx([answer.latitude, answer.longitude], nan_ok=True)
            assert outcomes.radii_km[row] == pytest.approx(answer.radius_km, nan_ok=True)
            assert outcomes.scores[row] == pytest.approx(answer.score, nan_ok=True)
            if source and answer.status == "ok":
                assert source not in (
                    outcomes.references.similar_sources[row],
                    outcomes.references.nearest_sources[row],
                )
                assert source not in [one.source for one in outcomes.candidates[row]]
    photos, references = found.numbers
    assert [photos[row] == references[0] for row in range(len(truth))] == [one == "north" for one in truth.sources]
    assert any("8 photos have no source" in text for text in found.warnings)


def test_what_cannot_be_held_out_is_said(made: Path, truth: Truth) -> None:
    count = len(truth)
    with pytest.raises(UsageError, match="none: the labels need a column `source`"):
        located(made, dataclasses.replace(truth, sources=[""] * count), hold_out="source")
    with pytest.raises(UsageError, match=r"sources of the photos: moon; of the references: north, south"):
        located(made, dataclasses.replace(truth, sources=["moon"] * count), hold_out="source")
    some = ["moon"] * (count - 1) + ["north"]
    found = located(made, dataclasses.replace(truth, sources=some), hold_out="source")
    assert found.warnings == ["No reference comes from moon: for photos from there nothing was held out."]
    with Geolocator.open(made / "tiny.onnx", made / "index") as geolocator:
        known = geolocator.index.references
        all_of_one = dataclasses.replace(
            geolocator.index, references=dataclasses.replace(known, sources=["north"] * COUNT)
        )
        only = Geolocator(geolocator.embedder, all_of_one)
        with pytest.raises(UsageError, match="all references come from north"):
            locate_truth(only, truth, batch_size=3, workers=1, hold_out="source")
        tuned = dataclasses.replace(
            geolocator.index, manifest=dataclasses.replace(geolocator.index.manifest, answer=Answer(3))
        )
        told = locate_truth(
            Geolocator(geolocator.embedder, tuned), truth, batch_size=3, workers=1, hold_out="source"
        ).warnings
        assert any("way of answering" in text for text in told)


def test_low_scores_are_skipped_and_uncalibrated_ones_unknown(made: Path, truth: Truth) -> None:
    with Geolocator.open(made / "tiny.onnx", made / "index", min_score=1.0) as geolocator:
        outcomes = locate_truth(geolocator, truth, batch_size=3, workers=1).outcomes
    answered = [row for row in range(len(outcomes)) if outcomes.statuses[row] == "skipped"]
    assert len(answered) == 23
    assert np.isnan(outcomes.predicted).all()
    assert np.isfinite(outcomes.scores[answered]).all()
    assert "below 1" in outcomes.reasons[answered[0]]
