from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from geoinfer.answer import DEFAULT_ANSWER, Answer
from geoinfer.index import LeaveOneOut, References, open_index, read_index_manifest, update_index, write_index

SMALL = ("--k", "1,3,10", "--temperatures", "0.05,0.2", "--bandwidths-km", "200", "--device", "cpu")
COUNT, LABELLED = 160, 60


@dataclasses.dataclass(frozen=True)
class World:
    """An index of coloured photos, and others of the same colours; the colour tells the place, more or less."""

    model: object
    index: object
    labels: object


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    pytest.importorskip("onnx")
    from geoinfer.backends import open_embedder
    from tests.onnx_models import expected, make_model

    folder = tmp_path_factory.mktemp("world")
    model = make_model(folder / "tiny.onnx")
    rng = np.random.default_rng(0)

    def drawn(count):
        colours = rng.integers(10, 246, (count, 3))
        places = np.stack([colours[:, 0] / 255 * 120 - 60, colours[:, 1] / 255 * 300 - 150], axis=1)
        strays = rng.random(count) < 0.3
        places[strays] = np.stack([rng.uniform(-60, 60, count), rng.uniform(-150, 150, count)], axis=1)[strays]
        return colours, places

    colours, places = drawn(COUNT)
    pixels = np.clip(colours[:, None, None, :].repeat(8, 1).repeat(8, 2), 0, 255).astype(np.uint8)
    with open_embedder(model, "cpu") as embedder:
        write_index(
            folder / "index",
            expected(pixels).astype(np.float32),
            References(
                ids=[f"reference {i}" for i in range(COUNT)],
                coordinates=places,
                sources=["one place"] * COUNT,
                attributions=[""] * COUNT,
                content_sha256=rng.integers(1, 256, (COUNT, 32), np.uint8),
                perceptual_hashes=rng.integers(0, 256, (COUNT, 32), np.uint8),
                sequences=[f"drive {i // 3}" for i in range(COUNT)],
            ),
            embedder.identity,
        )
    colours, places = drawn(LABELLED)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "latitude", "longitude", "sequence"])
        for i in range(LABELLED):
            picture = np.clip(colours[i] + rng.normal(0, 9, (16, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"photo{i}.png")
            writer.writerow([f"photo{i}.png", *places[i], f"walk {i // 2}"])
    return World(model, folder / "index", folder / "labels.csv")


@pytest.fixture
def index(world, here):
    """A copy that a test may change."""
    return shutil.copytree(world.index, here / "index")


def test_labelled_photos_tune_the_index(run, world, index, here):
    before = open_index(index).manifest
    done = run(
        "index", "tune-answer", index, "--labels", world.labels, "--engine", world.model, "--json", "--force", *SMALL
    )
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert values["photos"] == {"choosing": 30, "judging": 30}
    assert (values["split_by"], values["objective"]) == ("sequence", "median")
    assert values["best"]["low"] <= values["best"]["value"] <= values["best"]["high"]
    assert values["now"]["answer"] == DEFAULT_ANSWER.as_dict()
    after = open_index(index)
    assert values["stored"] is True
    assert after.manifest.answer == Answer.from_dict(values["best"]["answer"])
    assert after.manifest.fingerprint != ""
    assert after.manifest.size == before.size
    # 30 photos are no calibration to take the place of one on all 160 references.
    assert values["calibrated_on"] is None
    assert len(after.leave_one_out.rows) == 160
    assert (after.leave_one_out.rows >= 0).all()


def test_an_index_that_was_calibrated_on_nothing_learns_from_the_judges(run, world, index, here):
    update_index(index, calibration=LeaveOneOut.empty())
    done = run("index", "tune-answer", index, "--labels", world.labels, "--engine", world.model, "--force", *SMALL)
    assert done.code == 0, done.err
    after = open_index(index)
    # The 30 photos that chose nothing: outside the index, at their true places.
    assert len(after.leave_one_out.rows) == 30
    assert (after.leave_one_out.rows == -1).all()
    with world.labels.open(newline="") as file:
        truth = {(float(row["latitude"]), float(row["longitude"])): row["sequence"] for row in csv.DictReader(file)}
    sequences = [truth[tuple(place)] for place in after.leave_one_out.places.tolist()]
    assert all(sequences.count(name) == 2 for name in sequences)  # no walk is split
    report = index.parent / "index.tuning"
    assert {"tuning.csv", "tuning.md", "best_k.png", "best_k.svg"} <= {path.name for path in report.iterdir()}
    assert "The index now answers so" in (report / "tuning.md").read_text()
    # Predictions are made so from now on.
    found = run("predict", world.labels.parent / "photo0.png", "--engine", world.model, "--index", index,
                "--output", here / "out.csv", "--device", "cpu")  # fmt: skip
    assert found.code == 0, found.err


def test_references_tune_the_index_and_say_so(run, index, here):
    done = run("index", "tune-answer", index, "--out", here / "report", "--objective", "acc@500", *SMALL[:-2])
    assert done.code == 0, done.err
    assert "160 references, each located by the others" in done.out
    assert "Share within 500 km (%) on the 79 photos that chose nothing" in done.out or "on the 81 photos" in done.out
    assert (here / "report" / "best_k.png").stat().st_size > 5000
    # The radii of the winner are tested in the same folder.
    assert (here / "report" / "reliability.csv").stat().st_size > 100


def test_a_dry_run_leaves_the_index_alone(run, index, here):
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    done = run("index", "tune-answer", index, "--dry-run", *SMALL)
    assert done.code == 0, done.err
    assert "Nothing was stored: a dry run." in done.out
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before
    assert (here / "index.tuning" / "tuning.md").exists()


def test_what_is_no_better_is_not_stored(run, index):
    # The best there is already: of one method and one k there is no other.
    from geoinfer.index import update_index

    update_index(index, answer=Answer(10, "median", temperature=0.2))
    before = (index / "manifest.json").read_bytes()
    done = run("index", "tune-answer", index, "--k", "10", "--methods", "median", "--temperatures", "0.2")
    assert done.code == 0, done.err
    assert "answers by the best way already. Nothing was stored." in done.out
    assert (index / "manifest.json").read_bytes() == before
    # The only one in the grid is worse than what the index does.
    done = run("index", "tune-answer", index, "--k", "1", "--methods", "top1")
    assert done.code == 0, done.err
    assert "worse than the current one" in done.out
    assert "Nothing was stored; --force would store the best all the same." in done.out
    assert (index / "manifest.json").read_bytes() == before
    done = run("index", "tune-answer", index, "--k", "1", "--methods", "top1", "--force")
    assert done.code == 0, done.err
    assert read_index_manifest(index).answer == Answer(1, "top1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--k", "0"), "--k 0: expected 1 to 100"),
        (("--k", "3,"), "--k 3,: expected numbers joined by commas"),
        (("--methods", "mode"), "--methods mode: expected some of top1, mean"),
        (("--temperatures", "nan"), "--temperature nan: expected 0.0001 to 100"),
        (("--objective", "best"), "--objective best: expected median, mean"),
        (("--split-by", "day"), "--split-by day: expected one of auto, source"),
        (("--split-by", "source"), "the 160 photos are of 1 source only"),
        (("--images", "."), "--images and --engine are for --labels"),
        (("--dry-run", "--force"), "give one of them"),
        (("--labels", "none.csv"), "none.csv: there is no such file"),
    ],
)
def test_what_makes_no_sense_is_a_sentence_and_changes_nothing(run, index, arguments, message):
    before = (index / "manifest.json").read_bytes()
    done = run("index", "tune-answer", index, *arguments)
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert (index / "manifest.json").read_bytes() == before


def test_too_few_photos(run, tiny, here):
    done = run("index", "tune-answer", tiny.index)
    assert done.code == 2
    assert "3 photos are too few to tune on; it takes at least 40" in done.err
    done = run("index", "tune-answer", here / "none")
    assert done.code == 2
    assert "there is no such index" in done.err


def test_an_index_of_places_wants_labels(run, here, tiny):
    stored = open_index(tiny.index)
    nothing = np.zeros((3, 32), np.uint8)
    places = References(
        ["a", "b", "c"], np.asarray(stored.references.coordinates), [""] * 3, [""] * 3, nothing, nothing
    )
    write_index(here / "places", np.asarray(stored.index.vectors), places, stored.manifest.embedder, logit_scale=10.0)
    done = run("index", "tune-answer", here / "places")
    assert done.code == 2
    assert "its references are places and no photos" in done.err
    assert "--labels" in done.err
