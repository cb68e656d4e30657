from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.batch.rows import failed_row, ok_row
from geoinfer.batch.writers import write_rows
from geoinfer.errors import ImageError, LabelsError
from geoinfer.evaluate.match import Matched, match
from geoinfer.evaluate.prediction_files import read_predictions
from geoinfer.evaluate.truth import read_truth
from geoinfer.prediction import Candidate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def place(number: int) -> tuple[float, float]:
    """Each its own, and far from any other."""
    return (number * 37) % 140 - 70, (number * 91) % 350 - 175


def matched(
    folder: Path, labels: Sequence[str], predictions: Sequence[str], *, images: str | None = None, more: str = ""
) -> Matched:
    """Label i is at `place(i)`; a prediction's latitude is its own number."""
    folder.mkdir(exist_ok=True)
    text = "".join(f'"{name}",{place(at)[0]},{place(at)[1]}\n' for at, name in enumerate(labels))
    (folder / "labels.csv").write_text("path,lat,lon\n" + text)
    text = "".join(f'"{name}",{at / 10},{20 + at}\n' for at, name in enumerate(predictions))
    (folder / "p.csv").write_text("path,lat,lon\n" + text + more)
    return match(
        read_truth(folder / "labels.csv", folder / images if images else None), read_predictions(folder / "p.csv")
    )


def found(result: Matched) -> list[int | None]:
    """The number of each label's prediction."""
    return [
        None if math.isnan(latitude) else round(latitude * 10) for latitude, _ in result.outcomes.predicted.tolist()
    ]


@pytest.mark.parametrize(
    ("labels", "predictions", "expected", "how"),
    [
        (["1", "2"], ["2", "1"], [1, 0], "by id"),
        (["a/1.jpg", "b/1.jpg"], ["b/1.jpg", "a/1.jpg"], [1, 0], "by id"),
        (["a/1.jpg", "b/1.jpg"], ["./b/1.jpg", "./a//1.jpg"], [1, 0], "by path"),
        (["a/1.jpg", "b/1.jpg"], [r"b\1.jpg", r"a\1.jpg"], [1, 0], "by path"),
        (["a/1.jpg", "b/1.jpg"], [r"C:\photos\b\1.jpg", r"C:\photos\a\1.jpg"], [1, 0], "by path"),
        ([r"a\1.jpg", r"b\1.jpg"], ["photos/b/1.jpg", "photos/a/1.jpg"], [1, 0], "by path"),
        (["a/1.jpg", "b/1.jpg"], ["/x/y/b/1.jpg", "/x/y/a/1.jpg"], [1, 0], "by path"),
        (["a/1.jpg", "b/1.jpg"], ["../p/b/1.jpg", "../p/a/1.jpg"], [1, 0], "by path"),
        (["/x/y/a/1.jpg", "/x/y/b/1.jpg"], ["y/b/1.jpg", "y/a/1.jpg"], [1, 0], "by path"),
        (["/x/y/a/1.jpg", "/x/y/b/1.jpg"], ["b/1.jpg", "../y/a/1.jpg"], [1, 0], "by path"),
        (["x/a/1.jpg", "y/a/1.jpg"], ["y/a/1.jpg", "./x/a/1.jpg"], [1, 0], "by id (1), by path (1)"),
        (["1.jpg", "2.jpg"], ["p/2.jpg", "q/1.jpg"], [1, 0], "by file name"),
        (["p/1.jpg", "q/2.jpg"], ["2.jpg", "1.jpg"], [1, 0], "by file name"),
        (["11", "12"], ["images/00/12.jpg", "images/01/11.jpg"], [1, 0], "by file name without suffix"),
        (["11", "12.5"], ["12.5.jpeg", "11.JPG"], [1, 0], "by file name without suffix"),
        (["11.jpg", "12.jpg"], ["12", "11"], [1, 0], "by file name without suffix"),
        (["a/1.jpg", "b/1.jpg"], ["p/b/1.png", "p/a/1.webp"], [1, 0], "by path without suffix"),
        (["IMG_1.JPG", "img_2.jpg"], ["img_1.jpg", "IMG_2.JPG"], [0, 1], None),
        (["Bären/1.jpg"], ["BÄREN/1.JPG"], [0], "by path without suffix, in upper or lower case"),
    ],
)
def test_rules(tmp_path: Path, labels: list[str], predictions: list[str], expected: list[int], how: str | None) -> None:
    result = matched(tmp_path, labels, predictions)
    assert found(result) == expected
    if how is not None:
        assert result.how == how
    assert (result.unmatched_labels, result.unmatched_predictions, result.warnings) == ([], [], [])
    assert result.outcomes.statuses == ["ok"] * len(labels)


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        (["rome/1.jpg"], ["paris/1.jpg"]),
        (["x/rome/1.jpg"], ["y/rome/1.jpg"]),
        (["/data/train/rome/1.jpg"], ["/data/test/rome/1.jpg"]),
        (["rome/1.jpg"], [r"C:\paris\1.jpg"]),
        (["rome/1"], ["paris/1.jpg"]),
        (["ome/1.jpg"], ["rome/1.jpg"]),
        (["1.jpg"], ["11.jpg"]),
        (["12.5"], ["12.jpg"]),
        (["photo.v1"], ["photo.v2"]),
        (["rome/1.jpg", "1.jpg"], ["paris/1.jpg"]),  # the second is at the top: not just any 1.jpg
        (["paris/1.jpg", "rome/2.jpg"], ["1.jpg", "x/y.jpg"]),
    ],
)
def test_other_photos_are_never_matched(tmp_path: Path, labels: list[str], predictions: list[str]) -> None:
    with pytest.raises(LabelsError, match="not one of its") as caught:
        matched(tmp_path, labels, predictions)
    assert repr(predictions[0]) in str(caught.value)
    assert repr(labels[0]) in str(caught.value)


def test_names_with_and_without_folders(tmp_path: Path) -> None:
    labels = ["1.jpg", "rome/1.jpg", "rome/2.jpg"]
    assert found(matched(tmp_path, labels, ["photos/rome/1.jpg", "photos/1.jpg", "photos/rome/2.jpg"])) == [1, 0, 2]
    assert found(matched(tmp_path, labels, ["photos/rome/1.jpg", "photos/paris/1.jpg", "x/1.jpg"])) == [None, 0, None]
    assert found(matched(tmp_path, ["p/1.jpg", "p/rome/1.jpg"], ["rome/1.jpg", "1.jpg"])) == [1, 0]
    # What ends alike twice is told apart by the folders that all others differ by.
    assert found(matched(tmp_path, ["p/a/1.jpg", "p/x/a/1.jpg", "p/b/2.jpg"], ["x/a/1.jpg", "a/1.jpg", "b/2.jpg"])) == [
        1, 0, 2
    ]  # fmt: skip
    assert found(matched(tmp_path, ["1.jpg", "rome/2.jpg"], ["p/1.jpg", "p/rome/1.jpg", "p/rome/2.jpg"])) == [0, 2]
    assert found(matched(tmp_path, ["p/2.jpg", "rome/1.jpg"], ["rome/1.jpg", "2.jpg"])) == [None, 0]


def test_what_could_be_several_is_matched_with_none(tmp_path: Path) -> None:
    result = matched(tmp_path, ["1.jpg", "2.jpg"], ["a/1.jpg", "b/1.jpg", "a/2.jpg"])
    assert found(result) == [None, 2]
    assert result.unmatched_labels == ["1.jpg"]
    assert result.unmatched_predictions == ["a/1.jpg", "b/1.jpg"]
    assert any("1 names fit several photos or several predictions" in words for words in result.warnings)
    result = matched(tmp_path, ["a/1.jpg", "b/1.jpg", "c/3.jpg"], ["1.jpg", "3.jpg"])
    assert found(result) == [None, None, 1]
    assert any("matched with none: '1.jpg'" in words for words in result.warnings)
    with pytest.raises(LabelsError, match="beyond doubt; these names fit several: '1'"):
        matched(tmp_path, ["1.jpg", "1.png"], ["1"])
    # Case alone tells these apart.
    assert found(matched(tmp_path, ["A.jpg", "a.jpg"], ["p/a.jpg", "p/A.jpg"])) == [1, 0]
    with pytest.raises(LabelsError, match="fit several"):
        matched(tmp_path, ["IMG.jpg", "Img.jpg"], ["img.jpg"])


def test_the_better_of_two_counts(tmp_path: Path) -> None:
    result = matched(tmp_path, ["rome/1.jpg", "rome/2.jpg"], ["old/rome/1.jpg", "./rome/1.jpg", "rome/2.jpg"])
    assert found(result) == [1, 2]
    assert result.unmatched_predictions == ["old/rome/1.jpg"]


def test_a_suffix_that_two_labels_differ_in_is_kept(tmp_path: Path) -> None:
    result = matched(tmp_path, ["a.jpg", "a.png"], ["a.jpg", "a.webp"])
    assert found(result) == [0, None]


def test_photos_that_were_found_in_numbered_folders(tmp_path: Path) -> None:
    for name in ("images/00/1.jpg", "images/01/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert found(matched(tmp_path, ["1", "2"], ["01/2.jpg", "images/00/1.jpg"], images="images")) == [1, 0]


def test_any_of_several_names(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,id,lat,lon\nx/a.jpg,17,1,2\nx/b.jpg,18,3,4\n")
    (tmp_path / "p.csv").write_text("id,lat,lon\n18,5,6\n17,7,8\n")
    result = match(read_truth(tmp_path / "labels.csv"), read_predictions(tmp_path / "p.csv"))
    assert result.outcomes.predicted.tolist() == [[7, 8], [5, 6]]
    assert (result.how, result.outcomes.ids) == ("by id", ["x/a.jpg", "x/b.jpg"])
    # As a report's errors.csv has them: absolute paths of one machine, and what the labels called the photos.
    (tmp_path / "labels.csv").write_text("path,id,lat,lon\n/here/x/a.jpg,x/a.jpg,1,2\n/here/x/b.jpg,x/b.jpg,3,4\n")
    (tmp_path / "p.csv").write_text("id,path,lat,lon\n8,/there/x/b.jpg,5,6\n7,/there/x/a.jpg,7,8\n")
    result = match(read_truth(tmp_path / "labels.csv"), read_predictions(tmp_path / "p.csv"))
    assert (result.how, result.outcomes.predicted.tolist()) == ("by path", [[7, 8], [5, 6]])
    (tmp_path / "p.csv").write_text("path,id,lat,lon\n8,/there/x/b.jpg,5,6\n7,/there/x/a.jpg,7,8\n")
    result = match(read_truth(tmp_path / "labels.csv"), read_predictions(tmp_path / "p.csv"))
    assert (result.how, result.outcomes.predicted.tolist()) == ("by path", [[7, 8], [5, 6]])


def test_every_label_has_its_row(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "id,latitude,longitude,country,region,sub-region,city,sequence,source,season\n"
        "a,1,2,NA,r,sr,c,s1,here,dry\nb,3,4,FR,,,,s2,,\nc,5,6,FR,,,,,,\nd,7,8,FR,,,,,,\n"
    )
    candidate = Candidate("r1", 1.5, 2.5, 0.75, "somewhere", None)
    rows = [
        ok_row(b"x/b.jpg", latitude=9, longitude=10, radius_km=11, score=0.5, top1_similarity=0.75),
        failed_row(b"x/c.jpg", ImageError("decode", "truncated", "cut short")),
        failed_row(b"x/d.jpg", ImageError("discover", "raw", "camera raw", status="skipped")),
        ok_row(
            b"x/e.jpg", latitude=1, longitude=1, radius_km=1, score=0.5, top1_similarity=0.5, candidates=(candidate,)
        ),
        ok_row(
            b"x/a.jpg", latitude=1, longitude=3, radius_km=12, score=0.25, top1_similarity=0.5, candidates=(candidate,)
        ),
    ]
    write_rows(tmp_path / "out.jsonl", rows)
    truth = read_truth(tmp_path / "labels.csv", columns=["season"])
    result = match(truth, read_predictions(tmp_path / "out.jsonl"))
    outcomes = result.outcomes
    assert outcomes.ids == ["a", "b", "c", "d"]
    assert outcomes.statuses == ["ok", "ok", "error", "skipped"]
    assert outcomes.reasons == ["", "", "cut short", "camera raw"]
    assert outcomes.truth.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert outcomes.predicted[:2].tolist() == [[1, 3], [9, 10]]
    assert np.isnan(outcomes.predicted[2:]).all()
    assert outcomes.scores[:2].tolist() == [0.25, 0.5]
    assert outcomes.radii_km[:2].tolist() == [12, 11]
    assert outcomes.countries == ["NA", "FR", "FR", "FR"]
    assert (outcomes.regions[0], outcomes.sub_regions[0], outcomes.cities[0]) == ("r", "sr", "c")
    assert (outcomes.sequences[:2], outcomes.sources[:2]) == (["s1", "s2"], ["here", ""])
    assert outcomes.columns == {"season": ["dry", "", "", ""]}
    assert outcomes.candidates == [(candidate,), (), (), ()]
    assert outcomes.references is None
    assert outcomes.answered.tolist() == [True, True, False, False]
    assert result.unmatched_predictions == ["x/e.jpg"]
    (words,) = result.warnings
    assert "1 of 5 predictions are of photos that" in words


def test_missing_predictions(tmp_path: Path) -> None:
    result = matched(tmp_path, ["a", "b", "c", "d", "e"], ["d", "x"])
    assert result.outcomes.statuses == ["missing", "missing", "missing", "ok", "missing"]
    assert result.outcomes.reasons[0] == "p.csv has no prediction of it"
    assert (result.unmatched_labels, result.unmatched_predictions) == (["a", "b", "c", "e"], ["x"])
    assert "4 of 5 labelled photos have no prediction" in result.warnings[0]
    assert "'a', 'b', 'c', ..." in result.warnings[0]


def test_names_that_are_not_utf8(tmp_path: Path, shared_exif: Path) -> None:
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    data = (shared_exif / "DSCN0010.jpg").read_bytes()
    names = [b"caf\xe9.jpg", b"caf\xe8.jpg"]
    for name in names:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    rows = [
        ok_row(b"photos/" + name, latitude=at, longitude=at, radius_km=1, score=0.5, top1_similarity=0.5)
        for at, name in enumerate(names)
    ]
    write_rows(tmp_path / "out.csv", rows)
    result = match(read_truth(tmp_path / "photos"), read_predictions(tmp_path / "out.csv"))
    assert dict(zip(result.outcomes.paths, result.outcomes.predicted[:, 0].tolist(), strict=True)) == {
        os.path.join(folder, name): float(at) for at, name in enumerate(names)
    }


def test_labels_and_predictions_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,lat,lon,pred_lat,pred_lon\na,1,2,3,4\n")
    with pytest.raises(LabelsError, match="labels and predictions are the same file"):
        match(read_truth(tmp_path / "p.csv"), read_predictions(tmp_path / "p.csv"))


def test_swapped_and_radians(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = np.column_stack([rng.uniform(38, 65, 60), rng.uniform(-9, 30, 60)])

    def write(name: str, rows: np.ndarray) -> Path:
        text = "".join(f"{at},{latitude!r},{longitude!r}\n" for at, (latitude, longitude) in enumerate(rows.tolist()))
        (tmp_path / name).write_text("id,lat,lon\n" + text)
        return tmp_path / name

    truth = read_truth(write("labels.csv", places))
    near = places + 0.1
    assert match(truth, read_predictions(write("p.csv", near))).warnings == []
    with pytest.raises(LabelsError, match="latitude and longitude look swapped"):
        match(truth, read_predictions(write("p.csv", near[:, ::-1])))
    radians = write("p.csv", np.deg2rad(near))
    with pytest.raises(LabelsError, match="look like radians"):
        match(truth, read_predictions(radians))
    result = match(truth, read_predictions(radians, units="radians"), units="radians")
    assert np.allclose(result.outcomes.predicted, near)
    assert result.warnings == []
    assert "are they labels" in match(truth, read_predictions(write("p.csv", places))).warnings[0]


parts = st.sampled_from(["a", "b", "1", "2"])
names = st.lists(
    st.builds(lambda folders, stem: "/".join([*folders, stem + ".jpg"]), st.lists(parts, max_size=3), parts),
    min_size=1,
    max_size=5,
    unique=True,
)


@settings(max_examples=200, deadline=None)
@given(labels=names, predictions=names)
def test_matches_always_end_alike_and_are_one_to_one(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], predictions: list[str]
) -> None:
    def fits(label: str, prediction: str) -> bool:
        own, other = label.split("/"), prediction.split("/")
        shared = min(len(own), len(other))
        return own[-shared:] == other[-shared:]

    possible = {(label, prediction) for label in labels for prediction in predictions if fits(label, prediction)}
    try:
        result = matched(tmp_path_factory.mktemp("m"), labels, predictions)
    except LabelsError as error:
        if "swapped" not in str(error):
            # Nothing is left out that is the same word for word.
            assert not set(labels) & set(predictions)
        return
    pairs = [(label, predictions[row]) for label, row in zip(labels, found(result), strict=True) if row is not None]
    assert set(pairs) <= possible
    assert len({prediction for _, prediction in pairs}) == len(pairs)
    assert set(result.unmatched_labels) == set(labels) - {label for label, _ in pairs}
    assert set(result.unmatched_predictions) == set(predictions) - {prediction for _, prediction in pairs}
    assert {(name, name) for name in set(labels) & set(predictions)} <= set(pairs)
